"""Handwritten digits on noisy canvases that a grid of cells divides: evidence in one cell, or on the border of four."""

from typing import NamedTuple

import torch
from torch import Tensor

from lab.data import Split
from lab.data.digits import digits

DIGIT = 8  # side of a digit and of a cell, in pixels


class Canvases(NamedTuple):
    """Images (n, 1, S, S) with noise around zero; labels (n,); cells (n, 2), row and column of the digit's corner."""

    images: Tensor
    labels: Tensor
    cells: Tensor


def drawn(split: Split, count: int, side: int, seed: int, *, across: bool = False) -> Canvases:
    """Draws `count` canvases of side x side cells, each with one digit of the split, drawn with replacement.

    The digit fills a cell; with `across` it lies half a cell further, so that four cells hold a quarter each.
    Raises ValueError if the canvas has no room for that.
    """
    if side < 1 + across:
        raise ValueError(f"a canvas of {side} x {side} cells is too small; it needs {1 + across} a side")
    random, source = torch.Generator().manual_seed(seed), digits(split, DIGIT)
    chosen = torch.randint(len(source), (count,), generator=random)
    cells = torch.randint(side - across, (count, 2), generator=random)
    images = 0.1 * torch.randn(count, 1, DIGIT * side, DIGIT * side, generator=random)
    corner = DIGIT * cells + across * DIGIT // 2  # (n, 2)
    rows, columns = (corner[:, :, None] + torch.arange(DIGIT)).unbind(1)  # each (n, 8)
    # (n, 1, 1), (n, 8, 1), (n, 1, 8) -> (n, 8, 8)
    images[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None]] += source.images[chosen, 0]
    return Canvases(images, source.labels[chosen], cells)
