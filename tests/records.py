"""A record of each example with its experiments, shared by all tests that read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from forked import run_script
from once import once

from scripts.project import Project
from scripts.runs.state import state, target

PROJECT = Project(Path(__file__).resolve().parents[1])


@pytest.fixture(scope="session")
def record_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """slug -> the record, with its folder as "out", of a run that is up to date, quick or better, or of a smoke run."""
    records: dict[str, dict[str, Any]] = {}

    def run(slug: str, out: Path) -> None:
        arguments = ("--claims", "--preset", "smoke", "--device", "cpu", "--out", str(out))
        done = run_script(PROJECT.examples / f"{slug}.py", *arguments, told=out.parent, HF_HUB_OFFLINE="1")
        assert done.returncode == 0, done.stderr[-3000:]

    def of(slug: str) -> dict[str, Any]:
        if slug not in records:
            there = state(PROJECT, target(PROJECT, slug, "quick", "cpu"))
            out = (there.status == "ok" and there.folder) or once(tmp_path_factory, slug, partial(run, slug))
            records[slug] = json.loads((out / "record.json").read_text("utf-8")) | {"out": out}
        return records[slug]

    return of
