"""Scenes in which a click is ambiguous, and the annotator who clicks on them.

Two groups stand on each dimmed photograph: a digit on a plate on a larger plate. A click on the digit is right for all three
masks of its group. Scenes of an unseen kind have other shapes on other plates, none of which is in training, on photographs
with the same colours: what differs is the shapes alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.data import Split
from lab.data.digits import digits
from lab.data.photographs import random_crop

SIDE = 32  # of an image in pixels
LEVELS = ("digit", "inner plate", "outer plate")
NOTHING, OUTSIDE, INSIDE, UPPER_LEFT, LOWER_RIGHT = range(5)  # kinds of a prompt's points


class Nested(NamedTuple):
    """Images (n, 3, S, S) from 0 to 1, and masks (n, 2 groups, 3 levels, S, S), each inside the next."""

    images: Tensor
    masks: Tensor


def unseen_shape(rng: np.random.Generator, side: int) -> np.ndarray[Any, Any]:
    """A ring, a cross or a triangle, (side, side) from 0 to 1."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    shapes = (abs(np.hypot(x, y) - 0.72) < 0.28, np.minimum(abs(x), abs(y)) < 0.3, abs(x) < (y + 1) / 2)
    return np.asarray(shapes[rng.integers(3)], dtype=np.float32)


@lru_cache(maxsize=6)
def nested(split: Split, count: int, seed: int, *, unseen: bool = False) -> Nested:
    """Scenes with two groups each, side by side or one above the other."""
    rng = np.random.default_rng([seed, ("train", "val", "test").index(split), unseen])
    handwritten = digits(split, 8).images[:, 0].numpy()
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5
    images = np.empty((count, SIDE, SIDE, 3), np.float32)
    masks = np.zeros((count, 2, 3, SIDE, SIDE), bool)
    for image, groups in zip(images, masks, strict=True):
        image[:] = 0.3 * random_crop(rng, split, SIDE)
        flip, across = rng.random() < 0.5, rng.uniform(8, SIDE - 8, 2)
        for group, along in enumerate((8, SIDE - 8)):
            centre = (along, across[group]) if flip else (across[group], along)
            half, power = rng.uniform(7, 8, 2), 1 if unseen else rng.choice([2, 8])  # diamond; ellipse, rectangle
            near = [abs(x - centre[0]) / half[0], abs(y - centre[1]) / half[1]]
            shape = unseen_shape(rng, 8) if unseen else handwritten[rng.integers(len(handwritten))]
            left, top = (round(middle) - 4 for middle in centre)
            groups[group, 2] = near[0] ** power + near[1] ** power <= 1
            groups[group, 1] = near[0] ** power + near[1] ** power <= rng.uniform(0.68, 0.74) ** power
            place = (slice(top, top + 8), slice(left, left + 8))
            groups[group, 0][place] = (shape > 0.35) & groups[group, 1][place]
            colours = np.array([[1.0], [0.35], [0.7]]) + rng.uniform(-0.15, 0.15, (3, 3))  # of the levels
            for level in (2, 1, 0):
                image[groups[group, level]] = colours[level]
    return Nested(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(masks))


class Prompts(NamedTuple):
    """Points (B, P, 3, 2) as x and y in pixels, and the kind of each, (B, P, 3); a place that is not needed holds NOTHING."""

    points: Tensor
    kinds: Tensor


def pixel_of(masks: Tensor, generator: torch.Generator) -> Tensor:
    """A random pixel of each mask (B, P, S, S): its centre (B, P, 2); anywhere if the mask is empty."""
    chances = masks.flatten(0, 1).flatten(1).float() + 1e-9  # (B, P, S, S) -> (B P, S S)
    index = torch.multinomial(chances, 1, generator=generator).view(masks.shape[:2])
    return torch.stack([index % SIDE, index // SIDE], -1) + 0.5


def clicks(inside: Tensor, generator: torch.Generator) -> Prompts:
    """One click in each mask (B, P, S, S)."""
    first = pixel_of(inside, generator)
    kinds = torch.full((*first.shape[:2], 3), NOTHING, device=inside.device)
    kinds[..., 0] = INSIDE
    return Prompts(torch.stack([first, torch.zeros_like(first), torch.zeros_like(first)], 2), kinds)


def boxes_of(masks: Tensor) -> Tensor:
    """Tight boxes of masks (..., S, S): (..., 4) as x0, y0, x1, y1, edges between pixels; of an empty mask the whole image."""
    columns, rows = (masks.any(axis).to(torch.uint8) for axis in (-2, -1))  # each (..., S)
    low = [columns.argmax(-1), rows.argmax(-1)]
    high = [SIDE - columns.flip(-1).argmax(-1), SIDE - rows.flip(-1).argmax(-1)]
    return torch.stack(low + high, -1).float()


def box_prompts(target: Tensor, generator: torch.Generator, noise: float = 1.0) -> Prompts:
    """The box of each mask (B, P, S, S), each edge off by a normal error of `noise` pixels."""
    boxes = boxes_of(target)
    boxes = boxes + noise * torch.randn(boxes.shape, generator=generator, device=boxes.device)
    corners = torch.stack([boxes[..., :2], boxes[..., 2:], torch.zeros_like(boxes[..., :2])], 2)
    kinds = torch.full((*boxes.shape[:2], 3), NOTHING, device=boxes.device)
    kinds[..., 0], kinds[..., 1] = UPPER_LEFT, LOWER_RIGHT  # filled there: a list would have to be copied to the device
    return Prompts(corners, kinds)


def corrected(prompts: Prompts, place: int, found: Tensor, target: Tensor, generator: torch.Generator) -> Prompts:
    """Adds a click at `place`, in the larger of what is missed and what is too much; masks (B, P, S, S)."""
    missed, surplus = target & ~found, found & ~target
    inside = missed.sum((-2, -1)) >= surplus.sum((-2, -1))
    points, kinds = prompts.points.clone(), prompts.kinds.clone()
    points[:, :, place] = pixel_of(torch.where(inside[..., None, None], missed, surplus), generator)
    kinds[:, :, place] = torch.where(inside, INSIDE, OUTSIDE)
    return Prompts(points, kinds)


def training_prompts(masks: Tensor, generator: torch.Generator) -> tuple[Prompts, Tensor]:
    """For each image two lone clicks on digits, a box and three clicks, with targets (B, 4, S, S) drawn at random.

    masks (B, 2, 3, S, S). The second click of three corrects against the whole group, the third against the digit.
    """
    B, device = len(masks), masks.device
    rows = torch.arange(B, device=device)[:, None]
    drawn = torch.randint(6, (B, 4), generator=generator, device=device)  # of two groups and three levels
    group, target = drawn // 3, masks[rows, drawn // 3, drawn % 3]
    digit, whole = masks[rows, group, 0], masks[rows, group, 2]
    lone = clicks(digit[:, :2], generator)
    box = box_prompts(target[:, 2:3], generator)
    several = clicks(target[:, 3:], generator)
    for place, guess in ((1, whole), (2, digit)):
        several = corrected(several, place, guess[:, 3:], target[:, 3:], generator)
    points, kinds = (torch.cat(each, 1) for each in zip(lone, box, several, strict=True))
    return Prompts(points, kinds), target


def filled(boxes: Tensor) -> Tensor:
    """Masks (B, P, S, S) of boxes (B, P, 4)."""
    centre = torch.arange(SIDE) + 0.5
    x0, y0, x1, y1 = (each[..., None] for each in boxes.unbind(-1))
    across, down = (x0 <= centre) & (centre < x1), (y0 <= centre) & (centre < y1)
    return down[..., :, None] & across[..., None, :]


def strokes(width: float, seed: int, count: int, side: int = 128) -> Tensor:
    """Masks (count, side, side) of rings of this width with random places and radii."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] + 0.5
    centres, radii = rng.uniform(0.4 * side, 0.6 * side, (2, count)), rng.uniform(0.2 * side, 0.35 * side, count)
    places = zip(*centres, radii, strict=True)
    return torch.from_numpy(np.stack([abs(np.hypot(x - a, y - b) - r) < width / 2 for a, b, r in places]))
