"""YOLOv8's claims: do surplus points make suppression necessary, what is the finest grid for, and what do its scores know?"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from lab import detectors, study
from lab.boxes import suppressed
from lab.data import Split
from lab.figures import Figure, Style, draw_boxes, panels, seed_bars, show_image
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters, seed_everything
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchvision.ops import box_iou
from yolov8 import (
    BINS,
    MOST,
    PRESETS,
    YOLO,
    Assignment,
    Output,
    detect,
    distances,
    loss_of,
    raw,
    targets_of,
    task_aligned,
    train,
)

ARMS = {"yolov8": "YOLOv8", "one_point": "one point each", "coarse": "without stride 8"}
POINTS = {"yolov8": MOST, "one_point": 1, "coarse": MOST}  # most points that learn an object
WIDER = {"smoke": 5, "quick": 6, "full": 14}  # channels that the branches of the coarse arm have more
FLOOR = 20.0  # AP50 (%) after suppression, below which a training counts as failed
SURE, NEAR = (
    0.05,
    0.3,
)  # score and IoU from which a box counts as one on an object, where its score and edges are judged
SIDE = 640  # pixels of an image whose boxes are counted
ANCHORS = (9, (8, 16, 32, 64, 128))  # boxes for each cell and strides of RetinaNet, Section 4 of arXiv:1708.02002
AP = Measure("AP", "%")
BOXES = Measure("boxes per object", "", "no object is found")

# Rivals and controls


def build(arm: str, preset: str) -> YOLO:
    """The untrained network of an arm; that without the finest grid has wider branches, to have as many parameters."""
    sizes = PRESETS[preset]
    if arm == "coarse":
        box, score = sizes.heads
        sizes = sizes._replace(grids=sizes.grids - 1, heads=(WIDER[preset] + box, WIDER[preset] + score))
    return YOLO(sizes, detectors.BENCHMARKS[preset].classes)


# Arms, and their rates from one search

Trained = detectors.Trained[nn.Module]


def train_arm(run: Run, arm: str, seed: int, rate: float, split: Split = "test") -> Trained:
    """One arm on the benchmark; only what the side by side reports needs the curve."""
    if (arm, split) == ("yolov8", "test"):
        return train(run, seed, rate)
    benchmark = detectors.BENCHMARKS[run.preset]
    benchmark = replace(benchmark, every=benchmark.steps[0])
    seed_everything(seed)
    model: nn.Module = build(arm, run.preset)
    loss = partial(loss_of, most=POINTS[arm])
    return detectors.train(run, benchmark, seed, model, loss, detect, learning_rate=rate, what=arm, split=split)


@cache
def rates(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all; AP after suppression on validation scenes decides."""

    def score(arm: str, rate: float, seed: int) -> float:
        return train_arm(run, arm, seed, rate, "val").curve[-1][1]

    return study.search(run, "learning rate", tuple(ARMS), (2e-3, 4e-3, 8e-3), score)


@cache
def trained(run: Run, arm: str) -> list[Trained]:
    """One model for each seed."""
    return [train_arm(run, arm, seed, rates(run)[arm]) for seed in run.seeds]


@cache
def scores_of(run: Run, arms: tuple[str, ...]) -> Scores:
    """Every arm after suppression, and before it as `<arm>_raw`; failed trainings are marked."""
    benchmark, outcomes = detectors.BENCHMARKS[run.preset], dict[str, list[dict[str, float]]]()
    for arm in arms:
        for each in trained(run, arm):
            found = detectors.on_scenes(partial(raw, each.model), each.test, run.device)
            outcomes.setdefault(f"{arm}_raw", []).append(detectors.measures(found, each.test, benchmark))
            outcomes.setdefault(arm, []).append(
                detectors.measures([suppressed(one) for one in found], each.test, benchmark)
            )
    scores = Scores(run.seeds, outcomes)
    scores.floor("AP50 after suppression", "ap50", FLOOR, arms)
    scores.failed.update({f"{arm}_raw": scores.failed.get(arm, {}) for arm in arms})
    return scores


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    """An experiment on the shared scenes, with the sizes and the search of its arms."""
    sizes = {arm: count_parameters(build(arm, run.preset)) for arm in arms}
    return detectors.opened(run, experiment, sizes, ("AP50 after suppression (%)", FLOOR), **more)


# Experiments


def suppression(run: Run) -> None:
    """What is suppression worth, and is it the surplus points of an object that make it necessary?"""
    scores = scores_of(run, tuple(ARMS))
    control = {"control": "With one point for each object, the same network leaves about one box on each.",
               "result": "boxes_one_point_raw", "below": 1.2}  # fmt: skip
    experiment = opened(run, suppression, ("yolov8", "one_point"), power=control)
    also = {"raw": scores.outcomes["yolov8_raw"], "final": scores.outcomes["yolov8"]}
    named = replace(scores, outcomes={**scores.outcomes, **also})
    named.failed.update(dict.fromkeys(("raw", "final"), scores.failed.get("yolov8", {})))
    arms = {"raw": "before suppression", "final": "after suppression", "one_point_raw": "one point each, before suppression",
            "one_point": "one point each, after suppression"}  # fmt: skip
    study.record(experiment, named, {"ap": AP, "boxes": BOXES}, arms)
    for name, measure, a, b, unit, meaning in (
        ("nms_gain", "ap", "final", "raw", "points", "AP gained by suppression"),
        (
            "nms_gain_one_point",
            "ap",
            "one_point",
            "one_point_raw",
            "points",
            "AP gained by suppression, one point each",
        ),
        (
            "boxes_of_surplus_points",
            "boxes",
            "raw",
            "one_point_raw",
            "boxes",
            "Boxes per object that surplus points add",
        ),
        ("ap_of_surplus_points", "ap", "final", "one_point", "points", "AP after suppression that surplus points add"),
    ):
        study.difference(experiment, name, named, measure, a, b, unit=unit, meaning=meaning)
    labels = {
        "raw": "YOLOv8,\nraw",
        "final": "with\nNMS",
        "one_point_raw": "one point\neach, raw",
        "one_point": "with\nNMS",
    }
    experiment.figure(
        "suppression",
        study.bars(named, {"boxes": BOXES, "ap": AP}, labels),
        caption="Up to ten points learn each object, or only the best one. Bars are means, dots are seeds.",
        alt="Boxes per object and AP, before and after suppression, with up to ten points for each object and with one.",
    )


def draw_points(style: Style, scene: Any, output: Output, assigned: Assignment) -> Figure:
    """The points of each grid, and those that the assignment gives to an object of the scene."""
    grids = output.strides.unique().tolist()
    figure, axes = panels(1, len(grids), width=study.WIDTH, height=2.9)
    for ax, stride in zip(axes[0], grids, strict=True):
        show_image(ax, scene.images[0].mean(0) * 0.6, f"points of stride {stride:g}")
        draw_boxes(ax, scene.boxes[0], linewidth=1.2)
        here = output.strides == stride
        size = torch.where(assigned.owner[0, here] >= 0, 20 + 160 * assigned.target[0, here], 3)
        colours = ["#E0672A" if each >= 0 else "white" for each in assigned.owner[0, here].tolist()]
        ax.scatter(*(output.points[here] - 0.5).T.numpy(), s=size.numpy(), c=colours, edgecolor="white", linewidth=0.5)
    return figure


@torch.inference_mode()
def read(run: Run, each: Trained, scenes: Any) -> Output:
    """What a trained network says of scenes, on the CPU."""
    return Output(*(part.cpu() for part in each.model(scenes.images.to(run.device))))


def finest_grid(run: Run) -> None:
    """Which objects need the finest grid?"""
    pair, scores = {"yolov8": "with stride 8", "coarse": "without"}, scores_of(run, tuple(ARMS))
    experiment = opened(run, finest_grid, pair)
    sizes = ("small", "medium", "large")
    by_size = {f"ap_{size}": Measure(f"AP, {size}", "%", "no object of this size") for size in sizes}
    study.record(experiment, scores, {"ap": AP, **by_size}, pair)
    for size in sizes:
        meaning = f"AP of {size} objects that the grid of stride 8 adds"
        study.difference(
            experiment, f"fine_gain_{size}", scores, f"ap_{size}", "yolov8", "coarse", unit="points", meaning=meaning
        )
    first = trained(run, "yolov8")[0]
    full = max(range(len(first.test)), key=lambda index: len(first.test.boxes[index]))
    scene = first.test[full : full + 1]
    output = read(run, first, scene)
    assigned = task_aligned(output, targets_of(scene, output.logits.shape[2]))
    experiment.figure(
        "points",
        partial(draw_points, scene=scene, output=output, assigned=assigned),
        caption="Orange: points that would learn an object, the larger the higher the score they would learn. The assignment "
        "chooses among all grids by how well each point does.",
        alt="One scene once for each grid: small dots at the centres of cells, large ones on the objects that they learn.",
    )
    low, high = detectors.BENCHMARKS[run.preset].sizes
    experiment.figure(
        "finest_grid",
        study.bars(scores, by_size, pair),
        caption=f"AP of objects up to {low:g} px, up to {high:g} px, and larger. Bars are means, dots are seeds.",
        alt="Bars of AP for small, medium and large objects, with the points of stride 8 and without them.",
    )


class Known(NamedTuple):
    """Of boxes on an object: score (n,), IoU (n,); of their edges: spread px (n, 4), error px (n, 4)."""

    score: Tensor
    overlap: Tensor
    spread: Tensor
    error: Tensor


def known(run: Run, each: Trained) -> Known:
    """All boxes of the test scenes, before suppression, that are a little sure and lie on an object."""
    parts, bins = [], torch.arange(float(BINS))
    for start in range(0, len(each.test), detectors.IMAGES_AT_ONCE):
        scenes = each.test[start : start + detectors.IMAGES_AT_ONCE]
        output = read(run, each, scenes)
        p, mean, score = output.edges.softmax(-1), distances(output.edges), output.logits.sigmoid().amax(-1)
        spread = (p * (bins - mean[..., None]) ** 2).sum(-1).sqrt() * output.strides[:, None]  # (B, N, 4)
        for image, truth in enumerate(scenes.boxes):
            if len(truth):
                overlap, owner = box_iou(output.boxes[image], truth).max(1)
                error = (output.boxes[image] - truth[owner]).abs()
                keep = (score[image] >= SURE) & (overlap >= NEAR)
                parts.append([x[keep] for x in (score[image], overlap, spread[image], error)])
    return Known(*(torch.cat(part) for part in zip(*parts, strict=True)))


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's coefficient of two series; NaN for fewer than three values, or for a series of one value."""
    if a.numel() < 3 or a.min() == a.max() or b.min() == b.max():
        return math.nan
    return float(spearmanr(a.flatten().numpy(), b.flatten().numpy()).statistic)


def quarters(by: Tensor, values: Tensor) -> list[float]:
    """Mean of the values in each quarter of their order by `by`; NaN for a quarter without one."""
    return [float(part.mean()) for part in values.flatten()[by.flatten().argsort()].tensor_split(4)]


def draw_knowledge(style: Style, by_score: Sequence[Sequence[float]], by_spread: Sequence[Sequence[float]]) -> Figure:
    """Each (seeds, 4 quarters): IoU by score, error by spread."""
    figure, axes = panels(1, 2, width=study.WIDTH, height=2.9)
    titles = (("IoU of the box", "quarter by score"), ("error of the edge (px)", "quarter by spread"))
    for ax, rows, (title, label), colour in zip(axes[0], (by_score, by_spread), titles, style.cycle[:2], strict=True):
        columns = [[value for value in column if not math.isnan(value)] for column in zip(*rows, strict=True)]
        seed_bars(ax, ["lowest", "2nd", "3rd", "highest"], [each or [0.0] for each in columns], [colour] * 4)
        ax.set(title=title, xlabel=label)
    return figure


def knowledge(run: Run) -> None:
    """Do score and spread say how good a box is?"""
    parts = [known(run, each) for each in trained(run, "yolov8")]
    pairs = {"score_fit_correlation": ("score", "overlap"), "spread_error_correlation": ("spread", "error")}
    found: Mapping[str, list[Mapping[str, float]]] = {
        "yolov8": [
            {name: rank_correlation(getattr(e, a), getattr(e, b)) for name, (a, b) in pairs.items()} for e in parts
        ]
    }
    scores = Scores(run.seeds, found, scores_of(run, tuple(ARMS)).failed)
    experiment = opened(run, knowledge, ("yolov8",))
    for name, meaning in (
        ("score_fit_correlation", "Rank correlation of a box's score with its IoU"),
        ("spread_error_correlation", "Rank correlation of the spread of an edge with its error"),
    ):
        failed = scores.reasons("too few boxes on objects", "yolov8")
        experiment.result(name, scores.values(name, "yolov8"), unit="", meaning=meaning, failed=failed)
    by_score, by_spread = ([quarters(*pair) for pair in found] for found in
                           ([(e.score, e.overlap) for e in parts], [(e.spread, e.error) for e in parts]))  # fmt: skip
    experiment.figure(
        "knowledge",
        partial(draw_knowledge, by_score=by_score, by_spread=by_spread),
        caption="Left: IoU of boxes by their score. Right: error of edges by the spread of their distribution. Boxes on an "
        "object before suppression; bars are means, dots are seeds.",
        alt="Two bar charts over quarters: IoU against score, and error of an edge against the spread of its distribution.",
    )


def boxes_to_sort(run: Run) -> None:
    """How many boxes does a grid of points give on an image, and how many does one with anchors?"""
    data = f"One image of {SIDE} px: cells of the grids of YOLOv8 and of RetinaNet (Section 4 of arXiv:1708.02002)"
    experiment = run.experiment("boxes_to_sort", question=str(boxes_to_sort.__doc__), data=data)
    per_cell, strides = ANCHORS
    points, anchors = (sum(math.ceil(SIDE / stride) ** 2 for stride in each) for each in ((8, 16, 32), strides))
    experiment.result("boxes_anchor_free", [points], unit="boxes", exact=True, meaning="Boxes of YOLOv8 on an image")
    meaning = "Boxes of RetinaNet, with anchors, over those of YOLOv8"
    experiment.result("anchors_over_points", [per_cell * anchors / points], unit="", exact=True, meaning=meaning)


def side_by_side(run: Run) -> None:
    """How does it fare on the scenes that all detectors share?"""
    detectors.report(run, detectors.BENCHMARKS[run.preset], trained(run, "yolov8"), detect, raw, name="YOLOv8")


EXPERIMENTS = (suppression, finest_grid, knowledge, boxes_to_sort, side_by_side)
