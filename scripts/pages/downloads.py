"""The page Data and downloads."""

from __future__ import annotations

from scripts import exports
from scripts.evidence.knowledge import Knowledge
from scripts.pages.environment import template
from scripts.pages.writer import common


def page(knowledge: Knowledge) -> str:
    about = knowledge.about
    files = {"all": exports.of_all(about), "each": exports.EACH, "licence": about.licence, "cards": knowledge.cards}
    return template("downloads.md.j2").render(common(knowledge, "../") | files)
