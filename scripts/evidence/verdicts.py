"""Verdicts: what backs a claim, computed from published numbers and from the results of runs.

Nothing here is typed by hand or evaluated as code: an assertion is data (`claims.Reported`, `claims.Shown`), a finding is
its evaluation, and the verdict of a claim follows from its findings. A small run never overrules a published figure: the
two stand beside each other, and the word comes from the stronger one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from scripts.cards.claims import Claim, Reported
from scripts.cards.library import Library
from scripts.cards.values import Quantity
from scripts.evidence.published import Published, difference_text, differences, find
from scripts.evidence.runs import Finding, Outcome, check_shown
from scripts.runs.record import Record


class Verdict(StrEnum):
    """How a claim stands; the order is that of the strength of its backing."""

    BOTH = "published + shown"
    PUBLISHED = "published"
    INDEPENDENT = "independent"
    DIFFERS = "published, small run differs"
    SHOWN = "shown"
    CONTESTED = "contested"
    INCONCLUSIVE = "inconclusive"
    NOTED = "noted"
    NOT_SUPPORTED = "not supported"
    OUTDATED = "outdated"
    CORRECTED = "corrected"


BACKED = (Verdict.BOTH, Verdict.PUBLISHED, Verdict.INDEPENDENT, Verdict.DIFFERS, Verdict.SHOWN)
"""Verdicts of claims that something supports and nothing of the same strength contradicts."""


@dataclass(frozen=True)
class Judged:
    """A claim with its findings and the verdict that follows."""

    claim: Claim
    reported: tuple[Finding, ...]
    shown: tuple[Finding, ...]

    @functools.cached_property
    def published(self) -> Outcome:
        """What the figures say that the authors of a model, or of a rival, published."""
        return joined([each for each in self.reported if not each.independent])

    @functools.cached_property
    def independent(self) -> Outcome:
        """What someone else's measurements say."""
        return joined([each for each in self.reported if each.independent])

    @functools.cached_property
    def run(self) -> Outcome:
        """What the run made here says."""
        return joined(self.shown)

    @functools.cached_property
    def verdict(self) -> Verdict:
        """The word for it."""
        if self.claim.corrected:
            return Verdict.CORRECTED
        if self.claim.outdated:
            return Verdict.OUTDATED
        return verdict(self.published, self.independent, self.run)

    @property
    def surprises(self) -> tuple[Finding, ...]:
        """Assertions that turned false."""
        return tuple(each for each in (*self.reported, *self.shown) if each.outcome is Outcome.CONTRADICTS)


def verdict(published: Outcome, independent: Outcome, run: Outcome) -> Verdict:
    """The headline word, from the strongest evidence there is."""
    told = {published, independent}
    if told >= {Outcome.SUPPORTS, Outcome.CONTRADICTS}:
        return Verdict.CONTESTED
    if Outcome.CONTRADICTS in told:
        return Verdict.NOT_SUPPORTED
    if Outcome.SUPPORTS in told:
        by_word = {Outcome.SUPPORTS: Verdict.BOTH, Outcome.CONTRADICTS: Verdict.DIFFERS}
        return by_word.get(run, Verdict.PUBLISHED if published is Outcome.SUPPORTS else Verdict.INDEPENDENT)
    alone = {
        Outcome.SUPPORTS: Verdict.SHOWN, Outcome.CONTRADICTS: Verdict.NOT_SUPPORTED,
        Outcome.INCONCLUSIVE: Verdict.INCONCLUSIVE,
    }  # fmt: skip
    return alone.get(run, Verdict.NOTED)


def joined(findings: Sequence[Finding]) -> Outcome:
    """Several assertions as one: one that is contradicted contradicts all, one that is open leaves all open."""
    outcomes = [finding.outcome for finding in findings] or [Outcome.NONE]
    order = (Outcome.CONTRADICTS, Outcome.NONE, Outcome.INCONCLUSIVE, Outcome.SUPPORTS)
    return min(outcomes, key=order.index)


def judge(library: Library, slug: str, claim: Claim, records: Mapping[str, Record]) -> Judged:
    """Evaluate all assertions of a claim of the card `slug`; `records` holds the runs by slug."""
    revision = claim.corrected or claim.outdated
    assertions = (*claim.reported, *(revision.reported if revision else ()))
    reported = tuple(check_reported(library, slug, assertion) for assertion in assertions)
    shown = tuple(check_shown(slug, assertion, records) for assertion in claim.shown)
    return Judged(claim, reported, shown)


def check_reported(library: Library, slug: str, assertion: Reported) -> Finding:
    """Evaluate an assertion over published figures; the outcome is NONE, with the reason, where they are not comparable."""
    if assertion.licence:
        return _check_licence(library, slug, assertion)
    try:
        left, right = operands(library, slug, assertion)
    except LookupError as error:
        return Finding(str(assertion.number), Outcome.NONE, str(error.args[0]))
    text = _reported_text(library, slug, left, right, assertion)
    numbers = (left, right) if isinstance(right, Published) else (left,)
    remark = ""
    if isinstance(right, Published):
        forbidden, differing = differences(left, right, library.vocabulary)
        blocking = [*forbidden, *(name for name in differing if name not in assertion.despite)]
        if blocking:
            reason = f"not comparable: {difference_text(left, right, blocking)}"
            return Finding(text, Outcome.NONE, reason, left.source, left.where, numbers)
        remark = f"they differ in {difference_text(left, right, differing)}" if differing else ""
    bound = (right.quantity if isinstance(right, Published) else right).value * assertion.times
    outcome = _outcome(_compare(left.quantity.value, bound, assertion))
    return Finding(text, outcome, remark, left.source, left.where, numbers)


def operands(library: Library, slug: str, assertion: Reported) -> tuple[Published, Published | Quantity]:
    """Both sides of an assertion over numbers.

    Raises:
        LookupError: one of them does not exist.
    """
    assert assertion.number is not None
    bound = next(b for b in (assertion.above, assertion.below, assertion.equals) if b is not None)
    left = find(library, slug, assertion.number)
    return left, bound if isinstance(bound, Quantity) else find(library, slug, bound)


def _compare(value: float, bound: float, assertion: Reported) -> bool:
    if assertion.above is not None:
        return value > bound
    if assertion.below is not None:
        return value < bound
    return abs(value - bound) <= assertion.within + 1e-9 * abs(bound)


def _reported_text(
    library: Library, slug: str, left: Published, right: Published | Quantity, assertion: Reported
) -> str:
    word = "above" if assertion.above is not None else "below" if assertion.below is not None else "equal to"
    word = f"within {assertion.within:g} of" if assertion.within else word
    factor = "" if assertion.times == 1 else f"{assertion.times:g} × "
    other = f"{label(library, slug, right)} {right.quantity.printed}" if isinstance(right, Published) else right.printed
    return f"{label(library, slug, left)} {left.quantity.printed} is {word} {factor}{other}"


def label(library: Library, home: str, number: Published) -> str:
    """`DETR-R50's AP L`, with the metric's label from the vocabulary."""
    metric = library.vocabulary.metric(number.metric).label
    return f"{library.cards[number.card].variants[number.variant].name}'s {metric}"


def _check_licence(library: Library, slug: str, assertion: Reported) -> Finding:
    licences = library.cards[slug].licences
    stated = licences.code if assertion.licence == "code" else licences.weights
    text = f"the licence of the {assertion.licence} is {assertion.is_}"
    remark = "" if stated == assertion.is_ else f"the card states {stated}"
    return Finding(text, _outcome(stated == assertion.is_), remark, licences.source.reference, licences.source.where)


def _outcome(holds: bool) -> Outcome:
    return Outcome.SUPPORTS if holds else Outcome.CONTRADICTS
