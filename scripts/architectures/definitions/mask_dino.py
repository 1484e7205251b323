"""Mask DINO (arXiv:2206.02777): a deformable encoder over four scales, queries for boxes, classes and masks.

Sizes follow configs/coco/instance-segmentation of the official repository. Left out, because they multiply no
matrices: positions of the encoder, and boxes that are read off the first masks. Sampling between positions is left out
of the count by torch, about a hundredth of the whole.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

WIDTH, HEADS, POINTS, CLASSES, QUERIES = 256, 8, 4, 80, 300


class MaskDINO(nn.Module):
    """ResNet-50, encoder, the best tokens of the encoder as queries, and nine decoder layers over them.

    Args:
        levels: scales of the encoder; those beyond three are strided from the coarsest.
        hidden: width of the encoder's feed-forward networks.
        queries: number of queries.
    """

    def __init__(self, levels: int = 4, hidden: int = 2048, queries: int = QUERIES) -> None:
        super().__init__()
        from torchvision.models import resnet50

        resnet = resnet50(weights=None)
        self.queries = queries
        self.backbone = nn.ModuleDict(
            {"stem": nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)}
            | {f"stage{i}": getattr(resnet, f"layer{i}") for i in range(1, 5)}
        )
        kernels = [(512, 1), (1024, 1), (2048, 1), (2048, 3), (WIDTH, 3)][:levels]
        self.project = nn.ModuleList(convolution(channels, kernel, 1 + kernel // 3) for channels, kernel in kernels)
        self.level = nn.Parameter(torch.zeros(levels, WIDTH))
        self.encoder = nn.ModuleList(EncoderLayer(levels, hidden) for _ in range(6))
        self.lateral, self.smooth = convolution(256, 1, bias=False), convolution(WIDTH, 3, bias=False)
        self.mask_features = nn.Conv2d(WIDTH, WIDTH, 1)
        self.propose = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
        self.decoder = nn.ModuleList(DecoderLayer(levels) for _ in range(9))
        self.place = mlp(2 * WIDTH, WIDTH, 2)
        self.norm = nn.LayerNorm(WIDTH)
        self.classify, self.box, self.mask = nn.Linear(WIDTH, CLASSES), mlp(WIDTH, 4, 3), mlp(WIDTH, WIDTH, 3)
        self.labels = nn.Embedding(CLASSES, WIDTH)  # of the noised queries in training

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) image to (B, N, K) logits, (B, N, 4) boxes and (B, N, H / 4, W / 4) mask logits."""
        stages = list(self.backbone.values())
        fine = stages[1](stages[0](image))
        maps, x = [], fine
        for stage in stages[2:]:
            x = stage(x)
            maps.append(x)
        tokens, shapes = self._encoded(maps)
        height, width = shapes[0]
        finest = tokens[:, : height * width].transpose(1, 2).reshape(len(tokens), WIDTH, height, width)
        lateral = self.lateral(fine)
        upsampled = nn.functional.interpolate(finest, size=lateral.shape[2:], mode="bilinear")
        pixels = self.mask_features(self.smooth(lateral + upsampled).relu())
        return self._decoded(tokens, shapes, pixels)

    def _encoded(self, maps: list[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Maps of three scales to (B, T, D) tokens of all scales, and height and width of each, fine to coarse."""
        levels: list[Tensor] = []
        for i, project in enumerate(self.project):
            levels.append(project(maps[i] if i < 3 else maps[2] if i == 3 else levels[-1]))
        shapes = [(int(level.shape[2]), int(level.shape[3])) for level in levels]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) + e for x, e in zip(levels, self.level, strict=True)], dim=1)
        points = torch.cat([centres(shape, tokens) for shape in shapes]).expand(len(tokens), -1, -1)
        for layer in self.encoder:
            tokens = layer(tokens, points, shapes)
        return tokens, shapes

    def _decoded(self, tokens: Tensor, shapes: list[tuple[int, int]], pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        proposals = self.propose(tokens)
        best = self.classify(proposals).amax(-1).topk(self.queries, dim=1).indices.unsqueeze(-1)  # (B, N, 1)
        boxes = self.box(proposals).gather(1, best.expand(-1, -1, 4)).sigmoid()
        queries = proposals.gather(1, best.expand(-1, -1, WIDTH))
        self._predicted(queries, pixels)  # boxes start from these masks
        for layer in self.decoder:
            place = self.place(sines(boxes))
            queries = layer(queries, place, boxes, tokens, shapes)
            boxes = (self.box(queries) + boxes.logit(1e-3)).sigmoid()
            logits = self.classify(self.norm(queries))
        return logits, boxes, self._predicted(queries, pixels)[1]

    def _predicted(self, queries: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, K) logits and (B, N, H, W) masks: products of an embedding of each query with each pixel."""
        normed = self.norm(queries)
        return self.classify(normed), torch.einsum("bnd,bdhw->bnhw", self.mask(normed), pixels)


class DeformableAttention(nn.Module):
    """Each token reads a few learned points of each scale, with learned weights (arXiv:2010.04159, equation 3)."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.offsets = nn.Linear(WIDTH, HEADS * levels * POINTS * 2)
        self.weights = nn.Linear(WIDTH, HEADS * levels * POINTS)
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, queries: Tensor, points: Tensor, tokens: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """(B, N, D) queries at (B, N, 2) points in [0, 1], (B, T, D) tokens of all scales, to (B, N, D)."""
        batch, count = queries.shape[:2]
        split = (HEADS, self.levels, POINTS)
        offsets = self.offsets(queries).view(batch, count, *split, 2)
        weights = self.weights(queries).view(batch, count, HEADS, -1).softmax(-1).view(batch, count, *split)
        values = self.value(tokens).split([h * w for h, w in shapes], dim=1)
        total = torch.zeros_like(queries).view(batch, count, HEADS, -1).permute(0, 2, 3, 1)  # (B, heads, D', N)
        for level, ((height, width), value) in enumerate(zip(shapes, values, strict=True)):
            image = value.transpose(1, 2).reshape(batch * HEADS, -1, height, width)
            size = torch.tensor([width, height], dtype=queries.dtype, device=queries.device)
            grid = 2 * (points[:, :, None, None] + offsets[:, :, :, level] / size) - 1  # (B, N, heads, P, 2)
            grid = grid.transpose(1, 2).flatten(0, 1)  # -> (B * heads, N, P, 2)
            read = nn.functional.grid_sample(image, grid, align_corners=False)  # (B * heads, D', N, P)
            read = read.view(batch, HEADS, -1, count, POINTS)
            total = total + (read * weights[:, :, :, level].transpose(1, 2).unsqueeze(2)).sum(-1)
        mixed: Tensor = self.out(total.flatten(1, 2).transpose(1, 2))  # (B, heads, D', N) -> (B, N, D)
        return mixed


class EncoderLayer(nn.Module):
    """Deformable self-attention over all scales and a feed-forward network."""

    def __init__(self, levels: int, hidden: int) -> None:
        super().__init__()
        self.attention, self.mlp = DeformableAttention(levels), _feed_forward(hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, tokens: Tensor, points: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """(B, T, D) tokens to the same shape."""
        tokens = self.norms[0](tokens + self.attention(tokens, points, tokens, shapes))
        out: Tensor = self.norms[1](tokens + self.mlp(tokens))
        return out


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to the image, and a feed-forward network."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.among = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.attention, self.mlp = DeformableAttention(levels), _feed_forward(2048)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(
        self, queries: Tensor, place: Tensor, boxes: Tensor, tokens: Tensor, shapes: list[tuple[int, int]]
    ) -> Tensor:
        """(B, N, D) queries, their (B, N, D) place and (B, N, 4) boxes, and the tokens, to new queries."""
        placed = queries + place
        queries = self.norms[0](queries + self.among(placed, placed, queries, need_weights=False)[0])
        queries = self.norms[1](queries + self.attention(queries + place, boxes[..., :2], tokens, shapes))
        out: Tensor = self.norms[2](queries + self.mlp(queries))
        return out


def convolution(in_channels: int, kernel: int, stride: int = 1, bias: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, WIDTH, kernel, stride, kernel // 2, bias=bias)
    return nn.Sequential(conv, nn.GroupNorm(32, WIDTH))


def _feed_forward(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, hidden), nn.ReLU(), nn.Linear(hidden, WIDTH))


def mlp(in_features: int, out_features: int, layers: int) -> nn.Sequential:
    widths = [in_features, *[WIDTH] * (layers - 1), out_features]
    parts = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*parts[:-1])


def centres(shape: tuple[int, int], like: Tensor) -> Tensor:
    """(H * W, 2) centres of the pixels of a map, x and y in [0, 1]."""
    rows, columns = ((torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) / n for n in shape)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def sines(boxes: Tensor) -> Tensor:
    """(B, N, 4) boxes to (B, N, 2 D) sines and cosines of each coordinate."""
    steps = torch.arange(WIDTH // 4, device=boxes.device, dtype=boxes.dtype)
    angles = boxes.unsqueeze(-1) * 6.2832 / 10_000 ** (steps / (WIDTH // 4))  # (B, N, 4, D / 4)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(2)
