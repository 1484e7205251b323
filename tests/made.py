"""Records of runs that tests make up."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from scripts.runs.record import Experiment, Figure, Record, Result


def result(*values: float | None, exact: bool = False, unit: str = "", failed: tuple[dict[str, Any], ...] = ()) -> Result:
    """A measure with one value for each seed; mean and deviation are of those that are defined."""
    defined = [value for value in values if value is not None]
    mean = statistics.fmean(defined) if defined else None
    deviation = statistics.stdev(defined) if len(defined) > 1 else 0.0
    return Result(values, mean, deviation, unit, "What it says", exact, "main", failed)


def record(
    results: Mapping[str, Result], *, power: Mapping[str, Any] | None = None, figures: tuple[str, ...] = (), **experiment: Any
) -> Record:
    """A run of one experiment that measured all of it."""
    drawn = tuple(Figure(name, "a", "b", "A caption.", "What is seen.", 1, 1, "main") for name in figures)
    told = {"name": "main", "question": "Is it so?", "data": "none", **experiment}
    made = Experiment(results=tuple(results), figures=figures, power=power, **told)
    seeds = tuple(range(max((len(each.values) for each in results.values()), default=0)))
    device = {"class": "cpu", "name": "A CPU"}
    return Record("alpha", "quick", device, seeds, 1.0, (made,), results, drawn, 2)
