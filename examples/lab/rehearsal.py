"""What the preset "full" asks of a GPU, counted on a CPU: ``python -m lab.rehearsal SLUG FILE`` makes the data of the first
seed, takes two steps of the first training, and ends there. `scripts.runs.needs` makes minutes of it.
"""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from lab import training
from lab.machine import peak_memory
from lab.options import SEEDS

EXAMPLES = Path(__file__).resolve().parents[1]


class _Counted(BaseException):
    """Ends an example, which must not take it for an error of its own."""


def rehearse(slug: str, out: Path) -> dict[str, float]:
    """Runs an example in "full" until its first training took its first steps.

    Args:
        slug: of the example.
        out: folder for what it draws until then.

    Returns:
        "seeds" of the preset; "seconds" of one core until the training began; "steps" that it would have; "kernels" and
        "gflop" (10^9 operations, two for each product that is added) of a step; "memory_gb" (10^9 bytes), the most that the
        process held by then, in float32. Where nothing is trained, there are no steps, and the seconds are those of the
        whole run, which stands for all its seeds.
    """
    counted: dict[str, float] = {}
    fit, began = training.fit, time.process_time()

    def few_steps(*args: Any, steps: int, **settings: Any) -> None:
        counted.update(seeds=SEEDS["full"], seconds=round(time.process_time() - began), steps=steps)
        quiet = {"progress": None, "every": None, "callback": None}
        fit(*args, steps=2, **{**settings, **quiet})
        counted.update(kernels=training.trained[-1].kernels, gflop=training.trained[-1].gflop)
        raise _Counted

    arguments = [str(EXAMPLES / f"{slug}.py"), "--preset", "full", "--device", "cpu", "--claims"]
    arguments += ["--out", str(out)]
    patches = mock.patch.object(training, "fit", few_steps), mock.patch.object(sys, "argv", arguments)
    with patches[0], patches[1], contextlib.suppress(_Counted):
        runpy.run_path(arguments[0], run_name="__main__")
    whole = {"seeds": 1, "seconds": round(time.process_time() - began), "steps": 0, "kernels": 0, "gflop": 0}
    peak = peak_memory(torch.device("cpu"))["peak_memory_mb"] or 0
    return (counted or whole) | {"memory_gb": round(peak / 1e3, 1)}


if __name__ == "__main__":
    file = Path(sys.argv[2])
    file.write_text(json.dumps(rehearse(sys.argv[1], file.parent)), encoding="utf-8")
