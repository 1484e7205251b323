"""Every published number as one row of a CSV file."""

from __future__ import annotations

import csv
import io

from scripts.cards.numbers import Conditions
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.published import Published, numbers_of
from scripts.evidence.systems import SIZES, Cost, cost

CONDITIONS = tuple(name for name in Conditions.model_fields if name != "metric")

COLUMNS = (
    "card", "system", "variant", "name", "metric", "value", "printed", "unit", *CONDITIONS, "metric_definition", "table",
    "source", "source_title", "source_address", "where", "note", "half_of_flops", "independent", "system_parameters",
    "system_macs",
)  # fmt: skip


def render(knowledge: Knowledge) -> dict[str, str]:
    """`downloads/numbers.csv`."""
    return {"downloads/numbers.csv": csv_of(knowledge)}


def csv_of(knowledge: Knowledge) -> str:
    """The file's text: a head, then the cards in order of their slugs."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for card in knowledge.cards:
        for number in numbers_of(knowledge.library, card.slug):
            writer.writerow({name: _harmless(value) for name, value in _row(number, knowledge).items()})
    return text.getvalue()


def _row(number: Published, knowledge: Knowledge) -> dict[str, object]:
    card = knowledge.library.cards[number.card]
    reference = card.references[number.source]
    return {
        "card": card.slug,
        "system": number.system.id,
        "variant": number.variant,
        "name": card.variants[number.variant].name,
        "metric": number.metric,
        "value": f"{number.quantity.value:.15g}",
        "printed": number.quantity.printed,
        "unit": knowledge.library.vocabulary.metric(number.metric).unit,
        **{name: number.given.get(name, "") for name in CONDITIONS},
        "metric_definition": number.given.get("metric", ""),
        "table": number.table,
        "source": number.source,
        "source_title": reference.title,
        "source_address": reference.addresses[0][1],
        "where": number.where,
        "note": number.note or "",
        "half_of_flops": "yes" if number.halved else "",
        "independent": "yes" if number.independent else "",
        **{f"system_{metric}": _exact(cost(knowledge, number, metric)) for metric in SIZES},
    }


def _exact(found: Cost | None) -> str:
    return f"{found.value:.15g}" if found else ""


def _harmless(value: object) -> object:
    """A text that a spreadsheet would take for a formula is quoted; a negative number is none."""
    text = str(value)
    if not text.startswith(("=", "+", "-", "@", "\t")):
        return value
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return value
