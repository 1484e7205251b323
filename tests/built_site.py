"""The site of this project, built once and served to all tests that look at it in a browser."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from once import once

from scripts.benchmarks.search import serving
from scripts.project import Project
from scripts.runs.state import states

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Response

ROOT = Path(__file__).resolve().parents[1]

TEMPLATES = {
    "home": "", "models": "models/", "model": "models/unet/", "choose": "choose/?task=object+detection&use=research",
    "compare": "compare/?m=detr,mask-rcnn,mask-dino", "tasks": "tasks/", "lineage": "lineage/",
    "numbers": "numbers/", "benchmark": "numbers/ap-on-coco-val2017/", "scaling": "scaling/", "charts": "charts/",
    "detectors": "detectors/", "licensing": "licensing/", "evidence": "evidence/", "examples": "examples/",
    "example": "examples/unet/", "glossary": "glossary/", "notes": "notes/", "hand-written": "about/evidence/",
    "reference": "reference/lab/", "downloads": "downloads/", "pair": "compare/mask-rcnn-vs-mask-dino/",
    "photographs": "photographs/",
}  # fmt: skip
"""A page of each template."""

NO_PART_OF_THE_SITE = ("benchmarks", "cache", "lighthouse", "logs", "peers", "site.new", "site.sha256", "tools")
"""What lies in `build/` and is no part of any page."""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of this project, built in a copy of it: with the runs that are there, or else with smoke runs."""
    return once(tmp_path_factory, "site", _build) / "site"


def _build(folder: Path) -> None:
    from conftest import copy_of_sources  # which loads this module

    copy = copy_of_sources(folder)
    are_run = all(state.status == "ok" for state in states(Project(ROOT), "quick", "cpu").values())
    preset = "quick" if are_run else "smoke"
    left = {*NO_PART_OF_THE_SITE, *(() if are_run else ("runs",))}

    def ignored(folder: str, names: list[str]) -> set[str]:
        half = {name for name in names if name.endswith(".part")}  # another test may be writing there
        return half | (left & set(names) if Path(folder) == ROOT / "build" else set())

    (ROOT / "build").mkdir(exist_ok=True)
    shutil.copytree(ROOT / "build", copy / "build", ignore=ignored)
    for command in ("run", "build"):
        done = subprocess.run(
            [sys.executable, "-m", "scripts", command, "--preset", preset, "--device", "cpu"],
            cwd=copy, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def address(built: Path) -> Iterator[str]:
    with serving(built) as address:
        yield address


FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""Ends when what follows a size has followed it."""


def arrive(page: Page, address: str) -> Response | None:
    """Goes to a page until it has loaded, nothing is on its way any more, and what follows a size has followed it.

    The last two alone do not say it: nothing is on its way, too, where a busy machine has not read the page yet.
    """
    response = page.goto(address, wait_until="load")
    page.wait_for_load_state("networkidle")
    page.evaluate(FRAMES)
    return response


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()
