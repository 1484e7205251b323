# %% [markdown]
# # DINOv2: what does a network learn when its only teacher is its own average?
#
# A student predicts what its own moving average says about other crops of the same picture. No label is seen. Here a small
# vision transformer is trained so on pieces of photographs; its frozen features are judged by nearest neighbours, beside raw
# pixels and random weights. The experiments take away what keeps the answers from collapsing.
#
# | symbol (card, arXiv:2304.07193, arXiv:2104.14294) | here | meaning |
# |---|---|---|
# | $\theta_s$, $\theta_t$ | `student`, `teacher` | the same network with other weights |
# | $\lambda$ | `MOMENTUM` | part of the teacher that stays at each step |
# | $p_s$, $p_t$ | `log_p.exp()`, `targets` | probabilities over prototypes of a crop, (B, K) |
# | $\tau_s$, $\tau_t$ | `STUDENT`, `TEACHER` | temperatures; the teacher's is the lower |
# | B, N, D, K | | batch, patches, width, prototypes |

# %%
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from lab import weights
from lab.data.photographs import square_photograph
from lab.data.surfaces import surfaces
from lab.figures import Figure, Style, panels, show_image
from lab.neighbours import features, right
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from torch import Tensor, nn

PIECE, PATCH, LARGE, SMALL = 24, 4, 16, 8  # sides in pixels: piece of a photograph, patch, large and small crop
STUDENT, TEACHER = 0.1, 0.04
MOMENTUM = 0.9
RATE = 5e-3
PUBLISHED = "facebook/dinov2-small"
SYNCHRONISATIONS_PER_STEP = 0  # pieces and random numbers lie on the device


class Preset(NamedTuple):
    """Sizes of a run: steps of the optimiser, pieces in a step, D, layers, K, pieces to train and to test."""

    steps: int = 300
    batch: int = 32
    width: int = 48
    layers: int = 2
    prototypes: int = 64
    pieces: tuple[int, int] = (2000, 700)


PRESETS = {
    "smoke": Preset(steps=2, batch=4, width=12, layers=1, pieces=(64, 40)),
    "quick": Preset(),
    "full": Preset(steps=10_000, batch=256, width=192, layers=6, prototypes=1024, pieces=(20_000, 4000)),
}

# %% [markdown]
# ## Large and small crops
# The teacher answers for two large crops of a piece. The student has to give the same answer for the other large one and for
# small ones. So it must know what a part belongs to. Place, size, side, contrast and brightness of each crop are random.


# %%
def crops(images: Tensor, side: int, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """A random square of each image (B, 1, H, H), its side a part in `scale` of H, scaled: (B, 1, side, side)."""
    B, device = len(images), images.device
    random = partial(torch.rand, generator=generator, device=device)
    part = scale[0] + (scale[1] - scale[0]) * random(B)
    theta = torch.zeros(B, 2, 3, device=device)
    theta[:, 0, 0] = torch.where(random(B) < 0.5, -part, part)  # mirrored half of the time
    theta[:, 1, 1] = part
    theta[:, :, 2] = (1 - part)[:, None] * (2 * random(B, 2) - 1)
    grid = nn.functional.affine_grid(theta, [B, 1, side, side], align_corners=False)
    cropped = nn.functional.grid_sample(images, grid, align_corners=False, padding_mode="reflection")
    return cropped * (0.7 + 0.6 * random(B, 1, 1, 1)) + 0.2 * (random(B, 1, 1, 1) - 0.5)


def views(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two large crops of each image, (2 B, 1, LARGE, LARGE), and two small ones, (2 B, 1, SMALL, SMALL)."""
    twice = torch.cat([images, images])
    return crops(twice, LARGE, (0.5, 1.0), generator), crops(twice, SMALL, (0.25, 0.5), generator)


def draw_crops(style: Style, images: Tensor, large: Tensor, small: Tensor) -> Figure:
    figure, axes = panels(len(images), 5, width=5.4, height=1.25 * len(images))
    for row, (line, image) in enumerate(zip(axes, images, strict=True)):
        seen = (image, *large[row :: len(images)], *small[row :: len(images)])
        for ax, view, title in zip(line, seen, ("piece", "large", "large", "small", "small"), strict=True):
            show_image(ax, view, None if row else title)
    return figure


if __name__ == "__main__":
    run = Run.start("dinov2")
    preset = PRESETS[run.preset]
    test, of_test = surfaces("test", preset.pieces[1], PIECE, seed=0)
    large, small = views(test[:3], torch.Generator().manual_seed(0))
    run.figure(
        "crops",
        partial(draw_crops, images=test[:3], large=large, small=small),
        caption="Three pieces of photographs and the crops of one step. The teacher answers for the large ones; the student has "
        "to give the same answer for every other crop.",
        alt="Three rows: a small grey piece of a photograph, two large crops and two small crops of it, some mirrored.",
    )

# %% [markdown]
# ## Student and teacher
# A transformer gives patch features, and their mean for the whole. A projection head maps the mean to cosines with K
# prototypes; it is thrown away after training. The teacher is the average of the student:
# $$\theta_t \leftarrow \lambda\, \theta_t + (1 - \lambda)\, \theta_s$$


# %%
class ViT(nn.Module):
    """A small vision transformer whose positions stretch with the image."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(1, 24, 3, 2, 1), nn.GELU(), nn.Conv2d(24, width, 3, 2, 1))
        self.position = nn.Parameter(0.02 * torch.randn(1, width, LARGE // PATCH, LARGE // PATCH))
        block = partial(nn.TransformerEncoderLayer, width, 3, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.Sequential(*(block() for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Features of the whole: (B, 1, H, W) -> (B, D), the mean over the patches."""
        x = self.embed(images)  # (B, D, H / 4, W / 4)
        x = x + nn.functional.interpolate(self.position, x.shape[-2:], mode="bilinear", align_corners=False)
        return self.norm(self.blocks(x.flatten(2).mT)).mean(1)  # (B, N, D) -> (B, D)


class Student(nn.Module):
    """Backbone and projection head: (B, 1, H, W) -> cosines with the prototypes (B, K)."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.backbone = ViT(preset.width, preset.layers)
        self.project = nn.Sequential(nn.Linear(preset.width, 96), nn.BatchNorm1d(96), nn.GELU(), nn.Linear(96, 32))
        self.prototypes = nn.Linear(32, preset.prototypes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        projected = nn.functional.normalize(self.project(self.backbone(images)), dim=-1)
        return nn.functional.linear(projected, nn.functional.normalize(self.prototypes.weight, dim=-1)).float()


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module) -> None:
    """Moves the teacher's weights towards the student's; statistics of norms are the student's."""
    for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        ours.lerp_(theirs, 1 - MOMENTUM)
    for kept, new in zip(teacher.buffers(), student.buffers(), strict=True):
        kept.copy_(new)


if __name__ == "__main__":
    seed_everything(run.seeds[0])
    student = Student(preset)
    whole, parts = count_parameters(student), count_parameters(student.backbone)
    sizes = f"large {tuple(student(large).shape)}, small {tuple(student(small).shape)}"
    run.show("network", f"{parts:,} of {whole:,} parameters stay after training; scores of the crops above: {sizes}")

# %% [markdown]
# ## The loss, and how it can be cheated
# $$\mathcal L_{DINO} = -\sum p_t \log p_s$$
# over all pairs of different crops. A constant answer satisfies it. So the teacher's scores are *sharpened* by a low
# temperature, and *centred*, so that no prototype takes all: DINOv2 scales them, in turns, until each prototype is used
# as much as any other and each answer sums to one (Sinkhorn and Knopp). Two entropies tell a collapse: that of the mean answer
# falls to zero when one prototype takes all, and that of each answer rises to $\log K$ when all are alike. Their
# difference is the information that an answer carries about its picture; 0 is collapse, of either kind.


# %%
def sinkhorn(logits: Tensor, turns: int = 3) -> Tensor:
    """Answers (B, K) of equal weight in which, nearly, each prototype has an equal share."""
    p = (logits - logits.amax()).exp()
    for _ in range(turns):
        p = p / p.sum(0).clamp(min=1e-12)
        p = p / p.sum(1, keepdim=True).clamp(min=1e-12)
    return p


def teach(scores: Tensor) -> Tensor:
    """p_t: the teacher's scores (B, K), sharpened and centred."""
    return sinkhorn(scores / TEACHER)


def dino_loss(targets: Tensor, large: Tensor, small: Tensor) -> Tensor:
    """Mean cross entropy of targets (2 B, K) with the scores of the other large crop and of both small ones, each (2 B, K)."""
    one, two = targets.chunk(2)
    others = torch.cat([large, small, small]), torch.cat([two, one, targets, two, one])
    return -(others[1] * (others[0] / STUDENT).log_softmax(-1)).sum(-1).mean()


def entropies(p: Tensor) -> dict[str, float]:
    """Entropy of the mean of answers (n, K), mean of their entropies, and the difference, all over log K."""
    entropy, scale = torch.special.entr, torch.tensor(p.shape[-1]).log()
    mean, each = entropy(p.mean(0)).sum() / scale, entropy(p).sum(-1).mean() / scale
    return {"entropy_of_mean": mean.item(), "mean_entropy": each.item(), "information": (mean - each).item()}


if __name__ == "__main__":
    one, alike, telling = torch.eye(8)[[0] * 8], torch.full((8, 8), 1 / 8), torch.eye(8)
    made = {"one prototype for all": one, "all alike": alike, "telling": telling}
    run.show("collapses", [{"answers": name, **entropies(p)} for name, p in made.items()])

# %% [markdown]
# ## Train it
# Pieces of fourteen photographs: the left halves train, quarters of the right validate and test. The teacher is in
# evaluation mode all along. What is kept of it is its backbone.


# %%
def distil(run: Run, seed: int, rate: float = RATE, teach: Callable[[Tensor], Tensor] = teach) -> Student:
    """Trains a student without labels and returns its teacher."""
    preset = PRESETS[run.preset]
    seed_everything(seed)
    student, teacher = Student(preset).to(run.device), Student(preset).to(run.device).requires_grad_(False).eval()
    teacher.load_state_dict(student.state_dict())
    generator = torch.Generator(run.device).manual_seed(seed)

    def loss(model: nn.Module, images: Tensor) -> Tensor:
        follow(teacher, model)  # of the step before
        large, small = views(images, generator)
        return dino_loss(teach(teacher(large)), model(large), model(small))

    pieces = surfaces("train", preset.pieces[0], PIECE, seed)[0].to(run.device)
    batches = minibatches((pieces,), preset.batch, preset.steps, seed)
    fit(student, batches, loss, steps=preset.steps, learning_rate=rate, device=run.device)
    return teacher


if __name__ == "__main__":
    teacher = distil(run, run.seeds[0])
    bank, of_bank = surfaces("train", preset.pieces[0], PIECE, run.seeds[0])
    seed_everything(run.seeds[0])
    backbones = {"random weights": ViT(preset.width, preset.layers).eval(), "self-distillation": teacher.backbone}
    known = {"raw pixels": right(bank.flatten(1), of_bank, test.flatten(1), of_test)}
    for name, backbone in backbones.items():
        known[name] = right(features(backbone, bank), of_bank, features(backbone, test), of_test)
    run.show("neighbours", [{"features": name, "photograph named (%)": value} for name, value in known.items()])

# %% [markdown]
# ## What patch features tell apart
# The first three principal components of the features about every fourth pixel of a photograph, as red, green and blue. What
# has one colour has like features.


# %%
def components(maps: Tensor) -> Tensor:
    """First three principal components of features (h, w, D), each from 0 to 1: (h, w, 3)."""
    flat = maps.flatten(0, 1) - maps.flatten(0, 1).mean(0)
    values = flat @ torch.linalg.svd(flat, full_matrices=False).Vh[:3].T
    low, high = values.quantile(0.02, 0), values.quantile(0.98, 0)
    return ((values - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).view(*maps.shape[:2], 3)


def dense(backbone: nn.Module, image: Tensor) -> Tensor:
    """Features (h, w, D) of the windows of large crops about every fourth pixel of an image (H, W)."""
    windows = image.unfold(0, LARGE, PATCH).unfold(1, LARGE, PATCH)  # (h, w, LARGE, LARGE)
    return features(backbone, windows.flatten(0, 1)[:, None]).view(*windows.shape[:2], -1)


def draw_components(style: Style, pictures: Sequence[Tensor], backbones: Mapping[str, nn.Module]) -> Figure:
    """Pictures (H, W), and below each the components of every backbone."""
    figure, axes = panels(1 + len(backbones), len(pictures), width=5.4, height=5.6)
    rows = {"photograph": pictures} | {
        name: [components(dense(backbone, each)) for each in pictures] for name, backbone in backbones.items()
    }
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images, strict=True):
            show_image(ax, image)
        line[1].set_title(name)
    return figure


if __name__ == "__main__":
    pictures = [square_photograph(name, 150).mean(0) for name in ("cat", "coffee", "immunohistochemistry")]
    run.figure(
        "components",
        partial(draw_components, pictures=pictures, backbones=backbones),
        caption="Photographs, and the principal components of their features as colours: with random weights, and after "
        "self-distillation without a label. Training saw pieces of the left halves.",
        alt="A cat, a cup of coffee and a stained tissue; below each two coloured maps of features. With random weights they are "
        "streaked; after training eyes and nose, the cup and the glands have colours of their own.",
    )

# %% [markdown]
# ## Your own image
# The same components of the published network, which was trained on 142 million pictures: one colour for each patch of
# 14 x 14 pixels.


# %%
def published_components(image: Any) -> Tensor:
    """Components (37, 37, 3) of the patches of a photograph of PIL, scaled to 518 x 518 pixels."""
    from transformers import AutoImageProcessor, Dinov2Model

    processor = AutoImageProcessor.from_pretrained(PUBLISHED, do_center_crop=False, size={"height": 518, "width": 518})
    model = Dinov2Model.from_pretrained(PUBLISHED).eval()
    with torch.inference_mode():
        tokens = model(**processor(image, return_tensors="pt")).last_hidden_state[
            0, 1:
        ]  # (N, D) without the class token
    return components(tokens.unflatten(0, (37, 37)))


def draw_own(style: Style, image: Any, colours: Tensor) -> Figure:
    figure, axes = panels(1, 2, width=5.4, height=3.0)
    show_image(axes[0, 0], image.resize((518, 518)))
    show_image(axes[0, 1], colours)
    return figure


if __name__ == "__main__":
    photograph = weights.picture(run, "cat")
    colours = weights.published(run, PUBLISHED, partial(published_components, photograph), megabytes=88)
    if colours is not None:
        run.figure(
            "your_own_image",
            partial(draw_own, image=photograph, colours=colours),
            caption=f"The first three principal components of the patch features of {PUBLISHED}, as colours.",
            alt="A photograph, and the coloured map of its patch features.",
        )
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - The loss on whole crops alone. The masked-patch loss, KoLeo and the phase at high resolution are left out; the mean of the
#   patches takes the place of a class token, and two convolutions embed a patch.
# - Two thousand grey pieces of fourteen photographs, tens of thousands of parameters and a few hundred steps stand in for
#   142 million pictures and a billion parameters. This tests mechanisms, not published accuracies.
# - 64 prototypes, two small crops, constant temperatures and a constant, low momentum. The head has a batch norm, which
#   makes it learn in so few steps; it spreads the answers of a batch apart, so it can soften a collapse.
