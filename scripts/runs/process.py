"""A process with all that it starts: they end when it ends, at its limit, and with the command that started it.

A group of processes is not enough, since a child may leave it: so each process is known by a mark in its environment, which
its children inherit. Systems without /proc have the group alone.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAME = "EXAMPLE_PROCESSES"
"""Of the variable that holds the marks."""

PATIENCE = 10.0
"""Seconds for processes that are asked to end, before they are made to; and then until they are given up."""

_under_way: dict[str, tuple[subprocess.Popen[Any], bool]] = {}
"""By mark; what a thread still waits for when this process ends, ends too."""


def end_on_signals() -> None:
    """Let TERM and HUP end this process as an exception, so that what it started ends with it; unless it ignores them."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _leave)


def _leave(number: int, _: object) -> None:
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # a second one must not disturb the ending
    sys.exit(128 + number)


def run(
    command: Sequence[str], environment: Mapping[str, str], limit: float | None = None, **settings: Any
) -> int | None:
    """The exit status, or None if the limit came first; whatever the process started is gone then, however this ends.

    With a limit it has a session of its own, and is killed. Without, it is asked to end, and has some time for that.
    """
    mark = uuid.uuid4().hex
    marks = ",".join(filter(None, [environment.get(NAME), mark]))
    apart = limit is not None
    process = subprocess.Popen(command, env={**environment, NAME: marks}, start_new_session=apart, **settings)
    _under_way[mark] = process, apart
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(mark)


def _end(mark: str) -> None:
    process, apart = _under_way.pop(mark)
    if not apart and process.poll() is None:
        _ask(process, mark)
    _kill(process, mark, apart)


@atexit.register
def _end_all() -> None:
    for mark in list(_under_way):
        _end(mark)


def _ask(process: subprocess.Popen[Any], mark: str) -> None:
    """TERM to the process and to all that it started, and time to follow."""
    for pid in {process.pid, *_marked(mark)}:
        _send(pid, signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    while (process.poll() is None or _marked(mark)) and time.monotonic() < until:
        time.sleep(0.05)


def _kill(process: subprocess.Popen[Any], mark: str, group: bool) -> None:
    if group:
        with contextlib.suppress(OSError):  # all of them have ended
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()
    until = time.monotonic() + PATIENCE
    while (left := _marked(mark)) and time.monotonic() < until:  # one of them may have started another meanwhile
        for pid in left:
            _send(pid, signal.SIGKILL)
        time.sleep(0.01)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):  # it has ended
        os.kill(pid, number)


def _marked(mark: str) -> list[int]:
    """The processes that live with a mark; this one has none of its own making."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # of another user, or ended
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found
