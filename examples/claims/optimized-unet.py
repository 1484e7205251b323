"""The optimised U-Net's claims: what its loss and its extra heads add, what is done after training, and what it costs."""

# ruff: noqa: N999
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from statistics import fmean
from typing import Any

import torch
from lab import slices, study
from lab.data import SPLITS, Split
from lab.data.brain import TUMOUR, BrainSlices
from lab.memory import kept_bytes
from lab.metrics import dice
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters, seed_everything
from torch import Tensor, nn
from torch.nn import functional

example = import_module("optimized-unet")
PRESETS, regions = example.PRESETS, example.regions

ARMS = {
    "base": "all of it",
    "no_supervision": "one head",
    "no_dice": "no Dice\nterm",
    "no_region_loss": "softmax of\nclasses",
}
GAINS = {
    "supervision": ("deep supervision", "base", "no_supervision"),
    "region_loss": ("region loss", "base", "no_region_loss"),
    "dice_term": ("its Dice term", "base", "no_dice"),
    "sigmoids": ("its sigmoids", "no_dice", "no_region_loss"),
}  # the name that readers see, and the arms with and without
AFTER = {"base": "as it is", "mirrored": "mirrored\ncopies", "cleaned": "cleaned up"}
FLOOR = ("Dice of the region that it finds worst", 0.1)  # below it a training counts as failed, as for the U-Net
MEASURES = {
    "dice": Measure("mean Dice of both regions", ""),
    "dice_whole": Measure("Dice of the whole tumour", ""),
    "dice_core": Measure("Dice of its core", ""),
    "recall_small": Measure("small tumours that are found", "%", "no tumour of this size"),
    "false_spots": Measure("false spots", "per slice"),
}
STRIDES = (2, 4, 8, 16)
CROP, VOLUME, NETWORKS, COPIES = 128, (240, 240, 155), 5, 8  # voxels; the notebook: networks and mirrored copies

# Rivals and controls


class ClassUNet(example.OptimizedUNet):  # type: ignore[misc, name-defined]
    """One softmax over background, rim and core in place of a sigmoid for each region."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__(widths, outputs=3)
        for head in self.heads():
            nn.init.zeros_(head.bias[:1])  # a softmax knows differences only: the background starts above the others

    def probabilities(self, scores: Tensor) -> Tensor:
        rim, core = scores.softmax(1)[:, 1:].unbind(1)
        return torch.stack([rim + core, core], dim=1)


def class_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of (B, 3, H, W) scores for background, rim and core."""
    return functional.cross_entropy(scores, targets.sum(1).long())  # (B, R, H, W) -> (B, H, W): 0, 1 rim, 2 core


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "no_dice": functional.binary_cross_entropy_with_logits,
    "no_region_loss": class_loss,
}


def build(arm: str, preset: str) -> Any:
    """The untrained network of an arm; they differ by the parameters of their heads."""
    widths = PRESETS[preset].widths
    if arm == "no_region_loss":
        return ClassUNet(widths)
    return example.OptimizedUNet(widths, heads=1 if arm == "no_supervision" else len(example.HEAD_WEIGHTS))


# Arms, and their rates from one search


@cache
def data_of(run: Run, split: Split) -> BrainSlices:
    """The validation or the test slices, the same for all networks."""
    preset = PRESETS[run.preset]
    return slices.cropped(split, preset.slices[SPLITS.index(split)], slices.FIXED, preset.millimetres, parts=True)


def fit(run: Run, arm: str, seed: int, rate: float) -> Any:
    seed_everything(seed)
    model = build(arm, run.preset)
    example.train(run, model, seed, rate, LOSSES.get(arm, example.region_loss))
    return model


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all, by the mean Dice of both regions on validation slices."""

    def score(arm: str, rate: float, seed: int) -> float:
        data = data_of(run, "val")
        return fmean(
            example.region_dice(example.predicted(fit(run, arm, seed, rate), data.images), data.labels).values()
        )

    return study.search(run, "learning rate", ARMS, (2.5e-3, 6e-3, 1.5e-2), score)


@cache
def trained(run: Run, arm: str) -> list[Any]:
    """One network for each seed."""
    return [fit(run, arm, seed, rates_of(run)[arm]) for seed in run.seeds]


def measured(p: Tensor, data: BrainSlices, millimetres: int = 2) -> dict[str, float]:
    """Each of `MEASURES`, and the least Dice, of probabilities (N, R, H, W)."""
    found, truth, dices = p[:, 0] > 0.5, regions(data.labels)[:, 0] > 0.5, example.region_dice(p, data.labels)
    tumours = [TUMOUR * each.long() for each in (found, truth)]
    return dices | {
        "dice": fmean(dices.values()),
        "dice_least": min(dices.values()),
        "recall_small": 100 * slices.recalls(tumours[0], tumours[1], millimetres)["recall_small"],
        "false_spots": slices.false_spots(found, truth),
    }


@cache
def scores_of(run: Run) -> Scores:
    """All measures of all arms on the test slices, and of the whole network with what is done after training."""
    test, size = data_of(run, "test"), PRESETS[run.preset].millimetres
    p = {arm: [example.predicted(each, test.images) for each in trained(run, arm)] for arm in ARMS}
    p["mirrored"] = [example.predicted(each, test.images, example.FLIPS) for each in trained(run, "base")]
    p["cleaned"] = [example.cleaned(each, size) for each in p["base"]]
    scores = Scores(run.seeds, {arm: [measured(each, test, size) for each in seeds] for arm, seeds in p.items()})
    scores.floor(FLOOR[0], "dice_least", FLOOR[1], ARMS)
    scores.failed.update({arm: dict(scores.failed.get("base", {})) for arm in ("mirrored", "cleaned")})
    return scores


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    preset = PRESETS[run.preset]
    sizes = {arm: count_parameters(build(arm, run.preset)) for arm in arms}
    data = slices.described(preset.slices, preset.millimetres)
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=FLOOR, **more)


# Experiments


def ablation(run: Run) -> None:
    """What do the extra heads, the Dice term and a sigmoid for each region add to the Dice?"""
    limit = (
        "How much deep supervision helps a deep network: with three poolings the inner levels are near the loss anyway."
    )
    experiment, scores = opened(run, ablation, ARMS, cannot_show=limit), scores_of(run)
    shown = {arm: name.replace("\n", " ") for arm, name in ARMS.items()}
    study.record(experiment, scores, {name: MEASURES[name] for name in list(MEASURES)[:4]}, shown)
    gains = {}
    for gain, (name, a, b) in GAINS.items():
        meaning = f"mean Dice of both regions gained by {name}".replace("\n", " ")
        study.difference(experiment, f"{gain}_gain", scores, "dice", a, b, unit="", meaning=meaning)
        gains[gain] = [{"gain": value} for value in scores.minus("dice", a, b)]
    experiment.figure(
        "gains",
        study.bars(
            Scores(run.seeds, gains),
            {"gain": Measure("mean Dice of both regions gained", "")},
            {gain: name.replace(" ", "\n") for gain, (name, *_) in GAINS.items()},
        ),
        caption="What each part adds to the mean Dice of both regions on test slices, with it minus without it. The region loss "
        "against a softmax with cross entropy, and its two parts: the Dice term, and sigmoids in place of the softmax. Bars are "
        "means, dots are seeds.",
        alt="Bars of the Dice gained by deep supervision, by the region loss, by its Dice term and by its sigmoids.",
    )


def after_training(run: Run) -> None:
    """What do mirrored copies and the clean-up change after training?"""
    experiment, scores = opened(run, after_training, ["base"]), scores_of(run)
    for name, measure, a, b, unit, meaning in (
        ("mirrored_gain", "dice", "mirrored", "base", "", "mean Dice gained by averaging four mirrored copies"),
        ("cleaned_gain", "dice", "cleaned", "base", "", "mean Dice gained by the clean-up"),
        ("spots_removed", "false_spots", "base", "cleaned", "per slice", "false spots that the clean-up takes back"),
        ("small_lost", "recall_small", "base", "cleaned", "points", "recall of small tumours lost by the clean-up"),
    ):
        study.difference(experiment, name, scores, measure, a, b, unit=unit, meaning=meaning)
    experiment.figure(
        "after",
        study.bars(scores, {name: MEASURES[name] for name in ("dice", "false_spots", "recall_small")}, AFTER),
        caption="The whole network on test slices: as it is, averaged over four mirrored copies, and with small, unsure spots "
        "taken back. Bars are means, dots are seeds.",
        alt="Three bar charts for the network as it is, with mirrored copies and cleaned up: mean Dice, false spots per slice, "
        "and small tumours that are found.",
    )


def windows() -> int:
    """Crops of a sliding window with half overlap over a volume."""
    return math.prod(1 + -(-(side - CROP) // (CROP // 2)) for side in VOLUME)


def step_memory(run: Run, dtype: torch.dtype) -> float:
    """Megabytes that autograd keeps of a batch for the backward pass, with convolutions in float32 or bfloat16."""
    preset, model = PRESETS[run.preset], build("base", run.preset)
    images = torch.zeros(preset.batch, *data_of(run, "val").images.shape[1:])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        return kept_bytes(model, images) / 1e6


def grid_dice(data: BrainSlices, stride: int, area: tuple[float, float]) -> float:
    """Dice of the true tumours of a size, averaged over cells of stride x stride pixels and spread out again."""
    sizes = torch.stack([torch.bincount(each.flatten().long(), minlength=9)[:9] for each in data.lesions])  # (N, 9)
    pixels = sizes.gather(1, data.lesions.flatten(1).long()).view_as(data.lesions)  # area of the tumour at each pixel
    truth = ((data.lesions > 0) & (pixels >= area[0]) & (pixels <= area[1])).float()[:, None]
    cells = functional.avg_pool2d(truth, stride, ceil_mode=True)
    back = functional.interpolate(cells, scale_factor=stride)[..., : truth.shape[2], : truth.shape[3]] > 0.5
    return dice(back.long(), truth.long(), 2)[1].item()


def cost(run: Run) -> None:
    """What does inference cost, what does half precision save, and what can a coarse level hold?"""
    data = (
        "no training: the schedule of the published inference, a step of this network, true labels of the test slices"
    )
    experiment, test = run.experiment("cost", question=str(cost.__doc__), data=data), data_of(run, "test")
    passes = NETWORKS * COPIES
    more = passes * windows() * CROP**3 / math.prod(VOLUME)
    for name, value, unit, meaning in (
        ("passes", passes, "", "passes for each crop: networks times mirrored copies"),
        (
            "times_one_pass",
            more,
            "x",
            "voxels computed for one volume over its own voxels, with all passes and overlaps",
        ),
        ("memory_full", step_memory(run, torch.float32), "MB", "kept for the backward pass of a step, in 32 bits"),
        (
            "memory_half",
            step_memory(run, torch.bfloat16),
            "MB",
            "kept for the backward pass of a step, in mixed precision",
        ),
    ):
        experiment.result(name, [value], unit=unit, meaning=meaning, exact=True)
    areas, lines = slices.areas(PRESETS[run.preset].millimetres), {}
    for size in ("small", "large"):
        points = [(float(stride), grid_dice(test, stride, areas[size])) for stride in STRIDES]
        lines[f"{size} tumours"] = [points]
        for stride, value in points:
            meaning = f"best Dice of {size} tumours on a grid of stride {stride:.0f}"
            experiment.result(f"grid_dice_{size}_stride{stride:.0f}", [value], unit="", meaning=meaning, exact=True)
    (_, small), (large, _) = areas["small"], areas["large"]
    experiment.figure(
        "grid",
        study.curves(lines, x="stride of the grid (pixels)", y="best Dice"),
        caption=f"The best that a grid can say about tumours of up to {small:.0f} and from {large:.0f} pixels: true labels, "
        "averaged over its cells and spread out again. What is lost has to come back through the skips.",
        alt="Two falling lines: the best Dice of small and of large tumours against the stride of a grid; that of small ones "
        "falls first.",
    )


EXPERIMENTS = (ablation, after_training, cost)
