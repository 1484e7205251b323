"""Which page is made by what: one table of path -> function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from scripts.evidence.knowledge import Knowledge
from scripts.pages import (
    charts,
    choose,
    compare,
    detectors,
    downloads,
    evidence,
    example,
    examples,
    glossary,
    home,
    licensing,
    lineage,
    model,
    models,
    notes,
    numbers,
    pairs,
    photographs,
    scaling,
    tasks,
)
from scripts.pages.environment import tidy

OVERVIEWS: Mapping[str, Callable[[Knowledge], str]] = {
    "compare/index.md": compare.page,
    "index.md": home.page,
    "models/index.md": models.page,
    "tasks/index.md": tasks.page,
    "numbers/index.md": numbers.page,
    "scaling/index.md": scaling.page,
    "examples/index.md": examples.page,
    "glossary/index.md": glossary.page,
    "notes/index.md": notes.page,
    "charts/index.md": charts.page,
    "choose/index.md": choose.page,
    "evidence/index.md": evidence.page,
    "detectors/index.md": detectors.page,
    "licensing/index.md": licensing.page,
    "lineage/index.md": lineage.page,
    "downloads/index.md": downloads.page,
    "photographs/index.md": photographs.page,
}
"""Pages about all models, by path below `docs/`; those that take longest come first."""


def pages(knowledge: Knowledge) -> dict[str, Callable[[], str]]:
    """What makes each page, by path below `docs/`."""
    makers: dict[str, Callable[[], str]] = {
        path: functools.partial(page, knowledge) for path, page in OVERVIEWS.items()
    }
    makers |= {f"models/{card.slug}.md": functools.partial(model.page, card, knowledge) for card in knowledge.cards}
    makers |= {f"examples/{slug}.md": functools.partial(example.page, slug, knowledge) for slug in knowledge.scripts}
    for task, path in photographs.task_pages(knowledge).items():
        makers[path] = functools.partial(photographs.task_page, task, knowledge)
    for path, benchmark in numbers.benchmark_pages(knowledge).items():
        makers[path] = functools.partial(numbers.benchmark_page, benchmark, knowledge)
    for a, b in pairs.pairs(knowledge):
        makers[f"compare/{pairs.slug_of(a, b)}.md"] = functools.partial(pairs.page, a, b, knowledge)
    return {path: functools.partial(_tidied, make) for path, make in makers.items()}


def _tidied(make: Callable[[], str]) -> str:
    return tidy(make())
