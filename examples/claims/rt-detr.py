"""RT-DETR's claims: does a score that knows its box pick better queries, and what do layers cost that are left out?"""

# ruff: noqa: N999
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from lab import shapes, study
from lab.boxes import Targets
from lab.data import Split
from lab.data.named import NAMES, SIDE, Named, named
from lab.figures import Figure, Style, panels, seed_lines
from lab.run import Experiment, Run
from lab.shapes import Found
from lab.study import Measure, Scores
from lab.training import count_parameters
from torch import Tensor, nn
from torchvision.ops import box_iou

example = import_module("rt-detr")
RTDETR, PRESETS = example.RTDETR, example.PRESETS

SELECTIONS = {"overlap": "score that learned the overlap", "plain": "plain class score"}
PAYING = {"every": "every layer pays", "last": "the last layer pays", "short": "the first two layers pay"}
LAYERS = (1, 2, 3)
FLOOR = 25.0  # AP (%) with the layers that were trained, below which a training counts as failed
ON = 0.1  # overlap above which a box lies on a thing
READ = {"every": 3, "last": 3, "short": 2}  # layers that each arm is read with after training
SELECTED = {
    "ap": Measure("AP", "%"),
    "start_overlap": Measure("Overlap at the start", "%"),
    "agreement": Measure("Score against overlap", "", "fewer than ten places lie on things"),
}

# The control: a second score, and the arms, with their rates from one search


class TwoScores(RTDETR):  # type: ignore[misc, valid-type]
    """RT-DETR with a plain score beside the one that learns the overlap, on the same places with the same boxes.

    In training every other picture starts from the places that the plain score picks, so the decoder knows both choices.
    In use `by` says which score picks, or that chance does.
    """

    def __init__(self, preset: Any) -> None:
        super().__init__(preset)
        self.plain, self.by = nn.Linear(preset.width, shapes.K), "overlap"
        nn.init.constant_(self.plain.bias, -3.0)

    def forward(self, images: Tensor) -> list[Found]:
        maps, places = self.encode(images)
        said = self.read(places, self.start.expand(len(images), -1, -1), 0)
        plain = said._replace(logits=self.plain(places).float())
        by = {"overlap": said, "plain": plain, "chance": said._replace(logits=torch.rand_like(said.logits))}
        if self.training:
            odd = torch.arange(len(images), device=images.device)[:, None] % 2 == 1
            best = torch.where(odd, self.select(plain), self.select(said))
        else:
            best = self.select(by[self.by])
        return [said, plain, *self.refine(maps, places, said.boxes, best)]


def loss_of_two(model: Callable[[Tensor], list[Found]], images: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """That of RT-DETR, and what the plain score pays, whose goal is 1 whatever the box."""
    said, plain, *layers = model(images)
    loss = example.loss_of(lambda _: [said, *layers], images, boxes, labels)
    return loss + example.set_loss(plain, Targets(boxes, labels), by_overlap=False)


ARMS: Mapping[str, Mapping[str, Any]] = {
    "every": {},
    "last": {"loss": partial(example.loss_of, paying=(2,))},  # layers are counted from 0
    "short": {"loss": partial(example.loss_of, paying=(0, 1))},
    "two": {"loss": loss_of_two, "build": TwoScores},
}


def scenes(run: Run, seed: int, split: Split = "test") -> Named:
    return named(split, PRESETS[run.preset].scenes[1], seed, range(len(NAMES)))


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, by AP with the layers that it is trained for, on validation scenes."""

    def score(arm: str, rate: float, seed: int) -> float:
        model, held_out = example.train(run, seed, rate, **ARMS[arm]), scenes(run, seed, "val")
        layer = 1 if arm == "short" else -1
        found = [
            shapes.ap(found_by(model, held_out, by)[layer], held_out) for by in (SELECTIONS if arm == "two" else [""])
        ]
        return sum(found) / len(found)

    return study.search(run, "learning rate", ARMS, (2e-3, 4e-3, 8e-3), score)


def trained(run: Run, arm: str, seed: int) -> nn.Module:
    """The network of an arm; the first one in which every layer pays is that of the file that is read."""
    return example.train(run, seed, rates_of(run)[arm], **ARMS[arm])


def found_by(model: nn.Module, test: Named, by: str = "") -> list[Found]:
    """What places and layers find; of two scores, where the one that is named picks the queries."""
    model.by = by  # type: ignore[assignment]
    torch.manual_seed(0)  # of chance
    return example.look(model, test.images)


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    preset = PRESETS[run.preset]
    sizes = {arm: count_parameters(ARMS[arm].get("build", RTDETR)(preset)) for arm in arms}
    data = f"{preset.scenes[0]:,} scenes of coloured shapes, {SIDE} px, to train; {preset.scenes[1]} others to test"
    floor = ("AP (%) with the layers that were trained", FLOOR)
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=floor, **more)


# Experiments


def agreement(score: Tensor, overlap: Tensor) -> float:
    """Spearman's rank correlation of two measures (n,); NaN for fewer than ten."""
    if len(score) < 10:
        return torch.nan
    ranks = torch.stack([each.argsort().argsort().float() for each in (score, overlap)])
    return torch.corrcoef(ranks)[0, 1].item()


def selected(run: Run, by: str, seed: int) -> dict[str, float]:
    """What comes of the queries that one of the scores, or chance, picks in the same network."""
    model, test = trained(run, "two", seed), scenes(run, seed)
    said, plain, *layers = found_by(model, test, by)
    found = {"ap": shapes.ap(layers[-1], test)}
    if by == "chance":
        return found
    start = example.chosen(model, said if by == "overlap" else plain)
    overlap = box_iou(start.boxes, test.boxes, fmt="cxcywh")  # (n, N, M), 0 with padding
    best, score = overlap.amax(-1), start.logits.sigmoid().amax(-1)  # of each box
    of_things = overlap.amax(1)[test.labels < len(NAMES)]
    return found | {
        "start_overlap": 100 * of_things.mean().item(),
        "agreement": agreement(score[best > ON], best[best > ON]),
    }


def selection(run: Run) -> None:
    """Does a class score that has learned how well its box fits pick better queries than a plain one?"""
    control = {"control": "Started at random places, the same network finds far less: which places start matters.",
               "result": "selection_matters", "above": 10}  # fmt: skip
    limit = (
        "In seconds of training the boxes of neighbouring places fit about alike, so there is little to choose. The "
    )
    limit += "published gain is a fraction of a point after a whole training."
    experiment = opened(run, selection, ["two"], power=control, cannot_show=limit)
    scores = study.measured(run, (*SELECTIONS, "chance"), partial(selected, run))
    scores.floor("AP (%) with the layers that were trained", "ap", FLOOR, SELECTIONS)
    study.record(experiment, scores, SELECTED, SELECTIONS)
    for name, measure, unit in (("selection_gain", "ap", "points"), ("start_gain", "start_overlap", "points"),
                                ("agreement_gain", "agreement", "")):  # fmt: skip
        meaning = (
            f"{SELECTED[measure].label}: queries picked by the score that learned the overlap, minus by a plain one"
        )
        study.difference(experiment, name, scores, measure, "overlap", "plain", unit=unit, meaning=meaning)
    study.difference(experiment, "selection_matters", scores, "ap", "overlap", "chance", unit="points",
                     meaning="AP lost by the same network if queries start at random places")  # fmt: skip
    experiment.figure(
        "selection",
        study.bars(scores, SELECTED, {"overlap": "learned\nthe overlap", "plain": "plain\nclass score"}),
        caption="One network with two scores on the same places and boxes; either picks the queries. One learned the overlap of "
        "its box, the other one only what is there. Overlap at the start: of each thing with the first box that fits it best; "
        "score against overlap: rank correlation over first boxes on things. Bars are means, dots are seeds.",
        alt="Bars of AP, of the overlap of the best first boxes, and of the rank correlation of score and overlap, for both.",
    )


@cache
def by_layer(run: Run) -> Scores:
    """AP of the other arms after each layer; failed trainings are marked."""

    def measure(arm: str, seed: int) -> dict[str, float]:
        test = scenes(run, seed)
        _, *layers = found_by(trained(run, arm, seed), test)
        return {f"ap_{index + 1}": shapes.ap(each, test) for index, each in enumerate(layers)}

    scores = study.measured(run, PAYING, measure)
    for arm, layers in READ.items():
        scores.floor("AP (%) with the layers that were trained", f"ap_{layers}", FLOOR, [arm])
    return scores


def layers_left_out(run: Run) -> None:
    """What does it cost to leave out the last layers of a trained decoder, and would another training gain it back?"""
    control = {"control": "Where only the last layer pays in training, leaving it out loses most of what is found.",
               "result": "lost_without_third_last", "above": 10}  # fmt: skip
    experiment = opened(run, layers_left_out, PAYING, power=control)
    scores = by_layer(run)
    measures = {f"ap_{layer}": Measure(f"AP after layer {layer}", "%") for layer in LAYERS}
    study.record(experiment, scores, measures, {arm: PAYING[arm] for arm in ("every", "last")})
    study.record(experiment, scores, {"ap_2": measures["ap_2"]}, {"short": PAYING["short"]})
    for arm, name in (("every", "lost_without_third"), ("last", "lost_without_third_last")):
        loss = scores.minus("ap_3", arm, arm, of_b="ap_2")
        experiment.result(name, loss, unit="points", failed=scores.reasons("undefined", arm),
                          meaning=f"AP lost by leaving out the third of three layers: {PAYING[arm]}")  # fmt: skip
    loss = scores.minus("ap_3", "every", "every", of_b="ap_1")
    experiment.result("lost_with_one", loss, unit="points", failed=scores.reasons("undefined", "every"),
                      meaning="AP lost by leaving out two of three layers: every layer pays")  # fmt: skip
    study.difference(experiment, "retraining_gain", scores, "ap_2", "short", "every", unit="points",
                     meaning="AP with two layers: trained for them alone, minus cut from three")  # fmt: skip
    rows = {arm: [[each[f"ap_{layer}"] for layer in LAYERS] for each in scores.outcomes[arm]] for arm in PAYING}
    experiment.figure(
        "layers",
        partial(draw_layers, rows=rows),
        caption="AP of one trained network, read after one, two or three layers. If every layer pays in training, the last ones "
        "can be left out; otherwise the decoder has to be as long as in training. Lines are means, bands reach "
        "from the worst to the best seed.",
        alt="AP against the number of layers that are used, for three trainings: a nearly flat line where every layer pays, and "
        "two lines that fall where a layer was not trained.",
    )


def draw_layers(style: Style, rows: Mapping[str, list[list[float]]]) -> Figure:
    figure, axes = panels(1, 1, width=study.WIDTH, height=3.2)
    for (arm, values), line in zip(rows.items(), ("-", "--", ":"), strict=True):
        seed_lines(axes[0, 0], LAYERS, values, PAYING[arm], linestyle=line, marker="o")
    axes[0, 0].set(xlabel="layers used", ylabel="AP (%)", xticks=LAYERS)
    axes[0, 0].set_ylim(0, None)
    axes[0, 0].legend()
    return figure


EXPERIMENTS = (selection, layers_left_out)
