"""Pictures of planned patches, and of several answers to one slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from lab.figures import Style, panels, show_image
from lab.slices import legend, painted

AXES = ("slice", "row", "column")
RULED = 4  # every so many rows of a patch are drawn


class Patch(NamedTuple):
    """A patch in its image: title, sides of both in mm (D,), and voxel sides in mm at each stage of a network (L, D)."""

    title: str
    whole: NDArray[np.float64]
    patch: NDArray[np.float64]
    lengths: NDArray[np.float64]


def draw_patches(style: Style, patches: Sequence[Patch]) -> Figure:
    """For each its patch in the image, along the first and the last axis, and below the sides of voxels by stage."""
    figure, axes = panels(2, len(patches), width=5.4, height=4.2, height_ratios=[1, 1.2])
    for each, ax, below in zip(patches, *axes, strict=True):
        _frames(style, ax, each)
        dimensions = each.lengths.shape[1]
        for axis, marker in zip(range(-dimensions, 0), "os^"[-dimensions:], strict=True):
            colour = style.cycle[axis + len(AXES)]
            below.plot(each.lengths[:, axis], color=colour, marker=marker, markersize=3 - 2 * axis, label=AXES[axis])
        below.set(xlabel="stage", yscale="log", ylim=(0.4, 90), yticks=(1, 4, 16, 64), xticks=range(len(each.lengths)))
        below.set_yticklabels(("1", "4", "16", "64"))
        below.minorticks_off()
    axes[1, 0].set_ylabel("side of a voxel (mm)")
    axes[1, len(patches) // 2].legend(loc="upper left")
    return figure


def _frames(style: Style, ax: Any, each: Patch) -> None:
    """The frame of the image, and that of the patch with its rows."""
    for box, colour in ((each.whole, style.muted), (each.patch, style.cycle[3])):
        across, down = np.array([-1, 1, 1, -1, -1]) * box[-1] / 2, np.array([-1, -1, 1, 1, -1]) * box[0] / 2
        ax.plot(across, down, color=colour)
    rows = np.arange(-each.patch[0] / 2, each.patch[0] / 2, RULED * each.lengths[0, 0])
    ax.hlines(rows, -each.patch[-1] / 2, each.patch[-1] / 2, color=style.cycle[3], linewidth=0.6)
    ax.set_title(each.title)
    ax.set_aspect("equal")
    ax.set_axis_off()


def draw_answers(style: Style, image: Tensor, answers: Mapping[str, Tensor], columns: int = 4) -> Figure:
    """An image (H, W) of any range, bare and under answers by title, labels (H, W)."""
    rows = -(-(1 + len(answers)) // columns)
    figure, axes = panels(rows, columns, width=5.4, height=1.85 * rows + 0.3)
    shown = (image - image.min()) / (image.max() - image.min())
    for ax in axes.flat[1 + len(answers) :]:
        ax.set_axis_off()
    show_image(axes.flat[0], shown, "slice")
    for ax, (title, labels) in zip(axes.flat[1:], answers.items(), strict=False):
        show_image(ax, painted(shown, labels, style), title)
    legend(figure, style)
    return figure
