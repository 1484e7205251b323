"""The machine that this runs on: its cores, its accelerator, and its failures told in a line with what to do."""

from __future__ import annotations

import ctypes
import errno
import io
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import TypeVar, cast

Made = TypeVar("Made")

ENOUGH = 8
"""Calls that are worth a process."""

FEWEST = 2 * ENOUGH
"""Calls that are worth starting processes for."""

CHUNKS = 100
"""That the calls are handed out in: so many that all processes end at about the same moment."""

END_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux."""

_calls: Sequence[Callable[[], object]] = ()


def cores() -> int:
    """Those that this process may use: fewer than the machine has, in a container or a job of a cluster."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def call_all(calls: Sequence[Callable[[], Made]], jobs: int) -> list[Made]:
    """What each of the calls returns, in their order; `jobs` at a time where forking is safe, else one after the other.

    What a call returns has to be picklable; what it changes in memory elsewhere is lost. It must not need a library that
    runs threads of its own, and that this process has used before: they are not there after a fork.
    """
    if jobs == 1 or len(calls) < FEWEST or sys.platform != "linux":  # macOS forks, but its libraries break after it
        return [call() for call in calls]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(jobs, len(calls) // ENOUGH), context, _take, (calls,)) as pool:
        return cast("list[Made]", [*pool.map(_call, range(len(calls)), chunksize=1 + len(calls) // CHUNKS)])


def _take(calls: Sequence[Callable[[], object]]) -> None:
    global _calls
    _calls = calls
    ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)  # else a process whose parent was killed waits for ever


def _call(number: int) -> object:
    return _calls[number]()


WHOLE = "The last good site and all finished runs are as they were."

TOLD_ERRORS = {
    errno.ENOSPC: f"The disk is full: make room and run the command again. {WHOLE}",
    errno.EDQUOT: f"Your share of the disk is full: make room and run the command again. {WHOLE}",
    errno.EACCES: f"This user may not write there. {WHOLE}",
    errno.EROFS: f"Nothing can be written there. {WHOLE}",
}


def told(command: Callable[[], int]) -> int:
    """The exit status of a command; 1, and a line on the error stream, if the machine fails it."""
    try:
        return command()
    except OSError as error:
        if error.errno not in TOLD_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"{where}{error.strerror}. {TOLD_ERRORS[error.errno]}", file=sys.stderr)
        return 1


UTF_8 = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}
"""Environment of a Python whose output this project reads, whatever the locale is."""


def speak_plainly() -> None:
    """Let a letter that the terminal does not know be printed as its number (`\\u2192`), not end the command; and Ctrl-C end
    it without a traceback, still by the signal, so that a shell does not go on with what comes next."""
    sys.excepthook = _tell
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


def device_class(asked: str) -> str:
    """`cpu`, `cuda` or `mps` for `auto`, without importing torch (the example itself asks torch)."""
    if asked != "auto":
        return asked
    smi = shutil.which("nvidia-smi")
    if smi and subprocess.run([smi, "-L"], capture_output=True, check=False).stdout.startswith(b"GPU"):
        return "cuda"
    return "mps" if platform.system() == "Darwin" and platform.machine() == "arm64" else "cpu"
