# %% [markdown]
# # Faster R-CNN: what does a second look at each region add?
#
# Stage one scores boxes at every place of a feature map and corrects the best; stage two cuts the features of each of
# these regions out and judges them anew. The two-stage detector is trained beside a dense one that has the same backbone,
# the same anchors and as many parameters, and spends them on a deeper head instead of a second look. The other
# experiments take away what the design rests on: anchors that fit, and suppression after each stage; and count what each
# stage costs, here and in the published networks.
#
# | symbol (arXiv:1506.01497) | here | meaning |
# |---|---|---|
# | $k$, $(x_a, y_a, w_a, h_a)$ | `anchors` | reference boxes at each place of the map, $N = H W k$ in all |
# | $t$, $t^*$ | `offsets`, `encode` | predicted and true offsets of a box from its anchor, Eq. 2 |
# | $p$, $p^*$ | `scores`, `owner` | probability of an object; the object that an anchor belongs to, $-1$ for none |
# | $N_{cls}$ | `SAMPLED` | anchors of an image that the loss counts |
# | proposals | `Regions` | up to $R$ boxes for the second stage, after suppression at an IoU of 0.7 |

# %%
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from lab import detectors
from lab.data.scenes import Scenes
from lab.detectors import BENCHMARKS, Benchmark, Trained, measures, on_scenes
from lab.figures import Style, draw_boxes, panels, seed_bars, seed_lines, show_image
from lab.metrics import timed
from lab.run import Run
from lab.training import count_parameters
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg16
from torchvision.models.detection import fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, sigmoid_focal_loss

STRIDE = 8  # pixels of the image for one cell of the feature map
WIDTH = 64  # channels of the feature map
GRID = 4  # cells of a region's features along each side; 7 in the paper
HIDDEN = 96  # of the head; 4096 in the paper
SAMPLED, REGIONS = 64, 16  # anchors and regions of an image that the losses count, N_cls of Eq. 1
BEFORE, AFTER = 64, 32  # anchors of the best scores, and most regions after suppression
RPN_NMS, HEAD_NMS = 0.7, 0.5  # IoU from which the weaker of two boxes goes
SPREAD = (0.1, 0.1, 0.2, 0.2)  # typical size of the second stage's offsets, to make them comparable
FEW = 8  # regions of an image in the experiment on suppression
LEARNING_RATE = 2e-3  # tried on validation scenes of other seeds only


@dataclass(frozen=True)
class Anchors:
    """Shapes of the reference boxes at each place: sides in pixels (of a square of that area) and height over width."""

    sides: tuple[float, ...] = (10.0, 16.0, 26.0)
    ratios: tuple[float, ...] = (1.0, 1.8)


FITTED, SINGLE = Anchors(), Anchors(sides=(32.0,), ratios=(1.0,))

# %% [markdown]
# ## Anchors
# At each place of the map stand $k$ boxes, which cover the sizes and shapes of the objects. A box is described by its
# offsets from an anchor (Eq. 2), so the network never has to name a coordinate of the image:
# $$t_x = (x - x_a) / w_a, \quad t_y = (y - y_a) / h_a, \quad t_w = \log(w / w_a), \quad t_h = \log(h / h_a)$$


# %%
def anchors_of(shapes: Anchors, height: int, width: int) -> Tensor:
    """The anchors of a map, row by row, xyxy in pixels: (H W k, 4)."""
    sides = torch.tensor([(s / r**0.5, s * r**0.5) for s in shapes.sides for r in shapes.ratios])  # (k, 2) w, h
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = (torch.stack([x, y], -1) + 0.5).view(-1, 1, 2) * STRIDE  # (H, W, 2) -> (H W, 1, 2)
    return torch.cat([centre - sides / 2, centre + sides / 2], dim=-1).flatten(0, 1)  # (H W, k, 4) -> (H W k, 4)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Offsets of boxes from anchors, Eq. 2: xyxy (..., 4), (..., 4) -> (..., 4)."""
    size, own = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    return torch.cat([shift / size, (own / size).log()], dim=-1)


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of `encode`: boxes xyxy (..., 4); a side grows by at most 16, as in Detectron."""
    size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + offsets[..., :2] * size
    half = size * offsets[..., 2:].clamp(max=2.77).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


# %% [markdown]
# ## Who belongs to which object
# An anchor is positive with an IoU of at least 0.7 with an object, or where it overlaps an object best; negative below
# 0.3 with all; in between it does not count. Losses are taken over a random sample, half of it positive if there are so
# many, because nearly all anchors are background.


# %%
class Targets(NamedTuple):
    """Objects of B images, padded to M: boxes (B, M, 4) xyxy, labels (B, M), real (B, M) False for padding."""

    boxes: Tensor
    labels: Tensor
    real: Tensor


def targets_of(scenes: Scenes) -> Targets:
    """The objects of scenes, padded with a box of one pixel."""
    boxes = pad_sequence(list(scenes.boxes), batch_first=True)
    labels = pad_sequence(list(scenes.labels), batch_first=True, padding_value=-1)
    real = labels >= 0
    empty = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    return Targets(torch.where(real[..., None], boxes, empty), labels.clamp(min=0), real)


def match(boxes: Tensor, targets: Targets, high: float, low: float, best: bool) -> Tensor:
    """The object of each box: owner (B, N), -1 for background (IoU below `low`), -2 where it does not count.

    Args:
        boxes: (B, N, 4) or (N, 4).
        targets: of the images.
        high: IoU from which a box belongs to an object.
        low: IoU below which it is background.
        best: whether the boxes that overlap an object best belong to it in any case.
    """
    boxes = boxes.expand(len(targets.boxes), -1, 4)
    overlap = torch.stack([box_iou(a, b) for a, b in zip(boxes, targets.boxes, strict=True)])  # (B, N, M)
    overlap = overlap.masked_fill(~targets.real[:, None], -1.0)
    value, owner = overlap.max(2)  # (B, N)
    out = torch.where(value >= high, owner, torch.where(value < low, -1, -2))
    if best:
        top = overlap.amax(1, keepdim=True)  # (B, 1, M)
        is_best = (overlap >= top - 1e-4) & (top > 0)  # (B, N, M)
        out = torch.where(is_best.any(2), overlap.masked_fill(~is_best, -1.0).argmax(2), out)
    return out


def sample(owner: Tensor, count: int, positive: float) -> Tensor:
    """A random choice of `count` boxes of each image, up to a part `positive` of them with an object: bool (B, N)."""

    def drawn(allowed: Tensor, most: Tensor | int) -> Tensor:
        keys = torch.rand(owner.shape, device=owner.device) * allowed
        first = keys.topk(min(count, keys.shape[1]), sorted=True).indices  # (B, count)
        taken = (torch.arange(first.shape[1], device=owner.device) < most) & allowed.gather(1, first)
        return torch.zeros_like(allowed).scatter(1, first, taken)

    objects = drawn(owner >= 0, round(positive * count))
    return objects | drawn(owner == -1, count - objects.sum(1, keepdim=True))


# %% [markdown]
# ## Stage one: the region proposal network
# A 3x3 convolution and two sibling 1x1 convolutions give each anchor a score and four offsets. The best boxes, thinned by
# suppression, are the proposals. The dense rival uses the same head, made deeper, with a score for each class.


# %%
def backbone() -> nn.Sequential:
    """Images (B, 3, H, W) -> features (B, C, H / 8, W / 8)."""
    layers: list[nn.Module] = []
    for (inputs, outputs), stride in zip(
        pairwise((3, WIDTH // 4, WIDTH // 2, WIDTH, WIDTH)), (2, 2, 2, 1), strict=True
    ):
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class AnchorHead(nn.Module):
    """Features (B, C, H, W) -> logits (B, N, K) and offsets (B, N, 4) of all anchors; K = 1 for a proposal network."""

    def __init__(self, shapes: Anchors, classes: int, depth: int) -> None:
        super().__init__()
        self.classes, k = classes, len(shapes.sides) * len(shapes.ratios)
        tower = [
            [nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()] for _ in range(depth)
        ]
        self.tower = nn.Sequential(*(layer for each in tower for layer in each))
        self.score, self.box = nn.Conv2d(WIDTH, k * classes, 1), nn.Conv2d(WIDTH, 4 * k, 1)
        nn.init.normal_(self.box.weight, std=0.01)
        assert self.score.bias is not None
        nn.init.constant_(self.score.bias, -2.0)  # objects are rare

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tower(features)
        logits, offsets = (part(x).permute(0, 2, 3, 1).flatten(1) for part in (self.score, self.box))  # (B, H W k K)
        return logits.unflatten(1, (-1, self.classes)).float(), offsets.unflatten(1, (-1, 4)).float()


class Regions(NamedTuple):
    """Up to R boxes of each of B images, best first: boxes (B, R, 4) xyxy, valid (B, R) False for padding."""

    boxes: Tensor
    valid: Tensor


def regions_from(boxes: Tensor, scores: Tensor, most: int, nms: float | None) -> Regions:
    """The best boxes of each image after suppression: (B, N, 4), (B, N) -> at most `most` regions each."""
    B = len(boxes)
    scores, index = scores.topk(min(BEFORE, scores.shape[1]))
    flat = boxes.gather(1, index[..., None].expand(-1, -1, 4)).flatten(0, 1)  # (B, BEFORE, 4) -> (B BEFORE, 4)
    image = torch.arange(B, device=flat.device).repeat_interleave(scores.shape[1])
    keep = (
        batched_nms(flat, scores.flatten(), image, nms)
        if nms is not None
        else scores.flatten().argsort(descending=True)
    )
    keep = keep[image[keep].argsort(stable=True)]  # by image, and within it by score
    image = image[keep]
    rank = torch.arange(len(keep), device=flat.device) - torch.searchsorted(image, image)
    keep, image, rank = (each[rank < most] for each in (keep, image, rank))
    out, valid = flat.new_zeros(B, most, 4), torch.zeros(B, most, dtype=torch.bool, device=flat.device)
    out[image, rank], valid[image, rank] = flat[keep], True
    return Regions(out, valid)


# %% [markdown]
# ## Stage two: a head on each region
# The features inside a proposal are cut out as a grid of fixed size, whatever the size of the box, by bilinear sampling
# (RoIAlign, [Mask R-CNN](mask-rcnn.md)'s successor of RoI pooling). A small network of fully-connected layers names the
# class, or background, and corrects the box once more, separately for each class.
#
# Bilinear sampling and the mean over a cell act on rows and columns apart. So RoIAlign is $A_y F A_x^\top$, or one
# matrix product for each image, $(A_y \otimes A_x)\,\mathrm{vec}(F)$: on a CPU, faster than gathering the samples.


# %%
def sampling(start: Tensor, end: Tensor, length: int, samples: int = 2) -> Tensor:
    """How much each cell of a region takes of each cell of the map, along one axis.

    Args:
        start, end: of the regions in pixels (...), inside the image.
        length: cells of the map.
        samples: for each of the GRID cells.

    Returns:
        (..., GRID, length); rows sum to one.
    """
    at = (torch.arange(GRID * samples, device=start.device) + 0.5) / (GRID * samples)  # (GRID samples,)
    x = (start[..., None] + (end - start)[..., None] * at) / STRIDE - 0.5  # on the map, where the middle of cell 0 is 0
    distance = (x.clamp(0, length - 1)[..., None] - torch.arange(length, device=start.device)).abs()
    near = (1 - distance).clamp(min=0)  # (..., GRID samples, length)
    out: Tensor = near.reshape(*start.shape, GRID, samples, length).mean(-2)
    return out


class FasterRCNN(nn.Module):
    """Both stages on one backbone.

    Args:
        shapes: of the anchors.
        classes: K.
        canvas: side of the images in pixels.
    """

    def __init__(self, shapes: Anchors, classes: int, canvas: int) -> None:
        super().__init__()
        self.classes, self.canvas = classes, canvas
        self.backbone, self.rpn = backbone(), AnchorHead(shapes, 1, depth=1)
        self.anchors = nn.Buffer(anchors_of(shapes, canvas // STRIDE, canvas // STRIDE))
        self.hidden = nn.Sequential(nn.Linear(WIDTH * GRID**2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
        self.class_head, self.box_head = nn.Linear(HIDDEN, classes + 1), nn.Linear(HIDDEN, 4 * classes)

    def proposals(self, logits: Tensor, offsets: Tensor, most: int = AFTER, nms: float | None = RPN_NMS) -> Regions:
        """Regions of the best anchors, without a gradient."""
        boxes = clip_boxes_to_image(decode(offsets.detach(), self.anchors), (self.canvas, self.canvas))
        return regions_from(boxes, logits.detach()[..., 0], most, nms)

    def pooled(self, features: Tensor, regions: Regions) -> Tensor:
        """The features inside each valid region, (sum of valid, C, GRID, GRID)."""
        most = int(regions.valid.sum(1).max())
        order = (
            (~regions.valid).long().argsort(dim=1, stable=True)[:, :most]
        )  # the valid ones of each image first, (B, R)
        x0, y0, x1, y1 = regions.boxes.take_along_dim(order[..., None], 1).unbind(2)
        rows, columns = sampling(y0, y1, features.shape[2]), sampling(x0, x1, features.shape[3])
        weights = rows[:, :, :, None, :, None] * columns[:, :, None, :, None]  # (B, R, GRID, GRID, H, W)
        flat = features.float().flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, H W, C)
        seen = weights.flatten(4).flatten(1, 3) @ flat  # (B, R GRID^2, C)
        seen = seen.reshape(len(seen), most, GRID, GRID, -1).permute(0, 1, 4, 2, 3)  # (B, R, C, GRID, GRID)
        out: Tensor = seen[regions.valid.gather(1, order)]
        return out

    def judged(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (R', K + 1), the last one for background, and offsets of each class (R', K, 4)."""
        x = self.hidden(pooled.flatten(1))  # (R', C, GRID, GRID) -> (R', C GRID^2)
        offsets = self.box_head(x).unflatten(1, (self.classes, 4)).float() * self.anchors.new_tensor(SPREAD)
        return self.class_head(x).float(), offsets


class Dense(nn.Module):
    """The rival: no second look; the parameters of the second stage are convolutions of the first."""

    def __init__(self, shapes: Anchors, classes: int, canvas: int) -> None:
        super().__init__()
        self.canvas = canvas
        self.backbone, self.head = backbone(), AnchorHead(shapes, classes, depth=4)
        self.anchors = nn.Buffer(anchors_of(shapes, canvas // STRIDE, canvas // STRIDE))


# %% [markdown]
# ## The losses
# Each stage pays for its classes and, where there is an object, for its boxes (Eq. 1), with a smooth $L_1$ loss:
# $$L = \frac{1}{N_{cls}} \sum_i L_{cls}(p_i, p_i^*) + \lambda \frac{1}{N_{reg}} \sum_i p_i^* L_{reg}(t_i, t_i^*)$$
# The true boxes join the proposals while training. The dense rival takes the focal loss over all anchors, which was made
# for dense detectors (arXiv:1708.02002).


# %%
def box_loss(offsets: Tensor, anchors: Tensor, boxes: Tensor, spread: Sequence[float] = (1.0,) * 4) -> Tensor:
    """Summed smooth L1 loss of predicted offsets (n, 4) from anchors (n, 4) to true boxes (n, 4)."""
    scale = offsets.new_tensor(spread)
    return functional.smooth_l1_loss(offsets / scale, encode(boxes, anchors) / scale, beta=1 / 9, reduction="sum")


def owned(targets: Targets, owner: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) and labels (n,) of the objects that the chosen of `owner` (B, N) belong to."""
    image = chosen.nonzero()[:, 0]
    return targets.boxes[image, owner[chosen]], targets.labels[image, owner[chosen]]


def rpn_loss(model: FasterRCNN, logits: Tensor, offsets: Tensor, targets: Targets) -> Tensor:
    """Eq. 1 over a sample of the anchors."""
    owner = match(model.anchors, targets, 0.7, 0.3, best=True)
    chosen = sample(owner, SAMPLED, 0.5)
    positive = chosen & (owner >= 0)
    of_class = functional.binary_cross_entropy_with_logits(logits[..., 0][chosen], (owner[chosen] >= 0).float())
    anchors = model.anchors.expand(len(owner), -1, 4)[positive]
    return of_class + box_loss(offsets[positive], anchors, owned(targets, owner, positive)[0]) / chosen.sum()


def head_loss(model: FasterRCNN, features: Tensor, regions: Regions, targets: Targets) -> Tensor:
    """The same form over a sample of the regions, with K classes and background."""
    boxes = torch.cat([regions.boxes, targets.boxes], dim=1)  # (B, R + M, 4)
    owner = match(boxes, targets, 0.5, 0.5, best=False)
    owner = owner.masked_fill(~torch.cat([regions.valid, targets.real], dim=1), -2)
    chosen = sample(owner, REGIONS, 0.25)
    logits, offsets = model.judged(model.pooled(features, Regions(boxes, chosen)))
    positive = owner[chosen] >= 0  # (R',)
    true_boxes, labels = owned(targets, owner, chosen & (owner >= 0))
    wanted = torch.full((len(positive),), model.classes, device=labels.device)
    wanted[positive] = labels
    mine = offsets[positive].take_along_dim(labels[:, None, None], 1)[:, 0]  # (n, K, 4) -> (n, 4)
    of_box = box_loss(mine, boxes[chosen][positive], true_boxes, SPREAD) / len(wanted)
    return functional.cross_entropy(logits, wanted) + of_box


def two_stage_loss(model: FasterRCNN, scenes: Scenes) -> Tensor:
    """Both stages together, as libraries train them."""
    targets, features = targets_of(scenes), model.backbone(scenes.images)
    logits, offsets = model.rpn(features)
    regions = model.proposals(logits, offsets)
    return rpn_loss(model, logits, offsets, targets) + head_loss(model, features, regions, targets)


def dense_loss(model: Dense, scenes: Scenes) -> Tensor:
    """Focal loss over all anchors, and the box loss, per positive anchor; limits 0.5 and 0.4 as in RetinaNet."""
    targets = targets_of(scenes)
    logits, offsets = model.head(model.backbone(scenes.images))
    owner = match(model.anchors, targets, 0.5, 0.4, best=True)
    positive = owner >= 0
    boxes, labels = owned(targets, owner, positive)
    wanted = torch.zeros_like(logits)
    wanted[positive] = functional.one_hot(labels, logits.shape[2]).to(wanted.dtype)
    focal = sigmoid_focal_loss(logits[owner != -2], wanted[owner != -2], reduction="sum")
    of_box = box_loss(offsets[positive], model.anchors.expand(len(owner), -1, 4)[positive], boxes)
    out: Tensor = (focal + of_box) / positive.sum().clamp(min=1)
    return out


# %% [markdown]
# ## From images to boxes
# Suppression comes twice: among the boxes of the anchors, and among the final boxes of each class.


# %%
def final(
    boxes: Tensor, scores: Tensor, image: Tensor, count: int, nms: float | None, most: int = 100
) -> list[dict[str, Tensor]]:
    """Boxes (n, K, 4) with scores (n, K) of images (n,) -> boxes, scores and labels of each of `count` images."""
    label = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    sure = scores >= 0.05
    boxes, image, label, scores = boxes[sure], image[:, None].expand_as(sure)[sure], label[sure], scores[sure]
    group = image * 1000 + label
    keep = batched_nms(boxes, scores, group, nms) if nms is not None else scores.argsort(descending=True)
    parts = [keep[image[keep] == each][:most] for each in range(count)]
    return [{"boxes": boxes[part], "scores": scores[part], "labels": label[part]} for part in parts]


def detect(
    model: FasterRCNN, images: Tensor, first: bool = True, second: bool = True, most: int = AFTER
) -> list[dict[str, Tensor]]:
    """Final boxes of images; `first` and `second` say which suppression is done, `most` how many regions are judged."""
    features = model.backbone(images)
    scores, shifts = model.rpn(features)
    regions = model.proposals(scores, shifts, most=most, nms=RPN_NMS if first else None)
    logits, offsets = model.judged(model.pooled(features, regions))
    return boxes_from(model, regions, logits, offsets, HEAD_NMS if second else None)


def boxes_from(
    model: FasterRCNN, regions: Regions, logits: Tensor, offsets: Tensor, nms: float | None = HEAD_NMS
) -> list[dict[str, Tensor]]:
    """Final boxes from what stage two says of the regions."""
    boxes = decode(offsets, regions.boxes[regions.valid][:, None])  # (R', K, 4)
    boxes = clip_boxes_to_image(boxes, (model.canvas, model.canvas))
    image = regions.valid.nonzero()[:, 0]
    return final(boxes, logits.softmax(1)[:, :-1], image, len(regions.boxes), nms)


def detect_proposals(model: FasterRCNN, images: Tensor) -> list[dict[str, Tensor]]:
    """What stage one alone would answer: its boxes with their own scores. All of one class, so for K = 1 only."""
    logits, offsets = model.rpn(model.backbone(images))
    return dense_boxes(model.anchors, logits, offsets, model.canvas)


def detect_dense(model: Dense, images: Tensor) -> list[dict[str, Tensor]]:
    """Final boxes of the dense rival."""
    logits, offsets = model.head(model.backbone(images))
    return dense_boxes(model.anchors, logits, offsets, model.canvas)


def dense_boxes(anchors: Tensor, logits: Tensor, offsets: Tensor, canvas: int) -> list[dict[str, Tensor]]:
    """Final boxes from what an `AnchorHead` says of B images."""
    boxes = clip_boxes_to_image(decode(offsets, anchors), (canvas, canvas))[:, :, None]  # (B, N, 1, 4)
    image = torch.arange(len(logits), device=logits.device).repeat_interleave(logits.shape[1])
    boxes = boxes.expand(-1, -1, logits.shape[2], -1).flatten(0, 1)  # (B, N, K, 4) -> (B N, K, 4)
    return final(boxes, logits.sigmoid().flatten(0, 1), image, len(logits), HEAD_NMS)


# %% [markdown]
# ## Training: the same for all
# The scenes, the number of steps and the measures are those that all detectors of these pages share. The arms differ in
# nothing else than what they are named after.

# %%
ARMS = {"two_stage": "two stages", "dense": "dense head", "single_anchor": "one anchor of 32 px"}


def train_all(run: Run, benchmark: Benchmark) -> dict[str, list[Trained[Any]]]:
    """All arms, one model for each seed; AP is followed through the training for the main one only."""
    sizes = {"classes": benchmark.classes, "canvas": benchmark.canvas}
    train = partial(detectors.train_all, run, learning_rate=LEARNING_RATE)
    rarely = replace(benchmark, every=max(benchmark.steps))
    return {
        "two_stage": train(benchmark, partial(FasterRCNN, FITTED, **sizes), two_stage_loss, detect, what="two stages"),
        "dense": train(rarely, partial(Dense, FITTED, **sizes), dense_loss, detect_dense, what="dense"),
        "single_anchor": train(rarely, partial(FasterRCNN, SINGLE, **sizes), two_stage_loss, detect, what="one anchor"),
    }


def scored(run: Run, benchmark: Benchmark, trained: Sequence[Trained[Any]], detect: Any) -> list[dict[str, float]]:
    """The measures of `lab.detectors` on the test scenes, for each seed."""
    return [
        measures(on_scenes(partial(detect, each.model), each.test, run.device), each.test, benchmark)
        for each in trained
    ]


def minus(one: Sequence[dict[str, float]], other: Sequence[dict[str, float]], key: str) -> list[float]:
    """One minus the other, seed by seed."""
    return [a[key] - b[key] for a, b in zip(one, other, strict=True)]


def described(benchmark: Benchmark, trained: Sequence[Trained[Any]]) -> dict[str, Any]:
    """What the experiments have in common."""
    train, test = benchmark.scenes
    data = f"{train:,} digit scenes of {benchmark.canvas} px to train, {test:,} others to test"
    return {"data": data, "parameters": count_parameters(trained[0].model), "steps": sum(benchmark.steps)}


# %% [markdown]
# ## One scene, stage by stage
# Of the many anchors, few are positive. The proposals crowd around the objects; each becomes a grid of features of one
# size, and the head turns these into classes and final boxes.


# %%
def draw_stages(style: Style, run: Run, trained: Trained[FasterRCNN], index: int) -> Figure:
    scene, model = trained.test[index : index + 1], trained.model.cpu()
    with torch.inference_mode():
        features = model.backbone(scene.images)
        logits, offsets = model.rpn(features)
        regions = model.proposals(logits, offsets)
        pooled = model.pooled(features, regions)[0].norm(dim=0)  # of the best region, (GRID, GRID)
        (found,) = detect(model, scene.images)
    owner = match(model.anchors, targets_of(scene), 0.7, 0.3, best=True)[0]
    figure, axes = panels(2, 3, height=5.0)
    image, k = scene.images[0], len(FITTED.sides) * len(FITTED.ratios)
    middle = (len(model.anchors) // k // 2 + model.canvas // STRIDE // 2) * k
    model.to(run.device)
    show_image(axes[0, 0], image, f"{k} anchors at one place")
    draw_boxes(axes[0, 0], model.anchors[middle : middle + k].cpu(), linewidth=1.0)
    show_image(axes[0, 1], image, f"{int((owner >= 0).sum())} of {len(owner)} are positive")
    draw_boxes(axes[0, 1], model.anchors[owner >= 0].cpu(), linewidth=1.0)
    show_image(axes[0, 2], logits[0, :, 0].sigmoid().unflatten(0, (features.shape[2], -1, k)).amax(2),
               "score of the best anchor", cmap=style.sequential)  # fmt: skip
    show_image(axes[1, 0], image, f"{int(regions.valid.sum())} proposals")
    draw_boxes(axes[1, 0], regions.boxes[0][regions.valid[0]], linewidth=0.7)
    show_image(axes[1, 1], pooled, "features of the best one", cmap=style.sequential, vmin=None, vmax=None)
    show_image(axes[1, 2], image, "final boxes")
    sure = found["scores"] >= 0.5
    draw_boxes(axes[1, 2], found["boxes"][sure], [f"{score:.2f}" for score in found["scores"][sure]])
    return figure


def stages_figure(run: Run, trained: Trained[FasterRCNN]) -> None:
    """From anchors to boxes on a test scene with several objects."""
    index = max(range(len(trained.test)), key=lambda i: len(trained.test.boxes[i]))
    run.figure(
        "stages",
        partial(draw_stages, run=run, trained=trained, index=index),
        caption="From anchors to boxes on the first test scene with the most objects. Brighter cells of the two maps mean "
        "a higher score, and features of larger norm.",
        alt="Six pictures of one scene: anchors at one place, positive anchors, the map of scores, proposals, the features "
        "inside one proposal as a small grid, and the final boxes.",
    )


# %% [markdown]
# ## A second look
# The two-stage detector against the dense one, and against its own proposals, read as if they were final. The first asks
# what the second stage is worth at equal parameters, the second what it adds to the same weights.


# %%
def second_look(run: Run, benchmark: Benchmark, trained: dict[str, list[Trained[Any]]]) -> None:
    """AP of two stages, of the dense head, and of stage one read alone."""
    experiment = run.experiment(
        "second_look",
        question="Is a second look at each region worth it?",
        **described(benchmark, trained["two_stage"]),
    )
    scores = {
        "two_stage": scored(run, benchmark, trained["two_stage"], detect),
        "dense": scored(run, benchmark, trained["dense"], detect_dense),
        "proposals": scored(run, benchmark, trained["two_stage"], detect_proposals),
    }
    labels = {"two_stage": "two stages", "dense": "dense head", "proposals": "its own stage one"}
    for arm, label in labels.items():
        for key, name in (("ap", "AP"), ("ap50", "AP50"), ("ap_small", "AP, small"), ("ap_large", "AP, large")):
            values = [score[key] for score in scores[arm]]
            experiment.result(f"{key}_{arm}", values, unit="%", meaning=f"{name} on the test scenes, {label}")
    for arm, name in (("dense", "over_dense"), ("proposals", "over_proposals")):
        gain = minus(scores["two_stage"], scores[arm], "ap")
        experiment.result(
            f"gain_{name}", gain, unit="points", meaning=f"AP of two stages minus that of the {labels[arm]}"
        )

    def draw(style: Style) -> Figure:
        figure, axes = panels(1, 3, height=2.8, sharey=True)
        sizes = {"ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
        for ax, (arm, label) in zip(axes[0], labels.items(), strict=True):
            seed_bars(ax, list(sizes.values()), [[score[key] for score in scores[arm]] for key in sizes])
            ax.set_title(label)
        axes[0, 0].set_ylabel("AP (%)")
        return figure

    experiment.figure(
        "second_look",
        draw,
        caption=f"AP of objects up to {benchmark.sizes[0]:g} px, up to {benchmark.sizes[1]:g} px, and larger. On the right, "
        "the proposals of the two-stage detectors on the left, read as final boxes. Bars are means, dots are seeds.",
        alt="Three bar charts of AP for small, medium and large objects: two stages, the dense head, and stage one alone.",
    )


# %% [markdown]
# ## Anchors that fit, and one that does not
# The fitted anchors have three sides and two shapes. In their place, a single square of 32 px, the smallest of the anchors
# that libraries have for photographs: at each place one box, larger than most of the objects.


# %%
def best_overlap(shapes: Anchors, test: Scenes, canvas: int) -> list[tuple[float, float]]:
    """Side (root of the area, px) of each object, and its IoU with the best anchor."""
    anchors = anchors_of(shapes, canvas // STRIDE, canvas // STRIDE)
    boxes = torch.cat(test.boxes)
    side = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    return list(zip(side.tolist(), box_iou(boxes, anchors).amax(1).tolist(), strict=True))


def anchor_fit(run: Run, benchmark: Benchmark, trained: dict[str, list[Trained[Any]]]) -> None:
    """Overlap with the best anchor, and AP, for fitted anchors and a single one."""
    experiment = run.experiment(
        "anchors", question="Do the anchors have to fit the objects?", **described(benchmark, trained["two_stage"])
    )
    scores = {arm: scored(run, benchmark, trained[arm], detect) for arm in ("two_stage", "single_anchor")}
    overlaps = {
        arm: [best_overlap(shapes, each.test, benchmark.canvas) for each in trained["two_stage"]]
        for arm, shapes in (("two_stage", FITTED), ("single_anchor", SINGLE))
    }
    for arm, name in (("two_stage", "fitted"), ("single_anchor", "single")):
        covered = [100 * sum(iou >= 0.5 for _, iou in each) / len(each) for each in overlaps[arm]]
        meaning = f"Test objects that an anchor covers with an IoU of at least 0.5, {name} anchors"
        experiment.result(f"covered_{name}", covered, unit="%", meaning=meaning)
    experiment.result("ap_single_anchor", [score["ap"] for score in scores["single_anchor"]], unit="%",
                      meaning="AP on the test scenes, one anchor of 32 px")  # fmt: skip
    loss = minus(scores["two_stage"], scores["single_anchor"], "ap")
    experiment.result(
        "fitted_anchor_gain", loss, unit="points", meaning="AP of fitted anchors minus that of a single one"
    )

    def draw(style: Style) -> Figure:
        figure, axes = panels(1, 2, height=3.0, width_ratios=[1.6, 1])
        for arm, label, marker in (("two_stage", "fitted", "o"), ("single_anchor", "single", "x")):
            axes[0, 0].plot(*zip(*overlaps[arm][0], strict=True), marker, markersize=3, label=label, linestyle="none")
        axes[0, 0].set(xlabel="side of the object (px)", ylabel="IoU with the best anchor", ylim=(0, 1))
        axes[0, 0].legend(loc="lower right")
        seed_bars(axes[0, 1], ["fitted", "single"], [[score["ap"] for score in each] for each in scores.values()])
        axes[0, 1].set_title("AP (%)")
        return figure

    experiment.figure(
        "anchors",
        draw,
        caption="Left: each test object of the first seed, with its overlap with the best anchor. Right: AP after the same "
        "training. Bars are means, dots are seeds.",
        alt="Scatter of the IoU with the best anchor against the size of the object for fitted and single anchors, and bars "
        "of AP for both.",
    )


# %% [markdown]
# ## Suppression, twice
# Either suppression is left out of the trained detectors. Without the first, the few regions that are judged are copies of
# each other; without the second, each object is reported many times.


# %%
def suppression(run: Run, benchmark: Benchmark, trained: Sequence[Trained[FasterRCNN]]) -> None:
    """AP50 with and without each of the two suppressions."""
    experiment = run.experiment(
        "suppression", question="Are both suppressions needed?", **described(benchmark, trained)
    )
    budgets = (2, FEW, AFTER)
    both = {most: scored(run, benchmark, trained, partial(detect, most=most)) for most in budgets}
    no_first = {most: scored(run, benchmark, trained, partial(detect, most=most, first=False)) for most in budgets}
    no_second = scored(run, benchmark, trained, partial(detect, second=False))
    gain = minus(both[FEW], no_first[FEW], "ap50")
    experiment.result("first_nms_gain", gain, unit="points", meaning=f"AP50 by suppression in stage one, {FEW} regions")
    gain = minus(both[AFTER], no_first[AFTER], "ap50")
    experiment.result(
        "first_nms_gain_many", gain, unit="points", meaning=f"AP50 by it where {AFTER} regions are judged"
    )
    gain = minus(both[AFTER], no_second, "ap50")
    experiment.result("second_nms_gain", gain, unit="points", meaning="AP50 by suppression among the final boxes")
    values = [score["boxes"] for score in no_second]
    experiment.result("boxes_without_second", values, unit="boxes", meaning="Confident boxes per object without it")

    def draw(style: Style) -> Figure:
        figure, axes = panels(1, 2, height=3.0, sharey=True, width_ratios=[1.5, 1])
        for scores, label, line in ((both, "with the first", "-"), (no_first, "without", "--")):
            values = [[scores[most][seed]["ap50"] for most in budgets] for seed in range(len(trained))]
            seed_lines(axes[0, 0], budgets, values, label, linestyle=line, marker="o")
        axes[0, 0].set_xscale("log", base=2)
        axes[0, 0].set_xticks(budgets, [str(most) for most in budgets])
        axes[0, 0].set(xlabel="regions for stage two", ylabel="AP50 (%)", ylim=(0, 100))
        axes[0, 0].legend(loc="lower right")
        bars = [[score["ap50"] for score in each] for each in (both[AFTER], no_second)]
        seed_bars(axes[0, 1], ["with the second", "without"], bars)
        return figure

    experiment.figure(
        "suppression",
        draw,
        caption="AP50 of the trained detectors. Left: with and without suppression among the proposals, against the number "
        "of regions that stage two judges. Right: with and without suppression among the final boxes.",
        alt="Line chart of AP50 against the number of regions with and without the first suppression, and bars with and "
        "without the second one.",
    )


# %% [markdown]
# ## What each stage costs
# Multiplications with additions (MACs) of the published networks are counted on torch's meta device, without weights: VGG-16
# of the paper (600 x 1000 px, 300 regions), and the two pyramids of torchvision (800 x 1344 px, 1,000 regions). Beside
# them, the time of each stage of the small detector on one image.


# %%
def macs(module: Any, *inputs: Any) -> tuple[float, Any]:
    """MACs of a call and what it returns."""
    with FlopCounterMode(display=False) as counter:
        out = module(*inputs)
    return counter.get_total_flops() / 2, out


def published_macs() -> dict[str, dict[str, float]]:
    """MACs (10^9) of backbone, proposal network and head (all regions) of three published detectors."""
    found: dict[str, dict[str, float]] = {}
    with torch.device("meta"):
        image, vgg = torch.empty(1, 3, 800, 1344), vgg16()
        base, features = macs(vgg.features[:-1], torch.empty(1, 3, 600, 1000))
        rpn, _ = macs(RPNHead(512, 9), [features])
        head, _ = macs(vgg.classifier[:-1], torch.empty(300, 512 * 7 * 7))
        found["VGG-16 (2015)"] = {"backbone": base, "proposals": rpn, "head": head}
        for name, build in (("R50-FPN", fasterrcnn_resnet50_fpn), ("R50-FPN v2", fasterrcnn_resnet50_fpn_v2)):
            model = build(weights=None, weights_backbone=None)
            base, maps = macs(model.backbone, image)
            rpn, _ = macs(model.rpn.head, list(maps.values()))
            head, _ = macs(model.roi_heads.box_head, torch.empty(1000, 256, 7, 7))
            found[name] = {"backbone": base, "proposals": rpn, "head": head}
    return {name: {part: each / 1e9 for part, each in parts.items()} for name, parts in found.items()}


@torch.inference_mode()
def stage_times(run: Run, trained: Trained[FasterRCNN]) -> dict[str, float]:
    """Median milliseconds of each stage on one image."""
    model, image = trained.model, trained.test.images[:1].to(run.device)
    features = model.backbone(image)
    rpn = model.rpn(features)
    regions = model.proposals(*rpn)
    pooled = model.pooled(features, regions)
    judged = model.judged(pooled)
    calls: dict[str, Callable[[], object]] = {
        "backbone": lambda: model.backbone(image),
        "RPN": lambda: model.rpn(features),
        "first NMS": lambda: model.proposals(*rpn),
        "RoIAlign": lambda: model.pooled(features, regions),
        "head": lambda: model.judged(pooled),
        "second NMS": lambda: boxes_from(model, regions, *judged),
    }
    return {name: timed(torch.inference_mode()(call), device=run.device).median for name, call in calls.items()}


def cost(run: Run, benchmark: Benchmark, trained: Sequence[Trained[FasterRCNN]]) -> None:
    """Share of each stage in MACs and time, and how the number of regions varies."""
    experiment = run.experiment(
        "cost", question="Where does the computation go?", data="published sizes; and the test scenes, one at a time"
    )
    published, times = published_macs(), [stage_times(run, each) for each in trained]
    for name, key in zip(published, ("vgg16", "r50_fpn", "r50_fpn_v2"), strict=True):
        parts = published[name]
        for part, value in parts.items():
            share = 100 * value / sum(parts.values())
            experiment.result(
                f"{part}_share_{key}", [share], unit="%", exact=True, meaning=f"MACs of the {part}, {name}"
            )
        experiment.result(f"macs_{key}", [sum(parts.values())], unit="G", exact=True, meaning=f"All MACs, {name}")
    rpn = [100 * (each["RPN"] + each["first NMS"]) / sum(each.values()) for each in times]
    experiment.result(
        "proposal_time_share", rpn, unit="%", meaning="Time of RPN and first suppression in that of an image"
    )
    experiment.result("rpn_time_share", [100 * each["RPN"] / sum(each.values()) for each in times], unit="%",
                      meaning="Time of the RPN alone in that of an image")  # fmt: skip
    counts = [regions_per_image(run, each) for each in trained]
    ratio = [max(each) / min(each) for each in counts]
    experiment.result(
        "regions_ratio", ratio, unit="", meaning="Regions of the test scene with the most over the fewest"
    )
    experiment.figure(
        "cost",
        partial(draw_cost, published=published, times=times, counts=counts),
        caption="Above: share of each stage in the MACs of published detectors (left), and its time in the small one on "
        "one image (right; dots are seeds). Below: regions that stage two judges, over the test scenes of all seeds.",
        alt="Stacked bars of MACs by stage for VGG-16, R50-FPN and its v2; bars of time by stage; histogram of the number of "
        "regions of a scene.",
    )


@torch.inference_mode()
def regions_per_image(run: Run, trained: Trained[FasterRCNN]) -> list[int]:
    """Regions that are left for stage two on each test scene, without a limit but BEFORE."""
    model = trained.model
    logits, offsets = model.rpn(model.backbone(trained.test.images.to(run.device)))
    regions = model.proposals(logits, offsets, most=BEFORE)
    counts: list[int] = regions.valid.sum(1).tolist()
    return counts


def draw_cost(
    style: Style, published: dict[str, dict[str, float]], times: list[dict[str, float]], counts: list[list[int]]
) -> Figure:
    figure, axes = panels(2, 2, height=5.2)
    for y, (_name, parts) in enumerate(published.items()):
        left = 0.0
        for (part, value), colour in zip(parts.items(), style.cycle, strict=False):
            share = 100 * value / sum(parts.values())
            axes[0, 0].barh(y, share, left=left, color=colour, label=part if y == 0 else None)
            left += share
    axes[0, 0].set_yticks(range(len(published)), list(published))
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_xlabel("share of the MACs (%)")
    axes[0, 0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=0.8)
    seed_bars(axes[0, 1], list(times[0]), [[each[part] for each in times] for part in times[0]])
    axes[0, 1].tick_params(axis="x", rotation=30)
    axes[0, 1].set_ylabel("ms an image")
    flat = [each for one in counts for each in one]
    below = figure.add_subplot(axes[1, 0].get_gridspec()[1, :])
    for ax in axes[1]:
        ax.remove()
    below.hist(flat, bins=range(min(flat), max(flat) + 2))
    below.set(xlabel="regions of a scene", ylabel="scenes")
    return figure


# %% [markdown]
# ## Unlike the paper
# - Both stages are trained together, as libraries do it; the paper alternates four trainings. RoIAlign takes the place of RoI
#   pooling. The backbone is small, has one map of stride 8, and is trained from scratch.
# - The proposals are 32 instead of 300 or more, because a scene has at most a few objects; the samples of the losses are
#   smaller too. All digits are one class in the small runs.
# - The dense rival is a RetinaNet on one map, not the sliding windows of the paper's Table 11.
# - The MACs leave out RoIAlign, suppression and the last linear layers; the numbers of regions are the limits of the test.


# %%
def main(argv: Sequence[str] | None = None) -> None:
    """Run all experiments and write the record."""
    run = Run.start("faster-rcnn", argv=argv)
    if run.settings.weights == "pretrained":
        raise SystemExit("--weights pretrained: everything here is trained from scratch; there are no weights to load")
    benchmark = BENCHMARKS[run.preset]
    trained = train_all(run, benchmark)
    main_arm: list[Trained[FasterRCNN]] = trained["two_stage"]
    stages_figure(run, main_arm[0])
    second_look(run, benchmark, trained)
    anchor_fit(run, benchmark, trained)
    suppression(run, benchmark, main_arm)
    cost(run, benchmark, main_arm)
    raw = partial(detect, first=False, second=False)
    detectors.report(run, benchmark, main_arm, detect, raw, name="Faster R-CNN")
    run.finish()


if __name__ == "__main__":
    main()
