"""A backbone of split-and-merge blocks and a neck that passes its maps up and down again, as one-stage detectors use them."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import Conv2dNormActivation

conv = partial(Conv2dNormActivation, activation_layer=nn.SiLU)


class C2f(nn.Module):
    """Split, pass through bottlenecks, merge all stations: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, inputs: int, outputs: int, repeats: int, residual: bool = False) -> None:
        super().__init__()
        half, self.residual = outputs // 2, residual
        self.split, self.merge = conv(inputs, 2 * half, 1), conv((2 + repeats) * half, outputs, 1)
        self.blocks = nn.ModuleList(nn.Sequential(conv(half, half), conv(half, half)) for _ in range(repeats))

    def forward(self, x: Tensor) -> Tensor:
        stations = list(self.split(x).chunk(2, 1))  # two halves of the channels
        for block in self.blocks:
            stations.append(block(stations[-1]) + (stations[-1] if self.residual else 0))
        return self.merge(torch.cat(stations, 1))


class Pyramid(nn.Module):
    """Three max poolings in a row, all stations merged: windows of 5, 9 and 13 cells."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow, self.merge = conv(width, width // 2, 1), conv(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        stations = [self.narrow(x)]
        for _ in range(3):
            stations.append(functional.max_pool2d(stations[-1], 5, 1, 2))
        return self.merge(torch.cat(stations, 1))


class Body(nn.Module):
    """Backbone and neck: images (B, 3, H, W) -> maps of stride 8, 16, ..., as many as there are widths beyond two."""

    def __init__(self, widths: tuple[int, ...], repeats: tuple[int, int]) -> None:
        super().__init__()
        few, many = repeats
        counts = (few, *[many] * (len(widths) - 3), few)
        stages = [
            nn.Sequential(conv(a, b, stride=2), C2f(b, b, count, True))
            for (a, b), count in zip(pairwise(widths), counts, strict=True)
        ]
        self.stem = nn.Sequential(conv(3, widths[0], stride=2), stages[0])
        self.down = nn.ModuleList([*stages[1:-1], stages[-1].append(Pyramid(widths[-1]))])
        self.up = nn.ModuleList(C2f(b + a, a, few) for a, b in pairwise(widths[2:]))
        self.shrink = nn.ModuleList(conv(a, a, stride=2) for a in widths[2:-1])
        self.again = nn.ModuleList(C2f(a + b, b, few) for a, b in pairwise(widths[2:]))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for stage in self.down:
            maps.append(stage(maps[-1]))
        maps = maps[1:]
        for i in reversed(range(len(self.up))):  # context goes up
            maps[i] = self.up[i](torch.cat([functional.interpolate(maps[i + 1], scale_factor=2.0), maps[i]], 1))
        for i in range(len(self.up)):  # detail goes down
            maps[i + 1] = self.again[i](torch.cat([self.shrink[i](maps[i]), maps[i + 1]], 1))
        return maps
