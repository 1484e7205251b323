"""Records of `measure`: how long the counted architectures take on a device. Reading them needs no torch.

A record is one JSON file per device. Those in `measurements/` are part of the repository; those in
`build/measurements/` are a reader's own, and go before a record of the same device in the repository.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from scripts import files
from scripts.project import Project


@dataclass(frozen=True)
class Latency:
    """One architecture on one device: quartiles of the time of a forward pass, or why there is none."""

    device: str
    build: str
    input: str
    batch: int
    precision: str
    threads: int | None = None
    """Threads of the CPU; None on a GPU."""
    repeats: int = 0
    ms: float | None = None
    """Median."""
    ms_low: float | None = None
    ms_high: float | None = None
    peak_mb: float | None = None
    """Memory at the peak, weights included."""
    part: str = ""
    """What of the model runs, where it is not all."""
    error: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[object, ...]:
        """What a new measurement replaces."""
        return (self.device, self.build, self.input, self.batch, self.precision, self.threads)


def own_folder(project: Project) -> Path:
    return project.build / "measurements"


def kept_folder(project: Project) -> Path:
    return project.root / "measurements"


def read_all(project: Project) -> tuple[Latency, ...]:
    """All measurements, of the repository and one's own, sorted by device and architecture."""
    found: dict[tuple[object, ...], Latency] = {}
    for folder in (kept_folder(project), own_folder(project)):
        for path in sorted(folder.glob("*.json")):
            found |= {entry.key: entry for entry in read(path)}
    return tuple(sorted(found.values(), key=lambda e: (e.device, e.build, e.input, e.batch, e.precision)))


def read(path: Path) -> list[Latency]:
    """The measurements of one record; none where it is missing.

    Raises:
        ValueError: the file is no record.
    """
    try:
        record = files.printable_all(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return []
    names = {each.name for each in fields(Latency)}
    try:
        return [
            Latency(**{"device": record["device"]["name"], **{k: v for k, v in entry.items() if k in names}})
            for entry in record["measurements"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: no record of measure: {error}") from error


def write(path: Path, device: Mapping[str, object], entries: Iterable[Latency]) -> None:
    """Add measurements to the record of a device, in the place of earlier ones of the same; whole or not at all."""
    merged = {entry.key: entry for entry in [*read(path), *entries]}
    rows = sorted((asdict(entry) for entry in merged.values()), key=lambda e: (e["build"], e["input"], e["precision"]))
    files.write(path, (json.dumps({"schema": 1, "device": device, "measurements": rows}, indent=1) + "\n").encode())
