"""Problems of a card, each at its line and column, and what an editor may have meant."""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

MAX_MESSAGE = 600

MAX_PROBLEMS = 50
"""Of one card: the rest are counted, not printed."""

UNREADABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0d\ufeff"
    "\ufff0-\ufffb\U000e0000-\U000e00ff\U000e01f0-\U000e0fff\ud800-\udfff]"
    "|(?<![\u0600-\u08ff\u0900-\u0dff])\u200c"
    "|(?<![\u0600-\u08ff\u0900-\u0dff\ufe0f\u2000-\u32ff\U0001f000-\U0001ffff])\u200d"
    "|(?<![0-9#*\xa9\xae\u2000-\u32ff\U0001f000-\U0001ffff])[\ufe0e\ufe0f]"
    "|(?<![\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])[\U000e0100-\U000e01ef]"
)
"""Control characters, and those that are invisible or turn the direction of what follows.

Some are right after certain letters: joiners and non-joiners in scripts that join (Persian, Sinhala), joiners and the choice
between symbol and picture after emoji, variants of a form after an ideograph (Japanese names)."""

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
    locate: Callable[[], Positions] = dict
    """Finds where each value stands."""
    digest: str = ""
    """Of the text."""

    @functools.cached_property
    def positions(self) -> Positions:
        """Found where a problem is told, which most cards do not have."""
        return self.locate()

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


def unknown(source: Source, where: Path_, kind: str, name: str, known: Collection[str]) -> Iterator[Problem]:
    if name not in known:
        yield source.problem(where, f"unknown {kind} {name!r}{nearest(name, known)}")
