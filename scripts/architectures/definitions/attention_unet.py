"""The Attention U-Net in three dimensions, and the same network without gates, as their authors released them.

Widths, gates and deep supervision follow configs/config_unet_ct_multi_att_dsv.json and config_unet_ct_dsv.json of the
official repository (arXiv:1804.03999): one input channel, four classes, a quarter of the widths of the U-Net of 2015.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTHS = (16, 32, 64, 128, 256)
"""Channels of each level, from fine to coarse."""


class AttentionUNet(nn.Module):
    """Encoder, decoder with attention gates on three of the four skips, and one head per level that is merged.

    Args:
        gated: without, the skips are passed on as they are.
        in_channels: 1 for CT.
        classes: 4 in the configuration.
    """

    def __init__(self, gated: bool = True, in_channels: int = 1, classes: int = 4) -> None:
        super().__init__()
        inputs = (in_channels, *WIDTHS[:-1])
        self.down = nn.ModuleList(_two_convolutions(a, b) for a, b in zip(inputs, WIDTHS, strict=True))
        self.gating = _conv(WIDTHS[-1], WIDTHS[-1], 1) if gated else nn.Identity()
        self.gates = nn.ModuleList(
            TwoGates(WIDTHS[i], WIDTHS[i + 1]) if gated and i else nn.Identity() for i in range(4)
        )
        self.up = nn.ModuleList(_two_convolutions(WIDTHS[i] + WIDTHS[i + 1], WIDTHS[i]) for i in range(4))
        self.heads = nn.ModuleList(nn.Conv3d(width, classes, 1) for width in WIDTHS[:-1])
        self.merge = nn.Conv3d(4 * classes, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) volume to (B, K, D, H, W) scores; sides that sixteen divides."""
        size = x.shape[2:]
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(nn.functional.max_pool3d(x, 2) if level else x)
            skips.append(x)
        signal = self.gating(skips.pop())
        scores = []
        for i in (3, 2, 1, 0):
            gate = self.gates[i]
            skip = gate(skips[i], signal) if isinstance(gate, TwoGates) else skips[i]
            x = signal = self.up[i](torch.cat([skip, _resized(x, skip.shape[2:])], dim=1))
            scores.append(_resized(self.heads[i](x), size))
        merged: Tensor = self.merge(torch.cat(scores[::-1], dim=1))
        return merged


class TwoGates(nn.Module):
    """Two attention gates on one skip, their outputs merged.

    Args:
        width: channels of the skip.
        signal: channels of the coarser features that gate it.
    """

    def __init__(self, width: int, signal: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(Gate(width, signal) for _ in range(2))
        self.merge = _conv(2 * width, width, 1)

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """(B, C, D, H, W) skip and a coarser (B, C', D', H', W') signal to the gated skip."""
        merged: Tensor = self.merge(torch.cat([gate(skip, signal) for gate in self.gates], dim=1))
        return merged


class Gate(nn.Module):
    """Additive attention: one coefficient between 0 and 1 per position (equations 1 and 2)."""

    def __init__(self, width: int, signal: int) -> None:
        super().__init__()
        self.theta = nn.Conv3d(width, width, 2, stride=2, bias=False)
        self.phi = nn.Conv3d(signal, width, 1)
        self.psi = nn.Conv3d(width, 1, 1)
        self.out = nn.Sequential(nn.Conv3d(width, width, 1), nn.BatchNorm3d(width))

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """(B, C, D, H, W) skip and a coarser (B, C', D', H', W') signal to the gated skip."""
        coarse = self.theta(skip)
        coefficients = self.psi(torch.relu(coarse + _resized(self.phi(signal), coarse.shape[2:]))).sigmoid()
        gated: Tensor = self.out(_resized(coefficients, skip.shape[2:]) * skip)
        return gated


def _two_convolutions(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(_conv(in_channels, out_channels, 3), _conv(out_channels, out_channels, 3))


def _conv(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv3d(in_channels, out_channels, kernel, padding=kernel // 2)
    return nn.Sequential(convolution, nn.BatchNorm3d(out_channels), nn.ReLU())


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    return x if x.shape[2:] == size else nn.functional.interpolate(x, size=size, mode="trilinear")
