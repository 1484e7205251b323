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
    """A trained network and its Dice on the validation slices on the way: steps -> measure -> value."""

    model: UNet
    curve: dict[int, dict[str, float]] = field(default_factory=dict)


def segmented(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes (B, H, W) of images (B, 1, H, W), on the CPU."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        return torch.cat([model(part.to(device)).argmax(1).cpu() for part in images.split(32)])


def dice_by_tissue(predicted: Tensor, slices: BrainSlices) -> dict[str, float]:
    scores = dice(predicted, slices.labels, CLASSES).tolist()
    return {tissue: scores[label] for tissue, label in TISSUES.items()}


def train(arm: Arm, preset: Preset, seed: int, device: torch.device, curve: bool = False) -> Trained:
    """Trains an arm; with one seed, all arms see the same slices in the same order."""
    data = slices_of("train", preset.slices[0], seed, preset.millimetres)
    check = slices_of("val", preset.slices[1], FIXED, preset.millimetres)
    weights = balance(data.labels).to(device)
    seed_everything(seed)
    trained = Trained(UNet(preset.widths[arm.depth], arm.source).to(memory_format=torch.channels_last))

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images), labels, weight=weights)  # Eq. 1, arXiv:1505.04597

    def record(step: int, model: nn.Module) -> None:
        trained.curve[step] = dice_by_tissue(segmented(model, check.images), check)

    fit(
        trained.model,
        minibatches((data.images, data.labels), preset.batch, arm.steps, seed),
        loss,
        steps=arm.steps,
        learning_rate=preset.learning_rate,
        device=device,
        every=max(1, preset.steps // 4) if curve else None,
        callback=record if curve else None,
    )
    return trained


# %% [markdown]
# ## The U: maps on the way down, maps on the way up
# A map of every level of a trained network, for one test slice. Each pooling leaves a quarter of the values; what lies
# where becomes less exact while what it is becomes clearer. On the way up, the merged maps are fine again.


# %%
def telling_channel(maps: Tensor) -> Tensor:
    """(H, W): of maps (1, C, H, W), the channel that varies most, cut at its 1st and 99th percentile."""
    channel = maps[0, maps[0].flatten(1).std(1).argmax()]
    low, high = np.percentile(channel.numpy(), [1, 99])
    return channel.clamp(float(low), float(high))


def painted(image: Tensor, labels: Tensor, style: Style) -> NDArray[np.float32]:
    """An image (H, W) with each tissue tinted in its colour: (H, W, 3)."""
    picture = np.repeat(image.numpy()[..., None], 3, axis=2)
    for label, colour in zip(TISSUES.values(), style.cycle, strict=False):
        there = labels.numpy() == label
        picture[there] = 0.35 * picture[there] + 0.65 * np.array(to_rgb(colour), np.float32)
    return picture


def tissue_legend(figure: Figure, style: Style) -> None:
    patches = [
        Patch(color=colour, label=LABELS[label])
        for label, colour in zip(TISSUES.values(), style.cycle, strict=False)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)


def u_shape(style: Style, model: UNet, image: Tensor) -> Figure:
    """The encoder's maps down the left, the decoder's up the right, skips between; image (1, 1, H, W)."""
    figure, ((ax,),) = panels(height=5.2)
    ax.set_axis_off()
    ax.set(xlim=(0, 7.2), ylim=(0, 5.2))
    with torch.no_grad():
        encoded = model.encode(image)
        decoded = [*model.decode(encoded)[::-1], None]  # the deepest level has no decoder
    heights = [1.18 * 0.82**level for level in range(len(encoded))]
    top = 5.0
    for level, (e, d, height) in enumerate(zip(encoded, decoded, heights, strict=True)):
        middle, half = top - height / 2, 0.5 * height * image.shape[-1] / image.shape[-2]
        left = 1.95 + 0.24 * level if d is not None else 3.6
        _inset(ax, telling_channel(e), left, middle, half, height, style)
        size = f"{e.shape[1]} × {e.shape[2]} × {e.shape[3]}"
        ax.text(left - half - 0.08 if d is not None else left + half + 0.08, middle, size, fontsize=8,
                ha="right" if d is not None else "left", va="center", color=style.muted)  # fmt: skip
        if d is not None:
            _inset(ax, telling_channel(d), 7.2 - left, middle, half, height, style)
            _arrow(ax, (left + half + 0.06, middle), (7.2 - left - half - 0.06, middle), style.cycle[1])
        top -= height + 0.1
    return figure
