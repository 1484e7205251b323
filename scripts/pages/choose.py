"""The page Choose: questions, and the shortlist that the browser makes of the answers."""

from __future__ import annotations

from scripts.evidence import terms
from scripts.evidence.knowledge import Knowledge
from scripts.exports import choices
from scripts.pages.environment import template
from scripts.pages.writer import common


def page(knowledge: Knowledge) -> str:
    """The text of `choose/index.md`."""
    content = choices.content(knowledge)
    least = {card.slug: card.least_data for card in knowledge.cards}
    models = [model | {"least_data": least[model["slug"]]} for model in content["models"]]
    return template("choose.md.j2").render(
        common(knowledge, "../") | {"content": content, "models": models, "uses": terms.all_uses(knowledge)}
    )
