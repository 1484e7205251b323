"""What a record holds, checked before it goes in: names, texts, results; and tables as text."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NAME = re.compile(r"[a-z][a-z0-9_]*")
SHORTEST_ALT = 20  # characters; less cannot say what a figure shows


def check_name(name: str, taken: Iterable[str], kind: str) -> None:
    """Raises ValueError where a name is malformed or taken."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{kind} name {name!r} must be lower case letters, digits and underscores, a letter first")
    if name in taken:
        raise ValueError(f"{kind} {name!r} exists already; every {kind} of a run needs its own name")


def check_text(where: str, **texts: str) -> None:
    """Raises ValueError where a text is empty."""
    for key, text in texts.items():
        if not text.strip():
            raise ValueError(f"{where}: {key} must not be empty")


def check_figure(name: str, taken: Iterable[str], caption: str, alt: str) -> None:
    """Raises ValueError where its name is malformed or taken, or a text is empty or too short."""
    check_name(name, taken, "figure")
    check_text(f"figure {name!r}", caption=caption, alt=alt)
    if len(alt.strip()) < SHORTEST_ALT:
        raise ValueError(f"figure {name!r}: alt must say what the figure shows, in {SHORTEST_ALT} or more characters")


def check_power(experiment: str, power: Mapping[str, Any] | None) -> None:
    """Raises ValueError where a control is not said in full."""
    if power is not None and set(power) not in ({"control", "result", "above"}, {"control", "result", "below"}):
        raise ValueError(
            f"experiment {experiment!r}: power needs control, result, and above or below, not {sorted(power)}"
        )


def result(
    name: str,
    values: Sequence[float | None],
    *,
    seeds: Sequence[int],
    unit: str,
    meaning: str,
    exact: bool,
    experiment: str,
    failed: Mapping[int, str],
) -> dict[str, Any]:
    """A result as the record holds it; see `lab.run.Experiment.result`, also for what it raises."""
    check_text(f"result {name!r}", meaning=meaning)
    numbers = [None if value is None or math.isnan(value) else float(value) for value in values]
    wanted = 1 if exact else len(seeds)
    if len(numbers) != wanted:
        reason = "an exact result" if exact else f"{wanted} seeds"
        raise ValueError(f"result {name!r}: {len(numbers)} values for {reason}; expected {wanted}")
    missing = [] if exact else [seed for seed, number in zip(seeds, numbers, strict=True) if number is None]
    defined = [number for number in numbers if number is not None]
    if not all(map(math.isfinite, defined)) or set(missing) - set(failed) or (exact and not defined):
        raise ValueError(f"result {name!r}: {list(values)} holds a value that is not finite, and no reason is given")
    return {
        "values": numbers,
        "failed": [{"seed": seed, "reason": failed[seed]} for seed in missing],
        "mean": statistics.fmean(defined) if defined else None,
        "std": statistics.pstdev(defined) if defined else None,
        "unit": unit,
        "meaning": meaning,
        "exact": exact,
        "experiment": experiment,
    }


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as lines with aligned columns, numbers to the right."""
    if not rows:
        return ""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    right = [isinstance(value, int | float) for value in rows[0].values()]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = (
        "  ".join(f"{text:>{w}}" if r else f"{text:<{w}}" for text, w, r in zip(line, widths, right, strict=True))
        for line in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
