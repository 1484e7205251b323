"""Heatmaps of keypoints, as CornerNet (arXiv:1808.01244) and its descendants learn and read them, and a small hourglass.

Kinds of keypoints of an object: "tl" its top-left corner, "br" its bottom-right one, any other its centre.
"""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from lab.data.scenes import Scenes

STRIDE = 4  # pixels for one cell of the heatmaps


class Keypoints(NamedTuple):
    """Of one kind: heat (B, K, H, W) as logits, offset (B, 2, H, W) in cells x and y, extra (B, C, H, W): tags, or sizes."""

    heat: Tensor
    offset: Tensor
    extra: Tensor


class Found(NamedTuple):
    """The surest keypoints of a kind: score (B, k), label (B, k), at (B, k, 2) x and y in px, extra (B, k, C)."""

    score: Tensor
    label: Tensor
    at: Tensor
    extra: Tensor


class Objects(NamedTuple):
    """Of B scenes padded to M: boxes (B, M, 4) xyxy px, labels (B, M), and which are there, (B, M)."""

    boxes: Tensor
    labels: Tensor
    there: Tensor


def objects_of(scenes: Scenes) -> Objects:
    """The objects of scenes, padded to the most of a scene."""
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    there = pad([torch.ones_like(labels, dtype=torch.bool) for labels in scenes.labels])
    return Objects(pad(list(scenes.boxes)), pad(list(scenes.labels)), there)


def places(boxes: Tensor, kind: str) -> Tensor:
    """Where a keypoint of each box lies, x and y in pixels: (..., 4) -> (..., 2)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return {"tl": low, "br": high}.get(kind, (low + high) / 2)


def cells_of(at: Tensor, side: int) -> Tensor:
    """The cell of each place in pixels, x and y: (..., 2) -> (..., 2) int64."""
    return (at / STRIDE).floor().long().clamp(0, side - 1)


def gather(values: Tensor, cell: Tensor) -> Tensor:
    """What a map (B, C, H, W) holds at cells (B, M, 2): (B, M, C)."""
    index = cell[..., 1] * values.shape[3] + cell[..., 0]  # (B, M)
    return values.flatten(2).mT.gather(1, index[..., None].expand(-1, -1, values.shape[1]))


def radius(size: Tensor, overlap: float = 0.3) -> Tensor:
    """How far both corners may move, diagonally, with the box keeping such an IoU: (..., 2) -> (...), at the units of size.

    The smallest of three cases: the box shrinks, grows, or is shifted (Section 3.2 of CornerNet).
    """
    (w, h), o = size.unbind(-1), overlap
    s, area = w + h, w * h
    shrinks = (s - (s**2 - 4 * area * (1 - o)).clamp(min=0).sqrt()) / 4
    grows = (-s + (s**2 + 4 * area * (1 / o - 1)).sqrt()) / 4
    shifted = (s - (s**2 - 4 * area * (1 - o) / (1 + o)).clamp(min=0).sqrt()) / 2
    return torch.minimum(torch.minimum(shrinks, grows), shifted)


def true_heat(objects: Objects, kind: str, classes: int, side: int) -> Tensor:
    """The heatmap that is learned, (B, K, side, side): 1 at the cells of the keypoints, Gaussians around them."""
    cell = cells_of(places(objects.boxes, kind), side)[:, :, :, None, None]  # (B, M, 2, 1, 1)
    grid = torch.arange(side, device=cell.device)
    square = (grid - cell[:, :, 0]) ** 2 + (grid[:, None] - cell[:, :, 1]) ** 2  # (B, M, H, W)
    sigma = (2 * radius((objects.boxes[..., 2:] - objects.boxes[..., :2]) / STRIDE) + 1) / 6
    bumps = (-square / (2 * sigma[..., None, None] ** 2)).exp()
    mine = nn.functional.one_hot(objects.labels, classes) * objects.there[..., None]  # (B, M, K)
    return (bumps[:, :, None] * mine[..., None, None]).amax(1)


def focal_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """Of heatmaps (B, K, H, W), over the number of keypoints: Eq. 1 of CornerNet, which forgives places near a keypoint."""
    at, p = heat == 1, logits.sigmoid()
    positive = (1 - p) ** 2 * nn.functional.logsigmoid(logits)
    negative = (1 - heat) ** 4 * p**2 * nn.functional.logsigmoid(-logits)
    return -torch.where(at, positive, negative).sum() / at.sum().clamp(min=1)


def mean_over(values: Tensor, there: Tensor) -> Tensor:
    """The mean of values (B, M) over the objects that are there, without a look at how many that are."""
    return (values * there).sum() / there.sum().clamp(min=1)


def place_loss(found: Keypoints, objects: Objects, kind: str) -> Tensor:
    """Focal loss of the heatmap of a kind, and what its offsets miss at the keypoints."""
    at, side = places(objects.boxes, kind), found.heat.shape[-1]
    cell = cells_of(at, side)
    missed = nn.functional.smooth_l1_loss(gather(found.offset, cell), at / STRIDE - cell, reduction="none").sum(-1)
    heat = true_heat(objects, kind, found.heat.shape[1], side)
    return focal_loss(found.heat, heat) + mean_over(missed, objects.there)


def peaks(heat: Tensor) -> Tensor:
    """Heat (B, K, H, W) where no place in the 3 x 3 window is hotter, 0 elsewhere."""
    return heat * (heat == nn.functional.max_pool2d(heat, 3, stride=1, padding=1))


def surest(keypoints: Keypoints, k: int, only_peaks: bool = True) -> Found:
    """The k places of most heat, over all classes."""
    heat = keypoints.heat.sigmoid()
    score, index = (peaks(heat) if only_peaks else heat).flatten(1).topk(k)  # (B, k)
    area, width = heat.shape[2] * heat.shape[3], heat.shape[3]
    label, place = index // area, index % area
    cell = torch.stack([place % width, place // width], dim=-1)  # (B, k, 2)
    return Found(score, label, (cell + gather(keypoints.offset, cell)) * STRIDE, gather(keypoints.extra, cell))


class Hourglass(nn.Module):
    """Down to stride 16 and up again: images (B, 3, H, W) -> features (B, C, H / 4, W / 4)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        (w4, w8, w16), conv = widths, Conv2dNormActivation
        self.stem = nn.Sequential(conv(3, w4 // 2, stride=2), conv(w4 // 2, w4, stride=2))
        self.down8, self.down16 = conv(w4, w8, stride=2), nn.Sequential(conv(w8, w16, stride=2), conv(w16, w16))
        self.up8, self.up4 = conv(w16, w8), conv(w8, w4)
        self.skip8, self.skip4 = conv(w8, w8, 1), conv(w4, w4, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.stem(images)
        middle = self.down8(fine)
        up = self.skip8(middle) + nn.functional.interpolate(self.up8(self.down16(middle)), scale_factor=2.0)
        return self.skip4(fine) + nn.functional.interpolate(self.up4(up), scale_factor=2.0)


class Head(nn.Module):
    """Features (B, C, H, W) -> `Keypoints` of one kind, after a pooling of its own; the extra part has `extra` channels."""

    def __init__(self, pooling: nn.Module, width: int, classes: int, extra: int) -> None:
        super().__init__()
        self.pooling, self.shared = pooling, Conv2dNormActivation(width, width)
        self.out, self.parts = nn.Conv2d(width, classes + 2 + extra, 1), (classes, 2, extra)
        assert self.out.bias is not None
        nn.init.constant_(self.out.bias[:classes], -2.19)  # heat starts at 0.1

    def forward(self, features: Tensor) -> Keypoints:
        return Keypoints(*self.out(self.shared(self.pooling(features))).float().split(self.parts, dim=1))
