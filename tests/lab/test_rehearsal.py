"""A rehearsal counts one step of the first training of an example, and goes no further."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from lab import rehearsal, training

pytestmark = pytest.mark.torch

EXAMPLE = """
import torch
from lab.run import Run
from lab.training import fit
from torch import nn

run = Run.start("line")
model = nn.Linear(3, 5)
fit(model, lambda step: [torch.ones(7, 3)], lambda model, x: model(x).sum(), steps=40, learning_rate=0.1, device=run.device,
    every=10, callback=lambda *_: print("evaluated"))
raise RuntimeError("it went on")
"""


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rehearsal, "EXAMPLES", tmp_path)
    return tmp_path


def test_it_counts_a_step_of_the_first_training_and_ends_there(
    examples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (examples / "line.py").write_text(EXAMPLE, "utf-8")
    fit, argv = training.fit, sys.argv
    counted = rehearsal.rehearse("line", examples)
    assert (counted["steps"], counted["seeds"]) == (40, 5)
    assert counted["gflop"] * 1e9 == pytest.approx(2 * 7 * 3 * 5 * 2)  # forwards, and backwards for the weights
    assert 10 < counted["kernels"] < 60
    assert "evaluated" not in capsys.readouterr().out
    assert (training.fit, sys.argv) == (fit, argv)
    assert json.loads(json.dumps(counted)) == counted


def test_an_example_that_trains_nothing_runs_to_its_end(examples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (examples / "idle.py").write_text("print('all of it')\n", "utf-8")
    counted = rehearsal.rehearse("idle", examples)
    assert (counted["seeds"], counted["steps"], counted["kernels"], counted["gflop"]) == (1, 0, 0, 0)
    assert "all of it" in capsys.readouterr().out


def test_an_example_that_fails_is_not_taken_for_one_that_trains_nothing(examples: Path) -> None:
    (examples / "broken.py").write_text("raise RuntimeError('no data')\n", "utf-8")
    with pytest.raises(RuntimeError, match="no data"):
        rehearsal.rehearse("broken", examples)
