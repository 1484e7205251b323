"""Mask2Former's claims: is it masked attention that makes the difference, at equal parameters and steps?"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from functools import cache
from typing import Any

import torch
from lab import panoptic, study
from lab.data.yards import SIDE, THINGS, Yards
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters
from mask2former import (
    PRESETS,
    K,
    Mask2Former,
    Masks,
    Outside,
    Trained,
    look,
    outside_of,
    quality,
    scenes,
    seen,
    train,
)
from torch import Tensor

ARMS = {"masked": "inside its mask", "full": "everywhere"}
FLOOR = 40.0  # PQ of things (%) below which a training counts as failed: what learned queries reach that read nothing
GAINS = {
    "pq": "Panoptic quality",
    "pq_things": "Panoptic quality of things",
    "pq_half_way": "Panoptic quality half way",
}
MEASURES = {name: Measure(label, "%") for name, label in (GAINS | {"pq_stuff": "Panoptic quality of stuff"}).items()}

# The rival, other ways to read in use, and the rates of both arms from one search


def nowhere(logits: Tensor) -> None:
    """Full cross-attention: no place is kept from any query."""


def outside_of_another(logits: Tensor) -> Tensor:
    """A query reads inside the mask of the query before it."""
    return outside_of(logits.roll(1, 1))


OUTSIDE: Mapping[str, Outside] = {"masked": outside_of, "full": nowhere}
IN_USE: Mapping[str, Outside | None] = {"own": None, "everywhere": nowhere, "another": outside_of_another}


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, by panoptic quality on validation scenes."""

    def score(arm: str, rate: float, seed: int) -> float:
        return train(run, seed, rate, OUTSIDE[arm], "val")[1][-1][1]

    return study.search(run, "learning rate", ARMS, (4e-3, 8e-3, 1.6e-2), score)


def trained(run: Run, arm: str, seed: int) -> Trained:
    """The network of an arm with its curve; the first masked one is that of the file that is read."""
    return train(run, seed, rates_of(run)[arm], OUTSIDE[arm])


def said_by(run: Run, arm: str, seed: int, outside: Outside | None = None) -> tuple[Masks, Yards]:
    """What the network of an arm says of the test scenes, and the truth; in use it may read in another way."""
    model = copy(trained(run, arm, seed)[0])
    model.outside = outside or model.outside
    return look(model, seen(run, "test", seed)), scenes("test", PRESETS[run.preset].scenes[1], seed)


@cache
def qualities(run: Run, arm: str, seed: int, outside: Outside | None = None) -> list[tuple[float, float, float]]:
    """After each layer, the learned queries first, panoptic quality (%) of all classes, of things and of stuff."""
    said, truth = said_by(run, arm, seed, outside)
    return [quality(said, truth, layer) for layer in range(len(said.classes))]


@cache
def scores_of(run: Run) -> Scores:
    """Panoptic quality of both arms at the end and half way; failed trainings are marked."""

    def measure(arm: str, seed: int) -> dict[str, float]:
        curve = trained(run, arm, seed)[1]
        pq = dict(zip(("pq", "pq_things", "pq_stuff"), qualities(run, arm, seed)[-1], strict=True))
        return pq | {"pq_half_way": curve[(len(curve) - 1) // 2][1]}

    scores = study.measured(run, ARMS, measure)
    scores.floor("panoptic quality of things (%)", "pq_things", FLOOR, ARMS)
    return scores


def opened(run: Run, experiment: Callable[[Run], None], arms: Mapping[str, str] = ARMS, **more: Any) -> Experiment:
    preset = PRESETS[run.preset]
    sizes = dict.fromkeys(arms, count_parameters(Mask2Former(preset)))
    data = f"{preset.scenes[0]:,} scenes of two to four things on two kinds of ground, {SIDE} px, to train; "
    data += f"{preset.scenes[1]} others to test"
    floor = ("panoptic quality of things (%)", FLOOR)
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=floor, **more)


# Experiments


def masked_attention(run: Run) -> None:
    """What is masked attention worth, at equal parameters and steps?"""
    control = {"control": "What is read matters: layers raise the panoptic quality of things over that of learned queries, "
               "which read nothing, also with full attention.", "result": "things_gain_of_layers_full", "above": 0}  # fmt: skip
    limit = "A few hundred steps on small scenes with few things, and pixels that already know the middle of their thing: it "
    limit += "cannot show what masked attention is worth in a picture of dozens of objects, nor after fifty epochs."
    experiment, scores = opened(run, masked_attention, power=control, cannot_show=limit), scores_of(run)
    study.record(experiment, scores, MEASURES, ARMS)
    for measure, label in GAINS.items():
        study.difference(experiment, f"{measure}_gain", scores, measure, "masked", "full", unit="points",
                         meaning=f"{label}: masked minus full attention")  # fmt: skip
    lines = {label: [trained(run, arm, seed)[1] for seed in run.seeds] for arm, label in ARMS.items()}
    experiment.figure(
        "convergence",
        study.curves(lines, x="steps", y="panoptic quality (%)"),
        caption="Panoptic quality on test scenes where a query reads the picture inside the mask that it predicted before, and "
        "where it reads everywhere; the learning rate is constant. Lines are means over the seeds, bands reach from the worst to "
        "the best one.",
        alt="Panoptic quality against training steps for masked and for full attention, with bands over the seeds.",
    )


def layers(run: Run) -> None:
    """Does each layer of the decoder make the masks of things better?"""
    experiment, scores = opened(run, layers), scores_of(run)
    things = {arm: [[layer[1] for layer in qualities(run, arm, seed)] for seed in run.seeds] for arm in ARMS}
    for arm, label in ARMS.items():
        for name, start, meaning in (
            ("layers", 0, "of the learned queries"),
            ("later_layers", 1, "after the first layer"),
        ):
            experiment.result(
                f"things_gain_of_{name}_{arm}",
                scores.counted(arm, [seed[-1] - seed[start] for seed in things[arm]]),
                unit="points",
                meaning=f"Panoptic quality of things after the last layer minus that {meaning}: {label}",
                failed=scores.reasons("undefined", arm),
            )
    experiment.figure(
        "quality_by_layer",
        study.curves({ARMS[arm]: [list(enumerate(seed)) for seed in things[arm]] for arm in ARMS},
                     x="layers", y="PQ of things (%)"),
        caption="Panoptic quality of things by the masks before the first layer, which are those of learned queries, and after "
        "each layer. Lines are means over the seeds, bands reach from the worst to the best one.",
        alt="Panoptic quality of things after none to all layers of the decoder, for masked and for full attention.",
    )  # fmt: skip


def in_use(run: Run) -> None:
    """Does a network that was trained with masked attention need it in use?"""
    experiment, floor = opened(run, in_use, {"masked": ARMS["masked"]}), scores_of(run)
    ways = {"own": "inside its own mask", "everywhere": "everywhere", "another": "inside the mask of another query"}

    def measure(way: str, seed: int) -> dict[str, float]:
        return {"pq_things": qualities(run, "masked", seed, IN_USE[way])[-1][1]}

    scores = study.measured(run, ways, measure)
    scores.failed.update({way: floor.failed["masked"] for way in ways if "masked" in floor.failed})
    kept = {"pq_things": Measure("Panoptic quality of things in use", "%")}
    study.record(experiment, scores, kept, {way: label for way, label in ways.items() if way != "own"})
    for way in ("everywhere", "another"):
        study.difference(experiment, f"things_lost_{way}", scores, "pq_things", "own", way, unit="points",
                         meaning=f"Panoptic quality of things: reading inside its own mask minus {ways[way]}")  # fmt: skip
    labels = {"own": "its own\nmask", "everywhere": "everywhere", "another": "another\nquery's mask"}
    experiment.figure(
        "reading_in_use",
        study.bars(scores, {"pq_things": Measure("PQ of things", "%")}, labels),
        caption="Networks that were trained to read inside their own masks, and read there, everywhere, or inside the mask of "
        "another query. Bars are means, dots are seeds.",
        alt="Three bars of the panoptic quality of things, by where the queries read.",
    )


def answers(said: Masks, truth: Yards) -> tuple[Tensor, Tensor]:
    """Of each true segment how many masks of its class cover it by more than one half, before pixels are shared out, (n, M), and
    how often each query answers for each class (N, K)."""
    labels = said.classes[-1].argmax(-1)
    iou = panoptic.overlaps(said.masks[-1] > 0.5, truth.masks) * (labels[..., None] == truth.labels[:, None])
    hits = (iou > 0.5) & (truth.labels < K)[:, None]  # (n, N, M)
    kinds = torch.nn.functional.one_hot(truth.labels, K + 1)[..., :K].float()
    return hits.sum(1), torch.einsum("bnm,bmk->nk", hits.float(), kinds)


def queries(run: Run) -> None:
    """Does one query draw each segment, and do the same queries serve things and stuff?"""
    experiment, scores = opened(run, queries, {"masked": ARMS["masked"]}), scores_of(run)
    found = [answers(*said_by(run, "masked", seed)) for seed in run.seeds]
    counts = [masks[masks > 0].float().mean().item() for masks, _ in found]
    both = [(kinds[:, : len(THINGS)].sum(1) > 0) & (kinds[:, len(THINGS) :].sum(1) > 0) for _, kinds in found]
    used = [(kinds.sum(1) > 0).sum().item() for _, kinds in found]
    shared = [
        100 * each.sum().item() / count if count else float("nan") for each, count in zip(both, used, strict=True)
    ]
    failed = scores.reasons("no query answers", "masked")
    experiment.result("masks_per_segment", scores.counted("masked", counts), unit="", failed=failed,
                      meaning="Masks of the right class on a segment that is found, before pixels are shared out")  # fmt: skip
    experiment.result("queries_for_both", scores.counted("masked", shared), unit="%", failed=failed,
                      meaning="Queries that draw things in some scenes and stuff in others, of all that draw any")  # fmt: skip


EXPERIMENTS = (masked_attention, layers, in_use, queries)
