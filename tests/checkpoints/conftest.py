"""Caches of the hub and of torch for one test, and a photograph to try."""

from __future__ import annotations

from pathlib import Path

import pytest


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
