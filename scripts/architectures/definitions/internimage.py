"""InternImage for classification: a hierarchy of blocks around DCNv3 (arXiv:2211.05778, sections 3.1 and 3.2).

How the deformable sampling is counted: a value between pixels is a weighted sum of four neighbours, and each output a
weighted sum of nine such values, which makes 5 x 9 MACs per channel and position. The authors count the same
(`dcnv3_flops` in detection/get_flops.py of their repository).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIZES = {
    "t": (64, 4, (4, 4, 18, 4), False),
    "s": (80, 5, (4, 4, 21, 4), True),
    "b": (112, 7, (4, 4, 21, 4), True),
    "l": (160, 10, (5, 5, 22, 5), True),
    "xl": (192, 12, (5, 5, 24, 5), True),
}
"""Channels and groups of the first stage, blocks per stage, whether the norm follows the branch (with LayerScale).

From the configurations in classification/configs of the official repository; Table 1 of the paper has the first three.
"""


class InternImage(nn.Module):
    """Four stages of blocks; channels and groups double from one to the next, height and width halve.

    Dropout and the scale of the offsets are left out: they cost nothing.

    Args:
        size: a key of `SIZES`.
        classes: 1,000 for ImageNet.
    """

    def __init__(self, size: str, classes: int = 1000) -> None:
        super().__init__()
        width, groups, depths, post_norm = SIZES[size]
        stages: list[nn.Module] = [
            ConvNorm(nn.Conv2d(3, width // 2, 3, 2, 1)),
            nn.GELU(),
            ConvNorm(nn.Conv2d(width // 2, width, 3, 2, 1)),
        ]
        for stage, depth in enumerate(depths):
            if stage:
                stages.append(ConvNorm(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False)))
                width, groups = 2 * width, 2 * groups
            stages += [Block(width, groups, post_norm) for _ in range(depth)]
            stages += [] if post_norm else [nn.LayerNorm(width)]
        self.stages = nn.Sequential(*stages)
        features = width * 3 // 2
        self.features = nn.Sequential(nn.Conv2d(width, features, 1, bias=False), nn.BatchNorm2d(features), nn.GELU())
        self.head = nn.Linear(features, classes)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) image to (B, K) logits."""
        x = self.stages(image.permute(0, 2, 3, 1))  # (B, C, H, W) -> (B, H, W, C), as everywhere inside
        logits: Tensor = self.head(self.features(x.permute(0, 3, 1, 2)).mean((2, 3)))
        return logits


class Block(nn.Module):
    """DCNv3 and a feed-forward network, each with a norm and a shortcut; large sizes norm after the branch."""

    def __init__(self, width: int, groups: int, post_norm: bool) -> None:
        super().__init__()
        mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.branches = nn.ModuleList([DCNv3(width, groups), mlp])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.branches)
        self.scales = nn.ParameterList(torch.full((width,), 1e-5) for _ in self.branches if post_norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        for i, (branch, norm) in enumerate(zip(self.branches, self.norms, strict=True)):
            x = x + (self.scales[i] * norm(branch(x)) if self.scales else branch(norm(x)))
        return x


class DCNv3(nn.Module):
    """Deformable convolution, third version: nine samples per group at learned offsets, with softmax weights (Eq. 2).

    Args:
        width: channels.
        groups: groups of channels that share offsets and weights.
    """

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.local = nn.Sequential(ConvNorm(nn.Conv2d(width, width, 3, 1, 1, groups=width)), nn.GELU())
        self.offset, self.weight = nn.Linear(width, groups * 9 * 2), nn.Linear(width, groups * 9)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        height, width = x.shape[1:3]
        local = self.local(x)
        offsets = self.offset(local).unflatten(-1, (self.groups, 9, 2))  # (B, H, W, G * 18) -> (B, H, W, G, 9, 2)
        weights = self.weight(local).unflatten(-1, (self.groups, 1, 9)).softmax(-1)  # -> (B, H, W, G, 1, 9)
        values = self.value(x).unflatten(-1, (self.groups, -1))  # (B, H, W, C) -> (B, H, W, G, C / G)
        samples = sample(values, _window(height, width, x.device) + offsets)
        out: Tensor = self.out((weights @ samples).flatten(3))  # (B, H, W, G, 1, C / G) -> (B, H, W, C)
        return out


class ConvNorm(nn.Module):
    """A convolution of (B, H, W, C) maps with LayerNorm."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution, self.norm = convolution, nn.LayerNorm(convolution.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H', W', C')."""
        normed: Tensor = self.norm(self.convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return normed


def sample(values: Tensor, points: Tensor) -> Tensor:
    """Bilinear interpolation of a map at any points; zero outside of it.

    Args:
        values: (B, H, W, G, C) map.
        points: (B, H', W', G, P, 2) rows and columns in pixels; those of a group read its channels.

    Returns:
        (B, H', W', G, P, C) values at the points.
    """
    last = torch.tensor([values.shape[1] - 1, values.shape[2] - 1], device=values.device)
    around = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], device=values.device)
    corners = points.floor().unsqueeze(-2) + around  # (B, H', W', G, P, 4, 2)
    shares = (1 - (points.unsqueeze(-2) - corners).abs()).prod(-1)
    shares = shares * ((corners >= 0) & (corners <= last)).all(-1)
    row, column = corners.clamp(min=torch.zeros_like(last), max=last).long().unbind(-1)
    batch = torch.arange(values.shape[0], device=values.device).view(-1, 1, 1, 1, 1, 1)
    group = torch.arange(values.shape[3], device=values.device).view(-1, 1, 1)
    neighbours = values[batch, row, column, group]  # (B, H', W', G, P, 4, C)
    return (shares.unsqueeze(-2) @ neighbours).squeeze(-2)


def _window(height: int, width: int, device: torch.device) -> Tensor:
    """(H, W, 1, 9, 2): rows and columns of the 3 x 3 pixels around each."""
    pixels = torch.cartesian_prod(torch.arange(height, device=device), torch.arange(width, device=device))
    steps = torch.cartesian_prod(*[torch.arange(-1, 2, device=device)] * 2)
    return (pixels[:, None] + steps).view(height, width, 1, 9, 2)
