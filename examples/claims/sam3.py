"""SAM 3's claims: does a token that sees the whole picture say better what is not there, and what are hard negatives worth?"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from lab import study
from lab.data import Split
from lab.data.named import SIDE
from lab.data.phrases import FAR, NEAR, PHRASES, THERE, draw, scenes
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters
from sam3 import EASY, HARD, PRESETS, SAM3, Found, ask, seen_of, towers_of, train
from torch import Tensor


class Arm(NamedTuple):
    """What readers call it, whether its token counts, and which phrases it is asked in training."""

    name: str
    token: bool
    wanted: tuple[int, ...]


ARMS = {
    "token": Arm("token, hard negatives", True, HARD),
    "alone": Arm("queries alone, hard negatives", False, HARD),
    "token_easy": Arm("token, easy negatives", True, EASY),
    "alone_easy": Arm("queries alone, easy negatives", False, EASY),
}
FLOOR = 80.0  # far phrases (%) that are not answered, at equal recall, below which a training counts as failed
RECALL = 0.8  # part of the phrases that are there which are answered on validation scenes: sets the threshold of equal recall
CONTROLS = {
    "recall": Measure("phrases that are there answered, at equal recall on validation scenes", "%"),
    "rejected_far": Measure("far phrases not answered, at equal recall", "%"),
}
MEASURES = {
    "false_near": Measure("near phrases answered", "%"),
    "mcc": Measure("IL_MCC", "", "all scenes are answered alike"),
    "pmf1": Measure("pmF1", "%"),
    "cgf1": Measure("cgF1", "", "all scenes are answered alike"),
}

# What is measured, as in the paper: do pictures answer as they should, and how well is outlined what is there?


def correlation(said: Tensor, true: Tensor) -> float:
    """Matthews' correlation of two bool tensors, NaN where one of them is constant (IL_MCC)."""
    if said.all() or true.all() or not (said.any() and true.any()):
        return math.nan
    return torch.corrcoef(torch.stack([said.flatten(), true.flatten()]).double())[0, 1].item()


def outlines(sure: Tensor, inside: Tensor, fits: Tensor, things: Tensor) -> float:
    """Mean F1 (%) over IoU .5, .55, ..., .95 of the sure masks, pooled over pictures whose phrase is there (pmF1).

    sure (n, N), inside (n, N, h, w) bool; fits (n, M) where the phrase names a thing, things (n, M, h, w) bool.
    """
    ours, theirs = (each.flatten(2).float() for each in (inside, things))
    shared = ours @ theirs.mT  # (n, N, M)
    iou = shared / (ours.sum(-1)[..., None] + theirs.sum(-1)[:, None] - shared).clamp(min=1)
    best = (iou * sure[..., None]).amax(1)  # (n, M)
    found = [(best[fits] >= low).sum() for low in torch.arange(0.5, 0.96, 0.05)]
    return (200 * torch.stack(found).float().mean() / (sure.sum() + fits.sum())).item()


def asked_of(run: Run, split: Split, seed: int) -> Tensor:
    """A phrase that is there, a near and a far one for each scene, the same for all arms, (n, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return draw(scenes(split, PRESETS[run.preset].scenes[1], seed).chance, (THERE, NEAR, FAR), generator)


def judged(run: Run, found: Found, token: bool, split: Split, seed: int) -> dict[str, float]:
    """IL_MCC, pmF1 (%) and cgF1 of what was found of the phrases of `asked_of`, with a threshold of one half."""
    test, asked = scenes(split, PRESETS[run.preset].scenes[1], seed), asked_of(run, split, seed)
    sure = found.scores(token) > 0.5  # (n, 3, N)
    answered, there = sure.any(-1), torch.zeros(sure.shape[:2], dtype=torch.bool)
    there[:, THERE] = True
    fits = test.names[torch.arange(len(asked)), asked[:, THERE]]  # (n, M)
    f1 = outlines(sure[:, THERE], found.masks[:, THERE] > 0, fits, test.masks > 0.5)
    mcc = correlation(answered, there)
    return {"mcc": mcc, "pmf1": f1, "cgf1": mcc * f1}


def found_by(run: Run, arm: str, rate: float, split: Split, seed: int) -> Found:
    """What an arm finds of the phrases of `asked_of`."""
    model = train(run, seed, rate, ARMS[arm].wanted, ARMS[arm].token)
    return ask(model, seen_of(run, seed, split), towers_of(run, seed).text, asked_of(run, split, seed))


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, by cgF1 on validation scenes."""

    def score(arm: str, rate: float, seed: int) -> float:
        return judged(run, found_by(run, arm, rate, "val", seed), ARMS[arm].token, "val", seed)["cgf1"]

    return study.search(run, "learning rate", ARMS, (2e-3, 4e-3, 8e-3), score)


@cache
def scores_of(run: Run) -> Scores:
    """All measures of all arms; failed trainings are marked."""

    def measure(arm: str, seed: int) -> dict[str, float]:
        token, rate = ARMS[arm].token, rates_of(run)[arm]
        validation, found = (found_by(run, arm, rate, split, seed) for split in ("val", "test"))
        sure = validation.scores(token)[:, THERE].amax(-1).quantile(1 - RECALL)
        answered = 100 * (found.scores(token).amax(-1) > sure).float().mean(0)  # (3,)
        kinds = {"recall": answered[THERE], "false_near": answered[NEAR], "rejected_far": 100 - answered[FAR]}
        return {name: each.item() for name, each in kinds.items()} | judged(run, found, token, "test", seed)

    scores = study.measured(run, ARMS, measure)
    scores.floor("far phrases rejected (%)", "rejected_far", FLOOR, ARMS)
    return scores


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    preset = PRESETS[run.preset]
    sizes = dict.fromkeys(arms, count_parameters(SAM3(preset)))
    data = f"{preset.scenes[0]:,} scenes of coloured shapes, {SIDE} px, with four of {len(PHRASES)} phrases a step; "
    data += f"{preset.scenes[1]} others to test, with one phrase that is there, one near and one far"
    floor = ("far phrases rejected (%)", FLOOR)
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=floor, **more)


def gains(experiment: Experiment, scores: Scores, pairs: Mapping[str, tuple[str, str]]) -> None:
    """For each name the first arm minus the second, in every measure, as ``<measure>_<name>``."""
    for name, (a, b) in pairs.items():
        for measure, (label, unit, _) in MEASURES.items():
            study.difference(experiment, f"{measure}_{name}", scores, measure, a, b, unit=unit and "points",
                             meaning=f"{label}: {ARMS[a].name} minus {ARMS[b].name}")  # fmt: skip


# Experiments


def presence(run: Run) -> None:
    """Does a token that says whether the concept is there lower false answers, at equal parameters, steps and recall?"""
    control = {"control": "Hard negatives, which must matter for near phrases, lower the same measure for queries alone.",
               "result": "false_near_of_negatives_alone", "below": 0}  # fmt: skip
    limit = "A query sees whether its thing fits: there are no concepts that only the whole picture decides."
    arms = {arm: ARMS[arm].name for arm in ("token", "alone")}
    experiment, scores = opened(run, presence, arms, power=control, cannot_show=limit), scores_of(run)
    study.record(experiment, scores, CONTROLS | MEASURES, arms)
    gains(experiment, scores, {"of_token": ("token", "alone")})
    experiment.figure(
        "token",
        study.bars(scores, MEASURES, {"token": "with the token", "alone": "queries alone"}),
        caption="With and without the presence token. First, near phrases that are answered at the threshold that answers "
        f"{RECALL:.0%} of those that are there; the others at a threshold of one half: correlation of the answers with the "
        "truth, outlines of what is there, and the product of both. Bars are means, dots are seeds.",
        alt="Four bar charts, each of networks with the presence token and of queries alone.",
    )


def negatives(run: Run) -> None:
    """What is it worth to train on phrases that share a word with what is there, with the token and without?"""
    experiment, scores = opened(run, negatives, ARMS), scores_of(run)
    easy = {arm: ARMS[arm].name for arm in ("token_easy", "alone_easy")}
    study.record(experiment, scores, CONTROLS | MEASURES, easy)
    gains(experiment, scores, {"of_negatives": ("token", "token_easy"), "of_negatives_alone": ("alone", "alone_easy")})
    labels = {
        "token": "token,\nhard",
        "token_easy": "token,\neasy",
        "alone": "alone,\nhard",
        "alone_easy": "alone,\neasy",
    }
    experiment.figure(
        "negatives",
        study.bars(scores, {name: MEASURES[name] for name in ("false_near", "cgf1")}, labels),
        caption="Half of the negative phrases in training share a word with a thing of the scene (hard), or none does (easy), "
        "with the presence token and with queries alone. Bars are means, dots are seeds.",
        alt="Bars of false answers to near phrases and of cgF1, with and without the token, with hard and with easy negatives.",
    )


EXPERIMENTS = (presence, negatives)
