"""A reader's picture, made fit for a model: upright, in eight bits of red, green and blue, of a size that can be handled."""

from __future__ import annotations

import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scripts.checkpoints.volumes import SUFFIXES, Volume, read_volume

if TYPE_CHECKING:
    from PIL import Image

MOST_PIXELS = 89_478_485
"""As many as Pillow takes without a warning; a file that says more may be made to fill the memory."""

LONGEST = 2048
"""Longest side of a picture that is tried: masks of many objects have its size."""


Kind = Literal["picture", "volume"]


class UnfitPictureError(Exception):
    """A picture that cannot be tried, in one line."""


@dataclass(frozen=True)
class Picture:
    """What is shown to the models, and what was done to it."""

    image: Image.Image
    notes: tuple[str, ...]
    scale: float = 1.0
    """Its size in that of the file: points and boxes of the reader are multiplied by it."""
    volume: Volume | None = None
    """What the picture shows slices of, if it is of a scan."""

    @property
    def kind(self) -> Kind:
        return "volume" if self.volume else "picture"


def open_picture(path: Path) -> Picture:
    """The picture of a file; raises UnfitPictureError if there is none."""
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise UnfitPictureError(f"{path}: no such file")
    if path.name.endswith(SUFFIXES):
        return _scan(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow warns of is looked at below, or of no account
            with Image.open(path) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    raise UnfitPictureError(_too_large(path, f"{opened.width} x {opened.height}"))
                return _fit(opened)
    except Image.DecompressionBombError:
        raise UnfitPictureError(_too_large(path, "far more")) from None
    except UnidentifiedImageError:
        raise UnfitPictureError(f"{path}: no picture that Pillow can read") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnfitPictureError(f"{path}: a broken picture: {' '.join(str(error).split())}") from None


def _scan(path: Path) -> Picture:
    try:
        volume, notes = read_volume(path)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise UnfitPictureError(f"{path}: a broken volume: {' '.join(str(error).split())}") from None
    return Picture(volume.image(), notes, volume=volume)


def _too_large(path: Path, size: str) -> str:
    return f"{path}: {size} pixels; more than {MOST_PIXELS:,} are not read, make it smaller first"


def _fit(opened: Image.Image) -> Picture:
    from PIL import Image, ImageOps

    notes = []
    frames = getattr(opened, "n_frames", 1)
    if frames > 1:
        notes.append(f"the first of {frames} frames")
    opened.load()
    upright = ImageOps.exif_transpose(opened)
    if upright.size != opened.size or opened.getexif().get(0x0112, 1) != 1:
        notes.append("turned upright as its EXIF says")
    image, how = _in_colours(upright)
    notes += [how] if how else []
    scale = min(1.0, LONGEST / max(image.size))
    if scale < 1:
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
        )
        notes.append(f"made smaller, to {image.width} x {image.height}")
    return Picture(image, tuple(notes), scale)


def _in_colours(image: Image.Image) -> tuple[Image.Image, str | None]:
    """The picture in RGB, and what that took, if more than a change of words."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        return _eight_bits(image), "brought from more than eight bits to eight"
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB"), "laid onto white"
    return image.convert("RGB"), "brought from CMYK to RGB" if image.mode == "CMYK" else None


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 bits by their range; 32 bits and numbers with a point have none, so by what occurs."""
    import numpy as np
    from PIL import Image

    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else (values.min(), values.max())
    grey = (values - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
