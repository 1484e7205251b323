"""Deformed digits: real ones of several sizes, turned, sheared, warped and shifted, so that no fixed grid fits them all."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lab.data import SPLITS, Split
from lab.data.digits import Digits, digits

HELD_OUT = 10_000  # seed of all splits but the one to train with, which differs from seed to seed


@lru_cache(maxsize=4)
def deformed_digits(split: Split, count: int, seed: int, canvas: int = 32) -> Digits:
    """`count` digits of a split on (canvas, canvas) pixels, each with a size, angle, shear, place and smooth warp of its own.

    The tensors are shared: copy them to change them.
    """
    rng = np.random.default_rng([seed if split == "train" else HELD_OUT, SPLITS.index(split)])
    source = digits(split, canvas)
    chosen = torch.from_numpy(rng.integers(len(source), size=count))
    grid = functional.affine_grid(_placed(rng, count), [count, 1, canvas, canvas], align_corners=False)
    coarse = torch.from_numpy(rng.normal(0, 0.08, (count, 2, 4, 4))).float()
    warp = functional.interpolate(coarse, canvas, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    images = functional.grid_sample(source.images[chosen], grid + warp, align_corners=False)
    noise = torch.from_numpy(rng.normal(0, 0.05, images.shape)).float()
    return Digits((images + noise).clamp(0, 1), source.labels[chosen])


def _placed(rng: np.random.Generator, count: int) -> Tensor:
    """Affine maps (count, 2, 3) from the canvas to the digit: a digit gets smaller as they grow."""

    def between(low: float, high: float) -> NDArray[np.float64]:
        return rng.uniform(low, high, count)

    angle, shear, scale = between(-0.4, 0.4), between(-0.3, 0.3), between(1.0, 1.7)
    stretch, (cos, sin) = scale * between(0.8, 1.25), (np.cos(angle), np.sin(angle))
    matrix = np.stack([[scale * cos, -scale * sin], [stretch * (sin + shear * cos), stretch * (cos - shear * sin)]])
    shift = rng.uniform(-1, 1, (2, 1, count)) * (scale - 1) * 0.4
    return torch.from_numpy(np.concatenate([matrix, shift], 1)).permute(2, 0, 1).float()
