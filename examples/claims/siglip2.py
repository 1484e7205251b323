"""SigLIP 2's claims: does its loss need large batches, are unseen combinations named, and does the order of words count?"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from lab import study
from lab.data import Split
from lab.data.captioned import KINDS, SHAPES, captions, held_out
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters, seed_everything
from siglip2 import PRESETS, Preset, TwoTowers, build, scores_of_blanks, sigmoid_loss, softmax_loss, train
from torch import Tensor

SMALL = 6  # the small batch is so many times smaller than that of the preset
ARMS = {
    "sigmoid": "sigmoid,\nlarge batch",
    "softmax": "softmax,\nlarge batch",
    "sigmoid_small": "sigmoid,\nsmall batch",
    "softmax_small": "softmax,\nsmall batch",
}
REORDERED = "sigmoid_reordered"  # every image is also told from its caption with the colours exchanged
FLOOR = 100 / KINDS * 3  # % of blanks filled, below which a training counts as failed: three times chance


def exchanged(kinds: Tensor) -> Tensor:
    """The colours of the two things exchanged: "red circle and blue square" -> "blue circle and red square", (..., 2)."""
    return kinds.flip(-1) // len(SHAPES) * len(SHAPES) + kinds % len(SHAPES)


def with_reordered(kinds: Tensor) -> Tensor:
    """The captions (2 B, 5) of kinds (B, 2), and behind them the same with exchanged colours, which are all false."""
    return captions(torch.cat([kinds, exchanged(kinds)]))


def preset_of(run: Run, arm: str) -> Preset:
    preset = PRESETS[run.preset]
    return preset._replace(batch=max(2, preset.batch // SMALL)) if arm.endswith("_small") else preset


def fit(run: Run, arm: str, seed: int, rate: float) -> TwoTowers:
    seed_everything(seed)
    preset = preset_of(run, arm)
    model, loss = build(preset), softmax_loss if arm.startswith("softmax") else sigmoid_loss
    train(model, run, preset, seed, rate, loss, with_reordered if arm == REORDERED else captions)
    return model


# Measures, in %


def percent(right: Tensor) -> float:
    return 100 * right.double().mean().item()


@torch.inference_mode()
def found(model: TwoTowers, split: Split, device: torch.device) -> float:
    """Images whose own caption has the largest product among those of all test images; exchanged ones are among them."""
    scenes = held_out(split, False, device)
    logits = model(scenes.images, captions(scenes.kinds))
    return percent(logits.argmax(1) == torch.arange(len(logits), device=device))


def named(model: TwoTowers, unseen: bool, device: torch.device) -> float:
    """Blanks filled with the right one of 36 kinds."""
    scores, kinds = scores_of_blanks(model, held_out("test", unseen, device))
    return percent(scores.argmax(1) == kinds)


@torch.inference_mode()
def ordered(model: TwoTowers, device: torch.device) -> float:
    """Images that fit their caption better than the same words with the colours exchanged; 50 by chance."""
    scenes = held_out("test", False, device)
    x = model.image(scenes.images)
    true, false = (x * model.text(captions(kinds)) for kinds in (scenes.kinds, exchanged(scenes.kinds)))
    return percent(true.sum(1) > false.sum(1))


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all, by the captions found for validation images."""

    def score(arm: str, rate: float, seed: int) -> float:
        return found(fit(run, arm, seed, rate), "val", run.device)

    return study.search(run, "learning rate", (*ARMS, REORDERED), (2e-3, 4e-3, 8e-3, 16e-3), score)


@cache
def scores_of(run: Run) -> Scores:
    """All measures of one training of each arm and seed."""

    def outcome(arm: str, seed: int) -> dict[str, float]:
        model = fit(run, arm, seed, rates_of(run)[arm])
        return {
            "found": found(model, "test", run.device),
            "named_seen": named(model, False, run.device),
            "named_unseen": named(model, True, run.device),
            "ordered": ordered(model, run.device),
        }

    return study.measured(run, (*ARMS, REORDERED), outcome)


def opened(run: Run, experiment: Callable[[Run], None], arms: Mapping[str, str], **more: Any) -> Experiment:
    preset = PRESETS[run.preset]
    sizes = {arm: count_parameters(build(preset_of(run, arm))) for arm in arms}
    data = f"pairs of coloured shapes on 32 px, drawn anew for each step, batches of {preset.batch}"
    data += f" or {preset_of(run, 'sigmoid_small').batch}; 315 new images with known kinds and 240 with an unknown one to test"
    floor = None if run.preset == "smoke" else scores_of(run).floor("blanks filled (%)", "named_seen", FLOOR, arms)
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=floor, **more)


# Experiments


def batch_size(run: Run) -> None:
    """Which of the two losses finds the right caption more often, after small and after large batches?"""
    experiment, scores = opened(run, batch_size, ARMS), scores_of(run)
    measures = {"found": Measure("Right caption first of 315", "%")}
    study.record(experiment, scores, measures, {arm: name.replace("\n", " ") for arm, name in ARMS.items()})
    for name, end, size in (("small_batch_gain", "_small", "small"), ("large_batch_gain", "", "large")):
        meaning = f"Right captions with the sigmoid minus with the softmax loss, {size} batches"
        study.difference(
            experiment, name, scores, "found", f"sigmoid{end}", f"softmax{end}", unit="points", meaning=meaning
        )
    meaning = "Right captions after large minus after small batches at equal steps, sigmoid loss"
    study.difference(
        experiment, "batch_gain", scores, "found", "sigmoid", "sigmoid_small", unit="points", meaning=meaning
    )
    experiment.figure(
        "batch_size",
        study.bars(scores, measures, ARMS),
        caption="How often the caption of a new image comes first among those of all 315, at equal numbers of steps. The large "
        "batch holds six times as many pairs as the small one. Dots are seeds.",
        alt="Bars of the share of right captions for both losses, each after training with large and with small batches.",
    )


def combinations(run: Run) -> None:
    """Are combinations of colour and shape named that no training image held?"""
    arms = {arm: ARMS[arm] for arm in ("sigmoid", "softmax")}
    experiment, scores = opened(run, combinations, arms), scores_of(run)
    measures = {"named_seen": Measure("Known kinds named", "%"), "named_unseen": Measure("Unknown kinds named", "%")}
    study.record(experiment, scores, measures, {arm: f"{arm} loss" for arm in arms})
    gap = scores.minus("named_seen", "sigmoid", "sigmoid", of_b="named_unseen")
    meaning = "Known minus unknown kinds that are named, sigmoid loss"
    experiment.result("unseen_gap", gap, unit="points", meaning=meaning, failed=scores.reasons("undefined", "sigmoid"))
    experiment.figure(
        "combinations",
        study.bars(scores, measures, {arm: arm for arm in arms}),
        caption="How often the right one of 36 kinds fills the blank in a caption, for kinds of the training and for six that "
        "were kept out of it; chance is 3 %. Dots are seeds.",
        alt="Two panels of bars for both losses: known kinds are named more often than unknown ones.",
    )


def word_order(run: Run) -> None:
    """Is it noticed when the words of a caption change places?"""
    power = {
        "control": "With exchanged captions among the false ones of each image, the same towers notice them.",
        "result": "ordered_sigmoid_reordered",
        "above": 75,
    }
    arms = {"sigmoid": "plain captions", "softmax": "plain captions,\nsoftmax", REORDERED: "exchanged ones\nadded"}
    experiment, scores = opened(run, word_order, arms, power=power), scores_of(run)
    measures = {"ordered": Measure("True caption before its exchange", "%")}
    study.record(experiment, scores, measures, {arm: name.replace("\n", " ") for arm, name in arms.items()})
    meaning = "Exchanges noticed with minus without exchanged captions in the training"
    study.difference(
        experiment, "exchange_gain", scores, "ordered", REORDERED, "sigmoid", unit="points", meaning=meaning
    )
    experiment.figure(
        "word_order",
        study.bars(scores, measures, arms),
        caption="How often an image fits its caption better than the same words with the colours exchanged; chance is 50 %. "
        "Where exchanged captions are among the false ones of the training, the same towers learn it. Dots are seeds.",
        alt="Bars of the share of images whose true caption beats the one with exchanged colours, for three trainings.",
    )


EXPERIMENTS = (batch_size, combinations, word_order)
