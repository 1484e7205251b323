"""Detection of shapes: scenes of `lab.data.named` with the five shapes as classes, in any colour, what is found, and its AP."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lab import metrics
from lab.boxes import Targets, generalized_iou, suppressed, xyxy_from_cxcywh
from lab.data.named import NAMES, SHAPES, SIDE, Named

K = len(SHAPES)


class Found(NamedTuple):
    """logits (B, N, K), a sigmoid each; boxes (B, N, 4) cxcywh relative to the picture."""

    logits: Tensor
    boxes: Tensor


def things(scenes: Named) -> Targets:
    """The things of scenes by their shape, K where padded."""
    return Targets(scenes.boxes, torch.where(scenes.labels == len(NAMES), K, scenes.labels % K))


def matching_cost(found: Found, targets: Targets, l1: float, giou: float, label: float) -> Tensor:
    """Cost (B, N, M) of a match, with weights for the boxes and for the probability of the right class; infinite for padding."""
    ours, theirs = found.boxes[:, :, None], targets.boxes[:, None]  # (B, N, 1, 4), (B, 1, M, 4)
    labels = targets.labels[:, None].expand(-1, found.logits.shape[1], -1)  # (B, N, M)
    right = nn.functional.pad(found.logits.sigmoid(), (0, 1)).gather(2, labels)  # probability of the right class
    cost = l1 * (ours - theirs).abs().sum(-1) - giou * generalized_iou(ours, theirs) - label * right
    return cost.masked_fill(labels == K, torch.inf)


def ap(found: Found, scenes: Named, suppress: bool = False) -> float:
    """AP (%), mean over IoU from 0.5 to 0.95; each box counts for its best class. Nothing is suppressed unless asked for."""
    scores, labels = found.logits.sigmoid().max(-1)  # (n, N)
    rows = zip(xyxy_from_cxcywh(found.boxes) * SIDE, scores, labels, strict=True)
    said = [dict(zip(("boxes", "scores", "labels"), each, strict=True)) for each in rows]
    said = [suppressed(each) for each in said] if suppress else said
    targets = things(scenes)
    pairs = zip(xyxy_from_cxcywh(targets.boxes) * SIDE, targets.labels, targets.labels < K, strict=True)
    truth = [{"boxes": boxes[there], "labels": labels[there]} for boxes, labels, there in pairs]
    return 100 * metrics.average_precision(said, truth, sizes=None)["ap"]
