"""Scripts that need torch, each in a process forked from one that has imported it, since that takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PRELOADED = ["torch", "torchvision", "torch._dynamo", "scipy.optimize", "matplotlib.pyplot"]
"""What most examples import, and what starts no threads that a fork would lose."""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(PRELOADED)


@dataclass(frozen=True)
class Ended:
    """How a script ended, and what it printed and told on its error stream."""

    returncode: int | None
    stdout: str
    stderr: str


def run_script(script: Path, *arguments: str, told: Path, **environment: str) -> Ended:
    """Run a script as `python script arguments` would; warnings of the future are errors.

    Args:
        script: its file.
        *arguments: of its command line.
        told: a folder for what it prints.
        **environment: variables beside those of this process.
    """
    streams = tuple(told / f"{script.stem}.{name}" for name in ("stdout", "stderr"))
    process = _server.Process(target=_run, args=(script, arguments, {**os.environ, **environment}, streams))
    process.start()
    process.join()
    return Ended(process.exitcode, *(path.read_text("utf-8") for path in streams))


def _run(script: Path, arguments: tuple[str, ...], environment: Mapping[str, str], streams: tuple[Path, Path]) -> None:
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(environment)
    warnings.filterwarnings("error", category=FutureWarning)
    sys.argv, sys.path[0:0] = [str(script), *arguments], [str(script.parent)]
    runpy.run_path(str(script), run_name="__main__")


class Forked:
    """A forked process, as `subprocess.Popen` shows one to Jupyter."""

    stdin = stdout = stderr = None

    def __init__(self, process: Any) -> None:
        self._process, self.pid = process, process.pid

    def poll(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def wait(self) -> int | None:
        self._process.join()
        return self.poll()


def launch_kernel(command: Sequence[str], *, env: Mapping[str, str], cwd: str, **_: Any) -> Forked:
    """In place of Jupyter's own, which starts each kernel from nothing: ``command`` is python -m ipykernel_launcher ..."""
    here, there = _server.Pipe(duplex=False)
    process = _server.Process(target=_be_kernel, args=(there, command[2:], env, cwd))
    process.start()
    here.recv()
    return Forked(process)


def _be_kernel(there: Connection, arguments: Sequence[str], environment: Mapping[str, str], cwd: str) -> None:
    os.setsid()  # Jupyter kills the whole group
    there.send("apart")
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = list(arguments)
    runpy.run_module(sys.argv[0], run_name="__main__")
