# %% [markdown]
# # YOLOv8: what does one pass over a grid of points save, and what does it leave to be sorted out?
#
# One network goes from the image to a class and a box at every point of three grids; several points learn each object, so
# the surplus boxes have to be suppressed. A small YOLOv8 is trained on digit scenes, once as it is and once without its finest
# grid. The published sizes are built without values and counted, beside detectors with anchors and with two stages.
#
# | symbol | here | meaning |
# |---|---|---|
# | $z$ | `edges` | logits of the distances of the four edges, (B, N, 4, bins) |
# | $\hat d = \sum_j j \, \mathrm{softmax}(z)_j$ | `distances` | expected distance of an edge, in strides (Eq. 5) |
# | $s$, $u$ | `score`, `overlap` | score of the right class, IoU of the predicted with the true box, (B, M, N) |
# | $t = s^\alpha u^\beta$ | `alignment` | how well a point does in both tasks (Section 3.2, arXiv:2108.07755) |
# | $\hat t$ | `Assignment.target` | score that a point learns: 0 for points without an object |
# | N, M, K | | points of all grids, most objects of a scene, classes |

# %%
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection
from torchvision.ops import batched_nms, box_iou, complete_box_iou_loss

BINS = 16  # distances of an edge: 0 to 15 strides
ALPHA, BETA, MOST = 0.5, 6.0, 10  # exponents of the alignment, points that learn an object
FLOOR = 0.01  # score below which a box is not reported at all
OVERLAP = 0.5  # IoU above which suppression removes the less sure box
CLASS, BOX, DFL = 1.0, 5.0, 1.0  # weights of the losses
# Of 2e-3 and 4e-3 the one with the better AP of the unchanged arm on validation scenes of seed 100.
LEARNING_RATE = 4e-3


@dataclass(frozen=True)
class Size:
    """Channels of the five stages, blocks of the short and the long stages, channels of the box and the class branch."""

    widths: tuple[int, int, int, int, int] = (8, 16, 32, 64, 64)
    repeats: tuple[int, int] = (0, 1)
    heads: tuple[int, int] = (32, 16)
    classes: int = 1
    strides: tuple[int, ...] = (8, 16, 32)


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        size: of the trained network.
        large: pixels of the published networks that are counted.
        timed: pixels of those that are timed.
        mosaic: scenes along the side of the large image on which suppression is timed.
    """

    size: Size = field(default_factory=Size)
    large: int = 640
    timed: int = 320
    mosaic: int = 10


PRESETS = {
    "smoke": Preset(Size(widths=(8, 8, 16, 16, 16), heads=(16, 16)), timed=64, mosaic=2),
    "quick": Preset(),
    "full": Preset(Size(widths=(16, 32, 64, 128, 256), repeats=(1, 2), heads=(64, 80), classes=10)),
}
# The coarse arm has wider branches, which make up for the parameters of the finest level.
LABELS = {"yolov8": "strides 8, 16, 32", "coarse": "strides 16, 32"}

# %% [markdown]
# ## The network
# Convolutions of stride 2 lead down to maps of stride 8, 16 and 32; a neck passes features up and down again, so that every
# level knows detail and context. C2f is the block in between: half of the channels pass through a row of bottlenecks, and
# everything that comes out on the way is merged. The published sizes differ only in depth and width.


# %%
def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, SiLU: (B, C, H, W) -> (B, C', H / stride, W / stride)."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))


class C2f(nn.Module):
    """Split, pass through bottlenecks, merge all stations: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, inputs: int, outputs: int, repeats: int, residual: bool = False) -> None:
        super().__init__()
        half = outputs // 2
        self.split, self.merge = conv(inputs, 2 * half, 1), conv((2 + repeats) * half, outputs, 1)
        self.blocks = nn.ModuleList(nn.Sequential(conv(half, half), conv(half, half)) for _ in range(repeats))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        stations = list(self.split(x).chunk(2, dim=1))  # two halves of the channels
        for block in self.blocks:
            last = stations[-1]
            stations.append(last + block(last) if self.residual else block(last))
        merged: Tensor = self.merge(torch.cat(stations, dim=1))
        return merged


class Pyramid(nn.Module):
    """Three max poolings in a row, all stations merged: windows of 5, 9 and 13 cells."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow, self.merge = conv(width, width // 2, 1), conv(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        stations = [self.narrow(x)]
        for _ in range(3):
            stations.append(functional.max_pool2d(stations[-1], 5, stride=1, padding=2))
        merged: Tensor = self.merge(torch.cat(stations, dim=1))
        return merged


class Body(nn.Module):
    """Backbone and neck: images (B, 3, H, W) -> maps of stride 8, 16 and 32."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        (c1, c2, c3, c4, c5), (few, many) = size.widths, size.repeats
        self.stem = nn.Sequential(conv(3, c1, stride=2), conv(c1, c2, stride=2), C2f(c2, c2, few, True))
        self.down3 = nn.Sequential(conv(c2, c3, stride=2), C2f(c3, c3, many, True))
        self.down4 = nn.Sequential(conv(c3, c4, stride=2), C2f(c4, c4, many, True))
        self.down5 = nn.Sequential(conv(c4, c5, stride=2), C2f(c5, c5, few, True), Pyramid(c5))
        self.up4, self.up3 = C2f(c5 + c4, c4, few), C2f(c4 + c3, c3, few)
        self.shrink3, self.shrink4 = conv(c3, c3, stride=2), conv(c4, c4, stride=2)
        self.again4, self.again5 = C2f(c3 + c4, c4, few), C2f(c4 + c5, c5, few)

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.down3(self.stem(images))
        middle = self.down4(fine)
        coarse = self.down5(middle)
        middle = self.up4(torch.cat([functional.interpolate(coarse, scale_factor=2.0), middle], dim=1))
        fine = self.up3(torch.cat([functional.interpolate(middle, scale_factor=2.0), fine], dim=1))
        middle = self.again4(torch.cat([self.shrink3(fine), middle], dim=1))
        return [fine, middle, self.again5(torch.cat([self.shrink4(middle), coarse], dim=1))]


# %% [markdown]
# ## A distribution for every edge
# The centre of each cell is a point. One branch gives its class scores, another one, for each edge of the box, a distribution
# over 16 distances. The prediction is the mean (Eq. 5, arXiv:2006.04388). A distance $d$ between the bins $j$ and $j + 1$ is
# learned by both, in proportion (Eq. 6): $\mathrm{DFL} = -\left((j + 1 - d) \log p_j + (d - j) \log p_{j+1}\right)$.


# %%
class Output(NamedTuple):
    """Of N points: logits of the edges (B, N, 4, bins) and of the classes (B, N, K), places (N, 2) px, strides (N,) px."""

    edges: Tensor
    logits: Tensor
    points: Tensor
    strides: Tensor

    @property
    def boxes(self) -> Tensor:
        """Predicted boxes xyxy in pixels, (B, N, 4)."""
        away = distances(self.edges) * self.strides[:, None]  # (B, N, 4): left, top, right, bottom
        return torch.cat([self.points - away[..., :2], self.points + away[..., 2:]], dim=-1)


def distances(edges: Tensor) -> Tensor:
    """Mean of each distribution, in strides: (..., bins) -> (...)."""
    bins = torch.arange(edges.shape[-1], dtype=edges.dtype, device=edges.device)
    return edges.softmax(-1) @ bins


def distribution_focal_loss(edges: Tensor, wanted: Tensor) -> Tensor:
    """Eq. 6: logits (..., bins) and distances (...) in strides -> (...). Distances beyond the last bin are cut."""
    wanted = wanted.clamp(0, edges.shape[-1] - 1.01)
    low, part = wanted.floor().long(), wanted.frac()
    p = edges.log_softmax(-1)
    of_low, of_high = (p.gather(-1, bin[..., None])[..., 0] for bin in (low, low + 1))
    return -((1 - part) * of_low + part * of_high)


class YOLO(nn.Module):
    """Images (B, 3, H, W) -> `Output`; two branches for each stride that share no weights, as all levels do not."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.body, self.strides = Body(size), size.strides
        widths, (box, score) = size.widths[-len(size.strides) :], size.heads
        self.box_branches = nn.ModuleList(
            nn.Sequential(conv(c, box), conv(box, box), nn.Conv2d(box, 4 * BINS, 1)) for c in widths
        )
        self.class_branches = nn.ModuleList(
            nn.Sequential(conv(c, score), conv(score, score), nn.Conv2d(score, size.classes, 1)) for c in widths
        )
        self.start()

    def start(self) -> None:
        """Boxes start small, about half a stride each way, and scores at 0.01."""
        for boxes, scores in zip(self.box_branches, self.class_branches, strict=True):
            for branch, bias in ((boxes, -torch.arange(float(BINS)).repeat(4)), (scores, torch.tensor(-math.log(99)))):
                assert isinstance(branch, nn.Sequential)
                assert isinstance(branch[-1].bias, Tensor)
                branch[-1].bias.data.copy_(bias)

    def forward(self, images: Tensor) -> Output:
        maps = self.body(images)[-len(self.strides) :]
        edges = torch.cat([b(x).flatten(2) for b, x in zip(self.box_branches, maps, strict=True)], dim=2)
        logits = torch.cat([b(x).flatten(2) for b, x in zip(self.class_branches, maps, strict=True)], dim=2)
        edges = edges.transpose(1, 2).reshape(len(edges), -1, 4, BINS)  # (B, 4 bins, N) -> (B, N, 4, bins)
        points, strides = zip(*(grid(x, s) for x, s in zip(maps, self.strides, strict=True)), strict=True)
        return Output(edges.float(), logits.transpose(1, 2).float(), torch.cat(points), torch.cat(strides))


def grid(features: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """The centres x, y of the cells of a map (B, C, H, W), row by row, (H W, 2) in pixels, and their strides (H W,)."""
    rows, columns = (torch.arange(n, device=features.device) + 0.5 for n in features.shape[2:])
    y, x = torch.meshgrid(rows * stride, columns * stride, indexing="ij")
    points = torch.stack([x, y], dim=-1).flatten(0, 1)  # (H, W, 2) -> (H W, 2)
    return points, torch.full_like(points[:, 0], stride)


# %% [markdown]
# ## Which points learn an object
# Of the points inside an object the ten with the largest alignment $t = s^{\alpha} u^{\beta}$ learn it, anew at each step.
# They learn $t$ as their score, scaled so that the best one learns its own IoU (Section 3.2, arXiv:2108.07755): a point whose
# box fits badly learns to be less sure.


# %%
class Targets(NamedTuple):
    """Objects of B scenes padded to M: boxes (B, M, 4) xyxy px, zeros where padded; labels (B, M)."""

    boxes: Tensor
    labels: Tensor


class Assignment(NamedTuple):
    """Of each point: its object (B, N), -1 for none, and the score that it learns (B, N)."""

    owner: Tensor
    target: Tensor


def targets_from_scenes(scenes: Scenes) -> Targets:
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    return Targets(pad(list(scenes.boxes)), pad(list(scenes.labels)))


def inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points (N, 2) lie in which boxes (B, M, 4): (B, M, N)."""
    low, high = boxes[:, :, None, :2], boxes[:, :, None, 2:]
    return ((points > low) & (points < high)).all(-1)


def best_points(rank: Tensor, allowed: Tensor) -> Tensor:
    """owner (B, N): each object takes the `MOST` allowed points of largest rank (B, M, N); of two takers the larger wins."""
    rank = rank.masked_fill(~allowed, -torch.inf)
    top = rank.topk(min(MOST, rank.shape[2]), dim=2).indices  # (B, M, 10)
    taken = torch.zeros_like(allowed).scatter(2, top, True) & allowed
    value, owner = rank.masked_fill(~taken, -torch.inf).max(1)
    out: Tensor = owner.masked_fill(value == -torch.inf, -1)
    return out


@torch.no_grad()
def task_aligned(output: Output, targets: Targets) -> Assignment:
    """The ten points of largest alignment learn an object, with a score that follows the alignment."""
    overlap = torch.stack([box_iou(*pair) for pair in zip(targets.boxes, output.boxes, strict=True)])  # (B, M, N)
    score = output.logits.sigmoid().transpose(1, 2)  # (B, K, N)
    score = score.gather(1, targets.labels[..., None].expand(-1, -1, score.shape[2]))  # (B, M, N)
    alignment = score**ALPHA * overlap**BETA
    owner = best_points(alignment, inside(output.points, targets.boxes))
    own = owner[:, None] == torch.arange(alignment.shape[1], device=owner.device)[:, None]  # (B, M, N)
    t, u = alignment * own, overlap * own
    scaled = t / t.amax(2, keepdim=True).clamp(min=1e-9) * u.amax(2, keepdim=True)
    return Assignment(owner, scaled.amax(1))


def yolo_loss(model: YOLO, scenes: Scenes) -> Tensor:
    """Cross-entropy of all scores; CIoU and DFL of the points that learn an object, weighted by the scores they learn."""
    output, targets = model(scenes.images), targets_from_scenes(scenes)
    owner, target = task_aligned(output, targets)
    wanted = (
        functional.one_hot(targets.labels.gather(1, owner.clamp(min=0)), output.logits.shape[2]) * target[..., None]
    )
    of_class = functional.binary_cross_entropy_with_logits(output.logits, wanted, reduction="sum")
    image, point = (owner >= 0).nonzero(as_tuple=True)  # (P,) points that learn an object
    boxes, weight = targets.boxes[image, owner[image, point]], target[image, point]
    at, stride = output.points[point], output.strides[point, None]
    of_box = complete_box_iou_loss(output.boxes[image, point], boxes)  # (P,)
    away = torch.cat([at - boxes[:, :2], boxes[:, 2:] - at], dim=1) / stride  # (P, 4)
    of_edges = distribution_focal_loss(output.edges[image, point], away).mean(1)
    total = CLASS * of_class + ((BOX * of_box + DFL * of_edges) * weight).sum()
    out: Tensor = total / target.sum().clamp(min=1)
    return out


# %% [markdown]
# ## Reading boxes, and training
# Every point reports a box with the score of its best class. Greedy non-maximum suppression (NMS) goes from the surest box to
# the least sure and drops those that overlap a surer one. All arms see the same scenes in the same order, have the same
# number of steps and about as many parameters; scenes and budget are those of all detectors of this site.


# %%
def raw(model: YOLO, images: Tensor) -> list[dict[str, Tensor]]:
    """Boxes of all points from `FLOOR` on: for each image ``boxes`` (n, 4) px, ``scores`` (n,), ``labels`` (n,)."""
    output: Output = model(images)
    scores, labels = output.logits.sigmoid().max(-1)  # (B, N)
    found = []
    for each in zip(output.boxes.clamp(0, images.shape[-1]), scores, labels, strict=True):
        sure = each[1] >= FLOOR
        found.append({name: part[sure] for name, part in zip(("boxes", "scores", "labels"), each, strict=True)})
    return found


def suppress(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is left of the boxes of one image after NMS within each class."""
    keep = batched_nms(found["boxes"], found["scores"], found["labels"], OVERLAP)
    return {name: value[keep] for name, value in found.items()}


def detect(model: YOLO, images: Tensor) -> list[dict[str, Tensor]]:
    """Final boxes."""
    return [suppress(each) for each in raw(model, images)]


def build(arm: str, size: Size) -> YOLO:
    """The untrained network of an arm. Raises KeyError for an arm that does not exist."""
    LABELS[arm]
    if arm != "coarse":
        return YOLO(size)
    wider = tuple(round(1.2 * width) for width in size.heads)
    return YOLO(replace(size, strides=size.strides[1:], heads=(wider[0], wider[1])))


Trained = Mapping[str, Sequence[detectors.Trained[YOLO]]]


def train_all(run: Run, preset: Preset) -> Trained:
    """All arms, one network for each seed; only the first arm needs its curve."""
    benchmark = detectors.BENCHMARKS[run.preset]
    once = replace(benchmark, every=max(benchmark.steps))
    return {
        arm: detectors.train_all(
            run,
            benchmark if arm == "yolov8" else once,
            partial(build, arm, preset.size),
            yolo_loss,
            detect,
            learning_rate=LEARNING_RATE,
            what=LABELS[arm],
        )
        for arm in LABELS
    }


def described(run: Run, trained: Trained) -> dict[str, Any]:
    """What the experiments on scenes have in common."""
    benchmark = detectors.BENCHMARKS[run.preset]
    data = f"{benchmark.scenes[0]:,} digit scenes of {benchmark.canvas} px to train, {benchmark.scenes[1]:,} others to test"
    parameters = max(count_parameters(models[0].model) for models in trained.values())
    return {"data": data, "parameters": parameters, "steps": sum(benchmark.steps)}


def fullest(test: Scenes) -> list[int]:
    """Scenes by number of objects, most first."""
    return sorted(range(len(test)), key=lambda index: -len(test.boxes[index]))


# %% [markdown]
# ## The points of one scene
# What the trained network would learn from a test scene: the points of each grid, and those that the assignment gives to an
# object.


# %%
def draw_points(style: Style, scene: Scenes, output: Output, assigned: Assignment) -> Figure:
    strides = sorted(set(output.strides.tolist()))
    figure, axes = panels(1, len(strides), height=2.6)
    for ax, stride in zip(axes[0], strides, strict=True):
        show_image(ax, scene.images[0].mean(0) * 0.6, f"stride {stride:g}")
        for line in range(0, scene.images.shape[-1] + 1, int(stride)):
            ax.axhline(line - 0.5, color="white", linewidth=0.5, alpha=0.35)
            ax.axvline(line - 0.5, color="white", linewidth=0.5, alpha=0.35)
        draw_boxes(ax, scene.boxes[0], linewidth=1.2)
        of_grid = output.strides == stride
        points, target = output.points[of_grid] - 0.5, assigned.target[0, of_grid]
        learns = assigned.owner[0, of_grid] >= 0
        ax.plot(*points[~learns].T.numpy(), ".", color="white", markersize=2.5, alpha=0.8)
        size = (20 + 160 * target[learns]).numpy()
        ax.scatter(*points[learns].T.numpy(), s=size, color="#E0672A", edgecolor="white", linewidth=0.8, zorder=3)
    return figure


def points_figure(run: Run, trained: detectors.Trained[YOLO]) -> None:
    """The three grids on the fullest test scene, with the points that would learn its objects."""
    index = fullest(trained.test)[0]
    scene = trained.test[index : index + 1]
    with torch.inference_mode():
        output = Output(*(part.cpu() for part in trained.model(scene.images.to(run.device))))
    run.figure(
        "points",
        partial(draw_points, scene=scene, output=output, assigned=task_aligned(output, targets_from_scenes(scene))),
        caption="The points of the three grids on one test scene. Large marks are the points that would learn an object, the "
        "larger the higher the score they would learn. The assignment chooses among all grids by how well each point does.",
        alt="One scene three times, with grids of 8, 16 and 32 px: small dots at the centres of all cells, and larger marks on "
        "those inside objects that learn them.",
    )


# %% [markdown]
# ## The edges of one box
# The surest box of the same scene, as four distributions of the distance between the point and each edge.


# %%
def draw_edges(style: Style, image: Tensor, output: Output, point: int, truth: Tensor) -> Figure:
    figure, axes = panels(1, 5, height=2.1, width_ratios=[1.5, 1, 1, 1, 1])
    show_image(axes[0, 0], image, "the surest point")
    draw_boxes(axes[0, 0], output.boxes[0, point, None])
    at, stride = output.points[point], output.strides[point]
    axes[0, 0].plot(*(at - 0.5).tolist(), "o", color="#E0672A", markeredgecolor="white", markersize=7)
    away = torch.cat([at - truth[:2], truth[2:] - at]) / stride  # (4,)
    mean = distances(output.edges[0, point])
    for edge, (ax, name) in enumerate(zip(axes[0, 1:], ("left", "top", "right", "bottom"), strict=True)):
        ax.bar(range(BINS), output.edges[0, point, edge].softmax(-1).numpy(), color=style.cycle[0])
        ax.axvline(float(mean[edge]), color=style.cycle[1], label="mean")
        ax.axvline(float(away[edge]), color=style.ink, linestyle=":", label="truth")
        ax.set(title=name, xlim=(-0.7, 5.7), ylim=(0, 1), yticks=[], xticks=range(6))
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    figure.supxlabel("distance in strides", fontsize=10)
    return figure


def edges_figure(run: Run, trained: detectors.Trained[YOLO]) -> None:
    """The four distributions of the surest point of a scene."""
    index = fullest(trained.test)[0]
    image = trained.test.images[index]
    with torch.inference_mode():
        output = Output(*(part.cpu() for part in trained.model(image[None].to(run.device))))
    point = int(output.logits[0].amax(-1).argmax())
    truth = trained.test.boxes[index]
    nearest = int(box_iou(output.boxes[0, point, None], truth).argmax())
    run.figure(
        "distributions",
        partial(draw_edges, image=image, output=output, point=point, truth=truth[nearest]),
        caption="The box of the surest point of a scene, and how likely that point finds each distance to its four edges, in "
        f"strides of {output.strides[point]:g} px (bins beyond 5 are left out). The prediction is the mean. A clear edge has a "
        "narrow distribution.",
        alt="A scene with one predicted box and its point, beside four bar charts, the distributions of the distances to the "
        "left, top, right and bottom edge, each with a line at its mean and at the true distance.",
    )


# %% [markdown]
# ## Before and after suppression
# How many boxes lie on an object, what suppression is worth in AP, and what it costs. Its time is taken on one large image, a
# mosaic of test scenes, for two thresholds of the score below which boxes are dropped before it. A point predicts one box,
# where detectors with anchors predict several; how many that are on an image of the usual size is counted further below.


# %%
def mosaic(test: Scenes, side: int) -> Tensor:
    """The first side^2 scenes as one image (1, 3, side H, side W), repeated where there are fewer."""
    tiles = test.images[torch.arange(side * side) % len(test)]
    rows = [torch.cat(list(tiles[row * side :][:side]), dim=2) for row in range(side)]  # each (3, H, side W)
    return torch.cat(rows, dim=1)[None]


def suppression_times(run: Run, trained: detectors.Trained[YOLO], side: int) -> dict[str, float]:
    """Milliseconds of the network, and of suppression after a low and after a high threshold, on the mosaic."""
    image = mosaic(trained.test, side).to(run.device)
    with torch.inference_mode():
        output = trained.model(image)
        boxes, (scores, labels) = output.boxes[0], output.logits[0].sigmoid().max(-1)

        def nms(threshold: float) -> Tensor:
            sure = scores >= threshold
            kept: Tensor = batched_nms(boxes[sure], scores[sure], labels[sure], OVERLAP)
            return kept

        times = {"network": timed(lambda: trained.model(image), repeats=3, warmup=1, device=run.device).median}
        for name, threshold in (("low", 0.001), ("high", 0.25)):
            times[name] = timed(partial(nms, threshold), repeats=5, warmup=1, device=run.device).median
    return times


def draw_suppression(
    style: Style, scores: Mapping[str, Sequence[float]], times: Sequence[Mapping[str, float]]
) -> Figure:
    figure, axes = panels(1, 2, height=2.7)
    names = ["as predicted", "after NMS"]
    seed_bars(axes[0, 0], names, [scores["raw"], scores["final"]])
    axes[0, 0].set(title="AP (%)")
    seed_bars(
        axes[0, 1],
        ["network", "NMS,\nscore ≥ 0.001", "NMS,\nscore ≥ 0.25"],
        [[each[name] for each in times] for name in ("network", "low", "high")],
    )
    axes[0, 1].set(title="ms on a large image")
    return figure


def draw_before_after(
    style: Style, trained: detectors.Trained[YOLO], found: Sequence[Mapping[str, Tensor]], count: int
) -> Figure:
    figure, axes = panels(2, count, height=3.6)
    for column, index in enumerate(fullest(trained.test)[:count]):
        for row, boxes in enumerate((found[index], suppress(found[index]))):
            show_image(axes[row, column], trained.test.images[index])
            draw_boxes(axes[row, column], boxes["boxes"][boxes["scores"] >= 0.25], linewidth=1.2)
    for ax, label in zip(axes[:, 0], ("before", "after"), strict=True):
        ax.text(-0.06, 0.5, label, transform=ax.transAxes, rotation=90, ha="right", va="center", fontweight="bold")
    return figure


def suppression(run: Run, trained: Trained, preset: Preset) -> None:
    """AP before and after suppression, and its time by threshold."""
    experiment = run.experiment(
        "suppression", question="What is suppression worth, and what does it cost?", **described(run, trained)
    )
    benchmark, main = detectors.BENCHMARKS[run.preset], trained["yolov8"]
    found = [detectors.on_scenes(partial(raw, each.model), each.test, run.device) for each in main]
    scores = {}
    for name, after in (("raw", False), ("final", True)):
        boxes = [[suppress(each) if after else each for each in one] for one in found]
        measured = [detectors.measures(b, each.test, benchmark) for b, each in zip(boxes, main, strict=True)]
        scores[name] = [each["ap"] for each in measured]
        meaning = f"AP {'after' if after else 'before'} suppression"
        experiment.result(f"ap_{name}", scores[name], unit="%", meaning=meaning)
    gain = [b - a for a, b in zip(scores["raw"], scores["final"], strict=True)]
    experiment.result("nms_gain", gain, unit="points", meaning="AP gained by suppression")
    times = [suppression_times(run, each, preset.mosaic) for each in main]
    ratio = [each["low"] / each["high"] for each in times]
    experiment.result(
        "nms_time_ratio", ratio, unit="", meaning="Time of suppression after a score of 0.001, over that after 0.25"
    )
    share = [100 * each["low"] / each["network"] for each in times]
    experiment.result(
        "nms_share", share, unit="%", meaning="Time of suppression after a score of 0.001, relative to the network"
    )
    experiment.figure(
        "before_after",
        partial(draw_before_after, trained=main[0], found=found[0], count=4),
        caption="Boxes with a score of at least 0.25 on the fullest test scenes, before and after suppression. Several points "
        "learn each object, and several report it.",
        alt="Four scenes in two rows: above, every digit carries several nearly equal boxes; below, most carry one.",
    )
    experiment.figure(
        "suppression",
        partial(draw_suppression, scores=scores, times=times),
        caption=f"Left: AP before and after suppression. Right: time of the network and of suppression on a mosaic of "
        f"{preset.mosaic**2} scenes; with a low threshold far more boxes have to be compared. Bars are means, dots seeds.",
        alt="Two bar charts: AP before and after suppression, and milliseconds of the network and of suppression at two "
        "thresholds.",
    )


# %% [markdown]
# ## What the finest grid is for
# The control has no points of stride 8; its branches are wider, so that it has about as many parameters.


# %%
def finest_grid(run: Run, trained: Trained) -> None:
    """AP by object size with and without the grid of stride 8."""
    experiment = run.experiment(
        "finest_grid", question="Which objects need the finest grid?", **described(run, trained)
    )
    benchmark, sizes = detectors.BENCHMARKS[run.preset], ("small", "medium", "large")
    scores = {
        arm: [
            detectors.measures(detectors.on_scenes(partial(detect, e.model), e.test, run.device), e.test, benchmark)
            for e in models
        ]
        for arm, models in trained.items()
    }
    for size in sizes:
        gain = [a[f"ap_{size}"] - b[f"ap_{size}"] for a, b in zip(scores["yolov8"], scores["coarse"], strict=True)]
        experiment.result(
            f"fine_gain_{size}", gain, unit="points", meaning=f"AP of {size} objects that the grid of stride 8 adds"
        )
    coarse = [each["ap"] for each in scores["coarse"]]
    experiment.result("ap_coarse", coarse, unit="%", meaning="AP without the grid of stride 8")

    def draw(style: Style) -> Figure:
        figure, axes = panels(1, 2, height=2.6, sharey=True)
        for ax, arm in zip(axes[0], LABELS, strict=True):
            seed_bars(ax, sizes, [[each[f"ap_{size}"] for each in scores[arm]] for size in sizes])
            ax.set_title(LABELS[arm])
        axes[0, 0].set_ylabel("AP (%)")
        return figure

    low, high = benchmark.sizes
    experiment.figure(
        "finest_grid",
        draw,
        caption=f"AP of objects up to {low:g} px, up to {high:g} px, and larger. Bars are means, dots seeds.",
        alt="Bars of AP for small, medium and large objects, with points of three strides and without those of stride 8.",
    )


# %% [markdown]
# ## What the network knows about its boxes
# The target score follows the alignment, so the score should say how well a box fits. And the spread of an edge's distribution
# should say how far off that edge is. Both are rank correlations over the boxes that lie on an object before suppression.
# The price of the distributions: every edge needs a softmax.


# %%
class Known(NamedTuple):
    """Of boxes on an object: score (n,), IoU (n,); of their edges: spread px (n, 4), error px (n, 4)."""

    score: Tensor
    overlap: Tensor
    spread: Tensor
    error: Tensor


@torch.inference_mode()
def known(run: Run, trained: detectors.Trained[YOLO]) -> Known:
    """All boxes of the test scenes with a score of at least 0.05 that overlap an object by at least 0.3."""
    parts, bins = [], torch.arange(float(BINS))
    for start in range(0, len(trained.test), detectors.IMAGES_AT_ONCE):
        scenes = trained.test[start : start + detectors.IMAGES_AT_ONCE]
        output = Output(*(part.cpu() for part in trained.model(scenes.images.to(run.device))))
        p, mean = output.edges.softmax(-1), distances(output.edges)
        spread = ((p * (bins - mean[..., None]) ** 2).sum(-1)).sqrt() * output.strides[:, None]  # (B, N, 4)
        score = output.logits.sigmoid().amax(-1)
        for image, truth in enumerate(scenes.boxes):
            if not len(truth):
                continue
            overlap, owner = box_iou(output.boxes[image], truth).max(1)
            keep = (score[image] >= 0.05) & (overlap >= 0.3)
            error = (output.boxes[image] - truth[owner]).abs()
            parts.append(tuple(x[keep] for x in (score[image], overlap, spread[image], error)))
    return Known(*(torch.cat(part) for part in zip(*parts, strict=True)))


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's coefficient of two series; 0 for fewer than three values."""
    return float(spearmanr(a.flatten().numpy(), b.flatten().numpy()).statistic) if a.numel() > 2 else 0.0


def quarters(by: Tensor, values: Tensor) -> list[float]:
    """Mean of the values in each quarter of their order by `by`; 0 for fewer than four values."""
    order = values.flatten()[by.flatten().argsort()]
    return [float(part.mean()) for part in order.tensor_split(4)] if len(order) > 3 else [0.0] * 4


def decoding_ratio(run: Run, points: int) -> float:
    """Time of boxes from distributions over the time of boxes from plain distances, for so many points."""
    edges = torch.randn(1, points, 4, BINS, device=run.device)
    at, strides = torch.zeros(points, 2, device=run.device), torch.ones(points, device=run.device)
    output, plain = Output(edges, edges[..., 0], at, strides), edges[..., 0].contiguous()

    def without() -> Tensor:
        away = plain * strides[:, None]
        return torch.cat([at - away[..., :2], at + away[..., 2:]], dim=-1)

    with_bins, direct = (timed(fn, repeats=20, device=run.device).median for fn in (lambda: output.boxes, without))
    return with_bins / direct


def knowledge(run: Run, trained: Trained, preset: Preset) -> None:
    """Rank correlations of score and fit, of spread and error; the price of decoding."""
    experiment = run.experiment(
        "knowledge", question="Do score and spread say how good a box is?", **described(run, trained)
    )
    parts = [known(run, each) for each in trained["yolov8"]]
    experiment.result(
        "score_fit_correlation", [rank_correlation(e.score, e.overlap) for e in parts], unit="",
        meaning="Rank correlation of a box's score with its IoU",
    )  # fmt: skip
    experiment.result(
        "spread_error_correlation", [rank_correlation(e.spread, e.error) for e in parts], unit="",
        meaning="Rank correlation of the spread of an edge with its error",
    )  # fmt: skip
    points = sum((preset.large // stride) ** 2 for stride in (8, 16, 32))
    ratios = [decoding_ratio(run, points) for _ in run.seeds]
    experiment.result(
        "decoding_ratio", ratios, unit="", meaning="Time of boxes from distributions over that from plain distances"
    )
    names = ["lowest", "low", "high", "highest"]

    def draw(style: Style) -> Figure:
        figure, axes = panels(1, 2, height=2.7)
        by_score = list(zip(*(quarters(each.score, each.overlap) for each in parts), strict=True))
        by_spread = list(zip(*(quarters(each.spread, each.error) for each in parts), strict=True))
        seed_bars(axes[0, 0], names, by_score, [style.cycle[0]] * 4)
        seed_bars(axes[0, 1], names, by_spread, [style.cycle[1]] * 4)
        axes[0, 0].set(title="IoU of the box", xlabel="quarter of the boxes by score")
        axes[0, 1].set(title="error of the edge (px)", xlabel="quarter of the edges by spread")
        return figure

    experiment.figure(
        "knowledge",
        draw,
        caption="Left: mean IoU of boxes by their score. Right: mean error of edges by the spread of their distribution. Boxes "
        "on an object before suppression; bars are means, dots seeds.",
        alt="Two bar charts over quarters: IoU against score, and error of an edge against the spread of its distribution.",
    )


# %% [markdown]
# ## The published sizes, counted
# Five sizes of one recipe, built on a device that stores shapes and no values, at 640 x 640. Beside them Faster R-CNN with the
# best recipe of torchvision: its second stage runs on 1,000 proposals; and RetinaNet, a one-stage detector with anchors.
# Weights are random here, and time is taken on smaller images.


# %%
SCALES = {
    "n": (1 / 3, 0.25, 1024), "s": (1 / 3, 0.5, 1024), "m": (2 / 3, 0.75, 768), "l": (1, 1, 512), "x": (1, 1.25, 512),
}  # multiples of depth and width, and the most channels before the width is multiplied  # fmt: skip


def published(scale: str) -> Size:
    """The network of a published size, for the 80 classes of COCO."""
    depth, width, most = SCALES[scale]
    c1, c2, c3, c4, c5 = (8 * math.ceil(min(c, most) * width / 8) for c in (64, 128, 256, 512, 1024))
    heads = (max(c3 // 4, 4 * BINS), max(c3, 80))
    return Size((c1, c2, c3, c4, c5), (round(3 * depth), round(6 * depth)), heads, classes=80)


class Counted(NamedTuple):
    """Millions of parameters, 10^9 multiply-accumulates, and boxes before suppression."""

    parameters: float
    macs: float
    boxes: int


def counted(model: nn.Module, forward: Callable[[], int]) -> Counted:
    """Counts a model on the meta device; `forward` runs it and gives the number of boxes."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        boxes = forward()
    return Counted(count_parameters(model) / 1e6, counter.get_total_flops() / 2e9, boxes)


def count_yolo(scale: str, side: int) -> Counted:
    with torch.device("meta"):
        model = YOLO(published(scale)).eval()
        return counted(model, lambda: len(model(torch.empty(1, 3, side, side)).points))


def count_retinanet(side: int) -> Counted:
    with torch.device("meta"):
        model: Any = detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None).eval()

        def forward() -> int:
            heads = model.head(list(model.backbone(torch.empty(1, 3, side, side)).values()))
            return int(heads["bbox_regression"].shape[1])

        return counted(model, forward)


def count_two_stage(side: int, proposals: int = 1000) -> Counted:
    """Backbone, proposals, and the heads that run once for each proposal; pooling has no weights and is left out."""
    with torch.device("meta"):
        model: Any = detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).eval()

        def forward() -> int:
            maps = list(model.backbone(torch.empty(1, 3, side, side)).values())
            objectness, _ = model.rpn.head(maps)
            pooled = torch.empty(proposals, maps[0].shape[1], 7, 7)
            model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
            return sum(each.numel() for each in objectness)

        return counted(model, forward)


def seconds_of_both(run: Run, side: int) -> list[tuple[float, float]]:
    """Seconds from one image of noise to its boxes, YOLOv8m and Faster R-CNN, for each seed."""
    one = YOLO(published("m")).eval().to(run.device)
    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "min_size": side, "max_size": side}
    two: Any = detection.fasterrcnn_resnet50_fpn_v2(**options).eval().to(run.device)
    times = []
    with torch.inference_mode():
        for count, seed in enumerate(run.seeds):
            image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed)).to(run.device)
            take = partial(timed, repeats=1, warmup=0 if count else 1, device=run.device)
            both = take(partial(detect, one, image[None])).median, take(partial(two, [image])).median
            times.append((1e-3 * both[0], 1e-3 * both[1]))
    return times


def draw_published(style: Style, yolos: Sequence[Counted], others: Mapping[str, Counted]) -> Figure:
    names = [f"v8{scale}" for scale in SCALES]
    rest = {"RetinaNet": "Retina-\nNet", "Faster R-CNN": "Faster\nR-CNN"}
    figure, axes = panels(1, 3, height=2.7)
    titles = ("parameters (M)", "MACs (G)", "boxes predicted")
    for ax, part, title in zip(axes[0], Counted._fields, titles, strict=True):
        shown = yolos if part != "boxes" else yolos[-1:]
        labels = [*(names if part != "boxes" else ["YOLOv8"]), *(rest[name] for name in others)]
        values = [[getattr(each, part)] for each in (*shown, *others.values())]
        seed_bars(ax, labels, values, [*[style.cycle[0]] * len(shown), *style.cycle[1:3]])
        ax.set_title(title)
        ax.tick_params(axis="x", labelsize=8, rotation=90 if part != "boxes" else 0)
    axes[0, 2].yaxis.set_major_formatter(lambda value, _: f"{value / 1e3:g} k")
    return figure


def published_sizes(run: Run, preset: Preset) -> None:
    """Parameters, MACs and boxes of the published networks; time of one stage against two."""
    experiment = run.experiment(
        "published_sizes",
        question="What do one stage and points without anchors save?",
        data=f"The published architectures on the meta device, one image of {preset.large} px; time on {preset.timed} px",
    )
    exact = partial(experiment.result, exact=True)
    yolos = {scale: count_yolo(scale, preset.large) for scale in SCALES}
    two, anchors = count_two_stage(preset.large), count_retinanet(preset.large)
    for scale, each in yolos.items():
        exact(f"parameters_{scale}", [each.parameters], unit="M", meaning=f"Parameters of YOLOv8{scale}")
        exact(f"macs_{scale}", [each.macs], unit="G", meaning=f"MACs of YOLOv8{scale}")
    exact("macs_two_stage", [two.macs], unit="G", meaning="MACs of Faster R-CNN, same image")
    exact(
        "macs_n_over_x",
        [yolos["n"].macs / yolos["x"].macs],
        unit="",
        meaning="MACs of the smallest over the largest size",
    )
    exact(
        "macs_over_two_stage",
        [yolos["m"].macs / two.macs],
        unit="",
        meaning="MACs of YOLOv8m over those of Faster R-CNN",
    )
    exact("boxes_anchor_free", [yolos["m"].boxes], unit="boxes", meaning="Boxes that YOLOv8 predicts on an image")
    exact(
        "anchors_over_points", [anchors.boxes / yolos["m"].boxes], unit="",
        meaning="Boxes that RetinaNet predicts, with anchors, over those of YOLOv8",
    )  # fmt: skip
    times = seconds_of_both(run, preset.timed)
    experiment.result(
        "seconds_one_stage", [a for a, _ in times], unit="s", meaning="From one image to its boxes, YOLOv8m"
    )
    ratio = [a / b for a, b in times]
    experiment.result("time_over_two_stage", ratio, unit="", meaning="Time of YOLOv8m over that of Faster R-CNN")
    experiment.figure(
        "published_sizes",
        partial(draw_published, yolos=list(yolos.values()), others={"RetinaNet": anchors, "Faster R-CNN": two}),
        caption=f"Counted from the published architectures at {preset.large} px: parameters, multiply-accumulates, and boxes "
        "before any are dropped. The boxes of Faster R-CNN are those of its first stage.",
        alt="Three bar charts of five YOLOv8 sizes, RetinaNet and Faster R-CNN: parameters, MACs, and number of predicted boxes.",
    )


# %% [markdown]
# ## Unlike the published model
# - There is no paper: the network follows the published table of its layers and the papers on its losses. The trained one has
#   fewer channels, no bottleneck in the short stages and 80 times fewer classes; it starts from random weights.
# - Scenes of 64 px leave grids of 8, 4 and 2 cells. There is no mosaic augmentation, no moving average of the weights.
# - Weights of the losses, the threshold of suppression and the start of the box branch (small boxes) are chosen here.
# - A point that two objects want goes to the one of larger alignment; the published code takes the larger IoU.
# - Batch norms are not merged into convolutions; time is taken with random weights on one CPU thread.


# %%
def main(argv: Sequence[str] | None = None) -> None:
    """Run all experiments and write the record."""
    run = Run.start("yolov8", argv=argv)
    if run.settings.weights == "pretrained":
        raise SystemExit(
            "--weights pretrained: the published weights are AGPL-3.0 and need their own package. Use random."
        )
    preset = PRESETS[run.preset]
    trained = train_all(run, preset)
    points_figure(run, trained["yolov8"][0])
    edges_figure(run, trained["yolov8"][0])
    suppression(run, trained, preset)
    finest_grid(run, trained)
    knowledge(run, trained, preset)
    published_sizes(run, preset)
    detectors.report(run, detectors.BENCHMARKS[run.preset], trained["yolov8"], detect, raw, name="YOLOv8")
    run.finish()


if __name__ == "__main__":
    main()
