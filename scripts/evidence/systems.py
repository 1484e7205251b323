"""A number belongs to a system: cost stands with accuracy only where both are of one.

A *system* is a variant in a framework (the detector or head that it is plugged into), with its training and its input.
Swin-T is one thing as a classifier, and another inside Cascade Mask R-CNN. Charts, rankings, Compare, chips, exports and
Choose all join figures by the functions here, and by nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from scripts.architectures.counts import Counted
from scripts.architectures.latency import Latency
from scripts.cards.library import Library
from scripts.cards.values import si
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.published import TRAINING, Published, System, numbers_of

SizeMetric = Literal["parameters", "macs"]
SIZES: tuple[SizeMetric, ...] = ("parameters", "macs")


@dataclass(frozen=True)
class Cost:
    """A size, a cost or a time of a system, with the system that it is of."""

    of: System
    value: float
    printed: str
    counted: bool = False
    """Counted here, where no source prints it."""

    @property
    def told(self) -> str:
        """`86 M`; what no source prints is marked as counted."""
        return f"{self.printed}{' (counted)' if self.counted else ''}"


def named(variant: str, framework: str | None) -> str:
    """`Swin-T in Cascade Mask R-CNN`; a variant in no framework by its name alone."""
    return f"{variant} in {framework}" if framework else variant


def is_one(a: System, b: System, *, with_input: bool = True) -> bool:
    """Whether a figure of `b` may stand with one of `a`: the same variant in the same framework at the same input.

    Training changes what a system reaches, not what it costs. The number of parameters does not depend on the input.
    """
    same = (a.card, a.variant, a.framework) == (b.card, b.variant, b.framework)
    return same and (not with_input or a.input == b.input)


def published_with(library: Library, number: Published, metric: str) -> Iterator[Published]:
    """Published figures of a metric that are of the number's system: of its own row first, then of other rows."""
    same_metric = _by_metric(library).get((number.card, number.variant, metric), [])
    yield from (each for each in same_metric if each.table == number.table)
    with_input = metric != "parameters"
    others = (each for each in same_metric if each.table != number.table)
    yield from (each for each in others if is_one(number.system, each.system, with_input=with_input))


@functools.lru_cache(maxsize=2)
def _by_metric(library: Library) -> dict[tuple[str, str, str], list[Published]]:
    """The numbers of all cards, by card, variant and metric."""
    found: dict[tuple[str, str, str], list[Published]] = {}
    for slug in library.cards:
        for number in numbers_of(library, slug):
            found.setdefault((slug, number.variant, number.metric), []).append(number)
    return found


def cost(knowledge: Knowledge, number: Published, metric: SizeMetric) -> Cost | None:
    """Parameters or MACs of the system that a number is of: published, or else counted, or else nothing.

    What is counted is the variant as it is built, in no framework, and its MACs at the input of the count.
    """
    found = next(published_with(knowledge.library, number, metric), None)
    if found:
        return Cost(found.system, found.quantity.value, found.quantity.printed)
    counted = counted_system(knowledge, number.card, number.variant)
    if counted and is_one(number.system, counted[0], with_input=metric == "macs"):
        value = float(getattr(counted[1], metric))
        return Cost(counted[0], value, si(value), counted=True)
    return None


def counted_system(knowledge: Knowledge, slug: str, variant: str) -> tuple[System, Counted] | None:
    """What was counted of a variant, and of which system that is."""
    built = knowledge.library.cards[slug].variants[variant]
    counted = knowledge.counted(built)
    if counted is None or built.count is None:
        return None
    return System(slug, variant, None, (None,) * len(TRAINING), built.count.input), counted


def times(knowledge: Knowledge, number: Published) -> Iterator[Published]:
    """Published times and rates of the system that a number is of."""
    for metric in ("latency", "fps"):
        yield from published_with(knowledge.library, number, metric)


def measured_times(knowledge: Knowledge, system: System) -> Iterator[Latency]:
    """What `measure` timed of a system: it builds the variant as it is, in no framework."""
    if system.framework is None:
        built = knowledge.library.cards[system.card].variants[system.variant]
        yield from (timed for timed in knowledge.latency(built) if timed.input == system.input)


def systems_of(knowledge: Knowledge, slug: str) -> dict[System, list[Published]]:
    """The systems of a card, each with its published numbers, in the card's order."""
    found: dict[System, list[Published]] = {}
    for number in numbers_of(knowledge.library, slug):
        found.setdefault(number.system, []).append(number)
    return found
