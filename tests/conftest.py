"""Fixtures: a tiny project of two cards and two examples that need no torch, fresh for each test."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from once import once

from scripts.__main__ import main
from scripts.benchmarks.search import CHROMIUM
from scripts.project import Project
from scripts.site.build import build
from scripts.site.gather import gather
from scripts.site.render import generated, render

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
TINY = TESTS / "tiny"
BROKEN = TESTS / "broken"

# A second conftest.py in a room would hide this one from the tests that import it.
pytest_plugins = ["records", "built_site", "clusters"]

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # no test depends on how busy it is

if CHROMIUM is None and os.environ.get("CI"):
    pytest.fail("there is no Chromium: .ci/run installs Debian's package chromium-headless-shell", pytrace=False)
no_chromium = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium here, so no page was tested in a browser: apt-get install chromium-headless-shell",
)


def needs_chromium(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test of pages in a browser."""
    return pytest.mark.browser(no_chromium(test))


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


WITH_TORCH = (TESTS / "examples", TESTS / "lab")
"""Folders whose tests all need torch; elsewhere a module or a test has the mark."""
MARKED = re.compile(r"^pytestmark = .*pytest\.mark\.torch\b", re.MULTILINE)


def without_torch(config: pytest.Config) -> bool:
    """Whether tests that need torch are left out, as `make test-fast` does."""
    return "not torch" in config.option.markexpr


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what needs torch by its folder."""
    if any(item.path.is_relative_to(folder) for folder in WITH_TORCH):
        item.add_marker("torch")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where tests that need torch are left out, their modules are not imported: they would import torch."""
    if not without_torch(config):
        return None
    marked = collection_path.suffix == ".py" and MARKED.search(collection_path.read_text("utf-8"))
    return True if marked or collection_path in WITH_TORCH else None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Raises UsageError where a module of tests imports torch and is not marked."""
    if without_torch(session.config) and "torch" in sys.modules:
        raise pytest.UsageError("a module of tests imports torch: it needs the line pytestmark = pytest.mark.torch")


@pytest.fixture(autouse=True)
def no_torch_unsaid(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that imports torch has to say so by its mark."""
    yield
    assert not without_torch(request.config) or "torch" not in sys.modules, "it needs pytest.mark.torch"


@pytest.fixture(autouse=True)
def no_shared_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test takes runs from a cache of the machine that it is on."""
    monkeypatch.delenv("RUN_CACHE", raising=False)


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is dear, by the hash of what it is made of, for all tests."""
    return once(tmp_path_factory, "kept", Path.mkdir)


@pytest.fixture
def tiny(tmp_path: Path, kept: Path) -> Project:
    """A copy of the tiny project."""
    return copy_of_tiny(tmp_path / "tiny", kept)


def copy_of_tiny(root: Path, kept: Path) -> Project:
    """The tiny project at `root`. What is kept is a link, which a copy of the copy has to keep: others write there."""
    project = Project(root)
    shutil.copytree(TINY, root, ignore=shutil.ignore_patterns("__pycache__"))
    project.docs.mkdir()
    project.build.mkdir()
    project.kept.symlink_to(kept)
    return project


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory, kept: Path) -> Project:
    """The tiny project, run and rendered: to be read."""

    def make(root: Path) -> None:
        project = copy_of_tiny(root, kept)
        with contextlib.chdir(project.root):
            assert (main(["run"]), main(["render"])) == (0, 0)

    return Project(once(tmp_path_factory, "ready", make))


@pytest.fixture
def ran(tiny: Project, ready: Project) -> Project:
    """The tiny project with its runs."""
    shutil.copytree(ready.runs, tiny.runs)
    return tiny


@pytest.fixture
def command(tiny: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Calls `python -m scripts ...` in the tiny project, in this process."""
    monkeypatch.chdir(tiny.root)
    # To fork a process of tests, with all that they imported, takes longer.
    monkeypatch.setattr("scripts.__main__.CORES", 1)

    def call(*arguments: str) -> Done:
        capfd.readouterr()
        code = main(arguments)
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return call


def heed_signals() -> None:
    """For `preexec_fn`: a command ends by signals as from a terminal, also where these tests run behind `nohup` or `&`."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def edit(path: Path, old: str, new: str) -> None:
    """Replace a piece of a file that has to be there once."""
    text = path.read_text("utf-8")
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new), "utf-8")


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy_of_sources(to: Path) -> Path:
    """What the site of this project is made from, without anything that was made; no git is asked, for there may be none."""

    def made(folder: str, names: list[str]) -> set[str]:
        return {"__pycache__", *(generated() if Path(folder) == ROOT / "docs" else ())} & set(names)

    for name in ("docs", "examples", "measurements", "model_cards", "overrides", "scripts"):
        shutil.copytree(ROOT / name, to / name, ignore=made)
    for path in (ROOT / "mkdocs.yml", *ROOT.glob("requirements*.txt")):
        shutil.copy(path, to)
    return to


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright  # a test of cards needs no browser

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def themed(tiny: Project) -> Project:
    """The tiny project with this project's theme."""
    shutil.copytree(ROOT / "overrides", tiny.root / "overrides")
    (tiny.docs / "assets").mkdir()
    for name in ("disk.js", "find.js"):  # which every page of the theme loads
        shutil.copy(ROOT / "docs/assets" / name, tiny.docs / "assets")
    edit(tiny.root / "mkdocs.yml", '"https://example.org/tiny"', '"https://example.org/tiny", scope: /')
    edit(tiny.root / "mkdocs.yml", "font: false", "font: false, custom_dir: overrides")
    return tiny


@pytest.fixture
def guarded(themed: Project) -> Project:
    """The tiny project with this project's theme, built."""
    render(themed, gather(themed))
    assert build(themed)
    return themed


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the caches `hub` (of Hugging Face) and `torch`; nothing is asked of a network."""
    from huggingface_hub import constants

    hub = tmp_path / "caches/hub"
    hub.mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "caches/torch"))
    return tmp_path / "caches"


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A cat, smaller than it was."""
    from PIL import Image
    from skimage import data

    path = tmp_path / "picture.jpg"
    Image.fromarray(data.cat()).resize((120, 80)).save(path)
    return path
