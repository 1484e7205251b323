"""Formulas of the examples are read as formulas, also where they go over several lines."""

from __future__ import annotations

import pytest
from conftest import ROOT

from scripts.cards import prose
from scripts.pages.cells import notebook, read_cells

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_no_dollar_of_a_formula_is_left_on_the_page_of_an_example(script) -> None:
    for cell in read_cells(notebook(script.read_text("utf-8"), script.stem)):
        if not cell.is_code:
            text = "".join(part for level, part in prose.sections(cell.text, lambda ref: ref) if not level)
            assert "$$" not in text, cell.text[:80]
