"""Faster R-CNN's claims: is it the second look that helps, what if anchors do not fit, and what is each suppression for?"""

# ruff: noqa: N999 (named after the card)
# mypy: disable-error-code="no-any-return, no-untyped-call, misc"
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from lab import detectors, published, rcnn, study
from lab.data import Split
from lab.figures import Figure, Style, panels, seed_bars, seed_lines
from lab.rcnn import FROM_ANCHORS
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters, seed_everything
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_iou, clip_boxes_to_image, sigmoid_focal_loss

faster = import_module("faster-rcnn")

ARMS = {"two_stage": "two stages", "dense": "dense head"}
ANCHORS = {"two_stage": "fitted", "one": "one at\neach place", "large": "twice\nas large"}
DEPTH = {"smoke": 4, "quick": 4, "full": 5}  # convolutions of the dense head: as many parameters as two stages have
FEW = 8  # regions of an image in the experiment on suppression
FLOOR = 20.0  # AP50 (%), below which a training counts as failed
AP, AP50 = Measure("AP", "%"), Measure("AP50", "%")
BOXES = Measure("boxes per object", "", "no object is found")

# Rivals and controls


class Dense(nn.Module):
    """The rival: no second look; the parameters of the second stage are convolutions of the first."""

    def __init__(self, preset: Any, benchmark: detectors.Benchmark, depth: int) -> None:
        super().__init__()
        k, self.canvas = len(preset.sides) * len(preset.ratios), benchmark.canvas
        self.backbone = rcnn.backbone(preset.width)
        self.head = faster.AnchorHead(preset.width, k, benchmark.classes, depth)
        cells = benchmark.canvas // faster.STRIDE
        self.anchors = nn.Buffer(rcnn.anchors_of(preset.sides, preset.ratios, cells, faster.STRIDE))


def dense_loss(model: Dense, scenes: Any) -> Tensor:
    """Focal loss over all anchors, made for dense detectors (arXiv:1708.02002), and box loss, per positive anchor."""
    targets = rcnn.targets_of(scenes)
    logits, offsets = model.head(model.backbone(scenes.images))
    owner = rcnn.match(model.anchors, targets, 0.5, 0.4, best=True)
    positive, mine = owner >= 0, owner.clamp(min=0)
    label = targets.labels.gather(1, mine).clamp(min=0)
    wanted = functional.one_hot(label, logits.shape[2]) * positive[..., None]
    focal = sigmoid_focal_loss(logits, wanted.float(), reduction="none").sum(2)
    anchors = model.anchors.expand_as(offsets)
    of_box = rcnn.box_loss(offsets, rcnn.encode(FROM_ANCHORS, rcnn.rows(targets.boxes, mine), anchors))
    return rcnn.mean_of(focal, owner != -2, positive.sum()) + rcnn.mean_of(of_box, positive)


def one_look(anchors: Tensor, logits: Tensor, offsets: Tensor, canvas: int) -> list[dict[str, Tensor]]:
    """Final boxes from what an `AnchorHead` alone says."""
    boxes = clip_boxes_to_image(rcnn.decode(FROM_ANCHORS, offsets, anchors), (canvas, canvas))
    return rcnn.final(boxes[:, :, None].expand(-1, -1, logits.shape[2], -1), logits.float().sigmoid(), faster.HEAD_NMS)


def detect_dense(model: Dense, images: Tensor) -> list[dict[str, Tensor]]:
    logits, offsets = model.head(model.backbone(images))
    return one_look(model.anchors, logits, offsets, model.canvas)


def detect_proposals(model: Any, images: Tensor) -> list[dict[str, Tensor]]:
    """What stage one alone would answer; it knows no classes, so for one class only."""
    logits, offsets = model.rpn(model.backbone(images))
    return one_look(model.anchors, logits, offsets, model.canvas)


# Arms, and their rates from one search


def shapes_of(run: Run, arm: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Sides and ratios of the anchors of an arm: against the fitted ones, either their number changes, or their size."""
    sides, ratios = faster.PRESETS[run.preset].sides, faster.PRESETS[run.preset].ratios
    if arm == "one":
        return sides[1:2], ratios[:1]
    return (tuple(2 * side for side in sides), ratios) if arm == "large" else (sides, ratios)


def build(run: Run, arm: str) -> nn.Module:
    """The untrained model of an arm; all have about as many parameters."""
    benchmark = detectors.BENCHMARKS[run.preset]
    if arm == "dense":
        return Dense(faster.PRESETS[run.preset], benchmark, DEPTH[run.preset])
    sides, ratios = shapes_of(run, arm)
    return faster.FasterRCNN(faster.PRESETS[run.preset]._replace(sides=sides, ratios=ratios), benchmark)


Trained = detectors.Trained[Any]


def train_arm(run: Run, arm: str, seed: int, rate: float, split: Split = "test") -> Trained:
    """One arm on the scenes and with the steps that all share; AP is followed only where it is reported."""
    if (arm, split) == ("two_stage", "test"):
        return faster.train(run, seed, rate)
    if arm != "dense":
        return faster.train(run, seed, rate, split, *shapes_of(run, arm), follow=False)
    benchmark = detectors.BENCHMARKS[run.preset]
    benchmark, rate = replace(benchmark, every=benchmark.steps[0]), rate * faster.PRESETS[run.preset].rate
    seed_everything(seed)
    settings: dict[str, Any] = {"learning_rate": rate, "what": arm, "split": split}
    return detectors.train(run, benchmark, seed, build(run, arm), dense_loss, detect_dense, **settings)


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all; AP on validation scenes decides."""

    def score(arm: str, rate: float, seed: int) -> float:
        return train_arm(run, arm, seed, rate, "val").curve[-1][1]

    return study.search(run, "learning rate", {**ARMS, **ANCHORS}, (1e-3, 2e-3, 4e-3), score)


@cache
def trained(run: Run, arm: str) -> list[Trained]:
    """One model for each seed."""
    return [train_arm(run, arm, seed, rates_of(run)[arm]) for seed in run.seeds]


def measures(run: Run, each: Trained, detect: Callable[..., Any]) -> dict[str, float]:
    """Those of all detectors, of the boxes of one way to detect."""
    found = detectors.on_scenes(partial(detect, each.model), each.test, run.device)
    return detectors.measures(found, each.test, detectors.BENCHMARKS[run.preset])


@cache
def outcomes(run: Run, arm: str) -> list[dict[str, float]]:
    """What an arm measures on the test scenes."""
    detect = detect_dense if arm == "dense" else faster.detect
    return [measures(run, each, detect) for each in trained(run, arm)]


def scores_of(run: Run, arms: Iterable[str]) -> Scores:
    """What the arms measure; failed trainings are marked."""
    scores = Scores(run.seeds, {arm: outcomes(run, arm) for arm in arms})
    scores.floor("AP50", "ap50", FLOOR, arms)
    return scores


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    """An experiment on the shared scenes, with the sizes and the searches of its arms."""
    sizes = {arm: count_parameters(build(run, arm)) for arm in arms}
    return detectors.opened(run, experiment, sizes, ("AP50", FLOOR), **more)


# Experiments


def second_look(run: Run) -> None:
    """Is a second look at each region worth more than a deeper dense head?"""
    control = {"control": "The same weights, read after stage one, lose what the second stage adds.",
               "result": "gain_over_proposals", "above": 0}  # fmt: skip
    experiment, scores = opened(run, second_look, ARMS, power=control), scores_of(run, ARMS)
    alone = [measures(run, each, detect_proposals) for each in trained(run, "two_stage")]
    failed = scores.failed | {"proposals": scores.failed.get("two_stage", {})}
    scores = Scores(run.seeds, {**scores.outcomes, "proposals": alone}, failed)
    labels = ARMS | {"proposals": "its stage one"}
    by_size = {f"ap_{size}": Measure(f"AP, {size}", "%", "no object of this size") for size in ("small", "large")}
    study.record(experiment, scores, {"ap": AP, "ap50": AP50, **by_size}, labels)
    for arm, name in (("dense", "over_dense"), ("proposals", "over_proposals")):
        meaning = f"AP of two stages minus that of the {labels[arm]}"
        study.difference(experiment, f"gain_{name}", scores, "ap", "two_stage", arm, unit="points", meaning=meaning)
    experiment.figure(
        "second_look",
        study.bars(scores, {"ap": AP, "ap50": AP50}, labels),
        caption="Two stages, a dense head on the same features with as many parameters, and the first of the two stages, "
        "read as if it were final. Bars are means, dots are seeds.",
        alt="Bars of AP and of AP50 for two stages, for the dense head, and for stage one alone.",
    )


def overlaps(run: Run, arm: str, test: Any) -> list[tuple[float, float]]:
    """Side (root of the area, px) of each object, and its IoU with the best anchor."""
    cells, boxes = detectors.BENCHMARKS[run.preset].canvas // faster.STRIDE, torch.cat(test.boxes)
    best = box_iou(boxes, rcnn.anchors_of(*shapes_of(run, arm), cells, faster.STRIDE)).amax(1)
    return list(zip((boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt().tolist(), best.tolist(), strict=True))


def anchors(run: Run) -> None:
    """Do the anchors have to fit the objects, in number or in size?"""
    control = {"control": "Fitted anchors cover more objects with an IoU of 0.5 than those of twice their size.",
               "result": "coverage_gain_size", "above": 0}  # fmt: skip
    experiment, scores = opened(run, anchors, ANCHORS, power=control), scores_of(run, ANCHORS)
    labels = {arm: " ".join(label.split()) for arm, label in ANCHORS.items()}
    tests = [each.test for each in trained(run, "two_stage")]
    found = {arm: [overlaps(run, arm, test) for test in tests] for arm in ANCHORS}
    covered = Scores(run.seeds, {arm: [{"covered": 100 * sum(iou >= 0.5 for _, iou in one) / len(one)} for one in each]
                                 for arm, each in found.items()})  # fmt: skip
    names = {"fitted": "two_stage", "one": "one", "large": "large"}
    for name, arm in names.items():
        meaning = f"Test objects that an anchor covers with an IoU of at least 0.5, {labels[arm]}"
        experiment.result(f"covered_{name}", covered.values("covered", arm), unit="%", meaning=meaning)
    study.record(experiment, scores, {"ap": AP}, {arm: labels[arm] for arm in ("one", "large")})
    for name, arm in (("number", "one"), ("size", "large")):
        what = f"minus {labels[arm]}"
        study.difference(experiment, f"coverage_gain_{name}", covered, "covered", "two_stage", arm, unit="points",
                         meaning=f"Objects covered, fitted anchors {what}")  # fmt: skip
        study.difference(experiment, f"anchor_{name}_gain", scores, "ap", "two_stage", arm, unit="points",
                         meaning=f"AP of fitted anchors {what}")  # fmt: skip
    experiment.figure(
        "anchors",
        partial(draw_anchors, found=found, scores=scores),
        caption="Above: test objects of the first seed, each with its overlap with the best anchor. Below: AP after the same "
        "training. Either the number of anchors changes or their size. Bars are means, dots are seeds.",
        alt="Scatter of the IoU with the best anchor against the size of the object for fitted anchors, for one at each "
        "place, and for anchors of twice the size; and bars of AP for the three.",
    )


def draw_anchors(style: Style, found: Mapping[str, Sequence[Any]], scores: Scores) -> Figure:
    figure, axes = panels(2, 1, width=study.WIDTH, height=5.4)
    for (arm, label), marker in zip(ANCHORS.items(), "o^x", strict=True):
        axes[0, 0].plot(*zip(*found[arm][0][:150], strict=True), marker, markersize=3.5, linestyle="none",
                        label=" ".join(label.split()))  # fmt: skip
    axes[0, 0].set(xlabel="side of the object (px)", ylabel="IoU with the best anchor", ylim=(0, 1))
    axes[0, 0].legend(loc="lower right")
    seed_bars(axes[1, 0], list(ANCHORS.values()), [[each["ap"] for each in scores.outcomes[arm]] for arm in ANCHORS])
    axes[1, 0].set_ylabel("AP (%)")
    return figure


def suppression(run: Run) -> None:
    """What is each of the two suppressions for, and how many regions does the first leave?"""
    control = {"control": "Without the second suppression each object is reported more than once, which the count sees.",
               "result": "boxes_without_second", "above": 1.5}  # fmt: skip
    experiment, budgets = (
        opened(run, suppression, ["two_stage"], power=control),
        (2, FEW, faster.PRESETS[run.preset].after),
    )
    models, failed = trained(run, "two_stage"), scores_of(run, ARMS).failed.get("two_stage", {})
    ways = {
        f"{name}_{most}": {"most": most, "first": name == "both"} for name in ("both", "no_first") for most in budgets
    }
    ways |= {"no_second": {"second": False}}
    found = {way: [left_over(run, each, **how) for each in models] for way, how in ways.items()}
    scores, many = Scores(run.seeds, found, dict.fromkeys(found, failed)), f"both_{budgets[-1]}"
    for name, a, b, meaning in (
        ("first_nms_gain", f"both_{FEW}", f"no_first_{FEW}", f"AP50 by suppression in stage one, {FEW} regions"),
        ("first_nms_gain_many", many, f"no_first_{budgets[-1]}", f"AP50 by it where {budgets[-1]} regions are judged"),
        ("second_nms_gain", many, "no_second", "AP50 by suppression among the final boxes"),
    ):
        study.difference(experiment, name, scores, "ap50", a, b, unit="points", meaning=meaning)
    boxes, reasons = scores.values("boxes", "no_second"), scores.reasons(BOXES.undefined, "no_second")
    experiment.result("boxes_without_second", boxes, unit="boxes", meaning="Confident boxes per object without it",
                      failed=reasons)  # fmt: skip
    ratio = [max(each) / min(each) for each in (regions_per_image(run, model) for model in models)]
    experiment.result(
        "regions_ratio", ratio, unit="", meaning="Regions of the test scene with the most over the fewest"
    )
    experiment.figure(
        "suppression",
        partial(draw_suppression, scores=scores, budgets=budgets, last=[many, "no_second"]),
        caption="AP50 of the trained detectors. Above: with and without suppression among the proposals, against the number "
        "of regions that stage two judges. Below: with and without suppression among the final boxes.",
        alt="Line chart of AP50 against the number of regions with and without the first suppression, and bars with and "
        "without the second one.",
    )


def left_over(run: Run, each: Trained, **how: Any) -> dict[str, float]:
    """AP50 and boxes per object of one way to detect."""
    found = detectors.on_scenes(partial(faster.detect, each.model, **how), each.test, run.device)
    boxes = detectors.boxes_of(found, each.test, detectors.BENCHMARKS[run.preset])
    return {"ap50": detectors.ap_of(found, each.test, "ap50"), "boxes": boxes}


@torch.inference_mode()
def regions_per_image(run: Run, each: Trained) -> list[int]:
    """Regions that the first suppression leaves of each test scene."""
    said = each.model.rpn(each.model.backbone(each.test.images.to(run.device)))
    return each.model.proposals(*said, most=each.model.preset.before).valid.sum(1).tolist()


def draw_suppression(style: Style, scores: Scores, budgets: Sequence[int], last: Sequence[str]) -> Figure:
    figure, axes = panels(2, 1, width=study.WIDTH, height=5.4)
    for name, label, line in (("both", "with the first", "-"), ("no_first", "without", "--")):
        values = [[each["ap50"] for each in scores.outcomes[f"{name}_{most}"]] for most in budgets]
        seed_lines(axes[0, 0], budgets, list(zip(*values, strict=True)), label, linestyle=line, marker="o")
    axes[0, 0].set_xscale("log", base=2)
    axes[0, 0].set_xticks(budgets, [str(most) for most in budgets])
    axes[0, 0].set(xlabel="regions for stage two", ylabel="AP50 (%)", ylim=(0, 100))
    axes[0, 0].legend(loc="lower right")
    seed_bars(axes[1, 0], ["with the second", "without"], [[e["ap50"] for e in scores.outcomes[way]] for way in last])
    axes[1, 0].set(ylabel="AP50 (%)", ylim=(0, 100))
    return figure


def stages_of_published() -> dict[str, dict[str, float]]:
    """MACs (10^9) of backbone, proposal network and head (all regions)."""
    names = {"r50_fpn": "fasterrcnn_resnet50_fpn", "r50_fpn_v2": "fasterrcnn_resnet50_fpn_v2"}
    return {"vgg16": published.stages_of_vgg16()} | {key: published.stages_of(name) for key, name in names.items()}


def cost(run: Run) -> None:
    """Which stage do the published detectors spend their multiplications on?"""
    data = "VGG-16 of 2015 (600 x 1000 px, 300 regions), and torchvision's two pyramids (800 x 1344 px, 1,000 regions)"
    experiment, stages = run.experiment("cost", question=str(cost.__doc__), data=data), stages_of_published()
    labels = {"vgg16": "VGG-16 (2015)", "r50_fpn": "R50-FPN", "r50_fpn_v2": "R50-FPN v2"}
    for name, label in labels.items():
        parts, total = stages[name], sum(stages[name].values())
        experiment.result(f"macs_{name}", [total], unit="G", exact=True, meaning=f"All MACs, {label}")
        for part, value in parts.items():
            meaning = f"MACs of the {part} in all of them, {label}"
            experiment.result(f"{part}_share_{name}", [100 * value / total], unit="%", exact=True, meaning=meaning)
    experiment.figure(
        "cost",
        partial(draw_cost, stages={label: stages[name] for name, label in labels.items()}),
        caption="Multiplications with additions of each stage. RoIAlign and suppression are left out.",
        alt="Stacked bars of the share of backbone, proposals and head in the MACs of VGG-16, R50-FPN and R50-FPN v2.",
    )


def draw_cost(style: Style, stages: Mapping[str, Mapping[str, float]]) -> Figure:
    figure, axes = panels(1, 1, width=study.WIDTH, height=2.6)
    left = [0.0] * len(stages)
    for part in ("backbone", "proposals", "head"):
        share = [100 * each[part] / sum(each.values()) for each in stages.values()]
        axes[0, 0].barh(list(stages), share, left=left, label=part)
        left = [a + b for a, b in zip(left, share, strict=True)]
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_xlabel("share of the MACs (%)")
    axes[0, 0].legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, columnspacing=0.8)
    return figure


def side_by_side(run: Run) -> None:
    """How does it fare on the scenes that all detectors share?"""
    raw = partial(faster.detect, first=False, second=False)
    benchmark, models = detectors.BENCHMARKS[run.preset], trained(run, "two_stage")
    detectors.report(run, benchmark, models, faster.detect, raw, name="Faster R-CNN")


EXPERIMENTS = (second_look, anchors, suppression, cost, side_by_side)
