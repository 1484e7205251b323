# %% [markdown]
# # nnU-Net: how much of a segmentation network can be computed from its data?
#
# nnU-Net asks nobody for patch, depth or batch. It measures the data set (its *fingerprint*), and rules turn that into a network
# that fits the memory. Here are the rules, what they plan for three sets of scans, and one such network, trained in five folds.
#
# | symbol (Nature Methods 2021, package nnunetv2) | here | meaning |
# |---|---|---|
# | $n_{i,a}$, $s_{i,a}$ | `sizes`, `spacings` | voxels of image $i$ along axis $a$, and mm between two of them |
# | $c_l$, $v_l$ | `width`, `voxels` | channels and voxels of a map of stage $l$; stage 0 is the finest, $L$ the coarsest |
# | $M$, $b$ | `Memory.values`, `batch` | values of feature maps in a training step; patches in a batch |

# %%
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from lab import folds, plotting, slices
from lab.run import Run
from lab.stacked import Stacked
from lab.training import count_parameters, fit, seed_everything
from numpy.typing import NDArray
from torch import Tensor, nn

Sizes = tuple[int, ...]
LEAST, FOLDS = 4, 5  # voxels along an axis of the coarsest map; networks of a cross-validation
RATE = 1e-2  # peak learning rate, see claims/nnunet.searches.json
SYNCHRONISATIONS_PER_STEP = 0  # slices, targets and their order lie on the device


class Memory(NamedTuple):
    """What a training step may use: values of feature maps, channels of the finest stage, most channels of any."""

    values: float
    base: int
    most: int


MEMORIES = {2: Memory(1.02e9, 32, 512), 3: Memory(1.12e9, 32, 320)}  # nnU-Net's own, for 8 GB, by number of axes


class Preset(NamedTuple):
    """Steps, memory to plan for, slices to train, choose and test with, and half the spacing of the slices in mm."""

    steps: int = 200
    memory: Memory = Memory(3e5, 8, 32)
    slices: tuple[int, int, int] = (300, 40, 60)
    millimetres: Literal[1, 2] = 2


PRESETS = {
    "smoke": Preset(steps=2, slices=(20, 4, 6)),
    "quick": Preset(),
    "full": Preset(5000, Memory(4e7, 32, 256), (2000, 100, 500), 1),
}

# %% [markdown]
# ## The fingerprint, and the spacing that follows
# Images are resampled to one spacing, the median of each axis. Where one axis $c$ is more than three times as coarse as the
# others, with as many fewer voxels, its tenth percentile is taken, so that the finer images keep their slices:
# $$t_a = \mathrm{median}_i\, s_{i,a}, \qquad t_c = \max\big(P_{10}(s_{i,c}),\ \max_{a \ne c} t_a\big)$$


# %%
class Fingerprint(NamedTuple):
    """Sizes (n, D) in voxels and spacings (n, D) in mm of n images."""

    sizes: NDArray[np.float64]
    spacings: NDArray[np.float64]


def target_spacing(data: Fingerprint) -> NDArray[np.float64]:
    """t: (D,) mm."""
    target, size = np.median(data.spacings, 0), np.median(data.sizes, 0)
    coarse = int(target.argmax())
    others, other_sizes = np.delete(target, coarse), np.delete(size, coarse)
    if target[coarse] > 3 * others.max() and 3 * size[coarse] < other_sizes.min():
        target[coarse] = max(np.percentile(data.spacings[:, coarse], 10), others.max())
    return target


def scans(spacings: Sequence[tuple[float, ...]], millimetres: Sizes = (192, 224, 192)) -> Fingerprint:
    """The fingerprint of heads of one size in mm (slices, rows, columns), scanned with such spacings."""
    found = np.array(spacings, dtype=float)
    return Fingerprint(np.round(np.array(millimetres) / found), found)


SETS = {
    "thin slices": scans([(1, 1, 1)] * 30),
    "thick slices": scans([(gap, 0.5, 0.5) for gap in (3, 5, 6, 6, 7, 8)] * 5),
    "one slice each": scans([(4, 4)] * 300, (192, 160)),
}


def times(values: Sequence[float] | NDArray[np.float64]) -> str:
    return " x ".join(f"{value:g}" for value in values)


if __name__ == "__main__":
    run = Run.start("nnunet", pretrained=False)
    preset = PRESETS[run.preset]
    run.show("fingerprints", [{"data set": name, "images": len(each.sizes), "median voxels": times(np.median(each.sizes, 0)),
                               "median mm": times(np.median(each.spacings, 0)), "target mm": times(target_spacing(each))}
                              for name, each in SETS.items()])  # fmt: skip

# %% [markdown]
# ## Topology: pool the fine axes first
# An axis is halved while at least `LEAST` voxels are left, and only while its voxels are less than twice as long as the
# shortest: coarse axes wait, and until then kernels do not reach along them. Channels double from stage to stage,
# $c_l = \min(c_0\, 2^l,\ c_{\max})$.


# %%
class Stage(NamedTuple):
    """Kernel and stride of each axis, and channels."""

    kernel: Sizes
    stride: Sizes
    width: int


def topology(patch: Sizes, spacing: Sequence[float], memory: Memory) -> list[Stage]:
    """The stages of the encoder for a patch (D,) of such spacing (D,), the finest first."""
    size, step, axes = list(patch), list(spacing), range(len(patch))
    strides, kernels = [(1,) * len(patch)], [[1] * len(patch)]
    while True:
        large = [a for a in axes if size[a] >= 2 * LEAST]
        halved = [a for a in large if step[a] < 2 * min(step[b] for b in large)]
        if not halved or (len(halved) == 1 and size[halved[0]] < 3 * LEAST):
            break
        kernels[-1] = [3 if step[a] < 2 * min(step) else kernels[-1][a] for a in axes]
        for a in halved:
            size[a], step[a] = -(-size[a] // 2), 2 * step[a]
        strides.append(tuple(2 if a in halved else 1 for a in axes))
        kernels.append(kernels[-1])
    kernels[-1] = [3] * len(patch)
    widths = [min(memory.base * 2**level, memory.most) for level in range(len(strides))]
    return [Stage(tuple(kernel), stride, width) for kernel, stride, width in zip(kernels, strides, widths, strict=True)]


if __name__ == "__main__":
    run.show("topology", [{"stage": level, "kernel": times(each.kernel), "stride": times(each.stride), "channels": each.width}
                          for level, each in enumerate(topology((32, 256, 224), (3, 0.5, 0.5), MEMORIES[3]))])  # fmt: skip

# %% [markdown]
# ## Patch and batch: as large as the memory
# A stage keeps two maps on the way down, three on the way up, and the scores of the $K$ classes. Their values for one patch are
# $$V(p) = 2 \sum_l c_l v_l + \sum_{l < L} (3 c_l + K)\, v_l, \qquad b = M / V(p)$$
# The patch starts as the median image. While not even two fit ($b < 2$), its relatively longest axis shrinks, and the topology
# is computed anew. What memory is left becomes batch, up to 5 % of all voxels of the data set.


# %%
class Plan(NamedTuple):
    """What the rules give for a data set: spacing in mm, patch in voxels, stages, patches in a batch."""

    spacing: tuple[float, ...]
    patch: Sizes
    stages: list[Stage]
    batch: int


def steps_of(stages: Sequence[Stage]) -> Sizes:
    """Voxels of the patch in one of the coarsest map, (D,)."""
    return tuple(int(step) for step in np.prod([stage.stride for stage in stages], 0))


def fitted(patch: Sizes, spacing: Sequence[float], memory: Memory) -> tuple[Sizes, list[Stage]]:
    """The topology for a patch, and the patch padded so that every pooling comes out even."""
    stages = topology(patch, spacing, memory)
    return tuple(-(-size // step) * step for size, step in zip(patch, steps_of(stages), strict=True)), stages


def values(patch: Sizes, stages: Sequence[Stage], classes: int) -> int:
    """V: values of the feature maps of one patch."""
    total, voxels = 0, int(np.prod(patch))
    for level, stage in enumerate(stages):
        voxels //= int(np.prod(stage.stride))
        total += (2 * stage.width + (3 * stage.width + classes) * (level + 1 < len(stages))) * voxels
    return total


def plan(data: Fingerprint, memory: Memory, classes: int = slices.CLASSES) -> Plan:
    """All of it: fingerprint -> spacing -> patch, topology and batch."""
    spacing = tuple(target_spacing(data).tolist())
    median = np.median(np.round(data.sizes * data.spacings / spacing), 0)
    side = {2: 2048, 3: 256}[len(spacing)] * np.prod(spacing) ** (1 / len(spacing))  # mm of a cube that is large enough
    patch, stages = fitted(tuple(np.minimum(np.round(side / spacing), median).astype(int).tolist()), spacing, memory)
    while memory.values / values(patch, stages, classes) < 2:
        longest = np.arange(len(patch)) == (np.array(patch) / median).argsort(kind="stable")[-1]
        less = topology(tuple(np.array(patch) - longest * steps_of(stages)), spacing, memory)  # may ask for finer steps
        patch, stages = fitted(tuple((np.array(patch) - longest * steps_of(less)).tolist()), spacing, memory)
    share = round(0.05 * len(data.sizes) * np.prod(median) / np.prod(patch))
    return Plan(spacing, patch, stages, max(2, min(round(memory.values / values(patch, stages, classes)), share)))


if __name__ == "__main__":
    plans = {name: plan(each, MEMORIES[each.sizes.shape[1]]) for name, each in SETS.items()}
    everyone = plans | {"the same, here": plan(SETS["one slice each"], preset.memory)}
    run.show("plans", [{"data set": name, "spacing (mm)": times(each.spacing), "patch": times(each.patch),
                        "batch": each.batch, "poolings": times(np.log2(steps_of(each.stages))),
                        "channels": f"{each.stages[0].width} to {each.stages[-1].width}"}
                       for name, each in everyone.items()])  # fmt: skip


# %%
if __name__ == "__main__":
    drawn = [plotting.Patch(f"{name}\n{times(each.patch)}", np.median(SETS[name].sizes * SETS[name].spacings, 0),
                            np.array(each.patch) * each.spacing,
                            np.array(each.spacing) * np.cumprod([stage.stride for stage in each.stages], 0))
             for name, each in plans.items()]  # fmt: skip
    run.figure(
        "plans",
        partial(plotting.draw_patches, patches=drawn),
        caption="Three data sets and what is planned for 8 GB. Above: the median image, in it the patch with every fourth row. "
        "Below: the side of a voxel by stage. Thick slices are not pooled until rows and columns are about as coarse.",
        alt="Three columns: above, a ruled frame in a frame; below, rising lines, of which one stays flat at first.",
    )

# %% [markdown]
# ## The planned network
# A U-Net with the kernels, strides and widths of the plan. Batches are small, so norms are per image and channel (group norm
# with one channel a group). All levels $l$ of the decoder but the coarsest carry a loss, with weights that halve:
# $$\mathcal L = \frac{1}{\sum_l 2^{-l}} \sum_l 2^{-l} \left(\mathcal L^{\mathrm{CE}}_l + \mathcal L^{\mathrm{Dice}}_l\right)$$


# %%
def unit(inputs: int, stage: Stage, stride: Sizes | int = 1) -> nn.Sequential:
    """Convolution, norm and leaky ReLU: (B, inputs, ...) -> (B, width, ...)."""
    convolution: type[nn.Module] = nn.Conv3d if len(stage.kernel) == 3 else nn.Conv2d
    layer = convolution(inputs, stage.width, stage.kernel, stride, tuple(each // 2 for each in stage.kernel))
    return nn.Sequential(layer, nn.GroupNorm(stage.width, stage.width), nn.LeakyReLU(0.01))


class PlannedUNet(nn.Module):
    """(B, 1, ...) patches -> scores (B, K, ...) of each level of the decoder, the finest first."""

    def __init__(self, stages: Sequence[Stage], classes: int = slices.CLASSES) -> None:
        super().__init__()
        fine, flat = stages[:-1], len(stages[0].kernel) == 2
        up: type[nn.Module] = nn.ConvTranspose2d if flat else nn.ConvTranspose3d
        head: type[nn.Module] = nn.Conv2d if flat else nn.Conv3d
        inputs = [1, *(stage.width for stage in fine)]
        self.down = nn.ModuleList(self.encoder(*each) for each in zip(inputs, stages, range(len(stages)), strict=True))
        pairs = zip(fine, stages[1:], strict=True)
        self.up = nn.ModuleList(up(deep.width, each.width, deep.stride, deep.stride) for each, deep in pairs)
        self.merge = nn.ModuleList(self.decoder(each) for each in fine)
        self.heads = nn.ModuleList(head(each.width, classes, 1) for each in fine)

    def encoder(self, inputs: int, stage: Stage, level: int) -> nn.Module:
        return nn.Sequential(unit(inputs, stage, stage.stride), unit(stage.width, stage))

    def decoder(self, stage: Stage) -> nn.Module:
        return nn.Sequential(unit(2 * stage.width, stage), unit(stage.width, stage))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, scores = [images], []
        for block in self.down:
            maps.append(block(maps[-1]))
        x = maps[-1]
        for level in reversed(range(len(self.up))):
            x = self.merge[level](torch.cat([self.up[level](x), maps[level + 1]], 1))
            scores.append(self.heads[level](x))
        return scores[::-1]


def supervised(networks: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The loss of G networks, their sum: images (G, B, 1, H, W), one-hot targets (G, B, K, H, W)."""
    losses = []
    for level, each in enumerate(networks(images)[:-1]):
        y, logs = targets[..., :: 2**level, :: 2**level], each.float().log_softmax(2)
        overlap, size = (logs.exp() * y).sum((1, 3, 4)), (logs.exp() + y).sum((1, 3, 4))  # (G, K)
        dice = ((2 * overlap + 1) / (size + 1))[:, 1:].mean(1)
        losses.append((1 - dice - (y * logs).sum(2).mean((1, 2, 3))) / 2**level)
    return torch.stack(losses).sum() / sum(2.0**-level for level in range(len(losses)))


if __name__ == "__main__":
    with torch.device("meta"):
        run.show("networks", [{"data set": name, "parameters": f"{count_parameters(PlannedUNet(each.stages)):,}"}
                              for name, each in everyone.items()])  # fmt: skip

# %% [markdown]
# ## Train five folds
# The training slices are cut into five parts; network $k$ sees all but part $k$, mirrored at random. After training, the answers
# to mirrored copies are averaged, and those of the five networks.


# %%
def slices_of(run: Run, split: Literal["train", "val", "test"], seed: int = slices.FIXED) -> tuple[Tensor, Tensor]:
    """Images (N, 1, H, W) and labels (N, H, W), on the device."""
    images, labels = folds.coarse_slices(split, PRESETS[run.preset].slices, seed, PRESETS[run.preset].millimetres)
    return images.to(run.device), labels.to(run.device)


def planned(preset: Preset) -> Plan:
    """What the rules plan for the slices of a run."""
    return plan(scans([(2 * preset.millimetres,) * 2] * preset.slices[0], (192, 160)), preset.memory)


Form = Callable[[list[Stage]], nn.Module]


@cache
def train(run: Run, form: Form, seed: int, rate: float = RATE, networks: int = FOLDS) -> Stacked:
    """The networks of the first so many folds, trained side by side."""
    seed_everything(seed)
    preset, (images, labels) = PRESETS[run.preset], slices_of(run, "train", seed)
    targets = nn.functional.one_hot(labels, slices.CLASSES).permute(0, 3, 1, 2).float()
    order = folds.orders(len(images), FOLDS, networks, preset.steps, planned(preset).batch, seed)
    batches = folds.mirrored_batches((images, targets), order, seed)
    stacked = Stacked([form(planned(preset).stages) for _ in range(networks)])
    fit(stacked, batches, supervised, steps=preset.steps, learning_rate=rate, clip=None, device=run.device)
    return stacked


@torch.inference_mode()
def predicted(networks: Stacked, images: Tensor, mirrors: Sequence[Sizes] = ((),)) -> Tensor:
    """Probabilities (G, N, K, H, W) of all networks for images (N, 1, H, W): means over mirrored copies."""
    images = images.expand(networks.count, -1, -1, -1, -1)
    copies = [networks(images.flip(axes))[0].float().softmax(2).flip(axes) for axes in mirrors]
    return torch.stack(copies).mean(0)


if __name__ == "__main__":
    networks, (images, labels) = train(run, PlannedUNet, run.seeds[0], RATE), slices_of(run, "test")
    single, mirrored = (predicted(networks, images, mirrors) for mirrors in (((),), folds.MIRRORS))
    run.show("trained", [{"copies": name, "one network": np.mean([folds.mean_dice(each, labels) for each in p]),
                          "mean of five": folds.mean_dice(p.mean(0), labels)}
                         for name, p in (("as it is", single), ("mirrored", mirrored))])  # fmt: skip

    index = folds.median_slice(labels)
    pictures = {"truth": labels[index], "mean of five": mirrored.mean(0)[index].argmax(0)}
    pictures |= {f"network {fold + 1}": single[fold, index].argmax(0) for fold in range(FOLDS)}
    run.figure(
        "folds",
        partial(plotting.draw_answers, image=images[index, 0].cpu(), answers=pictures),
        caption="The test slice with the median area of tumours: its truth, the mean of all answers, and each network alone.",
        alt="Eight pictures of one brain slice: bare, and with tissues painted in: true, of the mean, and of five networks.",
    )
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - Slices of one template brain at 4 mm with planted tumours: one anatomy, nothing across patients. Two slices fill the memory.
# - Left out: what is tried out after training, the cascade, intensities, windows, and all augmentations but mirrors.
# - AdamW with a cosine schedule, a few hundred steps; there, SGD with momentum for a thousand epochs.
# - No cell with published weights: version 2 has none.
