"""Clips of two digits that pass behind a post, side by side: who comes out where can be told by their look alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.data import SPLITS, Split
from lab.data.digits import digits
from lab.data.named import PAINT
from lab.data.photographs import random_crop

SIDE, FRAMES, DIGIT = 32, 8, 8


class Clips(NamedTuple):
    """Frames (n, T, 3, S, S) from 0 to 1; visible pixels of the first digit (n, T, S, S); a click on it in the first frame, x
    and y in pixels (n, 2)."""

    frames: Tensor
    masks: Tensor
    clicks: Tensor


def occluded(split: Split, count: int, seed: int, *, alike: bool = False) -> Clips:
    """Two digits move at one speed, one above and one below, and are hidden for some frames; half of the time they change sides
    there. They differ in colour and form, or, where `alike`, not at all."""
    rng = np.random.default_rng([seed, SPLITS.index(split), alike])
    source, paint = digits(split, DIGIT), np.array(list(PAINT.values()), dtype=np.float32)
    which, colours = (_two(rng, limit, count, alike) for limit in (len(source), len(paint)))  # each (n, 2)
    ink = source.images[torch.from_numpy(which), 0].numpy() > 0.35  # (n, 2, 8, 8)
    low = rng.permuted(np.tile([0, 1], (count, 1)), axis=1)  # which of the two is below, before and after
    swap = rng.integers(2, size=(count, 1))
    along = np.linspace(0, SIDE - DIGIT, FRAMES)[None, None] + rng.uniform(-0.5, 0.5, (count, 2, 1))
    after = np.arange(FRAMES) >= FRAMES // 2
    below = np.where(after, (low ^ swap)[..., None], low[..., None])  # (n, 2, T)
    across = (
        (SIDE // 2) * below
        + rng.integers(1, SIDE // 2 - DIGIT, (count, 2, 1))
        + rng.integers(2, size=(count, 2, FRAMES))
    )
    left = (
        np.where(rng.integers(2, size=(count, 1, 1)), SIDE - DIGIT - along, along)
        .round()
        .clip(0, SIDE - DIGIT)
        .astype(int)
    )
    frames, masks = _painted(rng, split, ink, paint[colours], left, across)
    clicks = [rng.permutation(np.argwhere(mask[0]))[0, ::-1] + 0.5 for mask in masks]
    pixels = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).contiguous()
    return Clips(pixels, torch.from_numpy(masks), torch.from_numpy(np.stack(clicks)).float())


def _two(
    rng: np.random.Generator, limit: int, count: int, alike: bool
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Two different numbers below the limit for each clip, or twice the same."""
    first = rng.integers(limit, size=count)
    return np.stack([first, first if alike else (first + rng.integers(1, limit, count)) % limit], 1)


def _painted(rng: np.random.Generator, split: Split, ink: np.ndarray, colours: np.ndarray, left: np.ndarray,
             top: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Frames (n, T, S, S, 3) and visible pixels of the first digit (n, T, S, S)."""
    count = len(ink)
    frames = np.empty((count, FRAMES, SIDE, SIDE, 3), np.float32)
    masks = np.zeros((count, FRAMES, SIDE, SIDE), bool)
    for clip in range(count):
        frames[clip] = 0.4 * random_crop(rng, split, SIDE)
        post = slice(SIDE // 2 - 7 + rng.integers(-1, 2), SIDE // 2 + 7)
        plank = 0.3 + 0.3 * random_crop(rng, split, SIDE)[:, post]
        for time in range(FRAMES):
            for thing in (1, 0):
                place = (slice(y := top[clip, thing, time], y + DIGIT), slice(x := left[clip, thing, time], x + DIGIT))
                frames[clip, time][place][ink[clip, thing]] = colours[clip, thing]
            masks[clip, time][place] = ink[clip, 0]
        frames[clip, :, :, post] = plank
        masks[clip, :, :, post] = False
    return frames, masks
