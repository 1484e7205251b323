"""The U-Net of 2015, as its figure draws it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ValidUNet(nn.Module):
    """The U-Net of 2015 with its valid convolutions: 572 x 572 in, 388 x 388 out (Fig. 1, arXiv:1505.04597).

    Args:
        in_channels: 1 in the figure.
        classes: 2 in the figure.
        width: channels of the first level, doubled at each of the four poolings.
    """

    def __init__(self, in_channels: int = 1, classes: int = 2, width: int = 64) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(_two_convolutions(a, b) for a, b in zip([in_channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(_two_convolutions(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) image to (B, K, H - 184, W - 184) scores."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = up(x)
            x = merge(torch.cat([_centre_crop(skips.pop(), x), x], dim=1))
        scores: Tensor = self.head(x)
        return scores


def _two_convolutions(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3), nn.ReLU(), nn.Conv2d(out_channels, out_channels, 3), nn.ReLU()
    )


def _centre_crop(x: Tensor, like: Tensor) -> Tensor:
    top, left = (x.shape[-2] - like.shape[-2]) // 2, (x.shape[-1] - like.shape[-1]) // 2
    return x[..., top : top + like.shape[-2], left : left + like.shape[-1]]
