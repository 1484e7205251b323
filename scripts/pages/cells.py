"""Cells of an example: the percent-format script read once, shown as a page and offered as a notebook."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

GUARD = 'if __name__ == "__main__":'
"""What runs stands below it, so that importing a file runs nothing; true in a script and in a notebook."""


@dataclass(frozen=True)
class Cell:
    """A cell of a script: Markdown or code."""

    is_code: bool
    text: str


def read_cells(script: str) -> tuple[Cell, ...]:
    """The cells of a percent-format script, empty ones left out."""
    return tuple(
        Cell(cell.cell_type == "code", cell.source.strip("\n"))
        for cell in _notebook(script).cells
        if cell.source.strip()
    )


def title_of(cells: tuple[Cell, ...]) -> str:
    """The first heading of the first Markdown cell that has one.

    Raises:
        ValueError: there is none.
    """
    for cell in cells:
        for line in cell.text.splitlines():
            if not cell.is_code and line.startswith("# "):
                return line[2:].strip()
    raise ValueError("the first cell of an example has to hold its title: # %% [markdown], then # # Title")


def notebook(script: str, slug: str) -> str:
    """The script as a Jupyter notebook (JSON), with a first cell that says how to run it."""
    from nbconvert import NotebookExporter

    document = _notebook(script)
    hint = f"Run this notebook in the folder `examples/` of a clone; `examples/{slug}.py` is the same as a script."
    document.cells.insert(0, _markdown_cell(hint))
    for i, cell in enumerate(document.cells):
        cell["id"] = f"{slug}-{i}"[-64:]  # ids are random otherwise, and two builds would differ
    document.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    text, _ = NotebookExporter().from_notebook_node(document)
    return str(text)


def without_guards(script: str) -> str:
    """The script as a reader sees it: what runs in a cell stands there without the guard and its indentation."""
    return "\n".join(_unguarded(script.split("\n")))


def _unguarded(lines: list[str]) -> Iterator[str]:
    inside = False
    for line in lines:
        if line.rstrip() == GUARD:
            inside = True
            continue
        inside = inside and (not line.strip() or line.startswith("    "))
        yield re.sub(r"^    ", "", line) if inside else line


def _notebook(script: str) -> Any:
    import jupytext

    return jupytext.reads(without_guards(script), fmt="py:percent")


def _markdown_cell(text: str) -> Any:
    import nbformat

    return nbformat.v4.new_markdown_cell(text)
