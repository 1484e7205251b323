"""The links by which a reader says that something is wrong, on each kind of host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from conftest import ROOT, Command, edit

from scripts.pages import hosts
from scripts.project import Project

FORM = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/wrong-fact.yml").read_text("utf-8"))
PLACE = ("models/detr/", "table-table1", "42.0 AP & more")


def fields(address: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}


def test_on_github_the_form_is_filled_in_by_the_names_of_its_fields() -> None:
    filled = fields(hosts.report("https://github.com/a/b", *PLACE))
    known = {part["id"] for part in FORM["body"] if "id" in part}
    assert set(filled) - {"template", "title"} <= known
    assert (filled["card"], filled["place"], filled["said"]) == PLACE
    assert filled["template"] == "wrong-fact.yml"


@pytest.mark.parametrize(
    ("repository", "form", "text"),
    [
        ("https://gitlab.com/group/sub/b", "/group/sub/b/-/issues/new", "issue[description]"),
        ("https://gitlab.example.org/a/b", "/a/b/-/issues/new", "issue[description]"),
        ("https://codeberg.org/a/b", "/a/b/issues/new", "body"),
    ],
)
def test_on_other_hosts_the_text_holds_page_place_and_value(repository: str, form: str, text: str) -> None:
    address = hosts.report(repository, *PLACE)
    assert urlsplit(address).path == form
    assert all(each in fields(address)[text] for each in PLACE)


@pytest.mark.parametrize(
    ("repository", "below"),
    [
        ("https://github.com/a/b", "edit/main"),
        ("https://gitlab.com/a/b", "-/edit/main"),
        ("https://codeberg.org/a/b", "_edit/main"),
    ],
)
def test_a_card_is_edited_where_its_host_edits_files(repository: str, below: str) -> None:
    assert hosts.edit(repository, "model_cards/detr.yml") == f"{repository}/{below}/model_cards/detr.yml"


def test_each_table_claim_and_chart_has_a_link_that_names_it(tiny: Project, command: Command) -> None:
    edit(tiny.root / "mkdocs.yml", "https://example.org/tiny", "https://github.com/a/b")
    assert command("render").returncode == 0
    page = (tiny.docs / "models/alpha.md").read_text("utf-8")
    places = [fields(unescape(href)).get("place") for href in re.findall(r'class="report"[^>]*href="([^"]*)"', page)]
    tables = re.findall(r'class="scroll"[^>]*id="(table-[^"]*)"', page)
    claims = re.findall(r'<li id="((?:pro|con)-\d+)">', page)
    figures = re.findall(r'<figure class="plot" id="(figure-[^"]*)"', page)
    assert tables
    assert claims
    assert {*tables, *claims, *figures} <= set(places)


PIECE = re.compile(r'(?=<table class="data|<figure class="plot|<li id="(?:pro|con)-|<h[23]\b)')


def unreported(page: str) -> Iterator[str]:
    """Beginnings of tables, charts and claims without a link before the next one, or the next heading."""
    for piece in PIECE.split(page)[1:]:
        if not piece.startswith("<h") and "<tbody></tbody>" not in piece and 'class="report"' not in piece:
            yield piece[:200]


@pytest.mark.slow
def test_no_table_claim_or_chart_of_any_page_is_without_its_link(built: Path) -> None:
    pages = {path.relative_to(built).as_posix(): path.read_text("utf-8") for path in built.rglob("index.html")}
    assert sum(len(PIECE.findall(page)) for page in pages.values()) > 1000
    assert {name: found for name, page in pages.items() if (found := list(unreported(page)))} == {}
