"""Studies of architectures: anatomy and scaling, measured once and kept in build/ by the hash of what they depend on.

Numbers only: pages draw them. Reading them needs no torch.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from scripts.architectures.counts import first_line
from scripts.architectures.scaling import LABELS, Measured, points
from scripts.cards.library import Library
from scripts.cards.schema import Card
from scripts.cards.values import size_of
from scripts.cards.vocabulary import Sweep, What
from scripts.files import read_json, write
from scripts.fingerprint import of_module
from scripts.machine import call_all
from scripts.project import Project

Costs = Mapping[What, list[float]]
"""Of a sweep, one for each of its sizes."""


class Row(TypedDict):
    """A stage of an architecture: its output and its shares."""

    name: str
    kind: str
    shape: list[int]
    parameters: float
    macs: float


class Anatomy(TypedDict):
    """An architecture in stages."""

    variant: str
    name: str
    build: str
    input: str
    part: str
    parameters: float
    macs: float
    stages: list[Row]


@dataclass(frozen=True)
class Studies:
    """What was studied: anatomies by slug, and sweeps."""

    anatomies: Mapping[str, Anatomy] = field(default_factory=dict)
    sweeps: tuple[Measured, ...] = ()

    def of(self, slug: str) -> tuple[Measured, ...]:
        """The sweeps of one card."""
        return tuple(measured for measured in self.sweeps if measured.sweep.card == slug)


@dataclass(frozen=True)
class Study:
    """One study that is wanted: where its outcome lies, and what makes it."""

    name: str
    path: Path
    make: Callable[[], Anatomy | Costs]

    def outcome(self) -> Any:
        """What it made; empty where that is not there."""
        return read_json(self.path)


def main_variant(card: Card) -> str | None:
    """The variant whose anatomy a page shows: the first of the model's own that can be counted, or else the first."""
    countable = [key for key, variant in (*card.own_variants.items(), *card.variants.items()) if variant.count]
    return next(iter(countable), None)


def wanted_sweeps(library: Library) -> tuple[Sweep, ...]:
    """The sweeps of the cards there are."""
    return tuple(sweep for sweep in library.vocabulary.sweeps if sweep.card in library.cards)


def read(project: Project, library: Library) -> Studies:
    """The studies that are there and up to date."""
    anatomies = {slug: record for slug, study in _anatomies(project, library) if (record := study.outcome())}
    axes = library.vocabulary.axes
    measured = tuple(
        Measured(sweep, points(sweep, axes[sweep.axis].along), {what: tuple(record[what]) for what in LABELS})
        for sweep, study in _sweeps(project, library)
        if (record := study.outcome())
    )
    return Studies(anatomies, measured)


def write_missing(project: Project, library: Library, jobs: int = 1) -> dict[str, str]:
    """Make the studies that are not there, `jobs` at a time; the errors of those that cannot be made, by name."""
    studies = [study for _, study in (*_anatomies(project, library), *_sweeps(project, library))]
    wanted = [study for study in studies if not study.outcome()]
    errors = call_all([functools.partial(_write, study) for study in wanted], jobs)
    return {study.name: error for study, error in zip(wanted, errors, strict=True) if error}


def _write(study: Study) -> str | None:
    """Make a study and write it, or say why it cannot be made."""
    try:
        write(study.path, json.dumps(study.make(), indent=1).encode())
    except Exception as error:  # a library may raise anything on a model that it cannot trace
        return first_line(error)
    return None


def _anatomies(project: Project, library: Library) -> Iterator[tuple[str, Study]]:
    made_of = of_module(project, "scripts.architectures.forward")
    for slug, card in sorted(library.cards.items()):
        key = main_variant(card)
        if key is not None:
            asked = (key, card.variants[key].name, card.variants[key].count)
            path = project.build / "anatomy" / f"{slug}-{made_of(*asked)}.json"
            yield slug, Study(f"anatomy of {slug}", path, functools.partial(_anatomy, card, key))


def _sweeps(project: Project, library: Library) -> Iterator[tuple[Sweep, Study]]:
    made_of = of_module(project, "scripts.architectures.forward")
    for sweep in wanted_sweeps(library):
        along = library.vocabulary.axes[sweep.axis].along
        asked = (sweep.build, sweep.sizes, sweep.size, sweep.change, sweep.values)
        path = project.build / "scaling" / f"{made_of(*asked)}.json"
        yield sweep, Study(f"scaling of {sweep.id}", path, functools.partial(_sweep, sweep, along))


def _anatomy(card: Card, key: str) -> Anatomy:
    from scripts.architectures.anatomy import stages
    from scripts.architectures.definitions import part
    from scripts.architectures.forward import trace

    variant = card.variants[key]
    assert variant.count is not None
    root = trace(variant.count.build, size_of(variant.count.input))
    rows: list[Row] = [
        {"name": s.name, "kind": s.kind, "shape": list(s.shape), "parameters": s.parameters, "macs": s.macs}
        for s in stages(root)
    ]
    return {
        "variant": key, "name": variant.name, "build": variant.count.build, "input": variant.count.input,
        "part": part(variant.count.build), "parameters": root.parameters, "macs": root.macs, "stages": rows,
    }  # fmt: skip


def _sweep(sweep: Sweep, along: str) -> Costs:
    from scripts.architectures.forward import cost

    costs = [cost(sweep.build, point.size, **point.changes) for point in points(sweep, along)]
    return {what: [getattr(each, what) for each in costs] for what in LABELS}
