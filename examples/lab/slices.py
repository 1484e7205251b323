"""Segmentation of brain slices, shared by the U-Nets: cropped slices, what a model makes of them, measures, and painting."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from lab.data import SPLITS, Split
from lab.data.brain import GREY, LABELS, TUMOUR, WHITE, BrainSlices, brain_slices
from lab.figures import Style
from lab.metrics import dice, lesion_recall

CLASSES = 4  # background, grey matter, white matter, tumour
TISSUES = {"grey": GREY, "white": WHITE, "tumour": TUMOUR}
SIZES = {"small": (1, 16), "medium": (17, 99), "large": (100, 10_000)}  # of tumours, in pixels of 2 mm
FIXED = 10_000  # seed of the validation and the test slices, the same for all networks
BATCH = 32  # slices that are segmented at once


@lru_cache(maxsize=8)  # the training slices of all seeds, and the two other splits
def cropped(
    split: Split,
    count: int,
    seed: int,
    millimetres: Literal[1, 2] = 2,
    tumours: tuple[int, int] = (2, 4),
    parts: bool = False,
) -> BrainSlices:
    """Slices without the outermost 16 mm, which hold air: 96 x 80 pixels at 2 mm, 192 x 160 at 1 mm; see `brain_slices`."""
    scale = 4 // millimetres**2  # pixels for one of 2 mm
    area = (8 * scale, 400 * scale)
    made = brain_slices(
        split, count, seed=seed, millimetres=millimetres, tumours=tumours, tumour_pixels=area, parts=parts
    )
    inner = slice(16 // millimetres, -16 // millimetres)
    images = made.images[:, :, inner, inner].contiguous()
    return BrainSlices(images, made.labels[:, inner, inner], made.lesions[:, inner, inner], made.z)


def held_out(split: Split, counts: tuple[int, int, int], millimetres: Literal[1, 2] = 2) -> BrainSlices:
    """The validation or the test slices, the same for all networks; counts of training, validation and test slices."""
    return cropped(split, counts[SPLITS.index(split)], FIXED, millimetres)


def described(counts: tuple[int, int, int], millimetres: int) -> str:
    """The data of an experiment, for its record; counts of training, validation and test slices."""
    size = "96 x 80 pixels at 2 mm" if millimetres == 2 else "192 x 160 pixels at 1 mm"
    train, val, test = counts
    return (
        f"{train:,} slices of one brain template with planted tumours, {size}, to train; {val} of other bands of the head to "
        f"choose the learning rate, {test} of further ones to test"
    )


@torch.inference_mode()
def segmented(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes (B, H, W) of images (B, 1, H, W), on the CPU."""
    device = next(model.parameters()).device
    return torch.cat([model(part.to(device)).argmax(1).cpu() for part in torch.split(images, BATCH)])


def dices(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Dice of each tissue, pooled over all slices, NaN where it is in neither; both (B, H, W)."""
    values = dice(predicted, labels, CLASSES).tolist()
    return {f"dice_{tissue}": values[label] for tissue, label in TISSUES.items()}


def mean_dice(model: nn.Module, data: BrainSlices) -> float:
    """Mean over the tissues; one that is neither there nor found does not count."""
    return torch.tensor(list(dices(segmented(model, data.images), data.labels).values())).nanmean().item()


def areas(millimetres: int = 2) -> dict[str, tuple[float, float]]:
    """Least and largest area of each of `SIZES`, in pixels of a slice."""
    scale = 4 / millimetres**2
    return {size: (low * scale, high * scale) for size, (low, high) in SIZES.items()}


def recalls(predicted: Tensor, labels: Tensor, millimetres: int = 2) -> dict[str, float]:
    """The part of the tumours of each size that at least one predicted pixel lies on; both (B, H, W)."""
    found, there = predicted == TUMOUR, labels == TUMOUR
    return {f"recall_{size}": lesion_recall(found, there, area=area) for size, area in areas(millimetres).items()}


def false_spots(found: Tensor, truth: Tensor) -> float:
    """Connected spots of `found` per slice that touch no pixel of `truth`; both bool (B, H, W)."""
    wrong = 0
    for there, true in zip(found.numpy(), truth.numpy(), strict=True):
        components, number = ndimage.label(there, structure=np.ones((3, 3)))
        wrong += number - len(set(components[true].tolist()) - {0})
    return wrong / len(found)


def smallest_near(slices: BrainSlices, pixels: int) -> int:
    """The slice whose smallest tumour is nearest to so many pixels: chosen by the truth, not by what comes out."""
    numbers = range(1, int(slices.lesions.max()) + 1)
    areas = torch.stack([(slices.lesions == number).sum((1, 2)) for number in numbers], dim=1)  # (N, tumours)
    smallest = areas.masked_fill(areas == 0, 10**6).amin(1)
    return int((smallest - pixels).abs().argmin())


def painted(image: Tensor, labels: Tensor, style: Style) -> NDArray[np.float32]:
    """An image (H, W) with each tissue of the labels (H, W) tinted in its colour: (H, W, 3)."""
    picture: NDArray[np.float32] = image.cpu().numpy()[..., None].repeat(3, axis=2)
    for label, colour in zip(TISSUES.values(), style.cycle, strict=False):
        there = labels.cpu().numpy() == label
        picture[there] = 0.4 * picture[there] + 0.6 * np.array(to_rgb(colour), np.float32)
    return picture


def legend(figure: Figure, style: Style) -> None:
    """Names the colours of `painted` below the figure."""
    named = zip(TISSUES.values(), style.cycle, strict=False)
    patches = [Patch(facecolor=colour, label=LABELS[label]) for label, colour in named]
    outside = figure.get_layout_engine() is not None
    place: Any = "outside lower center" if outside else "lower center"
    figure.legend(handles=patches, loc=place, ncols=len(patches), frameon=False)


def telling_channel(maps: Tensor) -> Tensor:
    """(H, W): of maps (1, C, H, W), the channel that varies most, from 0 to 1 between its 2nd and 98th percentile."""
    channel = maps[0, maps[0].flatten(1).std(1).argmax()].float().cpu()
    low, high = channel.quantile(0.02), channel.quantile(0.98)
    return ((channel - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


def _place(ax: Any, picture: Any, x: float, y: float, height: float) -> float:
    """Shows a map (H, W) or (H, W, 3) about (x, y), in inches, and returns half its width."""
    half = 0.5 * height * picture.shape[1] / picture.shape[0]
    ax.imshow(
        np.asarray(picture),
        extent=(x - half, x + half, y - height / 2, y + height / 2),
        interpolation="none",
        vmin=0,
        vmax=1,
    )
    return float(half)


WIDE, GAP = 5.4, 0.22  # inches of `draw_maps`: its width, and between two levels
MIDDLE = WIDE / 2


def draw_maps(
    style: Style, image: Tensor, labels: Tensor, encoded: Sequence[Tensor], decoded: Sequence[Tensor]
) -> Figure:
    """The U of a network: image (H, W), maps (1, C, h, w) of the encoder down the left, of the decoder up the right, labels.

    All places are in inches.
    """
    heights = [1.2 * 0.8**level for level in range(len(encoded))]
    y = high = sum(heights) + GAP * len(decoded) + 0.5
    figure = Figure(figsize=(WIDE, high), layout="none")  # type: ignore[arg-type]
    ax = figure.add_axes((0, 0, 1, 1))
    thin = {"arrowstyle": "-|>", "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}
    down, across, foot = thin | {"color": style.muted}, thin | {"color": style.cycle[1]}, (0.0, 0.0)
    y -= 0.05
    for level, (e, height) in enumerate(zip(encoded, heights, strict=True)):
        x = 1.62 + 0.16 * level if level < len(decoded) else MIDDLE
        top, y = (foot[0] + 0.2, y - GAP), y - height / 2 - (GAP if level else 0)
        half = _place(ax, telling_channel(e), x, y, height)
        if level:
            ax.annotate("", (top[0], y + height / 2), foot, arrowprops=down)
            ax.annotate("", (WIDE - foot[0], foot[1]), (WIDE - top[0], y + height / 2), arrowprops=down)
        if level < len(decoded):
            _place(ax, telling_channel(decoded[level]), WIDE - x, y, height)
            ax.annotate("", (WIDE - x - half - 0.05, y), (x + half + 0.05, y), arrowprops=across)
            ax.text(MIDDLE, y + 0.05, "skip", ha="center")
        size = f"{e.shape[1]} maps\n{e.shape[2]} × {e.shape[3]}"
        if level:
            ax.text(x - half - 0.1, y, size, ha="right", va="center", fontsize=9)
        else:
            _place(ax, image[..., None].expand(-1, -1, 3).cpu(), 0.53, y, height)
            _place(ax, painted(image, labels, style), WIDE - 0.53, y, height)
            ax.text(MIDDLE, y - 0.08, size, ha="center", va="top", fontsize=9)
        y -= height / 2
        foot = (x, y)
    ax.set(xlim=(0, WIDE), ylim=(0, high))
    ax.set_axis_off()
    legend(figure, style)
    return figure
