"""The page From the notes: where each line of them went."""

from __future__ import annotations

from scripts.cards.vocabulary import NotePlace
from scripts.evidence.knowledge import Knowledge
from scripts.pages.environment import template
from scripts.pages.writer import common

ANCHORS = {"purpose": "", "name": "", "confused_with": "#concept", "pros": "#claims", "cons": "#claims"}
"""Where on a model's page a field of its card stands, if not under its own name."""


def page(knowledge: Knowledge) -> str:
    notes = knowledge.library.vocabulary.notes
    views = [{"line": note.line, "places": [_place(place, knowledge) for place in note.places]} for note in notes]
    return template("notes.md.j2").render(common(knowledge, "../") | {"notes": views})


def _place(place: NotePlace, knowledge: Knowledge) -> dict[str, object]:
    """Where a line of the notes went: a field of a card, or one of its claims with the verdict."""
    card = knowledge.library.cards[place.card]
    if place.field is not None:
        anchor = ANCHORS.get(place.field, f"#{place.field}")
        return {"card": card, "anchor": anchor, "text": place.field.replace("_", " "), "verdict": None}
    sides = (("pro", knowledge.pros(card.slug)), ("con", knowledge.cons(card.slug)))
    side, i, judged = next(
        (side, i, judged)
        for side, claims in sides
        for i, judged in enumerate(claims, 1)
        if judged.claim.claim == place.claim
    )
    return {"card": card, "anchor": f"#{side}-{i}", "text": place.claim, "verdict": judged.verdict.value}
