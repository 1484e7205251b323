"""SAM 2's claims: does its memory bring an object back after it was hidden, and what does it save and confuse?"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from lab import study
from lab.data.occluded import FRAMES, SIDE, Clips, occluded
from lab.figures import Figure, Style, panels
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters
from sam2 import PRESETS, SAM2, Bank, follow, ious, prompted_and_recent, show_found, swapped, train
from torch import Tensor

ARMS = {"bank": "first and last three", "last": "last frame", "none": "no memory"}
FLOOR = 0.3  # IoU in the first frame, which needs no memory, below which a training counts as failed
LEAST = 8  # visible pixels of an object whose mask is measured
MEASURES = {
    "iou_before": Measure("IoU before it is hidden", "", "the object is in no frame"),
    "iou_after": Measure("IoU after it was hidden", "", "the object is in no frame"),
}

# Rivals: what is remembered. All arms have the same network.


def last_frame(time: Tensor) -> Tensor:
    """The frame before, (B, 1); -1 for none."""
    return time[:, None] - 1


def no_frame(time: Tensor) -> Tensor:
    """Nothing but the click: as `last_frame`, (B, 1), always -1."""
    return torch.full_like(time[:, None], -1)


BANKS: Mapping[str, Bank] = {"bank": prompted_and_recent, "last": last_frame, "none": no_frame}


def measures(found: Tensor, clips: Clips) -> dict[str, float]:
    """Of masks (n, T, S, S): IoU at first, before and after it is hidden; clicks; hidden frames left empty (%)."""
    area, time = clips.masks.sum((2, 3)), torch.arange(FRAMES)
    seen, hidden, iou = area >= LEAST, area == 0, ious(found, clips.masks)
    lost = (seen & (iou < 0.5)).sum(1).float()  # (n,)
    return {
        "iou_first": iou[:, 0].mean().item(),
        "iou_before": iou[seen & (time > 0) & (time < FRAMES // 2)].mean().item(),
        "iou_after": iou[seen & (time >= FRAMES // 2)].mean().item(),
        "clicks": 1 + lost.mean().item(),
        "hidden_empty": 100 * (~found.flatten(2).any(2))[hidden].float().mean().item(),
    }


def clips_of(run: Run, seed: int, **kind: bool) -> Clips:
    return occluded("test", PRESETS[run.preset].clips[1], seed, **kind)


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, by IoU in all frames with an object of validation clips."""

    def score(arm: str, rate: float, seed: int) -> float:
        clips = occluded("val", PRESETS[run.preset].clips[1], seed)
        iou = ious(follow(train(run, seed, rate, BANKS[arm]), clips, BANKS[arm]), clips.masks)
        return iou[clips.masks.sum((2, 3)) >= LEAST].mean().item()

    return study.search(run, "learning rate", ARMS, (2e-3, 4e-3, 8e-3), score)


def trained(run: Run, arm: str, seed: int) -> SAM2:
    """The network of an arm; the first one with a bank is that of the file that is read."""
    return train(run, seed, rates_of(run)[arm], BANKS[arm])


@cache
def scores_of(run: Run) -> Scores:
    """What each arm finds; failed trainings are marked."""

    def measure(arm: str, seed: int) -> dict[str, float]:
        clips = clips_of(run, seed)
        return measures(follow(trained(run, arm, seed), clips, BANKS[arm]), clips)

    scores = study.measured(run, ARMS, measure)
    scores.floor("IoU in the first frame", "iou_first", FLOOR, ARMS)
    return scores


def opened(run: Run, experiment: Callable[[Run], None], arms: Mapping[str, str], **more: Any) -> Experiment:
    preset = PRESETS[run.preset]
    sizes = dict.fromkeys(arms, count_parameters(SAM2(preset)))
    data = f"{preset.clips[0]:,} clips of {FRAMES} frames, {SIDE} px, of two digits that pass behind a post, to train; "
    data += f"{preset.clips[1]} others to test"
    floor = ("IoU in the first frame", FLOOR)
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=floor, **more)


# Experiments


def occlusion(run: Run) -> None:
    """Does a memory of the first and of several last frames bring an object back that was hidden?"""
    control = {"control": "Before the object is hidden, a memory of the last frame alone follows it as well.",
               "result": "iou_before_last", "above": FLOOR}  # fmt: skip
    experiment, scores = opened(run, occlusion, ARMS, power=control), scores_of(run)
    study.record(experiment, scores, MEASURES, ARMS)
    for arm, label in (("last", "a memory of the last frame"), ("none", "no memory")):
        study.difference(experiment, f"iou_after_gain_over_{arm}", scores, "iou_after", "bank", arm, unit="",
                         meaning=f"IoU after the object was hidden: first and last three frames minus {label}")  # fmt: skip
    clicks = {"clicks": Measure("clicks for each clip, one at first and one wherever IoU is below one half", "clicks")}
    study.record(experiment, scores, clicks, ARMS)
    study.difference(experiment, "clicks_saved", scores, "clicks", "none", "bank", unit="clicks",
                     meaning="Clicks for each clip: no memory minus memory of first and last three frames")  # fmt: skip
    experiment.figure(
        "occlusion",
        study.bars(scores, MEASURES, {"bank": "first and\nlast three", "last": "last frame", "none": "no memory"}),
        caption="Memory of the first frame and the last three, of the last one, and none but the click, before and after the "
        "object is hidden. Bars are means, dots are seeds; all arms have the same network.",
        alt="Two charts of bars of IoU, before and after the object is hidden, for three sizes of the memory.",
    )
    experiment.figure(
        "who_comes_out",
        partial(draw_arms, run=run),
        caption="The first test clip in which the digits change sides behind the post, followed with each memory. The outline "
        "is what is found. Networks of the first seed.",
        alt="Three rows of frames of one clip, outlined what each network takes for the clicked digit.",
    )


def draw_arms(style: Style, run: Run) -> Figure:
    clips, times = clips_of(run, run.seeds[0]), (0, 1, FRAMES // 2, FRAMES - 1)
    clip = int(swapped(clips).float().argmax())
    figure, axes = panels(3, len(times), width=study.WIDTH, height=4.4)
    for row, (line, (arm, label)) in enumerate(zip(axes, ARMS.items(), strict=True)):
        found = follow(trained(run, arm, run.seeds[0]), Clips(*(each[clip : clip + 1] for each in clips)), BANKS[arm])[
            0
        ]
        for ax, time in zip(line, times, strict=True):
            show_found(ax, clips.frames[clip, time], found[time], None if row else f"frame {time}")
        line[0].text(-0.06, 0.5, label.replace(" and ", "\nand "), transform=line[0].transAxes, rotation=90, ha="right",
                     va="center", fontsize=9, fontweight="bold", multialignment="center")  # fmt: skip
    return figure


def confusion(run: Run) -> None:
    """Does it know when the object is hidden, and does it take a neighbour that looks alike for it?"""
    experiment, scores, alike = opened(run, confusion, {"bank": ARMS["bank"]}), scores_of(run), []
    for seed in run.seeds:
        clips = clips_of(run, seed, alike=True)
        alike.append(measures(follow(trained(run, "bank", seed), clips, prompted_and_recent), clips)["iou_after"])
    lost = [a - b for a, b in zip(scores.values("iou_after", "bank"), alike, strict=True)]
    for name, values, unit, meaning in (
        (
            "hidden_empty",
            scores.values("hidden_empty", "bank"),
            "%",
            "Frames in which the object is hidden and no mask is drawn",
        ),
        ("iou_after_alike", alike, "", "IoU after the object was hidden beside a neighbour that looks alike"),
        (
            "iou_lost_to_alike",
            lost,
            "",
            "IoU after the object was hidden, beside a neighbour that differs, minus the same",
        ),
    ):
        values = scores.counted("bank", values)
        experiment.result(name, values, unit=unit, meaning=meaning, failed=scores.reasons("undefined", "bank"))


EXPERIMENTS = (occlusion, confusion)
