"""Attention U-Net's claims: where the gates look, what they add, what is lost without them, and what their form rules out."""

# ruff: noqa: N999
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from lab import slices, study
from lab.data import Split
from lab.data.brain import GREY, LABELS, TUMOUR, WHITE, BrainSlices
from lab.metrics import dice
from lab.run import Experiment, Run
from lab.slices import SIZES, TISSUES
from lab.study import Measure, Scores
from lab.training import count_parameters, seed_everything
from torch import Tensor, nn
from torch.nn import functional
from unet import DEPTH, PRESETS, UNet, train

example = import_module("attention-unet")
AttentionGate, AttentionUNet = example.AttentionGate, example.AttentionUNet

ARMS = {"gated": "gates", "plain": "no gates"}
LEVELS = (1, 2)  # of the gates that are measured
FLOOR = 0.1  # Dice of tumours below which a training counts as failed
MEASURES = {f"dice_{tissue}": Measure(f"Dice of {LABELS[label]}", "") for tissue, label in TISSUES.items()}
MEASURES |= {f"dice_{size}": Measure(f"Dice, {size} tumours", "", "no tumour of this size") for size in SIZES}
MEASURES |= {
    "recall_small": Measure("part of the small tumours that is found", "", "no small tumour"),
    "false_tumours": Measure("false tumours per slice", ""),
}
ALTERED: Mapping[str, Callable[[Tensor], Tensor]] = {
    "open": torch.ones_like,
    "level": lambda alpha: alpha.mean((2, 3), keepdim=True).expand_as(alpha),
    "closed": torch.zeros_like,
}
PLACES = {"background": "back-\nground", "tissue": "healthy\ntissue", "tumour": "tumours", "small": "small\ntumours"}

# Arms, and their rates from one search


def build(arm: str, preset: str) -> UNet:
    """The untrained network of an arm; they differ by the parameters of the gates, less than 5 %."""
    return (AttentionUNet if arm == "gated" else UNet)(PRESETS[preset].widths[DEPTH])


def data_of(run: Run, split: Split) -> BrainSlices:
    """The validation or the test slices, the same for all networks."""
    preset = PRESETS[run.preset]
    return slices.held_out(split, preset.slices, preset.millimetres)


def fit(run: Run, arm: str, seed: int, rate: float) -> UNet:
    seed_everything(seed)
    model = build(arm, run.preset)
    train(run, model, seed, rate, "cosine")
    return model


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for both, by the mean Dice on validation slices."""

    def score(arm: str, rate: float, seed: int) -> float:
        return slices.mean_dice(fit(run, arm, seed, rate), data_of(run, "val"))

    return study.search(run, "learning rate", ARMS, (1e-3, 2.5e-3, 6.25e-3), score)


@cache
def trained(run: Run, arm: str) -> list[Any]:
    """One network for each seed."""
    return [fit(run, arm, seed, rates_of(run)[arm]) for seed in run.seeds]


@cache
def scores_of(run: Run) -> Scores:
    """All measures of both arms on the test slices; trainings that find next to no tumour are marked as failed."""
    test, size = data_of(run, "test"), PRESETS[run.preset].millimetres
    scores = Scores(run.seeds, {arm: [measured(each, test, size) for each in trained(run, arm)] for arm in ARMS})
    scores.floor("Dice of tumours", "dice_tumour", FLOOR, ARMS)
    return scores


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    preset = PRESETS[run.preset]
    sizes = {arm: count_parameters(build(arm, run.preset)) for arm in arms}
    data, floor = slices.described(preset.slices, preset.millimetres), ("Dice of tumours", FLOOR)
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=floor, **more)


# Measures


def of_size(lesions: Tensor, area: tuple[float, float]) -> Tensor:
    """The pixels (B, H, W) of the tumours (B, H, W) with an area within the limits, both included."""
    chosen = torch.zeros_like(lesions, dtype=torch.bool)
    for number in range(1, int(lesions.max()) + 1):
        there = lesions == number
        pixels = there.sum((1, 2), keepdim=True)
        chosen |= there & (pixels >= area[0]) & (pixels <= area[1])
    return chosen


def near(mask: Tensor, radius: int) -> Tensor:
    """A mask (B, H, W) grown by a square of `radius` pixels."""
    return functional.max_pool2d(mask[:, None].float(), 2 * radius + 1, stride=1, padding=radius)[:, 0] > 0


def dice_by_size(found: Tensor, data: BrainSlices, millimetres: int = 2) -> dict[str, float]:
    """Dice of tumour within 3 pixels of the tumours of a size and not in another; NaN if there is none: found (B, H, W)."""
    values = {}
    for size, area in slices.areas(millimetres).items():
        tumours = of_size(data.lesions, area)
        counted = near(tumours, 3) & (tumours | (data.labels != TUMOUR))
        values[f"dice_{size}"] = float(dice(found[counted].long(), tumours[counted].long(), 2)[1])
    return values


def measured(model: nn.Module, data: BrainSlices, millimetres: int = 2) -> dict[str, float]:
    """Each of `MEASURES`."""
    predicted = slices.segmented(model, data.images)
    found, truth = predicted == TUMOUR, data.labels == TUMOUR
    small = slices.recalls(predicted, data.labels, millimetres)["recall_small"]
    values = slices.dices(predicted, data.labels) | dice_by_size(found, data, millimetres)
    return values | {"recall_small": small, "false_tumours": slices.false_spots(found, truth)}


def mean_over(alpha: Tensor, mask: Tensor) -> float:
    """Mean of alpha (B, H, W) over a mask (B, H, W); NaN where it is empty."""
    return float(alpha[mask].mean()) if mask.any() else math.nan


@torch.inference_mode()
def attention_by_place(model: Any, data: BrainSlices, millimetres: int = 2) -> dict[str, float]:
    """Mean alpha of the gated levels in tumours, small ones, healthy tissue and background."""
    tumour, small = data.labels == TUMOUR, of_size(data.lesions, slices.areas(millimetres)["small"])
    places = {"tumour": tumour, "small": small, "tissue": (data.labels == GREY) | (data.labels == WHITE)}
    places["background"] = data.labels == 0
    device, values = next(model.parameters()).device, dict[str, float]()
    parts = [model.alphas(part.to(device)) for part in torch.split(data.images, slices.BATCH)]
    for level in LEVELS:
        small_maps = torch.cat([each[level].float().cpu() for each in parts])
        full = functional.interpolate(small_maps, size=tumour.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        values |= {f"alpha{level}_{place}": mean_over(full, mask) for place, mask in places.items()}
        values[f"alpha{level}_contrast"] = values[f"alpha{level}_tumour"] - mean_over(full, ~tumour)
        values[f"alpha{level}_contrast_tissue"] = values[f"alpha{level}_tumour"] - values[f"alpha{level}_tissue"]
    return values


# Experiments


def attention(run: Run) -> None:
    """Where do the gates let most through?"""
    experiment, scores, test = opened(run, attention, ["gated"]), scores_of(run), data_of(run, "test")
    size = PRESETS[run.preset].millimetres
    placed = Scores(run.seeds, {"gated": [attention_by_place(each, test, size) for each in trained(run, "gated")]})
    placed.failed.update({arm: dict(each) for arm, each in scores.failed.items() if arm == "gated"})
    meanings = {
        "contrast": "mean coefficient in tumours minus elsewhere",
        "contrast_tissue": "mean coefficient in tumours minus that in healthy tissue",
    }
    for place, label in PLACES.items():
        meanings[place] = "mean coefficient in " + label.replace("-\n", "").replace("\n", " ")
    for level in LEVELS:
        for name, what in meanings.items():
            experiment.result(
                f"alpha{level}_{name}", placed.values(f"alpha{level}_{name}", "gated"), unit="",
                meaning=f"{what}, gate of level {level}", failed=placed.reasons("there is none", "gated"),
            )  # fmt: skip
    by_place = {
        place: [{f"alpha{level}": each[f"alpha{level}_{place}"] for level in LEVELS}
                for each in placed.outcomes["gated"]] for place in PLACES
    }  # fmt: skip
    failed = {place: placed.failed.get("gated", {}) for place in PLACES}
    measures = {f"alpha{level}": Measure(f"mean coefficient, gate of level {level}", "") for level in LEVELS}
    experiment.figure(
        "attention",
        study.bars(Scores(run.seeds, by_place, failed), measures, PLACES),
        caption="Mean coefficient by what lies under it (dots are seeds). If the gates had no preference, all bars of a gate "
        "would be equal.",
        alt="Two bar charts, for the gates of level 1 and of level 2: the mean coefficient in the background, in healthy "
        "tissue, in tumours and in small tumours.",
    )


def gates(run: Run) -> None:
    """What do gates add to a U-Net of about the same size, for small tumours and for large ones?"""
    limit = "Published gains are a few points of Dice, on organs that look like their surroundings; so small networks differ by "
    limit += "as much from seed to seed."
    experiment, scores = opened(run, gates, ARMS, cannot_show=limit), scores_of(run)
    study.record(experiment, scores, MEASURES, ARMS)
    for measure, (label, unit, _) in MEASURES.items():
        meaning = f"{label}: gates minus no gates"
        study.difference(
            experiment, f"{measure}_gap_plain", scores, measure, "gated", "plain", unit=unit, meaning=meaning
        )
    shown = ("dice_tumour", "dice_small", "dice_large", "false_tumours")
    experiment.figure(
        "comparison",
        study.bars(scores, {name: MEASURES[name] for name in shown}, ARMS),
        caption=f"Test slices, equal steps and, but for the gates, equal parameters (dots are seeds). Small tumours have up to "
        f"{SIZES['small'][1]} pixels of 2 mm, large ones {SIZES['large'][0]} or more; a false one touches no true one.",
        alt="Four bar charts with and without gates: Dice of all, small and large tumours, and false tumours per slice.",
    )


@contextmanager
def altered(model: Any, alter: Callable[[Tensor], Tensor]) -> Iterator[Any]:
    """The model with `alter` applied to every alpha (B, 1, H', W') before it gates."""
    hooks = [gate.register_forward_hook(lambda _, __, alpha: alter(alpha)) for gate in model.gates.values()]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def without_tenth(alpha: Tensor, brain: Tensor, brightest: bool) -> Tensor:
    """Alpha (B, 1, H', W') with 0 at the brightest or the darkest tenth of the positions in the brain (B, H, W)."""
    inside = functional.interpolate(brain[:, None].float(), size=alpha.shape[-2:]) > 0
    values = alpha[inside]  # (positions,)
    tenth = values.topk(len(values) // 10, largest=brightest).indices
    return alpha.masked_scatter(inside, values.index_fill(0, tenth, 0.0))


def changed_by_closing(model: Any, data: BrainSlices, brightest: bool) -> float:
    """Percent of the brain's pixels whose predicted class changes when a tenth of the positions is closed."""
    device, count, changed = next(model.parameters()).device, 0, 0
    for images, labels in zip(data.images.split(slices.BATCH), data.labels.split(slices.BATCH), strict=True):
        brain, before = labels > 0, slices.segmented(model, images)
        with altered(model, partial(without_tenth, brain=brain.to(device), brightest=brightest)):
            differs = slices.segmented(model, images) != before
        count, changed = count + int(brain.sum()), changed + int((differs & brain).sum())
    return 100 * changed / count


def opening(run: Run) -> None:
    """Does a trained network miss its gates, and do their maps say what was let through?"""
    experiment, scores, test = opened(run, opening, ["gated"]), scores_of(run), data_of(run, "test")
    found: dict[str, list[dict[str, float]]] = {"trained": list(map(dict, scores.outcomes["gated"]))}
    for name, alter in ALTERED.items():
        for model in trained(run, "gated"):
            with altered(model, alter):
                found.setdefault(name, []).append(measured(model, test, PRESETS[run.preset].millimetres))
    failed = scores.failed.get("gated", {})
    after = Scores(run.seeds, found, {name: dict(failed) for name in found})
    for measure in ("dice_grey", "dice_tumour", "recall_small", "false_tumours"):
        for name in ALTERED:
            meaning = f"{MEASURES[measure].label}: as trained minus with the gates {name}"
            study.difference(
                experiment, f"{measure}_lost_{name}", after, measure, "trained", name, unit="", meaning=meaning
            )
    changed = {
        name: scores.counted("gated", [changed_by_closing(each, test, name == "brightest") for each in trained(run, "gated")])
        for name in ("darkest", "brightest")
    }  # fmt: skip
    why = scores.reasons("closing the darkest tenth changes nothing", "gated")
    for name, values in changed.items():
        meaning = f"pixels of the brain whose class changes when its {name} tenth is closed"
        experiment.result(f"changed_{name}", values, unit="%", meaning=meaning, failed=why)
    ratio = [b / d if d else math.nan for d, b in zip(changed["darkest"], changed["brightest"], strict=True)]
    meaning = "brightest tenth over darkest tenth, pixels that change"
    experiment.result("changed_ratio", ratio, unit="x", meaning=meaning, failed=why)
    arms = {"trained": "as\ntrained"} | {name: name for name in ALTERED}
    experiment.figure(
        "altered",
        study.bars(after, {name: MEASURES[name] for name in ("dice_tumour", "dice_grey")}, arms),
        caption="The gates of trained networks opened (1), levelled (their mean) or closed (0), without training anew. Dots are "
        "seeds.",
        alt="Two bar charts, Dice of tumours and of grey matter, with the gates as trained, open, level and closed.",
    )


def cells_seen(fine: int = 16, coarse: int = 32, cells: int = 9) -> tuple[int, int]:
    """How many cells of the coarse grid move one score of a gate, and one output of a layer of self-attention."""
    torch.manual_seed(0)
    gate, attend = AttentionGate(fine, coarse, 64), nn.MultiheadAttention(coarse, 1, batch_first=True)
    g = torch.randn(1, coarse, cells, cells, requires_grad=True)
    x = torch.randn(1, fine, 2 * cells, 2 * cells)
    (by_gate,) = torch.autograd.grad(gate.score(x, g)[0, 0, cells // 2, cells // 2], g)
    tokens = g.flatten(2).mT  # (1, C, n, n) -> (1, n^2, C)
    (by_attention,) = torch.autograd.grad(attend(tokens, tokens, tokens)[0][0, cells**2 // 2].sum(), g)
    return int((by_gate.abs().sum(1) > 0).sum()), int((by_attention.abs().sum(1) > 0).sum())


def ideal_gate_dice(data: BrainSlices, size: str, stride: int, millimetres: int = 2) -> float:
    """Dice, about the tumours of a size, of the truth said on a grid of `stride` pixels and interpolated back."""
    shares = functional.avg_pool2d((data.labels == TUMOUR).float()[:, None], stride)
    back = functional.interpolate(shares, size=data.labels.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return dice_by_size(back > 0.5, data, millimetres)[f"dice_{size}"]


def limits(run: Run) -> None:
    """What does the form of a gate rule out, and how many weights does it take?"""
    data = "no training: gradients of one gate, true labels of the test slices, the parameters of the network of this example"
    experiment, test = run.experiment("limits", question=str(limits.__doc__), data=data), data_of(run, "test")
    (gate, attend), millimetres = cells_seen(), PRESETS[run.preset].millimetres
    model = build("gated", run.preset)
    more = 100 * count_parameters(model.gates) / count_parameters(build("plain", run.preset))  # type: ignore[arg-type]
    for name, value, unit, meaning in (
        ("cells_seen_gate", gate, "", "cells of the coarse grid that move one score of a gate"),
        ("cells_seen_attention", attend, "", "cells of the same grid that move one output of self-attention"),
        ("gate_parameters_ours", more, "%", "parameters that the gates add to the network of this example"),
    ):
        experiment.result(name, [value], unit=unit, meaning=meaning, exact=True)
    ideal: dict[str, Sequence[Sequence[tuple[float, float]]]] = {}
    for size in ("small", "large"):
        points = [(float(stride), ideal_gate_dice(test, size, stride, millimetres)) for stride in (2, 4, 8)]
        ideal[f"{size} tumours"] = [points]
        for stride, value in points:
            meaning = f"Dice about {size} tumours of the truth said on cells of {stride:.0f} pixels and interpolated"
            experiment.result(f"ideal_dice_{size}_cells{stride:.0f}", [value], unit="", meaning=meaning, exact=True)
    experiment.figure(
        "limits",
        study.curves(ideal, x="side of the gate's cells (pixels)", y="Dice"),
        caption="A gate that knew the truth, by the size of its cells (4 pixels at level 1, 8 at level 2): what is smaller than "
        "its cells it can neither keep nor hold back.",
        alt="Two falling lines: Dice of ideal gates for small and for large tumours against the side of their cells.",
    )


EXPERIMENTS = (attention, gates, opening, limits)
