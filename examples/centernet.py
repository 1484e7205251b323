# %% [markdown]
# # CenterNet: does a look at the centre tell true boxes from wrong pairs of corners?
#
# An object is found as a triplet of keypoints: a top-left and a bottom-right corner make a box, and a centre inside confirms
# it. One small network is trained on digit scenes and read with and without the check, so that the corners are the same; with
# a centre branch that pools along rows and columns, and with one that does not. Beside it stands the other model of the same
# name, Objects as Points, which needs no corners: its peaks take the place of suppression.
#
# | symbol (arXiv:1904.08189) | here | meaning |
# |---|---|---|
# | $tl$, $br$, centre | `KINDS` | the three kinds of keypoints |
# | $\hat Y$ | `Keypoints.heat` | a heatmap for each class, (B, K, H, W), as logits |
# | $e$ | `Keypoints.tag` | embedding of a corner, (B, 1, H, W): alike for the two corners of an object |
# | | `Keypoints.offset` | what rounding to a cell took away, in cells, (B, 2, H, W) |
# | $n$ | `odd` | the central region is the middle $1/n$ of the box, along both axes |
# | M, k | | most objects of a scene; keypoints of each kind that are read |

# %%
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from lab import detectors
from lab.data.scenes import Scenes
from lab.figures import Style, draw_boxes, panels, seed_bars, show_image
from lab.metrics import timed
from lab.run import Run
from lab.training import count_parameters
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import batched_nms, box_iou

STRIDE = 4  # pixels for one cell of the heatmaps
TAGS_APART = 0.5  # corners whose tags differ by more do not belong together
OVERLAP = 0.5  # IoU above which suppression removes the less sure box
FLOOR = 0.01  # score below which a keypoint is not reported at all
KINDS = ("tl", "br", "centre", "plain")  # "plain" is the centre branch of the control, without center pooling
# The rate of the YOLOv8 of this site; on validation scenes of seed 100 triplets learn with it, and no other was tried.
LEARNING_RATE = 4e-3


@dataclass(frozen=True)
class Preset:
    """Channels of the hourglass at strides 4, 8 and 16, classes, and keypoints of each kind that are read."""

    widths: tuple[int, int, int] = (16, 64, 96)
    classes: int = 1
    keypoints: int = 20


PRESETS = {
    "smoke": Preset(widths=(16, 16, 16), keypoints=8),
    "quick": Preset(),
    "full": Preset(widths=(96, 160, 224), classes=10, keypoints=70),
}

# %% [markdown]
# ## Pooling that looks along lines
# A corner of a box often shows nothing of the object. *Corner pooling* takes, for the top-left corner, the maximum of
# everything to the right and of everything below. *Cascade* corner pooling looks inside first: along the top border, each
# place takes the maximum below it, and then the corner takes the maximum along the border. *Center pooling* adds the maximum
# of the whole row and that of the whole column (Figure 4 and 5 of the paper).


# %%
def pool_towards(x: Tensor, side: str) -> Tensor:
    """Each place takes the maximum from itself to a side of the map, (B, C, H, W)."""
    axis = 3 if side in ("left", "right") else 2
    if side in ("left", "top"):
        return x.cummax(axis).values
    return x.flip(axis).cummax(axis).values.flip(axis)


def center_pool(rows: Tensor, columns: Tensor) -> Tensor:
    """The maximum of the row of one map plus that of the column of another: two (B, C, H, W) -> (B, C, H, W)."""
    return rows.amax(3, keepdim=True) + columns.amax(2, keepdim=True)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU: (B, C, H, W) -> (B, C', H / stride, W / stride)."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class CornerPooling(nn.Module):
    """Cascade corner pooling of one corner; sides are those towards the inside, e.g. right and bottom for the top-left."""

    def __init__(self, width: int, sides: tuple[str, str]) -> None:
        super().__init__()
        self.sides, half = sides, width // 2
        self.looks = conv(width, 4 * half)  # four convolutions in one: border and inside, for either border
        self.merge, self.skip = conv(half, width), conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        across, down = self.sides
        top, below_top, left, beside_left = self.looks(x).chunk(4, dim=1)
        top = pool_towards(top + pool_towards(below_top, down), across)
        left = pool_towards(left + pool_towards(beside_left, across), down)
        merged: Tensor = self.merge(top + left) + self.skip(x)
        return merged


class CenterPooling(nn.Module):
    """Center pooling; with `pooled` False the same convolutions without it, the control."""

    def __init__(self, width: int, pooled: bool) -> None:
        super().__init__()
        self.pooled, half = pooled, width // 2
        self.looks = conv(width, 2 * half)  # for rows and for columns
        self.merge, self.skip = conv(half, width), conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        row, column = self.looks(x).chunk(2, dim=1)
        seen = center_pool(row, column) if self.pooled else row + column
        merged: Tensor = self.merge(seen) + self.skip(x)
        return merged


# %% [markdown]
# ## The network
# An hourglass goes down to a coarse map and up again to a quarter of the image's side. Each kind of keypoint has its own pooling
# and predicts heatmaps and offsets, corners also tags.


# %%
class Keypoints(NamedTuple):
    """Of one kind: heat (B, K, H, W) as logits, offset (B, 2, H, W) in cells x and y, tag (B, 1, H, W) or size (B, 2, H, W)."""

    heat: Tensor
    offset: Tensor
    tag: Tensor


Output = Mapping[str, Keypoints]


class Hourglass(nn.Module):
    """Images (B, 3, H, W) -> features (B, C, H / 4, W / 4)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        w4, w8, w16 = widths
        self.stem = nn.Sequential(conv(3, w4 // 2, stride=2), conv(w4 // 2, w4, stride=2))
        self.down8, self.down16 = conv(w4, w8, stride=2), nn.Sequential(conv(w8, w16, stride=2), conv(w16, w16))
        self.up8, self.up4 = conv(w16, w8), conv(w8, w4)
        self.skip8, self.skip4 = conv(w8, w8, 1), conv(w4, w4, 1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.stem(images)
        middle = self.down8(fine)
        up = self.skip8(middle) + functional.interpolate(self.up8(self.down16(middle)), scale_factor=2.0)
        features: Tensor = self.skip4(fine) + functional.interpolate(self.up4(up), scale_factor=2.0)
        return features


class Head(nn.Module):
    """Features (B, C, H, W) -> `Keypoints`; the third part has `extra` channels."""

    def __init__(self, pooling: nn.Module, width: int, classes: int, extra: int) -> None:
        super().__init__()
        self.pooling, self.shared = pooling, conv(width, width)
        self.out, self.parts = nn.Conv2d(width, classes + 2 + extra, 1), (classes, 2, extra)
        assert self.out.bias is not None
        nn.init.constant_(self.out.bias[:classes], -2.19)  # heat starts at 0.1

    def forward(self, features: Tensor) -> Keypoints:
        out = self.out(self.shared(self.pooling(features))).float()
        return Keypoints(*out.split(self.parts, dim=1))


class CenterNet(nn.Module):
    """Triplets: images (B, 3, H, W) -> keypoints of each kind."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        width, classes = preset.widths[0], preset.classes
        self.body = Hourglass(preset.widths)
        poolings = {
            "tl": CornerPooling(width, ("right", "bottom")),
            "br": CornerPooling(width, ("left", "top")),
            "centre": CenterPooling(width, pooled=True),
            "plain": CenterPooling(width, pooled=False),
        }
        corners = ("tl", "br")
        self.heads = nn.ModuleDict({k: Head(p, width, classes, int(k in corners)) for k, p in poolings.items()})

    def forward(self, images: Tensor, kinds: Sequence[str] = KINDS) -> dict[str, Keypoints]:
        features = self.body(images)
        return {kind: self.heads[kind](features) for kind in kinds}


class Points(nn.Module):
    """Objects as Points (arXiv:1904.07850) on the same hourglass: a heatmap of centres, and width and height at each place."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        width = preset.widths[0]
        self.body = Hourglass(preset.widths)
        self.head = Head(conv(width, width), width, preset.classes, extra=2)

    def forward(self, images: Tensor) -> dict[str, Keypoints]:
        return {"centre": self.head(self.body(images))}


# %% [markdown]
# ## What is learned
# Around a true keypoint the heatmap should fall off as a Gaussian, as wide as a corner may move while the box keeps an IoU of
# 0.3 with the true one. The focal loss of CornerNet (Eq. 1, arXiv:1808.01244) forgives places near a keypoint:
# $$L = -\frac{1}{M} \sum (1 - p)^2 \log p \ \text{ at keypoints}, \quad (1 - y)^4 p^2 \log(1 - p) \ \text{ elsewhere}$$
# Tags of the two corners of an object are pulled to their mean, and means of different objects pushed apart (Eq. 4 and 5).


# %%
class Targets(NamedTuple):
    """Objects of B scenes padded to M: boxes (B, M, 4) xyxy px, labels (B, M), and which are there, (B, M)."""

    boxes: Tensor
    labels: Tensor
    there: Tensor


def targets_from_scenes(scenes: Scenes) -> Targets:
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    there = pad([torch.ones_like(labels, dtype=torch.bool) for labels in scenes.labels])
    return Targets(pad(list(scenes.boxes)), pad(list(scenes.labels)), there)


def places(boxes: Tensor, kind: str) -> Tensor:
    """Where a keypoint of each box lies, x and y in pixels: (..., 4) -> (..., 2)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return {"tl": low, "br": high}.get(kind, (low + high) / 2)


def radius(size: Tensor, overlap: float = 0.3) -> Tensor:
    """How far both corners may move, diagonally, with the box keeping such an IoU: (..., 2) -> (...), at the units of size.

    The smallest of three cases: the box shrinks, grows, or is shifted (CornerNet, Section 3.2, arXiv:1808.01244).
    """
    (w, h), o = size.unbind(-1), overlap
    s, area = w + h, w * h
    shrinks = (s - (s**2 - 4 * area * (1 - o)).clamp(min=0).sqrt()) / 4
    grows = (-s + (s**2 + 4 * area * (1 / o - 1)).sqrt()) / 4
    shifted = (s - (s**2 - 4 * area * (1 - o) / (1 + o)).clamp(min=0).sqrt()) / 2
    return torch.minimum(torch.minimum(shrinks, grows), shifted)


def cells_of(at: Tensor, side: int) -> Tensor:
    """The cell of each place in pixels, x and y: (..., 2) -> (..., 2) int64."""
    return (at / STRIDE).floor().long().clamp(0, side - 1)


def true_heat(targets: Targets, kind: str, classes: int, side: int) -> Tensor:
    """The heatmap that is learned, (B, K, side, side): 1 at the cells of the keypoints, Gaussians around them."""
    cell = cells_of(places(targets.boxes, kind), side)[:, :, :, None, None]  # (B, M, 2, 1, 1)
    grid = torch.arange(side, device=cell.device)
    square = (grid - cell[:, :, 0]) ** 2 + (grid[:, None] - cell[:, :, 1]) ** 2  # (B, M, H, W)
    sigma = (2 * radius((targets.boxes[..., 2:] - targets.boxes[..., :2]) / STRIDE) + 1) / 6
    bumps = (-square / (2 * sigma[..., None, None] ** 2)).exp()
    mine = functional.one_hot(targets.labels, classes) * targets.there[..., None]  # (B, M, K)
    return (bumps[:, :, None] * mine[..., None, None]).amax(1)


def focal_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """Of heatmaps (B, K, H, W), over the number of keypoints."""
    at, p = heat == 1, logits.sigmoid()
    positive = (1 - p) ** 2 * functional.logsigmoid(logits)
    negative = (1 - heat) ** 4 * p**2 * functional.logsigmoid(-logits)
    return -torch.where(at, positive, negative).sum() / at.sum().clamp(min=1)


def pull_push(first: Tensor, second: Tensor, there: Tensor) -> Tensor:
    """Tags of the two corners of each object, (B, M) both: pulled together; their means pushed at least 1 apart."""
    count, mean = there.sum(1).clamp(min=1), (first + second) / 2
    pull = (((first - mean) ** 2 + (second - mean) ** 2) * there).sum(1) / count
    others = there[:, :, None] & there[:, None] & ~torch.eye(there.shape[1], dtype=torch.bool, device=there.device)
    apart = (1 - (mean[:, :, None] - mean[:, None]).abs()).clamp(min=0)  # (B, M, M)
    push = (apart * others).sum((1, 2)) / (count * (count - 1)).clamp(min=1)
    return (pull + push).mean()


def gather(values: Tensor, cell: Tensor) -> Tensor:
    """What a map (B, C, H, W) holds at cells (B, M, 2): (B, M, C)."""
    index = cell[..., 1] * values.shape[3] + cell[..., 0]  # (B, M)
    return values.flatten(2).transpose(1, 2).gather(1, index[..., None].expand(-1, -1, values.shape[1]))


def keypoint_loss(model: nn.Module, scenes: Scenes) -> Tensor:
    """Focal losses and offsets of all kinds; tags of corners (weight 0.1), or sizes of Objects as Points (0.1)."""
    output: Output = model(scenes.images)
    targets, loss, tags = targets_from_scenes(scenes), torch.zeros((), device=scenes.images.device), {}
    for kind, found in output.items():
        at, side = places(targets.boxes, kind), found.heat.shape[-1]
        cell = cells_of(at, side)
        loss = loss + focal_loss(found.heat, true_heat(targets, kind, found.heat.shape[1], side))
        missed = functional.smooth_l1_loss(gather(found.offset, cell), at / STRIDE - cell, reduction="none").sum(-1)
        loss = loss + missed[targets.there].mean()
        tags[kind] = gather(found.tag, cell)  # (B, M, 1), (B, M, 2) of sizes, or (B, M, 0)
    if "tl" in tags:
        return loss + 0.1 * pull_push(tags["tl"][..., 0], tags["br"][..., 0], targets.there)
    size = (targets.boxes[..., 2:] - targets.boxes[..., :2]) / STRIDE
    return loss + 0.1 * (tags["centre"] - size).abs().sum(-1)[targets.there].mean()


# %% [markdown]
# ## Reading boxes
# A keypoint is a place that no neighbour in its 3 x 3 window exceeds. Corners are paired by class, tag and order. A pair
# survives if a centre of its class lies in its central region (Eq. 1 of the paper), and its score is then the mean of the three.
# $n = 3$ for boxes below 150 px, 5 above. CornerNet is the same without the check.


# %%
Boxes = dict[str, Tensor]
"""Of one image: ``boxes`` (n, 4) xyxy px, ``scores`` (n,), ``labels`` (n,)."""


class Found(NamedTuple):
    """The surest keypoints of a kind: score (B, k), label (B, k), at (B, k, 2) x and y in px, tag (B, k, channels)."""

    score: Tensor
    label: Tensor
    at: Tensor
    tag: Tensor


def peaks(heat: Tensor) -> Tensor:
    """Heat (B, K, H, W) where no place in the 3 x 3 window is hotter, 0 elsewhere."""
    return heat * (heat == functional.max_pool2d(heat, 3, stride=1, padding=1))


def surest(keypoints: Keypoints, k: int, only_peaks: bool = True) -> Found:
    """The k places of most heat, over all classes."""
    heat = keypoints.heat.sigmoid()
    score, index = (peaks(heat) if only_peaks else heat).flatten(1).topk(k)  # (B, k)
    area, width = heat.shape[2] * heat.shape[3], heat.shape[3]
    label, place = index // area, index % area
    cell = torch.stack([place % width, place // width], dim=-1)  # (B, k, 2)
    return Found(score, label, (cell + gather(keypoints.offset, cell)) * STRIDE, gather(keypoints.tag, cell))


def central_region(boxes: Tensor) -> Tensor:
    """The middle third of each box, the middle fifth of those from 150 px: (..., 4) -> (..., 4), Eq. 1."""
    low, high = boxes[..., :2], boxes[..., 2:]
    odd = torch.where((high - low).clamp(min=0).prod(-1, keepdim=True) < 150**2, 3.0, 5.0)
    return torch.cat([(odd + 1) * low + (odd - 1) * high, (odd - 1) * low + (odd + 1) * high], dim=-1) / (2 * odd)


class Pairs(NamedTuple):
    """All pairs of corners: boxes (B, k, k, 4), scores, labels and which belong together, each (B, k, k)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor


def pair_corners(output: Output, k: int) -> Pairs:
    """Pairs of the surest corners; valid where class, tags and order agree."""
    tl, br = surest(output["tl"], k), surest(output["br"], k)
    first, second = tl.at[:, :, None].expand(-1, -1, k, -1), br.at[:, None].expand(-1, k, -1, -1)
    alike = (tl.tag[:, :, None, 0] - br.tag[:, None, :, 0]).abs() <= TAGS_APART
    sure = (tl.score[:, :, None] >= FLOOR) & (br.score[:, None] >= FLOOR)
    valid = alike & sure & (first < second).all(-1) & (tl.label[:, :, None] == br.label[:, None])
    scores = (tl.score[:, :, None] + br.score[:, None]) / 2
    return Pairs(torch.cat([first, second], dim=-1), scores, tl.label[:, :, None].expand_as(scores), valid)


def centre_scores(pairs: Pairs, centres: Found) -> Tensor:
    """Score of the surest centre of the right class in the central region of each pair, 0 where there is none: (B, k, k)."""
    region = central_region(pairs.boxes)[:, :, :, None]  # (B, k, k, 1, 4)
    at = centres.at[:, None, None]  # (B, 1, 1, c, 2)
    hit = ((at > region[..., :2]) & (at < region[..., 2:])).all(-1)
    hit &= pairs.labels[..., None] == centres.label[:, None, None]
    hit &= centres.score[:, None, None] >= FLOOR
    return (centres.score[:, None, None] * hit).amax(-1)


def true_centres(scenes: Scenes) -> Found:
    """The true centres, with a score of 1, in place of predicted ones."""
    targets = targets_from_scenes(scenes)
    at = places(targets.boxes, "centre")
    return Found(targets.there.float(), targets.labels, at, at[..., :0])


def boxes_of(output: Output, k: int, centres: Found | None, side: int) -> list[Boxes]:
    """Boxes of each image before suppression: triplets, or pairs where no centres are given; at most 100."""
    pairs = pair_corners(output, k)
    valid, scores = pairs.valid, pairs.scores
    if centres is not None:
        centre = centre_scores(pairs, centres)
        valid, scores = valid & (centre > 0), (2 * scores + centre) / 3
    images = []
    for boxes, score, labels, keep in zip(pairs.boxes.clamp(0, side), scores, pairs.labels, valid, strict=True):
        order = score[keep].argsort(descending=True)[:100]
        images.append({"boxes": boxes[keep][order], "scores": score[keep][order], "labels": labels[keep][order]})
    return images


def suppress(found: Boxes) -> Boxes:
    """What is left after non-maximum suppression within each class."""
    keep = batched_nms(found["boxes"], found["scores"], found["labels"], OVERLAP)
    return {name: value[keep] for name, value in found.items()}


def triplets(model: CenterNet, images: Tensor, *, check: str | None = "centre", k: int = 20) -> list[Boxes]:
    """Boxes before suppression; `check` names the centre branch, None for pairs of corners."""
    output = model(images, ("tl", "br", *filter(None, [check])))
    centres = None if check is None else surest(output[check], k)
    return boxes_of(output, k, centres, images.shape[-1])


def points(model: Points, images: Tensor, *, only_peaks: bool = True, k: int = 60) -> list[Boxes]:
    """Boxes of Objects as Points; with `only_peaks` False, of the surest places whether they are peaks or not."""
    found = surest(model(images)["centre"], k, only_peaks)
    size = found.tag.clamp(min=0) * STRIDE  # (B, k, 2)
    boxes = torch.cat([found.at - size / 2, found.at + size / 2], dim=-1).clamp(0, images.shape[-1])
    parts = zip(boxes, found.score, found.label, found.score >= FLOOR, strict=True)
    return [{"boxes": b[keep], "scores": s[keep], "labels": c[keep]} for b, s, c, keep in parts]


Reader = Callable[[Any, Tensor], list[Boxes]]


def suppressed(read: Reader) -> Reader:
    """The same reader, with suppression after it."""
    return lambda model, images: [suppress(each) for each in read(model, images)]


# %% [markdown]
# ## Training
# Scenes and budget are those of all detectors of this site. The network of triplets learns both centre branches at once, so
# that they are compared on the same corners; Objects as Points is trained on its own, on the same hourglass.


# %%
TRIPLETS: Reader = suppressed(triplets)
Trained = detectors.Trained[Any]


def train_all(run: Run, preset: Preset) -> tuple[list[Trained], list[Trained]]:
    """Networks of triplets and Objects as Points, one for each seed; only the first need their curve."""
    benchmark = detectors.BENCHMARKS[run.preset]
    once = replace(benchmark, every=max(benchmark.steps))
    learn = partial(detectors.train_all, run, loss=keypoint_loss, learning_rate=LEARNING_RATE)
    read: Reader = points
    ours = learn(benchmark=benchmark, build=lambda: CenterNet(preset), detect=TRIPLETS, what="triplets")
    theirs = learn(benchmark=once, build=lambda: Points(preset), detect=read, what="points")
    return ours, theirs


def found_by(run: Run, read: Reader, trained: Trained) -> list[Boxes]:
    """What a reader finds on the test scenes."""
    return detectors.on_scenes(partial(read, trained.model), trained.test, run.device)


def scored(run: Run, read: Reader, trained: Sequence[Trained]) -> list[dict[str, float]]:
    """AP and boxes per object on the test scenes, for each seed."""
    benchmark = detectors.BENCHMARKS[run.preset]
    return [detectors.measures(found_by(run, read, each), each.test, benchmark) for each in trained]


def difference(a: Sequence[Mapping[str, float]], b: Sequence[Mapping[str, float]], what: str) -> list[float]:
    """a minus b, seed by seed."""
    return [x[what] - y[what] for x, y in zip(a, b, strict=True)]


def described(run: Run, model: nn.Module) -> dict[str, Any]:
    """What the experiments have in common."""
    benchmark = detectors.BENCHMARKS[run.preset]
    data = f"{benchmark.scenes[0]:,} digit scenes of {benchmark.canvas} px to train, {benchmark.scenes[1]:,} others to test"
    return {"data": data, "parameters": count_parameters(model), "steps": sum(benchmark.steps)}


def fullest(test: Scenes) -> int:
    """The first scene with the most objects."""
    return max(range(len(test)), key=lambda index: len(test.boxes[index]))


@torch.inference_mode()
def read_scene(run: Run, trained: Trained, index: int) -> dict[str, Keypoints]:
    """The keypoints of one test scene, on the CPU."""
    output = trained.model(trained.test.images[index, None].to(run.device))
    return {kind: Keypoints(*(part.cpu() for part in found)) for kind, found in output.items()}


# %% [markdown]
# ## Three heatmaps of one scene
# What the trained network says about a test scene, and the keypoints that are read.


# %%
def draw_heatmaps(style: Style, image: Tensor, boxes: Tensor, output: Output, count: int) -> Figure:
    figure, axes = panels(1, 4, height=2.2)
    show_image(axes[0, 0], image, "objects")
    draw_boxes(axes[0, 0], boxes, linewidth=1.2)
    edge = image.shape[-1] - 0.5
    titles = {"tl": "top-left", "br": "bottom-right", "centre": "centre"}
    for ax, (kind, title) in zip(axes[0, 1:], titles.items(), strict=True):
        show_image(ax, image.mean(0), title, vmax=1.8)
        heat = output[kind].heat[0].sigmoid().amax(0).numpy()
        ax.imshow(heat, cmap="magma", alpha=0.65, vmin=0, extent=(-0.5, edge, edge, -0.5), interpolation="nearest")
        ax.autoscale(False)
        ax.plot(*(places(boxes, kind) - 0.5).T.numpy(), "o", markersize=8, markerfacecolor="none", color="white")
        ax.plot(*(surest(output[kind], count).at[0] - 0.5).T.numpy(), "+", markersize=8, color="#4FA8E0", mew=2)
    return figure


def heatmaps_figure(run: Run, trained: Trained) -> None:
    """Heatmaps of corners and centres on the fullest test scene."""
    index = fullest(trained.test)
    boxes, output = trained.test.boxes[index], read_scene(run, trained, index)
    run.figure(
        "heatmaps",
        partial(draw_heatmaps, image=trained.test.images[index], boxes=boxes, output=output, count=len(boxes)),
        caption="Heatmaps of top-left corners, bottom-right corners and centres (bright: much heat). Circles are the true "
        "keypoints, plus signs the surest peaks, as many as there are objects.",
        alt="A scene with boxes around its digits, and the same scene three times, overlaid with a heatmap of one kind of "
        "keypoint, circles at the true places and plus signs at the peaks.",
    )


# %% [markdown]
# ## What the poolings gather
# A single bright place in an otherwise dark map, before and after the poolings: the centre, and the corner, see what lies
# elsewhere in their row and column.


# %%
def draw_pooling(style: Style) -> Figure:
    box = torch.tensor([3, 4, 12, 11])  # x0 y0 x1 y1 in cells
    x = torch.zeros(1, 1, 16, 16)
    for row, column in ((4, 8), (7, 3), (9, 12), (11, 6)):  # telling places on the four sides
        x[0, 0, row, column] = 1
    cascade = pool_towards(x + pool_towards(x, "bottom"), "right") + pool_towards(
        x + pool_towards(x, "right"), "bottom"
    )
    corner = pool_towards(x, "right") + pool_towards(x, "bottom")
    maps = {"features": x, "corner pooling": corner, "cascade": cascade, "center pooling": center_pool(x, x)}
    figure, axes = panels(1, 4, height=2.2)
    for ax, (title, values) in zip(axes[0], maps.items(), strict=True):
        show_image(ax, values[0, 0], title, cmap=style.sequential, vmax=float(cascade.max()))
        draw_boxes(ax, torch.stack([*box[:2], *(box[2:] + 1)])[None].float(), linewidth=1.2, linestyle="--")
        place = (8, 7) if title == "center pooling" else box[:2].tolist()
        ax.plot(*place, "o", markersize=9, markerfacecolor="none", color="white", mew=1.5)
    return figure


def pooling_figure(run: Run) -> None:
    """Corner pooling, cascade corner pooling and center pooling of four bright places."""
    run.figure(
        "pooling",
        draw_pooling,
        caption="Four telling places on the sides of an object (dashed). Corner pooling brings the maximum of what lies right of "
        "and below the top-left corner (circle), the cascade also that of what lies inside along its borders, and center pooling "
        "that of the whole row and column of the centre.",
        alt="Four maps of 16 x 16 cells with the same dashed box: four bright cells; then stripes to the left and above of them; "
        "then filled regions; then full rows and columns that cross inside the box.",
    )


# %% [markdown]
# ## The centre check
# The same corners, read as pairs and as triplets. The false discovery rate is that of the paper: 1 minus AP over IoUs of 0.05
# to 0.5, so a box counts as false only if it hits next to nothing. The check is also done with the branch without center
# pooling, and with the true centres.


# %%
def false_discovery(found: Sequence[Boxes], scenes: Scenes) -> float:
    """1 minus AP, mean over IoUs of 0.05 to 0.5 (Section 3.1), in %; of all classes together, boxes match within theirs."""
    parts = [_hits(each, boxes, labels) for each, boxes, labels in zip(found, scenes.boxes, scenes.labels, strict=True)]
    hits = torch.cat(parts)[torch.cat([each["scores"] for each in found]).argsort(descending=True, stable=True)]
    total = sum(len(boxes) for boxes in scenes.boxes)
    if not len(hits):
        return 100.0
    true = hits.float().cumsum(0)  # (n, 10)
    precision = true / torch.arange(1, 1 + len(hits))[:, None]
    best = precision.flip(0).cummax(0).values.flip(0)
    return 100 * (1 - float((best * hits).sum(0).mean()) / total)


def _hits(found: Boxes, boxes: Tensor, labels: Tensor) -> Tensor:
    """Whether each box of an image takes an object that no surer one has taken, (n, 10): one column for each IoU."""
    hits = torch.zeros(len(found["scores"]), 10, dtype=torch.bool)
    if not len(labels):
        return hits
    overlaps = box_iou(found["boxes"], boxes) * (found["labels"].long()[:, None] == labels)  # (n, m)
    order = found["scores"].argsort(descending=True).tolist()
    for column in range(10):
        free = torch.ones(len(labels))
        for row in order:
            overlap, owner = (overlaps[row] * free).max(0)
            if overlap >= 0.05 * (column + 1):
                hits[row, column], free[owner] = True, 0
    return hits


@torch.inference_mode()
def with_true_centres(run: Run, trained: Trained, k: int) -> list[Boxes]:
    """Final boxes of the test scenes if every centre were found."""
    found: list[Boxes] = []
    for start in range(0, len(trained.test), detectors.IMAGES_AT_ONCE):
        scenes = trained.test[start : start + detectors.IMAGES_AT_ONCE]
        output = trained.model(scenes.images.to(run.device), ("tl", "br"))
        output = {kind: Keypoints(*(part.cpu() for part in each)) for kind, each in output.items()}
        found += [suppress(each) for each in boxes_of(output, k, true_centres(scenes), scenes.images.shape[-1])]
    return found


def draw_check(style: Style, image: Tensor, boxes: Tensor, output: Output, k: int) -> Figure:
    pairs, centres = pair_corners(output, k), surest(output["centre"], k)
    keep = pairs.valid[0] & (pairs.scores[0] >= 0.1)
    confirmed = centre_scores(pairs, centres)[0][keep] > 0
    candidates = pairs.boxes[0][keep]
    figure, axes = panels(1, 3, height=2.8)
    titles = (f"{len(candidates)} pairs", f"{int(confirmed.sum())} confirmed", f"{int((~confirmed).sum())} rejected")
    for ax, some, title in zip(
        axes[0], (candidates, candidates[confirmed], candidates[~confirmed]), titles, strict=True
    ):
        show_image(ax, image, title)
        draw_boxes(ax, some, linewidth=1.0)
        if ax is not axes[0, 0]:
            draw_boxes(ax, central_region(some), colour="#BFE3FA", linewidth=0.7, linestyle=":")
            sure = centres.at[0][centres.score[0] >= FLOOR]
            ax.plot(*(sure - 0.5).T.numpy(), "+", color="#E0672A", markersize=6, mew=1.5)
        ax.set(xlim=(-0.5, image.shape[-1] - 0.5), ylim=(image.shape[-1] - 0.5, -0.5))
    return figure


def draw_rates(
    style: Style, rates: Mapping[str, Sequence[float]], scores: Mapping[str, Sequence[Mapping[str, float]]]
) -> Figure:
    figure, axes = panels(1, 2, height=2.8, width_ratios=[1, 2])
    seed_bars(axes[0, 0], ["pairs", "triplets"], [rates["pairs"], rates["triplets"]])
    axes[0, 0].set(title="false discovery (%)")
    names = {"pairs": "pairs", "plain": "no center\npooling", "triplets": "triplets", "true": "true\ncentres"}
    seed_bars(axes[0, 1], list(names.values()), [[each["ap"] for each in scores[arm]] for arm in names])
    axes[0, 1].set(title="AP (%)")
    return figure


def centre_check(run: Run, trained: Sequence[Trained], preset: Preset) -> None:
    """False discoveries and AP of pairs and of triplets, by either centre branch and with the true centres."""
    experiment = run.experiment(
        "centre_check", question="Does a look at the centre remove false boxes?", **described(run, trained[0].model)
    )
    readers: dict[str, Reader] = {
        "pairs": partial(triplets, check=None),
        "plain": partial(triplets, check="plain"),
        "triplets": triplets,
    }
    found = {arm: [found_by(run, suppressed(read), each) for each in trained] for arm, read in readers.items()}
    found["true"] = [with_true_centres(run, each, preset.keypoints) for each in trained]
    benchmark = detectors.BENCHMARKS[run.preset]
    scores = {
        arm: [detectors.measures(one, each.test, benchmark) for one, each in zip(seeds, trained, strict=True)]
        for arm, seeds in found.items()
    }
    rates = {
        arm: [false_discovery(one, each.test) for one, each in zip(found[arm], trained, strict=True)]
        for arm in ("pairs", "triplets")
    }
    for arm, values in rates.items():
        experiment.result(
            f"false_discovery_{arm}", values, unit="%", meaning=f"1 minus AP over IoUs of .05 to .5, {arm}"
        )
    removed = [a - b for a, b in zip(rates["pairs"], rates["triplets"], strict=True)]
    experiment.result(
        "false_discovery_removed", removed, unit="points", meaning="False discovery rate that the check removes"
    )
    for arm in ("pairs", "triplets", "true"):
        meaning = f"AP of {arm}" if arm != "true" else "AP of triplets, given the true centres"
        experiment.result(f"ap_{arm}", [each["ap"] for each in scores[arm]], unit="%", meaning=meaning)
    for size in ("ap", "ap_small", "ap_large"):
        gain = difference(scores["triplets"], scores["pairs"], size)
        experiment.result(
            f"check_gain_{size}", gain, unit="points", meaning=f"{detectors.AP_NAMES[size]} that the centre check adds"
        )
    small, large = (difference(scores["triplets"], scores["pairs"], f"ap_{size}") for size in ("small", "large"))
    lean = [a - b for a, b in zip(small, large, strict=True)]
    experiment.result(
        "check_gain_small_over_large", lean, unit="points", meaning="Gain on small minus gain on large objects"
    )
    for size in ("ap", "ap_large"):
        gain = difference(scores["triplets"], scores["plain"], size)
        experiment.result(
            f"pooling_gain_{size}", gain, unit="points", meaning=f"{detectors.AP_NAMES[size]} that center pooling adds"
        )
    gain = difference(scores["true"], scores["triplets"], "ap")
    experiment.result("true_centre_gain", gain, unit="points", meaning="AP that true centres would add")
    gain = difference(scores["triplets"], scored(run, triplets, trained), "ap")
    experiment.result("nms_gain", gain, unit="points", meaning="AP of triplets that suppression adds")
    index = fullest(trained[0].test)
    image, boxes = trained[0].test.images[index], trained[0].test.boxes[index]
    experiment.figure(
        "check",
        partial(draw_check, image=image, boxes=boxes, output=read_scene(run, trained[0], index), k=preset.keypoints),
        caption="Pairs of corners with a score of at least 0.1 on one test scene, and what the check says. Dotted: central "
        "regions; plus signs: predicted centres. A pair lives only if a centre lies in its region.",
        alt="One scene three times: all pairs of corners as boxes, those confirmed by a centre in their central region, and "
        "those that are rejected.",
    )
    experiment.figure(
        "rates",
        partial(draw_rates, rates=rates, scores=scores),
        caption="Left: false discovery rate of pairs and of triplets. Right: AP with the same corners and no check, the check by "
        "a branch without center pooling, the whole model, and with true centres. Bars are means, dots seeds.",
        alt="Two bar charts: false discovery rate of pairs and triplets; AP of pairs, of triplets without center pooling, of "
        "triplets, and of triplets given the true centres.",
    )


# %% [markdown]
# ## Peaks in place of suppression
# Objects as Points reads a box at every place of its heatmap. Kept are all of the surest places, or only those that are peaks
# of a 3 x 3 window; and, to compare, what NMS leaves of the former.


# %%
def draw_points(
    style: Style, scores: Mapping[str, Sequence[Mapping[str, float]]], triplet_ap: Sequence[float]
) -> Figure:
    figure, axes = panels(1, 2, height=2.8, width_ratios=[3, 4])
    names = {"all": "all places", "nms": "NMS", "peaks": "peaks"}
    seed_bars(axes[0, 0], list(names.values()), [[each["boxes"] for each in scores[arm]] for arm in names])
    axes[0, 0].axhline(1, color=style.ink, linewidth=1, linestyle="--")
    axes[0, 0].set(title="boxes per object")
    bars = [[each["ap"] for each in scores[arm]] for arm in names]
    seed_bars(axes[0, 1], [*names.values(), "triplets"], [*bars, triplet_ap])
    axes[0, 1].set(title="AP (%)")
    return figure


def objects_as_points(run: Run, ours: Sequence[Trained], theirs: Sequence[Trained]) -> None:
    """Boxes per object and AP of Objects as Points: all places, NMS, peaks; beside triplets."""
    experiment = run.experiment(
        "objects_as_points",
        question="Can peaks take the place of suppression?",
        **described(run, theirs[0].model),
    )
    everywhere: Reader = partial(points, only_peaks=False)
    readers = {"all": everywhere, "nms": suppressed(everywhere), "peaks": points}
    scores = {arm: scored(run, read, theirs) for arm, read in readers.items()}
    for arm, name in (("all", "all places"), ("nms", "NMS"), ("peaks", "peaks")):
        boxes, ap = ([each[what] for each in scores[arm]] for what in ("boxes", "ap"))
        experiment.result(
            f"points_boxes_{arm}", boxes, unit="boxes", meaning=f"Confident boxes per found object, {name}"
        )
        experiment.result(f"points_ap_{arm}", ap, unit="%", meaning=f"AP of Objects as Points, {name}")
    gain = difference(scored(run, suppressed(points), theirs), scores["peaks"], "ap")
    experiment.result("nms_gain_after_peaks", gain, unit="points", meaning="AP that NMS adds after peaks")
    gain = difference(scores["peaks"], scores["all"], "ap")
    experiment.result("peaks_gain", gain, unit="points", meaning="AP that peaks add to all places")
    triplet = scored(run, TRIPLETS, ours)
    behind = difference(scores["peaks"], triplet, "ap")
    experiment.result(
        "ap_behind_points", behind, unit="points", meaning="AP of Objects as Points minus that of triplets"
    )
    experiment.figure(
        "peaks",
        partial(draw_points, scores=scores, triplet_ap=[each["ap"] for each in triplet]),
        caption="Objects as Points with a box from each of the surest places, after suppression, and from peaks alone; at the "
        "right the AP of triplets with the same budget. The dashed line is one box for each object. Bars are means, dots seeds.",
        alt="Two bar charts: confident boxes per found object, and AP, of Objects as Points with all places, with NMS, and with "
        "peaks; AP also of triplets.",
    )


# %% [markdown]
# ## What the third keypoint costs
# Multiply-accumulates of the network with and without the centre branch, counted on the benchmark's image size, and the time
# from one image to its boxes.


# %%
def macs(model: nn.Module, kinds: Sequence[str], side: int) -> float:
    """Multiply-accumulates of the network with the heads of these kinds, in millions."""
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, side, side, device=device), kinds)
    return float(counter.get_total_flops() / 2e6)


def milliseconds(run: Run, read: Reader, trained: Trained) -> float:
    """Median time from one test image to its final boxes."""
    image = trained.test.images[:1].to(run.device)

    def once() -> None:
        with torch.inference_mode():
            read(trained.model, image)

    return timed(once, repeats=20, device=run.device).median


def cost(run: Run, ours: Sequence[Trained], theirs: Sequence[Trained]) -> None:
    """MACs and time of pairs, triplets and Objects as Points."""
    side = detectors.BENCHMARKS[run.preset].canvas
    experiment = run.experiment(
        "cost",
        question="What does the third keypoint cost?",
        data=f"One image of {side} px",
        parameters=count_parameters(ours[0].model),
    )
    pair, triplet = (macs(ours[0].model, kinds, side) for kinds in (KINDS[:2], KINDS[:3]))
    experiment.result("macs_pairs", [pair], unit="M", exact=True, meaning="MACs with heads for two kinds of corners")
    experiment.result("macs_triplets", [triplet], unit="M", exact=True, meaning="MACs with a head for centres as well")
    experiment.result(
        "macs_triplets_over_pairs",
        [triplet / pair],
        unit="",
        exact=True,
        meaning="MACs with the centre branch over those without",
    )
    pairs = suppressed(partial(triplets, check=None))
    times = [(milliseconds(run, TRIPLETS, each), milliseconds(run, pairs, each)) for each in ours]
    of_points = [milliseconds(run, points, each) for each in theirs]
    experiment.result(
        "time_triplets_over_pairs",
        [a / b for a, b in times],
        unit="",
        meaning="Time of triplets over that of pairs of corners",
    )
    experiment.result(
        "time_over_points", [a / c for (a, _), c in zip(times, of_points, strict=True)], unit="",
        meaning="Time of triplets over that of Objects as Points on the same hourglass",
    )  # fmt: skip


# %% [markdown]
# ## Unlike the paper
# - The hourglass has three levels instead of two stacked ones of six, starts from random weights and trains for seconds; scenes
#   have 64 px, and all digits are one class.
# - The network carries a second centre branch without center pooling, which is only read as a control. Pairs of corners come
#   from the same network, whose backbone has learned centres too; CornerNet was trained on its own.
# - 20 keypoints of each kind instead of 70, a centre has to have a score of 0.01, one pass without a flipped image, and plain
#   instead of Soft-NMS. Objects as Points takes the surest 60 places.
# - There is no augmentation, and no supervision between stages.


# %%
def main(argv: Sequence[str] | None = None) -> None:
    """Run all experiments and write the record."""
    run = Run.start("centernet", argv=argv)
    if run.settings.weights == "pretrained":
        raise SystemExit("--weights pretrained: no maintained library has the published weights. Use --weights random.")
    preset = PRESETS[run.preset]
    ours, theirs = train_all(run, preset)
    heatmaps_figure(run, ours[0])
    pooling_figure(run)
    centre_check(run, ours, preset)
    objects_as_points(run, ours, theirs)
    cost(run, ours, theirs)
    detectors.report(run, detectors.BENCHMARKS[run.preset], ours, TRIPLETS, triplets, name="CenterNet")
    run.finish()


if __name__ == "__main__":
    main()
