"""The page Home: what shall it do, then the models, then how we know."""

from __future__ import annotations

from scripts.evidence.knowledge import Knowledge
from scripts.pages.environment import ordered, template
from scripts.pages.tasks import tasks_with_cards
from scripts.pages.writer import common

MOST = 5
"""Models that a tile of a task names."""


def page(knowledge: Knowledge) -> str:
    """The text of `index.md`."""
    verdicts = ordered(knowledge.verdicts())
    return template("home.md.j2").render(
        common(knowledge, "") | {
            "about": knowledge.about, "models": knowledge.cards, "tasks": tasks_with_cards(knowledge), "most": MOST,
            "verdicts": verdicts, "claims_count": sum(verdicts.values()),
        }
    )  # fmt: skip
