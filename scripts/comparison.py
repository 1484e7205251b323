"""Models beside each other: what the page Compare shows of each, and their numbers with what they may be ranked against."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from scripts.knowledge import Knowledge
from scripts.numbers import Published, comparability, numbers_of

KINDS = ("quality", "size", "compute", "speed", "memory")
PLACE = ("dataset", "split")


def render(knowledge: Knowledge) -> dict[str, str]:
    """`api/compare.json`: the numbers of the models themselves, not of the rivals and ablations on their cards.

    ``metrics``: label, unit, direction, kind by id. ``numbers``, by model: variant, metric, dataset and split, value as
    printed and as a number, the conditions that matter for a comparison, and ``group``, equal for those that may be ranked.
    """
    metrics = knowledge.library.vocabulary.get("metrics", {})
    groups: dict[tuple[Any, ...], int] = {}
    numbers = {
        card.slug: [_entry(number, knowledge, groups) for number in own_numbers(card.slug, knowledge)]
        for card in knowledge.cards
    }
    told = {
        name: {key: words[key] for key in ("label", "unit", "better", "kind") if key in words}
        for name, words in metrics.items()
    }
    names = {card.slug: card.name for card in knowledge.cards}
    content = {"schema": 1, "names": names, "metrics": told, "numbers": numbers}
    return {"api/compare.json": json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"}


def own_numbers(slug: str, knowledge: Knowledge) -> Iterator[Published]:
    """The published numbers of a model's own variants, of the kinds that models are compared by."""
    card, metrics = knowledge.library.cards[slug], knowledge.library.vocabulary.get("metrics", {})
    for number in numbers_of(knowledge.library, slug):
        kind = metrics.get(number.metric, {}).get("kind")
        if kind in KINDS and not card.variants[number.variant].for_comparison:
            yield number


def _entry(number: Published, knowledge: Knowledge, groups: dict[tuple[Any, ...], int]) -> dict[str, Any]:
    conditions = comparability(number, knowledge.library.vocabulary.get("metrics", {}))
    given = dict(conditions)
    return {
        "variant": knowledge.library.cards[number.card].variants[number.variant].name,
        "metric": number.metric,
        "on": " ".join(given[name] for name in PLACE if name in given),
        "printed": number.quantity.printed,
        "value": number.quantity.value,
        "conditions": {name: text for name, text in conditions if name not in PLACE},
        "group": groups.setdefault((number.metric, conditions), len(groups)),
        "table": number.table,
        "where": number.where,
    }
