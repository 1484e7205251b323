"""Counting parameters and MACs of published architectures; cached by what they depend on.

`needed` and `read` import no torch; `count` does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.cards import Library
from scripts.project import Project
from scripts.runs import pins


@dataclass(frozen=True)
class Counted:
    """What was counted from a built architecture."""

    parameters: float
    macs: float
    input: str


def digest(project: Project) -> str:
    """Hash of all that a count depends on: our definitions and the pinned libraries."""
    total = hashlib.sha256("\n".join(pins(project)).encode())
    here = Path(__file__)
    traced = [here.with_name(name) for name in ("trace.py", "anatomy.py", "scaling.py")]
    for path in (here, *traced, *sorted(here.with_name("architectures").glob("*.py"))):
        total.update(path.name.encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def needed(library: Library) -> list[str]:
    """`build @ input` of every variant that can be built, sorted."""
    counts = (variant.count for card in library.cards.values() for variant in card.variants.values())
    return sorted({f"{count.build} @ {count.input}" for count in counts if count})


def read(project: Project) -> tuple[dict[str, Counted], dict[str, str]]:
    """The counts there are, and the errors of those that could not be made; empty where they are out of date."""
    try:
        stored = json.loads(project.counts.read_text("utf-8"))
    except (OSError, ValueError):
        return {}, {}
    if stored.get("digest") != digest(project):
        return {}, {}
    return {key: Counted(**value) for key, value in stored["counts"].items()}, dict(stored["errors"])


def missing(project: Project, library: Library) -> list[str]:
    """What has not been counted yet; what could not be counted is tried again."""
    counts, _ = read(project)
    return [key for key in needed(library) if key not in counts]


def count_all(project: Project, keys: Iterable[str]) -> dict[str, str]:
    """Count these, beside those that are stored already; returns the errors by key."""
    counts, errors = read(project)
    for key in keys:
        errors.pop(key, None)
        try:
            counts[key] = count(key)
        except Exception as error:  # a library may raise anything on a model that it cannot trace
            errors[key] = first_line(error)
    stored: Mapping[str, Any] = {
        "digest": digest(project),
        "counts": {key: vars(value) for key, value in sorted(counts.items())},
        "errors": dict(sorted(errors.items())),
    }
    project.counts.parent.mkdir(parents=True, exist_ok=True)
    part = project.counts.with_suffix(".part")
    part.write_text(json.dumps(stored, indent=1), "utf-8")
    part.replace(project.counts)
    return errors


def first_line(error: Exception) -> str:
    """`ValueError: what it says`, in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def size_of_input(text: str) -> tuple[int, ...]:
    """(800, 1066) for `800 x 1066`."""
    return tuple(int(part) for part in text.split(" x "))


def count(key: str) -> Counted:
    """Parameters and MACs of one forward pass of one input, for `library/model @ H x W`; see `scripts.trace`.

    Raises:
        LookupError: the model is not known.
        RuntimeError: its forward pass looks at values, which the meta device does not have.
    """
    from scripts.trace import trace

    name, _, size = key.partition(" @ ")
    model = trace(name, size_of_input(size))
    return Counted(float(model.parameters), model.macs, size)
