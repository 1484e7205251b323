"""Pages and exports: written only when they change, the same bytes from the same input, the interface's contract."""

from __future__ import annotations

import ast
import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Command, edit, snapshot

from scripts.pages import cells, environment
from scripts.pages.example import calls
from scripts.project import Project
from scripts.site.render import generated


@pytest.mark.slow
def test_two_renders_give_the_same_bytes_and_the_second_writes_nothing(ran: Project, command: Command) -> None:
    assert command("render").returncode == 0
    first = snapshot(ran.docs)
    times = {path: path.stat().st_mtime_ns for path in ran.docs.rglob("*") if path.is_file()}
    assert "0 files changed" in command("render").stdout
    assert {path: path.stat().st_mtime_ns for path in times} == times
    for name in generated():
        subprocess.run(["rm", "-rf", str(ran.docs / name)], check=True)
    command("render")
    assert snapshot(ran.docs) == first


@pytest.mark.slow
def test_two_builds_give_the_same_site(ran: Project, command: Command) -> None:
    command("build")
    first = snapshot(ran.site)
    subprocess.run(["rm", "-rf", str(ran.site)], check=True)
    command("build")
    second = snapshot(ran.site)
    assert sorted(first) == sorted(second)
    assert [name for name in first if first[name] != second[name]] == []


def test_an_edit_of_a_card_writes_the_pages_that_show_it_and_no_other(tiny: Project, command: Command) -> None:
    command("render")
    before = snapshot(tiny.docs)
    edit(tiny.cards / "beta.yml", "It has more weights.", "It has far more weights.")
    command("render")
    after = snapshot(tiny.docs)
    assert {name for name in after if after[name] != before.get(name)} == {
        "models/beta.md",
        "api/models/beta.json",
        "llms-full.txt",
    }


def test_what_is_no_longer_made_is_deleted_and_what_is_written_by_hand_stays(tiny: Project, command: Command) -> None:
    (tiny.docs / "about.md").write_text("# About\n")
    command("render")
    assert (tiny.docs / "models/beta.md").is_file()
    edit(tiny.cards / "_vocabulary.yml", ", see: [beta]", "")
    for name in ("beta.yml", "alpha.yml"):
        (tiny.cards / name).rename(tiny.root / name)
    command("render")
    assert not (tiny.docs / "models/beta.md").exists()
    assert not (tiny.docs / "api/models/beta.json").exists()
    assert (tiny.docs / "about.md").is_file()


@pytest.mark.slow
def test_a_broken_card_leaves_the_last_good_site_untouched(tiny: Project, command: Command) -> None:
    command("build")
    before = snapshot(tiny.site), snapshot(tiny.docs)
    edit(tiny.cards / "alpha.yml", "family: detection", "famly: detection")
    done = command("build")
    assert done.returncode == 1
    assert "model_cards/alpha.yml:4:1: unknown field 'famly', did you mean 'family'?" in done.stdout
    assert done.stderr.endswith("nothing was written\n")
    assert (snapshot(tiny.site), snapshot(tiny.docs)) == before


@pytest.mark.slow
def test_a_failing_mkdocs_leaves_the_last_good_site_untouched(tiny: Project, command: Command) -> None:
    command("build")
    before = snapshot(tiny.site)
    (tiny.docs / "broken.md").write_text("[nowhere](nowhere.md)\n")
    done = command("build")
    assert done.returncode == 1
    assert "nowhere.md" in done.stderr
    assert snapshot(tiny.site) == before


@pytest.mark.slow
def test_a_build_without_a_change_is_skipped_whatever_was_compiled(tiny: Project, command: Command) -> None:
    assert "is built" in command("build").stdout
    compiled = tiny.root / "scripts" / "templates" / "__pycache__"
    compiled.mkdir(parents=True)
    (compiled / "page.cache").write_bytes(b"compiled")
    assert "is up to date" in command("build").stdout


def test_pages_are_made_where_compiled_templates_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        assert environment._compiled() is None
    assert environment._compiled() is not None


@pytest.fixture
def api(ready: Project) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((ready.docs / "api/models/alpha.json").read_text("utf-8"))
    return made


def test_the_index_of_the_interface_lists_the_models(ready: Project) -> None:
    index = json.loads((ready.docs / "api/models.json").read_text("utf-8"))
    assert (index["schema"], index["models"]) == (1, ["alpha", "beta"])
    assert "generated" in index


def test_the_interface_holds_every_field_of_its_contract(api: dict[str, Any]) -> None:
    assert api.keys() >= {
        "slug", "name", "title", "year", "venue", "authors", "arxiv", "doi", "code_url", "tasks", "purpose", "concept",
        "licences", "pros", "cons", "use_when", "avoid_when", "builds_on", "succeeded_by", "variants", "example",
        "references", "notes", "reviewed",
    }  # fmt: skip
    assert api["licences"].keys() >= {"code", "weights", "note"}
    assert api["pros"][1].keys() >= {"text", "because", "verdict", "reported", "shown"}
    assert api["pros"][1]["reported"].keys() >= {"assertion", "holds", "source", "where"}
    assert api["pros"][1]["shown"].keys() >= {"assertion", "holds", "observed"}
    variant = api["variants"][0]
    assert variant.keys() >= {"id", "name", "params_m", "macs_g", "metrics", "latency"}
    assert variant["params_m"].keys() >= {"reported", "counted", "source", "where"}
    assert variant["macs_g"].keys() >= {"reported", "counted", "input", "source", "where"}
    metric = variant["metrics"][0]
    assert metric.keys() >= {"dataset", "split", "metric", "value", "unit", "conditions", "source", "where"}
    assert api["example"].keys() >= {
        "script", "page", "notebook", "device", "preset", "seconds", "seeds", "results", "figures", "status",
    }  # fmt: skip
    assert api["example"]["results"]["margin"].keys() >= {"mean", "std", "values", "unit"}
    assert api["example"]["figures"][0].keys() >= {"name", "light", "dark", "caption", "alt"}
    assert api["references"][0].keys() >= {"id", "type", "title", "authors", "year", "url", "doi", "arxiv"}


def test_the_interface_says_what_the_card_and_the_run_say(api: dict[str, Any]) -> None:
    assert [claim["verdict"] for claim in api["pros"]] == ["shown", "published + shown", "published"]
    assert [claim["verdict"] for claim in api["cons"]] == ["inconclusive", "noted", "corrected"]
    assert api["variants"][0]["params_m"]["reported"] == 1.5
    assert api["variants"][0]["macs_g"]["reported"] == 2
    assert api["example"]["status"] == "ok"
    assert api["title"] == "Alpha of things"
    assert api["builds_on"] == ["beta"]


def test_files_that_the_interface_names_exist(ready: Project, api: dict[str, Any]) -> None:
    for figure in api["example"]["figures"]:
        assert (ready.docs / figure["light"]).is_file()
        assert (ready.docs / figure["dark"]).is_file()
    assert (ready.docs / api["example"]["notebook"]).is_file()
    assert (ready.root / api["example"]["script"]).is_file()


def test_each_figure_of_an_example_stands_on_its_page_after_its_code(ready: Project) -> None:
    page = (ready.docs / "examples/alpha.md").read_text("utf-8")
    assert page.count('id="figure-margin"') == 1
    assert page.index('figure("margin"') < page.index('id="figure-margin"') < page.index("{ #results }")


def test_a_notebook_holds_the_cells_of_its_script(ready: Project) -> None:
    import nbformat

    notebook = nbformat.reads((ready.docs / "examples/alpha.ipynb").read_text("utf-8"), as_version=4)
    nbformat.validate(notebook)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0] == "from lab.record import write"
    assert "# Alpha: is there a margin?" in notebook.cells[1].source


def test_an_example_without_a_title_is_refused() -> None:
    with pytest.raises(ValueError, match="the first cell of an example has to hold its title"):
        cells.title_of(cells.read_cells(cells.notebook("# %%\nx = 1\n", "any")))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_each_figure_of_our_examples_has_a_cell_that_draws_it(path: Path) -> None:
    read = cells.read_cells(cells.notebook(path.read_text("utf-8"), path.stem))
    names = [
        node.args[0].value
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "figure"
        if node.args and isinstance(node.args[0], ast.Constant)
    ]
    assert names
    for name in names:
        assert sum(calls(cell, "figure", name) for cell in read) == 1, name


def test_new_writes_a_card_and_an_example_that_pass_the_check(tiny: Project, command: Command) -> None:
    done = command("new", "gamma-ray")
    assert done.returncode == 0
    edit(tiny.cards / "gamma-ray.yml", "author2026 # key", "author2026 # the key")
    assert command("check").returncode == 0
    ast.parse((tiny.examples / "gamma-ray.py").read_text("utf-8"))
    again = command("new", "gamma-ray")
    assert (again.returncode, again.stderr) == (
        1,
        "model_cards/gamma-ray.yml, examples/gamma-ray.py exists already\n",
    )
    assert "'Gamma' is no slug" in command("new", "Gamma").stderr
