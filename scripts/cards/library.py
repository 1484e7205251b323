"""The cards of a folder: each file read, its form checked, and the words that they share."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scripts.cards.problems import MAX_PROBLEMS, CardError, Problem, Source
from scripts.cards.schema import Card
from scripts.cards.schema_problems import more_problems, problem_of, telling
from scripts.cards.vocabulary import Vocabulary
from scripts.cards.yaml_reader import MAX_BYTES, kept_data, read_yaml, too_large
from scripts.files import sha256


@dataclass(frozen=True, eq=False)
class Library:
    """All cards by slug, where each stands, and the words they may use. Hashed by identity: it never changes."""

    cards: Mapping[str, Card]
    sources: Mapping[str, Source]
    """Of all card files, also of those that are too broken to be among `cards`."""
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    """Tasks, metrics, glossary, notes and what else cards share."""
    word_sources: Mapping[str, Source] = field(default_factory=dict)
    """Where each of these stands."""

    def names(self, kind: str) -> set[str]:
        """All tasks or metrics, also those whose entry is broken: that is told where it stands, not at each use."""
        return self._names.get(kind, set())

    @functools.cached_property
    def _names(self) -> dict[str, set[str]]:
        return {
            kind: {str(where[1]) for where in source.positions if len(where) == 2 and where[0] == kind}
            for kind, source in self.word_sources.items()
        }


@functools.lru_cache(maxsize=4096)  # for `serve`, which reads all cards after each edit
def parse_card(
    text: str, slug: str, path: str, kept: Path | None = None
) -> tuple[Card | None, Source, Sequence[Problem]]:
    """The card, or None and every problem of its form at once; `kept` is a folder for what need not be read again."""
    try:
        data = kept_data(text, path, kept) if kept else read_yaml(text, path)[0]
    except CardError as error:
        return None, Source(path), [error.problem]
    source = Source(path, lambda: read_yaml(text, path)[1], sha256(text.encode()))
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
        details = telling(error)
        problems = [problem_of(detail, source) for detail in details[:MAX_PROBLEMS]]
        return None, source, [*problems, *more_problems(path, len(details) - MAX_PROBLEMS)]


def card_paths(folder: Path) -> list[Path]:
    """The card files of a folder, sorted; names with a leading underscore are no cards."""
    return sorted(
        path for path in folder.glob("*.y*ml") if path.suffix in (".yml", ".yaml") and not path.name.startswith("_")
    )


def load_library(folder: Path, root: Path, kept: Path | None = None) -> tuple[Library, list[Problem]]:
    """All cards of a folder; a card with problems of form is left out and its problems are returned.

    Paths in problems are relative to `root`; `kept` is a folder for what need not be read again.
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
            sources[path.stem] = Source(shown)
            problems.append(problem)
            continue
        card, sources[path.stem], found = parse_card(text, path.stem, shown, kept)
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
        return "", too_large(shown)
    try:
        return path.read_text("utf-8"), None
    except UnicodeDecodeError as error:
        return "", Problem(shown, 1, 1, f"not UTF-8 text: byte {error.start} cannot be read")


def load_vocabulary(folder: Path, root: Path) -> tuple[Vocabulary, dict[str, Source], list[Problem]]:
    """The files with a leading underscore, merged by their top keys, with where each of these stands."""
    words: dict[str, object] = {}
    sources: dict[str, Source] = {}
    problems: list[Problem] = []
    for path in sorted(folder.glob("_*.yml")):
        shown = _shown(path, root)
        text, problem = _text_of(path, shown)
        try:
            data, positions = ({}, {}) if problem else read_yaml(text, shown)
        except CardError as error:
            data, positions, problem = {}, {}, error.problem
        source = Source(shown, functools.partial(dict, positions))
        good, found = _checked_words(data, source)
        problems += [problem] if problem else found
        words |= good
        sources |= dict.fromkeys(good, source)
    return Vocabulary.model_validate(words), sources, problems


def _checked_words(data: Any, source: Source) -> tuple[dict[str, object], list[Problem]]:
    """The top keys that have the form of `schema.Vocabulary`, and the problems of the others."""
    if not isinstance(data, dict):
        return {}, [source.problem((), f"this file is a mapping, not a {type(data).__name__}")]
    try:
        Vocabulary.model_validate(data)
    except ValidationError as error:
        details = telling(error)
        broken = {detail["loc"][:2] for detail in details}
        problems = [problem_of(detail, source, Vocabulary) for detail in details[:MAX_PROBLEMS]]
        whole = {key: value for key, value in data.items() if (key,) not in broken and isinstance(value, dict)}
        return {
            key: {name: word for name, word in words.items() if (key, name) not in broken}
            for key, words in whole.items()
        }, problems
    return data, []
