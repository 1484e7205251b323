"""The page Numbers: every benchmark that two models share, ranked only where conditions agree; long ones have their own."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

from scripts.cards.vocabulary import Vocabulary
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.published import Published, comparability, difference_text, differences, numbers_of
from scripts.evidence.systems import SIZES, cost
from scripts.pages.environment import slugify, template
from scripts.pages.systems import system_name, told
from scripts.pages.writer import common

AT_ONCE = 10
"""Figures of a benchmark that stand among all benchmarks; all of them stand on its own page."""


class Group(TypedDict):
    """Figures under equal conditions, as they stand on the page."""

    conditions: str
    apart: str
    """What sets it apart from the first group."""
    rows: list[dict[str, str]]


@dataclass(frozen=True)
class Ranking:
    """Numbers of one metric that may be ranked against each other: all their conditions agree."""

    conditions: tuple[tuple[str, str], ...]
    numbers: tuple[Published, ...]

    @functools.cached_property
    def cards(self) -> set[str]:
        return {number.card for number in self.numbers}


@dataclass(frozen=True)
class Benchmark:
    """All numbers of one metric on one dataset and split, in groups that are comparable within."""

    dataset: str
    split: str
    metric: str
    rankings: tuple[Ranking, ...]

    @property
    def cards(self) -> set[str]:
        return set().union(*(ranking.cards for ranking in self.rankings))

    @property
    def figures(self) -> int:
        return sum(len(ranking.numbers) for ranking in self.rankings)


@functools.lru_cache(maxsize=1)
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
    """Groups of numbers that may be ranked against each other, best first; those that rank most models come first."""
    sign = -1 if words.metric(numbers[0].metric).better == "higher" else 1
    groups: dict[tuple[tuple[str, str], ...], list[Published]] = {}
    for number in numbers:
        further = tuple(pair for pair in comparability(number, words) if pair[0] not in ("dataset", "split"))
        groups.setdefault(further, []).append(number)
    ranked = [
        Ranking(key, tuple(sorted(group, key=lambda n: sign * n.quantity.value))) for key, group in groups.items()
    ]
    return tuple(sorted(ranked, key=lambda ranking: (-len(ranking.cards), sign * ranking.numbers[0].quantity.value)))


def _benchmark_view(benchmark: Benchmark, knowledge: Knowledge, at_once: int | None = None) -> dict[str, object]:
    """What a template shows of a benchmark: its first `at_once` figures, or all."""
    words = knowledge.library.vocabulary
    metric, first = words.metric(benchmark.metric), benchmark.rankings[0].numbers[0]

    def apart_in(a: Published, b: Published) -> list[str]:
        return [name for names in differences(a, b, words) for name in names]

    groups: list[Group] = [
        {
            "conditions": ", ".join(f"{name} {value}" for name, value in ranking.conditions)
            or "no further conditions given",
            "apart": difference_text(first, ranking.numbers[0], apart_in(first, ranking.numbers[0])),
            "rows": [_ranked(number, rank, knowledge) for number, rank in rows],
        }
        for ranking, rows in _shown(benchmark, at_once)
    ]
    title, unit = _title(benchmark, words), f" ({metric.unit})" if metric.unit else ""
    return {
        "title": title, "anchor": slugify(title), "definition": metric.definition, "label": metric.label + unit,
        "groups": groups, "figures": benchmark.figures,
    }  # fmt: skip


def _title(benchmark: Benchmark, words: Vocabulary) -> str:
    return f"{words.metric(benchmark.metric).label} on {benchmark.dataset} {benchmark.split}".strip()


def _shown(benchmark: Benchmark, at_once: int | None) -> Iterator[tuple[Ranking, list[tuple[Published, str]]]]:
    """The first figures of a benchmark with their ranks, by group."""
    left = benchmark.figures if at_once is None else at_once
    for ranking in benchmark.rankings:
        if rows := list(zip(ranking.numbers, _ranks(ranking.numbers), strict=True))[:left]:
            yield ranking, rows
            left -= len(rows)


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
    views = [_benchmark_view(benchmark, knowledge, AT_ONCE) for benchmark in benchmarks(knowledge)]
    return template("numbers.md.j2").render(common(knowledge, "../") | {"benchmarks": views, "at_once": AT_ONCE})


def benchmark_page(benchmark: Benchmark, knowledge: Knowledge) -> str:
    """The text of `numbers/<benchmark>.md`: all figures of a benchmark that has more than stand on the page Numbers."""
    view = _benchmark_view(benchmark, knowledge)
    names = [card.name for card in knowledge.cards if card.slug in benchmark.cards]
    return template("benchmark.md.j2").render(common(knowledge, "../../") | {"benchmark": view, "names": names})


def benchmark_pages(knowledge: Knowledge) -> dict[str, Benchmark]:
    """Path below docs/ -> the benchmark that it shows whole."""
    words = knowledge.library.vocabulary
    long = [benchmark for benchmark in benchmarks(knowledge) if benchmark.figures > AT_ONCE]
    return {f"numbers/{slugify(_title(benchmark, words))}.md": benchmark for benchmark in long}
