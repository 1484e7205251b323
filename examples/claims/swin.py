"""Swin's claims: what does the shift connect, and what do windows save in arithmetic and memory?"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import torch
from lab import study, windows
from lab.data import canvases
from lab.data.canvases import DIGIT
from lab.data.photographs import square_photograph
from lab.figures import Figure, Style, panels, seed_bars, seed_lines
from lab.memory import kept_bytes
from lab.run import Run
from lab.study import WIDTH, Scores
from lab.training import count_parameters, seed_everything
from swin import CLASSES, PRESETS, Swin, build, every_window, swin_blocks, train
from torch import Tensor, nn
from vit import PatchEmbedding, SelfAttention, ViT

SHIFTS = {"shifted": "shifted", "unshifted": "never shifted"}
TASKS = {
    "inside": "one answer for the image, the digit in one window",
    "across": "one answer for the image, the digit across four windows",
    "beyond": "an answer of every window",
}
CASES = {  # name of the result: task, measure of its outcome, meaning
    "inside": ("inside", "image", "image, digit inside one window"),
    "across": ("across", "image", "image, digit across four windows"),
    "own_window": ("beyond", "own_window", "the window of the digit, when every window is asked"),
    "next_window": ("beyond", "next_window", "windows next to that of the digit"),
    "out_of_reach": ("beyond", "out_of_reach", "windows farther away than the blocks reach"),
}
DEPTHS = (1, 2, 4, 8)
SIDES = (224, 448, 672, 896, 1120)  # px; windows of seven tokens divide the maps of all
FLOOR = 0.3  # part of right answers below which a training counts as failed; chance is a tenth
STAGES = ((56, 96, 2), (28, 192, 2), (14, 384, 6), (7, 768, 2))  # of Swin-T at 224 px: side of the map, width, blocks


def swin_tiny(side: int = 224, width: int = 96, shifted: bool = True) -> Swin:
    """The layout of Swin-T, at its width or at another that eight divides."""
    heads = (3, 6, 12, 24) if width == 96 else (1, 2, 4, 8)
    return Swin(PatchEmbedding(4, 3, width), side // 4, (2, 2, 6, 2), heads, 7, 1000, shifted)


# Experiments that are exact


def influence(depth: int, shifted: bool, *, grid: int = 40, window: int = 4) -> Tensor:
    """How strongly each input token acts on one output token in the middle: absolute gradients (grid, grid)."""
    seed_everything(0)
    blocks = swin_blocks(8, 2, grid, window, depth, shifted).double()
    z = torch.randn(1, grid, grid, 8, dtype=torch.double, requires_grad=True)
    output = blocks(z)[0, grid // 2, grid // 2].sum()
    return torch.autograd.grad(output, z)[0].abs().sum(-1)[0]


def receptive_field(run: Run) -> None:
    """How many input tokens can act on one output token of stacked blocks?"""
    data = "random tokens on a map of 40 x 40, windows of 4 x 4, random weights"
    experiment = run.experiment("receptive_field", question=str(receptive_field.__doc__), data=data)
    maps = {pair: influence(pair[1], pair[0] == "shifted") for pair in product(SHIFTS, DEPTHS)}
    for (shift, depth), values in maps.items():
        meaning = f"Input tokens that act on one output token after {depth} block(s), windows {SHIFTS[shift]}"
        reached = [float((values > 0).sum())]
        experiment.result(f"tokens_reached_{shift}_{depth}", reached, unit="tokens", meaning=meaning, exact=True)
    experiment.figure(
        "receptive_field",
        partial(draw_influence, maps=maps),
        caption="The 40 x 40 input tokens, those that act on one output token in the middle, and their number (blank: gradient "
        "exactly zero). With the shift the area grows by one window a block, without it never; global attention would fill the "
        "square in one block.",
        alt="Two rows of four square maps for 1, 2, 4 and 8 blocks. Above, shifted windows: a coloured square that grows with "
        "each map. Below, never shifted: the same small square in all four.",
    )


def draw_influence(style: Style, maps: Mapping[tuple[str, int], Tensor]) -> Figure:
    figure, axes = panels(2, len(DEPTHS), width=WIDTH, height=3.5)
    for ax, ((_, depth), values) in zip(axes.flat, maps.items(), strict=True):
        strength = torch.where(values > 0, (values / values.max()).log10(), torch.nan)
        ax.imshow(strength.numpy(), cmap=style.sequential, vmin=-6, vmax=0)
        ax.set_title(f"{depth} block{'s' * (depth > 1)}\n{int((values > 0).sum()):,}", fontsize=9)
        ax.set(xticks=[], yticks=[])
        ax.spines[["top", "right"]].set_visible(True)
        ax.grid(False)
    for row, label in zip(axes, SHIFTS.values(), strict=True):
        row[0].set_ylabel(label)
    return figure


def parts_seen(shifted: bool) -> list[float]:
    """The part of all patches of 4 x 4 px that acts on one token in the middle, after each block of Swin-T."""
    seed_everything(0)
    model = swin_tiny(width=24, shifted=shifted).double()
    patches = model.embed(torch.randn(1, 3, 224, 224).double()).detach().requires_grad_()
    z, parts = patches, []
    stage: Any
    for stage in model.layers:
        z = stage.downsample(z)
        for block in stage.blocks:
            z = block(z)
            token = z[0, z.shape[1] // 2, z.shape[2] // 2]
            gradient = torch.autograd.grad(token.sum(), patches, retain_graph=True)[0]
            parts.append((gradient.abs().sum(-1) > 0).double().mean().item())
    return parts


def whole_network(run: Run) -> None:
    """From which block on does a token of Swin-T depend on the whole image of 224 x 224 px?"""
    data = "the layout of Swin-T at a quarter of its width, random weights, one random image"
    experiment = run.experiment("whole_network", question=str(whole_network.__doc__), data=data)
    parts = {shift: parts_seen(shift == "shifted") for shift in SHIFTS}
    for shift, values in parts.items():
        meaning = f"First of the twelve blocks whose middle token depends on every patch, windows {SHIFTS[shift]}"
        first = [1.0 + values.index(1.0)]
        experiment.result(
            f"swin_tiny_blocks_to_see_all_{shift}", first, unit="blocks", meaning=meaning, exact=True
        )  # fmt: skip
    experiment.figure(
        "swin_tiny_reach",
        study.curves({SHIFTS[shift]: [list(enumerate((100 * x for x in each), 1))] for shift, each in parts.items()},
                     x="block of Swin-T", y="part of the image (%)"),
        caption="Part of the image that acts on a token in the middle, block by block. The shift brings all of it into view "
        "several blocks earlier. Without it, patch merging still joins windows (before blocks 3, 5 and 11), and the last stage "
        "is one window: the shift speeds the mixing up, it is not the only way.",
        alt="Line chart over the twelve blocks of Swin-T. With the shift the part of the image rises at every block and is "
        "complete in the third stage; without it, it rises after each merging and is complete in the fourth stage.",
    )  # fmt: skip
    experiment.figure(
        "patch_merging",
        partial(draw_stages, photo=square_photograph("cat", 224)),
        caption="The four stages of Swin-T at 224 px: each square is one token, lines are windows. A window keeps its 7 x 7 "
        "tokens while the map shrinks, until one window covers it.",
        alt="A photograph of a cat four times, ever coarser, divided into 64, 16, 4 and 1 windows of 7 by 7 squares.",
    )


def draw_stages(style: Style, photo: Tensor) -> Figure:
    """A photograph (3, 224, 224) at the resolution of each stage of Swin-T, under its windows."""
    figure, axes = panels(2, 2, width=WIDTH, height=5.7)
    for number, (ax, (grid, width, _)) in enumerate(zip(axes.flat, STAGES, strict=True), start=1):
        tokens = nn.functional.adaptive_avg_pool2d(photo, grid)
        windows.show(ax, tokens, range(0, grid + 1, 7), f"stage {number}: {grid} x {grid}, C = {width}")
    return figure


def attention_macs(network: str, side: int) -> int:
    """The second terms of Eq. 1 and 2, for the products of all blocks of ViT-S/16 or of Swin-T."""
    if network == "vit":
        return 12 * 2 * ((side // 16) ** 2 + 1) ** 2 * 384
    return sum(depth * 2 * 7**2 * (grid * side // 224) ** 2 * width for grid, width, depth in STAGES)


def swin_macs(side: int) -> int:
    """MACs of Swin-T where maps are padded to whole windows before the attention, as in the published code."""
    total, grid = (side // 4) ** 2 * 48 * 96 + 768 * 1000, side // 4  # patches and head
    for number, (_, width, depth) in enumerate(STAGES):
        padded = (-(-grid // 7) * 7) ** 2
        total += depth * (padded * (4 * width**2 + 2 * 7**2 * width) + grid**2 * 8 * width**2)
        grid //= 2
        total += grid**2 * 8 * width**2 if number < 3 else 0  # merging
    return total


class FusedAttention(SelfAttention):
    """The same attention by a kernel that never stores its scores; the meta device knows the CPU's."""

    def forward(self, z: Tensor) -> Tensor:
        q, k, v = self.qkv(z).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
        return self.proj(mixed.transpose(1, 2).flatten(2))


def memory(network: str, side: int) -> int:
    """Bytes that Swin-T ("swin") or ViT-S/16 ("vit", "vit_fused") keeps for the backward pass of an image, float32."""
    with torch.device("meta"):
        vit: Any = ViT(PatchEmbedding(16, 3, 384), (side // 16) ** 2, 384, 12, 6, 1000)
        if network == "vit_fused":
            for block in vit.blocks:
                block.attn = FusedAttention(384, 6)
        return kept_bytes(swin_tiny(side) if network == "swin" else vit, torch.empty(1, 3, side, side))


def cost(run: Run) -> None:
    """How do arithmetic and memory of windows grow with the image, beside attention between all patches?"""
    data = "Swin-T and ViT-S/16: products of attention worked out, tensors kept for the backward pass counted on shapes"
    experiment = run.experiment("cost", question=str(cost.__doc__), data=data)
    for network in ("swin", "vit"):
        slope = np.polyfit(2 * np.log(SIDES), np.log([attention_macs(network, side) for side in SIDES]), 1)[0]
        meaning = f"Power of the number of pixels that the MACs of attention of {network} grow with, 224 to 1,120 px"
        experiment.result(f"attention_exponent_{network}", [float(slope)], unit="", meaning=meaning, exact=True)
    for network, side in product(("vit", "vit_fused"), (224, 1120)):
        ratio = memory(network, side) / memory("swin", side)
        meaning = f"Bytes kept for the backward pass by {network} for one of Swin-T, image of {side} px"
        experiment.result(f"memory_{network}_over_swin_{side}", [ratio], unit="x", meaning=meaning, exact=True)
    padded = (swin_macs(256) / 256**2) / (swin_macs(224) / 224**2) - 1
    meaning = "Additional MACs per pixel of Swin-T at 256 px, where windows need padding, against 224 px"
    experiment.result("padding_overhead_256", [padded], unit="", meaning=meaning, exact=True)


# Experiments with training


def one_answer(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The loss where the mean over the windows has to name the digit."""
    return nn.functional.cross_entropy(model(images).mean((2, 3)), labels)


def fitted(run: Run, arm: str, seed: int, rate: float) -> Swin:
    """Trains an arm, "<task>_<shift>"; both arms of a task share first weights, canvases and their order."""
    task, shift = arm.split("_")
    seed_everything(seed)
    model = build(PRESETS[run.preset], shift == "shifted")
    loss = every_window if task == "beyond" else one_answer
    train(model, run, loss, seed, rate, across=task == "across")
    return model


@torch.inference_mode()
def evaluate(run: Run, arm: str, model: nn.Module, seed: int, split: Any = "test") -> dict[str, float]:
    """Parts of right answers: "all" of what was asked, and of the image, or of windows by their distance to the digit."""
    preset, task = PRESETS[run.preset], arm.split("_")[0]
    data = canvases.drawn(split, preset.test, preset.side, seed, across=task == "across")
    logits = model(data.images.to(run.device)).cpu()  # (n, K, side, side)
    if task != "beyond":
        right = (logits.mean((2, 3)).argmax(1) == data.labels).double().mean().item()
        return {"all": right, "image": right}
    rows, columns = (data.cells[:, :, None] - torch.arange(preset.side)).abs().unbind(1)  # each (n, side)
    distance = torch.maximum(rows[:, :, None], columns[:, None])  # (n, side, side)
    hits = (logits.argmax(1) == data.labels[:, None, None]).double()
    by_distance = {f"at_{each}": hits[distance == each].mean().item() for each in range(preset.side)}
    beyond_reach = hits[distance > preset.depth // 2].mean().item()
    named = {"own_window": by_distance["at_0"], "next_window": by_distance["at_1"], "out_of_reach": beyond_reach}
    return {"all": hits.mean().item(), **named, **by_distance}


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all, by the part of right answers on validation digits."""

    def score(arm: str, rate: float, seed: int) -> float:
        return evaluate(run, arm, fitted(run, arm, seed, rate), seed, "val")["all"]

    arms = [f"{task}_{shift}" for task, shift in product(TASKS, SHIFTS)]
    return study.search(run, "learning rate", arms, (4e-3, 8e-3, 16e-3), score)


def accuracy_by_shift(run: Run) -> None:
    """Where does the shift change accuracy, at equal parameters, steps and first weights?"""
    preset, rates = PRESETS[run.preset], rates_of(run)
    data = f"digits of {DIGIT} px on noisy canvases of {preset.side} x {preset.side} windows: {preset.train:,} canvases of "
    data += f"1,297 digits to train, {preset.test:,} of 300 others to test"
    limit = "That the shift helps across a border: it would need objects whose parts cannot be recognised one by one."
    sizes = {arm: count_parameters(build(preset)) for arm in rates}
    floor = ("part of right answers (in its own window where every window is asked)", FLOOR)
    experiment = study.opened(run, accuracy_by_shift, data=data, sizes=sizes, steps=preset.steps, floor=floor,
                              power={"control": "the shift reaches the next window, so its answers rise from chance",
                                     "result": "shift_gain_next_window", "above": 0.3},
                              cannot_show=limit)  # fmt: skip
    scores = study.measured(run, rates, lambda arm, seed: evaluate(run, arm, fitted(run, arm, seed, rates[arm]), seed))
    for arm in rates:
        scores.floor(floor[0], "own_window" if arm.startswith("beyond") else "image", FLOOR, [arm])
    for name, (task, measure, what) in CASES.items():
        for shift, label in SHIFTS.items():
            values, why = scores.values(measure, f"{task}_{shift}"), scores.reasons("undefined", f"{task}_{shift}")
            meaning = f"Part of right answers on test canvases, {label}: {what}"
            experiment.result(f"accuracy_{name}_{shift}", values, unit="", meaning=meaning, failed=why)
        study.difference(experiment, f"shift_gain_{name}", scores, measure, f"{task}_shifted", f"{task}_unshifted",
                         unit="", meaning=f"Right answers shifted minus never shifted: {what}")  # fmt: skip
    experiment.figure(
        "accuracy",
        partial(draw_accuracy, scores=scores, side=preset.side, reach=preset.depth // 2),
        caption="Above: one answer for the image, its digit inside a window or across four. Below: every window has to name a "
        "digit so many windows away. Without the shift all other windows stay at chance (dotted), as they must; with it the "
        "answer arrives as far as the blocks reach (dashed). Dots and bands: seeds.",
        alt="Above: four bars of accuracy, shifted beside never shifted, for digits inside a window and across windows. Below: "
        "accuracy against the distance to the digit in windows, both arms, with a line at chance and one where reach ends.",
    )


def draw_accuracy(style: Style, scores: Scores, side: int, reach: int) -> Figure:
    figure, axes = panels(2, 1, width=WIDTH, height=5.6)
    above, below = axes[:, 0]
    arms = [f"{task}_{shift}" for task, shift in product(("inside", "across"), SHIFTS)]
    rows = [[value for value in scores.values("image", arm) if value == value] for arm in arms]
    names = [arm.replace("_un", "\nnever ").replace("_", "\n") for arm in arms]
    there = [index for index, row in enumerate(rows) if row]
    seed_bars(
        above,
        [names[each] for each in there],
        [rows[each] for each in there],
        [style.cycle[each % 2] for each in there],
    )
    for shift, colour, line in zip(SHIFTS, style.cycle, ("-", "--"), strict=False):
        values = [scores.values(f"at_{each}", f"beyond_{shift}") for each in range(side)]
        seed_lines(below, list(range(side)), np.array(values).T, SHIFTS[shift], colour, marker="o", linestyle=line)
    below.axvline(reach + 0.5, color=style.muted, linestyle="--", linewidth=1)
    below.set(xlabel="windows to the digit", xticks=range(side), title="every window answers")
    below.legend()
    above.set_title("one answer for the image")
    for ax in axes[:, 0]:
        ax.axhline(1 / CLASSES, color=style.muted, linestyle=":")
        ax.set(ylim=(0, 1.03), ylabel="part right")
    return figure


EXPERIMENTS = (receptive_field, whole_network, cost, accuracy_by_shift)
