# %% [markdown]
# # ViT: when does attention over patches catch up with convolution?
#
# An image is cut into patches, each patch becomes a token, and a plain transformer encoder classifies the sequence.
# Nothing in it says that neighbouring pixels belong together, so that has to be learned from data: a small ViT is
# trained beside a CNN of about the same size on more and more digits. The other two experiments take the order of
# the patches away, and count what attention costs as the image grows.
#
# | symbol (arXiv:2010.11929) | here | meaning |
# |---|---|---|
# | $(H, W)$, $C$ | `image_size`, `channels` | size of the image in pixels, its channels |
# | $P$, $N = HW / P^2$ | `patch`, `N` | side of a patch in pixels, number of patches |
# | $\mathbf{x}_p$ | `patches` | patches, flattened |
# | $\mathbf{E}$, $\mathbf{E}_{pos}$ | `patch_embed.proj`, `pos_embed` | linear projection of patches, position embeddings |
# | $\mathbf{z}_\ell$ | `z` | tokens after block $\ell$, (B, N + 1, D) |
# | $D$, $L$, $k$ | `width`, `depth`, `heads` | width of a token, blocks, heads of each block |
# | $A$ | `weights` | attention weights of the heads, (B, k, N + 1, N + 1) |

# %%
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import timm
import torch
from lab.data.digits import digits, shifted_digits
from lab.data.photographs import NAMES, photograph
from lab.figures import Figure, Style, panels, seed_bars, seed_lines, show_image
from lab.metrics import accuracy
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

DIGIT, CANVAS, CLASSES = 20, 32, 10  # side of a digit and of its canvas in pixels; number of classes
ARMS = ("vit", "cnn", "hybrid")
LABELS = {"vit": "ViT", "cnn": "CNN", "hybrid": "ViT, conv stem"}
# Peak learning rates, chosen on the validation digits with seeds 100 and 101.
LEARNING_RATES = {"vit": 1e-3, "vit_without_positions": 1e-3, "cnn": 1e-3, "hybrid": 1e-3}


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        sizes: numbers of training digits, growing.
        steps: of the optimiser, for each of the sizes.
        batch: images in a step.
        patch, width, depth, heads: of the ViT.
        cnn: channels of the CNN's convolutions; the second and all later ones halve the image.
        stem: channels of the hybrid's convolutions before the last one, which has `width`.
        places: how many times each test digit is placed on its canvas.
        resolutions: of the images whose cost is counted, pixels.
    """

    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    batch: int = 32
    patch: int = 8
    width: int = 32
    depth: int = 3
    heads: int = 4
    cnn: tuple[int, ...] = (8, 16, 32, 48, 48)
    stem: tuple[int, ...] = (8, 16)
    places: int = 5
    resolutions: tuple[int, ...] = (224, 448, 672, 896, 1120)


PRESETS = {
    "smoke": Preset(sizes=(20, 40), steps=(3, 4), places=1, resolutions=(224, 1120)),
    "quick": Preset(sizes=(50, 250, 1297), steps=(600, 1000, 2400)),
    "full": Preset(
        sizes=(50, 150, 450, 1297),
        steps=(4000, 6000, 8000, 12000),
        batch=128,
        patch=4,
        width=128,
        depth=6,
        heads=8,
        cnn=(32, 64, 128, 272, 304),
        stem=(64,),
    ),
}

# %% [markdown]
# ## Patches become tokens
# A patch is flattened to a vector of $P^2 C$ numbers and projected to $D$. In front of the sequence stands one learned
# *class* token, from which the class is read at the end. A learned vector for each place is added:
# $$\mathbf{z}_0 = [\mathbf{x}_{class};\, \mathbf{x}_p^1\mathbf{E};\, \dots;\, \mathbf{x}_p^N\mathbf{E}] + \mathbf{E}_{pos}$$


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


def images_from_patches(patches: Tensor, patch: int, width: int) -> Tensor:
    """Puts patches back in place: (B, N, C P P) -> (B, C, H, width); the inverse of `patches_from_images`."""
    B, N, _ = patches.shape
    columns = width // patch
    grid = patches.reshape(B, N // columns, columns, -1, patch, patch)  # (B, rows, columns, C, P, P)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(B, -1, N // columns * patch, width)  # (B, C, H, W)


class PatchEmbedding(nn.Module):
    """Linear projection of flattened patches: (B, C, H, W) -> (B, N, D)."""

    def __init__(self, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(channels * patch * patch, width)  # E

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.proj(patches_from_images(images, self.patch))  # x_p E of Eq. 1, arXiv:2010.11929
        return tokens


def draw_patches(style: Style) -> Figure:
    """A photograph, its patches of 32 px, and the sequence that the encoder gets."""
    photo = torch.from_numpy(photograph("cat")[:, 75:375].copy()).permute(2, 0, 1)[None]  # (1, 3, 300, 300)
    photo = F.interpolate(photo, size=(224, 224), mode="bilinear", antialias=True)
    tiles = patches_from_images(photo, 32).reshape(49, 3, 32, 32)
    figure, (top, below) = panels(2, 2, height=5.0, height_ratios=[2.9, 1])
    show_image(top[0], photo[0], "224 x 224 pixels")
    show_image(top[1], _tiled(tiles, 7, style, gap=5), "49 patches of 32 x 32 pixels")
    for ax in below:
        ax.remove()
    ax = figure.add_subplot(below[0].get_gridspec()[1, :])
    class_token = torch.tensor(to_rgb(style.cycle[0]))[:, None, None].expand(1, 3, 32, 32)
    show_image(ax, _tiled(torch.cat([class_token, tiles]), 25, style, gap=5, row_gap=24), "one sequence of 50 tokens")
    for place in range(50):
        row, column = divmod(place, 25)
        ax.text(37 * column + 15.5, 56 * row + 34, str(place), ha="center", va="top", fontsize=7)
    ax.set_ylim(112, -1)
    return figure


def _tiled(tiles: Tensor, columns: int, style: Style, gap: int, row_gap: int | None = None) -> NDArray[np.float32]:
    """Tiles (n, 3, P, P) laid out in rows with gaps in the colour of the page."""
    side, rows = tiles.shape[-1], -(-len(tiles) // columns)
    pitch = side + (gap if row_gap is None else row_gap)
    sheet = np.ones((rows * pitch - pitch + side, columns * (side + gap) - gap, 3), np.float32)
    sheet *= np.array(to_rgb(style.page), np.float32)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        y, x = row * pitch, column * (side + gap)
        sheet[y : y + side, x : x + side] = tile.permute(1, 2, 0).numpy()
    return sheet


def show_patches(run: Run) -> None:
    run.figure(
        "patches",
        draw_patches,
        caption="An image becomes a sequence: the patches in reading order, behind the class token (token 0). "
        "Larger patches than the usual 16 px, as in ViT-B/32, keep the sequence short enough to print.",
        alt="A photograph of a cat, the same photograph cut into a grid of 7 by 7 square patches, and below them the "
        "49 patches lined up as one sequence behind a plain class token, numbered 0 to 49.",
    )


# %% [markdown]
# ## The block: every token looks at every token
# Self-attention (appendix A) projects each token to a query, a key and a value, per head:
# $$[\mathbf{q}, \mathbf{k}, \mathbf{v}] = \mathbf{z}\mathbf{U}_{qkv}, \quad
# A = \mathrm{softmax}(\mathbf{q}\mathbf{k}^\top / \sqrt{D_h}), \quad \mathrm{SA}(\mathbf{z}) = A\mathbf{v}$$
# The block normalises first (pre-norm), and adds what attention and MLP find to what was there. The parts carry the
# names that timm gives them, so that timm's weights fit in, and a test holds that both then give the same numbers.


# %%
class SelfAttention(nn.Module):
    """Multi-head self-attention, Eq. 5 to 8 of appendix A, arXiv:2010.11929."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)  # U_qkv of all heads
        self.proj = nn.Linear(width, width)  # U_msa

    def split(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Eq. 5: tokens (B, N, D) -> queries, keys and values, each (B, k, N, D / k)."""
        B, N, D = z.shape
        qkv = self.qkv(z).reshape(B, N, 3, self.heads, D // self.heads)  # (B, N, 3, k, D / k)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Eq. 6: A, (B, k, N, N); each row sums to one."""
        return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)

    def forward(self, z: Tensor) -> Tensor:
        q, k, v = self.split(z)
        heads = self.weights(q, k) @ v  # Eq. 7: (B, k, N, D / k)
        mixed: Tensor = self.proj(heads.transpose(1, 2).reshape(z.shape))  # Eq. 8: (B, k, N, D / k) -> (B, N, D)
        return mixed


class MLP(nn.Module):
    """Two layers with a GELU between, four times as wide in the middle; each token for itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(z)))
        return out


class Block(nn.Module):
    """One block of the encoder: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width)

    def forward(self, z: Tensor) -> Tensor:
        z = z + self.attn(self.norm1(z))  # Eq. 2
        z = z + self.mlp(self.norm2(z))  # Eq. 3
        return z


class ViT(nn.Module):
    """Vision transformer: images (B, C, H, W) -> class scores (B, K).

    Args:
        patch_embed: images (B, C, H, W) -> tokens (B, N, D): `PatchEmbedding`, or `ConvStem` for the hybrid.
        tokens: N.
        width, depth, heads: D, L and k.
        classes: K.
        positions: False leaves the position embeddings out; the encoder then sees a bag of patches.
    """

    def __init__(
        self,
        patch_embed: nn.Module,
        *,
        tokens: int,
        width: int,
        depth: int,
        heads: int,
        classes: int = CLASSES,
        positions: bool = True,
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, tokens + 1, width) * 0.02) if positions else None
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def embed(self, images: Tensor) -> Tensor:
        """Eq. 1: z_0, (B, N + 1, D)."""
        patches = self.patch_embed(images)
        z = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)
        return z if self.pos_embed is None else z + self.pos_embed

    def forward(self, images: Tensor) -> Tensor:
        z = self.embed(images)
        for block in self.blocks:
            z = block(z)
        scores: Tensor = self.head(self.norm(z[:, 0]))  # Eq. 4: the class token alone is read
        return scores

    def attention(self, images: Tensor) -> Tensor:
        """The attention weights of all blocks, (L, B, k, N + 1, N + 1)."""
        z, weights = self.embed(images), []
        for block in self.blocks:
            q, k, _ = block.attn.split(block.norm1(z))
            weights.append(block.attn.weights(q, k))
            z = block(z)
        return torch.stack(weights)


# %% [markdown]
# ## The rivals, about as large
# The CNN is a plain stack of 3x3 convolutions with batch norm and ReLU, and global average pooling. Locality and weight
# sharing over the image are built into it. The hybrid (Section 3.1 of the paper) sits between: its tokens come from a
# few strided convolutions, as in arXiv:2106.14881, in place of the flat projection of patches.


# %%
def convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution with batch norm and ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class CNN(nn.Module):
    """Images (B, 1, H, W) -> class scores (B, K); every convolution but the first halves the image."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = zip((1, *widths), widths, strict=False)
        self.layers = nn.ModuleList(convolution(a, b, 2 if i else 1) for i, (a, b) in enumerate(pairs))
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = images
        for layer in self.layers:
            features = layer(features)
        scores: Tensor = self.head(features.mean((2, 3)))  # (B, D, H', W') -> (B, D) -> (B, K)
        return scores


class ConvStem(nn.Module):
    """Strided convolutions in place of patches: (B, 1, H, W) -> (B, N, D)."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        pairs = zip((1, *widths[:-1]), widths, strict=True)
        self.layers = nn.Sequential(*(convolution(a, b, 2) for a, b in pairs))
        self.proj = nn.Conv2d(widths[-1], width, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.proj(self.layers(images))  # (B, D, H / P, W / P)
        return features.flatten(2).transpose(1, 2)  # (B, D, H / P, W / P) -> (B, N, D)


def build(arm: str, preset: Preset) -> nn.Module:
    """The untrained model of an arm, with random weights.

    Raises KeyError for an arm that does not exist.
    """
    stems: dict[str, Callable[[], nn.Module]] = {
        "vit": lambda: PatchEmbedding(preset.patch, 1, preset.width),
        "vit_without_positions": lambda: PatchEmbedding(preset.patch, 1, preset.width),
        "hybrid": lambda: ConvStem(preset.stem, preset.width),
    }
    if arm == "cnn":
        return CNN(preset.cnn)
    return ViT(
        stems[arm](),
        tokens=(CANVAS // preset.patch) ** 2,
        width=preset.width,
        depth=preset.depth,
        heads=preset.heads,
        positions=arm != "vit_without_positions",
    )


# %% [markdown]
# ## Data and training: the same for all
# Handwritten digits at random places of a black canvas. Each time that a digit is trained on, it lies elsewhere, for all
# arms alike: with one seed, all see the same digits in the same order at the same places.


# %%
def placed(images: Tensor, canvas: int, generator: torch.Generator) -> Tensor:
    """Puts each image at a random place of a black canvas: (B, 1, S, S) -> (B, 1, canvas, canvas)."""
    B, S = len(images), images.shape[-1]
    top, left = torch.randint(canvas - S + 1, (2, B), generator=generator)
    rows = top[:, None] + torch.arange(S)  # (B, S)
    columns = left[:, None] + torch.arange(S)  # (B, S)
    out = torch.zeros(B, canvas, canvas)
    out[torch.arange(B)[:, None, None], rows[:, :, None], columns[:, None]] = images[:, 0]  # (B, S, S)
    return out[:, None]


def normalised(images: Tensor) -> Tensor:
    """Pixels from [0, 1] to [-1, 1]."""
    return 2 * images - 1


def training_batches(count: int, steps: int, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of `count` training digits, chosen by the seed and placed anew each time."""
    generator = torch.Generator().manual_seed(seed)
    source = digits("train", DIGIT)
    chosen = torch.randperm(len(source), generator=generator)[:count]
    for images, labels in minibatches((source.images[chosen], source.labels[chosen]), batch, steps, seed):
        yield normalised(placed(images, CANVAS, generator)), labels


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def trained(arm: str, preset: Preset, size: int, seed: int, device: torch.device) -> nn.Module:
    """A model of `arm` after training on `size` digits, in evaluation mode."""
    seed_everything(seed)
    model, steps = build(arm, preset), preset.steps[preset.sizes.index(size)]
    batches = training_batches(size, steps, preset.batch, seed)
    fit(model, batches, cross_entropy, steps=steps, learning_rate=LEARNING_RATES[arm], device=device)
    return model
