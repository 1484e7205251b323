"""Ready for a GPU: every example runs with its experiments on a stand-in for one, in bfloat16, and waits for it no more often
in a training step than its file says. Planted faults show that the stand-in sees them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from forked import Ended, run_script

pytestmark = pytest.mark.torch

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES, STAND_IN = ROOT / "examples", ROOT / "tests/stand_in.py"
SLUGS = sorted(path.stem for path in (EXAMPLES / "claims").glob("*.py") if path.stem != "__init__")

TRAINING = """
import torch
from lab.training import fit
from torch import nn
device = torch.device("cuda")
centre, cut = torch.zeros(8, device=device), torch.ones(8)
def loss(model, x):
    y = model(x)
    {planted}
    return (y.float() ** 2).mean()
model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 8))
x = torch.rand(16, 1, 4, 4)
fit(model, lambda step: (x,), loss, steps=3, learning_rate=0.1, device=device)
assert next(model.parameters()).device.type == "cuda" and next(model.parameters()).isfinite().all()
"""

RULES = """
import torch
x, cpu, mask = torch.rand(3, device="cuda"), torch.rand(3), torch.tensor([True, False, True], device="cuda")
one = torch.tensor(2.0)
for line in {lines}:
    try:
        eval(line)
        print("fits", flush=True)
    except RuntimeError as error:
        print(type(error).__name__.removesuffix("DevicesError"), flush=True)
"""


def run_on_stand_in(script: Path, tmp_path: Path, *arguments: str) -> tuple[Ended, Any]:
    """How it ended, and what it waited for, or None where it failed."""
    report = tmp_path / "report.json"
    surroundings = {"STAND_IN": str(report), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = run_script(STAND_IN, str(script), *arguments, told=tmp_path, **surroundings)
    return done, json.loads(report.read_text("utf-8")) if report.is_file() else None


def stated(slug: str) -> int | None:
    """SYNCHRONISATIONS_PER_STEP of a file to read; None where nothing is trained."""
    number: int | None = importlib.import_module(slug).SYNCHRONISATIONS_PER_STEP
    return number


@pytest.mark.slow
@pytest.mark.parametrize("slug", SLUGS)
def test_it_runs_on_a_device_and_waits_for_it_no_more_often_than_it_says(slug: str, tmp_path: Path) -> None:
    arguments = ("--device", "cuda", "--preset", "smoke", "--claims", "--out", str(tmp_path))
    done, report = run_on_stand_in(EXAMPLES / f"{slug}.py", tmp_path, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "record.json").read_text("utf-8"))["device"]["class"] == "cuda"
    assert (report["steps"] > 0) == (stated(slug) is not None)
    assert report["most"] <= (stated(slug) or 0), report["places"]


def planted(line: str, tmp_path: Path) -> tuple[Ended, Any]:
    (tmp_path / "planted.py").write_text(TRAINING.format(planted=line), "utf-8")
    return run_on_stand_in(tmp_path / "planted.py", tmp_path)


@pytest.mark.slow
def test_a_training_without_a_fault_passes_in_bfloat16_and_waits_for_nothing(tmp_path: Path) -> None:
    done, report = planted("assert y.dtype == torch.bfloat16 and y.softmax(-1).dtype == torch.float32", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert report == {"steps": 2, "most": 0, "places": {}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("y = y * cut", "aten.mul.Tensor at planted.py:9 mixes devices: cuda (16, 8), cpu (8,)"),
        ("centre.lerp_(y.detach().mean(0), 0.1)", "dtype"),
        ("y.detach().numpy()", "can't convert cuda:0 device type tensor to numpy"),
        ("y = y + torch.rand(8, device=device, generator=torch.Generator())", "generator is that of another device"),
    ],
    ids=["a tensor of the CPU", "lerp_ of float with bfloat16", "numpy", "a generator of the CPU"],
)
def test_a_planted_fault_stops_the_run_and_is_named(line: str, message: str, tmp_path: Path) -> None:
    done, _ = planted(line, tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
    assert "planted.py" in done.stderr


@pytest.mark.slow
def test_planted_looks_at_data_are_counted_for_each_step(tmp_path: Path) -> None:
    done, report = planted("y.sum().item(), bool(y.any()), y.nonzero(), y[y > 0], y.tolist(), y[0].cpu()", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert report["most"] == 6
    assert report["places"]["aten.nonzero.default at planted.py:9"] == 2


@pytest.mark.slow
def test_the_rules_are_those_of_cuda(tmp_path: Path) -> None:
    rules = {
        "x + cpu": "Mixed", "x + one": "fits", "one * x": "fits", "torch.stack([x[0], one])": "Mixed", "x @ cpu": "Mixed",
        "x[torch.tensor([0])]": "fits", "cpu[mask]": "Mixed", "cpu[torch.tensor([0], device='cuda')]": "Mixed",
        "x.index_put_((mask,), one)": "fits", "x.index_put_((mask,), cpu[:2])": "Mixed", "cpu.copy_(x)": "fits",
        "one.add_(x[0])": "Mixed", "torch.where(mask, x, one)": "fits", "torch.where(mask, x, cpu)": "Mixed",
        "x.masked_fill(mask, one)": "fits", "torch.nn.functional.one_hot(mask.long()) + mask[:, None]": "fits",
        "torch.zeros_like(x) + x.new_ones(3)": "fits", "torch.zeros_like(cpu) + x": "Mixed",
    }  # fmt: skip
    (tmp_path / "rules.py").write_text(RULES.format(lines=list(rules)), "utf-8")
    done, _ = run_on_stand_in(tmp_path / "rules.py", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert dict(zip(rules, done.stdout.split(), strict=True)) == rules
