"""What a unit of a convolutional network depends on: gradients on the image, their box, and the square that holds most."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lab.figures import Style, panels, seed_lines, show_image


def gradient_footprint(encode: Callable[[Tensor], Sequence[Tensor]], level: int, images: Tensor) -> Tensor:
    """|d unit / d pixel| for the central unit of map `level`, mean over the images (B, 1, H, W): (H, W).

    A max pooling passes the gradient to one pixel of four, so it takes several images to see the whole field.
    """
    images = images.clone().requires_grad_()
    maps = encode(images)[level]
    unit = maps[..., maps.shape[-2] // 2, maps.shape[-1] // 2].sum()
    (gradient,) = torch.autograd.grad(unit, images)
    return gradient.abs().mean((0, 1))


def bounding_box(footprint: Tensor) -> tuple[int, int, int, int]:
    """Smallest box x0, y0, x1, y1 outside which the footprint (H, W) is zero; x1 and y1 are not included."""
    rows, columns = ((footprint > 0).any(axis).nonzero()[:, 0] for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def longest_side(footprint: Tensor) -> int:
    """Of the bounding box, in pixels."""
    x0, y0, x1, y1 = bounding_box(footprint)
    return max(x1 - x0, y1 - y0)


def effective_side(footprint: Tensor, share: float = 0.9) -> int:
    """Side in pixels of the smallest square in the middle of the bounding box with `share` of the footprint."""
    x0, y0, x1, y1 = bounding_box(footprint)
    field = footprint[y0:y1, x0:x1]
    for cut in range(min(field.shape) // 2 - 1, 0, -1):
        square = field[cut:-cut, cut:-cut]
        if square.sum() >= share * field.sum():
            return max(square.shape)
    return max(field.shape)


def draw_fields(
    style: Style, footprints: Sequence[Tensor], formula: Sequence[int], effective: Sequence[Sequence[float]]
) -> Figure:
    """Footprints (H, W) of the levels with their boxes, and below their sides: formula (levels,), effective (seeds, levels)."""
    figure, (top, below) = panels(2, len(footprints), width=5.4, height=4.2, height_ratios=[1, 2.2])
    levels = range(len(footprints))
    for level, ax, footprint in zip(levels, top, footprints, strict=True):
        shown = (footprint / footprint.max()).sqrt()  # the root makes the faint margin visible
        show_image(ax, shown, f"level {level}", cmap=style.sequential)
        x0, y0, x1, y1 = bounding_box(footprint)
        ax.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=1.2))
    for ax in below:
        ax.remove()
    ax = figure.add_subplot(below[0].get_gridspec()[1, :])
    ax.plot(levels, formula, label="formula", marker="o")
    seed_lines(ax, levels, effective, "holds 90 % of the gradient", style.cycle[1], linestyle="--", marker="s")
    ax.set(xlabel="level (poolings before it)", ylabel="side of the field (pixels)", xticks=levels)
    ax.legend(loc="upper left")
    return figure
