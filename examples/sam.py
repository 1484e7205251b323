# %% [markdown]
# # SAM: what are three answers to one click worth?
#
# A click on a digit that lies on a plate that lies on a larger plate may mean any of the three. A small Segment Anything
# model learns from such clicks, with one of the three annotated at random: it returns three masks, and only the best of
# them is trained. The experiments ask what that is worth, and what boxes, more clicks and no prompt at all lead to.
#
# | symbol (card, arXiv:2304.02643) | here | meaning |
# |---|---|---|
# | $z$ | `upsampled` | image embedding, upsampled fourfold, (n, D/4, S, S) |
# | $w$ | `weights` | one vector for each mask token, (n, 4, D/4) |
# | $m = \sigma(w^\top z)$ | `masks` | logits, (B, P, 4, S, S): three masks for a lone click, the last for several prompts |
# | $y$ | `target` | annotated mask, (B, P, S, S) |
# | $k$ | `LONE`, `JOINT` | index of the masks for a lone click, and of the mask for several prompts |
# | P | | prompts for each image: the image is encoded once for all of them |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from lab import weights
from lab.data.nested import NOTHING, SIDE, Prompts, clicks, nested, training_prompts
from lab.figures import Figure, Style, panels, show_image
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from torch import Tensor, nn
from torchvision.ops import MLP

LONE, JOINT = slice(0, 3), 3  # masks of a lone click; mask of several prompts
RATE = 8e-3  # peak learning rate, see claims/sam.searches.json
SYNCHRONISATIONS_PER_STEP = 0  # prompts are drawn on the device


class Preset(NamedTuple):
    """Steps, images in a step (each with four prompts), D, numbers of training and test images, factor on the rate."""

    steps: int = 400
    batch: int = 8
    width: int = 32
    images: tuple[int, int] = (1500, 150)
    rate: float = 1.0


PRESETS = {"smoke": Preset(3, 4, 32, (16, 8)), "quick": Preset(), "full": Preset(8000, 64, 128, (20_000, 1000), 0.25)}

# %% [markdown]
# ## A prompt is a few tokens
# The image encoder never sees the prompt: it runs once. A point becomes its position, in random Fourier features, plus a
# learned vector for its kind: inside, outside, upper left or lower right corner of a box, or nothing.


# %%
class ImageEncoder(nn.Module):
    """Convolutions down to a stride of 4 and a transformer block: (B, 3, S, S) -> (B, D, S / 4, S / 4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, width // 2, 3, 2, 1), nn.GELU(), nn.Conv2d(width // 2, width, 3, 2, 1), nn.GELU()]
        self.stem, self.local = nn.Sequential(*stem), nn.Conv2d(width, width, 3, 1, 1)
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = x + nn.functional.gelu(self.local(x))
        tokens = self.norm(self.block(x.flatten(2).mT))  # (B, D, h, w) -> (B, h w, D)
        return tokens.mT.reshape(x.shape)  # (B, h w, D) -> (B, D, h, w)


class PromptEncoder(nn.Module):
    """Prompts of B images -> tokens (B, P, 3, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequencies, self.kinds = nn.Buffer(torch.randn(2, width // 2)), nn.Embedding(5, width)

    def position(self, points: Tensor) -> Tensor:
        """Random Fourier features of points (..., 2) in pixels: (..., D)."""
        angles = 2 * math.pi * (2 * points / SIDE - 1) @ self.frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)

    def forward(self, prompts: Prompts) -> Tensor:
        there = (prompts.kinds != NOTHING)[..., None]  # a point that means nothing has no position
        return self.position(prompts.points) * there + self.kinds(prompts.kinds)


if __name__ == "__main__":
    run = Run.start("sam", pretrained=True)
    preset, generator = PRESETS[run.preset], torch.Generator().manual_seed(run.seeds[0])
    scenes = nested("test", 4, run.seeds[0])
    click = clicks(scenes.masks[:, :, 0], generator)
    sizes = {"images": scenes.images, "their embeddings": ImageEncoder(preset.width)(scenes.images),
             "points of two prompts": click.points, "their tokens": PromptEncoder(preset.width)(click)}  # fmt: skip
    run.show("shapes", [{"of four scenes": name, "shape": str(tuple(each.shape))} for name, each in sizes.items()])

# %% [markdown]
# ## Tokens and image look at each other
# In each of two layers the tokens attend to each other and to the image, then the image to the tokens (Appendix A). A mask is
# a dot product of one vector with the upsampled embedding at each position; a further token rates the masks:
# $$m(x) = \sigma\big(w^\top z(x)\big)$$


# %%
class TwoWayBlock(nn.Module):
    """tokens (n, t, D) and image (n, h w, D) -> both, after they have looked at each other (Figure 14)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        attend = partial(nn.MultiheadAttention, width, 2, batch_first=True)
        self.among, self.to_image, self.to_tokens = attend(), attend(), attend()
        self.mlp = MLP(width, [2 * width, width], inplace=None)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))

    def forward(self, tokens: Tensor, image: Tensor, prompt: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """`prompt` and `where`, the first values of tokens and the places of the image, are added anew each time."""
        query = tokens + prompt
        tokens = self.norms[0](tokens + self.among(query, query, tokens, need_weights=False)[0])
        read = self.to_image(tokens + prompt, image + where, image, need_weights=False)[0]
        tokens = self.norms[1](tokens + read)
        tokens = self.norms[2](tokens + self.mlp(tokens))
        written = self.to_tokens(image + where, tokens + prompt, tokens, need_weights=False)[0]
        return tokens, self.norms[3](image + written)


class SAM(nn.Module):
    """A small SAM: images (B, 3, S, S) and prompts -> logits (B, P, 4, S, S) of masks and their rated IoUs (B, P, 4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder, self.prompts = ImageEncoder(width), PromptEncoder(width)
        self.tokens = nn.Parameter(torch.randn(5, width))  # one for the IoUs, four for masks
        self.blocks = nn.ModuleList(TwoWayBlock(width) for _ in range(2))
        up = [nn.ConvTranspose2d(width, width // 2, 2, 2), nn.GELU(), nn.ConvTranspose2d(width // 2, width // 4, 2, 2)]
        self.upscale, self.rate = nn.Sequential(*up), MLP(width, [width, 4], inplace=None)
        self.weigh = nn.ModuleList(MLP(width, [width, width // 4], inplace=None) for _ in range(4))
        axis = (torch.arange(SIDE // 4) + 0.5) * 4
        self.places = nn.Buffer(torch.cartesian_prod(axis, axis).flip(1))  # (h w, 2), row by row

    def decode(self, embedding: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Embeddings (B, D, h, w), each used for all P prompts of its image."""
        sparse, side = self.prompts(prompts), embedding.shape[-1]
        B, P = sparse.shape[:2]
        tokens = first = torch.cat([self.tokens.expand(B * P, -1, -1), sparse.flatten(0, 1)], 1)  # (n, 8, D), n = B P
        image = embedding.flatten(2).mT.repeat_interleave(P, 0)  # (B, D, h, w) -> (n, h w, D)
        for block in self.blocks:
            tokens, image = block(tokens, image, first, self.prompts.position(self.places))
        upsampled = self.upscale(image.mT.unflatten(2, (side, side)))  # (n, D / 4, S, S)
        weights = torch.stack([each(tokens[:, 1 + k]) for k, each in enumerate(self.weigh)], 1)  # (n, 4, D / 4)
        masks = (weights @ upsampled.flatten(2)).view(B, P, 4, SIDE, SIDE)
        return masks, self.rate(tokens[:, 0]).view(B, P, 4)

    def forward(self, images: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        return self.decode(self.encoder(images), prompts)


if __name__ == "__main__":
    model = SAM(preset.width)
    parts = {"image encoder, once": model.encoder, "all": model}
    logits, rated = model(scenes.images, click)
    run.show("answers", [{"four masks of": f"{count_parameters(each):,} parameters, {name}"} for name, each in parts.items()]
             + [{"four masks of": f"logits {tuple(logits.shape)}, rated IoUs {tuple(rated.shape)}"}])  # fmt: skip

# %% [markdown]
# ## Only the best of three masks is trained
# One mask for an ambiguous click would average over its meanings. So a lone click has three, and the loss reaches the best:
# $$\mathcal L = \min_{k\in\{1,2,3\}}\big(20\,\mathcal L_{focal}(m_k, y) + \mathcal L_{dice}(m_k, y)\big)$$
# Boxes and several clicks are answered by the fourth mask. A head learns the IoU of each mask by squared error.

# %%
Reach = Callable[[Tensor], Tensor]


def mask_losses(logits: Tensor, target: Tensor) -> Tensor:
    """20 focal + dice of each mask: logits (B, P, k, S, S), targets (B, P, S, S) -> (B, P, k)."""
    y, p = target[:, :, None].expand_as(logits).float(), logits.sigmoid()
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
    focal = (cross_entropy * (1 - p * y - (1 - p) * (1 - y)) ** 2).mean((-2, -1))
    dice = 1 - (2 * (p * y).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + y.sum((-2, -1)) + 1)
    return 20 * focal + dice


def best_of_three(losses: Tensor) -> Tensor:
    """What a lone click pays, (B, P), from the loss of each mask (B, P, 4)."""
    return losses[..., LONE].min(-1).values


def ious(found: Tensor, target: Tensor) -> Tensor:
    """IoU over the last two axes of masks that broadcast; NaN if both are empty."""
    return (found & target).sum((-2, -1)) / (found | target).sum((-2, -1))


def loss_of(model: nn.Module, images: Tensor, masks: Tensor, generator: torch.Generator, reach: Reach) -> Tensor:
    """Loss of images (B, 3, S, S) with masks (B, 2 groups, 3 levels, S, S): two lone clicks, a box and three clicks each."""
    prompts, target = training_prompts(masks, generator)
    logits, rated = model(images, prompts)
    losses = mask_losses(logits.float(), target)  # (B, 4 prompts, 4 masks)
    paid = torch.cat([reach(losses[:, :2]), losses[:, 2:, JOINT]], 1)
    actual = ious(logits.detach() > 0, target[:, :, None])
    return paid.mean() + nn.functional.mse_loss(rated.float(), actual)


if __name__ == "__main__":
    levels = scenes.masks[:1, :1].float() * 20 - 10  # three masks, each right for one meaning of the click
    paid = mask_losses(levels, scenes.masks[:1, :1, 0])[0, 0].tolist()
    names = ("digit", "inner plate", "outer plate")
    run.show("losses", [{"the digit was meant, mask": n, "loss": loss} for n, loss in zip(names, paid, strict=True)])

# %% [markdown]
# ## Train it


# %%
@cache
def train(run: Run, seed: int, rate: float, reach: Reach) -> SAM:
    """A network for this seed, once for the pictures and the experiments; `reach`: which masks of a lone click learn."""
    preset, device = PRESETS[run.preset], run.device
    seed_everything(seed)
    model, generator = SAM(preset.width), torch.Generator(device).manual_seed(seed)
    data = [each.to(device) for each in nested("train", preset.images[0], seed)]
    batches, loss = (
        minibatches(data, preset.batch, preset.steps, seed),
        partial(loss_of, generator=generator, reach=reach),
    )
    fit(model, batches, loss, steps=preset.steps, learning_rate=rate * preset.rate, device=device)
    return model


@torch.inference_mode()
def segment(model: nn.Module, images: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Masks (n, P, 4, S, S) and rated IoUs (n, P, 4), on the CPU."""
    device = next(model.parameters()).device
    parts = zip(*(each.to(device).split(50) for each in (images, *prompts)), strict=True)
    found = [model(image, Prompts(points, kinds)) for image, points, kinds in parts]
    return torch.cat([(logits > 0).cpu() for logits, _ in found]), torch.cat([rated.cpu() for _, rated in found])


if __name__ == "__main__":
    model = train(run, run.seeds[0], RATE, best_of_three)
    test = nested("test", preset.images[1], run.seeds[0])
    click = clicks(test.masks[:, :, 0], torch.Generator().manual_seed(0))
    masks, rated = segment(model, test.images, click)
    found = ious(masks[:, :, None, LONE], test.masks[:, :, :, None]).mean((0, 1)).tolist()  # (levels, masks)
    run.show(
        "trained",
        [{"IoU with": n} | {f"mask {k + 1}": v for k, v in enumerate(r)} for n, r in zip(names, found, strict=True)],
    )

# %% [markdown]
# ## One click, three masks
# The star is the click. Above each mask stands its IoU as the model itself rates it: with an annotation drawn from three, so
# even a perfect mask earns little more than one half.


# %%
def draw_answers(style: Style, images: Tensor, points: Tensor, masks: Tensor, rated: Tensor) -> Figure:
    """A row for each of the images (n, 3, S, S): the click (n, 2), and masks (n, 3, S, S) with ratings (n, 3)."""
    figure, axes = panels(len(images), 4, width=5.4, height=1.6 * len(images))
    for line, image, point, answers, ratings in zip(axes, images, points, masks, rated, strict=True):
        show_image(line[0], image)
        line[0].plot(*(point - 0.5).tolist(), "*", color="#F2D34B", markeredgecolor="black", markersize=12)
        for ax, mask, rating in zip(line[1:], answers, ratings, strict=True):
            show_image(ax, mask.float(), f"rated {rating:.2f}")
    return figure


if __name__ == "__main__":
    run.figure(
        "answers",
        partial(draw_answers, images=test.images[:3], points=click.points[:3, 0, 0], masks=masks[:3, 0, LONE],
                rated=rated[:3, 0, LONE]),
        caption="The first test scenes. Nobody told the masks apart: each became the expert of a level of nesting.",
        alt="Three scenes with a click on nested plates, and three binary masks for each of them, of different extent.",
    )  # fmt: skip

# %% [markdown]
# ## Your own image
# The published SAM ViT-B, from the hub of transformers: three masks for a click in the middle of a photograph, or of yours.


# %%
def published(image: Any) -> weights.Masks:
    from transformers import SamModel, SamProcessor

    processor = SamProcessor.from_pretrained("facebook/sam-vit-base")
    network = SamModel.from_pretrained("facebook/sam-vit-base").eval()
    point = [image.width / 2, image.height / 2]
    inputs = processor(image, input_points=[[[point]]], return_tensors="pt")
    out = network(**inputs)
    (masks,) = processor.post_process_masks(out.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    return masks[0], [f"rated {rating:.2f}" for rating in out.iou_scores[0, 0]], point


if __name__ == "__main__":
    weights.show_masks(run, "facebook/sam-vit-base", published, megabytes=375, otherwise="coffee")
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - The image encoder is a convolutional stem with one transformer block, at a stride of 4 instead of 16, trained from scratch
#   on a few thousand pictures instead of SA-1B. This tests mechanisms and says nothing about published accuracies.
# - Training clicks against errors are drawn against the whole group and against the digit, not against the model's own masks,
#   and masks are not fed back as prompts. The decoder has no last attention from tokens to image.
# - Focal loss here has no class balance. Masks are predicted at the resolution of the image, not at a quarter of it.
