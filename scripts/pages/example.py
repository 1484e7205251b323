"""The page of an example: its cells, each with what it drew and printed, and the experiments behind the card."""

from __future__ import annotations

import functools
import html
import re

from markupsafe import Markup

from scripts.cards import prose
from scripts.evidence.knowledge import Knowledge
from scripts.pages.cells import Cell, read_cells, title_of
from scripts.pages.environment import template
from scripts.pages.writer import common
from scripts.runs.record import Figure, Record

CALL = re.compile(r"\b(figure|show)\(\s*\"([^\"]*)\"")


def page(slug: str, knowledge: Knowledge) -> str:
    """The text of `examples/<slug>.md`."""
    cells = read_cells(knowledge.notebook(slug))
    card, run = knowledge.library.cards.get(slug), knowledge.run(slug)
    record = run.record if run else None
    drawn = {figure.name for cell in cells for figure in _drawn_in(cell, record)}
    return template("example.md.j2").render(
        common(knowledge, "../../", card) | {
            "needs": knowledge.needs(slug),
            "slug": slug, "name": knowledge.name_of(slug), "has_card": card is not None, "title": title_of(cells),
            "run": run, "record": record, "fence": "`" * 5, "cells": [_cell_view(cell, record) for cell in cells],
            "drawn": drawn,
            "has_claims": slug in knowledge.claims, "folder": knowledge.about.slug,
        }
    )  # fmt: skip


def _cell_view(cell: Cell, record: Record | None) -> dict[str, object]:
    """A cell of an example; a code cell is followed by what it drew and printed, in the order of its calls."""
    if cell.is_code:
        shown = [each for each in record.shown if calls(cell, "show", each["name"])] if record else []
        return {"code": cell.text, "figures": _drawn_in(cell, record), "shown": shown}
    parts = prose.sections(cell.text, lambda ref: html.escape(ref))
    views = [{"level": level, "text": text} if level else {"level": 0, "html": Markup(text)} for level, text in parts]
    return {"code": "", "parts": views, "figures": [], "shown": []}


def _drawn_in(cell: Cell, record: Record | None) -> list[Figure]:
    return [figure for figure in record.figures if calls(cell, "figure", figure.name)] if record else []


def calls(cell: Cell, method: str, name: str) -> bool:
    """Whether a cell calls `figure("name", ...)` or `show("name", ...)`; other cells may mention the name."""
    return cell.is_code and (method, name) in _calls_in(cell.text)


@functools.lru_cache(maxsize=1024)
def _calls_in(text: str) -> frozenset[tuple[str, str]]:
    return frozenset(CALL.findall(text))
