"""One command at a time writes the pages and the site of a project."""

from __future__ import annotations

import contextlib
import fcntl
import sys
from collections.abc import Iterator

from scripts.project import Project


@contextlib.contextmanager
def alone(project: Project) -> Iterator[None]:
    """Wait until no other command writes; one that was killed writes no more. Some network disks know no locks: go on there."""
    project.build.mkdir(parents=True, exist_ok=True)
    with (project.build / "site.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another command is writing the pages; this one goes on after it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
