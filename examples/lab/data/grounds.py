"""Things on a plane, seen in perspective, with exact inverse depth: near is low in the image and large.

A camera stands at height 1 above a plane; its horizon lies at a random row. A pixel of the plane that lies r rows below the
horizon has inverse depth r / F. Things stand upright on the plane, so one has the inverse depth of its foot; what is
farther up than the horizon is sky, with inverse depth 0. Were the whole world k times as large, camera height included, the
image would be the same and all inverse depths k times smaller: the image does not say how large its world is.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lab.data import SPLITS, Split

SIDE, FOCAL, THINGS = 32, 24.0, 3  # pixels, focal length in pixels, things in a scene


class Grounds(NamedTuple):
    """images: (B, 3, H, W) in [0, 1]; inverse: (B, H, W) inverse depth, in camera heights to the power of -1."""

    images: Tensor
    inverse: Tensor


def draw_grounds(count: int, generator: torch.Generator) -> Grounds:
    """Draws scenes on the device of the generator."""
    device, B = generator.device, count

    def random(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(B, *shape, generator=generator, device=device)

    rows = (torch.arange(SIDE, device=device) + 0.5)[:, None].expand(SIDE, SIDE)  # (H, W)
    columns = rows.mT
    horizon = random(1, 1, low=4, high=14)  # (B, 1, 1)
    inverse = ((rows - horizon) / FOCAL).clamp(min=0)  # (B, H, W)
    paint = random(2, 3, 1, 1, low=0.2, high=0.8)  # of plane and sky
    images = torch.where((inverse > 0)[:, None], paint[:, 0], paint[:, 1])  # (B, 3, H, W)
    feet = random(THINGS, low=0.08, high=0.7).sort(1).values  # (B, K) inverse depths, far ones first
    high, wide = random(THINGS, low=0.3, high=1.6), random(THINGS, low=0.2, high=0.7)
    middle, colour = random(THINGS, high=SIDE), random(THINGS, 3)
    for k in range(THINGS):
        d = feet[:, k, None, None]  # (B, 1, 1)
        bottom = horizon + FOCAL * d
        inside = (rows < bottom) & (rows > bottom - FOCAL * d * high[:, k, None, None])
        inside = inside & ((columns - middle[:, k, None, None]).abs() < FOCAL * d * wide[:, k, None, None])
        inverse = torch.where(inside, d, inverse)
        images = torch.where(inside[:, None], colour[:, k, :, None, None], images)
    noise = 0.15 * (random(3, SIDE, SIDE) - 0.5)
    return Grounds((images + noise).clamp(0, 1), inverse)


def held_out(split: Split, count: int, device: torch.device) -> Grounds:
    """New scenes, the same for every seed of a run."""
    return draw_grounds(count, torch.Generator(device).manual_seed(10_000 + SPLITS.index(split)))
