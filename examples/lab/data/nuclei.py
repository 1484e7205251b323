"""Nuclei: one real picture of fluorescence microscopy with a mask of each nucleus, which the package stardist carries.

512 x 512 pixels, 125 nuclei, of which 36 touch another one. Where it comes from, as the package says (``stardist/data``): the
2018 Data Science Bowl (Caicedo et al., Nature Methods 16, 2019). Who stained what in which microscope is not said there. The
package is under the BSD 3-clause licence and names no other for the picture. It is read as files and never imported, so it is
installed without what its code needs.

The picture is cut into three bands of rows before anything else is done to it, so that no pixel of one split is in another. **It
is one picture: results say nothing across stains, microscopes or tissues.**
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from lab.data import Split

PACKAGE = "stardist"
COMMAND = "pip install --no-deps -r requirements-data.txt"
PICTURE, MASK = "stardist/data/images/img2d.tif", "stardist/data/images/mask2d.tif"
SHA256 = {
    PICTURE: "f9ccc1571b92c861ff87e28463068b43f61bd47357ed0503f711e5cd1eb97750",
    MASK: "59ad5e820b7982ca9d13e946fa6e7f64e2714899e00a2ae6c69aa79aad53d46f",
}
ROWS: dict[Split, tuple[int, int]] = {"train": (0, 256), "val": (256, 320), "test": (320, 512)}
BEND = 1.0  # pixels that a node of the elastic deformation is moved by, standard deviation
NODES = 4  # of it along each side of a crop


def _read(name: str) -> NDArray[np.uint16]:
    """A file of the package, (512, 512). Raises FileNotFoundError where it is missing, ValueError where it is another one."""
    try:
        content = Path(str(metadata.distribution(PACKAGE).locate_file(name))).read_bytes()
    except (metadata.PackageNotFoundError, OSError):
        raise FileNotFoundError(f"{name} of the package {PACKAGE} is missing; get it with: {COMMAND}") from None
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise ValueError(f"{name} of the package {PACKAGE} is not the one that is known; get it with: {COMMAND}")
    with Image.open(BytesIO(content)) as image:
        return np.asarray(image)


@cache
def nuclei(split: Split, binned: int = 2) -> tuple[Tensor, Tensor]:
    """The band of a split: its image (H, W) float32 in [0, 1], and labels (H, W) int64, 0 background, 1..n the nuclei.

    A nucleus on the border of two bands is cut. The tensors are shared: copy them to change them.

    Args:
        split: which band.
        binned: so many pixels a side make one: the mean of the image, the label of the first. W is 512 / binned.

    Raises:
        FileNotFoundError: the package is not installed; one line says how to get it.
        ValueError: the package holds another picture.
    """
    rows = slice(*ROWS[split])
    image = torch.from_numpy(_read(PICTURE)[rows].astype(np.float32) / 255)
    mask = _read(MASK)[rows][::binned, ::binned]
    labels = torch.from_numpy(np.unique(mask, return_inverse=True)[1].reshape(mask.shape))
    return functional.avg_pool2d(image[None], binned)[0], labels


def missing() -> str | None:
    """Why there is no picture, in one line; None where there is one."""
    try:
        nuclei("train")
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return None


def crops(image: Tensor, maps: Tensor, count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random windows of an image (H, W) and of maps (C, H, W) that lie on it: (count, 1, size, size), (count, C, size, size).

    Each is mirrored, turned by quarters and bent at random. Maps keep their values: the nearest pixel is taken, not a mean.
    """
    rng = np.random.default_rng(seed)
    grid = _places(rng, count, size, image.shape)
    pixels = image.expand(count, 1, -1, -1)
    bent = functional.grid_sample(pixels, grid, padding_mode="reflection", align_corners=True)
    values = maps.float().expand(count, -1, -1, -1)
    kept = functional.grid_sample(values, grid, mode="nearest", padding_mode="reflection", align_corners=True)
    return bent, kept


def _places(rng: np.random.Generator, count: int, size: int, shape: torch.Size) -> Tensor:
    """Where in a picture of this shape each pixel of each window lies, (count, size, size, 2) as x, y from -1 to 1."""
    steps = torch.arange(size) - (size - 1) / 2
    down, across = torch.meshgrid(steps, steps, indexing="ij")
    axes = torch.stack([across, down], -1).expand(count, -1, -1, -1)  # (count, size, size, 2)
    turned = torch.from_numpy(rng.integers(2, size=count) > 0)[:, None, None, None]
    signs = torch.from_numpy(rng.choice(np.array([-1.0, 1.0], np.float32), (count, 1, 1, 2)))
    nodes = torch.from_numpy(rng.normal(0, BEND, (count, 2, NODES, NODES)).astype(np.float32))
    bend = functional.interpolate(nodes, size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    whole = torch.tensor([shape[1], shape[0]], dtype=torch.float32)  # W, H
    room = whole.numpy() - size
    corner = torch.from_numpy((rng.random((count, 1, 1, 2)) * room).astype(np.float32))
    place = torch.where(turned, axes.flip(-1), axes) * signs + bend + corner + (size - 1) / 2
    return 2 * place / (whole - 1) - 1
