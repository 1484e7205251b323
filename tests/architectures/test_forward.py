"""A forward pass on the meta device: what it costs, and what it keeps for the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.architectures.forward import cost_of

pytestmark = pytest.mark.torch


def test_saved_activations_are_counted_once_and_without_the_weights() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        found = cost_of(model, (torch.rand(3, 8),))
    assert found.saved_bytes == 4 * (3 * 8 + 3 * 16)  # the input, and the output of the ReLU, which two layers keep
    assert (found.macs, found.token_macs) == (3 * (8 * 16 + 16 * 4), 0)
