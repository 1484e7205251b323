"""What a text was made from: it is made anew only when a card or a run that it read has changed.

While a text is made, the mappings that it reads its cards and runs from note which it took (`Watched`). The note is kept
with the text's hash, so that the next command can tell, card by card, what still is as it would be made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")
Texts = Mapping[str, str]
"""By path below docs/."""

ALL = "*"
"""The name of every entry together: whoever goes through them has read also that there are no more."""

_readers: list[set[str]] = []


def note(*names: str) -> None:
    """Whatever is being made now has read these."""
    for reader in _readers:
        reader.update(names)


@contextmanager
def reading() -> Iterator[set[str]]:
    """The names that are read inside."""
    names: set[str] = set()
    _readers.append(names)
    try:
        yield names
    finally:
        _readers.pop()


class Watched(Mapping[str, Value]):
    """A mapping that notes which of its entries are read, and of those that are missed too; `suffix` ends their names."""

    def __init__(self, values: Mapping[str, Value], suffix: str = "") -> None:
        self._values, self._suffix = values, suffix

    def __getitem__(self, name: str) -> Value:
        note(name + self._suffix)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        note(ALL)
        return iter(self._values)

    def __len__(self) -> int:
        note(ALL)
        return len(self._values)


class Lazy(dict[str, Value], Generic[Value]):
    """Values made when they are first asked for; who asks later has read all that they were made from."""

    def __init__(self, make: Callable[[str], Value]) -> None:
        super().__init__()
        self._make = make
        self._read: dict[str, set[str]] = {}

    def __missing__(self, name: str) -> Value:
        with reading() as self._read[name]:
            self[name] = self._make(name)
        return self[name]

    def __getitem__(self, name: str) -> Value:
        value = super().__getitem__(name)
        note(*self._read[name])
        return value


class Traces:
    """The texts of one project that were made before, in `docs`, with what each group of them was made from.

    Args:
        path: where the notes lie from one command to the next.
        docs: the folder of the texts.
        surroundings: digest of all that every text depends on; another one, and nothing is kept.
        digests: of all that may be read, by its name: of a card with its run, or of a script.
    """

    def __init__(self, path: Path, docs: Path, surroundings: str, digests: Mapping[str, str]) -> None:
        self._docs, self._surroundings = docs, surroundings
        self._digests = {**digests, ALL: sha256(json.dumps(digests, sort_keys=True).encode())}
        known = read_json(path)
        self._known: dict[str, Any] = known.get("groups", {}) if known.get("surroundings") == surroundings else {}
        self._groups: dict[str, Any] = {}

    def kept(self, name: str) -> Collection[str] | None:
        """The paths of a group of texts that lie in `docs` as they would be made again; None if they do not."""
        group = self._known.get(name)
        if group is None or not self._is_current(group):
            return None
        self._groups[name] = group
        return list(group["texts"])

    def add(self, name: str, texts: Mapping[str, str], read: Iterable[str]) -> None:
        """Note the digests of a group of texts, by path, and what was read while they were made."""
        self._groups[name] = {"read": {slug: self._digests.get(slug, "") for slug in sorted(read)}, "texts": texts}

    def _is_current(self, group: Mapping[str, Any]) -> bool:
        if any(self._digests.get(slug, "") != digest for slug, digest in group["read"].items()):
            return False
        return all(_sha256_of(self._docs / path) == digest for path, digest in group["texts"].items())

    def text(self) -> str:
        """The notes, to be written where they were read when all texts are."""
        return json.dumps({"surroundings": self._surroundings, "groups": self._groups})


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha256_of(path: Path) -> str:
    try:
        return sha256(path.read_bytes())
    except OSError:
        return ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
