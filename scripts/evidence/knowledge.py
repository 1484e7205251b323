"""All that the site knows, joined: cards, runs and counts. Pages and exports are views of it."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from scripts.architectures.counts import Counted
from scripts.architectures.latency import Latency
from scripts.architectures.studies import Studies
from scripts.cards.library import Library
from scripts.cards.numbers import Variant
from scripts.cards.schema import Card
from scripts.evidence.photographs import Photographs
from scripts.evidence.published import Published, numbers_of
from scripts.evidence.verdicts import Judged, Verdict, judge
from scripts.runs.needs import Needs, Rehearsal, needs_of
from scripts.runs.record import Figure
from scripts.runs.state import Run

SIZE_METRICS = ("parameters", "macs", "flops")


Sides = tuple[tuple[Judged, ...], tuple[Judged, ...]]
"""Pros and cons, judged."""


@dataclass(frozen=True)
class About:
    """What `mkdocs.yml` says of the site, and what was drawn for it by hand."""

    title: str = "Models"
    summary: str = ""
    """What the site is about, in a sentence."""
    repository: str = ""
    """Address of the repository."""
    address: str = ""
    """Address of the site, with a slash at its end; empty where it is not known."""
    licence: str = ""
    """Address of the licence of cards and pages."""
    within: tuple[tuple[str, str], ...] = ()
    """Title and address, from the root, of each overview that stands in a section of `nav` below its first page."""
    drawn: frozenset[str] = frozenset()
    """Tasks, as in an address, that a picture was drawn of."""

    @property
    def slug(self) -> str:
        """The title as the name of a file."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


@dataclass(frozen=True, eq=False)
class Knowledge:
    """Cards, the state of each example, the counts by `build @ input`, and the versions they were made with.

    Hashed by identity: it never changes.
    """

    library: Library
    runs: Mapping[str, Run]
    counts: Mapping[str, Counted]
    generated: Mapping[str, str] = field(default_factory=dict)
    studies: Studies = field(default_factory=Studies)
    latencies: tuple[Latency, ...] = ()
    scripts: Mapping[str, str] = field(default_factory=dict)
    """Source of each example by slug."""
    about: About = About()
    claims: frozenset[str] = frozenset()
    """Slugs of the examples whose experiments have a file of their own."""
    notebook: Callable[[str], str] = str
    """The notebook (JSON) of an example, by slug."""
    photographs: Photographs = field(default_factory=Photographs)
    rehearsals: Mapping[str, Rehearsal] = field(default_factory=dict)
    """What a step of the preset `full` takes, by slug of the example."""

    @property
    def cards(self) -> list[Card]:
        return [self.library.cards[slug] for slug in sorted(self.library.cards)]

    @functools.cached_property
    def _judged(self) -> Callable[[str], Sides]:
        @functools.cache
        def of_card(slug: str) -> Sides:
            card = self.library.cards[slug]
            records = {owner: run.record for owner, run in self.runs.items() if run.record}
            pros, cons = (
                tuple(judge(self.library, slug, claim, records) for claim in claims) for _, claims in card.sides
            )
            return pros, cons

        return of_card

    def pros(self, slug: str) -> tuple[Judged, ...]:
        """The claims for a model, judged."""
        return self._judged(slug)[0]

    def cons(self, slug: str) -> tuple[Judged, ...]:
        """The claims against a model, judged."""
        return self._judged(slug)[1]

    def verdicts(self, slug: str | None = None) -> Counter[Verdict]:
        """How many claims stand how, for one card or for all."""
        slugs = [slug] if slug else self.library.cards
        return Counter(judged.verdict for one in slugs for judged in (*self.pros(one), *self.cons(one)))

    def surprises(self) -> Iterator[str]:
        """Assertions that turned false, one line each."""
        for card in self.cards:
            for side, claims in (("pros", self.pros(card.slug)), ("cons", self.cons(card.slug))):
                for i, judged in enumerate(claims):
                    for finding in judged.surprises:
                        place = self.library.sources[card.slug].problem((side, i), "")
                        where = f"{place.path}:{place.line}:{place.column}"
                        yield f"{where}: {judged.claim.claim!r} does not hold: {finding.assertion}"

    def name_of(self, slug: str) -> str:
        """The name on a card, or the slug where there is none."""
        card = self.library.cards.get(slug)
        return card.name if card else slug

    def run(self, slug: str) -> Run | None:
        return self.runs.get(slug)

    def hero(self, card: Card) -> Figure | None:
        """The figure that a card shows first, if a run drew it."""
        run = self.run(card.slug)
        return run.record.figure(card.hero) if run and run.record else None

    def needs(self, slug: str) -> Needs | None:
        """What the preset `full` of an example needs of a GPU."""
        run = self.run(slug)
        return needs_of(run.record if run else None, self.rehearsals.get(slug))

    def counted(self, variant: Variant) -> Counted | None:
        count = variant.count
        return self.counts.get(count.key) if count else None

    def latency(self, variant: Variant) -> list[Latency]:
        """What was timed of a variant, at any input, device by device."""
        return self._latencies.get(variant.count.build, []) if variant.count else []

    @functools.cached_property
    def _latencies(self) -> dict[str, list[Latency]]:
        by_build: dict[str, list[Latency]] = {}
        for latency in self.latencies:
            by_build.setdefault(latency.build, []).append(latency)
        return by_build


def difference(reported: float, counted: float) -> float:
    """Relative difference of a count to the published figure."""
    return counted / reported - 1


KINDS = ("quality", "size", "compute", "speed", "memory")


def own_numbers(slug: str, knowledge: Knowledge) -> Iterator[Published]:
    """The published numbers of a model's own variants, of the kinds that models are compared by."""
    card, words = knowledge.library.cards[slug], knowledge.library.vocabulary
    for number in numbers_of(knowledge.library, slug):
        kind = words.metric(number.metric).kind
        if kind in KINDS and not number.aside and not card.variants[number.variant].for_comparison:
            yield number
