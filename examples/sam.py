# %% [markdown]
# # SAM: what are three answers to one click worth?
#
# A click on a digit that lies on a plate that lies on a larger plate may mean any of the three. A small Segment Anything
# model learns from such clicks, with one of the three annotated at random; three networks with the same parameters differ
# only in which of their masks the loss reaches. The same models show what boxes, more clicks and no prompt at all lead to.
# The published sizes are counted to see what an image costs and what a prompt costs.
#
# | symbol (card, arXiv:2304.02643) | here | meaning |
# |---|---|---|
# | $z$ | `upsampled` | image embedding, upsampled fourfold, (N, D/4, S, S) |
# | $w$ | `weights` | one vector for each mask token, (N, 4, D/4) |
# | $m = \sigma(w^\top z)$ | `masks` | logits, (B, P, 4, S, S): three masks for a lone click, the last for several prompts |
# | $y$ | `target` | annotated mask, (B, P, S, S) |
# | $k$ | `LONE`, `JOINT` | index of the masks for a lone click, and of the mask for several prompts |
# | P | | prompts for each image: the image is encoded once for all of them |

# %%
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lab.data import Split
from lab.data.digits import digits
from lab.data.photographs import random_crop
from lab.figures import Style, panels, seed_bars, seed_lines, show_image
from lab.metrics import timed
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import batched_nms, masks_to_boxes
from transformers import (
    Sam2HieraDetConfig,
    Sam2VisionConfig,
    Sam2VisionModel,
    SamConfig,
    SamModel,
    SamVisionConfig,
)

Arm = Literal["one", "mean", "min"]
ARMS: Mapping[Arm, str] = {"one": "one mask", "mean": "three,\nmean loss", "min": "three,\nmin loss"}
LEVELS = ("digit", "inner plate", "outer plate")
SIDE, GRID, STRIDE = 32, 8, 4  # of an image in pixels, of its embedding in positions, pixels of a position
LONE, JOINT = slice(0, 3), 3  # masks of a lone click; mask of several prompts
RATED = 0.4  # least rated IoU in the automatic grid; on validation images of seed 100 it leaves masks in each
NOTHING, OUTSIDE, INSIDE, UPPER_LEFT, LOWER_RIGHT = range(5)  # kinds of a prompt's points


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        steps, batch: of the optimiser; images in a step, each with four prompts.
        width: D, of image embedding and tokens.
        images: numbers of training and test images.
        timed: pictures of `vit_side` pixels that the published ViT-B encodes for each seed.
        fits: optimiser steps of each best possible mask.
        learning_rate: the better of 0.002 and 0.004 for the arm *min* on validation images of seed 100.
    """

    steps: int = 200
    batch: int = 8
    width: int = 32
    images: tuple[int, int] = (1500, 150)
    timed: int = 1
    vit_side: int = 256
    fits: int = 80
    learning_rate: float = 4e-3


PRESETS = {
    "smoke": Preset(steps=3, batch=4, images=(16, 8), timed=1, vit_side=64, fits=3),
    "quick": Preset(),
    "full": Preset(steps=4000, batch=64, width=128, images=(20_000, 1000), timed=10, vit_side=1024, fits=500),
}

# %% [markdown]
# ## Scenes in which a click is ambiguous
# Two groups stand on each dimmed photograph: a handwritten digit on a plate on a larger plate. A click on the digit is right
# for all three masks of its group. Scenes of an unseen kind have other shapes on other plates before noise, none of which is in
# training.


# %%
class Nested(NamedTuple):
    """Images (N, 3, S, S) from 0 to 1, and masks (N, 2 groups, 3 levels, S, S), each inside the next."""

    images: Tensor
    masks: Tensor


def unseen_shape(rng: np.random.Generator, side: int) -> np.ndarray[Any, Any]:
    """A ring, a cross or a triangle, (side, side) from 0 to 1."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    shapes = (abs(np.hypot(x, y) - 0.72) < 0.28, np.minimum(abs(x), abs(y)) < 0.3, abs(x) < (y + 1) / 2)
    return np.asarray(shapes[rng.integers(3)], dtype=np.float32)


def nested(split: Split, count: int, seed: int, *, unseen: bool = False) -> Nested:
    """Scenes with two groups each, side by side or one above the other."""
    rng = np.random.default_rng([seed, ("train", "val", "test").index(split), unseen])
    handwritten = digits(split, 8).images[:, 0].numpy()
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5
    images = np.empty((count, SIDE, SIDE, 3), np.float32)
    masks = np.zeros((count, 2, 3, SIDE, SIDE), bool)
    for image, groups in zip(images, masks, strict=True):
        image[:] = 0.3 * (rng.uniform(0, 1, image.shape) if unseen else random_crop(rng, split, SIDE))
        flip, across = rng.random() < 0.5, rng.uniform(8, SIDE - 8, 2)
        for group, along in enumerate((8, SIDE - 8)):
            centre = (along, across[group]) if flip else (across[group], along)
            half, power = rng.uniform(7, 8, 2), 1 if unseen else rng.choice([2, 8])  # diamond; ellipse, rectangle
            near = [abs(x - centre[0]) / half[0], abs(y - centre[1]) / half[1]]
            shape = unseen_shape(rng, 8) if unseen else handwritten[rng.integers(len(handwritten))]
            left, top = (round(middle) - 4 for middle in centre)
            place = (slice(top, top + 8), slice(left, left + 8))
            groups[group, 2] = near[0] ** power + near[1] ** power <= 1
            groups[group, 1] = near[0] ** power + near[1] ** power <= rng.uniform(0.68, 0.74) ** power
            groups[group, 0][place] = (shape > 0.35) & groups[group, 1][place]
            colours = np.array([[1.0], [0.35], [0.7]]) + rng.uniform(-0.15, 0.15, (3, 3))  # of the levels
            for level in (2, 1, 0):
                image[groups[group, level]] = colours[level]
    return Nested(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(masks))


# %% [markdown]
# ## Prompts
# A click is a point and a label, inside or outside; a box is its two corners. Every prompt has three places, and those that
# it does not need hold a point that means nothing.


# %%
class Prompts(NamedTuple):
    """Points (B, P, 3, 2) as x and y in pixels, and the kind of each point (B, P, 3)."""

    points: Tensor
    kinds: Tensor

    def to(self, device: torch.device) -> Prompts:
        return Prompts(self.points.to(device), self.kinds.to(device))


def pixel_of(masks: Tensor, generator: torch.Generator) -> Tensor:
    """A random pixel of each mask (B, P, S, S): its centre (B, P, 2); anywhere if the mask is empty."""
    chances = masks.flatten(0, 1).flatten(1).float()  # (B, P, S, S) -> (B P, S S)
    chances += 1e-9
    index = torch.multinomial(chances, 1, generator=generator).view(masks.shape[:2])
    return torch.stack([index % SIDE, index // SIDE], -1) + 0.5


def clicks(inside: Tensor, generator: torch.Generator) -> Prompts:
    """One click in each mask (B, P, S, S)."""
    first = pixel_of(inside, generator)
    kinds = torch.tensor([INSIDE, NOTHING, NOTHING]).expand(*first.shape[:2], 3).clone()
    return Prompts(torch.stack([first, torch.zeros_like(first), torch.zeros_like(first)], 2), kinds)


def boxes_of(masks: Tensor) -> Tensor:
    """Tight boxes of masks (B, P, S, S): (B, P, 4) as x0, y0, x1, y1, edges between pixels."""
    flat = masks_to_boxes(masks.flatten(0, 1))
    flat[:, 2:] += 1
    boxes: Tensor = flat.view(*masks.shape[:2], 4)
    return boxes


def box_prompts(target: Tensor, generator: torch.Generator, noise: float = 1.0) -> Prompts:
    """The box of each mask (B, P, S, S), each edge off by a normal error of `noise` pixels."""
    boxes = boxes_of(target)
    boxes = boxes + noise * torch.randn(boxes.shape, generator=generator)
    corners = torch.stack([boxes[..., :2], boxes[..., 2:], torch.zeros_like(boxes[..., :2])], 2)
    return Prompts(corners, torch.tensor([UPPER_LEFT, LOWER_RIGHT, NOTHING]).expand(*boxes.shape[:2], 3))


def corrected(prompts: Prompts, place: int, found: Tensor, target: Tensor, generator: torch.Generator) -> Prompts:
    """Adds a click at `place`, in the larger of what is missed and what is too much; masks (B, P, S, S)."""
    missed, surplus = target & ~found, found & ~target
    inside = missed.sum((-2, -1)) >= surplus.sum((-2, -1))
    points, kinds = prompts.points.clone(), prompts.kinds.clone()
    points[:, :, place] = pixel_of(torch.where(inside[..., None, None], missed, surplus), generator)
    kinds[:, :, place] = torch.where(inside, INSIDE, OUTSIDE)
    return Prompts(points, kinds)


# %% [markdown]
# ## Encoder, prompt encoder, decoder
# The encoder sees the image alone. A point becomes its position in random Fourier features plus a learned vector for its kind.
# In each of two layers the tokens attend to each other and to the image, and the image attends to the tokens. A mask is a dot
# product of one vector with the upsampled embedding at each position:
# $$m(x) = \sigma\big(w^\top z(x)\big)$$


# %%
def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class ImageEncoder(nn.Module):
    """Convolutions down to a stride of 4 and a transformer block: (B, 3, S, S) -> (B, D, S/4, S/4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 3, 2, 1), nn.GELU(), nn.Conv2d(width // 2, width, 3, 2, 1), nn.GELU()
        )
        self.local = nn.Conv2d(width, width, 3, 1, 1)
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = x + functional.gelu(self.local(x))
        tokens: Tensor = self.norm(self.block(x.flatten(2).transpose(1, 2)))  # (B, D, h, w) -> (B, h w, D)
        return tokens.transpose(1, 2).reshape(x.shape)  # (B, h w, D) -> (B, D, h, w)


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image to the tokens (Appendix A, Figure 14)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        attend = partial(nn.MultiheadAttention, width, 2, batch_first=True)
        self.among, self.to_image, self.to_tokens = attend(), attend(), attend()
        self.mlp = mlp(width, 2 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))

    def forward(self, tokens: Tensor, image: Tensor, prompt: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (N, n, D), image (N, h w, D); `prompt` and `where`, their first values and positions, are added anew."""
        query = tokens + prompt
        tokens = self.norms[0](tokens + self.among(query, query, tokens, need_weights=False)[0])
        read = self.to_image(tokens + prompt, image + where, image, need_weights=False)[0]
        tokens = self.norms[1](tokens + read)
        tokens = self.norms[2](tokens + self.mlp(tokens))
        written = self.to_tokens(image + where, tokens + prompt, tokens, need_weights=False)[0]
        return tokens, self.norms[3](image + written)


class PromptedSegmenter(nn.Module):
    """A small SAM. All arms have all of its parameters."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = ImageEncoder(width)
        self.register_buffer("frequencies", torch.randn(2, width // 2))
        self.kinds = nn.Embedding(5, width)
        self.tokens = nn.Parameter(torch.randn(5, width))  # one for the IoUs, four for masks
        self.blocks = nn.ModuleList(TwoWayBlock(width) for _ in range(2))
        self.upscale = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, 2, 2), nn.GELU(), nn.ConvTranspose2d(width // 2, width // 4, 2, 2)
        )
        self.weigh = nn.ModuleList(mlp(width, width, width // 4) for _ in range(4))
        self.rate = mlp(width, width, 4)

    def position(self, points: Tensor) -> Tensor:
        """Random Fourier features of points (..., 2) in pixels: (..., D)."""
        angles = 2 * math.pi * (2 * points / SIDE - 1) @ self.frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)

    def prompt_tokens(self, prompts: Prompts) -> Tensor:
        """(B, P, 3, D); a point that means nothing has no position."""
        there = (prompts.kinds != NOTHING)[..., None]
        tokens: Tensor = self.position(prompts.points) * there + self.kinds(prompts.kinds)
        return tokens

    def decode(self, embedding: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Embeddings (B, D, h, w) and prompts (B, P, ...) -> logits (B, P, 4, S, S) and their IoUs (B, P, 4)."""
        sparse = self.prompt_tokens(prompts)
        B, P = sparse.shape[:2]
        tokens = torch.cat([self.tokens.expand(B * P, -1, -1), sparse.flatten(0, 1)], 1)  # (N, 8, D), N = B P
        image = embedding.flatten(2).transpose(1, 2).repeat_interleave(P, 0)  # (B, D, h, w) -> (N, h w, D)
        axis = (torch.arange(GRID, device=image.device) + 0.5) * STRIDE
        where = self.position(torch.cartesian_prod(axis, axis).flip(1))  # (h w, D), row by row
        out = tokens
        for block in self.blocks:
            out, image = block(out, image, tokens, where)
        upsampled = self.upscale(image.transpose(1, 2).reshape(B * P, -1, GRID, GRID))  # (N, D / 4, S, S)
        weights = torch.stack([each(out[:, 1 + k]) for k, each in enumerate(self.weigh)], 1)  # (N, 4, D / 4)
        masks = torch.einsum("nkd,ndyx->nkyx", weights, upsampled)
        return masks.view(B, P, 4, SIDE, SIDE), self.rate(out[:, 0]).view(B, P, 4)

    def forward(self, images: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        return self.decode(self.encoder(images), prompts)


# %% [markdown]
# ## The loss, and which masks it reaches
# $$\mathcal L = \min_{k\in\{1,2,3\}}\big(20\,\mathcal L_{focal}(m_k, y) + \mathcal L_{dice}(m_k, y)\big)$$
# Of a lone click, the arm *min* trains the best mask alone. *Mean* trains all three alike, and *one* trains only the fourth,
# which in all arms answers boxes and several clicks. A head learns the IoU of each mask by squared error.


# %%
def mask_losses(logits: Tensor, target: Tensor) -> Tensor:
    """20 focal + dice of each mask: logits (B, P, k, S, S), targets (B, P, S, S) -> (B, P, k)."""
    y = target[:, :, None].expand_as(logits).float()
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
    p = logits.sigmoid()
    focal = (cross_entropy * (1 - p * y - (1 - p) * (1 - y)) ** 2).mean((-2, -1))
    dice = 1 - (2 * (p * y).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + y.sum((-2, -1)) + 1)
    return 20 * focal + dice


def ious(found: Tensor, target: Tensor) -> Tensor:
    """IoU over the last two axes of masks that broadcast; 0 if both are empty."""
    union = (found | target).sum((-2, -1))
    return (found & target).sum((-2, -1)) / union.clamp(min=1)


def lone_loss(losses: Tensor, arm: Arm) -> Tensor:
    """Loss (B, P) of lone clicks from that of each mask (B, P, 4)."""
    if arm == "one":
        return losses[..., JOINT]
    lone = losses[..., LONE]
    return lone.mean(-1) if arm == "mean" else lone.min(-1).values


def training_prompts(masks: Tensor, generator: torch.Generator) -> tuple[Prompts, Tensor]:
    """For each image two lone clicks on digits, a box and three clicks: with targets (B, 4, S, S), drawn at random."""
    B = len(masks)
    rows, group = torch.arange(B)[:, None], torch.randint(2, (B, 4), generator=generator)
    target = masks[rows, group, torch.randint(3, (B, 4), generator=generator)]
    lone = clicks(masks[rows, group, torch.zeros_like(group)][:, :2], generator)
    box = box_prompts(target[:, 2:3], generator)
    several = clicks(target[:, 3:], generator)
    for place, level in ((1, 2), (2, 0)):  # a click against the whole group, and one against the digit
        guess = masks[rows, group, torch.full_like(group, level)][:, 3:]
        several = corrected(several, place, guess, target[:, 3:], generator)
    parts = zip(lone, box, several, strict=True)
    return Prompts(*(torch.cat(each, 1) for each in parts)), target


def loss_of(arm: Arm, generator: torch.Generator) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """Loss of a batch of images (B, 3, S, S) and masks (B, 2, 3, S, S)."""

    def loss(model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
        prompts, target = training_prompts(masks.cpu(), generator)
        target = target.to(images.device)
        logits, rated = model(images, prompts.to(images.device))
        lone = lone_loss(mask_losses(logits[:, :2].float(), target[:, :2]), arm)
        joint = mask_losses(logits[:, 2:, JOINT:].float(), target[:, 2:])[..., 0]
        reached = torch.cat([lone, joint], 1)
        actual = ious(logits.detach() > 0, target[:, :, None])
        return reached.mean() + functional.mse_loss(rated.float(), actual)

    return loss


@dataclass(frozen=True)
class Trained:
    """A network, the seed that it was trained with, and the images that it is tested on."""

    model: PromptedSegmenter
    seed: int
    test: Nested


def train(arm: Arm, preset: Preset, seed: int, device: torch.device, split: Split = "test") -> Trained:
    data, test = nested("train", preset.images[0], seed), nested(split, preset.images[1], seed)
    seed_everything(seed)
    model = PromptedSegmenter(preset.width)
    batches = minibatches(data, preset.batch, preset.steps, seed)
    loss = loss_of(arm, torch.Generator().manual_seed(seed))
    fit(model, batches, loss, steps=preset.steps, learning_rate=preset.learning_rate, device=device)
    return Trained(model, seed, test)


@torch.inference_mode()
def segment(model: PromptedSegmenter, images: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Masks (B, P, 4, S, S) and rated IoUs (B, P, 4), on the CPU."""
    device = next(model.parameters()).device
    parts = zip(*(torch.split(each, 50) for each in (images, *prompts)), strict=True)
    found = [model(image.to(device), Prompts(a.to(device), b.to(device))) for image, a, b in parts]
    return torch.cat([(logits > 0).cpu() for logits, _ in found]), torch.cat([rated.cpu() for _, rated in found])


# %% [markdown]
# ## One mask averages over what a click may mean
# Each test click lies on a digit, so each of the three annotations of its group is a right answer. For each annotation, the best
# of the masks counts; mean over the three annotations. One mask can fit one of them at most.


# %%
Models = Mapping[Arm, Sequence[Trained]]


class Answers(NamedTuple):
    """What lone clicks on digits lead to: masks (N, 2, k, S, S), their IoU with each level (N, 2, 3, k), rated IoU."""

    masks: Tensor
    iou: Tensor
    rated: Tensor


def answers(trained: Trained, arm: Arm = "min", test: Nested | None = None) -> Answers:
    test = test or trained.test
    prompts = clicks(test.masks[:, :, 0], torch.Generator().manual_seed(trained.seed))
    masks, rated = segment(trained.model, test.images, prompts)
    use = slice(JOINT, 4) if arm == "one" else LONE
    masks, rated = masks[:, :, use], rated[:, :, use]
    return Answers(masks, ious(masks[:, :, None], test.masks[:, :, :, None]), rated)


def best(found: Answers) -> float:
    """Mean over clicks and annotations of the IoU of the best mask."""
    return found.iou.amax(-1).mean().item()


def chosen(found: Answers) -> float:
    """IoU with an annotation drawn at random, if only the mask that is rated best may be given."""
    index = found.rated.argmax(-1)[:, :, None, None].expand(-1, -1, 3, 1)
    return found.iou.gather(-1, index).mean().item()


def draw_masks(style: Style, image: Tensor, point: Tensor, rows: Mapping[str, Tensor]) -> Figure:
    """The click (2,) on its image (3, S, S), and masks (k, S, S) of each arm in a row."""
    figure, axes = panels(len(rows), 4, height=1.75 * len(rows))
    for row, (line, (name, masks)) in enumerate(zip(axes, rows.items(), strict=True)):
        show_image(line[0], image, None if row else "image and click")
        line[0].plot(*(point - 0.5).tolist(), "*", color="#F2D34B", markeredgecolor="black", markersize=13)
        line[0].text(-0.08, 0.5, name, transform=line[0].transAxes, rotation=90, ha="right", va="center")
        for k, ax in enumerate(line[1:]):
            ax.set_axis_off()
            if k < len(masks):
                show_image(ax, masks[k].float(), f"mask {k + 1}" if row or k == 0 else None)
    return figure


def show_masks(run: Run, models: Models) -> None:
    """The first test click, answered by each arm of the first seed."""
    found = {arm: answers(models[arm][0], arm) for arm in ARMS}
    test = models["min"][0].test
    prompts = clicks(test.masks[:, :, 0], torch.Generator().manual_seed(run.seeds[0]))
    rows = {ARMS[arm]: found[arm].masks[0, 0] for arm in ARMS}
    run.figure(
        "masks",
        partial(draw_masks, image=test.images[0], point=prompts.points[0, 0, 0], rows=rows),
        caption="One click on a digit that lies on a plate on a larger plate, and all masks that each network returns. With one "
        "mask, or with three that are all trained towards every annotation, the answer is a compromise; trained through the "
        "best one alone, the masks differ. First test image, networks of the first seed.",
        alt="Three rows of binary masks for one click on nested plates: one mask; three nearly equal masks; three masks "
        "of different extent.",
    )


# %%
def draw_ambiguity(style: Style, scores: Mapping[Arm, Sequence[float]], level_of: Tensor) -> Figure:
    figure, ((left, right),) = panels(1, 2, height=3.3, width_ratios=[1.25, 1])
    seed_bars(left, [*ARMS.values()], [scores[arm] for arm in ARMS])
    left.set(ylabel="IoU of the best mask", ylim=(0, 1))
    right.imshow(level_of.numpy(), vmin=0, vmax=1, cmap=style.sequential)
    for row in range(3):
        for column in range(3):
            value = level_of[row, column].item()
            right.text(
                column, row, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.55 else "white"
            )
    right.set_xticks(range(3), [f"mask {k + 1}" for k in range(3)])
    right.set_yticks(range(3), LEVELS)
    right.set_title("min loss, first seed: IoU")
    right.grid(False)
    return figure


def ambiguity(run: Run, preset: Preset, models: Models) -> None:
    experiment = run.experiment(
        "ambiguity",
        question="How much of what a click may mean do three masks find, and does it matter which of them the loss reaches?",
        data=f"{preset.images[0]:,} pictures of two nested groups, {SIDE} px, to train; {preset.images[1]} to test",
        parameters=count_parameters(models["min"][0].model),
        steps=preset.steps,
    )
    found = {arm: [answers(each, arm) for each in models[arm]] for arm in ARMS}
    scores = {arm: [best(each) for each in found[arm]] for arm in ARMS}
    for arm, label in ARMS.items():
        name, meaning = (
            f"best_iou_{arm}",
            f"{label.replace(chr(10), ' ')}: IoU of the best mask, mean over the annotations",
        )
        experiment.result(name, scores[arm], unit="", meaning=meaning)
    for arm in ("one", "mean"):
        gap = [a - b for a, b in zip(scores["min"], scores[arm], strict=True)]
        meaning = f"IoU that three masks with the min loss are ahead of {ARMS[arm].replace(chr(10), ' ')}"
        experiment.result(f"best_iou_gap_min_{arm}", gap, unit="", meaning=meaning)
    single = [chosen(a) - chosen(b) for a, b in zip(found["min"], found["one"], strict=True)]
    meaning = "IoU with a random annotation, the best rated of three masks minus the only mask of the arm with one"
    experiment.result("chosen_iou_gap_min_one", single, unit="", meaning=meaning)
    experiment.figure(
        "ambiguity",
        partial(draw_ambiguity, scores=scores, level_of=found["min"][0].iou.mean((0, 1))),
        caption="Left: for each of the three annotations of a click, the best of the masks that come out; dots are seeds. The "
        "networks have the same parameters. Right: what each of the three masks specialised in, without being told the levels.",
        alt="Left: bars of IoU for one mask, three masks with mean loss, three masks with min loss. Right: a grid of IoU, three "
        "masks against digit, inner plate and outer plate.",
    )


# %% [markdown]
# ## Ranking, boxes, more clicks, and images of another kind
# All with the arm *min*. Its rated IoU chooses one of the three masks. A box, or a click after a click, each in the larger of
# what is missed and what is too much, is answered by the fourth mask. To see what a box adds to a detector's output, the mask is
# compared with the filled box itself.


# %%
def rank_gap(found: Answers) -> float:
    """How much the best rated mask is ahead of a random one, in IoU with the annotation that fits it best."""
    quality = found.iou.amax(2)  # (N, 2, k), of each mask
    top = quality.gather(-1, found.rated.argmax(-1, keepdim=True))
    return (top.mean() - quality.mean()).item()


def by_clicks(trained: Trained) -> list[float]:
    """IoU with an annotation after 1, 2 and 3 clicks: the best rated mask, then the fourth, mean over annotations."""
    scores: list[list[float]] = []
    for level in range(3):
        generator, target = torch.Generator().manual_seed(trained.seed), trained.test.masks[:, :, level]
        prompts = clicks(trained.test.masks[:, :, 0], generator)
        masks, rated = segment(trained.model, trained.test.images, prompts)
        index = rated[:, :, LONE].argmax(-1)[..., None, None, None].expand(-1, -1, 1, SIDE, SIDE)
        found = masks.gather(2, index)[:, :, 0]
        scores.append([ious(found, target).mean().item()])
        for place in (1, 2):
            prompts = corrected(prompts, place, found, target, generator)
            found = segment(trained.model, trained.test.images, prompts)[0][:, :, JOINT]
            scores[-1].append(ious(found, target).mean().item())
    return [fmean(each) for each in zip(*scores, strict=True)]


def filled(boxes: Tensor) -> Tensor:
    """Masks (B, P, S, S) of boxes (B, P, 4)."""
    centre = torch.arange(SIDE) + 0.5
    x0, y0, x1, y1 = (each[..., None] for each in boxes.unbind(-1))
    across, down = (x0 <= centre) & (centre < x1), (y0 <= centre) & (centre < y1)
    return down[..., :, None] & across[..., None, :]


def by_box(trained: Trained) -> dict[str, list[float]]:
    """For each level IoU of the mask for a box, and of the filled box; boxes are a pixel off, as from a detector."""
    scores: dict[str, list[float]] = {"mask": [], "box": []}
    for level in range(3):
        target = trained.test.masks[:, :, level]
        prompts = box_prompts(target, torch.Generator().manual_seed(trained.seed))
        found = segment(trained.model, trained.test.images, prompts)[0][:, :, JOINT]
        scores["mask"].append(ious(found, target).mean().item())
        scores["box"].append(ious(filled(prompts.points[:, :, :2].flatten(2)), target).mean().item())
    return scores


def unseen(trained: Trained) -> float:
    """IoU of the best mask, as in `best`, on images of a kind that is not in training."""
    return best(answers(trained, test=nested("test", len(trained.test.images), trained.seed, unseen=True)))


def draw_prompts(
    style: Style, clicked: Sequence[Sequence[float]], boxed: Sequence[Mapping[str, list[float]]]
) -> Figure:
    figure, ((left, right),) = panels(1, 2, height=3.2)
    seed_lines(left, [1, 2, 3], clicked, "IoU", marker="o")
    left.set(xlabel="clicks", ylabel="IoU with the annotation", xticks=[1, 2, 3], ylim=(0, 1))
    for kind, label in (("mask", "mask for the box"), ("box", "the box, filled")):
        seed_lines(right, range(3), [each[kind] for each in boxed], label, marker="o", linestyle="none")
    right.set_xticks(range(3), LEVELS)
    right.set(title="prompted by a box", ylim=(0, 1), xlim=(-0.4, 2.4))
    right.legend(loc="lower right")
    return figure


def prompting(run: Run, preset: Preset, models: Models) -> None:
    trained = models["min"]
    experiment = run.experiment(
        "prompting",
        question="Do ratings rank the masks, and do boxes and more clicks say what is meant?",
        data=f"{preset.images[1]} test pictures, and as many of shapes, plates and a background that are not in training",
        parameters=count_parameters(trained[0].model),
        steps=preset.steps,
    )
    ranked = [rank_gap(answers(each)) for each in trained]
    meaning = "Best rated of three masks minus a random one, in IoU with the annotation that fits it best"
    experiment.result("rank_gap", ranked, unit="", meaning=meaning)
    clicked, boxed = [by_clicks(each) for each in trained], [by_box(each) for each in trained]
    for count in (1, 2, 3):
        values, meaning = [each[count - 1] for each in clicked], f"IoU with the annotation after {count} click(s)"
        experiment.result(f"iou_{count}_clicks", values, unit="", meaning=meaning)
    gain = [each[2] / each[0] for each in clicked]
    experiment.result("gain_3_clicks", gain, unit="x", meaning="IoU after three clicks over that after one")
    names = dict(zip(("digit", "inner", "outer"), range(3), strict=True))
    for name, level in names.items():
        gap = [each["mask"][level] - each["box"][level] for each in boxed]
        meaning = f"{LEVELS[level]}: IoU of the mask for a box minus that of the filled box"
        experiment.result(f"box_gap_{name}", gap, unit="", meaning=meaning)
    size = [each["mask"][2] - each["mask"][1] for each in boxed]
    meaning = "IoU of outer plates minus that of the smaller inner plates of the same shape, prompted by boxes"
    experiment.result("size_gap_plates", size, unit="", meaning=meaning)
    strange = [unseen(each) for each in trained]
    experiment.result("best_iou_unseen", strange, unit="", meaning="Best of three masks on images of an unseen kind")
    kept = [a / best(answers(each)) for a, each in zip(strange, trained, strict=True)]
    experiment.result("unseen_over_seen", kept, unit="x", meaning="The same, over that on images as in training")
    experiment.figure(
        "prompts",
        partial(draw_prompts, clicked=clicked, boxed=boxed),
        caption="Left: clicks after the first say which of the meanings is meant. Right: a box is a prompt too; what counts is "
        "the mask's lead over simply filling the box. The band, where it is wide enough to see, spans the seeds.",
        alt="Left: IoU over one to three clicks. Right: IoU for digit, inner and outer plate, of the mask for a box and of the "
        "filled box.",
    )


# %% [markdown]
# ## Without a prompt
# With no point at all the decoder still returns masks. Segmenting everything is done as in the paper: by a grid of clicks, and
# suppression among the masks that come out. What it returns has no names, and nothing says which masks matter. A rating
# foretells the IoU with an annotation that was drawn from three, so even a perfect mask earns little more than one half, and
# the least rating for the grid lies below that; the paper's is 0.88.


# %%
def unprompted(trained: Trained) -> float:
    """Mean IoU over all six annotations of an image of the best of the masks without a prompt."""
    N = len(trained.test.images)
    empty = Prompts(torch.zeros(N, 1, 3, 2), torch.full((N, 1, 3), NOTHING))
    masks, _ = segment(trained.model, trained.test.images, empty)
    return ious(masks[:, :, None, LONE], trained.test.masks[:, :, :, None]).amax(-1).mean().item()


def attainable(masks: Tensor) -> Tensor:
    """IoU (3,) of the true mask of each level with an annotation drawn from all three: masks (N, 2, 3, S, S)."""
    return ious(masks[:, :, :, None], masks[:, :, None]).mean((0, 1, 3))


def everything(trained: Trained, image: Tensor) -> Tensor:
    """Masks (n, S, S) of an image (1, 3, S, S) from a grid of 8 x 8 clicks, after suppression of boxes at an IoU of 0.7."""
    axis = (torch.arange(8) + 0.5) * SIDE / 8
    grid = torch.cartesian_prod(axis, axis)[None, :, None].expand(-1, -1, 3, -1)  # (1, 64, 3, 2)
    masks, rated = segment(
        trained.model, image, Prompts(grid, torch.tensor([INSIDE, NOTHING, NOTHING]).expand(1, 64, 3))
    )
    flat, scores = masks[0, :, LONE].flatten(0, 1), rated[0, :, LONE].flatten()  # (64, 3, ...) -> (192, ...)
    there = (scores > RATED) & flat.flatten(1).any(1)
    flat, scores = flat[there], scores[there]
    return flat[batched_nms(masks_to_boxes(flat), scores, torch.zeros(len(flat)), 0.7)] if len(flat) else flat


def missing_all(masks: Tensor, annotated: Tensor) -> float:
    """Part of the masks (n, S, S) that have an IoU below 0.5 with every annotation (m, S, S); 0 of none."""
    return (ious(masks[:, None], annotated[None]).amax(1) < 0.5).float().mean().item() if len(masks) else 0.0


def draw_everything(style: Style, image: Tensor, masks: Tensor, empty: Tensor) -> Figure:
    """An image (3, S, S), the outlines that a grid of clicks leads to, and three masks (3, S, S) without a prompt."""
    figure, axes = panels(1, 5, height=2.0)
    show_image(axes[0, 0], image, "image")
    show_image(axes[0, 1], image, "grid of clicks")
    for index, mask in enumerate(masks):
        axes[0, 1].contour(mask.numpy(), [0.5], colors=[style.cycle[index % len(style.cycle)]], linewidths=1.2)
    for k, ax in enumerate(axes[0, 2:]):
        show_image(ax, empty[k].float(), f"no prompt, {k + 1}")
    return figure


def no_prompt(run: Run, preset: Preset, models: Models) -> None:
    trained = models["min"]
    experiment = run.experiment(
        "no_prompt",
        question="What comes out without a prompt, and what does a grid of prompts cost?",
        data=f"{preset.images[1]} test pictures; the grid on the first 20 of them",
        parameters=count_parameters(trained[0].model),
        steps=preset.steps,
    )
    blank = [unprompted(each) for each in trained]
    meaning = "No prompt: IoU of the best of three masks, mean over the six annotations of an image"
    experiment.result("best_iou_no_prompt", blank, unit="", meaning=meaning)
    gap = [best(answers(each)) - value for each, value in zip(trained, blank, strict=True)]
    experiment.result("prompt_gap", gap, unit="", meaning="IoU of the best of three masks, with a click minus without")
    useless, left, slower = [], [], []
    for each in trained:
        images, annotated = each.test.images[:20], each.test.masks[:20].flatten(1, 2)
        kept = [everything(each, image[None]) for image in images]
        useless.append(fmean(missing_all(a, b) for a, b in zip(kept, annotated, strict=True)))
        left.append(fmean(map(len, kept)))
        click = clicks(each.test.masks[:1, :1, 0], torch.Generator().manual_seed(each.seed))
        grid = timed(partial(everything, each, images[:1]), repeats=5).median
        slower.append(grid / timed(partial(segment, each.model, images[:1], click), repeats=5).median)
    meaning = "Part of the masks from a grid of clicks, after suppression, that no annotation of the image matches"
    experiment.result("unmatched_masks_of_grid", useless, unit="", meaning=meaning)
    meaning = "Masks of an image that are left of the 192 from a grid of clicks, after rating and suppression"
    experiment.result("masks_of_grid", left, unit="", meaning=meaning)
    worth = [attainable(each.test.masks).mean().item() for each in trained]
    meaning = "IoU of a true mask with an annotation drawn from three: what a perfect mask should be rated on average"
    experiment.result("attainable_rating", worth, unit="", meaning=meaning)
    meaning = "Time of the grid and its suppression over that of one prompt, image encoded in both"
    experiment.result("grid_time_over_click", slower, unit="x", meaning=meaning)
    first = trained[0]
    empty = Prompts(torch.zeros(1, 1, 3, 2), torch.full((1, 1, 3), NOTHING))
    blank_masks = segment(first.model, first.test.images[:1], empty)[0][0, 0]
    experiment.figure(
        "no_prompt",
        partial(
            draw_everything,
            image=first.test.images[0],
            masks=everything(first, first.test.images[:1]),
            empty=blank_masks[LONE],
        ),
        caption="Segmenting everything takes a grid of clicks and a suppression of duplicates. The outlines are what is left of "
        f"192 masks: those rated {RATED} or more, where a perfect mask would on average be rated {fmean(worth):.2f}; none has "
        "a name. To the right, the masks that the decoder returns without any prompt.",
        alt="A picture with two nested groups; the same with outlines of many masks; three masks that came out without a prompt.",
    )


# %% [markdown]
# ## An image is expensive, a prompt is not
# The published architectures on the meta device, which knows shapes but holds no values: multiply-accumulates (MACs) of one image
# of 1024 px and of one prompt. The encoder of SAM 2 (Hiera-B+) stands beside them. Times are measured with ViT-B on a smaller
# image, since its encoder alone would take a core a dozen seconds at full size; that makes the encoder *lighter* than it is.


# %%
VITS: Mapping[str, tuple[int, int, int]] = {"vit_b": (768, 12, 12), "vit_l": (1024, 24, 16), "vit_h": (1280, 32, 16)}
VIT_NAMES = {"vit_b": "ViT-B", "vit_l": "ViT-L", "vit_h": "ViT-H"}


def published(name: str, side: int = 1024) -> Any:
    """SAM of `VITS` without trained weights, on the device that torch builds on."""
    width, layers, heads = VITS[name]
    whole = [layers * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]  # blocks without windows
    shape: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    vision = SamVisionConfig(**shape, global_attn_indexes=whole, image_size=side)
    config = SamConfig(vision_config=vision.to_dict(), prompt_encoder_config={"image_size": side})
    return SamModel(config).eval().requires_grad_(False)


def gmacs(call: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops()) / 2e9


def counted(name: str) -> tuple[float, float, float]:
    """GMACs of the image encoder and of one more prompt, and millions of parameters of the encoder."""
    with torch.device("meta"):
        model = published(name)
        encoder = gmacs(lambda: model.get_image_embeddings(torch.empty(1, 3, 1024, 1024)))
        embedding = torch.empty(1, 256, 64, 64)
        point = {"input_points": torch.empty(1, 1, 1, 2), "input_labels": torch.ones(1, 1, 1, dtype=torch.long)}
        decoder = gmacs(lambda: model(image_embeddings=embedding, **point))
    return encoder, decoder, count_parameters(model.vision_encoder) / 1e6


def counted_sam2() -> float:
    """GMACs of the image encoder of SAM 2 with Hiera-B+, at 1024 px."""
    widths, heads = [112, 224, 448, 896], [2, 4, 8, 16]
    hiera = Sam2HieraDetConfig(
        hidden_size=112, num_attention_heads=2, blocks_per_stage=[2, 3, 16, 3], embed_dim_per_stage=widths,
        num_attention_heads_per_stage=heads, global_attention_blocks=[12, 16, 20],
        window_positional_embedding_background_size=[14, 14],
    )  # fmt: skip
    config = Sam2VisionConfig(backbone_config=hiera.to_dict(), backbone_channel_list=widths[::-1])
    with torch.device("meta"):
        model = Sam2VisionModel(config).eval().requires_grad_(False)
        return gmacs(lambda: model(torch.empty(1, 3, 1024, 1024)))


@torch.inference_mode()
def seconds(run: Run, preset: Preset) -> tuple[list[float], list[float]]:
    """Seconds of ViT-B's encoder and of one prompt, on the device of the run, one value for each seed."""
    side = preset.vit_side
    model = published("vit_b", side).to(run.device)
    image = torch.rand(1, 3, side, side, device=run.device)
    embedding = model.get_image_embeddings(image)
    point = torch.full((1, 1, 1, 2), side / 2, device=run.device)
    encode, decode = [], []
    for _ in run.seeds:
        one = timed(partial(model.get_image_embeddings, image), repeats=preset.timed, warmup=0, device=run.device)
        call = partial(model, image_embeddings=embedding, input_points=point)
        encode.append(one.median / 1e3)
        decode.append(timed(call, repeats=5, warmup=1, device=run.device).median / 1e3)
    return encode, decode


def draw_cost(style: Style, counts: Mapping[str, tuple[float, float, float]]) -> Figure:
    figure, ((left, right),) = panels(1, 2, height=3.2)
    for offset, label, index in ((-0.2, "image, once", 0), (0.2, "each prompt", 1)):
        left.bar(np.arange(3) + offset, [each[index] for each in counts.values()], 0.38, label=label)
    left.set_xticks(range(3), [VIT_NAMES[name] for name in counts])
    left.set(yscale="log", ylabel="GMACs", ylim=(1, 5e4))
    left.legend(loc="upper left")
    left.grid(False, axis="x")
    prompts = np.arange(1, 65)
    encoder, decoder, _ = counts["vit_h"]
    right.plot(prompts, prompts * (encoder + decoder) / 1e3, "--", label="encoded anew for each prompt")
    right.plot(prompts, (encoder + prompts * decoder) / 1e3, label="encoded once")
    right.set(title="ViT-H", xlabel="prompts for one image", ylabel="TMACs", yscale="log", ylim=(1, 2e3))
    right.legend(loc="upper left")
    return figure


def cost(run: Run, preset: Preset) -> None:
    experiment = run.experiment(
        "cost",
        question="What does an image cost, and what a further prompt?",
        data=f"The published architectures at 1024 px, counted; SAM ViT-B at {preset.vit_side} px, timed",
    )
    counts = {name: counted(name) for name in VITS}
    for name, (encoder, decoder, _) in counts.items():
        of = VIT_NAMES[name]
        experiment.result(f"encoder_gmacs_{name}", [encoder], unit="GMAC", meaning=f"Image encoder of {of}", exact=True)
        share, meaning = [decoder / encoder], f"MACs of one prompt over those of the encoder {of}"
        experiment.result(f"prompt_over_encoder_{name}", share, unit="", meaning=meaning, exact=True)
    meaning = "MACs of one prompt and mask, the same for all sizes"
    experiment.result("prompt_gmacs", [counts["vit_h"][1]], unit="GMAC", meaning=meaning, exact=True)
    ratio, meaning = [counts["vit_h"][0] / counted_sam2()], "MACs of the encoder ViT-H over those of SAM 2's Hiera-B+"
    experiment.result("vit_h_over_sam2", ratio, unit="x", meaning=meaning, exact=True)
    encode, decode = seconds(run, preset)
    meaning = f"Time of the image encoder ViT-B at {preset.vit_side} px"
    experiment.result("seconds_encoder", encode, unit="s", meaning=meaning)
    experiment.result("seconds_prompt", decode, unit="s", meaning="Time of one prompt on the same embedding")
    times = [a / b for a, b in zip(encode, decode, strict=True)]
    experiment.result(
        "encoder_over_prompt_time", times, unit="x", meaning="Time of the encoder over that of one prompt"
    )
    experiment.figure(
        "cost",
        partial(draw_cost, counts=counts),
        caption="Left: MACs of the image encoder and of one prompt, at 1024 px; the axis is logarithmic. Right: what a number of "
        "prompts for one image costs with ViT-H, if the embedding is kept and if it is not.",
        alt="Left: pairs of bars on a logarithmic axis for ViT-B, L and H, with the prompt far below the image. Right: two "
        "curves over the number of prompts; encoding once stays almost flat.",
    )


# %% [markdown]
# ## What a mask at a quarter of the resolution can show
# The published decoder predicts masks at a quarter of the input's sides and enlarges them bilinearly. For strokes of several
# widths, the low-resolution logits are fitted to the truth directly, by gradient descent: no decoder can be much better.


# %%
WIDTHS = (1, 2, 3, 4, 6, 8, 12)  # of a stroke in pixels of the input


def strokes(width: float, seed: int, count: int = 16, side: int = 128) -> Tensor:
    """Masks (count, side, side) of rings of this width with random places and radii."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] + 0.5
    places = zip(
        *rng.uniform(0.4 * side, 0.6 * side, (2, count)), rng.uniform(0.2 * side, 0.35 * side, count), strict=True
    )
    return torch.from_numpy(np.stack([abs(np.hypot(x - a, y - b) - r) < width / 2 for a, b, r in places]))


def ceiling(target: Tensor, steps: int) -> float:
    """IoU of the best mask (n, S, S) that logits at S / 4, enlarged bilinearly, are found to give."""
    truth = target[:, None].float()
    low = (2 * functional.avg_pool2d(truth, 4) - 1).requires_grad_()
    optimizer = torch.optim.Adam([low], lr=0.3)
    for _ in range(steps):
        logits = functional.interpolate(low, scale_factor=4, mode="bilinear", align_corners=False)
        p = logits.sigmoid()
        dice = 1 - 2 * (p * truth).sum((1, 2, 3)) / (p + truth).sum((1, 2, 3))
        optimizer.zero_grad()
        (functional.binary_cross_entropy_with_logits(logits, truth) + dice.mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = functional.interpolate(low.detach(), scale_factor=4, mode="bilinear", align_corners=False)[:, 0] > 0
    return ious(found, target).mean().item()


def draw_ceiling(style: Style, limits: Sequence[Sequence[float]]) -> Figure:
    figure, ((ax,),) = panels(1, 1, height=2.8)
    seed_lines(ax, WIDTHS, limits, "best possible", marker="o")
    ax.axvline(4, color=style.muted, linestyle=":")
    ax.text(4.1, 0.05, "one pixel of the predicted mask", color=style.muted)
    ax.set(xlabel="width of the stroke (px of the input)", ylabel="IoU", ylim=(0, 1), xticks=WIDTHS)
    return figure


def fine_structures(run: Run, preset: Preset) -> None:
    experiment = run.experiment(
        "fine_structures",
        question="How well can a mask at a quarter of the resolution follow a thin structure?",
        data="16 rings for each width, 128 px; masks of 32 px fitted to them and enlarged",
        steps=preset.fits,
    )
    limits = [[ceiling(strokes(width, seed), preset.fits) for width in WIDTHS] for seed in run.seeds]
    for width in (1, 12):
        values, meaning = [each[WIDTHS.index(width)] for each in limits], f"Best possible IoU of strokes of {width} px"
        experiment.result(f"ceiling_iou_{width}px", values, unit="", meaning=meaning)
    experiment.figure(
        "ceiling",
        partial(draw_ceiling, limits=limits),
        caption="IoU of the best mask that low-resolution logits can hold, for rings of several widths. Strokes thinner than a "
        "pixel of the predicted mask are lost, however good the network.",
        alt="A curve of the best possible IoU that rises with the width of the stroke, lowest at one pixel.",
    )


# %% [markdown]
# ## Unlike the paper
#
# - The image encoder is a convolutional stem with one transformer block, at a stride of 4 instead of 16, trained from scratch
#   on a few thousand pictures instead of SA-1B. This tests mechanisms and says nothing about published accuracies.
# - Training clicks against errors are drawn against the whole group and against the digit, not against the model's own masks, and
#   masks are not fed back as prompts. The decoder has no last attention from tokens to image.
# - The paper adds the loss of the rated IoU with a weight of 1 as well; focal loss here has no class balance.
# - Masks are predicted at the resolution of the image, so that the ceiling of the last experiment does not enter the others.
# - The automatic grid has 8 x 8 clicks instead of 32 x 32, and keeps masks by rated IoU alone, from a lower rating on, without
#   stability and crops. No lone click beside a digit is in training: nothing teaches the model to rate its masks low.


# %%
def main(argv: Sequence[str] | None = None) -> None:
    run = Run.start("sam", argv=argv)
    if run.settings.weights == "pretrained":
        raise SystemExit("This example trains its own small network; published sizes are only counted and timed.")
    preset = PRESETS[run.preset]
    jobs = [(arm, seed) for arm in ARMS for seed in run.seeds]
    trained = {(arm, seed): train(arm, preset, seed, run.device) for arm, seed in run.progress(jobs, what="training")}
    models: Models = {arm: [trained[arm, seed] for seed in run.seeds] for arm in ARMS}
    show_masks(run, models)
    ambiguity(run, preset, models)
    prompting(run, preset, models)
    no_prompt(run, preset, models)
    cost(run, preset)
    fine_structures(run, preset)
    run.finish()


if __name__ == "__main__":
    main()
