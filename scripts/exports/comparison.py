"""The numbers of the models, with what each may be ranked against."""

from __future__ import annotations

import json

from scripts.evidence.knowledge import Knowledge, own_numbers
from scripts.evidence.published import Published, comparability
from scripts.evidence.systems import SIZES, cost

PLACE = ("dataset", "split")


def render(knowledge: Knowledge) -> dict[str, str]:
    """`api/compare.json`: the numbers of the models themselves, not of the rivals and ablations on their cards.

    ``metrics``: label, unit, direction, kind by id. ``numbers``, by model: variant, metric, dataset and split, value as
    printed and as a number, the conditions that matter for a comparison, and ``group``, equal for those that may be ranked.
    """
    metrics = knowledge.library.vocabulary.metrics
    groups: dict[tuple[object, ...], int] = {}
    numbers = {
        card.slug: [_entry(number, knowledge, groups) for number in own_numbers(card.slug, knowledge)]
        for card in knowledge.cards
    }
    told = {
        name: metric.model_dump(include={"label", "unit", "better", "kind"}, exclude_unset=True)
        for name, metric in metrics.items()
    }
    names = {card.slug: card.name for card in knowledge.cards}
    content = {"schema": 1, "names": names, "metrics": told, "numbers": numbers}
    return {"api/compare.json": json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"}


def _entry(number: Published, knowledge: Knowledge, groups: dict[tuple[object, ...], int]) -> dict[str, object]:
    conditions = comparability(number, knowledge.library.vocabulary)
    given = dict(conditions)
    return {
        "variant": knowledge.library.cards[number.card].variants[number.variant].name,
        "system": number.system.id,
        "cost": {metric: found.printed for metric in SIZES if (found := cost(knowledge, number, metric))},
        "metric": number.metric,
        "on": " ".join(given[name] for name in PLACE if name in given),
        "printed": number.quantity.printed,
        "value": number.quantity.value,
        "conditions": {name: text for name, text in conditions if name not in PLACE},
        "group": groups.setdefault((number.metric, conditions), len(groups)),
        "table": number.table,
        "where": number.where,
    }
