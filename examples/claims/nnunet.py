"""nnU-Net's claims: what does a residual encoder change, next to another fold, to mirrored copies, and to five networks?"""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import combinations
from statistics import fmean
from typing import Any

import nnunet
import torch
from lab import folds, slices, study
from lab.figures import Figure, Style, panels, seed_bars
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters
from nnunet import FOLDS, PRESETS, PlannedUNet, Stage, planned, predicted, slices_of, unit
from torch import Tensor, nn
from torch.nn import functional

BLOCKS = (1, 1, 1, 2, 1)  # residual blocks of each stage: with a thinner decoder, equal parameters within 10 %
FLOOR = ("Dice of tumours, worst of the five networks", 0.1)  # as for the other U-Nets
WAYS = {
    "plain": "one network",
    "mirrored": "mirrored copies",
    "five": "five networks",
    "both": "both",
}

# Rivals


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which averages where they stride and projects where they widen."""

    def __init__(self, inputs: int, stage: Stage, stride: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(unit(inputs, stage, stride), *unit(stage.width, stage)[:2])
        self.pool = nn.AvgPool2d(stride) if stride not in (1, (1, 1)) else nn.Identity()
        small = stage._replace(kernel=(1, 1))
        self.project = unit(inputs, small)[:2] if inputs != stage.width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(self.body(x) + self.project(self.pool(x)))


class ResidualUNet(PlannedUNet):
    """The encoder of the ResEnc presets: a stem, residual blocks, more of them deep down, and a thinner decoder."""

    def encoder(self, inputs: int, stage: Stage, level: int) -> nn.Module:
        stem = [unit(inputs, stage)] if level == 0 else []
        first = ResidualBlock(stage.width if stem else inputs, stage, stage.stride)
        more = [ResidualBlock(stage.width, stage, 1) for _ in range(BLOCKS[level] - 1)]
        return nn.Sequential(*stem, first, *more)

    def decoder(self, stage: Stage) -> nn.Module:
        return unit(2 * stage.width, stage)


ARMS = {"plain": "plain encoder", "residual": "residual encoder"}
FORMS: dict[str, Callable[[list[Stage]], PlannedUNet]] = {"plain": PlannedUNet, "residual": ResidualUNet}

# Rates from one search


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike, by the mean Dice of two networks on validation slices."""

    def score(arm: str, rate: float, seed: int) -> float:
        images, labels = slices_of(run, "val")
        found = predicted(nnunet.train(run, FORMS[arm], seed, rate, networks=2), images)
        return fmean(folds.mean_dice(p, labels) for p in found)

    return study.search(run, "learning rate", ARMS, (5e-3, 1e-2, 2e-2), score)


# Measures


def distance(values: Sequence[float]) -> float:
    """Mean distance of two of the values."""
    return fmean(abs(a - b) for a, b in combinations(values, 2))


def outcome(run: Run, arm: str, seed: int) -> dict[str, float]:
    """The Dice of one network (mean over the folds), of its mirrored copies, of all five, and of both."""
    images, labels = slices_of(run, "test")
    networks = nnunet.train(run, FORMS[arm], seed, rates_of(run)[arm])
    single, mirrored = (predicted(networks, images, mirrors) for mirrors in (((),), folds.MIRRORS))
    alone = [folds.mean_dice(p, labels) for p in single]
    tumours = [slices.dices(p.argmax(1).cpu(), labels.cpu())["dice_tumour"] for p in single]
    return {
        "one": fmean(alone),
        "mirrored": fmean(folds.mean_dice(p, labels) for p in mirrored),
        "five": folds.mean_dice(single.mean(0), labels),
        "both": folds.mean_dice(mirrored.mean(0), labels),
        "apart": distance(alone),
        "tumour_worst": min(tumours),
    }


@cache
def scores_of(run: Run) -> Scores:
    scores = study.measured(run, ARMS, partial(outcome, run))
    if run.preset != "smoke":
        scores.floor(FLOOR[0], "tumour_worst", FLOOR[1], ARMS)
    return scores


def opened(run: Run, experiment: Callable[[Run], None], **more: Any) -> Experiment:
    preset = PRESETS[run.preset]
    with torch.device("meta"):
        sizes = {arm: count_parameters(form(planned(preset).stages)) for arm, form in FORMS.items()}
    train, _, test = preset.slices
    data = (
        f"{train} slices of one brain template with planted tumours, {2 * preset.millimetres} mm, drawn anew for each seed, cut "
        f"into {FOLDS} folds; {test} slices of other bands of the head to test"
    )
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=FLOOR, **more)


# Experiments


def encoders(run: Run) -> None:
    """Does a residual encoder change the Dice by more than two networks of one plan differ?"""
    power = {"control": "The mean of five networks is seen to gain.", "result": "five_gain", "above": 0}
    short = "Where the encoders end: the training is short, so it shows how fast they learn."
    experiment, scores = opened(run, encoders, power=power, cannot_show=short), scores_of(run)
    study.record(experiment, scores, {"one": Measure("Mean Dice of one network", "")}, ARMS)
    gain, apart = scores.minus("one", "residual", "plain"), scores.values("apart", "plain")
    failed = scores.reasons("undefined", *ARMS)
    meaning = "Mean Dice of one network, residual minus plain encoder, mean over five folds"
    experiment.result("encoder_gain", gain, unit="", meaning=meaning, failed=failed)
    meaning = "Distance in mean Dice of two networks of one plan that differ in fold and first weights"
    experiment.result("networks_apart", apart, unit="", meaning=meaning, failed=failed)
    less = [a - abs(g) for a, g in zip(apart, gain, strict=True)]
    meaning = "Distance of two networks of one plan minus the size of what the encoder changes"
    experiment.result("apart_minus_encoder", less, unit="", meaning=meaning, failed=failed)
    experiment.figure(
        "encoders",
        partial(draw_changes, changes={"residual\nencoder": gain, "another\nnetwork": apart}),
        caption="What a residual encoder changes in the mean Dice, at equal parameters and steps, and how far two networks of "
        "one plan are apart. Dots are seeds whose networks all count.",
        alt="Two bars with dots: the change by the residual encoder, and the distance of two networks of one plan.",
    )


def after_training(run: Run) -> None:
    """Do mirrored copies and the mean of five networks gain more than the residual encoder?"""
    experiment, scores = opened(run, after_training), scores_of(run)
    for way, name in WAYS.items():
        if way != "plain":
            experiment.result(
                f"dice_{way}", scores.values(way, "plain"), unit="", meaning=f"Mean Dice, plain encoder: {name}",
                failed=scores.reasons("undefined", "plain"),
            )  # fmt: skip
    encoder, gains = scores.minus("one", "residual", "plain"), {}
    for way in ("mirrored", "five"):
        gains[way] = scores.minus(way, "plain", "plain", of_b="one")
        meaning = f"Mean Dice, plain encoder: {WAYS[way]} minus one network"
        failed = scores.reasons("undefined", "plain")
        experiment.result(f"{way}_gain", gains[way], unit="", meaning=meaning, failed=failed)
        more = [a - b for a, b in zip(gains[way], encoder, strict=True)]
        meaning, failed = f"Gain of {WAYS[way]} minus gain of the residual encoder", scores.reasons("undefined", *ARMS)
        experiment.result(f"{way}_gain_minus_encoder", more, unit="", meaning=meaning, failed=failed)
    shown = {"residual\nencoder": encoder, "mirrored\ncopies": gains["mirrored"], "five\nnetworks": gains["five"]}
    experiment.figure(
        "gains",
        partial(draw_changes, changes=shown),
        caption="What each adds to the mean Dice of one network with a plain encoder: a residual encoder, the mean over mirrored "
        "copies, and the mean of the networks of five folds. Dots are seeds whose networks all count.",
        alt="Three bars with dots: the gain of the residual encoder, of mirrored copies and of five networks.",
    )


def draw_changes(style: Style, changes: Mapping[str, Sequence[float]]) -> Figure:
    """Bars of changes in Dice by label, a value for each seed."""
    figure, axes = panels(1, 1, width=study.WIDTH, height=2.8)
    there = {name: [value for value in values if value == value] for name, values in changes.items()}
    seed_bars(axes[0, 0], [name for name, each in there.items() if each], [each for each in there.values() if each])
    axes[0, 0].set_ylabel("change of mean Dice")
    return figure


EXPERIMENTS = (encoders, after_training)
