"""Files: written whole and only where their bytes change, by one command at a time; read as JSON, hashed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Dear:
    """A text that takes long to make: what it is made of, as a text, and what makes it."""

    made_of: str
    make: Callable[[], str]


Texts = Mapping[str, str | Dear]
"""By path below docs/."""


TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
"""What a terminal obeys: colours, moves of the cursor, titles of its window."""

UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Other controls, what turns the direction of writing, and what is no character at all."""


def printable(text: str) -> str:
    """What a program printed, as it may stand on a page or a terminal: its letters, spaces and line ends.

    What a terminal would obey is left out; of other controls the picture is shown, such as ␀.
    """
    lines = TERMINAL.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return UNPRINTABLE.sub(lambda match: chr(0x2400 + ord(match[0])) if match[0] < " " else "\ufffd", lines)


def printable_all(data: Any) -> Any:
    """The same JSON with all its texts printable."""
    if isinstance(data, dict):
        return {key: printable_all(value) for key, value in data.items()}
    if isinstance(data, list):
        return [printable_all(value) for value in data]
    return printable(data) if isinstance(data, str) else data


def sha256(content: bytes) -> str:
    """The digest of some bytes, in 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write(path: Path, content: bytes) -> bool:
    """Write a file whole, and only if its bytes change; says whether they did."""
    if path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # another process may write the same
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError:  # a full disk most of all: leave no half file behind
        part.unlink(missing_ok=True)
        raise
    return True


def kept(folder: Path, made_of: bytes, make: Callable[[], bytes]) -> bytes:
    """What is dear to make, from the file that is named by the hash of what it is made of, where that is there.

    Where nothing can be written it is made each time: `check` can do without.
    """
    path = folder / sha256(made_of)[:24]
    try:
        return path.read_bytes()
    except OSError:
        made = make()
        with contextlib.suppress(OSError):
            write(path, made)
        return made


@contextlib.contextmanager
def alone(folder: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Go on once no other command holds the folder; `wait` says so where one does. The lock ends with the process.

    Some network disks know no such locks: there the command goes on.
    """
    held = os.open(folder, os.O_RDONLY)
    try:
        _lock(held, wait)
        yield
    finally:
        os.close(held)


def _lock(folder: int, wait: Callable[[], None]) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        wait()
        fcntl.flock(folder, fcntl.LOCK_EX)
    except OSError:
        pass
