"""What the preset `full` of an example needs of a GPU: measured where one ran it, else an estimate by arithmetic.

The estimate multiplies one step, counted at the sizes of `full` (`lab.rehearsal`), by the steps of all trainings of a
recorded run. A GPU that is fed by Python does not take less time for a step than its kernels take to be started, nor less
than its products take to be computed. What is evaluated between trainings is not in it.
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
"""What small networks reach on one data-centre card in bfloat16: a tenth of what an A100 can (312,000, by its data sheet)."""


@dataclass(frozen=True)
class Rehearsal:
    """What was counted at the sizes of `full`; see `lab.rehearsal.rehearse`."""

    seeds: int
    seconds: float
    steps: int
    kernels: int
    gflop: float
    memory_gb: float

    @property
    def step_seconds(self) -> float:
        """Of one step on a GPU."""
        return max(self.kernels * KERNEL_SECONDS, self.gflop / GFLOP_PER_SECOND)


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
        growth = rehearsal.steps / record.trainings[0] * rehearsal.seeds / len(record.seeds)
        steps = round(sum(record.trainings) * growth)
        seconds += steps * rehearsal.step_seconds
        rests_on = (
            f"{steps:,} training steps of {rehearsal.kernels:,} kernels and {rehearsal.gflop:,.0f} GFLOP each, at "
            f"{KERNEL_SECONDS * 1e6:.0f} µs a kernel and {GFLOP_PER_SECOND / 1000:.0f} TFLOP/s, and "
            f"{rehearsal.seconds:.0f} s of a CPU for the data of each of {rehearsal.seeds} seeds"
        )
    return Needs(rehearsal.memory_gb, max(1, math.ceil(seconds / 60)), "one GPU", rests_on)
