"""How to run an example stands on its page, as one block to copy."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from made import record, result

from scripts.pages.example import page
from scripts.project import Project
from scripts.runs.needs import Rehearsal
from scripts.runs.record import Training
from scripts.runs.state import Run
from scripts.site.gather import gather
from scripts.site.render import render


@pytest.mark.torch
def test_one_block_clones_installs_and_runs_on_each_device_with_flags_that_examples_know(tiny: Project) -> None:
    from lab import options as lab_options

    render(tiny, gather(tiny))
    section = (tiny.docs / "examples/alpha.md").read_text("utf-8").partition("## Run it yourself")[2]
    (block,) = re.findall(r"^`{3,}bash\n(.*?)^`{3,}$", section, re.M | re.S)
    clone, install, *runs = block.splitlines()
    assert clone.startswith("git clone https://")
    assert install.endswith("pip install -r requirements-run.txt")
    assert "$ " not in block, "what is copied runs as it is"
    asked = [lab_options.parser("alpha").parse_args(line.partition("examples/alpha.py ")[2].split()) for line in runs]
    assert [(each.device, each.preset) for each in asked] == [("cuda", "full"), ("mps", "full"), ("cpu", "quick")]


def test_what_full_needs_stands_there_and_what_an_estimate_was_made_of(tiny: Project) -> None:
    ran = replace(record({"gain": result(1.0, 2.0, 3.0)}), trainings=(Training(250, 500, 0.2),))
    knowledge = replace(gather(tiny), runs={"alpha": Run("alpha", "ok", ran)})
    step = Rehearsal(seeds=5, seconds=12, steps=1000, kernels=2000, gflop=60, memory_gb=3.5)
    assert "The preset full needs" not in page("alpha", knowledge)
    estimated = page("alpha", replace(knowledge, rehearsals={"alpha": step}))
    assert (
        "The preset full needs about 3.5 GB and 2 minutes on one GPU: no GPU has run it yet, and this is an estimate "
        "from 1,667 training steps, 3 million kernels of 10 µs, 100 TFLOP at 30 TFLOP/s, and 12 s of a CPU for the data of "
        "each of 5 seeds." in estimated
    )
    measured = Run("alpha", "ok", replace(ran, needed={"memory_gb": 2.3, "minutes": 7, "card": "a card"}))
    assert "needs about 2.3 GB and 7 minutes on a card.</p>" in page(
        "alpha", replace(knowledge, runs={"alpha": measured})
    )
