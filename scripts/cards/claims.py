"""Claims of a card: a sentence, its mechanism, and assertions over numbers and results."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scripts.cards.numbers import Cite
from scripts.cards.samples import CITE, REPORTED, REVISION, SHOWN
from scripts.cards.values import (
    MOST,
    Line,
    Model,
    NumberRef,
    OneOrMore,
    Prose,
    Quantity,
    ResultRef,
)


class Reported(Model):
    """An assertion over published figures, evaluated at each build.

    Either `number` with `above`, `below` or `equals`, or `licence` with `is`.
    """

    number: NumberRef | None = Field(default=None, examples=["r50/AP_L", "r50/table1/AP_L"])
    """variant/metric or variant/table/metric of this card; with another card's slug in front, of that one."""
    above: NumberRef | Quantity | None = Field(default=None, examples=["faster-rcnn/r50-fpn/AP_L", 42.0])
    """The number, or the figure itself, that `number` exceeds."""
    below: NumberRef | Quantity | None = Field(default=None, examples=["1.5 G"])
    """The number, or the figure itself, that `number` stays under."""
    equals: NumberRef | Quantity | None = Field(default=None, examples=["41 M"])
    """The number, or the figure itself, that `number` equals, give or take `within`."""
    within: Annotated[float, Field(ge=0)] = Field(default=0.0, examples=[0.1])
    """Tolerance of `equals`, in the number's unit."""
    times: Annotated[float, Field(gt=0)] = Field(default=1.0, examples=[0.5])
    """Factor on the right-hand side: below X times 0.5 means less than half of X."""
    despite: tuple[str, ...] = Field(default=(), examples=[["schedule"]])
    """Conditions known to differ (for example schedule); the page names them. Others may not differ."""
    licence: Literal["code", "weights"] | None = Field(default=None, examples=["code"])
    """Assert a licence instead of a number."""
    is_: Annotated[str | None, Field(alias="is")] = Field(default=None, examples=["AGPL-3.0-only"])
    """SPDX id that the licence is."""

    @model_validator(mode="after")
    def one_comparison(self) -> Self:
        """Raises ValueError unless exactly one thing is compared in exactly one way."""
        bounds = [self.above, self.below, self.equals]
        if self.licence is not None:
            if self.is_ is None or self.number is not None or any(b is not None for b in bounds):
                raise ValueError("an assertion on a licence reads {licence: code, is: SPDX-ID}")
        elif self.number is None or sum(b is not None for b in bounds) != 1 or self.is_ is not None:
            raise ValueError("an assertion reads {number: ..., above: ...} with one of above, below, equals")
        return self


class Shown(Model):
    """An assertion over the results of an example's run.

    The run supports it only where every seed does and the 95 % interval of the mean leaves the bound.
    """

    result: ResultRef = Field(examples=["skip_dice_gap"])
    """Name of a result of this card's example; other-card/name for another one's."""
    above: float | ResultRef | None = Field(default=None, examples=[0, "other_result"])
    """Bound, or another result (compared seed by seed), that every seed exceeds; other-card/name for the same measure of
    another run on the shared benchmark."""
    below: float | ResultRef | None = Field(default=None, examples=[1.2])
    """Bound, or another result (compared seed by seed), that every seed stays under."""
    between: tuple[float, float] | None = Field(default=None, examples=[[0.9, 1.1]])
    """Bounds that every seed lies between."""

    @model_validator(mode="after")
    def one_bound(self) -> Self:
        """Raises ValueError unless there is exactly one bound."""
        if sum(b is not None for b in (self.above, self.below, self.between)) != 1:
            raise ValueError("an assertion reads {result: ..., above: ...} with one of above, below, between")
        return self


class Revision(Model):
    """Why a claim of the notes no longer stands."""

    reason: Prose = Field(examples=["The official code has had it since 2021."])
    """What is true instead."""
    source: Cite = Field(examples=[CITE])
    """Where that stands."""
    reported: Annotated[tuple[Reported, ...], Field(max_length=MOST), OneOrMore()] = Field(
        default=(), examples=[REPORTED]
    )
    """Assertion over published figures that the correction rests on."""


class Claim(Model):
    """A pro or a con: a sentence, its mechanism, and what backs it."""

    claim: Line = Field(examples=["Needs no non-maximum suppression."])
    """One sentence. Figures in it are references: [[r50/AP_L]]."""
    because: Prose = Field(examples=["Each object is matched with exactly one prediction."])
    """The mechanism behind it."""
    reported: Annotated[tuple[Reported, ...], Field(max_length=MOST), OneOrMore()] = Field(
        default=(), examples=[REPORTED]
    )
    """Assertion (or a list of them) over published figures."""
    shown: Annotated[tuple[Shown, ...], Field(max_length=MOST), OneOrMore()] = Field(default=(), examples=[SHOWN])
    """Assertion (or a list of them) over the results of the example."""
    source: Cite | None = Field(default=None, examples=[CITE])
    """Where the claim itself is stated."""
    cannot_show: Line | None = Field(default=None, examples=["Needs images of several hundred pixels."])
    """Why no small run here can test it: what that would need."""
    corrected: Revision | None = Field(default=None, examples=[REVISION])
    """The claim is wrong: what is true instead."""
    outdated: Revision | None = Field(default=None, examples=[REVISION])
    """The claim was true once: what changed."""
