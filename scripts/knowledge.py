"""All that the site knows, joined: cards, runs and counts. Pages and exports are views of it."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.cards import Library
from scripts.counts import Counted
from scripts.evidence import Judged, Verdict, judge, owners_of
from scripts.latency import Latency
from scripts.numbers import Published, comparability, index, numbers_of
from scripts.runs import Run
from scripts.schema import Card, Reference, Row, Variant
from scripts.studies import Studies
from scripts.traces import Lazy

SIZE_METRICS = ("parameters", "macs", "flops")


@dataclass(frozen=True)
class Knowledge:
    """Cards, the state of each example, the counts by `build @ input`, and the versions they were made with."""

    library: Library
    runs: Mapping[str, Run]
    counts: Mapping[str, Counted]
    generated: Mapping[str, str] = field(default_factory=dict)
    studies: Studies = field(default_factory=Studies)
    latencies: tuple[Latency, ...] = ()

    @property
    def cards(self) -> list[Card]:
        return [self.library.cards[slug] for slug in sorted(self.library.cards)]

    @functools.cached_property
    def _judged(self) -> Lazy[tuple[tuple[Judged, ...], tuple[Judged, ...]]]:
        def of_card(slug: str) -> tuple[tuple[Judged, ...], tuple[Judged, ...]]:
            card = self.library.cards[slug]
            owners = {
                owner for claim in (*card.pros, *card.cons) for each in claim.shown for owner in owners_of(slug, each)
            }
            results = {owner: run.results for owner in owners if (run := self.runs.get(owner)) and run.record}
            pros, cons = (
                tuple(judge(self.library, slug, claim, results) for claim in claims)
                for claims in (card.pros, card.cons)
            )
            return pros, cons

        return Lazy(of_card)

    def pros(self, slug: str) -> tuple[Judged, ...]:
        return self._judged[slug][0]

    def cons(self, slug: str) -> tuple[Judged, ...]:
        return self._judged[slug][1]

    def verdicts(self, slug: str | None = None) -> Counter[Verdict]:
        """How many claims stand how, for one card or for all."""
        if slug:
            return self._verdicts[slug]
        return sum((self._verdicts[one] for one in self.library.cards), Counter())

    @functools.cached_property
    def _verdicts(self) -> Lazy[Counter[Verdict]]:
        return Lazy(lambda slug: Counter(judged.verdict for judged in (*self.pros(slug), *self.cons(slug))))

    def surprises(self) -> Iterator[str]:
        """Assertions that came out otherwise than their card says, one line each."""
        for card in self.cards:
            for side, claims in (("pros", self.pros(card.slug)), ("cons", self.cons(card.slug))):
                for i, judged in enumerate(claims):
                    place = self.library.sources[card.slug].problem((side, i), "")
                    for finding in judged.surprises:
                        said = "shows here, though the card says it does not" if finding.holds else "does not hold"
                        where = f"{place.path}:{place.line}:{place.column}"
                        yield f"{where}: {judged.claim.claim!r} {said}: {finding.assertion}"

    def run(self, slug: str) -> Run | None:
        return self.runs.get(slug)

    def counted(self, variant: Variant) -> Counted | None:
        count = variant.count
        return self.counts.get(f"{count.build} @ {count.input}") if count else None

    def latency(self, variant: Variant) -> list[Latency]:
        """What was timed of a variant, at any input, device by device."""
        count = variant.count
        return [latency for latency in self.latencies if count and latency.build == count.build]


def introduction(card: Card) -> Reference:
    """The reference that introduces the model."""
    return card.references[card.paper]


def addresses(reference: Reference) -> list[tuple[str, str]]:
    """Where a reference can be found: (label, link), the lasting ones first."""
    found = [
        ("doi", f"https://doi.org/{reference.doi}" if reference.doi else None),
        (f"arXiv:{reference.arxiv}", f"https://arxiv.org/abs/{reference.arxiv}" if reference.arxiv else None),
        ("page", reference.url),
        ("code", reference.code),
    ]
    return [(label, href) for label, href in found if href]


def size_of(library: Library, slug: str, variant: str, metric: str) -> Published | None:
    """The first published figure of a variant's size or cost."""
    return next((number for number in index(library)[slug][variant] if number.metric == metric), None)


def difference(reported: float, counted: float) -> float:
    """Relative difference of a count to the published figure."""
    return counted / reported - 1


@dataclass(frozen=True)
class TableView:
    """A table of a card as a page shows it: the metrics that occur, and one row per variant."""

    id: str
    metrics: tuple[str, ...]
    rows: tuple[tuple[str, Variant, Row], ...]


def tables_of(card: Card) -> list[TableView]:
    """The tables of a card that have rows, in the card's order."""
    views = []
    for table_id in card.tables:
        rows = tuple((key, v, v.numbers[table_id]) for key, v in card.variants.items() if table_id in v.numbers)
        metrics = dict.fromkeys(metric for _, _, row in rows for metric in row.values)
        if rows:
            views.append(TableView(table_id, tuple(metrics), rows))
    return views


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
    metrics = knowledge.library.vocabulary.get("metrics", {})
    groups: dict[tuple[str, str, str], list[Published]] = {}
    for card in knowledge.cards:
        for number in numbers_of(knowledge.library, card.slug):
            words = metrics.get(number.metric, {})
            if words.get("kind") == "quality" and number.conditions.dataset:
                key = (number.conditions.dataset, number.conditions.split or "", number.metric)
                groups.setdefault(key, []).append(number)
    found = [Benchmark(*key, _rankings(numbers, metrics)) for key, numbers in sorted(groups.items())]
    shared = [benchmark for benchmark in found if len(benchmark.cards) > 1]
    return sorted(shared, key=lambda benchmark: -len(benchmark.cards))


def _rankings(numbers: list[Published], metrics: Mapping[str, Any]) -> tuple[Ranking, ...]:
    """Groups of numbers that may be ranked against each other, best first."""
    sign = -1 if metrics[numbers[0].metric].get("better") == "higher" else 1
    groups: dict[tuple[tuple[str, str], ...], list[Published]] = {}
    for number in numbers:
        further = tuple(pair for pair in comparability(number, metrics) if pair[0] not in ("dataset", "split"))
        groups.setdefault(further, []).append(number)
    ranked = [
        Ranking(key, tuple(sorted(group, key=lambda n: sign * n.quantity.value))) for key, group in groups.items()
    ]
    return tuple(sorted(ranked, key=lambda ranking: sign * ranking.numbers[0].quantity.value))
