# %% [markdown]
# # U-Net: what do the skips carry that the decoder cannot make up for?
#
# An encoder halves the image again and again to see more of it at once, a decoder doubles it back, and at every level
# a skip hands the encoder's map across. Networks of the same size, which differ only in what is laid beside the
# upsampled map, segment slices of a brain: the skip itself, the skip with its fine positions averaged away, and nothing
# new. The last experiment adds pooling after pooling, with and without skips.
#
# | symbol (card, arXiv:1505.04597) | here | meaning |
# |---|---|---|
# | $e^l$ | `maps[l]` | the encoder's map of level $l$, (B, C, H / 2^l, W / 2^l); level 0 is the finest |
# | $d^l$ | `x` in `decode` | the decoder's map of level $l$ |
# | $\mathrm{up}$, $f^l$ | `up`, `merge` | up-convolution; the two convolutions behind the concatenation |
# | $p_k$, $K$ | `scores.softmax(1)`, `CLASSES` | probability of class $k$ at a pixel; number of classes |
# | $w_c$ | `balance` | weight of a pixel in the loss, by its class |
# | $r_i$, $k_i$, $s_i$ | `receptive_field`, `layers` | receptive field, kernel size and stride of layer $i$ |

# %%
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import torch
from lab.data import Split
from lab.data.brain import GREY, LABELS, TUMOUR, WHITE, BrainSlices, brain_slices
from lab.figures import Style, panels, seed_bars, seed_lines, show_image
from lab.metrics import dice, lesion_recall
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

CLASSES = 4  # K: background, grey matter, white matter, tumour
TISSUES = {"grey": GREY, "white": WHITE, "tumour": TUMOUR}
SIZES = {"small": (1, 16), "medium": (17, 99), "large": (100, 10_000)}  # of tumours, in pixels of 2 mm
MEASURES = {f"dice_{tissue}": f"Dice of {LABELS[label]}" for tissue, label in TISSUES.items()} | {
    f"recall_{size}": f"part of the {size} tumours that is found" for size in SIZES
}
FIXED = 10_000  # seed of the validation and the test slices, the same for all networks

Source = Literal["skip", "coarse", "none"]
NAMES: Mapping[Source, str] = {"skip": "skips", "none": "no skips"}  # the arms of every depth


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        widths: channels of each level, by depth (number of poolings); parameters agree within 1 %.
        depth: of the networks that differ in their skips.
        steps: of the optimiser.
        longer: how many times as many steps one arm without skips gets.
        learning_rate: at its peak; of 0.0025, 0.005 and 0.01 the best for all arms together on the validation slices,
            with seeds from 100 on.
        batch: slices in a step.
        slices: numbers of training, validation and test slices.
        millimetres: side of a pixel.
        noise: images behind each gradient footprint.
    """

    widths: Mapping[int, tuple[int, ...]]
    depth: int
    steps: int
    longer: int = 3
    learning_rate: float = 2.5e-3
    batch: int = 2
    slices: tuple[int, int, int] = (600, 24, 100)
    millimetres: Literal[1, 2] = 2
    noise: int = 16


QUICK_WIDTHS = {2: (8, 25, 85), 3: (8, 16, 32, 64), 4: (8, 13, 20, 32, 53)}
FULL_WIDTHS = {
    2: (16, 52, 167),
    3: (16, 32, 64, 128),
    4: (16, 25, 41, 65, 103),
    5: (16, 22, 31, 44, 63, 87),
}
PRESETS = {
    "smoke": Preset(widths=QUICK_WIDTHS, depth=3, steps=2, slices=(8, 4, 24), noise=2),
    "quick": Preset(widths=QUICK_WIDTHS, depth=3, steps=250),
    "full": Preset(widths=FULL_WIDTHS, depth=4, steps=1500, batch=16, slices=(2000, 100, 500), millimetres=1, noise=64),
}

# %% [markdown]
# ## Down, up, and across
# Each level applies two 3x3 convolutions. A 2x2 max pooling leads down, a 2x2 up-convolution leads up, and the decoder
# merges what comes from below with what is laid beside it:
# $$d^l = f^l\big(\,[\,\mathrm{beside}^l\,;\ \mathrm{up}(d^{l+1})\,]\,\big)$$
# In a U-Net, $\mathrm{beside}^l$ is the encoder's map $e^l$. The two other arms change this one thing and nothing
# else, so that all three have the same layers and the same parameters:
#
# - **coarse skips**: $e^l$, averaged over the cells of the deepest level and spread out again. The features and the
#   short path of the gradient stay; where in a cell they were found is lost.
# - **no skips**: $\mathrm{up}(d^{l+1})$ once more. The parameters are as many, but half of the first merging convolution
#   is redundant; the coarse skips are the control without this handicap.


# %%
def double_convolution(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch norm and ReLU: (B, inputs, H, W) -> (B, outputs, H, W)."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        convolution = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Gives each pixel of an image a score per class.

    Args:
        widths: channels of each level, the finest first; one pooling between two levels.
        source: what the decoder lays beside the upsampled map.
        classes: K.
    """

    def __init__(self, widths: Sequence[int], source: Source = "skip", classes: int = CLASSES) -> None:
        super().__init__()
        self.source = source
        upwards = list(zip(widths[-2::-1], widths[:0:-1], strict=True))  # (fine, deep) channels, from the bottom up
        self.down = nn.ModuleList(double_convolution(a, b) for a, b in zip((1, *widths), widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, fine, 2, stride=2) for fine, deep in upwards)
        self.merge = nn.ModuleList(double_convolution(2 * fine, fine) for fine, _ in upwards)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def encode(self, images: Tensor) -> list[Tensor]:
        """e^0, e^1, ...: images (B, 1, H, W) -> one map (B, C, H / 2^l, W / 2^l) per level."""
        maps = [self.down[0](images)]
        for block in self.down[1:]:
            maps.append(block(functional.max_pool2d(maps[-1], 2)))
        return maps

    def decode(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """d^0, d^1, ...: the encoder's maps -> the decoder's, one for each level but the deepest."""
        x, decoded = maps[-1], []
        for up, merge, e in zip(self.up, self.merge, maps[-2::-1], strict=True):
            x = up(x)
            x = merge(torch.cat([self.beside(e, x, e.shape[-1] // maps[-1].shape[-1]), x], dim=1))  # 2 C channels -> C
            decoded.append(x)
        return decoded[::-1]

    def beside(self, e: Tensor, x: Tensor, cell: int) -> Tensor:
        """What is laid beside the upsampled map x: the only difference between the arms.

        Args:
            e: the encoder's map of this level, (B, C, H', W').
            x: the upsampled map, of the same shape.
            cell: side of a cell of the deepest level in pixels of this level.
        """
        if self.source == "skip":
            return e
        if self.source == "coarse":
            return functional.interpolate(functional.avg_pool2d(e, cell), scale_factor=cell, mode="nearest")
        return x

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) images -> (B, K, H, W) scores; H and W must be multiples of 2^depth."""
        scores: Tensor = self.head(self.decode(self.encode(images))[0])
        return scores


# %% [markdown]
# ## Data and training: the same for all
# Axial slices of one template brain, warped elastically (the card's step 7), each with two to four planted tumours.
# Training, validation and test slices are bands of the head with gaps between them. It is one anatomy; the numbers say
# nothing across patients.
#
# The loss is the weighted cross entropy of the paper with the first term of its weight map, $w_c$, which balances the
# classes.


# %%
@lru_cache(maxsize=3)  # the three splits of one seed
def slices_of(split: Split, count: int, seed: int, millimetres: Literal[1, 2]) -> BrainSlices:
    """Slices without the outermost 16 mm, which hold air: 96 x 80 pixels at 2 mm, 192 x 160 at 1 mm."""
    scale = 4 // millimetres**2  # pixels for one of 2 mm
    area = (8 * scale, 400 * scale)
    made = brain_slices(split, count, seed=seed, millimetres=millimetres, tumours=(2, 4), tumour_pixels=area)
    inner = slice(16 // millimetres, -16 // millimetres)
    images = made.images[:, :, inner, inner].contiguous()
    return BrainSlices(images, made.labels[:, inner, inner], made.lesions[:, inner, inner], made.z)


def described(preset: Preset) -> str:
    """Training and test data, for the record."""
    size = "96 x 80 pixels at 2 mm" if preset.millimetres == 2 else "192 x 160 pixels at 1 mm"
    train, _, test = preset.slices
    return (
        f"{train} slices of one brain template, each with 2 to 4 planted tumours, {size}; {test} of other bands to test"
    )


def balance(labels: Tensor) -> Tensor:
    """w_c: class weights (K,), the frequency of each class to the power -0.85, 1 for the background.

    The power was chosen on the validation slices: from -0.5 to -0.7, most networks without skips find no tumour at all.
    """
    weights = labels.flatten().bincount(minlength=CLASSES).float().clamp(min=1) ** -0.85
    return weights / weights[0]


@dataclass(frozen=True)
class Arm:
    """A network and its budget; `source` as in `UNet`."""

    depth: int
    source: Source
    steps: int


@dataclass(frozen=True)
class Trained:
    """A trained network, each of `MEASURES` on the test slices, and the Dice of validation slices by step."""

    model: UNet
    scores: dict[str, float]
    curve: dict[int, dict[str, float]]


Networks = Mapping[Arm, Sequence[Trained]]  # one network per seed


def segmented(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes (B, H, W) of images (B, 1, H, W), on the CPU."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return torch.cat([model(part.to(device)).argmax(1).cpu() for part in torch.split(images, 32)])


def dices(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Dice of each tissue, pooled over all slices; both (B, H, W)."""
    values = dice(predicted, labels, CLASSES).tolist()
    return {f"dice_{tissue}": values[label] for tissue, label in TISSUES.items()}


def recalls(predicted: Tensor, labels: Tensor, millimetres: int) -> dict[str, float]:
    """The part of the tumours of each size that at least one predicted pixel lies on; both (B, H, W)."""
    scale = 4 / millimetres**2
    areas = {size: (low * scale, high * scale) for size, (low, high) in SIZES.items()}
    found, there = predicted == TUMOUR, labels == TUMOUR
    return {f"recall_{size}": lesion_recall(found, there, area=area) for size, area in areas.items()}


def train(arm: Arm, preset: Preset, seed: int, device: torch.device) -> Trained:
    """Trains and tests an arm; with one seed, all arms see the same slices in the same order."""
    sizes, millimetres = preset.slices, preset.millimetres
    data = slices_of("train", sizes[0], seed, millimetres)
    check, test = slices_of("val", sizes[1], FIXED, millimetres), slices_of("test", sizes[2], FIXED, millimetres)
    weights = balance(data.labels).to(device)
    curve: dict[int, dict[str, float]] = {}

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(model(images), labels, weight=weights)  # Eq. 1, arXiv:1505.04597

    def record(step: int, model: nn.Module) -> None:
        curve[step] = dices(segmented(model, check.images), check.labels)

    seed_everything(seed)
    model = UNet(preset.widths[arm.depth], arm.source).to(memory_format=torch.channels_last)
    batches = minibatches((data.images, data.labels), preset.batch, arm.steps, seed)
    fit(
        model,
        batches,
        loss,
        steps=arm.steps,
        learning_rate=preset.learning_rate,
        device=device,
        every=max(1, preset.steps // 4),
        callback=record if arm.depth == preset.depth else None,
    )
    predicted = segmented(model, test.images)
    return Trained(model, dices(predicted, test.labels) | recalls(predicted, test.labels, millimetres), curve)


def arms_of(preset: Preset) -> dict[str, Arm]:
    """The arms that differ in their skips, by the name that their results carry."""
    return {
        "skip": Arm(preset.depth, "skip", preset.steps),
        "coarse": Arm(preset.depth, "coarse", preset.steps),
        "none": Arm(preset.depth, "none", preset.steps),
        "none_longer": Arm(preset.depth, "none", preset.longer * preset.steps),
    }


def arms_by_depth(preset: Preset) -> dict[tuple[int, Source], Arm]:
    """Each depth with and without skips."""
    return {(depth, source): Arm(depth, source, preset.steps) for depth in preset.widths for source in NAMES}


def train_all(run: Run, preset: Preset) -> Networks:
    """Trains every arm with every seed: those of `arms_of`, and each depth with and without skips."""
    arms = list(dict.fromkeys([*arms_of(preset).values(), *arms_by_depth(preset).values()]))
    jobs = [(seed, arm) for seed in run.seeds for arm in arms]
    networks: dict[Arm, list[Trained]] = {arm: [] for arm in arms}
    for seed, arm in run.progress(jobs, what="training"):
        networks[arm].append(train(arm, preset, seed, run.device))
    return networks


def scores(networks: Networks, arm: Arm, measure: str) -> list[float]:
    """One value per seed."""
    return [trained.scores[measure] for trained in networks[arm]]


def gaps(networks: Networks, better: Arm, worse: Arm, measure: str) -> list[float]:
    """What `better` is ahead of `worse`, seed by seed."""
    pairs = zip(scores(networks, better, measure), scores(networks, worse, measure), strict=True)
    return [a - b for a, b in pairs]


# %% [markdown]
# ## The U: maps on the way down, maps on the way up
# One map of every level of a trained network, for one test slice. Each pooling leaves a quarter of the values; where
# a thing lies becomes less exact while more of its surroundings counts. On the way up, the merged maps are fine again.


# %%
def telling_channel(maps: Tensor) -> Tensor:
    """(H, W): of maps (1, C, H, W), the channel that varies most, from 0 to 1 between its 2nd and 98th percentile."""
    channel = maps[0, maps[0].flatten(1).std(1).argmax()].cpu()
    low, high = np.percentile(channel.numpy(), [2, 98])
    scaled: Tensor = (channel - low) / max(high - low, 1e-6)
    return scaled.clamp(0, 1)


def painted(image: Tensor, labels: Tensor, style: Style) -> NDArray[np.float32]:
    """An image (H, W) with each tissue of the labels (H, W) tinted in its colour: (H, W, 3)."""
    picture: NDArray[np.float32] = image.numpy()[..., None].repeat(3, axis=2)
    for label, colour in zip(TISSUES.values(), style.cycle, strict=False):
        there = labels.numpy() == label
        picture[there] = 0.4 * picture[there] + 0.6 * np.array(to_rgb(colour), np.float32)
    return picture


def tissue_legend(figure: Figure, style: Style) -> None:
    named = zip(TISSUES.values(), style.cycle, strict=False)
    patches = [Patch(facecolor=colour, label=LABELS[label]) for label, colour in named]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)


def place(ax: Axes, picture: Tensor | NDArray[np.float32], x: float, y: float, height: float) -> float:
    """Shows a map (H, W) or (H, W, 3) about (x, y), and returns half its width."""
    half = 0.5 * height * picture.shape[1] / picture.shape[0]
    extent = (x - half, x + half, y - height / 2, y + height / 2)
    ax.imshow(np.asarray(picture), extent=extent, interpolation="none", vmin=0, vmax=1)
    return half


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    shape = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", end, start, arrowprops=shape)


def draw_u(style: Style, model: UNet, image: Tensor) -> Figure:
    """Image (1, 1, H, W), the encoder's maps down the left, the decoder's up the right; all places in inches."""
    with torch.no_grad():
        encoded = model.encode(image.to(next(model.parameters()).device))
        decoded = model.decode(encoded)
        labels = model.head(decoded[0]).argmax(1)[0].cpu()
    figure, ((ax,),) = panels(height=5.3)
    bottom = len(encoded) - 1
    heights = [1.2 * 0.8**level for level in range(bottom + 1)]
    middles = [5.05 - sum(heights[:level]) - height / 2 - 0.2 * level for level, height in enumerate(heights)]
    lefts = [2.1 + 0.25 * level for level in range(bottom)] + [3.6]
    for level, (e, x, y, height) in enumerate(zip(encoded, lefts, middles, heights, strict=True)):
        half = place(ax, telling_channel(e), x, y, height)
        text = {"s": f"{e.shape[1]} maps\n{e.shape[2]} × {e.shape[3]}", "fontsize": 8, "va": "center"}
        if level == bottom:
            ax.text(x + half + 0.08, y, **text)
            continue
        place(ax, telling_channel(decoded[level]), 7.2 - x, y, height)
        ax.text(x - half - 0.06, y, ha="right", **text)
        ax.text(7.2 - x + half + 0.06, y, **text)
        arrow(ax, (x + half + 0.05, y), (7.2 - x - half - 0.05, y), style.cycle[1])
        ax.text(3.6, y + 0.04, "skip", ha="center", va="bottom", fontsize=8)
        foot, head = y - height / 2 - 0.02, middles[level + 1] + heights[level + 1] / 2 + 0.02
        arrow(ax, (x + 0.05, foot), (lefts[level + 1] - 0.05, head), style.muted)
        arrow(ax, (7.25 - lefts[level + 1], head), (7.15 - x, foot), style.muted)
    pixels = image[0, 0].cpu()
    place(ax, pixels[..., None].repeat(1, 1, 3), 0.56, middles[0], heights[0])
    place(ax, painted(pixels, labels, style), 6.64, middles[0], heights[0])
    ax.text(0.06, 1.6, "down: 2 × 2 max pooling,\ntwo 3 × 3 convolutions", fontsize=8)
    ax.text(7.14, 1.6, "up: 2 × 2 up-convolution,\ntwo 3 × 3 convolutions", fontsize=8, ha="right")
    ax.set(xlim=(0, 7.2), ylim=(0, 5.1))
    ax.set_axis_off()
    tissue_legend(figure, style)
    return figure


def show_u(run: Run, preset: Preset, networks: Networks, image: Tensor) -> None:
    deepest = Arm(max(preset.widths), "skip", preset.steps)
    run.figure(
        "feature_maps",
        partial(draw_u, model=networks[deepest][0].model, image=image),
        caption="The U of a trained network; of each level, the map that varies most. On the way down the slice fades "
        "to a few coarse cells. On the way up the outlines come back, because each level is also given its own maps "
        "from the way down.",
        alt=f"A brain slice at the upper left. {deepest.depth + 1} feature maps, each with half the pixels per side of "
        f"the one above, lead down to a few coarse cells. {deepest.depth} maps lead up at the right to the slice with "
        "its tissues painted in. An arrow named skip joins the two maps of every level but the deepest.",
    )


# %% [markdown]
# ## The deeper, the wider the view
# A unit of layer $i$ depends on a square of the image, its receptive field. Every kernel adds to its side, the more so
# the larger the step from one unit to the next already is:
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
    unit = maps[..., maps.shape[-2] // 2, maps.shape[-1] // 2].sum()
    (gradient,) = torch.autograd.grad(unit, images)
    footprint: Tensor = gradient.abs().mean((0, 1))
    return footprint


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


def draw_fields(style: Style, footprints: Sequence[Tensor], effective: Sequence[Sequence[float]]) -> Figure:
    """Footprints (H, W) of the levels with their boxes, and below them the sides; effective: (seeds, levels)."""
    figure, (top, below) = panels(2, len(footprints), height=4.6, height_ratios=[1, 1.7])
    levels = range(len(footprints))
    for level, ax, footprint in zip(levels, top, footprints, strict=True):
        shown = (footprint / footprint.max()).sqrt()  # the root makes the faint margin visible
        show_image(ax, shown, f"level {level}", cmap=style.sequential)
        x0, y0, x1, y1 = bounding_box(footprint)
        ax.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=1.2))
    for ax in below:
        ax.remove()
    ax = figure.add_subplot(below[0].get_gridspec()[1, :])
    ax.plot(levels, [receptive_field(encoder_layers(level)) for level in levels], label="formula")
    sides = [longest_side(footprint) for footprint in footprints]
    ax.plot(levels, sides, "o", markersize=9, fillstyle="none", color=style.ink, label="gradient is not zero")
    seed_lines(ax, levels, effective, "holds 90 % of the gradient", style.cycle[1], linestyle="--", marker="s")
    ax.set(xlabel="level (poolings before it)", ylabel="side of the field (pixels)", xticks=levels)
    ax.legend(loc="upper left")
    return figure


def receptive_fields(run: Run, preset: Preset) -> None:
    """The field of each level by the formula, by the gradient, and where 90 % of the gradient lies."""
    levels, by_seed = range(5), []
    for seed in run.seeds:
        seed_everything(seed)
        model, noise = UNet(preset.widths[4]).eval(), torch.randn(preset.noise, 1, 160, 160)
        by_seed.append([gradient_footprint(model, level, noise) for level in levels])
    effective = [[float(effective_side(footprint)) for footprint in footprints] for footprints in by_seed]
    experiment = run.experiment(
        "receptive_field",
        question="How much of the image does a unit of each level depend on?",
        data=f"gradients of untrained encoders on {preset.noise} images of noise, 160 x 160 pixels",
    )
    for level in levels:
        formula, sides = receptive_field(encoder_layers(level)), [longest_side(each[level]) for each in by_seed]
        meaning = f"side of the receptive field of level {level}"
        experiment.result(
            f"field_formula_level{level}", [formula], unit="px", meaning=f"{meaning}, formula", exact=True
        )
        experiment.result(f"field_gradient_level{level}", sides, unit="px", meaning=f"{meaning}, gradient not zero")
        most = [sides[level] for sides in effective]
        experiment.result(f"field_effective_level{level}", most, unit="px", meaning=f"{meaning}, 90 % of the gradient")
    experiment.figure(
        "receptive_field",
        partial(draw_fields, footprints=by_seed[0], effective=effective),
        caption="Above: how much each pixel moves the central unit of a level (root of the gradient), with the box "
        "outside which it does not move it at all. Below: the sides of these boxes lie on the formula. The central "
        "square with most of the gradient is smaller (mean and range of the seeds).",
        alt="Five squares show gradients at levels 0 to 4, each in a box: a dot at level 0 grows to a blob that fills "
        "most of the square at level 4. Below them, the side of the field against the level: circles lie on the line "
        "of the formula, and the line for 90 percent of the gradient runs below it.",
    )


# %% [markdown]
# ## What a skip carries
# The network is trained; then one skip at a time is silenced: each of its maps is replaced by its mean over the slice,
# so that it still says how much of a feature there is, but not where. The network was not trained for that: what it
# loses says how much it uses the skip, not that another network could not do without.


# %%
def silenced(model: UNet, images: Tensor, level: int) -> Tensor:
    """Predicted classes (B, H, W), on the CPU, with the skip of `level` replaced by its mean over each slice."""
    device, predicted = next(model.parameters()).device, []
    with torch.no_grad():
        for part in torch.split(images, 32):
            maps = model.encode(part.to(device))
            maps[level] = maps[level].mean((2, 3), keepdim=True).expand_as(maps[level])
            predicted.append(model.head(model.decode(maps)[0]).argmax(1).cpu())
    return torch.cat(predicted)


def draw_silenced(style: Style, model: UNet, image: Tensor, labels: Tensor) -> Figure:
    """For an image (1, 1, H, W) with its labels (H, W): a map of each skip, and what comes out without it."""
    with torch.no_grad():
        maps = model.encode(image.to(next(model.parameters()).device))
    pixels, levels = image[0, 0].cpu(), range(len(model.up))
    figure, (top, below) = panels(2, len(levels) + 1, height=4.9)
    show_image(top[0], painted(pixels, labels, style), "truth")
    show_image(below[0], painted(pixels, segmented(model, image)[0], style), "all skips")
    for level, above, beneath in zip(levels, top[1:], below[1:], strict=True):
        show_image(above, telling_channel(maps[level]), f"skip of level {level}", cmap=style.sequential)
        show_image(beneath, painted(pixels, silenced(model, image, level)[0], style), f"without level {level}")
    tissue_legend(figure, style)
    return figure


def silence(run: Run, preset: Preset, networks: Networks, test: BrainSlices, example: int) -> None:
    """How much Dice is lost when one skip no longer says where."""
    trained = networks[arms_of(preset)["skip"]]
    experiment = run.experiment(
        "silenced",
        question="What does a trained U-Net lose when one skip no longer says where?",
        data=described(preset),
        parameters=count_parameters(trained[0].model),
        steps=preset.steps,
    )
    for level in range(preset.depth):
        without = [dices(silenced(each.model, test.images, level), test.labels) for each in trained]
        for measure in without[0]:
            lost = [each.scores[measure] - less[measure] for each, less in zip(trained, without, strict=True)]
            meaning = f"{MEASURES[measure]} lost when the skip of level {level} is replaced by its mean"
            experiment.result(f"{measure}_lost_without_level{level}", lost, unit="", meaning=meaning)
    experiment.figure(
        "silenced_skips",
        partial(draw_silenced, model=trained[0].model, image=test.images[[example]], labels=test.labels[example]),
        caption="Above: the truth, and one map of each skip. Below: what the trained network makes of the slice with "
        "all its skips, and with one of them replaced by its mean.",
        alt="Two rows of brain slices. Above: the true tissues, and a map of each skip, the coarser the deeper its "
        "level. Below: the tissues found with all skips, and with the skip of each level replaced by its mean.",
    )


# %% [markdown]
# ## Experiment: with skips, with coarse skips, and without
# All is equal but what is laid beside the upsampled map. Two controls: the coarse skips, and an arm without skips that
# trains for longer, on a schedule of its own, to see whether more steps close the gap.


# %%
def draw_scores(style: Style, networks: Networks, arms: Mapping[str, Arm]) -> Figure:
    """A panel for each of `MEASURES`, a bar for each arm."""
    figure, rows = panels(2, 3, height=5.0, sharey="row")
    titles = [f"Dice: {LABELS[label]}" for label in TISSUES.values()] + [f"recall: {size} tumours" for size in SIZES]
    for ax, measure, title in zip(rows.flat, MEASURES, titles, strict=True):
        seed_bars(ax, list("abcd"), [scores(networks, arm, measure) for arm in arms.values()])
        ax.set_title(title)
        ax.set_ylim(0, 1.03)
    names = [Patch(facecolor=c, label=f"{a}: {n}") for a, c, n in zip("abcd", style.cycle, arms, strict=False)]
    figure.legend(handles=names, loc="outside lower center", ncols=len(arms), frameon=False)
    return figure


def draw_curves(style: Style, networks: Networks, arms: Mapping[str, Arm]) -> Figure:
    """A panel for each tissue: Dice on the validation slices against steps."""
    figure, (axes,) = panels(1, 3, height=2.9, sharey=True)
    for ax, tissue in zip(axes, TISSUES, strict=True):
        for (name, arm), line in zip(arms.items(), ("-", "-.", ":", "--"), strict=True):
            steps = list(networks[arm][0].curve)
            values = [[trained.curve[step][f"dice_{tissue}"] for step in steps] for trained in networks[arm]]
            seed_lines(ax, steps, values, name, linestyle=line, marker="o", markersize=3)
        ax.set(title=LABELS[TISSUES[tissue]], xlabel="steps", ylim=(-0.03, 1))
    axes[0].set_ylabel("Dice, validation")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(arms), frameon=False)
    return figure


def draw_segmentations(
    style: Style, networks: Networks, arms: Mapping[str, Arm], image: Tensor, labels: Tensor
) -> Figure:
    """An image (1, 1, H, W), its labels (H, W), and what each arm makes of it."""
    figure, (axes,) = panels(1, len(arms) + 1, height=2.4)
    pixels = image[0, 0].cpu()
    show_image(axes[0], painted(pixels, labels, style), "truth")
    for ax, (name, arm) in zip(axes[1:], arms.items(), strict=True):
        found = segmented(networks[arm][0].model, image)[0]
        show_image(ax, painted(pixels, found, style))
        ax.set_title(name, fontsize=9)
    tissue_legend(figure, style)
    return figure


def compare_skips(run: Run, preset: Preset, networks: Networks, test: BrainSlices, example: int) -> None:
    """Dice by tissue and recall by size of tumour, and what each arm stays behind the one with skips."""
    arms = arms_of(preset)
    names = ("skips", "coarse skips", "no skips", f"no skips, {preset.longer}x steps")
    named = dict(zip(names, arms.values(), strict=True))
    experiment = run.experiment(
        "skips",
        question="What do skips add at equal parameters, and do more steps make up for them?",
        data=described(preset),
        parameters=count_parameters(networks[arms["skip"]][0].model),
        steps=preset.steps,
    )
    for measure, meaning in MEASURES.items():
        for (key, arm), name in zip(arms.items(), names, strict=True):
            values = scores(networks, arm, measure)
            experiment.result(f"{measure}_{key}", values, unit="", meaning=f"{meaning}, {name}")
            if key != "skip":
                values = gaps(networks, arms["skip"], arm, measure)
                experiment.result(f"{measure}_gap_{key}", values, unit="", meaning=f"{meaning}: skips minus {name}")
    for key in ("none", "none_longer"):
        small, large = (gaps(networks, arms["skip"], arms[key], f"recall_{size}") for size in ("small", "large"))
        more = [a - b for a, b in zip(small, large, strict=True)]
        meaning = f"what skips add to the recall of small tumours, less what they add for large ones (against {key})"
        experiment.result(f"recall_gap_small_minus_large_{key}", more, unit="", meaning=meaning)
    experiment.figure(
        "skips",
        partial(draw_scores, networks=networks, arms=named),
        caption=f"Dice by tissue, and the part of the tumours that at least one predicted pixel touches, by size (small: "
        f"up to {SIZES['small'][1]} pixels of 2 mm, large: from {SIZES['large'][0]}), at {preset.depth} poolings. Each "
        "dot is a seed. Compare a and c for what skips add, b for what is left of it when they do not say where, d for "
        "more training instead. Recall does not see false alarms, the Dice of tumours does.",
        alt="Six bar charts with four bars each, for skips, coarse skips, no skips, and no skips with more steps: Dice "
        "of grey matter, white matter and tumour, recall of small, medium and large tumours; a dot for each seed.",
    )
    experiment.figure(
        "curves",
        partial(draw_curves, networks=networks, arms=named),
        caption="Dice on the validation slices during training (mean and range of the seeds). Each schedule ends at a "
        "learning rate of zero, so only the last point of a line is a finished network.",
        alt="Three line charts, for grey matter, white matter and tumour: Dice against steps for skips, coarse skips, "
        "no skips, and no skips on a schedule several times as long.",
    )
    image, labels = test.images[[example]], test.labels[example]
    experiment.figure(
        "segmentations",
        partial(draw_segmentations, networks=networks, arms=named, image=image, labels=labels),
        caption="A test slice with a small tumour: the true tissues, and what the networks of the first seed find.",
        alt="Five pictures of one brain slice with its tissues painted in: the truth, and what is found with skips, "
        "with coarse skips, without skips, and without skips after more steps.",
    )


# %% [markdown]
# ## Experiment: how deep?
# Each further pooling widens the view and makes the deepest grid coarser. The first level and the number of parameters
# stay; so the channels grow more slowly the deeper the network is, and it needs fewer operations. One line needs no
# network: the true labels, averaged over the cells of the deepest grid and interpolated back.


# %%
def labels_through_grid(labels: Tensor, depth: int) -> Tensor:
    """Labels (B, H, W), averaged over cells of 2^depth pixels and interpolated back; the largest class wins."""
    shares = functional.one_hot(labels, CLASSES).permute(0, 3, 1, 2).float()  # (B, H, W, K) -> (B, K, H, W)
    cells = functional.avg_pool2d(shares, 2**depth)
    return functional.interpolate(cells, size=labels.shape[-2:], mode="bilinear", align_corners=False).argmax(1)


def macs(model: nn.Module, image: Tensor) -> float:
    """Multiply-accumulates of one image (1, 1, H, W), in millions."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(image.to(next(model.parameters()).device))
    return counter.get_total_flops() / 2e6  # torch counts a multiplication and an addition as two


def draw_depths(style: Style, networks: Networks, preset: Preset, grid: Mapping[int, dict[str, float]]) -> Figure:
    """A panel for each tissue: Dice against depth, with and without skips, and of the labels through the grid."""
    figure, (axes,) = panels(1, 3, height=2.9, sharey=True)
    depths = list(preset.widths)
    for ax, tissue in zip(axes, TISSUES, strict=True):
        measure = f"dice_{tissue}"
        for (source, name), marker in zip(NAMES.items(), "os", strict=True):
            by_depth = [scores(networks, arms_by_depth(preset)[depth, source], measure) for depth in depths]
            seed_lines(ax, depths, np.transpose(by_depth), name, marker=marker)  # (depths, seeds) -> (seeds, depths)
        ax.plot(
            depths, [grid[depth][measure] for depth in depths], "--", color=style.muted, label="labels through grid"
        )
        ax.set(title=LABELS[TISSUES[tissue]], xlabel="poolings", xticks=depths, ylim=(-0.03, 1))
    axes[0].set_ylabel("Dice, test")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def compare_depths(run: Run, preset: Preset, networks: Networks, test: BrainSlices) -> None:
    """Dice by depth with and without skips, and what is lost from the shallowest network to the deepest."""
    arms = arms_by_depth(preset)
    grid = {depth: dices(labels_through_grid(test.labels, depth), test.labels) for depth in preset.widths}
    experiment = run.experiment(
        "depth",
        question="Does more downsampling lose spatial information, and do skips mend it?",
        data=described(preset),
        parameters=max(count_parameters(networks[arm][0].model) for arm in arms.values()),
        steps=preset.steps,
    )
    for depth in preset.widths:
        model = networks[arms[depth, "skip"]][0].model
        counts = {"parameters": count_parameters(model), "macs": macs(model, test.images[:1])}
        for name, count, unit in zip(counts, counts.values(), ("", "M"), strict=True):
            meaning = f"{name} of a slice" if name == "macs" else name
            experiment.result(
                f"{name}_depth{depth}", [count], unit=unit, meaning=f"{meaning}, {depth} poolings", exact=True
            )
    for measure, meaning in list(MEASURES.items())[: len(TISSUES)]:
        for depth in preset.widths:
            name = f"{meaning}, true labels through the grid of {depth} poolings"
            experiment.result(f"{measure}_grid_depth{depth}", [grid[depth][measure]], unit="", meaning=name, exact=True)
        for depth in preset.widths:
            values, name = gaps(networks, arms[depth, "skip"], arms[depth, "none"], measure), f"{depth} poolings"
            experiment.result(
                f"{measure}_gap_depth{depth}", values, unit="", meaning=f"{meaning}, {name}: skips minus none"
            )
        for source, skips in NAMES.items():
            for depth in preset.widths:
                values = scores(networks, arms[depth, source], measure)
                name = f"{meaning}, {skips}, {depth} poolings"
                experiment.result(f"{measure}_{source}_depth{depth}", values, unit="", meaning=name)
            shallow, deep = min(preset.widths), max(preset.widths)
            lost = gaps(networks, arms[shallow, source], arms[deep, source], measure)
            name = f"{meaning}, {skips}: lost from {shallow} to {deep} poolings"
            experiment.result(f"{measure}_{source}_lost_with_depth", lost, unit="", meaning=name)
    experiment.figure(
        "depth",
        partial(draw_depths, networks=networks, preset=preset, grid=grid),
        caption="Dice on the test slices against the number of poolings, at equal parameters and steps (mean and range "
        "of the seeds). Dashed: what is left of the true labels behind the deepest grid, without any network.",
        alt="Three line charts, for grey matter, white matter and tumour: Dice against the number of poolings, with "
        "skips, without skips, and for the true labels passed through the deepest grid.",
    )


# %% [markdown]
# ## Unlike the paper
# - Convolutions are padded, so the output is as large as the input and no skip is cropped; near the border, part of a
#   receptive field sees zeros. The network of the paper, with valid convolutions, is the one that the card counts.
# - Batch norm follows each convolution. The paper has no normalisation.
# - Far fewer channels. They double from level to level only at three poolings; where depths are compared, the growth is
#   chosen so that parameters are equal.
# - No border term $w_0 \exp(\cdot)$ in the loss: there are no touching cells to part.
# - AdamW with a cosine schedule in place of SGD with momentum 0.99; no dropout at the deepest level.
# - Elastic deformation, rotation and contrast come with the data, once per slice and not anew at each step.


# %%
def example_of(test: BrainSlices, preset: Preset) -> int:
    """The slice whose smallest tumour is nearest to 16 pixels of 2 mm: chosen by the truth, not by what comes out."""
    areas = torch.stack([(test.lesions == number).sum((1, 2)) for number in range(1, 9)], dim=1)  # (N, tumours)
    smallest = areas.masked_fill(areas == 0, 10**6).amin(1)
    return int((smallest - 16 * 4 // preset.millimetres**2).abs().argmin())


def main(argv: Sequence[str] | None = None) -> None:
    run = Run.start("unet", argv=argv)
    preset = PRESETS[run.preset]
    test = slices_of("test", preset.slices[2], FIXED, preset.millimetres)
    example = example_of(test, preset)
    networks = train_all(run, preset)
    show_u(run, preset, networks, test.images[[example]])
    receptive_fields(run, preset)
    silence(run, preset, networks, test, example)
    compare_skips(run, preset, networks, test, example)
    compare_depths(run, preset, networks, test)
    run.finish()


if __name__ == "__main__":
    main()
