"""The page Compare: models beside each other."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from scripts.cards.schema import Card
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.verdicts import Judged
from scripts.pages import pairs
from scripts.pages.environment import template
from scripts.pages.models import entry
from scripts.pages.writer import Writer, common


def page(knowledge: Knowledge) -> str:
    models = [
        entry(card, knowledge) | _compared(card, knowledge) | {"concept": _first_paragraph(card, knowledge)}
        for card in knowledge.cards
    ]
    pages = pairs.pairs(knowledge)
    weighed = [(f"{a.name} or {b.name}", pairs.slug_of(a, b)) for a, b in pages]
    first = ",".join(card.slug for card in next(iter(pages), knowledge.cards[:2]))
    return template("compare.md.j2").render(
        common(knowledge, "../") | {"models": models, "pairs": weighed, "first": first}
    )


def _compared(card: Card, knowledge: Knowledge) -> dict[str, object]:
    """What the page Compare says of a model beside its entry in the grid."""
    return {
        "pros": _standing(knowledge.pros(card.slug)), "cons": _standing(knowledge.cons(card.slug)),
    }  # fmt: skip


def _first_paragraph(card: Card, knowledge: Knowledge) -> Markup:
    """Of the concept, for another page than the card's."""
    paragraph = card.concept.strip().partition("\n\n")[0]
    return Writer(knowledge, "../", card, elsewhere=True).prose(paragraph, inline=True)


def _standing(claims: Sequence[Judged]) -> list[tuple[int, Judged]]:
    """The claims that stand, with their numbers on the card: what is corrected or outdated is no reason."""
    return [(i, each) for i, each in enumerate(claims, 1) if not (each.claim.corrected or each.claim.outdated)]
