"""The page By task."""

from __future__ import annotations

from typing import Any

from scripts.evidence.knowledge import Knowledge
from scripts.pages.environment import template
from scripts.pages.writer import common


def page(knowledge: Knowledge) -> str:
    """The text of `tasks/index.md`."""
    return template("tasks.md.j2").render(common(knowledge, "../") | {"tasks": tasks_with_cards(knowledge)})


def tasks_with_cards(knowledge: Knowledge) -> list[dict[str, Any]]:
    """The tasks that a card is for, those of most cards first, each with its cards, the newest first."""
    cards = sorted(knowledge.cards, key=lambda card: (-card.introduction.year, card.slug))
    tasks = [
        {"name": name, "definition": text, "cards": [card for card in cards if name in card.tasks]}
        for name, text in knowledge.library.vocabulary.tasks.items()
    ]
    return sorted((task for task in tasks if task["cards"]), key=lambda task: -len(task["cards"]))
