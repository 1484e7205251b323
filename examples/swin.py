# %% [markdown]
# # Swin Transformer: how do tokens meet if attention stays in small windows?
#
# Attention between all tokens grows with the square of their number; inside windows of a fixed size it grows linearly, but
# tokens of different windows never meet. Swin moves the windows by half their side in every second block, so that they do,
# and merges tokens between stages. Here is the model, trained to carry an answer from window to window; the experiments
# take the shift out, follow which tokens reach which, and work out the cost.
#
# | symbol (arXiv:2103.14030) | here | meaning |
# |---|---|---|
# | $M$, $\lfloor M/2 \rfloor$ | `window`, `shift` | side of a window in tokens, and how far it moves |
# | $h, w$ | `grid` | tokens on a side of the (square) map |
# | $C$ | `width` | features of a token |
# | $Q, K, V$ | `q`, `k`, `v` | projections of the tokens of one window |
# | $B$, $\hat B$ | `bias`, `relative_position_bias_table` | bias by relative position, and its table |
# | $z^l$ | `z` | tokens after block $l$, (B, h, w, C) |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from lab import weights, windows
from lab.data import canvases, photographs
from lab.data.canvases import DIGIT, Canvases
from lab.figures import Figure, Style, panels, show_image
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from torch import Tensor, nn
from vit import MLP, PatchEmbedding

PATCH, WINDOW, CLASSES = DIGIT // 2, 2, 10  # px, tokens, digits: a window is as large as a digit
RATE = 4e-3  # peak learning rate, see claims/swin.searches.json
SYNCHRONISATIONS_PER_STEP = 0  # the canvases lie on the device


class Preset(NamedTuple):
    """C, heads, blocks, windows on a side of a canvas, steps, images in a step, canvases, and a factor on the rate."""

    width: int = 32
    heads: int = 2
    depth: int = 2
    side: int = 3
    steps: int = 450
    batch: int = 32
    train: int = 6000
    test: int = 1200
    rate: float = 1.0


PRESETS = {
    "smoke": Preset(width=16, steps=3, batch=8, train=64, test=64),
    "quick": Preset(),
    "full": Preset(96, 6, 4, 5, steps=6000, batch=128, train=40_000, test=4000, rate=0.25),
}

# %% [markdown]
# ## Windows, and the same half a window further
# The map is cut into windows of $M \times M$ tokens. In the next block they lie $\lfloor M/2 \rfloor$ further and join what
# was apart. At the border that would leave ragged windows, so the map is *rolled* up and to the left and cut as before. The
# last windows then hold pieces from opposite ends of the image, and a mask keeps these from seeing each other.


# %%
def window_partition(z: Tensor, window: int) -> Tensor:
    """Cuts tokens (B, H, W, C) into windows (B n, N, C), n = HW / N windows of N = window * window tokens.

    Raises ValueError if the window does not divide H and W.
    """
    B, H, W, C = z.shape
    if H % window or W % window:
        raise ValueError(f"windows of {window} x {window} tokens do not divide a map of {H} x {W}")
    tiles = z.reshape(B, H // window, window, W // window, window, C)
    return tiles.transpose(2, 3).reshape(-1, window * window, C)  # (B, rows, columns, M, M, C) -> (B n, N, C)


def window_reverse(parts: Tensor, height: int, width: int) -> Tensor:
    """Puts windows (B n, N, C) back together to tokens (B, H, W, C), the inverse of `window_partition`."""
    window = round(parts.shape[1] ** 0.5)
    tiles = parts.reshape(-1, height // window, width // window, window, window, parts.shape[2])
    return tiles.transpose(2, 3).reshape(-1, height, width, parts.shape[2])


def shift_mask(grid: int, window: int, shift: int) -> Tensor:
    """What is added to the scores in each window: 0, or minus infinity between tokens that are no neighbours; (n, N, N)."""
    wrapped = (torch.arange(grid) >= grid - shift).long()  # rows (and columns) that the roll brought from the other end
    region = 2 * wrapped[:, None] + wrapped  # (H, W)
    regions = window_partition(region[None, ..., None], window)[..., 0]  # (n, N)
    apart = regions[:, :, None] != regions[:, None]
    return torch.zeros(apart.shape).masked_fill(apart, -torch.inf)


def draw_windows(style: Style, photo: Tensor) -> Figure:
    """A photograph (3, 256, 256) in regular windows, in shifted ones, rolled, and the mask of the last window."""
    figure, axes = panels(2, 2, width=5.4, height=5.9)
    rolled, side = photo.roll((-64, -64), (1, 2)), photo.shape[1]
    views = (("block l: regular windows", photo, [128]), ("block l + 1: shifted", photo, [64, 192]),
             ("the same, rolled", rolled, [128]))  # fmt: skip
    for ax, (title, pixels, borders) in zip(axes.flat, views, strict=False):
        windows.show(ax, pixels, [0, *borders, side], title)
    plate = {"facecolor": "black", "edgecolor": "none", "boxstyle": "round,pad=0.2"}
    for name, x, y in (("A", 160, 160), ("B", 224, 160), ("C", 160, 224), ("D", 224, 224)):
        axes[1, 0].text(x, y, name, color="white", ha="center", va="center", weight="bold", bbox=plate)
    for line in ([[191.5] * 2, [-0.5, 255.5]], [[-0.5, 255.5], [191.5] * 2]):
        axes[1, 0].plot(*line, color="white", linestyle="--", linewidth=1)  # where opposite ends meet
    show_image(axes[1, 1], shift_mask(8, 4, 2)[-1] == 0, "mask of its last window", cmap="Greys", vmin=-0.4, vmax=1.4)
    axes[1, 1].set(xticks=range(16), yticks=range(16), xticklabels="AABBAABBCCDDCCDD", yticklabels="AABBAABBCCDDCCDD")
    axes[1, 1].set_axis_on()
    axes[1, 1].grid(False)
    axes[1, 1].tick_params(length=0, labelsize=9)
    return figure


if __name__ == "__main__":
    run = Run.start("swin", pretrained=True)
    preset = PRESETS[run.preset]
    run.figure(
        "shifted_windows",
        partial(draw_windows, photo=photographs.square_photograph("astronaut", 256)),
        caption="Regular windows exchange nothing; in the next block they lie half a window further and join what was apart. "
        "Rolled up and to the left, they are four full windows again. The last one holds four pieces, A to D, that are no "
        "neighbours: the mask (dark: allowed) lets each see only itself.",
        alt="Three times the same photograph: cut into four windows, into nine moved by half a window, and rolled so that four "
        "windows fit again, the last made of pieces A to D. Beside it the 16 by 16 mask, open between equal letters.",
    )

# %% [markdown]
# ## Attention in a window, with a bias by relative position
# $$\mathrm{Attention}(Q, K, V) = \mathrm{SoftMax}(QK^\top / \sqrt{d} + B)\,V \qquad (4)$$
# $B$ depends only on how two tokens lie to each other: it is read from a table of $(2M-1)^2$ entries for each head. The model
# has no other notion of position. Blocks take turns with regular and shifted windows (Eq. 3). Between stages each
# $2 \times 2$ group of tokens becomes one: the four are joined ($4C$) and projected to $2C$. So maps shrink like those of a
# convolutional network, while a window keeps its tokens and covers ever more of the image.


# %%
def relative_position_index(window: int) -> Tensor:
    """Where in the table the bias of each pair of tokens stands: (N, N), from 0 to (2 * window - 1)^2 - 1."""
    place = torch.cartesian_prod(torch.arange(window), torch.arange(window))  # (N, 2), row by row
    apart = place[:, None] - place + window - 1  # (N, N, 2), from 0 to 2M - 2
    return apart[..., 0] * (2 * window - 1) + apart[..., 1]


class WindowAttention(nn.Module):
    """Multi-head attention in windows, (B n, N, C) -> (B n, N, C); a mask (n, N, N) is added to the scores."""

    index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        self.register_buffer("index", relative_position_index(window), persistent=False)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(z).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B n, heads, N, d)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)  # (heads, N, N)
        scores = q @ k.mT / q.shape[-1] ** 0.5 + bias  # (B n, heads, N, N)
        if mask is not None:  # the same for every image and head
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))  # Eq. 4


class SwinBlock(nn.Module):
    """One block, (B, H, W, C) -> (B, H, W, C). A map of one window is never shifted, as in the published code."""

    def __init__(self, width: int, heads: int, grid: int, window: int, shift: int = 0) -> None:
        super().__init__()
        self.window, self.shift = window, shift if grid > window else 0
        self.norm1, self.attn = nn.LayerNorm(width), WindowAttention(width, heads, window)
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width)
        self.register_buffer("mask", shift_mask(grid, window, self.shift) if self.shift else None, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        rolled = self.norm1(z).roll((-self.shift, -self.shift), dims=(1, 2))
        mixed = self.attn(window_partition(rolled, self.window), self.mask)
        z = z + window_reverse(mixed, *z.shape[1:3]).roll((self.shift, self.shift), dims=(1, 2))  # Eq. 3
        return z + self.mlp(self.norm2(z))


def swin_blocks(width: int, heads: int, grid: int, window: int, depth: int, shifted: bool = True) -> nn.Sequential:
    """Blocks with regular and, in turn, shifted windows; the shift has no parameters."""
    shifts = [window // 2 if shifted and block % 2 else 0 for block in range(depth)]
    return nn.Sequential(*(SwinBlock(width, heads, grid, window, shift) for shift in shifts))


class PatchMerging(nn.Module):
    """Halves the map and doubles the width: (B, H, W, C) -> (B, H / 2, W / 2, 2 C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        B, H, W, C = z.shape
        groups = z.reshape(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5)  # column before row, as published
        return self.reduction(self.norm(groups.reshape(B, H // 2, W // 2, 4 * C)))


class Swin(nn.Module):
    """Images (B, channels, S, S) -> class scores of each window of the last map, (B, K, n, n); their mean is the image's."""

    def __init__(self, embed: PatchEmbedding, grid: int, depths: Sequence[int], heads: Sequence[int], window: int,
                 classes: int, shifted: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.grid, self.window, width = grid, window, embed.proj.out_features
        self.patch_embed, self.embed_norm = embed, nn.LayerNorm(width)
        self.layers = nn.Sequential()
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            merge = PatchMerging(width << stage - 1) if stage else nn.Identity()
            blocks = swin_blocks(width << stage, count, grid >> stage, window, depth, shifted)
            self.layers.append(nn.Sequential())
            self.layers[-1].add_module("downsample", merge)
            self.layers[-1].add_module("blocks", blocks)
        self.norm = nn.LayerNorm(width << len(depths) - 1)
        self.head = nn.Linear(width << len(depths) - 1, classes)

    def embed(self, images: Tensor) -> Tensor:
        return self.embed_norm(self.patch_embed(images)).unflatten(1, (self.grid, self.grid))

    def forward(self, images: Tensor) -> Tensor:
        z = self.norm(self.layers(self.embed(images)))  # the last map, (B, H', W', C')
        means = window_partition(z, self.window).mean(1)  # (B n n, N, C) -> (B n n, C)
        side = z.shape[1] // self.window
        return self.head(means).unflatten(0, (-1, side, side)).permute(0, 3, 1, 2)


if __name__ == "__main__":
    tiny = Swin(PatchEmbedding(4, 3, 96), 56, (2, 2, 6, 2), (3, 6, 12, 24), 7, 1000)
    maps = [tiny.layers[:stage](tiny.embed(torch.rand(1, 3, 224, 224))) for stage in range(1, 5)]
    run.show("shapes", [{"stage of Swin-T": stage, "map": str(tuple(z.shape)), "windows": len(window_partition(z, 7))}
                        for stage, z in enumerate(maps, start=1)])  # fmt: skip

# %% [markdown]
# ## Train it: carry the answer to the next window
# A digit as large as a window lies on a noisy canvas, and *every* window has to name it, as dense prediction asks of places
# whose evidence lies elsewhere. One stage without merging, so that nothing but the shift connects windows: with two blocks
# the answer can travel one window far.


# %%
def build(preset: Preset, shifted: bool = True) -> Swin:
    """An untrained Swin of one stage, for canvases."""
    embed = PatchEmbedding(PATCH, 1, preset.width)
    return Swin(embed, WINDOW * preset.side, [preset.depth], [preset.heads], WINDOW, CLASSES, shifted)


def every_window(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The loss where each window has to name the digit."""
    logits = model(images)  # (B, K, n, n)
    return nn.functional.cross_entropy(logits, labels[:, None, None].expand(-1, *logits.shape[2:]))


Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def train(model: Swin, run: Run, loss: Loss, seed: int, rate: float = RATE, across: bool = False) -> list[float]:
    """Trains on canvases of the seed; returns the loss of each step."""
    preset = PRESETS[run.preset]
    data = canvases.drawn("train", preset.train, preset.side, seed, across=across)
    batches = minibatches([data.images.to(run.device), data.labels.to(run.device)], preset.batch, preset.steps, seed)
    return fit(model, batches, loss, steps=preset.steps, learning_rate=rate * preset.rate, device=run.device)


if __name__ == "__main__":
    seed_everything(run.seeds[0])
    model = build(preset)
    losses = train(model, run, every_window, run.seeds[0])
    test = canvases.drawn("test", preset.test, preset.side, seed=0)
    with torch.inference_mode():
        answers = model(test.images.to(run.device)).argmax(1).cpu()  # (n, windows, windows)
    right = 100 * (answers == test.labels[:, None, None]).double().mean()
    run.show(
        "trained",
        f"{count_parameters(model):,} parameters, last loss {losses[-1]:.3f}; {right:.1f} % of all windows name the digit",
    )


# %%
def draw_answers(style: Style, test: Canvases, answers: Tensor) -> Figure:
    """Canvases (n, 1, S, S), and in each window what it says (n, rows, columns), bold where it is right."""
    figure, axes = panels(1, len(answers), width=5.4, height=2.1)
    for ax, image, label, said in zip(axes.flat, test.images, test.labels, answers, strict=True):
        windows.show(ax, image, range(0, image.shape[-1] + 1, DIGIT), f"a {int(label)}", "#8a93a0")
        for place, answer in enumerate(said.flatten().tolist()):
            row, column = divmod(place, len(said))
            look: Any = {"color": "#7CE38B", "weight": "bold"} if answer == label else {"color": "#FF9E80"}
            look["bbox"] = {"facecolor": "black", "edgecolor": "none", "pad": 1}
            ax.text(DIGIT * column, DIGIT * row + 0.2, str(answer), va="top", fontsize=9, **look)
    return figure


if __name__ == "__main__":
    corners = (test.cells == 0).all(1).nonzero()[:3, 0]  # in a corner, windows at every distance are seen
    shown = Canvases(test.images[corners], test.labels[corners], test.cells[corners])
    run.figure(
        "answers",
        partial(draw_answers, test=shown, answers=answers[corners]),
        caption="Test canvases with the digit in the first window, and what each window says (bold: right). The windows beside "
        "it know through the shift; those two windows away can only guess.",
        alt="Three canvases of windows, a digit in the upper left one of each. The windows next to it mostly name it, the "
        "farther ones do not.",
    )

# %% [markdown]
# ## Your own image
# The Swin-T that timm publishes: which class it sees, and which of the 7 x 7 tokens of its last map speak for it. The head is
# linear, so the score of the image is the mean of theirs. A test holds that the classes above compute the same.


# %%
def published(image: Any) -> weights.Heat:
    import timm

    network = timm.create_model("swin_tiny_patch4_window7_224.ms_in1k", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(network)
    pixels = timm.data.create_transform(**config)(image)[None]
    tokens = network.head.fc(network.forward_features(pixels))[0]  # (7, 7, K)
    probability, best = tokens.mean((0, 1)).softmax(-1).max(-1)
    name = timm.data.ImageNetInfo().index_to_description(int(best))
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    return pixels[0] * std + mean, tokens[..., best], f"{name} ({100 * probability:.0f} %)"


if __name__ == "__main__":
    weights.show_heat(run, "timm/swin_tiny_patch4_window7_224.ms_in1k", published, megabytes=113, otherwise="cat")
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - Maps are square and divided by the window; the published code pads others. No dropout and no stochastic depth.
# - Forbidden pairs get minus infinity where the published code adds -100: after the softmax both are zero.
# - The trained networks have one stage and no merging, on purpose. The paper's ablation takes the shift out of the whole
#   hierarchy, where merging still joins windows: a different question, with a smaller answer.
# - Windows of 2 x 2 tokens and digits stand in for 7 x 7 and ImageNet: this tests a mechanism, not published accuracies.
