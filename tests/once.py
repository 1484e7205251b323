"""What takes long is made once, by whichever process of the tests needs it first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.files import alone


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder that `make` filled for all processes of this session of tests; one that failed is made again."""
    base = factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"once-{name}"
    place.mkdir(exist_ok=True)
    with alone(place, lambda: None):
        if not (place / "whole").exists():
            made = place / "half"
            shutil.rmtree(made, ignore_errors=True)
            make(made)
            made.rename(place / "whole")
    return place / "whole"
