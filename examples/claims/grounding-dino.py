"""Grounding DINO's claims: do the words of a name find what no training showed, and what is found that is not there?"""

# ruff: noqa: N999
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from lab import study
from lab.data import Split
from lab.data.named import KNOWN, LEFT_OUT, NAMES, SIDE, SPELLING, WORDS, Named, named
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters
from torch import Tensor, nn

example = import_module("grounding-dino")
GroundingDINO, PRESETS = example.GroundingDINO, example.PRESETS

ARMS = {"words": "words with a meaning", "codes": "the same words, shuffled"}
FLOOR = 30.0  # AP50 (%) of the names in training, below which a training counts as failed
RECALL = 0.8  # part of the present names that are answered on validation scenes: sets the threshold of a sure box
MEASURES = {
    "ap50_known": Measure("AP50, names in training", "%"),
    "ap50_left_out": Measure("AP50, names left out", "%"),
}
KINDS = {"present": "is there", "near": "shares a word with a thing", "far": "shares no word"}

# The control, and the rates of both arms from one search


@cache
def spelling(arm: str, seed: int) -> Tensor:
    """The words of each name (K, 2). As codes, each name has the words of another one: what is known of a word says nothing."""
    order = torch.randperm(len(NAMES), generator=torch.Generator().manual_seed(seed))
    return SPELLING[order] if arm == "codes" else SPELLING


def scenes(run: Run, seed: int, split: Split = "test") -> Named:
    """Scenes with things of all names."""
    return named(split, PRESETS[run.preset].scenes[1], seed, range(len(NAMES)))


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, by AP50 of the names in training, on validation scenes."""

    def score(arm: str, rate: float, seed: int) -> float:
        model = example.train(run, seed, rate, spelling(arm, seed))
        held_out = scenes(run, seed, "val")
        return example.ap50(example.ask(model, held_out.images, spelling(arm, seed)), held_out, KNOWN)

    return study.search(run, "learning rate", ARMS, (2e-3, 4e-3, 8e-3), score)


def trained(run: Run, arm: str, seed: int) -> nn.Module:
    """The network of an arm; the first one with words is that of the file that is read."""
    return example.train(run, seed, rates_of(run)[arm], spelling(arm, seed))


@cache
def scores_of(run: Run) -> Scores:
    """AP50 of both arms; failed trainings are marked."""

    def measure(arm: str, seed: int) -> dict[str, float]:
        test = scenes(run, seed)
        found = example.ask(trained(run, arm, seed), test.images, spelling(arm, seed))
        sides = zip(MEASURES, (KNOWN, LEFT_OUT), strict=True)
        return {name: example.ap50(found, test, classes) for name, classes in sides}

    scores = study.measured(run, ARMS, measure)
    scores.floor("AP50 of the names in training (%)", "ap50_known", FLOOR, ARMS)
    return scores


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    preset = PRESETS[run.preset]
    sizes = dict.fromkeys(arms, count_parameters(GroundingDINO(preset)))
    data = f"{preset.scenes[0]:,} scenes of coloured shapes, {SIDE} px, with {len(KNOWN)} names to train; "
    data += f"{preset.scenes[1]} others with {len(NAMES)} names to test"
    floor = ("AP50 of the names in training (%)", FLOOR)
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=floor, **more)


# Experiments


def left_out(run: Run) -> None:
    """Are things found whose name no training showed or said, if the words of that name are known?"""
    control = {"control": "With shuffled words the same network learns the names in training, so it can tell things apart.",
               "result": "ap50_known_codes", "above": 30}  # fmt: skip
    limit = "Ten words, each known from four other names: it cannot show what a text encoder knows of words that no box had."
    experiment = opened(run, left_out, ARMS, power=control, cannot_show=limit)
    scores = scores_of(run)
    study.record(experiment, scores, MEASURES, ARMS)
    study.difference(experiment, "left_out_gain", scores, "ap50_left_out", "words", "codes", unit="points",
                     meaning="AP50 of names left out of training: words with a meaning minus shuffled words")  # fmt: skip
    gap = scores.minus("ap50_known", "words", "words", of_b="ap50_left_out")
    experiment.result("left_out_loss", gap, unit="points", failed=scores.reasons("undefined", "words"),
                      meaning="AP50 of names in training minus that of names left out, words with a meaning")  # fmt: skip
    experiment.figure(
        "left_out",
        study.bars(scores, MEASURES, {"words": "words with\na meaning", "codes": "words\nshuffled"}),
        caption="Things whose names were left out of training are found by their words, but not where each name has the words "
        "of another one, so that words say nothing. Bars are means, dots are seeds; network, words and steps are the same.",
        alt="Two bar charts of AP50, for names in training and for names left out, each with words and with shuffled words.",
    )


def relations(labels: Tensor) -> dict[str, Tensor]:
    """Which names (n, K) are those of things of a scene, labels (n, M), share a word with one of them, or share none."""
    there = (labels[:, :, None] == torch.arange(len(NAMES))).any(1)
    said = there.float() @ nn.functional.one_hot(SPELLING, len(WORDS)).sum(1).float() > 0  # (n, W)
    shares = said[:, SPELLING].any(-1)
    return {"present": there, "near": shares & ~there, "far": ~shares}


def best_scores(model: nn.Module, test: Named, seed: int) -> dict[str, Tensor]:
    """For each kind of name the highest score of a box (n,), where one such name of each scene is asked for alone."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for kind, names in relations(test.labels).items():
        asked = torch.multinomial(names.float(), 1, generator=generator)  # (n, 1)
        found[kind] = example.ask(model, test.images, SPELLING[asked]).logits.sigmoid().amax((1, 2))
    return found


def absent(run: Run) -> None:
    """Asked for a single name, how often does a sure box answer if nothing in the scene has that name?"""
    control = {"control": "At the same threshold most names that are there are answered.", "result": "answered_present",
               "above": 60}  # fmt: skip
    experiment = opened(run, absent, ["words"], power=control)
    outcomes: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for seed in run.seeds:
        model = trained(run, "words", seed)
        sure = best_scores(model, scenes(run, seed, "val"), seed)["present"].quantile(1 - RECALL)
        for kind, found in best_scores(model, scenes(run, seed), seed).items():
            outcomes[kind].append({"answered": 100 * (found > sure).float().mean().item()})
    shares = Scores(run.seeds, outcomes, dict.fromkeys(KINDS, scores_of(run).failed.get("words", {})))
    measures, names = (
        {"answered": Measure("Scenes with a sure box", "%")},
        {kind: f"the name {KINDS[kind]}" for kind in KINDS},
    )
    study.record(experiment, shares, measures, names)
    study.difference(experiment, "answered_near_minus_far", shares, "answered", "near", "far", unit="points",
                     meaning="False boxes: names that share a word with a thing, minus names that share none")  # fmt: skip
    experiment.figure(
        "absent",
        study.bars(shares, measures, KINDS | {"near": "shares a word\nwith a thing"}),
        caption=f"One name is asked for in each scene. A box is sure above the score that answers {RECALL:.0%} of the names that "
        "are there, on validation scenes. Bars are means, dots are seeds.",
        alt="Bars of the share of scenes with a sure box for names that are there, that share a word with a thing, and that "
        "share none.",
    )


EXPERIMENTS = (left_out, absent)
