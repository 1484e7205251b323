"""One smoke run of each example with its claims, as a script, shared by all tests that read its record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from once import once

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """slug -> the record of ``python examples/<slug>.py --claims --preset smoke``, with its folder as "out"."""
    records: dict[str, dict[str, Any]] = {}

    def run(slug: str, out: Path) -> None:
        arguments = ["--claims", "--preset", "smoke", "--device", "cpu", "--out", str(out)]
        done = subprocess.run(
            [sys.executable, "-W", "error::FutureWarning", str(EXAMPLES / f"{slug}.py"), *arguments],
            capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]

    def of(slug: str) -> dict[str, Any]:
        if slug not in records:
            out = once(tmp_path_factory, slug, partial(run, slug))
            records[slug] = json.loads((out / "record.json").read_text("utf-8")) | {"out": out}
        return records[slug]

    return of
