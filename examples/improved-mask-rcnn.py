# %% [markdown]
# # Improved Mask R-CNN: what do better outlines, boxes and scores each add to the same two stages?
#
# Three repairs of [Mask R-CNN](mask-rcnn.md): points that refine a coarse mask, box heads in a row, and a head that scores
# the mask. Here they are, on regions drawn around true objects, as a proposal network would give them. The experiments set
# each against what it repairs, in networks of their own with as many parameters.
#
# | symbol (card) | here | meaning |
# |---|---|---|
# | $u^t$ | `STAGES` | least IoU with the true box from which stage $t$ learns |
# | $f_t$, $b^t$ | `heads`, `boxes` | box regressor of stage $t$, and the boxes that go into it, (B, R, 4) xyxy pixels |
# | $N$ | `POINTS` | points that are decided anew after each enlargement of the mask |
# | $s_{cls}$, $s_{iou}$ | `classes`, `score` | class of a region; estimated IoU of its mask |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from lab import instances, rcnn
from lab.data.scenes import Scenes, make_scenes
from lab.figures import Figure, Style, draw_boxes, panels, show_image
from lab.regions import CODERS, Pyramid, jitter, paired_iou, sample
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from torch import Tensor, nn
from torchvision.ops import MLP, Conv2dNormActivation

mask = import_module("mask-rcnn")  # the mask head, its targets, and how masks get into the image
SLIM, CANVAS, CLASSES = mask.SLIM, 64, 10  # channels of the map that heads read; side of a scene in pixels; K
COARSE, FINAL, POINTS, CELLS = 7, 56, 14**2, 7  # cells of the first and of the last mask; N; cells for a box head
STAGES, REPEATS = (0.5, 0.6, 0.7), 4  # u; loose boxes of each object
RATE = 5e-3  # learning rate of all heads together, that of the box heads in claims/improved-mask-rcnn.searches.json
SYNCHRONISATIONS_PER_STEP = 10  # copies of small constants: one for the targets, three for each stage of boxes


class Preset(NamedTuple):
    """Steps, scenes in a step, channels of the backbone, hidden units of a box head, scenes of train and test, rate."""

    steps: int = 250
    batch: int = 8
    width: int = 32
    hidden: int = 64
    scenes: tuple[int, int] = (800, 160)
    rate: float = 1.0


FULL = Preset(8_000, 32, 128, 256, (8_000, 1_000), 0.2)
PRESETS = {"smoke": Preset(3, 4, 16, 16, (16, 12)), "quick": Preset(), "full": FULL}

# %% [markdown]
# ## Outlines: a few points instead of a grid
# A coarse mask is doubled again and again. After each step the $N$ cells whose logit is nearest to zero are decided anew by a
# small network, from the fine features at their centre and the coarse prediction there (Section 3 of arXiv:1912.08193). All
# other cells keep what interpolation gave them.


# %%
def uncertain(logits: Tensor, count: int) -> Tensor:
    """Indices (..., count) of the logits (..., P) nearest to zero."""
    return logits.abs().topk(min(count, logits.shape[-1]), largest=False).indices


def centres(cells: Tensor, side: int) -> Tensor:
    """Centres (..., 2), x and y from 0 to 1, of cells (...) of a grid, counted row by row."""
    return (torch.stack([cells % side, cells // side], -1) + 0.5) / side


def decisions(side: int, points: int, start: int = COARSE) -> int:
    """Points that refinement decides on its way from a grid of `start` cells a side to one of `side`."""
    return 0 if side <= start else min(points, side**2) + decisions(side // 2, points, start)


def in_image(boxes: Tensor, points: Tensor) -> Tensor:
    """Points (B, R, P, 2) of boxes (B, R, 4) as points of the image, x and y from 0 to 1."""
    low, high = (boxes / CANVAS)[:, :, None].split(2, -1)
    return low + points * (high - low)


cross_entropies = partial(nn.functional.binary_cross_entropy_with_logits, reduction="none")


class PointHead(nn.Module):
    """Regions (B, R, C, 14, 14) -> coarse logits, which points refine; `fine` are the channels that a point reads."""

    def __init__(self, fine: int) -> None:
        super().__init__()
        first = Conv2dNormActivation(SLIM, SLIM, stride=2, norm_layer=None)
        self.coarse, self.mlp = nn.Sequential(first, nn.Conv2d(SLIM, 1, 1)), MLP(fine + 1, [80, 80, 1], inplace=None)

    def decide(self, maps: tuple[Tensor, ...], boxes: Tensor, coarse: Tensor, points: Tensor) -> Tensor:
        """Logits (B, R, P) at points (B, R, P, 2) of boxes (B, R, 4)."""
        there = in_image(boxes, points).flatten(1, 2)  # (B, R P, 2)
        fine = torch.cat([sample(each, there) for each in maps], -1).unflatten(1, points.shape[1:3])
        rough = sample(coarse.flatten(0, 1)[:, None], points.flatten(0, 1)).unflatten(0, points.shape[:2])
        return self.mlp(torch.cat([fine, rough], -1)).squeeze(-1).float()

    def first(self, regions: Tensor) -> Tensor:
        """Coarse logits (B, R, 7, 7) of regions (B, R, C, 14, 14)."""
        return self.coarse(regions.flatten(0, 1))[:, 0].float().unflatten(0, regions.shape[:2])

    def loss(self, maps: Any, boxes: Tensor, regions: Tensor, masks: Tensor, wanted: Tensor) -> Tensor:
        """(B, R), of the coarse mask and of points: the most uncertain quarter of many, and a third as many anywhere."""
        coarse, few = self.first(regions), POINTS // 4
        anywhere = torch.rand(*boxes.shape[:2], 3 * POINTS + few, 2, device=boxes.device)
        there = sample(coarse.detach().flatten(0, 1)[:, None], anywhere.flatten(0, 1))[..., 0]  # (B R, P)
        best = uncertain(there[:, few:], 3 * few)[..., None] + few
        points = torch.cat([anywhere[:, :, :few], anywhere.take_along_dim(best.unflatten(0, boxes.shape[:2]), 2)], 2)
        decided = self.decide(maps, boxes, coarse, points)
        true = sample(masks.flatten(0, 1)[:, None], in_image(boxes, points).flatten(0, 1))[..., 0].view_as(decided)
        of_coarse = cross_entropies(coarse, nn.functional.avg_pool2d(wanted, mask.MASK // COARSE))
        return cross_entropies(decided, true).mean(2) + of_coarse.mean((2, 3))

    def refine(self, maps: tuple[Tensor, ...], boxes: Tensor, coarse: Tensor) -> tuple[Tensor, list[Tensor]]:
        """From coarse logits (B, R, 7, 7): those of 56 x 56 cells, and the cells (B, R, N) chosen after each enlargement."""
        logits, chosen = coarse, []
        while (side := 2 * logits.shape[-1]) <= FINAL:
            logits = nn.functional.interpolate(logits, scale_factor=2, mode="bilinear")
            chosen.append(uncertain(logits.flatten(2), POINTS))
            decided = self.decide(maps, boxes, coarse, centres(chosen[-1], side))
            logits = logits.flatten(2).scatter(2, chosen[-1], decided).view_as(logits)
        return logits, chosen


if __name__ == "__main__":
    run = Run.start("improved-mask-rcnn", pretrained=True)
    preset, sides = PRESETS[run.preset], (14, 28, 56, 112, 224)
    rows = [{"mask": f"{m} x {m}", "cells": m**2, "decided with N = 196": decisions(m, POINTS)} for m in sides]
    run.show("decisions", rows)

# %% [markdown]
# ## Boxes: heads in a row
# $$f = f_T \circ \dots \circ f_1, \qquad b^t = f_{t-1}(x^{t-1}, b^{t-1})$$
# Each stage starts from the boxes of the stage before, and learns from those that overlap the object by $u^t$ or more
# (Section 4 of arXiv:1712.00726). A later stage corrects less, so its offsets are magnified two and three times.


# %%
class Cascade(nn.Module):
    """Box heads in a row, one for each u: boxes (B, R, 4) and a map (B, C, h, w) -> boxes after each stage."""

    def __init__(self, hidden: int, stages: tuple[float, ...] = STAGES) -> None:
        super().__init__()
        self.stages = stages
        self.heads = nn.ModuleList(MLP(SLIM * CELLS**2, [hidden, hidden, 4], inplace=None) for _ in stages)

    def offsets(self, stage: int, maps: Tensor, boxes: Tensor) -> Tensor:
        return self.heads[stage](rcnn.crop(maps, boxes, CELLS, mask.STRIDE).flatten(2)).float()

    def forward(self, maps: Tensor, boxes: Tensor, times: int = 1) -> list[Tensor]:
        """Boxes before the first stage and after each; `times` repeats all stages."""
        after = [boxes]
        for stage in [*range(len(self.stages))] * times:
            after.append(rcnn.decode(CODERS[stage], self.offsets(stage, maps, after[-1]), after[-1]))
        return after

    def loss(self, maps: Tensor, boxes: Tensor, truth: Tensor, real: Tensor) -> Tensor:
        """$L_{loc}$ of all stages, each over the boxes above its own threshold; real (B, R) is False for padding."""
        paid = []
        for stage, least in enumerate(self.stages):
            offsets, coder = self.offsets(stage, maps, boxes), CODERS[stage]
            each = rcnn.box_loss(offsets, rcnn.encode(coder, truth, boxes))
            paid.append(rcnn.mean_of(each, real & (paired_iou(boxes, truth) >= least)))
            boxes = rcnn.decode(coder, offsets.detach(), boxes)
        return torch.stack(paid).sum()


if __name__ == "__main__":
    true, generator = torch.tensor([20.0, 20.0, 40.0, 50.0]).expand(4000, 4), torch.Generator().manual_seed(0)
    loose = paired_iou(jitter(true, 0.35, CANVAS, generator), true)
    hits = [{"u": u, "loose boxes that overlap by u (%)": 100 * (loose >= u).float().mean().item()} for u in STAGES]
    run.show("hits", hits)

# %% [markdown]
# ## Scores: how good is the mask?
# A detection is ranked by $s_{mask} = s_{cls} \cdot s_{iou}$: a small head sees the region together with the predicted mask, and
# learns by squared error how much of the object the mask will overlap (Section 3.2 of arXiv:1903.00241).


# %%
class Repaired(nn.Module):
    """A backbone and any of the heads "grid" (28 x 28, with its score), "points" and "boxes"."""

    def __init__(self, preset: Preset, heads: tuple[str, ...] = ("grid", "points", "boxes")) -> None:
        super().__init__()
        self.maps = Pyramid(preset.width, SLIM)
        narrow = partial(Conv2dNormActivation, stride=2, norm_layer=None)
        self.classes = nn.Sequential(narrow(SLIM, SLIM), nn.Flatten(), nn.Linear(SLIM * COARSE**2, CLASSES))
        self.score = nn.Sequential(narrow(SLIM + 1, SLIM), narrow(SLIM, SLIM), nn.Flatten(), nn.Linear(16 * SLIM, 1))
        self.grid: Any = mask.MaskHead() if "grid" in heads else None
        self.points: Any = PointHead(SLIM + preset.width // 4) if "points" in heads else None
        self.boxes: Any = Cascade(preset.hidden) if "boxes" in heads else None

    def estimate(self, regions: Tensor, grid: Tensor) -> Tensor:
        """Estimated IoU (n,) of masks (n, 1, 28, 28) with the object; it teaches nothing but its own layers."""
        seen = torch.cat([regions, nn.functional.max_pool2d(grid.sigmoid(), 2)], 1)
        return self.score(seen.detach()).squeeze(1).float()


def loss_of(model: Repaired, scenes: Scenes, generator: torch.Generator) -> Tensor:
    """The sum over the heads that are there; masks and classes in slightly wrong boxes, box heads in loose ones."""
    targets, maps, paid = rcnn.targets_of(scenes), model.maps(scenes.images), []
    true, real = targets.boxes, targets.labels >= 0
    if model.boxes is not None:
        loose, truth = jitter(true.repeat(1, REPEATS, 1), 0.35, CANVAS, generator), true.repeat(1, REPEATS, 1)
        paid.append(model.boxes.loss(maps[0], loose, truth, real.repeat(1, REPEATS)))
    if model.grid is None and model.points is None:
        return paid[0]
    boxes, owner = jitter(true, 0.2, CANVAS, generator), torch.arange(true.shape[1], device=true.device)
    wanted = mask.mask_targets(masks := mask.masks_of(scenes), owner.expand(real.shape), boxes)  # (B, M, 28, 28)
    regions = rcnn.crop(maps[0], boxes, mask.CUT, mask.STRIDE)
    named = model.classes(regions.flatten(0, 1)).float().unflatten(0, real.shape)
    of_class = nn.functional.cross_entropy(named.mT, targets.labels.clamp(min=0), reduction="none")
    paid.append(rcnn.mean_of(of_class, real))
    if model.points is not None:
        paid.append(rcnn.mean_of(model.points.loss(maps, boxes, regions, masks, wanted), real))
    if model.grid is not None:
        paid.append(grid_loss(model, regions, wanted, real))
    return torch.stack(paid).sum()


def grid_loss(model: Repaired, regions: Tensor, wanted: Tensor, real: Tensor) -> Tensor:
    """Of masks (B, M, 28, 28), and of the score that they are given; where nothing is there or found, IoU is undefined."""
    grid = model.grid(regions.flatten(0, 1)).float()  # (B M, 1, 28, 28)
    iou = mask.iou(grid[:, 0] > 0, wanted.flatten(0, 1) >= 0.5).unflatten(0, real.shape)
    error = (model.estimate(regions.flatten(0, 1), grid).unflatten(0, real.shape) - iou.nan_to_num()) ** 2
    each = cross_entropies(grid[:, 0].unflatten(0, real.shape), wanted).mean((2, 3))
    return rcnn.mean_of(each, real) + rcnn.mean_of(error, real & ~iou.isnan())


if __name__ == "__main__":
    seed_everything(run.seeds[0])
    parts = Repaired(preset).named_children()
    run.show("parameters", [{"part": name, "parameters": count_parameters(part)} for name, part in parts])

# %% [markdown]
# ## Train it
# Real digits of 10 to 44 pixels on photographs, some of them partly hidden.


# %%
def scenes_of(preset: Preset, split: Any, seed: int) -> Scenes:
    """Scenes to train or to test."""
    count = preset.scenes[split != "train"]
    return make_scenes(split, count, seed=seed, canvas=CANVAS, objects=(1, 4), size=(10.0, 44.0), classes=CLASSES)


def train(run: Run, seed: int, build: Any = Repaired, rate: float = RATE) -> Repaired:
    """A network for this seed."""
    preset, generator = PRESETS[run.preset], torch.Generator(run.device).manual_seed(seed)
    scenes = scenes_of(preset, "train", seed).to(run.device)
    seed_everything(seed)
    model, order = build(preset), minibatches((torch.arange(len(scenes)),), preset.batch, preset.steps, seed)
    fit(model, lambda _: (scenes[next(order)[0]],), partial(loss_of, generator=generator), steps=preset.steps,
        learning_rate=rate * preset.rate, device=run.device)  # fmt: skip
    return model


if __name__ == "__main__":
    model, test = train(run, run.seeds[0]).cpu(), scenes_of(preset, "test", run.seeds[0])
    (true, labels), generator = rcnn.targets_of(test), torch.Generator().manual_seed(0)
    with torch.inference_mode():
        after = model.boxes(model.maps(test.images)[0], jitter(true, 0.35, CANVAS, generator))
    quality = [paired_iou(boxes, true)[labels >= 0].mean().item() for boxes in after]
    run.show("trained", [{"stages": t, "IoU with the true box": iou} for t, iou in enumerate(quality)])

# %% [markdown]
# ## Where the points go, and what the stages do


# %%
def draw_points(style: Style, image: Tensor, masks: list[Tensor], chosen: list[Tensor]) -> Figure:
    """The region (3, h, w) of one object, logits of its first and its last mask, and its points at each resolution."""
    figure, axes = panels(2, 3, width=5.4, height=4.0)
    show_image(axes[0, 0], image, "region")
    for ax, logits in zip(axes[0, 1:], masks, strict=True):
        show_image(ax, logits.sigmoid(), f"{len(logits)} x {len(logits)}", cmap="gray", vmin=0, vmax=1)
    for ax, cells, side in zip(axes[1], chosen, (14, 28, 56), strict=True):
        show_image(ax, image, f"of {side} x {side}", extent=(0, 1, 1, 0))
        ax.scatter(*centres(cells, side).T, s=4, color="#F2D34B", linewidths=0)
    return figure


def draw_stages(style: Style, images: Tensor, kinds: list[Tensor]) -> Figure:
    figure, axes = panels(2, 2, width=5.4, height=5.9)
    looks = (("#FF9D3B", "--"), ("#6CE0F0", "-"), ("#FFFFFF", ":"))
    for index, ax in enumerate(axes.flat):
        show_image(ax, images[index])
        for boxes, (colour, line) in zip(kinds, looks, strict=True):
            draw_boxes(ax, boxes[index : index + 1], colour=colour, linestyle=line)
    return figure


if __name__ == "__main__":
    largest = int((true[..., 2:] - true[..., :2]).amin(-1).flatten().argmax())
    scene, place = divmod(largest, true.shape[1])
    box = true[scene : scene + 1, place : place + 1]
    with torch.inference_mode():
        maps = model.maps(test.images[scene : scene + 1])
        coarse = model.points.first(rcnn.crop(maps[0], box, mask.CUT, mask.STRIDE))
        refined, chosen = model.points.refine(maps, box, coarse)
    region = rcnn.crop(test.images[scene : scene + 1], box, FINAL, 1)[0, 0]
    run.figure(
        "points",
        partial(draw_points, image=region, masks=[coarse[0, 0], refined[0, 0]], chosen=[each[0, 0] for each in chosen]),
        caption="The largest test object. Below, the points decided anew at each resolution: they gather on its outline.",
        alt="A digit, its mask of 7 by 7 cells and the refined one; and the digit three times, with dots along its outline.",
    )
    start = paired_iou(after[0], true)[:, 0]
    near = (start - 0.5).abs().argsort()[:4]
    kinds = [boxes[near, 0] for boxes in (after[0], after[-1], true)]
    run.figure(
        "stages",
        partial(draw_stages, images=test.images[near], kinds=kinds),
        caption="What three stages (solid) make of four loose boxes (dashed) that overlap the true one (dotted) by about half.",
        alt="Four scenes with digits, each with a loose dashed box, a corrected solid box and the dotted true box.",
    )

# %% [markdown]
# ## Your own image
# torchvision's Mask R-CNN of the second recipe, on a photograph of scikit-image or on yours.

# %%
if __name__ == "__main__":
    find = partial(mask.published, name="maskrcnn_resnet50_fpn_v2")
    instances.show(run, "torchvision's maskrcnn_resnet50_fpn_v2", find, megabytes=180, otherwise="motorcycle")
    run.finish()

# %% [markdown]
# ## Unlike the papers
# - Regions are drawn around true objects: no proposal network, no background, no suppression, and box heads without classes.
# - Mask Scoring R-CNN estimates one IoU for each class, and its gradient reaches the features; here it is one number, of the
#   mask inside its box, and trains its own layers only. Classes are learnt, too, but not at the rates of the claims.
# - Points read maps of strides two and four; masks end at 56 x 56 cells, those of PointRend at 224 x 224. The fourth repair, the
#   recipe of torchvision's v2, is a matter of long training and is not tried here.
# - Everything is trained for seconds on scenes of 64 px. What holds here explains a mechanism; it says nothing about COCO.
