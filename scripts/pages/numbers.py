"""The page Numbers: every benchmark that two models share, ranked only where conditions agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scripts.cards.vocabulary import Vocabulary
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.published import Published, comparability, difference_text, differences, numbers_of
from scripts.evidence.systems import SIZES, cost
from scripts.pages.environment import slugify, template
from scripts.pages.systems import system_name, told
from scripts.pages.writer import common


@dataclass(frozen=True)
class Ranking:
    """Numbers of one metric that may be ranked against each other: all their conditions agree."""

    conditions: tuple[tuple[str, str], ...]
    numbers: tuple[Published, ...]


@dataclass(frozen=True)
class Benchmark:
    """All numbers of one metric on one dataset and split, in groups that are comparable within."""

    dataset: str
    split: str
    metric: str
    rankings: tuple[Ranking, ...]

    @property
    def cards(self) -> set[str]:
        return {number.card for ranking in self.rankings for number in ranking.numbers}


def benchmarks(knowledge: Knowledge) -> list[Benchmark]:
    """Every quality metric that two cards or more share, most shared first; ranked only where conditions agree."""
    words = knowledge.library.vocabulary
    groups: dict[tuple[str, str, str], list[Published]] = {}
    for card in knowledge.cards:
        for number in numbers_of(knowledge.library, card.slug):
            if words.metric(number.metric).kind == "quality" and number.conditions.dataset:
                key = (number.conditions.dataset, number.conditions.split or "", number.metric)
                groups.setdefault(key, []).append(number)
    found = [Benchmark(*key, _rankings(numbers, words)) for key, numbers in sorted(groups.items())]
    shared = [benchmark for benchmark in found if len(benchmark.cards) > 1]
    return sorted(shared, key=lambda benchmark: -len(benchmark.cards))


def _rankings(numbers: list[Published], words: Vocabulary) -> tuple[Ranking, ...]:
    """Groups of numbers that may be ranked against each other, best first."""
    sign = -1 if words.metric(numbers[0].metric).better == "higher" else 1
    groups: dict[tuple[tuple[str, str], ...], list[Published]] = {}
    for number in numbers:
        further = tuple(pair for pair in comparability(number, words) if pair[0] not in ("dataset", "split"))
        groups.setdefault(further, []).append(number)
    ranked = [
        Ranking(key, tuple(sorted(group, key=lambda n: sign * n.quantity.value))) for key, group in groups.items()
    ]
    return tuple(sorted(ranked, key=lambda ranking: sign * ranking.numbers[0].quantity.value))


def _benchmark_view(benchmark: Any, knowledge: Knowledge) -> dict[str, object]:
    words = knowledge.library.vocabulary
    metric, first = words.metric(benchmark.metric), benchmark.rankings[0].numbers[0]

    def apart_in(a: Published, b: Published) -> list[str]:
        return [name for names in differences(a, b, words) for name in names]

    title = f"{metric.label} on {benchmark.dataset} {benchmark.split}".strip()
    groups = [
        {
            "conditions": ", ".join(f"{name} {value}" for name, value in ranking.conditions)
            or "no further conditions given",
            "apart": difference_text(first, ranking.numbers[0], apart_in(first, ranking.numbers[0])),
            "rows": [
                _ranked(number, rank, knowledge)
                for number, rank in zip(ranking.numbers, _ranks(ranking.numbers), strict=True)
            ],
        }
        for ranking in benchmark.rankings
    ]
    unit = f" ({metric.unit})" if metric.unit else ""
    return {
        "title": title, "anchor": slugify(title), "definition": metric.definition, "label": metric.label + unit,
        "groups": groups,
    }  # fmt: skip


def _ranks(numbers: Sequence[Published]) -> list[str]:
    """Ranks only where there is something to rank; equal figures share one."""
    first: dict[float, int] = {}
    for i, number in enumerate(numbers, 1):
        first.setdefault(number.quantity.value, i)
    return [str(first[number.quantity.value]) if len(numbers) > 1 else "" for number in numbers]


def _ranked(number: Published, rank: str, knowledge: Knowledge) -> dict[str, str]:
    card = knowledge.library.cards[number.card]
    sizes = {metric: cost(knowledge, number, metric) for metric in SIZES}
    return {
        "rank": rank, "slug": card.slug, "name": system_name(card, number), "value": number.quantity.printed,
        "table": number.table, "where": number.where,
        **{metric: told(size) for metric, size in sizes.items()},
    }  # fmt: skip


def page(knowledge: Knowledge) -> str:
    views = [_benchmark_view(benchmark, knowledge) for benchmark in benchmarks(knowledge)]
    return template("numbers.md.j2").render(common(knowledge, "../") | {"benchmarks": views})
