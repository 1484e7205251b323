"""The page Data and downloads."""

from __future__ import annotations

from scripts.evidence.knowledge import Knowledge
from scripts.pages.environment import template
from scripts.pages.writer import common


def page(knowledge: Knowledge) -> str:
    from scripts.exports import ALL, EACH

    return template("downloads.md.j2").render(
        common(knowledge, "../") | {"all": ALL, "each": EACH, "cards": knowledge.cards}
    )
