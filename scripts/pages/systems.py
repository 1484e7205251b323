"""Systems as pages name them, and what they cost."""

from __future__ import annotations

from scripts.cards.schema import Card
from scripts.cards.vocabulary import Metric
from scripts.evidence.published import Published
from scripts.evidence.systems import Cost, named


def system_name(card: Card, number: Published) -> str:
    """The system that a number is of, by its name."""
    return named(card.variants[number.variant].name, number.conditions.framework)


def speed(number: Published, metric: Metric) -> str:
    """`43 ms`, `20 images per second`."""
    return f"{number.quantity.printed} {metric.unit or metric.label.lower()}"


def told(cost: Cost | None) -> str:
    """`86 M (counted)`, or nothing where nothing is known."""
    return cost.told if cost else ""
