"""Model cards: YAML text in, frozen `Card` and the position of each value out.

Cards come from strangers: only plain YAML is read. Tags (`!!python/...`), anchors and aliases are refused, as are files
over `MAX_BYTES` and nesting over `MAX_DEPTH`, before any of it becomes a Python object.
"""

from __future__ import annotations

import difflib
import itertools
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from scripts.schema import HINTS, Card, Vocabulary
from scripts.traces import sha256

MAX_BYTES = 500_000
MAX_DEPTH = 20
MAX_VALUES = 40_000
MAX_MESSAGE = 600
MAX_PROBLEMS = 50
"""Of one card: the rest are counted, not printed."""
LONGEST_PLAIN = 60
"""Characters of a plain number, date or word of YAML; a longer one is a text."""
STRING_TAG = "tag:yaml.org,2002:str"
UNREADABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff0-\ufffb\U000e0000-\U000e0fff\ud800-\udfff]"
)
"""Control characters, and those that are invisible or turn the direction of what follows."""
PLAIN_TAGS = {
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")
}

EXPECTED = re.compile("'([^']+)'")

Path_ = tuple[str | int, ...]
Positions = Mapping[Path_, tuple[int, int]]


@dataclass(frozen=True, order=True)
class Problem:
    """Something that an editor has to mend, or (`warning`) should look at."""

    path: str
    line: int
    column: int
    message: str
    severity: str = "error"

    def __str__(self) -> str:
        mark = "warning: " if self.severity == "warning" else ""
        return f"{_visible(self.path)}:{self.line}:{self.column}: {mark}{self.told}"

    @property
    def told(self) -> str:
        """The message as it may be printed: one line of bounded length, with nothing that a terminal would obey."""
        message = _visible(self.message)
        return message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]} ..."


def _visible(text: str) -> str:
    return "".join(
        char if char.isprintable() and not UNREADABLE.match(char) else f"\\u{ord(char):04x}" for char in text
    )


@dataclass(frozen=True)
class Source:
    """Where a card stands: its file and the line and column (from 1) of each value."""

    path: str
    positions: Positions
    digest: str = ""
    """Of the text."""

    def problem(self, where: Path_, message: str, severity: str = "error") -> Problem:
        """A problem at the nearest position known for `where` (the value itself, or what holds it)."""
        known: Path_ = ()
        for part in where:
            if (*known, part) in self.positions:
                known = (*known, part)
            elif isinstance(part, str):  # an index may stand for the one value that is written without a list
                break
        line, column = self.positions.get(known, (1, 1))
        return Problem(self.path, line, column, message, severity)


@dataclass(frozen=True, eq=False)
class Library:
    """All cards by slug, where each stands, and the words they may use. Hashed by identity: it never changes."""

    cards: Mapping[str, Card]
    sources: Mapping[str, Source]
    """Of all card files, also of those that are too broken to be among `cards`."""
    vocabulary: Mapping[str, Any] = field(default_factory=dict)
    """Tasks, metrics, glossary and notes."""
    word_sources: Mapping[str, Source] = field(default_factory=dict)
    """Where each of these stands."""

    def names(self, kind: str) -> set[str]:
        """All tasks or metrics, also those whose entry is broken: that is told where it stands, not at each use."""
        positions = self.word_sources[kind].positions if kind in self.word_sources else {}
        return {str(where[1]) for where in positions if len(where) == 2 and where[0] == kind}


class CardError(Exception):
    """The YAML cannot be read as plain data; carries one `Problem`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def nearest(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the nearest known name, or nothing."""
    candidates = [other for other in itertools.islice(known, 5_000) if len(other) <= 100] if len(name) <= 100 else []
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def read_yaml(text: str, path: str) -> tuple[Any, Positions]:
    """Plain data and the (line, column) of each value in it; a mapping's key stands for its value.

    Raises:
        CardError: not YAML, or YAML with tags, anchors, a duplicate key, a character that is not for reading, or too
            large, too deep or of too many values.
    """
    if len(text.encode()) > MAX_BYTES:
        raise CardError(_too_large(path))
    try:
        reader = _Reader(text, path)
        return reader.document(), reader.positions
    except yaml.MarkedYAMLError as error:
        line, column = _place(error.problem_mark or error.context_mark)
        raise CardError(Problem(path, line, column, f"not YAML: {error.problem}")) from error
    except yaml.YAMLError as error:  # a character that YAML forbids has no mark
        raise CardError(Problem(path, 1, 1, f"not YAML: {' '.join(str(error).split())}")) from error


def _too_large(path: str) -> Problem:
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
        self._construct: Callable[[yaml.Node], Any] = yaml.constructor.SafeConstructor().construct_object

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

    def _mapping(self, where: Path_) -> dict[str, Any]:
        values: dict[str, Any] = {}
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
        value = self._readable(event)
        tag = event.tag if event.tag not in (None, "!") else self._resolve(yaml.ScalarNode, value, event.implicit)
        if tag == STRING_TAG or tag not in PLAIN_TAGS or len(value) > LONGEST_PLAIN:
            return value
        try:
            return self._construct(yaml.ScalarNode(tag, value, event.start_mark))
        except (ValueError, ArithmeticError, KeyError, yaml.YAMLError) as error:
            raise self._refusal(event, f"cannot be read: {error}") from error


def parse_card(text: str, slug: str, path: str) -> tuple[Card | None, Source, list[Problem]]:
    """The card, or None and every problem of its form at once."""
    try:
        data, positions = read_yaml(text, path)
    except CardError as error:
        return None, Source(path, {}), [error.problem]
    source = Source(path, positions, sha256(text.encode()))
    if not isinstance(data, dict):
        return (
            None,
            source,
            [source.problem((), f"a card is a mapping of fields, this is a {type(data).__name__}")],
        )
    if "slug" in data:
        return None, source, [source.problem(("slug",), "a card's slug is its file name; remove this field")]
    try:
        return Card.model_validate({**data, "slug": slug}), source, []
    except ValidationError as error:
        details = _telling(error)
        problems = [_problem_of(detail, source) for detail in details[:MAX_PROBLEMS]]
        return None, source, [*problems, *more_problems(path, len(details) - MAX_PROBLEMS)]


def more_problems(path: str, count: int) -> list[Problem]:
    """That there are more than are told, if there are."""
    return [Problem(path, 1, 1, f"and {count:,} more problems of this card")] if count > 0 else []


def _telling(error: ValidationError) -> list[Any]:
    """One error per place: each branch of a union gives one, and a list whose entry is wrong counts as too short."""
    first: dict[Path_, Any] = {}
    for detail in error.errors(include_url=False):
        first.setdefault(_place_in_card(detail), detail)
    holding = {where[:i] for where in first for i in range(len(where))}
    return [detail for where, detail in first.items() if detail["type"] != "too_short" or where not in holding]


def _place_in_card(detail: Any) -> Path_:
    return tuple(part for part in detail["loc"] if not _is_branch(part))


def _problem_of(detail: Any, source: Source, form: type[BaseModel] = Card) -> Problem:
    where = _place_in_card(detail)
    name = ".".join(map(str, where))
    match detail["type"]:
        case "missing":
            message = f"the field {where[-1]!r} is missing" + (
                f" in {'.'.join(map(str, where[:-1]))}" if where[1:] else ""
            )
        case "extra_forbidden":
            message = f"unknown field {where[-1]!r}{nearest(str(where[-1]), _fields_at(where[:-1], form))}"
        case "string_pattern_mismatch" if where == ("slug",):
            message = "a card's file name is its slug: small letters, digits and single hyphens"
        case "string_pattern_mismatch" if (hint := HINTS.get(str(where[-1]))) is not None:
            message = f"{name}: {str(detail['input'])[:80]!r} {hint}"
        case "too_long":
            most = detail["ctx"]["max_length"]
            message = f"{name}: more than {most} entries; split the card"
        case "literal_error":
            message = f"{name}: {detail['msg']}{nearest(str(detail['input']), EXPECTED.findall(detail['msg']))}"
        case kind if kind.startswith("date_"):
            message = f"{name}: {str(detail['input'])[:60]!r} is not a date, write for example 2026-11-22"
        case _:
            message = f"{name}: {detail['msg'].removeprefix('Value error, ')}"
    return source.problem(where, message)


def _is_branch(part: str | int) -> bool:
    """Pydantic names the branch of a union in a location ('constrained-str', 'Quantity'): no part of the card."""
    return isinstance(part, str) and (part in {"Quantity", "float"} or part.startswith(("constrained-", "function-")))


def _fields_at(where: Path_, form: type[BaseModel] = Card) -> list[str]:
    """Field names (as an editor writes them) of the model that stands at `where` of a card."""
    here: Any = form
    inside_container = False
    for part in where:
        if inside_container:  # an index or an id, no field
            inside_container = False
        elif isinstance(here, type) and issubclass(here, BaseModel) and part in here.model_fields:
            annotation = here.model_fields[str(part)].annotation
            inside_container = typing.get_origin(annotation) in (tuple, dict)
            here = _inner_model(annotation)
    if not (isinstance(here, type) and issubclass(here, BaseModel)):
        return []
    return [info.alias or name for name, info in here.model_fields.items() if name != "slug"]


def _inner_model(annotation: Any) -> Any:
    """The model inside `tuple[Claim, ...]`, `dict[str, Variant]` or `Cite | None`."""
    if typing.get_origin(annotation) in (tuple, dict, types.UnionType, typing.Union):
        inner = [_inner_model(a) for a in typing.get_args(annotation)]
        return next((a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)), None)
    return annotation


def card_paths(folder: Path) -> list[Path]:
    """The card files of a folder, sorted; names with a leading underscore are no cards."""
    return sorted(
        path for path in folder.glob("*.y*ml") if path.suffix in (".yml", ".yaml") and not path.name.startswith("_")
    )


def load_library(folder: Path, root: Path) -> tuple[Library, list[Problem]]:
    """All cards of a folder; a card with problems of form is left out and its problems are returned.

    Paths in problems are relative to `root`.
    """
    cards: dict[str, Card] = {}
    sources: dict[str, Source] = {}
    problems: list[Problem] = []
    for path in card_paths(folder):
        shown = _shown(path, root)
        if path.stem in sources:
            problems.append(Problem(shown, 1, 1, f"the slug {path.stem!r} is taken by {sources[path.stem].path}"))
            continue
        text, problem = _text_of(path, shown)
        if problem:
            sources[path.stem] = Source(shown, {})
            problems.append(problem)
            continue
        card, sources[path.stem], found = parse_card(text, path.stem, shown)
        problems += found
        if card:
            cards[path.stem] = card
    words, word_sources, found = load_vocabulary(folder, root)
    return Library(cards, sources, words, word_sources), problems + found


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _text_of(path: Path, shown: str) -> tuple[str, Problem | None]:
    if path.is_symlink() or not path.is_file():
        return "", Problem(shown, 1, 1, "no plain file; a link or a folder is not read")
    if path.stat().st_size > MAX_BYTES:
        return "", _too_large(shown)
    try:
        return path.read_text("utf-8"), None
    except UnicodeDecodeError as error:
        return "", Problem(shown, 1, 1, f"not UTF-8 text: byte {error.start} cannot be read")


def load_vocabulary(folder: Path, root: Path) -> tuple[dict[str, Any], dict[str, Source], list[Problem]]:
    """The files with a leading underscore, merged by their top keys, with where each of these stands."""
    words: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    problems: list[Problem] = []
    for path in sorted(folder.glob("_*.yml")):
        shown = _shown(path, root)
        text, problem = _text_of(path, shown)
        try:
            data, positions = ({}, {}) if problem else read_yaml(text, shown)
        except CardError as error:
            data, positions, problem = {}, {}, error.problem
        good, found = _checked_words(data, Source(shown, positions))
        problems += [problem] if problem else found
        words |= good
        sources |= dict.fromkeys(good, Source(shown, positions))
    return words, sources, problems


def _checked_words(data: Any, source: Source) -> tuple[dict[str, Any], list[Problem]]:
    """The top keys that have the form of `schema.Vocabulary`, and the problems of the others."""
    if not isinstance(data, dict):
        return {}, [source.problem((), f"this file is a mapping, not a {type(data).__name__}")]
    try:
        Vocabulary.model_validate(data)
    except ValidationError as error:
        details = _telling(error)
        broken = {detail["loc"][:2] for detail in details}
        problems = [_problem_of(detail, source, Vocabulary) for detail in details[:MAX_PROBLEMS]]
        whole = {key: value for key, value in data.items() if (key,) not in broken and isinstance(value, dict)}
        return {
            key: {name: word for name, word in words.items() if (key, name) not in broken}
            for key, words in whole.items()
        }, problems
    return data, []
