"""A scan as NIfTI, made fit for a model and for the eye: in standard orientation, and as three slices through its middle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    Array = np.ndarray[Any, Any]

SUFFIXES = (".nii", ".nii.gz")
MOST_VOXELS = 512**3
HEIGHT = 320
"""Of each slice, in pixels."""


@dataclass(frozen=True)
class Volume:
    """A scan from left to right, from back to front, from bottom to top."""

    values: Array
    millimetres: tuple[float, float, float]
    """Sides of a voxel."""

    def views(self, of: Array | None = None) -> Array:
        """The slices through the middle, seen from the side, from the front and from above, side by side.

        `of` is shown in the place of the values: a mask of the same shape.
        """
        import numpy as np

        shown = self.values if of is None else of
        return np.concatenate([self._slice(shown, axis) for axis in range(3)], axis=1)

    def _slice(self, shown: Array, axis: int) -> Array:
        """One slice with square pixels, top up."""
        import numpy as np

        across, up = (each for each in range(3) if each != axis)
        seen = np.rot90(shown.take(shown.shape[axis] // 2, axis=axis))
        width = self.millimetres[across] * shown.shape[across] / (self.millimetres[up] * shown.shape[up]) * HEIGHT
        rows, columns = (
            (np.arange(size) * have // size) for size, have in zip((HEIGHT, round(width)), seen.shape, strict=True)
        )
        square: Array = seen[np.ix_(rows, columns)]
        return square

    def image(self) -> Image.Image:
        """The slices in grey; the brightest thousandth does not count."""
        import numpy as np
        from PIL import Image

        low, high = np.percentile(self.values, (0.1, 99.9))
        grey = np.clip((self.views() - low) / max(high - low, 1e-12), 0, 1) * 255
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def read_volume(path: Path) -> tuple[Volume, tuple[str, ...]]:
    """The scan of a NIfTI file, and what was done to it; raises ValueError or OSError if it cannot be read."""
    import nibabel
    import numpy as np
    from nibabel.filebasedimages import ImageFileError

    try:
        stored = nibabel.load(path)
    except ImageFileError as error:
        raise ValueError(str(error)) from None
    size = " x ".join(map(str, stored.shape))
    if len(stored.shape) not in (3, 4) or min(stored.shape) < 2:
        raise ValueError(f"{size} is no volume")
    if math.prod(stored.shape) > MOST_VOXELS:  # before any is read
        raise ValueError(f"{size} voxels; more than {MOST_VOXELS:,} are not read")
    loaded, notes = nibabel.as_closest_canonical(stored), ["turned to standard orientation"]
    values = np.asarray(loaded.dataobj[..., 0] if len(loaded.shape) == 4 else loaded.dataobj, dtype=np.float32)
    if len(loaded.shape) == 4:
        notes.append(f"the first of {loaded.shape[3]} volumes")
    x, y, z = (float(side) for side in loaded.header.get_zooms()[:3])
    return Volume(np.nan_to_num(values), (x, y, z)), tuple(notes)
