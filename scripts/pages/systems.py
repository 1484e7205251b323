"""Systems as pages name them, and what they cost."""

from __future__ import annotations

from scripts.cards.schema import Card
from scripts.evidence.published import Published
from scripts.evidence.systems import Cost, named


def system_name(card: Card, number: Published) -> str:
    """The system that a number is of, by its name."""
    return named(card.variants[number.variant].name, number.conditions.framework)


def told(cost: Cost | None) -> str:
    """`86 M (counted)`, or nothing where nothing is known."""
    return cost.told if cost else ""
