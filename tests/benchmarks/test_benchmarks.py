"""The projects that the benchmarks make are sound, and what they measure is what a user gets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from conftest import ROOT, needs_chromium

from scripts.benchmarks import examples, projects
from scripts.benchmarks.search import serving
from scripts.benchmarks.timing import timed
from scripts.project import Project
from scripts.site.build import build
from scripts.site.gather import checked_library, gather
from scripts.site.render import render

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.mark.parametrize("like_ours", [False, True])
def test_made_cards_have_no_error(like_ours: bool, tmp_path: Path) -> None:
    projects.with_cards(tmp_path / "project", ROOT, 40, like_ours)
    library, problems = checked_library(Project(tmp_path / "project"), {})
    assert len(library.cards) == 40
    assert [problem for problem in problems if problem.severity == "error"] == []


@pytest.mark.slow
def test_a_changed_helper_is_seen_on_the_pages_of_all_scripts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    examples.compare(tmp_path, 2, 0, 2, None)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    ours = next(row for row in rows if row[:2] == ["this", "project"])
    running = next(row for row in rows if row[:2] == ["running", "alone"])
    assert ours[-1] == "yes"
    assert all(float(part) < float(whole) for part, whole in zip(running[2:], ours[2:-1], strict=True))


def test_a_command_that_fails_says_what_it_printed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit status 3\nno luck"):
        timed(["sh", "-c", "echo no luck; exit 3"], tmp_path)


def test_the_seconds_and_the_memory_are_those_of_the_command(tmp_path: Path) -> None:
    large = bytes(range(256)) * 2_000_000  # of this process, which it must not be charged with
    done = timed(["python3", "-c", "b = bytes(range(256)) * 1_200_000; import time; time.sleep(0.2)"], tmp_path)
    del large
    assert done.seconds > 0.2
    assert 300 < done.peak_mb < 400


@pytest.fixture
def without_search_plugin(tmp_path: Path) -> Project:
    """A site of four cards whose mkdocs.yml has no search plugin."""
    project = Project(tmp_path / "project")
    projects.with_cards(project.root, ROOT, 4)
    settings = yaml.safe_load((project.root / "mkdocs.yml").read_text("utf-8"))
    (project.root / "mkdocs.yml").write_text(yaml.safe_dump({**settings, "plugins": []}, sort_keys=False), "utf-8")
    render(project, gather(project))
    assert build(project)
    return project


@needs_chromium
def test_without_the_search_plugin_pagefind_finds_a_card(without_search_plugin: Project, browser: Browser) -> None:
    assert not (without_search_plugin.site / "search").exists()
    page = browser.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    with serving(without_search_plugin.site) as address:
        page.goto(f"{address}about/")
        page.keyboard.press("/")
        page.locator("#search input").press_sequentially("street number 2")
        hit = page.locator("#search .pagefind-ui__result-link").first
        hit.wait_for()
        assert hit.inner_text() == "Model 2"
        page.keyboard.press("Escape")
        assert page.locator("#search").is_hidden() or page.locator("#search input").input_value() == ""
        assert told == []
        page.close()


@pytest.mark.slow
def test_a_failing_pagefind_leaves_the_last_good_site_untouched(
    without_search_plugin: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (without_search_plugin.site / "index.html").read_bytes()
    changed = without_search_plugin.root / "docs" / "about" / "index.md"
    changed.write_text(changed.read_text("utf-8") + "\nNew.\n", "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(_broken_pagefind(without_search_plugin.root)))
    with pytest.raises(RuntimeError, match="pagefind failed, the last good site is untouched"):
        build(without_search_plugin)
    assert (without_search_plugin.site / "index.html").read_bytes() == before


def _broken_pagefind(root: Path) -> Path:
    (root / "broken").mkdir()
    (root / "broken" / "pagefind.py").write_text("raise SystemExit('no index')\n", "utf-8")
    return root / "broken"
