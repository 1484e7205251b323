# %% [markdown]
# # DINOv2: what does a network learn when its only teacher is its own average?
#
# A student predicts what its own moving average says about other crops of the same picture. A small vision transformer is
# trained so on digits without labels; its frozen features are judged by nearest neighbours, beside raw pixels, random weights
# and training with labels. Then parts of the recipe are taken away, one at a time. The published sizes are counted.
#
# | symbol (card) | here | meaning |
# |---|---|---|
# | $\theta_s$, $\theta_t$ | `student`, `teacher` | the same network with other weights |
# | $\lambda$ | `recipe.momentum` | part of the teacher that stays at each step |
# | $p_s$, $p_t$ | `log_p`, `target` | probabilities over prototypes of a view, (B, K) |
# | $c$ | `teacher.centre` | running mean of the teacher's scores, (K,) |
# | $\tau_s$, $\tau_t$ | `STUDENT_TEMPERATURE`, `recipe.temperature` | temperatures; the teacher's is the lower |
# | B, N, D, K | | batch, patches, width, prototypes (or classes) |

# %%
from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lab.data.digits import Digits, shifted_digits
from lab.figures import Style, panels, seed_bars, seed_lines, show_image
from lab.metrics import accuracy
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

CANVAS, PATCH, LARGE, SMALL = 20, 4, 16, 8  # sides in pixels: image, patch, large and small crop
STUDENT_TEMPERATURE = 0.1


@dataclass(frozen=True)
class Recipe:
    """What an arm does; the arms take one thing away each.

    Attributes:
        label: in figures.
        momentum: of the teacher.
        temperature: of the teacher; the student's own means no sharpening.
        centring: takes the running mean off the teacher's scores.
        small: small crops of each picture.
    """

    label: str
    momentum: float = 0.96
    temperature: float = 0.04
    centring: bool = True
    small: int = 2


RECIPES: Mapping[str, Recipe] = {
    "dino": Recipe("DINO"),
    "no_centring": Recipe("no\ncentring", centring=False),
    "no_sharpening": Recipe("no\nsharpening", temperature=STUDENT_TEMPERATURE),
    "no_momentum": Recipe("no\nmomentum", momentum=0.0),
    "no_small_crops": Recipe("no small\ncrops", small=0),
}
COLLAPSING = ("dino", "no_centring", "no_sharpening")
PARTS = ("dino", "no_momentum", "no_small_crops")


@dataclass(frozen=True)
class Preset:
    """Sizes of a run: steps of the optimiser, pictures in a step, D, layers, K, training images."""

    steps: int = 200
    batch: int = 32
    width: int = 48
    layers: int = 2
    prototypes: int = 64
    images: int = 3000
    learning_rate: float = 3e-3


PRESETS = {
    "smoke": Preset(steps=4, batch=4, width=16, layers=1, images=64),
    "quick": Preset(),
    "full": Preset(steps=10_000, batch=256, width=192, layers=6, prototypes=1024, images=20_000, learning_rate=1e-3),
}

# %% [markdown]
# ## Large and small crops
# The teacher sees two large crops, the student these and the small ones. Each crop has a size, a place and a brightness of
# its own. To say the same about a part as the teacher says about the whole, the student must know what the part belongs to.


# %%
def crops(images: Tensor, side: int, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Random squares of images (B, 1, H, H), each side a part in `scale` of H, resized: (B, 1, side, side)."""
    B = len(images)
    part = scale[0] + (scale[1] - scale[0]) * torch.rand(B, generator=generator)
    shift = (1 - part)[:, None] * (2 * torch.rand(B, 2, generator=generator) - 1)
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = part
    theta[:, :, 2] = shift
    grid = functional.affine_grid(theta.to(images.device), [B, 1, side, side], align_corners=False)
    bright = 0.6 + 0.4 * torch.rand(B, 1, 1, 1, generator=generator)
    noise = 0.05 * torch.randn(B, 1, side, side, generator=generator)
    cropped: Tensor = functional.grid_sample(images, grid, align_corners=False)
    return cropped * bright.to(images.device) + noise.to(images.device)


def views(images: Tensor, small: int, generator: torch.Generator) -> list[Tensor]:
    """Two large crops and then the small ones."""
    large = [crops(images, LARGE, (0.6, 1.0), generator) for _ in range(2)]
    return large + [crops(images, SMALL, (0.3, 0.6), generator) for _ in range(small)]


def draw_crops(style: Style, images: Tensor, seen: Sequence[Tensor]) -> Figure:
    figure, axes = panels(3, 5, height=4.4)
    for row, line in enumerate(axes):
        show_image(line[0], images[row].clamp(0, 1), None if row else "picture")
        for column, (ax, view) in enumerate(zip(line[1:], seen, strict=True)):
            title = ("large 1", "large 2", "small 1", "small 2")[column]
            show_image(ax, view[row].clamp(0, 1), None if row else title)
    figure.suptitle("teacher: large crops     student: large and small crops")
    return figure


def show_crops(run: Run) -> None:
    images = shifted_digits("test", 14, CANVAS, 0).images[:3]
    run.figure(
        "crops",
        partial(draw_crops, images=images, seen=views(images, 2, torch.Generator().manual_seed(0))),
        caption="Three pictures and the crops of one step. The teacher answers for the two large ones. The student has to "
        "give the same answer for every other crop, also where it sees only a piece of a stroke.",
        alt="Three rows: a handwritten digit, two large crops of it and two small crops that hold parts of strokes.",
    )


# %% [markdown]
# ## Network and teacher
# A ViT gives patch features, and their mean for the whole. A projection head maps the mean to scores over K prototypes; it is
# thrown away after training. The teacher is the average of the student:
# $$\theta_t \leftarrow \lambda\, \theta_t + (1 - \lambda)\, \theta_s$$


# %%
class ViT(nn.Module):
    """Small vision transformer whose positions stretch with the image."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(1, 24, 3, 2, 1), nn.GELU(), nn.Conv2d(24, width, 3, 2, 1))
        self.position = nn.Parameter(0.1 * torch.randn(1, width, LARGE // PATCH, LARGE // PATCH))
        block = partial(nn.TransformerEncoderLayer, width, 3 if width % 3 == 0 else 2, 2 * width, 0.0, "gelu")
        self.blocks = nn.ModuleList(block(batch_first=True, norm_first=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, H, W) -> features of the whole (B, D), the mean over patches, and patch features (B, N, D), row by row."""
        x = self.embed(images)
        x = x + functional.interpolate(self.position, x.shape[-2:], mode="bilinear", align_corners=False)
        tokens = x.flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, N, D)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return tokens.mean(1), tokens


class Student(nn.Module):
    """Backbone and projection head; `centre` is used by the teacher only."""

    centre: Tensor

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.backbone = ViT(preset.width, preset.layers)
        self.project = nn.Sequential(nn.Linear(preset.width, 96), nn.BatchNorm1d(96), nn.GELU(), nn.Linear(96, 32))
        self.prototypes = nn.Linear(32, preset.prototypes, bias=False)
        self.register_buffer("centre", torch.zeros(preset.prototypes))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) -> cosines with the prototypes (B, K)."""
        projected = functional.normalize(self.project(self.backbone(images)[0]), dim=-1)
        return functional.linear(projected, functional.normalize(self.prototypes.weight, dim=-1))


@torch.no_grad()
def follow(teacher: Student, student: nn.Module, momentum: float) -> None:
    """Moves the teacher towards the student."""
    for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        ours.lerp_(theirs, 1 - momentum)


@torch.no_grad()
def teach(teacher: Student, large: Sequence[Tensor], recipe: Recipe) -> list[Tensor]:
    """Probabilities (B, K) for each large crop: scores less the centre, by a low temperature; then moves the centre."""
    scores = [teacher(view) for view in large]
    centre = teacher.centre if recipe.centring else torch.zeros_like(teacher.centre)
    targets = [((each - centre) / recipe.temperature).softmax(-1) for each in scores]
    teacher.centre.lerp_(torch.cat(scores).mean(0), 0.1)
    return targets


# %% [markdown]
# ## The loss, and how it can be cheated
# $$\mathcal L_{DINO} = -\sum p_t \log p_s$$
# over all pairs of different crops. A constant answer satisfies it. Two entropies tell: that of the mean answer falls to zero
# when one prototype takes all, and that of each answer rises to $\log K$ when all are alike. Their difference is the
# information that an answer carries about its picture; 0 is collapse, of either kind.


# %%
def dino_loss(targets: Sequence[Tensor], scores: Sequence[Tensor]) -> Tensor:
    """Mean cross entropy of each target with the scores (B, K) of every other crop; the first crops are the targets' own."""
    terms = []
    for t, target in enumerate(targets):
        for s, score in enumerate(scores):
            if s != t:
                log_p = (score / STUDENT_TEMPERATURE).log_softmax(-1)
                terms.append(-(target * log_p).sum(-1).mean())
    return torch.stack(terms).mean()


def entropies(p: Tensor) -> tuple[float, float]:
    """Entropy of the mean of probabilities (n, K), and mean of their entropies, both over log K."""
    scale = math.log(p.shape[-1])
    mean = p.mean(0)
    return float(torch.special.entr(mean).sum() / scale), float(torch.special.entr(p).sum(-1).mean() / scale)


@dataclass(frozen=True)
class Trained:
    """A backbone, and for each measured step the entropies of the teacher's answers."""

    backbone: ViT
    curve: Sequence[tuple[int, float, float]] = ()


def batches_of(preset: Preset, seed: int) -> Any:
    data = shifted_digits("train", 14, CANVAS, seed, count=preset.images)
    return minibatches((data.images, data.labels), preset.batch, preset.steps, seed)


def distil(recipe: Recipe, preset: Preset, seed: int, device: torch.device) -> Trained:
    """Trains a student without labels; the teacher's backbone is what is kept."""
    seed_everything(seed)
    student = Student(preset).to(device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    generator, curve = torch.Generator().manual_seed(seed), list[tuple[int, float, float]]()
    check = shifted_digits("val", 14, CANVAS, seed).images.to(device)

    def loss(model: nn.Module, images: Tensor, _: Tensor) -> Tensor:
        follow(teacher, model, recipe.momentum)  # of the step before
        seen = views(images, recipe.small, generator)
        targets = teach(teacher, seen[:2], recipe)
        return dino_loss(targets, [model(view) for view in seen])

    def measure(step: int, _: nn.Module) -> None:
        centre = teacher.centre if recipe.centring else 0.0
        curve.append((step, *entropies(((teacher(check) - centre) / recipe.temperature).softmax(-1))))

    rate, every = preset.learning_rate, max(1, preset.steps // 10)
    learn = partial(fit, steps=preset.steps, learning_rate=rate, device=device)
    learn(student, batches_of(preset, seed), loss, every=every, callback=measure)
    return Trained(teacher.backbone, curve)


def supervise(preset: Preset, seed: int, device: torch.device) -> Trained:
    """The same backbone, images and steps, with labels, on one large crop of each picture."""
    seed_everything(seed)
    model = nn.ModuleDict({"backbone": ViT(preset.width, preset.layers), "head": nn.Linear(preset.width, 10)})
    generator = torch.Generator().manual_seed(seed)

    def loss(_: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        seen = crops(images, LARGE, (0.6, 1.0), generator)
        return functional.cross_entropy(model["head"](model["backbone"](seen)[0]), labels)

    rate = preset.learning_rate
    fit(model, batches_of(preset, seed), loss, steps=preset.steps, learning_rate=rate, device=device)
    backbone = model["backbone"]
    assert isinstance(backbone, ViT)
    return Trained(backbone)


def untrained(preset: Preset, seed: int, device: torch.device) -> Trained:
    seed_everything(seed)
    return Trained(ViT(preset.width, preset.layers).to(device).eval())


Backbones = Mapping[str, Sequence[Trained]]
NAMES = {name: recipe.label for name, recipe in RECIPES.items()} | {
    "random": "random\nweights",
    "labels": "with\nlabels",
}


def train_all(run: Run, preset: Preset) -> Backbones:
    trained: dict[str, list[Trained]] = {name: [] for name in NAMES}
    for seed in run.progress(run.seeds, what="training"):
        for name, recipe in RECIPES.items():
            trained[name].append(distil(recipe, preset, seed, run.device))
        trained["random"].append(untrained(preset, seed, run.device))
        trained["labels"].append(supervise(preset, seed, run.device))
    return trained


# %% [markdown]
# ## What frozen features know
# Class by the ten nearest neighbours among labelled training images. The same object again: each test picture is sought by
# another crop of it. The class of single patches by a linear layer on the patch features, the step towards segmentation. Raw
# pixels are the control that a picture of digits needs.


# %%
@torch.no_grad()
def features(backbone: ViT, images: Tensor) -> Tensor:
    """Features (n, D) of whole images."""
    return torch.cat([backbone(part.to(backbone.position.device))[0].cpu() for part in torch.split(images, 500)])


def nearest(bank: Tensor, labels: Tensor, queries: Tensor, k: int = 10) -> Tensor:
    """Class (n,) of queries (n, D) by a vote of the nearest of the bank (m, D), by cosine."""
    cosines = functional.normalize(queries, dim=-1) @ functional.normalize(bank, dim=-1).T
    votes = functional.one_hot(labels[cosines.topk(k).indices], 10).sum(1)  # (n, k) -> (n, K)
    return votes.argmax(-1)


def knn(backbone: ViT | None, seed: int) -> float:
    """Accuracy in %, of pixels where there is no backbone."""
    train, test = (shifted_digits(split, 14, CANVAS, seed) for split in ("train", "test"))
    bank, queries = (
        (each.images.flatten(1) if backbone is None else features(backbone, each.images)) for each in (train, test)
    )
    return 100 * accuracy(nearest(bank, train.labels, queries), test.labels)


def found_again(backbone: ViT | None, seed: int) -> float:
    """Part (%) of test pictures whose other large crop is nearest to their own."""
    images, generator = shifted_digits("test", 14, CANVAS, seed).images, torch.Generator().manual_seed(seed)
    first, second = (crops(images, LARGE, (0.6, 1.0), generator) for _ in range(2))
    a, b = (functional.normalize(x.flatten(1) if backbone is None else features(backbone, x)) for x in (first, second))
    return 100 * accuracy((a @ b.T).argmax(-1), torch.arange(len(images)))


@torch.no_grad()
def patches_of(backbone: ViT, data: Digits) -> tuple[Tensor, Tensor]:
    """Features (n, D) and digit classes (n,) of the patches with ink."""
    tokens = backbone(data.images.to(backbone.position.device))[1].cpu()  # (B, N, D)
    inked = functional.avg_pool2d(data.images, PATCH).flatten(1) > 0.1  # (B, N)
    return tokens[inked], data.labels[:, None].expand_as(inked)[inked]


def patch_accuracy(backbone: ViT, seed: int) -> float:
    """Accuracy (%) of a linear layer, fitted by ridge regression, on the patches with ink."""
    train, test = (patches_of(backbone, shifted_digits(s, 14, CANVAS, seed)) for s in ("train", "test"))
    x, y = (functional.pad(each[0], (0, 1), value=1.0).double() for each in (train, test))
    targets = functional.one_hot(train[1], 10).double()
    weights = torch.linalg.solve(x.T @ x + 1e-2 * len(x) * torch.eye(x.shape[1]).double(), x.T @ targets)
    return 100 * accuracy(y @ weights, test[1])


def draw_features(style: Style, scores: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    figure, axes = panels(1, 3, height=3.1)
    titles = {"knn": "class, by neighbours", "again": "the same picture", "patch": "class of a patch"}
    names = {"pixels": "raw\npixels", "random": "random", "dino": "DINO", "labels": "with\nlabels"}
    for ax, (kind, title) in zip(axes[0], titles.items(), strict=True):
        shown = [name for name in names if name in scores[kind]]
        seed_bars(ax, [names[name] for name in shown], [scores[kind][name] for name in shown])
        ax.set(title=title, ylim=(0, 100))
        ax.tick_params(axis="x", labelsize=7.5)
    axes[0, 0].set_ylabel("right (%)")
    return figure


def frozen_features(run: Run, preset: Preset, trained: Backbones) -> None:
    experiment = run.experiment(
        "frozen_features",
        question="What do features that were learned without labels know, beside pixels, random weights and labels?",
        data=f"Digits of 14 px on {CANVAS} px: {preset.images:,} pictures of 1,297 digits to train, 300 other digits to test",
        parameters=count_parameters(trained["dino"][0].backbone),
        steps=preset.steps,
    )
    some = {name: [each.backbone for each in trained[name]] for name in ("random", "dino", "labels")}
    measured = {"knn": knn, "again": found_again, "patch": patch_accuracy}
    meanings = {
        "knn": "class by nearest neighbours",
        "again": "same picture found",
        "patch": "class of a patch by a linear layer",
    }
    scores: dict[str, dict[str, list[float]]] = {kind: {} for kind in measured}
    for kind, measure in measured.items():
        for name, backbones in some.items():
            scores[kind][name] = [measure(each, seed) for each, seed in zip(backbones, run.seeds, strict=True)]
        if kind != "patch":
            scores[kind]["pixels"] = [(knn if kind == "knn" else found_again)(None, seed) for seed in run.seeds]
        for name, values in scores[kind].items():
            experiment.result(f"{kind}_{name}", values, unit="%", meaning=f"{meanings[kind]}, {name}")
        for other in scores[kind]:
            if other != "dino":
                gap = [a - b for a, b in zip(scores[kind]["dino"], scores[kind][other], strict=True)]
                meaning = f"{meanings[kind]}, DINO minus {other}"
                experiment.result(f"{kind}_gap_{other}", gap, unit="points", meaning=meaning)
    experiment.figure(
        "features",
        partial(draw_features, scores=scores),
        caption="Frozen features of whole pictures and of patches; dots are seeds. Without labels, against raw pixels, the "
        "same network with random weights, and the same network, images and steps with labels.",
        alt="Three groups of bars for raw pixels, random weights, DINO and labels: class by neighbours, finding the same "
        "picture, and class of single patches.",
    )


# %% [markdown]
# ## Principal components of patch features
# The first three components over all patches of a few test pictures, as red, green and blue. Features at every second pixel
# come from shifted copies of the picture, since one patch covers 4 pixels.


# %%
@torch.no_grad()
def dense(backbone: ViT, images: Tensor) -> Tensor:
    """Patch features of images (B, 1, H, H) at every second pixel: (B, H / 2, H / 2, D)."""
    B, side = len(images), images.shape[-1] // PATCH
    out = torch.zeros(B, 2 * side, 2 * side, backbone.position.shape[1])
    for dy in range(2):
        for dx in range(2):
            shifted = images.roll((-2 * dy, -2 * dx), (-2, -1)).to(backbone.position.device)
            out[:, dy::2, dx::2] = backbone(shifted)[1].cpu().view(B, side, side, -1)  # (B, N, D) -> (B, h, w, D)
    return out


def components(maps: Tensor) -> Tensor:
    """First three principal components of features (B, h, w, D), from 0 to 1: (B, h, w, 3)."""
    flat = maps.flatten(0, 2) - maps.flatten(0, 2).mean(0)
    values = flat @ torch.linalg.svd(flat, full_matrices=False).Vh[:3].T
    low, high = values.quantile(0.02, 0), values.quantile(0.98, 0)
    scaled: Tensor = ((values - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return scaled.view(*maps.shape[:3], 3)


def draw_components(style: Style, images: Tensor, rows: Mapping[str, Tensor]) -> Figure:
    figure, axes = panels(3, len(images), height=3.6)
    for row, (name, pictures) in enumerate({"picture": images, **rows}.items()):
        for ax, picture in zip(axes[row], pictures, strict=True):
            show_image(ax, picture)
        axes[row, 0].text(-0.1, 0.5, name, transform=axes[row, 0].transAxes, rotation=90, ha="right", va="center")
    return figure


def show_components(run: Run, trained: Backbones) -> None:
    images = shifted_digits("test", 14, CANVAS, run.seeds[0]).images[:7]
    rows = {
        label: components(dense(trained[name][0].backbone, images))
        for name, label in {"random": "random", "dino": "DINO"}.items()
    }
    run.figure(
        "components",
        partial(draw_components, images=images, rows=rows),
        caption="Principal components of patch features as colours, with random weights and after self-distillation, first "
        "seed. Patches of one colour have like features.",
        alt="Seven digits; below them coarse coloured maps of their patch features with random weights and with DINO.",
    )


# %% [markdown]
# ## What keeps it from collapsing
# The recipe, and the recipe without one of its parts.


# %%
def draw_collapse(style: Style, trained: Backbones, scores: Mapping[str, Sequence[float]]) -> Figure:
    figure, axes = panels(1, 3, height=3.3, width_ratios=[1, 1, 1.35])
    for name in COLLAPSING:
        steps = [point[0] for point in trained[name][0].curve]
        for ax, index in zip(axes[0, :2], (1, 2), strict=True):
            values = [[point[index] for point in each.curve] for each in trained[name]]
            seed_lines(ax, steps, values, RECIPES[name].label.replace("\n", " "))
    axes[0, 0].set(title="entropy of the mean", xlabel="step", ylabel="part of log K", ylim=(0, 1.03))
    axes[0, 1].set(title="mean of the entropies", xlabel="step", ylim=(0, 1.03))
    axes[0, 1].legend(loc="lower right", fontsize=7.5)
    seed_bars(axes[0, 2], [RECIPES[name].label for name in COLLAPSING], [scores[name] for name in COLLAPSING])
    axes[0, 2].set(title="kNN accuracy (%)", ylim=(0, 100))
    axes[0, 2].tick_params(axis="x", labelsize=8)
    return figure


def knn_of(run: Run, trained: Backbones, names: Sequence[str]) -> dict[str, list[float]]:
    """kNN accuracy (%) of each seed of these arms."""
    return {name: [knn(t.backbone, seed) for t, seed in zip(trained[name], run.seeds, strict=True)] for name in names}


FLOOR = ("kNN accuracy over that of random weights (points)", 0.0)
"""Below it a training counts as failed: its features are worth no more than none."""


def learned(run: Run, trained: Backbones) -> list[float]:
    """What the recipe adds to random weights, for each seed."""
    scores = knn_of(run, trained, ("dino", "random"))
    return [a - b for a, b in zip(scores["dino"], scores["random"], strict=True)]


def ablation(run: Run, preset: Preset, trained: Backbones) -> None:
    experiment = run.experiment(
        "ablation",
        question="Which parts of the recipe keep the answers from becoming constant, and the features good?",
        data="As above; entropies of the teacher's answers on 200 validation pictures",
        parameters=count_parameters(trained["dino"][0].backbone),
        steps=preset.steps,
        floor=FLOOR,
    )
    experiment.check_floor(learned(run, trained))
    scores = knn_of(run, trained, COLLAPSING)
    for name in COLLAPSING:
        label, last = RECIPES[name].label.replace("\n", " "), [each.curve[-1] for each in trained[name]]
        experiment.result(
            f"entropy_of_mean_{name}", [e[1] for e in last], unit="", meaning=f"{label}: of log K, at the end"
        )
        information, meaning = (
            [e[1] - e[2] for e in last],
            f"{label}: entropy of the mean minus mean of entropies, of log K",
        )
        experiment.result(f"information_{name}", information, unit="", meaning=meaning)
        if name != "dino":
            gap = [a - b for a, b in zip(scores["dino"], scores[name], strict=True)]
            experiment.result(
                f"knn_gap_{name}", gap, unit="points", meaning=f"kNN accuracy of the recipe minus {label}"
            )
    for name in ("no_centring", "no_sharpening"):
        pairs = zip(trained["dino"], trained[name], strict=True)
        lost = [(a.curve[-1][1] - a.curve[-1][2]) - (b.curve[-1][1] - b.curve[-1][2]) for a, b in pairs]
        meaning = (
            f"Information of an answer with the recipe minus {RECIPES[name].label.replace(chr(10), ' ')}, of log K"
        )
        experiment.result(f"information_gap_{name}", lost, unit="", meaning=meaning)
    experiment.figure(
        "collapse",
        partial(draw_collapse, trained=trained, scores=scores),
        caption="Left and middle: the teacher's answers over the steps. Where the entropy of the mean falls, few prototypes "
        "take all pictures; where the entropy of each answer rises to 1, answers say nothing. Bands span the seeds. Right: "
        "what the features are worth.",
        alt="Two charts of entropies over steps for the recipe, without centring and without sharpening, and bars of the "
        "kNN accuracy of the three arms.",
    )


# %% [markdown]
# ## Momentum and small crops
# A teacher without momentum is the student of the step before. Without small crops the student never has to answer for a
# piece. Steps and pictures stay the same, so the arm without small crops computes less.


# %%
def draw_parts(
    style: Style, scores: Mapping[str, Sequence[float]], information: Mapping[str, Sequence[float]]
) -> Figure:
    figure, axes = panels(1, 2, height=2.9)
    labels = [RECIPES[name].label for name in PARTS]
    seed_bars(axes[0, 0], labels, [scores[name] for name in PARTS])
    axes[0, 0].set(title="kNN accuracy (%)", ylim=(0, 100))
    seed_bars(axes[0, 1], labels, [information[name] for name in PARTS])
    axes[0, 1].set(title="information of an answer", ylabel="part of log K", ylim=(0, None))
    return figure


def parts(run: Run, preset: Preset, trained: Backbones) -> None:
    experiment = run.experiment(
        "parts",
        question="What do the momentum of the teacher and the small crops add?",
        data="As above",
        parameters=count_parameters(trained["dino"][0].backbone),
        steps=preset.steps,
        floor=FLOOR,
    )
    experiment.check_floor(learned(run, trained))
    scores = knn_of(run, trained, PARTS)
    ends = {name: [each.curve[-1] for each in trained[name]] for name in PARTS}
    information = {name: [whole - each for _, whole, each in last] for name, last in ends.items()}
    for name in PARTS[1:]:
        label = RECIPES[name].label.replace("\n", " ")
        gap = [a - b for a, b in zip(scores["dino"], scores[name], strict=True)]
        experiment.result(f"knn_{name}", scores[name], unit="%", meaning=f"kNN accuracy, {label}")
        experiment.result(f"knn_gap_{name}", gap, unit="points", meaning=f"kNN accuracy of the recipe minus {label}")
        meaning = f"{label}: entropy of the mean minus mean of entropies, of log K"
        experiment.result(f"information_{name}", information[name], unit="", meaning=meaning)
    experiment.figure(
        "parts",
        partial(draw_parts, scores=scores, information=information),
        caption="The recipe, with a teacher that is the student of the step before, and with large crops alone. Left: what the "
        "features are worth. Right: what an answer of the teacher says about its picture. Dots are seeds.",
        alt="Two groups of three bars, for the recipe, without momentum and without small crops: kNN accuracy, and information "
        "of an answer.",
    )


# %% [markdown]
# ## The published sizes
# Counted on the meta device, which knows shapes but holds no values: parameters, MACs by the side of a patch, and what a step
# of full fine-tuning holds in float32 besides activations (weights, gradients and AdamW's two moments) against weights alone.
# The training of ViT-g is counted by its published configuration: 625,000 steps of 1,024 pictures (the batch for which it
# gives its learning rate; a larger one costs more) with two crops of 224 px and eight of 98 px, of which the student skips
# 40 % by stochastic depth; the backward pass costs two forward ones. An A100 does 156 TMACs a second in half precision, if it
# is never kept waiting. Last, how well a mask of one value for each patch can follow a
# stroke.


# %%
SIZES: Mapping[str, tuple[int, int, int]] = {
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "g": (1536, 40, 24),
}
STROKES = (2, 4, 8, 14, 28, 56)  # widths in pixels


def dinov2(size: str, patch: int = 14) -> Any:
    """DINOv2 of `SIZES` on the meta device, without head; ViT-g has a gated MLP."""
    width, layers, heads = SIZES[size]
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": patch}
    with torch.device("meta"):
        return Dinov2Model(Dinov2Config(**shape, image_size=518, use_swiglu_ffn=size == "g")).requires_grad_(False)


def gmacs(model: nn.Module, side: int) -> float:
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, side, side, device="meta"))
    return float(counter.get_total_flops()) / 2e9


def with_registers(size: str, registers: int = 4) -> Any:
    """`dinov2` of a size with register tokens (arXiv:2309.16588)."""
    width, layers, heads = SIZES[size]
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": 14}
    config = Dinov2WithRegistersConfig(
        **shape, image_size=518, num_register_tokens=registers, use_swiglu_ffn=size == "g"
    )
    with torch.device("meta"):
        return Dinov2WithRegistersModel(config).requires_grad_(False)


STEPS, PICTURES, SKIPPED = 625_000, 1024, 0.4  # configs/train/vitg14.yaml and ssl_default_config.yaml
A100 = 156e12  # MACs a second, float16 with float32 sums


def training_hours(large: float, small: float) -> float:
    """Least A100 hours of the training, from GMACs of a large and of a small crop; heads are left out."""
    teacher, student = 2 * large, 2 * large + 8 * small
    picture = teacher + 3 * (1 - SKIPPED) * student
    return STEPS * PICTURES * picture * 1e9 / A100 / 3600


def stroke_ceiling(width: float, seed: int, patch: int = 14, count: int = 20) -> float:
    """IoU with rings of this width of the best masks that have one value for each patch, on 224 px."""
    rng, side = np.random.default_rng(seed), 224
    y, x = np.mgrid[:side, :side] + 0.5
    values = []
    for _ in range(count):
        (a, b), radius = rng.uniform(95, 129, 2), rng.uniform(60, 85)
        ring = torch.from_numpy(abs(np.hypot(x - a, y - b) - radius) < width / 2).float()
        part = functional.avg_pool2d(ring[None, None], patch).flatten().sort(descending=True).values
        covered = part.cumsum(0) * patch**2  # the best patches first: the best mask takes the first n
        taken = torch.arange(1, len(part) + 1) * patch**2
        values.append((covered / (taken + ring.sum() - covered)).max().item())
    return float(np.mean(values))


def draw_cost(style: Style, by_patch: Mapping[int, float], limits: Sequence[Sequence[float]]) -> Figure:
    figure, ((left, right),) = panels(1, 2, height=3.0)
    left.bar([f"{patch} px" for patch in by_patch], list(by_patch.values()), color=style.cycle[0])
    left.set(title="ViT-S, one image of 224 px", xlabel="side of a patch", ylabel="GMACs")
    left.grid(False, axis="x")
    seed_lines(right, range(len(STROKES)), limits, "best mask", marker="o")
    right.set_xticks(range(len(STROKES)), [str(each) for each in STROKES])
    right.axvline(STROKES.index(14), color=style.muted, linestyle=":")
    right.set(title="best mask of whole patches", xlabel="width of a stroke (px)", ylabel="IoU", ylim=(0, 1))
    return figure


def published(run: Run) -> None:
    experiment = run.experiment(
        "published",
        question="How large are the published sizes, and what does the side of a patch cost and allow?",
        data="DINOv2 without heads on the meta device; rings on 224 px for the masks",
    )
    parameters = {size: count_parameters(dinov2(size)) / 1e9 for size in SIZES}
    for size, value in parameters.items():
        experiment.result(f"parameters_{size}", [value], unit="G", meaning=f"Parameters of ViT-{size}", exact=True)
    memory, meaning = 16 * parameters["g"], "ViT-g: weights, gradients and moments of full fine-tuning in float32"
    experiment.result("finetuning_memory_g", [memory], unit="GB", meaning=meaning, exact=True)
    linear = [memory / (4 * parameters["g"] + 16 * 1536 * 1000 / 1e9)]
    meaning = "ViT-g: the same over that of a linear layer for 1,000 classes on the frozen network"
    experiment.result("finetuning_over_linear_memory", linear, unit="x", meaning=meaning, exact=True)
    by_patch = {patch: gmacs(dinov2("s", patch), 224) for patch in (16, 14, 8, 7)}
    ratio, meaning = [by_patch[8] / by_patch[16]], "ViT-S at 224 px: MACs with patches of 8 px over those with 16 px"
    experiment.result("macs_patch_8_over_16", ratio, unit="x", meaning=meaning, exact=True)
    giant = dinov2("g")
    large, small = (gmacs(giant, side) for side in (224, 98))
    ratio, meaning = (
        [gmacs(with_registers("g"), 224) / large],
        "ViT-g at 224 px: MACs with four registers over those without",
    )
    experiment.result("macs_registers_over_plain", ratio, unit="x", meaning=meaning, exact=True)
    hours, meaning = (
        [training_hours(large, small)],
        "ViT-g: hours of its training on one A100 at the peak of its arithmetic",
    )
    experiment.result("training_a100_hours", hours, unit="h", meaning=meaning, exact=True)
    limits = [[stroke_ceiling(width, seed) for width in STROKES] for seed in run.seeds]
    for width in (4, 56):
        values, meaning = (
            [each[STROKES.index(width)] for each in limits],
            f"Best IoU of whole patches with strokes of {width} px",
        )
        experiment.result(f"ceiling_iou_{width}px", values, unit="", meaning=meaning)
    experiment.figure(
        "patches",
        partial(draw_cost, by_patch=by_patch, limits=limits),
        caption="Left: smaller patches cost more than the square of their number suggests linear layers to, since attention "
        "grows faster. Right: IoU of the best mask that has one value for each patch of 14 px (dotted), for rings of "
        "several widths.",
        alt="Left: bars of GMACs for patches of 16, 14, 8 and 7 px. Right: a curve of the best possible IoU that rises with "
        "the width of a stroke.",
    )


# %% [markdown]
# ## Unlike the paper
#
# - DINO's loss on the mean of the patches instead of a class token, with centring by a running mean. The masked-patch loss,
#   Sinkhorn-Knopp centring, KoLeo and the phase at high resolution of DINOv2 are left out. Convolutions embed the patches.
# - Digits of 20 px, some tens of thousands of parameters and a few hundred steps stand in for LVD-142M and a billion
#   parameters. The classes of digits are near in pixels, hence the pixel control. This tests mechanisms, not published
#   accuracies.
# - 64 prototypes, two small crops, a constant teacher temperature and momentum. The head has a batch norm, without which
#   nothing was learned in so few steps. It spreads the answers of a batch apart, so it can hide a collapse.


# %%
def main(argv: Sequence[str] | None = None) -> None:
    run = Run.start("dinov2", argv=argv)
    if run.settings.weights == "pretrained":
        raise SystemExit("This example trains its own small network; the published sizes are only counted.")
    preset = PRESETS[run.preset]
    show_crops(run)
    trained = train_all(run, preset)
    frozen_features(run, preset, trained)
    show_components(run, trained)
    ablation(run, preset, trained)
    parts(run, preset, trained)
    published(run)
    run.finish()


if __name__ == "__main__":
    main()
