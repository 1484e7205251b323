"""Queries that have a place: attention around their boxes, what they say, and the objects with masks that they answer for."""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import MLP

from lab.boxes import sine_encoding, targets_from_scenes, xyxy_from_cxcywh
from lab.data.scenes import Scenes


class Targets(NamedTuple):
    """Objects of B images, padded to M: boxes (B, M, 4) cxcywh, labels (B, M), K where padded, masks (B, M, H / 2, W / 2)."""

    boxes: Tensor
    labels: Tensor
    masks: Tensor


def targets_of(scenes: Scenes, classes: int) -> Targets:
    """Boxes relative to the image; masks as the covered part of each cell of 2 x 2 pixels."""
    masks = nn.utils.rnn.pad_sequence(list(scenes.masks), batch_first=True).float()
    return Targets(*targets_from_scenes(scenes, classes), functional.avg_pool2d(masks, 2))


class Predictions(NamedTuple):
    """logits (..., N, K), a sigmoid each; boxes (..., N, 4) cxcywh relative to the image; vectors (..., N, E) of the masks."""

    logits: Tensor
    boxes: Tensor
    vectors: Tensor

    def objects(self, layer: int, canvas: int) -> list[dict[str, Tensor]]:
        """Of predictions (L, B, ...) those of a layer: for each image boxes xyxy in pixels, scores and labels."""
        scores, labels = self.logits[layer].sigmoid().max(-1)
        parts = zip(xyxy_from_cxcywh(self.boxes[layer]) * canvas, scores, labels, strict=True)
        return [dict(zip(("boxes", "scores", "labels"), each, strict=True)) for each in parts]


class Noised(NamedTuple):
    """Denoising queries: boxes (B, S, 4), labels (B, S), and owner (B, S), their object, -1 for those to be rejected."""

    boxes: Tensor
    labels: Tensor
    owner: Tensor


class DeformableAttention(nn.Module):
    """Queries (B, N, D) at boxes (B, N, 4) -> a weighted mean (B, N, D) of a few points of a map (B, D, h, w) for each head.

    Deformable DETR, arXiv:2010.04159, Eq. 2, for one scale; offsets are in half sides of the box.
    """

    def __init__(self, width: int, heads: int, points: int = 4) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.offset, self.weight = nn.Linear(width, heads * points * 2), nn.Linear(width, heads * points)
        angle = 2 * torch.pi * torch.arange(heads) / heads  # one direction for each head, from the middle to the edge
        ring = torch.stack([angle.cos(), angle.sin()], -1)[:, None] * ((torch.arange(points) + 0.5) / points)[:, None]
        nn.init.zeros_(self.offset.weight)
        self.offset.bias = nn.Parameter(ring.flatten())  # (h, P, 2) -> (2 h P,)

    def places(self, queries: Tensor, boxes: Tensor) -> Tensor:
        """Where each query looks, x and y from 0 to 1: (B, N, h, P, 2)."""
        offset = self.offset(queries).unflatten(2, (self.heads, self.points, 2))
        return boxes[:, :, None, None, :2] + offset * boxes[:, :, None, None, 2:] / 2

    def forward(self, queries: Tensor, boxes: Tensor, grid: Tensor) -> Tensor:
        values = self.value(grid.flatten(2).mT).mT.unflatten(1, (self.heads, -1)).flatten(0, 1)  # (B h, D / h, H W)
        at = self.places(queries, boxes).transpose(1, 2).flatten(0, 1).float()  # (B h, N, P, 2)
        seen = functional.grid_sample(values.float().unflatten(2, grid.shape[2:]), 2 * at - 1, align_corners=False)
        weight = self.weight(queries).unflatten(2, (self.heads, -1)).softmax(-1).transpose(1, 2).flatten(0, 1)
        mean = (seen * weight[:, None]).sum(-1)  # (B h, D / h, N, P) -> (B h, D / h, N)
        return self.out(mean.unflatten(0, (-1, self.heads)).flatten(1, 2).mT)


class DecoderLayer(nn.Module):
    """Content (B, N, D) of queries at boxes (B, N, 4) -> content; `hidden` (N, N) is true where one must not look."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.among, self.look = nn.MultiheadAttention(width, heads, batch_first=True), DeformableAttention(width, heads)
        self.place, self.mlp = MLP(width, [width, width], inplace=None), MLP(width, [hidden, width], inplace=None)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, content: Tensor, boxes: Tensor, grid: Tensor, hidden: Tensor | None = None) -> Tensor:
        place = self.place(sine_encoding(boxes.unflatten(-1, (2, 2)), content.shape[-1] // 2).flatten(-2))
        asked = content + place
        content = self.norms[0](content + self.among(asked, asked, content, attn_mask=hidden, need_weights=False)[0])
        content = self.norms[1](content + self.look(content + place, boxes, grid))
        return self.norms[2](content + self.mlp(content))
