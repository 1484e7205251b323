"""A reader's picture, made fit for a model: upright, in eight bits of red, green and blue, of a size that can be handled."""

from __future__ import annotations

import mimetypes
import shlex
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from scripts.checkpoints.volumes import SUFFIXES, Volume, read_volume

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    Array = np.ndarray[Any, Any]

T = TypeVar("T")

MOST_PIXELS = 89_478_485
"""As many as Pillow takes without a warning; a file that says more may be made to fill the memory."""

LONGEST = 2048
"""Longest side of a picture that is tried: masks of many objects have its size."""


MOST_FRAMES = 64
"""Of a clip, evenly over it."""

LONGEST_FRAME = 1024
ANIMATED = ("GIF", "WEBP", "PNG", "TIFF")
"""Formats of which several pictures may be the frames of a clip; what a telephone adds to a JPEG is a preview or a map."""

SHOWN_FRAMES = 8
COLUMNS = 4

Kind = Literal["picture", "clip", "volume"]


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
    frames: tuple[Image.Image, ...] = ()
    """Of a clip, all of one size; the picture is the first."""

    @property
    def kind(self) -> Kind:
        return "volume" if self.volume else "clip" if self.frames else "picture"

    @property
    def size(self) -> tuple[float, float]:
        """Width and height as the file has them, upright; of one made smaller never less than that."""
        if self.scale == 1:
            return self.image.size
        width, height = ((side + 0.5) / self.scale for side in self.image.size)
        return width, height

    @property
    def sheet(self) -> Image.Image:
        """Some frames of a clip, evenly over it."""
        import numpy as np
        from PIL import Image

        return Image.fromarray(sheet([np.asarray(each) for each in some(self.frames)]))


def evenly(there: int, wanted: int) -> list[int]:
    """So many numbers below `there`, from the first to the last."""
    return [round(n * (there - 1) / max(wanted - 1, 1)) for n in range(wanted)]


def some(frames: Sequence[T]) -> list[T]:
    """As many as a sheet shows."""
    return [frames[n] for n in evenly(len(frames), min(len(frames), SHOWN_FRAMES))]


def sheet(frames: Sequence[Array]) -> Array:
    """Frames (H, W, ...) in rows of a few, one after the other; what is left of the last row is zero."""
    import numpy as np

    columns = min(COLUMNS, len(frames))
    filled = [*frames, *[np.zeros_like(frames[0])] * (-len(frames) % columns)]
    rows = [np.concatenate(filled[n : n + columns], 1) for n in range(0, len(filled), columns)]
    whole: Array = np.concatenate(rows, 0)
    return whole


def open_picture(path: Path) -> Picture:
    """The picture of a file, or the frames of a folder; raises UnfitPictureError if there is none."""
    from PIL import Image, UnidentifiedImageError

    if path.is_dir():
        return _clip(path)
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
        raise UnfitPictureError(_no_picture(path)) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnfitPictureError(f"{path}: a broken picture: {' '.join(str(error).split())}") from None


def _no_picture(path: Path) -> str:
    """Of a film what makes frames of it; what else a file is called is told nothing of."""
    if not (mimetypes.guess_type(path.name)[0] or "").startswith("video/"):
        return f"{path}: no picture that Pillow can read"
    frames = f"ffmpeg -i {shlex.quote(str(path))} -r 4 frames/%04d.jpg"
    return f"{path}: a film; make frames of it and try their folder: mkdir frames && {frames}"


def _clip(folder: Path) -> Picture:
    """The pictures of a folder as frames, in the order of their names."""
    from PIL import Image

    Image.init()
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in Image.registered_extensions())
    if len(paths) < 2:
        raise UnfitPictureError(f"{folder}: fewer than two pictures, which is no clip")
    frames, scale = [], 1.0
    for number in evenly(len(paths), min(len(paths), MOST_FRAMES)):
        opened = open_picture(paths[number])
        frames.append(_small(opened.image))
        scale = opened.scale * frames[0].width / opened.image.width
    if len({each.size for each in frames}) > 1:
        raise UnfitPictureError(f"{folder}: pictures of different sizes, which are no frames of one clip")
    return _of_frames(frames, len(paths), scale)


def _small(frame: Image.Image) -> Image.Image:
    """In a size that many frames can be handled in."""
    small = frame.copy()
    small.thumbnail((LONGEST_FRAME, LONGEST_FRAME))
    return small


def _of_frames(frames: Sequence[Image.Image], there: int, scale: float) -> Picture:
    notes = [f"{there} frames, of which models of pictures see the first"]
    notes += [f"{len(frames)} of them are read"] if len(frames) < there else []
    return Picture(frames[0], tuple(notes), scale, frames=tuple(frames))


def _animation(opened: Image.Image, there: int) -> Picture | None:
    """The frames of a file as a clip; None if they are of different sizes, as pages are."""
    from PIL import ImageOps

    frames, sizes = [], []
    for number in evenly(there, min(there, MOST_FRAMES)):
        opened.seek(number)
        sizes.append(opened.size)
        if sizes[0] != sizes[-1]:
            return None
        upright = ImageOps.exif_transpose(opened)
        frames.append(_small(_in_colours(upright)[0]))
    return _of_frames(frames, there, max(frames[0].size) / max(sizes[0]))


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

    there, notes = getattr(opened, "n_frames", 1), []
    if there > 1:
        if opened.format in ANIMATED and (clip := _animation(opened, there)):
            return clip
        notes.append(f"the first of {there} pictures in the file")
        opened.seek(0)
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
        return _eight_bits(image)
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB"), "laid onto white"
    return image.convert("RGB"), "brought from CMYK to RGB" if image.mode == "CMYK" else None


DEPTHS = (8, 10, 12, 14, 16)
"""Bits of what cameras and scanners measure; files keep all above eight in sixteen."""


def _eight_bits(image: Image.Image) -> tuple[Image.Image, str]:
    """16 bits by the least depth that holds them; 32 bits and numbers with a point have none, so by what occurs."""
    import numpy as np
    from PIL import Image

    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high, of = values.min(), values.max(), "more than eight"
    if image.mode.startswith("I;16"):
        bits = next(bits for bits in DEPTHS if high < 2**bits)
        low, high, of = 0.0, 2.0**bits - 1, str(bits)
    grey = (values - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB"), f"brought from {of} bits to eight"
