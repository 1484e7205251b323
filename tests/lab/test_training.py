"""Minibatches that treat samples alike, schedules without a division by zero, and a loop that trains."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lab.run import Run
from lab.training import count_parameters, fit, learning_rate_factor, minibatches, seed_everything
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")


def regression(model, x, y):
    return nn.functional.mse_loss(model(x), y)


def line_batches(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 2, generator=generator)
    return x, x @ torch.tensor([[2.0], [-1.0]]) + 0.5


def test_the_same_seed_gives_the_same_numbers_everywhere():
    def draws():
        seed_everything(3)
        return torch.rand(2).tolist(), np.random.rand(2).tolist()

    assert draws() == draws()


def test_shared_and_frozen_parameters_are_counted_as_such():
    layer = nn.Linear(3, 4)
    model = nn.Sequential(layer, layer, nn.Linear(4, 1))
    model[2].requires_grad_(False)
    assert count_parameters(model) == 16 + 5
    assert count_parameters(model, trainable_only=True) == 16


@given(n=st.integers(1, 12), batch_size=st.integers(1, 20), steps=st.integers(0, 12), seed=st.integers(0, 2**31))
def test_batches_have_one_size_and_see_samples_equally_often(n, batch_size, steps, seed):
    batches = list(minibatches([torch.arange(n), torch.arange(n) * 10], batch_size, steps, seed))
    assert len(batches) == steps
    assert all(len(x) == batch_size and torch.equal(y, 10 * x) for x, y in batches)
    seen = Counter(value for x, _ in batches for value in x.tolist())
    counts = [seen[value] for value in range(n)]
    assert max(counts) - min(counts) <= 1


def test_the_seed_sets_the_order():
    def order(seed):
        return [x.tolist() for (x,) in minibatches([torch.arange(50)], 10, 5, seed)]

    assert order(1) == order(1)
    assert order(1) != order(2)


@pytest.mark.parametrize(
    ("tensors", "batch_size"),
    [([], 1), ([torch.zeros(0)], 1), ([torch.zeros(2), torch.zeros(3)], 1), ([torch.zeros(2)], 0)],
)
def test_minibatches_refuse_what_cannot_be_cut_at_once(tensors, batch_size):
    with pytest.raises(ValueError, match="must"):
        minibatches(tensors, batch_size, 1, 0)


@given(steps=st.integers(1, 200), part=st.floats(0, 1), schedule=st.sampled_from(["cosine", "constant", "onecycle"]))
def test_the_learning_rate_is_above_zero_and_at_most_its_peak(steps, part, schedule):
    warmup = int(part * (steps - 1))
    factors = [learning_rate_factor(step, steps, warmup, schedule) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_onecycle_agrees_with_torch_away_from_its_rounding_of_the_peak():
    steps = 1000
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=steps, cycle_momentum=False)
    for step in range(steps):
        assert learning_rate_factor(step, steps, 0, "onecycle") == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=0.01
        )
        optimizer.step()
        if step + 1 < steps:
            scheduler.step()


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule must be"):
        learning_rate_factor(0, 10, 0, "linear")


def test_fit_finds_the_line_that_made_the_data():
    seed_everything(0)
    model = nn.Linear(2, 1)
    losses = fit(model, line_batches, regression, steps=300, learning_rate=0.05, device=CPU)
    assert len(losses) == 300
    assert losses[-1] < 1e-4 < losses[0]
    assert model.weight.flatten().tolist() == pytest.approx([2.0, -1.0], abs=0.05)
    assert not model.training


@pytest.mark.parametrize("schedule", ["cosine", "constant", "onecycle"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_very_short_runs_train(schedule, steps):
    model = nn.Linear(2, 1)
    before = model.weight.clone()
    losses = fit(
        model, line_batches, regression, steps=steps, learning_rate=0.1, schedule=schedule, warmup=50, device=CPU
    )
    assert len(losses) == steps
    assert not torch.equal(model.weight, before)


def test_the_same_seed_trains_the_same_model():
    def weights():
        seed_everything(7)
        model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
        fit(model, line_batches, regression, steps=5, learning_rate=0.01, device=CPU)
        return torch.cat([each.flatten() for each in model.parameters()])

    assert torch.equal(weights(), weights())


def test_biases_and_norms_do_not_decay():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    before = {name: each.clone() for name, each in model.named_parameters()}
    zero = lambda model, x, y: 0.0 * model(x).sum()  # noqa: E731
    fit(
        model,
        line_batches,
        zero,
        steps=1,
        learning_rate=0.1,
        weight_decay=0.5,
        schedule="constant",
        warmup=0,
        device=CPU,
    )
    assert torch.allclose(model[0].weight, before["0.weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(model[0].bias, before["0.bias"])
    assert torch.equal(model[1].weight, before["1.weight"])


def test_frozen_parameters_stay():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, line_batches, regression, steps=3, learning_rate=0.1, device=CPU)
    assert torch.equal(model[0].weight, before)


def test_the_gradient_is_clipped():
    norms = []
    model = nn.Linear(2, 1)
    steep = lambda model, x, y: 1e6 * regression(model, x, y)  # noqa: E731
    hook = lambda optimizer, *_: norms.append(  # noqa: E731
        torch.stack([p.grad.norm() for group in optimizer.param_groups for p in group["params"]]).norm().item()
    )
    handle = register_optimizer_step_pre_hook(hook)
    try:
        fit(model, line_batches, steep, steps=2, learning_rate=0.1, clip=0.5, device=CPU)
        fit(model, line_batches, steep, steps=2, learning_rate=0.1, clip=None, device=CPU)
    finally:
        handle.remove()
    assert norms[:2] == pytest.approx([0.5, 0.5], rel=1e-3)
    assert min(norms[2:]) > 1e3


def test_the_callback_comes_every_so_often_and_last_in_evaluation_mode():
    calls = []

    def callback(step, model):
        calls.append((step, model.training, torch.is_grad_enabled()))

    fit(nn.Linear(2, 1), line_batches, regression, steps=7, learning_rate=0.1, device=CPU, every=3, callback=callback)
    assert calls == [(3, False, False), (6, False, False), (7, False, False)]


def test_training_goes_on_in_training_mode_after_a_callback():
    modes = []

    def loss(model, x, y):
        modes.append(model.training)
        return regression(model, x, y)

    fit(nn.Linear(2, 1), line_batches, loss, steps=3, learning_rate=0.1, device=CPU, every=1, callback=lambda *_: None)
    assert modes == [True] * 3


def test_batches_come_from_iterators_too_and_progress_sees_each_step(tmp_path, capsys):
    run = Run.start("unet", argv=["--device", "cpu", "--out", str(tmp_path)])
    x, y = line_batches(0)
    batches = minibatches([x, y], 4, steps=6, seed=0)
    progress = partial(run.progress, what="line")
    losses = fit(nn.Linear(2, 1), batches, regression, steps=6, learning_rate=0.1, device=CPU, progress=progress)
    assert len(losses) == 6
    assert "6/6" in capsys.readouterr().err


def test_nested_batches_reach_the_loss():
    def loss(model, images, targets):
        assert [target["boxes"].shape for target in targets] == [(1, 4), (2, 4)]
        return model(images).sum()

    batch = (torch.ones(2, 2), [{"boxes": torch.zeros(1, 4), "name": "a"}, {"boxes": torch.zeros(2, 4), "name": "b"}])
    fit(nn.Linear(2, 1), lambda step: batch, loss, steps=1, learning_rate=0.1, device=CPU)


def test_batches_that_end_early_are_an_error():
    with pytest.raises(ValueError, match="ended after 2 steps"):
        fit(nn.Linear(2, 1), [line_batches(0)] * 2, regression, steps=3, learning_rate=0.1, device=CPU)


def test_a_loss_that_is_not_finite_is_an_error():
    diverging = lambda model, x, y: regression(model, x, y) / 0.0  # noqa: E731
    with pytest.raises(FloatingPointError, match="the loss of step 0 is inf"):
        fit(nn.Linear(2, 1), line_batches, diverging, steps=2, learning_rate=0.1, device=CPU)


def test_seeding_leaves_the_choice_of_kernels_alone():
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    seed_everything(0)
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == before == (False, False)
