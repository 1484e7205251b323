"""Detectron2's claims: what does a swap reach and cost, and what did the geometry cost that it mended?"""

# mypy: disable-error-code="no-any-return, no-untyped-call, misc"
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from detectron2 import (
    BELONGS,
    ONE_STAGE,
    PARTS,
    WIDTH,
    Config,
    build,
    kept,
    new,
    swaps,
)
from lab import study
from lab.figures import Figure, Style, panels, seed_bars
from lab.published import macs
from lab.run import Run
from lab.study import Measure, Scores
from lab.training import count_parameters
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import box_iou, roi_align

BOXES = {"smoke": 10, "quick": 200, "full": 1_000}  # random ones, in an image of SIDE px
SIDE = 256
SCHEDULE, IMAGES, LEAST = 90_000, 16, (640, 853)  # steps, images in one, smallest image of the zoo's shortest schedule
MODULES = ("backbone", "rpn", "roi_heads")  # F, P and D
MENDED = {
    "roi_error": Measure("distance of RoIAlign's samples from their place, stride 16", "px"),
    "iou_error": Measure("change of an IoU when the image is halved", "%"),
    "paste_error": Measure("1 - IoU of a pasted mask", "%"),
}


# Experiments on the configuration


def one_field(run: Run) -> None:
    """How many modules does one changed field reach, and what does a change of the meta-architecture leave?"""
    experiment = run.experiment(
        "one_field", question=str(one_field.__doc__), data="no data: names and shapes of weights"
    )
    with torch.device("meta"):
        base = build(Config())
        changed = {
            name: reached(base, build(config)) | {BELONGS[field]} for name, (field, config) in swaps(Config()).items()
        }
        heads = {name: build(Config(heads=name)) for name in ("mask", "keypoint")}
        single = {name.lower(): make(weights=None, weights_backbone=None) for name, make in ONE_STAGE.items()}
    exact = partial(experiment.result, exact=True)
    most = max(map(len, changed.values()))
    exact("modules_changed_most", [most], unit="", meaning="Most modules that one changed field changes, of 3")
    for name, other in (heads | single).items():
        meaning = f"Weights of the Faster R-CNN that a change to {name} keeps"
        exact(f"weights_kept_{name}", [kept(base, other)], unit="%", meaning=meaning)
    said = "of the Faster R-CNN that a change to RetinaNet or FCOS keeps"
    body = min(kept(base, other, PARTS["body"]) for other in single.values())
    rest = max(kept(base, other, *MODULES[1:]) for other in single.values())
    exact("body_kept_one_stage", [body], unit="%", meaning=f"Weights of the ResNet-50 {said}, the lower share")
    exact("heads_kept_one_stage", [rest], unit="%", meaning=f"Weights of proposals and heads {said}, the higher share")


def reached(one: nn.Module, other: nn.Module) -> set[str]:
    """The modules in which two detectors have weights of different names or shapes."""
    return {part for part in MODULES if kept(one, other, part) < 100 or new(one, other, part)}


def parts_of(config: Config, size: tuple[int, int] = (800, 1344)) -> dict[str, dict[str, float]]:
    """Parameters (10^6) and MACs (10^9) of backbone, proposals, box head and second head, on the meta device."""
    side = size[1]
    with torch.device("meta"):
        model: Any = build(config, side).train()  # the fused attention of evaluation is not counted
        images = torch.empty(1, 3, side if config.backbone == "vit_small" else size[0], side)
        heads = model.roi_heads
        base, maps = macs(model.backbone, images)
        box = nn.Sequential(heads.box_head, heads.box_predictor)
        found = {
            "backbone": (base, model.backbone),
            "proposals": (macs(model.rpn.head, list(maps.values()))[0], model.rpn),
            "box head": (macs(box, torch.empty(1000, WIDTH, 7, 7))[0], box),
        }
        if config.heads != "box":
            head = nn.Sequential(getattr(heads, f"{config.heads}_head"), getattr(heads, f"{config.heads}_predictor"))
            found[f"{config.heads} head"] = macs(head, torch.empty(100, WIDTH, 14, 14))[0], head
    return {part: {"macs": cost, "parameters": count_parameters(each) / 1e6} for part, (cost, each) in found.items()}


def cost(run: Run) -> None:
    """What do parameters and multiplications of a detector become when backbone or heads are changed?"""
    data = (
        "800 x 1344 px (ViT: 1344 x 1344, all attention global), 1,000 regions and 100 detections, on the meta device"
    )
    experiment = run.experiment("cost", question=str(cost.__doc__), data=data)
    chosen = {"resnet50: box": Config()} | {
        f"{each.backbone}: {each.heads}": each
        for field, each in swaps(Config()).values()
        if field in ("backbone", "heads")
    }
    costs = {name: parts_of(each) for name, each in chosen.items()}
    for name, parts in costs.items():
        for measure, unit in (("macs", "G"), ("parameters", "M")):
            total = sum(each[measure] for each in parts.values())
            key = f"{measure}_{name.replace(': ', '_')}"
            experiment.result(key, [total], unit=unit, exact=True, meaning=f"All {measure} of {name}")
    last = costs["resnet50: keypoint"]
    ratio = last["keypoint head"]["macs"] / last["backbone"]["macs"]
    meaning = "MACs of the keypoint head on 100 detections over those of the ResNet-50 with its pyramid"
    experiment.result("keypoint_over_backbone", [ratio], unit="", exact=True, meaning=meaning)
    step = parts_of(Config(), LEAST)
    total = 3 * SCHEDULE * IMAGES * (step["backbone"]["macs"] + step["proposals"]["macs"]) / 1e9
    meaning = f"MACs (10^18) of backbone and proposals in {SCHEDULE:,} steps of {IMAGES} images of 640 x 853 px; a backward pass "
    meaning += "counts as two forward ones"
    experiment.result("macs_schedule", [total], unit="", exact=True, meaning=meaning)
    experiment.figure(
        "costs",
        partial(draw_costs, costs=costs),
        caption="Parameters and MACs of configurations that differ in the backbone (above) or the heads (below).",
        alt="Stacked bars of parameters and of MACs by part, one bar for each configuration.",
    )


def draw_costs(style: Style, costs: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    figure, axes = panels(2, 1, width=study.WIDTH, height=5.6)
    parts = ("backbone", "proposals", "box head", "mask head", "keypoint head")
    labels = (("parameters", "parameters ($10^6$)"), ("macs", "MACs ($10^9$)"))
    for ax, (measure, label) in zip(axes[:, 0], labels, strict=True):
        left = [0.0] * len(costs)
        for part in parts:
            values = [each.get(part, {}).get(measure, 0.0) for each in costs.values()]
            ax.barh(list(costs), values, left=left, label=part)
            left = [a + b for a, b in zip(left, values, strict=True)]
        ax.set(xlabel=label, xlim=(0, 1.06 * max(left)))
        ax.invert_yaxis()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


# The geometry that was mended


def random_boxes(count: int, side: int, seed: int) -> Tensor:
    """Boxes inside an image, xyxy in pixels, with sides of 16 px to half the image: (count, 4)."""
    generator = torch.Generator().manual_seed(seed)
    size = 16 + torch.rand(count, 2, generator=generator) * (side / 2 - 16)
    low = torch.rand(count, 2, generator=generator) * (side - size)
    return torch.cat([low, low + size], dim=1)


def roi_error(boxes: Tensor, side: int, aligned: bool, stride: int = 16) -> float:
    """Mean distance in pixels between where RoIAlign samples and where it should, along x."""
    at = (torch.arange(2 * side // stride) + 0.5) * stride  # centres of the cells, in pixels
    ramp = at.expand(1, 1, len(at), -1).contiguous()  # (1, 1, H, W)
    boxes = boxes + stride  # away from the border, where values are repeated
    read = roi_align(ramp, [boxes], 7, 1 / stride, sampling_ratio=2, aligned=aligned)[:, 0, 0]  # (n, 7)
    part = (torch.arange(7) + 0.5) / 7
    true = boxes[:, :1] + (boxes[:, 2:3] - boxes[:, :1]) * part
    return float((read - true).abs().mean())


def iou_error(boxes: Tensor, added: float) -> float:
    """Mean change (%) of the IoU of neighbours, boxes shifted by an eighth, when the image is halved."""
    other = boxes + (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2) / 8
    grow = torch.tensor([0.0, 0.0, added, added])
    full, half = (box_iou(s * boxes + grow, s * other + grow).diagonal() for s in (1.0, 0.5))
    return float(100 * (full - half).abs().mean())


def ellipses(boxes: Tensor, height: int, width: int) -> Tensor:
    """Ellipses that fill their boxes, as the covered part of each of 4 x 4 points of a pixel: (n, H, W)."""
    y, x = ((torch.arange(4 * length) + 0.5) / 4 for length in (height, width))
    (x0, y0, x1, y1) = (each[:, None] for each in boxes.unbind(1))
    across, down = (2 * x - x0 - x1) / (x1 - x0), (2 * y - y0 - y1) / (y1 - y0)  # (n, 4 W), (n, 4 H)
    inside = (across[:, None, :] ** 2 + down[:, :, None] ** 2 <= 1).float()
    return functional.avg_pool2d(inside[:, None], 4)[:, 0]


def sampled_paste(masks: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Masks (n, 1, M, M), read at the centre of each pixel of the image: (n, 1, side, side)."""
    at = torch.arange(side) + 0.5
    x, y = (2 * (at - boxes[:, i : i + 1]) / (boxes[:, i + 2] - boxes[:, i])[:, None] - 1 for i in (0, 1))  # (n, side)
    grid = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1)
    return functional.grid_sample(masks, grid, align_corners=False)


def paste_error(boxes: Tensor, side: int, sampled: bool) -> float:
    """1 - IoU (%) of the true ellipse and a perfect mask of it in 28 x 28 cells, sampled or pasted at whole pixels."""
    masks = ellipses(torch.tensor([[0.0, 0.0, 28.0, 28.0]]), 28, 28).expand(len(boxes), 1, 28, 28).contiguous()
    pasted = sampled_paste(masks, boxes, side) if sampled else paste_masks_in_image(masks, boxes, (side, side))
    mask, true = pasted[:, 0] >= 0.5, ellipses(boxes, side, side) >= 0.5
    return float(100 * (1 - ((mask & true).sum((1, 2)) / (mask | true).sum((1, 2))).mean()))


def fidelity(run: Run) -> None:
    """What did Detectron's rounding and added pixels cost?"""
    data = f"{BOXES[run.preset]} random boxes in an image of {SIDE} px, others for each seed"
    experiment = run.experiment("fidelity", question=str(fidelity.__doc__), data=data)
    boxes = [random_boxes(BOXES[run.preset], SIDE, seed) for seed in run.seeds]
    outcomes = {
        way: [{"roi_error": roi_error(b, SIDE, mended), "iou_error": iou_error(b, 0.0 if mended else 1.0),
               "paste_error": paste_error(b, SIDE, mended)} for b in boxes]
        for way, mended in (("detectron", False), ("detectron2", True))
    }  # fmt: skip
    scores, ways = Scores(run.seeds, outcomes), {"detectron": "as in Detectron", "detectron2": "as in Detectron2"}
    study.record(experiment, scores, MENDED, ways)
    for name, (label, unit, _) in MENDED.items():
        meaning = f"{label[0].upper()}{label[1:]}: Detectron less Detectron2"
        study.difference(experiment, f"{name}_gain", scores, name, *ways, unit=unit, meaning=meaning)
    experiment.figure(
        "fidelity",
        partial(draw_fidelity, outcomes=outcomes),
        caption="Errors of geometry with the conventions of Detectron and of Detectron2: where RoIAlign samples; IoU of two "
        "boxes, when the image is halved; a perfect mask, pasted. Dots are seeds.",
        alt="Three pairs of bars, old and new convention, for the error of RoIAlign, of the IoU and of mask pasting.",
    )


def draw_fidelity(style: Style, outcomes: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    figure, axes = panels(3, 1, width=study.WIDTH, height=6.0)
    titles = ("shift of samples (px)", "change of IoU (%)", "1 - IoU of mask (%)")
    for ax, title, name in zip(axes[:, 0], titles, MENDED, strict=True):
        seed_bars(ax, ["Detectron", "Detectron2"], [[each[name] for each in seeds] for seeds in outcomes.values()])
        ax.set(title=title, xlim=(-0.65, 1.65))
    return figure


EXPERIMENTS = (one_field, cost, fidelity)
