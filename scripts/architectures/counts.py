"""Counting parameters and MACs of published architectures; cached by what they depend on.

`needed` and `read` import no torch; `count` does.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scripts.cards.library import Library
from scripts.cards.values import size_of
from scripts.files import write
from scripts.fingerprint import of_module
from scripts.machine import call_all
from scripts.project import Project


@dataclass(frozen=True)
class Counted:
    """What was counted from a built architecture."""

    parameters: float
    macs: float
    input: str


def fingerprint(project: Project) -> str:
    """Of all that a count depends on: how it is made, our definitions, and the pinned libraries."""
    return of_module(project, "scripts.architectures.forward")()


def needed(library: Library) -> list[str]:
    """`build @ input` of every variant that can be built, sorted."""
    counts = (variant.count for card in library.cards.values() for variant in card.variants.values())
    return sorted({count.key for count in counts if count})


def read(project: Project) -> tuple[dict[str, Counted], dict[str, str]]:
    """The counts there are, and the errors of those that could not be made; empty where they are out of date."""
    try:
        stored = json.loads(project.counts.read_text("utf-8"))
    except (OSError, ValueError):
        return {}, {}
    if stored.get("digest") != fingerprint(project):
        return {}, {}
    return {key: Counted(**value) for key, value in stored["counts"].items()}, dict(stored["errors"])


def missing(project: Project, library: Library) -> list[str]:
    """What has not been counted yet; what could not be counted is tried again."""
    counts, _ = read(project)
    return [key for key in needed(library) if key not in counts]


def count_all(project: Project, keys: Sequence[str], jobs: int = 1) -> dict[str, str]:
    """Count these, `jobs` at a time, beside those that are stored already; returns the errors by key."""
    counts, errors = read(project)
    for key, made in zip(keys, call_all([functools.partial(_tried, key) for key in keys], jobs), strict=True):
        errors.pop(key, None)
        if isinstance(made, Counted):
            counts[key] = made
        else:
            errors[key] = made
    stored: Mapping[str, object] = {
        "digest": fingerprint(project),
        "counts": {key: vars(value) for key, value in sorted(counts.items())},
        "errors": dict(sorted(errors.items())),
    }
    write(project.counts, json.dumps(stored, indent=1).encode())
    return errors


def _tried(key: str) -> Counted | str:
    """The count, or why there is none."""
    try:
        return count(key)
    except Exception as error:  # a library may raise anything on a model that it cannot trace
        return first_line(error)


def first_line(error: Exception) -> str:
    """`ValueError: what it says`, in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def count(key: str) -> Counted:
    """Parameters and MACs of one forward pass of one input, for `library/model @ H x W`; see `scripts.architectures.forward`.

    Raises:
        LookupError: the model is not known.
        RuntimeError: its forward pass looks at values, which the meta device does not have.
    """
    from scripts.architectures.forward import trace

    name, _, size = key.partition(" @ ")
    model = trace(name, size_of(size))
    return Counted(float(model.parameters), model.macs, size)
