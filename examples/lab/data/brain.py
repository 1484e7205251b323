r"""Brain slices: nilearn's copy of the MNI152 T1 template with its grey- and white-matter maps, and planted tumours.

The template is an average head (ICBM 2009a, nonlinear, symmetric, 1 mm), skull-stripped. Every slice is warped
elastically, mirrored half of the time and changed in contrast, with a bias field and noise. **It is one anatomy:
results say nothing across patients.** The tumours are drawn, without mass effect and without oedema along the tracts.

A tumour is the set of the $n$ intracranial pixels nearest to its centre in a distance divided by an irregular radius
$s(\theta) = \exp \sum_k a_k \cos(k\theta + \varphi_k)$, so its area is exactly $n$.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lab.data import Split

BACKGROUND, GREY, WHITE, TUMOUR, RIM = range(5)
LABELS = ("background", "grey matter", "white matter", "tumour", "tumour rim")

# Axial positions in mm of MNI space, both ends included: every split has bands low and high in the brain, 5 mm apart.
BANDS: dict[Split, tuple[tuple[int, int], ...]] = {
    "train": ((-26, -14), (11, 27), (50, 62)),
    "val": ((-9, -4), (32, 36)),
    "test": ((1, 6), (41, 45)),
}
CHUNK = 32  # slices made at once; part of what a seed means

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class BrainSlices:
    """A set of axial slices, front of the head at the top. H, W = 112, 96 at 2 mm and 224, 192 at 1 mm.

    images: (N, 1, H, W) float32 in [0, 1].
    labels: (N, H, W) int64, indices of `LABELS`: 0 background (outside, fluid), 1 grey matter, 2 white matter,
    3 tumour; with `parts` 3 is the tumour's core and 4 its rim.
    lesions: (N, H, W) uint8, 0 none, 1..n the tumours of a slice. Two tumours never touch; about one in a thousand is
    cut in two by the edge of the head.
    z: (N,) int64, mm of MNI space.
    """

    images: Tensor
    labels: Tensor
    lesions: Tensor
    z: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | Tensor) -> "BrainSlices":
        return BrainSlices(self.images[index], self.labels[index], self.lesions[index], self.z[index])

    def to(self, device: torch.device | str) -> "BrainSlices":
        return BrainSlices(*(part.to(device) for part in (self.images, self.labels, self.lesions, self.z)))


def slice_positions(split: Split) -> tuple[int, ...]:
    """The axial positions of a split, in mm of MNI space."""
    return tuple(z for low, high in BANDS[split] for z in range(low, high + 1))


@cache
def _volume(millimetres: int) -> tuple[Tensor, int]:
    """(Z, 4, H, W) with T1, grey, white and head mask, slices 1 mm apart, and the position of slice 0 in mm."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    maps = [load() for load in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)]
    t1, grey, white = (np.asarray(part.get_fdata(dtype=np.float32)) for part in maps)
    volume = np.stack([t1, grey, white, (t1 > 0).astype(np.float32)])  # (4, 197, 233, 189): x right, y front, z up
    volume = volume[:, 2:194, 5:229, :].transpose(3, 0, 2, 1)[:, :, ::-1]  # (Z, 4, 224, 192), front at the top
    slices = torch.from_numpy(np.ascontiguousarray(volume))
    if millimetres > 1:
        slices = functional.avg_pool2d(slices, millimetres)
    return slices, round(float(maps[0].affine[2, 3]))


def brain_slices(
    split: Split,
    count: int,
    *,
    seed: int,
    millimetres: Literal[1, 2] = 2,
    tumours: tuple[int, int] = (0, 3),
    tumour_pixels: tuple[int, int] = (8, 400),
    parts: bool = False,
) -> BrainSlices:
    """Makes `count` slices of a split, each with a random number of tumours in the range `tumours` (ends included).

    tumour_pixels: range of a tumour's area in pixels of the slice, drawn log-uniformly, ends included; at most 400 at
    2 mm, 1,600 at 1 mm. A tumour that finds no place apart from the others is left out. parts: label the inner 40 % or
    so of a tumour as core (3), the rest as rim (4); without it all of it is 3. The images do not depend on `parts`.
    Raises ValueError for a resolution other than 1 or 2 mm, or for a range that is empty or out of bounds.
    """
    if millimetres not in (1, 2):
        raise ValueError(f"slices come at 1 or 2 mm, not {millimetres}")
    if not 0 <= tumours[0] <= tumours[1] <= 8:
        raise ValueError(f"tumours per slice are {tumours}; ask for a range within 0 and 8")
    largest = 1600 // millimetres**2
    if not 1 <= tumour_pixels[0] <= tumour_pixels[1] <= largest:
        raise ValueError(f"tumour areas are {tumour_pixels}; ask for a range within 1 and {largest} pixels")
    rng = np.random.default_rng(seed)
    volume, z_first = _volume(millimetres)
    z = torch.from_numpy(rng.choice(np.array(slice_positions(split), dtype=np.int64), size=count))
    made = [
        _chunk(rng, volume[part - z_first], tumours, tumour_pixels, parts, millimetres)
        for part in torch.split(z, CHUNK)
        if len(part)
    ]
    if not made:
        raise ValueError(f"count is {count}; ask for at least one slice")
    images, labels, lesions = (torch.cat(part) for part in zip(*made, strict=True))
    return BrainSlices(images, labels, lesions, z)


def _chunk(
    rng: np.random.Generator,
    slices: Tensor,
    tumours: tuple[int, int],
    tumour_pixels: tuple[int, int],
    parts: bool,
    millimetres: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, 1, H, W), labels (B, H, W), lesions (B, H, W) from template slices (B, 4, H, W)."""
    warped = functional.grid_sample(slices, _warp(rng, slices, millimetres), align_corners=False)
    image, grey, white, head = warped.unbind(1)  # each (B, H, W)
    # The largest of the three: grey, white, and what the two leave.
    labels = (torch.maximum(grey, white) > 1 - grey - white) * torch.where(white > grey, WHITE, GREY)
    lesions = torch.zeros(labels.shape, dtype=torch.uint8)
    centres, allowed = (grey + white > 0.5) & (head > 0.99), head > 0.5
    wanted = torch.from_numpy(rng.integers(tumours[0], tumours[1] + 1, size=len(slices)))
    for number in range(1, tumours[1] + 1):
        which = (wanted >= number).nonzero()[:, 0]
        if len(which) == 0:
            break
        areas = _areas(rng, len(which), tumour_pixels)
        window, offset = _windows(rng, which, centres, _half_side(tumour_pixels[1]))
        depth = _tumour(rng, offset, allowed[window] & centres.flatten(1).any(1)[which, None, None], areas)
        core, inside = _core(depth, areas), depth >= 0  # (b, side, side)
        image[window] = _painted(rng, image[window], depth, core, areas)
        labels[window] = torch.where(inside, torch.where(core | (not parts), TUMOUR, RIM), labels[window])
        lesions[window] = torch.where(inside, number, lesions[window]).to(torch.uint8)
        allowed[window] &= ~_dilated(inside, 2)
        centres[window] &= ~_dilated(inside, 10 // millimetres)
    return _scanned(rng, image, head)[:, None], labels, lesions


def _areas(rng: np.random.Generator, count: int, limits: tuple[int, int]) -> Tensor:
    """Log-uniform whole numbers of pixels (b,) within the limits."""
    areas = np.exp(rng.uniform(np.log(limits[0] - 0.5), np.log(limits[1] + 0.5), size=count))
    return torch.from_numpy(areas.round().astype(np.int64)).clamp(*limits)


def _half_side(area: int) -> int:
    """Half the side of a window that holds a tumour even where the edge of the head squeezes it."""
    return math.ceil(2.5 * math.sqrt(area / math.pi)) + 3


Window = tuple[Tensor, Tensor, Tensor]


def _windows(rng: np.random.Generator, which: Tensor, centres: Tensor, half: int) -> tuple[Window, Tensor]:
    """A window about a random centre in each of the slices `which` (b,), cut at the border of the image.

    Returns the index (b, 1, 1), (b, side, 1), (b, 1, side) of the windows and the complex offset (b, side, side) of
    their pixels from the centre: columns + i * rows.
    """
    _, height, width = centres.shape
    running = centres[which].flatten(1).cumsum(1)  # (b, H * W)
    rank = (torch.from_numpy(rng.random((len(which), 1))) * running[:, -1:]).long() + 1
    centre = torch.searchsorted(running, rank).clamp(max=height * width - 1)  # (b, 1): a random pixel that may be one
    side = min(2 * half + 1, height, width)
    row, column = centre // width, centre % width
    rows = (row - half).clamp(0, height - side) + torch.arange(side)  # (b, side)
    columns = (column - half).clamp(0, width - side) + torch.arange(side)
    across, down = (columns - column)[:, None].expand(-1, side, -1), (rows - row)[:, :, None].expand(-1, -1, side)
    return (which[:, None, None], rows[:, :, None], columns[:, None]), torch.complex(across.float(), down.float())


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def _uniform(rng: np.random.Generator, low: float, high: float, count: int) -> Tensor:
    """(B, 1, 1) uniform numbers, one per slice."""
    return torch.from_numpy(rng.uniform(low, high, (count, 1, 1)).astype(np.float32))


def _smooth(rng: np.random.Generator, count: int, channels: int, nodes: int, size: tuple[int, int]) -> Tensor:
    """A smooth random field (B, channels, H, W) of about unit variance: bicubic through random nodes."""
    return functional.interpolate(
        _normal(rng, count, channels, nodes, nodes), size=size, mode="bicubic", align_corners=True
    )


def _dilated(mask: Tensor, radius: int) -> Tensor:
    """A mask (b, h, w) grown by a square of `radius` pixels: one axis after the other."""
    grown, length = mask[:, None].float(), 2 * radius + 1
    grown = functional.max_pool2d(grown, (length, 1), stride=1, padding=(radius, 0))
    return functional.max_pool2d(grown, (1, length), stride=1, padding=(0, radius))[:, 0] > 0


def _warp(rng: np.random.Generator, slices: Tensor, millimetres: int) -> Tensor:
    """A sampling grid (B, H, W, 2): mirror, rotation, scale, shift, and an elastic field of about 3 mm."""
    count, _, height, width = slices.shape
    angle = np.radians(rng.uniform(-10, 10, count))
    scale = rng.uniform(0.92, 1.1, (2, count))  # above 1 shrinks the head
    mirror = rng.choice([-1.0, 1.0], count)
    aspect = height / width  # the grid's units are half sides, so a rotation needs the aspect
    theta = np.empty((count, 2, 3), dtype=np.float32)
    theta[:, 0] = np.stack([np.cos(angle), -np.sin(angle) * aspect, rng.uniform(-0.04, 0.04, count)], 1)
    theta[:, 1] = np.stack([np.sin(angle) / aspect, np.cos(angle), rng.uniform(-0.04, 0.04, count)], 1)
    theta[:, 0] *= (scale[0] * mirror)[:, None]
    theta[:, 1] *= scale[1][:, None]
    grid = functional.affine_grid(torch.from_numpy(theta), [count, 1, height, width], align_corners=False)
    millimetre = torch.tensor([2 / (width * millimetres), 2 / (height * millimetres)])
    field = _smooth(rng, count, 2, 7, (height, width))  # (B, 2, H, W)
    return grid + 3.0 * millimetre * field.permute(0, 2, 3, 1)  # (B, H, W, 2)


def _tumour(rng: np.random.Generator, offset: Tensor, allowed: Tensor, areas: Tensor) -> Tensor:
    """Depth below the tumour's outline in pixels (b, side, side): at least 0 inside, -inf where none is allowed.

    A window with fewer allowed pixels than the area gets no tumour.
    """
    count = len(offset)
    distance = offset.abs()
    turn = offset / distance.clamp(min=0.5)  # exp(i * theta)
    wave, power = torch.zeros_like(distance), turn
    for amplitude in (0.22, 0.14, 0.10, 0.07):  # orders 2 to 5; order 1 would only move the centre
        power = power * turn
        phase = torch.from_numpy(np.exp(2j * np.pi * rng.random((count, 1, 1))).astype(np.complex64))
        wave += amplitude * (power * phase).real
    distance = (distance * torch.exp(-wave)).masked_fill(~allowed, torch.inf)
    most = min(int(areas.max()), distance[0].numel())
    nearest = distance.flatten(1).topk(most, largest=False).values  # (b, most), ascending
    edge = nearest.gather(1, (areas.clamp(max=most) - 1)[:, None])[:, :, None]  # (b, 1, 1)
    fits = (allowed.flatten(1).sum(1) >= areas)[:, None, None]
    return torch.where(allowed & fits, edge - distance, -torch.inf)


def _core(depth: Tensor, areas: Tensor, share: float = 0.4) -> Tensor:
    """The inner `share` of a tumour's area, as far as it is round: depth against its mean radius."""
    radius = (areas / torch.pi).sqrt()[:, None, None]
    inner: Tensor = depth > (1 - share**0.5) * radius
    return inner


def _painted(rng: np.random.Generator, image: Tensor, depth: Tensor, core: Tensor, areas: Tensor) -> Tensor:
    """Paints tumours on windows (b, side, side): a dull rim; a core dark, bright, or dark in a bright ring."""
    count, side = len(image), image.shape[1]
    heart = _core(depth, areas, share=0.15)
    dark, bright = _uniform(rng, 0.22, 0.42, count), _uniform(rng, 0.92, 1.1, count)
    kind = torch.from_numpy(rng.integers(3, size=(count, 1, 1)))
    inner = torch.where((kind == 1) | ((kind == 2) & ~heart), bright, dark)
    paint = torch.where(core, inner, _uniform(rng, 0.42, 0.58, count))
    paint = paint + 0.04 * _smooth(rng, count, 1, max(2, side // 4), (side, side))[:, 0]
    # Some are faint, and the outermost pixels are partly healthy tissue.
    cover = _uniform(rng, 0.6, 1.0, count) * (0.7 + 0.3 * depth.clamp(0, 1)) * (depth >= 0)
    return image + cover * (paint - image)


def _scanned(rng: np.random.Generator, image: Tensor, head: Tensor) -> Tensor:
    """What a scanner makes of it: contrast, a bias field, noise; (B, H, W) in [0, 1]."""
    count, height, width = image.shape
    image = image.clamp(0, 1.2) ** _uniform(rng, 0.8, 1.3, count) * _uniform(rng, 0.7, 0.9, count)
    image = image * (1 + 0.08 * _smooth(rng, count, 1, 4, (height, width))[:, 0]) * head
    noise = _uniform(rng, 0.01, 0.04, count) * _normal(rng, 2, count, height, width)
    return ((image + noise[0]) ** 2 + noise[1] ** 2).sqrt().clamp(0, 1)  # Rician, as in magnitude images
