"""One drawing style for every figure: light and dark, readable, and safe for colour-blind readers.

A figure is a function ``draw(style)`` that returns a matplotlib `Figure`. `save` calls it once under each style.
Colours start from the palette of Okabe and Ito ("Color Universal Design", 2008). They are adapted so that each
has a contrast of at least 3:1 against its page (WCAG 2.2, criterion 1.4.11) and so that no two of them merge
under protanopia or deuteranopia. They differ between the styles, so captions and alt texts do not name colours.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, withStroke
from numpy.typing import ArrayLike, NDArray

CSS_DPI = 96  # CSS pixels in an inch
PICTURE_DPI = 2 * CSS_DPI  # pictures at twice the CSS resolution, for sharp screens
LARGEST_SVG = 600_000  # bytes; beyond it a bitmap is the lighter file
WEBP = {"quality": 90, "method": 4}  # an eighth of the bytes of PNG where most of a figure is a photograph
BOX_COLOUR = "#F2D34B"
LARGEST_PIXEL_ART = 160  # images up to this side keep their own pixels, larger ones are resampled


@dataclass(frozen=True)
class Style:
    """Colours of one scheme, for everything that a `draw` function colours by hand.

    Attributes:
        name: "light" or "dark".
        page: colour of the page that the figure lies on.
        ink: text, marks and everything that must be read.
        muted: axes, ticks and secondary text.
        grid: grid lines.
        background: of the figure; "none" lets the page show through.
        panel: fill of boxes in diagrams, a little off the page.
        cycle: colours of series, in order.
        sequential: name of the colormap for values from none to much.
        diverging: name of the colormap for values on both sides of zero.
    """

    name: str
    page: str
    ink: str
    muted: str
    grid: str
    background: str
    panel: str
    cycle: tuple[str, ...]
    sequential: str
    diverging: str


LIGHT = Style(
    name="light",
    page="#ffffff",
    ink="#1f2328",
    muted="#59636e",
    grid="#dfe3e8",
    background="none",
    panel="#f3f5f8",
    cycle=("#0068A8", "#D55E00", "#009E73", "#C765A0", "#7A4F00", "#4098D0"),
    sequential="viridis",
    diverging="RdBu_r",
)
DARK = Style(
    name="dark",
    page="#1e2129",
    ink="#e6e9ef",
    muted="#a4acba",
    grid="#363b47",
    background="none",
    panel="#2a2e39",
    cycle=("#4FA8E0", "#E0672A", "#17B386", "#E39AC6", "#F2D34B", "#BFE3FA"),
    sequential="viridis",
    diverging="RdBu_r",
)
STYLES = (LIGHT, DARK)

Draw = Callable[[Style], Figure]


def rc_params(style: Style) -> dict[str, Any]:
    """The matplotlib settings of a style."""
    return {
        "axes.axisbelow": True,
        "axes.edgecolor": style.muted,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.labelcolor": style.ink,
        "axes.prop_cycle": cycler(color=style.cycle),
        **dict.fromkeys(("axes.spines.right", "axes.spines.top"), False),
        "axes.titlecolor": style.ink,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "figure.constrained_layout.use": True,
        "figure.dpi": CSS_DPI,
        "figure.edgecolor": "none",
        "figure.facecolor": style.background,
        "figure.figsize": (7.2, 4.0),
        "figure.titlesize": 11,
        "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
        "font.size": 10,
        "grid.color": style.grid,
        "grid.linewidth": 0.8,
        "hatch.color": style.muted,
        "image.cmap": style.sequential,
        "legend.facecolor": style.page,
        "legend.edgecolor": style.grid,
        "legend.fontsize": 9,
        "legend.framealpha": 0.85,
        "legend.labelcolor": style.ink,
        "lines.linewidth": 1.8,
        "patch.edgecolor": style.ink,
        "savefig.facecolor": style.background,
        "svg.fonttype": "path",  # text looks the same everywhere
        "svg.hashsalt": "lab",  # the same drawing gives the same ids
        "text.color": style.ink,
        "xtick.color": style.muted,
        "xtick.labelcolor": style.ink,
        "ytick.color": style.muted,
        "ytick.labelcolor": style.ink,
    }


@contextmanager
def using(style: Style) -> Iterator[Style]:
    """Draws under `style`, whatever the matplotlibrc of the machine says."""
    with mpl.rc_context():
        mpl.rcdefaults()  # all but the backend, which a notebook chooses
        settings: Any = rc_params(style)  # keys of rcParams, which its stub wants as literals
        mpl.rcParams.update(settings)
        yield style


def save(draw: Draw, folder: Path, name: str) -> tuple[Path, Path, int, int]:
    """Writes ``<name>.light`` and ``<name>.dark``: SVG, or WebP for both where an SVG exceeds `LARGEST_SVG`.

    Args:
        draw: called once per style; the same drawing gives the same bytes.
        folder: made where it is missing.
        name: of the files, without suffix.

    Returns:
        The light path, the dark path, and width and height in CSS pixels.

    Raises:
        TypeError: `draw` returned no figure.
        ValueError: the two drawings differ in size.
    """
    drawings = [_drawn(draw, style, "svg") for style in STYLES]
    suffix = "svg"
    if max(len(data) for data, _ in drawings) > LARGEST_SVG:
        suffix = "webp"
        drawings = [_drawn(draw, style, "webp") for style in STYLES]
    (_, size), (_, dark_size) = drawings
    if size != dark_size:
        raise ValueError(f"figure {name!r} is {size} px in light and {dark_size} px in dark; draw both alike")
    folder.mkdir(parents=True, exist_ok=True)
    light, dark = (folder / f"{name}.{style.name}.{suffix}" for style in STYLES)
    for path, (data, _) in zip((light, dark), drawings, strict=True):
        _write_if_changed(path, data)
    return light, dark, *size


def _drawn(draw: Draw, style: Style, suffix: str) -> tuple[bytes, tuple[int, int]]:
    """The bytes of one drawing and its (width, height) in CSS pixels."""
    with using(style):
        figure = draw(style)
        if not isinstance(figure, Figure):
            raise TypeError(f"draw must return a matplotlib Figure, not {type(figure).__name__}")
        try:
            buffer = io.BytesIO()
            # No date and no version in the file: the same drawing must give the same bytes.
            options: Any = {"metadata": {"Date": None}} if suffix == "svg" else {"pil_kwargs": WEBP}
            figure.savefig(buffer, format=suffix, dpi=PICTURE_DPI, **options)
            width, height = figure.get_size_inches()
        finally:
            plt.close(figure)
    return buffer.getvalue(), (round(width * CSS_DPI), round(height * CSS_DPI))


def _write_if_changed(path: Path, data: bytes) -> None:
    if not (path.is_file() and path.read_bytes() == data):
        path.write_bytes(data)


def panels(
    rows: int = 1, cols: int = 1, width: float = 7.2, height: float | None = None, **options: Any
) -> tuple[Figure, NDArray[Any]]:
    """A figure with a grid of axes, laid out so that labels do not overlap.

    Args:
        rows: rows of the grid.
        cols: columns of the grid.
        width: in inches; 7.2 fills the text column.
        height: in inches; without it, panels are about 3:2.
        **options: passed to `Figure.subplots`, e.g. ``sharey=True`` or ``width_ratios=[2, 1]``.

    Returns:
        The figure and its axes, an object array (rows, cols).
    """
    height = height if height is not None else rows * max(1.2, min(3.6, width / cols / 1.5))
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, cols, squeeze=False, **options)


def seed_lines(
    ax: Axes, x: ArrayLike, values_per_seed: ArrayLike, label: str, colour: str | None = None, **options: Any
) -> None:
    """Draws the mean over seeds as a line, and the band from the lowest to the highest seed.

    Args:
        ax: the axes.
        x: positions (X,).
        values_per_seed: (S, X), one row per seed.
        label: for the legend.
        colour: the next of the cycle where none is given.
        **options: passed to `Axes.plot`, e.g. ``linestyle="--"`` or ``marker="o"``.

    Raises:
        ValueError: the values are not (S, X).
    """
    positions, values = np.asarray(x), np.asarray(values_per_seed, dtype=float)
    if values.ndim != 2 or values.shape[1:] != positions.shape or len(values) == 0:
        raise ValueError(f"values must be (seeds, {positions.shape[0]}), one row per seed, not {values.shape}")
    if colour is not None:
        options["color"] = colour
    (line,) = ax.plot(positions, values.mean(0), label=label, **options)
    band = ax.fill_between(positions, values.min(0), values.max(0), color=line.get_color(), alpha=0.22, linewidth=0)
    band.set_zorder(line.get_zorder() - 0.5)


def seed_bars(
    ax: Axes,
    labels: Sequence[str],
    values_per_seed: Sequence[Sequence[float]],
    colours: Sequence[str] | None = None,
) -> None:
    """Draws the mean over seeds as a bar, each seed as a dot, and a line from the worst to the best seed.

    Args:
        ax: the axes.
        labels: of the bars (L,).
        values_per_seed: (L, S), one row per bar; rows may differ in length.
        colours: of the bars (L,); the cycle where none are given.

    Raises:
        ValueError: labels and values differ in number, or a bar has no value.
    """
    if len(labels) != len(values_per_seed) or not all(len(values) for values in values_per_seed):
        raise ValueError(f"{len(labels)} labels need as many rows of values, each with at least one seed")
    ink = mpl.rcParams["text.color"]
    cycle = list(colours) if colours is not None else [each["color"] for each in mpl.rcParams["axes.prop_cycle"]]
    for place, row in enumerate(values_per_seed):
        values = np.asarray(row, dtype=float)
        ax.bar(place, values.mean(), width=0.62, color=cycle[place % len(cycle)], alpha=0.85, linewidth=0)
        if len(values) > 1:
            ax.vlines(place, values.min(), values.max(), color=ink, linewidth=1.2)
        # Seeds stand side by side, so that equal values stay visible.
        offsets = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else np.zeros(1)
        ax.plot(place + offsets, values, "o", color=ink, markersize=3.5, linestyle="none")
    ax.set_xticks(range(len(labels)), labels)
    ax.grid(False, axis="x")


def show_image(ax: Axes, image: Any, title: str | None = None, **options: Any) -> None:
    """Shows an image without axes.

    Args:
        ax: the axes.
        image: array or tensor (H, W), (1, H, W), (3, H, W), (H, W, 1) or (H, W, 3). Gray images run from black
            to white and floats from 0 to 1, unless the options say otherwise; floats of colour images are clipped.
        title: above the image.
        **options: passed to `Axes.imshow`, e.g. ``cmap=style.sequential, vmin=None, vmax=None`` for a map.

    Raises:
        ValueError: the array is not an image.
    """
    pixels = _channels_last(image)
    options.setdefault("cmap", "gray")
    if pixels.dtype.kind == "f":
        options.setdefault("vmin", 0.0)
        options.setdefault("vmax", 1.0)
        pixels = pixels.clip(0.0, 1.0) if pixels.ndim == 3 else pixels
    # Few pixels are data and stay squares; many are resampled to the size on the page.
    options.setdefault("interpolation", "none" if max(pixels.shape[:2]) <= LARGEST_PIXEL_ART else "auto")
    ax.imshow(pixels, **options)
    ax.set_axis_off()
    ax.set_anchor("N")  # titles of a row stand on one line
    if title is not None:
        ax.set_title(title)


def show_heat(ax: Axes, image: Any, heat: Any, title: str | None = None) -> None:
    """Shows an image (3, H, W) in grey, dimmed, under a map (h, w) that covers all of it, bright where there is much."""
    grey = _channels_last(image).mean(-1)
    high, wide = grey.shape
    show_image(ax, grey, title, vmax=1.6)
    extent = (-0.5, wide - 0.5, high - 0.5, -0.5)
    ax.imshow(np.asarray(heat), cmap="magma", alpha=0.6, extent=extent, interpolation="bilinear")
    ax.autoscale(False)


def _channels_last(image: Any) -> NDArray[Any]:
    """(H, W) or (H, W, 3) from any of the layouts that `show_image` takes."""
    if hasattr(image, "detach"):  # a tensor, wherever it lies
        image = image.detach().cpu().float().numpy()
    pixels = np.asarray(image)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.float32)
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3) and pixels.shape[0] in (1, 3):
        pixels = pixels.transpose(1, 2, 0)  # (C, H, W) -> (H, W, C)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] != 3):
        raise ValueError(f"an image is (H, W), (1|3, H, W) or (H, W, 1|3), not {np.shape(image)}")
    return pixels


def draw_boxes(
    ax: Axes, boxes_xyxy: Any, labels: Sequence[str] | None = None, colour: str = BOX_COLOUR, **options: Any
) -> None:
    """Draws boxes over an image, each with a dark rim so that it is seen on any background.

    Args:
        ax: axes that show an image.
        boxes_xyxy: (n, 4), x0 y0 x1 y1 in pixels; edges lie between pixels, so the whole image is 0 0 W H.
        labels: (n,), written above the upper left corner, or below it at the top of the image.
        colour: bright in both styles by default, because what lies below is a picture, not the page.
        **options: passed to `Rectangle`, e.g. ``linestyle="--"``.

    Raises:
        ValueError: boxes are not (n, 4), or labels differ in number.
    """
    boxes = np.asarray(boxes_xyxy.detach().cpu() if hasattr(boxes_xyxy, "detach") else boxes_xyxy, dtype=float)
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (n, 4), not {boxes.shape}")
    if labels is not None and len(labels) != len(boxes):
        raise ValueError(f"{len(labels)} labels for {len(boxes)} boxes")
    options = {"linewidth": 1.6, **options}
    rim = [withStroke(linewidth=options["linewidth"] + 1.6, foreground=(0, 0, 0, 0.65)), Normal()]
    # imshow centres pixel 0 at 0, so its left edge lies at -0.5.
    for x0, y0, x1, y1 in boxes - 0.5:
        ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, path_effects=rim, **options))
    tag = {"facecolor": (0, 0, 0, 0.75), "edgecolor": "none", "boxstyle": "square,pad=0.15"}
    top, bottom = sorted(ax.get_ylim())
    for (x0, y0, _, _), label in zip(boxes - 0.5, labels or [], strict=False):
        above = y0 - top > 0.1 * (bottom - top)  # else the label would leave the image
        ax.text(x0, y0, label, color="white", fontsize=9, va="bottom" if above else "top", bbox=tag, clip_on=True)
