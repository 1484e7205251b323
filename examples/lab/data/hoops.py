"""Scenes of hoops: bright lines, round or square, that hide nothing of each other however much their boxes overlap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.data import SPLITS, Split
from lab.data.photographs import random_crop

SIDE, MOST = 40, 3  # pixels of an image; hoops in a scene
SIZES, LINE = (12.0, 19.0), 2.0  # pixels of a hoop, from edge to edge, and of its line
SHIFT = (0.12, 0.6)  # of the second hoop of a pair, in sides: boxes with an IoU of about 0.8 to 0.25


class Hoops(NamedTuple):
    """Images (n, 3, S, S) from 0 to 1, and boxes xyxy in pixels (n, M, 4), of no size where there is none; the first two of a
    scene are a pair, where there are two."""

    images: Tensor
    boxes: Tensor


def hoops(split: Split, count: int, seed: int, pairs: float = 0.5) -> Hoops:
    """Scenes on dimmed photographs of the split, with one hoop, often a second one beside it, and often one elsewhere.

    `pairs` is the part of the scenes with a second hoop over much of the first one.
    """
    rng, shape = np.random.default_rng([seed, SPLITS.index(split), round(100 * pairs)]), (count, MOST)
    images = np.stack([random_crop(rng, split, SIDE) for _ in range(count)]) * np.float32(0.5)  # (n, S, S, 3)
    half = rng.uniform(*SIZES, (*shape, 1)) / 2 * rng.uniform(0.85, 1, (*shape, 2))
    half[:, 1] = half[:, 0] * rng.uniform(0.95, 1.05, (count, 2))
    centre = half + rng.uniform(0, 1, half.shape) * (SIDE - 2 * half)
    away = rng.uniform(*SHIFT, (count, 1)) * 2 * half[:, 0] * rng.permuted(np.tile([0, 1], (count, 1)), axis=1)
    towards = np.where(centre[:, 0] < SIDE / 2, 1, -1)  # so that the second one is in the scene, too
    centre[:, 1] = (centre[:, 0] + towards * away).clip(half[:, 1], SIDE - half[:, 1])
    there = np.stack([np.ones(count), rng.uniform(size=count) < pairs, rng.uniform(size=count) < 0.5], 1).astype(bool)
    colour, form = rng.uniform(0.3, 1, (*shape, 3)), rng.choice((2.0, 8.0), shape)
    for m in range(MOST):
        u, v = (abs(np.arange(SIDE) + 0.5 - centre[:, m, i, None]) / half[:, m, i, None] for i in (0, 1))  # (n, S)
        p = form[:, m, None, None]
        inside = (1 - (u[:, None] ** p + v[:, :, None] ** p) ** (1 / p)) * half[:, m].min(-1)[:, None, None]  # px
        cover = (inside + 0.5).clip(0, 1) * (LINE + 0.5 - inside).clip(0, 1) * there[:, m, None, None]
        images = images * (1 - cover[..., None]) + colour[:, m, None, None] * cover[..., None]
    boxes = np.concatenate([centre - half, centre + half], -1) * there[..., None]
    return Hoops(torch.from_numpy(images).float().permute(0, 3, 1, 2).contiguous(), torch.from_numpy(boxes).float())
