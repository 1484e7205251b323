"""Pictures of images that are cut into windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from lab.figures import BOX_COLOUR, show_image


def show(ax: Axes, image: Any, borders: Sequence[float], title: str | None = None, colour: str = BOX_COLOUR) -> None:
    """Shows a square image (C, S, S), and borders of windows at these places, from 0 to S, in both directions.

    Each line has a dark rim, so that it is seen on any picture.
    """
    show_image(ax, image, title)
    first, last = -0.5, image.shape[-1] - 0.5  # imshow centres pixel 0 at 0
    for shade, linewidth in (("black", 3.5), (colour, 2.0)):
        for at in borders:
            ax.plot([at + first] * 2, [first, last], color=shade, linewidth=linewidth)
            ax.plot([first, last], [at + first] * 2, color=shade, linewidth=linewidth)
