"""Where the name of a point can stand in a chart without covering a point or another name."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

LINE, DOT = 11.0, 6.0
"""Pixels: height of a line at 10 px, and radius of a dot with a rim."""
WIDTHS = {
    **dict.fromkeys("fijlrtI.,:;-()[]/'| ", 4.2),
    **dict.fromkeys("mwMW%@+±", 10.0),
    **dict.fromkeys("ACDGHKNOQUXV", 7.9),
}
"""Pixels that a letter takes, where it is not one of mean width."""
CAPITAL, SMALL = 7.0, 6.6
LONGEST = 26
"""Letters of a name that is worth writing."""

Box = tuple[float, float, float, float]
"""x and y of two corners, in pixels."""


class Named(TypedDict):
    """A point with the name that it may carry."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Side:
    """Where a text stands beside its point, in the words of Vega."""

    align: str
    dx: int
    dy: int


SIDES = (Side("left", 8, 1), Side("right", -8, 1), Side("center", 0, -10), Side("center", 0, 12))


def placed(
    points: Sequence[Named], domain: tuple[list[float], list[float]], size: tuple[int, int]
) -> dict[Side, list[Named]]:
    """The names that find room, by the side of their points; a name that stands twice is written once.

    Args:
        points: with x (drawn logarithmically), y and label.
        domain: what the axes span, x and y.
        size: of the plot in pixels, width and height.
    """
    at = [_pixels(point, domain, size) for point in points]
    taken = _Taken((x - DOT, y - DOT, x + DOT, y + DOT) for x, y in at)
    found: dict[Side, list[Named]] = {}
    written: set[str] = set()
    for point, place in sorted(zip(points, at, strict=True), key=lambda pair: -pair[0]["y"]):
        if point["label"] in written or len(point["label"]) > LONGEST:
            continue
        for side in SIDES:
            box = _box(place, side, point["label"])
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= size[0] and box[3] <= size[1]
            if inside and not taken.touches(box):
                taken.add(box)
                written.add(point["label"])
                found.setdefault(side, []).append({"x": point["x"], "y": point["y"], "label": point["label"]})
                break
    return found


def _pixels(point: Named, domain: tuple[list[float], list[float]], size: tuple[int, int]) -> tuple[float, float]:
    (left, right), (low, high) = domain
    across = math.log(point["x"] / left) / math.log(right / left)
    return across * size[0], (high - point["y"]) / (high - low) * size[1]


def width(text: str) -> float:
    """Pixels that a name takes at most: in DejaVu Sans or Verdana, which are wide."""
    return sum(WIDTHS.get(letter, CAPITAL if letter.isupper() else SMALL) for letter in text)


def _box(place: tuple[float, float], side: Side, text: str) -> Box:
    wide, x, y = width(text), place[0] + side.dx, place[1] + side.dy
    left = {"left": x, "right": x - wide, "center": x - wide / 2}[side.align]
    return left, y - LINE / 2, left + wide, y + LINE / 2


class _Taken:
    """Boxes where something stands, kept by the cells of a grid that they reach into: of a thousand, few are near another."""

    def __init__(self, boxes: Iterable[Box]) -> None:
        self._cells: defaultdict[tuple[int, int], list[Box]] = defaultdict(list)
        for box in boxes:
            self.add(box)

    def add(self, box: Box) -> None:
        for cell in _cells(box):
            self._cells[cell].append(box)

    def touches(self, box: Box) -> bool:
        left, top, right, bottom = box
        return any(
            left < other[2] and other[0] < right and top < other[3] and other[1] < bottom
            for cell in _cells(box)
            for other in self._cells.get(cell, ())
        )


def _cells(box: Box) -> Iterator[tuple[int, int]]:
    left, top, right, bottom = (int(edge // LINE) for edge in box)
    return itertools.product(range(left, right + 1), range(top, bottom + 1))
