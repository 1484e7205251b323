"""SAM's claims: are three masks for a click worth more than one, and what do boxes, clicks and a lack of prompts lead to?"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from lab import study
from lab.data import Split
from lab.data import nested as scenes
from lab.data.nested import INSIDE, LEVELS, NOTHING, SIDE, Nested, Prompts
from lab.figures import Figure, Style, panels, show_image
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters
from sam import JOINT, LONE, PRESETS, SAM, Reach, best_of_three, ious, mask_losses, segment, train
from torch import Tensor, nn
from torchvision.ops import batched_nms

ARMS = {"one": "one mask", "mean": "three, mean loss", "min": "three, min loss"}
RATED = 0.4  # least rated IoU in the automatic grid; on validation images of seed 100 it leaves masks in each
FLOOR = 0.25  # IoU of the best mask, below which a training counts as failed
WIDTHS = (1, 2, 3, 4, 6, 8, 12)  # of a stroke in pixels of the input
RINGS, FITS = 16, {"smoke": 3, "quick": 80, "full": 500}  # for each width; optimiser steps of each best possible mask

# Rivals: which masks of a lone click does the loss reach? All arms have the same network.


def mean_of_three(losses: Tensor) -> Tensor:
    """All three masks are trained towards every annotation: (B, P, 4) -> (B, P)."""
    return losses[..., LONE].mean(-1)


def the_fourth(losses: Tensor) -> Tensor:
    """One mask answers everything: (B, P, 4) -> (B, P)."""
    return losses[..., JOINT]


REACH: Mapping[str, Reach] = {"one": the_fourth, "mean": mean_of_three, "min": best_of_three}


class Trained(NamedTuple):
    model: nn.Module
    seed: int
    test: Nested


class Answers(NamedTuple):
    """What lone clicks on digits lead to: masks (n, 2, k, S, S), their IoU with each level (n, 2, 3, k), rated IoU."""

    masks: Tensor
    iou: Tensor
    rated: Tensor


def answers(trained: Trained, arm: str = "min", test: Nested | None = None) -> Answers:
    test = test or trained.test
    prompts = scenes.clicks(test.masks[:, :, 0], torch.Generator().manual_seed(trained.seed))
    masks, rated = segment(trained.model, test.images, prompts)
    use = slice(JOINT, 4) if arm == "one" else LONE
    masks, rated = masks[:, :, use], rated[:, :, use]
    return Answers(masks, ious(masks[:, :, None], test.masks[:, :, :, None]), rated)


def best(found: Answers) -> float:
    """Mean over clicks and annotations of the IoU of the best mask."""
    return found.iou.amax(-1).mean().item()


def chosen(found: Answers) -> float:
    """IoU with an annotation drawn at random, if only the mask that is rated best may be given."""
    index = found.rated.argmax(-1)[:, :, None, None].expand(-1, -1, 3, 1)
    return found.iou.gather(-1, index).mean().item()


def rank_gap(found: Answers) -> float:
    """How much the best rated mask is ahead of a random one, in IoU with the annotation that fits it best."""
    quality = found.iou.amax(2)  # (n, 2, k), of each mask
    return (quality.gather(-1, found.rated.argmax(-1, keepdim=True)).mean() - quality.mean()).item()


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all, by the IoU of the best mask on validation images."""

    def score(arm: str, rate: float, seed: int) -> float:
        return best(answers(fit(run, arm, seed, rate, "val"), arm))

    return study.search(run, "learning rate", ARMS, (2e-3, 4e-3, 8e-3), score)


def fit(run: Run, arm: str, seed: int, rate: float, split: Split = "test") -> Trained:
    return Trained(train(run, seed, rate, REACH[arm]), seed, scenes.nested(split, PRESETS[run.preset].images[1], seed))


@cache
def trained(run: Run, arm: str) -> list[Trained]:
    """One network for each seed."""
    return [fit(run, arm, seed, rates_of(run)[arm]) for seed in run.seeds]


@cache
def scores_of(run: Run) -> Scores:
    found = {arm: [answers(each, arm) for each in trained(run, arm)] for arm in ARMS}
    measured = {
        arm: [{"best_iou": best(each), "chosen_iou": chosen(each)} for each in seeds] for arm, seeds in found.items()
    }
    scores = Scores(run.seeds, measured)
    scores.floor("IoU of the best mask", "best_iou", FLOOR, ARMS)
    return scores


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    preset = PRESETS[run.preset]
    sizes = dict.fromkeys(arms, count_parameters(SAM(preset.width)))
    data = f"{preset.images[0]:,} pictures of two nested groups, {SIDE} px, to train; {preset.images[1]} others to test"
    floor = ("IoU of the best mask", FLOOR)
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=floor, **more)


# Experiments


def ambiguity(run: Run) -> None:
    """How much of what a click may mean do three masks find, and does it matter which of them the loss reaches?"""
    limit = "After a few hundred steps the ratings do not yet say which of several nested things a click means, so whether the "
    limit += "best rated of three masks is better or worse than an only mask cannot show here."
    experiment = opened(run, ambiguity, tuple(ARMS), cannot_show=limit)
    scores = scores_of(run)
    measures = {"best_iou": Measure("IoU of the best mask, mean over the annotations", "")}
    study.record(experiment, scores, measures, ARMS)
    for name, measure, arm, meaning in (
        ("best_iou_gap_min_one", "best_iou", "one", "IoU of the best mask: three with the min loss, minus one mask"),
        ("best_iou_gap_min_mean", "best_iou", "mean", "IoU of the best mask: min loss minus mean loss, three masks"),
        (
            "chosen_iou_gap_min_one",
            "chosen_iou",
            "one",
            "IoU with a random annotation: best rated of three minus one mask",
        ),
    ):
        study.difference(experiment, name, scores, measure, "min", arm, unit="", meaning=meaning)
    experiment.figure(
        "masks",
        partial(draw_masks, run=run),
        caption="One click on a digit that lies on a plate on a larger plate, and all masks that each network returns. With one "
        "mask, or with three that are all trained towards every annotation, the answer is a compromise; trained through the "
        "best one alone, the masks differ. First test image, networks of the first seed.",
        alt="Three rows of binary masks for one click on nested plates: one mask; three nearly equal masks; three masks "
        "of different extent.",
    )
    experiment.figure(
        "ambiguity",
        study.bars(scores, measures, ARMS),
        caption="For each of the three annotations of a click, the best of the masks that come out. Bars are means, dots are "
        "seeds; the networks have the same parameters.",
        alt="Bars of IoU for one mask, for three masks with the mean loss, and for three masks with the min loss.",
    )


def draw_masks(style: Style, run: Run) -> Figure:
    figure, axes = panels(3, 4, width=5.4, height=4.4)
    for line, arm in zip(axes, ARMS, strict=True):
        test, masks = trained(run, arm)[0].test, answers(trained(run, arm)[0], arm).masks[0, 0]
        point = scenes.clicks(test.masks[:, :, 0], torch.Generator().manual_seed(run.seeds[0])).points[0, 0, 0]
        show_image(line[0], test.images[0], ARMS[arm].replace(", ", ",\n"))
        line[0].plot(*(point - 0.5).tolist(), "*", color="#F2D34B", markeredgecolor="black", markersize=12)
        for k, ax in enumerate(line[1:]):
            ax.set_axis_off()
            if k < len(masks):
                show_image(ax, masks[k].float(), f"mask {k + 1}")
    return figure


def by_clicks(trained: Trained) -> list[float]:
    """IoU with an annotation after 1, 2 and 3 clicks: the best rated mask, then the fourth, mean over annotations."""
    scores: list[list[float]] = []
    for level in range(3):
        generator, target = torch.Generator().manual_seed(trained.seed), trained.test.masks[:, :, level]
        prompts = scenes.clicks(trained.test.masks[:, :, 0], generator)
        masks, rated = segment(trained.model, trained.test.images, prompts)
        index = rated[:, :, LONE].argmax(-1)[..., None, None, None].expand(-1, -1, 1, SIDE, SIDE)
        found = masks.gather(2, index)[:, :, 0]
        scores.append([ious(found, target).mean().item()])
        for place in (1, 2):
            prompts = scenes.corrected(prompts, place, found, target, generator)
            found = segment(trained.model, trained.test.images, prompts)[0][:, :, JOINT]
            scores[-1].append(ious(found, target).mean().item())
    return [fmean(each) for each in zip(*scores, strict=True)]


def by_box(trained: Trained) -> dict[str, list[float]]:
    """For each level IoU of the mask for a box, and of the filled box; boxes are a pixel off, as from a detector."""
    scores: dict[str, list[float]] = {"mask": [], "box": []}
    for level in range(3):
        target = trained.test.masks[:, :, level]
        prompts = scenes.box_prompts(target, torch.Generator().manual_seed(trained.seed))
        found = segment(trained.model, trained.test.images, prompts)[0][:, :, JOINT]
        scores["mask"].append(ious(found, target).mean().item())
        scores["box"].append(ious(scenes.filled(prompts.points[:, :, :2].flatten(2)), target).nanmean().item())
    return scores


def prompting(run: Run) -> None:
    """Do ratings rank the masks, and do boxes, more clicks and shapes that are not in training work?"""
    limit = (
        "After a few hundred steps seeds differ too much to tell whether a mask beats the box it came from, filled, or "
    )
    limit += "whether smaller objects are harder."
    experiment = opened(run, prompting, ["min"], cannot_show=limit)
    models, scores = trained(run, "min"), scores_of(run)
    clicked, boxed = [by_clicks(each) for each in models], [by_box(each) for each in models]
    unseen = [best(answers(e, test=scenes.nested("test", len(e.test.images), e.seed, unseen=True))) for e in models]
    level = dict(zip(("digit", "inner", "outer"), range(3), strict=True))
    for name, values, unit, meaning in (
        ("rank_gap", [rank_gap(answers(e)) for e in models], "", "Best rated of three masks minus a random one, in IoU with the "
         "annotation that fits it best"),
        *((f"iou_{n}_clicks", [e[n - 1] for e in clicked], "", f"IoU with the annotation after {n} click(s)") for n in (1, 2, 3)),
        ("gain_3_clicks", [e[2] / e[0] if e[0] else math.nan for e in clicked], "x", "IoU after 3 clicks over that after one"),
        *((f"box_gap_{name}", [e["mask"][at] - e["box"][at] for e in boxed], "", f"{LEVELS[at]}: IoU of the mask for a box minus "
          "that of the filled box") for name, at in level.items()),
        ("size_gap_plates", [e["mask"][2] - e["mask"][1] for e in boxed], "", "IoU of outer plates minus that of the smaller "
         "inner plates of the same shape, prompted by boxes"),
        ("best_iou_unseen", unseen, "", "Best of three masks on shapes that are not in training, on such photographs as are"),
        ("unseen_over_seen", [a / b for a, b in zip(unseen, scores.values("best_iou", "min"), strict=True)], "x",
         "The same, over that on shapes as in training"),
    ):  # fmt: skip
        experiment.result(
            name, scores.counted("min", values), unit=unit, meaning=meaning, failed=scores.reasons("undefined", "min")
        )  # fmt: skip
    lines = {"best rated, then the fourth mask": [list(enumerate(each, start=1)) for each in clicked]}
    experiment.figure(
        "prompts",
        study.curves(lines, x="clicks", y="IoU with the annotation"),
        caption="Clicks after the first say which of the meanings is meant. Lines are means over annotations and seeds, bands "
        "reach from the worst to the best seed.",
        alt="The IoU with the annotation over one to three clicks.",
    )


def unprompted(trained: Trained) -> float:
    """IoU of the best of the masks without a prompt: three masks for the three annotations of the group they cover better."""
    n = len(trained.test.images)
    empty = Prompts(torch.zeros(n, 1, 3, 2), torch.full((n, 1, 3), NOTHING))
    masks, _ = segment(trained.model, trained.test.images, empty)
    found = ious(masks[:, :, None, LONE], trained.test.masks[:, :, :, None])  # (n, 2, 3, k)
    return found.amax(-1).mean(-1).amax(-1).mean().item()


def attainable(masks: Tensor) -> Tensor:
    """IoU (3,) of the true mask of each level with an annotation drawn from all three: masks (n, 2, 3, S, S)."""
    return ious(masks[:, :, :, None], masks[:, :, None]).mean((0, 1, 3))


def everything(trained: Trained, image: Tensor) -> Tensor:
    """Masks (n, S, S) of an image (1, 3, S, S) from a grid of 8 x 8 clicks, after suppression of boxes at an IoU of 0.7."""
    axis = (torch.arange(8) + 0.5) * SIDE / 8
    grid = torch.cartesian_prod(axis, axis)[None, :, None].expand(-1, -1, 3, -1)  # (1, 64, 3, 2)
    kinds = torch.tensor([INSIDE, NOTHING, NOTHING]).expand(1, 64, 3)
    masks, rated = segment(trained.model, image, Prompts(grid, kinds))
    flat, scores = masks[0, :, LONE].flatten(0, 1), rated[0, :, LONE].flatten()  # (64, 3, ...) -> (192, ...)
    there = (scores > RATED) & flat.flatten(1).any(1)
    flat, scores = flat[there], scores[there]
    return flat[batched_nms(scenes.boxes_of(flat), scores, torch.zeros(len(flat)), 0.7)]


def missing_all(masks: Tensor, annotated: Tensor) -> float:
    """Part of the masks (n, S, S) that have an IoU below 0.5 with every annotation (m, S, S); NaN of none."""
    return (ious(masks[:, None], annotated[None]).amax(1) < 0.5).float().mean().item() if len(masks) else math.nan


def no_prompt(run: Run) -> None:
    """What comes out without a prompt, and what does a grid of prompts return?"""
    limit = "No training of it goes without a prompt, so what comes out then is chance: now and then a whole group."
    experiment = opened(run, no_prompt, ["min"], cannot_show=limit)
    models, scores = trained(run, "min"), scores_of(run)
    useless, left = [], []
    for each in models:
        kept = [everything(each, image[None]) for image in each.test.images[:20]]
        parts = [missing_all(a, b) for a, b in zip(kept, each.test.masks[:20].flatten(1, 2), strict=True)]
        useless.append(float(np.nanmean(parts)) if any(map(len, kept)) else math.nan)
        left.append(fmean(map(len, kept)))
    blank, worth = [unprompted(each) for each in models], [attainable(each.test.masks).mean().item() for each in models]
    gap = [a - b for a, b in zip(scores.values("best_iou", "min"), blank, strict=True)]
    for name, values, meaning in (
        ("best_iou_no_prompt", blank, "No prompt: IoU of the best of three masks with the group of three that they cover better"),
        ("prompt_gap", gap, "IoU of the best of three masks, with a click minus without"),
        ("unmatched_masks_of_grid", useless, "Part of the masks from a grid of clicks, after suppression, on no annotation"),
        ("masks_of_grid", left, "Masks of an image that are left of the 192 from a grid of clicks, after rating and suppression"),
        ("attainable_rating", worth, "IoU of a true mask with an annotation drawn from three: a perfect rating"),
    ):  # fmt: skip
        failed = scores.reasons("the grid leaves no mask", "min")
        experiment.result(name, scores.counted("min", values), unit="", meaning=meaning, failed=failed)
    experiment.figure(
        "no_prompt",
        partial(draw_everything, first=models[0]),
        caption="Segmenting everything takes a grid of clicks and a suppression of duplicates. The outlines are what is left of "
        f"192 masks: those rated {RATED} or more, where a perfect mask would on average be rated {fmean(worth):.2f}; none has "
        "a name. Below, the masks that the decoder returns without any prompt.",
        alt="A picture with two nested groups; the same with outlines of many masks; three masks that came out without a prompt.",
    )


def draw_everything(style: Style, first: Trained) -> Figure:
    figure = Figure(figsize=(5.4, 4.4), layout="constrained")
    rows: list[Any] = [["image"] * 3 + ["grid"] * 3, ["0", "0", "1", "1", "2", "2"]]
    axes = figure.subplot_mosaic(rows, height_ratios=[1.5, 1])
    for name, title in (("image", "image"), ("grid", "grid of clicks")):
        show_image(axes[name], first.test.images[0], title)
    for index, mask in enumerate(everything(first, first.test.images[:1])):
        axes["grid"].contour(mask.numpy(), [0.5], colors=[style.cycle[index % len(style.cycle)]], linewidths=1.4)
    empty = Prompts(torch.zeros(1, 1, 3, 2), torch.full((1, 1, 3), NOTHING))
    for k, mask in enumerate(segment(first.model, first.test.images[:1], empty)[0][0, 0, LONE]):
        show_image(axes[str(k)], mask.float(), f"no prompt, {k + 1}")
    return figure


def ceiling(target: Tensor, steps: int) -> float:
    """IoU of the best mask (n, S, S) that logits at S / 4, enlarged bilinearly, are found to give, by gradient descent."""
    truth = target[:, None].float()
    low = (2 * nn.functional.avg_pool2d(truth, 4) - 1).requires_grad_()
    enlarged = partial(nn.functional.interpolate, scale_factor=4, mode="bilinear", align_corners=False)
    optimizer = torch.optim.Adam([low], lr=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        mask_losses(enlarged(low)[:, None], target[:, None]).mean().backward()
        optimizer.step()
    return ious(enlarged(low.detach())[:, 0] > 0, target).nanmean().item()


def fine_structures(run: Run) -> None:
    """How well can a mask at a quarter of the resolution, as SAM predicts it, follow a thin structure?"""
    data, steps = f"{RINGS} rings for each width, 128 px; masks of 32 px fitted to them and enlarged", FITS[run.preset]
    experiment = run.experiment("fine_structures", question=str(fine_structures.__doc__), data=data, steps=steps)
    limits = [[ceiling(scenes.strokes(width, seed, RINGS), steps) for width in WIDTHS] for seed in run.seeds]
    for width in (1, 12):
        values, meaning = [each[WIDTHS.index(width)] for each in limits], f"Best possible IoU of strokes of {width} px"
        experiment.result(f"ceiling_iou_{width}px", values, unit="", meaning=meaning)
    points = [[(float(width), iou) for width, iou in zip(WIDTHS, each, strict=True)] for each in limits]
    experiment.figure(
        "ceiling",
        study.curves({"best possible mask": points}, x="width of the stroke (px of the input)", y="IoU"),
        caption="IoU of the best mask that logits at a quarter of the resolution can hold, for rings of several widths. Strokes "
        "thinner than its pixels of 4 px are lost, however good the network.",
        alt="A curve of the best possible IoU that rises with the width of the stroke, lowest at one pixel.",
    )


EXPERIMENTS = (ambiguity, prompting, no_prompt, fine_structures)
