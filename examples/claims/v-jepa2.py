"""V-JEPA 2's claims: what do features know that were learned by predicting features, beside those that predicted pixels?"""

# ruff: noqa: N999
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from statistics import fmean
from typing import Any

import torch
from lab import study
from lab.data import Split
from lab.data.clips import Clips, moving_digits
from lab.neighbours import features
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters, seed_everything
from torch import Tensor, nn
from torch.nn import functional

example = import_module("v-jepa2")
PRESETS, PIXELS, Encoder, Student = example.PRESETS, example.PIXELS, example.Encoder, example.Student
Pooled, reader, tubelets = example.Pooled, example.reader, example.tubelets

ARMS = {"features": "features\npredicted", "pixels_normed": "pixels\npredicted"}
READ = ARMS | {"random": "random\nweights"}
FLOOR = ("direction read, over random weights (points)", 0.0)  # below it features are worth no more than none
MEASURES = {
    "right": Measure("direction read", "%"),
    "turned": Measure("opposite read, played backwards", "%"),
    "digit": Measure("which digit, read", "%"),
}
NOISY = {"noise": Measure("share of noise in what is predicted", "%")}

# The rival: the same network, masks and steps, with pixels in the place of features


def pixel_target(teacher: nn.Module | None, x: Tensor) -> Tensor:
    """The pixels of all tubelets (B, N, P) themselves."""
    return x


def normed_target(teacher: nn.Module, x: Tensor) -> Tensor:
    """The pixels of all tubelets (B, N, P), each tubelet of mean 0 and deviation 1."""
    return functional.layer_norm(x, x.shape[-1:])


LEARNS = {
    "features": (example.feature_target, functional.l1_loss),
    "pixels": (pixel_target, functional.mse_loss),
    "pixels_absolute": (pixel_target, functional.l1_loss),
    "pixels_normed": (normed_target, functional.mse_loss),
}  # the search says which of the three ways to predict pixels is the rival


def fitted(run: Run, arm: str, seed: int, rate: float) -> nn.Module:
    """The encoder of an arm, a moving average in all of them."""
    return example.train(run, seed, rate, *LEARNS[arm]).encoder


def untrained(run: Run, seed: int) -> nn.Module:
    """An encoder with random weights."""
    seed_everything(seed)
    return Encoder(PRESETS[run.preset].width, PRESETS[run.preset].layers).to(run.device).eval()


@cache
def held_out(run: Run, split: Split, noise: float = example.NOISE) -> Clips:
    """The same clips for all arms and seeds."""
    count = PRESETS[run.preset].clips[1]
    return moving_digits(split, count, seed=10_000, frames=example.FRAMES, canvas=example.CANVAS, noise=noise)


def direction(run: Run, encoder: nn.Module, seed: int, split: Split) -> dict[str, float]:
    known = example.clips_of(run, seed)
    return example.read(reader(encoder, known, known.labels), encoder, held_out(run, split))


def digit(run: Run, encoder: nn.Module, seed: int) -> float:
    """Digits (%) that linear discriminants name."""
    known, clips = example.clips_of(run, seed), held_out(run, "test")
    said = reader(encoder, known, known.digits).predict(features(Pooled(encoder), clips.frames).numpy())
    return 100 * float((said == clips.digits.numpy()).mean())


@torch.inference_mode()
def share_of_noise(run: Run, target: Callable[[Tensor], Tensor], seed: int) -> float:
    """Part (%) of the variance of what is predicted that comes from the noise alone, by two draws of it on equal clips."""
    clean, generator = held_out(run, "test", 0.0).frames, torch.Generator().manual_seed(seed)
    draws = [(clean + example.NOISE * torch.randn(clean.shape, generator=generator)).clamp(0, 1) for _ in range(2)]
    one, two = (target(tubelets(each.to(run.device))) for each in draws)  # (n, N, out)
    return 100 * ((one - two).square().mean((0, 1)) / 2).sum().item() / one.var((0, 1)).sum().item()


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all, by the direction read from validation clips."""

    def score(arm: str, rate: float, seed: int) -> float:
        return direction(run, fitted(run, arm, seed, rate), seed, "val")["right"]

    return study.search(run, "learning rate", LEARNS, (2e-3, 4e-3, 8e-3), score)


@cache
def scores_of(run: Run) -> Scores:
    """All measures of all arms; a training that is worth less than random weights is marked as failed."""

    def measure(arm: str, seed: int) -> dict[str, float]:
        encoder = untrained(run, seed) if arm == "random" else fitted(run, arm, seed, rates_of(run)[arm])
        target = partial(LEARNS.get(arm, LEARNS["features"])[0], encoder)
        found = {"digit": digit(run, encoder, seed), "noise": share_of_noise(run, target, seed)}
        return direction(run, encoder, seed, "test") | found

    scores = study.measured(run, READ, measure)
    outcomes = {
        arm: [dict(mine) | {"over_random": mine["right"] - chance["right"]}
              for mine, chance in zip(each, scores.outcomes["random"], strict=True)]
        for arm, each in scores.outcomes.items()
    }  # fmt: skip
    scores = Scores(run.seeds, outcomes)
    scores.floor(FLOOR[0], "over_random", FLOOR[1], ARMS)
    return scores


def opened(run: Run, experiment: Callable[[Run], None], **more: Any) -> Experiment:
    preset = PRESETS[run.preset]
    sizes = {
        arm: count_parameters(Student(preset, width))
        for arm, width in (("features", preset.width), ("pixels_normed", PIXELS))
    }
    data = f"{preset.clips[0]:,} clips of a moving digit, {example.FRAMES} frames of {example.CANVAS} x {example.CANVAS} px "
    data += f"under noise, to train and to fit what reads the features; {preset.clips[1]} others to test"
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=FLOOR, **more)


# Experiments


def targets(run: Run) -> None:
    """Do features that were learned by predicting features know more of movement than those that predicted pixels?"""
    control = {"control": "Played backwards, a clip is read as the opposite direction: the features hold the order of frames.",
               "result": "turned_features", "above": 50}  # fmt: skip
    experiment, scores = opened(run, targets, power=control), scores_of(run)
    study.record(experiment, scores, MEASURES, named(READ))
    for measure, (label, _, _) in MEASURES.items():
        for a, b in (("features", "pixels_normed"), ("features", "random"), ("pixels_normed", "random")):
            meaning = f"{label}: {READ[a]} minus {READ[b]}".replace("\n", " ")
            name = f"{measure}_{a}_over_{b}"
            study.difference(experiment, name, scores, measure, a, b, unit="points", meaning=meaning)
    experiment.figure(
        "targets",
        study.bars(scores, MEASURES, READ),
        caption="What a linear layer reads from frozen features of noisy test clips: the direction (a quarter by chance), the "
        "opposite direction when they are played backwards, and which of ten digits moves. Bars are means, dots are seeds.",
        alt="Three bar charts for features predicted, pixels predicted and random weights: direction, opposite direction of "
        "clips played backwards, and which digit.",
    )


def noise(run: Run) -> None:
    """How much of what has to be predicted is noise, which nobody can foresee?"""
    experiment, scores = opened(run, noise), scores_of(run)
    study.record(experiment, scores, NOISY, named(READ))
    raw = [share_of_noise(run, partial(pixel_target, None), seed) for seed in run.seeds]
    experiment.result("noise_raw", raw, unit="%", meaning="Share of noise in pixels that are not normed by tubelet")
    more = [a - b for a, b in zip(raw, scores.values("noise", "features"), strict=True)]
    experiment.result(
        "noise_raw_over_features", more, unit="points", failed=scores.reasons("undefined", "features"),
        meaning="Share of noise in what is predicted: pixels that are not normed minus features of the trained teacher",
    )  # fmt: skip
    study.difference(
        experiment, "noise_pixels_over_features", scores, "noise", "pixels_normed", "features", unit="points",
        meaning="Share of noise in what is predicted: pixels minus features of the trained teacher",
    )  # fmt: skip
    experiment.figure(
        "noise",
        study.bars(scores, NOISY, READ | {"random": "features,\nrandom weights"}),
        caption="Part of the variance of what is predicted that comes from the noise, which is drawn anew in each frame. Each "
        f"tubelet of pixels is normed, which makes much of the noise in empty ones; without that it is {fmean(raw):.0f} %. Bars "
        "are means, dots are seeds.",
        alt="A bar chart of the share of noise in features of the trained teacher, in pixels and in features of random weights.",
    )


def named(arms: Mapping[str, str]) -> dict[str, str]:
    """Arms with their names on one line."""
    return {arm: name.replace("\n", " ") for arm, name in arms.items()}


EXPERIMENTS = (targets, noise)
