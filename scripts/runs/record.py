"""The record of a run: what an example writes, read back only where every file of it is as it was.

No pydantic here: each job starts with this module, and has to start quickly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from scripts.files import printable_all, sha256

Part = TypeVar("Part")

SCHEMAS = (1, 2)
FIGURE = re.compile(r"figures/[A-Za-z0-9_]+\.(light|dark)\.(svg|webp)")
SUMS = "SHA256SUMS"
"""In a run's folder: the digest of each of its files, in the form that `sha256sum --check` reads."""


@dataclass(frozen=True)
class Figure:
    """A picture in both schemes; paths are relative to the run's folder."""

    name: str
    light: str
    dark: str
    caption: str
    alt: str
    width: int
    height: int
    experiment: str | None = None


@dataclass(frozen=True)
class Result:
    """A measure with one value for each seed, or a single exact one; None where it is undefined or its training failed."""

    values: tuple[float | None, ...]
    mean: float | None
    std: float | None
    unit: str
    meaning: str
    exact: bool
    experiment: str
    failed: tuple[Mapping[str, object], ...] = ()
    """Seeds that do not count, each with its reason."""

    @property
    def defined(self) -> list[float]:
        """The values there are."""
        return [value for value in self.values if value is not None]


class Power(TypedDict, total=False):
    """A control for which the effect is seen: its result, with the bound that it passes."""

    result: str
    control: str
    above: float
    below: float


@dataclass(frozen=True)
class Experiment:
    """One question with what was measured for it."""

    name: str
    question: str
    data: str
    results: tuple[str, ...]
    figures: tuple[str, ...]
    parameters: int | None = None
    steps: int | None = None
    arms: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    searches: tuple[Mapping[str, object], ...] = ()
    """How what was chosen was chosen: grid, scores on validation data, and whether the best lay at an edge."""
    floor: Mapping[str, object] | None = None
    """Below it a training did not train."""
    power: Power | None = None
    """A control for which the effect is seen."""
    cannot_show: str | None = None
    """What a run of this size cannot show, and why."""


@dataclass(frozen=True)
class Training:
    """What one training cost: its steps, and of each the kernels and 10^9 operations."""

    steps: int
    kernels: int
    gflop: float


@dataclass(frozen=True)
class Record:
    """One run of one example."""

    slug: str
    preset: str
    device: Mapping[str, object]
    seeds: tuple[int, ...]
    seconds: float
    experiments: tuple[Experiment, ...]
    results: Mapping[str, Result]
    figures: tuple[Figure, ...]
    schema: int
    started: str = ""
    weights: str = "random"
    versions: Mapping[str, str | None] = field(default_factory=dict)
    shown: tuple[Mapping[str, str], ...] = ()
    """What cells printed: name and text."""
    claims: bool = True
    """Whether the experiments ran, too."""
    needed: Mapping[str, object] | None = None
    """What the preset `full` needed of a GPU, where this run was that."""
    trainings: tuple[Training, ...] = ()
    """In their order."""
    peak_memory_mb: float | None = None
    peak_device_memory_mb: float | None = None

    def figure(self, name: str | None) -> Figure | None:
        """The figure of a name, if there is one."""
        return next((figure for figure in self.figures if figure.name == name), None)

    def experiment_of(self, result: str) -> Experiment | None:
        """The experiment that a result belongs to."""
        return next((each for each in self.experiments if result in each.results), None)


Results = Mapping[str, Result]
"""Results of one run by name."""


def seal(folder: Path) -> None:
    """Write down what the files of a run are, so that `read_record` sees a later change of any."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256((folder / name).read_bytes())}  {name}\n" for name in names if name != SUMS]
    (folder / SUMS).write_text("".join(lines), "utf-8")


def is_sealed(folder: Path) -> bool:
    """Every file of a run is as it was when the run ended."""
    try:
        lines = (folder / SUMS).read_text("utf-8").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        return "record.json" in sums and all(
            sha256((folder / name).read_bytes()) == digest for name, digest in sums.items()
        )
    except (OSError, ValueError):
        return False


def read_record(path: Path) -> Record | None:
    """The record of a finished run; None where there is none, or where one of its files is cut off, edited or gone."""
    return parse_record(path) if is_sealed(path.parent) else None


def parse_record(path: Path) -> Record | None:
    """A run record, or None where there is none, or where it is cut off or lacks a figure."""
    try:
        record = _record(printable_all(json.loads(path.read_text("utf-8"))))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    drawn = [name for figure in record.figures for name in (figure.light, figure.dark)]
    inside = all(FIGURE.fullmatch(name) for name in drawn)
    return record if inside and all((path.parent / name).is_file() for name in drawn) else None


def _record(data: Mapping[str, Any]) -> Record:
    """Raises one of the errors above if the data is no record."""
    if data["schema"] not in SCHEMAS:
        raise ValueError(f"unknown schema {data['schema']}")
    parts = {
        "experiments": tuple(_made(Experiment, each) for each in data["experiments"]),
        "results": {name: _made(Result, result) for name, result in data["results"].items()},
        "figures": tuple(_made(Figure, figure) for figure in data["figures"]),
        "trainings": tuple(_made(Training, training) for training in data.get("trainings", ())),
    }
    return _made(Record, {**data, **parts})


def _made(kind: type[Part], data: Mapping[str, Any]) -> Part:
    """A part of a record from its JSON; keys that this version does not know are left out. TypeError if one is missing."""
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    known = {key: value for key, value in data.items() if key in names}
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in known.items()})
