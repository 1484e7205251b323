"""What a run made here says of a claim: it supports or contradicts only where all seeds agree and chance is ruled out.

Every seed has to be on one side of the bound, and the two-sided 95 % interval of the mean (Student's t; of the differences,
where two arms are compared seed by seed) has to leave the bound on that side. Otherwise the outcome is inconclusive: too
few seeds, an undefined measure, a training that failed, or an experiment that could not have seen the effect.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from scripts.cards.claims import Shown
from scripts.cards.problems import nearest
from scripts.evidence.published import Published
from scripts.runs.record import Record, Result

T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110,
    2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Quantile .975 of Student's t for 1 to 30 degrees of freedom (tests compare it with SciPy's)."""


class Outcome(StrEnum):
    """What evidence of one kind says of an assertion."""

    SUPPORTS = "supports"
    CONTRADICTS = "contradicts"
    INCONCLUSIVE = "inconclusive"
    NONE = "none"
    """No figure, no run, or nothing that may be compared."""


INCLUDED = 1e-12
"""The ends of `between` belong to it."""


@dataclass(frozen=True)
class Observed:
    """What a run measured for an assertion."""

    card: str
    result: str
    experiment: str
    values: tuple[float | None, ...]
    mean: float | None
    unit: str
    meaning: str
    exact: bool
    margins: tuple[float, ...]
    """The distance of each seed to the bound, positive where the assertion holds."""
    margin: tuple[float, float] | None
    """The 95 % interval of this distance; None where it has none."""
    least: float | None
    """The smallest of these distances over the seeds."""
    most: float | None
    rival: Mapping[str, Any] | None = None
    """The other model's card and mean, of an assertion over two runs."""


@dataclass(frozen=True)
class Finding:
    """An assertion and how it came out, with what it rests on."""

    assertion: str
    outcome: Outcome
    remark: str = ""
    source: str = ""
    where: str = ""
    numbers: tuple[Published, ...] = ()
    observed: Observed | None = None

    @property
    def independent(self) -> bool:
        """Rests on a measurement by someone else than the authors of the models."""
        return any(number.independent for number in self.numbers)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The two-sided 95 % interval of the mean of two values or more, by Student's t."""
    half = _t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half


def interval_of_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """The same of the difference of the means of two independent samples, by Welch's approximation."""
    parts = [statistics.variance(each) / len(each) for each in (a, b)]
    mean, total = statistics.fmean(a) - statistics.fmean(b), sum(parts)
    if total == 0:
        return mean, mean
    freedom = 1 / sum((part / total) ** 2 / (len(each) - 1) for part, each in zip(parts, (a, b), strict=True))
    half = _t(max(math.floor(freedom + 1e-9), 1)) * math.sqrt(total)
    return mean - half, mean + half


def _t(freedom: int) -> float:
    return T_95[freedom - 1] if freedom <= len(T_95) else 1.96 + 2.4 / freedom  # within .001 beyond the table


def owners_of(slug: str, assertion: Shown) -> set[str]:
    """Slugs of the runs whose results an assertion of the card `slug` names."""
    refs = (assertion.result, assertion.above, assertion.below)
    return {ref.rpartition("/")[0] or slug for ref in refs if isinstance(ref, str)}


def check_shown(slug: str, assertion: Shown, records: Mapping[str, Record]) -> Finding:
    """Evaluate an assertion over the results of runs."""
    owner, _, name = assertion.result.rpartition("/")
    owner = owner or slug
    text = _text(name, assertion)
    try:
        held = _held(owner, assertion, records)
        outcome, remark = held.outcome, held.remark
        if outcome is Outcome.CONTRADICTS and not held.exact:
            outcome, remark = _with_power(owner, name, records)
    except LookupError as error:
        return Finding(text, Outcome.NONE, str(error.args[0]))
    result, margins = held.result, held.margins
    observed = Observed(
        owner, name, result.experiment, result.values, result.mean, result.unit, result.meaning, result.exact,
        tuple(margins), held.band, min(margins, default=None), max(margins, default=None), _rival(assertion, records),
    )  # fmt: skip
    return Finding(text, outcome, remark, observed=observed)


Band = tuple[float, float] | None
"""The interval of the distances to a bound, where there is one."""


@dataclass(frozen=True)
class _Held:
    """A result held against its bound; `margins`: of each seed, positive where the assertion holds."""

    result: Result
    margins: list[float]
    band: Band
    exact: bool
    """Neither side depends on chance."""
    outcome: Outcome
    remark: str


def _held(owner: str, assertion: Shown, records: Mapping[str, Record]) -> _Held:
    """Raises LookupError where there is no run, or nothing that may be compared."""
    result = _result(owner, assertion.result.rpartition("/")[2], records)
    bound = next((each for each in (assertion.above, assertion.below) if isinstance(each, str)), None)
    sides = [result, *([_bound(bound, owner, assertion, result, records)] if bound else [])]
    margins, band = _margins(assertion, sides)
    return _Held(result, margins, band, all(side.exact for side in sides), *_outcome(sides, margins, band))


def _outcome(sides: Sequence[Result], margins: Sequence[float], band: Band) -> tuple[Outcome, str]:
    """From the distances to the bound and their interval, with the reason where nothing can be said."""
    failed = sorted({str(each["reason"]) for side in sides for each in side.failed})
    if failed or any(None in side.values for side in sides):
        return Outcome.INCONCLUSIVE, "; ".join(failed) or "it is undefined for a seed"
    if all(side.exact for side in sides):
        return (Outcome.SUPPORTS if margins[0] > 0 else Outcome.CONTRADICTS), ""
    if band is None:
        return Outcome.INCONCLUSIVE, "one seed says nothing about chance"
    if min(margins) > 0 and band[0] > 0:
        return Outcome.SUPPORTS, ""
    if max(margins) < 0 and band[1] < 0:
        return Outcome.CONTRADICTS, ""
    agree = min(margins) > 0 or max(margins) < 0
    return Outcome.INCONCLUSIVE, "chance is not ruled out" if agree else "the seeds do not agree"


def _with_power(owner: str, name: str, records: Mapping[str, Record]) -> tuple[Outcome, str]:
    """An effect that is missing counts only where a control of the experiment shows that it would have been seen."""
    experiment = records[owner].experiment_of(name)
    power = experiment.power if experiment else None
    if power is None:
        return Outcome.INCONCLUSIVE, "nothing shows that this experiment would have seen the effect"
    control = Shown(result=power["result"], above=power.get("above"), below=power.get("below"))
    if _held(owner, control, records).outcome is not Outcome.SUPPORTS:
        return Outcome.INCONCLUSIVE, f"the control does not show it either: {power['control']}"
    return Outcome.CONTRADICTS, ""


def _margins(assertion: Shown, sides: Sequence[Result]) -> tuple[list[float], Band]:
    """The distance of each seed to the bound, positive where the assertion holds, and their interval."""
    result = sides[0]
    if assertion.between:
        return _margins_between(*assertion.between, result)
    sign, bound = (1, assertion.above) if assertion.above is not None else (-1, assertion.below)
    if len(sides) == 1:
        assert isinstance(bound, float | int)
        return _with_interval([sign * (value - bound) for value in result.defined], result.exact)
    other = sides[1]
    seeds = max(len(result.values), len(other.values))
    values, limits = (each.values * seeds if each.exact else each.values for each in sides)
    pairs = [sign * (a - b) for a, b in zip(values, limits, strict=False) if a is not None and b is not None]
    apart = isinstance(bound, str) and "/" in bound
    if apart and not (result.exact or other.exact) and min(len(result.defined), len(other.defined)) > 1:
        low, high = interval_of_difference(result.defined, other.defined)
        return pairs, (low, high) if sign > 0 else (-high, -low)
    return _with_interval(pairs, result.exact and other.exact)


def _margins_between(low: float, high: float, result: Result) -> tuple[list[float], Band]:
    distances = [min(value - low, high - value) + INCLUDED for value in result.defined]
    if result.exact or len(distances) < 2:
        return distances, None
    ends = interval(result.defined)
    straddles = ends[0] < low and ends[1] > high
    most = high - low if straddles else max(min(end - low, high - end) for end in ends)
    return distances, (min(ends[0] - low, high - ends[1]) + INCLUDED, most)


def _with_interval(margins: list[float], exact: bool) -> tuple[list[float], Band]:
    return margins, None if exact or len(margins) < 2 else interval(margins)


def _bound(bound: str, owner: str, assertion: Shown, result: Result, records: Mapping[str, Record]) -> Result:
    """A bound that is itself a result: of the same seeds, or of another run the same measure over as many."""
    other, _, name = bound.rpartition("/")
    found = _result(other or owner, name, records)
    as_many = len(found.values) == len(result.values)
    if other and not (as_many and name == assertion.result.rpartition("/")[2]):
        raise LookupError(f"{bound}: two runs are compared only in the same measure, over as many seeds")
    if not (as_many or found.exact or result.exact):
        raise LookupError(f"{bound}: two results are compared only over the same seeds")
    return found


def _result(owner: str, name: str, records: Mapping[str, Record]) -> Result:
    """A result of the run of `owner`. Raises LookupError where there is no run yet, or no such result in it."""
    record = records.get(owner)
    if record is None:
        raise LookupError("no run yet")
    if name not in record.results:
        raise LookupError(f"the run of {owner} has no result {name!r}{nearest(name, record.results)}")
    return record.results[name]


def _rival(assertion: Shown, records: Mapping[str, Record]) -> dict[str, Any] | None:
    """The other model's side of an assertion over two runs."""
    bound = assertion.above if isinstance(assertion.above, str) else assertion.below
    other, _, name = bound.rpartition("/") if isinstance(bound, str) else ("", "", "")
    return {"card": other, "mean": records[other].results[name].mean} if other else None


def _text(name: str, assertion: Shown) -> str:
    if assertion.between:
        return f"{name} lies between {assertion.between[0]:g} and {assertion.between[1]:g}"
    word, bound = ("above", assertion.above) if assertion.above is not None else ("below", assertion.below)
    return f"{name} is {word} {bound if isinstance(bound, str) else f'{bound:g}'}"
