"""Photographs and textures that lie inside scikit-image's wheel; nothing is fetched.

Each picture is cut before anything else is done to it: the left half trains, the upper right quarter validates, the
lower right quarter tests. So no background pixel of one split is ever seen in another.
"""

from functools import cache
from importlib.resources import as_file, files

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from lab.data import Split

Array = NDArray[np.float32]

FILES = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble": "hubble_deep_field.jpg",
    "immunohistochemistry": "ihc.png",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}
NAMES: tuple[str, ...] = tuple(FILES)


@cache
def photograph(name: str) -> Array:
    """One whole picture, (H, W, 3) float32 in [0, 1]; a grey one has three equal channels.

    Raises ValueError for a name that is not in `NAMES`. The array is shared and read-only: copy it to change it.
    """
    if name not in FILES:
        raise ValueError(f"no photograph called {name!r}; there are {', '.join(NAMES)}")
    with as_file(files("skimage") / "data" / FILES[name]) as path, Image.open(path) as image:
        pixels: Array = np.asarray(image.convert("RGB"), dtype=np.float32) / np.float32(255)
    pixels.flags.writeable = False
    return pixels


def square_photograph(name: str, size: int) -> Tensor:
    """The middle square of a photograph, (3, size, size) in [0, 1]."""
    pixels = torch.from_numpy(photograph(name).copy()).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    side = min(pixels.shape[1:])
    top, left = (pixels.shape[1] - side) // 2, (pixels.shape[2] - side) // 2
    square = pixels[None, :, top : top + side, left : left + side]
    return functional.interpolate(square, size=(size, size), mode="bilinear", antialias=True)[0]


def photograph_region(name: str, split: Split) -> Array:
    """The part of a picture that belongs to a split, (H', W', 3) float32 in [0, 1]."""
    pixels = photograph(name)
    rows, columns = pixels.shape[0] // 2, pixels.shape[1] // 2
    right = pixels[:, columns:]
    return {"train": pixels[:, :columns], "val": right[:rows], "test": right[rows:]}[split]


def grey(pixels: Array) -> Array:
    """Luma of RGB, (..., 3) -> (...), with the weights of Rec. 601."""
    return np.asarray(pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32))


def _scaled(pixels: Array, factor: float) -> Array:
    """A picture (H, W, 3) scaled by a factor, antialiased."""
    height, width = (round(side * factor) for side in pixels.shape[:2])
    image = Image.fromarray((pixels * 255).round().astype(np.uint8))
    scaled: Array = np.asarray(image.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / np.float32(255)
    return scaled


@cache
def _regions(split: Split, size: int) -> tuple[tuple[Array, ...], ...]:
    """Per picture, its region at full, half, quarter ... size, as long as a crop of `size` pixels fits in.

    Crops of the full size show little but texture; the smaller copies show things. A region below `size` is enlarged.
    """
    regions = []
    for name in NAMES:
        region = photograph_region(name, split)
        side = min(region.shape[:2])
        if side < size:
            region = np.clip(_scaled(region, (size + 1) / side), 0, 1)
        levels = [region]
        while min(levels[-1].shape[:2]) >= 2 * size:
            levels.append(_scaled(levels[-1], 0.5))
        regions.append(tuple(levels))
    return tuple(regions)


def random_crop(rng: np.random.Generator, split: Split, size: int) -> Array:
    """A random square of a random picture at a random scale, mirrored half of the time.

    Returns (size, size, 3) float32 in [0, 1]; it may be changed freely. `grey` makes one channel of it.
    """
    levels = _regions(split, size)[rng.integers(len(NAMES))]
    region = levels[rng.integers(len(levels))]
    top = rng.integers(region.shape[0] - size + 1)
    left = rng.integers(region.shape[1] - size + 1)
    crop = region[top : top + size, left : left + size]
    return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop.copy())
