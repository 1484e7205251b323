"""Published numbers: finding them by reference, and comparing two of them only where that is fair.

`variant/metric`, `variant/table/metric`, and both with another card's slug in front, name a number.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from scripts.cards.library import Library
from scripts.cards.numbers import Conditions
from scripts.cards.problems import nearest
from scripts.cards.schema import Card
from scripts.cards.values import Quantity, si
from scripts.cards.vocabulary import Vocabulary

# Conditions that have to agree for two numbers of a kind. The first group can never differ; a difference in the second
# can be acknowledged by an assertion (`despite`), and is then named on the page.
MUST_AGREE: Mapping[str, tuple[str, ...]] = {
    "size": (),
    "compute": (),
    "quality": ("dataset", "split", "metric"),
    "speed": ("hardware",),
    "memory": ("hardware",),
    "cost": (),
}

MAY_DIFFER: Mapping[str, tuple[str, ...]] = {
    "size": (),
    "compute": ("input", "tta", "framework"),
    "quality": ("input", "schedule", "pretraining", "protocol", "framework", "tta"),
    "speed": ("input", "precision", "batch", "nms", "framework", "tta"),
    "memory": ("input", "precision", "batch", "framework"),
    "cost": ("dataset", "framework"),
}


TRAINING = ("schedule", "pretraining", "protocol")
"""Conditions that say how a system was trained."""


@dataclass(frozen=True)
class System:
    """A variant in a framework, with its training and its input; what a source does not state is None."""

    card: str
    variant: str
    framework: str | None
    training: tuple[str | None, ...]
    input: str | None

    @functools.cached_property
    def id(self) -> str:
        """Unique on the card: `t-cascade-mask-r-cnn-36-epochs-800-x-1333`."""
        parts = (self.variant, self.framework, *self.training, self.input)
        return "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts if part)


@dataclass(frozen=True)
class Published:
    """One number of one variant, with all that is needed to judge it."""

    card: str
    variant: str
    table: str
    metric: str
    quantity: Quantity
    conditions: Conditions
    source: str
    where: str
    note: str | None
    independent: bool = False
    """Measured by someone else than the authors of the model."""
    aside: bool = False
    """Of an ablation or of a part of the data: in no chart and no ranking."""
    halved: bool = False
    """True for MACs computed as half of the FLOPs that the source prints."""

    @property
    def ref(self) -> str:
        return f"{self.card}/{self.variant}/{self.table}/{self.metric}"

    @property
    def on(self) -> str:
        """`COCO val2017`."""
        return " ".join(filter(None, [self.conditions.dataset, self.conditions.split]))

    @property
    def ms(self) -> float | None:
        """A time per image in milliseconds, if it is one: of images that come one after the other, a rate is a time."""
        if self.metric == "fps" and self.conditions.batch == "1":
            return 1000 / self.quantity.value
        return self.quantity.value if self.metric == "latency" else None

    @functools.cached_property
    def given(self) -> Mapping[str, str]:
        """The conditions that are stated, by name."""
        stated: Mapping[str, str] = self.conditions.model_dump(exclude_none=True)
        return stated

    @functools.cached_property
    def system(self) -> System:
        """The system that it is of."""
        of = self.given.get
        return System(self.card, self.variant, of("framework"), tuple(of(name) for name in TRAINING), of("input"))


def published(card: Card) -> Iterator[Published]:
    """Every number of a card, in its order; FLOPs are followed by the MACs they stand for."""
    for variant_id, variant in card.variants.items():
        for table_id, row in variant.numbers.items():
            table = card.tables.get(table_id)
            if table is None:
                continue
            own = row.conditions.model_dump(exclude_none=True)
            conditions = table.conditions.model_copy(update=own)
            for metric, quantity in row.values.items():
                number = Published(
                    card.slug, variant_id, table_id, metric, quantity, conditions,
                    table.source, row.where or table.where, row.note, table.independent is not None, table.aside,
                )  # fmt: skip
                yield number
                if metric == "flops" and "macs" not in row.values:
                    yield _macs_from_flops(number)


@functools.lru_cache(maxsize=2)
def index(library: Library) -> Mapping[str, Mapping[str, tuple[Published, ...]]]:
    """The numbers of every card, by slug and variant."""
    found: dict[str, dict[str, list[Published]]] = {}
    for slug, card in library.cards.items():
        of_card: dict[str, list[Published]] = {key: [] for key in card.variants}
        for number in published(card):
            of_card[number.variant].append(number)
        found[slug] = of_card
    return {slug: {key: tuple(each) for key, each in of_card.items()} for slug, of_card in found.items()}


def own_size(library: Library, slug: str, variant: str, metric: str) -> Published | None:
    """The first published size or cost of a variant by itself, which is what its count is held against.

    A variant that occurs in one framework only is that system: a detector, or a backbone of which no source says more.
    """
    numbers = index(library)[slug][variant]
    frameworks = {number.conditions.framework for number in numbers}
    wanted = None if None in frameworks or len(frameworks) > 1 else next(iter(frameworks), None)
    return next((each for each in numbers if each.metric == metric and each.conditions.framework == wanted), None)


def numbers_of(library: Library, slug: str) -> Iterator[Published]:
    """Every number of a card, variant by variant."""
    return itertools.chain.from_iterable(index(library)[slug].values())


def _macs_from_flops(number: Published) -> Published:
    value = number.quantity.value / 2
    halved = Quantity(printed=si(value), value=value)
    return dataclasses.replace(number, metric="macs", quantity=halved, halved=True)


class BrokenCardError(LookupError):
    """The card that a reference names has problems of form, which are reported for themselves."""


def find(library: Library, home: str, ref: str) -> Published:
    """The number that `ref` names, seen from the card `home`.

    Raises:
        LookupError: there is no such card, variant, table or number (with the nearest name), or there are several.
    """
    parts = ref.split("/")
    card = library.cards.get(home)
    if card is None or parts[0] not in card.variants:
        card = library.cards.get(parts[0])
        if card is None and parts[0] in library.sources:
            raise BrokenCardError(f"{ref}: the card {parts[0]!r} is broken")
        if card is None or len(parts) == 2:
            known = library.cards[home].variants if home in library.cards else {}
            raise LookupError(f"{ref}: no variant or card {parts[0]!r}{nearest(parts[0], [*known, *library.cards])}")
        parts = parts[1:]
    return _find_in_card(library, card, parts, ref)


def _find_in_card(library: Library, card: Card, parts: list[str], ref: str) -> Published:
    if parts[0] not in card.variants:
        raise LookupError(f"{ref}: no variant {parts[0]!r} in {card.slug}{nearest(parts[0], card.variants)}")
    of_variant = list(index(library)[card.slug][parts[0]])
    if len(parts) == 3:
        tables = {number.table for number in of_variant}
        if parts[1] not in tables:
            raise LookupError(f"{ref}: {parts[0]} has no numbers in table {parts[1]!r}{nearest(parts[1], tables)}")
        of_variant = [number for number in of_variant if number.table == parts[1]]
    found = [number for number in of_variant if number.metric == parts[-1]]
    by_authors = [number for number in found if not number.independent]
    found = by_authors if len(by_authors) == 1 else found  # another's measurement is named with its table
    if not found:
        raise LookupError(f"{ref}: no number {parts[-1]!r}{nearest(parts[-1], {n.metric for n in of_variant})}")
    if len(found) > 1:
        choices = " or ".join(f"{parts[0]}/{number.table}/{parts[-1]}" for number in found)
        raise LookupError(f"{ref}: stands in several tables, write {choices}")
    return found[0]


def compared(metric: str, words: Vocabulary) -> tuple[str, ...]:
    """Names of the conditions that matter to a metric, by its kind; the others say nothing about its figures."""
    kind = words.metric(metric).kind
    return (*MUST_AGREE[kind], *MAY_DIFFER[kind])


def differences(a: Published, b: Published, words: Vocabulary) -> tuple[list[str], list[str]]:
    """Names of the conditions that differ: those that forbid a comparison, and those that may be acknowledged.

    A different metric forbids it, under the name `metric`.
    """
    return (["metric"], []) if a.metric != b.metric else condition_differences(a, b, words)


def condition_differences(a: Published, b: Published, words: Vocabulary) -> tuple[list[str], list[str]]:
    """The same of two metrics that measure one thing, as a time and a rate: by the conditions that matter to the first."""
    kind = words.metric(a.metric).kind
    matter = compared(a.metric, words)
    differing = [n for n in matter if getattr(a.conditions, n) != getattr(b.conditions, n)]
    return [n for n in differing if n in MUST_AGREE[kind]], [n for n in differing if n in MAY_DIFFER[kind]]


def comparability(number: Published, words: Vocabulary) -> tuple[tuple[str, str], ...]:
    """The conditions, by name, on which it depends what a number may be ranked against: equal ones, equal footing."""
    given = number.given
    return tuple((name, given[name]) for name in sorted(compared(number.metric, words)) if name in given)


def difference_text(a: Published, b: Published, names: list[str]) -> str:
    """`schedule (500 epochs against 109 epochs)`, for each differing condition."""
    return "; ".join(
        f"{n} ({getattr(a.conditions, n) or 'not given'} against {getattr(b.conditions, n) or 'not given'})"
        for n in names
    )
