"""What the preset `full` of an example needs of a GPU: measured where one ran it, else an estimate by arithmetic.

The estimate takes all trainings of a recorded run, and grows them as the first of them grows to the sizes of `full`
(`lab.rehearsal` counts that): its steps, its kernels, its products, and the number of seeds. A GPU that is fed by Python does
not take less time than its kernels take to be started, nor less than its products take to be computed. What is evaluated
between trainings is not in it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from scripts.project import Project
from scripts.runs.record import Record

KERNEL_SECONDS = 10e-6
"""That Python and the driver take to start a kernel, as a round number."""

GFLOP_PER_SECOND = 30_000
"""That small networks get out of a card of a data centre, in bfloat16, as a round number."""


@dataclass(frozen=True)
class Rehearsal:
    """What was counted at the sizes of `full`; see `lab.rehearsal.rehearse`."""

    seeds: int
    seconds: float
    steps: int
    kernels: int
    gflop: float
    memory_gb: float


@dataclass(frozen=True)
class Needs:
    """Memory in GB (10^9 bytes) and minutes, on which card; `rests_on` says in words what an estimate was made of."""

    memory_gb: float
    minutes: int
    card: str
    rests_on: str = ""


def path_of(project: Project) -> Path:
    """Where rehearsals are kept, by slug."""
    return project.root / "measurements" / "rehearsals" / "full.json"


def read_all(project: Project) -> dict[str, Rehearsal]:
    """Those that are kept; none where there is no file."""
    path = path_of(project)
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return {slug: Rehearsal(**counted) for slug, counted in kept.items()}


def needs_of(record: Record | None, rehearsal: Rehearsal | None) -> Needs | None:
    """Measured, where the record is of a GPU that ran all of `full`; estimated, where both are there; else None."""
    if record and record.needed:
        return Needs(**record.needed)  # type: ignore[arg-type]
    if not (record and rehearsal) or bool(record.trainings) != bool(rehearsal.steps):
        return None
    seconds, rests_on = rehearsal.seeds * rehearsal.seconds, f"{rehearsal.seconds:.0f} s on a CPU: nothing is trained"
    if record.trainings:
        steps, kernels, gflop = _grown(record, rehearsal)
        seconds += max(kernels * KERNEL_SECONDS, gflop / GFLOP_PER_SECOND)
        rests_on = (
            f"{steps:,.0f} training steps, {kernels / 1e6:,.0f} million kernels of {KERNEL_SECONDS * 1e6:.0f} µs, "
            f"{gflop / 1000:,.0f} TFLOP at {GFLOP_PER_SECOND / 1000:.0f} TFLOP/s, and {rehearsal.seconds:.0f} s of a CPU for the "
            f"data of each of {rehearsal.seeds} seeds"
        )
    return Needs(rehearsal.memory_gb, max(1, math.ceil(seconds / 60)), "one GPU", rests_on)


def _grown(record: Record, rehearsal: Rehearsal) -> tuple[float, float, float]:
    """Steps, kernels and GFLOP of all trainings of a run at the sizes of `full`."""
    first = record.trainings[0]
    growth = rehearsal.steps / first.steps * rehearsal.seeds / len(record.seeds)
    steps = growth * sum(each.steps for each in record.trainings)
    kernels = growth * sum(each.steps * each.kernels for each in record.trainings) * rehearsal.kernels / first.kernels
    gflop = growth * sum(each.steps * each.gflop for each in record.trainings)
    return steps, kernels, gflop * (rehearsal.gflop / first.gflop if first.gflop else 1)
