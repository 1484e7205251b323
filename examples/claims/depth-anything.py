"""Depth Anything's claims: what is a loss without units worth where labels have many, and what does its output lack?"""

# ruff: noqa: N999 (named after the card)
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import torch
from lab import study
from lab.data import Split
from lab.data.grounds import Grounds, held_out
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters, seed_everything
from torch import Tensor, nn

example = import_module("depth-anything")

ARMS = {
    "invariant": "invariant,\nmixed units",
    "plain": "plain,\nmixed units",
    "plain_one_unit": "plain,\none unit",
}
FLOOR = 55.0  # % of pairs in order, below which a training counts as failed; chance is 50
WORLDS = 2.0  # the camera's height is between 1 / 2 and 2 metres


def fit(run: Run, arm: str, seed: int, rate: float) -> nn.Module:
    seed_everything(seed)
    model = example.build(example.PRESETS[run.preset])
    loss = example.ssi_loss if arm == "invariant" else example.plain_loss
    example.train(model, run, seed, rate, loss, mixed=arm != "plain_one_unit")
    return model


def scenes_of(run: Run, split: Split) -> Grounds:
    return held_out(split, example.PRESETS[run.preset].tests, run.device)


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all, by the pairs in order on validation scenes."""

    def score(arm: str, rate: float, seed: int) -> float:
        scenes = scenes_of(run, "val")
        return example.order_right(example.predicted(fit(run, arm, seed, rate), scenes.images), scenes.inverse)

    return study.search(run, "learning rate", ARMS, (2e-3, 4e-3, 8e-3, 16e-3), score)


@cache
def trained(run: Run) -> Mapping[tuple[str, int], nn.Module]:
    jobs = [(arm, seed) for arm in ARMS for seed in run.seeds]
    rates = rates_of(run)
    return {(arm, seed): fit(run, arm, seed, rates[arm]) for arm, seed in run.progress(jobs, what="training")}


# Measures


def line_through(found: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift (n, 1) of the least squares line from found to true values, each (n, P)."""
    x, y = found.mean(1, keepdim=True), true.mean(1, keepdim=True)
    scale = ((found - x) * (true - y)).mean(1, keepdim=True) / (found - x).square().mean(1, keepdim=True)
    return scale, y - scale * x


def line_through_two(found: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift (n, 1) of the line through two pixels: those at a tenth and nine tenths of the found values."""
    order, pixels = found.argsort(1), found.shape[1]
    two = order[:, [pixels // 10, 9 * pixels // 10]]
    (x1, x2), (y1, y2) = (values.gather(1, two).unbind(1) for values in (found, true))
    scale = (y2 - y1) / (x2 - x1).clamp(min=1e-6)
    return scale[:, None], (y1 - scale * x1)[:, None]


def error(found: Tensor, true: Tensor) -> float:
    """Mean absolute error of maps (n, P) in % of the mean of each true one."""
    return 100 * ((found - true).abs().mean(1) / true.mean(1)).mean().item()


def aligned_error(found: Tensor, inverse: Tensor) -> float:
    """Error in % after the best scale and shift for each image, of maps (n, H, W)."""
    flat, true = found.flatten(1), inverse.flatten(1)
    scale, shift = line_through(flat, true)
    return error(scale * flat + shift, true)


def in_metres(inverse: Tensor) -> Tensor:
    """Inverse metres (n, P) of worlds of many sizes; see `lab.data.grounds`: the images are the same."""
    exponent = torch.rand(len(inverse), 1, generator=torch.Generator().manual_seed(0)).to(inverse.device)
    return inverse.flatten(1) / WORLDS ** (2 * exponent - 1)


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    preset = example.PRESETS[run.preset]
    parameters = count_parameters(example.build(preset))
    data = f"boxes on a plane, 32 px, drawn anew for each step; {preset.tests} new scenes to test"
    return study.opened(run, experiment, data=data, sizes=dict.fromkeys(arms, parameters), steps=preset.steps, **more)


# Experiments


def mixed_units(run: Run) -> None:
    """Does a loss without units learn more from labels of mixed units than a plain one?"""
    scenes = scenes_of(run, "test")

    def outcome(arm: str, seed: int) -> dict[str, float]:
        found = example.predicted(trained(run)[arm, seed], scenes.images)
        return {"order": example.order_right(found, scenes.inverse), "aligned": aligned_error(found, scenes.inverse)}

    scores = study.measured(run, ARMS, outcome)
    floor = None if run.preset == "smoke" else scores.floor("pairs in order (%)", "order", FLOOR, ARMS)
    power = {
        "control": "Where all labels have one unit, the plain loss learns more than from mixed ones.",
        "result": "one_unit_gain",
        "above": 0,
    }
    experiment = opened(run, mixed_units, ARMS, floor=floor, power=power)
    measures = {"order": Measure("Pairs in order", "%"), "aligned": Measure("Error after alignment", "%")}
    study.record(experiment, scores, measures, {arm: name.replace("\n", " ") for arm, name in ARMS.items()})
    for name, a, meaning in (
        ("invariant_gain", "invariant", "Pairs in order with the invariant minus with the plain loss, mixed units"),
        ("one_unit_gain", "plain_one_unit", "Pairs in order after labels of one minus of mixed units, plain loss"),
    ):
        study.difference(experiment, name, scores, "order", a, "plain", unit="points", meaning=meaning)
    meaning = "Pairs in order, invariant loss on mixed units minus plain loss on one unit"
    study.difference(
        experiment,
        "invariant_behind_one_unit",
        scores,
        "order",
        "invariant",
        "plain_one_unit",
        unit="points",
        meaning=meaning,
    )
    experiment.figure(
        "mixed_units",
        study.bars(scores, measures, ARMS),
        caption="Pairs of pixels of a row that are put in order (chance 50 %), and the error left after the best scale and "
        "shift for each image. Dots are seeds.",
        alt="Two panels of bars for the invariant and the plain loss on labels of mixed units, and the plain one on one unit.",
    )


def metres(run: Run) -> None:
    """Does the output become distance by one scale for all images, or does each image need two known points?"""
    scenes, known = scenes_of(run, "test"), scenes_of(run, "val")
    truth, truth_known = in_metres(scenes.inverse), in_metres(known.inverse)

    def outcome(arm: str, seed: int) -> dict[str, float]:
        model = trained(run)[arm, seed]
        found, before = (example.predicted(model, each.images).flatten(1) for each in (scenes, known))
        scale, shift = line_through(before.flatten()[None], truth_known.flatten()[None])
        own, own_shift = line_through_two(found, truth)
        spread = line_through(found, scenes.inverse.flatten(1))[0].quantile(
            torch.tensor([0.1, 0.9], device=found.device)
        )
        return {
            "one_scale": error(scale * found + shift, truth),
            "two_points": error(own * found + own_shift, truth),
            "spread": (spread[1] / spread[0]).item(),
        }

    outcomes = study.measured(run, ("invariant",), outcome)
    experiment = opened(run, metres, ("invariant",))
    ways = {"one_scale": "one scale for all", "two_points": "two known points\nof each"}
    errors = {way: [{"error": value} for value in outcomes.values(way, "invariant")] for way in ways}
    scores, measures = Scores(run.seeds, errors), {"error": Measure("Error in metres", "%")}
    study.record(experiment, scores, measures, {way: name.replace("\n", " ") for way, name in ways.items()})
    meaning = "Error of inverse metres with one scale for all images minus with two known points of each"
    study.difference(
        experiment, "two_points_gain", scores, "error", "one_scale", "two_points", unit="points", meaning=meaning
    )
    meaning = "Scale that fits an image, ratio of the ninth to the first decile, camera height the same for all"
    experiment.result("scale_spread", outcomes.values("spread", "invariant"), unit="", meaning=meaning)
    experiment.figure(
        "metres",
        study.bars(scores, measures, ways),
        caption="Error of inverse depth in metres, in per cent of its mean, where cameras hang at half a metre to two metres: "
        "with one scale and shift for all images, and with those of two known pixels of each. Dots are seeds.",
        alt="Two bars: the error with one scale for all images, and the one with two known points of each image.",
    )


EXPERIMENTS = (mixed_units, metres)
