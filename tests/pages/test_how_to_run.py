"""How to run an example stands on its page, as one block to copy."""

from __future__ import annotations

import re

import pytest

from scripts.project import Project
from scripts.site.gather import gather
from scripts.site.render import render


@pytest.mark.torch
def test_one_block_clones_installs_and_runs_on_each_device_with_flags_that_examples_know(tiny: Project) -> None:
    from lab import run as lab_run

    render(tiny, gather(tiny))
    section = (tiny.docs / "examples/alpha.md").read_text("utf-8").partition("## Run it yourself")[2]
    (block,) = re.findall(r"^`{3,}bash\n(.*?)^`{3,}$", section, re.M | re.S)
    clone, install, *runs = block.splitlines()
    assert clone.startswith("git clone https://")
    assert install.endswith("pip install -r requirements-run.txt")
    assert "$ " not in block, "what is copied runs as it is"
    asked = [lab_run._parser("alpha").parse_args(line.partition("examples/alpha.py ")[2].split()) for line in runs]
    assert [(each.device, each.preset) for each in asked] == [("cuda", "full"), ("mps", "full"), ("cpu", "quick")]
