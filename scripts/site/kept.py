"""What is dear is kept from one command to the next, by the hash of what it is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import metadata

from scripts.files import Dear
from scripts.files import kept as kept_in
from scripts.project import Project


def kept(project: Project, dear: Dear) -> str:
    """The text, from the file that is named by the hash of what it is made of, where that is there."""
    made = kept_bytes(project, dear.made_of, lambda: dear.make().encode())
    return made.decode()  # not read as text, which would change line ends


def kept_bytes(project: Project, made_of: str, make: Callable[[], bytes]) -> bytes:
    """The same of bytes."""
    return kept_in(project.kept, made_of.encode(), make)


@functools.cache
def version(package: str) -> str:
    """Of an installed package, for what is kept of its work."""
    return metadata.version(package)
