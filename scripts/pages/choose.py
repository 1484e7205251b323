"""The page Choose: questions, and the shortlist of checkpoints that the browser makes of the answers."""

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
    rows = [{**each, "least_data": least[each["slug"]]} for each in content["candidates"]]
    return template("choose.md.j2").render(
        common(knowledge, "../") | {"content": content, "rows": rows, "uses": terms.all_uses(knowledge)}
    )
