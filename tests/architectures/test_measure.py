"""Timing: what is asked for is timed, and whatever ends a timing is recorded."""

from __future__ import annotations

import multiprocessing as mp
import os
import time

import pytest
import torch
from conftest import ROOT

from scripts.architectures import measure
from scripts.cards.library import load_library
from scripts.cards.values import size_of

pytestmark = pytest.mark.torch

LIBRARY, _ = load_library(ROOT / "model_cards", ROOT)


def test_models_to_time_are_named_by_card_or_by_build() -> None:
    assert len(measure.wanted(LIBRARY, [])) >= 65
    assert measure.wanted(LIBRARY, ["unet"]) == ["ours/unet_2015 @ 572 x 572"]
    assert all(key.startswith("monai/") for key in measure.wanted(LIBRARY, ["monai/"]))
    assert measure.wanted(LIBRARY, ["nothing"]) == []


def test_a_small_model_is_timed_and_its_weights_are_random_and_finite() -> None:
    job = measure.Job("ours/graph_transformer", (23, 50), "cpu", 2, "fp32", 3, 1, 60)
    model = measure._random_model(job, torch.device("cpu"))
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
    assert float(model.layers[0].attention.query.weight.std()) == pytest.approx((2 / 64) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("work", "arguments", "seconds", "reason"),
    [(time.sleep, (600,), 0.2, "not done within 0.2 s"), (os._exit, (3,), 120, "the process ended with 3"),
     (size_of, ("a x b",), 120, "ValueError: invalid literal"), (size_of, ("8 x 8",), 120, (8, 8))],
)  # fmt: skip
def test_whatever_ends_a_timing_is_recorded(
    work: object, arguments: tuple[object, ...], seconds: float, reason: object
) -> None:
    context = mp.get_context("spawn")
    found = measure._asked(context, work, arguments, seconds)
    assert found == reason if isinstance(reason, tuple) else str(found).startswith(str(reason))
