"""Detection of shapes: scenes of `lab.data.named` with the five shapes as classes, in any colour, what is found, and its AP."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lab import metrics
from lab.boxes import Targets, suppressed, xyxy_from_cxcywh
from lab.data.named import NAMES, SHAPES, SIDE, Named

K = len(SHAPES)
SIZES = (12.0, 17.0)  # limits of small and large things, in pixels


class Found(NamedTuple):
    """logits (B, N, K), a sigmoid each; boxes (B, N, 4) cxcywh relative to the picture."""

    logits: Tensor
    boxes: Tensor


def things(scenes: Named) -> Targets:
    """The things of scenes by their shape, K where padded."""
    return Targets(scenes.boxes, torch.where(scenes.labels == len(NAMES), K, scenes.labels % K))


def ap(found: Found, scenes: Named, suppress: bool = False) -> float:
    """AP (%), mean over IoU from 0.5 to 0.95; each box counts for its best class. Nothing is suppressed unless asked for."""
    scores, labels = found.logits.sigmoid().max(-1)  # (n, N)
    rows = zip(xyxy_from_cxcywh(found.boxes) * SIDE, scores, labels, strict=True)
    said = [dict(zip(("boxes", "scores", "labels"), each, strict=True)) for each in rows]
    said = [suppressed(each) for each in said] if suppress else said
    targets = things(scenes)
    pairs = zip(xyxy_from_cxcywh(targets.boxes) * SIDE, targets.labels, targets.labels < K, strict=True)
    truth = [{"boxes": boxes[there], "labels": labels[there]} for boxes, labels, there in pairs]
    return 100 * metrics.average_precision(said, truth, sizes=SIZES)["ap"]
