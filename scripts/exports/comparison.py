"""The numbers of the models, with what each may be ranked against."""

from __future__ import annotations

import json

from scripts.architectures.latency import Latency
from scripts.cards.schema import Card
from scripts.evidence.knowledge import Knowledge, own_numbers
from scripts.evidence.published import Published, comparability
from scripts.evidence.systems import SIZES, cost

PLACE = ("dataset", "split")


def render(knowledge: Knowledge) -> dict[str, str]:
    """`api/compare.json`: the numbers of the models themselves, not of the rivals and ablations on their cards.

    ``metrics``: label, unit, direction, kind by id, and which are headlines. ``numbers``, by model: variant, metric, dataset
    and split, value as printed and as a number, the conditions that matter for a comparison, and ``group``, equal for those
    that may be ranked. ``timed``: what was timed here, by model and by what has to be equal.
    """
    metrics = knowledge.library.vocabulary.metrics
    groups: dict[tuple[object, ...], int] = {}
    numbers = {
        card.slug: [_entry(number, knowledge, groups) for number in own_numbers(card.slug, knowledge)]
        for card in knowledge.cards
    }
    told = {
        name: metric.model_dump(include={"label", "unit", "better", "kind", "headline"}, exclude_unset=True)
        for name, metric in metrics.items()
    }
    names = {card.slug: card.name for card in knowledge.cards}
    times = {card.slug: found for card in knowledge.cards if (found := timed(card, knowledge))}
    content = {"schema": 1, "names": names, "metrics": told, "numbers": numbers, "timed": times}
    return {"api/compare.json": json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"}


def _entry(number: Published, knowledge: Knowledge, groups: dict[tuple[object, ...], int]) -> dict[str, object]:
    conditions = comparability(number, knowledge.library.vocabulary)
    given = dict(conditions)
    return {
        "variant": knowledge.library.cards[number.card].variants[number.variant].name,
        "system": number.system.id,
        "cost": {metric: found.told for metric in SIZES if (found := cost(knowledge, number, metric))},
        "metric": number.metric,
        "on": " ".join(given[name] for name in PLACE if name in given),
        "printed": number.quantity.printed,
        "value": number.quantity.value,
        "conditions": {name: text for name, text in conditions if name not in PLACE},
        "group": groups.setdefault((number.metric, conditions), len(groups)),
        "table": number.table,
        "where": number.where,
    }


def timed(card: Card, knowledge: Knowledge) -> dict[str, str]:
    """What `measure` timed of a model's own variants: by device and input, each architecture with its time, fastest first.

    `{"A CPU, 2 threads, fp32, batch 1, 224 x 224": "Swin-T 79.5 ms, Swin-S 187 ms"}`; what was left out stands at the end.
    """
    found: dict[str, dict[str, tuple[float, str, str]]] = {}
    for variant in card.own_variants.values():
        for each in knowledge.latency(variant):
            if each.ms is not None:  # variants that differ in their training alone are one architecture
                of_one = found.setdefault(_alike(each), {})
                of_one.setdefault(each.build, (each.ms, f"{variant.name} {_short(each.ms)} ms", each.part))
    return {key: _told(sorted(of_one.values())) for key, of_one in sorted(found.items())}


def _alike(timed: Latency) -> str:
    """In what times have to agree that stand beside each other."""
    threads = [f"{timed.threads} threads"] if timed.threads else []
    return ", ".join([timed.device, *threads, timed.precision, f"batch {timed.batch}", timed.input])


def _short(ms: float) -> str:
    return f"{ms:.3g}" if ms < 1000 else f"{ms:.0f}"


def _told(times: list[tuple[float, str, str]]) -> str:
    parts = "; ".join(dict.fromkeys(part for *_, part in times if part))
    return ", ".join(text for _, text, _ in times) + (f" ({parts})" if parts else "")
