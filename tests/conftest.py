"""Fixtures: a tiny project of two cards and two examples that need no torch, fresh for each test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.__main__ import main
from scripts.project import Project

ROOT = Path(__file__).resolve().parents[1]
TINY = Path(__file__).parent / "tiny"
BROKEN = Path(__file__).parent / "broken"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def tiny(tmp_path: Path) -> Project:
    """A copy of the tiny project."""
    root = tmp_path / "tiny"
    shutil.copytree(TINY, root, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "docs").mkdir()
    return Project(root)


@pytest.fixture
def command(tiny: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Calls `python -m scripts ...` in the tiny project, in this process."""
    monkeypatch.chdir(tiny.root)

    def call(*arguments: str) -> Done:
        capfd.readouterr()
        code = main(arguments)
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return call


def edit(path: Path, old: str, new: str) -> None:
    """Replace a piece of a file that has to be there once."""
    text = path.read_text("utf-8")
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new), "utf-8")
