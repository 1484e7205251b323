# %% [markdown]
# # Mask R-CNN: why must the features of a region not be rounded?
#
# A two-stage detector gets a third head, which draws a mask inside each box. A class survives features that are shifted by
# half a cell, a mask does not: so RoIAlign takes the place of RoIPool. The shift is computed, then both feed the mask head
# of the same trained network. The last experiments ask what a mask can lose to its box and to its 28 x 28 cells, and what
# it costs.
#
# | symbol (arXiv:1703.06870) | here | meaning |
# |---|---|---|
# | RoI | `rois` | a region of an image: the image's index in the batch, then x0 y0 x1 y1 in pixels |
# | $x / 16$, $[x / 16]$ | `CROPS` | place on the feature map, as it is (RoIAlign) or rounded (RoIPool) |
# | $m$ | `MASK` | cells along each side of a mask |
# | $L_{cls} + L_{box} + L_{mask}$ | `loss` | paid for each sampled region |

# %%
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import skimage.data
import torch
from lab import detectors
from lab.data.scenes import Scenes
from lab.detectors import BENCHMARKS, Benchmark, Trained, scenes_of
from lab.figures import Style, draw_boxes, panels, seed_bars, show_image
from lab.metrics import average_precision, timed
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, roi_align, roi_pool

STRIDE, WIDTH, HIDDEN = 8, 64, 96  # of the feature map; channels; of the box head
GRID, CUT, MASK = 4, 14, 28  # cells of a region for the box head and the mask head, and of a mask
SLIM = 24  # channels of the mask head; 256 in the paper
SAMPLED, REGIONS, BEFORE, AFTER = 64, 16, 64, 32  # anchors and regions of an image in the losses; before and after NMS
MASKS = 2  # regions of an image, at most, whose masks the loss counts
SIDES, RATIOS = (10.0, 16.0, 26.0), (1.0, 1.8)  # of the anchors
SPREAD = (0.1, 0.1, 0.2, 0.2)  # typical size of the second stage's offsets
LEARNING_RATE = 2e-3
FLOOR = ("mask AP50 (%)", 20.0)  # below it a training counts as failed
HEAD_STEPS = {"smoke": 3, "quick": 80, "full": 2_000}  # of each mask head on the frozen network
Features = Callable[[Tensor, Tensor, int], Tensor]

# %% [markdown]
# ## The regions, cut out in two ways
# RoIAlign reads the map between its cells, by bilinear interpolation, exactly where the box is. RoIPool rounds the box to
# whole cells, and each of its bins once more, then takes the maximum.

# RoIAlign acts on rows and columns apart, $A_y F A_x^\top$, which a CPU computes faster than the gathered samples.


# %%
def sampling(start: Tensor, end: Tensor, size: int, length: int, samples: int = 2) -> Tensor:
    """How much each cell of a region takes of each cell of the map along one axis: edges (R,) px -> (R, size, length)."""
    at = (torch.arange(size * samples, device=start.device) + 0.5) / (size * samples)
    x = (start[:, None] + (end - start)[:, None] * at) / STRIDE - 0.5  # on the map, where the middle of cell 0 is 0
    distance = (x.clamp(0, length - 1)[..., None] - torch.arange(length, device=start.device)).abs()
    near = (1 - distance).clamp(min=0)  # (R, size samples, length)
    out: Tensor = near.reshape(len(near), size, samples, length).mean(2)
    return out


def align(maps: Tensor, rois: Tensor, size: int) -> Tensor:
    """RoIAlign with 2 x 2 samples in each cell, for boxes inside the image: (R, C, size, size)."""
    image, x0, y0, x1, y1 = rois.unbind(1)
    rows, columns = sampling(y0, y1, size, maps.shape[2]), sampling(x0, x1, size, maps.shape[3])
    mine = maps.transpose(1, 2)[image.long()].flatten(2)  # (B, H, C, W) -> (R, H, C W)
    seen = (rows @ mine).view(len(rois), -1, maps.shape[3]) @ columns.transpose(1, 2)  # (R, size C, W) -> (.., size)
    return seen.view(len(rois), size, -1, size).transpose(1, 2)  # (R, size, C, size) -> (R, C, size, size)


def pool(maps: Tensor, rois: Tensor, size: int) -> Tensor:
    """RoIPool: (R, C, size, size)."""
    out: Tensor = roi_pool(maps, rois, size, 1 / STRIDE)
    return out


CROPS: dict[str, Features] = {"align": align, "pool": pool}


def backbone() -> nn.Sequential:
    """Images (B, 3, H, W) -> features (B, C, H / 8, W / 8)."""
    layers: list[nn.Module] = []
    widths = pairwise((3, WIDTH // 4, WIDTH // 2, WIDTH, WIDTH))
    for (inputs, outputs), stride in zip(widths, (2, 2, 2, 1), strict=True):
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def mask_head() -> nn.Sequential:
    """A small fully convolutional network: (R, C, 14, 14) -> logits (R, 1, 28, 28)."""
    layers: list[nn.Module] = [nn.Conv2d(WIDTH, SLIM, 1), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(SLIM, SLIM, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(SLIM, SLIM, 2, stride=2), nn.ReLU(), nn.Conv2d(SLIM, 1, 1))


def dense_mask_head() -> nn.Sequential:
    """The fully-connected rival (Table 2e): it flattens the region into a vector first."""
    layers = [nn.Conv2d(WIDTH, SLIM, 1), nn.ReLU(), nn.Flatten(), nn.Linear(SLIM * CUT**2, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, MASK**2), nn.Unflatten(1, (1, MASK, MASK)))


class MaskRCNN(nn.Module):
    """Backbone, proposals, box head and mask head; boxes and masks are shared by all classes K."""

    def __init__(self, classes: int, canvas: int) -> None:
        super().__init__()
        self.canvas, k = canvas, len(SIDES) * len(RATIOS)
        self.backbone = backbone()
        self.rpn = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, 5 * k, 1))
        self.anchors = nn.Buffer(anchors_of(canvas // STRIDE))
        inputs = nn.Linear(WIDTH * GRID**2, HIDDEN)
        self.hidden = nn.Sequential(nn.Flatten(), inputs, nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
        self.judge, self.mask = nn.Linear(HIDDEN, classes + 1 + 4), mask_head()

    def stage_one(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, N) and offsets (B, N, 4) of all anchors."""
        out = self.rpn(features).float().permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 5))  # (B, H W k, 5)
        return out[..., 0] - 2, 0.1 * out[..., 1:]  # objects are rare

    @torch.no_grad()
    def proposals(self, logits: Tensor, offsets: Tensor) -> Tensor:
        """The best boxes after suppression: rois (R, 5)."""
        boxes = clip_boxes_to_image(decode(offsets, self.anchors), (self.canvas, self.canvas))
        scores, index = logits.topk(BEFORE)  # (B, BEFORE)
        flat = boxes.gather(1, index[..., None].expand(-1, -1, 4)).flatten(0, 1)  # (B BEFORE, 4)
        image = torch.arange(len(logits), device=flat.device).repeat_interleave(BEFORE)
        keep = batched_nms(flat, scores.flatten(), image, 0.7)
        keep = torch.cat([keep[image[keep] == each][:AFTER] for each in range(len(logits))])
        return torch.cat([image[keep, None], flat[keep]], dim=1)

    def stage_two(self, features: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (R, K + 1), the last for background, and corrected boxes' offsets (R, 4)."""
        out = self.judge(self.hidden(CROPS["align"](features.float(), rois, GRID))).float()
        return out[:, :-4], out[:, -4:] * out.new_tensor(SPREAD)


# %% [markdown]
# ## Two stages of boxes
# As in [Faster R-CNN](faster-rcnn.md): anchors are scored and corrected, the best become regions, and these are judged and
# corrected again. A region belongs to the object that it overlaps by an IoU of at least 0.5.


# %%
def anchors_of(side: int) -> Tensor:
    """Boxes xyxy in pixels at each place of a square map: (side side k, 4)."""
    sides = torch.tensor([(s / r**0.5, s * r**0.5) for s in SIDES for r in RATIOS])  # (k, 2) w, h
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centre = (torch.stack([x, y], -1) + 0.5).view(-1, 1, 2) * STRIDE  # (H, W, 2) -> (H W, 1, 2)
    return torch.cat([centre - sides / 2, centre + sides / 2], dim=-1).flatten(0, 1)  # (H W, k, 4) -> (H W k, 4)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Offsets of boxes (..., 4) from anchors (..., 4)."""
    size, own = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    return torch.cat([shift / size, (own / size).log()], dim=-1)


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of `encode`: boxes xyxy (..., 4)."""
    size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + offsets[..., :2] * size
    half = size * offsets[..., 2:].clamp(max=2.77).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def rois_of(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes (n, 4) of each of B images -> rois (R, 5)."""
    return torch.cat([functional.pad(each, (1, 0), value=index) for index, each in enumerate(boxes)])


def match(rois: Tensor, truth: Tensor, high: float, low: float, best: bool = False) -> Tensor:
    """The object of each region among those of its image: (R,); -1 for background, -2 where it does not count."""
    overlap = box_iou(rois[:, 1:], truth[:, 1:]).masked_fill(rois[:, :1] != truth[:, 0], 0.0)  # (R, M)
    value, owner = overlap.max(1)
    out = torch.where(value >= high, owner, torch.where(value < low, -1, -2))
    if best:
        top = overlap.amax(0)
        is_best = (overlap >= top - 1e-4) & (top > 0)
        out = torch.where(is_best.any(1), overlap.masked_fill(~is_best, -1.0).argmax(1), out)
    return out


def sample(owner: Tensor, count: int, positive: float) -> Tensor:
    """Indices of a random choice, those with an object first and at most a part `positive` of them."""
    drawn = [each[torch.randperm(len(each), device=each.device)] for each in
             ((owner >= 0).nonzero()[:, 0], (owner == -1).nonzero()[:, 0])]  # fmt: skip
    objects = drawn[0][: round(positive * count)]
    return torch.cat([objects, drawn[1][: count - len(objects)]])


# %% [markdown]
# ## The third head and its loss
# The target of a mask is the part of the object inside its region, in 28 x 28 cells. The loss is the mean binary
# cross-entropy of the regions that have an object.


# %%
def mask_targets(masks: Tensor, owner: Tensor, boxes: Tensor) -> Tensor:
    """The part of each object (M, H, W) that each of its cells covers: owner (R,), boxes (R, 4) -> (R, 1, 28, 28)."""
    rois = torch.cat([owner[:, None].to(boxes.dtype), boxes], dim=1)
    out: Tensor = roi_align(masks[:, None].to(boxes.dtype), rois, MASK, 1.0, -1, aligned=True)
    return out


def paste(masks: Tensor, boxes: Tensor, canvas: int) -> Tensor:
    """Probabilities (R, m, m) inside boxes (R, 4) -> masks of the image, bool (R, H, W), cut at 0.5."""
    at = torch.arange(canvas, device=boxes.device) + 0.5
    x, y = (
        (at - boxes[:, i, None]) / (boxes[:, i + 2] - boxes[:, i])[:, None] * 2 - 1 for i in (0, 1)
    )  # (R, W), (R, H)
    grid = torch.stack([x[:, None].expand(-1, canvas, -1), y[:, :, None].expand(-1, -1, canvas)], dim=-1)
    return functional.grid_sample(masks[:, None], grid, align_corners=False)[:, 0] >= 0.5


def box_loss(offsets: Tensor, anchors: Tensor, boxes: Tensor, spread: Sequence[float]) -> Tensor:
    scale = offsets.new_tensor(spread)
    return functional.smooth_l1_loss(offsets / scale, encode(boxes, anchors) / scale, beta=1 / 9, reduction="sum")


def loss(model: MaskRCNN, scenes: Scenes) -> Tensor:
    """All three heads and the proposals, trained together."""
    features, truth = model.backbone(scenes.images), rois_of(scenes.boxes)
    logits, offsets = model.stage_one(features)
    with torch.no_grad():
        anchors = rois_of([model.anchors] * len(scenes))  # (B N, 5)
        owner = match(anchors, truth, 0.7, 0.3, best=True)
        chosen = sample(owner, SAMPLED * len(scenes), 0.5)
        objects = chosen[owner[chosen] >= 0]
    rpn = functional.binary_cross_entropy_with_logits(logits.flatten()[chosen], (owner[chosen] >= 0).float())
    wanted = truth[owner[objects], 1:]
    rpn = rpn + box_loss(offsets.flatten(0, 1)[objects], anchors[objects, 1:], wanted, (1.0,) * 4) / len(chosen)

    rois = torch.cat([model.proposals(logits, offsets), truth])  # true boxes join while training
    owner = match(rois, truth, 0.5, 0.5)
    chosen = sample(owner, REGIONS * len(scenes), 0.25)
    rois, owner = rois[chosen], owner[chosen]
    classes, shifts = model.stage_two(features, rois)
    real = owner >= 0
    labels = torch.where(real, torch.cat(list(scenes.labels))[owner], classes.shape[1] - 1)
    box = box_loss(shifts[real], rois[real, 1:], truth[owner[real], 1:], SPREAD) / len(rois)
    drawn = real.nonzero()[: MASKS * len(scenes), 0]
    mask = mask_loss(model.mask, align, features, rois[drawn], owner[drawn], torch.cat(list(scenes.masks)))
    return rpn + functional.cross_entropy(classes, labels) + box + mask


def mask_loss(head: nn.Module, crop: Features, features: Tensor, rois: Tensor, owner: Tensor, masks: Tensor) -> Tensor:
    """Mean binary cross-entropy of the masks of regions that have an object."""
    logits = head(crop(features.float(), rois, CUT)).float()
    return functional.binary_cross_entropy_with_logits(logits, mask_targets(masks, owner, rois[:, 1:]))


# %% [markdown]
# ## From an image to masks
# Boxes come first and are thinned; only those that are left get a mask.


# %%
def boxes_from(
    model: MaskRCNN, rois: Tensor, classes: Tensor, shifts: Tensor, count: int, nms: float
) -> list[dict[str, Tensor]]:
    boxes = clip_boxes_to_image(decode(shifts, rois[:, 1:]), (model.canvas, model.canvas))
    scores = classes.softmax(1)[:, :-1]  # (R, K)
    index, label = (scores >= 0.05).nonzero().unbind(1)
    boxes, scores, image = boxes[index], scores[index, label], rois[index, 0].long()
    keep = batched_nms(boxes, scores, image * 1000 + label, nms)
    parts = [keep[image[keep] == each] for each in range(count)]
    return [{"boxes": boxes[part], "scores": scores[part], "labels": label[part]} for part in parts]


def detect(model: MaskRCNN, images: Tensor, nms: float = 0.5) -> list[dict[str, Tensor]]:
    """Final boxes of images; nms = 1 suppresses none of them."""
    features = model.backbone(images)
    rois = model.proposals(*model.stage_one(features))
    return boxes_from(model, rois, *model.stage_two(features, rois), len(images), nms)


def masks_from(
    model: MaskRCNN, head: nn.Module, crop: Features, images: Tensor, boxes: Sequence[Tensor]
) -> list[Tensor]:
    """Masks (n, H, W), bool, of given boxes of each image."""
    rois = rois_of(boxes)
    inside = head(crop(model.backbone(images).float(), rois, CUT)).float().sigmoid()[:, 0]  # (R, 28, 28)
    return list(torch.split(paste(inside, rois[:, 1:], model.canvas), [len(each) for each in boxes]))


@torch.inference_mode()
def segmented(run: Run, trained: Trained[MaskRCNN], head: nn.Module, crop: Features) -> list[dict[str, Tensor]]:
    """Boxes, scores, labels and masks of the test scenes, on the CPU."""
    found: list[dict[str, Tensor]] = []
    for images in torch.split(trained.test.images, 50):
        part = detect(trained.model, images.to(run.device))
        masks = masks_from(trained.model, head, crop, images.to(run.device), [each["boxes"] for each in part])
        found += [{k: v.cpu() for k, v in (each | {"masks": m}).items()} for each, m in zip(part, masks, strict=True)]
    return found


@torch.inference_mode()
def draw_masks(style: Style, scene: Scenes, model: MaskRCNN, device: torch.device) -> Figure:
    images = scene.images.to(device)
    features = model.backbone(images)
    rois = model.proposals(*model.stage_one(features))
    (found,) = detect(model, images)
    boxes = found["boxes"][found["scores"] >= min(0.5, float(found["scores"].max()))]
    (masks,) = masks_from(model, model.mask, CROPS["align"], images, [boxes])
    cells = model.mask(CROPS["align"](features, rois_of([boxes]), CUT)).sigmoid()[0, 0]
    figure, axes = panels(1, 4, height=2.1)
    show_image(axes[0, 0], scene.images[0], f"{len(rois)} regions")
    draw_boxes(axes[0, 0], rois[:, 1:].cpu(), linewidth=0.7)
    show_image(axes[0, 1], scene.images[0], f"{len(boxes)} final boxes")
    draw_boxes(axes[0, 1], boxes.cpu())
    show_image(axes[0, 2], cells.cpu(), "best one's mask", cmap=style.sequential)
    tinted = scene.images[0].clone() * 0.6
    for index, mask in enumerate(masks.cpu()):
        colour = torch.tensor([(0.95, 0.83, 0.29), (0.3, 0.75, 0.95), (0.95, 0.45, 0.6), (0.5, 0.9, 0.5)][index % 4])
        tinted[:, mask] = colour[:, None]
    show_image(axes[0, 3], tinted, "all masks")
    return figure


def masks_figure(run: Run, trained: Trained[MaskRCNN]) -> None:
    """Regions, boxes and masks of the test scene with the most objects."""
    index = max(range(len(trained.test)), key=lambda i: len(trained.test.boxes[i]))
    run.figure(
        "masks",
        partial(draw_masks, scene=trained.test[index : index + 1], model=trained.model, device=run.device),
        caption="From regions to masks on the first test scene with the most objects: boxes first,"
        " then a mask of 28 x 28 probabilities for each (third: the best one's), resized to its box and cut at 0.5.",
        alt="Four pictures of one scene: proposed regions, final boxes, one mask as a grid of probabilities, and all masks.",
    )


# %% [markdown]
# ## The rounding, computed
# A square box is put at all places relative to the grid. Its edges are rounded to whole cells of the map, as RoIPool does
# before it pools, and compared with the box. On a map that holds its own x coordinate, RoIAlign's answer moves with the
# box, RoIPool's jumps.


# %%
def rounded_iou(side: float, stride: int) -> float:
    """Mean IoU of a square box and the same box with rounded edges, over all places."""
    low = torch.arange(0.25, stride, 0.5)  # (P,), edges along one axis
    ends = torch.stack([low, low + side])
    cells = (ends / stride).round() * stride
    cells[1] = torch.maximum(cells[1], cells[0] + stride)  # a box has at least one cell
    shared = torch.minimum(ends[1], cells[1]) - torch.maximum(ends[0], cells[0])  # (P,)
    both = shared.clamp(min=0)[:, None] * shared.clamp(min=0)
    size = cells[1] - cells[0]
    return float((both / (side**2 + size[:, None] * size - both)).mean())


def responses(crop: Features, shifts: Tensor) -> Tensor:
    """What the middle bin of a box of 28 px reads from a map of x coordinates (px) as it moves: (P,)."""
    ramp = ((torch.arange(16) + 0.5) * STRIDE).expand(1, 1, 16, 16)
    boxes = torch.tensor([20.0, 20.0, 48.0, 48.0]) + shifts[:, None] * torch.tensor([1.0, 0.0, 1.0, 0.0])
    read: Tensor = crop(ramp.contiguous(), functional.pad(boxes, (1, 0)), 7)[:, 0, 3, 3]
    return read - read[0]


def rounding(run: Run) -> None:
    """IoU after rounding by size and stride, and the shift of the operators."""
    experiment = run.experiment("rounding", question="How far does rounding move a box?", data="boxes at all places")
    sides, strides = (16, 32, 64, 128, 256), (8, 16, 32)
    ious = {stride: [rounded_iou(side, stride) for side in sides] for stride in strides}
    for stride in strides:
        for side, value in zip(sides, ious[stride], strict=True):
            experiment.result(f"rounded_iou_{side}px_stride{stride}", [value], unit="", exact=True,
                              meaning=f"Box IoU after rounding to stride {stride}, box of {side} px")  # fmt: skip
    moves = torch.arange(0, 16.25, 0.25)
    read = {name: responses(crop, moves) for name, crop in CROPS.items()}
    for name, values in read.items():
        error = float((values - moves).abs().max())
        experiment.result(f"shift_{name}", [error], unit="px", exact=True,
                          meaning=f"Largest error of the place that RoI{name.title()} reads, stride 8")  # fmt: skip

    def draw(style: Style) -> Figure:
        figure, axes = panels(1, 3, height=2.7)
        show_image(axes[0, 0], torch.full((64, 64), 0.25), "one box, stride 16")
        for line in range(0, 65, 16):
            axes[0, 0].axhline(line - 0.5, color="0.5", linewidth=0.6)
            axes[0, 0].axvline(line - 0.5, color="0.5", linewidth=0.6)
        box = torch.tensor([[9.0, 6.0, 41.0, 38.0]])
        draw_boxes(axes[0, 0], box)
        draw_boxes(axes[0, 0], (box / 16).round() * 16, colour="#6CC5F0", linestyle="--")
        for (name, seen), dashes in zip(read.items(), ("-", "--"), strict=True):
            axes[0, 1].plot(moves, seen, linestyle=dashes, label=f"RoI{name.title()}")
        axes[0, 1].set(xlabel="box moved by (px)", ylabel="features moved by (px)")
        for stride, values in ious.items():
            axes[0, 2].plot(sides, values, marker="o", markersize=3, label=f"stride {stride}")
        axes[0, 2].set_xscale("log", base=2)
        axes[0, 2].set_xticks(sides, [str(side) for side in sides])
        axes[0, 2].set(xlabel="side of the box (px)", ylabel="IoU after rounding", ylim=(0, 1))
        for ax in axes[0, 1:]:
            ax.legend()
        return figure

    experiment.figure(
        "shift",
        draw,
        caption="Left: a box (solid) and its edges rounded to the grid (dashed). Middle: what both operators read as the box "
        "moves. Right: IoU of the rounded box with the true one, mean over all places.",
        alt="A box with its rounded copy on a grid; a straight line for RoIAlign and stairs for RoIPool; IoU after rounding "
        "rising with the side of the box, lower for larger strides.",
    )


# %% [markdown]
# ## The same network, three mask heads
# The trained network is frozen. Three new mask heads learn on it, with equal steps and regions: convolutional on RoIAlign,
# the same on RoIPool, and fully-connected on RoIAlign. Boxes and scores are those of the same detector in all three.

# %%
HEADS: dict[str, tuple[Callable[[], nn.Module], Features, str]] = {
    "align": (mask_head, CROPS["align"], "RoIAlign"),
    "pool": (mask_head, CROPS["pool"], "RoIPool"),
    "dense": (dense_mask_head, CROPS["align"], "fully\nconnected"),
}


def trained_head(run: Run, benchmark: Benchmark, seed: int, trained: Trained[MaskRCNN], arm: str) -> nn.Module:
    """A mask head on the frozen network; its regions are true boxes, moved by up to a tenth of their sides."""
    build, crop, _ = HEADS[arm]
    seed_everything(seed)
    head, model, scenes = build(), trained.model, scenes_of(benchmark, "train", seed)
    steps = HEAD_STEPS[run.preset]
    order = minibatches((torch.arange(len(scenes)),), benchmark.batch, steps, seed)

    def step_loss(head: nn.Module, batch: Scenes) -> Tensor:
        truth = rois_of(batch.boxes)
        with torch.no_grad():
            features = model.backbone(batch.images)
        sides = (truth[:, 3:] - truth[:, 1:3]).repeat(1, 2)
        moved = truth[:, 1:] + sides * (torch.rand_like(sides) - 0.5) * 0.2
        rois = torch.cat([truth[:, :1], clip_boxes_to_image(moved, (model.canvas, model.canvas))], dim=1)
        owner = torch.arange(len(rois), device=rois.device)
        return mask_loss(head, crop, features, rois, owner, torch.cat(list(batch.masks)))

    fit(head, lambda _: (scenes[next(order)[0]],), step_loss, steps=steps, learning_rate=LEARNING_RATE,
        device=run.device, progress=partial(run.progress, what=f"{arm} head, seed {seed}"))  # fmt: skip
    return head


def scored(found: list[dict[str, Tensor]], test: Scenes, benchmark: Benchmark) -> dict[str, float]:
    """Box AP and mask AP in %."""
    truth = [{"boxes": b, "labels": x, "masks": m} for b, x, m in zip(test.boxes, test.labels, test.masks, strict=True)]
    box, mask = (average_precision(found, truth, benchmark.sizes, iou) for iou in ("bbox", "segm"))
    return {"box_ap": 100 * box["ap"]} | {f"mask_{key}": 100 * mask[key] for key in ("ap", "ap50", "ap75")}


def mask_features(
    run: Run, benchmark: Benchmark, trained: Sequence[Trained[MaskRCNN]]
) -> dict[str, list[tuple[nn.Module, list[dict[str, Tensor]]]]]:
    """Mask AP of the three heads; returns each head with what it found, for each seed."""
    experiment = run.experiment(
        "mask_features",
        question="What do the masks lose when the features are rounded?",
        data=f"{benchmark.scenes[0]:,} digit scenes to train, {benchmark.scenes[1]:,} others to test",
        parameters=count_parameters(trained[0].model),
        steps=HEAD_STEPS[run.preset],
        floor=FLOOR,
    )
    heads: dict[str, list[tuple[nn.Module, list[dict[str, Tensor]]]]] = {arm: [] for arm in HEADS}
    scores: dict[str, list[dict[str, float]]] = {arm: [] for arm in HEADS}
    for arm, (_, crop, _) in HEADS.items():
        for seed, each in zip(run.seeds, trained, strict=True):
            head = trained_head(run, benchmark, seed, each, arm)
            heads[arm].append((head, segmented(run, each, head, crop)))
            scores[arm].append(scored(heads[arm][-1][1], each.test, benchmark))
    experiment.check_floor(*([score["mask_ap50"] for score in of_arm] for of_arm in scores.values()))
    for arm, (_, _, label) in HEADS.items():
        name = " ".join(label.split())
        for key in ("mask_ap", "mask_ap50", "mask_ap75"):
            values = [score[key] for score in scores[arm]]
            experiment.result(f"{key}_{arm}", values, unit="%", meaning=f"{key.replace('_', ' ')}, {name} head")
        experiment.result(f"head_parameters_{arm}", [count_parameters(heads[arm][0][0])], unit="", exact=True,
                          meaning=f"Parameters of the {name} head")  # fmt: skip
    experiment.result("box_ap", [score["box_ap"] for score in scores["align"]], unit="%", meaning="Box AP of all three")
    for name, key, other in (("align_gain", "mask_ap", "pool"), ("align_gain75", "mask_ap75", "pool"),
                             ("align_gain50", "mask_ap50", "pool"), ("convolution_gain", "mask_ap", "dense")):  # fmt: skip
        gain = [a[key] - b[key] for a, b in zip(scores["align"], scores[other], strict=True)]
        what = f"{key.replace('_', ' ')} of the RoIAlign head minus that of the {other} head"
        experiment.result(name, gain, unit="points", meaning=what[0].upper() + what[1:])

    def draw(style: Style) -> Figure:
        figure, axes = panels(1, 3, height=2.6, sharey=True)
        for ax, (key, title) in zip(axes[0], (("mask_ap50", "AP50"), ("mask_ap", "AP"), ("mask_ap75", "AP75")),
                                    strict=True):  # fmt: skip
            seed_bars(ax, [HEADS[arm][2] for arm in HEADS], [[s[key] for s in scores[arm]] for arm in HEADS])
            ax.set_title(f"mask {title} (%)")
        return figure

    experiment.figure(
        "heads",
        draw,
        caption="Mask AP of three heads on the same frozen detector. Bars are means, dots are seeds.",
        alt="Three bar charts of mask AP50, AP and AP75 for heads on RoIAlign, on RoIPool, and fully connected.",
    )
    return heads


# %% [markdown]
# ## What limits a mask
# Its box: the same head draws the masks of found objects in the predicted and in the true boxes. Its score: that of the
# class, compared with the mask's IoU. Its cells: the silhouette of a horse at several sizes is averaged over 28 x 28 or
# 14 x 14 cells and enlarged again, which is the best that a perfect head could do. Boundary IoU counts only the pixels
# within 2 px of an outline.


# %%
def mask_iou(one: Tensor, other: Tensor) -> Tensor:
    """IoU of pairs of masks, (n, H, W) -> (n,)."""
    return (one & other).sum((1, 2)) / (one | other).sum((1, 2)).clamp(min=1)


@torch.inference_mode()
def against_truth(
    run: Run, trained: Trained[MaskRCNN], head: nn.Module, found: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Of each detection with a box IoU of at least 0.5: score, mask IoU, mask IoU drawn in the true box, box IoU."""
    test, rows = trained.test, []
    true_masks = masks_from(trained.model, head, CROPS["align"], test.images.to(run.device),
                            [each.to(run.device) for each in test.boxes])  # fmt: skip
    for index, each in enumerate(found):
        overlap = box_iou(each["boxes"], test.boxes[index])
        value, owner = overlap.max(1)
        good = value >= 0.5
        goal = test.masks[index][owner[good]]
        of_true = mask_iou(true_masks[index].cpu()[owner[good]], goal)
        rows.append(torch.stack([each["scores"][good], mask_iou(each["masks"][good], goal), of_true, value[good]]))
    return dict(zip(("score", "iou", "iou_true_box", "box_iou"), torch.cat(rows, 1), strict=True))


def edge(mask: Tensor) -> Tensor:
    """The pixels of masks (1, H, W) within 2 px of the outline, inside."""
    outside = functional.max_pool2d(functional.pad(1 - mask.float(), (2,) * 4, value=1.0), 5, stride=1)
    return mask & (outside > 0)


def ceiling(side: int, cells: int) -> tuple[float, float, Tensor]:
    """IoU, boundary IoU and the mask of a horse with `side` px (longer side), kept in cells x cells."""
    horse = torch.from_numpy(~skimage.data.horse())
    y, x = horse.nonzero().unbind(1)
    horse = horse[y.min() : y.max() + 1, x.min() : x.max() + 1][None, None].float()
    height, width = (round(n * side / max(horse.shape)) for n in horse.shape[2:])
    small = functional.interpolate(horse, (height, width), mode="area")[0] >= 0.5  # (1, H, W)
    mask = functional.pad(small, (8, 8 + side - width, 8, 8 + side - height))  # a square canvas
    box = torch.tensor([[0.0, 8.0, 8.0, 8.0 + width, 8.0 + height]])
    kept = roi_align(mask[None].float(), box, cells, 1.0, -1, aligned=True)[:, 0]
    again = paste(kept, box[:, 1:], mask.shape[2])
    return float(mask_iou(mask, again)), float(mask_iou(edge(mask), edge(again))), again[0]


def limits(
    run: Run, trained: Sequence[Trained[MaskRCNN]], heads: list[tuple[nn.Module, list[dict[str, Tensor]]]]
) -> None:
    """Masks in true and predicted boxes, scores against masks, and the ceiling of the cells."""
    experiment = run.experiment(
        "limits", question="What limits a mask?", data="the test scenes; a silhouette", floor=FLOOR
    )
    benchmark = BENCHMARKS[run.preset]
    experiment.check_floor(
        [scored(found, each.test, benchmark)["mask_ap50"] for each, (_, found) in zip(trained, heads, strict=True)]
    )
    pairs = [against_truth(run, each, *head) for each, head in zip(trained, heads, strict=True)]
    loss_to_box = [float((each["iou_true_box"] - each["iou"]).mean()) for each in pairs]
    experiment.result("mask_iou", [float(p["iou"].mean()) for p in pairs], unit="", meaning="Mask IoU, predicted boxes")
    experiment.result("box_cost", loss_to_box, unit="", meaning="Mask IoU in true boxes minus that in predicted boxes")
    agree = [float(spearmanr(each["score"], each["iou"]).statistic) for each in pairs]
    experiment.result("score_agreement", agree, unit="", meaning="Rank correlation of score and mask IoU")
    sides = (28, 56, 112, 224, 384)
    kept = {cells: [ceiling(side, cells)[:2] for side in sides] for cells in (14, 28)}
    for cells, values in kept.items():
        for side, (iou, boundary) in zip(sides, values, strict=True):
            for name, value in (("ceiling", iou), ("boundary", boundary)):
                experiment.result(f"{name}_{cells}cells_{side}px", [value], unit="", exact=True,
                                  meaning=f"Best {name} IoU in {cells} x {cells} cells at {side} px")  # fmt: skip
    lost = kept[28][1][1] - kept[28][-1][1]
    experiment.result("outline_lost", [lost], unit="", exact=True,
                      meaning="Boundary IoU of the ceiling, an object of 56 px minus one of 384 px")  # fmt: skip

    def draw(style: Style) -> Figure:
        figure, axes = panels(2, 2, height=4.8)
        axes[0, 0].plot(pairs[0]["box_iou"], pairs[0]["iou"], "o", markersize=2)
        axes[0, 0].set(xlabel="IoU of the box", ylabel="IoU of the mask", ylim=(0, 1))
        axes[0, 1].plot(pairs[0]["score"], pairs[0]["iou"], "o", markersize=2)
        axes[0, 1].set(xlabel="score", ylabel="IoU of the mask", ylim=(0, 1))
        show_image(axes[1, 0], ceiling(384, 28)[2], "384 px, kept in 28 x 28 cells")
        for cells, line in ((28, "-"), (14, "--")):
            for which, label in enumerate(("mask", "boundary")):
                axes[1, 1].plot(sides, [each[which] for each in kept[cells]], line, marker="o", markersize=3,
                                color=style.cycle[which], label=f"{label}, {cells} x {cells}")  # fmt: skip
        axes[1, 1].set_xscale("log", base=2)
        axes[1, 1].set_xticks(sides, [str(side) for side in sides])
        axes[1, 1].minorticks_off()
        axes[1, 1].set(xlabel="side of the object (px)", ylabel="best IoU", ylim=(0, 1))
        axes[1, 1].legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2, columnspacing=0.8)
        return figure

    experiment.figure(
        "limits",
        draw,
        caption="Above: the mask's IoU of each found object against the IoU of its box and against its score (first seed). "
        "Below: a horse of 384 px after 28 x 28 cells, and the best IoU of mask and boundary by size.",
        alt="Two scatter plots of mask IoU, over box IoU and over score; a silhouette of a horse, smoothed; and lines of the "
        "best IoU, which for the boundary falls with the size of the object.",
    )


# %% [markdown]
# ## What the masks cost
# MACs of torchvision's Mask R-CNN (R50-FPN, 800 x 1344 px) are counted on the meta device: the parts it has in common with
# Faster R-CNN, which judge 1,000 regions, and the mask branch for 100 final boxes. Beside them, the time of each stage of
# the small detector on one image.


# %%
def macs(module: Any, *inputs: Any) -> tuple[float, Any]:
    """MACs of a call in G, and what it returns."""
    with FlopCounterMode(display=False) as counter:
        out = module(*inputs)
    return counter.get_total_flops() / 2e9, out


def published() -> tuple[dict[str, float], dict[str, float]]:
    """MACs (G) of each part, and other counts: parameters (M) of both detectors, MACs (G) of a ResNet-50 classifier."""
    with torch.device("meta"):
        model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        base, maps = macs(model.backbone, torch.empty(1, 3, 800, 1344))
        rpn, _ = macs(model.rpn.head, list(maps.values()))
        box, _ = macs(model.roi_heads.box_head, torch.empty(1000, 256, 7, 7))
        branch = nn.Sequential(model.roi_heads.mask_head, model.roi_heads.mask_predictor)
        mask, _ = macs(branch, torch.empty(100, 256, 14, 14))
        classifier, _ = macs(resnet50(), torch.empty(1, 3, 224, 224))
    extra = count_parameters(branch) / 1e6
    counts = {"classifier": classifier, "extra": extra, "all": count_parameters(model) / 1e6}
    return {"backbone": base, "proposals": rpn, "box head": box, "mask head": mask}, counts


@torch.inference_mode()
def stage_times(run: Run, trained: Trained[MaskRCNN]) -> dict[str, float]:
    """Median milliseconds of each stage on one image."""
    model, image = trained.model, trained.test.images[:1].to(run.device)
    features = model.backbone(image)
    scores = model.stage_one(features)
    rois = model.proposals(*scores)
    judged = model.stage_two(features, rois)
    final = rois_of([boxes_from(model, rois, *judged, 1, 0.5)[0]["boxes"]])
    calls: dict[str, Callable[[], object]] = {
        "backbone": lambda: model.backbone(image),
        "proposals": lambda: model.proposals(*model.stage_one(features)),
        "box head": lambda: boxes_from(model, rois, *model.stage_two(features, rois), 1, 0.5),
        "mask head": lambda: paste(
            model.mask(CROPS["align"](features, final, CUT)).sigmoid()[:, 0], final[:, 1:], model.canvas
        ),
    }
    return {name: timed(torch.inference_mode()(call), device=run.device).median for name, call in calls.items()}


def cost(run: Run, trained: Sequence[Trained[MaskRCNN]]) -> None:
    """MACs of the published detector and time of the small one, by stage."""
    experiment = run.experiment("cost", question="What do the masks cost?", data="published sizes; one test scene")
    parts, counts = published()
    boxes = sum(parts.values()) - parts["mask head"]
    exact: tuple[tuple[str, float, str, str], ...] = (
        ("macs_published", boxes + parts["mask head"], "G", "All MACs with 100 masks, R50-FPN"),
        ("macs_over_classifier", sum(parts.values()) / counts["classifier"], "", "The same over those of a ResNet-50"),
        ("extra_macs_100", 100 * parts["mask head"] / boxes, "%", "MACs of 100 masks over those of the box detector"),
        ("extra_macs_1000", 1000 * parts["mask head"] / boxes, "%", "MACs, if all 1,000 proposals got a mask"),
        ("extra_parameters", 100 * counts["extra"] / (counts["all"] - counts["extra"]), "%", "Parameters of the mask branch"),
    )  # fmt: skip
    for name, value, unit, meaning in exact:
        experiment.result(name, [value], unit=unit, meaning=meaning, exact=True)
    times = [stage_times(run, each) for each in trained]
    extra = [100 * each["mask head"] / (sum(each.values()) - each["mask head"]) for each in times]
    experiment.result("extra_time", extra, unit="%", meaning="Time of the mask stage over that of the boxes, one image")

    def draw(style: Style) -> Figure:
        figure, axes = panels(1, 2, height=2.6)
        axes[0, 0].bar(list(parts), list(parts.values()), color=style.cycle[: len(parts)])
        axes[0, 0].set_ylabel("MACs (G), published")
        seed_bars(axes[0, 1], list(times[0]), [[each[part] for each in times] for part in times[0]])
        axes[0, 1].set_ylabel("ms an image, here")
        for ax in axes[0]:
            ax.tick_params(axis="x", rotation=25)
        return figure

    experiment.figure(
        "cost",
        draw,
        caption="Left: MACs of the parts of torchvision's Mask R-CNN. Right: time of the stages of the small one; dots are "
        "seeds.",
        alt="Bars of MACs for backbone, proposals, box head and mask head, and bars of the time of the same stages here.",
    )


# %% [markdown]
# ## Unlike the paper
# - One map of stride 8 in the place of a pyramid, and a small backbone trained from scratch, with 32 regions an image.
# - Boxes and masks are shared by all classes (the paper's class-agnostic variant), so nothing here tests the independent
#   sigmoids of several classes. All digits are one class in the small runs.
# - The heads are compared on a frozen network that was trained with RoIAlign, which may favour RoIAlign.
# - A mask's target is the covered part of each cell, as in torchvision, not a binary grid.


# %%
def main(argv: Sequence[str] | None = None) -> None:
    """Run all experiments and write the record."""
    run = Run.start("mask-rcnn", argv=argv)
    if run.settings.weights == "pretrained":
        raise SystemExit("--weights pretrained: everything here is trained from scratch; there are no weights to load")
    benchmark = BENCHMARKS[run.preset]
    build = partial(MaskRCNN, benchmark.classes, benchmark.canvas)
    trained = detectors.train_all(run, benchmark, build, loss, detect, learning_rate=LEARNING_RATE, what="Mask R-CNN")
    rounding(run)
    masks_figure(run, trained[0])
    heads = mask_features(run, benchmark, trained)
    limits(run, trained, heads["align"])
    cost(run, trained)
    detectors.report(run, benchmark, trained, detect, partial(detect, nms=1.0), name="Mask R-CNN")
    run.finish()


if __name__ == "__main__":
    main()
