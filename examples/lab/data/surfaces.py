"""Grey pieces of the photographs in scikit-image, each labelled with the photograph that it is cut from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lab.data import Split
from lab.data.photographs import NAMES, grey, photograph_region


def surfaces(split: Split, count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random squares of one to two times `size` pixels, scaled to it: (count, 1, size, size) in [0, 1], labels (count,).

    A label is an index of `NAMES`. No pixel of a photograph is in two splits.
    """
    rng = np.random.default_rng(seed)
    regions = [torch.from_numpy(grey(photograph_region(name, split)).copy()) for name in NAMES]
    labels, pieces = rng.integers(len(NAMES), size=count), []
    for label in labels:
        region = regions[label]
        side = int(rng.integers(size, 2 * size + 1))
        top, left = (int(rng.integers(length - side + 1)) for length in region.shape)
        piece = region[None, None, top : top + side, left : left + side]
        pieces.append(functional.interpolate(piece, size=(size, size), mode="bilinear", antialias=True)[0])
    return torch.stack(pieces), torch.from_numpy(labels)
