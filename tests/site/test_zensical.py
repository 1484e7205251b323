"""Zensical builds the same pages from the same files; what differs is listed in docs/about/zensical.md."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from built_site import arrive
from conftest import ROOT, Command, edit, needs_chromium, snapshot

from scripts.benchmarks.search import serving
from scripts.project import Project
from scripts.site.build import build
from scripts.site.gather import gather
from scripts.site.render import render

if TYPE_CHECKING:
    from playwright.sync_api import Browser

installed = pytest.mark.skipif(
    importlib.util.find_spec("zensical") is None, reason="no Zensical here: make .venv/.zensical"
)


def as_if(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether Zensical is there; of all other packages the truth is told, for others ask too."""
    spec, ask = importlib.util.find_spec("pytest") if there else None, importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: spec if name == "zensical" else ask(name, *rest)
    )


class Article(HTMLParser):
    """The words of a page between the theme's header and footer."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.depth, self.words = 0, list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, _: object) -> None:
        self.depth += tag == "article"

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag == "article"

    def handle_data(self, data: str) -> None:
        self.words += data.split() if self.depth else []


def prepared(project: Project) -> Project:
    """With the overrides of this project's theme, rendered."""
    shutil.copytree(ROOT / "overrides", project.root / "overrides")
    settings = project.root / "mkdocs.yml"
    edit(settings, '"https://example.org/tiny"}', '"https://example.org/tiny", scope: /}')
    edit(settings, "font: false}", "font: false, variant: classic, custom_dir: overrides}")
    settings.write_text(settings.read_text("utf-8") + "site_dir: !ENV [SITE_DIR, site]\n", "utf-8")
    render(project, gather(project))
    return project


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny site built by MkDocs, and by Zensical."""
    root = tmp_path_factory.mktemp("both")
    shutil.copytree(ROOT / "tests/tiny", root / "tiny", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "tiny/docs").mkdir()
    project = prepared(Project(root / "tiny"))
    assert build(project)
    project.site.rename(root / "mkdocs")
    assert build(project, "zensical")
    return root / "mkdocs", project.site


@installed
def test_the_same_pages_hold_the_same_words(both: tuple[Path, Path]) -> None:
    one, other = ({name: file for name, file in snapshot(site).items() if name.endswith(".html")} for site in both)
    assert sorted(one) == sorted(other)
    assert len(one) > 10
    differing = [name for name in one if Article(one[name].decode()).words != Article(other[name].decode()).words]
    assert differing == []


@installed
def test_files_that_are_no_pages_are_the_same_but_for_the_theme_and_the_search(both: tuple[Path, Path]) -> None:
    own = ("assets/", "search", "sitemap", "downloads/tiny.zip")
    one, other = (
        {name: file for name, file in snapshot(site).items() if not name.endswith(".html") and not name.startswith(own)}
        for site in both
    )
    assert len(one) > 15
    assert one == other


@installed
def test_the_policy_allows_the_inline_scripts_of_its_theme(both: tuple[Path, Path]) -> None:
    page = (both[1] / "models/alpha/index.html").read_text("utf-8")
    inline = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in inline}
    assert hashes
    assert hashes <= set(re.findall(r"'sha256-([^']+)'", page)), "write it into overrides/main.html"


@installed
@needs_chromium
def test_a_page_has_one_search_which_finds_and_breaks_no_rule_of_the_policy(
    both: tuple[Path, Path], browser: Browser
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    with serving(both[1]) as address:
        arrive(page, f"{address}models/")
        assert page.get_by_role("button", name="Search").count() == 1
        page.keyboard.press("/")
        page.keyboard.type("Alpha")
        page.get_by_role("link", name="Alpha").first.wait_for()
    context.close()
    assert [error for error in errors if "404" not in error] == [], "the tiny project has no assets of its own"


def test_where_zensical_is_not_installed_the_command_says_how_to_install_it(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if(there=False, monkeypatch=monkeypatch)
    done = command("build", "--builder", "zensical")
    assert done.returncode == 1
    assert done.stderr.endswith("Zensical is not installed; install it with: make .venv/.zensical\n")


def test_zensical_builds_nothing_where_it_would_not_build_aside(
    tiny: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if(there=True, monkeypatch=monkeypatch)
    done = command("build", "--builder", "zensical")
    assert done.stderr.endswith("for Zensical, mkdocs.yml needs the line: site_dir: !ENV [SITE_DIR, site]\n")
    assert not tiny.site.exists()
