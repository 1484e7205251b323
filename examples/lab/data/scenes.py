"""Digit scenes: real handwritten digits at many sizes, pasted on photographs and textures, with exact boxes and masks.

A digit is cut to its ink, smoothly enlarged, turned, and painted in one colour whose brightness differs from what lies
under it by a random contrast. Later digits cover earlier ones. Masks are what remains visible; boxes are tight around
them. Digits and photographs of the splits are disjoint (see `lab.data.digits`, `lab.data.photographs`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lab.data import Split
from lab.data.digits import digits
from lab.data.photographs import random_crop
from lab.device import moved

Stress = Literal["tiny", "crowded", "occluded", "rotated", "low_contrast"]
STRESSES: tuple[Stress, ...] = ("tiny", "crowded", "occluded", "rotated", "low_contrast")

PIXELS_AT_ONCE = 2**20  # bounds memory while painting; no part of what a seed means
TRIES = 24  # places tried for each digit
LEAST_VISIBLE = 0.25  # a digit of which less could be seen is not pasted at all,
LEAST_PIXELS = 4  # nor one with fewer visible pixels

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scenes:
    """N scenes.

    images: (N, 3, H, W) float32 in [0, 1]. Per scene, objects in order of pasting (later ones cover earlier ones):
    boxes: (n, 4) float32 xyxy in pixels, right and lower edge exclusive, so that width = x2 - x1; labels: (n,) int64;
    masks: (n, H, W) bool, the visible pixels; visible: (n,) float32 in (0, 1], the fraction of an object's pixels that
    is seen.
    """

    images: Tensor
    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    visible: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> "Scenes":
        """A part of the scenes, by a slice or by indices; the images of a slice are a view."""
        chosen = range(len(self))[index] if isinstance(index, slice) else [int(i) for i in index]
        images = self.images[index if isinstance(index, slice) else moved(torch.tensor(chosen), self.images.device)]
        lists = (self.boxes, self.labels, self.masks, self.visible)
        return Scenes(images, *(tuple(part[i] for i in chosen) for part in lists))

    def to(self, device: torch.device | str) -> "Scenes":
        """The scenes on a device; each list travels as one tensor, unless it is there."""
        if self.images.device.type == torch.device(device).type:
            return self
        counts = [len(part) for part in self.labels]
        lists = (self.boxes, self.labels, self.masks, self.visible)
        parts = (torch.split(torch.cat(part).to(device), counts) for part in lists)
        return Scenes(self.images.to(device), *parts)


@dataclass(frozen=True)
class _Plan:
    """What scenes are made of.

    size: pixels of an upright digit's longer side; degrees: turn to either side; contrast: difference of brightness
    from what lies below; tint: strength of the colour; overlap: the largest share of the smaller of two boxes that the
    other may cover; screen: share of a box that an unlabelled patch of another photograph covers.
    """

    objects: tuple[int, int]
    size: tuple[float, float]
    degrees: tuple[float, float] = (0, 12)
    contrast: tuple[float, float] = (0.3, 0.6)
    tint: float = 0.25
    overlap: float = 0.35
    screen: tuple[float, float] | None = None


def _stressed(plan: _Plan, stress: Stress | None) -> _Plan:
    low, high = plan.size
    match stress:
        case None:
            return plan
        case "tiny":
            return replace(plan, size=(0.6 * low, low))
        case "crowded":
            most = plan.objects[1]
            return replace(plan, objects=(2 * most, 3 * most), size=(low, math.sqrt(low * high)), overlap=0.5)
        case "occluded":
            return replace(plan, screen=(0.3, 0.55), overlap=0.5)
        case "rotated":
            return replace(plan, degrees=(30, 90))
        case "low_contrast":
            return replace(plan, contrast=(0.1, 0.18), tint=0.06)


def make_scenes(
    split: Split,
    count: int,
    *,
    seed: int,
    canvas: int = 64,
    objects: tuple[int, int] = (1, 4),
    size: tuple[float, float] | None = None,
    classes: int = 1,
    stress: Stress | None = None,
) -> Scenes:
    """Makes `count` scenes of (canvas, canvas) pixels, each with a random number of objects (both ends included).

    size: range of the longer side of an upright digit in pixels, drawn log-uniformly; by default 5/32 to 1/2 of the
    canvas (10 to 32 at 64). classes: 1 gives every object the label 0; K from 2 to 10 pastes the digits 0..K-1,
    labelled so. A digit that finds no place with little enough overlap in 24 tries, or of which less than a quarter
    could be seen, is left out; at least one stays, unless a patch of "occluded" hides all but a few of its pixels.

    stress changes one thing, relative to the settings given: "tiny" 0.6 to 1 times the smallest size; "crowded" two to
    three times the most objects, of the smaller half of the sizes, and more overlap; "occluded" a patch of another
    photograph hides 30-55 % of each box, and more overlap; "rotated" turned by 30 to 90 degrees; "low_contrast" a
    difference of brightness of 0.1-0.18 instead of 0.3-0.6, and hardly a colour.
    Raises ValueError for ranges that are empty or that do not fit the canvas.
    """
    plan = _Plan(objects, size or (canvas * 5 / 32, canvas / 2))
    if count < 1 or not 1 <= objects[0] <= objects[1]:
        raise ValueError(f"count {count} and objects {objects}: ask for at least one scene with at least one object")
    if not 5 <= plan.size[0] <= plan.size[1] <= 0.7 * canvas:
        raise ValueError(f"sizes are {plan.size} pixels; ask for a range within 5 and {0.7 * canvas:g}")
    if not 1 <= classes <= 10:
        raise ValueError(f"classes is {classes}; ask for 1 (no classes) to 10")
    if stress not in (None, *STRESSES):
        raise ValueError(f"no stress called {stress!r}; there are {', '.join(STRESSES)}")
    plan, rng = _stressed(plan, stress), np.random.default_rng(seed)
    usable = np.flatnonzero(_glyphs(split).labels < classes) if classes > 1 else None
    pasted = _layout(rng, plan, split, canvas, count, usable)
    backgrounds = _crops(rng, split, count, canvas)
    covers = _crops(rng, split, count, canvas) if plan.screen else backgrounds
    step = max(1, PIXELS_AT_ONCE // (plan.objects[1] * canvas**2))
    parts = []
    for start in range(0, count, step):
        part = slice(start, start + step)
        parts.append(_composed(backgrounds[part], covers[part], pasted.part(part), split))
    scenes, masks, visible, kept = (torch.cat(part) for part in zip(*parts, strict=True))
    labels = _glyphs(split).labels[pasted.glyph][kept.numpy()] if classes > 1 else np.zeros(len(masks), dtype=np.int64)
    counts = kept.sum(1).tolist()
    flat = (_boxes(masks), torch.from_numpy(labels), masks, visible)
    return Scenes(scenes, *(torch.split(part, counts) for part in flat))


def _crops(rng: np.random.Generator, split: Split, count: int, canvas: int) -> Tensor:
    """(count, 3, canvas, canvas) crops of photographs."""
    crops = np.stack([random_crop(rng, split, canvas) for _ in range(count)])
    return torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous()  # (N, H, W, 3) -> (N, 3, H, W)


@dataclass(frozen=True)
class _Glyphs:
    """ink: (G, 1, 40, 40), the outline is where it crosses `LEVEL`. centre (G, 2) and extent (G, 2): x, y of the box
    about the outline in pixels of the 40. labels: (G,)."""

    ink: Tensor
    centre: Floats
    extent: Floats
    labels: NDArray[np.int64]


GLYPH, LEVEL = 40, 0.45


@cache
def _glyphs(split: Split) -> _Glyphs:
    """The digits of a split, enlarged bicubically: smooth outlines out of 8x8 grey values."""
    source = digits(split)
    framed = functional.pad(
        source.images, (1, 1, 1, 1)
    )  # (G, 1, 10, 10): room for the outline outside the outermost ink
    ink = functional.interpolate(framed, size=(GLYPH, GLYPH), mode="bicubic", align_corners=False)
    boxes = _boxes(ink[:, 0] > LEVEL).numpy().astype(np.float64)
    low, high = boxes[:, :2], boxes[:, 2:]
    return _Glyphs(ink, (low + high) / 2, high - low, source.labels.numpy())


def _boxes(masks: Tensor) -> Tensor:
    """The tight boxes (M, 4) xyxy about masks (M, H, W), right and lower edge exclusive."""
    columns, rows = masks.any(1).to(torch.uint8), masks.any(2).to(torch.uint8)  # (M, W), (M, H)
    width, height = columns.shape[1], rows.shape[1]
    first = [columns.argmax(1), rows.argmax(1)]
    last = [width - columns.flip(1).argmax(1), height - rows.flip(1).argmax(1)]
    return torch.stack(first + last, dim=1).float()


@dataclass(frozen=True)
class _Objects:
    """What is pasted where: arrays (N, K), K the most objects of a scene.

    glyph: index; x, y: centre; scale: glyph pixels per pixel; turn: radians; present: whether it is there; contrast:
    signed; tint: (N, K, 3); screen: (N, K, 4) xyxy.
    """

    glyph: NDArray[np.int64]
    x: Floats
    y: Floats
    scale: Floats
    turn: Floats
    present: NDArray[np.bool_]
    contrast: Floats
    tint: Floats
    screen: Floats | None

    def part(self, scenes: slice) -> "_Objects":
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value[scenes] for name, value in values.items() if value is not None})


def _layout(
    rng: np.random.Generator,
    plan: _Plan,
    split: Split,
    canvas: int,
    count: int,
    usable: NDArray[np.int64] | None,
) -> _Objects:
    """Draws the objects of all scenes and finds their places."""
    shape = (count, plan.objects[1])  # (N, K)
    glyphs = _glyphs(split)
    glyph = rng.choice(np.arange(len(glyphs.labels)) if usable is None else usable, size=shape)
    size = np.exp(rng.uniform(math.log(plan.size[0]), math.log(plan.size[1]), shape))
    turn = np.radians(rng.uniform(*plan.degrees, shape)) * rng.choice([-1, 1], shape)
    extent = glyphs.extent[glyph]  # (N, K, 2)
    scale = extent.max(-1) / size
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    across = (extent[..., 0] * cos + extent[..., 1] * sin) / scale  # width and height of the turned box
    down = (extent[..., 0] * sin + extent[..., 1] * cos) / scale
    half = np.stack([across, down], -1) / 2  # (N, K, 2)
    wanted = np.arange(shape[1]) < rng.integers(plan.objects[0], plan.objects[1] + 1, (count, 1))
    centre, present = _places(rng, half, wanted, canvas, plan.overlap)
    contrast = rng.uniform(*plan.contrast, shape) * rng.choice([-1, 1], shape)
    tint = rng.normal(0, plan.tint, (*shape, 3))
    screen = _screens(rng, centre, half, plan.screen) if plan.screen else None
    return _Objects(glyph, centre[..., 0], centre[..., 1], scale, turn, present, contrast, tint, screen)


def _places(
    rng: np.random.Generator, half: Floats, wanted: NDArray[np.bool_], canvas: int, overlap: float
) -> tuple[Floats, NDArray[np.bool_]]:
    """Centres (N, K, 2) of boxes with half sides `half`, inside the canvas, and which found a place (N, K)."""
    count, most, _ = half.shape
    centre, present = np.zeros_like(half), np.zeros_like(wanted)
    area = 4 * half.prod(-1)  # (N, K)
    for k in range(most):
        reach = half[:, k, None]  # (N, 1, 2)
        tries = rng.uniform(0, 1, (count, TRIES, 2)) * (canvas - 2 * reach) + reach
        gap = np.abs(tries[:, :, None] - centre[:, None, :k])  # (N, TRIES, k, 2)
        both = reach[:, None] + half[:, None, :k]
        least = 2 * np.minimum(reach[:, None], half[:, None, :k])
        shared = np.clip(both - gap, 0, least).prod(-1) / np.minimum(area[:, None, :k], area[:, k, None, None])
        fits = ((shared <= overlap) | ~present[:, None, :k]).all(-1)  # (N, TRIES)
        centre[:, k] = tries[np.arange(count), fits.argmax(1)]
        present[:, k] = fits.any(1) & wanted[:, k]
    return centre, present


def _screens(rng: np.random.Generator, centre: Floats, half: Floats, share: tuple[float, float]) -> Floats:
    """Patches (N, K, 4) xyxy, each over a share of a box from one of its four sides, a little beyond its edges."""
    low, high = centre - half, centre + half  # (N, K, 2)
    box = np.concatenate([low, high], -1)  # (N, K, 4)
    beyond = rng.uniform(0.05, 0.25, box.shape) * np.tile(half, 2)
    patch = box + beyond * np.array([-1, -1, 1, 1])
    side = rng.integers(4, size=box.shape[:2])  # the edge of the patch that crosses the box
    part = rng.uniform(*share, box.shape[:2])[..., None] * np.tile(2 * half, 2)  # (N, K, 4)
    crossing = np.concatenate([high, low], -1) + part * np.array([-1, -1, 1, 1])
    patches: Floats = np.where(np.arange(4) == side[..., None], crossing, patch)
    return patches


def _coverage(objects: _Objects, canvas: int, split: Split) -> Tensor:
    """How much of each pixel the ink of each object covers, (n, K, H, W) in [0, 1]; 0 where it is absent."""
    there, glyphs = objects.present, _glyphs(split)
    index = objects.glyph[there]  # (M,)
    scale, cos, sin = objects.scale[there], np.cos(objects.turn[there]), np.sin(objects.turn[there])
    right, down = canvas / 2 - objects.x[there], canvas / 2 - objects.y[there]
    # affine_grid works in half sides: from pixels of the canvas to pixels of the glyph, turned about both centres.
    turned = np.stack([cos * right + sin * down, cos * down - sin * right], -1) * scale[:, None]
    shift = (glyphs.centre[index] + turned) * 2 / GLYPH - 1  # (M, 2)
    linear = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], 1)  # (M, 2, 2)
    theta = np.concatenate([linear * (scale * canvas / GLYPH)[:, None, None], shift[..., None]], -1)
    grid = functional.affine_grid(torch.from_numpy(theta).float(), [len(index), 1, canvas, canvas], align_corners=False)
    ink = functional.grid_sample(glyphs.ink[index], grid, align_corners=False)[:, 0]  # (M, H, W)
    # Ink goes from 0 to 1 within about 6 of the 40 pixels; steepened so that an edge is about a pixel wide.
    steep = torch.from_numpy(6 / scale).float().clamp(min=1.5)[:, None, None]
    coverage = torch.zeros(*there.shape, canvas, canvas)
    coverage[torch.from_numpy(there)] = ((ink - LEVEL) * steep + 0.5).clamp(0, 1)
    return coverage


def _seen(own: Tensor, hidden: Tensor) -> Tensor:
    """The visible part (n, K, H, W) of masks of which later ones lie on top; hidden (n, H, W) covers all of them."""
    seen, above = torch.empty_like(own), hidden.clone()
    for k in reversed(range(own.shape[1])):
        seen[:, k] = own[:, k] & ~above
        above |= own[:, k]
    return seen


def _composed(images: Tensor, covers: Tensor, objects: _Objects, split: Split) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Paints n scenes; returns images (n, 3, H, W), and over all kept objects in order masks (M, H, W) and the visible
    fraction (M,), and which were kept (n, K)."""
    canvas = images.shape[-1]
    coverage = _coverage(objects, canvas, split)
    own, hidden = coverage > 0.5, _hidden(objects.screen, objects.present, canvas)
    pixels = own.flatten(2).sum(-1)  # (n, K)
    fraction = _seen(own, hidden).flatten(2).sum(-1) / pixels.clamp(min=1)
    least = fraction.max(1, keepdim=True).values.clamp(max=LEAST_VISIBLE)
    kept = (fraction >= least) & (fraction * pixels >= LEAST_PIXELS)
    coverage *= kept[:, :, None, None]
    seen = _seen(coverage > 0.5, hidden)
    fraction = seen.flatten(2).sum(-1) / pixels.clamp(min=1)
    for k in range(coverage.shape[1]):
        images = _painted(images, coverage[:, k, None], objects, k)
    return torch.where(hidden[:, None], covers, images), seen[kept], fraction[kept], kept


def _hidden(screen: Floats | None, present: NDArray[np.bool_], canvas: int) -> Tensor:
    """The pixels (n, H, W) under the patches of the objects that are present."""
    if screen is None:
        return torch.zeros(len(present), canvas, canvas, dtype=torch.bool)
    pixels = np.arange(canvas) + 0.5
    x1, y1, x2, y2 = (screen[..., edge, None] for edge in range(4))  # each (n, K, 1)
    across, down = (x1 < pixels) & (pixels < x2), (y1 < pixels) & (pixels < y2)  # (n, K, W), (n, K, H)
    hidden = (down[..., None] & across[:, :, None] & present[..., None, None]).any(1)
    return torch.from_numpy(hidden)


LUMA = (0.299, 0.587, 0.114)


def _painted(images: Tensor, coverage: Tensor, objects: _Objects, k: int) -> Tensor:
    """Paints object k of each scene, coverage (n, 1, H, W), in one colour chosen against what lies under it."""
    luma = torch.tensor(LUMA)
    below = (images * coverage).sum((2, 3)) / coverage.sum((2, 3)).clamp(min=1)  # (n, 3)
    contrast = torch.from_numpy(objects.contrast[:, k]).float()
    brightness = below @ luma  # (n,)
    fits = (brightness + contrast > 0) & (brightness + contrast < 1)
    target = (brightness + torch.where(fits, contrast, -contrast)).clamp(0, 1)
    tint = torch.from_numpy(objects.tint[:, k]).float()
    tint = tint - (tint @ luma)[:, None]  # colour alone, no brightness
    # Shrunk where the colour would leave [0, 1]: clipping would change the brightness.
    room = torch.where(tint > 0, 1 - target[:, None], target[:, None]) / tint.abs().clamp(min=1e-6)
    colour = target[:, None] + tint * room.amin(1, keepdim=True).clamp(max=1)  # (n, 3)
    return torch.lerp(images, colour.clamp(0, 1)[:, :, None, None], coverage)
