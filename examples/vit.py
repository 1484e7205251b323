# %% [markdown]
# # ViT: when does attention over patches catch up with convolution?
#
# An image is cut into patches, each patch becomes a token, and a plain transformer encoder classifies the sequence.
# Nothing in it says that neighbouring pixels belong together. Here is the model, trained on a thousand digits; the
# experiments set it beside a CNN of the same size on few and on many digits, and shuffle its patches.
#
# | symbol (arXiv:2010.11929) | here | meaning |
# |---|---|---|
# | $P$, $N = HW / P^2$ | `patch`, `N` | side of a patch in pixels, number of patches |
# | $\mathbf{x}_p$ | `patches` | patches, flattened, (B, N, C P P) |
# | $\mathbf{E}$, $\mathbf{E}_{pos}$ | `patch_embed.proj`, `pos_embed` | projection of patches, position embeddings |
# | $\mathbf{x}_{class}$ | `cls_token` | the class token, learned |
# | $\mathbf{z}_\ell$ | `z` | tokens after block $\ell$, (B, N + 1, D) |
# | $D$, $L$, $k$ | `width`, `depth`, `heads` | width of a token, number of blocks, heads of each block |
# | $A$ | `weights` | attention weights of all heads, (B, k, N + 1, N + 1) |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from lab import weights
from lab.data.digits import digits, digits_at_places, placed
from lab.data.photographs import square_photograph
from lab.figures import Figure, Style, panels, show_heat, show_image
from lab.metrics import accuracy
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from torch import Tensor, nn

DIGIT, CANVAS, CLASSES = 28, 32, 10  # side of a digit and of its canvas in pixels; number of classes
RATE = 2e-3  # peak learning rate, see claims/vit.searches.json
SYNCHRONISATIONS_PER_STEP = 0  # digits lie, and are placed, on the device


class Preset(NamedTuple):
    """Numbers of training digits, steps, images in a step, P, D, L, k, and a factor on the rate."""

    sizes: tuple[int, int] = (50, 1297)
    steps: int = 800
    batch: int = 32
    patch: int = 8
    width: int = 32
    depth: int = 3
    heads: int = 4
    rate: float = 1.0


PRESETS = {
    "smoke": Preset((20, 40), steps=3),
    "quick": Preset(),
    "full": Preset(steps=10_000, batch=128, patch=4, width=128, depth=6, heads=8, rate=0.25),
}

# %% [markdown]
# ## Patches become tokens
# A patch is flattened to a vector of $P^2 C$ numbers and projected to $D$. A learned *class* token goes in front, from
# which the class is read at the end, and a learned vector for each place is added (Eq. 1):
# $$\mathbf{z}_0 = [\mathbf{x}_{class};\ \mathbf{x}_p^1\mathbf{E};\ \dots;\ \mathbf{x}_p^N\mathbf{E}]
# {} + \mathbf{E}_{pos}$$


# %%
def patches_from_images(images: Tensor, patch: int) -> Tensor:
    """Cuts images into patches, row by row: (B, C, H, W) -> (B, N, C P P).

    Raises ValueError if height and width are not multiples of `patch`.
    """
    B, C, H, W = images.shape
    if H % patch or W % patch:
        raise ValueError(f"an image of {H} x {W} pixels cannot be cut into patches of {patch} x {patch}")
    grid = images.reshape(B, C, H // patch, patch, W // patch, patch)  # (B, C, rows, P, columns, P)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(B, -1, C * patch * patch)  # (B, N, C P P)


class PatchEmbedding(nn.Module):
    """The linear projection of patches, (B, C, H, W) -> (B, N, D)."""

    def __init__(self, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(channels * patch * patch, width)  # E

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(patches_from_images(images, self.patch))  # x_p E


def draw_patches(style: Style, photo: Tensor) -> Figure:
    """A photograph (3, 224, 224), and its patches of 32 px, a gap around each, with their places in the sequence."""
    tiles = patches_from_images(photo[None], 32).reshape(7, 7, 3, 32, 32)
    gap = torch.tensor([int(style.page[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    apart = gap[:, None, None].repeat(7, 7, 1, 38, 38)
    apart[..., 3:-3, 3:-3] = tiles
    figure, axes = panels(1, 2, width=5.4, height=3.0)
    show_image(axes[0, 0], photo, "224 x 224 pixels")
    show_image(axes[0, 1], apart.permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3), "49 patches, 49 tokens")
    for place in range(49):
        x, y = 38 * (place % 7) + 18.5, 38 * (place // 7) + 18.5
        axes[0, 1].text(x, y, str(place + 1), color="white", ha="center", va="center", fontsize=9)
    return figure


if __name__ == "__main__":
    run = Run.start("vit", pretrained=True)
    preset = PRESETS[run.preset]
    run.figure(
        "patches",
        partial(draw_patches, photo=square_photograph("cat", 224)),
        caption="An image becomes a sequence: patches in reading order, behind the class token (0). Patches of 32 px as in "
        "ViT-B/32, since the 196 of ViT-B/16 would be too small to see.",
        alt="A photograph of a cat, and the same photograph cut into a grid of 7 by 7 square patches, numbered 1 to 49.",
    )

# %% [markdown]
# ## The encoder: every token looks at every token
# Self-attention (appendix A) projects each token to a query, a key and a value, for each head:
# $$[\mathbf{q}, \mathbf{k}, \mathbf{v}] = \mathbf{z}\mathbf{U}_{qkv}, \quad
# A = \mathrm{softmax}(\mathbf{q}\mathbf{k}^\top / \sqrt{D_h}), \quad \mathrm{SA}(\mathbf{z}) = A\mathbf{v}$$
# A block normalises first, and adds what attention and MLP find to what was there. The parts carry timm's names, so
# that its weights fit in; a test holds that both then compute the same.


# %%
class SelfAttention(nn.Module):
    """Multi-head self-attention, (B, N, D) -> (B, N, D); Eq. 5 to 8, appendix A, arXiv:2010.11929."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)  # U_qkv of all heads
        self.proj = nn.Linear(width, width)  # U_msa

    def weights_and_values(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """A (B, k, N, N), whose rows sum to one, and v (B, k, N, D / k)."""
        qkv = self.qkv(z).unflatten(2, (3, self.heads, -1))  # (B, N, 3 D) -> (B, N, 3, k, D / k)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # Eq. 5: each (B, k, N, D / k)
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1), v  # Eq. 6

    def forward(self, z: Tensor) -> Tensor:
        weights, v = self.weights_and_values(z)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))  # Eq. 7 and 8: (B, k, N, D / k) -> (B, N, D)


class MLP(nn.Module):
    """Each token for itself: four times as wide in the middle, with a GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, z: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(z)))


class Block(nn.Module):
    """One block of the encoder, (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), SelfAttention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), MLP(width)

    def attend(self, z: Tensor) -> Tensor:
        return z + self.attn(self.norm1(z))  # Eq. 2

    def think(self, z: Tensor) -> Tensor:
        return z + self.mlp(self.norm2(z))  # Eq. 3, each token for itself

    def forward(self, z: Tensor) -> Tensor:
        return self.think(self.attend(z))


class ViT(nn.Module):
    """Images (B, C, H, W) -> class scores (B, K). `patch_embed` makes N tokens (B, N, D) of images."""

    def __init__(self, patch_embed: nn.Module, tokens: int, width: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)

    def embed(self, images: Tensor) -> Tensor:
        """Eq. 1: z_0 (B, N + 1, D)."""
        return torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(images)], 1) + self.pos_embed

    def forward(self, images: Tensor) -> Tensor:
        last: Any = self.blocks[-1]
        z = last.attend(self.blocks[:-1](self.embed(images)))[:, 0]  # only the class token is read,
        return self.head(self.norm(last.think(z)))  # so the last Eq. 3 is left out for the others; Eq. 4

    def attention(self, images: Tensor) -> Tensor:
        """The attention weights of all blocks, (L, B, k, N + 1, N + 1)."""
        z, found = self.embed(images), []
        block: Any
        for block in self.blocks:
            found.append(block.attn.weights_and_values(block.norm1(z))[0])
            z = block(z)
        return torch.stack(found)


def build(preset: Preset) -> ViT:
    """An untrained ViT for digits."""
    embed = PatchEmbedding(preset.patch, 1, preset.width)
    return ViT(embed, (CANVAS // preset.patch) ** 2, preset.width, preset.depth, preset.heads, CLASSES)


if __name__ == "__main__":
    model, noise = build(preset), torch.rand(2, 1, CANVAS, CANVAS)
    shapes = {"patches": patches_from_images(noise, preset.patch), "tokens": model.embed(noise),
              "attention weights": model.attention(noise), "class scores": model(noise)}  # fmt: skip
    run.show("shapes", [{"of two images": name, "shape": str(tuple(each.shape))} for name, each in shapes.items()])

# %% [markdown]
# ## Train it
# Handwritten digits at a random place of a black canvas, elsewhere each time.


# %%
def training_batches(count: int, preset: Preset, seed: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of `count` training digits, chosen by the seed and placed anew each time, from -1 to 1."""
    generator, source = torch.Generator(device).manual_seed(seed), digits("train", DIGIT)
    chosen = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))[:count]
    tensors = (source.images[chosen].to(device), source.labels[chosen].to(device))
    for images, labels in minibatches(tensors, preset.batch, preset.steps, seed):
        yield 2 * placed(images, CANVAS, generator) - 1, labels


def train(model: nn.Module, run: Run, count: int, seed: int, rate: float) -> list[float]:
    """Trains on `count` digits; returns the loss of each step."""

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(images), labels)

    preset, device = PRESETS[run.preset], run.device
    batches = training_batches(count, preset, seed, device)
    return fit(model, batches, loss, steps=preset.steps, learning_rate=rate * preset.rate, device=device)


@cache
def trained_vit(run: Run, count: int, seed: int, rate: float) -> tuple[ViT, list[float]]:
    """The ViT of a seed and the loss of each step, once for the pictures and the experiments."""
    seed_everything(seed)
    model = build(PRESETS[run.preset])
    return model, train(model, run, count, seed, rate)


if __name__ == "__main__":
    model, losses = trained_vit(run, preset.sizes[-1], run.seeds[0], RATE)
    images, labels = digits_at_places("test", DIGIT, CANVAS, places=1)
    with torch.inference_mode():
        right = 100 * accuracy(model((2 * images - 1).to(run.device)).cpu(), labels)
    run.show(
        "trained",
        f"{count_parameters(model):,} parameters, last loss {losses[-1]:.3f}; {right:.1f} % of test digits right",
    )

# %% [markdown]
# ## What the class token looks at
# The attention of the class token in the last block, mean over heads: which patches the answer is read from.


# %%
def draw_attention(style: Style, images: Tensor, maps: Tensor) -> Figure:
    """Images (n, C, H, W) from 0 to 1, and below each its map (n, rows, columns) of attention."""
    figure, axes = panels(2, len(images), width=5.4, height=2.8)
    for above, below, image, heat in zip(*axes, images, maps, strict=True):
        show_image(above, image)
        show_heat(below, image.expand(3, -1, -1), heat)
    return figure


def class_attention(model: ViT, images: Tensor) -> Tensor:
    """The attention of the class token to each patch in the last block, mean over heads: (B, rows, columns)."""
    looks = model.attention(images)[-1].mean(1)[:, 0, 1:].cpu()  # (L, B, k, N + 1, N + 1) -> (B, N)
    return looks.unflatten(1, (round(looks.shape[1] ** 0.5), -1))


if __name__ == "__main__":
    with torch.inference_mode():
        maps = class_attention(model, (2 * images[:4] - 1).to(run.device))
    run.figure(
        "class_attention",
        partial(draw_attention, images=images[:4], maps=maps),
        caption="Test digits, and where the class token looks in the last block (bright: much).",
        alt="Four digits, and below each the same under a map of attention weights.",
    )

# %% [markdown]
# ## Your own image
# The ViT-B/16 that timm publishes, its weights put into the classes above: what it sees in a photograph, and where it looks.


# %%
def vit_from_timm(model: nn.Module) -> ViT:
    """A plain ViT of timm (class token, learned positions) in the classes of this file, in evaluation mode."""
    state: dict[str, Any] = dict(model.state_dict())
    blocks: Any = model.get_submodule("blocks")
    E = state["patch_embed.proj.weight"]  # timm writes the projection as a convolution, (D, C, P, P)
    state["patch_embed.proj.weight"] = E.flatten(1)  # (D, C P P)
    width, channels, patch, _ = E.shape
    tokens, classes, heads = state["pos_embed"].shape[1] - 1, len(state["head.weight"]), blocks[0].attn.num_heads
    vit = ViT(PatchEmbedding(patch, channels, width), tokens, width, len(blocks), heads, classes)
    vit.load_state_dict(state)
    return vit.eval()


def published(image: Any) -> weights.Heat:
    import timm

    network = timm.create_model("vit_base_patch16_224.augreg2_in21k_ft_in1k", pretrained=True)
    vit, config = vit_from_timm(network), timm.data.resolve_model_data_config(network)
    pixels = timm.data.create_transform(**config)(image)[None]
    scores, best = vit(pixels)[0].softmax(-1).max(-1)
    name = timm.data.ImageNetInfo().index_to_description(int(best))
    return pixels[0] * 0.5 + 0.5, class_attention(vit, pixels)[0], f"{name} ({100 * scores:.0f} %)"


if __name__ == "__main__":
    weights.show_heat(run, "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", published, megabytes=345, otherwise="cat")
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - Nothing is pretrained. The paper's ViTs pass the CNNs after pretraining on 14 to 300 million images; here a thousand
#   digits are the large set. The question is whether the gap narrows, not whether it turns.
# - Digits are no photographs: strokes on black, one channel, ten classes, and shifted by a few pixels only.
# - The ViT is tiny, with four patches to a side in `quick`, and trained without dropout.
# - AdamW with a weight decay of 1e-4, where the paper pretrains with Adam and 0.03 to 0.3. The head is one linear layer from
#   the start; the paper pretrains with a hidden layer in it.
