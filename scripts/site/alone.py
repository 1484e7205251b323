"""One command at a time writes the pages and the site of a project."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator

from scripts.project import Project


@contextlib.contextmanager
def alone(project: Project) -> Iterator[None]:
    """Wait until no other command writes. The lock is on the folder of the project, and ends with the process that holds it.

    Some network disks know no such locks: there the command goes on.
    """
    folder = os.open(project.root, os.O_RDONLY)
    try:
        _lock(folder)
        yield
    finally:
        os.close(folder)


def _lock(folder: int) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another command is writing the pages; this one goes on after it", file=sys.stderr, flush=True)
        fcntl.flock(folder, fcntl.LOCK_EX)
    except OSError:
        pass
