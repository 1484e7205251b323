"""What was found, drawn onto the picture: boxes and masks with names, depth and patch features as colours."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from scripts.checkpoints.found import Found, Prompt

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    Array = np.ndarray[Any, Any]

SHOWN = 1024
"""Longest side of a picture on the page."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00", "#7f3c8d")
"""After Okabe and Ito, told apart by colour-blind readers too; names stand beside them in any case."""

VEIL = 0.5


def colour_of(number: int) -> str:
    """Of the thing of a number."""
    return COLOURS[number % len(COLOURS)]


def drawn(image: Image.Image, found: Found, prompt: Prompt) -> Image.Image:
    """The picture as a checkpoint sees it."""
    if found.depth is not None:
        return _resized(_grey(found.depth), image.size)
    if found.features is not None:
        return _resized(_principal(found.features), image.size)
    return _marked(_veiled(image, found), found, prompt)


def jpeg(image: Image.Image, longest: int) -> bytes:
    """A picture as a file, made smaller if need be."""
    small = image.copy()
    small.thumbnail((longest, longest))
    held = io.BytesIO()
    small.save(held, "JPEG", quality=85)
    return held.getvalue()


def data_uri(image: Image.Image) -> str:
    """A picture within a page."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(image, SHOWN)).decode("ascii")


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    from PIL import Image

    return image.resize(size, Image.Resampling.NEAREST)


def _scaled(values: Array) -> Array:
    """Each channel from 0 to 255; the outermost hundredths do not count, so that one odd value does not decide."""
    import numpy as np

    low, high = np.percentile(values, (1, 99), axis=(0, 1))
    scaled = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    eight: Array = np.nan_to_num(scaled * 255).astype(np.uint8)
    return eight


def _grey(depth: Array) -> Image.Image:
    from PIL import Image

    return Image.fromarray(_scaled(depth)).convert("RGB")


def _principal(features: Array) -> Image.Image:
    """The first three principal components of the patches' features as red, green and blue."""
    import numpy as np
    from PIL import Image

    rows, columns, channels = features.shape
    flat = features.reshape(-1, channels) - features.reshape(-1, channels).mean(0)
    _, _, axes = np.linalg.svd(flat, full_matrices=False)
    parts = flat @ axes[:3].T
    parts = np.pad(parts, ((0, 0), (0, 3 - parts.shape[1])))
    return Image.fromarray(_scaled(parts.reshape(rows, columns, 3)))


def _veiled(image: Image.Image, found: Found) -> Image.Image:
    """Masks as veils of colour."""
    import numpy as np
    from PIL import Image, ImageColor

    values = np.asarray(image, dtype=np.float32).copy()
    for number, thing in reversed(list(enumerate(found.things))):
        if thing.mask is not None:
            colour = np.array(ImageColor.getrgb(colour_of(number))[:3], dtype=np.float32)
            values[thing.mask] = (1 - VEIL) * values[thing.mask] + VEIL * colour
    return Image.fromarray(values.round().astype(np.uint8))


def _marked(image: Image.Image, found: Found, prompt: Prompt) -> Image.Image:
    """Boxes with names and scores, names of masks at their middle, and what the reader pointed at."""
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(image)
    unit = max(image.size) / 400
    font = ImageFont.load_default(max(9.0, 12 * unit))
    for number, thing in reversed(list(enumerate(found.things))):
        place = None
        if thing.box is not None:
            x0, y0, x1, y1 = thing.box
            draw.rectangle(
                (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)),
                outline=colour_of(number),
                width=max(2, round(2 * unit)),
            )
            place = (max(0.0, x0), max(0.0, y0))
        elif thing.mask is not None and thing.mask.any():
            place = _middle(thing.mask)
        if place is not None:
            score = f" {thing.score:.2f}" if thing.score is not None else ""
            _label(draw, place, f"{number + 1} {thing.name}{score}", colour_of(number), font)
    if prompt.point is not None:
        x, y = prompt.point
        draw.ellipse((x - 4 * unit, y - 4 * unit, x + 4 * unit, y + 4 * unit), fill="white", outline="black")
    if prompt.box is not None:
        draw.rectangle(prompt.box, outline="white", width=max(2, round(2 * unit)))
    return image


def _middle(mask: Array) -> tuple[float, float]:
    """The pixel of a mask that is nearest to its middle, so that the name stands on it."""
    import numpy as np

    rows, columns = np.nonzero(mask)
    nearest = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    return float(columns[nearest]), float(rows[nearest])


def _label(draw: Any, place: tuple[float, float], text: str, colour: str, font: Any) -> None:
    text = text.encode("latin-1", "replace").decode("latin-1")[:40]  # the built-in font knows no more
    width, height = draw.im.size
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    place = (max(0, min(place[0], width - right)), max(0, min(place[1], height - bottom)))  # within the picture
    left, top, right, bottom = draw.textbbox(place, text, font=font)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=colour)
    draw.text(place, text, fill="white" if colour not in ("#e69f00", "#56b4e9") else "black", font=font)
