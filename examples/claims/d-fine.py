"""D-FINE's claims: do refined distributions of edges make boxes more exact than refined numbers, and do their uneven steps?"""

# ruff: noqa: N999
# mypy: disable-error-code="no-any-return, no-untyped-call, name-defined, misc"
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from lab import study
from lab.data.soft import SIDE, Soft, soft
from lab.figures import Figure, Style, panels, seed_bars
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchvision.ops import MLP

example = import_module("d-fine")
PRESETS, N, A = example.PRESETS, example.N, example.A

FLOOR = 50.0  # AP50 (%), below which a training counts as failed
APS = {"ap50": Measure("AP50", "%"), "ap75": Measure("AP75", "%"), "ap": Measure("AP", "%")}
FINE = {name: APS[name] for name in ("ap50", "ap75")}

# Rivals


class Direct(example.DFINE):
    """Each layer adds four numbers to the box, before the sigmoid, as in DINO and RT-DETR; its heads are as large."""

    def head(self, width: int) -> MLP:
        """Hidden layers so wide that there are as many parameters as in a head of distributions."""
        there = 2 * (width**2 + width) + 4 * (N + 1) * (width + 1)
        half = (width + 6) / 2
        hidden = round(math.sqrt(half**2 + there - 4) - half)
        return MLP(width, [hidden, hidden, 4], inplace=None)

    def refined(self, start: Tensor, edges: Tensor) -> Tensor:
        return (torch.logit(start, eps=1e-5) + edges[..., 0]).sigmoid()

    def edge_loss(self, said: Any, boxes: Tensor) -> Tensor:
        """There is no distribution that could learn anything."""
        return torch.zeros_like(said.score)


def even(preset: Any) -> nn.Module:
    """D-FINE with as many steps that reach as far, all of one size."""
    return example.DFINE(preset, torch.linspace(-2 * A, 2 * A, N + 1))


ARMS = {"fdr": "distributions", "even": "distributions, even steps", "direct": "four numbers"}
MAKE = {"fdr": example.DFINE, "even": even, "direct": Direct}

# Arms, and their rates from one search


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm; AP on validation scenes decides."""

    def score(arm: str, rate: float, seed: int) -> float:
        held_out = soft("val", PRESETS[run.preset].scenes[1], seed)
        said = example.look_at(example.train(run, seed, rate, MAKE[arm]), held_out.images)
        return example.precision(said.boxes[:, -1], said.score[:, -1], held_out)["ap"]

    return study.search(run, "learning rate", ARMS, (2e-3, 4e-3, 8e-3), score)


@cache
def looks(run: Run, arm: str, seed: int) -> tuple[Any, Soft]:
    """What the network of an arm says of the test scenes; the first one of D-FINE is that of the file that is read."""
    test = soft("test", PRESETS[run.preset].scenes[1], seed)
    return example.look_at(example.train(run, seed, rates_of(run)[arm], MAKE[arm]), test.images), test


@cache
def by_layer(run: Run, arm: str, seed: int) -> list[dict[str, float]]:
    """The APs of the first box and of those after each layer, all with the last score."""
    said, test = looks(run, arm, seed)
    return [example.precision(boxes, said.score[:, -1], test) for boxes in (said.start, *said.boxes.unbind(1))]


@cache
def scores_of(run: Run) -> Scores:
    """The APs of all arms, and what the looks after the first box add (`looks_`); failed trainings are marked."""

    def measure(arm: str, seed: int) -> dict[str, float]:
        first, *_, last = by_layer(run, arm, seed)
        added = {f"looks_{name}": last[name] - first[name] for name in APS}
        more = {"more": last["ap75"] - last["ap50"], "looks_more": added["looks_ap75"] - added["looks_ap50"]}
        return {name: last[name] for name in APS} | added | more

    scores = study.measured(run, ARMS, measure)
    scores.floor("AP50 (%)", "ap50", FLOOR, ARMS)
    return scores


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    preset = PRESETS[run.preset]
    sizes = {arm: count_parameters(MAKE[arm](preset)) for arm in arms}
    data = f"{preset.scenes[0]:,} scenes of one soft shape, {SIDE} px, to train, {preset.scenes[1]} others to test"
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=("AP50 (%)", FLOOR), **more)


def compared(experiment: Experiment, scores: Scores, rival: str, name: str, meaning: str) -> None:
    """Both arms, their differences in all APs, and how much more AP75 differs than AP50."""
    for measure, (label, _, _) in APS.items():
        study.difference(experiment, f"{measure}_{name}", scores, measure, "fdr", rival, unit="points",
                         meaning=f"{label}: {meaning}")  # fmt: skip
    study.difference(experiment, f"ap75_over_ap50_{name}", scores, "more", "fdr", rival, unit="points",
                     meaning=f"Gain in AP75 minus gain in AP50: {meaning}")  # fmt: skip


# Experiments


def refinement(run: Run) -> None:
    """Do refined distributions raise AP75, and more than AP50, over refined numbers in the same decoder?"""
    control = {"control": "Looking again raises AP75 more than AP50 where four numbers are refined, so finer boxes can be seen.",
               "result": "looks_more_direct", "above": 0}  # fmt: skip
    limit = "A few hundred steps on one shape in a scene, and layers that do not teach each other: "
    limit += "it cannot show what long training of the whole method gives."
    experiment, scores = opened(run, refinement, ("fdr", "direct"), power=control, cannot_show=limit), scores_of(run)
    pair = {arm: ARMS[arm] for arm in ("fdr", "direct")}
    more = {
        "looks_more": Measure("What the looks after the first box add to AP75, minus what they add to AP50", "points")
    }
    study.record(experiment, scores, APS | more, pair)
    compared(experiment, scores, "direct", "gain", "distributions minus four numbers")
    experiment.figure(
        "refinement",
        study.bars(scores, FINE, pair),
        caption="The same decoder, refining distributions or four numbers, at equal parameters and steps. Bars are means, dots "
        "are seeds.",
        alt="Two pairs of bars, AP50 and AP75, for distributions of edges and for four numbers.",
    )


def steps(run: Run) -> None:
    """Are steps that are fine in the middle better than even ones?"""
    experiment, scores = opened(run, steps, ("fdr", "even")), scores_of(run)
    study.record(experiment, scores, APS, {"even": ARMS["even"]})
    compared(experiment, scores, "even", "gain_of_uneven", "uneven minus even steps")
    experiment.figure(
        "uneven_steps",
        study.bars(scores, FINE, {"fdr": "uneven", "even": "even"}),
        caption="Steps that grow from the middle outwards, or of one size; as many, and as far. Bars are means, dots are seeds.",
        alt="Two pairs of bars, AP50 and AP75, for uneven and for even steps.",
    )


def layers(run: Run) -> None:
    """What does each further look add?"""
    experiment, scores = opened(run, layers, ARMS), scores_of(run)
    added = {
        f"looks_{name}": Measure(f"What the looks after the first box add to {APS[name].label}", "points")
        for name in APS
    }
    study.record(experiment, scores, added, ARMS)
    curves = {
        label: [[(n, ap["ap75"]) for n, ap in enumerate(by_layer(run, arm, seed))] for seed in run.seeds]
        for arm, label in ARMS.items()
    }
    experiment.figure(
        "layers",
        study.curves(curves, x="layers (0: first box)", y="AP75 (%)"),
        caption="AP75 of the first box and of the boxes after each layer. Lines are means, bands reach over the seeds.",
        alt="AP75 against the number of layers for distributions, for even steps and for four numbers.",
    )


def known(run: Run, seed: int) -> tuple[Tensor, Tensor]:
    """Of all edges of the last layer the spread of the distribution and the error, both in pixels, (n,)."""
    said, test = looks(run, "fdr", seed)
    p, W, sides = said.edges[:, -1].softmax(-1), example.weighting(), said.start[:, [2, 3, 2, 3]] * SIDE
    spread = (p @ W**2 - (p @ W) ** 2).clamp(min=0).sqrt() * sides
    found, wanted = (example.steps_to(said.start, boxes) * sides for boxes in (said.boxes[:, -1], test.boxes))
    return spread.flatten(), (found - wanted).abs().flatten()


def draw_spread(style: Style, pairs: list[tuple[Tensor, Tensor]]) -> Figure:
    figure, axes = panels(1, 1, width=study.WIDTH, height=2.8)
    rows = [[float(part.mean()) for part in error[spread.argsort()].tensor_split(4)] for spread, error in pairs]
    seed_bars(axes[0, 0], ["narrowest", "2nd", "3rd", "widest"], list(zip(*rows, strict=True)), [style.cycle[0]] * 4)
    axes[0, 0].set(xlabel="quarter of the edges, by the spread of the distribution", ylabel="error of the edge (px)")
    return figure


def spread(run: Run) -> None:
    """Does a distribution say how far its edge is off?"""
    experiment, pairs = opened(run, spread, ("fdr",)), [known(run, seed) for seed in run.seeds]
    values = scores_of(run).counted("fdr", [float(spearmanr(*pair).statistic) for pair in pairs])
    experiment.result("spread_error_correlation", values, unit="", failed=scores_of(run).reasons("undefined", "fdr"),
                      meaning="Rank correlation of the spread of an edge with its error")  # fmt: skip
    experiment.figure(
        "spread",
        partial(draw_spread, pairs=pairs),
        caption="Error of the edges on test scenes, by the spread of their distributions. Bars are means, dots are seeds.",
        alt="Four bars of the error of edges, from the quarter with the narrowest distributions to that with the widest.",
    )


EXPERIMENTS = (refinement, steps, layers, spread)
