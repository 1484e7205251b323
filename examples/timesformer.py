# %% [markdown]
# # TimeSformer: which patches of a clip should attend to which?
#
# Attention over a whole clip compares every patch of every frame with every other. TimeSformer divides it: first along time,
# at one place, then within the frame. Here is the divided block, trained to tell in which direction a digit moves, a class
# that no single frame shows; the experiments set it beside joint attention, attention within frames and a 3D convolution of
# the same size, and work out what each scheme costs.
#
# | symbol (card, arXiv:2102.05095) | here | meaning |
# |---|---|---|
# | $F$, $N$ | `frames`, `patches` | frames of a clip; patches of a frame |
# | $z_{(p,t)}$, $z_{(0,0)}$ | `x`, `cls` | patch tokens (B, F, N, D); the class token (B, 1, D) |
# | $e^{pos}$ | `place`, `when` | learned positions in space (N, D) and in time (F, 1, D) |
# | $\alpha^{time}$, $\alpha^{space}$ | `temporal_attn`, `attn` | the two attentions of a divided block |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from lab import weights
from lab.data.clips import DIRECTIONS, Clips, moving_digits
from lab.figures import Figure, Style, panels, show_image
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from matplotlib.patches import Patch
from torch import Tensor, nn
from vit import MLP, Block, SelfAttention, patches_from_images

KINETICS = "facebook/timesformer-base-finetuned-k400"
CANVAS, PATCH, FRAMES = 16, 8, 4  # pixels, pixels, F
START = 0.2  # standard deviation of the position embeddings before training
RATE = 1.5e-3  # peak learning rate, see claims/timesformer.searches.json
SYNCHRONISATIONS_PER_STEP = 0  # the clips lie on the device


class Preset(NamedTuple):
    """Few and all training clips, test clips, steps, clips in a step, D, blocks, heads, and a factor on the rate."""

    sizes: tuple[int, int] = (100, 2000)
    test: int = 500
    steps: int = 400
    batch: int = 32
    width: int = 48
    depth: int = 2
    heads: int = 4
    rate: float = 1.0


PRESETS = {
    "smoke": Preset((16, 32), test=16, steps=2),
    "quick": Preset(),
    "full": Preset((2000, 20_000), test=2000, steps=10_000, batch=64, width=96, depth=4, rate=0.5),
}

# %% [markdown]
# ## Five schemes, as patterns
# What one patch attends to, in the first, second and third attention of a block. Divided attention needs $N + F + 2$
# comparisons for a patch, joint attention $NF + 1$. Sparse attention first looks around itself, then everywhere with a stride
# of two; axial attention goes along time, width and height.


# %%
def steps_of(scheme: str, frames: int, side: int, query: tuple[int, int, int]) -> list[Tensor]:
    """For each attention of a block, the patches (F, side, side), bool, that the query (frame, row, column) sees.

    Raises ValueError for an unknown scheme.
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
    names, query = ("space", "joint", "divided", "sparse", "axial"), (frames // 2, side // 2, side // 2 - 1)
    figure, axes = panels(frames, len(names), width=5.4, height=3.9)
    at = np.argwhere(np.ones((side, side)))  # rows and columns of the patches
    for column, name in enumerate(names):
        axes[0, column].set_title(name)
        for t, ax in enumerate(axes[:, column]):
            colours = np.full((side, side), style.panel, dtype=object)
            for index, seen in reversed(list(enumerate(steps_of(name, frames, side, query)))):
                colours[seen[t].numpy()] = style.cycle[(0, 2, 3)[index]]
            if t == query[0]:
                colours[query[1:]] = style.cycle[1]
            ax.scatter(at[:, 1], -at[:, 0], c=list(colours.flat), marker="s", s=44)
            ax.set(aspect="equal", xlim=(-0.7, side - 0.3), ylim=(0.7 - side, 0.7))
            ax.set_axis_off()
    for t, ax in enumerate(axes[:, 0]):
        ax.text(-1.2, (1 - side) / 2, f"frame {t + 1}", rotation=90, ha="right", va="center")
    order = ("query", "first attention", "second", "third")
    shown = [Patch(color=style.cycle[i], label=name) for i, name in zip((1, 0, 2, 3), order, strict=True)]
    figure.legend(handles=shown, loc="outside lower center", ncols=4, frameon=False, columnspacing=1, handlelength=1)
    return figure


if __name__ == "__main__":
    run = Run.start("timesformer", pretrained=True)
    preset = PRESETS[run.preset]
    run.figure(
        "schemes",
        partial(draw_schemes, frames=3, side=6),
        caption="What one patch of the middle frame attends to. Divided attention sees its place in all frames, then its own "
        "frame; since each patch there has looked along time, one block still joins the whole clip.",
        alt="A grid of five columns, for attention in space, joint, divided, sparse and axial, and three rows for frames; "
        "coloured squares mark the patches that a query attends to in the first, second and third attention.",
    )

# %% [markdown]
# ## The divided block
# The scores of a patch over its place in all frames, and then over its own frame:
# $$\alpha^{time}_{(p,t)} = \mathrm{softmax}\big(q_{(p,t)}^\top k_{(p,t')} / \sqrt{D_h}\big)_{t'},\qquad
# \alpha^{space}_{(p,t)} = \mathrm{softmax}\big(q_{(p,t)}^\top [k_{(0,0)}\ k_{(p',t)}] / \sqrt{D_h}\big)_{p'}$$
# These are two attentions of ViT around a change of axes. Each frame asks with a copy of the class token, and the copies are
# averaged. The plain block of ViT on the tokens of all frames is joint attention; on each frame alone it is attention in space.


# %%
class DividedBlock(nn.Module):
    """Attention along time, attention within frames, MLP (Eqs. 5 to 11): tokens (B, 1 + F N, D) -> the same."""

    def __init__(self, width: int, heads: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.temporal_norm, self.temporal_attn = nn.LayerNorm(width, eps=1e-6), SelfAttention(width, heads)
        self.temporal_fc = nn.Linear(width, width)
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), SelfAttention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), MLP(width)

    def forward(self, z: Tensor) -> Tensor:
        cls, x = z[:, :1], z[:, 1:].unflatten(1, (self.frames, -1))  # (B, 1, D), (B, F, N, D)
        B, F, N, _ = x.shape
        places = x.transpose(1, 2).flatten(0, 1)  # (B, F, N, D) -> (B N, F, D): each place along time
        moved = self.temporal_fc(self.temporal_attn(self.temporal_norm(places)))
        x = x + moved.unflatten(0, (B, N)).transpose(1, 2)
        frames = torch.cat([cls.expand(-1, F, -1)[:, :, None], x], 2).flatten(0, 1)  # (B F, 1 + N, D)
        mixed = self.attn(self.norm1(frames)).unflatten(0, (B, F))
        cls, x = cls + mixed[:, :, 0].mean(1, keepdim=True), x + mixed[:, :, 1:]
        z = torch.cat([cls, x.flatten(1, 2)], 1)
        return z + self.mlp(self.norm2(z))


class VideoTransformer(nn.Module):
    """Clips (B, F, 1, H, W) -> class scores (B, K); with blocks of ViT its attention is joint."""

    def __init__(self, blocks: nn.Sequential, width: int, frames: int = FRAMES) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(PATCH**2, width), blocks
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(START * torch.randn((CANVAS // PATCH) ** 2, width))
        self.when = nn.Parameter(START * torch.randn(frames, 1, width))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(DIRECTIONS)))

    def forward(self, clips: Tensor) -> Tensor:
        cut = patches_from_images((clips.flatten(0, 1) - 0.1) / 0.25, PATCH).unflatten(0, clips.shape[:2])
        x = (self.embed(cut) + self.place + self.when).flatten(1, 2)  # Eq. 1: (B, F, N, D) -> (B, F N, D)
        z = self.blocks(torch.cat([self.cls.expand(len(x), -1, -1), x], 1))
        return self.head(z[:, 0])


def build(preset: Preset) -> VideoTransformer:
    """An untrained TimeSformer."""
    blocks = [DividedBlock(preset.width, preset.heads, FRAMES) for _ in range(preset.depth)]
    return VideoTransformer(nn.Sequential(*blocks), preset.width)


if __name__ == "__main__":
    z = torch.rand(2, 1 + 8 * 196, 768)
    blocks: dict[str, nn.Module] = {"joint": Block(768, 12), "divided": DividedBlock(768, 12, frames=8)}
    run.show("shapes", [{"block of ViT-B": name, "parameters": count_parameters(block), "tokens": str(tuple(block(z).shape))}
                        for name, block in blocks.items()])  # fmt: skip

# %% [markdown]
# ## Train it on clips whose class is a direction
# The canvas is a torus: the digit leaves at one side and comes in at the other, so a single frame looks alike in all classes.
# Frames without their order still show along which axis it moves, so a network that cannot know the order may get half right.
# Played backwards, a clip that went right goes left: one that sees motion has to say so.


# %%
def train(model: nn.Module, run: Run, count: int, seed: int, rate: float = RATE) -> list[float]:
    """Trains on the first `count` clips of a seed; returns the loss of each step."""

    def loss(model: nn.Module, frames: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(frames), labels)

    preset, device = PRESETS[run.preset], run.device
    clips = moving_digits("train", preset.sizes[-1], seed=seed, frames=FRAMES, canvas=CANVAS)[:count].to(device)
    batches = minibatches([clips.frames, clips.labels], preset.batch, preset.steps, seed)
    return fit(model, batches, loss, steps=preset.steps, learning_rate=rate * preset.rate, device=device)


def draw_clips(style: Style, clips: Clips, said: Tensor) -> Figure:
    """A row for each clip, with the direction that the network says (n,), an index of `DIRECTIONS`."""
    figure, axes = panels(len(said), FRAMES, width=5.4, height=1.3 * len(said))
    for row, clip, answer in zip(axes, clips.frames, said, strict=True):
        for ax, frame in zip(row, clip, strict=True):
            show_image(ax, frame)
        row[0].set_title(f"says: {DIRECTIONS[int(answer)]}", loc="left")
    return figure


if __name__ == "__main__":
    seed_everything(run.seeds[0])
    model = build(preset)
    losses = train(model, run, preset.sizes[-1], run.seeds[0])
    test = moving_digits("test", preset.test, seed=10_000, frames=FRAMES, canvas=CANVAS)
    with torch.inference_mode():
        said = model(test.frames.to(run.device)).argmax(1).cpu()
        backwards = model(test.frames.flip(1).to(run.device)).argmax(1).cpu()
    right, turned = (100 * each.double().mean() for each in (said == test.labels, backwards == (test.labels + 2) % 4))
    text = f"{count_parameters(model):,} parameters, last loss {losses[-1]:.3f}; {right:.1f} % of test clips right,\n"
    run.show("trained", text + f"{turned:.1f} % the opposite way when they are played backwards")
    rows = [int((test.labels == direction).nonzero()[0]) for direction in range(len(DIRECTIONS))]
    run.figure(
        "clips",
        partial(draw_clips, clips=test[torch.tensor(rows)], said=said[rows]),
        caption="A test clip of each direction: "
        + ", ".join(DIRECTIONS)
        + "; and what the trained network says. What leaves "
        "the frame comes in at the other side.",
        alt="Four clips of four small frames with a handwritten digit that moves right, down, left and up, and the "
        "direction that the network names for each.",
    )

# %% [markdown]
# ## Your own image
# The base model that its authors published, trained on Kinetics-400 (CC BY-NC 4.0), sees a photograph as a clip that stands
# still: what action it names, and where the class token looks within the frames, in the last block.


# %%
def published(image: Any) -> weights.Heat:
    from transformers import AutoImageProcessor, TimesformerForVideoClassification

    network, looks = TimesformerForVideoClassification.from_pretrained(KINETICS).eval(), []
    clip = AutoImageProcessor.from_pretrained(KINETICS)([image] * network.config.num_frames, return_tensors="pt")
    softmax = network.timesformer.encoder.layer[-1].attention.attention.attn_drop  # its input: (F, heads, 1 + N, 1 + N)
    softmax.register_forward_hook(lambda module, inputs, output: looks.append(output))
    scores, best = network(**clip).logits[0].softmax(-1).max(-1)
    heat = looks[-1][..., 0, 1:].mean((0, 1))  # over frames and heads, (N,)
    pixels = clip["pixel_values"][0, 0]
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    title = f"{network.config.id2label[int(best)]} ({100 * scores:.0f} %)"
    return pixels, heat.unflatten(0, (round(len(heat) ** 0.5), -1)), title


if __name__ == "__main__":
    weights.show_heat(run, KINETICS, published, megabytes=490, otherwise="motorcycle")
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - Small networks on 16 x 16 pixels, trained from random weights. The paper starts from ViT-B, pretrained on ImageNet.
# - Sparse and axial attention are drawn but not trained. Steps are few: with more, joint attention may learn the way, too.
# - As in the authors' code, attention along time leaves the class token out; Eq. 9 of the paper has its key.
# - Clips of four frames, with which these networks learn in seconds, and one view of a clip in testing; the paper averages three.
# - Joint attention and attention in space get a wider MLP here, so that all arms have about as many parameters; in the
#   paper the divided model has 42 % more. The 3D CNN is a plain one, not SlowFast.
