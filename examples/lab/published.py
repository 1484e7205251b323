"""Multiplications of the stages of published two-stage detectors, counted on torch's meta device: no weights, no time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection, vgg16
from torchvision.models.detection.rpn import RPNHead


def macs(module: Any, *inputs: Any) -> tuple[float, Any]:
    """Multiplications with additions (10^9) of a call, and what it returns."""
    with FlopCounterMode(display=False) as counter:
        out = module(*inputs)
    return counter.get_total_flops() / 2e9, out


def stages_of(
    name: str, size: tuple[int, int] = (800, 1344), regions: int = 1000, masks: int = 100
) -> dict[str, float]:
    """MACs (10^9) of the stages of a detector of torchvision, e.g. "maskrcnn_resnet50_fpn".

    RoIAlign and suppression are left out. The mask head, where there is one, runs on `masks` boxes.
    """
    with torch.device("meta"):
        model = getattr(detection, name)(weights=None, weights_backbone=None)
        heads = model.roi_heads
        base, maps = macs(model.backbone, torch.empty(1, 3, *size))
        width = maps["0"].shape[1]
        box = nn.Sequential(heads.box_head, heads.box_predictor)
        parts = {
            "backbone": base,
            "proposals": macs(model.rpn.head, list(maps.values()))[0],
            "head": macs(box, torch.empty(regions, width, 7, 7))[0],
        }
        if heads.has_mask():
            branch = nn.Sequential(heads.mask_head, heads.mask_predictor)
            parts["mask head"] = macs(branch, torch.empty(masks, width, 14, 14))[0]
    return parts


def stages_of_vgg16(size: tuple[int, int] = (600, 1000), regions: int = 300) -> dict[str, float]:
    """MACs (10^9) of the stages of the Faster R-CNN of 2015, without its last linear layers."""
    with torch.device("meta"):
        vgg = vgg16()
        base, features = macs(vgg.features[:-1], torch.empty(1, 3, *size))
        proposals, _ = macs(RPNHead(512, 9), [features])
        head, _ = macs(vgg.classifier[:-1], torch.empty(regions, 512 * 7 * 7))
    return {"backbone": base, "proposals": proposals, "head": head}
