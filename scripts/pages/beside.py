"""Figures of two models beside each other: ranked where all conditions agree, and told apart where they do not."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from scripts.cards.schema import Card
from scripts.cards.vocabulary import Vocabulary
from scripts.evidence.knowledge import Knowledge, own_numbers
from scripts.evidence.published import Published, comparability, difference_text, differences
from scripts.evidence.systems import is_one
from scripts.exports.choices import ALIKE

SPEEDS = ("fps", "latency")
"""Metrics of how fast a model answers; the others of their kind are of training."""


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
        return bool(pair.apart), not metric.headline, metric.label, on(pair.numbers[0]), -best

    return sorted(found, key=order)


def on(number: Published) -> str:
    """`COCO val2017`."""
    return " ".join(filter(None, [number.conditions.dataset, number.conditions.split]))


def ms_of(number: Published) -> float | None:
    """A time per image: one after the other, a rate is a time."""
    if number.metric == "fps" and number.conditions.batch == "1":
        return 1000 / number.quantity.value
    return number.quantity.value if number.metric == "latency" else None


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


def speeds(a: Card, b: Card, about: Sequence[Beside], knowledge: Knowledge) -> list[Beside]:
    """Published times of both: one pair for each group whose conditions agree; else one that is not ranked.

    Those of the systems that a benchmark is about go before others, and among these the most accurate ones. Only those
    are ranked: of other systems the smaller would win.
    """
    words = knowledge.library.vocabulary
    ours, theirs = (_speeds(card.slug, knowledge) for card in (a, b))
    accurate = [_by_accuracy(card.slug, about, side, knowledge) for side, card in enumerate((a, b))]

    def order(pair: Pair) -> tuple[object, ...]:
        apart = _apart(*pair, words)
        ranks = map(_place, pair, accurate)
        return bool(apart), _row(pair, about), sum(ranks), [-_worth(n, words) for n in pair], len(apart)

    pairs = sorted(itertools.product(ours, theirs), key=order)
    alike: dict[tuple[object, ...], Beside] = {}
    for pair in itertools.takewhile(lambda pair: not _apart(*pair, words), pairs):
        one_row = _row(pair, about) < len(about)
        found = _beside(pair, words)
        alike.setdefault(comparability(pair[0], words), found if one_row else replace(found, better=None))
    return list(alike.values()) or [_beside(pair, words) for pair in pairs[:1]]


def _speeds(slug: str, knowledge: Knowledge) -> list[Published]:
    return [each for each in own_numbers(slug, knowledge) if each.metric in SPEEDS and not each.independent]


def _row(pair: Pair, about: Sequence[Beside]) -> int:
    """The first of the benchmarks that both times have the systems of."""
    rows = (i for i, each in enumerate(about) if all(map(_of_one_system, pair, each.numbers)))
    return next(rows, len(about))


def _by_accuracy(slug: str, about: Sequence[Beside], side: int, knowledge: Knowledge) -> list[Published]:
    """A model's figures of the first benchmark, best first."""
    words = knowledge.library.vocabulary
    of_first = _by_benchmark(slug, knowledge)[_benchmark(about[0].numbers[side])] if about else []
    return sorted(of_first, key=lambda number: _worth(number, words), reverse=True)


def _place(number: Published, among: Sequence[Published]) -> int:
    """Of the first figure that is of the number's system."""
    return next((i for i, each in enumerate(among) if _of_one_system(number, each)), len(among))


def _of_one_system(a: Published, b: Published) -> bool:
    return is_one(a.system, b.system)


def _beside(numbers: Pair, words: Vocabulary) -> Beside:
    """Two figures with what differs, or else who is ahead."""
    apart = _apart(*numbers, words)
    times = [ms_of(number) for number in numbers]
    worths = [-ms for ms in times if ms is not None] if None not in times else [_worth(n, words) for n in numbers]
    better = None if apart or worths[0] == worths[1] else int(worths[0] < worths[1])
    return Beside(numbers, tuple(apart), better)


def _apart(a: Published, b: Published, words: Vocabulary) -> list[str]:
    """What differs: none where two figures may be ranked."""
    labels = [words.metric(number.metric).label.lower() for number in (a, b)]
    other = a.metric != b.metric and None in (ms_of(a), ms_of(b))
    forbidding, acknowledged = differences(a, replace(b, metric=a.metric), words)
    unlike = [f"measure ({labels[0]} against {labels[1]})"] if other else []
    if a.metric in SPEEDS and not (a.conditions.hardware or b.conditions.hardware):
        unlike.append("hardware (not given of either)")  # a time on an unknown device ranks with no other
    return unlike + [difference_text(a, b, [name]) for name in (*forbidding, *acknowledged)]


def _worth(number: Published, words: Vocabulary) -> float:
    """The more, the better."""
    return number.quantity.value if words.metric(number.metric).better == "higher" else -number.quantity.value
