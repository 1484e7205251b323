"""Figures of two models beside each other: ranked where all conditions agree, and told apart where they do not."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from scripts.cards.schema import Card
from scripts.cards.vocabulary import Vocabulary
from scripts.evidence.knowledge import Knowledge, own_numbers
from scripts.evidence.published import Published, comparability, condition_differences, difference_text
from scripts.evidence.systems import is_one
from scripts.exports.choices import ALIKE

SPEEDS = ("fps", "latency")
"""Metrics of how fast a model answers; the others of their kind are of training."""

MEASURE, NO_DEVICE = "another measure", "no device"
"""What differs beside the conditions of cards."""

Pair = tuple[Published, Published]


@dataclass(frozen=True)
class Beside:
    """A figure of each of two models: what differs between their conditions, or, where nothing does, who is ahead."""

    numbers: Pair
    apart: tuple[str, ...]
    better: int | None
    """0 or 1; None for a draw, and where they may not be ranked."""


def benchmarks(a: Card, b: Card, knowledge: Knowledge) -> list[Beside]:
    """The benchmarks of both. Where figures agree in all conditions, the best ones of each such group; else the two best.

    Those that may be ranked come first, then those of headline metrics, then the best.
    """
    words = knowledge.library.vocabulary
    ours, theirs = (_by_benchmark(card.slug, knowledge) for card in (a, b))
    found = [pair for key in ours if key in theirs for pair in _of_one(ours[key], theirs[key], words)]

    def order(pair: Beside) -> tuple[object, ...]:
        metric, best = words.metric(pair.numbers[0].metric), max(_worth(number, words) for number in pair.numbers)
        return bool(pair.apart), not metric.headline, metric.label, pair.numbers[0].on, -best

    return sorted(found, key=order)


@functools.lru_cache(maxsize=128)  # every card is in several pairs
def _by_benchmark(slug: str, knowledge: Knowledge) -> dict[tuple[str | None, ...], list[Published]]:
    """A model's own figures of accuracy by benchmark."""
    words = knowledge.library.vocabulary
    found: dict[tuple[str | None, ...], list[Published]] = {}
    for number in own_numbers(slug, knowledge):
        if words.metric(number.metric).kind == "quality" and number.conditions.dataset and not number.independent:
            found.setdefault(_benchmark(number), []).append(number)
    return found


def _benchmark(number: Published) -> tuple[str | None, ...]:
    """The metric, and the conditions without which a benchmark is another one."""
    return (number.metric, *(getattr(number.conditions, name) for name in ALIKE))


def _of_one(ours: Sequence[Published], theirs: Sequence[Published], words: Vocabulary) -> list[Beside]:
    """The figures of one benchmark that stand beside each other."""
    best = [_best(numbers, words) for numbers in (ours, theirs)]
    alike = [(best[0][group], best[1][group]) for group in best[0] if group in best[1]]
    tops = [max(numbers, key=lambda number: _worth(number, words)) for numbers in (ours, theirs)]
    return [_beside(pair, words) for pair in alike or [(tops[0], tops[1])]]


def _best(numbers: Iterable[Published], words: Vocabulary) -> dict[tuple[object, ...], Published]:
    """The best figure of each group whose conditions agree; of equal ones the first."""
    found: dict[tuple[object, ...], Published] = {}
    for number in numbers:
        group = comparability(number, words)
        found[group] = max(found.get(group, number), number, key=lambda each: _worth(each, words))
    return found


class Timed(NamedTuple):
    """A published time with what puts it among the others.

    Attributes:
        number: the time.
        rows: the benchmarks beside which it stands that have its system.
        place: how accurate its system is among the model's own, 0 for the most accurate.
        worth: the more, the faster.
    """

    number: Published
    rows: frozenset[int]
    place: int
    worth: float


def speeds(a: Card, b: Card, about: Sequence[Beside], knowledge: Knowledge) -> list[Beside]:
    """Published times of both: one pair for each group whose conditions agree; else one that is not ranked.

    Those of the systems that a benchmark is about go before others, and among these the most accurate ones. Only those
    are ranked: of other systems the smaller would win.
    """
    words = knowledge.library.vocabulary
    ours_all, theirs_all = (_timed(card.slug, about, side, knowledge) for side, card in enumerate((a, b)))

    def order(pair: tuple[Timed, Timed]) -> tuple[object, ...]:
        ours, theirs = pair
        unlike, row = _unlike(ours.number, theirs.number, words), min(ours.rows & theirs.rows, default=len(about))
        return bool(unlike), row, ours.place + theirs.place, -ours.worth, -theirs.worth, len(unlike)

    alike: dict[tuple[object, ...], Beside] = {}
    pairs = sorted(itertools.product(ours_all, theirs_all), key=order)
    for ours, theirs in pairs:
        found = _beside((ours.number, theirs.number), words)
        if found.apart:
            return list(alike.values()) or [found]  # and all that follow are apart, too
        of_one_row = ours.rows & theirs.rows
        alike.setdefault(comparability(ours.number, words), found if of_one_row else replace(found, better=None))
    return list(alike.values())


def _timed(slug: str, about: Sequence[Beside], side: int, knowledge: Knowledge) -> list[Timed]:
    """A model's own published times."""
    words, accurate = knowledge.library.vocabulary, _by_accuracy(slug, about, side, knowledge)
    return [
        Timed(
            number,
            frozenset(i for i, each in enumerate(about) if is_one(number.system, each.numbers[side].system)),
            next((i for i, each in enumerate(accurate) if is_one(number.system, each.system)), len(accurate)),
            _worth(number, words),
        )
        for number in own_numbers(slug, knowledge)
        if number.metric in SPEEDS and not number.independent
    ]


def _by_accuracy(slug: str, about: Sequence[Beside], side: int, knowledge: Knowledge) -> list[Published]:
    """A model's figures of the first benchmark, best first."""
    words = knowledge.library.vocabulary
    of_first = _by_benchmark(slug, knowledge)[_benchmark(about[0].numbers[side])] if about else []
    return sorted(of_first, key=lambda number: _worth(number, words), reverse=True)


def _beside(numbers: Pair, words: Vocabulary) -> Beside:
    """Two figures with what differs, or else who is ahead."""
    apart = [_in_words(*numbers, name, words) for name in _unlike(*numbers, words)]
    times = [number.ms for number in numbers]
    worths = [-ms for ms in times if ms is not None] if None not in times else [_worth(n, words) for n in numbers]
    better = None if apart or worths[0] == worths[1] else int(worths[0] < worths[1])
    return Beside(numbers, tuple(apart), better)


def _unlike(a: Published, b: Published, words: Vocabulary) -> list[str]:
    """Names of what differs: none where two figures may be ranked. A time on an unknown device ranks with no other."""
    measure = [MEASURE] if a.metric != b.metric and None in (a.ms, b.ms) else []
    device = [NO_DEVICE] if a.metric in SPEEDS and not (a.conditions.hardware or b.conditions.hardware) else []
    forbidding, acknowledged = condition_differences(a, b, words)
    return [*measure, *device, *forbidding, *acknowledged]


def _in_words(a: Published, b: Published, name: str, words: Vocabulary) -> str:
    """What differs under a name, with both sides of it."""
    if name == MEASURE:
        return f"measure ({' against '.join(words.metric(number.metric).label.lower() for number in (a, b))})"
    return "hardware (not given of either)" if name == NO_DEVICE else difference_text(a, b, [name])


def _worth(number: Published, words: Vocabulary) -> float:
    """The more, the better."""
    return number.quantity.value if words.metric(number.metric).better == "higher" else -number.quantity.value
