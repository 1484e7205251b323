"""Deformable attention (arXiv:2010.04159), and a layer of a decoder whose queries have a box, as later detectors use them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import MLP


class DeformableAttention(nn.Module):
    """Queries (B, N, D) take a weighted mean of a few points in and around their boxes (B, N, 4), cxcywh from 0 to 1.

    Offsets are in units of half a box (Eq. 2 of the paper; for several maps, Eq. 3). Maps are (B, D, H_i, W_i).
    """

    def __init__(self, width: int, heads: int, maps: int, points: int = 4) -> None:
        super().__init__()
        self.heads, self.maps = heads, maps
        self.offsets, self.weights = (nn.Linear(width, heads * maps * points * each) for each in (2, 1))
        self.value, self.out = nn.Conv2d(width, width, 1), nn.Linear(width, width)
        nn.init.zeros_(self.offsets.weight)
        nn.init.uniform_(self.offsets.bias, -1, 1)  # spread over the box

    def forward(self, x: Tensor, boxes: Tensor, maps: Sequence[Tensor]) -> Tensor:
        offsets = self.offsets(x).float().unflatten(2, (self.heads, self.maps, -1, 2))  # (B, N, h, i, P, 2)
        middle, half = (each[:, :, None, None, None] for each in (boxes[..., :2], boxes[..., 2:] / 2))
        at = (2 * (middle + half * offsets) - 1).transpose(1, 2).flatten(0, 1)  # (B h, N, i, P, 2), -1 to 1
        weights = self.weights(x).unflatten(2, (self.heads, -1)).softmax(-1)  # (B, N, h, i P)
        values = [self.value(each).float().unflatten(1, (self.heads, -1)).flatten(0, 1) for each in maps]
        seen = [
            nn.functional.grid_sample(value, at[:, :, i], align_corners=False)  # (B h, D / h, N, P)
            for i, value in enumerate(values)
        ]
        mean = (torch.cat(seen, -1) * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)  # (B h, D / h, N)
        return self.out(mean.unflatten(0, (-1, self.heads)).flatten(1, 2).mT)  # type: ignore[no-any-return]


class BoxDecoderLayer(nn.Module):
    """Queries (B, N, D) look at each other, then at points of the maps in and around their boxes (B, N, 4)."""

    def __init__(self, width: int, heads: int, hidden: int, maps: int) -> None:
        super().__init__()
        self.place = MLP(4, [width, width], inplace=None)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.sample = DeformableAttention(width, heads, maps)
        self.forward_network = MLP(width, [hidden, width], inplace=None)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, boxes: Tensor, maps: Sequence[Tensor]) -> Tensor:
        place = self.place(boxes)
        among, beside, after = self.norms
        x = among(x + self.attend(x + place, x + place, x, need_weights=False)[0])
        x = beside(x + self.sample(x + place, boxes, maps))
        return after(x + self.forward_network(x))  # type: ignore[no-any-return]
