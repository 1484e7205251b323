"""The page Examples: how each run came out."""

from __future__ import annotations

from scripts.evidence.knowledge import Knowledge
from scripts.pages.environment import template
from scripts.pages.writer import common
from scripts.runs.state import Run


def page(knowledge: Knowledge) -> str:
    rows = [
        {"slug": slug, "name": knowledge.name_of(slug), "run": knowledge.run(slug) or Run(slug, "not run")}
        for slug in sorted(knowledge.scripts)
    ]
    return template("examples.md.j2").render(common(knowledge, "../") | {"rows": rows})
