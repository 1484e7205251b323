# %% [markdown]
# # Optimized U-Net: which of the optimisations helps?
#
# The entry for BraTS 2021 adds no new layer to the U-Net. It changes one thing at a time and keeps what helps: deep
# supervision, a loss on the regions that are ranked, a channel that marks the foreground, more levels, mirrored copies at
# inference, a clean-up of the smallest spots. Here the same is done in small: a network with all of it, and one network
# for each thing that is left out, on slices of a brain with planted tumours of a core and a rim.
#
# | symbol (arXiv:2110.03352) | here | meaning |
# |---|---|---|
# | $r$ | `REGIONS` | region that is ranked: the whole tumour, and its core |
# | $y_r$ | `targets` | 1 where a pixel belongs to the region, (B, R, H, W) |
# | $p_r$ | `scores.sigmoid()` | its predicted probability, (B, R, H, W) |
# | $\mathcal L$ | `region_loss` | soft Dice plus binary cross entropy, for each region |

# %%
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import cast

import torch
from lab.data import Split
from lab.data.brain import TUMOUR, BrainSlices, brain_slices
from lab.figures import Style, panels, seed_bars, show_image
from lab.metrics import dice, lesion_recall
from lab.run import Experiment, Run
from lab.study import Scores
from lab.training import count_parameters, fit, minibatches, seed_everything
from matplotlib.figure import Figure
from scipy import ndimage
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

REGIONS = ("whole", "core")  # of a tumour: core and rim together, and the core alone
HEAD_WEIGHTS = (1.0, 0.5, 0.25)  # of the losses of the heads, the finest first
FIXED = 20_000  # seed of the test slices, the same for all networks
SMALL, LARGE = (1, 24), (100, 10_000)  # pixels of small and of large tumours
SPOT = 12  # pixels; a smaller spot is taken back where the network is unsure of it
SURE = 0.9  # least mean probability of a spot that stays
RARE = -3.0  # bias that heads start from: a pixel is hardly ever tumour
FLOOR = ("Dice of the region that it finds worst", 0.1)  # below it a training counts as failed, as for the U-Net


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        widths: channels of each level, the finest first.
        shallow: the same with one level less, and about as many parameters.
        steps: of the optimiser.
        slices: training and test slices.
        batch: slices in a step.
        rate: learning rate at its peak.
    """

    widths: tuple[int, ...] = (8, 16, 32, 48)
    shallow: tuple[int, ...] = (12, 28, 64)
    steps: int = 240
    slices: tuple[int, int] = (320, 160)
    batch: int = 4
    rate: float = 1e-2


PRESETS = {
    "smoke": Preset(steps=2, slices=(8, 32)),
    "quick": Preset(),
    "full": Preset((32, 64, 128, 192), (48, 112, 256), steps=4000, slices=(4000, 800), batch=16, rate=1e-3),
}

# %% [markdown]
# ## The network
# Two convolutions with instance normalisation and leaky ReLU per level; strided convolutions go down, transposed ones up,
# and a skip brings each level's map to the decoder. Two extra heads read the decoder at half and at a quarter of the
# resolution. They exist for training alone.


# %%
class Block(nn.Module):
    """Two 3x3 convolutions: (B, C, H, W) -> (B, C', H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.InstanceNorm2d(outputs, affine=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.norms[0](self.first(x)), 0.01)
        return functional.leaky_relu(self.norms[1](self.second(y)), 0.01)


class UNet(nn.Module):
    """Scores of each region: (B, C, H, W) -> one map (B, R, H / 2^l, W / 2^l) for each head, the finest first.

    Args:
        inputs: channels of the input.
        outputs: channels of the scores.
        widths: channels of each level, the finest first.
        heads: number of heads; more than one for deep supervision.
    """

    def __init__(self, inputs: int, outputs: int, widths: Sequence[int], heads: int) -> None:
        super().__init__()
        channels = [(inputs, widths[0], 1), *((a, b, 2) for a, b in pairwise(widths))]
        self.down = nn.ModuleList(Block(a, b, stride) for a, b, stride in channels)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.merge = nn.ModuleList(Block(2 * width, width) for width in widths[:-1])
        made = [nn.Conv2d(width, outputs, 1) for width in widths[:heads]]
        for head in made:
            bias = nn.init.constant_(cast(Tensor, head.bias), RARE)
            if outputs > len(
                REGIONS
            ):  # classes: a softmax knows differences only, so the background starts above the others
                nn.init.zeros_(bias[:1])
        self.heads = nn.ModuleList(made)

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        decoded = []
        for level in reversed(range(len(self.up))):
            x = self.merge[level](torch.cat([skips[level], self.up[level](x)], dim=1))  # 2 C channels -> C
            decoded.append(x)
        return [head(features) for head, features in zip(self.heads, decoded[::-1], strict=False)]


# %% [markdown]
# ## The loss on the ranked regions
# The challenge ranks regions that lie within each other, so each has its own sigmoid and its own loss:
# $$\mathcal L = \sum_{r}\left(1 - \frac{2\sum_i p_{r,i}\,y_{r,i}}{\sum_i p_{r,i} + \sum_i y_{r,i}}\right)
# {} + \sum_{r}\mathrm{BCE}(p_r, y_r)$$
# The control changes outputs and loss together: one softmax over background, rim and core, with the cross entropy alone.


# %%
def regions(labels: Tensor) -> Tensor:
    """(B, H, W) labels -> (B, R, H, W): the whole tumour, and its core."""
    return torch.stack([labels >= TUMOUR, labels == TUMOUR], dim=1).float()


def region_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Soft Dice and binary cross entropy of (B, R, H, W) scores, mean over regions."""
    p = scores.sigmoid()
    overlap, size = (p * targets).sum((0, 2, 3)), (p + targets).sum((0, 2, 3))  # each (R,)
    return (1 - (2 * overlap + 1) / (size + 1)).mean() + functional.binary_cross_entropy_with_logits(scores, targets)


def class_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """The control: cross entropy of (B, 3, H, W) scores for background, rim and core."""
    return functional.cross_entropy(scores, targets.sum(1).long())  # (B, R, H, W) -> (B, H, W): 0, 1 rim, 2 core


def probabilities(scores: Tensor, by_region: bool) -> Tensor:
    """(B, R, H, W) of the regions, from scores of regions or of classes."""
    if by_region:
        return scores.sigmoid()
    p = scores.softmax(1)
    return torch.stack([p[:, 1] + p[:, 2], p[:, 2]], dim=1)


# %% [markdown]
# ## Data, arms and training
# Axial slices of one template brain, warped elastically, with up to three planted tumours each. Training and test slices
# are bands of the head with a gap between them. It is one anatomy: nothing here says anything across patients. All arms of a
# seed see the same slices in the same order for the same number of steps. Steps, learning rate and the start of the heads were
# set by two trials of the whole network on validation slices (seed 100), after a first run with fewer steps in which half of
# all networks had found no tumour.


# %%
@dataclass(frozen=True)
class Arm:
    """What an arm has; the first has all of it."""

    name: str
    heads: int = 3
    by_region: bool = True
    foreground: bool = True
    shallow: bool = False


ARMS = {
    "base": Arm("all of it"),
    "no_supervision": Arm("no deep supervision", heads=1),
    "no_region_loss": Arm("cross entropy of classes", by_region=False),
    "no_foreground": Arm("no foreground channel", foreground=False),
    "shallow": Arm("a level less", shallow=True, heads=2),
}


@lru_cache(maxsize=2)  # training and test slices of one seed
def slices_of(split: Split, count: int, seed: int) -> BrainSlices:
    """Slices at 2 mm without the outermost 16 mm, which hold air: 96 x 80 pixels."""
    made = brain_slices(split, count, seed=seed, tumours=(0, 3), parts=True)
    inner = slice(8, -8)
    images = made.images[:, :, inner, inner].contiguous()
    return BrainSlices(images, made.labels[:, inner, inner], made.lesions[:, inner, inner], made.z)


def inputs_of(images: Tensor, arm: Arm) -> Tensor:
    """(B, 1, H, W) -> (B, 2, H, W) with a channel that is 1 where there is tissue; the control has a copy of the image."""
    smooth = functional.avg_pool2d(images, 5, stride=1, padding=2)  # so that noise in the air is not marked
    second = (smooth > 0.12).float() if arm.foreground else images
    return torch.cat([images, second], dim=1)


def built(arm: Arm, preset: Preset) -> UNet:
    widths = preset.shallow if arm.shallow else preset.widths
    return UNet(2, len(REGIONS) if arm.by_region else 3, widths, arm.heads)


def supervised(model: UNet, images: Tensor, labels: Tensor, arm: Arm) -> Tensor:
    """The loss of all heads, each compared with labels of its size."""
    targets, loss = regions(labels), region_loss if arm.by_region else class_loss
    total = torch.zeros((), device=images.device)
    for level, (scores, weight) in enumerate(zip(model(inputs_of(images, arm)), HEAD_WEIGHTS, strict=False)):
        total = total + weight * loss(scores, targets[:, :, :: 2**level, :: 2**level])
    return total


def train(run: Run, key: str, preset: Preset, seed: int) -> UNet:
    arm, data = ARMS[key], slices_of("train", preset.slices[0], seed)
    seed_everything(seed)
    model = built(arm, preset)
    batches = minibatches((data.images, data.labels), preset.batch, preset.steps, seed)
    bar = partial(run.progress, what=f"{arm.name}, seed {seed}")
    loss = partial(supervised, arm=arm)
    fit(model, batches, loss, steps=preset.steps, learning_rate=preset.rate, device=run.device, progress=bar)
    return model


@torch.inference_mode()
def predicted(model: UNet, images: Tensor, arm: Arm, mirrored: bool = False) -> Tensor:
    """Probabilities (B, R, H, W) on the CPU; `mirrored` averages the four copies flipped along rows and columns."""
    device, parts = next(model.parameters()).device, []
    flips: list[list[int]] = [[], [2], [3], [2, 3]] if mirrored else [[]]
    for part in torch.split(images, 40):
        total = torch.zeros(len(part), len(REGIONS), *part.shape[2:])
        for axes in flips:
            scores = model(inputs_of(part.flip(axes).to(device), arm))[0]
            total += probabilities(scores, arm.by_region).flip(axes).cpu()
        parts.append(total / len(flips))
    return torch.cat(parts)


# %% [markdown]
# ## Measures
# Dice is pooled over all test slices, for each region. A tumour is found where one of its pixels is predicted; a predicted
# spot that touches no tumour is false.


# %%
def measured(p: Tensor, test: BrainSlices) -> dict[str, float]:
    """Dice by region, their mean and the least, recall of small and large tumours (%), false spots per slice."""
    found, truth = p > 0.5, regions(test.labels) > 0.5
    values = {f"dice_{r}": dice(found[:, k].long(), truth[:, k].long(), 2)[1].item() for k, r in enumerate(REGIONS)}
    whole = found[:, 0]
    return values | {
        "dice": sum(values.values()) / len(values),
        "dice_least": min(values.values()),
        "recall_small": 100 * lesion_recall(whole, truth[:, 0], area=SMALL),
        "recall_large": 100 * lesion_recall(whole, truth[:, 0], area=LARGE),
        "false_spots": false_spots(whole, truth[:, 0]),
    }


def components(mask: Tensor) -> tuple[Tensor, int]:
    """Numbers (B, H, W) of the connected spots of masks (B, H, W), never across slices, and how many there are."""
    structure = [[[0] * 3] * 3, [[1] * 3] * 3, [[0] * 3] * 3]
    numbers, count = ndimage.label(mask.numpy(), structure=structure)
    return torch.from_numpy(numbers).long(), int(count)


def false_spots(found: Tensor, truth: Tensor) -> float:
    """Predicted spots per slice that touch no tumour."""
    numbers, count = components(found)
    return float(count - len(torch.unique(numbers[truth & found]))) / len(found)


def cleaned(p: Tensor) -> Tensor:
    """The post-processing: small spots of which the network is unsure are taken back, (B, R, H, W)."""
    numbers, count = components(p[:, 0] > 0.5)
    pixels = torch.bincount(numbers.flatten(), minlength=count + 1)
    sure = torch.bincount(numbers.flatten(), p[:, 0].flatten().double(), minlength=count + 1) / pixels.clamp(min=1)
    gone = (pixels < SPOT) & (sure < SURE)
    gone[0] = False  # what is no spot at all
    return torch.where(gone[numbers][:, None], 0.0, p)


# %% [markdown]
# ## What each head says
# The heads of the coarser levels draw the same tumours in coarser strokes. Their loss gives the inner levels a gradient of
# their own.


# %%
def draw_heads(style: Style, image: Tensor, truth: Tensor, maps: Sequence[Tensor]) -> Figure:
    figure, axes = panels(1, 2 + len(maps), height=2.0)
    show_image(axes[0, 0], image, "slice")
    show_image(axes[0, 1], truth.float() / 2, "truth", cmap=style.sequential)
    for ax, scores, level in zip(axes[0, 2:], maps, range(len(maps)), strict=True):
        share = scores.sigmoid().sum(0) / 2  # (R, h, w) -> (h, w)
        show_image(ax, share, f"1/{2**level} of the size", cmap=style.sequential)
    return figure


def show_heads(run: Run, model: UNet, test: BrainSlices) -> None:
    """The maps of all heads for the test slice with the most tumour."""
    index = int((test.labels >= TUMOUR).sum((1, 2)).argmax())
    part = slice(index, index + 1)
    with torch.inference_mode():
        maps = [m[0].cpu() for m in model(inputs_of(test.images[part].to(run.device), ARMS["base"]))]
    truth = regions(test.labels[part])[0].sum(0)
    run.figure(
        "heads",
        partial(draw_heads, image=test.images[index, 0], truth=truth, maps=maps),
        caption="The test slice with the most tumour, its rim and core (brighter), and what the three heads of a trained "
        "network say. Only the finest head is used after training.",
        alt="A brain slice, the true rim and core of its tumours, and three predicted maps of them at full, half and a "
        "quarter of the resolution.",
    )


# %% [markdown]
# ## What each optimisation adds
# Each bar is the network with all of it minus the network without one thing, seed by seed. Above zero, the thing helps.


# %%
GAINS = {
    "no_supervision": "supervision",
    "no_region_loss": "region_loss",
    "no_foreground": "foreground",
    "shallow": "depth",
}
WORDS = {
    "supervision": "deep supervision", "region_loss": "region loss", "foreground": "foreground\nchannel", "depth": "a level more",
}  # fmt: skip


def defined(values: Sequence[float]) -> list[float]:
    """Of the seeds whose training counts."""
    return [value for value in values if not math.isnan(value)]


def draw_gains(style: Style, gains: Mapping[str, Sequence[float]]) -> Figure:
    figure, axes = panels(1, 1, height=2.8)
    there = {WORDS[name]: defined(values) for name, values in gains.items() if defined(values)}
    seed_bars(axes[0, 0], list(there), list(there.values()))
    axes[0, 0].axhline(0, color=style.ink, linewidth=1)
    axes[0, 0].set_ylabel("Dice gained")
    return figure


def ablation(run: Run, experiment: Experiment, scores: Scores) -> None:
    """Dice of all arms, and what each optimisation adds."""
    for key, arm in ARMS.items():
        for measure in ("dice", "dice_whole", "dice_core", "recall_small"):
            unit = "%" if measure.startswith("recall") else ""
            meaning = {"dice": "Mean Dice of both regions", "recall_small": "Part of the small tumours that is found"}
            told = f"{meaning.get(measure, 'Dice of the ' + measure.removeprefix('dice_') + ' tumour')}, {arm.name}"
            failed = scores.reasons("no tumour of this size", key)
            experiment.result(f"{measure}_{key}", scores.values(measure, key), unit=unit, meaning=told, failed=failed)
    gains = {gain: scores.minus("dice", "base", key) for key, gain in GAINS.items()}
    for key, gain in GAINS.items():
        told, failed = f"Mean Dice gained by {WORDS[gain]}".replace("\n", " "), scores.reasons("undefined", "base", key)
        experiment.result(f"{gain}_gain", gains[gain], unit="", meaning=told, failed=failed)
    experiment.figure(
        "gains",
        partial(draw_gains, gains=gains),
        caption="What each optimisation adds to the mean Dice of both regions: the whole network minus the one without it. "
        "Bars are means, dots are seeds.",
        alt="Bars of the Dice gained by deep supervision, the loss on regions, the foreground channel and one more level.",
    )


# %% [markdown]
# ## Mirrored copies and the clean-up
# Both come after training. The average over mirrored copies costs as many passes; taking back small, unsure spots removes
# false ones, and true tumours with them.


# %%
def draw_after(style: Style, scores: Scores) -> Figure:
    figure, axes = panels(1, 3, height=2.6)
    names = {"base": "as is", "mirrored": "mirrored", "cleaned": "cleaned"}
    titles = {"dice": "mean Dice", "false_spots": "false spots per slice", "recall_small": "small tumours found (%)"}
    for ax, (measure, title) in zip(axes[0], titles.items(), strict=True):
        there = {name: values for key, name in names.items() if (values := defined(scores.values(measure, key)))}
        seed_bars(ax, list(there), list(there.values()))
        ax.set_title(title)
        ax.tick_params(axis="x", rotation=25)
    return figure


def after_training(experiment: Experiment, scores: Scores) -> None:
    """What mirrored copies and the clean-up change."""
    failed = scores.reasons("undefined", "base")
    for name, measure, a, b, unit, meaning in (
        ("mirrored_gain", "dice", "mirrored", "base", "", "Mean Dice gained by averaging four mirrored copies"),
        ("spots_removed", "false_spots", "base", "cleaned", "per slice", "False spots that the clean-up takes back"),
        ("small_lost", "recall_small", "base", "cleaned", "points", "Recall of small tumours lost by the clean-up"),
    ):
        experiment.result(name, scores.minus(measure, a, b), unit=unit, meaning=meaning, failed=failed)
    experiment.figure(
        "after",
        partial(draw_after, scores=scores),
        caption="The network with all optimisations: as it is, averaged over four mirrored copies, and with small, unsure "
        "spots taken back. Bars are means, dots are seeds.",
        alt="Bars of the mean Dice, the false spots per slice and the share of small tumours found, for the network as it is, "
        "with mirrored copies and after the clean-up.",
    )


# %% [markdown]
# ## What it costs, and what the lowest level can hold
# The published network, built by MONAI on torch's meta device: parameters, multiply-accumulates, and the memory that autograd
# keeps for a crop. What the lowest of its levels can hold is asked of the true labels: they are averaged over cells and
# spread out again.

# %%
FILTERS = (64, 96, 128, 192, 256, 384, 512)  # of the seven levels, the official notebook
SIDE, MODELS, FLIPS = 128, 5, 8  # voxels of a crop; networks and mirrored copies that are averaged
HEAD = (240, 240, 155)  # voxels of a BraTS volume


def published(dimensions: int) -> nn.Module:
    """MONAI's DynUNet with the levels and flags of the notebook, in 3D or 2D, on the meta device."""
    from monai.networks.nets.dynunet import DynUNet

    with torch.device("meta"):
        model: nn.Module = DynUNet(
            spatial_dims=dimensions, in_channels=5, out_channels=3, kernel_size=[3] * 7, strides=[1] + [2] * 6,
            upsample_kernel_size=[2] * 6, filters=list(FILTERS), deep_supervision=True, deep_supr_num=2, trans_bias=True,
        )  # fmt: skip
    return model


def macs(model: nn.Module, dimensions: int) -> float:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, 5, *[SIDE] * dimensions))
    return float(counter.get_total_flops()) / 2


def kept_bytes(model: nn.Module, dtype: torch.dtype) -> float:
    """What autograd keeps of a crop for the backward pass, weights excluded."""
    sizes: dict[int, int] = {}
    weights = {id(parameter) for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if id(tensor) not in weights and tensor.dim() == 5:
            sizes[id(tensor)] = tensor.numel() * tensor.element_size()
            kept.append(tensor)  # so that no two live at one address
        return tensor

    kept: list[Tensor] = []
    with torch.device("meta"), saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train().to(dtype)(torch.empty(1, 5, SIDE, SIDE, SIDE, dtype=dtype))
    return float(sum(sizes.values()))


def windows() -> int:
    """Crops of a sliding window with half overlap over a volume: each axis in steps of half a crop."""
    steps = SIDE // 2
    total = 1
    for side in HEAD:
        total *= 1 + -(-(side - SIDE) // steps)
    return total


def grid_dice(test: BrainSlices, stride: int, area: tuple[int, int]) -> float:
    """Dice of the true tumours of a size, averaged over cells of stride x stride pixels and spread out again."""
    sizes = torch.stack([torch.bincount(each.flatten().long(), minlength=9)[:9] for each in test.lesions])  # (B, 9)
    pixels = sizes.gather(1, test.lesions.flatten(1).long()).view_as(test.lesions)  # area of the tumour at each pixel
    truth = ((test.lesions > 0) & (pixels >= area[0]) & (pixels <= area[1])).float()[:, None]
    cells = functional.avg_pool2d(truth, stride, ceil_mode=True)
    back = functional.interpolate(cells, scale_factor=stride)[..., : truth.shape[2], : truth.shape[3]] > 0.5
    return dice(back.long(), truth.long(), 2)[1].item()


def draw_grid(style: Style, values: Mapping[str, Sequence[float]], strides: Sequence[int]) -> Figure:
    figure, axes = panels(1, 1, height=2.8)
    for (name, line), marker in zip(values.items(), "os", strict=True):
        axes[0, 0].plot(range(len(strides)), line, label=f"{name} tumours", marker=marker)
    axes[0, 0].set(xticks=range(len(strides)), xlabel="stride of the grid (pixels)", ylabel="best Dice", ylim=(0, 1.05))
    axes[0, 0].set_xticklabels([str(stride) for stride in strides])
    axes[0, 0].legend()
    return figure


def cost(run: Run, test: BrainSlices) -> None:
    """Exact figures of the published network, and the best that coarse grids can hold."""
    experiment = run.experiment(
        "cost", question="What does the published network cost, and what can its lowest level hold?",
        data=f"MONAI's DynUNet on torch's meta device, crops of {SIDE}^3 voxels; {len(test.images)} test slices",
    )  # fmt: skip
    exact = partial(experiment.result, exact=True)
    volume, plane = published(3), published(2)
    counted, flat = macs(volume, 3), macs(plane, 2)
    exact(
        "parameters_published",
        [count_parameters(volume) / 1e6],
        unit="M",
        meaning="Parameters of the published network",
    )
    exact("macs_crop", [counted / 1e12], unit="T", meaning="MACs of one crop")
    passes = float(MODELS * FLIPS)
    exact("passes", [passes], unit="", meaning="Passes for each crop: networks times mirrored copies")
    exact("macs_volume", [passes * windows() * counted / 1e15], unit="P", meaning="MACs of one volume with all of it")
    exact(
        "times_one_pass", [passes * windows() * SIDE**3 / (HEAD[0] * HEAD[1] * HEAD[2])], unit="x",
        meaning="Computation of one volume over that of one network that sees every voxel once",
    )  # fmt: skip
    exact(
        "macs_voxel_ratio",
        [counted / SIDE**3 / (flat / SIDE**2)],
        unit="x",
        meaning="MACs for a voxel, in 3D over in 2D",
    )
    full, half = (kept_bytes(published(3), dtype) / 1e9 for dtype in (torch.float32, torch.bfloat16))
    exact("memory_full", [full], unit="GB", meaning="Activations kept for the backward pass of one crop, 32 bits")
    exact("memory_half", [half], unit="GB", meaning="The same, 16 bits")
    strides = (2, 4, 8, 16)
    values = {
        "small": [grid_dice(test, s, SMALL) for s in strides],
        "large": [grid_dice(test, s, LARGE) for s in strides],
    }
    for size, line in values.items():
        for stride, value in zip(strides, line, strict=True):
            meaning = f"Best Dice of {size} tumours on a grid of stride {stride}"
            exact(f"grid_dice_{size}_stride{stride}", [value], unit="", meaning=meaning)
    experiment.figure(
        "grid",
        partial(draw_grid, values=values, strides=strides),
        caption=f"The best that a grid can say about tumours of up to {SMALL[1]} and from {LARGE[0]} pixels: true labels, "
        "averaged over its cells and spread out again. What is lost has to come back through the skips.",
        alt="Two falling lines: the best Dice of small and of large tumours against the stride of a grid, the line of small "
        "tumours falls first.",
    )


# %% [markdown]
# ## Unlike the paper
# - Slices of one template brain with planted tumours, one channel, 2 mm, in place of volumes of four MRI sequences from
#   many patients; two regions in place of three; four levels in place of seven. So this tests mechanisms, not the entry.
# - The foreground channel marks tissue above a threshold of brightness; the control sees the image twice in its place.
# - One network, four mirrored copies, and the whole slice at once, in place of five networks, eight copies and windows.
# - The clean-up works on all spots of the whole tumour; in the paper it is about one region and relabels it.
# - The loss is a mean over the regions and the pixels, not a sum over the regions.
# - The network with a level less has wider levels, so that it has about as many parameters, and one extra head instead of two.


# %%
def main(argv: Sequence[str] | None = None) -> None:
    """Run all experiments and write the record."""
    run = Run.start("optimized-unet", argv=argv)
    if run.settings.weights == "pretrained":
        raise SystemExit("--weights pretrained: no trained weights of the challenge entry are published; leave it out.")
    preset = PRESETS[run.preset]
    test = slices_of("test", preset.slices[1], FIXED)
    models = {key: [train(run, key, preset, seed) for seed in run.seeds] for key in ARMS}
    p = {key: [predicted(model, test.images, ARMS[key]) for model in each] for key, each in models.items()}
    p["mirrored"] = [predicted(model, test.images, ARMS["base"], mirrored=True) for model in models["base"]]
    p["cleaned"] = [cleaned(each) for each in p["base"]]
    scores = Scores(run.seeds, {key: [measured(each, test) for each in of_arm] for key, of_arm in p.items()})
    scores.floor(FLOOR[0], "dice_least", FLOOR[1], ARMS)
    scores.failed.update(dict.fromkeys(("mirrored", "cleaned"), scores.failed.get("base", {})))
    data = (
        f"{preset.slices[0]:,} brain slices with planted tumours to train, {preset.slices[1]:,} of another band to test"
    )
    parameters = max(count_parameters(each[0]) for each in models.values())
    show_heads(run, models["base"][0], test)
    about = {"data": data, "parameters": parameters, "steps": preset.steps, "floor": FLOOR}
    ablation(run, run.experiment("ablation", question="What does each optimisation add?", **about), scores)  # type: ignore[arg-type]
    question = "What do mirrored copies and the clean-up change after training?"
    after_training(run.experiment("after_training", question=question, **about), scores)  # type: ignore[arg-type]
    cost(run, test)
    run.finish()


if __name__ == "__main__":
    main()
