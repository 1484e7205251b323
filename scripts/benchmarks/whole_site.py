"""How long everything takes here: run, check, render, build and serve, on a copy of this project."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.benchmarks.timing import timed

GOALS = {
    "all examples from nothing": 1800.0,
    "site, nothing changed": 10.0,
    "serve: site visible": 15.0,
    "serve: edit of a card visible": 2.0,
}
"""Seconds on two CPU cores."""


def measure(examples: bool) -> None:
    """Print one line each; with `examples`, all examples run from nothing, else the copy takes over the runs there are."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        _copy(Path.cwd(), copy, with_runs=not examples)
        if examples:
            _row("all examples from nothing", _seconds(copy, "run"))
        _row("check of all cards", _seconds(copy, "check"))
        _row("render, from nothing", _seconds(copy, "render"))
        _row("render, nothing changed", _seconds(copy, "render"))
        _row("build, from nothing", _seconds(copy, "build"))
        print("what is stale is made first ...", file=sys.stderr, flush=True)
        for _ in range(2):
            unchanged = sum(_seconds(copy, command) for command in ("run", "count", "build"))
        _row("site, nothing changed", unchanged)
        with served(copy, copy) as (address, started):
            card = min((copy / "model_cards").glob("[!_]*.yml"))
            page = f"{address}models/{card.stem}/"
            seconds_to_see("Edit this card", page)
            _row("serve: site visible", time.monotonic() - started)
            for i in range(3):
                mark = f"benchmark mark {i}"
                card.write_text(card.read_text("utf-8").replace("purpose: ", f"purpose: {mark} ", 1), "utf-8")
                _row("serve: edit of a card visible", seconds_to_see(mark, page))


def _copy(source: Path, copy: Path, with_runs: bool) -> None:
    left_out = [".git", ".venv", "site", ".snakemake", "serve", "traces.json", *([] if with_runs else ["runs"])]
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*left_out, "__pycache__", ".*_cache"))


def _row(what: str, seconds: float) -> None:
    goal = f"   goal {GOALS[what]:g}" if what in GOALS else ""
    print(f"{what:<32}{seconds:8.2f} s{goal}", flush=True)


def _seconds(folder: Path, *command: str) -> float:
    return timed([sys.executable, "-m", "scripts", *command], folder, {"PYTHONPATH": str(folder)}).seconds


@contextmanager
def served(folder: Path, code: Path) -> Iterator[tuple[str, float]]:
    """The project in `folder`, served by the scripts of `code`: its address, and when it was started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    command = [sys.executable, "-m", "scripts", "serve", "--no-run", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    server = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        yield f"http://127.0.0.1:{port}/", started
    finally:
        server.terminate()
        server.wait()


def seconds_to_see(text: str, address: str, limit: float = 120.0) -> float:
    """Seconds until a page holds a text.

    Raises:
        TimeoutError: it does not within the limit.
    """
    started = time.monotonic()
    while text not in _get(address):
        if time.monotonic() - started > limit:
            raise TimeoutError(f"{address} does not show {text!r} within {limit:g} s")
        time.sleep(0.02)
    return time.monotonic() - started


def _get(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=30) as response:
            return str(response.read(), "utf-8")
    except (urllib.error.URLError, TimeoutError):
        return ""
