"""Seconds and memory of a command, and the tables that they are printed in."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Timed:
    """What a command cost."""

    seconds: float
    peak_mb: float
    """Of the largest process among it and its children; at least that of the one that started it."""


def timed(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> Timed:
    """Run a command in a folder and wait for it.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    log = folder / "benchmark.log"
    started = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=folder, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    printed = log.read_text("utf-8", errors="replace")
    log.unlink()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {process.returncode}\n{printed[-3000:]}")
    per_mb = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts in bytes, Linux in kB
    return Timed(seconds, usage.ru_maxrss / per_mb)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table as text, whose columns line up."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    print(f"\n{title}")
    for name, *values in cells:
        columns = [
            name.ljust(widths[0]),
            *(value.rjust(width) for value, width in zip(values, widths[1:], strict=True)),
        ]
        print("  ".join(columns), flush=True)


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
