"""Scaling: what an architecture costs as its input grows, and the exponent of that growth beside what is claimed.

The sweeps stand in `model_cards/_sweeps.yml`; `forward` measures their points on the meta device. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from scripts.cards.values import size_of
from scripts.cards.vocabulary import Exponent, Sweep, What

LABELS: Mapping[What, str] = {
    "macs": "MACs", "token_macs": "MACs of attention products", "saved_bytes": "activation memory",
}  # fmt: skip

TOLERANCE = 0.1
"""A claimed exponent is met within this, over the upper half of a sweep: constant costs fade only slowly."""


@dataclass(frozen=True)
class Point:
    """One input size of a sweep."""

    x: float
    size: tuple[int, ...]
    changes: Mapping[str, int]


def points(sweep: Sweep, along: str) -> tuple[Point, ...]:
    """The inputs of a sweep; `along` says what of a size is drawn: product, first, second, or the changed value."""
    if sweep.change and sweep.size:
        return tuple(Point(value, size_of(sweep.size), {sweep.change: value}) for value in sweep.values)
    sizes = [size_of(text) for text in sweep.sizes]
    at: Mapping[str, Callable[[tuple[int, ...]], int]] = {
        "product": math.prod,
        "first": itemgetter(0),
        "second": itemgetter(1),
    }
    return tuple(Point(at[along](size), size, {}) for size in sizes)


@dataclass(frozen=True)
class Measured:
    """A sweep with the cost of each of its points."""

    sweep: Sweep
    points: tuple[Point, ...]
    costs: Mapping[What, tuple[float, ...]]

    def exponent(self, what: What) -> float | None:
        """Slope of a straight line through all points on doubly logarithmic axes; None for a cost that is nil."""
        return slope([point.x for point in self.points], self.costs[what])

    def last_exponent(self, what: What) -> float | None:
        """The slope between the two largest inputs."""
        return slope([point.x for point in self.points[-2:]], self.costs[what][-2:])

    def holds(self, claimed: Exponent) -> bool | None:
        found = self.last_exponent(claimed.what)
        return None if found is None else abs(found - claimed.exponent) <= TOLERANCE


def slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Least-squares slope of log y over log x."""
    if min(y, default=0) <= 0 or len(y) < 2:
        return None
    across, up = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_x, mean_y = sum(across) / len(across), sum(up) / len(up)
    spread = sum((a - mean_x) ** 2 for a in across)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(across, up, strict=True)) / spread
