# %% [markdown]
# # Mask R-CNN: why must the features of a region not be rounded?
#
# A two-stage detector gets a third head, which draws a mask inside each box. A class survives features that are shifted by
# half a cell, a mask does not: so RoIAlign takes the place of RoIPool. Here is the head, on the detector of
# [Faster R-CNN](faster-rcnn.md); the experiments train it with either operator, and ask what a mask can lose.
#
# | symbol (arXiv:1703.06870) | here | meaning |
# |---|---|---|
# | RoI | `boxes` | regions of each image, (B, R, 4) xyxy in pixels |
# | $x / 16$, $[x / 16]$ | `rcnn.crop`, `pool` | place on the feature map, as it is (RoIAlign) or rounded (RoIPool) |
# | $m$ | `MASK` | cells along each side of a mask |
# | $y$, $\hat y$ | `mask_targets`, `MaskHead` | true and predicted mask inside a region, (B, R, m, m) |
# | $L_{cls} + L_{box} + L_{mask}$ | `loss_of` | paid for each sampled region |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from lab import detectors, instances, rcnn
from lab.figures import Figure, Style, draw_boxes, panels, show_image
from lab.run import Run
from lab.training import seed_everything
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import Conv2dNormActivation, box_iou, roi_pool

faster = import_module("faster-rcnn")  # both stages

STRIDE = 4  # pixels of the image for one cell of the map that masks are read from
CUT, MASK = 14, 28  # cells of a region for the mask head, and of a mask
SLIM = 32  # channels of that map and of the mask head; 256 in the paper
MASKS = 2  # regions of an image, at most, whose masks the loss counts
SYNCHRONISATIONS_PER_STEP = faster.SYNCHRONISATIONS_PER_STEP

# %% [markdown]
# ## The regions, cut out in two ways
# RoIAlign reads the map between its cells, by bilinear interpolation, exactly where the box is. RoIPool rounds the box to
# whole cells, and each of its bins once more, then takes the maximum. On a map that holds its own x coordinate, what
# RoIAlign reads moves with the box; what RoIPool reads stands still, then jumps.


# %%
def pool(maps: Tensor, boxes: Tensor, size: int, stride: int) -> Tensor:
    """RoIPool, with the arguments of `rcnn.crop`: (B, C, h, w), (B, R, 4) -> (B, R, C, size, size)."""
    image = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype).repeat_interleave(boxes.shape[1])
    regions = torch.cat([image[:, None], boxes.flatten(0, 1)], 1)
    return roi_pool(maps.float(), regions, size, 1 / stride).unflatten(0, boxes.shape[:2])


def read(crop: Any, shifts: Tensor) -> Tensor:
    """What the middle of a box of 28 px reads from a map of x coordinates (px) as it moves right, minus that before: (P,)."""
    ramp = ((torch.arange(16) + 0.5) * STRIDE).expand(1, 1, 16, 16).contiguous()
    boxes = torch.tensor([20.0, 20.0, 48.0, 48.0]) + shifts[:, None] * torch.tensor([1.0, 0.0, 1.0, 0.0])
    seen = crop(ramp, boxes[None], 7, STRIDE)[0, :, 0, 3, 3]
    return seen - seen[0]


if __name__ == "__main__":
    run = Run.start("mask-rcnn", pretrained=True)
    preset, benchmark = faster.PRESETS[run.preset], detectors.BENCHMARKS[run.preset]
    moves = torch.arange(7.0)
    rows = zip(moves.tolist(), read(rcnn.crop, moves).tolist(), read(pool, moves).tolist(), strict=True)
    run.show("moves", [{"box moved by (px)": a, "RoIAlign reads": b, "RoIPool reads": c} for a, b, c in rows])

# %% [markdown]
# ## A mask of m x m cells for each box
# A small fully convolutional network keeps the layout of the region. Its target is the part of the object inside the box,
# in $m \times m$ cells, whatever the size of the box; in use, the cells are enlarged to the box and cut at 0.5.


# %%
class MaskHead(nn.Sequential):
    """Features (n, C, 14, 14) -> logits (n, 1, 28, 28), one mask for all classes."""

    def __init__(self) -> None:
        same = [Conv2dNormActivation(SLIM, SLIM, norm_layer=None) for _ in range(2)]
        super().__init__(*same, nn.ConvTranspose2d(SLIM, 1, 2, stride=2))


def masks_of(scenes: Any) -> Tensor:
    """The masks of scenes, padded: (B, M, H, W), float."""
    return nn.utils.rnn.pad_sequence(list(scenes.masks), batch_first=True).float()


def mask_targets(masks: Tensor, owner: Tensor, boxes: Tensor, cells: int = MASK) -> Tensor:
    """What the object (B, M, H, W) of each box covers of its cells: owner (B, R), boxes (B, R, 4) -> (B, R, m, m)."""
    mine = masks.take_along_dim(owner[..., None, None], 1).flatten(0, 1)[:, None]  # (B R, 1, H, W)
    return rcnn.crop(mine, boxes.flatten(0, 1)[:, None], cells, 1)[:, 0, 0].unflatten(0, boxes.shape[:2])


def paste(masks: Tensor, boxes: Tensor, canvas: int) -> Tensor:
    """Probabilities (n, m, m) inside boxes (n, 4) -> masks of the image, bool (n, H, W), cut at 0.5."""
    at = torch.arange(canvas, device=boxes.device) + 0.5
    low, side = boxes[:, :2], (boxes[:, 2:] - boxes[:, :2]).clamp(min=0.01)
    x, y = ((at - low[:, i, None]) / side[:, i, None] * 2 - 1 for i in (0, 1))  # (n, W), (n, H)
    grid = torch.stack([x[:, None].expand(-1, canvas, -1), y[:, :, None].expand(-1, -1, canvas)], -1)
    return nn.functional.grid_sample(masks[:, None].float(), grid, align_corners=False)[:, 0] >= 0.5


def iou(one: Tensor, other: Tensor) -> Tensor:
    """IoU of pairs of masks, (n, H, W) -> (n,); NaN where both are empty."""
    return (one & other).sum((1, 2)) / (one | other).sum((1, 2))


if __name__ == "__main__":
    scene = detectors.scenes_of(benchmark, "test", run.seeds[0])[:20]
    there, masks = rcnn.targets_of(scene), masks_of(scene)
    owner, real = torch.arange(masks.shape[1]).expand(len(masks), -1), there.labels >= 0
    kept = {m: paste(mask_targets(masks, owner, there.boxes, m)[real], there.boxes[real], benchmark.canvas)
            for m in (4, 7, 14, MASK)}  # fmt: skip
    run.show("cells", [{"cells of a true mask": f"{m} x {m}", "IoU when pasted back": iou(each, masks[real] > 0).mean().item()}
                       for m, each in kept.items()])  # fmt: skip

# %% [markdown]
# ## Three heads, one loss
# $$L = L_{cls} + L_{box} + L_{mask}, \qquad
# L_{mask} = -\frac{1}{m^2} \sum_{ij} \left[ y_{ij} \log \hat y_{ij} + (1 - y_{ij}) \log (1 - \hat y_{ij}) \right]$$
# Masks are drawn and paid for only in regions that overlap an object by an IoU of 0.5 or more.


# %%
class MaskRCNN(nn.Module):
    """The two stages of Faster R-CNN and a mask head, which cuts its regions out of a finer map with `crop`."""

    def __init__(self, preset: Any, benchmark: detectors.Benchmark) -> None:
        super().__init__()
        self.boxes, self.mask = faster.FasterRCNN(preset, benchmark), MaskHead()
        self.lateral, self.top = (nn.Conv2d(width, SLIM, 1) for width in (preset.width // 2, preset.width))

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features of stride 8 (B, C, h, w) for boxes, and of stride 4 (B, SLIM, 2 h, 2 w) for masks, a pyramid of two."""
        fine = self.boxes.backbone[:2](images)
        coarse = self.boxes.backbone[2:](fine)
        return coarse, self.lateral(fine) + nn.functional.interpolate(self.top(coarse), scale_factor=2.0)

    def inside(self, features: Tensor, boxes: Tensor, crop: Any = rcnn.crop) -> Tensor:
        """Logits (B, R, 28, 28) of the masks inside boxes (B, R, 4)."""
        regions = crop(features, boxes, CUT, STRIDE)
        return self.mask(regions.flatten(0, 1)).float()[:, 0].unflatten(0, regions.shape[:2])

    def draw(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Masks of one image (1, C, h, w) in its boxes (n, 4): bool (n, H, W)."""
        return paste(self.inside(features, boxes[None])[0].sigmoid(), boxes, self.boxes.canvas)


def mask_loss(
    model: Any, maps: Tensor, boxes: Tensor, targets: rcnn.Targets, masks: Tensor, crop: Any = rcnn.crop
) -> Tensor:
    """Mean cross-entropy of the masks in a few of the boxes (B, R, 4) that have an object."""
    owner = rcnn.match(boxes, targets, 0.5, 0.5)
    index, taken = rcnn.sample(owner.masked_fill(owner < 0, -2), MASKS, 1.0)
    boxes, owner = rcnn.rows(boxes, index), owner.gather(1, index).clamp(min=0)
    logits, wanted = model.inside(maps, boxes, crop), mask_targets(masks, owner, boxes)
    each = nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean((2, 3))
    return rcnn.mean_of(each, taken)


def loss_of(model: MaskRCNN, scenes: Any) -> Tensor:
    """All heads and the proposals together; the true boxes join those whose masks are drawn."""
    targets, (coarse, fine) = rcnn.targets_of(scenes), model.maps(scenes.images)
    of_stages, regions = faster.stages_loss(model.boxes, coarse, targets)
    boxes = torch.cat([regions.boxes, targets.boxes], 1)
    return of_stages + mask_loss(model, fine, boxes, targets, masks_of(scenes))


if __name__ == "__main__":
    seed_everything(run.seeds[0])
    model = MaskRCNN(preset, benchmark)
    coarse, fine = model.maps(scene.images)
    stages, regions = faster.stages_loss(model.boxes, coarse, there)
    paid = {"classes and boxes, two stages": stages, "masks": mask_loss(model, fine, there.boxes, there, masks)}
    run.show("losses", [{"untrained": name, "loss": loss.item()} for name, loss in paid.items()])

# %% [markdown]
# ## Train it


# %%
def detect(model: MaskRCNN, images: Tensor, second: bool = True) -> Any:
    """Final boxes, scores and labels of each image."""
    return faster.detect(model.boxes, images, first=second, second=second)


@torch.inference_mode()
def segmented(model: MaskRCNN, images: Tensor) -> list[dict[str, Tensor]]:
    """The same with masks (n, H, W): boxes come first and are thinned; only those that are left get a mask."""
    features, found = model.maps(images)[1], detect(model, images)
    return [each | {"masks": model.draw(features[i : i + 1], each["boxes"])} for i, each in enumerate(found)]


@cache
def train(run: Run, seed: int) -> detectors.Trained[MaskRCNN]:
    """A detector for this seed."""
    preset, benchmark = faster.PRESETS[run.preset], detectors.BENCHMARKS[run.preset]
    seed_everything(seed)
    model, rate = MaskRCNN(preset, benchmark), faster.RATE * preset.rate  # searched for the same two stages
    return detectors.train(run, benchmark, seed, model, loss_of, detect, learning_rate=rate, what="masks")


if __name__ == "__main__":
    trained = train(run, run.seeds[0])
    run.show("trained", [{"steps": step, "AP of boxes (%)": ap} for step, ap in trained.curve[::3]])

# %% [markdown]
# ## One scene: from regions to masks
# Of the test scenes whose objects stand apart and are all found: one with the most objects, and large ones.


# %%
def draw_masks(style: Style, image: Tensor, regions: Tensor, found: Any, cells: Tensor) -> Figure:
    figure, axes = panels(2, 2, width=5.4, height=5.7)
    show_image(axes[0, 0], image, f"{len(regions)} regions")
    draw_boxes(axes[0, 0], regions, linewidth=0.9)
    show_image(axes[0, 1], image, "boxes that are left")
    draw_boxes(axes[0, 1], found["boxes"], [f"{score:.2f}" for score in found["scores"]])
    show_image(axes[1, 0], cells, "one mask, 28 x 28 cells", cmap=style.sequential)
    show_image(axes[1, 1], instances.tinted(image, found["masks"]), "a mask for each box")
    return figure


if __name__ == "__main__":
    right = detectors.all_found(run, benchmark, trained, detect)
    model, boxes = trained.model.cpu(), trained.test.boxes
    apart = [i for i in right if box_iou(boxes[i], boxes[i]).sum() == len(boxes[i])]
    clear = max(apart or right, key=lambda i: (len(boxes[i]), (boxes[i][:, 2:] - boxes[i][:, :2]).min()))
    scene = trained.test[clear : clear + 1]
    with torch.inference_mode():
        coarse, fine = model.maps(scene.images)
        regions, (found,) = model.boxes.proposals(*model.boxes.rpn(coarse)), segmented(model, scene.images)
        sure = found["scores"] >= found["scores"].max().clamp(max=0.5)
        found = {name: each[sure] for name, each in found.items()}
        cells = model.inside(fine, found["boxes"][None, :1])[0, 0].sigmoid()
    about = {"image": scene.images[0], "regions": regions.boxes[regions.valid], "found": found, "cells": cells}
    run.figure(
        "masks",
        partial(draw_masks, **about),
        caption="A test scene whose objects stand apart and are all found: boxes first, then 28 x 28 cells for each, "
        "enlarged and cut at 0.5.",
        alt="A scene four times: many regions, a box for each digit, the cells of one mask, and a tinted mask on each digit.",
    )
    model.to(run.device)

# %% [markdown]
# ## Your own image
# torchvision's Mask R-CNN with ResNet-50 and a feature pyramid, on a photograph of scikit-image or on yours.


# %%
def published(image: Any, name: str = "maskrcnn_resnet50_fpn") -> tuple[Tensor, Tensor, list[str]]:
    """The image (3, H, W), masks (n, H, W), and the name of what is in each."""
    release: Any = models.get_model_weights(name).DEFAULT
    network = models.get_model(name, weights=release, box_score_thresh=0.7).eval()
    with torch.inference_mode():
        (found,) = network([pixels := release.transforms()(image)])
    names = [release.meta["categories"][label] for label in found["labels"].tolist()]
    return pixels, found["masks"][:, 0] >= 0.5, names


if __name__ == "__main__":
    instances.show(run, "torchvision's maskrcnn_resnet50_fpn", published, megabytes=170, otherwise="motorcycle")
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - A pyramid of two maps: boxes are read from the one of stride 8, masks from the one of stride 4. The backbone is small and
#   trained from scratch, with 32 regions an image.
# - The mask head has two convolutions of 32 channels instead of four of 256, and its upsampling convolution is the last one. It
#   draws two masks of an image while training.
# - Masks are shared by all classes (the paper's class-agnostic variant), so nothing here tests the independent sigmoids of
#   several classes. All digits are one class in the small runs.
# - A mask's target is the covered part of each cell, as in torchvision, not a binary grid.
# - Everything is trained for seconds on scenes of 64 px. What holds here explains a mechanism; it says nothing about COCO.
