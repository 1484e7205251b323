"""How large a checkpoint is, by what its card publishes."""

from __future__ import annotations

from scripts.cards.releases import Checkpoint
from scripts.cards.schema import Card
from scripts.evidence.published import published
from scripts.evidence.systems import is_one

BYTES = 4
"""Of a parameter, as nearly all weights are distributed."""

LARGE = 1e9
"""Parameters above which a checkpoint is nobody's first choice: four gigabytes to fetch."""


def parameters(card: Card, checkpoint: Checkpoint) -> float | None:
    """Of its system: from its own row of numbers, or another of the same variant and framework; None if none is published."""
    variant, _, table = checkpoint.system.partition("/")
    numbers = [each for each in published(card) if each.variant == variant]
    own = next((each for each in numbers if each.table == table), None)
    sizes = [
        each
        for each in numbers
        if each.metric == "parameters" and own and is_one(own.system, each.system, with_input=False)
    ]
    return min(sizes, key=lambda each: each.table != table).quantity.value if sizes else None


def download(card: Card, checkpoint: Checkpoint) -> str:
    """`name, 41 M parameters, about 164 MB`; the name alone where no source says how many."""
    count, name = parameters(card, checkpoint), checkpoint.load.name
    return f"{name}, {count / 1e6:,.0f} M parameters, about {BYTES * count / 1e6:,.0f} MB" if count else name
