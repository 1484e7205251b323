"""ConvNeXt's claims: what does another size of image cost a network without a table of positions, and one with it?"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import copy
from functools import cache

import torch
from convnext import CANVAS, CLASSES, DIGIT, PRESETS, SIZES, build, resized, train
from lab import study
from lab.data import Split
from lab.data.digits import digits_at_places
from lab.metrics import accuracy
from lab.run import Run
from lab.study import Measure
from lab.training import count_parameters, seed_everything
from torch import nn
from torch.nn import functional
from vit import PatchEmbedding, ViT

ARMS = {"convnext": "ConvNeXt", "vit": "ViT"}
PATCH = 8  # of the ViT, in pixels; its cost grows fast with their number
VITS = {"smoke": (36, 3, 4), "quick": (36, 3, 4), "full": (160, 5, 8)}  # width, depth and heads of the rival
PLACES = 3  # how often each digit is placed on a canvas
FLOOR = 70.0  # accuracy (%) at the size of the training, below which a training counts as failed


def build_arm(arm: str, preset: str) -> nn.Module:
    """The untrained model of an arm; both have about as many parameters."""
    if arm == "convnext":
        return build(PRESETS[preset])
    width, depth, heads = VITS[preset]
    return ViT(PatchEmbedding(PATCH, 1, width), (CANVAS // PATCH) ** 2, width, depth, heads, CLASSES)


def at_size(model: nn.Module, side: int) -> nn.Module:
    """The model as it is for images of another size: a ConvNeXt itself, a ViT with its table of positions resized."""
    if not isinstance(model, ViT):
        return model
    model, grid, cells = copy.deepcopy(model), CANVAS // PATCH, side // PATCH
    table = model.pos_embed.detach()  # (1, N + 1, D), the class token first
    places = table[:, 1:].unflatten(1, (grid, grid)).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    places = functional.interpolate(places, size=(cells, cells), mode="bicubic", antialias=True)
    model.pos_embed = nn.Parameter(torch.cat([table[:, :1], places.flatten(2).mT], 1))
    return model


def fit(run: Run, arm: str, seed: int, rate: float) -> nn.Module:
    seed_everything(seed)
    model = build_arm(arm, run.preset)
    train(model, run, seed, rate)
    return model


@torch.inference_mode()
def right_at(model: nn.Module, split: Split, side: int, device: torch.device) -> float:
    """Digits (%) of a split that are classified right, the images resized to `side` pixels."""
    images, labels = digits_at_places(split, DIGIT, CANVAS, PLACES)
    parts = resized(2 * images - 1, side).to(device).split(300)
    network = at_size(model, side).eval()
    return 100 * accuracy(torch.cat([network(part) for part in parts]).cpu(), labels)


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for both, by the accuracy on validation digits of the training's size."""

    def score(arm: str, rate: float, seed: int) -> float:
        return right_at(fit(run, arm, seed, rate), "val", CANVAS, run.device)

    return study.search(run, "learning rate", ARMS, (2e-3, 4e-3, 8e-3), score)


def input_size(run: Run) -> None:
    """What does it cost to be asked at another size than that of the training?"""

    def outcome(arm: str, seed: int) -> dict[str, float]:
        model = fit(run, arm, seed, rates_of(run)[arm])
        right = {side: right_at(model, "test", side, run.device) for side in SIZES}
        changes = {f"change_at_{side}": right[side] - right[CANVAS] for side in SIZES if side != CANVAS}
        return {f"right_at_{side}": right[side] for side in SIZES} | changes

    scores = study.measured(run, ARMS, outcome)
    what = f"test accuracy at {CANVAS} px (%)"
    floor = None if run.preset == "smoke" else scores.floor(what, f"right_at_{CANVAS}", FLOOR, ARMS)
    experiment = study.opened(
        run,
        input_size,
        data=f"1,297 digits on {CANVAS} px to train, 300 others to test, resized to {SIZES[0]} to {SIZES[-1]} px",
        sizes={arm: count_parameters(build_arm(arm, run.preset)) for arm in ARMS},
        steps=PRESETS[run.preset].steps,
        floor=floor,
        power={
            "control": "At twice the size the accuracy of the ViT falls, too.",
            "result": f"change_at_{SIZES[-1]}_vit",
            "below": 0,
        },
        cannot_show="What weights lose that were trained at many scales: all digits have one size here.",
    )
    for side in SIZES:
        measures = {f"right_at_{side}": Measure(f"Test digits right at {side} px", "%")}
        if side != CANVAS:
            measures |= {f"change_at_{side}": Measure(f"Accuracy at {side} px minus at {CANVAS} px", "points")}
            meaning = f"What the change from {CANVAS} to {side} px does to the accuracy, ConvNeXt minus ViT"
            study.record(experiment, scores, measures, ARMS)
            study.difference(
                experiment,
                f"size_advantage_{side}",
                scores,
                f"change_at_{side}",
                "convnext",
                "vit",
                unit="points",
                meaning=meaning,
            )
        else:
            study.record(experiment, scores, measures, ARMS)
    lines = {
        name: [[(side, each[f"right_at_{side}"]) for side in SIZES] for each in scores.outcomes[arm]]
        for arm, name in ARMS.items()
    }
    experiment.figure(
        "input_size",
        study.curves(lines, x="side of the test image (pixels)", y="test digits right (%)"),
        caption=f"Both were trained on digits of {CANVAS} pixels, and see the same digits at other sizes. ConvNeXt stays as it "
        "is, the ViT's table of positions is resized. Bands reach from the lowest to the highest seed.",
        alt="A line chart of the test accuracy over the side of the image, highest at that of the training, for both networks.",
    )


EXPERIMENTS = (input_size,)
