"""The record of a run: what an example writes, read back only where every file of it is as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.files import sha256

Results = Mapping[str, Mapping[str, Any]]
"""Results of one run by name: {"values": [..], "mean", "std", "unit", "meaning", "exact", "experiment"}."""

RECORD_KEYS = {"schema", "slug", "preset", "device", "seeds", "seconds", "experiments", "results", "figures"}

FIGURE = re.compile(r"figures/[A-Za-z0-9_]+\.(light|dark)\.(svg|webp)")

SUMS = "SHA256SUMS"
"""In a run's folder: the digest of each of its files, in the form that `sha256sum --check` reads."""


def seal(folder: Path) -> None:
    """Write down what the files of a run are, so that `read_record` sees a later change of any."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256((folder / name).read_bytes())}  {name}\n" for name in names if name != SUMS]
    (folder / SUMS).write_text("".join(lines), "utf-8")


def is_sealed(folder: Path) -> bool:
    """Every file of a run is as it was when the run ended."""
    try:
        lines = (folder / SUMS).read_text("utf-8").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        return "record.json" in sums and all(
            sha256((folder / name).read_bytes()) == digest for name, digest in sums.items()
        )
    except (OSError, ValueError):
        return False


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of a finished run; None where there is none, or where one of its files is cut off, edited or gone."""
    return parse_record(path) if is_sealed(path.parent) else None


def parse_record(path: Path) -> dict[str, Any] | None:
    """A run record, or None where there is none, or where it is cut off or lacks a figure."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or not record.keys() >= RECORD_KEYS:
        return None
    try:
        drawn = [figure[scheme] for figure in record["figures"] for scheme in ("light", "dark")]
    except (TypeError, KeyError):
        return None
    inside = all(isinstance(name, str) and FIGURE.fullmatch(name) for name in drawn)
    return record if inside and all((path.parent / name).is_file() for name in drawn) else None
