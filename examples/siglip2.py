# %% [markdown]
# # SigLIP 2: can each pair of image and text be judged by itself?
#
# Two towers put images and texts into one space, so that classes can be named in words when they are needed. CLIP lets the
# texts of a batch compete for an image; SigLIP asks of each pair whether it belongs together, yes or no. Here are both
# towers and both losses, trained on pairs of coloured shapes and what can be said of them. Six of the 36 combinations of
# colour and shape are kept out of the training.
#
# | symbol (arXiv:2303.15343) | here | meaning |
# |---|---|---|
# | $x_i$, $N$ | `z_image[i]`, N | vector of image $i$, of length one; images in a batch |
# | $y_j$ | `z_text[j]` | vector of text $j$, of length one |
# | $t$, $b$ | `scale`, `bias` | learned scale and offset of all products |
# | $z_{ij}$ | `eye` | 1 where image $i$ and text $j$ belong together, $-1$ elsewhere |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from lab import weights
from lab.data.captioned import COLOURS, KINDS, SHAPES, WORDS, Scenes, batches, captions, held_out, written
from lab.figures import Figure, Style, panels, show_image
from lab.run import Run
from lab.training import count_parameters, fit, seed_everything
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import Conv2dNormActivation

RATE = 8e-3  # peak learning rate, see claims/siglip2.searches.json
SYNCHRONISATIONS_PER_STEP = 0  # scenes are drawn on the device


class Preset(NamedTuple):
    """Steps, images in a batch (at most 315), width of the towers, length D of the vectors, and a factor on the rate."""

    steps: int = 300
    batch: int = 48
    width: int = 48
    dim: int = 48
    rate: float = 1.0


PRESETS = {
    "smoke": Preset(steps=3, batch=8),
    "quick": Preset(),
    "full": Preset(steps=20_000, batch=256, width=256, dim=256, rate=0.25),
}

# %% [markdown]
# ## Images and what is said of them
# Two things stand side by side, and the caption names them in any order. A kind is a colour and a shape: 36 there are, of
# which six are in no training image. A batch holds no pair of kinds twice, so that no false pair is true after all.


# %%
if __name__ == "__main__":
    run = Run.start("siglip2", pretrained=True)
    preset = PRESETS[run.preset]
    batch = next(batches(preset.batch, run.seeds[0], run.device))
    said = [written(words) for words in captions(batch.kinds)]
    run.show("captions", [{"image": place, "caption": text} for place, text in enumerate(said[:4])])

# %% [markdown]
# ## Two towers
# Convolutions read the image, a small transformer the words; each ends in a vector of length one. A product of two vectors,
# scaled and offset, is the logit of "belongs together": $t\\, x_i \\cdot y_j + b$. The offset starts at the odds of a true
# pair, one in a batch.


# %%
class Unit(nn.Module):
    """Vectors of length one, (..., D) -> (..., D)."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x.float(), dim=-1)


class TextTower(nn.Module):
    """Words (B, 5) -> vectors (B, D): a transformer with learned positions, so that it could use their order."""

    def __init__(self, width: int, dim: int, layers: int = 1) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(len(WORDS), width), nn.Parameter(0.5 * torch.randn(5, width))
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim), Unit())

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.blocks(self.words(words) + self.places).mean(1))


def image_tower(width: int, dim: int) -> nn.Sequential:
    """Images (B, 3, 32, 32) in [0, 1] -> vectors (B, D), from a mean over places."""
    stem = Conv2dNormActivation(3, width // 2, 4, 4, 0)
    layers = Conv2dNormActivation(width // 2, width, 3, 2), Conv2dNormActivation(width, width, 3)
    return nn.Sequential(stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, dim), Unit())


class TwoTowers(nn.Module):
    """Images (B, 3, 32, 32) and words (M, 5) -> logits (B, M): t x . y + b."""

    def __init__(self, width: int, dim: int, batch: int) -> None:
        super().__init__()
        self.image, self.text = image_tower(width, dim), TextTower(width, dim)
        self.scale = nn.Parameter(torch.tensor(10.0).log())  # t, kept as its logarithm
        self.bias = nn.Parameter(-torch.tensor(float(batch - 1)).log())  # b: one pair in B is true

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        return self.scale.exp() * self.image(images) @ self.text(words).mT + self.bias


def build(preset: Preset) -> TwoTowers:
    """Untrained towers; they start at the offset of their batch."""
    return TwoTowers(preset.width, preset.dim, preset.batch)


if __name__ == "__main__":
    seed_everything(run.seeds[0])
    model = build(preset).to(run.device)
    words = captions(batch.kinds)
    shapes = {"images": batch.images, "words": words, "image vectors": model.image(batch.images),
              "text vectors": model.text(words), "logits": model(batch.images, words)}  # fmt: skip
    run.show("shapes", [{"of a batch": name, "shape": str(tuple(each.shape))} for name, each in shapes.items()])

# %% [markdown]
# ## The loss: every pair by itself, or all texts against each other
# SigLIP's loss is a sum of yes-or-no questions, one for each pair; no pair has to know of the others:
# $$\mathcal{L} = -\frac{1}{N} \sum_i \sum_j \log \sigma(z_{ij} (t\, x_i \cdot y_j + b))$$
# CLIP's is a choice among the batch, where only differences within a row or a column count:
# $$\mathcal{L} = -\frac{1}{2N} \sum_i \Big( \log \frac{e^{t x_i \cdot y_i}}{\sum_j e^{t x_i \cdot y_j}}
# {} + \log \frac{e^{t x_i \cdot y_i}}{\sum_j e^{t x_j \cdot y_i}} \Big)$$


# %%
def sigmoid_loss(logits: Tensor) -> Tensor:
    """SigLIP's loss of logits (N, M): text i belongs to image i, texts beyond N to none."""
    truth = 2 * torch.eye(*logits.shape, device=logits.device) - 1  # z: 1 for a true pair, -1 for all others
    return -functional.logsigmoid(truth * logits).sum(1).mean()


def softmax_loss(logits: Tensor) -> Tensor:
    """CLIP's loss of logits (N, N), in both directions; an offset of all logits changes nothing."""
    owner = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, owner) + functional.cross_entropy(logits.mT, owner)) / 2


if __name__ == "__main__":
    logits = torch.tensor([[4.0, -2.0], [-2.0, 4.0]])
    both = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}
    run.show("losses", [{"loss": name, "two true pairs at 4": loss(logits).item(), "all logits 3 higher": loss(logits + 3).item()}
                        for name, loss in both.items()])  # fmt: skip

# %% [markdown]
# ## Train it
# What a caption is told from are the other captions of the batch.


# %%
Loss = Callable[[Tensor], Tensor]
Texts = Callable[[Tensor], Tensor]


def train(
    model: nn.Module, run: Run, preset: Preset, seed: int, rate: float = RATE,
    loss: Loss = sigmoid_loss, texts: Texts = captions,
) -> list[float]:  # fmt: skip
    """Trains towers; `texts` makes the words (M, 5) of a batch from its kinds (N, 2). Returns the loss of each step."""

    def of_batch(model: nn.Module, images: Tensor, kinds: Tensor) -> Tensor:
        return loss(model(images, texts(kinds)))

    draws = batches(preset.batch, seed, run.device)
    return fit(model, draws, of_batch, steps=preset.steps, learning_rate=rate * preset.rate, device=run.device)


if __name__ == "__main__":
    losses = train(model, run, preset, run.seeds[0])
    test = held_out("test", False, run.device)
    with torch.inference_mode():
        chance = model(test.images, captions(test.kinds)).sigmoid().cpu()
    right = 100 * (chance.argmax(1) == torch.arange(len(chance))).double().mean().item()
    text = f"{count_parameters(model):,} parameters, loss {losses[0]:.2f} at first and {losses[-1]:.2f} at last; the caption of "
    run.show("trained", f"{text}{len(chance)} new images comes first among all of them for {right:.0f} %")

# %% [markdown]
# ## What belongs together
# The sigmoid of each logit is a probability of its own: rows and columns need not add up to one.


# %%
def draw_matrix(style: Style, images: Tensor, texts: list[str], chance: Tensor) -> Figure:
    """Images (n, 3, H, W) down the side, n texts along the top, and the probability (n, n) of each pair in between."""
    count = len(images)
    figure, axes = panels(1, 1, width=5.4, height=5.0)
    ax = axes[0, 0]
    ax.imshow(chance.numpy(), cmap=style.sequential, vmin=0, vmax=1)
    for row, image in enumerate(images.permute(0, 2, 3, 1)):
        ax.imshow(image.numpy(), extent=(-1.6, -0.6, row + 0.5, row - 0.5))
        for column, value in enumerate(chance[row].tolist()):
            ink = "black" if value > 0.6 else "white"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=10)
    ax.set(xlim=(-1.65, count - 0.5), ylim=(count - 0.5, -0.5), yticks=[])
    ax.xaxis.tick_top()
    ax.set_xticks(range(count), [text.replace(" and ", "\nand ") for text in texts], rotation=40, ha="left")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return figure


if __name__ == "__main__":
    shown = torch.arange(0, len(chance), len(chance) // 5)[:5]
    run.figure(
        "pairs",
        partial(draw_matrix, images=test.images[shown].cpu(), texts=[written(w) for w in captions(test.kinds[shown])],
                chance=chance[shown][:, shown]),
        caption="New images, their captions, and the probability that a text belongs to an image, each pair by itself.",
        alt="Five images of two coloured shapes, five captions, and a matrix of probabilities, high along the diagonal.",
    )  # fmt: skip

# %% [markdown]
# ## Kinds that were never shown
# Which kind fits the blank in "... and blue square"? All 36 are tried, in words: also those of which no image was ever seen.


# %%
def blanks(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """All 36 ways to fill one blank of each pair of kinds, (B, 36, 2), and the kind (B,) that was there.

    The blank is the kind that was kept out of the training, else the first one.
    """
    kinds = scenes.kinds
    blank = (kinds // len(SHAPES) == kinds % len(SHAPES)).int().argmax(1)[:, None]  # (B, 1)
    tried = torch.arange(KINDS, device=kinds.device)[None, :, None].expand(len(kinds), -1, 1)
    filled = kinds[:, None].repeat(1, KINDS, 1).scatter(2, blank[:, None].expand(-1, KINDS, 1), tried)
    return filled, kinds.gather(1, blank)[:, 0]


@torch.inference_mode()
def scores_of_blanks(model: TwoTowers, scenes: Scenes) -> tuple[Tensor, Tensor]:
    """The product of each image with all captions of its blank, (B, 36), and the kind (B,) that was there."""
    filled, kinds = blanks(scenes)
    every = torch.arange(KINDS, device=kinds.device)
    texts = model.text(captions(torch.cartesian_prod(every, every)))  # (36 * 36, D)
    products = model.image(scenes.images) @ texts.mT
    return products.gather(1, filled[..., 0] * KINDS + filled[..., 1]), kinds


def draw_blanks(style: Style, scenes: Scenes, scores: Tensor, kinds: Tensor) -> Figure:
    """A row for each scene: the image, and the scores (n, 36) of all kinds with the true one (n,) in a frame."""
    rows = len(kinds)
    figure, axes = panels(rows, 2, width=5.4, height=2.6 * rows, width_ratios=[1, 1.5])
    for (left, right), image, score, kind in zip(axes, scenes.images, scores, kinds.tolist(), strict=True):
        show_image(left, image)
        right.imshow(score.unflatten(0, (len(COLOURS), -1)).numpy(), cmap=style.sequential)
        row, column = divmod(kind, len(SHAPES))
        right.plot(
            column, row, "s", markersize=22, markerfacecolor="none", markeredgecolor="#FF4D3D", markeredgewidth=2.5
        )
        right.set_yticks(range(len(COLOURS)), COLOURS)
        right.set_xticks(range(len(SHAPES)), SHAPES, rotation=40, ha="right")
        right.grid(False)
    return figure


if __name__ == "__main__":
    unseen = held_out("test", True, run.device)
    scores, kinds = scores_of_blanks(model, unseen)
    found = 100 * (scores.argmax(1) == kinds).double().mean().item()
    few = [0, len(kinds) // 2]
    run.figure(
        "unseen",
        partial(
            draw_blanks,
            scenes=Scenes(unseen.images[few].cpu(), unseen.kinds[few].cpu()),
            scores=scores[few].cpu(),
            kinds=kinds[few].cpu(),
        ),
        caption="Two images with a kind that no training image held, and how well each kind fits the blank (bright: well). "
        f"The framed one is right; it comes first for {found:.0f} % of such images, by chance for 3 %.",
        alt="Two images of coloured shapes, each beside a grid of six colours by six shapes with the score of each kind.",
    )

# %% [markdown]
# ## Your own image
# The published SigLIP 2 of size B/16: how well each of a few sentences fits a photograph, or yours.


# %%
SENTENCES = ("a cup of coffee", "a cat", "a rocket at its start", "a person with a camera", "a street at night")


def published(image: Any) -> list[dict[str, object]]:
    from transformers import AutoProcessor, SiglipModel

    name = "google/siglip2-base-patch16-224"
    processor, network = AutoProcessor.from_pretrained(name), SiglipModel.from_pretrained(name).eval()
    inputs = processor(text=list(SENTENCES), images=image, padding="max_length", max_length=64, return_tensors="pt")
    with torch.inference_mode():
        chance = network(**inputs).logits_per_image[0].sigmoid()
    return [{"text": text, "belongs (%)": 100 * each} for text, each in zip(SENTENCES, chance.tolist(), strict=True)]


if __name__ == "__main__":
    picture = weights.picture(run, otherwise="coffee")
    table = weights.published(run, "google/siglip2-base-patch16-224", partial(published, picture), megabytes=1500)
    if table is not None:
        run.show("your_own_image", table)
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - SigLIP 2 adds a decoder, self-distillation and masked patches to the loss that is tested here; none of them is here.
# - The world has two things on noise and thirteen words instead of ten billion pairs from the web, the batch 48 pairs
#   instead of 32,768; no two texts of a batch say the same. It says nothing about published accuracies.
# - The image tower is convolutional and pools by a mean; the paper's is a ViT with an attention that pools.
# - The offset starts at the odds of a true pair in the batch, not at -10, which suits batches of thousands.
