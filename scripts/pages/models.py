"""The page Models, and the entry of a model in a grid of all."""

from __future__ import annotations

from scripts.cards.schema import Card
from scripts.cards.values import si
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.published import own_size
from scripts.pages.environment import ordered, template
from scripts.pages.writer import common


def size_range(card: Card, knowledge: Knowledge, metric: str) -> str:
    """`22.1 M to 86.6 M`, over the published figures of a model's own variants."""
    sizes = own_sizes(card, knowledge, metric)
    low, high = (si(f(sizes)) if sizes else "" for f in (min, max))
    return low if low == high else f"{low} to {high}"


def own_sizes(card: Card, knowledge: Knowledge, metric: str) -> list[float]:
    sizes = (own_size(knowledge.library, card.slug, key, metric) for key in card.own_variants)
    return [size.quantity.value for size in sizes if size]


def page(knowledge: Knowledge) -> str:
    """The text of `models/index.md`: every model in brief, those with a figure first."""
    entries = sorted((entry(card, knowledge) for card in knowledge.cards), key=lambda each: each["hero"] is None)
    return template("models.md.j2").render(common(knowledge, "../") | {"entries": entries})


def entry(card: Card, knowledge: Knowledge) -> dict[str, object]:
    return {
        "card": card,
        "intro": card.introduction,
        "hero": knowledge.hero(card),
        "verdicts": ordered(knowledge.verdicts(card.slug)),
        "parameters": size_range(card, knowledge, "parameters"),
        "least_parameters": min(own_sizes(card, knowledge, "parameters"), default=""),
    }
