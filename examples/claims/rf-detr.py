"""RF-DETR's claims: what does it cost to leave out layers and queries after training, and what makes that cheap?"""

# ruff: noqa: N999 (named after the card)
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from lab import study
from lab.run import Experiment, Run
from lab.study import SEARCH_SEEDS, Measure, Scores
from lab.training import count_parameters

example = import_module("rf-detr")

ARMS = {"every": "a loss on every layer", "last": "a loss on the last layer"}
FLOOR = ("AP with all layers and queries (%)", 25.0)  # below it a training counts as failed
FEW = 1  # decoder layers that are left
PART = 2  # one in so many queries is left


def last_layer(outputs: int) -> slice:
    """The proposals, without which nothing is selected, and the last layer."""
    return slice(0, outputs, outputs - 1)


PAID: dict[str, Callable[[int], slice]] = {"every": example.every_layer, "last": last_layer}


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for both, by the AP of all layers on validation scenes."""

    def score(arm: str, rate: float, seed: int) -> float:
        scenes = [example.scenes_of(run, "val", each) for each in SEARCH_SEEDS]
        networks = example.train(run, SEARCH_SEEDS, PAID[arm], rate)  # both seeds side by side, once
        said = example.predicted(networks, torch.stack([each.images for each in scenes]))
        index = SEARCH_SEEDS.index(seed)
        return example.ap(said[index], example.PRESETS[run.preset].layers, scenes[index])

    return study.search(run, "learning rate", ARMS, (2e-3, 4e-3, 8e-3), score)


def ranks_kept(run: Run, *, best: bool) -> torch.Tensor:
    """The ranks of the queries that are left: the first ones, or as many spread evenly."""
    queries = example.PRESETS[run.preset].queries
    kept = torch.arange(queries // PART)
    return kept if best else kept * PART + PART // 2


@cache
def scores_of(run: Run) -> Scores:
    """The AP of each arm after every number of layers, and with fewer queries."""
    preset, scenes = example.PRESETS[run.preset], [example.scenes_of(run, "test", seed) for seed in run.seeds]
    images = torch.stack([each.images for each in scenes])
    outcomes: dict[str, list[dict[str, float]]] = {}
    for arm in ARMS:
        networks = example.train(run, run.seeds, PAID[arm], rates_of(run)[arm])
        said = example.predicted(networks, images)
        best, spread = (example.predicted(networks, images, ranks=ranks_kept(run, best=best)) for best in (True, False))
        outcomes[arm] = []
        for i, each in enumerate(scenes):
            by_layer = [example.ap(said[i], layer, each) for layer in range(preset.layers + 1)]
            outcomes[arm].append(
                {f"layers{layer}": value for layer, value in enumerate(by_layer)}
                | {
                    "all": by_layer[-1],
                    "few": by_layer[FEW],
                    "best": example.ap(best[i], preset.layers, each),
                    "spread": example.ap(spread[i], preset.layers, each),
                    "suppressed": example.ap(said[i], preset.layers, each, suppress=True),
                }
            )
    scores = Scores(run.seeds, outcomes)
    if run.preset != "smoke":
        scores.floor(*FLOOR[:1], "all", FLOOR[1], ARMS)
    return scores


def opened(run: Run, experiment: Callable[[Run], None], **more: Any) -> Experiment:
    preset = example.PRESETS[run.preset]
    train, _, test = preset.scenes
    data = (
        f"{train:,} scenes of one to three shapes, {example.SIDE} px, drawn anew for each seed; {test} others to test"
    )
    sizes = dict.fromkeys(ARMS, count_parameters(example.RFDETR(preset)))
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=FLOOR, **more)


def lost(experiment: Experiment, scores: Scores, name: str, arm: str, kept: str, meaning: str) -> None:
    """Records what an arm has with all layers and queries, less what is left."""
    failed = scores.reasons("undefined", arm)
    values = scores.minus("all", arm, arm, of_b=kept)
    experiment.result(
        name, values, unit="points", meaning=f"AP of all minus AP of {meaning}: {ARMS[arm]}", failed=failed
    )


# Experiments


def layers(run: Run) -> None:
    """What does it cost to leave out decoder layers after training, with and without a loss on each of them?"""
    scores, count = scores_of(run), example.PRESETS[run.preset].layers
    small = "Whether it is cheap where the decoder adds much: on these scenes the proposals are about as good as what follows."
    experiment = opened(run, layers, cannot_show=small)
    study.record(
        experiment, scores, {"all": Measure("AP with all layers", "%"), "few": Measure("AP with one layer", "%")}, ARMS
    )
    for arm in ARMS:
        lost(experiment, scores, f"lost_layers_{arm}", arm, "few", "one layer")
    pairs = zip(
        scores.minus("all", "last", "last", of_b="few"), scores.minus("all", "every", "every", of_b="few"), strict=True
    )
    meaning = "AP lost with all layers but one left out: a loss on the last layer minus a loss on every layer"
    experiment.result(
        "lost_layers_last_minus_every", [a - b for a, b in pairs], unit="points", meaning=meaning,
        failed=scores.reasons("undefined", *ARMS),
    )  # fmt: skip
    curves = {
        name: [
            [(float(layer), scores.values(f"layers{layer}", arm)[seed]) for layer in range(count + 1)]
            for seed in range(len(run.seeds))
        ]
        for arm, name in ARMS.items()
    }
    experiment.figure(
        "layers",
        study.curves(curves, x="decoder layers used (0: proposals alone)", y="AP on test scenes (%)"),
        caption="AP after each number of decoder layers, without another training: of networks with a loss on every layer, and "
        "with one on proposals and last layer alone. Means and ranges of the seeds.",
        alt="Two lines with bands: AP against the number of decoder layers used, for a loss on every and on the last layer.",
    )


def queries(run: Run) -> None:
    """Can half of the queries be left out, if the order of their scores says which?"""
    power = {"control": "Queries of all ranks, as many, lose much.", "result": "lost_queries_spread", "above": 5}
    experiment, scores = opened(run, queries, power=power), scores_of(run)
    lost(experiment, scores, "lost_queries_best", "every", "best", "the best half of the queries")
    lost(experiment, scores, "lost_queries_spread", "every", "spread", "half of the queries, of all ranks")
    kinds = {"all": "all", "best": "best half", "spread": "a half\nof all ranks"}
    shown = Scores(run.seeds, {kind: [{"ap": value} for value in scores.values(kind, "every")] for kind in kinds})
    experiment.figure(
        "queries",
        study.bars(shown, {"ap": Measure("AP on test scenes", "%")}, kinds),
        caption="AP with all queries, with the half of the highest scores, and with as many of all ranks. Dots are seeds.",
        alt="Three bars: AP with all queries, with the best half, and with a half of all ranks.",
    )


def suppression(run: Run) -> None:
    """Does non-maximum suppression add anything?"""
    experiment, scores = opened(run, suppression), scores_of(run)
    gain, failed = scores.minus("suppressed", "every", "every", of_b="all"), scores.reasons("undefined", "every")
    meaning = "AP after non-maximum suppression minus AP without"
    experiment.result("suppression_gain", gain, unit="points", meaning=meaning, failed=failed)


EXPERIMENTS = (layers, queries, suppression)
