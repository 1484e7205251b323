"""Yards: countable things, many of them alike, on two kinds of textured ground; every pixel belongs to one segment."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lab.data import SPLITS, Split
from lab.data.named import PAINT
from lab.data.photographs import photograph_region

SIDE, MOST, GROUNDS = 48, 4, 2  # of an image in pixels; things and kinds of ground in a scene, at most
TRIES, LEAST = 6, 25  # places tried for each thing; pixels of it that must be seen
THINGS, STUFF = ("disc", "square", "triangle"), ("brick", "grass", "gravel")
CLASSES = (*THINGS, *STUFF)
TINTS = {"brick": (1.35, 0.95, 0.75), "grass": (0.75, 1.15, 0.6), "gravel": (0.95, 1.0, 1.1)}

Floats = NDArray[np.float64]


class Yards(NamedTuple):
    """Images (n, 3, S, S) from 0 to 1; labels (n, M), K where padded, things first, and masks (n, M, S, S), what can be seen."""

    images: Tensor
    labels: Tensor
    masks: Tensor


def yards(split: Split, count: int, seed: int) -> Yards:
    """Scenes of two kinds of ground on either side of a line, with two to four things anywhere, later ones on top.

    In half of the scenes all things have one colour, in half of them one shape: what a thing is does not say which it is.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    shape = (count, MOST)
    kinds = rng.permuted(np.tile(np.arange(len(STUFF)), (count, 1)), axis=1)[:, :GROUNDS]
    shapes, colours = (_alike(rng, shape, limit) for limit in (len(THINGS), len(PAINT)))
    half = rng.uniform(5, 9.5, shape)
    cover = _covers(shapes, _places(rng, half), half)  # (n, M, S, S)
    cover &= (np.arange(MOST) < rng.integers(2, MOST + 1, (count, 1)))[..., None, None]
    cover &= _visible(cover).sum((2, 3), keepdims=True) >= LEAST
    things = _visible(cover)
    paint = np.array(list(PAINT.values()))[colours] * rng.uniform(0.8, 1.05, (*shape, 1))  # (n, M, 3)
    beyond = _beyond(rng, count)  # (n, S, S)
    images = np.where(beyond[..., None], *(_ground(rng, split, kinds[:, i]) for i in range(GROUNDS)))
    for thing in range(MOST):
        images = np.where(things[:, thing, ..., None], paint[:, thing, None, None], images)
    images += rng.normal(0, 0.03, images.shape)
    grounds = np.stack([beyond, ~beyond], 1) & ~things.any(1, keepdims=True)
    masks, labels = np.concatenate([things, grounds], 1), np.concatenate([shapes, kinds + len(THINGS)], 1)
    labels = np.where(masks.any((2, 3)), labels, len(CLASSES))
    pixels = torch.from_numpy(images.clip(0, 1)).float().permute(0, 3, 1, 2).contiguous()
    return Yards(pixels, torch.from_numpy(labels), torch.from_numpy(masks))


def _alike(rng: np.random.Generator, shape: tuple[int, int], limit: int) -> NDArray[np.int64]:
    """Numbers below the limit, which in half of the rows are all the same."""
    free = rng.integers(limit, size=shape)
    return np.where(rng.random((shape[0], 1)) < 0.5, free[:, :1], free)


def _places(rng: np.random.Generator, half: Floats) -> Floats:
    """Centres (n, M, 2) of things, each the one of a few random places that is farthest from those before."""
    count, most = half.shape
    centre = np.full((count, most, 2), np.inf)
    for thing in range(most):
        reach = half[:, thing, None, None]
        tries = reach + rng.uniform(0, 1, (count, TRIES, 2)) * (SIDE - 2 * reach)
        gap = np.hypot(*(tries[:, :, None] - centre[:, None, :thing]).transpose(3, 0, 1, 2)).min(-1, initial=SIDE)
        centre[:, thing] = tries[np.arange(count), gap.argmax(1)]
    return centre


def _covers(shapes: NDArray[np.int64], centre: Floats, half: Floats) -> NDArray[np.bool_]:
    """All pixels of things, (n, M, S, S)."""
    u, v = np.moveaxis((np.arange(SIDE) + 0.5 - centre[..., None]) / half[..., None, None], 2, 0)  # each (n, M, S)
    u, v = u[:, :, None], v[..., None]
    square = (abs(u) < 0.9) & (abs(v) < 0.9)
    forms = np.stack([np.hypot(u, v) < 1, square, (abs(v) < 1) & (abs(u) < (v + 1) / 2)])  # (3, n, M, S, S)
    found: NDArray[np.bool_] = np.take_along_axis(forms, shapes[None, ..., None, None], 0)[0]
    return found


def _visible(cover: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What can be seen of each, (n, M, S, S), where later ones lie on top."""
    above: NDArray[np.int64] = np.cumsum(cover[:, ::-1], 1)[:, ::-1] - cover
    seen: NDArray[np.bool_] = cover & (above == 0)
    return seen


def _beyond(rng: np.random.Generator, count: int) -> NDArray[np.bool_]:
    """The pixels (n, S, S) on one side of a line near the middle."""
    angle, shift = rng.uniform(0, 2 * np.pi, (count, 1, 1)), rng.uniform(-0.2, 0.2, (count, 1, 1))
    x, y = np.meshgrid(*[np.linspace(-0.5, 0.5, SIDE)] * 2)
    return np.cos(angle) * x + np.sin(angle) * y > shift


def _ground(rng: np.random.Generator, split: Split, kinds: NDArray[np.int64]) -> Floats:
    """One texture for each scene, (n, S, S, 3), from the part of a photograph that belongs to the split, at half its size."""
    sources = [photograph_region(name, split)[::2, ::2] * np.array(TINTS[name]) for name in STUFF]
    crops = np.empty((len(kinds), SIDE, SIDE, 3))
    for scene, kind in enumerate(kinds):
        top, left = (rng.integers(side - SIDE + 1) for side in sources[kind].shape[:2])
        crops[scene] = sources[kind][top : top + SIDE, left : left + SIDE]
    return crops * rng.uniform(0.6, 1.0, (len(kinds), 1, 1, 1))
