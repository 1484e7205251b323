"""DINOv3's claims: does a small network gain more from a large frozen teacher than from itself, and does it keep most of it?"""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from statistics import fmean
from typing import Any

import torch
from dinov2 import Student, ViT, dense
from dinov3 import PRESETS, TEACHER_SEED, gram_loss, knn, large_of, learn
from lab import study
from lab.data.photographs import NAMES, grey, photograph_region
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters, seed_everything
from torch import Tensor, nn

ARMS = {"distilled": "distilled", "self": "self-\ndistilled", "untrained": "random\nteacher"}
READ = ARMS | {"random": "random\nweights"}
FLOOR = ("photographs named, over random weights (points)", 0.0)  # below it features are worth no more than none
LEARNED = (
    5.0  # points over random weights of its own size that the large network has to have, or it has nothing to pass on
)
NAMED = {"knn": Measure("photograph named by neighbours", "%")}
ALIKE = {"gram": Measure("mean squared difference of similarities", "")}
REGION = 80  # pixels a side of the regions on which places are compared

# The rival and the control


@cache
def random_large(run: Run) -> Student:
    """A network like the large one, with random weights."""
    seed_everything(TEACHER_SEED + 1)
    return Student(PRESETS[run.preset].large).to(run.device).requires_grad_(False).eval()


TEACHERS: Mapping[str, Callable[[Run], Student | None]] = {
    "distilled": large_of,
    "self": lambda run: None,  # its own average
    "untrained": random_large,
}


def fitted(run: Run, arm: str, seed: int, rate: float) -> nn.Module:
    """The backbone of a small network."""
    return learn(run, PRESETS[run.preset].small, seed, rate, TEACHERS[arm](run)).backbone


@cache
def untrained(run: Run, seed: int) -> nn.Module:
    seed_everything(seed)
    return ViT(PRESETS[run.preset].small.width, PRESETS[run.preset].small.layers).to(run.device).eval()


# Rates and measures


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all, by nearest neighbours of validation pieces."""

    def score(arm: str, rate: float, seed: int) -> float:
        return knn(run, fitted(run, arm, seed, rate), "val")

    return study.search(run, "learning rate", ARMS, (5e-3, 1e-2, 2e-2), score)


@cache
def maps_of(run: Run, backbone: nn.Module) -> list[Tensor]:
    """Features (h, w, D) of a region of each photograph that no training saw."""
    regions = (torch.from_numpy(grey(photograph_region(name, "test")[:REGION, :REGION]).copy()) for name in NAMES)
    return [dense(backbone, region) for region in regions]


def apart(run: Run, backbone: nn.Module) -> float:
    """How far similarities of places are from those in the large network, mean over photographs."""
    pairs = zip(maps_of(run, backbone), maps_of(run, large_of(run).backbone), strict=True)
    return fmean(gram_loss(*pair) for pair in pairs)


@cache
def scores_of(run: Run) -> Scores:
    """All measures of all arms; a training that is worth less than random weights is marked as failed."""

    def measure(arm: str, seed: int) -> dict[str, float]:
        chance = untrained(run, seed)
        backbone = chance if arm == "random" else fitted(run, arm, seed, rates_of(run)[arm])
        known = knn(run, backbone)
        return {"knn": known, "over_random": known - knn(run, chance), "gram": apart(run, backbone)}

    scores = study.measured(run, READ, measure)
    scores.floor(FLOOR[0], "over_random", FLOOR[1], ("distilled", "self"))
    return scores


def opened(run: Run, experiment: Callable[[Run], None], **more: Any) -> Experiment:
    small = PRESETS[run.preset].small
    sizes = dict.fromkeys(ARMS, count_parameters(ViT(small.width, small.layers)))
    data = f"{small.pieces[0]:,} grey pieces of fourteen photographs to train; {small.pieces[1]} of other parts of them to "
    data += "choose rates, as many of further parts to test; one large network for all seeds"
    return study.opened(run, experiment, data=data, sizes=sizes, steps=small.steps, floor=FLOOR, **more)


def named(arms: Mapping[str, str]) -> dict[str, str]:
    """Arms with their names on one line."""
    return {arm: name.replace("\n", " ") for arm, name in arms.items()}


# Experiments


def distillation(run: Run) -> None:
    """Does a small network learn more from a large one that learned without labels than from itself, at equal steps?"""
    control = {"control": "The large network has something to pass on: it names more photographs than with random weights.",
               "result": "large_over_random", "above": LEARNED}  # fmt: skip
    experiment, scores = opened(run, distillation, power=control), scores_of(run)
    large = knn(run, large_of(run).backbone)
    study.record(experiment, scores, NAMED, named(READ))
    for other in ("self", "untrained", "random"):
        meaning = f"Photograph named by neighbours: distilled minus {READ[other]}".replace("\n", " ")
        study.difference(
            experiment, f"gain_over_{other}", scores, "knn", "distilled", other, unit="points", meaning=meaning
        )
    gained = large - knn(run, random_large(run).backbone)
    for name, value, unit, meaning in (
        ("knn_large", large, "%", "Photograph named by neighbours: large network"),
        (
            "large_over_random",
            gained,
            "points",
            "Photograph named by neighbours: large network minus its random weights",
        ),
    ):
        experiment.result(name, [value], unit=unit, meaning=meaning, exact=True)
    kept = [100 * value / large for value in scores.values("knn", "distilled")]
    experiment.result("kept", kept, unit="%", meaning="What the distilled small network names, over what the large one names",
                      failed=scores.reasons("undefined", "distilled"))  # fmt: skip
    experiment.figure(
        "distillation",
        study.bars(scores, NAMED, READ),
        caption=f"Photographs of test pieces named by nearest neighbours among frozen features of a small network. The large "
        f"network names {large:.0f} %. Bars are means, dots are seeds; all have the same steps and data.",
        alt="A bar chart of a small network distilled from a large one, self-distilled, distilled from random weights, and with "
        "random weights itself.",
    )


def places(run: Run) -> None:
    """Does a distilled network take over which places are alike, though its loss never compares two places?"""
    experiment, scores = opened(run, places), scores_of(run)
    study.record(experiment, scores, ALIKE, named(READ))
    for other in ("self", "untrained"):
        meaning = f"Difference of similarities from the large network's: {READ[other]} minus distilled".replace(
            "\n", " "
        )
        study.difference(
            experiment, f"nearer_than_{other}", scores, "gram", other, "distilled", unit="", meaning=meaning
        )
    experiment.figure(
        "places",
        study.bars(scores, ALIKE, READ),
        caption="How far the similarities of all places of a photograph are from those in the large network: the Gram loss, over "
        "places, on parts of photographs that no training saw. Bars are means, dots are seeds; less is nearer.",
        alt="A bar chart of the Gram loss against the large network, for a small network in four states.",
    )


EXPERIMENTS = (distillation, places)
