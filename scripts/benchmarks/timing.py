"""Seconds and memory of a command, and the tables that they are printed in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# A process starts with the peak of the one that it was forked from, so a small one stands between.
STARTER = """
import json, os, subprocess, sys, time
started = time.monotonic()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
report = [time.monotonic() - started, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]
open(sys.argv[1], "w").write(json.dumps(report))
"""


@dataclass(frozen=True)
class Timed:
    """What a command cost."""

    seconds: float
    peak_mb: float
    """Of the largest process among it and its children."""


def timed(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> Timed:
    """Run a command in a folder and wait for it.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    log, report = folder / "benchmark.log", folder / "benchmark.json"
    with log.open("wb") as stream:
        subprocess.run(
            [sys.executable, "-S", "-c", STARTER, str(report), *command],
            cwd=folder, stdout=stream, stderr=subprocess.STDOUT, check=True, env={**os.environ, **(environment or {})},
        )  # fmt: skip
    seconds, peak, code = json.loads(report.read_text("utf-8"))
    printed = log.read_text("utf-8", errors="replace")
    log.unlink()
    report.unlink()
    if code:
        raise RuntimeError(f"{' '.join(command)}: exit status {code}\n{printed[-3000:]}")
    per_mb = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts in bytes, Linux in kB
    return Timed(seconds, peak / per_mb)


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
