"""Wherever a site is published: below a path, without its archive, by the workflow that asks for the address."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
import yaml
from conftest import ROOT, Command

from scripts.project import Project
from scripts.site.build import mkdocs_environment
from scripts.site.gather import about


@pytest.mark.slow
def test_a_site_built_by_mkdocs_alone_links_to_no_archive(tiny: Project, command: Command) -> None:
    command("render")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet"], cwd=tiny.root, env=mkdocs_environment(), check=True
    )
    page = re.sub("<!--.*?-->", "", (tiny.site / "downloads/index.html").read_text("utf-8"), flags=re.DOTALL)
    assert "numbers.csv" in page
    assert ".zip" not in page
    found = (tiny.site / "search/search_index.json").read_text("utf-8")
    assert "numbers.csv" in found
    assert ".zip" not in found


@pytest.fixture
def elsewhere(themed: Project, command: Command, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The tiny project with this project's theme, built for a place below a path."""
    with (themed.root / "mkdocs.yml").open("a", encoding="utf-8") as settings:
        settings.write('site_url: !ENV [SITE_URL, "https://example.org/elsewhere/"]\n')
    monkeypatch.setenv("SITE_URL", "https://example.org/some/models")
    assert about(themed).address == "https://example.org/some/models/"
    assert command("build").returncode == 0
    return themed


@pytest.mark.slow
def test_the_page_for_what_is_not_found_has_its_style_and_leads_on_below_a_path_too(elsewhere: Project) -> None:
    page = (elsewhere.site / "404.html").read_text("utf-8")
    assert "<title>Page not found - Tiny</title>" in page
    asked = re.findall(r'(?:href|src)="?(/[^\s">]+\.(?:css|js))', page)
    assert {path.rpartition(".")[2] for path in asked} == {"css", "js"}
    links = re.findall(r'class="?way"? href="?([^\s">]+)', page)
    ways = {urlsplit(urljoin("https://example.org/wrong/page", link)).path for link in links}
    assert ways == {"/some/models/", "/some/models/choose/", "/some/models/models/"}
    files = [*asked, *(f"{way}index.html" for way in ways)]
    assert [path for path in files if not (elsewhere.site / path.removeprefix("/some/models/")).is_file()] == []


@pytest.mark.slow
def test_the_sitemap_names_each_page_by_its_whole_address_and_invents_no_date(elsewhere: Project) -> None:
    sitemap = (elsewhere.site / "sitemap.xml").read_text("utf-8")
    named = set(re.findall("<loc>(.*?)</loc>", sitemap))
    folders = {page.parent.relative_to(elsewhere.site).as_posix() for page in elsewhere.site.rglob("index.html")}
    assert named == {f"https://example.org/some/models/{folder}/".replace("/./", "/") for folder in folders}
    assert "lastmod" not in sitemap


@pytest.mark.slow
def test_each_page_has_a_title_and_a_description_of_its_own(built: Path) -> None:
    texts = {path.relative_to(built).as_posix(): path.read_text("utf-8") for path in built.rglob("*.html")}
    pages = {name: text for name, text in texts.items() if 'content="noindex"' not in text}
    assert len(pages) > 300
    assert texts.keys() - pages.keys() == {"404.html"}
    for pattern in ("<title>([^<]+)</title>", '<meta name="description" content="([^"]+)">'):
        said = {name: next(iter(re.findall(pattern, page)), None) for name, page in pages.items()}
        count = Counter(said.values())
        assert {name: each for name, each in said.items() if each is None or count[each] > 1} == {}


def test_the_workflow_builds_the_site_for_the_address_that_its_host_names() -> None:
    steps = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text("utf-8"))["jobs"]["build"]["steps"]
    (asked,) = [step["id"] for step in steps if step.get("uses", "").startswith("actions/configure-pages@")]
    (made,) = [step for step in steps if step.get("run") == "make site"]
    assert made["env"]["SITE_URL"].startswith(f"${{{{ steps.{asked}.outputs.base_url }}}}")
    assert "site_url: !ENV [SITE_URL," in (ROOT / "mkdocs.yml").read_text("utf-8")


def test_the_tests_run_with_the_least_python_that_is_asked_for_and_with_later_ones() -> None:
    job = yaml.safe_load((ROOT / ".github/workflows/pull-request.yml").read_text("utf-8"))["jobs"]["test"]
    pythons = job["strategy"]["matrix"]["python"]
    least = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"]
    assert (f">={pythons[0]}", len(pythons)) == (least, 3)
    assert job["steps"][1]["with"]["python-version"] == "${{ matrix.python }}"
