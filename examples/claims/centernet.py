"""CenterNet's claims: what does the check remove, what does center pooling add, and do peaks need suppression?"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from centernet import (
    KINDS,
    LEAST,
    PRESETS,
    CenterNet,
    CenterPooling,
    boxes_of,
    central_region,
    centre_scores,
    detect,
    loss_of,
    pair_corners,
    triplets,
)
from lab import detectors, study
from lab.boxes import suppressed
from lab.data import Split
from lab.data.scenes import Scenes
from lab.figures import Figure, Style, draw_boxes, panels, show_image
from lab.keypoints import (
    STRIDE,
    Found,
    Head,
    Hourglass,
    Keypoints,
    cells_of,
    gather,
    mean_over,
    objects_of,
    place_loss,
    places,
    surest,
)
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters, seed_everything
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, box_iou

ARMS = {"triplets": "triplets", "points": "Objects as Points"}
POINTS = {
    "smoke": (24, 24, 24),
    "quick": (16, 64, 104),
    "full": (96, 208, 288),
}  # widths for as many parameters as triplets
READ = 60  # places that Objects as Points reads
FLOOR = 20.0  # AP50 (%) after suppression, below which a training counts as failed
IOUS = torch.arange(1, 11) * 0.05  # of the false discovery rate, Section 3.1
AP = Measure("AP", "%")
BOXES = Measure("boxes per object", "", "no object is found")
RATE_OF_FALSE = Measure("false discovery rate", "%", "nothing is found")
Boxes = dict[str, Tensor]

# Rivals and controls


class WithoutPooling(CenterPooling):
    """The centre branch of the control: the same convolutions, and nothing gathered along lines."""

    def pool(self, rows: Tensor, columns: Tensor) -> Tensor:
        return rows + columns


class Points(nn.Module):
    """Objects as Points (arXiv:1904.07850) on the same hourglass: a heatmap of centres, and width and height at each place."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.body = Hourglass(widths)
        self.head = Head(Conv2dNormActivation(widths[0], widths[0]), widths[0], classes, extra=2)

    def forward(self, images: Tensor) -> Keypoints:
        return self.head(self.body(images))


def loss_of_points(model: nn.Module, scenes: Scenes) -> Tensor:
    """Heat and offsets of centres, and the sizes of the boxes at them, with the weight of the paper (0.1)."""
    found, objects = model(scenes.images), objects_of(scenes)
    low, high = objects.boxes.split(2, -1)
    cell = cells_of((low + high) / 2, found.heat.shape[-1])
    missed = (gather(found.extra, cell) - (high - low) / STRIDE).abs().sum(-1)
    return place_loss(found, objects, "centre") + 0.1 * mean_over(missed, objects.there)


def points(model: nn.Module, images: Tensor, *, only_peaks: bool = True, k: int = READ) -> list[Boxes]:
    """Boxes of Objects as Points; with `only_peaks` False, of the surest places whether they are peaks or not."""
    found = surest(model(images), k, only_peaks)
    half = found.extra.clamp(min=0) * STRIDE / 2  # (B, k, 2)
    boxes = torch.cat([found.at - half, found.at + half], dim=-1).clamp(0, images.shape[-1])
    parts = zip(boxes, found.score, found.label, found.score >= LEAST, strict=True)
    return [{"boxes": b[keep], "scores": s[keep], "labels": c[keep]} for b, s, c, keep in parts]


def build(arm: str, preset: str) -> nn.Module:
    """The untrained network of an arm; triplets carry a second centre branch, the control, on the same corners."""
    classes, sizes = detectors.BENCHMARKS[preset].classes, PRESETS[preset]
    if arm == "points":
        return Points(POINTS[preset], classes)
    model = CenterNet(sizes, classes)
    model.heads["plain"] = Head(WithoutPooling(sizes.widths[0]), sizes.widths[0], classes, 0)
    return model


# Arms, and their rates from one search

Trained = detectors.Trained[nn.Module]
Reader = Callable[[Any, Tensor], list[Boxes]]


def final(model: Any, images: Tensor, read: Reader, **how: Any) -> list[Boxes]:
    """What suppression leaves of the boxes of a reader."""
    return [suppressed(each) for each in read(model, images, **how)]


def train(run: Run, arm: str, seed: int, rate: float, split: Split = "test") -> Trained:
    """One arm on the benchmark; only what the side by side reports needs the curve."""
    benchmark = detectors.BENCHMARKS[run.preset]
    if arm == "points" or split == "val":
        benchmark = replace(benchmark, every=benchmark.steps[0])
    k, rate = PRESETS[run.preset].keypoints, rate * PRESETS[run.preset].rate
    loss, read = (loss_of_points, partial(final, read=points)) if arm == "points" else (loss_of, partial(detect, k=k))
    seed_everything(seed)
    settings: dict[str, Any] = {"learning_rate": rate, "what": arm, "split": split}
    return detectors.train(run, benchmark, seed, build(arm, run.preset), loss, read, **settings)


@cache
def rates(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for both; AP after suppression on validation scenes decides."""

    def score(arm: str, rate: float, seed: int) -> float:
        return train(run, arm, seed, rate, "val").curve[-1][1]

    return study.search(run, "learning rate", tuple(ARMS), (2e-3, 4e-3, 8e-3), score)


@cache
def trained(run: Run, arm: str) -> list[Trained]:
    """One model for each seed."""
    return [train(run, arm, seed, rates(run)[arm]) for seed in run.seeds]


@torch.inference_mode()
def with_true_centres(each: Trained, scenes: Scenes, run: Run) -> list[Boxes]:
    """Final boxes of scenes if every centre were found, with a score of 1."""
    output = each.model(scenes.images.to(run.device))
    tl, br = (Found(*(x.cpu() for x in surest(output[kind], PRESETS[run.preset].keypoints))) for kind in ("tl", "br"))
    objects = objects_of(scenes)
    at = places(objects.boxes, "centre")
    centres = Found(objects.there.float(), objects.labels, at, at[..., :0])
    return [suppressed(one) for one in boxes_of(pair_corners(tl, br), centres, scenes.images.shape[-1])]


def measures(run: Run, found: Sequence[Boxes], each: Trained) -> dict[str, float]:
    """Those of all detectors, and the false discovery rate in %."""
    shared = detectors.measures(found, each.test, detectors.BENCHMARKS[run.preset])
    return shared | {"false_discovery": false_discovery(found, each.test)}


@cache
def scores_of(run: Run) -> Scores:
    """All ways to read the trained networks; failed trainings are marked for each of them."""
    k = PRESETS[run.preset].keypoints
    readers: dict[str, tuple[str, Reader]] = {
        "triplets": ("triplets", partial(detect, k=k)),
        "triplets_raw": ("triplets", partial(triplets, k=k)),
        "pairs": ("triplets", partial(detect, check=None, k=k)),
        "plain": ("triplets", partial(detect, check="plain", k=k)),
        "all": ("points", partial(points, only_peaks=False)),
        "nms": ("points", partial(final, read=points, only_peaks=False)),
        "peaks": ("points", points),
        "peaks_nms": ("points", partial(final, read=points)),
    }
    found = {
        name: [detectors.on_scenes(partial(read, each.model), each.test, run.device) for each in trained(run, arm)]
        for name, (arm, read) in readers.items()
    }
    found["true"] = [with_true_centres(each, each.test, run) for each in trained(run, "triplets")]
    of_arm = {name: arm for name, (arm, _) in readers.items()} | {"true": "triplets"}
    outcomes = {
        name: [measures(run, one, each) for one, each in zip(seeds, trained(run, of_arm[name]), strict=True)]
        for name, seeds in found.items()
    }
    scores = Scores(run.seeds, outcomes)
    scores.floor("AP50 after suppression", "ap50", FLOOR, ("triplets", "peaks_nms"))
    failed = {"triplets": scores.failed.get("triplets", {}), "points": scores.failed.get("peaks_nms", {})}
    scores.failed.update({name: failed[arm] for name, arm in of_arm.items()})
    return scores


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    """An experiment on the shared scenes, with the sizes and the search of its arms."""
    sizes = {arm: count_parameters(build(arm, run.preset)) for arm in arms}
    return detectors.opened(run, experiment, sizes, ("AP50 after suppression (%)", FLOOR), **more)


# Experiments


def false_discovery(found: Sequence[Boxes], scenes: Scenes) -> float:
    """1 minus AP, mean over IoUs of 0.05 to 0.5 (Section 3.1), in %; of all classes together, NaN where nothing is found."""
    parts = [hits_of(each, *truth) for each, *truth in zip(found, scenes.boxes, scenes.labels, strict=True)]
    order = torch.cat([each["scores"] for each in found]).argsort(descending=True, stable=True)
    if not len(order):
        return math.nan
    hits = torch.cat(parts)[order]
    precision = hits.cumsum(0) / torch.arange(1, 1 + len(hits))[:, None]
    best = precision.flip(0).cummax(0).values.flip(0)
    return 100 * (1 - float((best * hits).sum(0).mean()) / sum(map(len, scenes.boxes)))


def hits_of(found: Boxes, boxes: Tensor, labels: Tensor) -> Tensor:
    """Whether each box of an image takes an object that no surer one has taken, (n, 10): one column for each IoU."""
    hits, free = torch.zeros(len(found["scores"]), len(IOUS), dtype=torch.bool), torch.ones(len(IOUS), len(labels))
    if not len(labels):
        return hits
    overlaps = box_iou(found["boxes"], boxes) * (found["labels"].long()[:, None] == labels)  # (n, m)
    for row in found["scores"].argsort(descending=True).tolist():
        overlap, owner = (overlaps[row] * free).max(1)
        hits[row] = overlap >= IOUS
        free[hits[row].nonzero()[:, 0], owner[hits[row]]] = 0
    return hits


def draw_check(style: Style, scene: Scenes, said: Mapping[str, Keypoints], k: int) -> Figure:
    """The pairs of corners of one scene that a centre confirms, and those that none does, with their central regions."""
    found = {kind: surest(said[kind], k) for kind in KINDS}
    pairs = pair_corners(found["tl"], found["br"])
    keep = pairs.valid[0] & (pairs.scores[0] >= 0.1)
    boxes, confirmed = pairs.boxes[0][keep], centre_scores(pairs, found["centre"])[0][keep] > 0
    centres = found["centre"].at[0][found["centre"].score[0] >= LEAST]
    figure, axes = panels(1, 2, width=study.WIDTH, height=3.0)
    for ax, some, word in zip(axes[0], (boxes[confirmed], boxes[~confirmed]), ("confirmed", "rejected"), strict=True):
        show_image(ax, scene.images[0], f"{len(some)} pairs {word}")
        draw_boxes(ax, some, linewidth=1.2)
        draw_boxes(ax, central_region(some), colour="#BFE3FA", linewidth=0.8, linestyle=":")
        ax.plot(*(centres - 0.5).T.numpy(), "+", color="#E0672A", markersize=9, mew=2)
        ax.set(xlim=(-0.5, scene.images.shape[-1] - 0.5), ylim=(scene.images.shape[-1] - 0.5, -0.5))
    return figure


def check_figure(run: Run, experiment: Experiment) -> None:
    """The check on the fullest test scene of the first seed."""
    first = trained(run, "triplets")[0]
    full = max(range(len(first.test)), key=lambda index: len(first.test.boxes[index]))
    scene = first.test[full : full + 1]
    with torch.inference_mode():
        output = first.model(scene.images.to(run.device))
    said = {kind: Keypoints(*(x.cpu() for x in each)) for kind, each in output.items()}
    experiment.figure(
        "check",
        partial(draw_check, scene=scene, said=said, k=PRESETS[run.preset].keypoints),
        caption="Pairs of corners with a score of at least 0.1. Dotted: central regions; plus signs: predicted centres.",
        alt="The scene twice: with the pairs of corners that a centre confirms, and with those that none does.",
    )


def centre_check(run: Run) -> None:
    """Does a look at the centre remove false boxes?"""
    scores = scores_of(run)
    control = {"control": "Given the true centres, the same check is better by far, so what a check changes is measured.",
               "result": "true_centre_gain", "above": 0}  # fmt: skip
    experiment = opened(run, centre_check, ("triplets",), power=control)
    arms = {"pairs": "pairs of corners", "triplets": "triplets", "true": "triplets, given the true centres"}
    study.record(experiment, scores, {"ap": AP}, arms)
    study.record(
        experiment, scores, {"false_discovery": RATE_OF_FALSE}, {arm: arms[arm] for arm in ("pairs", "triplets")}
    )
    names = detectors.AP_NAMES
    for name, measure, a, b, meaning in (
        ("false_discovery_removed", "false_discovery", "pairs", "triplets", "False discovery rate that the check removes"),
        *((f"check_gain_{size}", size, "triplets", "pairs", f"{names[size]} that the check adds")
          for size in ("ap", "ap_small", "ap_large")),
        *((f"pooling_gain_{size}", size, "triplets", "plain", f"{names[size]} that center pooling adds")
          for size in ("ap", "ap_large")),
        ("true_centre_gain", "ap", "true", "triplets", "AP that true centres would add"),
        ("nms_gain", "ap", "triplets", "triplets_raw", "AP of triplets that suppression adds"),
    ):  # fmt: skip
        study.difference(experiment, name, scores, measure, a, b, unit="points", meaning=meaning)
    check_figure(run, experiment)
    short = {"pairs": "pairs", "plain": "no center\npooling", "triplets": "triplets", "true": "true\ncentres"}
    experiment.figure(
        "rates",
        study.bars(scores, {"false_discovery": RATE_OF_FALSE, "ap": AP}, short),
        caption="The same corners without a check, checked by a branch without center pooling, by the whole model, and with true "
        "centres. Bars are means, dots are seeds.",
        alt="Bars of false discovery rate and AP: pairs, triplets without center pooling, triplets, and with true centres.",
    )


def objects_as_points(run: Run) -> None:
    """Can peaks take the place of suppression?"""
    scores = scores_of(run)
    control = {"control": "All of the surest places of the same heatmap leave duplicates, which the measure counts.",
               "result": "points_boxes_all", "above": 1.05}  # fmt: skip
    experiment = opened(run, objects_as_points, ARMS, power=control)
    arms = {"all": "all places", "nms": "all places and NMS", "peaks": "peaks"}
    study.record(
        experiment,
        scores.renamed({"ap": "points_ap", "boxes": "points_boxes"}),
        {"points_ap": AP, "points_boxes": BOXES},
        arms,
    )
    for name, a, b, meaning in (
        ("nms_gain_after_peaks", "peaks_nms", "peaks", "AP that NMS adds after peaks"),
        ("peaks_gain", "peaks", "all", "AP that peaks add to all places"),
        ("ap_behind_points", "peaks", "triplets", "AP of Objects as Points minus that of triplets"),
    ):
        study.difference(experiment, name, scores, "ap", a, b, unit="points", meaning=meaning)
    experiment.figure(
        "peaks",
        study.bars(
            scores,
            {"boxes": BOXES, "ap": AP},
            {"all": "all\nplaces", "nms": "NMS", "peaks": "peaks", "triplets": "triplets,\nNMS"},
        ),
        caption="Objects as Points with a box from each of the surest places, after suppression, and from peaks alone; and "
        "triplets with the same budget. Bars are means, dots are seeds.",
        alt="Boxes per object, and AP, of Objects as Points with all places, with NMS, and with peaks, and of triplets.",
    )


def side_by_side(run: Run) -> None:
    """How does it fare on the scenes that all detectors share?"""
    read, raw = (partial(each, k=PRESETS[run.preset].keypoints) for each in (detect, triplets))
    detectors.report(run, detectors.BENCHMARKS[run.preset], trained(run, "triplets"), read, raw, name="CenterNet")


EXPERIMENTS = (centre_check, objects_as_points, side_by_side)
