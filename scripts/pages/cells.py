"""Cells of an example: the percent-format script read once, shown as a page and offered as a notebook."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

GUARD = 'if __name__ == "__main__":'
"""What runs stands below it, so that importing a file runs nothing; true in a script and in a notebook."""


@dataclass(frozen=True)
class Cell:
    """A cell of a script: Markdown or code."""

    is_code: bool
    text: str


def read_cells(notebook: str) -> tuple[Cell, ...]:
    """The cells of an example's notebook (JSON), without the hint on top and without empty ones."""
    cells = [(cell["cell_type"] == "code", "".join(cell["source"])) for cell in json.loads(notebook)["cells"][1:]]
    return tuple(Cell(is_code, text.strip("\n")) for is_code, text in cells if text.strip())


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
    import jupytext  # these take a moment to load, and are needed only for a script that changed
    import nbformat
    from nbconvert import NotebookExporter

    document = jupytext.reads(without_guards(script), fmt="py:percent")
    hint = f"Run this notebook in the folder `examples/` of a clone; `examples/{slug}.py` is the same as a script."
    document.cells.insert(0, nbformat.v4.new_markdown_cell(hint))
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
