"""One smoke run of each example with its claims, as a script, shared by all tests that read its record."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from forked import run_script
from once import once

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """slug -> the record of ``python examples/<slug>.py --claims --preset smoke``, with its folder as "out"."""
    records: dict[str, dict[str, Any]] = {}

    def run(slug: str, out: Path) -> None:
        arguments = ("--claims", "--preset", "smoke", "--device", "cpu", "--out", str(out))
        done = run_script(EXAMPLES / f"{slug}.py", *arguments, told=out.parent, HF_HUB_OFFLINE="1")
        assert done.returncode == 0, done.stderr[-3000:]

    def of(slug: str) -> dict[str, Any]:
        if slug not in records:
            out = once(tmp_path_factory, slug, partial(run, slug))
            records[slug] = json.loads((out / "record.json").read_text("utf-8")) | {"out": out}
        return records[slug]

    return of
