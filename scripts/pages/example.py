"""The page of an example: its cells with their figures."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from scripts.cards import prose
from scripts.evidence.knowledge import Knowledge
from scripts.pages.cells import Cell, read_cells, title_of
from scripts.pages.environment import template
from scripts.pages.writer import common
from scripts.runs.record import Figure


def _cell_view(cell: Cell, figures: Sequence[Figure]) -> dict[str, Any]:
    """A cell of an example; a code cell is followed by the figures whose names it contains."""
    if cell.is_code:
        drawn = [figure for figure in figures if draws(cell, figure.name)]
        return {"code": cell.text, "figures": drawn}
    parts = prose.sections(cell.text, lambda ref: html.escape(ref))
    views = [{"level": level, "text": text} if level else {"level": 0, "html": Markup(text)} for level, text in parts]
    return {"code": "", "parts": views, "figures": []}


def draws(cell: Cell, name: str) -> bool:
    """A figure is drawn in the cell that calls `figure("name", ...)`; other cells may mention its name."""
    return cell.is_code and re.search(rf'figure\(\s*"{name}"', cell.text) is not None


def page(slug: str, knowledge: Knowledge) -> str:
    root = "../../"
    cells = read_cells(knowledge.scripts[slug])
    card = knowledge.library.cards.get(slug)
    run = knowledge.run(slug)
    record = run.record if run else None
    figures = list(record.figures) if record else []
    return template("example.md.j2").render(
        common(knowledge, root, card) | {
            "slug": slug, "name": knowledge.name_of(slug), "has_card": card is not None,
            "title": title_of(cells), "run": run, "record": record, "fence": "`" * 5,
            "slug_file": f"../{slug}", "cells": [_cell_view(cell, figures) for cell in cells],
        }
    )  # fmt: skip
