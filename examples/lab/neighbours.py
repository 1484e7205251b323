"""Nearest neighbours among features, by cosine: what frozen features know without a layer that is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lab.metrics import accuracy


@torch.inference_mode()
def features(backbone: nn.Module, images: Tensor) -> Tensor:
    """What a backbone makes of images (n, C, H, W): (n, D), on the CPU."""
    device = next(backbone.parameters()).device
    return torch.cat([backbone(part.to(device)).float().cpu() for part in torch.split(images, 500)])


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Of each row of (n, D) with each row of (m, D): (n, m)."""
    return functional.normalize(a, dim=-1) @ functional.normalize(b, dim=-1).T


def voted(bank: Tensor, labels: Tensor, queries: Tensor, k: int = 10) -> Tensor:
    """Class (n,) of queries (n, D) by a vote of the `k` nearest of the bank (m, D), labels (m,)."""
    neighbours = labels[cosines(queries, bank).topk(min(k, len(bank))).indices]  # (n, k)
    return functional.one_hot(neighbours).sum(1).argmax(-1)


def right(bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor) -> float:
    """Part of the queries (%) whose class (n,) their nearest neighbours name."""
    return 100 * accuracy(voted(bank, labels, queries), truth)
