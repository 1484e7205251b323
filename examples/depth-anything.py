# %% [markdown]
# # Depth Anything: how can a network learn depth from labels in any unit?
#
# One photograph does not say how large its world is. So the network is asked only for what can be known, inverse depth up to
# a scale and a shift, and its labels may come from sources of any unit. Here is that loss, and a small network that learns
# which things on a plane are near and which are far, from labels of which each has a unit of its own.
#
# | symbol (arXiv:2406.09414, 1907.01341) | here | meaning |
# |---|---|---|
# | $d$, $d^*$ | `found`, `label` | inverse depth, predicted and labelled, (B, H, W) |
# | $t(d)$, $s(d)$ | `median`, `spread` | location and spread of a map |
# | $\hat d$ | `standard(d)` | the map in a unit of its own |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from lab import weights
from lab.data.grounds import SIDE, draw_grounds, held_out
from lab.figures import Figure, Style, panels, show_image
from lab.run import Run
from lab.training import count_parameters, fit, seed_everything
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import Conv2dNormActivation

UNITS = 4.0  # labels of mixed units are scaled by 1/4 to 4, and shifted by 0 to 1
RATE = 0.128  # peak learning rate, see claims/depth-anything.searches.json
SYNCHRONISATIONS_PER_STEP = 0  # scenes are drawn on the device


class Preset(NamedTuple):
    """Steps, images in a batch, width of the network, test images, and a factor on the rate."""

    steps: int = 300
    batch: int = 16
    width: int = 24
    tests: int = 300
    rate: float = 1.0


PRESETS = {
    "smoke": Preset(steps=3, batch=4, width=8, tests=8),
    "quick": Preset(),
    "full": Preset(steps=20_000, batch=256, width=128, tests=3000, rate=0.25),
}

# %% [markdown]
# ## Images, and labels in any unit
# Things stand on a plane. What lies $r$ rows below the horizon has inverse depth $r / F$: the image knows it, up to the unknown
# height of the camera. Labels come as sensors, stereo films and renderers give them: scaled by $a$ and shifted by $b$,
# both unknown and different for each image.


# %%
def relabelled(inverse: Tensor, generator: torch.Generator) -> Tensor:
    """Inverse depths (B, H, W) in another unit for each image: a d + b."""
    a, b = torch.rand(2, len(inverse), 1, 1, generator=generator, device=inverse.device)
    return UNITS ** (2 * a - 1) * inverse + b


def training_batches(preset: Preset, seed: int, device: torch.device, mixed: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless images (B, 3, H, W) from -1 to 1 and labels (B, H, W), in mixed units or all in one."""
    generator = torch.Generator(device).manual_seed(seed)
    units = torch.Generator(device).manual_seed(
        seed + 1
    )  # so that the images are the same with and without mixed units
    while True:
        images, inverse = draw_grounds(preset.batch, generator)
        yield 2 * images - 1, relabelled(inverse, units) if mixed else inverse


if __name__ == "__main__":
    run = Run.start("depth-anything", pretrained=True)
    preset = PRESETS[run.preset]
    _, labels = next(training_batches(preset, run.seeds[0], run.device, mixed=True))
    low, high = labels.flatten(1).min(1).values.tolist(), labels.flatten(1).max(1).values.tolist()
    run.show("labels", [{"image": i, "farthest": low[i], "nearest": high[i]} for i in range(4)])

# %% [markdown]
# ## The loss does not see the unit
# Prediction and label are each brought to a location of 0 and a spread of 1 before they are compared:
# $$\hat d = \frac{d - t(d)}{s(d)}, \qquad t(d) = \mathrm{median}(d), \qquad s(d) = \frac{1}{N} \sum_i |d_i - t(d)|$$
# $$\mathcal{L}_{ssi} = \frac{1}{N} \sum_i |\hat d_i - \hat d^*_i|$$
# For any $a > 0$ and $b$ the label $a d^* + b$ gives the same loss, exactly: mixed units are no noise to it.


# %%
def standard(d: Tensor) -> Tensor:
    """Each map (B, H, W) with median 0 and mean deviation 1."""
    flat = d.float().flatten(1)
    median = flat.median(1, keepdim=True).values
    spread = (flat - median).abs().mean(1, keepdim=True)
    return ((flat - median) / spread.clamp(min=1e-6)).view_as(d)


def ssi_loss(found: Tensor, label: Tensor) -> Tensor:
    """Scale- and shift-invariant, of maps (B, H, W)."""
    return (standard(found) - standard(label)).abs().mean()


def plain_loss(found: Tensor, label: Tensor) -> Tensor:
    """The mean absolute error of maps (B, H, W), in the unit of the label."""
    return (found.float() - label).abs().mean()


if __name__ == "__main__":
    label = held_out("test", 1, run.device).inverse
    guess = label + 0.1 * torch.rand_like(label)
    both = {"scale and shift invariant": ssi_loss, "plain": plain_loss}
    run.show("units", [{"loss": name, "label": loss(guess, label).item(), "2 x label": loss(guess, 2 * label).item(),
                        "label + 1": loss(guess, label + 1).item()} for name, loss in both.items()])  # fmt: skip

# %% [markdown]
# ## A network from coarse to fine
# Features of several depths are fused from the coarsest to the finest, as the decoder of Depth Anything (DPT) does it. Only the
# coarse ones see enough to find where a thing stands.


# %%
class DepthNet(nn.Module):
    """Images (B, 3, H, W) -> one number for each pixel (B, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 2 * width
        stem = Conv2dNormActivation(3, width, 4, 2, 1)
        self.encoder = nn.ModuleList(
            [stem, Conv2dNormActivation(width, wide, 3, 2), Conv2dNormActivation(wide, wide, 3, 2)]
        )
        self.project = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in (width, wide, wide))
        self.fuse = nn.ModuleList(Conv2dNormActivation(width, width, 3) for _ in range(3))
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        levels, x = [], images
        for layer in self.encoder:
            x = layer(x)
            levels.append(x)
        y = self.fuse[2](self.project[2](levels[2]))  # coarsest, (B, D, H / 8, W / 8)
        for level in (1, 0):
            y = self.fuse[level](self.project[level](levels[level]) + functional.interpolate(y, scale_factor=2.0))
        return functional.interpolate(self.head(y), scale_factor=2.0, mode="bilinear")[:, 0]


def build(preset: Preset) -> DepthNet:
    return DepthNet(preset.width)


if __name__ == "__main__":
    seed_everything(run.seeds[0])
    model = build(preset)
    run.show(
        "network",
        f"{count_parameters(model):,} parameters; an image becomes {tuple(model(torch.rand(1, 3, SIDE, SIDE)).shape)}",
    )

# %% [markdown]
# ## Train it on labels of mixed units
# Afterwards two pixels of one row are compared: which is nearer? (Of two rows the lower one mostly is, and that would be no
# test.) No scale and no shift changes the answer.


# %%
Loss = Callable[[Tensor, Tensor], Tensor]


def train(
    model: nn.Module, run: Run, seed: int, rate: float = RATE, loss: Loss = ssi_loss, mixed: bool = True
) -> list[float]:
    """Trains on labels of mixed units or of one; returns the loss of each step."""

    def of_batch(model: nn.Module, images: Tensor, label: Tensor) -> Tensor:
        return loss(model(images), label)

    preset = PRESETS[run.preset]
    batches = training_batches(preset, seed, run.device, mixed)
    return fit(model, batches, of_batch, steps=preset.steps, learning_rate=rate * preset.rate, device=run.device)


@torch.inference_mode()
def predicted(model: nn.Module, images: Tensor) -> Tensor:
    """Inverse depths (n, H, W), in no unit, of images in [0, 1]."""
    return torch.cat([model(2 * part - 1).float() for part in images.split(100)])


def order_right(found: Tensor, inverse: Tensor, pairs: int = 400, least: float = 0.05) -> float:
    """Part (%) of pairs of pixels of one row that are put in order; those nearer to each other than `least` do not count.

    found, inverse: (n, H, W), predicted and true.
    """
    generator = torch.Generator().manual_seed(0)
    row = torch.randint(SIDE, (len(found), pairs), generator=generator)
    one, two = (row * SIDE + torch.randint(SIDE, row.shape, generator=generator) for _ in range(2))
    ahead, true = (d.cpu().flatten(1).gather(1, one) - d.cpu().flatten(1).gather(1, two) for d in (found, inverse))
    counts = true.abs() > least
    return 100 * (ahead.sign() == true.sign())[counts].double().mean().item()


if __name__ == "__main__":
    losses = train(model, run, run.seeds[0])
    test = held_out("test", preset.tests, run.device)
    found = predicted(model, test.images)
    right = order_right(found, test.inverse)
    run.show(
        "trained", f"last loss {losses[-1]:.3f}; of two pixels of one row the nearer one is found in {right:.0f} %"
    )


# %%
def draw_depths(style: Style, images: Tensor, inverse: Tensor, found: Tensor) -> Figure:
    """A column for each of n scenes: image (n, 3, H, W), true and predicted inverse depth (n, H, W)."""
    figure, axes = panels(3, len(images), width=5.4, height=4.3)
    for column, (image, true, guess) in enumerate(zip(images, standard(inverse), standard(found), strict=True)):
        show_image(axes[0, column], image)
        for row, each in ((1, true), (2, guess)):
            show_image(axes[row, column], each, cmap="magma", vmin=true.min().item(), vmax=true.max().item())
    for ax, name in zip(axes[:, 0], ("image", "true", "predicted"), strict=True):
        ax.text(-0.08, 0.5, name, rotation=90, ha="right", va="center", transform=ax.transAxes, fontsize=11)
    return figure


if __name__ == "__main__":
    few = slice(0, 4)
    run.figure(
        "depths",
        partial(draw_depths, images=test.images[few].cpu(), inverse=test.inverse[few].cpu(), found=found[few].cpu()),
        caption="The first four test scenes, with true and predicted inverse depth, bright where it is near. The network never "
        "saw two labels of one unit.",
        alt="Four scenes of coloured boxes on a plane; below each its true depth map, and the similar predicted one.",
    )

# %% [markdown]
# ## Your own image
# The published Depth Anything V2 Small: what is near and what is far in a photograph, or in yours.


# %%
def published(image: Any) -> tuple[Tensor, Tensor]:
    """The photograph (H, W, 3) in [0, 1], and its predicted inverse depth (H, W)."""
    from torchvision.transforms.functional import pil_to_tensor
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    name = "depth-anything/Depth-Anything-V2-Small-hf"
    processor, network = AutoImageProcessor.from_pretrained(name), AutoModelForDepthEstimation.from_pretrained(name)
    inputs = processor(images=image, return_tensors="pt")
    with torch.inference_mode():
        depth = network.eval()(**inputs).predicted_depth[:, None]  # (1, 1, h, w)
    depth = functional.interpolate(depth, (image.height, image.width), mode="bilinear")[0, 0]
    return pil_to_tensor(image).permute(1, 2, 0) / 255, depth


def draw_photograph(style: Style, image: Tensor, depth: Tensor) -> Figure:
    figure, axes = panels(1, 2, width=5.4, height=0.3 + 2.7 * image.shape[0] / image.shape[1])
    show_image(axes[0, 0], image)
    show_image(axes[0, 1], depth, cmap="magma", vmin=None, vmax=None)
    return figure


if __name__ == "__main__":
    picture = weights.picture(run, otherwise="coffee")
    name = "depth-anything/Depth-Anything-V2-Small-hf"
    seen = weights.published(run, name, partial(published, picture), megabytes=100)
    if seen is not None:
        run.figure(
            "your_own_image",
            partial(draw_photograph, image=seen[0], depth=seen[1]),
            caption=f"A photograph, and what {name} says of it: bright is near.",
            alt="A photograph, and beside it a map of the inverse depth that was predicted for each pixel.",
        )
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - A small convolutional network, trained from scratch on drawn boxes; the paper's encoder is a pretrained DINOv2, and its
#   students learn from the labels that a teacher gives to photographs. Neither is tested here.
# - The term that compares gradients, which keeps edges sharp, is left out.
# - The unit differs from image to image here, and from data set to data set there.
# - All labels are exact up to their unit: no sensor errs here.
