"""What is dear is kept from one command to the next, by the hash of what it is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from scripts.files import sha256, write


def kept(folder: Path, made_of: str, make: Callable[[], str]) -> str:
    """What `make` returns, from the file in `folder` that is named by the hash of `made_of` where it is there."""
    return kept_bytes(folder, made_of, lambda: make().encode()).decode()  # not as text, which would change line ends


def kept_bytes(folder: Path, made_of: str, make: Callable[[], bytes]) -> bytes:
    """The same of bytes."""
    path = folder / sha256(made_of.encode())[:24]
    try:
        return path.read_bytes()
    except OSError:
        made = make()
        write(path, made)
        return made


@functools.cache
def version(package: str) -> str:
    """Of an installed package, for what is kept of its work."""
    return metadata.version(package)
