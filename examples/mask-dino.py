# %% [markdown]
# # Mask DINO: what does it gain from being shown where the objects are?
#
# A decoder turns 16 queries, picked from the image, into boxes and masks. In training, noised copies of the true boxes enter
# it as further queries that have to find back to their object, so their target is known without any matching. The same
# network is trained with and without this denoising, and then, in a short schedule, without one of its other parts. The
# last experiment counts what the masks cost in memory and computation at the published size.
#
# | symbol (arXiv:2206.02777) | here | meaning |
# |---|---|---|
# | $q_c$ | `content` | what a query says, (B, N, D); its other part is `boxes`, where it looks |
# | $\mathcal{M}(\mathcal{T}(C_b) + \mathcal{F}(C_e))$ | `pixels` | embedding of each pixel, (B, E, H', W') |
# | $m$ | `masks` | logits of the mask of each query, (B, N, H', W') |
# | $C_b$, $C_e$ | `fine`, `grid` | maps of the backbone and of the encoder |
# | $\lambda_{cls}$, $\lambda_{box}$, $\lambda_{mask}$ | `CLASS`, `L1` and `GIOU`, `MASK` and `DICE` | weights of the losses |

# %%
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from lab import detectors
from lab.data import Split
from lab.data.scenes import Scenes
from lab.figures import Style, draw_boxes, panels, seed_bars, seed_lines, show_image
from lab.metrics import average_precision
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops import box_convert, masks_to_boxes, sigmoid_focal_loss

CLASS, L1, GIOU, MASK, DICE = 4.0, 5.0, 2.0, 5.0, 5.0  # weights of the losses, and of their costs in the matching
SIZE_PRIOR = 0.25  # side of the box that a token starts from, relative to the image
TINY = 1e-3
LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class Preset:
    """Sizes of the model and of the trainings.

    Attributes:
        width, heads, hidden, embedding: of a query, of its attention, of the feed-forward networks, of a pixel (E).
        layers, queries: of the decoder: L and N.
        noised: denoising queries in a step; half of them are to be rejected.
        points: cells of the mask that a step compares, P.
        short: steps of the short schedule, at a constant learning rate.
        rate: factor on the learning rate.
    """

    width: int = 64
    heads: int = 4
    hidden: int = 128
    embedding: int = 16
    layers: int = 2
    queries: int = 16
    noised: int = 16
    points: int = 256
    short: int = 120
    rate: float = 1.0


PRESETS = {
    "smoke": Preset(width=32, hidden=32, short=3),
    "quick": Preset(),
    "full": Preset(width=128, heads=8, hidden=512, layers=6, queries=40, noised=64, points=2048, short=2000, rate=0.25),
}


# %% [markdown]
# ## The decoder: queries with a place
# A query is a content vector and a box. In each layer it looks at the other queries, then samples the image at a few points
# in and around its box (deformable attention, arXiv:2010.04159, Eq. 2), and then corrects the box. The same heads read
# class, box and mask after every layer, and before the first one.


# %%
class Predictions(NamedTuple):
    """logits (..., N, K), a sigmoid each, boxes (..., N, 4) cxcywh from 0 to 1, vectors (..., N, E) of the masks."""

    logits: Tensor
    boxes: Tensor
    vectors: Tensor


def convolutions(channels: Sequence[int], strides: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions, each with batch norm and ReLU: (B, C, H, W) -> (B, C', H', W')."""
    layers: list[nn.Module] = []
    for (inputs, outputs), stride in zip(pairwise(channels), strides, strict=True):
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def perceptron(*widths: int) -> nn.Sequential:
    """(..., first) -> (..., last), with a ReLU between two layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def sine_encoding(x: Tensor, width: int, temperature: float = 20.0) -> Tensor:
    """Fixed encoding of n numbers from 0 to 1, each with D / n channels: (..., n) -> (..., D)."""
    count = width // (2 * x.shape[-1])
    frequency = 2 * torch.pi * temperature ** (-torch.arange(count, device=x.device) / count)
    angle = (x[..., None] * frequency).flatten(-2)  # (..., n, D / 2n) -> (..., D / 2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def centres(side: int) -> Tensor:
    """The middles x, y of side x side cells, row by row, (side^2, 2)."""
    at = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)  # (side, side, 2) -> (side^2, 2)


class Attention(nn.Module):
    """Multi-head attention among queries (B, N, D), which know their places (B, N, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.inner = heads, nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, place: Tensor, allowed: Tensor | None = None) -> Tensor:
        inputs = (x + place, x + place, x)
        q, k, v = (
            linear(each).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, N, D) -> (B, h, N, D / h)
            for linear, each in zip(self.inner, inputs, strict=True)
        )
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        out: Tensor = self.out(seen.transpose(1, 2).flatten(2))  # (B, h, N, D / h) -> (B, N, D)
        return out


class DeformableAttention(nn.Module):
    """Each query takes a weighted mean of a few points of the map, whose offsets it predicts in units of its box."""

    def __init__(self, width: int, heads: int, points: int = 4) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.offset, self.weight = nn.Linear(width, heads * points * 2), nn.Linear(width, heads * points)
        angle = 2 * torch.pi * torch.arange(heads) / heads
        ring = torch.stack([angle.cos(), angle.sin()], dim=-1)[:, None]  # (h, 1, 2): one direction for each head
        reach = (torch.arange(points) + 0.5)[:, None] / points  # (P, 1): from the middle to the edge
        nn.init.zeros_(self.offset.weight)
        with torch.no_grad():
            self.offset.bias.copy_((ring * reach).flatten())  # (h, P, 2) -> (2 h P,)

    def places(self, queries: Tensor, boxes: Tensor) -> Tensor:
        """Where each query looks, x and y from 0 to 1: (B, N, D), (B, N, 4) -> (B, N, h, P, 2)."""
        offset = self.offset(queries).unflatten(2, (self.heads, self.points, 2))
        out: Tensor = boxes[:, :, None, None, :2] + offset * boxes[:, :, None, None, 2:] / 2
        return out

    def forward(self, queries: Tensor, boxes: Tensor, grid: Tensor) -> Tensor:
        values = self.value(grid.flatten(2).transpose(1, 2)).transpose(1, 2)  # (B, D, H, W) -> (B, D, H W)
        values = values.unflatten(1, (self.heads, -1)).unflatten(3, grid.shape[2:]).flatten(0, 1)  # (B h, D / h, H, W)
        at = self.places(queries, boxes).transpose(1, 2).flatten(0, 1)  # (B, N, h, P, 2) -> (B h, N, P, 2)
        seen = functional.grid_sample(values, 2 * at - 1, align_corners=False)  # (B h, D / h, N, P)
        weight = self.weight(queries).unflatten(2, (self.heads, -1)).softmax(-1)  # (B, N, h, P)
        seen = (seen * weight.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)  # (B h, D / h, N)
        out: Tensor = self.out(seen.unflatten(0, (-1, self.heads)).flatten(1, 2).transpose(1, 2))  # -> (B, N, D)
        return out


class DecoderLayer(nn.Module):
    """content (B, N, D), boxes (B, N, 4), grid (B, D, H, W) -> content (B, N, D)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.among, self.look = Attention(width, heads), DeformableAttention(width, heads)
        self.mlp, self.place = perceptron(width, hidden, width), perceptron(width, width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, content: Tensor, boxes: Tensor, grid: Tensor, allowed: Tensor | None = None) -> Tensor:
        place = self.place(sine_encoding(boxes, content.shape[-1]))
        content = self.norms[0](content + self.among(content, place, allowed))
        content = self.norms[1](content + self.look(content + place, boxes, grid))
        out: Tensor = self.norms[2](content + self.mlp(content))
        return out


# %% [markdown]
# ## The model: unified query selection, and masks as dot products
# The heads are applied to every token of the encoder; the tokens with the best class scores become the queries, content and
# box. A mask is the dot product of a vector made from the content with the embedding of each pixel (Eq. 1):
# $$m = q_c \otimes \mathcal{M}(\mathcal{T}(C_b) + \mathcal{F}(C_e))$$


# %%
class Encoded(NamedTuple):
    """grid (B, D, H / 8, W / 8), whose cells are the tokens, and pixels (B, E, H / 2, W / 2)."""

    grid: Tensor
    pixels: Tensor


class Noised(NamedTuple):
    """Denoising queries of B images: boxes (B, S, 4), labels (B, S), and owner (B, S), their object, -1 to be rejected."""

    boxes: Tensor
    labels: Tensor
    owner: Tensor


class Output(NamedTuple):
    """found (L + 1, B, N, ...), from before the first layer on; denoised (L, B, S, ...) if any; pixels (B, E, H', W')."""

    found: Predictions
    denoised: Predictions | None
    pixels: Tensor


def masks_of(vectors: Tensor, pixels: Tensor) -> Tensor:
    """Eq. 1: the dot product of each vector (..., B, N, E) with each pixel (B, E, H', W') is a logit (..., B, N, H', W')."""
    flat = vectors @ pixels.flatten(2)  # (..., B, N, H' W')
    return flat.reshape(*flat.shape[:-1], *pixels.shape[2:])


class MaskDINO(nn.Module):
    """Images (B, 3, H, W) -> boxes and masks of N queries.

    Args:
        preset: sizes.
        canvas, classes: side of the images, and K.
        selection: whether queries come from the image; else they are learned, the same for every image.
    """

    def __init__(self, preset: Preset, canvas: int, classes: int, *, selection: bool = True) -> None:
        super().__init__()
        D, E, heads = preset.width, preset.embedding, preset.heads
        self.queries, self.selection = preset.queries, selection
        self.stem, self.deep = convolutions((3, D // 4), (2,)), convolutions((D // 4, D // 2, D, D, D), (2, 2, 1, 1))
        self.lateral, self.top, self.segment = (
            nn.Conv2d(D // 4, E, 1),
            nn.Conv2d(D, E, 1),
            nn.Conv2d(E, E, 3, padding=1),
        )
        self.pick = nn.Sequential(nn.Linear(D, D), nn.LayerNorm(D))
        self.decoder = nn.ModuleList(DecoderLayer(D, heads, preset.hidden) for _ in range(preset.layers))
        self.norm, self.label = nn.LayerNorm(D), nn.Embedding(classes, D)
        self.class_head, self.mask_head = nn.Linear(D, classes), perceptron(D, D, E)
        self.box_head = perceptron(D, D, D, 4)
        self.learned = nn.Parameter(torch.randn(preset.queries, D))  # not used with selection, but all arms count alike
        self.start = nn.Parameter(torch.rand(preset.queries, 4) - 0.5)
        self.anchors = nn.Buffer(
            torch.cat([centres(canvas // 8), torch.full(((canvas // 8) ** 2, 2), SIZE_PRIOR)], dim=1)
        )
        nn.init.constant_(self.class_head.bias, -3.0)
        for zero in self.box_head[-1].parameters():
            nn.init.zeros_(zero)

    def encode(self, images: Tensor) -> Encoded:
        """The map whose cells are the tokens, with their places, and the embedding of each pixel."""
        fine = self.stem(images)
        grid = self.deep(fine)
        place = sine_encoding(self.anchors[:, :2], grid.shape[1])  # (M, D)
        grid = grid + place.T.reshape(grid.shape[1:])  # (M, D) -> (D, H / 8, W / 8)
        coarse = functional.interpolate(self.top(grid), scale_factor=4, mode="bilinear")
        return Encoded(grid, self.segment((self.lateral(fine) + coarse).relu()))

    def read(self, content: Tensor, boxes: Tensor) -> Predictions:
        """What the queries say: their class, their box corrected, and the vector of their mask."""
        state = self.norm(content)
        moved = (torch.logit(boxes, eps=TINY) + self.box_head(state).float()).sigmoid()
        return Predictions(self.class_head(state).float(), moved, self.mask_head(state).float())

    def select(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Unified query selection: content (B, N, D) and boxes (B, N, 4) of the tokens with the best class scores."""
        if not self.selection:
            return self.learned.expand(len(grid), -1, -1), self.start.sigmoid().expand(len(grid), -1, -1)
        content = self.pick(grid.flatten(2).transpose(1, 2))  # (B, D, H / 8, W / 8) -> (B, M, D)
        scores = self.class_head(self.norm(content)).max(-1).values  # (B, M)
        best = scores.topk(min(self.queries, scores.shape[1])).indices[..., None]  # (B, N, 1)
        return content.gather(1, best.expand(-1, -1, content.shape[2])), self.anchors[best[..., 0]]

    def decode(self, content: Tensor, boxes: Tensor, grid: Tensor, allowed: Tensor | None = None) -> list[Predictions]:
        """What the queries say after each layer; their contents and boxes go in."""
        said = []
        for layer in self.decoder:
            content = layer(content, boxes, grid, allowed)
            said.append(self.read(content, boxes))
            boxes = said[-1].boxes.detach()
        return said

    def forward(self, images: Tensor, noised: Noised | None = None) -> Output:
        encoded = self.encode(images)
        content, boxes = self.select(encoded.grid)
        first, N, allowed = self.read(content, boxes), content.shape[1], None
        content, boxes = content.detach() if self.selection else content, first.boxes.detach()
        if noised is not None:
            content = torch.cat([content, self.label(noised.labels)], dim=1)  # (B, N + S, D)
            boxes, allowed = (
                torch.cat([boxes, noised.boxes], dim=1),
                visible(N, noised.labels.shape[1]).to(boxes.device),
            )
        said = self.decode(content, boxes, encoded.grid, allowed)
        found = [first, *(Predictions(*(part[:, :N] for part in each)) for each in said)]
        denoised = (
            stacked([Predictions(*(part[:, N:] for part in each)) for each in said]) if noised is not None else None
        )
        return Output(stacked(found), denoised, encoded.pixels.float())


def visible(queries: int, noised: int) -> Tensor:
    """Who may look at whom, (N + S, N + S) bool: no query sees a denoising one, which would give the answer away."""
    allowed = torch.eye(queries + noised, dtype=torch.bool)
    allowed[:, :queries] = True
    return allowed


def stacked(layers: Sequence[Predictions]) -> Predictions:
    """Predictions of L layers as one, (L, B, ...)."""
    return Predictions(*(torch.stack(part) for part in zip(*layers, strict=True)))


# %% [markdown]
# ## Targets, noise, hybrid matching, and the loss
# A denoising query starts from a true box whose middle and sides are shifted by a random part of the box, and from the label
# (some flipped, where there is more than one class). Small shifts have to be undone; larger ones have to be rejected
# (contrastive denoising). The other queries are matched one to one at the lowest cost in class, box and mask.


# %%
class Targets(NamedTuple):
    """Objects of B images, padded to M: boxes (B, M, 4) cxcywh, labels (B, M), K where padded, masks (B, M, H', W')."""

    boxes: Tensor
    labels: Tensor
    masks: Tensor


def targets_from_scenes(scenes: Scenes, classes: int) -> Targets:
    """Boxes relative to the image; masks at half of the resolution, as the covered part of each cell."""
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    boxes = pad([box_convert(each, "xyxy", "cxcywh") / scenes.images.shape[-1] for each in scenes.boxes])
    masks = functional.avg_pool2d(pad(list(scenes.masks)).float(), 2)
    return Targets(boxes, pad(list(scenes.labels), padding_value=classes), masks)


def add_noise(targets: Targets, count: int, classes: int, scale: float = 0.4) -> Noised:
    """`count` denoising queries for each image, which take its objects in turn; the second half is to be rejected.

    The middle moves by up to `scale` of half a side and each side changes by up to `scale`; twice as much, and at least
    `scale`, for those to be rejected.
    """
    B, device = len(targets.labels), targets.labels.device
    objects = (targets.labels < classes).sum(1, keepdim=True)  # (B, 1)
    index = torch.arange(count, device=device) % objects.clamp(min=1)  # (B, S)
    boxes = targets.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    rejected = torch.arange(count, device=device) >= count // 2
    sign = torch.randint(2, (B, count, 4), device=device) * 2 - 1
    shift = scale * sign * (torch.rand(B, count, 4, device=device) + rejected[:, None])
    size = boxes[..., 2:]
    moved = torch.cat([boxes[..., :2] + shift[..., :2] * size / 2, size * (1 + shift[..., 2:])], dim=-1)
    flip = torch.rand(B, count, device=device) < 0.2
    labels = torch.where(
        flip, torch.randint(classes, (B, count), device=device), targets.labels.gather(1, index) % classes
    )
    return Noised(moved.clamp(TINY, 1 - TINY), labels, index.masked_fill(rejected | (objects == 0), -1))


def xyxy_from_cxcywh(boxes: Tensor) -> Tensor:
    """Corners from centre, width and height, (..., 4) -> (..., 4)."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], dim=-1)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (arXiv:1902.09630) of boxes in xyxy, (..., 4) and (..., 4), broadcast -> (...)."""

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(-1)

    a_low, a_high, b_low, b_high = a[..., :2], a[..., 2:], b[..., :2], b[..., 2:]
    shared = area(torch.maximum(a_low, b_low), torch.minimum(a_high, b_high))
    union, hull = (
        area(a_low, a_high) + area(b_low, b_high) - shared,
        area(torch.minimum(a_low, b_low), torch.maximum(a_high, b_high)),
    )
    return shared / union - (hull - union) / hull


def mask_losses(x: Tensor, t: Tensor) -> Tensor:
    """Weighted cross-entropy and Dice loss of every pair of logits (..., N, P) and masks (..., M, P) at P points: (..., N, M)."""
    entropy = (functional.softplus(x).sum(-1)[..., None] - x @ t.mT) / x.shape[-1]
    p = x.sigmoid()
    return MASK * entropy + DICE * (1 - (2 * p @ t.mT + 1) / (p.sum(-1)[..., None] + t.sum(-1)[..., None, :] + 1))


@torch.no_grad()
def match(predictions: Predictions, x: Tensor, targets: Targets, arm: Arm) -> Tensor:
    """Hybrid matching: owner (B, N), the object of each query, -1 where it has none; x (B, N, P) are logits of the masks."""
    K = predictions.logits.shape[-1]
    labels = targets.labels.clamp(max=K - 1)[:, None].expand(-1, predictions.logits.shape[1], -1)
    cost = -CLASS * predictions.logits.sigmoid().gather(2, labels)  # (B, N, M)
    if arm.boxes:
        ours, theirs = predictions.boxes[:, :, None], targets.boxes[:, None]
        cost = cost + L1 * (ours - theirs).abs().sum(-1)
        cost = cost - GIOU * generalized_iou(xyxy_from_cxcywh(ours), xyxy_from_cxcywh(theirs))
    if arm.masks and arm.hybrid:
        cost = cost + mask_losses(x, targets.masks)
    owner = torch.full(cost.shape[:2], -1)
    for image, (costs, real) in enumerate(zip(cost.cpu().numpy(), (targets.labels < K).sum(1).tolist(), strict=True)):
        queries, objects = linear_sum_assignment(costs[:, :real])
        owner[image, queries] = torch.from_numpy(objects)
    return owner.to(cost.device)


def set_loss(predictions: Predictions, x: Tensor, targets: Targets, owner: Tensor, arm: Arm) -> Tensor:
    """Focal loss of all classes, and box and mask losses of the matched queries, each per object."""
    image, query = (owner >= 0).nonzero(as_tuple=True)
    mine, count = owner[image, query], max(1, len(image))
    wanted = torch.zeros_like(predictions.logits)
    wanted[image, query, targets.labels[image, mine]] = 1
    loss = CLASS * sigmoid_focal_loss(predictions.logits, wanted, reduction="sum") / count
    if arm.boxes:
        ours, theirs = predictions.boxes[image, query], targets.boxes[image, mine]
        overlap = generalized_iou(xyxy_from_cxcywh(ours), xyxy_from_cxcywh(theirs))
        loss = loss + (L1 * (ours - theirs).abs().sum() + GIOU * (1 - overlap).sum()) / count
    if arm.masks:
        ours, theirs = x[image, query][:, None], targets.masks[image, mine][:, None]  # (n, 1, P)
        loss = loss + mask_losses(ours, theirs).sum() / count
    out: Tensor = loss
    return out


@dataclass(frozen=True)
class Arm:
    """What is trained: each part of the model that can be left out."""

    selection: bool = True
    denoising: bool = True
    hybrid: bool = True
    boxes: bool = True
    masks: bool = True


def some_points(targets: Targets, count: int) -> Tensor:
    """Cells of the mask at which a step compares masks, (B, P): those of objects first, then others at random."""
    covered = targets.masks.flatten(2).amax(1)  # (B, M, H', W') -> (B, H' W')
    return (covered + torch.rand_like(covered)).topk(min(count, covered.shape[1])).indices


def loss_of(arm: Arm, preset: Preset, model: MaskDINO, scenes: Scenes) -> Tensor:
    """Mean over the layers of the loss of the matched queries, plus that of the denoising ones."""
    K = model.class_head.out_features
    targets = targets_from_scenes(scenes, K)
    noised = add_noise(targets, preset.noised, K) if arm.denoising else None
    found, denoised, pixels = model(scenes.images, noised)
    at = some_points(targets, preset.points)[:, None]  # (B, 1, P)
    pixels, masks = (x.flatten(2).gather(2, at.expand(-1, x.shape[1], -1)) for x in (pixels, targets.masks))
    targets = targets._replace(masks=masks)  # (B, M, P)
    total = of_layers(found, pixels, targets, None, arm)
    if denoised is not None and noised is not None:
        total = total + of_layers(denoised, pixels, targets, noised.owner, arm)
    return total


def of_layers(predictions: Predictions, pixels: Tensor, targets: Targets, owner: Tensor | None, arm: Arm) -> Tensor:
    """The loss of (L, B, ...) predictions; where no owner (B, N) is given, they are matched."""
    L = len(predictions.logits)
    x = (predictions.vectors @ pixels).flatten(0, 1)  # (L, B, N, E) with (B, E, P) -> (L B, N, P)
    flat = Predictions(*(part.flatten(0, 1) for part in predictions))  # (L, B, ...) -> (L B, ...)
    repeated = Targets(*(part.repeat(L, *[1] * (part.ndim - 1)) for part in targets))
    owner = match(flat, x, repeated, arm) if owner is None else owner.repeat(L, 1)
    return set_loss(flat, x, repeated, owner, arm)


# %% [markdown]
# ## Training: one schedule for all detectors, a short one for the ablations
# The whole model has the budget that all detectors share. The ablations stop after the short schedule, and are compared with
# the whole model at the same step; all arms have the same parameters, see the same scenes in the same order, and have the
# learning rate that was chosen for the whole model on validation scenes of other seeds.

# %%
ARMS = {
    "whole": Arm(),
    "no_denoising": Arm(denoising=False),
    "no_selection": Arm(selection=False),
    "no_hybrid": Arm(hybrid=False),
}
LABELS = {
    "whole": "whole model",
    "no_denoising": "no denoising",
    "no_selection": "learned queries",
    "no_hybrid": "matching without masks",
}
Objects = dict[str, Tensor]


@torch.inference_mode()
def find(model: MaskDINO, images: Tensor, layer: int = -1) -> list[Objects]:
    """Boxes in pixels, scores and labels of each image after a layer; 0 is before the first one. Nothing is suppressed."""
    return objects_of(model(images).found, images.shape[-1], layer)


def objects_of(found: Predictions, canvas: int, layer: int) -> list[Objects]:
    scores, labels = found.logits[layer].sigmoid().max(-1)
    boxes = xyxy_from_cxcywh(found.boxes[layer]) * canvas
    return [
        {"boxes": box, "scores": score, "labels": label}
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]


@torch.inference_mode()
def segment(model: MaskDINO, images: Tensor, layer: int = -1) -> list[Objects]:
    """As `find`, and `masks` (N, H, W): the probability of each pixel."""
    found, _, pixels = model(images)
    logits = masks_of(found.vectors[layer], pixels)
    masks = functional.interpolate(logits, size=images.shape[-2:], mode="bilinear").sigmoid()
    return [
        each | {"masks": mask} for each, mask in zip(objects_of(found, images.shape[-1], layer), masks, strict=True)
    ]


def mask_ap(found: Sequence[Objects], test: Scenes, best: int = 8) -> dict[str, float]:
    """AP of the masks of the surest queries in %; a mask's score is that of its class times the mean probability inside."""
    predicted = []
    for each in found:
        first = each["scores"].topk(min(best, len(each["scores"]))).indices
        masks = each["masks"][first]
        inside = masks > 0.5
        quality = (masks * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        predicted.append(
            {"masks": inside, "scores": each["scores"][first] * quality, "labels": each["labels"][first].long()}
        )
    truth = [{"masks": masks, "labels": labels} for masks, labels in zip(test.masks, test.labels, strict=True)]
    return {name: 100 * value for name, value in average_precision(predicted, truth, iou="segm").items()}


@dataclass
class Trained:
    """A model, its test scenes, box AP (%) after so many steps, and mask AP50 (%) before and after the decoder.

    `short` is from the end of the short schedule, `final` from the end of all.
    """

    model: MaskDINO
    test: Scenes
    curve: list[tuple[int, float]]
    short: tuple[float, float] = (0.0, 0.0)
    final: tuple[float, float] = (0.0, 0.0)


def mask_ap50(trained: Trained, device: torch.device) -> tuple[float, float]:
    """Mask AP50 (%) of the queries before the first decoder layer, and after the last one."""
    first, last = (
        mask_ap(detectors.on_scenes(partial(segment, trained.model, layer=layer), trained.test, device), trained.test)
        for layer in (0, -1)
    )
    return first["ap50"], last["ap50"]


def train(run: Run, name: str, preset: Preset, seed: int, split: Split = "test") -> Trained:
    """Trains an arm: the whole model with the shared schedule, the others with the short one."""
    benchmark, whole = detectors.BENCHMARKS[run.preset], name == "whole"
    training, test = detectors.scenes_of(benchmark, "train", seed), detectors.scenes_of(benchmark, split, seed)
    seed_everything(seed)
    out = Trained(MaskDINO(preset, benchmark.canvas, benchmark.classes, selection=ARMS[name].selection), test, [])
    steps, last = benchmark.steps if whole else (preset.short, 0)
    order = minibatches((torch.arange(len(training)),), benchmark.batch, steps + last, seed)

    def batch(_: int) -> tuple[Scenes]:
        return (training[next(order)[0]],)

    def measure(step: int, _: nn.Module) -> None:
        found = detectors.on_scenes(partial(find, out.model), test, run.device)
        out.curve.append((step, detectors.measures(found, test, benchmark)["ap"]))
        if step == preset.short and not out.short[1]:
            out.short = mask_ap50(out, run.device)

    learn = partial(
        fit,
        out.model,
        batch,
        partial(loss_of, ARMS[name], preset),
        schedule="constant",
        device=run.device,
        callback=measure,
    )
    rate, bar = preset.rate * LEARNING_RATE, partial(run.progress, what=f"{LABELS[name]}, seed {seed}")
    every = benchmark.every if name in ("whole", "no_denoising") else steps
    learn(steps=steps, learning_rate=rate, every=every, progress=bar, warmup=preset.short // 10)
    if last:
        learn(steps=last, learning_rate=rate / 10, warmup=0, every=last)
        out.curve[-1] = (steps + last, out.curve[-1][1])
        out.final = mask_ap50(out, run.device)
    return out


def difference(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """a minus b, seed by seed."""
    return [x - y for x, y in zip(a, b, strict=True)]


# %% [markdown]
# ## Denoising queries on a scene
# What the decoder is given beside its own queries: boxes around the objects, to be moved back, and boxes further off, to be
# rejected.


# %%
def fullest(test: Scenes) -> int:
    """The first scene with the most objects."""
    return max(range(len(test)), key=lambda index: len(test.boxes[index]))


def draw_noise(style: Style, scene: Scenes, noised: Noised, moved: Tensor) -> Figure:
    canvas, undo = scene.images.shape[-1], noised.owner[0] >= 0
    figure, axes = panels(1, 4, height=2.1)
    boxes = xyxy_from_cxcywh(noised.boxes[0]) * canvas
    shown = (scene.boxes[0], boxes[undo], moved[0, undo] * canvas, boxes[~undo])
    titles = ("true boxes", "noised, to undo", "what comes out", "to reject")
    for ax, box, title in zip(axes[0], shown, titles, strict=True):
        show_image(ax, scene.images[0], title)
        draw_boxes(ax, box, linewidth=1.2)
    return figure


def noise_figure(run: Run, trained: Trained, preset: Preset) -> None:
    """Denoising queries of the fullest test scene, and what the trained decoder makes of them."""
    index = fullest(trained.test)
    scene = trained.test[index : index + 1]
    K = trained.model.class_head.out_features
    seed_everything(0)
    noised = add_noise(targets_from_scenes(scene, K), preset.noised, K)
    with torch.inference_mode():
        on_device = Noised(*(part.to(run.device) for part in noised))
        denoised = trained.model(scene.images.to(run.device), on_device).denoised
    run.figure(
        "noise",
        partial(draw_noise, scene=scene, noised=noised, moved=xyxy_from_cxcywh(denoised.boxes[-1].cpu())),
        caption="The true boxes; the noised ones that have to find back; where the trained decoder moves these; and those that "
        "are too far off, whose class has to be: no object. In use there are no such queries.",
        alt="The same scene four times: with its true boxes, with noised boxes around each object, with those boxes after the "
        "decoder, and with boxes that are further off.",
    )


# %% [markdown]
# ## From a token to a mask
# The surest queries of one scene: the places that were picked from the image, and the mask of each before the first and after
# the last layer of the decoder.


# %%
def draw_masks(style: Style, image: Tensor, picked: Tensor, before: Objects, after: Objects) -> Figure:
    sure = after["scores"].topk(min(4, len(after["scores"]))).indices.tolist()
    figure, axes = panels(2, 1 + len(sure), height=3.2)
    rows = ((before, "picked places"), (after, "boxes"))
    for row, (found, title) in zip(axes, rows, strict=True):
        show_image(row[0], image, title)
        for ax, query in zip(row[1:], sure, strict=True):
            show_image(ax, found["masks"][query], f"query {query}" if found is before else None, cmap=style.sequential)
            draw_boxes(ax, found["boxes"][query, None], linewidth=1.2, colour="white")
    at = picked * image.shape[-1] - 0.5
    axes[0, 0].scatter(at[:, 0].numpy(), at[:, 1].numpy(), s=22, color="white", edgecolors="black", linewidths=0.8)
    draw_boxes(axes[1, 0], after["boxes"][sure], linewidth=1.2)
    for ax, label in zip(axes[:, 0], ("before", "after"), strict=True):
        ax.text(-0.06, 0.5, label, transform=ax.transAxes, rotation=90, ha="right", va="center", fontweight="bold")
    return figure


def masks_figure(run: Run, trained: Trained) -> None:
    """Masks of the surest queries of the fullest test scene, before and after the decoder."""
    image = trained.test.images[fullest(trained.test), None]
    before, after = (
        {key: value.cpu() for key, value in segment(trained.model, image.to(run.device), layer)[0].items()}
        for layer in (0, -1)
    )
    with torch.inference_mode():
        picked = trained.model.select(trained.model.encode(image.to(run.device)).grid)[1][0, :, :2].cpu()
    run.figure(
        "masks",
        partial(draw_masks, image=image[0], picked=picked, before=before, after=after),
        caption="Above, the tokens that are picked as queries (dots), and the masks and boxes of the surest ones before the "
        "decoder; below, boxes and masks of the same queries after it. A mask is the dot product of one vector of the query with "
        "the embedding of every pixel (bright: likely).",
        alt="Two rows: a scene with dots at the picked places and four rough masks with their boxes; below, the scene with the "
        "final boxes and the same four masks, sharper.",
    )


# %% [markdown]
# ## One set of queries for boxes and for all kinds of segmentation
# The same output read in four ways. The semantic map sums the masks of all queries, weighted with their scores; in the
# panoptic map each pixel goes to the confident query that wants it most, and panoptic quality (arXiv:1801.00868, Eq. 1) is
# taken over the digits, the only class here.


# %%
def semantic_iou(found: Sequence[Objects], test: Scenes) -> float:
    """IoU (%) of all pixels of digits, over all scenes."""
    shared = union = 0
    for each, masks in zip(found, test.masks, strict=True):
        ours, theirs = (each["scores"][:, None, None] * each["masks"]).sum(0) > 0.5, masks.any(0)
        shared, union = shared + int((ours & theirs).sum()), union + int((ours | theirs).sum())
    return 100 * shared / max(1, union)


def panoptic_quality(found: Sequence[Objects], test: Scenes, confidence: float) -> float:
    """Sum of the IoU of matched segments over |TP| + |FP| / 2 + |FN| / 2, in %; a match has an IoU above a half."""
    overlap, segments, hits = 0.0, 0, 0
    for each, truth in zip(found, test.masks, strict=True):
        sure = each["scores"] >= confidence
        wanted = each["scores"][sure][:, None, None] * each["masks"][sure]  # (n, H, W)
        ours = torch.zeros_like(wanted, dtype=torch.bool)
        if sure.any():
            ours = (wanted == wanted.amax(0)) & (each["masks"][sure] > 0.5)
            ours = ours[ours.any((1, 2))]
        a, b = ours.flatten(1).float(), truth.flatten(1).float()
        iou = a @ b.T / (a.sum(1)[:, None] + b.sum(1) - a @ b.T)  # (n, m)
        overlap, hits = overlap + float(iou[iou > 0.5].sum()), hits + int((iou > 0.5).sum())
        segments += len(a) + len(b)
    return 100 * overlap / (hits + (segments - 2 * hits) / 2)


def described(run: Run, preset: Preset, steps: int) -> dict[str, Any]:
    """What the experiments have in common."""
    benchmark = detectors.BENCHMARKS[run.preset]
    data = f"{benchmark.scenes[0]:,} digit scenes of {benchmark.canvas} px to train, {benchmark.scenes[1]:,} others to test"
    return {
        "data": data,
        "parameters": count_parameters(MaskDINO(preset, benchmark.canvas, benchmark.classes)),
        "steps": steps,
        "floor": ("AP50 of the boxes after the whole schedule (%)", FLOOR),
    }


FLOOR = 20.0  # AP50 (%) after the whole schedule, below which a training counts as failed


def box_ap50(run: Run, trained: Sequence[Trained]) -> list[float]:
    """Of the boxes, for each seed, in %."""
    benchmark = detectors.BENCHMARKS[run.preset]
    found = (detectors.on_scenes(partial(find, each.model), each.test, run.device) for each in trained)
    return [detectors.measures(one, each.test, benchmark)["ap50"] for one, each in zip(found, trained, strict=True)]


def four_tasks(run: Run, trained: Sequence[Trained], preset: Preset) -> None:
    """Boxes, instance masks, semantic and panoptic maps of the same queries, and how good these are before the decoder."""
    benchmark = detectors.BENCHMARKS[run.preset]
    experiment = run.experiment(
        "four_tasks",
        question="Do the same queries serve detection and all kinds of segmentation?",
        **described(run, preset, sum(benchmark.steps)),
    )
    found = [detectors.on_scenes(partial(segment, each.model), each.test, run.device) for each in trained]
    pairs = list(zip(found, (each.test for each in trained), strict=True))
    scores = {
        "box_ap50": ("AP50 of the boxes", [detectors.measures(one, test, benchmark)["ap50"] for one, test in pairs]),
        "mask_ap50": ("AP50 of the masks", [each.final[1] for each in trained]),
        "semantic_iou": ("IoU of all pixels of digits", [semantic_iou(one, test) for one, test in pairs]),
        "panoptic_quality": (
            "Panoptic quality of the digits",
            [panoptic_quality(one, test, benchmark.confidence) for one, test in pairs],
        ),
    }
    experiment.check_floor(scores["box_ap50"][1])
    for name, (meaning, values) in scores.items():
        experiment.result(name, values, unit="%", meaning=f"{meaning}, from the same queries")

    def draw(style: Style) -> Figure:
        figure, axes = panels(1, 1, height=2.6)
        seed_bars(
            axes[0, 0], ["box AP50", "mask AP50", "semantic IoU", "panoptic quality"], [v for _, v in scores.values()]
        )
        axes[0, 0].set(ylabel="%", ylim=(0, 100))
        return figure

    experiment.figure(
        "four_tasks",
        draw,
        caption="The output of one model read as boxes, instances, a semantic and a panoptic map. Bars are means, dots seeds.",
        alt="Bars of box AP50, mask AP50, semantic IoU and panoptic quality, all from the same queries.",
    )


# %% [markdown]
# ## The short schedule: what each part adds
# All arms at the same early step. Without selection, queries and their first boxes are learned, the same for every image.


# %%
def ablation(run: Run, trained: Mapping[str, Sequence[Trained]], preset: Preset) -> None:
    """Mask AP50 and box AP of all arms after the short schedule."""
    experiment = run.experiment(
        "ablation", question="What does each part add in a short schedule?", **described(run, preset, preset.short)
    )
    experiment.check_floor(box_ap50(run, trained["whole"]))
    box = {
        arm: [next(ap for step, ap in each.curve if step == preset.short) for each in models]
        for arm, models in trained.items()
    }
    masks = {arm: [each.short[1] for each in models] for arm, models in trained.items()}
    for arm, label in LABELS.items():
        experiment.result(f"short_mask_ap50_{arm}", masks[arm], unit="%", meaning=f"Mask AP50, short schedule, {label}")
        experiment.result(f"short_box_ap_{arm}", box[arm], unit="%", meaning=f"Box AP, short schedule, {label}")
    for arm, label in list(LABELS.items())[1:]:
        for what, values in (("mask_ap50", masks), ("box_ap", box)):
            gap = difference(values["whole"], values[arm])
            meaning = f"{what.replace('_', ' ')} of the whole model minus {label}, short schedule"
            experiment.result(f"{what}_over_{arm}", gap, unit="points", meaning=meaning)
    first = {arm: [each.short[0] for each in trained[arm]] for arm in ("whole", "no_selection")}
    gap = difference(first["whole"], first["no_selection"])
    experiment.result(
        "first_mask_ap50_over_no_selection", gap, unit="points",
        meaning="Mask AP50 before the decoder, selected minus learned queries, short schedule",
    )  # fmt: skip
    kept = [100 * each.final[0] / max(each.final[1], 1e-9) for each in trained["whole"]]
    experiment.result(
        "masks_before_decoder", kept, unit="%",
        meaning="Mask AP50 before the decoder, as a part of that after it, whole schedule",
    )  # fmt: skip

    def draw(style: Style) -> Figure:
        figure, axes = panels(1, 2, height=3.0)
        whole = [[ap for _, ap in each.curve] for each in trained["whole"]]
        seed_lines(axes[0, 0], [step for step, _ in trained["whole"][0].curve], whole, LABELS["whole"], marker="o")
        short = [[ap for _, ap in each.curve] for each in trained["no_denoising"]]
        steps = [step for step, _ in trained["no_denoising"][0].curve]
        seed_lines(axes[0, 0], steps, short, LABELS["no_denoising"], linestyle="--", marker="s")
        axes[0, 0].set(xlabel="steps", ylabel="box AP (%)", ylim=(0, None))
        axes[0, 0].legend()
        seed_bars(
            axes[0, 1], ["whole", "no de-\nnoising", "learned\nqueries", "no mask\nmatching"], list(masks.values())
        )
        axes[0, 1].set_title("short schedule: mask AP50 (%)")
        return figure

    experiment.figure(
        "ablation",
        draw,
        caption="Left: box AP on the test scenes, the whole model over its whole schedule (last point after the learning rate "
        "has fallen), and without denoising over the short one. Right: all arms at the end of the short schedule. Bands reach "
        "from the worst to the best seed.",
        alt="Left, box AP against steps with and without denoising; right, bars of mask AP50 after the short schedule for the "
        "whole model and for three models that each lack one part.",
    )


# %% [markdown]
# ## What masks cost at the published size
# Nothing is trained here: the decoder is built with the published sizes (300 queries, 9 layers, width 256) on a device without
# memory, and the bytes are added up that training has to keep for the backward pass, masks of every layer included. Products
# are counted in the same way, for ResNet-50, an encoder of three scales, the pixel embedding and the decoder. The published
# encoder has a fourth scale, so that the count is a lower bound.

# %%
PUBLISHED = Preset(width=256, heads=8, hidden=2048, embedding=256, layers=9, queries=300)


def kept_bytes(preset: Preset, side: int) -> tuple[float, float]:
    """Bytes that training keeps for an image of side x side px, float32: of the decoder without masks, and of the masks."""
    storages: dict[int, Any] = {}

    def note(x: Tensor) -> Tensor:
        storages[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    with torch.device("meta"):
        model = MaskDINO(preset, 64, 80)
        grid, pixels = (torch.empty(1, preset.width, side // stride, side // stride) for stride in (8, 4))
        content, boxes = torch.empty(1, preset.queries, preset.width), torch.empty(1, preset.queries, 4)
    own = {each.untyped_storage()._cdata for each in (*model.parameters(), *model.buffers(), grid, pixels)}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        said = [model.read(content, boxes), *model.decode(content, boxes, grid)]
    decoder = sum(each.nbytes() for key, each in storages.items() if key not in own)
    masks = [masks_of(each.vectors, pixels) for each in said]
    return float(decoder), float(sum(each.nbytes for each in masks))


def macs(*calls: Any) -> float:
    """Multiplications with their additions of the calls, on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for call in calls:
            call()
    return float(counter.get_total_flops()) / 2


def encoder_layer(attention: DeformableAttention, mlp: nn.Module, tokens: int) -> None:
    """One layer over the tokens of one scale."""
    x = torch.empty(1, tokens, 256, device="meta")
    attention(x, torch.empty(1, tokens, 4, device="meta"), torch.empty(1, 256, tokens, 1, device="meta"))
    mlp(x)


def published_macs(height: int, width: int) -> tuple[float, float]:
    """MACs of Mask DINO (a lower bound) and of torchvision's Faster R-CNN with FPN and 1,000 proposals, both with ResNet-50."""
    with torch.device("meta"):
        image = torch.empty(1, 3, height, width)
        body = nn.Sequential(*list(resnet50(weights=None).eval().children())[:-2])
        attention, mlp = DeformableAttention(256, 8, points=12), perceptron(256, 2048, 256)  # 3 scales of 4 points
        lateral, segment_head = nn.Conv2d(256, 256, 1), nn.Conv2d(256, 256, 3, padding=1)
        model, quarter = MaskDINO(PUBLISHED, 64, 80), torch.empty(1, 256, height // 4, width // 4)
        content, boxes = torch.empty(1, PUBLISHED.queries, 256), torch.empty(1, PUBLISHED.queries, 4)
        rival = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
        regions = torch.empty(1000, 256, 7, 7)
    scales = [(height // s) * (width // s) for s in (8, 16, 32)]
    grid = torch.empty(1, 256, height // 8, width // 8, device="meta")
    layers = [partial(encoder_layer, attention, mlp, tokens) for tokens in scales for _ in range(6)]

    def decoder() -> None:
        for said in [model.read(content, boxes), *model.decode(content, boxes, grid)]:
            masks_of(said.vectors, quarter)

    ours = macs(partial(body, image), *layers, partial(lateral, quarter), partial(segment_head, quarter), decoder)
    heads = rival.roi_heads
    theirs = macs(
        lambda: rival.rpn.head(list(rival.backbone(image).values())),
        lambda: heads.box_predictor(heads.box_head(regions)),
    )
    return ours, theirs


def cost(run: Run) -> None:
    """Memory of the decoder with and without masks, by queries and by resolution, and MACs beside Faster R-CNN."""
    experiment = run.experiment(
        "cost",
        question="What do the masks cost at the published size?",
        data="None: sizes are added up, nothing is computed",
    )
    sides, numbers = (512, 768, 1024, 1280), (100, 200, 300, 600, 900)
    by_side = [kept_bytes(PUBLISHED, side) for side in sides]
    by_number = [kept_bytes(replace(PUBLISHED, queries=number), 1024) for number in numbers]
    decoder, masks = by_side[sides.index(1024)]
    exact = partial(experiment.result, exact=True)
    exact(
        "mask_memory",
        [masks / 1e9],
        unit="GB",
        meaning="Masks of all layers, one image of 1024 px, 300 queries, float32",
    )
    exact("decoder_memory", [decoder / 1e9], unit="GB", meaning="What else training keeps of the decoder, same image")
    exact("mask_part", [100 * masks / (masks + decoder)], unit="%", meaning="Part of the masks in both")
    growth = kept_bytes(PUBLISHED, 1024)[1] / by_side[0][1]
    exact(
        "mask_growth_side", [growth], unit="", meaning="Factor of the memory of masks for twice the side of the image"
    )
    growth = by_number[numbers.index(600)][1] / masks
    exact("mask_growth_queries", [growth], unit="", meaning="Factor of the memory of masks for twice the queries")
    ours, theirs = published_macs(800, 1344)
    exact("macs_lower_bound", [ours / 1e9], unit="G", meaning="MACs at 800 x 1344, ResNet-50, without the fourth scale")
    exact(
        "macs_faster_rcnn",
        [theirs / 1e9],
        unit="G",
        meaning="MACs of Faster R-CNN R50-FPN, same image, 1,000 proposals",
    )
    exact("macs_ratio", [ours / theirs], unit="", meaning="The first over the second")

    def draw(style: Style) -> Figure:
        figure, axes = panels(1, 2, height=3.0, sharey=True)
        for ax, x, values, label in (
            (axes[0, 0], sides, by_side, "side of the image (px), 300 queries"),
            (axes[0, 1], numbers, by_number, "queries, image of 1024 px"),
        ):
            ax.plot(x, [m / 1e9 for _, m in values], marker="o", label="masks")
            ax.plot(x, [d / 1e9 for d, _ in values], marker="s", linestyle="--", label="rest of the decoder")
            ax.set(xlabel=label, xticks=x)
        axes[0, 0].set(ylabel="GB for one image", ylim=(0, None))
        axes[0, 0].legend()
        return figure

    experiment.figure(
        "memory",
        draw,
        caption="Memory that training keeps for one image at the published size: a map of a quarter of the resolution for every "
        "query in every layer, and all else in the decoder. Backbone, encoder and gradients come on top.",
        alt="Two line charts of memory in gigabytes, against the side of the image and against the number of queries, for the "
        "masks and for the rest of the decoder; the masks need far more.",
    )


# %% [markdown]
# ## In use, and beside the other detectors
# Denoising queries are hidden from all others, so that leaving them out in use changes nothing: the largest difference that they
# make is measured. Then the benchmark that all detectors share.


# %%
@torch.inference_mode()
def leak(trained: Trained, preset: Preset, device: torch.device) -> float:
    """Largest change (logits, boxes from 0 to 1) of what the queries say when denoising queries are there."""
    scene = trained.test[:8].to(device)
    K = trained.model.class_head.out_features
    noised = add_noise(targets_from_scenes(scene, K), preset.noised, K)
    with_noise, without = trained.model(scene.images, noised).found, trained.model(scene.images).found
    return max(float((a - b).abs().max()) for a, b in zip(with_noise[:2], without[:2], strict=True))


@torch.inference_mode()
def boxes_of_masks(model: MaskDINO, images: Tensor) -> list[Objects]:
    """As `find` before the decoder, but with the box around each mask (mask-enhanced initialization)."""
    found = segment(model, images, layer=0)
    for each in found:
        inside = each["masks"] > 0.5
        some = inside.any(2).any(1)
        each["boxes"] = each["boxes"].clone()
        edge = torch.tensor([0, 0, 1, 1], device=inside.device)
        each["boxes"][some] = masks_to_boxes(inside[some]) + edge
    return found


def in_use(run: Run, trained: Sequence[Trained], preset: Preset) -> None:
    """What denoising changes in use, and whether masks give better first boxes."""
    benchmark = detectors.BENCHMARKS[run.preset]
    experiment = run.experiment(
        "in_use", question="What remains of denoising and of the early masks in use?",
        **described(run, preset, sum(benchmark.steps)),
    )  # fmt: skip
    experiment.check_floor(box_ap50(run, trained))
    leaks = [leak(each, preset, run.device) for each in trained]
    experiment.result(
        "denoising_leak",
        leaks,
        unit="",
        meaning="Largest change of a class logit or of a box when denoising queries are there",
    )
    boxes: list[list[float]] = []
    for detect in (partial(find, layer=0), boxes_of_masks):
        found = [detectors.on_scenes(partial(detect, each.model), each.test, run.device) for each in trained]
        boxes.append(
            [detectors.measures(one, each.test, benchmark)["ap"] for one, each in zip(found, trained, strict=True)]
        )
    experiment.result("first_box_ap", boxes[0], unit="%", meaning="AP of the boxes before the decoder")
    experiment.result("first_box_ap_of_masks", boxes[1], unit="%", meaning="AP of the boxes around the masks before it")
    gain = difference(boxes[1], boxes[0])
    experiment.result(
        "first_box_gain", gain, unit="points", meaning="Box AP gained before the decoder by taking the masks' boxes"
    )
    last = [each.curve[-1][1] for each in trained]
    gain = difference(last, boxes[0])
    experiment.result("decoder_box_gain", gain, unit="points", meaning="Box AP after the decoder minus before it")


def side_by_side(run: Run, trained: Sequence[Trained]) -> None:
    """The results and the picture of `lab.detectors`."""
    shared = [detectors.Trained(each.model, each.test, each.curve) for each in trained]
    detectors.report(run, detectors.BENCHMARKS[run.preset], shared, find, find, name="Mask DINO")


# %% [markdown]
# ## Unlike the paper
# - A small convolutional backbone trained from scratch takes the place of ResNet-50 and of the encoder of six layers; there is
#   one scale instead of four, 16 queries instead of 300, and 2 decoder layers instead of 9.
# - The pixel embedding has half of the resolution instead of a quarter, since objects have 10 to 32 px, and 16 channels. Masks
#   are compared at some cells only, those of objects first; the paper's code draws points by uncertainty.
# - Each denoising query is hidden from the others; in the paper those of one group see each other. Boxes are not initialized
#   from masks; what that would give before the decoder is measured.
# - Learned queries are a control inside this model, not Mask2Former. All digits are one class in the small runs, so that only
#   boxes are noised, not labels: the task that denoising makes easier, to tell which object a query belongs to, is smaller here.
# - Losses are a mean over the layers; there is no augmentation and no pretraining.


# %%
def main(argv: Sequence[str] | None = None) -> None:
    """Run all experiments and write the record."""
    run = Run.start("mask-dino", argv=argv)
    if run.settings.weights == "pretrained":
        raise SystemExit("mask-dino has no pretrained weights to load: they need Detectron2 and a compiled operator")
    preset = PRESETS[run.preset]
    trained = {arm: [train(run, arm, preset, seed) for seed in run.seeds] for arm in ARMS}
    noise_figure(run, trained["whole"][0], preset)
    masks_figure(run, trained["whole"][0])
    four_tasks(run, trained["whole"], preset)
    ablation(run, trained, preset)
    cost(run)
    in_use(run, trained["whole"], preset)
    side_by_side(run, trained["whole"])
    run.finish()


if __name__ == "__main__":
    main()
