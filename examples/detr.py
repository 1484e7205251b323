# %% [markdown]
# # DETR: can a loss over the whole set take the place of non-maximum suppression?
#
# A transformer decoder turns 16 object queries into 16 boxes, all at once, and the Hungarian algorithm matches them one
# to one with the objects before any loss is taken. The same decoder is trained with several boxes for each object, and a
# dense convolutional head on the same backbone with many cells for each object: how many boxes does each of the three put
# on one object when nothing is suppressed? The other experiments ask how it fares on small and on large objects, how fast
# it learns, and whether attention among the queries is needed.
#
# | symbol (arXiv:2005.12872) | here | meaning |
# |---|---|---|
# | $y = \{(c_i, b_i)\}$ | `Targets` | class and box of each object of an image, padded with $\varnothing$ |
# | $\hat y$, $N$ | `Predictions`, `N` | one class distribution and one box for each of $N$ queries |
# | $\hat p_i(c)$ | `logits.softmax(-1)` | probability of class $c$; the last one is $\varnothing$, no object |
# | $\mathcal{L}_{match}$ | `cost` | cost of each pair of prediction and object, (B, N, M) |
# | $\hat\sigma$ | `owner` | the object that each prediction is matched with, (B, N), $-1$ for $\varnothing$ |
# | $\lambda_{iou}$, $\lambda_{L1}$ | `GIOU`, `L1` | weights of the two box losses |
# | $d$ | `width` | width of a token and of a query |

# %%
from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from lab.data import Split
from lab.data.scenes import Scenes, make_scenes
from lab.figures import Figure, Style, draw_boxes, panels, seed_bars, seed_lines, show_image
from lab.metrics import average_precision, detections_per_object, timed
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

L1, GIOU = 5.0, 2.0  # weights of the box losses, appendix A.4
EMPTY_WEIGHT = 0.4  # of the class loss where a prediction is matched with no object, Section 3.1
STRIDE = 8  # pixels of the image for one cell of the feature map
SIZE_PRIOR = 0.25  # side of the box around an anchor that an untrained head predicts, relative to the image

ARMS = ("set", "one_to_many", "dense", "no_self_attention")
LABELS = {
    "set": "set, one to one",
    "one_to_many": "one to many",
    "dense": "dense head",
    "no_self_attention": "without self-attention",
}
# Peak learning rates, chosen on the validation scenes with seeds 100 and 101.
LEARNING_RATES = {"set": 1e-3, "one_to_many": 1e-3, "dense": 1e-3, "no_self_attention": 1e-3}


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        canvas, objects, classes: of the scenes: side in pixels, fewest and most objects, K.
        scenes: numbers of training and of test scenes.
        sizes: sides in pixels up to which objects are small, and from which they are large: about thirds of the objects.
        steps: of the optimiser at a constant learning rate, and at a tenth of it after that.
        every: steps between two points of the curves.
        batch: scenes in a step.
        width, heads, hidden: of the transformer: a token, its heads, the feed-forward networks.
        encoder, decoder: numbers of layers.
        side: N = side^2 queries.
        tower: channels of each of the two towers of the dense head.
    """

    canvas: int = 64
    objects: tuple[int, int] = (1, 4)
    classes: int = 1
    scenes: tuple[int, int] = (3000, 200)
    sizes: tuple[float, float] = (12.0, 17.0)
    steps: tuple[int, int] = (480, 120)
    every: int = 60
    batch: int = 16
    width: int = 64
    heads: int = 4
    hidden: int = 128
    encoder: int = 1
    decoder: int = 3
    side: int = 4
    tower: tuple[int, ...] = (64, 64, 64)


PRESETS = {
    "smoke": Preset(scenes=(40, 12), steps=(6, 2), every=3, width=32, hidden=32, tower=(32, 32, 32)),
    "quick": Preset(),
    "full": Preset(),
}

# %% [markdown]
# ## Boxes
# A box is centre, width and height, relative to the image, so all four numbers lie in $[0, 1]$. The generalized IoU
# (arXiv:1902.09630) subtracts from the IoU the part of the smallest enclosing box $C$ that neither box covers; unlike the
# IoU it still has a gradient where boxes do not touch:
# $$\mathrm{GIoU}(a, b) = \frac{|a \cap b|}{|a \cup b|} - \frac{|C| - |a \cup b|}{|C|}$$


# %%
def xyxy_from_cxcywh(boxes: Tensor) -> Tensor:
    """Corners from centre, width and height: (..., 4) -> (..., 4)."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def cxcywh_from_xyxy(boxes: Tensor) -> Tensor:
    """Centre, width and height from corners: (..., 4) -> (..., 4)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU of boxes in xyxy, from -1 to 1: (..., 4) and (..., 4), broadcast -> (...)."""

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(-1)

    (a_low, a_high), (b_low, b_high) = a.split(2, -1), b.split(2, -1)
    shared = area(torch.maximum(a_low, b_low), torch.minimum(a_high, b_high))
    union = area(a_low, a_high) + area(b_low, b_high) - shared
    hull = area(torch.minimum(a_low, b_low), torch.maximum(a_high, b_high))
    return shared / union - (hull - union) / hull


# %% [markdown]
# ## The matching
# The cost of a pair weighs the probability of the right class against the distance of the boxes (Section 3.1):
# $$\mathcal{L}_{match}(y_i, \hat y_j) = -\hat p_j(c_i) + \lambda_{L1} \lVert b_i - \hat b_j \rVert_1
# - \lambda_{iou} \mathrm{GIoU}(b_i, \hat b_j)$$
# The costs of a whole batch, and of all decoder layers, are one tensor; only the Hungarian algorithm goes image by image.
# It finds the assignment of lowest total cost (Eq. 1). The two controls assign more than one prediction to an object: by
# matching each object several times, or, as dense detectors do, by taking all cells near its centre.


# %%
class Targets(NamedTuple):
    """The objects of B images, padded to M with no object: boxes (B, M, 4) cxcywh, labels (B, M), K where padded."""

    boxes: Tensor
    labels: Tensor


class Predictions(NamedTuple):
    """logits (B, N, K + 1), the last one for no object; boxes (B, N, 4) cxcywh relative to the image."""

    logits: Tensor
    boxes: Tensor


@torch.no_grad()
def matching_cost(predictions: Predictions, targets: Targets) -> Tensor:
    """The cost of every pair, (B, N, M); that of padding is infinite."""
    probabilities = predictions.logits.softmax(-1)  # (B, N, K + 1)
    N, K = probabilities.shape[1], probabilities.shape[2] - 1
    labels = targets.labels[:, None].expand(-1, N, -1)  # (B, N, M)
    p = probabilities.gather(2, labels)
    ours, theirs = predictions.boxes[:, :, None], targets.boxes[:, None]  # (B, N, 1, 4), (B, 1, M, 4)
    distance = (ours - theirs).abs().sum(-1)
    overlap = generalized_iou(xyxy_from_cxcywh(ours), xyxy_from_cxcywh(theirs))
    cost = -p + L1 * distance - GIOU * overlap
    return cost.masked_fill(labels == K, torch.inf)


def hungarian(cost: Tensor, copies: int = 1) -> Tensor:
    """Matches each object with `copies` different predictions at the lowest total cost, Eq. 1.

    Args:
        cost: (B, N, M), infinite where there is no object. Where copies of objects outnumber the N predictions, the
            dearest ones stay unmatched.
        copies: 1 for the set loss; more for the one-to-many control.

    Returns:
        owner (B, N): the object that each prediction is matched with, -1 for no object.

    Raises:
        ValueError: a cost is NaN.
    """
    owner = torch.full(cost.shape[:2], -1)
    for image, costs in enumerate(cost.detach().float().cpu().numpy()):
        objects = np.flatnonzero(~np.isposinf(costs[0])).repeat(copies)
        queries, columns = linear_sum_assignment(costs[:, objects])
        owner[image, queries] = torch.from_numpy(objects[columns])
    return owner.to(cost.device)


def one_to_one(predictions: Predictions, targets: Targets) -> Tensor:
    """owner (B, N) of the set loss."""
    return hungarian(matching_cost(predictions, targets))


def one_to_many(predictions: Predictions, targets: Targets, copies: int = 4) -> Tensor:
    """owner (B, N) of the control: as before, but each object is there `copies` times."""
    return hungarian(matching_cost(predictions, targets), copies)


@torch.no_grad()
def central_cells(predictions: Predictions, targets: Targets, radius: float = 1.5) -> Tensor:
    """owner (B, N) of the dense head, whose N predictions are the cells of a square grid, row by row.

    As in FCOS (arXiv:1904.01355) with centre sampling: a cell belongs to an object if its centre lies in the box and
    within `radius` cells of the middle of the box, along both axes; of several objects, to the smallest. The cell in
    which the middle lies belongs to the object in any case.
    """
    side = round(predictions.logits.shape[1] ** 0.5)
    cells = grid_points(side).to(targets.boxes.device)  # (N, 2)
    middle, size = targets.boxes[:, None, :, :2], targets.boxes[:, None, :, 2:]  # (B, 1, M, 2)
    offset = (cells[:, None] - middle).abs()  # (B, N, M, 2)
    own = (offset <= 0.5 / side).all(-1)
    inside = ((offset <= size / 2) & (offset <= radius / side)).all(-1) | own  # (B, N, M)
    missing = targets.labels[:, None] == predictions.logits.shape[2] - 1
    # Cells of the middle come first, then the smaller object.
    rank = (size.prod(-1) - own.float()).masked_fill(~inside | missing, torch.inf)  # (B, N, M)
    best, owner = rank.min(-1)
    return owner.masked_fill(best.isposinf(), -1)


def grid_points(side: int) -> Tensor:
    """The centres x, y of a grid of side x side cells over the unit square, row by row, (side^2, 2)."""
    at = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)  # (side, side, 2) -> (side^2, 2)


# %% [markdown]
# ## The loss over the set
# Once matched, each prediction has a class to name, which is $\varnothing$ for most, and the matched ones have a box to hit
# (Eq. 2). The class loss of $\varnothing$ weighs a tenth, since it is the most frequent class; the box loss is a mean over
# the objects:
# $$\mathcal{L} = \sum_i \left[ -\log \hat p_i(c_{\hat\sigma(i)}) + \mathbb{1}_{\{c_{\hat\sigma(i)} \neq \varnothing\}}
# \left( \lambda_{iou} (1 - \mathrm{GIoU}) + \lambda_{L1} \lVert b_{\hat\sigma(i)} - \hat b_i \rVert_1 \right) \right]$$


# %%
class LossTerms(NamedTuple):
    """What each prediction pays, (B, N), weighted: for its class, and for its box by L1 and by generalized IoU."""

    of_class: Tensor
    of_l1: Tensor
    of_giou: Tensor


def matched_targets(targets: Targets, owner: Tensor, classes: int) -> Targets:
    """What each prediction should say: boxes (B, N, 4) and labels (B, N), K where it has no object."""
    index = owner % (targets.labels.shape[1] + 1)  # -1, no object, becomes M: the place of one more padding
    labels = F.pad(targets.labels, (0, 1), value=classes).gather(1, index)
    boxes = F.pad(targets.boxes, (0, 0, 0, 1)).gather(1, index[..., None].expand(-1, -1, 4))
    return Targets(boxes, labels)


def loss_terms(predictions: Predictions, targets: Targets, owner: Tensor) -> LossTerms:
    """The terms of Eq. 2."""
    wanted = matched_targets(targets, owner, predictions.logits.shape[2] - 1)
    matched = owner >= 0
    surprise = F.cross_entropy(predictions.logits.flatten(0, 1), wanted.labels.flatten(), reduction="none")  # (B N)
    l1 = (predictions.boxes - wanted.boxes).abs().sum(-1)
    overlap = generalized_iou(xyxy_from_cxcywh(predictions.boxes), xyxy_from_cxcywh(wanted.boxes))
    return LossTerms(class_weight(owner) * surprise.view_as(owner), L1 * l1 * matched, GIOU * (1 - overlap) * matched)


def class_weight(owner: Tensor) -> Tensor:
    """The weight of each prediction's class loss, (B, N)."""
    return torch.where(owner >= 0, 1.0, EMPTY_WEIGHT)


def set_loss(predictions: Predictions, targets: Targets, owner: Tensor) -> Tensor:
    """Eq. 2 for a batch: the class loss is a weighted mean, the box loss a mean over matched predictions."""
    terms, matched = loss_terms(predictions, targets, owner), (owner >= 0).sum().clamp(min=1)
    return terms.of_class.sum() / class_weight(owner).sum() + (terms.of_l1 + terms.of_giou).sum() / matched


# %% [markdown]
# ## The model
# A small convolutional backbone gives one map of stride 8, whose positions are the tokens. Encoder and decoder are those
# of the paper: the encoding of places is added to queries and keys of every attention, never to values, and normalisation
# comes after each residual. All decoder layers share one pair of heads, so each layer can be trained and read.


# %%
class Decoded(NamedTuple):
    """What comes out of every decoder layer: logits (L, B, N, K + 1), boxes (L, B, N, 4) cxcywh."""

    logits: Tensor
    boxes: Tensor

    def layer(self, index: int) -> Predictions:
        """The predictions of one layer; -1 for the last."""
        return Predictions(self.logits[index], self.boxes[index])


def convolutions(channels: Sequence[int], strides: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions, each with batch norm and ReLU: (B, C, H, W) -> (B, C', H', W')."""
    layers: list[nn.Module] = []
    for (inputs, outputs), stride in zip(pairwise(channels), strides, strict=True):
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def backbone(width: int) -> nn.Sequential:
    """Images (B, 3, H, W) -> features (B, D, H / 8, W / 8)."""
    return convolutions((3, width // 4, width // 2, width, width), (2, 2, 2, 1))


def sine_encoding(points: Tensor, width: int, temperature: float = 20.0) -> Tensor:
    """Fixed encoding of places: points (..., 2), x and y in [0, 1] -> (..., D); half of the channels for each axis."""
    count = width // 4
    frequency = 2 * torch.pi * temperature ** (-torch.arange(count) / count)  # (D / 4,)
    angle = (points[..., None] * frequency).flatten(-2)  # (..., 2, D / 4) -> (..., D / 2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def boxes_around(anchors: Tensor, offsets: Tensor) -> Tensor:
    """Boxes cxcywh from anchors (N, 2) and what a head predicts, (..., N, 4); zeros give a box of `SIZE_PRIOR`."""
    start = torch.cat([anchors, torch.full_like(anchors, SIZE_PRIOR)], dim=-1)  # (N, 4)
    return (torch.logit(start) + offsets.float()).sigmoid()


class Attention(nn.Module):
    """Multi-head attention of x (B, N, D) over y (B, M, D) -> (B, N, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def split(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, h, N, D / h) of x, keys and values (B, h, M, D / h) of y."""
        q = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, N, D) -> (B, h, N, D / h)
        k, v = self.key_value(y).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # -> 2 x (B, h, M, D / h)
        return q, k, v

    def weights(self, x: Tensor, y: Tensor) -> Tensor:
        """How much each x looks at each y, (B, h, N, M); rows sum to one."""
        q, k, _ = self.split(x, y)
        return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = self.split(x, y)
        seen = F.scaled_dot_product_attention(q, k, v)  # weights(x, y) @ v
        out: Tensor = self.out(seen.transpose(1, 2).flatten(2))  # (B, h, N, D / h) -> (B, N, D)
        return out


def feed_forward(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """(..., inputs) -> (..., outputs)."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class EncoderLayer(nn.Module):
    """Every token looks at every token: (B, M, D) -> (B, M, D)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(width, heads), feed_forward(width, hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm1(tokens + self.attention(tokens, tokens))
        tokens = self.norm2(tokens + self.mlp(tokens))
        return tokens


class DecoderLayer(nn.Module):
    """Queries look at each other, then at the tokens: (B, N, D), (B, M, D) -> (B, N, D).

    Without self-attention, the feed-forward network grows by as many weights as are lost.
    """

    def __init__(self, width: int, heads: int, hidden: int, self_attention: bool = True) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads) if self_attention else None
        self.cross_attention = Attention(width, heads)
        self.mlp = feed_forward(width, hidden if self_attention else hidden + 2 * width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def among(self, queries: Tensor) -> Tensor:
        """The queries after they have looked at each other, (B, N, D)."""
        if self.self_attention is None:
            return queries
        together: Tensor = self.norm1(queries + self.self_attention(queries, queries))
        return together

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        queries = self.among(queries)
        queries = self.norm2(queries + self.cross_attention(queries, tokens))
        queries = self.norm3(queries + self.mlp(queries))
        return queries


class DETR(nn.Module):
    """Images (B, 3, H, W) -> predictions of N queries from every decoder layer.

    Args:
        width, heads, hidden: of a token, of an attention, and of the feed-forward networks.
        encoder, decoder: numbers of layers.
        side: N = side^2 queries, whose boxes start at the points of a grid.
        classes: K.
        self_attention: whether queries look at each other.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        encoder: int,
        decoder: int,
        tokens: int,
        side: int,
        classes: int,
        self_attention: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone(width)
        self.encoder = nn.ModuleList(EncoderLayer(width, heads, hidden) for _ in range(encoder))
        self.decoder = nn.ModuleList(DecoderLayer(width, heads, hidden, self_attention) for _ in range(decoder))
        self.anchors = nn.Buffer(grid_points(side))
        self.place = nn.Buffer(sine_encoding(grid_points(tokens), width))  # (M, D)
        self.queries = nn.Parameter(sine_encoding(self.anchors, width))  # learned, but they start in order
        self.norm = nn.LayerNorm(width)
        self.class_head = nn.Linear(width, classes + 1)
        self.box_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), feed_forward(width, width, 4))

    def encode(self, images: Tensor) -> Tensor:
        """The tokens after the encoder, (B, M, D)."""
        tokens: Tensor = self.backbone(images).flatten(2).transpose(1, 2) + self.place  # (B, D, H, W) -> (B, H W, D)
        for layer in self.encoder:
            tokens = layer(tokens)
        return tokens

    def start(self, tokens: Tensor) -> Tensor:
        """The queries before the first layer, each with the mean of the tokens around its anchor: (B, N, D)."""
        rows, side = round(tokens.shape[1] ** 0.5), round(len(self.anchors) ** 0.5)
        grid = tokens.transpose(1, 2).unflatten(2, (rows, rows))  # (B, M, D) -> (B, D, H, W)
        around = F.adaptive_avg_pool2d(grid, side).flatten(2).transpose(1, 2)  # (B, D, side, side) -> (B, N, D)
        return self.queries + around

    def decode(self, tokens: Tensor) -> list[Tensor]:
        """The queries (B, N, D) before the first and after every decoder layer."""
        states = [self.start(tokens)]
        for layer in self.decoder:
            states.append(layer(states[-1], tokens))
        return states

    def forward(self, images: Tensor) -> Decoded:
        states = self.norm(torch.stack(self.decode(self.encode(images))[1:]))  # (L, B, N, D)
        return Decoded(self.class_head(states).float(), boxes_around(self.anchors, self.box_head(states)))

    def looks(self, images: Tensor) -> Tensor:
        """Where each query looks in the last layer, mean over heads: (B, N, H / 8, W / 8), which sums to one."""
        tokens = self.encode(images)
        last: DecoderLayer = self.decoder[-1]
        weights = last.cross_attention.weights(last.among(self.decode(tokens)[-2]), tokens).mean(1)  # (B, N, M)
        return weights.unflatten(2, (images.shape[2] // 8, -1))  # (B, N, M) -> (B, N, H / 8, W / 8)


class Dense(nn.Module):
    """The rival: on the same backbone, convolutions predict a class and a box at every cell of the map."""

    def __init__(self, width: int, tower: Sequence[int], *, side: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone(width)
        self.towers = nn.ModuleList(convolutions((width, *tower), [1] * len(tower)) for _ in range(2))
        self.class_head, self.box_head = nn.Conv2d(tower[-1], classes + 1, 1), nn.Conv2d(tower[-1], 4, 1)
        self.anchors = nn.Buffer(grid_points(side))

    def forward(self, images: Tensor) -> Decoded:
        features = self.backbone(images)
        of_class, of_box = (tower(features) for tower in self.towers)
        logits = self.class_head(of_class).flatten(2).transpose(1, 2)  # (B, K + 1, H, W) -> (B, N, K + 1)
        offsets = self.box_head(of_box).flatten(2).transpose(1, 2)  # (B, 4, H, W) -> (B, N, 4)
        return Decoded(logits.float()[None], boxes_around(self.anchors, offsets)[None])


# %% [markdown]
# ## Data and training: the same for all


# %%
def targets_from_scenes(scenes: Scenes, classes: int) -> Targets:
    """Boxes relative to the image and labels, padded to the most objects of a scene."""
    side = scenes.images.shape[-1]
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    boxes = pad([cxcywh_from_xyxy(each / side) for each in scenes.boxes])
    return Targets(boxes, pad(list(scenes.labels), padding_value=classes))


def build(arm: str, preset: Preset) -> DETR | Dense:
    """The untrained model of an arm. Raises KeyError for an arm that does not exist."""
    if arm == "dense":
        return Dense(preset.width, preset.tower, side=preset.canvas // STRIDE, classes=preset.classes)
    return DETR(
        preset.width,
        preset.heads,
        preset.hidden,
        encoder=preset.encoder,
        decoder=preset.decoder,
        tokens=preset.canvas // STRIDE,
        side=preset.side,
        classes=preset.classes,
        self_attention=arm != "no_self_attention",
    )


Assign = Callable[[Predictions, Targets], Tensor]
ASSIGNMENTS: dict[str, Assign] = {"one_to_many": one_to_many, "dense": central_cells}


def deep_loss(assign: Assign, model: nn.Module, images: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """The loss of all decoder layers, a mean: auxiliary losses, Section 3.2."""
    decoded: Decoded = model(images)
    L = len(decoded.logits)
    predictions = Predictions(decoded.logits.flatten(0, 1), decoded.boxes.flatten(0, 1))  # (L, B, ...) -> (L B, ...)
    targets = Targets(boxes.repeat(L, 1, 1), labels.repeat(L, 1))  # (B, ...) -> (L B, ...)
    return set_loss(predictions, targets, assign(predictions, targets))


# %% [markdown]
# ## What comes out


# %%
Detections = list[dict[str, Tensor]]


def detections(predictions: Predictions, canvas: int, suppress: float | None = None) -> Detections:
    """Per image boxes in pixels, scores and labels; all N of them, or what NMS at IoU `suppress` leaves."""
    scores, labels = predictions.logits.softmax(-1)[..., :-1].max(-1)  # the best class that is an object
    found = []
    for box, score, label in zip(xyxy_from_cxcywh(predictions.boxes) * canvas, scores, labels, strict=True):
        kept = slice(None) if suppress is None else batched_nms(box, score, label, suppress)
        found.append({"boxes": box[kept].cpu(), "scores": score[kept].cpu(), "labels": label[kept].cpu()})
    return found
