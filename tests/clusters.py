"""What tests of runs on several machines share."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def has_plugin(name: str) -> bool:
    return importlib.util.find_spec(f"snakemake_{name}") is not None


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("RUN_CACHE", str(folder))
    return folder
