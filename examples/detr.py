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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from lab import detectors
from lab.data import Split
from lab.data.scenes import Scenes, make_scenes
from lab.figures import Style, draw_boxes, panels, seed_bars, seed_lines, show_image
from lab.metrics import average_precision, detections_per_object, timed
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, withStroke
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional
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
# Of 1e-3, 2e-3 and 4e-3 the one with the best AP on validation scenes, mean of seeds 100 and 101 (with NMS for the two
# arms that leave duplicates). EMPTY_WEIGHT likewise, of 0.1, 0.4 and 1, for the set.
LEARNING_RATES = {"set": 2e-3, "one_to_many": 2e-3, "dense": 4e-3, "no_self_attention": 4e-3}


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
        tower: channels of each of the two towers of the dense head, which make up for the transformer's parameters.
        rate: factor on the learning rates.
        confidence: lowest score of a box that is shown and counted.
    """

    canvas: int = 64
    objects: tuple[int, int] = (1, 4)
    classes: int = 1
    scenes: tuple[int, int] = (3000, 200)
    sizes: tuple[float, float] = (12.0, 17.0)
    steps: tuple[int, int] = (320, 80)
    every: int = 40
    batch: int = 16
    width: int = 64
    heads: int = 4
    hidden: int = 128
    encoder: int = 1
    decoder: int = 3
    side: int = 4
    tower: tuple[int, ...] = (64, 64, 40)
    rate: float = 1.0
    confidence: float = 0.5


PRESETS = {
    "smoke": Preset(scenes=(40, 24), steps=(6, 2), every=3, width=32, hidden=32, tower=(32, 32, 32), confidence=0.0),
    "quick": Preset(),
    "full": Preset(
        canvas=128,
        objects=(2, 8),
        classes=10,
        scenes=(8000, 1000),
        sizes=(20.0, 32.0),
        steps=(6_000, 1_500),
        every=500,
        batch=64,
        width=128,
        hidden=512,
        encoder=3,
        decoder=6,
        side=10,
        tower=(192, 192, 192, 128),
        rate=0.25,
    ),
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

    a_low, a_high, b_low, b_high = a[..., :2], a[..., 2:], b[..., :2], b[..., 2:]
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
    out: Tensor = owner.masked_fill(best.isposinf(), -1)
    return out


def grid_points(side: int) -> Tensor:
    """The centres x, y of a grid of side x side cells over the unit square, row by row, (side^2, 2)."""
    at = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)  # (side, side, 2) -> (side^2, 2)


# %% [markdown]
# ## The loss over the set
# Once matched, each prediction has a class to name, which is $\varnothing$ for most, and the matched ones have a box to hit
# (Eq. 2). The class loss of $\varnothing$ weighs less, since it is the most frequent class; the box loss is a mean over
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
    labels = functional.pad(targets.labels, (0, 1), value=classes).gather(1, index)
    boxes = functional.pad(targets.boxes, (0, 0, 0, 1)).gather(1, index[..., None].expand(-1, -1, 4))
    return Targets(boxes, labels)


def loss_terms(predictions: Predictions, targets: Targets, owner: Tensor) -> LossTerms:
    """The terms of Eq. 2."""
    wanted = matched_targets(targets, owner, predictions.logits.shape[2] - 1)
    matched = owner >= 0
    surprise = functional.cross_entropy(
        predictions.logits.flatten(0, 1), wanted.labels.flatten(), reduction="none"
    )  # (B N)
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
# A small convolutional backbone gives one map of stride 8, whose positions are the tokens. Encoder and decoder follow the
# paper, with normalisation after each residual; fixed sines of the place are added to the tokens at the start. Each query
# has an anchor on a grid, and starts from a learned vector plus the mean of the tokens around its anchor. All decoder layers
# share one pair of heads, so the queries can be read, and trained, after each of them.


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
        out: Tensor = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        return out

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = self.split(x, y)
        seen = functional.scaled_dot_product_attention(q, k, v)  # weights(x, y) @ v
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
        out: Tensor = self.norm2(tokens + self.mlp(tokens))
        return out


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
        out: Tensor = self.norm3(queries + self.mlp(queries))
        return out


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
        grid = tokens.transpose(1, 2).reshape(len(tokens), -1, rows, rows)  # (B, M, D) -> (B, D, H, W)
        around = (
            functional.adaptive_avg_pool2d(grid, side).flatten(2).transpose(1, 2)
        )  # (B, D, side, side) -> (B, N, D)
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
        last = self.decoder[-1]
        assert isinstance(last, DecoderLayer)
        weights = last.cross_attention.weights(last.among(self.decode(tokens)[-2]), tokens).mean(1)  # (B, N, M)
        rows = images.shape[2] // STRIDE
        return weights.reshape(*weights.shape[:2], rows, -1)  # (B, N, M) -> (B, N, H / 8, W / 8)


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
# Digits pasted on photographs; all are one class in the small runs. Within a seed, all arms see the same scenes in the same
# order, with the same losses, optimiser and number of steps, and have about as many parameters. As in the paper, the
# learning rate is constant and then falls to a tenth; the curves below are of the constant part.


# %%
def scenes_of(split: Split, preset: Preset, seed: int) -> Scenes:
    count = preset.scenes[0] if split == "train" else preset.scenes[1]
    return make_scenes(split, count, seed=seed, canvas=preset.canvas, objects=preset.objects, classes=preset.classes)


def targets_from_scenes(scenes: Scenes, classes: int) -> Targets:
    """Boxes relative to the image, and labels, both padded to the most objects of a scene."""
    side = scenes.images.shape[-1]
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    boxes = pad([cxcywh_from_xyxy(each / side) for each in scenes.boxes])
    return Targets(boxes, pad(list(scenes.labels), padding_value=classes))


def build(arm: str, preset: Preset) -> DETR | Dense:
    """The untrained model of an arm. Raises ValueError for an arm that does not exist."""
    if arm not in ARMS:
        raise ValueError(f"no arm called {arm!r}; there are {', '.join(ARMS)}")
    cells = preset.canvas // STRIDE
    if arm == "dense":
        return Dense(preset.width, preset.tower, side=cells, classes=preset.classes)
    return DETR(
        preset.width,
        preset.heads,
        preset.hidden,
        encoder=preset.encoder,
        decoder=preset.decoder,
        tokens=cells,
        side=preset.side,
        classes=preset.classes,
        self_attention=arm != "no_self_attention",
    )


Assign = Callable[[Predictions, Targets], Tensor]
ASSIGNMENTS: Mapping[str, Assign] = {
    "set": one_to_one,
    "one_to_many": one_to_many,
    "dense": central_cells,
    "no_self_attention": one_to_one,
}


def deep_loss(assign: Assign, model: nn.Module, images: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of all decoder layers: auxiliary losses, Section 3.2."""
    decoded: Decoded = model(images)
    L = len(decoded.logits)
    predictions = Predictions(decoded.logits.flatten(0, 1), decoded.boxes.flatten(0, 1))  # (L, B, ...) -> (L B, ...)
    targets = Targets(boxes.repeat(L, 1, 1), labels.repeat(L, 1))  # (B, ...) -> (L B, ...)
    return set_loss(predictions, targets, assign(predictions, targets))


@torch.inference_mode()
def decoded_scenes(model: nn.Module, images: Tensor, device: torch.device) -> Decoded:
    """What every layer says about the images, on the CPU."""
    parts = [model(images[i : i + 100].to(device)) for i in range(0, len(images), 100)]
    return Decoded(*(torch.cat(part, dim=1).cpu() for part in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Trained:
    """A model after training, what it says about the test scenes, and AP (%) on them after so many steps."""

    model: DETR | Dense
    test: Scenes
    decoded: Decoded
    curve: list[tuple[int, float]]


def train(run: Run, arm: str, preset: Preset, seed: int, scenes: tuple[Scenes, Scenes]) -> Trained:
    """Trains one arm on the first of the scenes, and tests it on the second."""
    seed_everything(seed)
    model, (training, test), (steps, last) = build(arm, preset), scenes, preset.steps
    targets = targets_from_scenes(training, preset.classes)
    batches = minibatches((training.images, *targets), preset.batch, steps + last, seed)
    curve: list[tuple[int, float]] = []

    def measure(step: int, model: nn.Module) -> None:
        decoded = decoded_scenes(model, test.images, run.device)
        curve.append((step, measures(decoded.layer(-1), test, preset, suppress=arm == "dense")["ap"]))

    loss = partial(deep_loss, ASSIGNMENTS[arm])
    every = preset.every if arm in ("set", "dense") else None
    learn = partial(fit, model, batches, loss, schedule="constant", device=run.device)
    rate, bar = preset.rate * LEARNING_RATES[arm], partial(run.progress, what=f"{LABELS[arm]}, seed {seed}")
    learn(steps=steps, learning_rate=rate, progress=bar, every=every, callback=measure if every else None)
    learn(steps=last, learning_rate=rate / 10, warmup=0)
    return Trained(model, test, decoded_scenes(model, test.images, run.device), curve)


def train_all(run: Run, preset: Preset) -> dict[str, list[Trained]]:
    """All arms, one model for each seed."""
    scenes = {seed: (scenes_of("train", preset, seed), scenes_of("test", preset, seed)) for seed in run.seeds}
    return {arm: [train(run, arm, preset, seed, scenes[seed]) for seed in run.seeds] for arm in ARMS}


# %% [markdown]
# ## Reading the predictions
# A prediction counts with the probability of its best class, even where no object is more likely still. AP is COCO's, with
# the sizes of these scenes. Boxes per object are confident boxes (from 0.5) on each object that was found; one means no
# duplicates. Greedy non-maximum suppression (NMS) can follow: the set is read without it, the dense head with it.


# %%
def detections(predictions: Predictions, canvas: int, suppress: bool) -> list[dict[str, Tensor]]:
    """Boxes in pixels, scores and labels of each image; where `suppress`, after NMS at an IoU of 0.5 within a class."""
    scores, labels = predictions.logits.softmax(-1)[..., :-1].max(-1)  # (B, N), (B, N)
    boxes = xyxy_from_cxcywh(predictions.boxes) * canvas
    found = []
    for each in zip(boxes, scores, labels, strict=True):
        keep = batched_nms(*each, 0.5) if suppress else torch.arange(len(each[0]))
        found.append({name: part[keep] for name, part in zip(("boxes", "scores", "labels"), each, strict=True)})
    return found


def measures(predictions: Predictions, test: Scenes, preset: Preset, *, suppress: bool) -> dict[str, float]:
    """AP in %, in all (`ap`, `ap50`) and by size, and `boxes`: confident boxes per found object, NaN if none is found."""
    found = detections(predictions, preset.canvas, suppress)
    truth = [{"boxes": b, "labels": c} for b, c in zip(test.boxes, test.labels, strict=True)]
    ap = average_precision(found, truth, sizes=preset.sizes)
    wanted = ("ap", "ap50", "ap_small", "ap_medium", "ap_large")
    boxes = detections_per_object(found, truth, score=preset.confidence)
    return {name: 100 * ap[name] for name in wanted} | {"boxes": boxes}


Scores = dict[str, list[dict[str, float]]]
"""What was measured, by arm (with `_nms` after suppression), one entry for each seed."""


def score_all(trained: Mapping[str, Sequence[Trained]], preset: Preset) -> Scores:
    """Every arm with and without non-maximum suppression."""
    return {
        arm + ("_nms" if suppress else ""): [
            measures(each.decoded.layer(-1), each.test, preset, suppress=suppress) for each in models
        ]
        for arm, models in trained.items()
        for suppress in (False, True)
    }


def paired(scores: Scores, measure: str, a: str, b: str) -> list[float]:
    """The difference of two arms, a minus b, seed by seed."""
    return [x[measure] - y[measure] for x, y in zip(scores[a], scores[b], strict=True)]


# %% [markdown]
# ## One scene: the costs and the assignment
# What a trained model says about a test scene. Where two objects have the same cheapest query, giving each object its
# cheapest one would give both to that query; the Hungarian algorithm gives each its own, at the lowest total cost.


# %%
def contested_scene(trained: Trained, classes: int) -> int:
    """The first test scene where two objects have the same cheapest query; the fullest one where there is none."""
    costs = matching_cost(trained.decoded.layer(-1), targets_from_scenes(trained.test, classes))  # (B, N, M)
    for index, labels in enumerate(trained.test.labels):
        cheapest = costs[index, :, : len(labels)].argmin(0)
        if len(set(cheapest.tolist())) < len(cheapest):
            return index
    return fullest_scene(trained.test)


def fullest_scene(test: Scenes) -> int:
    """The first scene with the most objects."""
    return max(range(len(test)), key=lambda index: len(test.boxes[index]))


def one_scene(trained: Trained, index: int, classes: int) -> tuple[Predictions, Targets]:
    """What the last layer says about one test scene, and its objects: B = 1, no padding."""
    last, part = trained.decoded.layer(-1), slice(index, index + 1)
    return Predictions(last.logits[part], last.boxes[part]), targets_from_scenes(trained.test[part], classes)


def mark_assignment(ax: Axes, cost: Tensor, owner: Tensor) -> None:
    """Frames the pairs of the assignment, and puts a cross on the cheapest query of each object; cost is (N, M)."""
    rim = [withStroke(linewidth=4, foreground="black"), Normal()]
    for query in (owner >= 0).nonzero()[:, 0].tolist():
        corner = (query - 0.44, int(owner[query]) - 0.44)
        ax.add_patch(Rectangle(corner, 0.88, 0.88, fill=False, edgecolor="white", linewidth=2, path_effects=rim))
    cheapest = cost.argmin(0).tolist()
    ax.plot(cheapest, range(len(cheapest)), "x", color="white", markeredgewidth=2, linestyle="none", path_effects=rim)


def draw_costs(style: Style, trained: Trained, index: int, preset: Preset) -> Figure:
    predictions, targets = one_scene(trained, index, preset.classes)
    cost, owner = matching_cost(predictions, targets)[0], one_to_one(predictions, targets)[0]  # (N, M), (N,)
    matched = (owner >= 0).nonzero()[:, 0]
    figure, axes = panels(1, 2, height=2.9, width_ratios=[1, 2.1])
    show_image(axes[0, 0], trained.test.images[index], "objects, matched boxes")
    draw_boxes(axes[0, 0], trained.test.boxes[index])
    boxes = xyxy_from_cxcywh(predictions.boxes[0, matched]) * preset.canvas
    draw_boxes(axes[0, 0], boxes, [str(int(query)) for query in matched], colour="white", linestyle=":")
    ax = axes[0, 1]
    image = ax.imshow(cost.T.numpy(), cmap=style.sequential, aspect="auto")
    mark_assignment(ax, cost, owner)
    ax.set(title="cost of every pair", xlabel="query", ylabel="object", yticks=range(cost.shape[1]))
    ax.set_xticks(range(0, len(cost), 1 + len(cost) // 20))
    ax.grid(False)
    figure.colorbar(image, ax=ax)
    return figure


def cost_figure(run: Run, trained: Trained, preset: Preset) -> None:
    """The cost matrix of one test scene with its assignment, and the matched boxes on the scene."""
    index = contested_scene(trained, preset.classes)
    run.figure(
        "cost_matrix",
        partial(draw_costs, trained=trained, index=index, preset=preset),
        caption="Left: the objects (solid) and the boxes that are matched with them (dotted, with the number of the query). "
        "Right: the cost of every pair. Frames are the Hungarian assignment, crosses the cheapest query of each object: where "
        "two objects want the same query, only one gets it. Queries without a frame are trained to say: no object.",
        alt="A scene with its objects and the boxes matched with them, beside a matrix of costs with one row for each object "
        "and one column for each query; each row has one framed cell, and a cross on its lowest cost.",
    )


# %% [markdown]
# ## What each query looks at
# The weights of cross-attention in the last decoder layer, mean over heads: over which places of the image a query takes its
# mean.


# %%
def draw_looks(style: Style, trained: Trained, maps: Tensor, index: int, preset: Preset) -> Figure:
    predictions, targets = one_scene(trained, index, preset.classes)
    queries = (one_to_one(predictions, targets)[0] >= 0).nonzero()[:4, 0].tolist()
    boxes, image = xyxy_from_cxcywh(predictions.boxes[0]) * preset.canvas, trained.test.images[index]
    figure, axes = panels(1, 1 + len(queries), height=1.9)
    show_image(axes[0, 0], image, "objects")
    draw_boxes(axes[0, 0], trained.test.boxes[index])
    edge = preset.canvas - 0.5
    for ax, query in zip(axes[0, 1:], queries, strict=True):
        show_image(ax, image.mean(0), f"query {query}", vmax=1.6)
        ax.imshow(
            maps[query].numpy(), cmap="magma", alpha=0.6, extent=(-0.5, edge, edge, -0.5), interpolation="bilinear"
        )
        ax.autoscale(False)
        draw_boxes(ax, boxes[query, None])
        anchor = trained.model.anchors[query].cpu() * preset.canvas - 0.5
        ax.plot(*anchor.tolist(), "+", color="white", markersize=9, markeredgewidth=1.8)
    return figure


def looks_figure(run: Run, trained: Trained, preset: Preset) -> None:
    """Cross-attention of the matched queries, over the fullest test scene."""
    assert isinstance(trained.model, DETR)
    index = fullest_scene(trained.test)
    with torch.inference_mode():
        maps = trained.model.looks(trained.test.images[index, None].to(run.device))[0].cpu()  # (N, H / 8, W / 8)
    run.figure(
        "query_attention",
        partial(draw_looks, trained=trained, maps=maps, index=index, preset=preset),
        caption="The fullest of the test scenes, and where each of the matched queries looks (bright: much), with the box that "
        "it predicts and the anchor that it starts from (plus sign). Weights are of cells of 8 x 8 px, drawn smoothly.",
        alt="A scene with boxes around its digits, and the same scene once for each matched query, overlaid with a map of "
        "attention weights, the predicted box, and a plus sign at the anchor of the query.",
    )


# %% [markdown]
# ## The loss, query by query
# A matched query pays for its class and its box; any other pays only for the probability that it gives to an object. To see
# what that does to duplicates, one idle query is made a copy of the surest box: all objects are found as well as before, but
# the copy is left without an object, and pays.


# %%
def with_duplicate(predictions: Predictions, owner: Tensor) -> Predictions:
    """The predictions (1, N, ...), but the idle query that is least sure of an object repeats the surest matched one."""
    score = 1 - predictions.logits.softmax(-1)[0, :, -1]  # (N,)
    surest = score.masked_fill(owner[0] < 0, -1).argmax()
    idle = score.masked_fill(owner[0] >= 0, 2).argmin()
    logits, boxes = predictions.logits.clone(), predictions.boxes.clone()
    logits[0, idle], boxes[0, idle] = logits[0, surest], boxes[0, surest]
    return Predictions(logits, boxes)


def draw_terms(ax: Axes, predictions: Predictions, targets: Targets, title: str) -> None:
    """Stacked bars of the loss terms of each query; matched queries carry the number of their object."""
    owner = one_to_one(predictions, targets)
    below = torch.zeros(owner.shape[1])
    names = ("class", "L1 of the box", "GIoU of the box")
    for name, term in zip(names, loss_terms(predictions, targets, owner), strict=True):
        ax.bar(range(len(below)), term[0].numpy(), bottom=below.numpy(), label=name)
        below = below + term[0]
    for query in (owner[0] >= 0).nonzero()[:, 0].tolist():
        ax.text(query, float(below[query]), str(int(owner[0, query])), ha="center", va="bottom", fontweight="bold")
    ax.set(title=f"{title}: loss {float(set_loss(predictions, targets, owner)):.2f}", xlabel="query")
    ax.set_xticks(range(0, len(below), 1 + len(below) // 20))
    ax.margins(y=0.15)
    ax.grid(False, axis="x")


def draw_set_loss(style: Style, predictions: Predictions, targets: Targets) -> Figure:
    figure, axes = panels(1, 2, height=3.0, sharey=True)
    doubled = with_duplicate(predictions, one_to_one(predictions, targets))
    draw_terms(axes[0, 0], predictions, targets, "as predicted")
    draw_terms(axes[0, 1], doubled, targets, "one box doubled")
    axes[0, 0].set_ylabel("what each query pays")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def loss_figure(run: Run, trained: Trained, preset: Preset) -> None:
    """The three terms of the loss for each query of one scene, and the same with a duplicate."""
    predictions, targets = one_scene(trained, contested_scene(trained, preset.classes), preset.classes)
    run.figure(
        "set_loss",
        partial(draw_set_loss, predictions=predictions, targets=targets),
        caption="What each query of the first scene above pays, and the loss of the whole set. Only matched queries (with "
        "the number of their object) pay for boxes. Right: an idle query repeats the surest box, is left without an object, "
        "and pays for its class. That takes the place of suppression.",
        alt="Two charts of stacked bars, class, L1 and GIoU loss of each query; box terms stand only at matched queries. In "
        "the second one, a query that paid little has become a copy of a matched one and pays for its class.",
    )


# %% [markdown]
# ## Boxes per object, with nothing suppressed
# The question of this page. The control with several matches for each object has the same decoder, so what differs is the
# matching alone. The dense head is what DETR replaces: read it with and without suppression.


# %%
def draw_boxes_of_arms(style: Style, trained: Mapping[str, Sequence[Trained]], preset: Preset) -> Figure:
    """Confident boxes of three arms on one test scene of the first seed, nothing suppressed."""
    scene = fullest_scene(trained["set"][0].test)
    figure, axes = panels(1, 4, height=2.1)
    show_image(axes[0, 0], trained["set"][0].test.images[scene], "truth")
    draw_boxes(axes[0, 0], trained["set"][0].test.boxes[scene])
    for ax, arm in zip(axes[0, 1:], ("set", "one_to_many", "dense"), strict=True):
        found = detections(trained[arm][0].decoded.layer(-1), preset.canvas, suppress=False)[scene]
        show_image(ax, trained[arm][0].test.images[scene], LABELS[arm])
        draw_boxes(ax, found["boxes"][found["scores"] >= preset.confidence], linewidth=1.2)
    return figure


def duplicates(run: Run, trained: Mapping[str, Sequence[Trained]], scores: Scores, preset: Preset) -> None:
    """Boxes per object and AP50 of all arms, with and without suppression."""
    experiment = run.experiment(
        "duplicates", question="How many boxes does each object get when nothing is suppressed?", **described(preset)
    )
    arms = ("set", "one_to_many", "one_to_many_nms", "dense", "dense_nms")
    for arm in arms:
        name = LABELS[arm.removesuffix("_nms")] + (" and NMS" if arm.endswith("_nms") else "")
        boxes, ap50 = ([each[what] for each in scores[arm]] for what in ("boxes", "ap50"))
        experiment.result(
            f"boxes_per_object_{arm}", boxes, unit="boxes", meaning=f"Confident boxes per found object, {name}"
        )
        experiment.result(f"ap50_{arm}", ap50, unit="%", meaning=f"AP50 on the test scenes, {name}")
    for arm in ("set", "one_to_many", "dense"):
        gain = paired(scores, "ap50", f"{arm}_nms", arm)
        experiment.result(f"nms_gain_{arm}", gain, unit="points", meaning=f"AP50 gained by adding NMS, {LABELS[arm]}")
    experiment.result(
        "boxes_saved_by_one_to_one", paired(scores, "boxes", "one_to_many", "set"), unit="boxes",
        meaning="Boxes per object that one-to-one matching saves, same decoder",
    )  # fmt: skip
    experiment.result(
        "ap50_gap_to_dense_nms", paired(scores, "ap50", "set", "dense_nms"), unit="points",
        meaning="AP50 of the set predictor minus that of the dense head with NMS",
    )  # fmt: skip
    times = {arm: [milliseconds(run, arm, each, preset) for each in trained[arm]] for arm in ("set", "dense")}
    for arm, values in times.items():
        name = LABELS[arm] + (" with NMS" if arm == "dense" else "")
        experiment.result(f"milliseconds_{arm}", values, unit="ms", meaning=f"From one image to its boxes, {name}")
    ratio = [ours / dense for ours, dense in zip(times["set"], times["dense"], strict=True)]
    experiment.result("time_ratio", ratio, unit="", meaning="Time of the set over time of the dense head with NMS")

    def draw(style: Style) -> Figure:
        figure, axes = panels(1, 2, height=3.0)
        names = ["set", "one to many", "with NMS", "dense", "with NMS"]
        for ax, what, title in zip(axes[0], ("boxes", "ap50"), ("boxes per object", "AP50 (%)"), strict=True):
            seed_bars(ax, names, [[each[what] for each in scores[arm]] for arm in arms])
            ax.set_title(title)
            ax.tick_params(axis="x", rotation=30)
        axes[0, 0].axhline(1, color=style.ink, linewidth=1, linestyle="--")
        return figure

    experiment.figure(
        "boxes_on_a_scene",
        partial(draw_boxes_of_arms, trained=trained, preset=preset),
        caption="Confident boxes on one test scene, nothing suppressed: the set predictor is trained to give one for each "
        "object, the two others are rewarded for several.",
        alt="The same scene four times: the true boxes, and the boxes of the set predictor, the one-to-many control and the "
        "dense head.",
    )
    experiment.figure(
        "boxes_per_object",
        draw,
        caption="Bars are means, dots are seeds; the dashed line is one box for each object. AP50 without suppression falls "
        "with every duplicate; with suppression the dense head shows what it can do.",
        alt="Two bar charts: boxes per found object, and AP50, for the set predictor, the one-to-many control, and the dense "
        "head without and with NMS.",
    )


def milliseconds(run: Run, arm: str, trained: Trained, preset: Preset) -> float:
    """Median time from one image to its boxes, with NMS for the dense head."""
    image = trained.test.images[:1].to(run.device)

    def detect() -> None:
        with torch.inference_mode():
            detections(trained.model(image).layer(-1), preset.canvas, suppress=arm == "dense")

    return timed(detect, repeats=20, device=run.device).median


def described(preset: Preset) -> dict[str, Any]:
    """What the experiments have in common: data, parameters of the largest arm, steps."""
    parameters = max(count_parameters(build(arm, preset)) for arm in ARMS)
    data = f"{preset.scenes[0]:,} digit scenes of {preset.canvas} px to train, {preset.scenes[1]:,} others to test"
    return {"data": data, "parameters": parameters, "steps": sum(preset.steps)}


# %% [markdown]
# ## Small and large objects
# The paper's DETR is better on large and worse on small objects than Faster R-CNN. Here the rival is the dense head with
# suppression, which reads the same map of stride 8.


# %%
def by_size(run: Run, scores: Scores, preset: Preset) -> None:
    """AP by object size of the set predictor and of the dense head with suppression."""
    experiment = run.experiment(
        "sizes", question="Does the set predictor gain on large and lose on small objects?", **described(preset)
    )
    sizes = ("small", "medium", "large")
    for arm in ("set", "dense_nms"):
        values = [each["ap"] for each in scores[arm]]
        experiment.result(f"ap_{arm}", values, unit="%", meaning=f"AP of all objects, {arm.replace('_', ' ')}")
    for size in sizes:
        for arm in ("set", "dense_nms"):
            values = [each[f"ap_{size}"] for each in scores[arm]]
            experiment.result(
                f"ap_{size}_{arm}", values, unit="%", meaning=f"AP of {size} objects, {arm.replace('_', ' ')}"
            )
        gap = paired(scores, f"ap_{size}", "set", "dense_nms")
        experiment.result(
            f"ap_{size}_gap", gap, unit="points", meaning=f"AP of {size} objects, set predictor minus dense head"
        )
    small, large = (paired(scores, f"ap_{size}", "set", "dense_nms") for size in ("small", "large"))
    lean = [a - b for a, b in zip(large, small, strict=True)]
    experiment.result(
        "gap_large_over_small", lean, unit="points", meaning="Gap on large objects minus gap on small ones"
    )

    def draw(style: Style) -> Figure:
        figure, axes = panels(1, 2, height=2.8, sharey=True)
        for ax, arm, title in zip(axes[0], ("set", "dense_nms"), ("set, no NMS", "dense head, NMS"), strict=True):
            seed_bars(ax, sizes, [[each[f"ap_{size}"] for each in scores[arm]] for size in sizes])
            ax.set_title(title)
        axes[0, 0].set_ylabel("AP (%)")
        return figure

    experiment.figure(
        "ap_by_size",
        draw,
        caption=f"AP of objects up to {preset.sizes[0]:g} px, up to {preset.sizes[1]:g} px, and larger. Bars are means, dots "
        "are seeds.",
        alt="Bars of AP for small, medium and large objects, for the set predictor and for the dense head with NMS.",
    )


# %% [markdown]
# ## How fast it learns
# AP on the test scenes while the learning rate is constant, so that each point is the end of a training of that length.


# %%
def convergence(run: Run, trained: Mapping[str, Sequence[Trained]], preset: Preset) -> None:
    """AP against steps, and the steps to half of the final AP."""
    experiment = run.experiment(
        "convergence", question="Does set prediction learn more slowly than the dense head?", **described(preset)
    )
    half = {arm: [detectors.steps_to_half(each.curve) for each in trained[arm]] for arm in ("set", "dense")}
    for arm, values in half.items():
        meaning = f"Steps to half of its own final AP, {LABELS[arm]}"
        experiment.result(f"steps_to_half_{arm}", values, unit="steps", meaning=meaning)
    behind = [b.curve[-1][1] - a.curve[-1][1] for a, b in zip(trained["set"], trained["dense"], strict=True)]
    experiment.result(
        "ap_behind_dense", behind, unit="points", meaning="AP of the dense head minus that of the set predictor"
    )
    slower = [a - b for a, b in zip(half["set"], half["dense"], strict=True)]
    experiment.result(
        "more_steps_to_half", slower, unit="steps", meaning="Steps to half, set predictor minus dense head"
    )

    def draw(style: Style) -> Figure:
        figure, axes = panels(1, 1, height=3.0)
        for arm, label in (("set", "set, no NMS"), ("dense", "dense head, NMS")):
            x = [step for step, _ in trained[arm][0].curve]
            seed_lines(axes[0, 0], x, [[ap for _, ap in each.curve] for each in trained[arm]], label)
        axes[0, 0].set(xlabel="steps at a constant learning rate", ylabel="AP (%)", ylim=(0, None))
        axes[0, 0].legend()
        return figure

    experiment.figure(
        "ap_against_steps",
        draw,
        caption="AP on the test scenes. Lines are means over the seeds, bands reach from the worst to the best one.",
        alt="AP against training steps for the set predictor and the dense head, with bands over the seeds.",
    )


# %% [markdown]
# ## Do queries need to see each other?
# The paper credits attention among the queries with the removal of duplicates. Here it is left out of all decoder layers, and
# its parameters go to the feed-forward networks. The queries can be read after every layer, so duplicates, and what NMS would
# add, are followed through the decoder, as in Figure 4 of the paper.


# %%
PAIR = {"set": "with self-attention", "no_self_attention": "without"}
Layers = dict[str, list[list[float]]]
"""Of each arm, for each seed, one value after each decoder layer."""


def through_layers(trained: Mapping[str, Sequence[Trained]], preset: Preset) -> tuple[Layers, Layers]:
    """Boxes per object without NMS, and the AP that NMS adds."""
    boxes: Layers = {arm: [] for arm in PAIR}
    gains: Layers = {arm: [] for arm in PAIR}
    for arm in PAIR:
        for each in trained[arm]:
            read = partial(measures, test=each.test, preset=preset)
            layers = [each.decoded.layer(index) for index in range(preset.decoder)]
            raw = [read(layer, suppress=False) for layer in layers]
            boxes[arm].append([found["boxes"] for found in raw])
            suppressed = [read(layer, suppress=True) for layer in layers]
            gains[arm].append([after["ap"] - before["ap"] for before, after in zip(raw, suppressed, strict=True)])
    return boxes, gains


def draw_layers(style: Style, boxes: Layers, gains: Layers) -> Figure:
    figure, axes = panels(1, 2, height=3.0)
    for ax, values, title in zip(
        axes[0], (boxes, gains), ("boxes per object", "AP that NMS adds (points)"), strict=True
    ):
        for (arm, label), line in zip(PAIR.items(), ("-", "--"), strict=True):
            layers = range(1, 1 + len(values[arm][0]))
            seed_lines(ax, list(layers), values[arm], label, linestyle=line, marker="o")
        ax.set(title=title, xlabel="decoder layer", xticks=layers)
    axes[0, 1].axhline(0, color=style.muted, linewidth=1)
    axes[0, 0].legend()
    return figure


def without_self_attention(run: Run, trained: Mapping[str, Sequence[Trained]], scores: Scores, preset: Preset) -> None:
    """The set predictor with and without attention among its queries, layer by layer."""
    experiment = run.experiment(
        "self_attention", question="Does attention among the queries prevent duplicates?", **described(preset)
    )
    gain = paired(scores, "ap50", "set", "no_self_attention")
    saved = paired(scores, "boxes", "no_self_attention", "set")
    experiment.result("self_attention_gain", gain, unit="points", meaning="AP50 gained by attention among the queries")
    experiment.result("boxes_saved_by_self_attention", saved, unit="boxes", meaning="Boxes per object that it saves")
    boxes, gains = through_layers(trained, preset)
    for index, place in ((0, "first"), (-1, "last")):
        values = [seed[index] for seed in boxes["set"]]
        meaning = f"Confident boxes per found object after the {place} decoder layer of the set"
        experiment.result(f"boxes_per_object_{place}_layer", values, unit="boxes", meaning=meaning)
        values = [seed[index] for seed in gains["set"]]
        meaning = f"AP gained by adding NMS after the {place} decoder layer of the set"
        experiment.result(f"nms_gain_{place}_layer", values, unit="points", meaning=meaning)
    experiment.figure(
        "self_attention",
        partial(draw_layers, boxes=boxes, gains=gains),
        caption="After each decoder layer: confident boxes on each object that is found, and the AP that NMS would add (below "
        "zero, it removes right boxes). Bands reach from the worst to the best seed.",
        alt="Two line charts over the decoder layers, boxes per object and the AP that suppression adds, each with one line "
        "with attention among the queries and one without.",
    )


# %% [markdown]
# ## Beside the other detectors
# The set predictor on the benchmark that all detectors share: the same scenes, the same number of steps, the same measures.


# %%
def side_by_side(run: Run, trained: Sequence[Trained], scores: Scores, preset: Preset) -> None:
    """The results and the picture of `lab.detectors`."""
    benchmark, done = detectors.BENCHMARKS[run.preset], sum(preset.steps)
    shared = [
        detectors.Trained(each.model, each.test, [*each.curve, (done, score["ap"])])
        for each, score in zip(trained, scores["set"], strict=True)
    ]

    def detect(model: DETR | Dense, images: Tensor) -> list[dict[str, Tensor]]:
        return detections(model(images).layer(-1), preset.canvas, suppress=False)

    detectors.report(run, benchmark, shared, detect, detect, name="DETR")


# %% [markdown]
# ## Unlike the paper
# - The backbone is a small convolutional network of stride 8, trained from scratch; in the paper, a ResNet of stride 32.
# - There are 16 queries instead of 100. Their boxes are predicted around the points of a grid, and each starts from a learned
#   vector plus the mean of the tokens around its point. In the paper queries start from zero and learn where to look over
#   hundreds of epochs; on validation scenes, such queries had learned little at the end of these steps.
# - Places are added to the tokens once, at the start, so that values carry them as well; in the paper they are added to the
#   queries and keys of every attention. The temperature of the sines is 20, since the map is small.
# - All digits are one class in the small runs. The class loss of no object weighs 0.4 instead of 0.1, since there are fewer
#   queries; the loss is a mean over decoder layers, not a sum. There is no dropout and no augmentation.
# - The rival is a dense head on the same backbone, not Faster R-CNN, and everything is trained for minutes on scenes of
#   64 px. What holds here explains a mechanism; it says nothing about COCO.


# %%
def main(argv: Sequence[str] | None = None) -> None:
    """Run all experiments and write the record."""
    run = Run.start("detr", argv=argv)
    preset = PRESETS[run.preset]
    trained = train_all(run, preset)
    scores = score_all(trained, preset)
    first = trained["set"][0]
    cost_figure(run, first, preset)
    looks_figure(run, first, preset)
    loss_figure(run, first, preset)
    duplicates(run, trained, scores, preset)
    by_size(run, scores, preset)
    convergence(run, trained, preset)
    without_self_attention(run, trained, scores, preset)
    side_by_side(run, trained["set"], scores, preset)
    run.finish()


if __name__ == "__main__":
    main()
