"""Model cards: YAML text in, frozen `Card` and the position of each value out.

Cards come from strangers: only plain YAML is read. Tags (`!!python/...`), anchors and aliases are refused, as are files
over `MAX_BYTES` and nesting over `MAX_DEPTH`, before any of it becomes a Python object.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from scripts.schema import Card

MAX_BYTES = 500_000
MAX_DEPTH = 20
PLAIN_TAGS = {
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")
}

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
        return f"{self.path}:{self.line}:{self.column}: {mark}{self.message}"


@dataclass(frozen=True)
class Source:
    """Where a card stands: its file and the line and column (from 1) of each value."""

    path: str
    positions: Positions

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


class CardError(Exception):
    """The YAML cannot be read as plain data; carries one `Problem`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def nearest(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the nearest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def read_yaml(text: str, path: str) -> tuple[Any, Positions]:
    """Plain data and the (line, column) of each value in it; a mapping's key stands for its value.

    Raises:
        CardError: not YAML, or YAML with tags, anchors, a duplicate key, or too deep.
    """
    if len(text.encode()) > MAX_BYTES:
        raise CardError(Problem(path, 1, 1, f"the file is larger than {MAX_BYTES:,} bytes; split the card"))
    try:
        _refuse_special_events(text, path)
        root = yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = _place(mark)
        raise CardError(Problem(path, line, column, f"not YAML: {error.problem}")) from error
    except yaml.YAMLError as error:  # a character that YAML forbids has no mark
        raise CardError(Problem(path, 1, 1, f"not YAML: {' '.join(str(error).split())}")) from error
    if root is None:
        raise CardError(Problem(path, 1, 1, "the file is empty; start one with: python -m scripts new SLUG"))
    positions: dict[Path_, tuple[int, int]] = {}
    return _data_of(root, (), positions, path), positions


def _place(mark: Any) -> tuple[int, int]:
    """Line and column from 1; PyYAML counts from 0."""
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _refuse_special_events(text: str, path: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        line, column = _place(event.start_mark)
        if getattr(event, "anchor", None):
            raise CardError(
                Problem(
                    path,
                    line,
                    column,
                    "anchors (&) and aliases (*) are not allowed in a card; write the value out",
                )
            )
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", *PLAIN_TAGS):
            raise CardError(Problem(path, line, column, f"tag {tag!r} is not allowed in a card; write plain YAML"))
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise CardError(Problem(path, line, column, f"nested deeper than {MAX_DEPTH} levels"))


def _data_of(node: yaml.Node, where: Path_, positions: dict[Path_, tuple[int, int]], path: str) -> Any:
    positions.setdefault(where, _place(node.start_mark))
    if isinstance(node, yaml.MappingNode):
        return dict(_items_of(node, where, positions, path))
    if isinstance(node, yaml.SequenceNode):
        return [_data_of(child, (*where, i), positions, path) for i, child in enumerate(node.value)]
    return _scalar_of(node, path)


def _items_of(
    node: yaml.MappingNode, where: Path_, positions: dict[Path_, tuple[int, int]], path: str
) -> Iterator[tuple[str, Any]]:
    for key, value in node.value:
        line, column = _place(key.start_mark)
        if not isinstance(key, yaml.ScalarNode):
            raise CardError(Problem(path, line, column, "a key has to be a plain word"))
        if (*where, key.value) in positions:
            raise CardError(Problem(path, line, column, f"the key {key.value!r} stands here a second time"))
        positions[(*where, key.value)] = (line, column)
        yield key.value, _data_of(value, (*where, key.value), positions, path)


def _scalar_of(node: yaml.Node, path: str) -> Any:
    constructor = yaml.constructor.SafeConstructor()
    try:
        return constructor.construct_object(node)
    except (ValueError, yaml.YAMLError) as error:
        raise CardError(Problem(path, *_place(node.start_mark), f"cannot be read: {error}")) from error


def parse_card(text: str, slug: str, path: str) -> tuple[Card | None, Source, list[Problem]]:
    """The card, or None and every problem of its form at once."""
    try:
        data, positions = read_yaml(text, path)
    except CardError as error:
        return None, Source(path, {}), [error.problem]
    source = Source(path, positions)
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
        return None, source, [_problem_of(detail, source) for detail in error.errors()]


def _problem_of(detail: Any, source: Source) -> Problem:
    where = tuple(part for part in detail["loc"] if not _is_branch(part))
    name = ".".join(map(str, where))
    match detail["type"]:
        case "missing":
            message = f"the field {where[-1]!r} is missing" + (
                f" in {'.'.join(map(str, where[:-1]))}" if where[1:] else ""
            )
        case "extra_forbidden":
            message = f"unknown field {where[-1]!r}{nearest(str(where[-1]), _fields_at(where[:-1]))}"
        case "string_pattern_mismatch" if where == ("slug",):
            message = "a card's file name is its slug: small letters, digits and single hyphens"
        case kind if kind.startswith("date_"):
            message = f"{name}: {detail['input']!r} is not a date, write for example 2026-11-22"
        case _:
            message = f"{name}: {detail['msg'].removeprefix('Value error, ')}"
    return source.problem(where, message)


def _is_branch(part: str | int) -> bool:
    """Pydantic names the branch of a union in a location ('constrained-str', 'Quantity'): no part of the card."""
    return isinstance(part, str) and (part in {"Quantity", "float"} or part.startswith(("constrained-", "function-")))


def _fields_at(where: Path_) -> list[str]:
    """Field names (as an editor writes them) of the model that stands at `where` of a card."""
    here: Any = Card
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
    if path.stat().st_size > MAX_BYTES:
        return "", Problem(shown, 1, 1, f"the file is larger than {MAX_BYTES:,} bytes; split the card")
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
        try:
            data, positions = read_yaml(path.read_text("utf-8"), shown)
        except CardError as error:
            problems.append(error.problem)
            continue
        words |= data
        sources |= dict.fromkeys(data, Source(shown, positions))
    return words, sources, problems
