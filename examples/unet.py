# %% [markdown]
# # U-Net: what do the skips carry that the decoder cannot make up for?
#
# An encoder halves the image again and again to see more of it at once, a decoder doubles it back, and at every level
# a skip hands the encoder's map across. Three networks of the same size, which differ only in what is laid beside the
# upsampled map, segment slices of a brain: the skip itself, the skip with its fine positions blurred away, and nothing
# new. The last experiment adds pooling after pooling, with and without skips.
#
# | symbol (card, arXiv:1505.04597) | here | meaning |
# |---|---|---|
# | $e^l$ | `maps[level]` | the encoder's map of level $l$, (B, C, H / 2^l, W / 2^l); level 0 is the finest |
# | $d^l$ | `x` in `decode` | the decoder's map of level $l$ |
# | $\mathrm{up}$, $f^l$ | `up`, `merge` | up-convolution; the two convolutions behind the concatenation |
# | $p_k(\mathbf{x})$ | `scores.softmax(1)` | probability of class $k$ at a pixel |
# | $w_c$ | `balance` | weight of a pixel in the loss, by its class |
# | $r_i$, $k_i$, $s_i$ | `receptive_field`, `layers` | receptive field, kernel size and stride of layer $i$ |

# %%
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from lab.data import Split
from lab.data.brain import GREY, LABELS, TUMOUR, WHITE, BrainSlices, brain_slices
from lab.figures import Figure, Style, panels, seed_bars, seed_lines, show_image
from lab.metrics import dice, lesion_recall
from lab.run import Experiment, Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

CLASSES = len(LABELS) - 1  # K: background, grey matter, white matter, tumour
TISSUES = {"grey": GREY, "white": WHITE, "tumour": TUMOUR}
SIZES = {"small": (1, 16), "medium": (17, 99), "large": (100, 10_000)}  # of tumours, in pixels of 2 mm
Source = Literal["skip", "coarse", "none"]
NAMES: Mapping[Source, str] = {"skip": "with skips", "coarse": "coarse skips", "none": "no skips"}
FIXED = 10_000  # seed of the validation and the test slices, the same for all


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        widths: channels of each level, by depth (number of poolings); equal numbers of parameters within 1 %.
        depth: of the networks that the skips are tested on.
        steps: of the optimiser.
        longer: how many times as many steps one arm without skips gets.
        learning_rate: at its peak; chosen on the validation slices with seeds 100 and 101.
        batch: slices in a step.
        slices: numbers of training, validation and test slices.
        millimetres: side of a pixel.
        noise: images behind each gradient footprint.
    """

    widths: Mapping[int, tuple[int, ...]]
    depth: int
    steps: int
    longer: int = 3
    learning_rate: float = 5e-3
    batch: int = 2
    slices: tuple[int, int, int] = (600, 40, 200)
    millimetres: Literal[1, 2] = 2
    noise: int = 16


QUICK_WIDTHS = {2: (8, 26, 84), 3: (8, 16, 32, 64), 4: (8, 13, 20, 32, 52)}
FULL_WIDTHS = {
    2: (16, 52, 167),
    3: (16, 32, 64, 128),
    4: (16, 26, 41, 65, 103),
    5: (16, 23, 32, 45, 63, 89),
}
PRESETS = {
    "smoke": Preset(widths=QUICK_WIDTHS, depth=3, steps=2, slices=(8, 4, 24), noise=2),
    "quick": Preset(widths=QUICK_WIDTHS, depth=3, steps=250),
    "full": Preset(
        widths=FULL_WIDTHS, depth=4, steps=1500, batch=16, slices=(4000, 100, 500), millimetres=1, noise=64
    ),
}

# %% [markdown]
# ## Down, up, and across
# Each level applies two 3x3 convolutions. A 2x2 max pooling leads down, a 2x2 up-convolution leads up, and the decoder
# merges what comes from below with what lies beside it:
# $$d^l = f^l\big(\,[\,\mathrm{beside}^l\,;\ \mathrm{up}(d^{l+1})\,]\,\big)$$
# In a U-Net, $\mathrm{beside}^l$ is the encoder's map $e^l$. The two other arms change this one thing and nothing
# else, so that all three have the same layers and the same parameters:
#
# - **coarse skips**: $e^l$, averaged over cells as large as those of the deepest level and spread out again. The
#   features and the short path of the gradient stay; where within a cell they were found is lost.
# - **no skips**: $\mathrm{up}(d^{l+1})$ once more.


# %%
def double_convolution(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch norm and ReLU: (B, inputs, H, W) -> (B, outputs, H, W)."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Gives each pixel of an image a score per class.

    Args:
        widths: channels of each level, the finest first; one pooling between two levels.
        source: what the decoder concatenates to the upsampled map.
        classes: K.
    """

    def __init__(self, widths: Sequence[int], source: Source = "skip", classes: int = CLASSES) -> None:
        super().__init__()
        self.source = source
        pairs = list(zip(widths[-2::-1], widths[:0:-1], strict=True))  # (fine, deep), from the bottom up
        self.down = nn.ModuleList(double_convolution(a, b) for a, b in zip((1, *widths), widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, fine, 2, stride=2) for fine, deep in pairs)
        self.merge = nn.ModuleList(double_convolution(2 * fine, fine) for fine, _ in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def encode(self, images: Tensor) -> list[Tensor]:
        """e^0, e^1, ...: images (B, 1, H, W) -> one map (B, C, H / 2^l, W / 2^l) per level."""
        maps = [self.down[0](images)]
        for block in self.down[1:]:
            maps.append(block(F.max_pool2d(maps[-1], 2)))
        return maps

    def decode(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The decoder's maps, from the level above the deepest to d^0."""
        x, decoded = maps[-1], []
        for up, merge, e in zip(self.up, self.merge, maps[-2::-1], strict=True):
            x = up(x)
            x = merge(torch.cat([self.beside(e, x, maps[-1].shape[-2:]), x], dim=1))  # 2 C channels -> C
            decoded.append(x)
        return decoded

    def beside(self, e: Tensor, x: Tensor, coarsest: Sequence[int]) -> Tensor:
        """What is laid beside the upsampled map x; the only difference between the arms."""
        if self.source == "skip":
            return e
        if self.source == "coarse":
            return F.interpolate(F.adaptive_avg_pool2d(e, list(coarsest)), size=e.shape[-2:], mode="nearest")
        return x

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) images -> (B, K, H, W) scores; H and W must be multiples of 2^depth."""
        scores: Tensor = self.head(self.decode(self.encode(images))[-1])
        return scores


# %% [markdown]
# ## Data and training: the same for all arms
# Axial slices of one template brain, warped elastically, with planted tumours: the card's step 7 comes with the data.
# Training, validation and test slices are bands of the head with a gap between them. It is one anatomy; the numbers
# say nothing across patients.
#
# The loss is the weighted cross entropy of the paper with its first term, $w_c$, which balances the classes.


# %%
def slices_of(split: Split, count: int, seed: int, millimetres: Literal[1, 2]) -> BrainSlices:
    """Slices (N, 1, H, W) without the outermost 16 mm, which hold air: 96 x 80 pixels at 2 mm, 192 x 160 at 1 mm."""
    scale = 4 // millimetres**2  # pixels of 1 mm in a pixel of 2 mm
    made = brain_slices(split, count, seed=seed, millimetres=millimetres, tumour_pixels=(8 * scale, 400 * scale))
    inner = slice(16 // millimetres, -16 // millimetres)
    images = made.images[:, :, inner, inner].contiguous()
    return BrainSlices(images, made.labels[:, inner, inner], made.lesions[:, inner, inner], made.z)


def described(preset: Preset) -> str:
    train_count, _, test_count = preset.slices
    size = "96 x 80 pixels at 2 mm" if preset.millimetres == 2 else "192 x 160 pixels at 1 mm"
    return f"{train_count} brain slices of one template with planted tumours, {size}; tested on {test_count} of other bands"


def balance(labels: Tensor) -> Tensor:
    """w_c: class weights (K,) by frequency to the power -0.7, 1 for the background.

    The full inverse (power -1) makes tumours everywhere, no balance (0) finds none; chosen on the validation slices.
    """
    weights = labels.flatten().bincount(minlength=CLASSES).float().clamp(min=1) ** -0.7
    return weights / weights[0]


@dataclass(frozen=True)
class Arm:
    """A network and its budget."""

    depth: int
    source: Source
    steps: int


@dataclass(frozen=True)
class Trained:
    """A trained network with its scores on the test slices.

    Attributes:
        scores: Dice of each of `TISSUES`, and recall of the tumours of each of `SIZES`.
        curve: Dice on the validation slices after so many steps.
    """

    model: UNet
    scores: dict[str, float]
    curve: dict[int, dict[str, float]]


Networks = Mapping[Arm, Sequence[Trained]]  # one network per seed


def segmented(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes (B, H, W) of images (B, 1, H, W), on the CPU."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return torch.cat([model(part.to(device)).argmax(1).cpu() for part in images.split(32)])


def tissue_dice(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    scores = dice(predicted, labels, CLASSES).tolist()
    return {tissue: scores[label] for tissue, label in TISSUES.items()}


def tumour_recall(predicted: Tensor, labels: Tensor, millimetres: int) -> dict[str, float]:
    """The part of the tumours of each size that at least one predicted pixel lies on."""
    scale = 4 / millimetres**2  # pixels for one of 2 mm
    areas = {size: (low * scale, high * scale) for size, (low, high) in SIZES.items()}
    found, there = predicted == TUMOUR, labels == TUMOUR
    return {size: lesion_recall(found, there, area=area) for size, area in areas.items()}


def train(arm: Arm, preset: Preset, seed: int, device: torch.device) -> Trained:
    """Trains and tests an arm; with one seed, all arms see the same slices in the same order."""
    data, check, test = (
        slices_of(split, count, FIXED if split != "train" else seed, preset.millimetres)
        for split, count in zip(("train", "val", "test"), preset.slices, strict=True)
    )
    weights = balance(data.labels).to(device)
    curve: dict[int, dict[str, float]] = {}

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images), labels, weight=weights)  # Eq. 1, arXiv:1505.04597

    def record(step: int, model: nn.Module) -> None:
        curve[step] = tissue_dice(segmented(model, check.images), check.labels)

    seed_everything(seed)
    model = UNet(preset.widths[arm.depth], arm.source).to(memory_format=torch.channels_last)
    batches = minibatches((data.images, data.labels), preset.batch, arm.steps, seed)
    every = max(1, preset.steps // 4)
    fit(model, batches, loss, steps=arm.steps, learning_rate=preset.learning_rate, device=device,
        every=every, callback=record if arm.depth == preset.depth else None)  # fmt: skip
    predicted = segmented(model, test.images)
    scores = tissue_dice(predicted, test.labels) | tumour_recall(predicted, test.labels, preset.millimetres)
    return Trained(model, scores, curve)


def train_all(run: Run, preset: Preset) -> Networks:
    """Every depth with and without skips; at the tested depth also coarse skips, and more steps without skips."""
    arms = [Arm(depth, source, preset.steps) for depth in preset.widths for source in ("skip", "none")]
    arms += [Arm(preset.depth, "coarse", preset.steps), Arm(preset.depth, "none", preset.longer * preset.steps)]
    jobs = [(arm, seed) for arm in arms for seed in run.seeds]
    trained = [train(arm, preset, seed, run.device) for arm, seed in run.progress(jobs, what="training")]
    return {arm: trained[i * len(run.seeds) : (i + 1) * len(run.seeds)] for i, arm in enumerate(arms)}


def scores(networks: Networks, arm: Arm, measure: str) -> list[float]:
    """One value per seed."""
    return [trained.scores[measure] for trained in networks[arm]]


def gaps(networks: Networks, better: Arm, worse: Arm, measure: str) -> list[float]:
    """Differences of two arms, seed by seed."""
    pairs = zip(scores(networks, better, measure), scores(networks, worse, measure), strict=True)
    return [a - b for a, b in pairs]


# %% [markdown]
# ## The U: maps on the way down, maps on the way up
# One map of every level of a trained network, for one test slice. Each pooling leaves a quarter of the values; where
# a thing lies becomes less exact while what it is becomes clearer. On the way up, the merged maps are fine again.


# %%
def telling_channel(maps: Tensor) -> Tensor:
    """(H, W): of maps (1, C, H, W), the channel that varies most, from 0 to 1 between its 2nd and 98th percentile."""
    channel = maps[0, maps[0].flatten(1).std(1).argmax()].cpu()
    low, high = np.percentile(channel.numpy(), [2, 98])
    return ((channel - low) / max(high - low, 1e-6)).clamp(0, 1)


def painted(image: Tensor, labels: Tensor, style: Style) -> NDArray[np.float32]:
    """An image (H, W) with each tissue tinted in its colour: (H, W, 3)."""
    picture: NDArray[np.float32] = image.numpy()[..., None].repeat(3, axis=2)
    for label, colour in zip(TISSUES.values(), style.cycle, strict=False):
        there = labels.numpy() == label
        picture[there] = 0.4 * picture[there] + 0.6 * np.array(to_rgb(colour), np.float32)
    return picture


def tissue_legend(figure: Figure, style: Style) -> None:
    named = zip(TISSUES.values(), style.cycle, strict=False)
    patches = [Patch(color=colour, label=LABELS[label]) for label, colour in named]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)


def place(ax: Axes, picture: Tensor | NDArray[np.float32], x: float, y: float, height: float) -> float:
    """Shows a map (H, W) or (H, W, 3) about (x, y) and returns half its width."""
    half = 0.5 * height * picture.shape[1] / picture.shape[0]
    extent = (x - half, x + half, y - height / 2, y + height / 2)
    ax.imshow(np.asarray(picture), extent=extent, interpolation="none", vmin=0, vmax=1)
    return half


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.5, "shrinkA": 0, "shrinkB": 0})


def draw_u(style: Style, model: UNet, image: Tensor) -> Figure:
    """Image (1, 1, H, W), the encoder's maps down, the decoder's maps up, and the skips between them."""
    with torch.no_grad():
        encoded = model.encode(image.to(next(model.parameters()).device))
        decoded = model.decode(encoded)[::-1]  # the finest first
        labels = model.head(decoded[0]).argmax(1)[0].cpu()
    figure, ((ax,),) = panels(height=5.1)
    bottom = len(encoded) - 1
    heights = [1.2 * 0.8**level for level in range(bottom + 1)]
    middles = [5.05 - height / 2 - sum(heights[:level]) - 0.2 * level for level, height in enumerate(heights)]
    left = [2.1 + 0.25 * level for level in range(bottom)] + [3.6]
    for level, (e, x, y, height) in enumerate(zip(encoded, left, middles, heights, strict=True)):
        half = place(ax, telling_channel(e), x, y, height)
        text = f"{e.shape[1]} maps\n{e.shape[2]} × {e.shape[3]}"
        if level == bottom:
            ax.text(x + half + 0.08, y, text, va="center", fontsize=8)
            continue
        place(ax, telling_channel(decoded[level]), 7.2 - x, y, height)
        ax.text(x - half - 0.06, y, text, ha="right", va="center", fontsize=8)
        ax.text(7.2 - x + half + 0.06, y, text, va="center", fontsize=8)
        arrow(ax, (x + half + 0.05, y), (7.2 - x - half - 0.05, y), style.cycle[1])
        ax.text(3.6, y + 0.05, f"$e^{level}$: copied across", ha="center", va="bottom", fontsize=8)
        foot, head = y - height / 2 - 0.02, middles[level + 1] + heights[level + 1] / 2 + 0.02
        arrow(ax, (x + 0.1, foot), (left[level + 1] - 0.1, head), style.muted)
        arrow(ax, (7.1 - left[level + 1] + 0.2, head), (7.1 - x, foot), style.muted)
    photo = image[0, 0].cpu()
    place(ax, photo[..., None].repeat(1, 1, 3), 0.56, middles[0], heights[0])
    place(ax, painted(photo, labels, style), 6.64, middles[0], heights[0])
    ax.text(0.06, 1.2, "down: 2 × 2 max pooling,\nthen two 3 × 3 convolutions", fontsize=8, va="center")
    ax.text(7.14, 1.2, "up: 2 × 2 up-convolution,\nthen two 3 × 3 convolutions", fontsize=8, va="center", ha="right")
    ax.set(xlim=(0, 7.2), ylim=(0, 5.1))
    ax.set_axis_off()
    tissue_legend(figure, style)
    return figure


def show_u(run: Run, preset: Preset, networks: Networks, image: Tensor) -> None:
    arm = Arm(max(preset.widths), "skip", preset.steps)
    levels = max(preset.widths)
    run.figure(
        "feature_maps",
        partial(draw_u, model=networks[arm][0].model, image=image),
        caption="The U of a trained network: from each level the map that varies most. Going down, the slice fades "
        "into a few coarse cells; going up, outlines come back, because each level is also given its own map "
        "from the way down.",
        alt=f"A brain slice at the left; below and to the right of it {levels + 1} feature maps, each half as fine as "
        f"the one above, lead down to a few coarse cells. {levels} maps lead up again at the right to the slice with "
        "its tissues painted in. A horizontal arrow joins the two maps of every level but the deepest.",
    )


# %% [markdown]
# ## The deeper, the wider the view
# A unit of layer $i$ depends on a square of the image, its receptive field. Every kernel adds to it, the more so the
# larger the step from one unit to the next already is:
# $$r_i = r_{i-1} + (k_i - 1) \prod_{j<i} s_j$$
# The gradient of a unit by the image shows the same square in a real stack: outside it is exactly zero. Inside it is
# far from even, so the field that counts (arXiv:1701.04128) is smaller than the one that the formula gives.


# %%
def encoder_layers(level: int) -> list[tuple[int, int]]:
    """Kernel size and stride of every layer from the image to the encoder's map of `level`."""
    return [(3, 1), (3, 1)] + [(2, 2), (3, 1), (3, 1)] * level


def receptive_field(layers: Sequence[tuple[int, int]]) -> int:
    """Side in pixels of what a unit behind these layers depends on."""
    side, step = 1, 1
    for kernel, stride in layers:
        side += (kernel - 1) * step
        step *= stride
    return side


def gradient_footprint(model: UNet, level: int, images: Tensor) -> Tensor:
    """|d unit / d pixel| for the central unit of e^level, mean over the images (B, 1, H, W): (H, W).

    A max pooling passes the gradient to one pixel of four, so it takes several images to see the whole field.
    """
    images = images.clone().requires_grad_()
    maps = model.encode(images)[level]
    centre = maps[..., maps.shape[-2] // 2, maps.shape[-1] // 2].sum()
    (gradient,) = torch.autograd.grad(centre, images)
    return gradient.abs().mean((0, 1))


def bounding_box(footprint: Tensor) -> tuple[int, int, int, int]:
    """Smallest box x0, y0, x1, y1 (x1 and y1 not included) outside which the footprint (H, W) is zero."""
    rows, columns = ((footprint > 0).any(axis).nonzero()[:, 0] for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def effective_side(footprint: Tensor, share: float = 0.9) -> int:
    """Side of the smallest square about the middle of the footprint's box that holds `share` of the footprint."""
    x0, y0, x1, y1 = bounding_box(footprint)
    inner = footprint[y0:y1, x0:x1]
    for cut in range(min(inner.shape) // 2, -1, -1):
        square = inner[cut : inner.shape[0] - cut, cut : inner.shape[1] - cut]
        if square.sum() >= share * inner.sum():
            return square.shape[0]
    return inner.shape[0]


def draw_fields(style: Style, footprints: Sequence[Tensor], effective: Sequence[Sequence[float]]) -> Figure:
    """Footprints (H, W) of each level with their boxes, and the sides of the fields by level."""
    figure, (top, below) = panels(2, len(footprints), height=4.6, height_ratios=[1, 1.7])
    for level, (ax, footprint) in enumerate(zip(top, footprints, strict=True)):
        shown = (footprint / footprint.max()).sqrt()  # the root makes the faint margin visible
        show_image(ax, shown, f"level {level}", cmap=style.sequential)
        x0, y0, x1, y1 = bounding_box(footprint)
        ax.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=1.2))
    for ax in below:
        ax.remove()
    ax = figure.add_subplot(below[0].get_gridspec()[1, :])
    levels = range(len(footprints))
    ax.plot(levels, [receptive_field(encoder_layers(level)) for level in levels], label="formula")
    measured = [max(_sides(footprint)) for footprint in footprints]
    ax.plot(levels, measured, "o", markersize=9, fillstyle="none", color=style.ink, label="gradient, not zero")
    seed_lines(ax, levels, effective, "gradient, 90 %", style.cycle[1], linestyle="--", marker="s")
    ax.set(xlabel="level (number of poolings)", ylabel="side of the field (pixels)", xticks=levels)
    ax.legend(loc="upper left")
    return figure


def _sides(footprint: Tensor) -> tuple[int, int]:
    x0, y0, x1, y1 = bounding_box(footprint)
    return x1 - x0, y1 - y0


def receptive_fields(run: Run, preset: Preset) -> None:
    """The side of the field at each level: by the formula, by the gradient, and where 90 % of the gradient lies."""
    widths, levels = preset.widths[4], range(5)
    experiment = run.experiment(
        "receptive_field",
        question="How much of the image does a unit of each level see?",
        data=f"gradients of untrained encoders on {preset.noise} images of noise, 160 x 160 pixels",
    )
    by_seed = []
    for seed in run.seeds:
        seed_everything(seed)
        model, noise = UNet(widths).eval(), torch.randn(preset.noise, 1, 160, 160)
        by_seed.append([gradient_footprint(model, level, noise) for level in levels])
    effective = [[float(effective_side(footprint)) for footprint in footprints] for footprints in by_seed]
    for level in levels:
        formula = receptive_field(encoder_layers(level))
        experiment.result(f"field_formula_level{level}", [formula], unit="px", exact=True,
                          meaning=f"side of the receptive field of level {level} by the formula")  # fmt: skip
        measured = [max(_sides(footprints[level])) for footprints in by_seed]
        experiment.result(f"field_gradient_level{level}", measured, unit="px",
                          meaning=f"side of the square outside which the gradient of level {level} is zero")  # fmt: skip
        experiment.result(f"field_effective_level{level}", [sides[level] for sides in effective], unit="px",
                          meaning=f"side of the central square that holds 90 % of the gradient of level {level}")  # fmt: skip
    experiment.figure(
        "receptive_field",
        partial(draw_fields, footprints=by_seed[0], effective=effective),
        caption="Above: how strongly each pixel moves the central unit of a level (root of the gradient), with the box "
        "outside which it is exactly zero. Below: the sides of these boxes lie on the formula. Most of the gradient "
        "lies well inside; the band spans the seeds.",
        alt="Five squares of the same size show gradients at levels 0 to 4: a dot at level 0, growing to a soft blob "
        "that fills most of the square at level 4, each in a box. Below them three curves over the level: circles "
        "lie on the line of the formula, and the curve for 90 percent of the gradient rises more slowly below it.",
    )


# %% [markdown]
# ## What a skip carries
# The network is trained, then one skip at a time is silenced: each of its maps is replaced by its own mean, so that it
# still says how much of a feature there is, but not where.


# %%
def silenced(model: UNet, images: Tensor, level: int) -> Tensor:
    """Predicted classes (B, H, W), on the CPU, with the skip of `level` replaced by its mean over each slice."""
    predicted = []
    with torch.no_grad():
        for part in images.split(32):
            maps = model.encode(part.to(next(model.parameters()).device))
            maps[level] = maps[level].mean((2, 3), keepdim=True).expand_as(maps[level])
            predicted.append(model.head(model.decode(maps)[-1]).argmax(1).cpu())
    return torch.cat(predicted)


def draw_silenced(style: Style, model: UNet, image: Tensor, labels: Tensor) -> Figure:
    """For image (1, 1, H, W): a map that each skip carries, and what the network finds without it."""
    photo, levels = image[0, 0].cpu(), range(len(model.up))
    figure, (top, below) = panels(2, len(levels) + 1, height=4.9)
    with torch.no_grad():
        maps = model.encode(image.to(next(model.parameters()).device))
    show_image(top[0], painted(photo, labels, style), "truth")
    show_image(below[0], painted(photo, segmented(model, image)[0], style), "all skips")
    for level, above, beneath in zip(levels, top[1:], below[1:], strict=True):
        show_image(above, telling_channel(maps[level]), f"skip of level {level}", cmap=style.sequential)
        show_image(beneath, painted(photo, silenced(model, image, level)[0], style), f"level {level} silenced")
    tissue_legend(figure, style)
    return figure


def silence(run: Run, preset: Preset, networks: Networks, test: BrainSlices, example: int) -> None:
    """How much Dice is lost where one skip says what, but not where."""
    arm = Arm(preset.depth, "skip", preset.steps)
    experiment = run.experiment(
        "silenced",
        question="What is lost when one skip of a trained U-Net no longer says where?",
        data=described(preset),
        parameters=count_parameters(networks[arm][0].model),
        steps=arm.steps,
    )
    for level in range(preset.depth):
        without = [tissue_dice(silenced(each.model, test.images, level), test.labels) for each in networks[arm]]
        for tissue in TISSUES:
            lost = [each.scores[tissue] - less[tissue] for each, less in zip(networks[arm], without, strict=True)]
            experiment.result(f"dice_{tissue}_lost_level{level}", lost, unit="",
                              meaning=f"Dice of {tissue} lost with the skip of level {level} silenced")  # fmt: skip
    experiment.figure(
        "silenced_skips",
        partial(draw_silenced, model=networks[arm][0].model, image=test.images[[example]], labels=test.labels[example]),
        caption="Above: one map of each skip. Below: what the trained network makes of the slice when that skip is "
        "replaced by its mean. The finest skip carries the outlines of folds and ventricles, coarser ones carry "
        "regions.",
        alt="Two rows of brain slices. The upper row shows the true tissues and a map of each skip, from sharp outlines "
        "at level 0 to coarse cells at the deepest skip. The lower row shows the tissues found with all skips, and "
        "with each of them silenced.",
    )


# %% [markdown]
# ## Experiment: with, with coarse, and without skips
# Everything is equal but what is laid beside the upsampled map. The depth is one at which all arms learn in the steps
# given: without skips, the deepest network of the last experiment hardly starts.


# %%
def draw_skips(style: Style, networks: Networks, arms: Sequence[Arm]) -> Figure:
    figure, rows = panels(2, 3, height=4.8, sharey="row")
    titles = [f"Dice: {LABELS[label]}" for label in TISSUES.values()]
    titles += [f"recall: {size} tumours" for size in SIZES]
    labels = [NAMES[arm.source].replace(" ", "\n") for arm in arms]
    for ax, measure, title in zip(rows.flat, (*TISSUES, *SIZES), titles, strict=True):
        seed_bars(ax, labels, [scores(networks, arm, measure) for arm in arms])
        ax.set_title(title)
        ax.set_ylim(0, 1.03)
    return figure


def draw_segmentations(style: Style, networks: Networks, arms: Sequence[Arm], image: Tensor, labels: Tensor) -> Figure:
    photo = image[0, 0].cpu()
    figure, (axes,) = panels(1, len(arms) + 2, height=2.3)
    show_image(axes[0], photo, "slice")
    show_image(axes[1], painted(photo, labels, style), "truth")
    for ax, arm in zip(axes[2:], arms, strict=True):
        show_image(ax, painted(photo, segmented(networks[arm][0].model, image)[0], style), NAMES[arm.source])
    tissue_legend(figure, style)
    return figure


def compare_skips(run: Run, preset: Preset, networks: Networks, test: BrainSlices, example: int) -> None:
    arms = [Arm(preset.depth, source, preset.steps) for source in NAMES]
    experiment = run.experiment(
        "skips",
        question="What do skips add at equal parameters and equal steps?",
        data=described(preset),
        parameters=count_parameters(networks[arms[0]][0].model),
        steps=preset.steps,
    )
    for arm in arms:
        for measure in (*TISSUES, *SIZES):
            kind = f"Dice of {measure}" if measure in TISSUES else f"part of the {measure} tumours that are found"
            name = f"dice_{measure}" if measure in TISSUES else f"recall_{measure}"
            experiment.result(f"{name}_{arm.source}", scores(networks, arm, measure), unit="",
                              meaning=f"{kind}, {NAMES[arm.source]}")  # fmt: skip
            if arm.source != "skip":
                experiment.result(f"{name}_gap_{arm.source}", gaps(networks, arms[0], arm, measure), unit="",
                                  meaning=f"{kind}: with skips minus {NAMES[arm.source]}")  # fmt: skip
    small, large = (gaps(networks, arms[0], arms[2], size) for size in ("small", "large"))
    experiment.result("recall_gap_small_minus_large", [a - b for a, b in zip(small, large, strict=True)], unit="",
                      meaning="by how much more the recall of small tumours gains from skips than that of large ones")  # fmt: skip
    experiment.figure(
        "skips",
        partial(draw_skips, networks=networks, arms=arms),
        caption=f"Dice by tissue, and the part of the tumours found by size (small: up to {SIZES['small'][1]} pixels of "
        f"2 mm, large: from {SIZES['large'][0]}), at {preset.depth} poolings. Each dot is a seed. Compare the outer "
        "bars for what skips add, and the middle one for what is left of it when they no longer say where.",
        alt="Six bar charts with three bars each, for networks with skips, with coarse skips and without: Dice of grey "
        "matter, white matter and tumour, and recall of small, medium and large tumours, with a dot for each seed.",
    )
    experiment.figure(
        "segmentations",
        partial(draw_segmentations, networks=networks, arms=arms, image=test.images[[example]],
                labels=test.labels[example]),
        caption="A test slice with a small tumour, its true tissues, and what the three networks of the first seed "
        "make of it.",
        alt="Five pictures of one brain slice: the slice, the true tissues painted in, and the tissues found with "
        "skips, with coarse skips and without skips.",
    )  # fmt: skip


# %% [markdown]
# ## Do more steps close the gap?
# The arm without skips trains again, with a longer schedule of its own; the arm with skips keeps its short one.


# %%
def draw_steps(style: Style, networks: Networks, arms: Mapping[str, Arm]) -> Figure:
    figure, (axes,) = panels(1, 3, height=2.9, sharey=True)
    for ax, tissue in zip(axes, TISSUES, strict=True):
        for (label, arm), line in zip(arms.items(), ("-", ":", "--"), strict=True):
            steps = list(networks[arm][0].curve)
            values = [[trained.curve[step][tissue] for step in steps] for trained in networks[arm]]
            seed_lines(ax, steps, values, label, linestyle=line, marker="o", markersize=3)
        ax.set(title=LABELS[TISSUES[tissue]], xlabel="steps", ylim=(-0.03, 1))
    axes[0].set_ylabel("Dice, validation")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def compare_steps(run: Run, preset: Preset, networks: Networks) -> None:
    short, bare = (Arm(preset.depth, source, preset.steps) for source in ("skip", "none"))
    long = Arm(preset.depth, "none", preset.longer * preset.steps)
    experiment = run.experiment(
        "steps",
        question="Do more steps without skips make up for them?",
        data=described(preset),
        parameters=count_parameters(networks[long][0].model),
        steps=long.steps,
    )
    for measure in (*TISSUES, *SIZES):
        kind = "dice" if measure in TISSUES else "recall"
        experiment.result(f"{kind}_{measure}_none_longer", scores(networks, long, measure), unit="",
                          meaning=f"{kind} of {measure} without skips, {preset.longer} times as many steps")  # fmt: skip
        experiment.result(f"{kind}_{measure}_gap_none_longer", gaps(networks, short, long, measure), unit="",
                          meaning=f"{kind} of {measure}: with skips minus without at {preset.longer} times the steps")  # fmt: skip
    arms = {"with skips": short, "no skips": bare, f"no skips, {preset.longer} times the steps": long}
    experiment.figure(
        "steps",
        partial(draw_steps, networks=networks, arms=arms),
        caption="Dice on the validation slices during training (mean and range of the seeds). Each schedule ends with "
        "its learning rate at zero, so only the last points of the lines are finished networks.",
        alt="Three line charts for grey matter, white matter and tumour: Dice against steps with skips, without skips, "
        "and without skips on a schedule several times as long.",
    )


# %% [markdown]
# ## How deep?
# From two poolings on, each further one widens the view and leaves a coarser deepest grid. First level and parameters
# are the same; the channels grow more slowly the deeper the network is, and it needs fewer operations. The dashed
# reference uses no network: the true labels, averaged over the cells of the deepest grid and interpolated back.


# %%
def labels_through_grid(labels: Tensor, depth: int) -> Tensor:
    """Labels (B, H, W) averaged over cells of 2^depth pixels, interpolated back, the largest class taken."""
    shares = F.one_hot(labels, CLASSES).permute(0, 3, 1, 2).float()  # (B, K, H, W)
    coarse = F.avg_pool2d(shares, 2**depth)
    return F.interpolate(coarse, size=labels.shape[-2:], mode="bilinear", align_corners=False).argmax(1)


def macs(model: nn.Module, image: Tensor) -> float:
    """Multiply-accumulates of one image (1, 1, H, W), in millions."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(image.to(next(model.parameters()).device))
    return counter.get_total_flops() / 2e6  # torch counts a multiplication and an addition as two


def draw_depth(style: Style, networks: Networks, preset: Preset, labels: Tensor) -> Figure:
    figure, (axes,) = panels(1, 3, height=2.9, sharey=True)
    depths = list(preset.widths)
    grid = [tissue_dice(labels_through_grid(labels, depth), labels) for depth in depths]
    for ax, tissue in zip(axes, TISSUES, strict=True):
        for source, marker in (("skip", "o"), ("none", "s")):
            by_depth = [scores(networks, Arm(depth, source, preset.steps), tissue) for depth in depths]
            values = list(zip(*by_depth, strict=True))  # (seeds, depths)
            seed_lines(ax, depths, values, NAMES[source], marker=marker)
        ax.plot(depths, [each[tissue] for each in grid], "--", color=style.muted, label="labels through the grid")
        ax.set(title=LABELS[TISSUES[tissue]], xlabel="poolings", xticks=depths, ylim=(-0.03, 1))
    axes[0].set_ylabel("Dice, test")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def compare_depths(run: Run, preset: Preset, networks: Networks, test: BrainSlices) -> None:
    experiment = run.experiment(
        "depth",
        question="Does more downsampling lose spatial information?",
        data=described(preset),
        parameters=max(count_parameters(each[0].model) for each in networks.values()),
        steps=preset.steps,
    )
    shallow, deep = min(preset.widths), max(preset.widths)
    for depth in preset.widths:
        model, grid = networks[Arm(depth, "skip", preset.steps)][0].model, labels_through_grid(test.labels, depth)
        experiment.result(f"parameters_depth{depth}", [count_parameters(model)], unit="", exact=True,
                          meaning=f"parameters at {depth} poolings, with or without skips")  # fmt: skip
        experiment.result(f"macs_depth{depth}", [macs(model, test.images[:1])], unit="M", exact=True,
                          meaning=f"multiply-accumulates of a slice at {depth} poolings")  # fmt: skip
        for tissue, value in tissue_dice(grid, test.labels).items():
            experiment.result(f"dice_{tissue}_grid_depth{depth}", [value], unit="", exact=True,
                              meaning=f"Dice of the true {tissue} labels passed through the grid of {depth} poolings")  # fmt: skip
    for tissue in TISSUES:
        for source in ("skip", "none"):
            for depth in preset.widths:
                experiment.result(f"dice_{tissue}_{source}_depth{depth}", unit="",
                                  values=scores(networks, Arm(depth, source, preset.steps), tissue),
                                  meaning=f"Dice of {tissue} at {depth} poolings, {NAMES[source]}")  # fmt: skip
            ends = (Arm(depth, source, preset.steps) for depth in (shallow, deep))
            experiment.result(f"dice_{tissue}_{source}_lost_with_depth", gaps(networks, *ends, tissue), unit="",
                              meaning=f"Dice of {tissue} lost from {shallow} to {deep} poolings, {NAMES[source]}")  # fmt: skip
    experiment.figure(
        "depth",
        partial(draw_depth, networks=networks, preset=preset, labels=test.labels),
        caption="Dice on the test slices against the number of poolings, at equal parameters and steps (mean and range "
        "of the seeds). The dashed line is what the true labels keep when they pass through the deepest grid.",
        alt="Three line charts for grey matter, white matter and tumour: Dice against the number of poolings, with "
        "skips, without skips, and for the true labels passed through the deepest grid.",
    )


# %% [markdown]
# ## Unlike the paper
# - Convolutions are padded, so the output is as large as the input and skips need no crop. Near the border, part of the
#   receptive field sees zeros. The network of the paper, with valid convolutions, is the one counted on the card.
# - Batch norm behind every convolution. The paper has no normalisation and starts from weights of unit variance.
# - Far fewer channels, and they double only in the network of three poolings: where depths are compared, the growth is
#   chosen so that parameters are equal.
# - The loss has no border term $w_0 \exp(\cdot)$: there are no touching cells to part.
# - AdamW with a cosine schedule, in place of SGD with momentum 0.99 and one image in a batch. No dropout.
# - Elastic deformation, rotation and contrast come from the data generator, once per slice, not anew at each step.


# %%
def typical(test: BrainSlices, preset: Preset) -> int:
    """The slice whose smallest tumour is nearest to 16 pixels of 2 mm; chosen by the truth alone."""
    counts = torch.stack([lesions.flatten().long().bincount(minlength=9)[1:9] for lesions in test.lesions])  # (N, 8)
    smallest = counts.masked_fill(counts == 0, 1_000_000).amin(1)
    return int((smallest - 16 * 4 // preset.millimetres**2).abs().argmin())


def main(argv: Sequence[str] | None = None) -> None:
    run = Run.start("unet", argv=argv)
    preset = PRESETS[run.preset]
    test = slices_of("test", preset.slices[2], FIXED, preset.millimetres)
    example = typical(test, preset)
    networks = train_all(run, preset)
    show_u(run, preset, networks, test.images[[example]])
    receptive_fields(run, preset)
    compare_skips(run, preset, networks, test, example)
    compare_steps(run, preset, networks)
    silence(run, preset, networks, test, example)
    compare_depths(run, preset, networks, test)
    run.finish()


if __name__ == "__main__":
    main()
