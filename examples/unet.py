# %% [markdown]
# # U-Net: what do the skips carry that the decoder cannot make up for?
#
# An encoder halves the image again and again to see more of it at once, a decoder doubles it back, and at every level
# a skip hands the encoder's map across. Here is the network, trained on slices of a brain with planted tumours; the
# experiments take its skips away, add more pooling, and part touching nuclei under a real microscope.
#
# | symbol (card, arXiv:1505.04597) | here | meaning |
# |---|---|---|
# | $e^l$ | `maps[l]` | the encoder's map of level $l$, (B, C, H / 2^l, W / 2^l); level 0 is the finest |
# | $d^l$ | `x` in `decode` | the decoder's map of level $l$ |
# | $\mathrm{up}$, $f^l$ | `up`, `merge` | up-convolution; the two convolutions behind the concatenation |
# | $p_k$, $K$ | `scores.softmax(1)`, `CLASSES` | probability of class $k$ at a pixel; number of classes |
# | $w_c$ | `balance` | weight of a pixel in the loss, by its class |
# | $w_0$, $\sigma$, $d_1$, $d_2$ | `W0`, `SIGMA`, `nearest` | weight of a gap, its width, distances to the two nearest cells |
# | $r_i$, $k_i$, $s_i$ | `receptive_field`, `layers` | receptive field, kernel size and stride of layer $i$ |

# %%
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from lab.data import brain, nuclei
from lab.figures import Figure, Style, panels, show_image
from lab.pieces import distances, draw_gaps
from lab.run import Run
from lab.slices import CLASSES, FIXED, cropped, dices, draw_maps, legend, painted, segmented, smallest_near
from lab.training import Schedule, count_parameters, fit, minibatches, seed_everything
from torch import Tensor, nn

DEPTH = 3  # poolings
RATE = 2e-3  # peak learning rate, see claims/unet.searches.json
W0, SIGMA = 10.0, 5.0  # of the paper; sigma in pixels
SYNCHRONISATIONS_PER_STEP = 0  # slices and class weights lie on the device


class Preset(NamedTuple):
    """Sizes of a run.

    widths: channels of each level, by depth (number of poolings); parameters agree within 1 %.
    steps, batch: of the optimiser; slices in a step.
    slices: numbers of training, validation and test slices.
    crops, crop_steps: number of crops of the nuclei, and the steps to learn from them.
    rate: factor on the learning rate.
    """

    widths: Mapping[int, tuple[int, ...]] = {2: (8, 25, 85), 3: (8, 16, 32, 64)}
    steps: int = 300
    batch: int = 2
    slices: tuple[int, int, int] = (400, 24, 100)
    crops: int = 600
    crop_steps: int = 300
    millimetres: Literal[1, 2] = 2
    rate: float = 1.0


LARGE = {2: (16, 52, 167), 3: (16, 32, 64, 128)}
PRESETS = {
    "smoke": Preset(steps=2, slices=(8, 4, 24), crops=4, crop_steps=2),
    "quick": Preset(),
    "full": Preset(LARGE, 3000, 16, (2000, 100, 500), 6000, 3000, millimetres=1),
}

# %% [markdown]
# ## Down, up, and across
# Each level applies two 3x3 convolutions. A 2x2 max pooling leads down, a 2x2 up-convolution leads up, and the decoder
# merges what comes from below with the encoder's map of the same level:
# $$d^l = f^l\big(\,[\,e^l\,;\ \mathrm{up}(d^{l+1})\,]\,\big)$$
# What is laid beside the upsampled map is a method of its own, so that rivals can change this one thing.


# %%
def double_convolution(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch norm and ReLU: (B, inputs, H, W) -> (B, outputs, H, W)."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        convolution = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Gives each pixel of an image a score per class; `widths` are the channels of each level, the finest first."""

    def __init__(self, widths: Sequence[int], classes: int = CLASSES) -> None:
        super().__init__()
        pairs = list(pairwise(widths))  # (fine, deep) channels
        self.down = nn.ModuleList(double_convolution(a, b) for a, b in pairwise((1, *widths)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, fine, 2, stride=2) for fine, deep in pairs)
        self.merge = nn.ModuleList(double_convolution(2 * fine, fine) for fine, _ in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def encode(self, images: Tensor) -> list[Tensor]:
        """e^0, e^1, ...: images (B, 1, H, W) -> one map (B, C, H / 2^l, W / 2^l) per level."""
        maps = [self.down[0](images)]
        for block in self.down[1:]:
            maps.append(block(nn.functional.max_pool2d(maps[-1], 2)))
        return maps

    def beside(self, level: int, e: Tensor, below: Tensor, upsampled: Tensor) -> Tensor:
        """What is laid beside the upsampled map: e^l (B, C, h, w) itself. `below` is d^(l+1), (B, C', h / 2, w / 2)."""
        return e

    def decode(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """d^0, d^1, ...: the encoder's maps -> the decoder's, one for each level but the deepest."""
        x, decoded = maps[-1], []
        for level in reversed(range(len(self.up))):
            upsampled = self.up[level](x)
            beside = self.beside(level, maps[level], x, upsampled)
            x = self.merge[level](torch.cat([beside, upsampled], dim=1))  # 2 C channels -> C
            decoded.append(x)
        return decoded[::-1]

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) images -> (B, K, H, W) scores; H and W must be multiples of 2^depth."""
        return self.head(self.decode(self.encode(images))[0])


if __name__ == "__main__":
    run = Run.start("unet", pretrained=False)
    preset = PRESETS[run.preset]
    seed_everything(run.seeds[0])
    model = UNet(preset.widths[DEPTH])
    test = cropped("test", preset.slices[2], FIXED, preset.millimetres)
    maps = model.eval().encode(test.images[:1])
    decoded = model.decode(maps)
    rows = [
        {"level": level, "encoder": str(tuple(e.shape[1:])),
         "decoder": str(tuple(decoded[level].shape[1:])) if level < DEPTH else "the lowest: none"}
        for level, e in enumerate(maps)
    ]  # fmt: skip
    run.show("shapes", rows)

# %% [markdown]
# ## The deeper, the wider the view
# A unit of layer $i$ depends on a square of the image, its receptive field. Every kernel adds to its side, the more so
# the larger the step from one unit to the next already is:
# $$r_i = r_{i-1} + (k_i - 1) \prod_{j<i} s_j$$


# %%
def encoder_layers(level: int) -> list[tuple[int, int]]:
    """Kernel size and stride of every layer from the image to the encoder's map of `level`."""
    return [(3, 1), (3, 1)] + [(2, 2), (3, 1), (3, 1)] * level


def receptive_field(layers: Sequence[tuple[int, int]]) -> int:
    """Side in pixels of what a unit behind these layers depends on."""
    side, step = 1, 1
    for kernel, stride in layers:
        side += (kernel - 1) * step
        step *= stride
    return side


if __name__ == "__main__":
    fields = [receptive_field(encoder_layers(level)) for level in range(DEPTH + 1)]
    run.show("fields", [{"level": level, "sees (pixels)": side} for level, side in enumerate(fields)])

# %% [markdown]
# ## Rare classes weigh more
# The loss is the cross entropy of the paper (Eq. 1), here per unit of weight. The first term of the weight map, $w_c$,
# balances the classes: $E = -\sum_{\mathbf{x}} w(\mathbf{x}) \log p_{\ell(\mathbf{x})}(\mathbf{x})$.


# %%
def balance(labels: Tensor, classes: int = CLASSES) -> Tensor:
    """w_c: class weights (K,), the frequency of each class to the power -0.85, 1 for the background.

    The power was chosen on validation slices: from -0.5 to -0.7, most networks without skips find no tumour at all.
    """
    weights = torch.stack([(labels == k).sum() for k in range(classes)]).float().clamp(min=1) ** -0.85
    return weights / weights[0]


def energy(scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """E: scores (B, K, H, W), labels and weights (B, H, W)."""
    return (weights * nn.functional.cross_entropy(scores, labels, reduction="none")).sum() / weights.sum()


def training_slices(run: Run, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, 1, H, W) and labels (N, H, W) of this seed, on the device."""
    preset = PRESETS[run.preset]
    made = cropped("train", preset.slices[0], seed, preset.millimetres)
    return made.images.to(run.device), made.labels.to(run.device)


if __name__ == "__main__":
    labels = training_slices(run, run.seeds[0])[1]
    shares = [100 * (labels == k).float().mean().item() for k in range(CLASSES)]
    weights = balance(labels).tolist()
    run.show(
        "weights", [{"class": brain.LABELS[k], "pixels (%)": shares[k], "weight": weights[k]} for k in range(CLASSES)]
    )

# %% [markdown]
# ## Thin gaps weigh most
# A class has no borders within: cells that touch run together. So a seam of background is drawn between them, and the second
# term of the weight map makes it dear to miss it, with the distances to the nearest and to the second nearest cell:
# $$w(\mathbf{x}) = w_c(\mathbf{x}) + w_0 \exp\!\left(-\frac{(d_1(\mathbf{x}) + d_2(\mathbf{x}))^2}{2\sigma^2}\right)$$


# %%
def parted(labels: Tensor) -> Tensor:
    """Where a cell is, bool (H, W): labels (H, W) of cells 1, 2, ... without the pixels that another cell adjoins."""
    inside, cells = labels > 0, labels[None].float()
    highest = nn.functional.max_pool2d(cells, 3, 1, 1)[0]
    lowest = -nn.functional.max_pool2d(-cells.where(inside, torch.inf), 3, 1, 1)[0]
    return inside & (highest == labels) & (lowest == labels)


def gap_weights(labels: Tensor) -> Tensor:
    """The second term (H, W) for labels (H, W) of two cells or more; it holds for the background between them."""
    cells = torch.where(parted(labels), labels, 0)
    nearest = distances(cells).topk(2, dim=0, largest=False).values  # d_1, d_2
    return torch.where(cells > 0, 0, W0 * torch.exp(-(nearest.sum(0) ** 2) / (2 * SIGMA**2)))


if __name__ == "__main__":
    if reason := nuclei.missing():
        run.show("gaps", f"Left out: {reason}")
    else:
        image, cells = nuclei.nuclei("train")
        run.figure(
            "gaps",
            partial(draw_gaps, image=image, cells=parted(cells), weights=gap_weights(cells)),
            caption="Nuclei under a fluorescence microscope, their masks with a seam where two of them touch, and the second "
            "term of the weight map: the thinner a gap, the more its pixels weigh.",
            alt="Three squares: nuclei, some of them touching; their areas, apart; and a map, bright between close neighbours.",
        )

# %% [markdown]
# ## Train it
# Axial slices of one template brain, warped elastically (the card's step 7), each with two to four planted tumours.
# Training, validation and test slices are bands of the head with gaps between them. It is one anatomy; the numbers say
# nothing across patients.


# %%
def train(run: Run, model: nn.Module, seed: int, rate: float = RATE, schedule: Schedule = "onecycle") -> None:
    """Trains a network in place; with one seed, all networks see the same slices in the same order.

    The rate grows for 30 % of the steps. After a start of 5 %, one in seven networks without skips found no tumour at all.
    """
    preset, data = PRESETS[run.preset], training_slices(run, seed)
    weights = balance(data[1])

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return energy(model(images), labels, weights[labels])

    batches = minibatches(data, preset.batch, preset.steps, seed)
    model.to(memory_format=torch.channels_last)
    rate *= preset.rate
    fit(model, batches, loss, steps=preset.steps, learning_rate=rate, schedule=schedule, device=run.device)


if __name__ == "__main__":
    train(run, model, run.seeds[0])
    found = dices(segmented(model, test.images), test.labels)
    tissues = ", ".join(f"{name.removeprefix('dice_')} {value:.2f}" for name, value in found.items())
    run.show("trained", f"{count_parameters(model):,} parameters; Dice on test slices: {tissues}")

# %% [markdown]
# ## The U: maps on the way down, maps on the way up
# One map of every level of the trained network, for one test slice. Each pooling leaves a quarter of the values; where
# a thing lies becomes less exact while more of its surroundings counts. On the way up, the merged maps are fine again.


# %%
def draw_u(style: Style, model: UNet, image: Tensor) -> Figure:
    """The maps of an image (1, 1, H, W), the encoder's on the left, the decoder's on the right."""
    with torch.inference_mode():
        encoded = model.encode(image.to(next(model.parameters()).device))
        return draw_maps(style, image[0, 0], segmented(model, image)[0], encoded, model.decode(encoded))


if __name__ == "__main__":
    example = smallest_near(test, 16 * 4 // preset.millimetres**2)
    run.figure(
        "feature_maps",
        partial(draw_u, model=model, image=test.images[[example]]),
        caption="The U of a trained network; of each level, the map that varies most. On the way down the slice fades "
        "to a few coarse cells. On the way up the outlines come back, because each level is also given its own maps "
        "from the way down.",
        alt=f"A brain slice at the upper left. {DEPTH + 1} feature maps, each with half the pixels per side of the one above, "
        f"lead down to a few coarse cells. {DEPTH} maps lead up at the right to the slice with its tissues painted in. An "
        "arrow named skip joins the two maps of every level but the deepest.",
    )

# %% [markdown]
# ## What a skip carries
# One skip at a time is silenced: each of its maps is replaced by its mean over the slice, so that it still says how much
# of a feature there is, but not where. The network was not trained for that: what it loses says how much it uses the
# skip, not that another network could not do without.


# %%
@torch.inference_mode()
def silenced(model: UNet, images: Tensor, level: int) -> Tensor:
    """Predicted classes (B, H, W), on the CPU, with the skip of `level` replaced by its mean over each slice."""
    maps = model.encode(images.to(next(model.parameters()).device))
    maps[level] = maps[level].mean((2, 3), keepdim=True).expand_as(maps[level])
    return model.head(model.decode(maps)[0]).argmax(1).cpu()


def draw_silenced(style: Style, model: UNet, image: Tensor, labels: Tensor) -> Figure:
    """An image (1, 1, H, W), its labels (H, W), what all skips give, and what is left without one."""
    figure, axes = panels(2, 3, width=5.4, height=4.6)
    show_image(axes[0, 0], image[0, 0], "slice")
    pictures = {"truth": labels, "all skips": segmented(model, image)[0]}
    pictures |= {f"without level {level}": silenced(model, image, level)[0] for level in range(DEPTH)}
    for ax, (title, found) in zip(axes.flat[1:], pictures.items(), strict=True):
        show_image(ax, painted(image[0, 0], found, style), title)
    legend(figure, style)
    return figure


if __name__ == "__main__":
    run.figure(
        "silenced_skips",
        partial(draw_silenced, model=model, image=test.images[[example]], labels=test.labels[example]),
        caption="A slice, the truth, what the trained network makes of it, and the same with one skip replaced by its mean.",
        alt="Six pictures of a brain slice: bare, and with its tissues painted in: the truth, the result with all skips, and "
        "the results without the skip of each of three levels.",
    )
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - Convolutions are padded, so the output is as large as the input and no skip is cropped; near the border, part of a
#   receptive field sees zeros. The network of the paper, with valid convolutions, is the one that the card counts.
# - Batch norm follows each convolution. The paper has no normalisation.
# - Three poolings in place of four, and far fewer channels.
# - The second term of the weight map serves for the nuclei alone, and within cells it is zero.
# - AdamW with a one-cycle schedule in place of SGD with momentum 0.99; no dropout at the deepest level.
# - Elastic deformation, rotation and contrast come with the data, once per slice and not anew at each step.
# - No cell with published weights: those of the paper are for Caffe, and no library here has them.
