"""The page By task."""

from __future__ import annotations

from scripts.evidence.knowledge import Knowledge
from scripts.pages.environment import template
from scripts.pages.writer import common


def page(knowledge: Knowledge) -> str:
    words = knowledge.library.vocabulary.tasks
    tasks = [
        {"name": name, "definition": text, "cards": [card for card in knowledge.cards if name in card.tasks]}
        for name, text in sorted(words.items())
    ]
    return template("tasks.md.j2").render(
        common(knowledge, "../") | {"tasks": [task for task in tasks if task["cards"]]}
    )
