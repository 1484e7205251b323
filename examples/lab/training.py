"""Training: seeds, shuffled minibatches, and one loop with the settings that all examples share."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lab.cost import Counting, Training
from lab.device import moved

Schedule = Literal["cosine", "constant", "onecycle"]
Batches = Iterable[Sequence[Any]] | Callable[[int], Sequence[Any]]

trained: list[Training] = []
"""What each training of this process cost, in their order."""


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch on every device: the same numbers on a CPU, on a GPU up to the order of its sums."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """The number of parameters; those shared by several layers count once."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad or not trainable_only)


def minibatches(tensors: Sequence[Tensor], batch_size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Cuts endless shuffled epochs into batches of one size.

    A batch may span two epochs, so that over any run the samples differ by at most one in how often they were seen.

    Args:
        tensors: each (n, ...), with the same n.
        batch_size: samples in each batch; may exceed n.
        steps: number of batches.
        seed: of the order.

    Yields:
        For each of the tensors its batch (B, ...).

    Raises:
        ValueError: there are no samples, the tensors differ in length, or the batch size is below 1.
    """
    lengths = {len(each) for each in tensors}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"tensors must have one common length above 0, not {sorted(lengths)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    return _minibatches(tensors, batch_size, steps, torch.Generator().manual_seed(seed))


def _minibatches(
    tensors: Sequence[Tensor], batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, ...]]:
    n = len(tensors[0])
    epochs = [torch.randperm(n, generator=generator) for _ in range(-(-batch_size * steps // n))]
    order = torch.cat([torch.empty(0, dtype=torch.long), *epochs])
    orders = {each.device: moved(order, each.device) for each in tensors}  # once, so that no step waits for its part
    for start in range(0, batch_size * steps, batch_size):
        yield tuple(each[orders[each.device][start : start + batch_size]] for each in tensors)


def learning_rate_factor(step: int, steps: int, warmup: int, schedule: Schedule) -> float:
    """The part of the peak learning rate that a step uses.

    Args:
        step: from 0 to steps - 1.
        steps: of the whole training.
        warmup: steps of linear growth from 0 to the peak, for "cosine" and "constant".
        schedule: "cosine" falls to 0 (Loshchilov and Hutter, arXiv:1608.03983, Eq. 5, without restarts); "constant"
            stays; "onecycle" grows from 1/25 over the first 30 % and falls to 1/250,000, both along a cosine, with the
            defaults of `torch.optim.lr_scheduler.OneCycleLR`, but without a cycle of the momentum.

    Raises:
        ValueError: the schedule is unknown.
    """
    if schedule == "onecycle":
        peak = 0.3 * steps
        if step < peak:
            return _cosine(1 / 25, 1.0, step / peak)
        return _cosine(1.0, 1 / 250_000, (step - peak) / (steps - peak))
    if schedule not in ("cosine", "constant"):
        raise ValueError(f"schedule must be cosine, constant or onecycle, not {schedule!r}")
    if step < warmup:
        return (step + 1) / warmup
    return 1.0 if schedule == "constant" else _cosine(1.0, 0.0, (step - warmup) / (steps - warmup))


def _cosine(start: float, end: float, part: float) -> float:
    """Half a cosine from `start` at 0 to `end` at 1."""
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


def _layout(model: nn.Module, device: torch.device) -> torch.memory_format:
    """What tensor cores convolve in; there is none for a model that has kernels of two and of three dimensions."""
    is_flat = all(parameter.ndim != 5 for parameter in model.parameters())
    return torch.channels_last if device.type == "cuda" and is_flat else torch.preserve_format


def fit(
    model: nn.Module,
    batches: Batches,
    loss: Callable[..., Tensor],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float = 1e-4,
    warmup: int | None = None,
    schedule: Schedule = "cosine",
    clip: float | None = 1.0,
    device: torch.device,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
    every: int | None = None,
    callback: Callable[[int, nn.Module], None] | None = None,
) -> list[float]:
    """Trains `model` in place with AdamW (arXiv:1711.05101); where the device is CUDA, in bfloat16 and channels last.

    Args:
        model: moved to `device`, put into training mode, and left in evaluation mode.
        batches: an iterable of batches, or a function from the step (0, 1, ...) to a batch. A batch is a sequence of
            tensors, or of lists, tuples and dicts of them, or of anything with ``to(device)``; it is moved to `device`.
        loss: called as ``loss(model, *batch)``; returns a scalar.
        steps: of the optimiser.
        learning_rate: at the peak of the schedule.
        weight_decay: on weights with two axes or more; biases and norms have none.
        warmup: steps of linear growth; a twentieth of all steps where None. Not used by "onecycle".
        schedule: see `learning_rate_factor`.
        clip: largest norm of the gradient; None for no limit.
        device: where to train.
        progress: wraps the steps, e.g. ``functools.partial(run.progress, what="U-Net")``.
        every: calls `callback` after each so many steps, and after the last one.
        callback: called as ``callback(steps done, model)``, in evaluation mode and without gradients.

    Returns:
        The loss of each step.

    Raises:
        ValueError: the batches end early, or a setting is out of range.
        FloatingPointError: a loss was not finite (found after the last step, so that the device need not wait).
    """
    if steps < 1 or (every is not None and every < 1):
        raise ValueError(f"steps and every must be at least 1, not {steps} and {every}")
    warmup = steps // 20 if warmup is None else min(warmup, steps - 1)
    model.to(device, memory_format=_layout(model, device)).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(_parameter_groups(model, weight_decay), lr=learning_rate, fused=device.type != "mps")
    batch_at, parameters = _batch_at(batches), list(model.parameters())
    losses: list[Tensor] = []
    counting, counted = Counting(), min(1, steps - 1)  # the first step makes the state of the optimiser, too
    for step in progress(range(steps)) if progress is not None else range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(step, steps, warmup, schedule)
        with counting if step == counted else nullcontext():
            losses.append(_train_step(step, model, parameters, batch_at, loss, optimizer, clip, device))
        if callback is not None and every is not None and ((step + 1) % every == 0 or step + 1 == steps):
            _call_back(callback, step + 1, model)
    model.eval()
    trained.append(counting.of(steps))
    return _finite(torch.stack(losses).tolist())


def _train_step(
    step: int,
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batch_at: Callable[[int], Sequence[Any]],
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    clip: float | None,
    device: torch.device,
) -> Tensor:
    """One step of the optimiser, from its batch on; returns the loss, still on its device."""
    batch = _to_device(batch_at(step), device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        value = loss(model, *batch)
    optimizer.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    if clip is not None:
        nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    return value.detach().float()


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable weights with decay, biases and norms without; groups without a member are left out."""
    trainable = [each for each in model.parameters() if each.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [each for each in trainable if each.ndim >= 2], "weight_decay": weight_decay},
        {"params": [each for each in trainable if each.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _batch_at(batches: Batches) -> Callable[[int], Sequence[Any]]:
    if callable(batches):
        return batches
    iterator = iter(batches)

    def batch_at(step: int) -> Sequence[Any]:
        try:
            return next(iterator)
        except StopIteration:
            raise ValueError(f"batches ended after {step} steps; give as many as there are steps") from None

    return batch_at


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return moved(value, device)
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to_device(each, device) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_to_device(each, device) for each in value]
    return value


def _call_back(callback: Callable[[int, nn.Module], None], step: int, model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        callback(step, model)
    model.train()


def _finite(losses: list[float]) -> list[float]:
    for step, value in enumerate(losses):
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss of step {step} is {value}; lower the learning rate or clip more")
    return losses
