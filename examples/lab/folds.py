"""Coarse brain slices for a cross-validation: every network of it trains without a part of its own, on mirrored slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lab.data import SPLITS, Split
from lab.data.brain import TUMOUR, brain_slices
from lab.slices import dices

MIRRORS: tuple[tuple[int, ...], ...] = ((), (-2,), (-1,), (-2, -1))  # axes of the mirrored copies of a slice
AREA = (100, 400)  # pixels of 2 mm: no tumour is less than 25 pixels of 4 mm
MARGIN = 16  # mm at each side of a slice, which hold air


@lru_cache(maxsize=8)
def coarse_slices(
    split: Split, counts: tuple[int, int, int], seed: int, millimetres: Literal[1, 2] = 2
) -> tuple[Tensor, Tensor]:
    """Normalised images (N, 1, H, W) and labels (N, H, W), at twice the spacing given: 48 x 40 pixels of 4 mm at 2.

    counts: of training, validation and test slices.
    """
    area, edge = tuple(pixels * 4 // millimetres**2 for pixels in AREA), MARGIN // millimetres
    count = counts[SPLITS.index(split)]
    made = brain_slices(
        split, count, seed=seed, millimetres=millimetres, tumours=(2, 4), tumour_pixels=(area[0], area[1])
    )
    images = functional.avg_pool2d(made.images[:, :, edge:-edge, edge:-edge], 2)
    deviation, mean = torch.std_mean(images, (2, 3), keepdim=True)
    return (images - mean) / deviation, made.labels[:, edge:-edge:2, edge:-edge:2].contiguous()


def orders(count: int, folds: int, networks: int, steps: int, batch: int, seed: int) -> Tensor:
    """(steps, networks, batch) indices of samples: network k draws from all of `count` but the k-th of so many folds."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randperm(count, generator=generator).chunk(folds)
    drawn = []
    for own in range(networks):
        rest = torch.cat([part for fold, part in enumerate(parts) if fold != own])
        drawn.append(rest[torch.randint(len(rest), (steps, batch), generator=generator)])
    return torch.stack(drawn, 1)


def mirrored_batches(tensors: Sequence[Tensor], order: Tensor, seed: int) -> Callable[[int], tuple[Tensor, ...]]:
    """From the step to a batch (G, B, ..., H, W) of each tensor (N, ..., H, W), mirrored along random axes.

    order: (steps, G, B), see `orders`. Tensors and order stay on the device of the first tensor.
    """
    chosen, generator = order.to(tensors[0].device), torch.Generator().manual_seed(seed)
    flips = torch.randint(len(MIRRORS), (len(order),), generator=generator).tolist()

    def batch_at(step: int) -> tuple[Tensor, ...]:
        return tuple(each[chosen[step]].flip(MIRRORS[flips[step]]) for each in tensors)

    return batch_at


def mean_dice(p: Tensor, labels: Tensor) -> float:
    """Mean Dice of the tissues; one that is neither there nor found does not count: p (N, K, H, W), labels (N, H, W)."""
    found = dices(p.argmax(1).cpu(), labels.cpu())
    return torch.tensor(list(found.values())).nanmean().item()


def median_slice(labels: Tensor) -> int:
    """The slice (of N, H, W) with the median area of tumours: chosen by the truth, not by what comes out."""
    areas = torch.eq(labels, TUMOUR).sum((1, 2))
    return int(areas.argsort(stable=True)[len(areas) // 2])
