"""YOLOv8 for detection and instance segmentation, written from the published table of its layers and its five scales."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SCALES = {
    "n": (1 / 3, 0.25, 1024),
    "s": (1 / 3, 0.50, 1024),
    "m": (2 / 3, 0.75, 768),
    "l": (1.0, 1.00, 512),
    "x": (1.0, 1.25, 512),
}
"""Multiples of depth and width, and the most channels before the width is multiplied."""
PROTOTYPES = 32
"""Masks that each object's mask is a weighted sum of (segmentation only)."""
BINS = 16
"""Each side of a box is a distribution over so many distances (distribution focal loss, arXiv:2006.04388)."""


class YOLOv8(nn.Module):
    """Backbone, a neck that passes features down and up again, and a head without anchors on three levels.

    Args:
        scale: a key of `SCALES`.
        classes: 80 for COCO.
        masks: whether it also predicts masks.
    """

    def __init__(self, scale: str, classes: int = 80, masks: bool = False) -> None:
        super().__init__()
        depth, width, most = SCALES[scale]
        c1, c2, c3, c4, c5 = (8 * math.ceil(min(c, most) * width / 8) for c in (64, 128, 256, 512, 1024))
        few, many = round(3 * depth), round(6 * depth)
        self.stem = nn.Sequential(_conv(3, c1, 3, 2), _conv(c1, c2, 3, 2), C2f(c2, c2, few, True))
        self.stage3 = nn.Sequential(_conv(c2, c3, 3, 2), C2f(c3, c3, many, True))
        self.stage4 = nn.Sequential(_conv(c3, c4, 3, 2), C2f(c4, c4, many, True))
        self.stage5 = nn.Sequential(_conv(c4, c5, 3, 2), C2f(c5, c5, few, True), SPPF(c5))
        self.up4, self.up3 = C2f(c5 + c4, c4, few, False), C2f(c4 + c3, c3, few, False)
        self.shrink3, self.shrink4 = _conv(c3, c3, 3, 2), _conv(c4, c4, 3, 2)
        self.down4, self.down5 = C2f(c3 + c4, c4, few, False), C2f(c4 + c5, c5, few, False)
        levels = (c3, c4, c5)
        self.boxes = nn.ModuleList(_head(c, max(c3 // 4, 4 * BINS), 4 * BINS) for c in levels)
        self.classes = nn.ModuleList(_head(c, max(c3, min(classes, 100)), classes) for c in levels)
        self.masks = nn.ModuleList(_head(c, max(c3 // 4, PROTOTYPES), PROTOTYPES) for c in levels) if masks else None
        self.prototypes = _prototypes(c3, 8 * math.ceil(256 * width / 8)) if masks else None

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) image to (B, 4, N) distances of the sides in strides and (B, K, N) class logits.

        N is the number of positions at strides 8, 16 and 32. With masks, (B, 32, N) weights and (B, 32, H / 4, W / 4)
        prototypes follow.
        """
        p3 = self.stage3(self.stem(image))
        p4 = self.stage4(p3)
        p5 = self.stage5(p4)
        n4 = self.up4(torch.cat([_double(p5), p4], dim=1))
        n3 = self.up3(torch.cat([_double(n4), p3], dim=1))
        n4 = self.down4(torch.cat([self.shrink3(n3), n4], dim=1))
        n5 = self.down5(torch.cat([self.shrink4(n4), p5], dim=1))
        levels = (n3, n4, n5)
        boxes, logits = _at_all(self.boxes, levels), _at_all(self.classes, levels)
        bins = torch.arange(BINS, dtype=boxes.dtype, device=boxes.device)
        share = boxes.view(len(boxes), 4, BINS, -1).softmax(2)  # (B, 4 * bins, N) -> (B, 4, bins, N)
        found = (share * bins[:, None]).sum(2), logits
        if self.masks is None or self.prototypes is None:
            return found
        return *found, _at_all(self.masks, levels), self.prototypes(n3)


class C2f(nn.Module):
    """Half of the channels passes through a row of bottlenecks, and all that came out on the way is merged.

    Args:
        in_channels: of the input.
        out_channels: of the output; the bottlenecks have half of them.
        repeats: number of bottlenecks.
        residual: whether each adds its input.
    """

    def __init__(self, in_channels: int, out_channels: int, repeats: int, residual: bool) -> None:
        super().__init__()
        half = out_channels // 2
        self.enter = _conv(in_channels, 2 * half, 1)
        self.blocks = nn.ModuleList(nn.Sequential(_conv(half, half, 3), _conv(half, half, 3)) for _ in range(repeats))
        self.leave = _conv((2 + repeats) * half, out_channels, 1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        passed, x = self.enter(x).chunk(2, dim=1)
        collected = [passed, x]
        for block in self.blocks:
            x = x + block(x) if self.residual else block(x)
            collected.append(x)
        merged: Tensor = self.leave(torch.cat(collected, dim=1))
        return merged


class SPPF(nn.Module):
    """Spatial pyramid pooling by three poolings in a row: windows of 5, 9 and 13 positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.leave = _conv(channels, channels // 2, 1), _conv(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        scales = [self.enter(x)]
        for _ in range(3):
            scales.append(nn.functional.max_pool2d(scales[-1], 5, stride=1, padding=2))
        merged: Tensor = self.leave(torch.cat(scales, dim=1))
        return merged


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.SiLU())


def _head(in_channels: int, width: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(_conv(in_channels, width, 3), _conv(width, width, 3), nn.Conv2d(width, out_channels, 1))


def _at_all(heads: nn.ModuleList, levels: tuple[Tensor, ...]) -> Tensor:
    """(B, C, N): what a head says at each position of each level."""
    return torch.cat([head(level).flatten(2) for head, level in zip(heads, levels, strict=True)], dim=2)


def _prototypes(in_channels: int, width: int) -> nn.Sequential:
    up = nn.ConvTranspose2d(width, width, 2, 2)
    return nn.Sequential(_conv(in_channels, width, 3), up, _conv(width, width, 3), _conv(width, PROTOTYPES, 1))


def _double(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2, mode="nearest")
