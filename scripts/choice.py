"""Choosing a model: facts of each, computed from its card, and the questions of `model_cards/_choose.yml`.

The page evaluates the rules in the browser (`docs/assets/choose.js`); what they refer to is made here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from scripts import licensing
from scripts.comparison import own_numbers
from scripts.knowledge import Knowledge, introduction
from scripts.schema import Card

BYTES = 4  # of a weight in fp32


def render(knowledge: Knowledge) -> dict[str, str]:
    """`api/choose.json`: what the page Choose goes by, for programs; the page holds a copy."""
    return {"api/choose.json": json.dumps(content(knowledge), ensure_ascii=False, indent=1, sort_keys=True) + "\n"}


def content(knowledge: Knowledge) -> dict[str, Any]:
    """The questions with their options, and the facts of every model."""
    models = [facts(card, knowledge) for card in knowledge.cards]
    return {"schema": 1, "questions": questions(models, knowledge), "models": models}


def questions(all_facts: Sequence[Mapping[str, Any]], knowledge: Knowledge) -> list[dict[str, Any]]:
    """The questions, options spelled out: those that at least one model can meet."""
    lists = {
        "tasks": sorted({task for each in all_facts for task in each["tasks"]}),
        "devices": sorted({device for each in all_facts for device in each["latency_ms"]}),
        "uses": licensing.all_uses(knowledge),
    }
    asked = knowledge.library.vocabulary.get("questions", [])
    return [each | ({"options": lists.get(_key(each), each["options"])} if "options" in each else {}) for each in asked]


def _key(question: Mapping[str, Any]) -> str:
    return question["options"] if isinstance(question["options"], str) else ""


def facts(card: Card, knowledge: Knowledge) -> dict[str, Any]:
    """What the rules look at. ``None``, or a missing device, where nothing is known."""
    numbers = list(own_numbers(card.slug, knowledge))
    sizes = [number.quantity.value for number in numbers if number.metric == "parameters"]
    own = [variant for variant in card.variants.values() if not variant.for_comparison]
    sizes = sizes or [counted.parameters for variant in own if (counted := knowledge.counted(variant))]
    latency: dict[str, float] = {}
    for number in numbers:
        device, one = number.conditions.hardware, number.conditions.batch == "1"
        if device and one and number.metric in ("latency", "fps"):
            value = number.quantity.value
            milliseconds = value if number.metric == "latency" else 1000 / value
            latency[device] = min(milliseconds, latency.get(device, milliseconds))
    return {
        "slug": card.slug, "name": card.name, "purpose": card.purpose.strip(), "tasks": list(card.tasks),
        "family": card.family, "year": introduction(card).year, "uses": licensing.uses(card, knowledge),
        "weights_gb": BYTES * min(sizes) / 1e9 if sizes else None, "latency_ms": latency,
        "least_images": card.least_data.images if card.least_data else None,
    }  # fmt: skip
