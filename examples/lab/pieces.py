"""Objects as the connected pieces of what is found: which run together, how many are right, and the gaps between them."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from lab.figures import Style, panels, show_image

SMALLEST = 8  # pixels; what is smaller is no object, whether it is found or cut off by the border of a picture


def pieces(found: Tensor) -> Tensor:
    """Numbers 1..n of the connected pieces of `found`, bool (H, W), 0 elsewhere; pixels are joined by their sides."""
    return large(torch.from_numpy(ndimage.label(found.numpy())[0]).long())


def large(labels: Tensor) -> Tensor:
    """Labels (H, W) of the objects that have `SMALLEST` pixels or more, numbered 1..n without a gap."""
    keep = labels.flatten().bincount() >= SMALLEST
    keep[0] = False
    return (keep.cumsum(0) * keep)[labels]


def shared(found: Tensor, truth: Tensor) -> Tensor:
    """Pixels that each found object has in common with each true one, (n + 1, m + 1); the first of both is the background."""
    n, m = int(found.max()) + 1, int(truth.max()) + 1
    return (found * m + truth).flatten().bincount(minlength=n * m).reshape(n, m)


def distances(labels: Tensor) -> Tensor:
    """Of every pixel of labels (H, W) to each of the objects 1..n, in pixels: (n, H, W) float32."""
    far = [ndimage.distance_transform_edt(labels.numpy() != k) for k in range(1, int(labels.max()) + 1)]
    return torch.from_numpy(np.stack(far)).float()


def held(found: Tensor, truth: Tensor) -> Tensor:
    """Whether more than half of each true object lies in each found one, bool (n, m); both are labels (H, W)."""
    common = shared(found, truth)[:, 1:]
    return common[1:] > common.sum(0) / 2


def merged(found: Tensor, truth: Tensor) -> float:
    """Share of the true objects that lie in a piece with another one; what lies in none has not run together."""
    inside = held(found, large(truth))
    return inside[inside.sum(1) > 1].any(0).float().mean().item()


def crowded(found: Tensor, truth: Tensor) -> Tensor:
    """(H, W): 2 in the found objects that hold several true ones, 1 in all others, 0 in the background."""
    several = held(found, large(truth)).sum(1) > 1
    return torch.cat([torch.tensor([0]), 1 + several.long()])[found]


def f1(found: Tensor, truth: Tensor) -> float:
    """2 TP / (n + m), NaN where there are none: right is what has an IoU above a half with a true object; it has it with one."""
    common = shared(found, large(truth))
    union = common.sum(1, keepdim=True) + common.sum(0) - common
    objects = sum(common.shape) - 2
    return 2 * int((common / union > 0.5)[1:, 1:].sum()) / objects if objects else math.nan


def window_of_most(weights: Tensor, side: int) -> tuple[slice, slice]:
    """Rows and columns of the square of so many pixels where weights (H, W) sum to most, to within 8 pixels."""
    sums = functional.avg_pool2d(weights[None], side, 8)[0]
    top, left = (8 * int(each) for each in divmod(int(sums.argmax()), sums.shape[1]))
    return slice(top, top + side), slice(left, left + side)


def draw_gaps(style: Style, image: Tensor, cells: Tensor, weights: Tensor, side: int = 48) -> Figure:
    """The window with the most weight of an image, its cells (bool) and the weights of its gaps, all (H, W)."""
    window = window_of_most(weights, side)
    figure, axes = panels(1, 3, width=5.4, height=2.1)
    show_image(axes[0, 0], image[window] / image[window].quantile(0.98), "nuclei")
    show_image(axes[0, 1], cells[window], "parted")
    show_image(axes[0, 2], weights[window], "weights", cmap=style.sequential, vmax=None)
    return figure
