"""The page By task."""

from __future__ import annotations

from scripts.evidence.knowledge import Knowledge
from scripts.pages import photographs
from scripts.pages.environment import template
from scripts.pages.writer import common


def page(knowledge: Knowledge) -> str:
    """The text of `tasks/index.md`."""
    return template("tasks.md.j2").render(
        common(knowledge, "../") | {
            "about": knowledge.about, "tasks": tasks_with_cards(knowledge), "photographed": photographs.tasks(knowledge)
        }
    )  # fmt: skip


def tasks_with_cards(knowledge: Knowledge) -> list[dict[str, object]]:
    """The tasks that a card is for, those of most cards first, each with its cards, the newest first."""
    cards = sorted(knowledge.cards, key=lambda card: (-card.introduction.year, card.slug))
    found = [
        (name, text, [card for card in cards if name in card.tasks])
        for name, text in knowledge.library.vocabulary.tasks.items()
    ]
    found.sort(key=lambda each: -len(each[-1]))
    return [{"name": name, "definition": text, "cards": its} for name, text, its in found if its]
