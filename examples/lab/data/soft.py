"""Scenes of one shape with soft edges: where an edge lies can be seen, but not to the pixel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.data import SPLITS, Split
from lab.data.photographs import random_crop

SIDE, SIZES, RAMP = 48, (12.0, 28.0), (1.0, 6.0)  # in pixels: of an image, of a shape, of the ramp at its edge
ROUND = (1.0, 2.0, 8.0)  # exponents of a diamond, an ellipse and nearly a rectangle


class Soft(NamedTuple):
    """Images (n, 3, S, S) from 0 to 1, and the box of the shape, cxcywh relative to the image (n, 4)."""

    images: Tensor
    boxes: Tensor


def soft(split: Split, count: int, seed: int) -> Soft:
    """Scenes with one shape anywhere on a dimmed photograph of the split; its edge is where it covers half."""
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    images = np.stack([random_crop(rng, split, SIDE) for _ in range(count)]) * np.float32(0.5)  # (n, S, S, 3)
    half = SIZES[0] * (SIZES[1] / SIZES[0]) ** rng.uniform(0, 1, (count, 1)) / 2 * rng.uniform(0.7, 1, (count, 2))
    centre = half + rng.uniform(0, 1, (count, 2)) * (SIDE - 2 * half)
    form, ramp = rng.choice(ROUND, count)[:, None, None], rng.uniform(*RAMP, count)
    colour = rng.uniform(0.3, 1, (count, 1, 1, 3)).astype(np.float32)
    u, v = (abs(np.arange(SIDE) + 0.5 - centre[:, i, None]) / half[:, i, None] for i in (0, 1))  # each (n, S)
    radius = (u[:, None] ** form + v[:, :, None] ** form) ** (1 / form)  # (n, S, S), 1 on the outline
    cover = ((1 - radius) * (half.min(-1) / ramp)[:, None, None] + 0.5).clip(0, 1).astype(np.float32)[..., None]
    painted = torch.from_numpy(images * (1 - cover) + colour * cover).permute(0, 3, 1, 2).contiguous()
    return Soft(painted, torch.from_numpy(np.concatenate([centre, 2 * half], -1) / SIDE).float())
