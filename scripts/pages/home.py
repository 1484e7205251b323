"""The page Home."""

from __future__ import annotations

from scripts.evidence.knowledge import Knowledge
from scripts.pages.models import grid


def page(knowledge: Knowledge) -> str:
    return grid(knowledge, "home.md.j2", root="")
