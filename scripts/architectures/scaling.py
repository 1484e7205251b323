"""Scaling: what an architecture costs as its input grows, and the exponent of that growth beside what is claimed.

Declares the sweeps and evaluates them; `scripts.trace` measures their points on the meta device. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

What = Literal["macs", "token_macs", "saved_bytes"]

LABELS: Mapping[What, str] = {
    "macs": "MACs", "token_macs": "MACs of attention products", "saved_bytes": "activation memory",
}  # fmt: skip

TOLERANCE = 0.1
"""A claimed exponent is met within this, over the upper half of a sweep: constant costs fade only slowly."""

AXES = {
    "pixels": "pixels of the image", "voxels": "voxels of the volume", "frames": "frames of the clip",
    "queries": "object queries", "prompts": "prompts, each with one point", "points": "points of one prompt",
    "nodes": "nodes of the graph", "rank": "rank of the update",
}  # fmt: skip


@dataclass(frozen=True)
class Claimed:
    """An exponent that is claimed, and the claim of the card that says so, by its beginning."""

    what: What
    exponent: float
    says: str
    claim: str = ""


@dataclass(frozen=True)
class Point:
    """One input size of a sweep."""

    x: float
    size: tuple[int, ...]
    changes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """One architecture over several sizes of its input."""

    card: str
    name: str
    build: str
    axis: str
    points: tuple[Point, ...]
    claims: tuple[Claimed, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.build} over {self.axis}"


@dataclass(frozen=True)
class Measured:
    """A sweep with the cost of each of its points."""

    sweep: Sweep
    costs: Mapping[What, tuple[float, ...]]

    def exponent(self, what: What) -> float | None:
        """Slope of a straight line through all points on doubly logarithmic axes; None for a cost that is nil."""
        return slope([point.x for point in self.sweep.points], self.costs[what])

    def last_exponent(self, what: What) -> float | None:
        """The slope between the two largest inputs."""
        return slope([point.x for point in self.sweep.points[-2:]], self.costs[what][-2:])

    def holds(self, claimed: Claimed) -> bool | None:
        found = self.last_exponent(claimed.what)
        return None if found is None else abs(found - claimed.exponent) <= TOLERANCE


def slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Least-squares slope of log y over log x."""
    if min(y, default=0) <= 0 or len(y) < 2:
        return None
    across, up = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_x, mean_y = sum(across) / len(across), sum(up) / len(up)
    spread = sum((a - mean_x) ** 2 for a in across)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(across, up, strict=True)) / spread


def _squares(*sides: int) -> tuple[Point, ...]:
    return tuple(Point(side**2, (side, side)) for side in sides)


def _cubes(*sides: int) -> tuple[Point, ...]:
    return tuple(Point(side**3, (side,) * 3) for side in sides)


def _clips(*frames: int) -> tuple[Point, ...]:
    return tuple(Point(count, (count, 224, 224)) for count in frames)


def _changed(name: str, size: tuple[int, ...], *values: int) -> tuple[Point, ...]:
    return tuple(Point(value, size, {name: value}) for value in values)


LINEAR = Claimed("macs", 1, "Convolutions cost in proportion to the positions.")

SWEEPS: tuple[Sweep, ...] = (
    Sweep("vit", "ViT-B/16", "timm/vit_base_patch16_224", "pixels", _squares(224, 448, 672, 1024), (
        Claimed("token_macs", 2, "Attention is quadratic in the number of pixels.", "Computation is expensive"),
    )),
    Sweep("swin", "Swin-T", "timm/swin_tiny_patch4_window7_224", "pixels", _squares(224, 448, 672, 1120), (
        Claimed("token_macs", 1, "Attention within windows is linear in the number of pixels.", "Reduces the comp"),
        Claimed("macs", 1, "So is the whole."),
    )),
    Sweep("internimage", "InternImage-T", "ours/internimage-t", "pixels", _squares(224, 448, 896), (LINEAR,)),
    Sweep("dinov2", "DINOv2 ViT-S/14", "timm/vit_small_patch14_dinov2", "pixels", _squares(224, 518, 770, 1022), (
        Claimed("token_macs", 2, "Attention is quadratic in the number of pixels."),
    )),
    Sweep("sam", "SAM ViT-B, image encoder", "transformers/sam-vit-base", "pixels", _squares(512, 768, 1024, 1536)),
    Sweep("unet", "U-Net (2015)", "ours/unet_2015", "pixels", _squares(572, 1084, 2108, 4156), (LINEAR,)),
    Sweep("faster-rcnn", "Faster R-CNN R50-FPN", "torchvision/fasterrcnn_resnet50_fpn", "pixels",
          _squares(512, 800, 1088, 1344)),
    Sweep("mask-rcnn", "Mask R-CNN R50-FPN", "torchvision/maskrcnn_resnet50_fpn", "pixels",
          _squares(512, 800, 1088, 1344)),
    Sweep("improved-mask-rcnn", "Mask R-CNN R50-FPN v2", "torchvision/maskrcnn_resnet50_fpn_v2", "pixels",
          _squares(512, 800, 1088, 1344)),
    Sweep("detr", "DETR-R50", "transformers/detr-resnet-50", "pixels", _squares(512, 800, 1088, 1344)),
    Sweep("mask-dino", "Mask DINO R50", "ours/mask_dino-r50", "pixels", _squares(512, 800, 1344), (
        Claimed("macs", 1, "Deformable attention reads a fixed number of points, so the cost is linear."),
    )),
    Sweep("yolov8", "YOLOv8m", "ours/yolov8-m", "pixels", _squares(320, 640, 960, 1280), (LINEAR,)),
    Sweep("centernet", "CenterNet511-104", "ours/centernet-104", "pixels", _squares(256, 512, 768, 1024), (LINEAR,)),
    Sweep("attention-unet", "Attention U-Net, 3D", "ours/attention_unet_3d", "voxels", _cubes(64, 96, 160), (LINEAR,)),
    Sweep("optimized-unet", "Optimized U-Net", "monai/dynunet_brats21", "voxels", _cubes(128, 192, 256), (LINEAR,)),
    Sweep("timesformer", "divided space-time", "transformers/timesformer-base", "frames", _clips(8, 16, 32, 96), (
        Claimed("macs", 1, "With divided attention the whole stays close to linear in the frames.", "Scales to high"),
    )),
    Sweep("timesformer", "joint space-time", "transformers/timesformer-joint", "frames", _clips(8, 16, 32, 96), (
        Claimed("token_macs", 2, "Joint attention is quadratic in the frames.", "Scales to high"),
    )),
    Sweep("timesformer", "space only", "transformers/timesformer-space-only", "frames", _clips(8, 16, 32, 96)),
    Sweep("detr", "DETR-R50", "transformers/detr-resnet-50", "queries",
          _changed("num_queries", (800, 800), 100, 300, 900)),
    Sweep("mask-dino", "Mask DINO R50", "ours/mask_dino-r50", "queries", _changed("queries", (800, 800), 100, 300, 900)),
    Sweep("sam", "SAM, prompts and masks", "transformers/sam-decoder", "prompts",
          tuple(Point(n, (n, 1)) for n in (1, 4, 16, 64)),
          (Claimed("macs", 1, "Each prompt is decoded for itself."),)),
    Sweep("sam", "SAM, prompts and masks", "transformers/sam-decoder", "points",
          tuple(Point(n, (1, n)) for n in (1, 4, 16, 64))),
    Sweep("graph-transformer", "along edges", "ours/graph_transformer", "nodes",
          tuple(Point(n, (n, 2 * n)) for n in (25, 100, 400)), (
        Claimed("macs", 1, "With a few edges per node the cost is linear in the nodes."),
    )),
    Sweep("graph-transformer", "between all nodes", "ours/graph_transformer-full", "nodes",
          tuple(Point(n, (n, n * n)) for n in (25, 100, 400)), (
        Claimed("macs", 2, "Between all nodes it is quadratic."),
    )),
    Sweep("lora", "ViT-B/16 with LoRA", "transformers/vit-base-lora-16", "rank",
          _changed("rank", (224, 224), 1, 4, 16, 64, 256)),
)  # fmt: skip
