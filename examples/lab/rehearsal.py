"""What the preset "full" asks of a GPU, counted on a CPU: ``python -m lab.rehearsal SLUG FILE`` makes the data of the first
seed, takes one step of the first training, and ends there. `scripts.runs.needs` makes minutes of it.
"""

from __future__ import annotations

import contextlib
import json
import resource
import runpy
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lab import training
from lab.run import SEEDS

EXAMPLES = Path(__file__).resolve().parents[1]


class Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that compute something, which a GPU starts one by one; views do not.

    Attributes:
        count: of those so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


class _Counted(BaseException):
    """Ends an example, which must not take it for an error of its own."""


def rehearse(slug: str, out: Path) -> dict[str, float]:
    """Runs an example in "full" until its first training took one step.

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

    def one_step(*args: Any, steps: int, **settings: Any) -> None:
        counted.update(seeds=SEEDS["full"], seconds=round(time.process_time() - began), steps=steps)
        quiet = {"progress": None, "every": None, "callback": None}
        with FlopCounterMode(display=False) as flops, Kernels() as kernels:
            fit(*args, steps=1, **{**settings, **quiet})
        counted.update(kernels=kernels.count, gflop=float(f"{flops.get_total_flops() / 1e9:.3g}"))
        raise _Counted

    arguments = [str(EXAMPLES / f"{slug}.py"), "--preset", "full", "--device", "cpu", "--claims"]
    arguments += ["--out", str(out)]
    patches = mock.patch.object(training, "fit", one_step), mock.patch.object(sys, "argv", arguments)
    with patches[0], patches[1], contextlib.suppress(_Counted):
        runpy.run_path(arguments[0], run_name="__main__")
    whole = {"seeds": 1, "seconds": round(time.process_time() - began), "steps": 0, "kernels": 0, "gflop": 0}
    return (counted or whole) | {"memory_gb": round(_peak_bytes() / 1e9, 1)}


def _peak_bytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    file = Path(sys.argv[2])
    file.write_text(json.dumps(rehearse(sys.argv[1], file.parent)), encoding="utf-8")
