"""Plain YAML from strangers: tags, anchors, and what is too large or too deep are refused before any of it is built."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from scripts.cards import problems
from scripts.cards.problems import UNREADABLE, CardError, Path_, Positions, Problem
from scripts.files import kept

MAX_BYTES = 500_000

MAX_DEPTH = 20

MAX_VALUES = 40_000

NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")
"""What YAML and a person read alike: no leading zero, underscore, colon, exponent or other base."""
TRUTH = {"true": True, "false": False}
"""The only words that are no text; YAML takes `yes`, `no`, `on` and `off` for the same."""

PLAIN_TAGS = {
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")
}


def read_yaml(text: str, path: str) -> tuple[Any, Positions]:
    """Plain data and the (line, column) of each value in it; a mapping's key stands for its value.

    Raises:
        CardError: not YAML, or YAML with tags, anchors, a duplicate key, a character that is not for reading, or too
            large, too deep or of too many values.
    """
    if len(text.encode()) > MAX_BYTES:
        raise CardError(too_large(path))
    try:
        reader = _Reader(text, path)
        return reader.document(), reader.positions
    except yaml.MarkedYAMLError as error:
        line, column = _place(error.problem_mark or error.context_mark)
        raise CardError(Problem(path, line, column, f"not YAML: {error.problem}")) from error
    except yaml.YAMLError as error:  # a character that YAML forbids has no mark
        raise CardError(Problem(path, 1, 1, f"not YAML: {' '.join(str(error).split())}")) from error


def kept_data(text: str, path: str, folder: Path) -> Any:
    """The data that `read_yaml` gives, kept in a folder by the text: it takes most of the time that a card takes.

    Raises:
        CardError: as `read_yaml`.
    """
    made_of = f"{_readers()}\n{text}".encode()
    return json.loads(kept(folder, made_of, lambda: json.dumps(read_yaml(text, path)[0]).encode()))


@functools.cache
def _readers() -> str:
    """What reads: these modules, and the library below them."""
    return "\n".join([yaml.__version__, *(Path(each).read_text("utf-8") for each in (__file__, problems.__file__))])


def too_large(path: str) -> Problem:
    return Problem(path, 1, 1, f"the file is larger than {MAX_BYTES:,} bytes; split the card")


def _place(mark: Any) -> tuple[int, int]:
    """Line and column from 1; PyYAML counts from 0."""
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


class _Reader:
    """Builds plain data from the parser's events in one pass: nothing that is refused is ever built."""

    def __init__(self, text: str, path: str) -> None:
        self.path = path
        self.positions: dict[Path_, tuple[int, int]] = {}
        self._next: Callable[[], Any] = yaml.CSafeLoader(text).get_event
        self._resolve: Callable[[type, str, tuple[bool, bool]], str] = yaml.resolver.Resolver().resolve

    def document(self) -> Any:
        """The one document of the file."""
        self._next()  # the start of the stream
        if isinstance(self._next(), yaml.StreamEndEvent):
            raise CardError(Problem(self.path, 1, 1, "the file is empty; start one with: python -m scripts new SLUG"))
        data = self._value(self._next(), ())
        self._next()  # the end of the document
        after = self._next()
        if not isinstance(after, yaml.StreamEndEvent):
            raise self._refusal(after, "a second document (---) starts here; a file holds one card")
        return data

    def _refusal(self, event: Any, message: str) -> CardError:
        return CardError(Problem(self.path, *_place(event.start_mark), message))

    def _value(self, event: Any, where: Path_) -> Any:
        if where not in self.positions:
            self.positions[where] = _place(event.start_mark)
        if event.anchor is not None:
            message = "anchors (&) and aliases (*) are not allowed in a card; write the value out"
            raise self._refusal(event, message)
        if event.tag not in (None, "!", *PLAIN_TAGS):
            raise self._refusal(event, f"tag {event.tag!r} is not allowed in a card; write plain YAML")
        if len(self.positions) > MAX_VALUES:
            raise self._refusal(event, f"more than {MAX_VALUES:,} values in one file; split the card")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if len(where) >= MAX_DEPTH:
            raise self._refusal(event, f"nested deeper than {MAX_DEPTH} levels")
        return self._mapping(where) if isinstance(event, yaml.MappingStartEvent) else self._sequence(where)

    def _sequence(self, where: Path_) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            values.append(self._value(event, (*where, len(values))))
        return values

    def _mapping(self, where: Path_) -> dict[str, object]:
        values: dict[str, object] = {}
        while not isinstance(key := self._next(), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent) or key.anchor is not None:
                raise self._refusal(key, "a key has to be a plain word")
            inner = (*where, self._readable(key))
            if inner in self.positions:
                raise self._refusal(key, f"the key {key.value!r} stands here a second time")
            self.positions[inner] = _place(key.start_mark)
            values[key.value] = self._value(self._next(), inner)
        return values

    def _readable(self, event: Any) -> str:
        """The text of a scalar, if a person can see all of it."""
        value: str = event.value
        if not value.isascii() or not value.isprintable():
            for character in UNREADABLE.findall(value):
                raise self._refusal(event, f"the character U+{ord(character):04X} is not allowed: nobody can see it")
        return value

    def _scalar(self, event: Any) -> Any:
        """A text as it stands in the file, true, false or nothing: what a number or a date means is the field's affair."""
        value = self._readable(event)
        tag = event.tag if event.tag not in (None, "!") else self._resolve(yaml.ScalarNode, value, event.implicit)
        kind = tag.rpartition(":")[2]
        if kind == "null":
            return None
        if kind == "bool" and value.lower() in TRUTH:
            return TRUTH[value.lower()]
        if kind in ("int", "float") and not NUMBER.fullmatch(value):
            told = (
                f"{value[:60]!r} is read as something else by YAML; write a number as 17, 42.10 or -3, a text in quotes"
            )
            raise self._refusal(event, told)
        return value
