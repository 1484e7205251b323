"""Boxes: conversions, generalized IoU, padding, suppression, and encodings of places, as all detectors of the examples use them.

Boxes are xyxy (two corners) or cxcywh (centre, width, height), as the name of a function says.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert

from lab.data.scenes import Scenes

xyxy_from_cxcywh = partial(box_convert, in_fmt="cxcywh", out_fmt="xyxy")  # (..., 4) -> (..., 4)
cxcywh_from_xyxy = partial(box_convert, in_fmt="xyxy", out_fmt="cxcywh")


class Targets(NamedTuple):
    """The objects of B images, padded to M with no object: boxes (B, M, 4) cxcywh, labels (B, M), K where padded."""

    boxes: Tensor
    labels: Tensor


def targets_from_scenes(scenes: Scenes, classes: int) -> Targets:
    """Boxes relative to the image, and labels, both padded to the most objects of a scene."""
    pad, side = partial(nn.utils.rnn.pad_sequence, batch_first=True), scenes.images.shape[-1]
    boxes = cxcywh_from_xyxy(pad(list(scenes.boxes)) / side)
    return Targets(boxes, pad(list(scenes.labels), padding_value=classes))


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (arXiv:1902.09630) of boxes cxcywh, from -1 to 1: (..., 4) and (..., 4), broadcast -> (...).

    As `torchvision.ops.generalized_box_iou_loss`, which neither broadcasts nor leaves a GPU without waiting.
    """
    (a_low, a_high), (b_low, b_high) = (xyxy_from_cxcywh(each).split(2, -1) for each in (a, b))
    shared = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(-1)
    union = (a_high - a_low).prod(-1) + (b_high - b_low).prod(-1) - shared
    hull = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).prod(-1)
    out: Tensor = shared / union - (hull - union) / hull
    return out


def suppressed(found: dict[str, Tensor], iou: float = 0.5) -> dict[str, Tensor]:
    """What non-maximum suppression leaves of boxes (n, 4) xyxy, scores (n,) and labels (n,), class by class."""
    keep = batched_nms(found["boxes"], found["scores"], found["labels"], iou)
    return {name: each[keep] for name, each in found.items()}


def grid_points(side: int) -> Tensor:
    """The centres x, y of a grid of side x side cells over the unit square, row by row, (side^2, 2)."""
    at = (torch.arange(side) + 0.5) / side
    return torch.cartesian_prod(at, at).flip(1)


def sine_encoding(points: Tensor, width: int, temperature: float = 20.0) -> Tensor:
    """Fixed encoding of places: points (..., 2), x and y in [0, 1] -> (..., D); half of the channels for each axis."""
    frequency = (
        2 * torch.pi * temperature ** (-torch.arange(width // 4, device=points.device) / (width // 4))
    )  # (D / 4,)
    angle = (points[..., None] * frequency).flatten(-2)  # (..., 2, D / 4) -> (..., D / 2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
