"""ViTDet (arXiv:2203.16527) with the heads of Mask R-CNN, as configs/common/models/mask_rcnn_vitdet.py of Detectron2 has it.

The backbone is timm's of SAM, which is one of ViTDet: attention in windows of 14 x 14 with relative positions, and over the
whole map in four blocks. The heads are those of torchvision's maskrcnn_resnet50_fpn_v2: two convolutions in the proposals,
four and a linear layer for boxes, four for masks.

## Unlike the source

Its heads normalise over channels, these over the batch: both have two weights a channel. torchvision predicts 91 classes where
Detectron2 has 80. The position of the class token, which no map uses, is left out.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from scripts.architectures.definitions.libraries import FixedBoxes, mask_rcnn_v2

WIDTH = 256
"""Channels of the pyramid."""
PRETRAINED = 14
"""Side of the map of patches on which absolute positions were learned: images of 224 pixels, patches of 16."""
SIZES = {"b": "samvit_base_patch16", "l": "samvit_large_patch16", "h": "samvit_huge_patch16"}


class ViTDet(FixedBoxes):
    """Mask R-CNN on a plain vision transformer, with as many boxes as it keeps at most.

    Args:
        size: one of `SIZES`.
    """

    def __init__(self, size: str) -> None:
        super().__init__(mask_rcnn_v2(SimplePyramid(SIZES[size])))


class SimplePyramid(nn.Module):
    """Levels of strides 4 to 64 from the last map of a plain backbone (section 3, *Simple feature pyramid*)."""

    def __init__(self, name: str) -> None:
        import timm

        super().__init__()
        self.net = timm.create_model(name, pretrained=False, neck_chans=0, num_classes=0)
        dim = self.net.embed_dim
        self.net.neck = nn.Identity()
        self.net.pos_embed = nn.Parameter(torch.zeros(1, PRETRAINED, PRETRAINED, dim))  # timm resizes it to the map
        fourfold = [_double(dim, dim // 2), _norm(dim // 2), nn.GELU(), _double(dim // 2, dim // 4)]
        resized: list[tuple[list[nn.Module], int]] = [
            (fourfold, dim // 4), ([_double(dim, dim // 2)], dim // 2), ([], dim), ([nn.MaxPool2d(2)], dim)
        ]  # fmt: skip
        self.levels = nn.ModuleList(nn.Sequential(*layers, *_smoothed(channels)) for layers, channels in resized)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """(B, 3, H, W) -> maps (B, 256, H / s, W / s) for s of 4, 8, 16, 32 and 64."""
        features = self.net.forward_features(images)  # (B, dim, H / 16, W / 16)
        maps = [level(features) for level in self.levels]
        return OrderedDict((str(i), each) for i, each in enumerate([*maps, functional.max_pool2d(maps[-1], 1, 2)]))


def _norm(channels: int) -> nn.Module:
    from timm.layers import LayerNorm2d

    normed: nn.Module = LayerNorm2d(channels)
    return normed


def _double(inputs: int, outputs: int) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, 2, 2)


def _smoothed(inputs: int) -> list[nn.Module]:
    """A 1x1 and a 3x3 convolution, each with its norm in place of a bias."""
    one, three = nn.Conv2d(inputs, WIDTH, 1, bias=False), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
    return [one, _norm(WIDTH), three, _norm(WIDTH)]
