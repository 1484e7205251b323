"""The device of a run: one precision for all that it multiplies, and what a run on it needed. No GPU is needed for that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lab.device import float32_of, moved, prepare
from lab.options import Settings
from lab.run import Run, described

pytestmark = pytest.mark.torch

CUDA = torch.device("cuda")


def precisions() -> tuple[str, str]:
    """Of convolutions, and of matrix products."""
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


def test_on_a_gpu_convolutions_and_matrix_products_round_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    before = precisions()
    prepare(torch.device("cpu"))
    assert precisions() == before
    try:
        prepare(CUDA)
        assert precisions() == ("tf32", "tf32")
        assert (float32_of(CUDA), float32_of(torch.device("cpu"))) == ("tf32", "ieee")
    finally:
        torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def test_what_is_there_is_not_copied() -> None:
    there = torch.ones(2)
    assert moved(there, torch.device("cpu")) is there


@pytest.mark.parametrize(
    ("preset", "device", "only", "measured"),
    [("full", "cuda", (), True), ("full", "cuda", ("one",), False), ("quick", "cuda", (), False), ("full", "cpu", (), False)],
)  # fmt: skip
def test_needs_are_recorded_where_a_gpu_ran_all_of_full(
    preset: str, device: str, only: tuple[str, ...], measured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 2_340_000_000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    settings = Settings(preset, torch.device(device), (0,), tmp_path, "random", claims=False, only=only)
    run = Run("unet", settings)
    run.experiment("skips", question="Do skips help?", data="digits")
    needs = {"memory_gb": 2.3, "minutes": 1, "card": "a card"}
    assert described(run)["needed"] == (needs if measured else None)
