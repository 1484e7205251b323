"""Published weights and the reader's photograph, for the cell "Your own image" of an example."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor

from lab import figures
from lab.data.photographs import photograph
from lab.figures import Style, draw_boxes, panels, show_image
from lab.run import Run

T = TypeVar("T")

LONGEST = 2048
"""Of the sides of a reader's photograph, in pixels: masks have its size."""


def published(run: Run, name: str, load: Callable[[], T], *, megabytes: int, cache: str = "HF_HOME") -> T | None:
    """What `load` gives where the run asks for published weights; else None, and a line that says how to ask.

    Args:
        run: with or without ``--weights pretrained``.
        name: of the weights, e.g. "facebook/detr-resnet-50".
        load: fetches them, or takes them from the cache.
        megabytes: to download, about.
        cache: environment variable of the folder that keeps them, HF_HOME or TORCH_HOME.

    Raises:
        SystemExit: they were asked for and cannot be had; one line says where to put them.
    """
    if run.settings.weights != "pretrained":
        run.show(
            "your_own_image",
            f"Not run: {name} is a download of about {megabytes} MB, kept in {cache}. Try it on your photograph with\n"
            f"  python examples/{run.slug}.py --weights pretrained --picture PATH",
        )
        return None
    try:
        return load()
    except (OSError, RuntimeError, ValueError) as error:  # offline, or the hub refuses
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SystemExit(
            f"--weights pretrained: {name} could not be loaded ({reason}). Connect once, or copy it into {cache}."
        ) from error


def picture(run: Run, otherwise: str) -> Image.Image:
    """The photograph that the reader gave with ``--picture``, or one of `lab.data.photographs`, as RGB."""
    if run.settings.picture is not None:
        return read_picture(run.settings.picture)
    return Image.fromarray((photograph(otherwise) * 255).round().astype(np.uint8))


def read_picture(path: Path) -> Image.Image:
    """A file as RGB of eight bits: upright, laid onto white where it is transparent, at most `LONGEST` on its longer side.

    Raises:
        SystemExit: it is no picture, a broken one or one that fills the memory; in a line.
    """
    unfit = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                colours = _in_colours(ImageOps.exif_transpose(image))
    except unfit as error:
        raise SystemExit(f"--picture {path}: {' '.join(str(error).split())}") from None
    colours.thumbnail((LONGEST, LONGEST))
    return colours


def _in_colours(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # by the depth that holds all values, or where there is none by what occurs
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        low, high = values.min(), values.max()
        if image.mode.startswith("I;16"):
            low, high = 0, next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits)
        image = Image.fromarray(((values - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")


Boxes = tuple[Tensor, Sequence[str]]
"""Boxes (n, 4) xyxy in pixels of the photograph, and the name of what is in each."""


def show_boxes(
    run: Run,
    name: str,
    detect: Callable[[Image.Image], Boxes],
    *,
    megabytes: int,
    otherwise: str,
    cache: str = "HF_HOME",
) -> None:
    """The figure "your_own_image": what a published detector finds; `detect` loads it. See `published` for the rest."""
    image = picture(run, otherwise)

    def found() -> Boxes:
        with torch.inference_mode():
            return detect(image)

    boxes = published(run, name, found, megabytes=megabytes, cache=cache)
    if boxes is not None:
        run.figure(
            "your_own_image",
            partial(_draw_found, image=image, boxes=boxes),
            caption=f"What {name} finds on {'your photograph' if run.settings.picture else 'a photograph of scikit-image'}.",
            alt="A photograph with boxes around the objects found in it: " + (", ".join(boxes[1]) or "none"),
        )


def _draw_found(style: Style, image: Image.Image, boxes: Boxes) -> Figure:
    figure, axes = panels(1, 1, height=min(7.2, 7.2 * image.height / image.width))
    show_image(axes[0, 0], np.asarray(image))
    draw_boxes(axes[0, 0], *boxes)
    return figure


Masks = tuple[Tensor, Sequence[str], Sequence[float]]
"""Masks (n, H, W) of the photograph, a title for each, and the point (x, y) that was clicked."""


def show_masks(
    run: Run,
    name: str,
    segment: Callable[[Image.Image], Masks],
    *,
    megabytes: int,
    otherwise: str,
    cache: str = "HF_HOME",
) -> None:
    """The figure "your_own_image": what a published segmenter makes of a click; `segment` loads it. See `published`."""
    image = picture(run, otherwise)

    def found() -> Masks:
        with torch.inference_mode():
            return segment(image)

    masks = published(run, name, found, megabytes=megabytes, cache=cache)
    if masks is not None:
        run.figure(
            "your_own_image",
            partial(_draw_masks, image=image, masks=masks),
            caption=f"What {name} makes of a click on {'your photograph' if run.settings.picture else 'a photograph'}.",
            alt="A photograph with a click, once for each mask that was found, with all but the mask dimmed.",
        )


def _draw_masks(style: Style, image: Image.Image, masks: Masks) -> Figure:
    pixels, (found, titles, point) = np.asarray(image) / 255, masks
    rows = -(-len(found) // 2)
    figure, axes = panels(rows, 2, width=5.4, height=2.7 * rows * image.height / image.width + 0.3 * rows)
    for ax in axes.flat[len(found) :]:
        ax.set_axis_off()
    for ax, mask, title in zip(axes.flat, found, titles, strict=False):
        show_image(ax, np.where(np.asarray(mask)[..., None], pixels, 0.3 * pixels), title)
        ax.plot(*point, "*", color="#F2D34B", markeredgecolor="black", markersize=12)
    return figure


Heat = tuple[Tensor, Tensor, str]
"""The photograph as the model saw it (3, H, W) from 0 to 1, a map (h, w) over it, and a title."""


def show_heat(
    run: Run, name: str, look: Callable[[Image.Image], Heat], *, megabytes: int, otherwise: str, cache: str = "HF_HOME"
) -> None:
    """The figure "your_own_image": where a published model looks; `look` loads it. See `published` for the rest."""
    image = picture(run, otherwise)

    def found() -> Heat:
        with torch.inference_mode():
            return look(image)

    heat = published(run, name, found, megabytes=megabytes, cache=cache)
    if heat is not None:
        run.figure(
            "your_own_image",
            partial(_draw_heat, heat=heat),
            caption=f"What {name} sees, and where it looks (bright: much).",
            alt=f"A photograph, and the same under a map of attention. The model says: {heat[2]}.",
        )


def _draw_heat(style: Style, heat: Heat) -> Figure:
    figure, axes = panels(1, 2, width=5.4, height=3.0)
    show_image(axes[0, 0], heat[0], heat[2])
    figures.show_heat(axes[0, 1], heat[0], heat[1])
    return figure
