"""Choosing a model: facts of each, computed from its card, and the questions of `model_cards/_choose.yml`.

The page evaluates the rules in the browser (`docs/assets/choose.js`); what they refer to is made here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scripts.cards.numbers import Variant
from scripts.cards.schema import Card
from scripts.cards.vocabulary import Question
from scripts.evidence import terms
from scripts.evidence.knowledge import Knowledge, own_numbers
from scripts.evidence.published import Published

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
        "uses": terms.all_uses(knowledge),
    }
    asked = knowledge.library.vocabulary.questions
    return [_asked(question, lists) for question in asked]


def _asked(question: Question, lists: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A question as data, its options spelled out where it names one of the lists."""
    told = question.model_dump(mode="json", exclude_unset=True)
    named = lists.get(question.options) if isinstance(question.options, str) else None
    return told if named is None else told | {"options": named}


def facts(card: Card, knowledge: Knowledge) -> dict[str, Any]:
    """What the rules look at. ``None``, or a missing device, where nothing is known."""
    numbers = list(own_numbers(card.slug, knowledge))
    sizes = [number.quantity.value for number in numbers if number.metric == "parameters"]
    own = list(card.own_variants.values())
    sizes = sizes or [counted.parameters for variant in own if (counted := knowledge.counted(variant))]
    latency: dict[str, float] = {}
    for device, milliseconds in (*_published_times(numbers), *_measured_times(own, knowledge)):
        latency[device] = min(milliseconds, latency.get(device, milliseconds))
    return {
        "slug": card.slug, "name": card.name, "purpose": card.purpose.strip(), "tasks": list(card.tasks),
        "family": card.family, "year": card.introduction.year, "uses": terms.uses(card, knowledge),
        "weights_gb": BYTES * min(sizes) / 1e9 if sizes else None, "latency_ms": latency,
        "least_images": card.least_data.images if card.least_data else None,
    }  # fmt: skip


def _published_times(numbers: Sequence[Published]) -> Iterator[tuple[str, float]]:
    """(device, ms) of each published time or rate at batch 1."""
    for number in numbers:
        device, value = number.conditions.hardware, number.quantity.value
        if device and number.conditions.batch == "1" and number.metric in ("latency", "fps"):
            yield device, value if number.metric == "latency" else 1000 / value


def _measured_times(variants: Sequence[Variant], knowledge: Knowledge) -> Iterator[tuple[str, float]]:
    """(device, ms) of what `measure` timed at batch 1; the device with its threads and precision."""
    for timed in (timed for variant in variants for timed in knowledge.latency(variant)):
        if timed.batch == 1 and timed.ms is not None:
            threads = f", {timed.threads} threads" if timed.threads else ""
            yield f"{timed.device}{threads}, {timed.precision} (timed here)", timed.ms
