"""Panoptic segmentation: segments out of queries, their quality, and pixels that were taught what they belong to."""

# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy import ndimage
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from lab.boxes import grid_points, sine_encoding
from lab.figures import Style, panels, show_image
from lab.training import fit, minibatches, seed_everything

WEIGHT = 5.0  # of a pixel of a thing
LARGE = 0.01  # part of the image from which a segment has its name on it
HALO = withStroke(linewidth=2, foreground="black")


def segments(classes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Of queries with logits of classes (n, N, K + 1), the last one for no object, and probabilities of masks (n, N, H, W):
    the class of each, (n, N), K for none, and its pixels (n, N, H, W), which no two share.

    A pixel goes to the query that claims it most, by the probabilities of its class and of the pixel.
    """
    score, labels = classes.softmax(-1).max(-1)
    there = labels < classes.shape[-1] - 1
    claim = (score * there)[..., None, None] * masks
    mine = claim.argmax(1, keepdim=True) == torch.arange(claim.shape[1], device=claim.device)[:, None, None]
    return labels, mine & (masks > 0.5) & there[..., None, None]


def overlaps(pixels: Tensor, true_pixels: Tensor) -> Tensor:
    """IoU of segments (n, N, H, W) and (n, M, H, W): (n, N, M), 0 where both are empty."""
    ours, theirs = (each.flatten(2).float() for each in (pixels, true_pixels))
    shared = ours @ theirs.mT
    return shared / (ours.sum(-1)[:, :, None] + theirs.sum(-1)[:, None] - shared).clamp(min=1)


def panoptic_quality(labels: Tensor, pixels: Tensor, true_labels: Tensor, true_pixels: Tensor, classes: int) -> Tensor:
    """Of each class the sum of IoU over right segments / (right + half of the wrong + half of the missed), in %, (K,), over all
    scenes (arXiv:1801.00868, Eq. 1). NaN for a class that is neither found nor there.

    labels (n, N) and pixels (n, N, H, W), (n, M) and (n, M, H, W); a segment without a pixel is none. A segment is right if its
    label is that of a true one and their IoU is above one half.
    """
    iou = overlaps(pixels, true_pixels) * (labels[:, :, None] == true_labels[:, None])
    iou = iou.where(iou > 0.5, 0).sum(1)  # (n, M): at most one is above one half
    sums = torch.zeros(classes + 1).index_add_(0, true_labels.flatten(), iou.flatten())
    found, there = (
        torch.bincount(names[masks.any(-1).any(-1)], minlength=classes + 1)
        for names, masks in ((labels, pixels), (true_labels, true_pixels))
    )
    return (200 * sums / (found + there))[:classes]  # 2 TP + FP + FN segments are found or there


class Pixels(nn.Module):
    """Images (B, 3, S, S) -> features (B, D, S / 2, S / 2); `head` says the class of a pixel, and x and y from it to the middle
    of its thing, in sides of the image."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        half, block = width // 2, Conv2dNormActivation
        self.fine = nn.Sequential(block(3, half, stride=2), block(half, half))
        self.coarse = nn.Sequential(block(half, width, stride=2), block(width, width), block(width, width, stride=2),
                                    block(width, width))  # fmt: skip
        self.detail, self.rough = nn.Conv2d(half, width, 1), nn.Conv2d(width, width, 1)
        self.last, self.head = block(width, width), nn.Conv2d(width, classes + 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images)
        rough = nn.functional.interpolate(self.rough(self.coarse(fine)), scale_factor=4.0, mode="bilinear")
        return self.last(self.detail(fine) + rough)


def taught(labels: Tensor, masks: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Of scenes with labels (n, M) and masks (n, M, 2 h, 2 w) how much of each cell of 2 x 2 pixels is of each class,
    (n, K, h, w), and the way to the middle of its segment, (n, 2, h, w)."""
    masks = nn.functional.avg_pool2d(masks.float(), 2)
    kinds = nn.functional.one_hot(labels, classes + 1)[..., :classes].to(masks)
    side = masks.shape[-1]
    places = grid_points(side).T.unflatten(1, (side, side)).to(masks)  # (2, h, w)
    total = masks.sum((2, 3)).clamp(min=1e-6)
    middles = torch.einsum("nmhv,chv->nmc", masks, places) / total[..., None]  # (n, M, 2)
    way = torch.einsum("nmhv,nmc->nchv", masks, middles) - places
    return torch.einsum("nmk,nmhv->nkhv", kinds, masks), way


def pixels_loss(network: Pixels, images: Tensor, kinds: Tensor, way: Tensor, *, things: int) -> Tensor:
    """Cross-entropy of the class, and how far the middle of a thing is off; the first classes are things, which are small and
    so count `WEIGHT` times."""
    said, thing = network.head(network(images)).float(), kinds[:, :things].sum(1, keepdim=True)
    entropy = -(kinds * said[:, :-2].log_softmax(1)).sum(1, keepdim=True) * (1 + (WEIGHT - 1) * thing)
    off = (said[:, -2:] - way).abs() * thing
    return 2 * entropy.mean() + 4 * off.mean() / thing.mean()


def trained_pixels(
    images: Tensor, labels: Tensor, masks: Tensor, *, classes: int, things: int, width: int, batch: int, steps: int, rate: float,
    seed: int, device: torch.device,
) -> Pixels:  # fmt: skip
    """A network for this seed, trained on images (n, 3, S, S), labels (n, M) and masks (n, M, S, S), and frozen."""
    seed_everything(seed)
    network, data = Pixels(width, classes), [each.to(device) for each in (images, *taught(labels, masks, classes))]
    loss = partial(pixels_loss, things=things)
    fit(network, minibatches(data, batch, steps, seed), loss, steps=steps, learning_rate=rate, device=device)
    return network.requires_grad_(False)


@torch.no_grad()
def features(network: Pixels, images: Tensor) -> Tensor:
    """Of any number of images what their pixels are, and where the middle of their thing lies, encoded (n, 2 D, S / 2, S / 2), on
    the device of the network."""
    device, found = network.head.weight.device, list[Tensor]()
    for part in images.split(100):
        seen = network(part.to(device))
        side, width = seen.shape[-1], seen.shape[1]
        middle = grid_points(side).to(device).unflatten(0, (side, side)) + network.head(seen)[:, -2:].permute(
            0, 2, 3, 1
        )
        found.append(torch.cat([seen, sine_encoding(middle, width).permute(0, 3, 1, 2)], 1))
    return torch.cat(found)


def draw_segments(style: Style, images: Tensor, masks: Tensor, names: Sequence[Sequence[str]]) -> Figure:
    """Images (n, 3, H, W), each over its segments (n, N, H, W) in colours of their own, large ones with their names."""
    height, width = images.shape[2:]
    figure, axes = panels(2, len(images), width=5.4, height=10.8 / len(images) * height / width + 0.2)
    colours = torch.from_numpy(colormaps["tab20"](np.arange(masks.shape[1]) % 20)[:, :3]).float()
    for image, parts, named, (above, below) in zip(images, masks, names, axes.T, strict=True):
        show_image(above, image)
        show_image(below, torch.einsum("nhv,nc->chv", parts.float(), colours))
        for part, name in zip(parts, named, strict=True):
            if part.float().mean() > LARGE:
                inside = ndimage.distance_transform_edt(np.pad(part.cpu(), 1))  # a name goes where there is room for it
                y, x = np.unravel_index(inside.argmax(), inside.shape)
                below.text(x - 1, y - 1, name, ha="center", va="center", fontsize=9, color="white", path_effects=[HALO])
    return figure
