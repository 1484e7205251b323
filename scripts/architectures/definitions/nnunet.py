"""nnU-Net's U-Net with a residual encoder in three dimensions, as its ResEnc planners lay it out.

Widths and blocks follow residual_encoder_unet_planners.py of the official repository (arXiv:2404.09556), blocks and decoder
the package dynamic-network-architectures. The presets M, L and XL plan the same network for larger patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTHS = (32, 64, 128, 256, 320, 320)
"""Channels of each stage, from fine to coarse."""
BLOCKS = (1, 3, 4, 6, 6, 6)
"""Residual blocks of each stage; the decoder has one convolution per stage."""


class ResidualEncoderUNet(nn.Module):
    """A stem, six stages of residual blocks, and a decoder with one head per stage for deep supervision.

    Args:
        in_channels: 1 for CT.
        classes: 3 in the planner's own example.
    """

    def __init__(self, in_channels: int = 1, classes: int = 3) -> None:
        super().__init__()
        self.stem = _unit(in_channels, WIDTHS[0])
        inputs = (WIDTHS[0], *WIDTHS[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(before, width, 2 if stage else 1),
                *(ResidualBlock(width, width, 1) for _ in range(BLOCKS[stage] - 1)),
            )
            for stage, (before, width) in enumerate(zip(inputs, WIDTHS, strict=True))
        )
        pairs = list(zip(WIDTHS[1:], WIDTHS[:-1], strict=True))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose3d(below, width, 2, 2) for below, width in pairs)
        self.merge = nn.ModuleList(_unit(2 * width, width) for _, width in pairs)
        self.heads = nn.ModuleList(nn.Conv3d(width, classes, 1) for _, width in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) volume to (B, K, D, H, W) scores; sides that 32 divides."""
        x = self.stem(x)
        skips: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], dim=1))
        scores: Tensor = self.heads[-1](x)  # the coarser heads are for training
        return scores


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut that averages where they stride and projects where they widen.

    Args:
        before: channels of the input.
        width: channels of the output.
        stride: of the first convolution.
    """

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_unit(before, width, stride), *_unit(width, width)[:2])
        self.shortcut = nn.Sequential(
            nn.AvgPool3d(stride) if stride > 1 else nn.Identity(),
            *(
                [nn.Conv3d(before, width, 1, bias=False), nn.InstanceNorm3d(width, affine=True)]
                if before != width
                else []
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to (B, K, D / s, H / s, W / s)."""
        return nn.functional.leaky_relu(self.body(x) + self.shortcut(x))


def _unit(before: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(before, width, 3, stride, padding=1), nn.InstanceNorm3d(width, affine=True), nn.LeakyReLU()
    )
