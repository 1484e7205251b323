# %% [markdown]
# # TimeSformer: which patches of a clip should attend to which?
#
# Attention over a whole clip compares every patch of every frame with every other. TimeSformer divides it: first along
# time, at one place, then within the frame. Small networks learn in which direction a digit moves, a class that no
# single frame shows: attention within frames, divided and joint, and a 3D convolution. What each scheme costs is counted
# on the published architecture.
#
# | symbol (card, arXiv:2102.05095) | here | meaning |
# |---|---|---|
# | $F$, $N$ | `frames`, `patches` | frames of a clip; patches of a frame |
# | $z_{(p,t)}$, $z_{(0,0)}$ | `x`, `cls` | patch tokens (B, F, N, D); the classification token (B, 1, D) |
# | $e^{pos}$ | `place`, `when` | learned positions in space (N, D) and in time (F, D) |
# | $\alpha^{time}$, $\alpha^{space}$ | `time`, `space` | the two attentions of a divided block, each with its own weights |
# | $D_h$ | `width // heads` | width of a head |

# %%
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from lab.data import SPLITS, Split
from lab.data.clips import DIRECTIONS, Clips, moving_digits
from lab.figures import Style, panels, seed_bars, seed_lines, show_image
from lab.metrics import accuracy, timed
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.video import r2plus1d_18
from transformers import TimesformerConfig, TimesformerModel
from transformers.utils import logging

CANVAS, PATCH, FRAMES = 16, 8, 4  # pixels, pixels, F
START = 0.2  # standard deviation of the position embeddings before training
CHANCE = 1 / len(DIRECTIONS)
TIMED_FRAMES = (4, 8, 16, 32, 64)
COUNTED_FRAMES = (8, 16, 32, 64, 96)  # of the published architecture, at 224 x 224 pixels
VIEWS = {"timesformer": 3, "convolution": 30}  # that are averaged for one video

Scheme = Literal["space", "joint", "divided"]
PUBLISHED: Mapping[Scheme, str] = {
    "space": "space_only",
    "joint": "joint_space_time",
    "divided": "divided_space_time",
}


@dataclass(frozen=True)
class Preset:
    """Sizes of a run: clips of the three splits, smaller training sets, and the networks.

    The learning rate was chosen for the divided arm on validation clips, with seeds from 100 on.
    """

    clips: tuple[int, int, int] = (2000, 200, 500)
    sizes: tuple[int, ...] = (100, 2000)
    steps: int = 320
    batch: int = 32
    width: int = 48
    layers: int = 2
    heads: int = 4
    learning_rate: float = 3e-3
    repeats: int = 5


PRESETS = {
    "smoke": Preset(clips=(32, 8, 16), sizes=(16, 32), steps=2, repeats=1),
    "quick": Preset(),
    "full": Preset(clips=(20_000, 1000, 2000), sizes=(100, 2000, 20_000), steps=10_000, batch=64, width=96, layers=4),
}

# %% [markdown]
# ## Clips whose class is a direction
# The canvas is a torus: the digit leaves at one side and comes in at the other, so a single frame has the same
# distribution in all classes. All frames without their order still show along which axis the digit moves, so a network
# that cannot know the order may get half of the clips right, and no more.


# %%
@lru_cache(maxsize=4)
def clips_of(split: Split, count: int, seed: int) -> Clips:
    """Clips of `FRAMES` frames of `CANVAS` x `CANVAS` pixels; the test clips are the same for all seeds."""
    return moving_digits(split, count, seed=seed if split == "train" else 10_000, frames=FRAMES, canvas=CANVAS)


def draw_clips(style: Style, clips: Clips) -> Figure:
    """One clip of each direction, two clips in a row."""
    figure, axes = panels(2, 2 * FRAMES, height=2.3)
    for direction, name in enumerate(DIRECTIONS):
        clip = clips.frames[int((clips.labels == direction).nonzero()[0])]
        row = axes[direction // 2, direction % 2 * FRAMES :]
        for t, (ax, frame) in enumerate(zip(row, clip, strict=False)):
            show_image(ax, frame, name if t == 0 else f"t = {t + 1}")
    return figure


def show_clips(run: Run, preset: Preset) -> None:
    run.figure(
        "clips",
        partial(draw_clips, clips=clips_of("test", preset.clips[2], 0)),
        caption="A test clip of each class. What leaves the frame comes in at the other side, so each single frame is as "
        "likely in all four classes.",
        alt="Four clips of small frames with a handwritten digit that moves right, down, left and up, and wraps around "
        "the border.",
    )


# %% [markdown]
# ## Five schemes, as patterns
# What one patch attends to, in the first, second and third attention of a block. Divided attention needs $N + F + 2$
# comparisons per patch, joint attention $NF + 1$. Sparse attention first looks around itself, then everywhere with a
# stride of two; axial attention goes along time, width and height.


# %%
def steps_of(scheme: str, frames: int, side: int, query: tuple[int, int, int]) -> list[Tensor]:
    """For each attention of a block, the patches (F, side, side), bool, that the query (frame, row, column) sees.

    Raises:
        ValueError: the scheme is unknown.
    """
    t, r, c = torch.meshgrid(torch.arange(frames), torch.arange(side), torch.arange(side), indexing="ij")
    same_t, same_r, same_c = (axis == at for axis, at in zip((t, r, c), query, strict=True))
    near = ((r - query[1]).abs() <= side // 4) & ((c - query[2]).abs() <= side // 4)
    strided = (((t - query[0]) % 2) + ((r - query[1]) % 2) + ((c - query[2]) % 2)) == 0
    patterns = {
        "space": [same_t],
        "joint": [torch.ones_like(same_t)],
        "divided": [same_r & same_c, same_t],
        "sparse": [near, strided],
        "axial": [same_r & same_c, same_t & same_r, same_t & same_c],
    }
    if scheme not in patterns:
        raise ValueError(f"scheme must be one of {', '.join(patterns)}, not {scheme!r}")
    return patterns[scheme]


def draw_schemes(style: Style, frames: int, side: int) -> Figure:
    """A column for each scheme, a row for each frame; the query is in the middle frame."""
    names = {"space": "space", "joint": "joint", "divided": "divided (T+S)", "sparse": "sparse", "axial": "axial"}
    query = (frames // 2, side // 2, side // 2 - 1)
    figure, axes = panels(frames, len(names), height=4.9)
    for column, (scheme, name) in enumerate(names.items()):
        steps = steps_of(scheme, frames, side, query)
        for t, ax in enumerate(axes[:, column]):
            colours = np.full((side, side), style.panel, dtype=object)
            for index, seen in reversed(list(enumerate(steps))):
                colours[seen[t].numpy()] = style.cycle[(0, 2, 3)[index]]
            if t == query[0]:
                colours[query[1:]] = style.cycle[1]
            at = [(r, c) for r in range(side) for c in range(side)]
            ax.scatter([c for _, c in at], [-r for r, _ in at], c=[colours[p] for p in at], marker="s", s=88)
            ax.set(aspect="equal", xlim=(-0.7, side - 0.3), ylim=(0.7 - side, 0.7))
            ax.set_axis_off()
        axes[0, column].set_title(name)
    for t, ax in enumerate(axes[:, 0]):
        ax.text(-1.2, (1 - side) / 2, f"frame {t + 1}", rotation=90, ha="right", va="center")
    order = ("query", "first attention", "second", "third")
    shown = [Patch(color=style.cycle[i], label=name) for i, name in zip((1, 0, 2, 3), order, strict=True)]
    figure.legend(handles=shown, loc="outside lower center", ncols=4, frameon=False)
    return figure


def show_schemes(run: Run) -> None:
    run.figure(
        "schemes",
        partial(draw_schemes, frames=3, side=6),
        caption="What one patch of the middle frame attends to. Divided attention sees its place in all frames, then its "
        "own frame; since each patch there has looked along time, one block still joins the whole clip.",
        alt="A grid of five columns, for attention in space, joint, divided, sparse and axial, and three rows for frames; "
        "coloured squares mark the patches that a query patch attends to in the first, second and third attention.",
    )


# %% [markdown]
# ## The block
# Divided attention, with the scores of a patch over its place in all frames and then over its own frame,
# $$\alpha^{time}_{(p,t)} = \mathrm{softmax}\big(q_{(p,t)}^\top k_{(p,t')} / \sqrt{D_h}\big)_{t'},\qquad
# \alpha^{space}_{(p,t)} = \mathrm{softmax}\big(q_{(p,t)}^\top [k_{(0,0)}\ k_{(p',t)}] / \sqrt{D_h}\big)_{p'}$$
# is two ordinary attentions around a change of axes. Each frame asks with a copy of the classification token, and the
# copies are averaged. Space-only attention is joint attention on clips of one frame, whose tokens are averaged.


# %%
class Attention(nn.Module):
    """Multi-head self-attention of (B, n, D) tokens, with torch's kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (B, n, 3 D) -> (B, heads, n, D_h)
        mixed: Tensor = self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """One block; `divided` puts an attention along time before the one in space (Eqs. 5 to 11 of arXiv:2102.05095)."""

    def __init__(self, width: int, heads: int, divided: bool) -> None:
        super().__init__()
        self.divided = divided
        self.space_norm, self.space = nn.LayerNorm(width), Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        if divided:
            self.time_norm, self.time, self.time_out = (
                nn.LayerNorm(width),
                Attention(width, heads),
                nn.Linear(width, width),
            )

    def forward(self, cls: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """cls (B, 1, D), x (B, F, N, D) -> the same."""
        batch, frames, patches, _ = x.shape
        if self.divided:
            rows = x.transpose(1, 2).flatten(0, 1)  # (B, F, N, D) -> (B N, F, D): each place along time
            rows = self.time_out(self.time(self.time_norm(rows)))
            x = x + rows.unflatten(0, (batch, patches)).transpose(1, 2)
            tokens = torch.cat([cls.expand(-1, frames, -1)[:, :, None], x], 2).flatten(0, 1)  # (B F, 1 + N, D)
            attended = self.space(self.space_norm(tokens)).unflatten(0, (batch, frames))
            cls, x = cls + attended[:, :, 0].mean(1, keepdim=True), x + attended[:, :, 1:]
        else:
            tokens = torch.cat([cls, x.flatten(1, 2)], 1)  # (B, 1 + F N, D)
            tokens = tokens + self.space(self.space_norm(tokens))
            cls, x = tokens[:, :1], tokens[:, 1:].unflatten(1, (frames, patches))
        return cls + self.mlp(self.mlp_norm(cls)), x + self.mlp(self.mlp_norm(x))


class TimeSformer(nn.Module):
    """Gives a clip a score for each direction.

    Args:
        scheme: what attends to what.
        preset: width, layers and heads.
        frames: F; only "space" takes any number.
    """

    def __init__(self, scheme: Scheme, preset: Preset, frames: int = FRAMES) -> None:
        super().__init__()
        self.scheme, patches = scheme, (CANVAS // PATCH) ** 2
        self.embed = nn.Linear(PATCH**2, preset.width)
        self.cls = nn.Parameter(torch.zeros(1, 1, preset.width))
        self.place = nn.Parameter(START * torch.randn(patches, preset.width))
        self.when = nn.Parameter(START * torch.randn(frames, 1, preset.width)) if scheme != "space" else None
        self.blocks = nn.ModuleList(
            Block(preset.width, preset.heads, scheme == "divided") for _ in range(preset.layers)
        )
        self.head = nn.Sequential(nn.LayerNorm(preset.width), nn.Linear(preset.width, len(DIRECTIONS)))

    def forward(self, clips: Tensor) -> Tensor:
        """(B, F, 1, H, W) -> (B, K)."""
        frames = clips.shape[1]
        if self.scheme == "space":
            clips = clips.flatten(0, 1)[:, None]  # (B F, 1, 1, H, W): each frame is a clip
        cut = functional.unfold(clips.flatten(0, 1), PATCH, stride=PATCH).mT  # (B F, N, pixels)
        x = self.embed((cut - 0.1) / 0.25).unflatten(0, clips.shape[:2]) + self.place  # Eq. 1
        x = x if self.when is None else x + self.when
        cls = self.cls.expand(len(clips), -1, -1)
        for block in self.blocks:
            cls, x = block(cls, x)
        if self.scheme == "space":
            cls = cls.view(-1, frames, cls.shape[-1]).mean(1, keepdim=True)  # (B F, 1, D) -> (B, 1, D)
        scores: Tensor = self.head(cls[:, 0])
        return scores


class Convolution(nn.Module):
    """A 3D CNN with about the parameters of the divided network: 3 x 3 x 3 convolutions that halve the frames, and the mean."""

    def __init__(self, widths: Sequence[int] = (16, 32, 72)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in zip((1, *widths), widths, strict=False):
            convolution = nn.Conv3d(a, b, 3, stride=(1, 2, 2), padding=1, bias=False)
            layers += [convolution, nn.BatchNorm3d(b), nn.ReLU()]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(widths[-1], len(DIRECTIONS))

    def forward(self, clips: Tensor) -> Tensor:
        """(B, F, 1, H, W) -> (B, K)."""
        scores: Tensor = self.head(self.layers(clips.transpose(1, 2)).mean((2, 3, 4)))
        return scores


# %%
@dataclass(frozen=True)
class Trained:
    """A network, its accuracy on test clips, and on validation clips by step."""

    model: nn.Module
    test: float
    curve: dict[int, float]


def clip_accuracy(model: nn.Module, clips: Clips) -> float:
    device = next(model.parameters()).device
    with torch.no_grad():
        scores = torch.cat([model(part.to(device)).cpu() for part in torch.split(clips.frames, 100)])
    return accuracy(scores, clips.labels)


def train(name: str, preset: Preset, seed: int, device: torch.device, count: int) -> Trained:
    """Trains a scheme, or "convolution", on the first `count` clips of a seed; all see the same clips in one order."""
    sizes = dict(zip(SPLITS, preset.clips, strict=True))
    data, check, test = (clips_of(split, sizes[split], seed) for split in SPLITS)
    curve: dict[int, float] = {}

    def loss(model: nn.Module, frames: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(model(frames), labels)

    def record(step: int, model: nn.Module) -> None:
        curve[step] = clip_accuracy(model, check)

    seed_everything(seed)
    model = Convolution() if name == "convolution" else TimeSformer(name, preset)  # type: ignore[arg-type]
    batches = minibatches((data.frames[:count], data.labels[:count]), preset.batch, preset.steps, seed)
    fit(model, batches, loss, steps=preset.steps, learning_rate=preset.learning_rate, device=device,
        every=max(1, preset.steps // 5), callback=record)  # fmt: skip
    return Trained(model, clip_accuracy(model, test), curve)


# %% [markdown]
# ## Experiment: in which direction does it move?
# Three schemes and a 3D CNN, from random weights, with equal steps. Then the frames of the test clips are put into a
# random order, which must not change anything for attention within frames. Divided attention also starts from few clips.


# %%
NAMES = {"space": "space only", "joint": "joint", "divided": "divided", "convolution": "3D convolution"}
Networks = Mapping[tuple[str, int], Sequence[Trained]]  # by arm and number of training clips, one per seed


def train_all(run: Run, preset: Preset) -> Networks:
    """Every arm on all clips, and divided attention and the convolution on fewer."""
    whole = preset.sizes[-1]
    fewer = [(name, size) for name in ("divided", "convolution") for size in preset.sizes[:-1]]
    arms = [*((name, whole) for name in NAMES), *fewer]
    networks: dict[tuple[str, int], list[Trained]] = {arm: [] for arm in arms}
    for seed, (name, size) in run.progress([(s, arm) for s in run.seeds for arm in arms], what="training"):
        networks[name, size].append(train(name, preset, seed, run.device, size))
    return networks


def shuffled(clips: Clips, seed: int) -> Clips:
    """The same clips, the frames of each in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(clips.frames.shape[:2], generator=generator).argsort(1)
    return Clips(clips.frames[torch.arange(len(clips))[:, None], order], clips.labels, clips.speeds, clips.digits)


def tests(networks: Networks, name: str, size: int) -> list[float]:
    """Test accuracies, one per seed."""
    return [trained.test for trained in networks[name, size]]


def minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Differences, seed by seed."""
    return [left - right for left, right in zip(a, b, strict=True)]


def draw_accuracy(style: Style, ordered: Sequence[Sequence[float]], mixed: Sequence[Sequence[float]]) -> Figure:
    """Accuracy of each arm on test clips as they are and with shuffled frames."""
    figure, (axes,) = panels(1, 2, height=3.0, sharey=True)
    for ax, values, title in zip(axes, (ordered, mixed), ("test clips", "frames shuffled"), strict=True):
        seed_bars(ax, ["space\nonly", "joint", "divided", "3D conv."], values)
        ax.axhline(CHANCE, linestyle="--", color=style.muted)
        ax.axhline(2 * CHANCE, linestyle=":", color=style.muted)
        ax.set(title=title, ylim=(0, 1.05))
    axes[0].set_ylabel("accuracy")
    return figure


def directions(run: Run, preset: Preset, networks: Networks) -> None:
    whole, test = preset.sizes[-1], clips_of("test", preset.clips[2], 0)
    experiment = run.experiment(
        "direction",
        question="Which scheme learns a class that no single frame shows?",
        data=f"moving digits, {FRAMES} frames of {CANVAS} x {CANVAS} px; {whole} clips to train, {preset.clips[2]} to test",
        parameters=count_parameters(networks["divided", whole][0].model),
        steps=preset.steps,
    )
    mixed = {
        name: [
            clip_accuracy(trained.model, shuffled(test, seed))
            for seed, trained in zip(run.seeds, networks[name, whole], strict=True)
        ]
        for name in NAMES
    }
    values = {name: tests(networks, name, whole) for name in NAMES}
    for name, said in NAMES.items():
        experiment.result(f"accuracy_{name}", values[name], unit="", meaning=f"accuracy on test clips, {said}")
        meaning = f"accuracy with the frames shuffled, {said}"
        experiment.result(f"accuracy_shuffled_{name}", mixed[name], unit="", meaning=meaning)
    for name, other in (("space", "space only"), ("joint", "joint attention")):
        gap = minus(values["divided"], values[name])
        experiment.result(f"divided_over_{name}", gap, unit="", meaning=f"accuracy of divided minus that of {other}")
    lead = minus(values["convolution"], values["divided"])
    experiment.result("convolution_lead", lead, unit="", meaning="accuracy of the 3D convolution minus that of divided")
    change = [abs(a - b) for a, b in zip(values["space"], mixed["space"], strict=True)]
    experiment.result("space_changed_by_order", change, unit="", meaning="change of accuracy by shuffling, space only")
    experiment.figure(
        "direction",
        partial(draw_accuracy, ordered=list(values.values()), mixed=list(mixed.values())),
        caption=f"Accuracy after {preset.steps} steps; each dot is a seed. Dashed: chance; dotted: the axis of motion without "
        "the way along it, which is all that frames without an order can tell. Attention within frames has no more.",
        alt="Two bar charts of accuracy for space-only, joint and divided attention and a 3D convolution: on test clips, "
        "and on the same clips with their frames shuffled; chance as a dashed line.",
    )


# %%
def draw_sizes(style: Style, networks: Networks, preset: Preset) -> Figure:
    """Left: validation accuracy while training on all clips. Right: test accuracy by the number of clips."""
    figure, ((left, right),) = panels(1, 2, height=3.2, sharey=True, width_ratios=[3, 2])
    for index, ((name, said), marker) in enumerate(zip(NAMES.items(), "os^D", strict=True)):
        trained = networks[name, preset.sizes[-1]]
        curves = [list(each.curve.values()) for each in trained]
        seed_lines(left, list(trained[0].curve), curves, said, style.cycle[index], marker=marker, markersize=4)
        if (name, preset.sizes[0]) in networks:
            values = np.transpose([tests(networks, name, size) for size in preset.sizes])  # (seeds, sizes)
            seed_lines(right, preset.sizes, values, said, style.cycle[index], marker=marker, markersize=4)
    left.set(xlabel="steps", ylabel="accuracy", ylim=(0, 1.05))
    right.set(xscale="log", xlabel="training clips")
    right.set_xticks(preset.sizes, [f"{size:,}" for size in preset.sizes])
    right.minorticks_off()
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def data_sizes(run: Run, preset: Preset, networks: Networks) -> None:
    few, whole = preset.sizes[0], preset.sizes[-1]
    experiment = run.experiment(
        "data",
        question="How much does divided attention need many clips, next to a 3D convolution?",
        data=f"moving digits, {' or '.join(map(str, preset.sizes))} clips to train, {preset.clips[2]} to test",
        steps=preset.steps,
    )
    for name in ("divided", "convolution"):
        low, high = tests(networks, name, few), tests(networks, name, whole)
        experiment.result(f"accuracy_{name}_few", low, unit="", meaning=f"accuracy from {few} clips, {NAMES[name]}")
        meaning = f"accuracy gained from {few} to {whole} clips, {NAMES[name]}"
        experiment.result(f"gain_with_clips_{name}", minus(high, low), unit="", meaning=meaning)
    lead = minus(tests(networks, "convolution", few), tests(networks, "divided", few))
    experiment.result("convolution_lead_few", lead, unit="", meaning=f"3D convolution minus divided, {few} clips")
    experiment.figure(
        "data",
        partial(draw_sizes, networks=networks, preset=preset),
        caption="Left: accuracy on validation clips during training on all clips. Right: accuracy on test clips against the "
        "number of training clips, at equal steps. Mean and range of the seeds.",
        alt="Two line charts of accuracy: against steps for space-only, joint and divided attention and a 3D convolution, "
        "and against the number of training clips for divided attention and the convolution.",
    )


# %% [markdown]
# ## Experiment: what does a clip cost?
# Counted on the architecture of the paper, by the transformers library on torch's meta device, which has shapes but no
# values: multiply-accumulates of a forward pass, and the bytes that training keeps for the backward pass. Scores are
# written out there, as in the authors' code; a fused kernel would not keep them.


# %%
@dataclass(frozen=True)
class Cost:
    """Parameters, MACs of one clip, and bytes of activations that its backward pass needs."""

    parameters: int
    macs: float
    kept: int


def kept_and_macs(model: nn.Module, *inputs: Tensor) -> tuple[int, float]:
    """Bytes of the storages that autograd keeps (each once, parameters left out), and MACs, of a forward pass."""
    own = {each.untyped_storage()._cdata for each in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage._cdata, storage)  # holds the storage, so that its address is not used again
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
        model(*inputs)
    count = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
    return count, counter.get_total_flops() / 2  # torch counts a multiplication and an addition as two


@lru_cache(maxsize=32)
def counted(scheme: Scheme, frames: int, side: int = 224) -> Cost:
    """Cost of a published architecture (ViT-B, 16 x 16 patches) on one clip of frames x side x side pixels."""
    logging.set_verbosity_error()
    kind = PUBLISHED[scheme]
    config = TimesformerConfig(num_frames=frames, image_size=side, attention_type=kind)
    with torch.device("meta"):
        model = TimesformerModel(config)
        kept, macs = kept_and_macs(model, torch.zeros(1, frames, 3, side, side))
    return Cost(count_parameters(model), macs, kept)


def convolution_cost() -> Cost:
    """R(2+1)D-18 of torchvision on a clip of 16 x 112 x 112, its published input."""
    with torch.device("meta"):
        model = r2plus1d_18().eval()
        kept, macs = kept_and_macs(model, torch.zeros(1, 3, 16, 112, 112))
    return Cost(count_parameters(model), macs, kept)


def draw_costs(style: Style) -> Figure:
    """MACs and kept bytes of the published schemes against the number of frames."""
    figure, ((left, right),) = panels(1, 2, height=3.1)
    for (scheme, marker), colour in zip({"joint": "s", "divided": "^", "space": "o"}.items(), (1, 2, 0), strict=True):
        costs = [counted(scheme, frames) for frames in COUNTED_FRAMES]
        options: dict[str, Any] = {"color": style.cycle[colour], "marker": marker, "markersize": 4}
        left.plot(COUNTED_FRAMES, [cost.macs / 1e12 for cost in costs], label=NAMES[scheme], **options)
        right.plot(COUNTED_FRAMES, [cost.kept / 1e9 for cost in costs], **options)
    for ax, title in ((left, "TMACs of a clip"), (right, "GB kept to train on a clip")):
        ax.set(xscale="log", yscale="log", xlabel="frames of 224 x 224 pixels", title=title)
        ax.set_xticks(COUNTED_FRAMES, [str(frames) for frames in COUNTED_FRAMES])
        ax.minorticks_off()
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def count_costs(run: Run) -> None:
    experiment = run.experiment(
        "cost",
        question="How do MACs and memory of the published architecture grow with frames and pixels?",
        data="no data: shapes only; clips of 8 to 96 frames of 224 x 224 pixels, and of 8 frames of 448 x 448",
        parameters=counted("divided", 8).parameters,
    )

    def exact(name: str, value: float, unit: str, meaning: str) -> None:
        experiment.result(name, [value], unit=unit, meaning=meaning, exact=True)

    short, long = COUNTED_FRAMES[0], COUNTED_FRAMES[-1]
    for scheme in PUBLISHED:
        few, many, said = counted(scheme, short), counted(scheme, long), NAMES[scheme]
        exact(f"parameters_{scheme}", few.parameters / 1e6, "M", f"parameters, {said}")
        exact(f"macs_{scheme}_{short}", few.macs / 1e9, "G", f"MACs of {short} frames, {said}")
        exact(f"macs_{scheme}_{long}", many.macs / 1e9, "G", f"MACs of {long} frames, {said}")
        power = float(np.log(many.macs / few.macs) / np.log(long / short))
        exact(f"macs_exponent_{scheme}", power, "", f"power of the number of frames that MACs grow with, {said}")
    joint, divided = (partial(counted, scheme) for scheme in ("joint", "divided"))
    for frames in (short, long):
        ratio = joint(frames).macs / divided(frames).macs
        exact(f"macs_joint_over_divided_{frames}", ratio, "x", f"MACs of joint over divided attention, {frames} frames")
    for frames, side in ((8, 224), (32, 224), (8, 448)):
        ratio = joint(frames, side).kept / divided(frames, side).kept
        meaning = f"memory that training keeps, joint over divided, {frames} frames of {side} pixels"
        exact(f"memory_joint_over_divided_{frames}_{side}", ratio, "x", meaning)
    exact("macs_long_over_base", divided(96).macs / divided(8).macs, "x", "MACs of 96 frames over those of 8, divided")
    exact("macs_hr_over_base", divided(16, 448).macs / divided(8).macs, "x", "MACs of the HR variant over the base")
    exact("parameters_over_joint", divided(8).parameters / joint(8).parameters, "x", "parameters, divided over joint")
    cnn = convolution_cost()
    exact("parameters_over_cnn", divided(8).parameters / cnn.parameters, "x", "parameters, TimeSformer over R(2+1)D-18")
    ratio = VIEWS["timesformer"] * divided(8).macs / (VIEWS["convolution"] * cnn.macs)
    exact("macs_video_over_cnn", ratio, "x", "MACs of a video: TimeSformer, 3 views, over R(2+1)D-18, 30 views")
    exact("macs_view_over_cnn", divided(8).macs / cnn.macs, "x", "MACs of one view: TimeSformer over R(2+1)D-18")
    experiment.figure(
        "cost",
        draw_costs,
        caption="The published architecture by its number of frames, both axes logarithmic. Divided attention stays near "
        "the line of attention within frames; joint attention leaves it.",
        alt="Two line charts against the number of frames, for joint, divided and space-only attention: "
        "multiply-accumulates of a clip, and gigabytes kept for the backward pass.",
    )


# %% [markdown]
# ## Experiment: and on the clock?
# One small block, divided or joint, with torch's fused attention kernel for both. Divided attention does more, smaller
# steps, which pays only once there are frames enough.


# %%
def block_times(preset: Preset, device: torch.device, seed: int) -> dict[str, list[float]]:
    """Median milliseconds of a block for each of `TIMED_FRAMES`, four clips of 16 patches per frame."""
    seed_everything(seed)
    found: dict[str, list[float]] = {}
    for name in ("joint", "divided"):
        block = Block(preset.width, preset.heads, name == "divided").eval().to(device)
        cls = torch.zeros(4, 1, preset.width, device=device)
        jobs: list[Callable[[], object]] = [
            partial(block, cls, torch.randn(4, frames, 16, preset.width, device=device)) for frames in TIMED_FRAMES
        ]
        with torch.inference_mode():
            found[name] = [timed(job, 3 * preset.repeats, 2, device).median for job in jobs]
    return found


def draw_times(style: Style, measured: Sequence[Mapping[str, Sequence[float]]]) -> Figure:
    figure, ((ax,),) = panels(1, 1, height=2.9)
    for name, marker, colour in (("joint", "s", 1), ("divided", "^", 2)):
        values = [each[name] for each in measured]
        seed_lines(ax, TIMED_FRAMES, values, NAMES[name], style.cycle[colour], marker=marker, markersize=4)
    ax.set(xscale="log", yscale="log", xlabel="frames", ylabel="ms")
    ax.set_xticks(TIMED_FRAMES, [str(frames) for frames in TIMED_FRAMES])
    ax.minorticks_off()
    ax.legend()
    return figure


def measure_times(run: Run, preset: Preset) -> None:
    experiment = run.experiment(
        "time",
        question="From how many frames on is divided attention the faster one?",
        data=f"random tokens, {TIMED_FRAMES[0]} to {TIMED_FRAMES[-1]} frames of 16 patches, 4 clips",
    )
    measured = [block_times(preset, run.device, seed) for seed in run.seeds]
    for index in (0, -1):
        frames, ratios = TIMED_FRAMES[index], [each["joint"][index] / each["divided"][index] for each in measured]
        meaning = f"time of a joint block over that of a divided one, {frames} frames"
        experiment.result(f"time_joint_over_divided_{frames}", ratios, unit="x", meaning=meaning)
    experiment.figure(
        "time",
        partial(draw_times, measured=measured),
        caption="Time of one block on four clips against the number of frames (mean and range of the seeds).",
        alt="Line chart with logarithmic axes: milliseconds of a block against the number of frames, for joint and for "
        "divided attention.",
    )


# %% [markdown]
# ## Unlike the paper
# - Small networks on 16 x 16 pixels with patches of 8 x 8, trained from random weights. The paper starts from ViT-B,
#   pretrained on ImageNet, with the attention along time starting as a copy.
# - Sparse and axial attention are drawn but not trained.
# - As in the authors' code, attention along time leaves the classification token out; Eq. 9 of the paper has its key.
# - Clips of four frames, with which these networks learn in a minute; with eight they stayed at the axis of motion.
# - One view of a clip in testing; the paper averages three crops.
# - The 3D CNN is a plain one of about the same parameters, not SlowFast.


# %%
def main(argv: Sequence[str] | None = None) -> None:
    run = Run.start("timesformer", argv=argv)
    if run.settings.weights == "pretrained":
        raise SystemExit("This example trains small networks of its own; it has no use for --weights pretrained.")
    preset = PRESETS[run.preset]
    show_clips(run, preset)
    show_schemes(run)
    networks = train_all(run, preset)
    directions(run, preset, networks)
    data_sizes(run, preset, networks)
    count_costs(run)
    measure_times(run, preset)
    run.finish()


if __name__ == "__main__":
    main()
