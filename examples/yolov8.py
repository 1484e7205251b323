# %% [markdown]
# # YOLOv8: what does one pass over a grid of points give, and what does it leave to be sorted out?
#
# One convolutional network goes from the image to a class and a box at every point of several grids. A few points learn each
# object, so a few report it, and the surplus boxes have to be suppressed. Here is that idea, small enough to train in seconds;
# the experiments take away the surplus points, and the finest grid.
#
# | symbol | here | meaning |
# |---|---|---|
# | $z$ | `edges` | logits of the distances of the four edges, (B, N, 4, bins) |
# | $\hat d$ | `distances` | expected distance of an edge, in strides (Eq. 5, arXiv:2006.04388) |
# | $s$, $u$ | `score`, `overlap` | score of the right class, IoU of the predicted with the true box, (B, M, N) |
# | $t = s^\alpha u^\beta$ | `alignment` | how well a point does in both tasks (Section 3.2, arXiv:2108.07755) |
# | $\hat t$ | `Assignment.target` | score that a point learns: 0 for points without an object |
# | N, M, K | | points of all grids, most objects of a scene, classes |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import math
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from lab import detectors
from lab.boxes import grid_points, suppressed, targets_from_scenes, xyxy_from_cxcywh
from lab.figures import Figure, Style, draw_boxes, panels, show_image
from lab.pyramid import Body, conv
from lab.run import Run
from lab.training import seed_everything
from torch import Tensor, nn
from torchvision.ops import box_iou

BINS = 16  # distances of an edge: 0 to 15 strides
ALPHA, BETA, MOST = 0.5, 6.0, 10  # exponents of the alignment, most points that learn an object
CLASS, BOX, DFL = 1.0, 5.0, 1.0  # weights of the losses
LEAST = 0.01  # score below which a box is not reported at all
RATE = 8e-3  # learning rate: see claims/yolov8.searches.json
SYNCHRONISATIONS_PER_STEP = 0  # all points are weighted, none is picked out


class Preset(NamedTuple):
    """Channels of the stages at strides 2, 4, 8, ...; blocks of the short and the long stages; channels of the two branches."""

    widths: tuple[int, ...] = (8, 16, 32, 64)
    repeats: tuple[int, int] = (0, 1)
    heads: tuple[int, int] = (16, 16)
    grids: int = 2  # how many, the coarsest first


PRESETS = {
    "smoke": Preset((8, 8, 16, 16), heads=(8, 8)),
    "quick": Preset(),
    "full": Preset((16, 32, 64, 128, 256), (1, 2), (64, 80), 3),
}

# %% [markdown]
# ## A distribution for every edge
# The centre of each cell is a point. For each edge of its box, a point gives a distribution over 16 distances, and the
# prediction is the mean: $\hat d = \sum_j j \, \mathrm{softmax}(z)_j$. A distance $d$ between the bins $j$ and $j + 1$ is
# learned by both, in proportion: $\mathrm{DFL} = -\left((j + 1 - d) \log p_j + (d - j) \log p_{j+1}\right)$ (Eq. 6).
# Below, an edge lies at 2.3 strides: the loss is lowest for the distribution whose mean is right.


# %%
def distances(edges: Tensor) -> Tensor:
    """Mean of each distribution, in strides: (..., bins) -> (...)."""
    bins = torch.arange(edges.shape[-1], dtype=edges.dtype, device=edges.device)
    return (edges.softmax(-1) * bins).sum(-1)


def distribution_focal_loss(edges: Tensor, wanted: Tensor) -> Tensor:
    """Eq. 6: logits (..., bins) and distances (...) in strides -> (...). Distances beyond the last bin are cut."""
    wanted = wanted.clamp(0, edges.shape[-1] - 1.01)
    low, part = wanted.floor().long(), wanted.frac()
    p = edges.log_softmax(-1)
    of_low, of_high = (p.gather(-1, bin[..., None])[..., 0] for bin in (low, low + 1))
    return -((1 - part) * of_low + part * of_high)


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
        return torch.cat([self.points - away[..., :2], self.points + away[..., 2:]], -1)


if __name__ == "__main__":
    run = Run.start("yolov8", pretrained=False)
    rows: list[dict[str, object]] = []
    for part in (0.0, 0.3, 0.5):
        z = torch.full((BINS,), 1e-9).index_add(0, torch.tensor([2, 3]), torch.tensor([1 - part, part])).log()
        of_z = {"mean (strides)": distances(z).item(), "DFL": distribution_focal_loss(z, torch.tensor(2.3)).item()}
        rows.append({"in bin 2": 1 - part, "in bin 3": part, **of_z})
    run.show("distribution", rows)

# %% [markdown]
# ## Which points learn an object
# Of the points inside an object, the ten with the largest alignment $t = s^{\alpha} u^{\beta}$ learn it, anew at each step.
# They learn $t$ as their score, scaled so that the best one learns its own IoU: a point whose box fits badly learns to be less
# sure. Below, four points lie inside an object, all equally sure of it; their boxes fit worse from one to the next.


# %%
class Targets(NamedTuple):
    """Objects of B images, padded to M: boxes (B, M, 4) xyxy px, of no size where padded; labels (B, M)."""

    boxes: Tensor
    labels: Tensor


class Assignment(NamedTuple):
    """Of each point: its object (B, N), -1 for none, and the score that it learns (B, N)."""

    owner: Tensor
    target: Tensor


@torch.no_grad()
def task_aligned(output: Output, targets: Targets, most: int = MOST) -> Assignment:
    """The points of largest alignment learn an object; one that two objects want goes to that of larger alignment."""
    overlap = box_iou(targets.boxes, output.boxes).nan_to_num()  # (B, M, N)
    score = output.logits.sigmoid().mT.gather(1, targets.labels[..., None].expand_as(overlap))
    low, high = targets.boxes[:, :, None, :2], targets.boxes[:, :, None, 2:]
    inside = ((output.points > low) & (output.points < high)).all(-1)  # (B, M, N)
    alignment = score**ALPHA * overlap**BETA
    rank = alignment.masked_fill(~inside, -1)
    top = rank.topk(min(most, rank.shape[2]), 2).indices
    taken = torch.zeros_like(inside).scatter(2, top, True) & inside
    best, owner = rank.masked_fill(~taken, -1).max(1)  # (B, N)
    owner = owner.masked_fill(best < 0, -1)
    own = owner[:, None] == torch.arange(rank.shape[1], device=owner.device)[:, None]  # (B, M, N)
    t, u = alignment * own, overlap * own
    return Assignment(owner, (t / t.amax(2, keepdim=True).clamp(min=1e-9) * u.amax(2, keepdim=True)).amax(1))


if __name__ == "__main__":
    points = grid_points(2) * 16
    far = 16 + torch.tensor([0.0, 1.0, 2.0, 4.0])[:, None]  # boxes grow by 0 to 4 px
    away = torch.cat([points, far - points], 1) / 8
    bins = torch.arange(BINS)
    guess = Output(-8 * (bins - away[None, ..., None]).abs(), torch.zeros(1, 4, 1), points, torch.full((4,), 8.0))
    truth = Targets(torch.tensor([[[0.0, 0.0, 16.0, 16.0]]]), torch.zeros(1, 1, dtype=torch.long))
    overlap, learns = box_iou(truth.boxes, guess.boxes)[0, 0], task_aligned(guess, truth).target[0]
    rows = [{"point": n, "score": 0.5, "IoU": overlap[n].item(), "learns": learns[n].item()} for n in range(4)]
    run.show("assignment", rows)

# %% [markdown]
# ## One network, several grids
# Convolutions of stride 2 lead down; a neck passes features up and down again, so that every grid knows detail and context
# (`lab/pyramid.py`). On each map two branches that share no weights give the edges and the class scores of all points.


# %%
class YOLO(nn.Module):
    """Images (B, 3, H, W) -> `Output` of the points of its grids."""

    def __init__(self, preset: Preset, classes: int) -> None:
        super().__init__()
        self.body, self.grids, (box, score) = Body(preset.widths, preset.repeats), preset.grids, preset.heads

        def branch(inputs: int, width: int, start: Tensor) -> nn.Sequential:
            last = nn.Conv2d(width, len(start), 1)
            last.bias = nn.Parameter(start.clone())
            return nn.Sequential(conv(inputs, width), conv(width, width), last)

        near = -torch.arange(float(BINS)).repeat(4)
        unsure = torch.full((classes,), -math.log(99))  # scores start at 0.01
        self.of_edges = nn.ModuleList(branch(width, box, near) for width in preset.widths[-self.grids :])
        self.of_class = nn.ModuleList(branch(width, score, unsure) for width in preset.widths[-self.grids :])
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Output:
        maps = self.body(images)[-self.grids :]
        edges, logits = (
            torch.cat([branch(x).flatten(2) for branch, x in zip(branches, maps, strict=True)], 2).mT.float()
            for branches in (self.of_edges, self.of_class)
        )
        side, sides = images.shape[-1], [x.shape[-1] for x in maps]
        with images.device:
            points = torch.cat([grid_points(n) * side for n in sides])
            strides = torch.cat([torch.full((n * n,), side / n) for n in sides])
        return Output(edges.unflatten(2, (4, BINS)), logits, points, strides)


if __name__ == "__main__":
    benchmark = detectors.BENCHMARKS[run.preset]
    said = YOLO(PRESETS[run.preset], benchmark.classes)(torch.rand(2, 3, benchmark.canvas, benchmark.canvas))
    run.show("shapes", [{"of two images": a, "shape": str(tuple(b.shape))} for a, b in said._asdict().items()])

# %% [markdown]
# ## Train it, and read it
# Cross-entropy of all scores; of the points that learn an object, also an IoU loss (CIoU) and the DFL of the edges, weighted by
# the scores they learn. Read, every point reports a box with the score of its best class, and greedy non-maximum suppression
# (NMS) goes from the surest box to the least sure and drops those that overlap a surer one.


# %%
def targets_of(scenes: Any, classes: int) -> Targets:
    """One more padding than needed, so that there is one where no image has an object."""
    boxes, labels = targets_from_scenes(scenes, classes)
    boxes, labels = nn.functional.pad(boxes, (0, 0, 0, 1)), nn.functional.pad(labels, (0, 1))
    return Targets(xyxy_from_cxcywh(boxes) * scenes.images.shape[-1], labels.clamp(max=classes - 1))


def complete_iou_loss(a: Tensor, b: Tensor) -> Tensor:
    """CIoU loss (arXiv:1911.08287) of boxes xyxy, (..., 4) twice -> (...): 1 - IoU + distance + difference in shape.

    As `torchvision.ops.complete_box_iou_loss`, which does not leave a GPU without waiting.
    """
    (a_low, a_high), (b_low, b_high) = a.split(2, -1), b.split(2, -1)
    shared = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(-1)
    overlap = shared / ((a_high - a_low).prod(-1) + (b_high - b_low).prod(-1) - shared + 1e-7)
    across = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).square().sum(-1) + 1e-7
    apart = (a_low + a_high - b_low - b_high).square().sum(-1) / 4
    shape_a, shape_b = (torch.atan2(*(high - low).unbind(-1)) for low, high in ((a_low, a_high), (b_low, b_high)))
    shape = (shape_a - shape_b).square() * 4 / math.pi**2
    return 1 - overlap + apart / across + (shape / (1 - overlap + shape + 1e-7)).detach() * shape


def loss_of(model: nn.Module, scenes: Any, most: int = MOST) -> Tensor:
    output = model(scenes.images)
    targets = targets_of(scenes, output.logits.shape[2])
    owner, target = task_aligned(output, targets, most)
    index, mine = owner.clamp(min=0), owner >= 0  # (B, N)
    wanted = nn.functional.one_hot(targets.labels.gather(1, index), output.logits.shape[2]) * target[..., None]
    of_class = nn.functional.binary_cross_entropy_with_logits(output.logits, wanted, reduction="none").sum(-1)
    truth = targets.boxes.gather(1, index[..., None].expand(-1, -1, 4))  # (B, N, 4)
    truth = torch.where(mine[..., None], truth, output.boxes.detach())  # points without an object have nothing to learn
    of_box = complete_iou_loss(output.boxes, truth)
    away = torch.cat([output.points - truth[..., :2], truth[..., 2:] - output.points], -1) / output.strides[:, None]
    of_edges = distribution_focal_loss(output.edges, away).mean(-1)
    return (CLASS * of_class + target * (BOX * of_box + DFL * of_edges)).sum() / target.sum().clamp(min=1)


def raw(model: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
    """Of each image the boxes in pixels, scores and labels of all points that are a little sure."""
    output = model(images)
    scores, labels = output.logits.sigmoid().max(-1)  # (B, N), (B, N)
    parts = zip(output.boxes.clamp(0, images.shape[-1]), scores, labels, scores >= LEAST, strict=True)
    return [{"boxes": b[sure], "scores": s[sure], "labels": c[sure]} for b, s, c, sure in parts]


def detect(model: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
    """Final boxes, after NMS at an IoU of 0.5 within each class."""
    return [suppressed(each) for each in raw(model, images)]


@cache
def train(run: Run, seed: int, rate: float) -> detectors.Trained[nn.Module]:
    """A detector for this seed, once for the pictures and the experiments."""
    seed_everything(seed)
    benchmark = detectors.BENCHMARKS[run.preset]
    model: nn.Module = YOLO(PRESETS[run.preset], benchmark.classes)
    return detectors.train(run, benchmark, seed, model, loss_of, detect, learning_rate=rate, what="YOLOv8")


if __name__ == "__main__":
    trained = train(run, run.seeds[0], RATE)
    model = trained.model
    run.show("trained", [{"steps": step, "AP on test scenes (%)": ap} for step, ap in trained.curve[::3]])

# %% [markdown]
# ## What it says about scenes
# Several points report each digit, and suppression leaves one. Then, on one of these scenes: which points of each grid would
# learn its objects, and how likely the surest point finds each distance of its four edges.


# %%
def draw_before_after(style: Style, scenes: Any, found: list[dict[str, Tensor]]) -> Figure:
    figure, axes = panels(2, len(scenes), width=5.4, height=3.8)
    for column, each in enumerate(found):
        for row, (boxes, title) in enumerate(((each, "before NMS"), (suppressed(each), "after"))):
            show_image(axes[row, column], scenes.images[column], title)
            draw_boxes(axes[row, column], boxes["boxes"][boxes["scores"] >= 0.25], linewidth=1.2)
    return figure


def draw_edges(style: Style, scene: Any, output: Output) -> Figure:
    n = int(output.logits[0].amax(-1).argmax())
    truth = scene.boxes[0][box_iou(output.boxes[0, n, None], scene.boxes[0]).argmax()]
    point, stride, p = output.points[n], output.strides[n], output.edges[0, n].softmax(-1)
    away = torch.cat([point - truth[:2], truth[2:] - point]) / stride
    figure, axes = panels(2, 3, width=5.4, height=4.0)
    show_image(axes[0, 0], scene.images[0], "the surest point")
    draw_boxes(axes[0, 0], output.boxes[0, n, None])
    axes[0, 0].plot(*(point - 0.5).tolist(), "o", color="#E0672A", markeredgecolor="white", markersize=8)
    axes[1, 0].set_axis_off()
    for edge, (ax, name) in enumerate(zip(axes[:, 1:].flat, ("left", "top", "right", "bottom"), strict=True)):
        ax.bar(range(BINS), p[edge].numpy(), color=style.cycle[0])
        ax.axvline(float(distances(output.edges[0, n, edge])), color=style.cycle[1], label="mean")
        ax.axvline(float(away[edge]), color=style.ink, linestyle=":", label="truth")
        ax.set(title=name, xlim=(-0.7, 5.7), ylim=(0, 1), xticks=range(6), yticks=[])
    axes[1, 0].legend(*ax.get_legend_handles_labels(), loc="center", title="distance in strides")
    return figure


if __name__ == "__main__":
    full = sorted(range(len(trained.test)), key=lambda index: -len(trained.test.boxes[index]))[:3]
    scenes = trained.test[torch.tensor(full)]
    with torch.inference_mode():
        said = Output(*(each.cpu() for each in model(scenes.images[:1].to(run.device))))
    run.figure(
        "before_after",
        partial(draw_before_after, scenes=scenes, found=detectors.on_scenes(partial(raw, model), scenes, run.device)),
        caption="Boxes with a score of at least 0.25 on test scenes, before and after suppression.",
        alt="Three scenes in two rows: above, digits carry several nearly equal boxes; below, each carries one.",
    )
    run.figure(
        "distributions",
        partial(draw_edges, scene=scenes[:1], output=said),
        caption="The box of the surest point, and how likely it finds each distance to its four edges. The prediction is the "
        "mean; bins beyond 5 are left out.",
        alt="A scene with one box and its point, and four bar charts of the distances to the edges, with mean and truth marked.",
    )
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - There is none: the network follows the published table of its layers and the papers on its losses, and no line of the
#   published code, which is under AGPL-3.0. So are its weights, and no published ones are loaded here.
# - Objects have at most half of 64 px, so there are two grids, of stride 8 and 16, instead of three. There are fewer channels,
#   no bottleneck in the short stages, one class instead of 80, and random weights to start from.
# - There is no mosaic augmentation and no moving average of the weights. Weights of the losses, the threshold of suppression and
#   the start of the box branch (small boxes) are chosen here.
# - A point that two objects want goes to the one of larger alignment; the published code takes the larger IoU.
# - What holds here, after seconds on scenes of 64 px, explains a mechanism; it says nothing about COCO.
