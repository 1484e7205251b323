# %% [markdown]
# # DINOv3: what does a small network gain from a large one that learned without labels?
#
# DINOv3 trains one large network by self-distillation. The small ones do not repeat that: they learn to answer as the large
# one does, which stays as it is. Here both are done on pieces of photographs: a small network teaches itself, as in DINOv2,
# or it learns from a larger one that did. The experiments compare both at equal steps.
#
# | symbol (card, arXiv:2508.10104) | here | meaning |
# |---|---|---|
# | $\mathcal L_{\mathrm{DINO}}$ | `dino_loss` | cross entropy of a student's answers with a teacher's, over crops of a piece |
# | $p_t$, $p_s$ | `targets`, `log_p` | answers over K prototypes, of the teacher and of the student |
# | $X_S$, $X_G$ | `normed` | normalised features of P places, (P, D), of the student and of the Gram teacher |

# %%
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import dinov2
import torch
from lab import weights
from lab.data.photographs import square_photograph
from lab.data.surfaces import surfaces
from lab.figures import Figure, Style, panels, show_image
from lab.neighbours import features, right
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from torch import Tensor, nn

RATES = {
    "self": 2.5e-3,
    "distilled": 1e-2,
}  # see claims/dinov3.searches.json; the large network has that of DINOv2's example
TEACHER_SEED = 1000  # one large network for all small ones, as in the paper
PUBLISHED = "facebook/dinov3-vits16-pretrain-lvd1689m"
SYNCHRONISATIONS_PER_STEP = 0  # pieces and random numbers lie on the device


class Preset(NamedTuple):
    """Sizes of the large and of the small network, as in DINOv2's example: steps, pieces in a step, D, layers, K, pieces."""

    large: dinov2.Preset
    small: dinov2.Preset


PRESETS = {
    "smoke": Preset(dinov2.PRESETS["smoke"], dinov2.PRESETS["smoke"]),
    "quick": Preset(dinov2.Preset(steps=600), dinov2.Preset(steps=200, width=24, layers=1)),
    "full": Preset(dinov2.PRESETS["full"], dinov2.PRESETS["full"]._replace(width=96, layers=3)),
}

# %% [markdown]
# ## Who answers
# Student and teacher see crops of one piece, and the student has to say of each what the teacher says of another one:
# $$\mathcal L_{\mathrm{DINO}} = -\sum p_t \log p_s$$
# In self-distillation the teacher is the moving average of the student, which knows no more than the student does. In
# distillation it is a larger network that was trained before, frozen, with its prototypes. All else stays as it is. What is
# kept of a student is in both cases its own moving average.


# %%
@cache
def learn(
    run: Run, preset: dinov2.Preset, seed: int, rate: float, frozen: dinov2.Student | None = None
) -> dinov2.Student:
    """Trains a network without labels, on the answers of a `frozen` one, or of its own average; returns the average."""
    seed_everything(seed)
    student = dinov2.Student(preset).to(run.device)
    average = dinov2.Student(preset).to(run.device).requires_grad_(False).eval()
    average.load_state_dict(student.state_dict())
    teacher, generator = frozen or average, torch.Generator(run.device).manual_seed(seed)

    def loss(model: nn.Module, images: Tensor) -> Tensor:
        dinov2.follow(average, model)  # of the step before
        large, small = dinov2.views(images, generator)
        return dinov2.dino_loss(dinov2.teach(teacher(large)), model(large), model(small))

    pieces = surfaces("train", preset.pieces[0], dinov2.PIECE, seed)[0].to(run.device)
    batches = minibatches((pieces,), preset.batch, preset.steps, seed)
    fit(student, batches, loss, steps=preset.steps, learning_rate=rate, device=run.device)
    return average


def large_of(run: Run) -> dinov2.Student:
    """The large network, after self-distillation."""
    return learn(run, PRESETS[run.preset].large, TEACHER_SEED, dinov2.RATE)


if __name__ == "__main__":
    run = Run.start("dinov3", pretrained=True)
    preset = PRESETS[run.preset]
    run.show("sizes", [{"network": name, "D": each.width, "layers": each.layers, "steps": each.steps,
                        "parameters kept": count_parameters(dinov2.ViT(each.width, each.layers))}
                       for name, each in preset._asdict().items()])  # fmt: skip

# %% [markdown]
# ## How alike places are
# Dense features are of use where places of one thing are alike and those of others are not. The Gram matrix holds just that,
# and not what the features are: any rotation of all features leaves it as it is. In a long training of the large network
# places became alike to many others, and so the paper adds, late, a loss that keeps the matrix near that of an earlier one:
# $$\mathcal L_{\mathrm{Gram}} = \lVert X_S X_S^\top - X_G X_G^\top \rVert_F^2$$
# Distilled students need no such loss. Here it measures how near the places of two networks are to each other.


# %%
def gram(maps: Tensor) -> Tensor:
    """Similarities of all places of features (h, w, D): (P, P), with P = h w."""
    normed = nn.functional.normalize(maps.flatten(0, 1), dim=-1)
    return normed @ normed.T


def gram_loss(student: Tensor, teacher: Tensor) -> float:
    """Mean squared difference of the similarities of two maps (h, w, D) and (h, w, D')."""
    return (gram(student) - gram(teacher)).square().mean().item()


if __name__ == "__main__":
    maps = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    other = {
        "the same": maps,
        "rotated": maps @ rotation,
        "twice as long": 2 * maps,
        "all places alike": torch.ones(4, 4, 8),
    }
    run.show("gram", [{"against": name, "Gram loss": round(gram_loss(maps, each), 6)} for name, each in other.items()])

# %% [markdown]
# ## Train them
# The large network first, then the small one in both ways, for equally many steps. Frozen features are judged by whether
# their nearest neighbours among training pieces come from the same photograph.


# %%
@cache
def knn(run: Run, backbone: nn.Module, split: Any = "test") -> float:
    """Photographs (%) that are named by nearest neighbours, of the same pieces for all networks."""
    count, held_out = PRESETS[run.preset].small.pieces
    (bank, of_bank), (pieces, truth) = (
        surfaces("train", count, dinov2.PIECE, 0),
        surfaces(split, held_out, dinov2.PIECE, 10_000),
    )
    return right(features(backbone, bank), of_bank, features(backbone, pieces), truth)


if __name__ == "__main__":
    seed, large = run.seeds[0], large_of(run)
    seed_everything(seed)
    backbones = {
        "random weights": dinov2.ViT(preset.small.width, preset.small.layers).to(run.device).eval(),
        "self-distilled": learn(run, preset.small, seed, RATES["self"]).backbone,
        "distilled": learn(run, preset.small, seed, RATES["distilled"], large).backbone,
        "large network": large.backbone,
    }
    run.show(
        "neighbours", [{"features": name, "photograph named (%)": knn(run, each)} for name, each in backbones.items()]
    )

# %% [markdown]
# ## What it passes on
# The first three principal components of the features about every fourth pixel, as red, green and blue. What has one colour
# has like features. Each network has axes of its own, so only what is parted counts, not by which colours.


# %%
def draw_all(style: Style, pictures: list[Tensor], backbones: dict[str, Any]) -> Figure:
    """A row for each picture (H, W): itself, and the components of every backbone."""
    figure, axes = panels(len(pictures), 1 + len(backbones), width=5.4, height=3.8)
    for index, (row, picture) in enumerate(zip(axes, pictures, strict=True)):
        maps = {name: dinov2.components(dinov2.dense(each, picture)) for name, each in backbones.items()}
        for ax, (name, image) in zip(row, ({"photograph": picture} | maps).items(), strict=True):
            show_image(ax, image, name.replace(" ", "\n").replace("-", "-\n") if index == 0 else None)
    return figure


if __name__ == "__main__":
    pictures = [square_photograph(name, 150).mean(0) for name in ("cat", "coffee", "immunohistochemistry")]
    run.figure(
        "components",
        partial(draw_all, pictures=pictures, backbones=backbones),
        caption="Photographs, and the principal components of their features as colours, of a small network in three states and "
        "of the large one.",
        alt="A cat, a cup of coffee and a stained tissue; beside each coloured maps of features of four networks.",
    )

# %% [markdown]
# ## Your own image
# The same components of the smallest published network: one colour for each patch of 16 x 16 pixels. Its weights are under
# the DINOv3 License and gated: accept the terms on its page of the hub, and log in there with `hf auth login`.


# %%
@torch.inference_mode()
def published_components(image: Any, side: int = 512) -> Tensor:
    """Components (h, w, 3) of the patches of a photograph of PIL, scaled to so many pixels a side."""
    from transformers import AutoImageProcessor, DINOv3ViTModel

    processor = AutoImageProcessor.from_pretrained(PUBLISHED, size={"height": side, "width": side})
    model = DINOv3ViTModel.from_pretrained(PUBLISHED).eval()
    tokens = model(**processor(image, return_tensors="pt")).last_hidden_state[0]
    patches = tokens[1 + model.config.num_register_tokens :]  # behind the class token and the registers
    return dinov2.components(patches.unflatten(0, (side // model.config.patch_size, -1)))


if __name__ == "__main__":
    photograph = weights.picture(run, "cat")
    colours = weights.published(run, PUBLISHED, partial(published_components, photograph), megabytes=86)
    if colours is not None:
        run.figure(
            "your_own_image",
            partial(dinov2.draw_own, image=photograph, colours=colours),
            caption=f"The first three principal components of the patch features of {PUBLISHED}, as colours.",
            alt="A photograph, and the coloured map of its patch features.",
        )
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - The large network has a few times the weights of the small one and learned from two thousand grey pieces of fourteen
#   photographs; in the paper it has seven billion and saw 1.7 billion pictures. This tests the mechanism, not its figures.
# - The loss on whole crops alone. The paper distils the masked-patch loss and KoLeo too.
# - Gram anchoring is measured with, not trained with: patches lose their place in a training far longer than one here.
# - All small networks learn from one large network, as in the paper; their seeds say nothing about other large ones.
# - No class token, registers, rotary positions or phase at high resolution, and one student at a time.
