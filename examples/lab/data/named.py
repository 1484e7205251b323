"""Scenes of named things: coloured shapes on dimmed photographs, each with a name of two words, a colour and a shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lab.data import SPLITS, Split
from lab.data.photographs import random_crop

SIDE, MOST = 48, 3  # of an image in pixels; things in a scene
PAINT = {
    "red": (0.9, 0.15, 0.15),
    "green": (0.15, 0.7, 0.2),
    "blue": (0.2, 0.35, 0.95),
    "yellow": (0.95, 0.8, 0.1),
    "white": (0.9, 0.9, 0.9),
}
SHAPES = ("disc", "square", "triangle", "cross", "ring")
WORDS = (*PAINT, *SHAPES)
NAMES = tuple(f"{colour} {shape}" for colour in PAINT for shape in SHAPES)
SPELLING = torch.cartesian_prod(torch.arange(5), torch.arange(5, 10))  # (K, 2): the words of each name
STEP = 6  # every sixth name is left out: no training shows or says it; each of its words is in four other names
LEFT_OUT = tuple(range(0, len(NAMES), STEP))
KNOWN = tuple(each for each in range(len(NAMES)) if each not in LEFT_OUT)


Floats = NDArray[np.float64]


class Named(NamedTuple):
    """Images (n, 3, S, S) from 0 to 1; boxes (n, M, 4) cxcywh relative to the image, labels (n, M), K where padded, and masks
    (n, M, S, S), empty there."""

    images: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor


def named(split: Split, count: int, seed: int, classes: Sequence[int] = KNOWN) -> Named:
    """Scenes with one to three things of different names out of `classes`, each in a quarter of its own."""
    rng = np.random.default_rng([seed, SPLITS.index(split), len(classes)])
    images = np.stack([random_crop(rng, split, SIDE) for _ in range(count)]) * np.float32(0.45)  # (n, S, S, 3)
    shape = (count, MOST)
    labels = rng.permuted(np.tile(classes, (count, 1)), axis=1)[:, :MOST]  # without replacement
    quarter = rng.permuted(np.tile(np.arange(4), (count, 1)), axis=1)[:, :MOST]
    half = rng.uniform(5.5, 10, shape)[..., None] * rng.uniform(0.85, 1.15, (*shape, 2))  # (n, M, 2)
    room = SIDE / 2 - 2 * half
    centre = np.stack([quarter % 2, quarter // 2], -1) * SIDE / 2 + half + rng.uniform(0, 1, half.shape) * room
    colour = np.array(list(PAINT.values()))[labels // 5] + rng.uniform(-0.1, 0.1, (*shape, 3))  # (n, M, 3)
    masks = np.zeros((*shape, SIDE, SIDE), dtype=bool)
    there = np.arange(MOST) < rng.integers(1, MOST + 1, (count, 1))
    for thing in range(MOST):
        for form in range(len(SHAPES)):
            (which,) = np.nonzero(there[:, thing] & (labels[:, thing] % len(SHAPES) == form))
            masks[which, thing] = _cover(form, centre[which, thing], half[which, thing])
        images = np.where(masks[:, thing, ..., None], colour[:, thing, None, None], images)
    boxes = np.concatenate([centre, 2 * half], -1) / SIDE
    padded = np.where(there, labels, len(NAMES))
    pixels = torch.from_numpy(images.clip(0, 1)).float().permute(0, 3, 1, 2).contiguous()
    cornered = torch.from_numpy(boxes * there[..., None]).float()
    return Named(pixels, cornered, torch.from_numpy(padded), torch.from_numpy(masks))


def _cover(shape: int, centre: Floats, half: Floats) -> NDArray[np.bool_]:
    """The pixels (n, S, S) of one shape that fills boxes with these centres and half sides (n, 2)."""
    axis = np.arange(SIDE) + 0.5
    u = ((axis - centre[:, :1]) / half[:, :1])[:, None]  # (n, 1, S)
    v = ((axis - centre[:, 1:]) / half[:, 1:])[:, :, None]  # (n, S, 1)
    if SHAPES[shape] in ("disc", "ring"):
        radius = np.hypot(u, v)
        return (radius < 1) & (radius > 0.5 * (SHAPES[shape] == "ring"))
    inside = (abs(u) < 1) & (abs(v) < 1)
    if SHAPES[shape] == "triangle":
        return inside & (abs(u) < (v + 1) / 2)
    return inside & (np.minimum(abs(u), abs(v)) < (0.35 if SHAPES[shape] == "cross" else 1))
