"""The lineage of the models as a drawing: years from left to right, one lane for each family, a curve from each model to
those that build on it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.cards.schema import Card
from scripts.evidence.knowledge import Knowledge
from scripts.pages.environment import template
from scripts.pages.writer import common

COLUMN, ROW, WIDTH, HEIGHT, LEFT, TOP = 126, 56, 100, 36, 112, 34
"""Pixels: pitch of years and of rows, size of a node, margin of the lanes' names and of the years."""

LETTERS = 14
"""That fit into a line of a node."""


@dataclass(frozen=True)
class Node:
    """A model; x and y of the upper left corner."""

    card: Card
    year: int
    x: int
    y: int

    @property
    def lines(self) -> list[str]:
        """Its name without what stands in brackets, broken where it is too long for the box."""
        return textwrap.wrap(self.card.name.partition(" (")[0], LETTERS)


@dataclass(frozen=True)
class Lane:
    """A family; y of its upper edge, and its height."""

    name: str
    y: int
    height: int


@dataclass(frozen=True)
class Drawing:
    """What the template draws, in pixels; `edges` are paths of SVG with the names of their two ends."""

    width: int
    height: int
    years: tuple[tuple[int, int], ...]
    lanes: tuple[Lane, ...]
    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str, str], ...]


def drawing(knowledge: Knowledge) -> Drawing:
    """Places all models; the same cards always give the same drawing."""
    cards = sorted(knowledge.cards, key=lambda card: (card.introduction.year, card.slug))
    years = sorted({card.introduction.year for card in cards})
    lanes: list[Lane] = []
    nodes: dict[str, Node] = {}
    y = TOP
    for family in dict.fromkeys(card.family for card in cards):
        rows = [0] * len(years)
        for card in cards:
            if card.family == family:
                column = years.index(card.introduction.year)
                nodes[card.slug] = Node(card, years[column], LEFT + column * COLUMN, y + 8 + rows[column] * ROW)
                rows[column] += 1
        lanes.append(Lane(family, y, max(rows) * ROW))
        y += lanes[-1].height
    at = tuple((year, LEFT + column * COLUMN + WIDTH // 2) for column, year in enumerate(years))
    return Drawing(LEFT + len(years) * COLUMN, y, at, tuple(lanes), tuple(nodes.values()), _edges(cards, nodes))


def links(cards: Sequence[Card]) -> list[tuple[str, str]]:
    """(older, newer) for every pair of cards of which one names the other, in `builds_on` or in `succeeded_by`."""
    found = {(relation.card, card.slug) for card in cards for relation in card.builds_on if relation.card}
    found |= {(card.slug, relation.card) for card in cards for relation in card.succeeded_by if relation.card}
    years = {card.slug: card.introduction.year for card in cards}
    return sorted((a, b) for a, b in found if a in years and b in years and years[a] <= years[b] and a != b)


def _edges(cards: Sequence[Card], nodes: dict[str, Node]) -> tuple[tuple[str, str, str], ...]:
    return tuple((_curve(nodes[a], nodes[b]), nodes[a].card.name, nodes[b].card.name) for a, b in links(cards))


def _curve(a: Node, b: Node) -> str:
    """From the right edge of one node to the left edge of the other.

    Around the right of nodes of one year, and above those that lie between two nodes of one row.
    """
    middle = HEIGHT // 2
    x0, y0, y1 = a.x + WIDTH, a.y + middle, b.y + middle
    if a.year == b.year:
        return f"M{x0} {y0}C{x0 + 22} {y0} {x0 + 22} {y1} {x0} {y1}"
    if a.y == b.y and b.x - a.x > COLUMN:
        high = y0 - HEIGHT
        return f"M{x0} {y0}C{x0 + 40} {high} {b.x - 40} {high} {b.x} {y1}"
    bend = (b.x - x0) // 2
    return f"M{x0} {y0}C{x0 + bend} {y0} {b.x - bend} {y1} {b.x} {y1}"


def page(knowledge: Knowledge) -> str:
    return template("lineage.md.j2").render(
        common(knowledge, "../") | {"d": drawing(knowledge), "width": WIDTH, "height": HEIGHT}
    )
