"""Pairs of coloured shapes with captions: what is said of an image is put together from words, some combinations never shown.

A kind is a colour and a shape. Two things of different colour and shape lie side by side on noise; the caption names them in
any order. Six of the 36 kinds are kept out of all scenes but those asked for.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lab.data import SPLITS, Split
from lab.device import moved

COLOURS = {"red": (0.9, 0.15, 0.15), "green": (0.1, 0.75, 0.2), "blue": (0.15, 0.3, 0.95),
           "yellow": (0.95, 0.85, 0.1), "pink": (0.95, 0.45, 0.8), "white": (1.0, 1.0, 1.0)}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
WORDS = (*COLOURS, *SHAPES, "and")
SIDE, KINDS = 32, len(COLOURS) * len(SHAPES)  # pixels; combinations of colour and shape


class Scenes(NamedTuple):
    """images: (B, 3, 32, 32) in [0, 1]; kinds: (B, 2) of the thing to the left and to the right, 6 colour + shape."""

    images: Tensor
    kinds: Tensor


def pairs_of_kinds(unseen: bool) -> Tensor:
    """All pairs (P, 2) of kinds that differ in colour and shape; with none, or with just one, that is kept out."""
    pairs = torch.combinations(torch.arange(KINDS))  # (630, 2), each pair once
    colour, shape = pairs // len(SHAPES), pairs % len(SHAPES)
    differ = (colour[:, 0] != colour[:, 1]) & (shape[:, 0] != shape[:, 1])
    kept_out = (colour == shape).sum(1)  # of the two
    return pairs[differ & (kept_out == int(unseen))]


def inks(u: Tensor, v: Tensor) -> Tensor:
    """How far a point lies inside each shape, positive inside: coordinates (..., H, W) in radii -> (..., 6, H, W)."""
    r, high = (u**2 + v**2).sqrt(), torch.maximum(u.abs(), v.abs())
    triangle = torch.minimum(0.8 - v, (0.9 + v) / 2 - u.abs())
    cross = torch.minimum(1 - high, 0.35 - torch.minimum(u.abs(), v.abs()))
    return torch.stack([1 - r, 0.85 - high, triangle, cross, 0.28 - (r - 0.72).abs(), 1.1 - u.abs() - v.abs()], -3)


def draw_scenes(kinds: Tensor, generator: torch.Generator) -> Scenes:
    """Draws pairs of kinds (B, 2) at random places, in random sizes, on grey noise; all on the device of `kinds`."""
    device, B = kinds.device, len(kinds)
    random = partial(torch.rand, generator=generator, device=device)
    radius = 5 + 2 * random(B, 2, 1, 1)  # (B, 2, 1, 1), as all below
    side = torch.where(random(B, 1, 1, 1) < 0.5, 8.0, 24.0)  # of the first thing; the other is at the other
    x = torch.cat([side, SIDE - side], 1) + 2 * random(B, 2, 1, 1) - 1
    y = 8 + 16 * random(B, 2, 1, 1)
    pixels = torch.arange(SIDE, device=device) + 0.5
    ink = inks((pixels - x) / radius, (pixels[:, None] - y) / radius)  # (B, 2, 6, H, W)
    chosen = (kinds % len(SHAPES))[:, :, None, None, None].expand(-1, -1, 1, SIDE, SIDE)
    cover = (ink.gather(2, chosen) * radius[..., None] + 0.5).clamp(0, 1)  # (B, 2, 1, H, W), edges a pixel wide
    paint = moved(torch.tensor([*COLOURS.values()]), device)[kinds // len(SHAPES)][..., None, None]  # (B, 2, 3, 1, 1)
    images = (0.15 + 0.3 * random(B, 1, 1, 1) + 0.1 * random(B, 3, SIDE, SIDE)).clamp(0, 1)
    for thing in range(2):
        images = torch.lerp(images, paint[:, thing] * (0.75 + 0.25 * random(B, 1, 1, 1)), cover[:, thing])
    return Scenes(images, kinds)


def captions(kinds: Tensor) -> Tensor:
    """Words (..., 5) of pairs (..., 2): "c s and c s"."""
    colour, shape = kinds // len(SHAPES), len(COLOURS) + kinds % len(SHAPES)
    between = torch.full_like(colour[..., 0], WORDS.index("and"))
    return torch.stack([colour[..., 0], shape[..., 0], between, colour[..., 1], shape[..., 1]], -1)


def written(words: Tensor) -> str:
    return " ".join(WORDS[int(word)] for word in words)


def draw_pairs(pairs: Tensor, generator: torch.Generator) -> Scenes:
    """Draws pairs of kinds (B, 2), each in any order."""
    first = torch.randint(2, (len(pairs), 1), generator=generator, device=pairs.device)
    return draw_scenes(pairs.gather(1, torch.cat([first, 1 - first], 1)), generator)


def batches(count: int, seed: int, device: torch.device) -> Iterator[Scenes]:
    """Endless batches of `count` scenes without the kinds that are kept out, no pair of kinds twice in a batch."""
    generator, pairs = torch.Generator(device).manual_seed(seed), pairs_of_kinds(unseen=False).to(device)
    while True:
        chosen = torch.randperm(len(pairs), generator=generator, device=device)[:count]
        yield draw_pairs(pairs[chosen], generator)


def held_out(split: Split, unseen: bool, device: torch.device) -> Scenes:
    """A new scene of each pair of kinds, the same for every seed."""
    generator = torch.Generator().manual_seed(2 * SPLITS.index(split) + unseen)
    scenes = draw_pairs(pairs_of_kinds(unseen), generator)
    return Scenes(moved(scenes.images, device), moved(scenes.kinds, device))
