"""YOLO26's claims: what does a head lose that is never suppressed, what is the other head for, and what happens in a crowd?"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

from lab import study
from lab.data import Split
from lab.data.hoops import SIDE, Hoops, hoops
from lab.metrics import detections_per_object
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters
from yolo26 import PRESETS, SHARE, SURE, YOLO26, Found, Output, boxes_of, look_at, precision, train, truth_of

SHARES = {
    "dual": SHARE,
    "many": (1.0, 1.0),
    "one": (0.0, 0.0),
}  # weights of the one-to-many head, at the start and the end
ARMS = {"dual": "two heads", "many": "one-to-many alone", "one": "one-to-one alone"}
WAYS = {
    "one": "one-to-one head, two trained",
    "many": "one-to-many head and NMS, two trained",
    "many_raw": "one-to-many head without NMS",
    "many_alone": "one-to-many head and NMS, trained alone",
    "one_alone": "one-to-one head, trained alone",
}
THRESHOLDS = (0.3, 0.45, 0.6, 0.75, 0.9)
FLOOR = 20.0  # AP (%) of the head that is used, below which a training counts as failed
AP = Measure("AP", "%")
BOXES = Measure("Boxes per object", "", "no object is found")

# Rates, and thresholds of suppression, from one search


def scenes(run: Run, seed: int, split: Split = "test", pairs: float = 0.5) -> Hoops:
    return hoops(split, PRESETS[run.preset].scenes[1], seed, pairs)


@cache
def heads(run: Run, arm: str, seed: int, rate: float, split: Split = "test", pairs: float = 0.5) -> dict[str, Output]:
    """What the two heads of an arm say of scenes."""
    return look_at(train(run, seed, rate, SHARES[arm]), scenes(run, seed, split, pairs).images)


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, by AP on validation scenes: of the one-to-one head, or of the other one with NMS at 0.5."""

    def score(arm: str, rate: float, seed: int) -> float:
        said = heads(run, arm, seed, rate, "val")
        return precision(
            boxes_of(said["many"], 0.5) if arm == "many" else boxes_of(said["one"]), scenes(run, seed, "val")
        )

    return study.search(run, "learning rate", ARMS, (4e-3, 8e-3, 1.6e-2), score)


@cache
def thresholds_of(run: Run) -> dict[str, float]:
    """The IoU from which a box is suppressed, for both arms with a one-to-many head, by AP on validation scenes."""
    rates = rates_of(run)

    def score(arm: str, iou: float, seed: int) -> float:
        return precision(boxes_of(heads(run, arm, seed, rates[arm], "val")["many"], iou), scenes(run, seed, "val"))

    return study.search(run, "threshold of suppression", ("dual", "many"), (0.6, 0.7, 0.8), score)


def read(run: Run, way: str, seed: int, pairs: float = 0.5) -> Found:
    """The boxes of the test scenes in one of the ways."""
    arm = "dual" if "alone" not in way else way.removesuffix("_alone")
    said = heads(run, arm, seed, rates_of(run)[arm], "test", pairs)
    if way.startswith("one"):
        return boxes_of(said["one"])
    return boxes_of(said["many"], None if way == "many_raw" else thresholds_of(run)[arm])


@cache
def scores_of(run: Run) -> Scores:
    """AP and boxes per object in all ways, and AP in crowds and of hoops apart; failed trainings are marked."""

    def measure(way: str, seed: int) -> dict[str, float]:
        test, found = scenes(run, seed), read(run, way, seed)
        out = {"ap": precision(found, test), "boxes": detections_per_object(found, truth_of(test), score=SURE)}
        for name, pairs in (("crowd_ap", 1.0), ("apart_ap", 0.0)) if way in ("one", "many") else ():
            out[name] = precision(read(run, way, seed, pairs), scenes(run, seed, pairs=pairs))
        return out | {"crowding": out.get("apart_ap", math.nan) - out.get("crowd_ap", math.nan)}

    scores = study.measured(run, WAYS, measure)
    scores.floor("AP (%)", "ap", FLOOR, ("one", "many_alone", "one_alone"))
    scores.failed.update(dict.fromkeys(("many", "many_raw"), scores.failed.get("one", {})))
    return scores


def opened(run: Run, experiment: Callable[[Run], None], **more: Any) -> Experiment:
    preset = PRESETS[run.preset]
    sizes = dict.fromkeys(ARMS, count_parameters(YOLO26(preset)))  # a head that is not trained is there, too
    data = f"{preset.scenes[0]:,} scenes of hoops, {SIDE} px, half of them with a pair, to train; {preset.scenes[1]} to test"
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=("AP (%)", FLOOR), **more)


# Experiments


def suppression(run: Run) -> None:
    """What is lost by a head whose boxes are final, and what does the other head do for it?"""
    control = {"control": "The one-to-many head leaves surplus boxes, which the measure counts.", "result": "boxes_many_raw",
               "above": 1.3}  # fmt: skip
    experiment, scores = opened(run, suppression, power=control), scores_of(run)
    study.record(experiment, scores, {"ap": AP, "boxes": BOXES}, WAYS)
    for name, a, b, meaning in (
        ("end_to_end_loss", "many", "one", "one-to-many head with NMS minus one-to-one head of the same network"),
        ("loss_to_many_alone", "many_alone", "one", "one-to-many head trained alone, with NMS, minus one-to-one head"),
        ("beside_gain", "one", "one_alone", "one-to-one head beside the other one minus trained alone"),
    ):
        study.difference(experiment, name, scores, "ap", a, b, unit="points", meaning=f"AP: {meaning}")
    labels = {"one": "one-to-\none", "many": "one-to-\nmany,\nNMS", "many_raw": "one-to-\nmany,\nraw",
              "many_alone": "many\nalone,\nNMS", "one_alone": "one\nalone"}  # fmt: skip
    experiment.figure(
        "suppression",
        study.bars(scores, {"ap": AP, "boxes": BOXES}, labels),
        caption="Left three: the heads of one network, trained together. Right two: each trained alone, at as many steps. Boxes "
        f"count from a score of {SURE:g} on. Bars are means, dots are seeds.",
        alt="Two bar charts, AP and boxes per object, for both heads trained together and for each trained alone.",
    )


def crowds(run: Run) -> None:
    """Does a head without suppression lose less where objects overlap?"""
    control = {"control": "Suppression at a low threshold costs AP in crowds, so lost neighbours are seen.",
               "result": "low_threshold_loss", "above": 2}  # fmt: skip
    experiment, scores = opened(run, crowds, power=control), scores_of(run)
    measures = {
        "crowd_ap": Measure("AP where each scene has a pair", "%"),
        "apart_ap": Measure("AP where none has", "%"),
    }
    pair = {way: WAYS[way] for way in ("one", "many")}
    study.record(experiment, scores, measures, pair)
    for name, measure, of in (("crowd_gain", "crowd_ap", "with a pair"), ("apart_gain", "apart_ap", "without one")):
        study.difference(experiment, name, scores, measure, "one", "many", unit="points",
                         meaning=f"AP of scenes {of}: one-to-one head minus the other one with NMS")  # fmt: skip
    study.difference(experiment, "crowding_saved", scores, "crowding", "many", "one", unit="points",
                     meaning="AP that pairs cost: one-to-many head with NMS minus one-to-one head")  # fmt: skip
    curves = {seed: by_threshold(run, seed) for seed in run.seeds}
    of_one, reasons = scores.values("crowd_ap", "one"), scores.reasons("undefined", "one")
    best = [one - max(curves[seed].values()) for seed, one in zip(run.seeds, of_one, strict=True)]
    experiment.result("crowd_gain_at_best", best, unit="points", failed=reasons,
                      meaning="AP of scenes with a pair: one-to-one head minus NMS at the best threshold")  # fmt: skip
    low = scores.counted("many", [max(each.values()) - each[THRESHOLDS[0]] for each in curves.values()])
    experiment.result("low_threshold_loss", low, unit="points", failed=reasons,
                      meaning=f"AP of scenes with a pair: NMS at the best threshold minus NMS at {THRESHOLDS[0]}")  # fmt: skip
    lines = {"one-to-many, NMS": [list(each.items()) for each in curves.values()],
             "one-to-one": [[(iou, one) for iou in THRESHOLDS] for one in of_one if not math.isnan(one)]}  # fmt: skip
    experiment.figure(
        "thresholds",
        study.curves(
            {label: line for label, line in lines.items() if line},
            x="IoU from which a box is suppressed",
            y="AP of scenes with a pair (%)",
        ),
        caption="A low threshold suppresses neighbours, a high one leaves surplus boxes; the one-to-one head has none to set. "
        "Lines are means, bands reach over the seeds.",
        alt="AP against the threshold of suppression, a curve with a maximum, and a flat line for the one-to-one head.",
    )


def by_threshold(run: Run, seed: int) -> dict[float, float]:
    """AP (%) of the one-to-many head on test scenes with a pair, for each threshold of suppression."""
    said, test = heads(run, "dual", seed, rates_of(run)["dual"], "test", 1.0)["many"], scenes(run, seed, pairs=1.0)
    return {iou: precision(boxes_of(said, iou), test) for iou in THRESHOLDS}


EXPERIMENTS = (suppression, crowds)
