# %% [markdown]
# # Improved Mask R-CNN: what do better boxes, scores and outlines each add to the same features?
#
# Three repairs of Mask R-CNN on scenes of digits: points that refine a coarse mask, box heads in a row, and a head that
# scores the mask. In each experiment all heads share one trained backbone, so only the heads differ.
#
# | symbol (card) | here | meaning |
# |---|---|---|
# | $u^t$ | `STAGES` | least IoU with the true box from which stage $t$ learns |
# | $f_t$, $b^t$ | `regress`, `boxes` | box regressor of stage $t$, and the boxes that go into it, (R, 4) xyxy pixels |
# | $N$ | `POINTS` | points that are decided anew after each enlargement of the mask |
# | $s_{cls}$, $s_{iou}$ | `confidence`, `estimate` | score of the class; estimated IoU of the mask |

# %%
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from lab.data import SPLITS, Split
from lab.data.digits import digits
from lab.data.scenes import make_scenes
from lab.figures import DARK, Style, draw_boxes, panels, seed_lines, show_image
from lab.metrics import timed
from lab.run import Run
from lab.training import count_parameters, fit, seed_everything
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection
from torchvision.ops import roi_align

CANVAS, CROP, COARSE, POINTS, CLASSES = 64, 56, 7, 14**2, 10  # pixels; sides of crop and first mask; N; K
STAGES = {"first": 0.5, "second": 0.6, "third": 0.7}  # u of each stage of the cascade
ALONE = {"strict": 0.7, "large": 0.5}  # heads that stand alone; "first" does so too
SIZES = {"below 20": (0, 20), "20 to 32": (20, 32), "above 32": (32, 99)}  # longer side in pixels
FLOOR = ("mask IoU", 0.5)  # below it a training counts as failed
GRIDS, CEILING_SIZES = (7, 14, 28, 56), (14, 28, 56, 112, 224)


@dataclass(frozen=True)
class Preset:
    """Scenes of the three splits, steps, crops and scenes of a batch, channels of the two box backbones, repeats."""

    counts: tuple[int, int, int] = (600, 100, 160)
    steps: int = 300
    crops: int = 24
    scenes: int = 8
    widths: tuple[int, int] = (24, 48)
    repeats: int = 10


PRESETS = {
    "smoke": Preset((16, 8, 12), steps=2, crops=8, scenes=4, widths=(8, 12), repeats=1),
    "quick": Preset(),
    "full": Preset((8000, 500, 1000), steps=8000, crops=64, scenes=32, widths=(32, 96), repeats=30),
}

# %% [markdown]
# ## Objects and loose boxes
# Real digits of ten to 44 pixels on photographs, some of them partly hidden. A proposal is a true box, shifted and scaled
# at random, so that its overlap with the object spreads from poor to perfect.


# %%
@dataclass(frozen=True)
class Objects:
    """images (S, 3, H, W); for each of M objects its scene (M,), box (M, 4), visible mask (M, H, W), label (M,)."""

    images: Tensor
    scene: Tensor
    boxes: Tensor
    masks: Tensor
    labels: Tensor


def objects(split: Split, preset: Preset, seed: int, device: torch.device) -> Objects:
    """All objects of the scenes of a split."""
    count = preset.counts[SPLITS.index(split)]
    found = make_scenes(split, count, seed=seed, canvas=CANVAS, objects=(1, 4), size=(10, 44), classes=CLASSES)
    scene = torch.repeat_interleave(torch.arange(count), torch.tensor([len(each) for each in found.boxes]))
    parts = (found.images, scene, torch.cat(found.boxes), torch.cat(found.masks).float(), torch.cat(found.labels))
    return Objects(*(part.to(device) for part in parts))


def jitter(boxes: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Boxes (R, 4) xyxy, shifted and scaled by normal noise of a strength drawn up to `most` for each."""
    strength = most * torch.rand(len(boxes), 1, generator=generator)
    noise = (strength * torch.randn(len(boxes), 4, generator=generator)).clamp(-0.7, 0.7).to(boxes.device)
    sides = boxes[:, 2:] - boxes[:, :2]
    centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2 + noise[:, :2] * sides, sides * noise[:, 2:].exp()
    return torch.cat([centre - sides / 2, centre + sides / 2], 1)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (R,) of each box of a (R, 4) with the one of b (R, 4) in the same row."""
    inner = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    return inner / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inner)


def crop(maps: Tensor, rows: Tensor, boxes: Tensor, side: int, scale: float = 1.0) -> Tensor:
    """RoIAlign: maps (S, C, H, W), for each box the row of its map -> (R, C, side, side)."""
    regions = torch.cat([rows[:, None].to(boxes.dtype), boxes], 1)
    cut: Tensor = roi_align(maps, regions, side, spatial_scale=scale, sampling_ratio=2, aligned=True)
    return cut


# %% [markdown]
# ## Outlines: points instead of a grid
# A coarse mask is doubled again and again; after each step the $N$ cells whose logit is nearest to zero are decided anew
# by a small network, from the fine features at their centre and the coarse prediction there (Section 3 of
# arXiv:1912.08193). The rival is a head of Mask R-CNN's kind, with a grid of 28 x 28. It costs more than the points alone, and
# less than the points with the coarse mask that they start from; the experiment counts all three.


# %%
def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values (B, P, C) of maps (B, C, H, W) at points (B, P, 2), x and y from 0 to 1."""
    read = functional.grid_sample(maps.float(), 2 * points[:, :, None] - 1, align_corners=False)
    return read.squeeze(-1).transpose(1, 2)  # (B, C, P, 1) -> (B, P, C)


def uncertain(logits: Tensor, count: int) -> Tensor:
    """Indices (B, count) of the logits (B, P) nearest to zero."""
    return logits.abs().topk(min(count, logits.shape[1]), largest=False).indices


def centres(cells: Tensor, side: int) -> Tensor:
    """Centres (B, P, 2), x and y from 0 to 1, of cells (B, P) of a grid, counted row by row."""
    return (torch.stack([cells % side, cells // side], -1) + 0.5) / side


def decisions(side: int, points: int, start: int = COARSE) -> int:
    """Points that refinement decides on its way from a grid of `start` cells a side to one of `side`."""
    return 0 if side <= start else min(points, side**2) + decisions(side // 2, points, start)


def mask_ious(predicted: Tensor, crops: Tensor, area: Tensor) -> Tensor:
    """IoU (R,) of masks (R, 1, h, w) with the whole object, whose area in cells of the crop is given (R,)."""
    hit, inside = (predicted > 0).float(), (crops >= 0.5).float()
    inner = (hit * inside).sum((1, 2, 3))
    return inner / (hit.sum((1, 2, 3)) + torch.maximum(area, inside.sum((1, 2, 3))) - inner).clamp(min=1)


class MaskNet(nn.Module):
    """Crops (B, 3, 56, 56) -> three kinds of mask, the class, and an estimate of the IoU of the 28 x 28 mask."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(*layer(3, 16, 2), *layer(16, 16, 1))  # 28 x 28
        self.middle = nn.Sequential(*layer(16, 32, 2))  # 14 x 14
        self.deep = nn.Sequential(*layer(32, 48, 2), *layer(48, 48, 1))  # 7 x 7
        self.coarse = nn.Conv2d(48, 1, 1)
        up = nn.ConvTranspose2d(40, 40, 2, 2)
        self.grid = nn.Sequential(nn.Conv2d(32, 40, 3, padding=1), nn.ReLU(), up, nn.ReLU(), nn.Conv2d(40, 1, 1))
        self.point = nn.Sequential(nn.Linear(17, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
        self.classify = nn.Sequential(nn.Flatten(), nn.Linear(48 * COARSE**2, CLASSES))
        score = [nn.Conv2d(33, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * COARSE**2, 64), nn.ReLU()]
        self.score = nn.Sequential(*score, nn.Linear(64, 1))

    def decide(self, fine: Tensor, coarse: Tensor, points: Tensor) -> Tensor:
        """Logits (B, P) at points (B, P, 2)."""
        logits: Tensor = self.point(torch.cat([sample(fine, points), sample(coarse, points)], -1)).squeeze(-1)
        return logits

    def refine(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The mask (B, 1, 56, 56), and the cells (B, P) chosen after each enlargement."""
        mask, chosen = coarse.float(), []
        while (side := 2 * mask.shape[-1]) <= CROP:
            mask = functional.interpolate(mask, scale_factor=2, mode="bilinear")
            chosen.append(uncertain(mask.flatten(1), POINTS))
            logits = self.decide(fine, coarse, centres(chosen[-1], side)).float()
            mask = mask.flatten(1).scatter(1, chosen[-1], logits).view_as(mask)
        return mask, chosen

    def estimate(self, middle: Tensor, grid: Tensor) -> Tensor:
        """Estimated IoU (B,) of the mask with the object, a regression without bounds (Section 3.2 of arXiv:1903.00241)."""
        seen = functional.max_pool2d(grid.sigmoid(), 2).to(middle.dtype)
        result: Tensor = self.score(torch.cat([middle, seen], 1).detach()).squeeze(1)
        return result

    def forward(self, crops: Tensor) -> tuple[Tensor, ...]:
        fine = self.fine(crops)
        middle = self.middle(fine)
        deep = self.deep(middle)
        grid = self.grid(middle)
        return fine, self.coarse(deep), grid, self.classify(deep), self.estimate(middle, grid)


def layer(ins: int, outs: int, stride: int) -> list[nn.Module]:
    """A 3 x 3 convolution with its norm."""
    return [nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs), nn.ReLU()]


def training_points(coarse: Tensor) -> Tensor:
    """Three quarters of the points (B, N, 2) where the mask is uncertain, of three times as many; the rest anywhere."""
    candidates = torch.rand(len(coarse), 3 * POINTS, 2, device=coarse.device)
    best = uncertain(sample(coarse.detach(), candidates).squeeze(-1), POINTS * 3 // 4)
    chosen = candidates.gather(1, best[..., None].expand(-1, -1, 2))
    return torch.cat([chosen, torch.rand(len(coarse), POINTS // 4, 2, device=coarse.device)], 1)


def crop_area(data: Objects, rows: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Area (R,) of whole objects, in cells of a crop of side x side."""
    return data.masks[rows].sum((1, 2)) * side**2 / (boxes[:, 2:] - boxes[:, :2]).prod(1)


def mask_loss(model: nn.Module, crops: Tensor, target: Tensor, labels: Tensor, area: Tensor) -> Tensor:
    """Sum of the losses of all heads; target (B, 1, 56, 56) is the mask inside the box."""
    fine, coarse, grid, classes, estimate = model(crops)
    bce = functional.binary_cross_entropy_with_logits
    loss = bce(coarse.float(), functional.adaptive_avg_pool2d(target, COARSE))
    small = functional.adaptive_avg_pool2d(target, grid.shape[-1])
    loss = loss + bce(grid.float(), small) + functional.cross_entropy(classes.float(), labels)
    points = training_points(coarse)
    loss = loss + bce(model.decide(fine, coarse, points).float(), sample(target, points).squeeze(-1))  # type: ignore[operator]
    return loss + functional.mse_loss(estimate.float(), mask_ious(grid.detach(), small, area))


def train_masks(preset: Preset, data: Objects, seed: int) -> MaskNet:
    """All heads at once, on crops of slightly wrong boxes."""
    generator = torch.Generator().manual_seed(seed)

    def batch(step: int) -> tuple[Tensor, ...]:
        rows = torch.randint(len(data.boxes), (preset.crops,), generator=generator).to(data.boxes.device)
        boxes = jitter(data.boxes[rows], 0.2, generator)
        images, masks = crop(data.images, data.scene[rows], boxes, CROP), crop(data.masks[:, None], rows, boxes, CROP)
        return images, masks, data.labels[rows], crop_area(data, rows, boxes, CROP // 2)

    seed_everything(seed)
    model = MaskNet()
    fit(model, batch, mask_loss, steps=preset.steps, learning_rate=3e-3, device=data.images.device)
    return model


# %% [markdown]
# ## Boxes: heads in a row
# $f = f_T \circ \dots \circ f_1$: each stage starts from the boxes of the stage before, and learns from those of them that
# overlap the object by $u^t$ or more (Section 4 of arXiv:1712.00726). Stage one is also a whole detector's usual head.
# Two heads stand alone: one with the threshold of the last stage, one that is three times as wide as a stage.


# %%
class BoxNet(nn.Module):
    """Backbone of stride four, and box heads on 7 x 7 crops of its features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*layer(3, width // 2, 2), *layer(width // 2, width, 2), *layer(width, width, 1))
        self.heads = nn.ModuleDict({name: self.head(width, 192 if name == "large" else 64) for name in STAGES | ALONE})

    @staticmethod
    def head(width: int, hidden: int) -> nn.Module:
        inner = [nn.Linear(width * 49, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
        return nn.Sequential(nn.Flatten(), *inner, nn.Linear(hidden, 4))

    def deltas(self, name: str, features: Tensor, scene: Tensor, boxes: Tensor) -> Tensor:
        """What a head predicts (R, 4)."""
        predicted: Tensor = self.heads[name](crop(features, scene, boxes, 7, 1 / 4)).float()
        return predicted

    def regress(self, name: str, features: Tensor, scene: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (R, 4) corrected by a head."""
        corrected: Tensor = decode(self.deltas(name, features, scene, boxes) / scales(name, boxes), boxes)
        return corrected


def scales(name: str, boxes: Tensor) -> Tensor:
    """Factors of the four deltas; a later stage corrects less, so its deltas are magnified more."""
    stage = 1 + list(STAGES).index(name) if name in STAGES else 1
    return stage * torch.tensor([10.0, 10.0, 5.0, 5.0], device=boxes.device)


def encode(boxes: Tensor, truth: Tensor) -> Tensor:
    """Shift in units of the box, and logarithm of the growth: (R, 4)."""
    sides, wanted = boxes[:, 2:] - boxes[:, :2], truth[:, 2:] - truth[:, :2]
    shift = (truth[:, :2] + truth[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2 / sides
    return torch.cat([shift, (wanted / sides).log()], 1)


def decode(deltas: Tensor, boxes: Tensor) -> Tensor:
    """The inverse of `encode`."""
    sides = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + deltas[:, :2].clamp(-2, 2) * sides
    sides = sides * deltas[:, 2:].clamp(-2, 2).exp()
    return torch.cat([centre - sides / 2, centre + sides / 2], 1)


def box_loss(model: nn.Module, images: Tensor, scene: Tensor, boxes: Tensor, truth: Tensor) -> Tensor:
    """L_loc of all heads, each on boxes above its own threshold; a stage gets the boxes of the stage before."""
    features, start = model.backbone(images), boxes  # type: ignore[operator]
    total: Tensor = features.new_zeros(())
    for name, threshold in (STAGES | ALONE).items():
        at = boxes if name in STAGES else start
        deltas, scale = model.deltas(name, features, scene, at), scales(name, at)  # type: ignore[operator]
        each = functional.smooth_l1_loss(deltas, encode(at, truth) * scale, reduction="none").sum(1)
        hit = (paired_iou(at, truth) >= threshold).float()
        total = total + (each * hit).sum() / hit.sum().clamp(min=1)
        boxes = decode(deltas.detach() / scale, at) if name in STAGES else boxes
    return total


def train_boxes(preset: Preset, data: Objects, seed: int, width: int) -> BoxNet:
    """Four loose boxes for each object of a batch of scenes."""
    generator, scenes = torch.Generator().manual_seed(seed), len(data.images)

    def batch(step: int) -> tuple[Tensor, ...]:
        chosen = torch.randperm(scenes, generator=generator)[: preset.scenes].to(data.scene.device)
        place, rows = (chosen[:, None] == data.scene).nonzero(as_tuple=True)
        place, truth = place.repeat(4), data.boxes[rows].repeat(4, 1)
        return data.images[chosen], place, jitter(truth, 0.35, generator), truth

    seed_everything(seed)
    model = BoxNet(width)
    fit(model, batch, box_loss, steps=preset.steps, learning_rate=2e-3, device=data.images.device)
    return model


@dataclass(frozen=True)
class Trained:
    """What one seed leaves: networks, test objects, and loose boxes with the row (R,) of their object."""

    masks: MaskNet
    boxes: tuple[BoxNet, BoxNet]
    data: Objects
    rows: Tensor
    loose: Tensor


def train_all(run: Run, preset: Preset) -> list[Trained]:
    """One mask network and two box networks, narrow and wide, for each seed."""
    trained = []
    for seed in run.progress(run.seeds, what="training"):
        data, test = (objects(split, preset, seed, run.device) for split in ("train", "test"))
        narrow, wide = (train_boxes(preset, data, seed, width) for width in preset.widths)
        rows = torch.arange(len(test.boxes), device=run.device).repeat(4)
        loose = jitter(test.boxes[rows], 0.35, torch.Generator().manual_seed(seed))
        trained.append(Trained(train_masks(preset, data, seed), (narrow, wide), test, rows, loose))
    return trained


# %% [markdown]
# ## Experiment: outlines from points and from a grid
# Masks in the true boxes, in the pixels of the image. Boundary IoU compares only the outermost pixels of both masks
# (arXiv:2103.16562, with a width of one pixel).


# %%
def rim(mask: Tensor) -> Tensor:
    """The pixels of a mask (H, W) that touch its outside."""
    inside = -functional.max_pool2d(-functional.pad(mask[None, None].float(), (1, 1, 1, 1)), 3, 1)
    return mask & (inside[0, 0] == 0)


def iou(a: Tensor, b: Tensor) -> float:
    """IoU of two boolean masks."""
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


def pasted(logits: Tensor, height: int, width: int) -> Tensor:
    """A mask (1, g, g) of logits as pixels (height, width) of its box."""
    resized = functional.interpolate(logits[None], (height, width), mode="bilinear", antialias=True)
    return resized[0, 0] > 0


def outline_quality(trained: Trained) -> dict[str, Tensor]:
    """By arm, mask IoU and boundary IoU of each test object (M, 2), on the CPU."""
    data, rows = trained.data, torch.arange(len(trained.data.boxes), device=trained.data.boxes.device)
    with torch.no_grad():
        fine, coarse, grid, _, _ = trained.masks(crop(data.images, data.scene, data.boxes, CROP))
        made = {"coarse": coarse, "grid": grid, "points": trained.masks.refine(fine, coarse)[0]}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for row in rows.tolist():
        left, top, right, bottom = data.boxes[row].int().tolist()
        truth = data.masks[row, top:bottom, left:right].bool().cpu()
        for name, logits in made.items():
            mask = pasted(logits[row].float().cpu(), bottom - top, right - left)
            found[name].append((iou(mask, truth), iou(rim(mask), rim(truth))))
    return {name: torch.tensor(values) for name, values in found.items()}


def by_size(values: Tensor, boxes: Tensor) -> list[float]:
    """Mean of values (M,) for the objects of each of `SIZES`."""
    longer = (boxes[:, 2:] - boxes[:, :2]).amax(1).cpu()
    return [float(values[(longer >= low) & (longer < high)].mean().nan_to_num()) for low, high in SIZES.values()]


def macs(module: Callable[..., object], *shapes: tuple[int, ...], device: str = "meta") -> float:
    """Multiplications with additions for inputs of these shapes."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*(torch.zeros(shape, device=device) for shape in shapes))
    return float(counter.get_total_flops()) / 2


def head_macs() -> dict[str, float]:
    """MACs per object, in millions, on top of the shared features; reading them at the points is not counted."""
    with torch.device("meta"):
        model = MaskNet().eval()
    first = macs(model.deep, (1, 32, 14, 14)) + macs(model.coarse, (1, 48, 7, 7))  # the points need the coarse mask
    point = macs(model.point, (1, 17))
    cells = {"points": decisions(CROP, POINTS), "dense": CROP**2}
    counted = {"grid": macs(model.grid, (1, 32, 14, 14)), "coarse": first} | {k: point * n for k, n in cells.items()}
    return {name: value / 1e6 for name, value in counted.items()}


ARMS = {"coarse": "7 x 7, enlarged", "grid": "28 x 28", "points": "7 x 7 and points"}
Quality = Sequence[Mapping[str, Tensor]]


def draw_outlines(style: Style, quality: Quality, trained: Sequence[Trained]) -> Figure:
    figure, (axes,) = panels(1, 2, height=3.0, sharey=True)
    for ax, column, title in zip(axes, (0, 1), ("mask IoU", "boundary IoU"), strict=True):
        for name, marker in zip(ARMS, "sod", strict=True):
            pairs = zip(quality, trained, strict=True)
            values = [by_size(each[name][:, column], one.data.boxes) for each, one in pairs]
            seed_lines(ax, range(3), values, ARMS[name], marker=marker, markersize=5)
        ax.set_xticks(range(3), list(SIZES))
        ax.set(title=title, xlabel="longer side of the object in pixels", xlim=(-0.3, 2.3), ylim=(0, 1))
    axes[0].legend()
    return figure


def compare_outlines(run: Run, preset: Preset, trained: Sequence[Trained]) -> None:
    experiment = run.experiment(
        "outlines",
        question="Do points on the outline draw it better than a 28 x 28 grid, and what do both cost?",
        data=f"digits of 10 to 44 px in {preset.counts[2]} test scenes, true boxes",
        parameters=count_parameters(trained[0].masks),
        steps=preset.steps,
        floor=FLOOR,
    )
    quality = [outline_quality(each) for each in trained]
    experiment.check_floor(*([float(each[name][:, 0].mean()) for each in quality] for name in ARMS))
    for column, key in enumerate(("mask", "boundary")):
        means = {name: [float(each[name][:, column].mean()) for each in quality] for name in ARMS}
        for name, values in means.items():
            experiment.result(f"{key}_iou_{name}", values, unit="", meaning=f"{key} IoU, {ARMS[name]}")
        for rival in ("coarse", "grid"):
            gain = [a - b for a, b in zip(means["points"], means[rival], strict=True)]
            experiment.result(
                f"{key}_points_over_{rival}", gain, unit="", meaning=f"{key} IoU, points minus {ARMS[rival]}"
            )
    gaps = [
        by_size(each["points"][:, 1] - each["grid"][:, 1], one.data.boxes)
        for each, one in zip(quality, trained, strict=True)
    ]
    for place, key in enumerate(("small", "medium", "large")):
        meaning = f"boundary IoU, points minus 28 x 28, objects of {list(SIZES.values())[place]} px"
        experiment.result(f"boundary_points_{key}", [gap[place] for gap in gaps], unit="", meaning=meaning)
    counted = head_macs()
    parts = {"grid": "28 x 28 head", "coarse": "layers of the coarse mask", "points": "points without the coarse mask"}
    for name, meaning in (parts | {"dense": "the point network on every cell"}).items():
        experiment.result(f"macs_{name}", [counted[name]], unit="M", meaning=f"MACs per object, {meaning}", exact=True)
    both = (counted["coarse"] + counted["points"]) / counted["grid"]
    said = "MACs of coarse mask and points over those of the 28 x 28 head"
    experiment.result("macs_points_over_grid", [both], unit="x", meaning=said, exact=True)
    experiment.figure(
        "outlines",
        partial(draw_outlines, quality=quality, trained=trained),
        caption="IoU of masks and of their outlines by size of the object (mean and range of the seeds). The 28 x 28 head "
        f"does {counted['grid']:.1f} million MACs per object, the points {counted['points']:.1f}, and the coarse mask that they "
        f"start from {counted['coarse']:.1f} (its layers serve the classifier too).",
        alt="Two line charts over three object sizes: mask IoU and boundary IoU of an enlarged coarse mask, a 28 "
        "by 28 head and refined points.",
    )


# %%
def draw_points(style: Style, model: MaskNet, data: Objects, row: int) -> Figure:
    where = torch.tensor([row], device=data.boxes.device)
    image = crop(data.images, data.scene[where], data.boxes[where], CROP)
    truth = crop(data.masks[:, None], where, data.boxes[where], CROP)[0, 0]
    with torch.no_grad():
        fine, coarse, grid, _, _ = model(image)
        mask, chosen = model.refine(fine, coarse)
    figure, axes = panels(2, 4, height=4.0)
    options = {"cmap": "gray", "vmin": 0, "vmax": 1, "extent": (0, 1, 1, 0)}
    shown = [(image[0].cpu(), "image"), (coarse[0, 0].sigmoid(), "7 x 7"), (grid[0, 0].sigmoid(), "28 x 28 head")]
    for ax, (each, title) in zip(axes[0], [*shown, (truth, "truth")], strict=True):
        show_image(ax, each, title, **options)
    for ax, cells in zip(axes[1], chosen, strict=False):
        side = 2 * COARSE * 2 ** list(axes[1]).index(ax)
        x, y = centres(cells.cpu(), side)[0].T.numpy()
        show_image(ax, image[0].cpu(), f"{side} x {side}: {len(x)} points", **options)
        ax.scatter(x, y, s=5, color=style.cycle[1], linewidths=0)
    show_image(axes[1, 3], mask[0, 0].sigmoid(), "56 x 56, refined", **options)
    return figure


def show_points(run: Run, trained: Trained) -> None:
    sides = (trained.data.boxes[:, 2:] - trained.data.boxes[:, :2]).amin(1)
    run.figure(
        "points",
        partial(draw_points, model=trained.masks, data=trained.data, row=int(sides.argmax())),
        caption="The test object with the largest box. Below: the points that are decided anew after each enlargement gather "
        "on the outline, until few of all cells are needed.",
        alt="Eight panels: a digit, its 7 by 7 mask, a 28 by 28 mask, the truth, three steps with dots where the "
        "mask is refined, and the refined mask.",
    )


# %% [markdown]
# ## Experiment: one head, one head three times, three heads
# Loose boxes of test objects go through the heads. Then a threshold of 0.7 against 0.5, by the quality of the box that
# comes in. Last, the 28 x 28 mask is predicted in the boxes of one head and of the cascade.


# %%
def stages_of(net: BoxNet, trained: Trained, names: Sequence[str]) -> list[Tensor]:
    """Boxes (R, 4) before the first and after each of the heads."""
    with torch.no_grad():
        features = net.backbone(trained.data.images)
        boxes, scene = [trained.loose], trained.data.scene[trained.rows]
        for name in names:
            boxes.append(net.regress(name, features, scene, boxes[-1]))
    return boxes


def box_qualities(net: BoxNet, trained: Trained, names: Sequence[str]) -> Tensor:
    """IoU (stages + 1, R) with the true boxes, on the CPU."""
    truth = trained.data.boxes[trained.rows]
    return torch.stack([paired_iou(boxes, truth) for boxes in stages_of(net, trained, names)]).cpu()


def mask_quality(trained: Trained, boxes: Tensor) -> Tensor:
    """IoU (R,) of the 28 x 28 masks in boxes (R, 4), on the CPU."""
    data, rows = trained.data, trained.rows
    with torch.no_grad():
        grid = trained.masks(crop(data.images, data.scene[rows], boxes, CROP))[2]
    target = crop(data.masks[:, None], rows, boxes, CROP // 2)
    return mask_ious(grid, target, crop_area(data, rows, boxes, CROP // 2)).cpu()


BINS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def binned(values: Tensor, by: Tensor) -> list[float]:
    """Mean of values (R,) in each of `BINS`."""
    return [float(values[(by >= low) & (by < high)].mean().nan_to_num()) for low, high in pairwise(BINS)]


@dataclass(frozen=True)
class BoxRun:
    """IoU (stages + 1, R) of the ways through the heads of one network."""

    cascade: Tensor
    repeated: Tensor
    strict: Tensor
    large: Tensor

    def gain_at(self, threshold: float) -> float:
        """Share of boxes at or above a threshold, three stages minus one."""
        hit = (self.cascade >= threshold).float().mean(1)
        return float(hit[3] - hit[1])


def box_run(net: BoxNet, trained: Trained) -> BoxRun:
    """All ways through the heads."""
    return BoxRun(*(box_qualities(net, trained, way) for way in (list(STAGES), ["first"] * 3, ["strict"], ["large"])))


def draw_cascade(style: Style, runs: Sequence[BoxRun]) -> Figure:
    figure, (axes,) = panels(1, 2, height=3.1)
    seed_lines(axes[0], range(4), [each.cascade.mean(1).tolist() for each in runs], "three heads", marker="o")
    seed_lines(axes[0], range(4), [each.repeated.mean(1).tolist() for each in runs], "one head, repeated", marker="s")
    axes[0].set_xticks(range(4), ["before", "1", "2", "3"])
    axes[0].set(xlabel="stages", ylabel="mean IoU of the boxes")
    middle = [(low + high) / 2 for low, high in pairwise(BINS)]
    for label, marker, pick in (("trained at 0.5", "o", "cascade"), ("trained at 0.7", "s", "strict")):
        values = [binned(getattr(each, pick)[1] - each.cascade[0], each.cascade[0]) for each in runs]
        seed_lines(axes[1], middle, values, label, marker=marker)
    axes[1].axhline(0, color=style.muted, linestyle="--")
    axes[1].set(xlabel="IoU of the box that comes in", ylabel="IoU gained by one head")
    for ax in axes:
        ax.legend()
        for band in ax.collections:
            band.set(alpha=0.4, linewidth=0.8)  # seen on a dark page too
    return figure


def compare_cascade(run: Run, preset: Preset, trained: Sequence[Trained]) -> None:
    experiment = run.experiment(
        "cascade",
        question="Are three heads in a row better than one, than one repeated, and than a stricter or larger one?",
        data=f"four loose boxes for each object of {preset.counts[2]} test scenes",
        parameters=count_parameters(trained[0].boxes[0]),
        steps=preset.steps,
        floor=("box IoU that one stage adds", 0.0),
    )
    runs = [box_run(each.boxes[0], each) for each in trained]
    experiment.check_floor([float((each.cascade[1] - each.cascade[0]).mean()) for each in runs])
    results: dict[str, tuple[list[float], str]] = {}
    for stage in range(4):
        results[f"box_iou_{stage}"] = [float(each.cascade[stage].mean()) for each in runs], f"box IoU, {stage} stages"
    for threshold in (50, 75, 90):
        values = [each.gain_at(threshold / 100) for each in runs]
        results[f"cascade_gain_{threshold}"] = (
            values,
            f"share of boxes with IoU {threshold} % or more, 3 stages minus 1",
        )
    gains = results["cascade_gain_75"][0], results["cascade_gain_50"][0]
    results["cascade_tight_minus_loose"] = (
        [a - b for a, b in zip(*gains, strict=True)],
        "gain at 75 % minus gain at 50 %",
    )
    for name, rival in (("repeated", "one head repeated"), ("large", "one head, three times as wide")):
        values = [float((each.cascade[-1] - getattr(each, name)[-1]).mean()) for each in runs]
        results[f"cascade_over_{name}"] = values, f"box IoU, three heads minus {rival}"
    for key, low, high in (("loose", 0.4, 0.6), ("tight", 0.8, 1.0)):
        picks = [(each.cascade[0] >= low) & (each.cascade[0] < high) for each in runs]
        values = [float((e.strict[1] - e.cascade[1])[pick].mean()) for e, pick in zip(runs, picks, strict=True)]
        results[f"strict_on_{key}"] = values, f"box IoU, head of 0.7 minus head of 0.5, input IoU {low} to {high}"
    wide = [box_run(each.boxes[1], each) for each in trained]
    results["cascade_gain_wide"] = (
        [float((each.cascade[3] - each.cascade[1]).mean()) for each in wide],
        "box IoU, 3 stages minus 1, backbone twice as wide",
    )
    features = [float((w.cascade[1] - n.cascade[1]).mean()) for w, n in zip(wide, runs, strict=True)]
    results["wide_over_narrow"] = features, "box IoU after one stage, backbone twice as wide minus the other"
    ways = [[stages_of(e.boxes[0], e, list(STAGES))[stage] for stage in (1, 3)] for e in trained]
    masks = [
        float((mask_quality(e, three) - mask_quality(e, one)).mean())
        for e, (one, three) in zip(trained, ways, strict=True)
    ]
    boxes = [float((each.cascade[3] - each.cascade[1]).mean()) for each in runs]
    results["box_gain"] = boxes, "box IoU, 3 stages minus 1"
    results["mask_gain"] = masks, "mask IoU in the boxes after 3 stages minus after 1"
    results["box_minus_mask_gain"] = (
        [a - b for a, b in zip(boxes, masks, strict=True)],
        "gain in box IoU minus mask IoU",
    )
    results["time_cascade_over_one"] = [cascade_time(e, preset) for e in trained], "time with three heads over one head"
    for name, (values, meaning) in results.items():
        experiment.result(name, values, unit="x" if name.startswith("time") else "", meaning=meaning)
    experiment.figure(
        "cascade",
        partial(draw_cascade, runs=runs),
        caption="Left: quality of the boxes after each stage. Right: what one head of a threshold adds, by the quality of "
        "the box that comes in (means and ranges of the seeds).",
        alt="Two line charts: mean box IoU over stages, for three heads and for one head repeated; IoU gained over "
        "IoU of the input, for heads trained at 0.5 and at 0.7.",
    )


def cascade_time(trained: Trained, preset: Preset) -> float:
    """Time for all test boxes through three heads, over that through one; features included."""
    device = trained.loose.device
    ways = (list(STAGES), ["first"])
    three, one = (
        timed(partial(stages_of, trained.boxes[0], trained, way), preset.repeats, 1, device).median for way in ways
    )
    return three / one


# %%
def draw_stages(style: Style, trained: Trained) -> Figure:
    ways = stages_of(trained.boxes[0], trained, list(STAGES))
    ious = paired_iou(ways[0], trained.data.boxes[trained.rows])
    rows = (ious - 0.5).abs().argsort()[:4].tolist()
    figure, axes = panels(1, 4, height=2.2)
    kinds: dict[str, tuple[str, Any]] = {
        "loose box": ("orange", "--"),
        "after three stages": ("cyan", "-"),
        "truth": ("white", ":"),
    }
    for ax, row in zip(axes[0], rows, strict=True):
        truth = trained.data.boxes[trained.rows[row]].cpu()
        show_image(ax, trained.data.images[trained.data.scene[trained.rows[row]]].cpu())
        for boxes, (colour, line) in zip((ways[0][row], ways[3][row], truth), kinds.values(), strict=True):
            draw_boxes(ax, boxes.cpu()[None].numpy(), colour=colour, linestyle=line)
    handles = [Line2D([], [], color=colour, linestyle=line) for colour, line in kinds.values()]
    dark = {"facecolor": DARK.page, "labelcolor": DARK.ink, "framealpha": 1}  # colours are bright in both styles
    figure.legend(handles, list(kinds), loc="outside lower center", ncols=len(kinds), **dark)
    return figure


def show_stages(run: Run, trained: Trained) -> None:
    run.figure(
        "stages",
        partial(draw_stages, trained=trained),
        caption="Loose boxes of test objects (dashed), what three stages make of them (solid), and the true boxes (dotted). "
        "Chosen: the four inputs whose IoU is nearest to one half.",
        alt="Four scenes with digits; in each a loose dashed box, the corrected solid box and the true dotted box of one "
        "object.",
    )


# %% [markdown]
# ## Experiment: a score for the mask
# $s_{mask} = s_{cls} \cdot s_{iou}$. One detection for each slightly wrong box of a test object; it is right where the
# class is right and the mask overlaps the object by the threshold or more. AP is the mean precision at the right ones.


# %%
def ap(score: Tensor, right: Tensor) -> float:
    """Average precision of detections (R,), one for each of R objects."""
    hits = right[score.argsort(descending=True, stable=True)].float()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / len(hits))


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation of a (R,) and b (R,)."""
    ranks = torch.stack([each.argsort().argsort().float() for each in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


@dataclass(frozen=True)
class Scores:
    """For each detection (R,): class confidence, estimated and true IoU of the mask, whether the class is right."""

    confidence: Tensor
    estimate: Tensor
    quality: Tensor
    right: Tensor

    def ap(self, score: Tensor, thresholds: Sequence[float]) -> float:
        """Mean of AP over thresholds."""
        return float(np.mean([ap(score, self.right & (self.quality >= each)) for each in thresholds]))


def scored(trained: Trained) -> Scores:
    """Scores of the test objects in slightly wrong boxes."""
    data, rows = trained.data, torch.arange(len(trained.data.boxes), device=trained.data.boxes.device)
    boxes = jitter(data.boxes, 0.2, torch.Generator().manual_seed(1))
    with torch.no_grad():
        _, _, grid, classes, estimate = trained.masks(crop(data.images, data.scene, boxes, CROP))
    target = crop(data.masks[:, None], rows, boxes, CROP // 2)
    quality = mask_ious(grid, target, crop_area(data, rows, boxes, CROP // 2))
    confidence, label = classes.float().softmax(1).max(1)
    return Scores(confidence.cpu(), estimate.float().cpu(), quality.cpu(), (label == data.labels).cpu())


def draw_scores(style: Style, scores: Scores) -> Figure:
    figure, (axes,) = panels(1, 2, height=3.0, sharey=True)
    for ax, x, label in zip(
        axes, (scores.confidence, scores.estimate), ("class confidence", "estimated mask IoU"), strict=True
    ):
        ax.scatter(x.numpy(), scores.quality.numpy(), s=11, alpha=0.75, color=style.cycle[0], linewidths=0)
        ax.plot([0, 1], [0, 1], color=style.muted, linestyle="--")
        low, high = min(0, float(x.min())), max(1, float(x.max()))
        ax.set(xlabel=label, xlim=(low - 0.04, high + 0.04), ylim=(-0.04, 1.04))  # dots on the border are whole
    axes[0].set_ylabel("true mask IoU")
    return figure


def compare_scores(run: Run, preset: Preset, trained: Sequence[Trained]) -> None:
    experiment = run.experiment(
        "scores",
        question="Does an estimate of the mask's IoU rank masks better than the confidence of the class?",
        data=f"one slightly wrong box for each object of {preset.counts[2]} test scenes",
        parameters=count_parameters(trained[0].masks),
        steps=preset.steps,
        floor=FLOOR,
    )
    found = [scored(each) for each in trained]
    experiment.check_floor([float(each.quality.mean()) for each in found])
    by_class = [rank_correlation(each.confidence, each.quality) for each in found]
    by_score = [rank_correlation(each.estimate, each.quality) for each in found]
    experiment.result("rank_class", by_class, unit="", meaning="rank correlation of class confidence with mask IoU")
    experiment.result("rank_estimate", by_score, unit="", meaning="rank correlation of the estimate with mask IoU")
    gain = [a - b for a, b in zip(by_score, by_class, strict=True)]
    experiment.result("rank_gain", gain, unit="", meaning="rank correlation, estimate minus class confidence")
    for key, thresholds in (
        ("", [0.5 + 0.05 * each for each in range(10)]),
        ("_loose", [0.5]),
        ("_tight", [0.75, 0.8, 0.85]),
    ):
        said = "0.5 to 0.95" if not key else ", ".join(map(str, thresholds))
        base = [each.ap(each.confidence, thresholds) for each in found]
        with_score = [each.ap(each.confidence * each.estimate, thresholds) for each in found]
        perfect = [each.ap(each.confidence * each.quality, thresholds) for each in found]
        gain = [a - b for a, b in zip(with_score, base, strict=True)]
        bound = [a - b for a, b in zip(perfect, with_score, strict=True)]
        experiment.result(f"ap_class{key}", base, unit="", meaning=f"mask AP at IoU {said}, ranked by class confidence")
        experiment.result(
            f"ap_gain{key}", gain, unit="", meaning=f"mask AP at IoU {said}, with the estimate minus without"
        )
        experiment.result(f"ap_missing{key}", bound, unit="", meaning=f"mask AP at IoU {said}, true IoU minus estimate")
    experiment.figure(
        "scores",
        partial(draw_scores, scores=found[0]),
        caption=f"True IoU of each test mask against the confidence of its class and against the estimate (first seed). Rank "
        f"correlations, mean of the seeds: {np.mean(by_class):.2f} and {np.mean(by_score):.2f}.",
        alt="Two scatter plots of true mask IoU: against class confidence and against the estimated mask IoU.",
    )


# %% [markdown]
# ## Counted, not trained
# What the published models cost, from torchvision's classes on the meta device: 800 x 800 pixels, 1000 proposals through the
# box head and 100 objects through the mask head. And what a grid can draw at all: the true mask of a digit, averaged to a
# grid and enlarged again.


# %%
def published(name: str) -> tuple[float, dict[str, float]]:
    """Parameters and MACs by part of a torchvision Mask R-CNN."""
    with torch.device("meta"):
        model = getattr(detection, name)(weights=None, weights_backbone=None).eval()
        maps = list(model.backbone(torch.zeros(1, 3, 800, 800)).values())
    heads, side = model.roi_heads, maps[0].shape[1]
    counted = {
        "backbone": macs(model.backbone, (1, 3, 800, 800)),
        "proposals": macs(lambda *x: model.rpn.head(list(x)), *(tuple(each.shape) for each in maps)),
        "box head": macs(nn.Sequential(heads.box_head, heads.box_predictor), (1000, side, 7, 7)),
        "mask head": macs(nn.Sequential(heads.mask_head, heads.mask_predictor), (100, side, 14, 14)),
    }
    return count_parameters(model), counted


def ceiling(grid: int, size: int) -> float:
    """Mean boundary IoU, within one pixel, of the best mask of grid x grid cells for 40 test digits of `size` pixels."""
    values = []
    for image in digits("test", size).images[:40]:
        truth = image[0] > 0.4
        cells = functional.interpolate(truth[None, None].float(), (grid, grid), mode="area")
        values.append(iou(rim(pasted(cells[0] - 0.5, size, size)), rim(truth)))
    return float(np.mean(values))


def draw_published(
    style: Style, parts: Mapping[str, Mapping[str, float]], ceilings: Mapping[int, list[float]]
) -> Figure:
    figure, (axes,) = panels(1, 2, height=3.1)
    names = list(parts["v1"])
    for shift, (version, counted) in zip((-0.2, 0.2), parts.items(), strict=True):
        values = [counted[name] / 1e9 for name in names]
        axes[0].bar(np.arange(len(names)) + shift, values, 0.36, label=version, color=style.cycle[int(shift > 0)])
    axes[0].set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])
    axes[0].set(ylabel="GMACs per image")
    axes[0].tick_params(axis="x", labelsize=8.5)
    for (grid, values), marker in zip(ceilings.items(), "osd^", strict=True):
        axes[1].plot(CEILING_SIZES, values, marker=marker, markersize=4, label=f"{grid} x {grid}")
    axes[1].set(xscale="log", xlabel="side of the object in pixels", ylabel="best boundary IoU", ylim=(0, 1.02))
    axes[1].set_xticks(CEILING_SIZES, [str(size) for size in CEILING_SIZES])
    axes[1].minorticks_off()
    for ax in axes:
        ax.legend()
    return figure


def count_published(run: Run) -> None:
    experiment = run.experiment(
        "published",
        question="What do the heavier heads and a cascade cost in the published models, and what can a grid draw at best?",
        data="torchvision's Mask R-CNN on the meta device; test digits of 14 to 224 px",
    )
    (old, v1), (new, v2) = (published(f"maskrcnn_resnet50_fpn{end}") for end in ("", "_v2"))
    with torch.device("meta"):
        heads = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).roi_heads
    head = count_parameters(heads.box_head) + count_parameters(heads.box_predictor)
    total = [sum(each.values()) for each in (v1, v2)]
    ceilings = {grid: [ceiling(grid, size) for size in CEILING_SIZES] for grid in GRIDS}
    exact = {
        "parameters_v1": (old / 1e6, "M", "parameters of maskrcnn_resnet50_fpn"),
        "parameters_v2": (new / 1e6, "M", "parameters of maskrcnn_resnet50_fpn_v2"),
        "macs_v1": (total[0] / 1e9, "G", "MACs of maskrcnn_resnet50_fpn, 1000 proposals, 100 objects"),
        "macs_v2": (total[1] / 1e9, "G", "MACs of maskrcnn_resnet50_fpn_v2, 1000 proposals, 100 objects"),
        "macs_v2_over_v1": (total[1] / total[0], "x", "MACs of v2 over those of v1"),
        "box_head_v2_over_v1": (v2["box head"] / v1["box head"], "x", "MACs of the box head, v2 over v1"),
        "parameters_cascade_over_v1": ((old + 2 * head) / old, "x", "parameters with three box heads over one, v1"),
        "macs_cascade_over_v1": (1 + 2 * v1["box head"] / total[0], "x", "MACs with three box heads over one, v1"),
        "decisions_ratio": (decisions(224, 784) / 784, "x", "points for a mask of 224 x 224 over the cells of 28 x 28"),
        "ceiling_28_at_28": (ceilings[28][1], "", "best boundary IoU of 28 x 28 cells, digits of 28 px"),
        "ceiling_28_at_224": (ceilings[28][-1], "", "best boundary IoU of 28 x 28 cells, digits of 224 px"),
        "ceiling_56_at_224": (ceilings[56][-1], "", "best boundary IoU of 56 x 56 cells, digits of 224 px"),
    }
    for name, (value, unit, meaning) in exact.items():
        experiment.result(name, [value], unit=unit, meaning=meaning, exact=True)
    experiment.figure(
        "published",
        partial(draw_published, parts={"v1": v1, "v2": v2}, ceilings=ceilings),
        caption="Left: arithmetic of torchvision's two Mask R-CNNs by part. Right: the best outline that a grid can hold, by "
        "size of the object; the outline counts to one pixel.",
        alt="Bar chart of GMACs of backbone, proposals, box head and mask head for v1 and v2; line chart of the "
        "ceiling of boundary IoU over object size for four grids.",
    )


# %% [markdown]
# ## Unlike the papers
# - Crops and proposals are drawn around true objects; no proposal network, no background, no suppression, no classifier in
#   the box stages. AP ranks one detection for each object.
# - All heads of an experiment are trained together on one backbone, so none has features of its own.
# - Mask Scoring R-CNN regresses one IoU for each class, and its gradient reaches the features; here it is one number, and
#   trains only its own layers. As there, the output is linear: nothing keeps it between zero and one.
# - PointRend's mask network has finer features, of stride two instead of four, and ends at 56 x 56.
# - The stages have two linear layers of 64 channels; deltas of later stages are magnified two and three times.


# %%
def main(argv: Sequence[str] | None = None) -> None:
    run = Run.start("improved-mask-rcnn", argv=argv)
    if run.settings.weights == "pretrained":
        raise SystemExit("The experiments train small heads of their own; run with --weights random.")
    preset = PRESETS[run.preset]
    trained = train_all(run, preset)
    show_points(run, trained[0])
    compare_outlines(run, preset, trained)
    show_stages(run, trained[0])
    compare_cascade(run, preset, trained)
    compare_scores(run, preset, trained)
    count_published(run)
    run.finish()


if __name__ == "__main__":
    main()
