"""What a run made here says of a claim, as a sentence: how many seeds agree, and by how much; no names of results."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.cards.claims import Shown
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.runs import Finding, Observed
from scripts.evidence.verdicts import Judged
from scripts.pages.environment import short


def findings(judged: Judged, knowledge: Knowledge) -> list[tuple[Finding, str]]:
    """The findings of a claim's runs, each in words."""
    pairs = zip(judged.claim.shown, judged.shown, strict=True)
    return [(finding, in_words(assertion, finding, knowledge)) for assertion, finding in pairs]


def in_words(assertion: Shown, finding: Finding, knowledge: Knowledge) -> str:
    """`AP that the check adds: above 0 in all 3 seeds, by 5.35 to 7.32 points.`, or why nothing was compared."""
    seen = finding.observed
    said = _compared(assertion, seen, knowledge) if seen else ""
    return "; ".join(filter(None, [said, finding.remark])) + "."


def _compared(assertion: Shown, seen: Observed, knowledge: Knowledge) -> str:
    meaning = seen.meaning.strip().rstrip(".")
    if not seen.margins:
        return f"{meaning}: undefined"
    if seen.rival:
        return f"{meaning}: {_beside(seen, knowledge)}"
    bound, held = _bound(assertion, seen, knowledge), sum(margin > 0 for margin in seen.margins)
    seeds = max(len(seen.values), len(seen.margins))
    if seen.exact and seeds == 1:
        return f"{meaning}: {_span(seen.values, seen.unit)} (exact), {'' if held else 'not '}{bound}"
    return f"{meaning}: {bound} in {_of(held, seeds)}{_amount(assertion, seen, held == seeds)}"


def _beside(seen: Observed, knowledge: Knowledge) -> str:
    """Two models by their means: their seeds have nothing to do with each other."""
    assert seen.rival is not None
    name = knowledge.name_of(str(seen.rival["card"]))
    return f"{_span([seen.mean], seen.unit)} on average, against {_number(seen.rival['mean'])} of {name}"


def _bound(assertion: Shown, seen: Observed, knowledge: Knowledge) -> str:
    """`above 20`, `between 0.9 and 1.1`, or another result of the run by its meaning."""
    if assertion.between:
        low, high = (_number(end) for end in assertion.between)
        return f"equal to {low}" if low == high else f"between {low} and {high}"
    word, bound = ("above", assertion.above) if assertion.above is not None else ("below", assertion.below)
    if not isinstance(bound, str):
        return f"{word} {_number(bound)}"
    run = knowledge.run(seen.card)
    assert run is not None
    return f"{word} “{run.results[bound].meaning}”"


def _of(held: int, seeds: int) -> str:
    if held < seeds:
        return f"{held or 'none'} of {seeds} seeds" if seeds > 1 else "no seed of one"
    return {1: "the one seed", 2: "both seeds"}.get(seeds, f"all {seeds} seeds")


def _amount(assertion: Shown, seen: Observed, whole: bool) -> str:
    """The distance, where the bound is nothing or another result and every seed holds; otherwise what was measured."""
    bound = assertion.above if assertion.above is not None else assertion.below
    if whole and (bound == 0 or isinstance(bound, str)):
        return f", by {_span(seen.margins, seen.unit)}"
    return f": {_span(seen.values, seen.unit)}"


def _span(values: Sequence[float | None], unit: str) -> str:
    """`5.35 to 7.32 points`, from the least to the most; one number where both read alike."""
    defined = [value for value in values if value is not None]
    ends = dict.fromkeys(_number(end) for end in (min(defined), max(defined)))
    return f"{' to '.join(ends)} {unit}".strip()


def _number(value: float | None) -> str:
    return short(value).replace("-", "−")
