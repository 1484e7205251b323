"""Verdicts: what backs a claim, computed from published numbers and from the results of runs.

Nothing here is typed by hand or evaluated as code: an assertion is data (`schema.Reported`, `schema.Shown`), a finding
is its evaluation, and the verdict of a claim follows from its findings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from scripts.cards.claims import Claim, Reported, Shown
from scripts.cards.library import Library
from scripts.cards.problems import nearest
from scripts.cards.values import Quantity
from scripts.evidence.published import Published, difference_text, differences, find
from scripts.runs.record import Results


class Verdict(StrEnum):
    """How a claim stands; the order is that of the strength of its backing."""

    BOTH = "both"
    SHOWN = "shown"
    REPORTED = "reported"
    NOTED = "noted"
    NOT_SHOWN = "not shown here"
    OUTDATED = "outdated"
    CORRECTED = "corrected"


@dataclass(frozen=True)
class Finding:
    """An assertion and how it came out; `holds` is None where nothing could be compared yet."""

    assertion: str
    holds: bool | None
    remark: str = ""
    source: str = ""
    where: str = ""
    numbers: tuple[Published, ...] = ()
    observed: Mapping[str, Any] = field(default_factory=dict)
    expected: bool = True
    """False where the card says itself that this does not show here."""

    @property
    def surprising(self) -> bool:
        """The assertion came out otherwise than the card says."""
        return self.holds is not None and self.holds is not self.expected


@dataclass(frozen=True)
class Judged:
    """A claim with its findings and the verdict that follows."""

    claim: Claim
    verdict: Verdict
    reported: tuple[Finding, ...]
    shown: tuple[Finding, ...]

    @property
    def surprises(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in (*self.reported, *self.shown) if finding.surprising)


def judge(library: Library, slug: str, claim: Claim, results: Mapping[str, Results]) -> Judged:
    """Evaluate all assertions of a claim of the card `slug`; `results` holds the runs' results by slug."""
    revision = claim.corrected or claim.outdated
    assertions = (*claim.reported, *(revision.reported if revision else ()))
    reported = tuple(check_reported(library, slug, assertion) for assertion in assertions)
    shown = tuple(check_shown(slug, assertion, results) for assertion in claim.shown)
    return Judged(claim, _verdict(claim, reported, shown), reported, shown)


def _verdict(claim: Claim, reported: Sequence[Finding], shown: Sequence[Finding]) -> Verdict:
    if claim.corrected:
        return Verdict.CORRECTED
    if claim.outdated:
        return Verdict.OUTDATED
    if any(finding.holds is False for finding in shown):
        return Verdict.NOT_SHOWN
    is_reported = bool(reported) and all(finding.holds for finding in reported)
    is_shown = bool(shown) and all(finding.holds for finding in shown)
    if is_shown:
        return Verdict.BOTH if is_reported else Verdict.SHOWN
    return Verdict.REPORTED if is_reported else Verdict.NOTED


def check_reported(library: Library, slug: str, assertion: Reported) -> Finding:
    """Evaluate an assertion over published figures; `holds` is None, with the reason, where they are not comparable."""
    if assertion.licence:
        return _check_licence(library, slug, assertion)
    try:
        left, right = operands(library, slug, assertion)
    except LookupError as error:
        return Finding(str(assertion.number), None, remark=str(error.args[0]))
    text = _reported_text(library, slug, left, right, assertion)
    numbers = (left, right) if isinstance(right, Published) else (left,)
    remark = ""
    if isinstance(right, Published):
        forbidden, differing = differences(left, right, library.vocabulary)
        blocking = [*forbidden, *(name for name in differing if name not in assertion.despite)]
        if blocking:
            reason = f"not comparable: {difference_text(left, right, blocking)}"
            return Finding(text, None, reason, left.source, left.where, numbers)
        remark = f"they differ in {difference_text(left, right, differing)}" if differing else ""
    bound = (right.quantity if isinstance(right, Published) else right).value * assertion.times
    holds = _compare(left.quantity.value, bound, assertion)
    return Finding(text, holds, remark, left.source, left.where, numbers)


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
    return Finding(text, stated == assertion.is_, remark, licences.source.reference, licences.source.where)


def check_shown(slug: str, assertion: Shown, results: Mapping[str, Results]) -> Finding:
    """Evaluate an assertion over the results of runs: it holds only if it holds for every seed."""
    owner, _, name = assertion.result.rpartition("/")
    owner = owner or slug
    text, expected = _shown_text(name, assertion), assertion.not_here is None
    try:
        result = _result(owner, name, results)
        holds = all(map(_holds(assertion, owner, result, results), range(len(result["values"])), result["values"]))
    except LookupError as error:
        return Finding(text, None, str(error.args[0]), expected=expected)
    observed = {
        "card": owner, "result": name, "values": list(result["values"]), "mean": result["mean"],
        "worst": _worst(result["values"], assertion), "unit": result["unit"], "meaning": result["meaning"],
        "exact": bool(result.get("exact")),
        "experiment": result.get("experiment"), "rival": _rival(assertion, results),
    }  # fmt: skip
    return Finding(text, holds, assertion.not_here or "", observed=observed, expected=expected)


def owners_of(slug: str, assertion: Shown) -> set[str]:
    """Slugs of the runs whose results an assertion of the card `slug` names."""
    refs = (assertion.result, assertion.above, assertion.below)
    return {ref.rpartition("/")[0] or slug for ref in refs if isinstance(ref, str)}


def _rival(assertion: Shown, results: Mapping[str, Results]) -> dict[str, Any] | None:
    """The other model's side of an assertion over two runs."""
    bound = assertion.above if isinstance(assertion.above, str) else assertion.below
    other, _, name = bound.rpartition("/") if isinstance(bound, str) else ("", "", "")
    return {"card": other, "mean": results[other][name]["mean"]} if other else None


def _result(owner: str, name: str, results: Mapping[str, Results]) -> Mapping[str, Any]:
    """A result of the run of `owner`. Raises LookupError where there is no run yet, or no such result in it."""
    of_run = results.get(owner)
    if of_run is None:
        raise LookupError("no run yet")
    if name not in of_run:
        raise LookupError(f"the run of {owner} has no result {name!r}{nearest(name, of_run)}")
    return of_run[name]


def _holds(
    assertion: Shown, owner: str, result: Mapping[str, Any], results: Mapping[str, Results]
) -> Callable[[int, float], bool]:
    """Whether the assertion holds for a seed and its value. Raises LookupError for a bound that cannot be compared."""
    if assertion.between:
        low, high = assertion.between
        return lambda _, value: low <= value <= high
    bound = assertion.above if assertion.above is not None else assertion.below
    assert bound is not None
    values = _bound_values(bound, assertion, owner, result, results) if isinstance(bound, str) else [bound]
    above = assertion.above is not None

    def holds(seed: int, value: float) -> bool:
        limit = values[min(seed, len(values) - 1)]  # an exact bound has one value for all seeds
        return value > limit if above else value < limit

    return holds


def _bound_values(
    bound: str, assertion: Shown, owner: str, result: Mapping[str, Any], results: Mapping[str, Results]
) -> list[float]:
    """The values of a bound that is itself a result; of another run only the same measure, over as many seeds."""
    other, _, name = bound.rpartition("/")
    found = _result(other or owner, name, results)
    if other and (name != assertion.result.rpartition("/")[2] or len(found["values"]) != len(result["values"])):
        raise LookupError(f"{bound}: two runs are compared only in the same measure, over as many seeds")
    return list(found["values"])


def _worst(values: Sequence[float], assertion: Shown) -> float:
    if assertion.between:
        middle = sum(assertion.between) / 2
        return max(values, key=lambda value: abs(value - middle))
    return min(values) if assertion.above is not None else max(values)


def _shown_text(name: str, assertion: Shown) -> str:
    if assertion.between:
        return f"{name} lies between {assertion.between[0]:g} and {assertion.between[1]:g} for every seed"
    word, bound = ("above", assertion.above) if assertion.above is not None else ("below", assertion.below)
    return f"{name} is {word} {bound if isinstance(bound, str) else f'{bound:g}'} for every seed"
