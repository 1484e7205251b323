"""Two towers that learn together what the words of named things look like: a small stand-in for pretrained encoders."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from lab.data.named import SIDE, SPELLING, WORDS
from lab.training import fit, minibatches, seed_everything

GRID = SIDE // 8  # tokens along a side


class Seen(NamedTuple):
    """Tokens (B, h w, D) and pixels (B, D, S / 2, S / 2) of pictures."""

    tokens: Tensor
    pixels: Tensor


class Towers(nn.Module):
    """Images (B, 3, S, S) -> what is seen at strides 8 and 2; `text` holds the words (W, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fine = Conv2dNormActivation(3, width // 2, stride=2)
        stages = [(width // 2, width, 2), (width, width, 2), (width, width, 1)]
        self.coarse = nn.Sequential(*(Conv2dNormActivation(a, b, stride=stride) for a, b, stride in stages))
        self.detail, self.rough = nn.Conv2d(width // 2, width, 1), nn.Conv2d(width, width, 1)
        self.text, self.bias = nn.Parameter(torch.randn(len(WORDS), width)), nn.Parameter(torch.tensor(-2.0))

    def forward(self, images: Tensor) -> Seen:
        fine = self.fine(images)
        rough = nn.functional.interpolate(self.rough(self.coarse(fine)), scale_factor=4.0, mode="bilinear")
        pixels = self.detail(fine) + rough
        return Seen(nn.functional.avg_pool2d(pixels, 4).flatten(2).mT, pixels)

    def similarity(self, pixels: Tensor) -> Tensor:
        """Logits (B, W, S / 2, S / 2): does the word name what is at the pixel?"""
        similar: Tensor = torch.einsum("wd,bdhv->bwhv", self.text / self.text.shape[1] ** 0.5, pixels) + self.bias
        return similar


def named_pixels(labels: Tensor, masks: Tensor) -> Tensor:
    """How much of each pixel is a thing that a word names (B, W, h, w), from labels (B, M) and masks (B, M, h, w)."""
    spelled = nn.functional.one_hot(SPELLING, len(WORDS)).sum(1).to(masks)  # (K, W)
    return torch.einsum("bmw,bmhv->bwhv", nn.functional.pad(spelled, (0, 0, 0, 1))[labels], masks)


def towers_loss(towers: Towers, images: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the similarity of pixels and words to `target` (B, W, S / 2, S / 2)."""
    logits = towers.similarity(towers(images).pixels)
    return nn.functional.binary_cross_entropy_with_logits(logits.float(), target)


def trained_towers(
    images: Tensor, target: Tensor, *, width: int, batch: int, steps: int, rate: float, seed: int, device: torch.device
) -> Towers:
    """Towers for this seed, trained on images (n, 3, S, S) and `named_pixels`, and frozen."""
    seed_everything(seed)
    towers, data = Towers(width), [each.to(device) for each in (images, target)]
    fit(towers, minibatches(data, batch, steps, seed), towers_loss, steps=steps, learning_rate=rate, device=device)
    return towers.requires_grad_(False)


@torch.no_grad()
def see(towers: Towers, images: Tensor) -> Seen:
    """What is seen of any number of images, on the device of the towers."""
    seen = [towers(part.to(towers.text.device)) for part in torch.split(images, 100)]
    return Seen(*(torch.cat(each) for each in zip(*seen, strict=True)))
