"""Co-DETR's claim: does a helper that matches one object with many places make the detector better, at equal steps?"""

# ruff: noqa: N999
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from lab import shapes, study
from lab.data import Split
from lab.data.named import NAMES, SIDE, Named, named
from lab.run import Run
from lab.study import Measure, Scores
from lab.training import count_parameters
from torch import nn

example = import_module("co-detr")
PRESETS, COPIES = example.PRESETS, example.COPIES

ARMS = {
    "none": "no helper",
    "one": "helper, one place for each thing",
    "many": f"helper, {COPIES} places for each thing",
}
ANSWERS = {"none": 0, "one": 1, "many": COPIES}  # places of the helper that answer for a thing
FLOOR = 10.0  # AP (%) of the detector, below which a training counts as failed
MEASURES = {"ap": Measure("AP of the detector alone", "%")}
OF_HELPER = {"helper_ap": Measure("AP of the helper, after suppression", "%", "it is not trained")}


def scenes(run: Run, seed: int, split: Split = "test") -> Named:
    return named(split, PRESETS[run.preset].scenes[1], seed, range(len(NAMES)))


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, by AP of the detector on validation scenes."""

    def score(arm: str, rate: float, seed: int) -> float:
        held_out = scenes(run, seed, "val")
        return shapes.ap(example.look(example.train(run, seed, rate, ANSWERS[arm]), held_out.images), held_out)

    return study.search(run, "learning rate", ARMS, (2e-3, 4e-3, 8e-3), score)


def trained(run: Run, arm: str, seed: int) -> nn.Module:
    """Detector and helper of an arm; the first one with many places is that of the file that is read."""
    return example.train(run, seed, rates_of(run)[arm], ANSWERS[arm])


class Dense(nn.Module):
    """The helper read in the place of the decoder: images -> a list of what it says at every place."""

    def __init__(self, helped: Any) -> None:
        super().__init__()
        self.helped: Any = helped

    def forward(self, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [self.helped.dense(self.helped.detector.encode(images))]


@cache
def scores_of(run: Run) -> Scores:
    """AP of the detector of each arm and of its helper; failed trainings are marked."""

    def measure(arm: str, seed: int) -> dict[str, float]:
        model, test = trained(run, arm, seed), scenes(run, seed)
        found = {"ap": shapes.ap(example.look(model.detector, test.images), test), "helper_ap": torch.nan}
        if ANSWERS[arm]:
            found["helper_ap"] = shapes.ap(example.look(Dense(model), test.images), test, suppress=True)
        return found

    scores = study.measured(run, ARMS, measure)
    scores.floor("AP of the detector (%)", "ap", FLOOR, ARMS)
    return scores


def helpers(run: Run) -> None:
    """Does a helper that answers for each object at many places make the detector better, and are its many answers the reason?"""
    preset = PRESETS[run.preset]
    control = {"control": "The helper itself learns: after suppression its own boxes find things.",
               "result": "helper_ap_many", "above": 20}  # fmt: skip
    data = f"{preset.scenes[0]:,} scenes of coloured shapes, {SIDE} px, to train; {preset.scenes[1]} others to test"
    sizes = dict.fromkeys(ARMS, count_parameters(example.Helped(preset)))
    floor = ("AP of the detector (%)", FLOOR)
    experiment = study.opened(run, helpers, data=data, sizes=sizes, steps=preset.steps, floor=floor, power=control)
    scores = scores_of(run)
    study.record(experiment, scores, MEASURES, ARMS)
    study.record(experiment, scores, OF_HELPER, {arm: label for arm, label in ARMS.items() if ANSWERS[arm]})
    for name, other in (("helper_gain", "none"), ("positives_gain", "one")):
        study.difference(experiment, name, scores, "ap", "many", other, unit="points",
                         meaning=f"AP of the detector alone: {ARMS['many']}, minus {ARMS[other]}")  # fmt: skip
    short = {"none": "no helper", "one": "helper,\none place", "many": f"helper,\n{COPIES} places"}
    experiment.figure(
        "helpers",
        study.bars(scores, MEASURES | OF_HELPER, short),
        caption="AP of the same detector, used without its helper, at equal steps. The helper with one place has the same "
        "weights and as many further queries, which repeat its one answer. Below, what the helpers find themselves. Bars "
        "are means, dots are seeds.",
        alt="Bars of the AP of the detector trained without helper, with a helper that answers at one place for each thing, and "
        "with one that answers at four; below, bars of the AP of the two helpers.",
    )


EXPERIMENTS = (helpers,)
