"""What a set of masks with scores says: instances, a semantic and a panoptic map, and the boxes around masks.

Objects are those of one image: ``boxes`` (n, 4) xyxy in pixels, ``scores`` (n,), ``labels`` (n,) and ``masks`` (n, H, W), the
probability of each pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from lab.data.scenes import Scenes
from lab.metrics import Objects, average_precision

BEST = 8  # masks of an image that count for `mask_ap50`


def mask_ap50(found: Sequence[Objects], scenes: Scenes) -> float:
    """AP50 (%) of the masks of the surest objects; a mask scores with its class times the mean probability inside."""
    predicted = []
    for each in found:
        best = each["scores"].topk(min(BEST, len(each["scores"]))).indices
        masks, labels = each["masks"][best], each["labels"][best].long()
        inside = masks > 0.5
        quality = (masks * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)  # 0 where nothing is inside
        predicted.append({"masks": inside, "scores": each["scores"][best] * quality, "labels": labels})
    truth = [{"masks": masks, "labels": labels} for masks, labels in zip(scenes.masks, scenes.labels, strict=True)]
    return 100 * average_precision(predicted, truth, iou="segm")["ap50"]


def semantic_iou(found: Sequence[Objects], scenes: Scenes) -> float:
    """IoU (%) of all pixels of objects; the map adds the masks of all objects of an image, weighted with their scores."""
    ours = torch.stack([(each["scores"][:, None, None] * each["masks"]).sum(0) > 0.5 for each in found])
    theirs = torch.stack([masks.any(0) for masks in scenes.masks])
    return 100 * ((ours & theirs).sum() / (ours | theirs).sum()).item()


def panoptic_quality(found: Sequence[Objects], scenes: Scenes, confidence: float) -> float:
    """Sum of the IoU of matched segments over TP + FP / 2 + FN / 2, in % (arXiv:1801.00868, Eq. 1), for one class.

    A pixel goes to the confident object that wants it most; a match has an IoU above a half.
    """
    overlap, segments = 0.0, 0
    for each, truth in zip(found, scenes.masks, strict=True):
        iou = _overlaps(_apart(each, confidence), truth)
        overlap, segments = overlap + iou[iou > 0.5].sum().item(), segments + sum(iou.shape)
    return 100 * overlap / (segments / 2)  # 2 TP + FP + FN segments are there


def _apart(each: Objects, confidence: float) -> Tensor:
    """Segments (n, H, W) without a common pixel, none of which is empty."""
    sure = each["scores"] >= confidence
    masks = each["masks"][sure]
    wanted = each["scores"][sure, None, None] * masks
    best = wanted.argmax(0) if len(masks) else torch.zeros(masks.shape[1:], dtype=torch.long)
    segments = (torch.arange(len(masks))[:, None, None] == best) & (masks > 0.5)
    return segments[segments.any(2).any(1)]


def _overlaps(ours: Tensor, theirs: Tensor) -> Tensor:
    """IoU of every pair of masks, (n, H, W) and (m, H, W) -> (n, m)."""
    a, b = ours.flatten(1).float(), theirs.flatten(1).float()
    shared = a @ b.T
    return shared / (a.sum(1)[:, None] + b.sum(1) - shared)


def boxes_of_masks(each: Objects) -> Objects:
    """The same objects with the box around each mask, where it has a pixel."""
    inside, boxes = each["masks"] > 0.5, each["boxes"].clone()
    some = inside.any(2).any(1)
    boxes[some] = masks_to_boxes(inside[some]) + torch.tensor([0, 0, 1, 1])
    return {**each, "boxes": boxes}


def filled(each: Objects) -> Objects:
    """The same objects with all that is inside their boxes as their masks."""
    height, width = each["masks"].shape[1:]
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    x0, y0, x1, y1 = each["boxes"][:, :, None].unbind(1)  # each (n, 1)
    across, down = (x0 < x) & (x < x1), (y0 < y) & (y < y1)  # (n, W), (n, H)
    return {**each, "masks": (down[:, :, None] & across[:, None]).float()}
