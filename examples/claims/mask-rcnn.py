"""Mask R-CNN's claims: what do rounded features cost a mask, what do convolutions save it, and what limits it?"""

# ruff: noqa: N999 (named after the card)
# mypy: disable-error-code="no-any-return, no-untyped-call, misc"
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from typing import Any

import skimage.data
import torch
from lab import detectors, published, rcnn, study
from lab.data import Split
from lab.data.scenes import Scenes
from lab.figures import Figure, Style, draw_boxes, show_image
from lab.run import Run
from lab.study import Measure, Scores
from lab.training import count_parameters, fit, minibatches, seed_everything
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.ops import box_iou, clip_boxes_to_image

mask = import_module("mask-rcnn")
faster = mask.faster

STEPS = {"smoke": 3, "quick": 400, "full": 4_000}  # of each mask network
SCENES = 12  # in a step
PUBLISHED = "maskrcnn_resnet50_fpn"
CROPS = {"align": rcnn.crop, "pool": mask.pool, "dense": rcnn.crop}  # that an arm is trained and read with
ARMS = {"align": "RoIAlign", "pool": "RoIPool", "dense": "fully\nconnected"}
MEASURES = {"mask_iou": Measure("mask IoU", ""), "good": Measure("masks with an IoU of 0.75 or more", "%")}
SIDES, STRIDES, HORSES = (16, 32, 64, 128, 256), (8, 16, 32), (28, 56, 112, 224, 384)

# Rivals and controls


class DenseHead(nn.Sequential):
    """The fully connected rival (Table 2e), of at least as many parameters: it flattens the region into a vector first."""

    def __init__(self) -> None:
        few, cells = 8, mask.MASK**2
        inputs = few * (mask.CUT // 2) ** 2
        spare = count_parameters(mask.MaskHead()) - cells - few * (mask.SLIM + 1)
        hidden = -(-spare // (inputs + cells + 1))
        start = (nn.Conv2d(mask.SLIM, few, 1), nn.GELU(), nn.AvgPool2d(2), nn.Flatten())
        end = (nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, cells))
        super().__init__(*start, *end, nn.Unflatten(1, (1, mask.MASK, mask.MASK)))


def build(preset: str, arm: str) -> Any:
    """A network of an arm, of half the width, of which only the parts that lead to masks are trained."""
    sizes = faster.PRESETS[preset]
    model = mask.MaskRCNN(sizes._replace(width=sizes.width // 2), detectors.BENCHMARKS[preset])
    if arm == "dense":
        model.mask = DenseHead()
    return model


def size_of(model: Any) -> int:
    """Parameters that lead to masks."""
    return sum(count_parameters(each) for each in (model.boxes.backbone, model.lateral, model.top, model.mask))


def moved(boxes: Tensor, canvas: int) -> Tensor:
    """Boxes (B, M, 4) whose edges are moved by up to a tenth of their sides at random."""
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    return clip_boxes_to_image(boxes + sides * (torch.rand_like(sides) - 0.5) * 0.2, (canvas, canvas))


# Arms, and their rates from one search


@cache
def scenes_of(preset: str, split: Split, seed: int) -> Scenes:
    """Scenes of the benchmark, but a third of those to train: without boxes to find, these are enough."""
    benchmark = detectors.BENCHMARKS[preset]
    train, test = benchmark.scenes
    return detectors.scenes_of(replace(benchmark, scenes=(train // 3, test)), split, seed)


@cache
def masks_alone(run: Run, arm: str, seed: int, rate: float) -> Any:
    """A backbone and a mask head of its own, trained together with the operator of the arm."""
    canvas, steps = detectors.BENCHMARKS[run.preset].canvas, STEPS[run.preset]
    scenes = scenes_of(run.preset, "train", seed).to(run.device)
    seed_everything(seed)
    model, order = build(run.preset, arm), minibatches((torch.arange(len(scenes)),), SCENES, steps, seed)

    def loss(model: Any, batch: Scenes) -> Tensor:
        targets, maps = rcnn.targets_of(batch), model.maps(batch.images)[1]
        return mask.mask_loss(model, maps, moved(targets.boxes, canvas), targets, mask.masks_of(batch), CROPS[arm])

    rate *= faster.PRESETS[run.preset].rate
    fit(model, lambda _: (scenes[next(order)[0]],), loss, steps=steps, learning_rate=rate, device=run.device)
    return model


def drawn(model: Any, scenes: Scenes, boxes: Tensor, crop: Any = rcnn.crop) -> Tensor:
    """Probabilities (B, M, m, m) of masks inside boxes (B, M, 4)."""
    return model.inside(model.maps(scenes.images)[1], boxes, crop).sigmoid()


@torch.inference_mode()
def overlaps(run: Run, scenes: Scenes, inside: Callable[[Scenes, Tensor], Tensor]) -> Tensor:
    """IoU, with what is seen of each object, of the mask that `inside`, as `drawn`, puts in its true box: (n,)."""
    found = []
    for start in range(0, len(scenes), detectors.IMAGES_AT_ONCE):
        part = scenes[start : start + detectors.IMAGES_AT_ONCE].to(run.device)
        boxes, labels = rcnn.targets_of(part)
        pasted = mask.paste(inside(part, boxes)[labels >= 0], boxes[labels >= 0], part.images.shape[-1])
        found.append(mask.iou(pasted, torch.cat(part.masks)).cpu())
    return torch.cat(found)


def outcome(run: Run, scenes: Scenes, model: Any, crop: Any = rcnn.crop, shift: float = 0.0) -> dict[str, float]:
    """`MEASURES` of a network; `shift` moves what is read, in pixels, and not where the mask is put."""
    found = overlaps(run, scenes, lambda part, boxes: drawn(model, part, boxes + shift, crop))
    return {"mask_iou": found.mean().item(), "good": 100 * (found >= 0.75).float().mean().item()}


@cache
def mean_mask(run: Run) -> float:
    """IoU that one mask reaches in every true box, the mean of those of training: at most, over the seeds."""
    reached = []
    for seed in run.seeds:
        train, test = (scenes_of(run.preset, split, seed) for split in ("train", "test"))
        boxes, labels = rcnn.targets_of(train)
        owner = torch.arange(boxes.shape[1]).expand(len(boxes), -1)
        mean = mask.mask_targets(mask.masks_of(train), owner, boxes)[labels >= 0].mean(0).to(run.device)
        reached.append(overlaps(run, test, lambda _, at, mean=mean: mean.expand(*at.shape[:2], -1, -1)).mean().item())
    return max(reached)


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all; the IoU of masks on validation scenes decides."""

    def score(arm: str, rate: float, seed: int) -> float:
        return outcome(run, scenes_of(run.preset, "val", seed), masks_alone(run, arm, seed, rate), CROPS[arm])[
            "mask_iou"
        ]

    return study.search(run, "learning rate", ARMS, (5e-3, 1e-2, 2e-2), score)


@cache
def scores_of(run: Run) -> Scores:
    """What the arms measure on the test scenes; `shifted` is RoIAlign's network, which reads half a cell beside the box."""

    def measure(way: str, seed: int) -> study.Outcome:
        arm, shift = ("align", mask.STRIDE / 2) if way == "shifted" else (way, 0.0)
        model = masks_alone(run, arm, seed, rates_of(run)[arm])
        return outcome(run, scenes_of(run.preset, "test", seed), model, CROPS[arm], shift)

    return study.measured(run, [*ARMS, "shifted"], measure)


@cache
def trained(run: Run) -> list[detectors.Trained[Any]]:
    """A detector for each seed."""
    return [mask.train(run, seed) for seed in run.seeds]


# Experiments


def rounding(run: Run) -> None:
    """How far does rounding move a box, and the features that are read for it?"""
    experiment = run.experiment("rounding", question=str(rounding.__doc__), data="square boxes at all places of a grid")
    ious = {stride: [rounded_iou(side, stride) for side in SIDES] for stride in STRIDES}
    for stride in STRIDES:
        for side, value in zip(SIDES, ious[stride], strict=True):
            experiment.result(f"rounded_iou_{side}px_stride{stride}", [value], unit="", exact=True,
                              meaning=f"Box IoU after rounding to stride {stride}, box of {side} px")  # fmt: skip
    moves = torch.arange(0, 16.25, 0.25)
    seen = {name: mask.read(CROPS[name], moves) for name in ("align", "pool")}
    for name, values in seen.items():
        experiment.result(f"shift_{name}", [float((values - moves).abs().max())], unit="px", exact=True,
                          meaning=f"Largest error of the place that {ARMS[name]} reads, stride {mask.STRIDE}")  # fmt: skip
    experiment.figure(
        "shift",
        partial(draw_shift, moves=moves, seen=seen, ious=ious),
        caption="Above left: a box (solid) and its edges rounded to a grid of 16 px (dashed). Above right: what both operators "
        "read as a box moves. Below: IoU of the rounded box with the true one, mean over all places.",
        alt="A box and its rounded copy; a line for RoIAlign, stairs for RoIPool; IoU after rounding, rising with the side.",
    )


def rounded_iou(side: float, stride: int) -> float:
    """Mean IoU of a square box and the same box with edges rounded to whole cells, as RoIPool does first, over all places."""
    low = torch.arange(0.25, stride, 0.5)  # (P,), edges along one axis
    ends = torch.stack([low, low + side])
    cells = (ends / stride).round() * stride
    cells[1] = torch.maximum(cells[1], cells[0] + stride)  # a box has at least one cell
    shared = (torch.minimum(ends[1], cells[1]) - torch.maximum(ends[0], cells[0])).clamp(min=0)  # (P,)
    both, size = shared[:, None] * shared, cells[1] - cells[0]
    return float((both / (side**2 + size[:, None] * size - both)).mean())


def draw_shift(style: Style, moves: Tensor, seen: Mapping[str, Tensor], ious: Mapping[int, Sequence[float]]) -> Figure:
    figure = Figure(figsize=(study.WIDTH, 5.4), layout="constrained")
    axes = figure.subplot_mosaic([["box", "moves"], ["iou", "iou"]], height_ratios=[1, 1.1])
    show_image(axes["box"], torch.full((64, 64), 0.25), "a rounded box")
    axes["box"].hlines([15.5, 31.5, 47.5], -0.5, 63.5, color="0.5", linewidth=0.6)
    axes["box"].vlines([15.5, 31.5, 47.5], -0.5, 63.5, color="0.5", linewidth=0.6)
    box = torch.tensor([[9.0, 6.0, 41.0, 38.0]])
    draw_boxes(axes["box"], box)
    draw_boxes(axes["box"], (box / 16).round() * 16, colour="#6CC5F0", linestyle="--")
    for (name, values), line in zip(seen.items(), ("-", "--"), strict=True):
        axes["moves"].plot(moves, values, linestyle=line, label=ARMS[name])
    axes["moves"].set(xlabel="box moved by (px)", ylabel="features moved by (px)")
    for (stride, of_sides), line in zip(ious.items(), ("-", "--", ":"), strict=True):
        axes["iou"].semilogx(SIDES, of_sides, line, base=2, marker="o", markersize=4, label=f"stride {stride}")
    axes["iou"].set_xticks(SIDES, [str(side) for side in SIDES])
    axes["iou"].set(xlabel="side of the box (px)", ylabel="IoU after rounding", ylim=(0, 1))
    for name in ("moves", "iou"):
        axes[name].legend()
    return figure


def mask_features(run: Run) -> None:
    """What do masks lose when their network is trained on rounded features, or without convolutions?"""
    scores, nets = scores_of(run), {arm: build(run.preset, arm) for arm in ARMS}
    train, test = (len(scenes_of(run.preset, split, run.seeds[0])) for split in ("train", "test"))
    control = {"control": "The RoIAlign network loses overlap when what it reads is moved by half a cell.",
               "result": "shift_cost", "above": 0}  # fmt: skip
    experiment = study.opened(
        run, mask_features, data=f"true boxes of {train:,} digit scenes to train, of {test:,} others to test",
        sizes={arm: size_of(net) for arm, net in nets.items()}, steps=STEPS[run.preset], power=control,
        floor=scores.floor("mask IoU, which one mean mask in every box reaches,", "mask_iou", mean_mask(run), ARMS),
    )  # fmt: skip
    study.record(experiment, scores, MEASURES, {arm: " ".join(label.split()) for arm, label in ARMS.items()})
    for name, key, a, b, what in (
        ("align_gain", "mask_iou", "align", "pool", "RoIAlign minus RoIPool"),
        ("align_gain75", "good", "align", "pool", "RoIAlign minus RoIPool"),
        ("convolution_gain", "mask_iou", "align", "dense", "convolutional minus fully connected head"),
        ("shift_cost", "mask_iou", "align", "shifted", "RoIAlign minus the same, read half a cell beside the box"),
    ):
        unit = "points" if MEASURES[key].unit else ""
        study.difference(experiment, name, scores, key, a, b, unit=unit, meaning=f"{MEASURES[key].label}, {what}")
    for arm in ("align", "dense"):
        experiment.result(f"head_parameters_{arm}", [count_parameters(nets[arm].mask)], unit="", exact=True,
                          meaning=f"Parameters of the {'convolutional' if arm == 'align' else 'dense'} head")  # fmt: skip
    experiment.figure(
        "heads",
        study.bars(scores, MEASURES, ARMS),
        caption="Masks in true boxes, by networks that were trained with one operator each, backbone included. One mean mask in "
        f"every box reaches an IoU of {mean_mask(run):.2f}. Bars are means, dots are seeds.",
        alt="Bars of mask IoU and of the share of good masks for RoIAlign, for RoIPool, and for a fully connected head.",
    )


@torch.inference_mode()
def against_truth(run: Run, each: detectors.Trained[Any]) -> dict[str, Tensor]:
    """Of each detection with a box IoU of at least 0.5: score, box IoU, mask IoU, and that of its object's true box."""
    model, test, parts = each.model, each.test, []
    found = detectors.on_scenes(partial(mask.segmented, model), test, run.device)
    in_truth = overlaps(run, test, partial(drawn, model))
    of_scenes = in_truth.split([len(boxes) for boxes in test.boxes])
    for one, boxes, masks, own in zip(found, test.boxes, test.masks, of_scenes, strict=True):
        value, owner = box_iou(one["boxes"], boxes).max(1)
        good = value >= 0.5
        here = mask.iou(one["masks"][good].bool(), masks[owner[good]])
        parts.append(torch.stack([one["scores"][good], value[good], here, own[owner[good]]]))
    return dict(zip(("score", "box_iou", "iou", "iou_true_box"), torch.cat(parts, 1), strict=True))


def edge(masks: Tensor) -> Tensor:
    """The pixels of masks (1, H, W) within 2 px of the outline, inside."""
    outside = functional.max_pool2d(functional.pad(1 - masks.float(), (2,) * 4, value=1.0), 5, stride=1)
    return masks & (outside > 0)


def ceiling(side: int, cells: int) -> tuple[float, float, Tensor]:
    """IoU, boundary IoU and the mask of a horse with `side` px (longer side), kept in cells x cells."""
    horse = torch.from_numpy(~skimage.data.horse())
    y, x = horse.nonzero().unbind(1)
    horse = horse[y.min() : y.max() + 1, x.min() : x.max() + 1][None, None].float()
    height, width = (round(n * side / max(horse.shape)) for n in horse.shape[2:])
    small = functional.interpolate(horse, (height, width), mode="area")[0] >= 0.5  # (1, H, W)
    kept = functional.interpolate(small[None].float(), (cells, cells), mode="area")[:, 0]
    true = functional.pad(small, (8, 8 + side - width, 8, 8 + side - height))  # a square canvas
    again = mask.paste(kept, torch.tensor([[8.0, 8.0, 8.0 + width, 8.0 + height]]), true.shape[2])
    return float(mask.iou(true, again)), float(mask.iou(edge(true), edge(again))), again[0]


def limits(run: Run) -> None:
    """What limits a mask: its box, its score, or its cells?"""
    limit = "With one class, objects hard to find are hard to draw as well, so the score of the class says much of the mask."
    models, benchmark = trained(run), detectors.BENCHMARKS[run.preset]
    scores = Scores(run.seeds, {"detector": [outcome(run, each.test, each.model) for each in models]})
    experiment = run.experiment(
        "limits", question=str(limits.__doc__), data="test scenes; a horse", cannot_show=limit, steps=sum(benchmark.steps),
        floor=scores.floor("mask IoU, which one mean mask in every box reaches,", "mask_iou", mean_mask(run), ["detector"]),
    )  # fmt: skip
    pairs = [against_truth(run, each) for each in models]
    for name, values, meaning in (
        ("mask_iou", [p["iou"].mean() for p in pairs], "Mask IoU of found objects, predicted boxes"),
        ("box_cost", [(p["iou_true_box"] - p["iou"]).mean() for p in pairs], "Mask IoU in true boxes minus that in predicted"),
        ("score_agreement", [spearmanr(p["score"], p["iou"]).statistic for p in pairs], "Rank correlation of score and mask IoU"),
    ):  # fmt: skip
        experiment.result(name, scores.counted("detector", [float(each) for each in values]), unit="", meaning=meaning,
                          failed=scores.reasons("no object is found", "detector"))  # fmt: skip
    kept = {cells: [ceiling(side, cells)[:2] for side in HORSES] for cells in (14, mask.MASK)}
    for cells, values in kept.items():
        for side, pair in zip(HORSES, values, strict=True):
            for name, value in zip(("ceiling", "boundary"), pair, strict=True):
                experiment.result(f"{name}_{cells}cells_{side}px", [value], unit="", exact=True,
                                  meaning=f"Best {name} IoU in {cells} x {cells} cells at {side} px")  # fmt: skip
    experiment.result("outline_lost", [kept[mask.MASK][1][1] - kept[mask.MASK][-1][1]], unit="", exact=True,
                      meaning="Boundary IoU of the ceiling, an object of 56 px minus one of 384 px")  # fmt: skip
    experiment.figure(
        "limits",
        partial(draw_limits, pairs=pairs[0], kept=kept),
        caption="Above left: the mask's IoU of each found object against that of its box (first seed). Above right: a horse of "
        "384 px after 28 x 28 cells. Below: the best IoU of mask and outline (2 px wide) that cells can hold, by size.",
        alt="Scatter of mask IoU over box IoU; a horse with a blurred outline; lines of the best IoU, which fall for outlines.",
    )


def draw_limits(style: Style, pairs: Mapping[str, Tensor], kept: Mapping[int, Any]) -> Figure:
    figure = Figure(figsize=(study.WIDTH, 5.6), layout="constrained")
    axes = figure.subplot_mosaic([["box", "horse"], ["best", "best"]], height_ratios=[1, 1.2])
    axes["box"].plot(pairs["box_iou"], pairs["iou"], "o", markersize=2)
    axes["box"].set(xlabel="IoU of the box", ylabel="IoU of the mask", ylim=(0, 1))
    show_image(axes["horse"], ceiling(HORSES[-1], mask.MASK)[2], "384 px in 28 x 28 cells")
    for cells, line in ((28, "-"), (14, "--")):
        for which, label in enumerate(("mask", "outline")):
            axes["best"].semilogx(HORSES, [each[which] for each in kept[cells]], line, base=2, marker="o", markersize=4,
                                  color=style.cycle[which], label=f"{label}, {cells} x {cells}")  # fmt: skip
    axes["best"].set_xticks(HORSES, [str(side) for side in HORSES])
    axes["best"].set(xlabel="side of the object (px)", ylabel="best IoU", ylim=(0, 1))
    axes["best"].legend(loc="lower left", ncols=2, columnspacing=0.8)
    return figure


def cost(run: Run) -> None:
    """What do masks add to the multiplications of a published box detector?"""
    data = "torchvision's Mask R-CNN R50-FPN, 800 x 1344 px, 1,000 regions, 100 masks, on the meta device"
    experiment, parts = run.experiment("cost", question=str(cost.__doc__), data=data), published.stages_of(PUBLISHED)
    with torch.device("meta"):
        model, classifier = getattr(models.detection, PUBLISHED)(weights=None, weights_backbone=None), models.resnet50()
        image, _ = published.macs(classifier, torch.empty(1, 3, 224, 224))
    branch = count_parameters(model.roi_heads.mask_head) + count_parameters(model.roi_heads.mask_predictor)
    masks, total = parts["mask head"], sum(parts.values())
    for name, value, unit, meaning in (
        ("macs_published", total, "G", "All MACs with 100 masks, R50-FPN"),
        ("macs_over_classifier", total / image, "", "The same over those of a ResNet-50 at 224 px"),
        ("extra_macs_100", 100 * masks / (total - masks), "%", "MACs of 100 masks over those of the box detector"),
        ("extra_macs_1000", 1000 * masks / (total - masks), "%", "MACs, if all 1,000 proposals got a mask"),
        ("extra_parameters", 100 * branch / (count_parameters(model) - branch), "%", "Parameters of masks over all others"),
    ):  # fmt: skip
        experiment.result(name, [value], unit=unit, meaning=meaning, exact=True)


def side_by_side(run: Run) -> None:
    """How does it fare on the scenes that all detectors share?"""
    raw = partial(mask.detect, second=False)
    detectors.report(run, detectors.BENCHMARKS[run.preset], trained(run), mask.detect, raw, name="Mask R-CNN")


EXPERIMENTS = (rounding, mask_features, limits, cost, side_by_side)
