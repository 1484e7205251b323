# %% [markdown]
# # Optimized U-Net: how far do training and inference carry a plain U-Net?
#
# The entry for BraTS 2021 adds no new layer to the U-Net. It changes what the network is asked for: the regions that are
# ranked, at three resolutions. After training, mirrored copies are averaged, and small, unsure spots are taken back. Here
# all of it is done to the U-Net of the example `unet`, on slices of a brain with planted tumours, each with a core and a
# rim. The experiments leave one thing out at a time.
#
# | symbol (card, arXiv:2110.03352) | here | meaning |
# |---|---|---|
# | $r$ | `REGIONS` | region that is ranked: the whole tumour, and its core |
# | $y_{r,i}$ | `targets` | 1 where pixel $i$ belongs to the region, else 0; (B, R, H, W) |
# | $p_{r,i}$ | `scores.sigmoid()` | its predicted probability, (B, R, H, W) |
# | $\mathcal L$ | `region_loss` | soft Dice and binary cross entropy of the regions |
# | $w_l$ | `HEAD_WEIGHTS` | weight of the loss of the head of level $l$; level 0 is the finest |

# %%
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from lab import metrics, slices
from lab.data.brain import TUMOUR, BrainSlices
from lab.figures import Figure, Style, panels, show_image
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from scipy import ndimage
from torch import Tensor, nn
from unet import UNet

REGIONS = ("whole", "core")  # of a tumour: core and rim together, and the core alone
HEAD_WEIGHTS = (1.0, 0.5, 0.25)
RATE = 2.5e-3  # peak learning rate, see claims/optimized-unet.searches.json
RARE = -3.0  # bias that heads start from: a pixel is hardly ever tumour
SPOT, SURE = 48, 0.9  # mm^2, mean probability: a spot with less of both is taken back
FLIPS: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3))  # axes of the mirrored copies
SYNCHRONISATIONS_PER_STEP = 0  # slices lie on the device


class Preset(NamedTuple):
    """Sizes of a run.

    widths: channels of each level, the finest first.
    steps, batch: of the optimiser; slices in a step.
    slices: numbers of training, validation and test slices.
    """

    widths: tuple[int, ...] = (8, 16, 32, 64)
    steps: int = 300
    batch: int = 2
    slices: tuple[int, int, int] = (400, 24, 100)
    millimetres: Literal[1, 2] = 2


PRESETS = {
    "smoke": Preset(steps=2, slices=(8, 4, 24)),
    "quick": Preset(),
    "full": Preset((16, 32, 64, 128), steps=3000, batch=16, slices=(2000, 100, 500), millimetres=1),
}

# %% [markdown]
# ## Heads at three resolutions
# The decoder of a U-Net has a map at every level. A head, a 1x1 convolution, reads each of the three finest. The coarser
# heads exist for training alone: they give the inner levels a gradient of their own, which is called deep supervision.


# %%
class OptimizedUNet(UNet):
    """A U-Net with a score for each region, (B, 1, H, W) -> (B, R, H, W), and more heads for its training."""

    def __init__(self, widths: Sequence[int], heads: int = 3, outputs: int = len(REGIONS)) -> None:
        super().__init__(widths, outputs)
        self.coarser = nn.ModuleList(nn.Conv2d(width, outputs, 1) for width in widths[1:heads])
        for head in self.heads():
            nn.init.constant_(head.get_parameter("bias"), RARE)

    def heads(self) -> list[nn.Module]:
        """The finest first."""
        return [self.head, *self.coarser]

    def deep_scores(self, images: Tensor) -> list[Tensor]:
        """The scores of all heads: (B, 1, H, W) -> one (B, R, H / 2^l, W / 2^l) for each level, the finest first."""
        decoded = self.decode(self.encode(images))
        return [head(each).float() for head, each in zip(self.heads(), decoded, strict=False)]

    def probabilities(self, scores: Tensor) -> Tensor:
        """p: (B, R, H, W) scores -> (B, R, H, W)."""
        return scores.sigmoid()


if __name__ == "__main__":
    run = Run.start("optimized-unet", pretrained=False)
    preset = PRESETS[run.preset]
    test = slices.cropped("test", preset.slices[2], slices.FIXED, preset.millimetres, parts=True)
    seed_everything(run.seeds[0])
    model = OptimizedUNet(preset.widths).eval()
    sizes = {level: tuple(scores.shape[1:]) for level, scores in enumerate(model.deep_scores(test.images[:1]))}
    run.show("scores", [{"head of level": level, "scores": str(size)} for level, size in sizes.items()])

# %% [markdown]
# ## A loss on the regions that are ranked
# The challenge ranks regions that lie within each other: the core is part of the whole. So each region has a sigmoid of its
# own in place of one softmax over core, rim and the rest, and its own loss:
# $$\mathcal L = \sum_{r}\left(1 - \frac{2\sum_i p_{r,i}\,y_{r,i}}{\sum_i p_{r,i} + \sum_i y_{r,i}}\right)
# {} + \sum_{r}\mathrm{BCE}(p_r, y_r)$$
# The two terms weigh a tumour that is missed in unlike ways. The cross entropy counts its pixels, the Dice term does not ask
# how few they are.


# %%
def regions(labels: Tensor) -> Tensor:
    """y: (B, H, W) labels -> (B, R, H, W)."""
    return torch.stack([labels >= TUMOUR, labels == TUMOUR], dim=1).float()


def dice_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """1 less the soft Dice of each region over the batch, their mean; both (B, R, H, W)."""
    p = scores.sigmoid()
    overlap, size = (p * targets).sum((0, 2, 3)), (p + targets).sum((0, 2, 3))  # each (R,)
    return (1 - (2 * overlap + 1) / (size + 1)).mean()  # 1: defined where there is no tumour


def region_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Dice term and cross entropy of (B, R, H, W) scores, mean over regions."""
    return dice_loss(scores, targets) + nn.functional.binary_cross_entropy_with_logits(scores, targets)


def cost_of_missing(side: int) -> dict[str, object]:
    """Both terms of the loss for a network that is sure of nothing but background, and misses a square tumour."""
    targets = torch.zeros(1, len(REGIONS), 96, 80)
    targets[:, :, :side, :side] = 1
    nothing = torch.full_like(targets, -6.0)
    entropy = nn.functional.binary_cross_entropy_with_logits(nothing, targets).item()
    return {"tumour (pixels)": side**2, "Dice term": dice_loss(nothing, targets).item(), "cross entropy": entropy}


if __name__ == "__main__":
    run.show("missed", [cost_of_missing(side) for side in (4, 8, 16)])

# %% [markdown]
# ## Train it
# The slices of the U-Net example, with core and rim told apart. Every other slice stands on its head, since the recipe
# mirrors its crops along all axes. The loss of a head compares it with labels of its size, and its weight halves with each
# level: $\sum_l w_l \mathcal L_l$.

# %%
Loss = Callable[[Tensor, Tensor], Tensor]


def supervised(model: OptimizedUNet, images: Tensor, labels: Tensor, loss: Loss = region_loss) -> Tensor:
    """The loss of all heads: images (B, 1, H, W), labels (B, H, W)."""
    targets = regions(labels)
    parts = [
        weight * loss(scores, targets[:, :, :: 2**level, :: 2**level])
        for level, (scores, weight) in enumerate(zip(model.deep_scores(images), HEAD_WEIGHTS, strict=False))
    ]
    return torch.stack(parts).sum()


def train(run: Run, model: OptimizedUNet, seed: int, rate: float = RATE, loss: Loss = region_loss) -> None:
    """Trains a network in place; with one seed, all networks see the same slices in the same order."""
    preset = PRESETS[run.preset]
    made = slices.cropped("train", preset.slices[0], seed, preset.millimetres, parts=True)
    images = torch.cat([made.images[::2], made.images[1::2].flip(2)]).to(run.device)
    labels = torch.cat([made.labels[::2], made.labels[1::2].flip(1)]).to(run.device)
    batches = minibatches((images, labels), preset.batch, preset.steps, seed)
    model.to(memory_format=torch.channels_last)
    fit(model, batches, partial(supervised, loss=loss), steps=preset.steps, learning_rate=rate, device=run.device)


@torch.inference_mode()
def predicted(model: OptimizedUNet, images: Tensor, flips: Sequence[tuple[int, ...]] = FLIPS[:1]) -> Tensor:
    """p (B, R, H, W) on the CPU: the mean over copies of the images that are mirrored along these axes, and turned back."""
    device, means = next(model.parameters()).device, []
    for part in torch.split(images, slices.BATCH):
        copies = [model.probabilities(model(part.to(device).flip(axes))).flip(axes) for axes in flips]
        means.append(torch.stack(copies).mean(0).cpu())
    return torch.cat(means)


def region_dice(p: Tensor, labels: Tensor) -> dict[str, float]:
    """Dice of each region, pooled over all slices: p (B, R, H, W), labels (B, H, W)."""
    found, truth = (p > 0.5).long(), regions(labels).long()
    return {f"dice_{r}": metrics.dice(found[:, k], truth[:, k], 2)[1].item() for k, r in enumerate(REGIONS)}


if __name__ == "__main__":
    train(run, model, run.seeds[0])
    p = predicted(model, test.images)
    told = ", ".join(f"{name.removeprefix('dice_')} {value:.2f}" for name, value in region_dice(p, test.labels).items())
    run.show("trained", f"{count_parameters(model):,} parameters; Dice on test slices: {told}")

# %% [markdown]
# ## What each head says
# The coarse heads draw the same tumours in coarse strokes. What is smaller than one of their cells they cannot say.


# %%
def draw_heads(style: Style, model: OptimizedUNet, image: Tensor, labels: Tensor) -> Figure:
    """An image (1, 1, H, W) and its labels (1, H, W): the truth above, the network below, the coarsest head first."""
    with torch.inference_mode():
        scores = model.deep_scores(image.to(next(model.parameters()).device))
        maps = [model.probabilities(each)[0].cpu() for each in scores]
    truth, levels = regions(labels)[0], range(len(maps))[::-1]
    figure, axes = panels(2, 1 + len(maps), width=5.4, height=3.7)
    for row, finest in zip(axes, (truth, maps[0]), strict=True):
        parts = (finest > 0.5).long().sum(0)  # 1 rim, 2 core: the first two colours
        show_image(row[0], slices.painted(image[0, 0], parts, style))
    for column, level in enumerate(levels, start=1):
        name = "full size" if level == 0 else f"1/{2**level}"
        coarse = truth[:, :: 2**level, :: 2**level]
        for ax, each in ((axes[0, column], coarse), (axes[1, column], maps[level])):
            show_image(ax, each.mean(0), name if ax is axes[0, column] else None, cmap=style.sequential)
    axes[0, 0].set_title("truth")
    axes[1, 0].set_title("network")
    return figure


def telling(p: Tensor, data: BrainSlices, share: float = 0.75) -> int:
    """The slice with the most tumour of those in which such a share of each tumour is found: p (N, R, H, W)."""
    found, worst = p[:, 0] > 0.5, torch.ones(len(p))
    for number in range(1, int(data.lesions.max()) + 1):
        there = data.lesions == number
        worst = worst.minimum(1 - (there & ~found).sum((1, 2)) / there.sum((1, 2)).clamp(min=1))
    return int(((data.lesions > 0).sum((1, 2)) * (worst >= share)).argmax())


if __name__ == "__main__":
    index = telling(p, test)
    one = test[slice(index, index + 1)]
    run.figure(
        "heads",
        partial(draw_heads, model=model, image=one.images, labels=one.labels),
        caption="The test slice with the most tumour of those in which a trained network finds three quarters of each. Above: "
        "rim and core, and the labels that the heads are compared with in training. Below: what the network finds, and what "
        "its heads say. Only the finest head is used after training.",
        alt="Two rows of a brain slice with rim and core of its tumours painted in, and maps of them at a quarter, at half and "
        "at full size: above the truth, below the prediction.",
    )

# %% [markdown]
# ## Mirrored copies
# The network is not symmetric under flips, so each copy of a slice gets an answer of its own. They are turned back and
# averaged, at the cost of as many passes.


# %%
def draw_mirrored(style: Style, model: OptimizedUNet, one: BrainSlices) -> Figure:
    """The whole tumour in one slice: the truth, the answer to each copy, turned back, and their mean."""
    pictures = {"truth": regions(one.labels)[0, 0], "mean of copies": predicted(model, one.images, FLIPS)[0, 0]}
    names = ("as it is", "upside down", "left to right", "both")
    pictures |= {name: predicted(model, one.images, [axes])[0, 0] for name, axes in zip(names, FLIPS, strict=True)}
    figure, axes = panels(2, 3, width=5.4, height=4.6)
    for ax, (title, p) in zip(axes.T.flat, pictures.items(), strict=True):
        show_image(ax, p, title, cmap=style.sequential)
        ax.contour(regions(one.labels)[0, 0].numpy(), levels=[0.5], colors="white", linewidths=0.8)
    return figure


if __name__ == "__main__":
    run.figure(
        "mirrored",
        partial(draw_mirrored, model=model, one=one),
        caption="The whole tumour in the same slice (outlines: the truth): the probabilities for the slice and for its three "
        "mirrored copies, turned back, and their mean.",
        alt="Six maps of one brain slice: the true tumours, the mean of four predictions, and the four predictions, which differ "
        "a little from each other.",
    )

# %% [markdown]
# ## The clean-up
# A spot of a few pixels in a patient without that region costs its whole Dice. So spots that are small, and of which the
# network is not sure, are taken back. Some of them were tumours.


# %%
def cleaned(p: Tensor, millimetres: int = 2) -> Tensor:
    """p (B, R, H, W) with 0 in spots of the whole tumour that are small and unsure; spots never reach across slices."""
    touching = [[[0] * 3] * 3, [[1] * 3] * 3, [[0] * 3] * 3]
    numbers = torch.from_numpy(ndimage.label((p[:, 0] > 0.5).numpy(), touching)[0]).long()  # (B, H, W), 0: no spot
    pixels = torch.bincount(numbers.flatten())
    sure = torch.bincount(numbers.flatten(), p[:, 0].flatten().double()) / pixels
    gone = (pixels * millimetres**2 < SPOT) & (sure < SURE)
    gone[0] = False
    return torch.where(gone[numbers][:, None], 0.0, p)


if __name__ == "__main__":
    truth, rows = regions(test.labels)[:, 0] > 0.5, []
    for name, each in (("before", p), ("after", cleaned(p, preset.millimetres))):
        missed = int((truth & (each[:, 0] <= 0.5)).sum())
        rows.append(
            {
                "clean-up": name,
                "false spots per slice": slices.false_spots(each[:, 0] > 0.5, truth),
                "missed pixels": missed,
            }
        )
    run.show("cleaned_up", rows)
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - Slices of one template brain with planted tumours, one channel, 2 mm, in place of volumes of four MRI sequences from many
#   patients; two regions in place of three. So this tests mechanisms, not the entry.
# - The network is the U-Net of the example `unet`: three poolings in place of six strided convolutions, and batch norm and
#   ReLU in place of instance norm and leaky ReLU. It has no channel that marks the foreground.
# - One network, four mirrored copies, and the whole slice at once, in place of five networks, eight copies and windows.
# - The clean-up works on all spots of the whole tumour; in the paper it is about one region and relabels it.
# - The loss is a mean over regions and pixels, not a sum over regions; AdamW with a cosine schedule, a few hundred steps.
# - No cell with published weights: the authors published none.
