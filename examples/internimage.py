# %% [markdown]
# # InternImage: what does a convolution gain when it may choose where to look?
#
# A 3 x 3 convolution reads a fixed grid with fixed weights. DCNv3, the operator of InternImage, predicts at every place
# where to read and how much each reading counts. Here is that operator, in a network small enough to train in seconds; the
# experiments set it against a plain convolution, attention, and itself without groups or without a look at the input.
#
# | symbol (arXiv:2211.05778) | here | meaning |
# |---|---|---|
# | $p_0$, $p_k$, $K$ | `centres`, `grid_of_nine` | place of the output; the nine steps of a 3 x 3 grid, in pixels |
# | $\Delta p_{gk}$ | `offsets` | learned offset of point $k$ in group $g$, (B, H, W, G, K, 2), rows and columns |
# | $m_{gk}$ | `factors` | learned factor, softmax over the $K$ points, (B, H, W, G, K) |
# | $\mathbf x_g$, $\mathbf w_g$ | `value`, `out` | channels of a group; the projection that all points share |
# | $G$ | `groups` | groups of channels, each with its own points |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from lab.data.deformed import deformed_digits
from lab.figures import Figure, Style, panels, show_image
from lab.metrics import accuracy
from lab.run import Run
from lab.training import fit, minibatches, seed_everything
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, gelu, grid_sample

CANVAS, STRIDE, CLASSES = 32, 4, 10  # pixels of an image; of a place of the map; K of the digits
SIDE = CANVAS // STRIDE  # of the maps
RATE = 1.6e-2  # learning rate: see claims/internimage.searches.json
SYNCHRONISATIONS_PER_STEP = 0  # digits lie on the device


class Preset(NamedTuple):
    """Digits to train with, to choose with and to test with, and the small set to train with; steps; sizes of the network."""

    digits: tuple[int, int, int] = (3000, 600, 600)
    few: int = 100
    steps: int = 300
    batch: int = 16
    width: int = 32
    groups: int = 4
    hidden: int = 113
    layers: int = 2
    rate: float = 1.0


PRESETS = {
    "smoke": Preset((32, 16, 32), few=16, steps=2),
    "quick": Preset(),
    "full": Preset((20_000, 1000, 3000), 500, 10_000, 64, 96, 6, 340, 6, rate=0.25),
}

# %% [markdown]
# ## The operator: nine points, each where it likes
# $$\mathbf y(p_0) = \sum_g \sum_k \mathbf w_g\, m_{gk}\, \mathbf x_g(p_0 + p_k + \Delta p_{gk})$$
# Offsets and factors come from a 3 x 3 depthwise convolution and a linear layer each, which start at zero: at first the
# operator is the mean of a 3 x 3 grid. Values between pixels are interpolated, so the gradient reaches the offsets (Eq. 2).
# Below, one bright place in a dark map, read with the fixed grid, and with all points moved one column to the right.


# %%
def centres(height: int, width: int) -> Tensor:
    """(H, W, 2): row and column of each pixel."""
    return torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).float()


def grid_of_nine() -> Tensor:
    """(9, 2): the steps of a 3 x 3 grid, rows and columns."""
    return torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2)).float()


def fixed_grid(height: int, width: int) -> Tensor:
    """(H, W, 1, 9, 2): the points of each pixel before they move, rows and columns in pixels."""
    return centres(height, width)[:, :, None, None] + grid_of_nine()


def aggregate(values: Tensor, offsets: Tensor, factors: Tensor) -> Tensor:
    """The weighted sum of the values at the points, zero outside of the map.

    values (B, H, W, C), offsets (B, H, W, G, 9, 2) rows and columns in pixels, factors (B, H, W, G, 9) -> (B, H, W, C).
    """
    batch, height, width, groups = factors.shape[:4]
    with offsets.device:
        points = fixed_grid(height, width) + offsets
    row, column = points.unbind(-1)
    grid = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], -1)  # from -1 to 1, columns first
    grid = grid.permute(0, 3, 1, 2, 4, 5).reshape(batch * groups, height, width * 9, 2)
    maps = values.float().permute(0, 3, 1, 2).reshape(batch * groups, -1, height, width)  # (B G, C / G, H, W)
    read = grid_sample(maps, grid, align_corners=False).unflatten(3, (width, 9))  # (B G, C / G, H, W, 9)
    share = factors.permute(0, 3, 1, 2, 4).flatten(0, 1)[:, None]  # (B, H, W, G, 9) -> (B G, 1, H, W, 9)
    return (read * share).sum(-1).view(batch, -1, height, width).permute(0, 2, 3, 1)


class DCNv3(nn.Module):
    """Deformable convolution, third version, for maps (B, H, W, C) with points of their own for each of G groups."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.offset, self.factor = nn.Linear(width, groups * 9 * 2), nn.Linear(width, groups * 9)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        for each in (*self.offset.parameters(), *self.factor.parameters()):
            nn.init.zeros_(each)

    def local(self, x: Tensor) -> Tensor:
        """What offsets and factors are predicted from, (B, H, W, C)."""
        return gelu(self.norm(self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets (B, H, W, G, 9, 2) in pixels, and factors (B, H, W, G, 9), which sum to one."""
        local = self.local(x)
        offsets = self.offset(local).float().unflatten(3, (self.groups, 9, 2))
        return offsets, self.factor(local).float().unflatten(3, (self.groups, 9)).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(aggregate(self.value(x), *self.predict(x)))


if __name__ == "__main__":
    run = Run.start("internimage", pretrained=False)
    x = torch.zeros(1, 5, 5, 1)
    x[0, 2, 3] = 9.0  # one bright place, right of the middle
    still, even = torch.zeros(1, 5, 5, 1, 9, 2), torch.full((1, 5, 5, 1, 9), 1 / 9)
    moved = still.clone()
    moved[..., 1] = 1.0  # all points one column to the right
    rows = [{"points": name, "middle of the map": aggregate(x, each, even)[0, 2, 2].item(),
             "left of it": aggregate(x, each, even)[0, 2, 1].item()}
            for name, each in (("a fixed 3 x 3 grid", still), ("one column to the right", moved))]  # fmt: skip
    run.show("points_move", rows)

# %% [markdown]
# ## A Transformer's block around it
# Norm, operator, shortcut; norm, feed-forward network, shortcut. The experiments put other operators in its place. In front of
# the blocks a stem of stride four makes a map of the image; behind them stand a mean and a linear classifier.


# %%
class Block(nn.Module):
    """Operator and feed-forward network, each behind a norm and with a shortcut, for maps (B, H, W, C)."""

    def __init__(self, operator: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.operator = operator
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.operator(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class Network(nn.Module):
    """Images (B, 1, H, W) -> class scores (B, K)."""

    def __init__(self, blocks: list[Block], width: int) -> None:
        super().__init__()
        halves = [nn.Conv2d(1, width // 2, 3, 2, 1), nn.BatchNorm2d(width // 2), nn.GELU()]
        self.stem = nn.Sequential(*halves, nn.Conv2d(width // 2, width, 3, 2, 1), nn.BatchNorm2d(width))
        self.place = nn.Parameter(0.02 * torch.randn(SIDE, SIDE, width))
        self.blocks, self.norm, self.head = nn.ModuleList(blocks), nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The map (B, H / 4, W / 4, C) that goes into each block, and what comes out of the last."""
        maps = [self.stem(images).permute(0, 2, 3, 1) + self.place]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.maps(images)[-1]).mean((1, 2)))


def build(preset: Preset) -> Network:
    """The untrained network with DCNv3."""
    blocks = [Block(DCNv3(preset.width, preset.groups), preset.width, preset.hidden) for _ in range(preset.layers)]
    return Network(blocks, preset.width)


if __name__ == "__main__":
    preset = PRESETS[run.preset]
    seed_everything(run.seeds[0])
    model = build(preset)
    x = model.maps(torch.rand(2, 1, CANVAS, CANVAS))[0]
    operator: Any = model.blocks[0].operator
    shapes = zip(("map", "offsets", "factors"), (x, *operator.predict(x)), strict=True)
    run.show("shapes", [{"of two images": name, "shape": str(tuple(each.shape))} for name, each in shapes])

# %% [markdown]
# ## Train it on deformed digits
# Digits of several sizes, turned, sheared and warped, anywhere on the canvas: no fixed grid fits them all.


# %%
def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(model(images).float(), labels)


def train(model: nn.Module, run: Run, count: int, seed: int, rate: float) -> None:
    """On the first `count` digits of a seed; with one seed, all models see the same in the same order."""
    preset = PRESETS[run.preset]
    data = deformed_digits("train", preset.digits[0], seed).to(run.device)
    batches = minibatches((data.images[:count], data.labels[:count]), preset.batch, preset.steps, seed)
    bar = partial(run.progress, what="training")
    fit(model, batches, loss_of, steps=preset.steps, learning_rate=preset.rate * rate, device=run.device, progress=bar)


@torch.inference_mode()
def percent_right(model: nn.Module, data: Any) -> float:
    device = next(model.parameters()).device
    return 100 * accuracy(torch.cat([model(part.to(device)).cpu() for part in data.images.split(50)]), data.labels)


def draw_digits(style: Style, images: Tensor) -> Figure:
    figure, axes = panels(2, 5, width=5.4, height=2.4)
    for ax, image in zip(axes.flat, images, strict=False):
        show_image(ax, image)
    return figure


if __name__ == "__main__":
    test = deformed_digits("test", preset.digits[2], 0)
    train(model, run, preset.digits[0], run.seeds[0], RATE)
    right = f"{percent_right(model, test):.0f} %"
    run.show("accuracy", f"accuracy on {len(test)} test digits: {right}, chance: {100 // CLASSES} %")
    run.figure(
        "digits",
        partial(draw_digits, images=test.images),
        caption="Test digits: real ones, at several sizes, turned, sheared, warped and shifted.",
        alt="Ten small images of handwritten digits, each with another size, slant and distortion.",
    )

# %% [markdown]
# ## Where it looks
# The points of the last layer for one place on a digit. The same operator, with the same weights, reads elsewhere in each image.


# %%
@torch.no_grad()
def points_of(model: Any, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of each layer the points (B, H, W, G, 9, 2) in pixels of the map, and factors (B, H, W, G, 9); on the CPU."""
    layers = zip(model.blocks, model.maps(images.to(model.place.device)), strict=False)
    found = [block.operator.predict(block.norms[0](x)) for block, x in layers]
    return [(fixed_grid(SIDE, SIDE) + offsets.cpu(), factors.cpu()) for offsets, factors in found]


def draw_points(style: Style, images: Tensor, points: Tensor, factors: Tensor) -> Figure:
    ink = avg_pool2d(images, STRIDE)[:, 0].flatten(1).argmax(1)  # (B,), the place with the most ink
    figure, axes = panels(2, 2, width=5.4, height=5.4)
    for ax, image, seen, weight, place in zip(axes.flat, images, points, factors, ink.tolist(), strict=True):
        show_image(ax, image)
        row, column = divmod(place, SIDE)
        at = (seen[row, column] + 0.5) * STRIDE - 0.5  # pixels of the map -> pixels of the image
        for group, (where, size) in enumerate(zip(at, 30 + 240 * weight[row, column], strict=True)):
            colour = style.cycle[group % len(style.cycle)]
            ax.scatter(
                *where.flip(1).T.numpy(), s=size.numpy(), color=colour, alpha=0.85, edgecolors="white", linewidths=0.6
            )
        for colour, width in (("black", 5), ("white", 2)):  # seen on ink and on paper
            ax.plot(
                (column + 0.5) * STRIDE - 0.5, (row + 0.5) * STRIDE - 0.5, "+", color=colour, markersize=16, mew=width
            )
        ax.set(xlim=(-0.5, CANVAS - 0.5), ylim=(CANVAS - 0.5, -0.5))
    return figure


if __name__ == "__main__":
    points, factors = points_of(model, test.images[:4])[-1]
    run.figure(
        "points",
        partial(draw_points, images=test.images[:4], points=points, factors=factors),
        caption="Where the last layer reads for the place marked by a cross: a colour for each group, larger dots for larger "
        "factors. A 3 x 3 convolution would read one fixed grid around the cross.",
        alt="Four digits with dots in several colours around a marked place; they lie differently in each image.",
    )
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - Two blocks on one scale, eight places wide; the paper has four stages and thirty blocks and more.
# - Positions are learned and added behind the stem, so that attention, its rival here, has them; the paper has none.
# - Points are read by `grid_sample`, not by the authors' CUDA operator, which no library carries: so no published weights are
#   loaded, and the cell "Your own image" is left out.
# - What holds here, after seconds on digits of 32 px, explains a mechanism; it says nothing about ImageNet.
