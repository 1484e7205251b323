"""Which checkpoints stand for a card on photographs: of each of its tasks the first, one without a gate before those with one."""

from __future__ import annotations

from scripts.cards.library import Library
from scripts.cards.schema import Card
from scripts.checkpoints.attempt import takes_of, unfit
from scripts.checkpoints.pictures import Kind


def chosen(card: Card, kind: Kind = "picture") -> dict[str, str]:
    """Task -> key of a checkpoint that is made for a kind of thing, and can be shown on it where its library is."""
    found: dict[str, str] = {}
    for key, checkpoint in sorted(card.checkpoints.items(), key=lambda each: each[1].gated):
        if takes_of(checkpoint) == kind and unfit(checkpoint, kind) is None:
            found.setdefault(checkpoint.task, key)
    return found


def chosen_ids(library: Library) -> set[str]:
    """All that are shown on photographs."""
    return {f"{slug}/{key}" for slug, card in library.cards.items() for key in chosen(card).values()}
