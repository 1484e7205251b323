"""Masks on a picture, and what a published model of instances finds on the reader's photograph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_segmentation_masks

from lab import weights
from lab.figures import Style, panels, show_image
from lab.run import Run

COLOURS = ("#F2D34B", "#4FA8E0", "#F0709A", "#80E080")

Found = tuple[Tensor, Tensor, list[str]]
"""The image (3, H, W), masks (n, H, W), and the name of what is in each."""


def tinted(image: Tensor, masks: Tensor) -> Tensor:
    """An image (3, H, W) with a colour for each mask (n, H, W)."""
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(masks))]
    return draw_segmentation_masks(image, masks, alpha=0.65, colors=colours) if len(masks) else image


def show(run: Run, name: str, find: Callable[[Image.Image], Found], *, megabytes: int, otherwise: str) -> None:
    """The figure "your_own_image": what a model of torchvision finds; `find` loads it. See `weights.published`."""
    photograph = weights.picture(run, otherwise)
    found = weights.published(run, name, partial(find, photograph), megabytes=megabytes, cache="TORCH_HOME")
    if found is not None:
        run.figure(
            "your_own_image",
            partial(_draw, image=found[0], masks=found[1]),
            caption=f"What {name} finds: {', '.join(found[2]) or 'nothing'}.",
            alt="A photograph with a tinted mask on each of the objects found in it.",
        )


def _draw(style: Style, image: Tensor, masks: Tensor) -> Figure:
    figure, axes = panels(1, 1, width=5.4, height=5.4 * image.shape[1] / image.shape[2])
    show_image(axes[0, 0], tinted(image, masks))
    return figure
