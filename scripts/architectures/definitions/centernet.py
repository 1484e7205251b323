"""CenterNet of keypoint triplets (arXiv:1904.08189): stacked hourglasses, corner and centre pooling, three heads.

Channels and depths follow models/CenterNet-104.py and CenterNet-52.py of the official repository.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTHS = (256, 256, 384, 384, 384, 512)
"""Channels of an hourglass at each of its scales, from fine to coarse."""
DEPTHS = (2, 2, 2, 2, 2, 4)
"""Residual blocks at each scale."""
BRANCHES = ("top_left", "bottom_right", "centre")


class CenterNet(nn.Module):
    """Heatmaps, offsets and (for corners) embeddings of three kinds of keypoints, from the last hourglass.

    Args:
        stacks: hourglasses in a row; two have 104 layers, one has 52.
        classes: 80 for COCO.
    """

    def __init__(self, stacks: int = 2, classes: int = 80) -> None:
        super().__init__()
        width = WIDTHS[0]
        self.stem = nn.Sequential(_conv(3, 128, 7, 2), Residual(128, width, 2))
        self.hourglasses = nn.ModuleList(Hourglass(WIDTHS, DEPTHS) for _ in range(stacks))
        self.after = nn.ModuleList(_conv(width, width, 3) for _ in range(stacks))
        self.between = nn.ModuleList(Between(width) for _ in range(stacks - 1))
        # Each hourglass has heads, for losses on the way; only the last ones answer.
        self.heads = nn.ModuleList(nn.ModuleDict({b: Head(b, classes) for b in BRANCHES}) for _ in range(stacks))

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) image to the maps of the three heads, each (B, C, H / 4, W / 4)."""
        x = self.stem(image)
        for i, (hourglass, after) in enumerate(zip(self.hourglasses, self.after, strict=True)):
            features = after(hourglass(x))
            if i < len(self.between):
                x = self.between[i](x, features)
        last = self.heads[-1]
        assert isinstance(last, nn.ModuleDict)
        return [map_ for head in last.values() for map_ in head(features)]


class Between(nn.Module):
    """Joins the input of an hourglass with its features, for the next one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.old, self.new = (_conv(width, width, 1, activation=False) for _ in range(2))
        self.block = Residual(width, width)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Two (B, C, H, W) maps to one."""
        joined: Tensor = self.block(torch.relu(self.old(x) + self.new(features)))
        return joined


class Hourglass(nn.Module):
    """Down to a coarser scale, through the hourglass of that scale, and up again beside a branch that stays.

    Args:
        widths: channels of this scale and those below.
        depths: residual blocks of this scale and those below.
    """

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...]) -> None:
        super().__init__()
        width, below, depth = widths[0], widths[1], depths[0]
        self.stay = _row(width, depth)
        self.down = nn.Sequential(Residual(width, below, 2), *(Residual(below, below) for _ in range(depth - 1)))
        self.inner = Hourglass(widths[1:], depths[1:]) if len(widths) > 2 else _row(below, depths[1])
        self.up = nn.Sequential(*(Residual(below, below) for _ in range(depth - 1)), Residual(below, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        up = self.up(self.inner(self.down(x)))
        out: Tensor = self.stay(x) + nn.functional.interpolate(up, scale_factor=2)
        return out


class Head(nn.Module):
    """Pools towards its kind of keypoint, then predicts a heatmap, an offset and, for corners, an embedding."""

    def __init__(self, branch: str, classes: int) -> None:
        super().__init__()
        width = WIDTHS[0]
        self.pool = CentrePool(width) if branch == "centre" else CornerPool(width, branch == "top_left")
        channels = (classes, 2) if branch == "centre" else (classes, 2, 1)
        self.maps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, channel, 1))
            for channel in channels
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) features to the maps."""
        pooled = self.pool(x)
        return [predict(pooled) for predict in self.maps]


class _Pool(nn.Module):
    """What both poolings share: two narrow branches in, a residual join out."""

    def __init__(self, width: int, narrow: int = 128) -> None:
        super().__init__()
        self.enter = nn.ModuleList(_conv(width, narrow, 3) for _ in range(2))
        self.join = _conv(narrow, width, 3, activation=False)
        self.short = _conv(width, width, 1, activation=False)
        self.leave = _conv(width, width, 3)

    def _joined(self, x: Tensor, pooled: Tensor) -> Tensor:
        out: Tensor = self.leave(torch.relu(self.join(pooled) + self.short(x)))
        return out


class CentrePool(_Pool):
    """Adds the largest value of the row and that of the column to each position (section 3.2)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        column, row = (enter(x) for enter in self.enter)
        return self._joined(x, column.amax(2, keepdim=True).expand_as(column) + row.amax(3, keepdim=True))


class CornerPool(_Pool):
    """Cascade corner pooling: along the boundary of the object, after a look inside from it (section 3.3).

    Args:
        width: channels.
        top_left: or else bottom right.
    """

    def __init__(self, width: int, top_left: bool) -> None:
        super().__init__(width)
        self.top_left = top_left
        self.look = nn.ModuleList(_conv(width, 128, 3) for _ in range(2))
        self.mix = nn.ModuleList(nn.Conv2d(128, 128, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        pooled = []
        for i, axis in enumerate((2, 3)):
            inside = self._running(self.look[i](x), 5 - axis)
            pooled.append(self._running(self.mix[i](self.enter[i](x) + inside), axis))
        return self._joined(x, pooled[0] + pooled[1])

    def _running(self, x: Tensor, axis: int) -> Tensor:
        """The largest value from each position to the end of its row or column, seen from the corner."""
        flipped = x.flip(axis) if self.top_left else x
        running = flipped.cummax(axis).values
        return running.flip(axis) if self.top_left else running


class Residual(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, a projection where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(in_channels, out_channels, 3, stride), _conv(out_channels, out_channels, 3, activation=False)
        )
        same = stride == 1 and in_channels == out_channels
        self.short = nn.Identity() if same else _conv(in_channels, out_channels, 1, stride, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        return torch.relu(self.body(x) + self.short(x))


def _row(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(width, width) for _ in range(depth)))


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, activation: bool = True) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), *([nn.ReLU()] if activation else []))
