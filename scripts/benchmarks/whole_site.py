"""How long everything takes, on this machine: `python -m scripts.benchmark [--examples]` prints a table.

It works on a copy of the project in a temporary folder. With `--examples` all examples run there from nothing;
without, the copy takes over the runs there are.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

GOALS = {
    "all examples from nothing": 480.0,
    "site, nothing changed": 10.0,
    "serve: site visible": 15.0,
    "serve: edit of a card visible": 2.0,
}
"""Seconds on two CPU cores."""


def main() -> None:
    """Measure and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", action="store_true", help="run all examples from nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        _copy(Path.cwd(), copy, with_runs=not options.examples)
        if options.examples:
            _row("all examples from nothing", _seconds(copy, "run"))
        _row("check of all cards", _seconds(copy, "check"))
        _row("render, from nothing", _seconds(copy, "render"))
        _row("render, nothing changed", _seconds(copy, "render"))
        _row("build, from nothing", _seconds(copy, "build"))
        _row("site, nothing changed", sum(_seconds(copy, command) for command in ("run", "count", "build")))
        with _served(copy) as (address, started):
            page = f"{address}models/unet/"
            _wait(lambda: "U-Net" in _get(page))
            _row("serve: site visible", time.monotonic() - started)
            card = copy / "model_cards" / "unet.yml"
            for i in range(3):
                mark = f"benchmark mark {i}"
                card.write_text(card.read_text("utf-8").replace("purpose: ", f"purpose: {mark} ", 1), "utf-8")
                _row("serve: edit of a card visible", _wait(lambda mark=mark: mark in _get(page)))  # type: ignore[misc]


def _copy(source: Path, copy: Path, with_runs: bool) -> None:
    left_out = [".git", ".venv", "site", ".snakemake", "serve", *([] if with_runs else ["runs"])]
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*left_out, "__pycache__", ".*_cache"))


def _row(what: str, seconds: float) -> None:
    goal = f"   goal {GOALS[what]:g}" if what in GOALS else ""
    print(f"{what:<32}{seconds:8.2f} s{goal}", flush=True)


def _seconds(folder: Path, *command: str) -> float:
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "scripts", *command], cwd=folder, check=True, stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    return time.monotonic() - started


@contextmanager
def _served(folder: Path) -> Iterator[tuple[str, float]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    command = [sys.executable, "-m", "scripts", "serve", "--no-run", "--port", str(port)]
    server = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(folder)}
    )
    try:
        yield f"http://127.0.0.1:{port}/", started
    finally:
        server.terminate()
        server.wait()


def _get(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=30) as response:
            return str(response.read(), "utf-8")
    except urllib.error.URLError:
        return ""


def _wait(until: Callable[[], bool], limit: float = 120.0) -> float:
    """Seconds until something is so.

    Raises:
        TimeoutError: it is not so within the limit.
    """
    started = time.monotonic()
    while not until():
        if time.monotonic() - started > limit:
            raise TimeoutError(f"not within {limit:g} s")
        time.sleep(0.02)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
