# %% [markdown]
# # InternImage: what does a convolution gain when it may choose where to look?
#
# A 3 x 3 convolution reads a fixed grid with fixed weights. DCNv3, the operator of InternImage, predicts at every place
# where to read and how much each reading counts. The same small network with different operators names deformed digits:
# DCNv3, plain convolution, and attention. Then the price: time at equal arithmetic.
#
# | symbol (card, arXiv:2211.05778) | here | meaning |
# |---|---|---|
# | $p_0$, $p_k$, $K$ | `centres`, `GRID` | place of the output; the nine steps of a 3 x 3 grid, in pixels |
# | $\Delta p_{gk}$ | `offsets` | learned offset of point $k$ in group $g$, (B, H, W, G, K, 2), rows and columns |
# | $m_{gk}$ | `factors` | learned factor, softmax over the $K$ points, (B, H, W, G, K) |
# | $\mathbf x_g$, $\mathbf w_g$ | `value`, `out` | channels of a group; the projection that all points share |
# | $G$ | `groups` | groups of channels, each with its own points |

# %%
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from lab.data import SPLITS, Split
from lab.data.digits import digits
from lab.figures import Style, panels, seed_bars, seed_lines, show_image
from lab.metrics import accuracy, timed
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d

CANVAS, STRIDE, CLASSES = 32, 4, 10  # pixels; of the stem; K of the digits
SIDE = CANVAS // STRIDE  # of the feature maps
GRID = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2)).float()  # (9, 2): p_k, rows and columns
TIMED = (16, 32, 64)  # sides of maps
LINEAR_SIDES = (32, 64)

# %% [markdown]
# ## The operator
# $$\mathbf y(p_0) = \sum_g \sum_k \mathbf w_g\, m_{gk}\, \mathbf x_g(p_0 + p_k + \Delta p_{gk})$$
# Offsets and factors come from a 3 x 3 depthwise convolution and a linear layer each, which start at zero: at first the
# operator is the mean of a 3 x 3 grid. Values between pixels are interpolated, so the gradient reaches the offsets.


# %%
class DCNv3(nn.Module):
    """Deformable convolution, third version (Eq. 2 of arXiv:2211.05778), for maps (B, H, W, C).

    Args:
        width: C.
        groups: G, each with its own offsets and factors.
        softmax: whether the factors of a group sum to one; without it they are unbounded, and start at 1 / 9.
    """

    def __init__(self, width: int, groups: int, softmax: bool = True) -> None:
        super().__init__()
        self.groups, self.softmax = groups, softmax
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.offset, self.factor = nn.Linear(width, groups * 9 * 2), nn.Linear(width, groups * 9)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        for layer in (self.offset, self.factor):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, 0.0 if softmax or layer is self.offset else 1 / 9)
        self.frozen: tuple[Tensor, Tensor] | None = None  # offsets and factors that stand for the predicted ones

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets (B, H, W, G, 9, 2) in pixels, and factors (B, H, W, G, 9)."""
        local = functional.gelu(self.norm(self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        offsets: Tensor = self.offset(local).view(*x.shape[:3], self.groups, 9, 2)
        factors: Tensor = self.factor(local).view(*x.shape[:3], self.groups, 9)
        factors = factors.softmax(-1) if self.softmax else factors
        if self.frozen is not None:
            return self.frozen[0].expand_as(offsets), self.frozen[1].expand_as(factors)
        return offsets, factors

    def forward(self, x: Tensor) -> Tensor:
        offsets, factors = self.predict(x)
        mixed = aggregate(self.value(x), offsets, factors)
        result: Tensor = self.out(mixed)
        return result


def centres(height: int, width: int) -> Tensor:
    """(H, W, 2): row and column of each pixel."""
    return torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).float()


def aggregate(values: Tensor, offsets: Tensor, factors: Tensor) -> Tensor:
    """The weighted sum of the values at the points, zero outside of the map.

    Args:
        values: (B, H, W, C).
        offsets: (B, H, W, G, 9, 2), rows and columns in pixels.
        factors: (B, H, W, G, 9).

    Returns:
        (B, H, W, C).
    """
    batch, height, width, groups = factors.shape[:4]
    points = (centres(height, width)[:, :, None, None] + GRID).to(offsets.device) + offsets
    size = torch.tensor([height, width], device=offsets.device)
    grid = ((2 * points + 1) / size - 1).flip(-1)  # pixels -> [-1, 1], columns first
    grid = grid.permute(0, 3, 1, 2, 4, 5).reshape(batch * groups, height, width * 9, 2)
    maps = values.permute(0, 3, 1, 2).reshape(batch * groups, -1, height, width)  # (B, H, W, C) -> (B G, C / G, H, W)
    read = functional.grid_sample(maps, grid, align_corners=False).view(*maps.shape, 9)
    share = factors.permute(0, 3, 1, 2, 4).flatten(0, 1)[:, None]  # (B, H, W, G, 9) -> (B G, 1, H, W, 9)
    mixed: Tensor = (read * share).sum(-1).view(batch, -1, height, width)  # (B G, C / G, H, W) -> (B, C, H, W)
    return mixed.permute(0, 2, 3, 1)


def aggregate_torchvision(values: Tensor, offsets: Tensor, factors: Tensor) -> Tensor:
    """The same with torchvision's operator, whose kernel is all ones for each channel."""
    channels = values.shape[-1]
    moved = offsets.permute(0, 3, 4, 5, 1, 2).flatten(1, 3)  # (B, H, W, G, 9, 2) -> (B, G 9 2, H, W)
    mask = factors.permute(0, 3, 4, 1, 2).flatten(1, 2)  # (B, H, W, G, 9) -> (B, G 9, H, W)
    ones = torch.ones(channels, 1, 3, 3, device=values.device)
    mixed: Tensor = deform_conv2d(values.permute(0, 3, 1, 2).contiguous(), moved, ones, padding=1, mask=mask)
    return mixed.permute(0, 2, 3, 1)


# %% [markdown]
# ## One network, several operators
# The block is that of a Transformer; only the operator differs. The plain convolution mixes channels and places at once
# and needs some more arithmetic than DCNv3 at this width, attention more still.


# %%
class Convolution(nn.Module):
    """A plain 3 x 3 convolution of maps (B, H, W, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return mixed


class Attention(nn.Module):
    """Multi-head self-attention between all places of maps (B, H, W, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, C)
        result: Tensor = self.out(mixed).view_as(x)
        return result


def operator(name: str, width: int, groups: int) -> nn.Module:
    """The operator of an arm of the experiments."""
    makers = {
        "dcn": lambda: DCNv3(width, groups),
        "one_group": lambda: DCNv3(width, 1),
        "convolution": lambda: Convolution(width),
        "attention": lambda: Attention(width, groups),
    }
    made: nn.Module = makers[name]()  # type: ignore[no-untyped-call]
    return made


class Block(nn.Module):
    """Operator and feed-forward network, each behind a norm and with a shortcut."""

    def __init__(self, name: str, width: int, groups: int, ratio: int = 4) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.operator = operator(name, width, groups)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.operator(self.norms[0](x))
        result: Tensor = x + self.mlp(self.norms[1](x))
        return result


class Network(nn.Module):
    """Stem of stride four, learned positions, blocks, mean, and a linear classifier: (B, 1, H, W) -> (B, 10)."""

    def __init__(self, name: str, preset: Preset) -> None:
        super().__init__()
        width = preset.width
        halves = [nn.Conv2d(1, width // 2, 3, 2, 1), nn.BatchNorm2d(width // 2), nn.GELU()]
        self.stem = nn.Sequential(*halves, nn.Conv2d(width // 2, width, 3, 2, 1), nn.BatchNorm2d(width))
        self.place = nn.Parameter(0.02 * torch.randn(SIDE, SIDE, width))
        self.blocks = nn.ModuleList(Block(name, width, preset.groups, 2) for _ in range(preset.layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The map (B, H / 4, W / 4, C) that goes into each block, and what comes out of the last."""
        maps = [self.stem(images).permute(0, 2, 3, 1) + self.place]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.norm(self.maps(images)[-1]).mean((1, 2)))
        return scores


@dataclass(frozen=True)
class Preset:
    """Sizes of a run: digits of the three splits, small training set, network, and how often a time is taken."""

    counts: tuple[int, int, int] = (3000, 200, 600)
    few: int = 100
    steps: int = 200
    batch: int = 16
    width: int = 32
    groups: int = 4
    layers: int = 3
    learning_rate: float = 3e-3
    repeats: int = 4


PRESETS = {
    "smoke": Preset(counts=(32, 16, 32), few=16, steps=2, repeats=1),
    "quick": Preset(),
    "full": Preset(counts=(20_000, 1000, 3000), few=500, steps=10_000, batch=64, width=96, groups=6, layers=6),
}

# %% [markdown]
# ## Deformed digits
# Digits of several sizes, turned, sheared and warped, anywhere on the canvas: no fixed grid fits them all.


# %%
@dataclass(frozen=True)
class Images:
    """images (N, 1, H, W) in [0, 1], labels (N,)."""

    images: Tensor
    labels: Tensor


@lru_cache(maxsize=4)
def deformed(split: Split, count: int, seed: int) -> Images:
    """`count` digits of a split, each with a scale, angle, shear, place and smooth warp of its own."""
    rng = np.random.default_rng([seed if split == "train" else 10_000, SPLITS.index(split)])
    source = digits(split, CANVAS)
    chosen = torch.from_numpy(rng.integers(len(source), size=count))
    angle, shear, scale = rng.uniform(-0.4, 0.4, count), rng.uniform(-0.3, 0.3, count), rng.uniform(1.0, 1.7, count)
    stretch = scale * rng.uniform(0.8, 1.25, count)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.stack([[scale * cos, -scale * sin], [stretch * (sin + shear * cos), stretch * (cos - shear * sin)]])
    shift = rng.uniform(-1, 1, (2, 1, count)) * (scale - 1) * 0.4
    affine = torch.from_numpy(np.concatenate([matrix, shift], 1)).permute(2, 0, 1).float()  # (N, 2, 3)
    grid = functional.affine_grid(affine, [count, 1, CANVAS, CANVAS], align_corners=False)
    coarse = torch.from_numpy(rng.normal(0, 0.08, (count, 2, 4, 4))).float()
    warp = functional.interpolate(coarse, CANVAS, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    images = functional.grid_sample(source.images[chosen], grid + warp, align_corners=False)
    noise = torch.from_numpy(rng.normal(0, 0.05, images.shape)).float()
    return Images((images + noise).clamp(0, 1), source.labels[chosen])


def draw_digits(style: Style, data: Images) -> Figure:
    figure, axes = panels(2, 8, height=2.0)
    for ax, image in zip(axes.flat, data.images, strict=False):
        show_image(ax, image)
    return figure


def show_digits(run: Run, data: Images) -> None:
    run.figure(
        "digits",
        partial(draw_digits, data=data),
        caption="Test digits: real ones, at several sizes, turned, sheared, warped and shifted.",
        alt="Sixteen small images of handwritten digits, each with another size, slant and distortion.",
    )


# %%
@dataclass(frozen=True)
class Trained:
    """A network and its accuracy on the test digits."""

    model: Network
    test: float


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """Scores (N, 10), on the CPU."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return torch.cat([model(part.to(device)).cpu() for part in torch.split(images, 100)])


def train(name: str, preset: Preset, seed: int, device: torch.device, count: int, checked: Split = "test") -> Trained:
    """Trains an arm on the first `count` digits of a seed; with one seed, all arms see the same in the same order."""
    data, test = (deformed(split, preset.counts[SPLITS.index(split)], seed) for split in ("train", checked))

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(model(images), labels)

    seed_everything(seed)
    model = Network(name, preset)
    batches = minibatches((data.images[:count], data.labels[:count]), preset.batch, preset.steps, seed)
    fit(model, batches, loss, steps=preset.steps, learning_rate=preset.learning_rate, device=device)
    return Trained(model, accuracy(predictions(model, test.images), test.labels))


# %% [markdown]
# ## Where it looks
# Points of the last layer of a trained network, for a few places: with the input, the points move. How many of the
# places on a digit look at the digit, compared with the fixed grid? And what is lost when each place gets the mean
# offsets and factors of all images, so that they no longer depend on the input?


# %%
def operators(model: Network) -> list[DCNv3]:
    """The operators of the blocks."""
    return [block.operator for block in model.blocks]  # type: ignore[misc]


def points_of(model: Network, images: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Points (B, H, W, G, 9, 2) in pixels of the map, and factors (B, H, W, G, 9), of a layer; on the CPU."""
    device = next(model.parameters()).device
    with torch.no_grad():
        x = model.blocks[layer].norms[0](model.maps(images.to(device))[layer])  # type: ignore[index, operator]
        offsets, factors = operators(model)[layer].predict(x)
    return (centres(SIDE, SIDE)[:, :, None, None] + GRID + offsets.cpu()), factors.cpu()


def on_object(points: Tensor, images: Tensor) -> float:
    """Share of the points of places on the digit that lie on the digit; both are pixels above a third, by the image."""
    ink = functional.avg_pool2d(images, STRIDE) > 1 / 3  # (B, 1, SIDE, SIDE)
    grid = ((2 * points + 1) / SIDE - 1).flip(-1).flatten(1, 4)[:, :, None]  # (B, places x points, 1, 2)
    hit = functional.grid_sample(ink.float(), grid, mode="nearest", align_corners=False)
    hit = hit.view(len(images), SIDE, SIDE, -1).mean(-1)  # (B, SIDE, SIDE), mean over groups and points
    return float(hit[ink[:, 0]].mean())


def frozen_accuracy(model: Network, data: Images) -> float:
    """Accuracy when each place has the offsets and factors that it has on average over the images."""
    device = next(model.parameters()).device
    for layer, each in enumerate(operators(model)):
        points, factors = points_of(model, data.images, layer)
        offsets = points - centres(SIDE, SIDE)[:, :, None, None] - GRID
        each.frozen = (offsets.mean(0, keepdim=True).to(device), factors.mean(0, keepdim=True).to(device))
    result = accuracy(predictions(model, data.images), data.labels)
    for each in operators(model):
        each.frozen = None
    return result


def draw_points(style: Style, model: Network, images: Tensor) -> Figure:
    """Four images, each with the points of one place on the digit, in all groups of the last layer."""
    points, factors = points_of(model, images, len(model.blocks) - 1)
    ink = functional.avg_pool2d(images, STRIDE)[:, 0].flatten(1).argmax(1)  # (B,), the darkest place
    figure, (axes,) = panels(1, len(images), height=2.1)
    for ax, image, seen, weight, place in zip(axes, images, points, factors, ink.tolist(), strict=True):
        show_image(ax, image)
        row, column = divmod(place, SIDE)
        at = (seen[row, column] + 0.5) * STRIDE - 0.5  # pixels of the map -> pixels of the image
        for group in range(at.shape[0]):
            size = 20 + 140 * weight[row, column, group].numpy()
            ax.scatter(at[group, :, 1].numpy(), at[group, :, 0].numpy(), s=size, color=style.cycle[group % 6], alpha=0.8,
                       edgecolors="white", linewidths=0.5, clip_on=True)  # fmt: skip
        ax.plot((column + 0.5) * STRIDE - 0.5, (row + 0.5) * STRIDE - 0.5, "+", color="white", markersize=12)
        ax.set(xlim=(-0.5, CANVAS - 0.5), ylim=(CANVAS - 0.5, -0.5))
    return figure


def look(run: Run, preset: Preset, networks: Networks, data: Images) -> None:
    trained = networks["dcn", preset.counts[0]]
    experiment = run.experiment(
        "points",
        question="Do the points depend on the input, and do they fall on the object?",
        data=f"{len(data.labels)} deformed test digits",
        parameters=count_parameters(trained[0].model),
        steps=preset.steps,
    )
    fixed = on_object(
        (centres(SIDE, SIDE)[:, :, None, None] + GRID).expand(len(data.images), -1, -1, -1, -1, -1), data.images
    )
    shares, moves, lost = [], [], []
    for each in trained:
        seen = [points_of(each.model, data.images, layer)[0] for layer in range(preset.layers)]
        shares.append(float(np.mean([on_object(points, data.images) for points in seen])))
        moves.append(float(np.mean([points.std(0).mean() for points in seen])) * STRIDE)
        lost.append(each.test - frozen_accuracy(each.model, data))
    experiment.result(
        "points_vary", moves, unit="px", meaning="spread of a point over images, mean of points and layers"
    )
    experiment.result("lost_when_frozen", lost, unit="", meaning="accuracy lost with mean offsets and factors")
    experiment.result("on_object", shares, unit="", meaning="points of places on the digit that lie on the digit")
    gain = [share - fixed for share in shares]
    experiment.result("on_object_gain", gain, unit="", meaning="the same, minus that of the fixed 3 x 3 grid")
    experiment.figure(
        "points",
        partial(draw_points, model=trained[0].model, images=data.images[:4]),
        caption="Where the last layer reads for the place marked by a cross, on four test digits: a colour for each group, "
        "and larger dots for larger factors. A 3 x 3 convolution would read one fixed grid around the cross.",
        alt="Four digits with scattered dots in several colours around a marked place; the dots lie differently in each "
        "image and differ in size.",
    )


# %% [markdown]
# ## Experiment: how far does a place see?
# The gradient of the last map at its centre, with respect to the map behind the stem. Its spread is the effective
# receptive field. The theoretical field of three plain 3 x 3 convolutions is seven places wide.


# %%
def receptive_field(model: Network, images: Tensor) -> Tensor:
    """(SIDE, SIDE): mean absolute gradient of the last map at its centre with respect to the first, sum 1."""
    device = next(model.parameters()).device
    start = model.maps(images.to(device))[0].detach().requires_grad_()
    x = start
    for block in model.blocks:
        x = block(x)
    sign = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(0)).to(device)
    gradient = torch.autograd.grad((x[:, SIDE // 2, SIDE // 2] @ sign).sum(), start)[0]
    field = gradient.abs().sum(-1).mean(0).cpu()
    return field / field.sum()


def spread(field: Tensor) -> float:
    """Root mean square distance from the centre, in pixels of the image."""
    distance = (centres(SIDE, SIDE) - SIDE // 2).square().sum(-1)
    return float((field * distance).sum().sqrt()) * STRIDE


NAMES = {
    "dcn": "DCNv3",
    "one_group": "one group",
    "convolution": "3 x 3",
    "attention": "attention",
}
Networks = Mapping[tuple[str, int], Sequence[Trained]]  # by arm and number of training digits, one per seed


def draw_fields(style: Style, fields: Mapping[str, Tensor]) -> Figure:
    figure, (axes,) = panels(1, len(fields), height=2.6)
    for ax, (name, field) in zip(axes, fields.items(), strict=True):
        show_image(ax, field.clamp(min=1e-5).log10(), NAMES[name], cmap=style.sequential, vmin=-4.5, vmax=-0.5)
    return figure


def compare_fields(run: Run, preset: Preset, networks: Networks, data: Images) -> None:
    experiment = run.experiment(
        "field",
        question="How large is the effective receptive field of the trained networks?",
        data=f"gradients on {min(64, len(data.labels))} deformed test digits",
        steps=preset.steps,
    )
    names = ("dcn", "convolution", "attention")
    fields = {
        name: [receptive_field(each.model, data.images[:64]) for each in networks[name, preset.counts[0]]]
        for name in names
    }
    spreads = {name: [spread(field) for field in fields[name]] for name in names}
    for name in names:
        experiment.result(
            f"field_{name}", spreads[name], unit="px", meaning=f"spread of the receptive field, {NAMES[name]}"
        )
    ratio = [a / b for a, b in zip(spreads["dcn"], spreads["convolution"], strict=True)]
    meaning = "spread of the receptive field, DCNv3 over plain convolution"
    experiment.result("field_dcn_over_convolution", ratio, unit="x", meaning=meaning)
    experiment.figure(
        "field",
        partial(draw_fields, fields={name: fields[name][0] for name in names}),
        caption=f"Effective receptive field of the centre after {preset.layers} layers (first seed, mean of test digits, "
        "logarithmic colours): where a change of the first map moves the last one.",
        alt="Three small heat maps of gradients, for DCNv3, plain 3 x 3 convolution and attention, around the "
        "centre of an eight by eight map.",
    )


# %% [markdown]
# ## Experiment: which operator names deformed digits best?
# Equal steps and data, three seeds. "One group" is DCNv3 whose channels all share one set of points. Then the same with
# few training digits.


# %%
def train_all(run: Run, preset: Preset) -> Networks:
    """Every arm on all digits, and three of them on few."""
    arms = [(name, preset.counts[0]) for name in NAMES]
    arms += [(name, preset.few) for name in ("dcn", "convolution", "attention")]
    networks: dict[tuple[str, int], list[Trained]] = {arm: [] for arm in arms}
    for seed, (name, count) in run.progress([(s, arm) for s in run.seeds for arm in arms], what="training"):
        networks[name, count].append(train(name, preset, seed, run.device, count))
    return networks


def draw_accuracy(style: Style, networks: Networks, preset: Preset) -> Figure:
    figure, axes = panels(1, 2, height=3.0, sharey=True, width_ratios=[4, 3])
    for ax, count in zip(axes[0], (preset.counts[0], preset.few), strict=True):
        names = [name for name in NAMES if (name, count) in networks]
        colours = [style.cycle[list(NAMES).index(name)] for name in names]
        seed_bars(ax, [NAMES[n] for n in names], [[t.test for t in networks[n, count]] for n in names], colours)
        ax.axhline(1 / CLASSES, linestyle="--", color=style.muted)
        ax.tick_params(axis="x", labelsize=8)
        ax.set(title=f"{count:,} training digits", ylim=(0, 1))
    axes[0, 0].set_ylabel("accuracy (dashed: chance)")
    return figure


def compare_operators(run: Run, preset: Preset, networks: Networks) -> None:
    whole, few = preset.counts[0], preset.few
    experiment = run.experiment(
        "operators",
        question="What do learned points add in the same network, with many and with few digits?",
        data=f"deformed digits, {CANVAS} x {CANVAS} px; {whole} or {few} to train, {preset.counts[2]} to test",
        parameters=count_parameters(networks["dcn", whole][0].model),
        steps=preset.steps,
    )
    for (name, count), trained in networks.items():
        key, said = ("", "") if count == whole else ("_few", f", {few} training digits")
        values = [each.test for each in trained]
        experiment.result(
            f"accuracy_{name}{key}", values, unit="", meaning=f"accuracy on test digits, {NAMES[name]}{said}"
        )
        if name != "dcn":
            gain = [a.test - b.test for a, b in zip(networks["dcn", count], trained, strict=True)]
            experiment.result(f"dcn_over_{name}{key}", gain, unit="", meaning=f"DCNv3 minus {NAMES[name]}{said}")
    experiment.figure(
        "operators",
        partial(draw_accuracy, networks=networks, preset=preset),
        caption=f"Accuracy on test digits after {preset.steps} steps, the same network with different operators; each dot is "
        "a seed. Left: all training digits. Right: few.",
        alt="Two bar charts of test accuracy with a dot per seed: DCNv3, DCNv3 with one group, plain "
        "convolution and attention on all training digits, and three of them on few.",
    )


# %% [markdown]
# ## Experiment: the price
# Arithmetic is counted, time is measured, for one operator on one map. The plain convolution here is as wide as it takes
# to do the same MACs. Reading a point between pixels counts five MACs per channel: four neighbours, one factor.


# %%
def macs(module: nn.Module, side: int, width: int) -> float:
    """Multiply-accumulates of an operator on a map (1, side, side, width)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, side, side, width))
    sampling = 5 * 9 * width * side**2 if isinstance(module, DCNv3) else 0  # torch does not count grid_sample
    return float(counter.get_total_flops()) / 2 + sampling


def equal_width(goal: float, side: int) -> int:
    """Width of the plain 3 x 3 convolution whose MACs come closest to a goal, from above."""
    return int(np.ceil((goal / (9 * side**2)) ** 0.5))


def times(preset: Preset, device: torch.device, seed: int) -> dict[str, list[float]]:
    """Median milliseconds for four maps of each of the sides `TIMED`."""
    seed_everything(seed)
    found: dict[str, list[float]] = {"dcn": [], "convolution": []}
    dcn = DCNv3(64, 4).eval().to(device)
    nn.init.normal_(dcn.offset.weight, std=0.1)
    for side in TIMED:
        width = equal_width(macs(DCNv3(64, 4), side, 64), side)
        plain = Convolution(width).eval().to(device)
        for name, module, channels in (("dcn", dcn, 64), ("convolution", plain, width)):
            x = torch.randn(4, side, side, channels, device=device)
            with torch.inference_mode():
                found[name].append(timed(partial(module, x), preset.repeats, 1, device).median)
    return found


def draw_times(style: Style, measured: Sequence[Mapping[str, Sequence[float]]]) -> Figure:
    figure, ((ax,),) = panels(1, 1, height=2.8)
    pixels = [side**2 for side in TIMED]
    for name, label, marker in (("dcn", "DCNv3", "o"), ("convolution", "plain convolution, same MACs", "s")):
        seed_lines(ax, pixels, [each[name] for each in measured], label, marker=marker, markersize=4)
    ax.set(xscale="log", yscale="log", xlabel="places of the map", ylabel="ms")
    ax.set_xticks(pixels, [f"{side} x {side}" for side in TIMED])
    ax.minorticks_off()
    ax.legend()
    return figure


def published_tiny() -> nn.Module:
    """InternImage-T on the meta device: stem, stages of 4, 4, 18 and 4 blocks, and the classifier (Table 1)."""
    width, groups = 64, 4
    norm: list[nn.Module] = [nn.LayerNorm(width // 2), nn.LayerNorm(width)]
    layers: list[nn.Module] = [nn.Conv2d(3, width // 2, 3, 2, 1), nn.Conv2d(width // 2, width, 3, 2, 1), *norm]
    for stage, depth in enumerate((4, 4, 18, 4)):
        if stage:
            layers += [nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.LayerNorm(2 * width)]
            width, groups = 2 * width, 2 * groups
        layers += [*(Block("dcn", width, groups) for _ in range(depth)), nn.LayerNorm(width)]
    features = width * 3 // 2
    return nn.Sequential(
        *layers, nn.Conv2d(width, features, 1, bias=False), nn.BatchNorm2d(features), nn.Linear(features, 1000)
    )


def price(run: Run, preset: Preset) -> None:
    experiment = run.experiment(
        "price",
        question="What do chosen points cost at equal arithmetic, and how does the cost grow with the map?",
        data=f"four random maps of 64 channels, {TIMED[0]} to {TIMED[-1]} places wide",
    )
    measured = [times(preset, run.device, seed) for seed in run.seeds]
    ratios = [each["dcn"][-1] / each["convolution"][-1] for each in measured]
    meaning = f"time of DCNv3 over that of a plain convolution with the same MACs, {TIMED[-1]} x {TIMED[-1]} places"
    experiment.result("time_dcn_over_convolution", ratios, unit="x", meaning=meaning)
    small, large = LINEAR_SIDES
    for name, module in (("dcn", DCNv3(64, 4)), ("attention", Attention(64, 4))):
        power = np.log(macs(module, large, 64) / macs(module, small, 64)) / np.log((large / small) ** 2)
        meaning = f"power of the number of places that MACs grow with, {name}"
        experiment.result(f"macs_exponent_{name}", [float(power)], unit="", meaning=meaning, exact=True)
    with torch.device("meta"):
        parameters = count_parameters(published_tiny()) / 1e6
    experiment.result("parameters_tiny", [parameters], unit="M", meaning="parameters of InternImage-T", exact=True)
    seed_everything(0)
    values, offsets, factors = torch.randn(1, 9, 9, 8), torch.randn(1, 9, 9, 2, 9, 2), torch.rand(1, 9, 9, 2, 9)
    error = (aggregate(values, offsets, factors) - aggregate_torchvision(values, offsets, factors)).abs().max()
    meaning = "largest difference between this operator and torchvision's deform_conv2d"
    experiment.result("error_to_torchvision", [float(error)], unit="", meaning=meaning, exact=True)
    experiment.figure(
        "time",
        partial(draw_times, measured=measured),
        caption="Time of one operator on four maps, against the size of the map (mean and range of the seeds). Both do the "
        "same multiply-accumulates.",
        alt="Line chart with logarithmic axes: milliseconds against the size of the map for DCNv3 and for a plain "
        "convolution with the same arithmetic.",
    )


# %% [markdown]
# ## Unlike the paper
# - Three blocks on one scale, eight places wide; the paper has four stages and thirty blocks and more.
# - The feed-forward network is twice as wide as the block, not four times, except where InternImage-T is counted.
# - Positions are learned and added behind the stem, so that attention has them; the paper has none.
# - Sampling by `grid_sample`, not by the authors' CUDA operator; a test holds it against torchvision's `deform_conv2d`.
# - Times are of this implementation; the CUDA operator is faster, on the devices that it supports.


# %%
def main(argv: Sequence[str] | None = None) -> None:
    run = Run.start("internimage", argv=argv)
    if run.settings.weights == "pretrained":
        raise SystemExit("The published weights need the authors' CUDA operator; run with --weights random.")
    preset = PRESETS[run.preset]
    data = deformed("test", preset.counts[2], 0)
    show_digits(run, data)
    networks = train_all(run, preset)
    look(run, preset, networks, data)
    compare_fields(run, preset, networks, data)
    compare_operators(run, preset, networks)
    price(run, preset)
    run.finish()


if __name__ == "__main__":
    main()
