"""Work spread over the cores: forked processes see all that is loaded already, and hand back only what they made."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Made = TypeVar("Made")

FEWEST = 16
"""Calls that are worth starting processes for."""
CHUNKS = 100
"""That the calls are handed out in: so many that all processes end at about the same moment."""
END_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux."""

_calls: Sequence[Callable[[], Any]] = ()


def call_all(calls: Sequence[Callable[[], Made]], jobs: int) -> list[Made]:
    """What each of the calls returns, in their order; `jobs` at a time where forking is safe, else one after the other.

    What a call returns has to be picklable; what it changes in memory elsewhere is lost. It must not need a library that
    runs threads of its own, and that this process has used before: they are not there after a fork.
    """
    if jobs == 1 or len(calls) < FEWEST or sys.platform != "linux":  # macOS forks, but its libraries break after it
        return [call() for call in calls]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, context, _take, (calls,)) as pool:
        return list(pool.map(_call, range(len(calls)), chunksize=1 + len(calls) // CHUNKS))


def _take(calls: Sequence[Callable[[], Any]]) -> None:
    global _calls
    _calls = calls
    ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)  # else a process whose parent was killed waits for ever


def _call(number: int) -> Any:
    return _calls[number]()
