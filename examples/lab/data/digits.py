"""Handwritten digits: the 1,797 images of 8x8 pixels that scikit-learn ships (UCI optical recognition of digits).

The splits follow the order of the file, without shuffling: neighbours in the file often come from the same writer.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lab.data import Split


@dataclass(frozen=True)
class Digits:
    """A set of digits.

    images: (N, 1, H, W) float32 in [0, 1], ink bright on black. labels: (N,) int64, 0-9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "Digits":
        return Digits(self.images.to(device), self.labels.to(device))


def digit_splits() -> dict[Split, range]:
    """Index ranges in file order: 1,297 to train, 200 to validate, 300 to test."""
    return {"train": range(1297), "val": range(1297, 1497), "test": range(1497, 1797)}


@cache
def _file() -> Digits:
    """All digits: images (1797, 1, 8, 8). The file is read as it is, since the package takes a second to be imported."""
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(path), np.float32, delimiter=",")  # (1797, 65): the ink of 64 pixels, 0 to 16, and the digit
    images = torch.from_numpy(table[:, :64] / 16).reshape(-1, 1, 8, 8)
    return Digits(images, torch.from_numpy(table[:, 64].astype(np.int64)))


def digits(split: Split, size: int = 8) -> Digits:
    """The digits of a split, upsampled bilinearly to (N, 1, size, size).

    Raises ValueError for a size below the 8 pixels of the source.
    """
    if size < 8:
        raise ValueError(f"size is {size} pixels; the digits have 8: ask for 8 or more")
    part, everything = digit_splits()[split], _file()
    images = everything.images[part.start : part.stop].clone()
    if size > 8:
        images = functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return Digits(images, everything.labels[part.start : part.stop].clone())


def shifted_digits(split: Split, size: int, canvas: int, seed: int, *, count: int | None = None) -> Digits:
    """Digits of `size` pixels at a uniformly random place of a black (canvas, canvas) image.

    Centred digits are trivial for nearest neighbours in pixel space; shifted ones are not. Without `count` each digit
    of the split comes once, in file order; with it, `count` digits are drawn with replacement, so that one digit may
    come at several places. Raises ValueError if the canvas is smaller than the digit.
    """
    if canvas < size:
        raise ValueError(f"a digit of {size} pixels does not fit on a canvas of {canvas}")
    rng = np.random.default_rng(seed)
    source = digits(split, size)
    chosen = np.arange(len(source)) if count is None else rng.integers(len(source), size=count)
    top, left = rng.integers(canvas - size + 1, size=(2, len(chosen)))
    index = torch.from_numpy(chosen)
    images = torch.zeros(len(chosen), canvas, canvas)
    rows = torch.from_numpy(top)[:, None] + torch.arange(size)  # (N, size)
    columns = torch.from_numpy(left)[:, None] + torch.arange(size)  # (N, size)
    # (N, 1, 1), (N, size, 1), (N, 1, size) -> (N, size, size)
    images[torch.arange(len(chosen))[:, None, None], rows[:, :, None], columns[:, None]] = source.images[index, 0]
    return Digits(images[:, None], source.labels[index])


def placed(images: Tensor, canvas: int, generator: torch.Generator) -> Tensor:
    """Puts each image at a random place of a black canvas: (B, 1, S, S) -> (B, 1, canvas, canvas), on their device."""
    room, B = canvas - images.shape[-1], len(images)
    top, left = torch.randint(room + 1, (2, B), generator=generator, device=images.device)  # each (B,)
    windows = functional.pad(images[:, 0], (room,) * 4).unfold(1, canvas, 1).unfold(2, canvas, 1)  # views, not copies
    return windows[torch.arange(B, device=images.device), room - top, room - left][:, None]


def digits_at_places(split: Split, size: int, canvas: int, places: int) -> tuple[Tensor, Tensor]:
    """All digits of a split at so many places each, the same for every seed: images (n, 1, canvas, canvas), labels (n,)."""
    sets = [shifted_digits(split, size, canvas, seed=place) for place in range(places)]
    return torch.cat([each.images for each in sets]), torch.cat([each.labels for each in sets])
