"""What goes into an attempt and what comes out of it, as data that travels between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Prompt:
    """What the reader points at, in pixels of the picture, and asks for."""

    point: tuple[float, float] | None = None
    box: Box | None = None
    texts: tuple[str, ...] = ()

    def scaled(self, factor: float) -> Prompt:
        """The same on a picture of another size."""
        point = (self.point[0] * factor, self.point[1] * factor) if self.point else None
        box = tuple(value * factor for value in self.box) if self.box else None
        return Prompt(point, box, self.texts)  # type: ignore[arg-type]

    def astray(self, size: tuple[float, float]) -> str | None:
        """What it points at outside a picture of a width and a height, in a line; None if all lies within."""
        corners = {"point": [self.point] if self.point else [], "box": [self.box[:2], self.box[2:]] if self.box else []}
        for name, places in corners.items():
            if not all(0 <= value <= most for place in places for value, most in zip(place, size, strict=True)):
                given = ",".join(f"{value:g}" for place in places for value in place)
                return f"--{name} {given} is not within the picture of {size[0]:.0f} x {size[1]:.0f} pixels"
        if self.box and (self.box[0] == self.box[2] or self.box[1] == self.box[3]):
            return f"--box {','.join(f'{value:g}' for value in self.box)} holds no pixel"
        return None


def used(prompt: Prompt, output: str, size: tuple[int, int]) -> Prompt:
    """The part of a prompt that a model was shown on a picture of a size: a box, else a click, else one at the middle."""
    if output != "masks of a prompt":
        return Prompt()
    return Prompt(box=prompt.box) if prompt.box else Prompt(point=prompt.point or (size[0] / 2, size[1] / 2))


def unused(prompt: Prompt, output: str) -> tuple[str, ...]:
    """The options that were given and that a model of this output is not shown; of a box and a click it is shown the box."""
    pointed, told = output in ("masks of a prompt", "masks of a clip"), output.endswith((" of a text", " to texts"))
    given = {"--point": prompt.point, "--box": prompt.box, "--text": prompt.texts}
    takes = {"--point": pointed and not prompt.box, "--box": pointed, "--text": told}
    return tuple(name for name, value in given.items() if value and not takes[name])


@dataclass(frozen=True)
class Thing:
    """An object, a segment or a class with its name, and with a score, a box and a mask where there are such."""

    name: str
    score: float | None = None
    box: Box | None = None
    mask: np.ndarray[Any, Any] | None = None

    @property
    def is_placed(self) -> bool:
        """Whether it has a place on the picture."""
        return self.box is not None or self.mask is not None


@dataclass(frozen=True)
class Found:
    """What a checkpoint made of a picture."""

    things: tuple[Thing, ...] = ()
    depth: np.ndarray[Any, Any] | None = None
    features: np.ndarray[Any, Any] | None = None
    """Rows x columns x channels: a vector for each patch."""
    remark: str = ""

    @property
    def is_on_picture(self) -> bool:
        """Whether there is something to draw."""
        return any(thing.is_placed for thing in self.things) or self.depth is not None or self.features is not None

    @property
    def legend(self) -> str:
        """What the colours mean, where they are no veils and boxes."""
        if self.features is not None:
            return "patch features: their first three principal components as red, green and blue"
        return "depth, brighter is larger" if self.depth is not None else ""


@dataclass(frozen=True)
class Attempt:
    """How it went; `error` says in a line why nothing was found."""

    id: str
    found: Found | None = None
    error: str = ""
    device: str = ""
    seconds_to_load: float | None = None
    ms: float | None = None
    peak_mb: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
