"""DETR's claims: is it the one-to-one matching that makes suppression needless, and what does a dense head do better?"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from detr import DETR, EMPTY, PRESETS, Predictions, detect, hungarian, loss_of, matching_cost, one_to_one, train
from lab import detectors, study
from lab.boxes import Targets, grid_points, suppressed
from lab.data import Split
from lab.figures import Figure, Style, draw_boxes, panels, show_image
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters, seed_everything
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

ARMS = {"set": "set, one to one", "one_to_many": "one to many", "dense": "dense head"}
READ_WITH_NMS = (
    "one_to_many",
    "dense",
)  # arms that leave duplicates by design are judged after suppression in the search
TOWERS = {
    "smoke": (28, 28, 24),
    "quick": (64, 64, 40),
    "full": (192, 192, 192, 128),
}  # as many parameters as the decoder
FLOOR = 20.0  # AP50 (%) after suppression, below which a training counts as failed
BOXES = Measure("boxes per object", "", "no object is found")
AP50 = Measure("AP50", "%")

# Rivals and controls


def one_to_many(predictions: Predictions, targets: Targets, copies: int = 4) -> Tensor:
    """owner (B, N) of the control: as in DETR, but each object is there `copies` times."""
    return hungarian(matching_cost(predictions, targets), copies)


@torch.no_grad()
def central_cells(predictions: Predictions, targets: Targets, radius: float = 1.5) -> Tensor:
    """owner (B, N) of the dense head, whose N predictions are the cells of a square grid, row by row.

    As in FCOS (arXiv:1904.01355) with centre sampling: a cell belongs to an object if its centre lies in the box and
    within `radius` cells of the middle of the box, along both axes; of several objects, to the smallest. The cell in
    which the middle lies belongs to the object in any case.
    """
    side = round(predictions.logits.shape[1] ** 0.5)
    cells = grid_points(side).to(targets.boxes.device)  # (N, 2)
    middle, size = targets.boxes[:, None, :, :2], targets.boxes[:, None, :, 2:]  # (B, 1, M, 2)
    offset = (cells[:, None] - middle).abs()  # (B, N, M, 2)
    own = (offset <= 0.5 / side).all(-1)
    inside = ((offset <= size / 2) & (offset <= radius / side)).all(-1) | own  # (B, N, M)
    missing = targets.labels[:, None] == predictions.logits.shape[2] - 1
    # Cells of the middle come first, then the smaller object.
    rank = (size.prod(-1) - own.float()).masked_fill(~inside | missing, torch.inf)  # (B, N, M)
    best, owner = rank.min(-1)
    return owner.masked_fill(best.isposinf(), -1)


class Dense(nn.Module):
    """On DETR's backbone, convolutions predict a class and a box at every cell: (B, 3, H, W) -> L = 1 layer, N cells."""

    def __init__(self, body: DETR, tower: Sequence[int], classes: int, side: int) -> None:
        super().__init__()
        self.backbone, width = body.backbone, body.queries.shape[1]
        steps = list(zip((width, *tower), tower, strict=False))
        towers = [[Conv2dNormActivation(a, b) for a, b in steps] for _ in range(2)]
        self.of_class = nn.Sequential(*towers[0], nn.Conv2d(tower[-1], classes + 1, 1))
        self.of_box = nn.Sequential(*towers[1], nn.Conv2d(tower[-1], 4, 1))
        self.start = nn.Buffer(
            torch.logit(torch.cat([grid_points(side), torch.full((side**2, 2), 0.25)], -1))
        )  # (N, 4)

    def forward(self, images: Tensor) -> Predictions:
        features = self.backbone(images)
        logits, offsets = (head(features).flatten(2).mT.float() for head in (self.of_class, self.of_box))
        return Predictions(logits[None], (self.start + offsets).sigmoid()[None])


def build(arm: str, preset: str) -> nn.Module:
    """The untrained model of an arm; all have about as many parameters."""
    sizes, benchmark = PRESETS[preset], detectors.BENCHMARKS[preset]
    if arm == "dense":
        return Dense(DETR(sizes, benchmark), TOWERS[preset], benchmark.classes, benchmark.canvas // 8)
    return DETR(sizes, benchmark)


# Arms, and their rates and weights of no object from one search

ASSIGNMENTS: Mapping[str, Callable[[Predictions, Targets], Tensor]] = {
    "set": one_to_one,
    "one_to_many": one_to_many,
    "dense": central_cells,
}
Trained = detectors.Trained[nn.Module]


def train_arm(run: Run, arm: str, seed: int, rate: float, empty: float, split: Split = "test") -> Trained:
    """One arm on the benchmark; the curve is measured where the experiment on convergence needs it."""
    if (arm, split) == ("set", "test"):
        return train(run, seed, rate, empty)
    benchmark = detectors.BENCHMARKS[run.preset]
    if arm != "dense" or split == "val":
        benchmark = replace(benchmark, every=benchmark.steps[0])
    seed_everything(seed)
    loss, read = partial(loss_of, assign=ASSIGNMENTS[arm], empty=empty), partial(detect, suppress=arm in READ_WITH_NMS)
    settings = {"learning_rate": rate * PRESETS[run.preset].rate, "what": arm, "split": split}
    return detectors.train(run, benchmark, seed, build(arm, run.preset), loss, read, **settings)  # type: ignore[arg-type]


@cache
def settings_of(run: Run) -> dict[str, tuple[float, float]]:
    """Learning rate and weight of no object of each arm, both searched alike for all; AP on validation scenes decides."""

    @cache  # the second search starts with a weight that the first one has trained
    def score(arm: str, seed: int, rate: float, empty: float) -> float:
        return train_arm(run, arm, seed, rate, empty, "val").curve[-1][1]

    arms = tuple(ARMS)
    rates = study.search(
        run, "learning rate", arms, (1e-3, 2e-3, 4e-3), lambda arm, x, seed: score(arm, seed, x, EMPTY)
    )
    weights = study.search(
        run, "weight of no object", arms, (0.1, 0.2, 0.4), lambda arm, x, seed: score(arm, seed, rates[arm], x)
    )
    return {arm: (rates[arm], weights[arm]) for arm in arms}


@cache
def trained(run: Run, arm: str) -> list[Trained]:
    """One model for each seed."""
    return [train_arm(run, arm, seed, *settings_of(run)[arm]) for seed in run.seeds]


def measures(run: Run, each: Trained) -> tuple[dict[str, float], dict[str, float]]:
    """Those of all detectors, of its boxes as they are and of those that suppression leaves."""
    found = detectors.on_scenes(partial(detect, each.model), each.test, run.device)
    both, benchmark = (found, [suppressed(one) for one in found]), detectors.BENCHMARKS[run.preset]
    raw, final = (detectors.measures(boxes, each.test, benchmark) for boxes in both)
    return raw, final


@cache
def scores_of(run: Run, arms: tuple[str, ...]) -> Scores:
    """Every arm, as it is and, as `<arm>_nms`, after suppression; failed trainings are marked."""
    found: dict[str, list[dict[str, float]]] = {}
    for arm in arms:
        raw, final = zip(*(measures(run, each) for each in trained(run, arm)), strict=True)
        found |= {arm: list(raw), f"{arm}_nms": list(final)}
    scores = Scores(run.seeds, found)
    for arm in arms:
        scores.floor("AP50 after suppression", "ap50", FLOOR, [f"{arm}_nms"])
        scores.failed[arm] = scores.failed.get(f"{arm}_nms", {})
    return scores


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    """An experiment on the shared scenes, with the sizes and the searches of its arms."""
    sizes = {arm: count_parameters(build(arm, run.preset)) for arm in arms}
    return detectors.opened(run, experiment, sizes, ("AP50 after suppression (%)", FLOOR), **more)


# Experiments


def duplicates(run: Run) -> None:
    """How many boxes does each object get when nothing is suppressed?"""
    scores = scores_of(run, tuple(ARMS))
    control = {"control": "The same decoder, trained with several matches for each object, leaves duplicates that the measure "
               "counts.", "result": "boxes_per_object_one_to_many", "above": 2}  # fmt: skip
    experiment = opened(run, duplicates, ARMS, power=control)
    arms = dict(ARMS) | {f"{arm}_nms": f"{label} and NMS" for arm, label in ARMS.items() if arm != "set"}
    named = scores.renamed({"boxes": "boxes_per_object"})
    study.record(experiment, named, {"boxes_per_object": BOXES, "ap50": AP50}, arms)
    for arm, label in ARMS.items():
        meaning = f"AP50 gained by adding NMS: {label}"
        study.difference(
            experiment, f"nms_gain_{arm}", scores, "ap50", f"{arm}_nms", arm, unit="points", meaning=meaning
        )
    for name, measure, a, b, unit, meaning in (
        ("boxes_saved_by_one_to_one", "boxes", "one_to_many", "set", "boxes", "Boxes per object that one-to-one matching saves"),
        ("ap50_gap_to_dense_nms", "ap50", "set", "dense_nms", "points", "AP50 of the set minus that of the dense head with NMS"),
    ):  # fmt: skip
        study.difference(experiment, name, scores, measure, a, b, unit=unit, meaning=meaning)
    experiment.figure(
        "boxes_on_a_scene",
        partial(draw_scene, run=run),
        caption="Confident boxes on one test scene, nothing suppressed: the set predictor is trained to give one for each "
        "object, the two others are rewarded for several.",
        alt="The same scene four times: the true boxes, and the boxes of the set predictor, the one-to-many control and the "
        "dense head.",
    )
    short = {
        "set": "set",
        "one_to_many": "one to\nmany",
        "one_to_many_nms": "with\nNMS",
        "dense": "dense",
        "dense_nms": "with\nNMS",
    }
    experiment.figure(
        "boxes_per_object",
        study.bars(scores, {"boxes": BOXES, "ap50": AP50}, short),
        caption="Bars are means, dots are seeds. AP50 without suppression falls with every duplicate; with suppression the "
        "dense head shows what it can do.",
        alt="Two bar charts: boxes per found object, and AP50, for the set predictor, the one-to-many control, and the dense "
        "head without and with NMS.",
    )


def draw_scene(style: Style, run: Run) -> Figure:
    """The fullest test scene of the first seed, and confident boxes of each arm, in two rows."""
    first, confidence = trained(run, "set")[0].test, detectors.BENCHMARKS[run.preset].confidence
    scene = max(range(len(first)), key=lambda index: len(first.boxes[index]))
    figure, axes = panels(2, 2, width=5.4, height=5.6)
    show_image(axes[0, 0], first.images[scene], "truth")
    draw_boxes(axes[0, 0], first.boxes[scene])
    for ax, (arm, label) in zip(axes.flat[1:], ARMS.items(), strict=True):
        model = trained(run, arm)[0].model
        (found,) = detectors.on_scenes(partial(detect, model), first[scene : scene + 1], run.device)
        show_image(ax, first.images[scene], label)
        draw_boxes(ax, found["boxes"][found["scores"] >= confidence])
    return figure


def sizes(run: Run) -> None:
    """How do set predictor and dense head with suppression fare on small and on large objects?"""
    limit = "Both read one map of stride 8, and objects are no larger than what a convolution sees, so the published gain on "
    limit += "large objects and loss on small ones cannot show here."
    scores, arms = scores_of(run, tuple(ARMS)), {"set": "set", "dense_nms": "dense head with NMS"}
    experiment = opened(run, sizes, ("set", "dense"), cannot_show=limit)
    by_size = {
        f"ap_{size}": Measure(f"AP, {size}", "%", "no object of this size") for size in ("small", "medium", "large")
    }
    study.record(experiment, scores, {"ap": Measure("AP", "%"), **by_size}, arms)
    for name in by_size:
        meaning = f"{by_size[name].label} objects, set minus dense head with NMS"
        study.difference(experiment, f"{name}_gap", scores, name, "set", "dense_nms", unit="points", meaning=meaning)
    experiment.figure(
        "ap_by_size",
        study.bars(scores, by_size, {"set": "set,\nno NMS", "dense_nms": "dense head,\nNMS"}),
        caption="AP of about thirds of the objects, by size. Bars are means, dots are seeds.",
        alt="Bars of AP for small, medium and large objects, for the set predictor and for the dense head with NMS.",
    )


def convergence(run: Run) -> None:
    """Does set prediction learn more slowly than the dense head?"""
    pair = {"set": "set, no NMS", "dense": "dense head, NMS"}
    experiment = opened(run, convergence, pair)
    found = {
        arm: [
            {"steps_to_half": detectors.steps_to_half(each.curve), "last": each.curve[-1][1]}
            for each in trained(run, arm)
        ]
        for arm in pair
    }
    scores = Scores(run.seeds, found, scores_of(run, tuple(ARMS)).failed)
    study.record(experiment, scores, {"steps_to_half": Measure("Steps to half of its own final AP", "steps")}, pair)
    for name, measure, a, b, unit, meaning in (
        ("ap_behind_dense", "last", "dense", "set", "points", "AP of the dense head with NMS minus that of the set"),
        ("more_steps_to_half", "steps_to_half", "set", "dense", "steps", "Steps to half, set minus dense head"),
    ):
        study.difference(experiment, name, scores, measure, a, b, unit=unit, meaning=meaning)
    lines = {label: [each.curve[:-1] for each in trained(run, arm)] for arm, label in pair.items()}
    experiment.figure(
        "ap_against_steps",
        study.curves(lines, x="steps at a constant learning rate", y="AP (%)"),
        caption="AP on the test scenes. Lines are means over the seeds, bands reach from the worst to the best one.",
        alt="AP against training steps for the set predictor and the dense head, with bands over the seeds.",
    )


def side_by_side(run: Run) -> None:
    """How does it fare on the scenes that all detectors share?"""
    detectors.report(run, detectors.BENCHMARKS[run.preset], trained(run, "set"), detect, detect, name="DETR")


EXPERIMENTS = (duplicates, sizes, convergence, side_by_side)
