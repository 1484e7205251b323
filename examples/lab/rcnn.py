"""Plumbing of two-stage detectors for a whole batch: targets, offsets, matching, sampling, suppression, features of regions.

Everything is padded to fixed sizes, so that a training step neither loops over images nor waits for the device, except in
`left`, which asks after each round whether it was the last. Boxes are xyxy in pixels; over torchvision's operators.
"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import Conv2dNormActivation

from lab.boxes import suppressed
from lab.data.scenes import Scenes

SYNCHRONISATIONS = (
    12  # of a step: each round of suppression asks whether it was the last; and copies of small constants
)
FROM_ANCHORS = BoxCoder((1.0, 1.0, 1.0, 1.0))
FROM_REGIONS = BoxCoder(
    (10.0, 10.0, 5.0, 5.0)
)  # offsets of a second stage are small; these factors make them comparable
FEW_CELLS = 5  # along each side of a region, for which RoIAlign as one product takes less time than as two
EMPTY = (0.0, 0.0, 1.0, 1.0)  # a box in the place of none, with sides that can be divided by


class Targets(NamedTuple):
    """Objects of B images, padded to M: boxes (B, M, 4), labels (B, M), -1 where there is none."""

    boxes: Tensor
    labels: Tensor


class Regions(NamedTuple):
    """R boxes of each of B images, best first: boxes (B, R, 4), valid (B, R), False for padding."""

    boxes: Tensor
    valid: Tensor


def targets_of(scenes: Scenes) -> Targets:
    """The objects of scenes."""
    boxes = nn.utils.rnn.pad_sequence(list(scenes.boxes), batch_first=True)
    labels = nn.utils.rnn.pad_sequence(list(scenes.labels), batch_first=True, padding_value=-1)
    return Targets(torch.where(labels[..., None] < 0, boxes.new_tensor(EMPTY), boxes), labels)


def backbone(width: int) -> nn.Sequential:
    """A small network of stride 8: images (B, 3, H, W) -> features (B, C, H / 8, W / 8), channels last: faster on a CPU, too."""
    stages = [(3, width // 4, 2), (width // 4, width // 2, 2), (width // 2, width, 2), (width, width, 1)]
    network = nn.Sequential(*(Conv2dNormActivation(a, b, stride=stride) for a, b, stride in stages))
    return network.to(memory_format=torch.channels_last)


def anchors_of(sides: tuple[float, ...], ratios: tuple[float, ...], cells: int, stride: int) -> Tensor:
    """Boxes of all sides (of a square of that area) and ratios (height over width) at each cell of a map, (cells^2 k, 4)."""
    sizes = torch.tensor([(side / ratio**0.5, side * ratio**0.5) for side in sides for ratio in ratios])  # (k, 2)
    at = (torch.arange(cells) + 0.5) * stride
    centre = torch.cartesian_prod(at, at).flip(1)[:, None]  # (cells^2, 1, 2), x and y, row by row
    return torch.cat([centre - sizes / 2, centre + sizes / 2], -1).flatten(0, 1)


def encode(coder: BoxCoder, boxes: Tensor, anchors: Tensor) -> Tensor:
    """Offsets of boxes (..., 4) from anchors (..., 4), of which those without area count as a hundredth of a pixel wide."""
    low, high = anchors.reshape(-1, 4).split(2, -1)
    anchors = torch.cat([low, torch.maximum(high, low + 0.01)], -1)  # a region may be clipped to nothing
    offsets: Tensor = coder.encode_single(boxes.reshape(-1, 4), anchors)
    return offsets.view(boxes.shape)


def decode(coder: BoxCoder, offsets: Tensor, anchors: Tensor) -> Tensor:
    """Boxes from offsets (..., 4), the inverse of `encode`; anchors are expanded to their shape."""
    anchors = anchors.expand(offsets.shape)
    boxes: Tensor = coder.decode_single(offsets.float().reshape(-1, 4), anchors.reshape(-1, 4))
    return boxes.view(offsets.shape)


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of boxes (B or 1, N, 4) with others (B, M, 4), (B, M, N), the longer axis last.

    As torchvision's `box_iou`, but one coordinate at a time: its loops over pairs of coordinates are slow on a CPU.
    """
    x0, y0, x1, y1 = boxes.mT[:, :, None].contiguous().unbind(1)  # each (B, 1, N)
    a0, b0, a1, b1 = others.mT[..., None].unbind(1)  # each (B, M, 1)
    across = (torch.minimum(x1, a1) - torch.maximum(x0, a0)).clamp(min=0)
    shared = (torch.minimum(y1, b1) - torch.maximum(y0, b0)).clamp(min=0) * across
    return shared / ((x1 - x0) * (y1 - y0) + (a1 - a0) * (b1 - b0) - shared)


def match(boxes: Tensor, targets: Targets, high: float, low: float, best: bool = False) -> Tensor:
    """The object of each box, owner (B, N): -1 for background (IoU below `low`), -2 where it does not count.

    As torchvision's `Matcher`, which takes one image. `best`: boxes that overlap an object best belong to it in any case.
    """
    overlap = overlaps(boxes if boxes.ndim == 3 else boxes[None], targets.boxes)  # (B, M, N)
    overlap = overlap.masked_fill(targets.labels[..., None] < 0, -1.0)
    value, owner = overlap.max(1)
    out = torch.where(value >= high, owner, torch.where(value < low, -1, -2))
    if best:
        top = overlap.amax(2, keepdim=True)  # (B, M, 1)
        is_best = ((overlap == top) & (top > 0)).any(1)
        out = torch.where(is_best, owner, out)
    return out


def sample(owner: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """A random choice of `count` boxes an image, at most a `share` of them with an object.

    Returns index (B, count) and taken (B, count), False where there were not enough.
    """
    key = torch.rand(owner.shape, device=owner.device)
    objects = (key * (owner >= 0)).topk(min(round(share * count), owner.shape[1]))
    background = (key * (owner == -1)).topk(min(count, owner.shape[1]))
    index = torch.cat([objects.indices, background.indices], 1)
    rank = torch.cat([objects.values + 1, background.values], 1)  # all objects that were drawn, then background
    rank = torch.where(torch.cat([objects.values, background.values], 1) > 0, rank, -1)
    best = rank.topk(min(count, rank.shape[1]))
    return index.gather(1, best.indices), best.values > 0


def rows(values: Tensor, index: Tensor) -> Tensor:
    """Of values (B, N, D) those at index (B, S): (B, S, D)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def left(boxes: Tensor, iou: float) -> Tensor:
    """Which of boxes (B, N, 4), best first, non-maximum suppression leaves: (B, N).

    As torchvision's `nms` for each image: a box stays unless one that stays, and is better, overlaps it by more than `iou`.
    Said of all boxes at once, again and again, this settles after as many rounds as the longest chain of such boxes has.
    """
    takes = (overlaps(boxes, boxes) > iou).float().tril(-1)  # (B, N, N), of each box (row) the better ones (column)
    stays = torch.ones_like(takes[..., :1])
    while not torch.equal(stays, settled := (takes @ stays == 0).float()):
        stays = settled
    return stays[..., 0] > 0


def thinned(boxes: Tensor, scores: Tensor, before: int, after: int, iou: float | None) -> Regions:
    """Of the `before` best boxes (B, N, 4) of each image, at most `after` that suppression leaves, or the best if None."""
    scores, index = scores.topk(min(before, scores.shape[1]))
    boxes = rows(boxes, index)
    if iou is not None:
        scores = scores.masked_fill(~left(boxes, iou), -torch.inf)
    scores, index = scores.topk(min(after, scores.shape[1]))
    return Regions(rows(boxes, index), scores > -torch.inf)


def _taken(start: Tensor, end: Tensor, size: int, length: int, samples: int) -> Tensor:
    """How much each of `size` cells of a region takes of each cell of a map along one axis: edges (B, R) in cells of the map
    -> (B, R, size, length)."""
    at = (torch.arange(size * samples, device=start.device) + 0.5) / (size * samples)
    place = start[..., None] + (end - start)[..., None] * at - 0.5  # the middle of cell 0 is 0
    distance = (place.clamp(0, length - 1)[..., None] - torch.arange(length, device=start.device)).abs()
    return (1 - distance).clamp(min=0).unflatten(2, (size, samples)).mean(3)


def crop(maps: Tensor, boxes: Tensor, size: int, stride: int, samples: int = 2) -> Tensor:
    """RoIAlign, in float32 also under autocast: maps (B, C, h, w), boxes (B, R, 4) inside them -> (B, R, C, size, size).

    It acts on rows and columns apart, so it is products of matrices. For maps as small as ours that takes a tenth of the time
    of torchvision's `roi_align`, which gathers sample by sample, on a CPU.
    """
    with torch.autocast(maps.device.type, enabled=False):
        maps, (x0, y0, x1, y1) = maps.float(), (boxes / stride).unbind(2)
        down = _taken(y0, y1, size, maps.shape[2], samples)  # (B, R, size, h)
        across = _taken(x0, x1, size, maps.shape[3], samples)  # (B, R, size, w)
        return (_crop_at_once if size <= FEW_CELLS else _crop_by_axes)(maps, down, across)


def _crop_at_once(maps: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Each cell as a sum over the whole map, which is little work where there are few cells."""
    size = down.shape[2]
    both = down[:, :, :, None, :, None] * across[:, :, None, :, None]  # (B, R, size, size, h, w)
    seen = both.flatten(4).flatten(1, 3) @ maps.flatten(2).mT  # (B, R size^2, C)
    return seen.unflatten(1, (-1, size, size)).permute(0, 1, 4, 2, 3)


def _crop_by_axes(maps: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """A_y F A_x^T: first the rows, then the columns."""
    size, width = down.shape[2], maps.shape[3]
    seen = down.flatten(1, 2) @ maps.transpose(1, 2).flatten(2)  # (B, C, h, w) -> (B, h, C w) -> (B, R size, C w)
    seen = seen.unflatten(2, (-1, width)).unflatten(1, (-1, size)).transpose(2, 3)  # (B, R, C, size, w)
    return (seen.flatten(2, 3) @ across.mT).unflatten(2, (-1, size))


def mean_of(values: Tensor, counted: Tensor, number: Tensor | None = None) -> Tensor:
    """The sum of `values` where `counted`, over how many these are, or over `number`; 0 where there are none."""
    return (values * counted).sum() / (counted.sum() if number is None else number).clamp(min=1)


def box_loss(offsets: Tensor, wanted: Tensor) -> Tensor:
    """Smooth L1 loss of offsets (..., 4), summed over the four: (...)."""
    return nn.functional.smooth_l1_loss(offsets, wanted, beta=1 / 9, reduction="none").sum(-1)


def final(boxes: Tensor, scores: Tensor, iou: float | None, least: float = 0.05) -> list[dict[str, Tensor]]:
    """What is found in each image: boxes (B, N, K, 4) and scores (B, N, K) of K classes -> boxes, scores, labels.

    Boxes below the `least` score go, then those that suppression within a class takes, unless `iou` is None.
    """
    found = []
    for box, score in zip(boxes, scores, strict=True):
        row, label = (score >= least).nonzero().unbind(1)
        each = {"boxes": box[row, label], "scores": score[row, label], "labels": label}
        found.append(each if iou is None else suppressed(each, iou))
    return found
