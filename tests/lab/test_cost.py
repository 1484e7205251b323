"""What a training costs is counted while it runs, and counting changes nothing."""

from __future__ import annotations

import pytest
import torch
from lab import training
from lab.cost import Counting, Training
from torch import Tensor, nn
from torch.nn import functional

pytestmark = pytest.mark.torch


def trained(steps: int) -> tuple[Training, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    batch = [torch.rand(5, 1, 4, 4)]
    training.fit(
        model, lambda step: batch, lambda model, x: model(x).square().sum(), steps=steps, learning_rate=0.1,
        device=torch.device("cpu"),
    )  # fmt: skip
    return training.trained[-1], model[0].weight.detach()


def test_views_are_no_kernels() -> None:
    with Counting() as counting:
        torch.ones(4, 6).view(6, 4).t()
    assert (counting.kernels, counting.flops) == (1, 0)


def test_products_count_two_operations_each_forwards_and_backwards() -> None:
    weight = torch.rand(3, 5, requires_grad=True)
    with Counting() as counting:
        (torch.ones(7, 3) @ weight).sum().backward()
    assert counting.flops == 2 * (2 * 7 * 3 * 5), "the input needs no gradient"


def test_attention_is_counted_too() -> None:
    q = torch.rand(2, 4, 64, 16)
    with Counting() as counting:
        functional.scaled_dot_product_attention(q, q, q)
    assert counting.flops == 2 * 2 * (2 * 4 * 64 * 64 * 16)


def test_a_training_costs_its_steps_and_a_step_that_makes_no_state_of_the_optimiser() -> None:
    (one, _), (many, _) = trained(1), trained(20)
    assert (one.steps, many.steps) == (1, 20)
    assert many.kernels < one.kernels
    assert many.gflop == one.gflop > 0


def test_counting_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = trained(5)[1]

    class Idle(Counting):
        def __enter__(self) -> Idle:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(training, "Counting", Idle)
    assert torch.equal(counted, trained(5)[1])
