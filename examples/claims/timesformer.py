"""TimeSformer's claims: which attention tells a direction, from how many clips, and what does each scheme cost?"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise
from math import log
from typing import Any

import torch
from lab import study
from lab.data.clips import DIRECTIONS, Clips, moving_digits
from lab.memory import kept_bytes
from lab.metrics import accuracy
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters, seed_everything
from timesformer import CANVAS, FRAMES, PRESETS, DividedBlock, VideoTransformer, build, train
from torch import Tensor, nn
from vit import Block

ARMS = {"space": "space only", "joint": "joint", "divided": "divided", "convolution": "3D conv."}
LEARNING = ("joint", "divided", "convolution")  # arms that can know the order of frames
CNN_WIDTHS = {"smoke": (16, 32, 72), "quick": (16, 32, 72), "full": (64, 128, 122)}
FLOOR = 0.35  # part of right answers below which a training counts as failed; chance is a quarter
WIDTH, PATCHES = 768, 196  # of the published model, ViT-B with patches of 16 px at 224 px

# Rivals and controls


def plain_blocks(preset: Any) -> nn.Sequential:
    """Blocks of ViT whose wider MLPs (6.5 D) give them the parameters of divided blocks."""
    width, hidden = preset.width, 13 * preset.width // 2
    blocks = nn.Sequential(*(Block(width, preset.heads) for _ in range(preset.depth)))
    block: Any
    for block in blocks:
        block.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
    return blocks


class FramesAlone(nn.Module):
    """Each frame is a clip of its own, and their scores are averaged: (B, F, 1, H, W) -> (B, K)."""

    def __init__(self, preset: Any) -> None:
        super().__init__()
        self.network = VideoTransformer(plain_blocks(preset), preset.width, frames=1)

    def forward(self, clips: Tensor) -> Tensor:
        return self.network(clips.flatten(0, 1)[:, None]).unflatten(0, clips.shape[:2]).mean(1)


class Convolution(nn.Module):
    """A 3D CNN, (B, F, 1, H, W) -> (B, K): 3 x 3 x 3 convolutions that halve the frames, then the mean."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise((1, *widths)):
            convolution = nn.Conv3d(a, b, 3, stride=(1, 2, 2), padding=1, bias=False)
            layers += [convolution, nn.BatchNorm3d(b), nn.ReLU()]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(widths[-1], len(DIRECTIONS))

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.layers(clips.transpose(1, 2)).mean((2, 3, 4)))


def build_arm(arm: str, preset: str) -> nn.Module:
    """The untrained model of an arm; all have about as many parameters."""
    sizes = PRESETS[preset]
    if arm == "convolution":
        return Convolution(CNN_WIDTHS[preset])
    if arm == "space":
        return FramesAlone(sizes)
    return build(sizes) if arm == "divided" else VideoTransformer(plain_blocks(sizes), sizes.width)


@torch.inference_mode()
def part_right(run: Run, model: nn.Module, clips: Clips) -> float:
    scores = [model(part.to(run.device)).cpu() for part in clips.frames.split(500)]
    return accuracy(torch.cat(scores), clips.labels)


def shuffled(clips: Clips, seed: int) -> Clips:
    """The same clips, the frames of each in an order of its own."""
    order = torch.rand(clips.frames.shape[:2], generator=torch.Generator().manual_seed(seed)).argsort(1)
    return Clips(clips.frames[torch.arange(len(clips))[:, None], order], clips.labels, clips.speeds, clips.digits)


def fitted(run: Run, arm: str, count: int, seed: int, rate: float) -> nn.Module:
    seed_everything(seed)
    model = build_arm(arm, run.preset)
    train(model, run, count, seed, rate)
    return model


@cache
def test_clips(run: Run) -> Clips:
    """The same for all arms and seeds."""
    return moving_digits("test", PRESETS[run.preset].test, seed=10_000, frames=FRAMES, canvas=CANVAS)


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all, by the part of validation clips that is right."""
    preset = PRESETS[run.preset]
    clips = moving_digits("val", preset.test, seed=10_000, frames=FRAMES, canvas=CANVAS)

    def score(arm: str, rate: float, seed: int) -> float:
        return part_right(run, fitted(run, arm, preset.sizes[-1], seed, rate), clips)

    return study.search(run, "learning rate", ARMS, (1.5e-3, 3e-3, 6e-3), score)


@cache
def measured(run: Run, arm: str, count: int) -> list[dict[str, float]]:
    """For each seed the parts of right answers after training on `count` clips, in order and with shuffled frames."""
    found = []
    for seed in run.seeds:
        model, clips = fitted(run, arm, count, seed, rates_of(run)[arm]), test_clips(run)
        mixed = part_right(run, model, shuffled(clips, seed))
        found.append({"accuracy": part_right(run, model, clips), "accuracy_shuffled": mixed})
    return found


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    """An experiment on clips, with the sizes and the searches of its arms."""
    preset = PRESETS[run.preset]
    sizes = {arm: count_parameters(build_arm(arm, run.preset)) for arm in arms}
    data = f"moving digits, {FRAMES} frames of {CANVAS} x {CANVAS} px; {' or '.join(map(str, preset.sizes))} clips to train, "
    data += f"{preset.test} to test"
    floor = ("part of right answers, for arms that can know the order of frames", FLOOR)
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=floor, **more)


# Experiments


def direction(run: Run) -> None:
    """Which scheme learns a class that no single frame shows?"""
    power = {"control": "a 3D convolution of the same size learns the class from the same clips and steps",
             "result": "accuracy_convolution", "above": 0.5}  # fmt: skip
    experiment = opened(run, direction, ARMS, power=power)
    scores = Scores(run.seeds, {arm: measured(run, arm, PRESETS[run.preset].sizes[-1]) for arm in ARMS})
    scores.floor("part of right answers", "accuracy", FLOOR, LEARNING)
    measures = {
        "accuracy": Measure("right, test clips", ""),
        "accuracy_shuffled": Measure("right, frames shuffled", ""),
    }
    study.record(experiment, scores, measures, ARMS)
    for name, a, b in (
        ("divided_over_space", "divided", "space"),
        ("divided_over_joint", "divided", "joint"),
        ("convolution_lead", "convolution", "divided"),
    ):
        meaning = f"Right answers of {ARMS[a]} minus {ARMS[b]}, test clips"
        study.difference(experiment, name, scores, "accuracy", a, b, unit="", meaning=meaning)
    change = [abs(each) for each in scores.minus("accuracy", "space", "space", "accuracy_shuffled")]
    meaning = "Change of right answers by shuffling the frames, space only"
    experiment.result("space_changed_by_order", change, unit="", meaning=meaning)
    experiment.figure(
        "direction",
        study.bars(scores, measures, ARMS),
        caption="Parts of test clips whose direction is told, and of the same with their frames shuffled; chance is a quarter. "
        "Half is the axis without the way along it, all that frames without an order can tell. Dots are seeds.",
        alt="Two bar charts for space-only, joint and divided attention and a 3D convolution: right answers on test clips, "
        "and on the same clips with their frames shuffled.",
    )


def data(run: Run) -> None:
    """How much does divided attention need many clips, next to a 3D convolution?"""
    experiment, arms = opened(run, data, ("divided", "convolution")), ("divided", "convolution")
    sizes = dict(zip(("few", "all"), PRESETS[run.preset].sizes, strict=True))
    outcomes = {
        arm: [{"few": few["accuracy"], "all": whole["accuracy"]}
              for few, whole in zip(*(measured(run, arm, count) for count in sizes.values()), strict=True)]
        for arm in arms
    }  # fmt: skip
    scores = Scores(run.seeds, outcomes)
    scores.floor("part of right answers after all clips", "all", FLOOR, arms)
    for arm in arms:
        why = scores.reasons("undefined", arm)
        meaning = f"Right answers after {sizes['few']} clips, {ARMS[arm]}"
        experiment.result(f"accuracy_{arm}_few", scores.values("few", arm), unit="", meaning=meaning, failed=why)
        gain = scores.minus("all", arm, arm, "few")
        meaning = f"Right answers gained from {sizes['few']} to {sizes['all']} clips, {ARMS[arm]}"
        experiment.result(f"gain_with_clips_{arm}", gain, unit="", meaning=meaning, failed=why)
    meaning = f"Right answers of the 3D convolution minus divided attention, {sizes['few']} clips"
    study.difference(
        experiment, "convolution_lead_few", scores, "few", "convolution", "divided", unit="", meaning=meaning
    )
    measures = {name: Measure(f"right after {count:,} clips", "") for name, count in sizes.items()}
    experiment.figure(
        "data",
        study.bars(scores, measures, {arm: ARMS[arm] for arm in arms}),
        caption="Parts of test clips that are right after training on few and on all clips, at equal steps. Dots are seeds.",
        alt="Two bar charts, for few and for all training clips: right answers of divided attention and a 3D convolution.",
    )


def block_macs(scheme: str, frames: int, patches: int = PATCHES, width: int = WIDTH) -> int:
    """MACs of one block on the tokens of a clip, with the class token; it has one copy in each frame where space is apart."""
    if scheme == "divided":
        time = frames * patches * (5 * width**2 + 2 * frames * width)  # with the layer behind it
        space = frames * (1 + patches) * (4 * width**2 + 2 * (1 + patches) * width)
        return time + space + (1 + frames * patches) * 8 * width**2
    tokens, times = (1 + patches, frames) if scheme == "space" else (1 + frames * patches, 1)
    return times * tokens * (12 * width**2 + 2 * tokens * width)


def block_memory(scheme: str, frames: int, side: int) -> int:
    """Bytes that a block of the published size keeps for the backward pass of a clip, float32, scores written out."""
    with torch.device("meta"):
        block = DividedBlock(WIDTH, 12, frames) if scheme == "divided" else Block(WIDTH, 12)
        return kept_bytes(block, torch.empty(1, 1 + frames * (side // 16) ** 2, WIDTH))


def cost(run: Run) -> None:
    """How do arithmetic and memory of a block of the published size grow with frames and pixels?"""
    experiment = run.experiment("cost", question=str(cost.__doc__), data="worked out, memory counted on shapes")

    def exact(name: str, value: float, unit: str, meaning: str) -> None:
        experiment.result(name, [value], unit=unit, meaning=meaning, exact=True)

    for scheme in ("space", "joint", "divided"):
        power = log(block_macs(scheme, 96) / block_macs(scheme, 8)) / log(12)
        exact(f"macs_exponent_{scheme}", power, "", f"Power of the frames that MACs grow with, 8 to 96, {ARMS[scheme]}")
    for frames in (8, 96):
        ratio = block_macs("joint", frames) / block_macs("divided", frames)
        exact(f"macs_joint_over_divided_{frames}", ratio, "x", f"MACs of joint over divided attention, {frames} frames")
    for frames, side in ((8, 224), (32, 224), (8, 448)):
        ratio = block_memory("joint", frames, side) / block_memory("divided", frames, side)
        meaning = f"Bytes kept to train a block, joint over divided, {frames} frames of {side} px"
        exact(f"memory_joint_over_divided_{frames}_{side}", ratio, "x", meaning)
    long = block_macs("divided", 96) / block_macs("divided", 8)
    exact("macs_long_over_base", long, "x", "MACs of 96 frames over those of 8, divided")
    high = block_macs("divided", 16, 28**2) / block_macs("divided", 8)
    exact("macs_hr_over_base", high, "x", "MACs of 16 frames of 448 px over those of 8 frames of 224 px, divided")
    parameters = count_parameters(DividedBlock(WIDTH, 12, 8)) / count_parameters(Block(WIDTH, 12))
    exact("parameters_over_joint", parameters, "x", "Parameters of a block as published, divided over joint")


EXPERIMENTS = (direction, data, cost)
