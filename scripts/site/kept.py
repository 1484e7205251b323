"""What is dear is kept from one command to the next, by the hash of what it is made of."""

from __future__ import annotations

import functools
from importlib import metadata

from scripts.files import Dear, sha256, write
from scripts.project import Project


def kept(project: Project, dear: Dear) -> str:
    """The text, from the file that is named by the hash of what it is made of, where that is there."""
    path = project.build / "kept" / sha256(dear.made_of.encode())[:24]
    try:
        return path.read_bytes().decode()  # not as text, which would change line ends
    except OSError:
        text = dear.make()
        write(path, text.encode())
        return text


@functools.cache
def version(package: str) -> str:
    """Of an installed package, for what is kept of its work."""
    return metadata.version(package)
