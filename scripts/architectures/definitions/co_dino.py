"""Co-DINO (arXiv:2211.12860) as it runs in use: DINO over five scales, without the heads that help in training.

Sizes follow projects/configs/co_dino of the official repository. Left out, because they multiply no matrices: positions of
the encoder, and the suppression of duplicates. Sampling between positions is left out of the count by torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scripts.architectures.definitions.hugging_face import swin_config
from scripts.architectures.definitions.mask_dino import (
    WIDTH,
    DecoderLayer,
    EncoderLayer,
    centres,
    convolution,
    mlp,
    sines,
)

LEVELS, CLASSES = 5, 80


class CoDINO(nn.Module):
    """A backbone, an encoder over strides of 4 to 64, the best tokens as queries, and six decoder layers over them.

    Args:
        backbone: `resnet50`, or `l` for Swin-L.
        queries: number of queries.
    """

    def __init__(self, backbone: str, queries: int = 900) -> None:
        super().__init__()
        self.queries = queries
        self.backbone = ResNetStages() if backbone == "resnet50" else SwinStages(backbone)
        widths = self.backbone.widths
        self.project = nn.ModuleList(convolution(width, 1, bias=False) for width in widths)
        self.coarsest = convolution(widths[-1], 3, 2, bias=False)
        self.level = nn.Parameter(torch.zeros(LEVELS, WIDTH))
        self.encoder = nn.ModuleList(EncoderLayer(LEVELS, 2048) for _ in range(6))
        self.propose = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
        self.contents = nn.Embedding(queries, WIDTH)
        self.decoder = nn.ModuleList(DecoderLayer(LEVELS) for _ in range(6))
        self.place, self.norm = mlp(2 * WIDTH, WIDTH, 2), nn.LayerNorm(WIDTH)
        self.classify = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(7))  # the last one for the tokens
        self.box = nn.ModuleList(mlp(WIDTH, 4, 3) for _ in range(7))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) image to (B, N, K) logits and (B, N, 4) boxes, cxcywh as shares of the image."""
        maps = self.backbone(image)
        levels = [project(x) for project, x in zip(self.project, maps, strict=True)] + [self.coarsest(maps[-1])]
        shapes = [(int(level.shape[2]), int(level.shape[3])) for level in levels]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) + e for x, e in zip(levels, self.level, strict=True)], dim=1)
        points = torch.cat([centres(shape, tokens) for shape in shapes]).expand(len(tokens), -1, -1)
        for layer in self.encoder:
            tokens = layer(tokens, points, shapes)
        proposals = self.propose(tokens)
        best = self.classify[-1](proposals).amax(-1).topk(self.queries, dim=1).indices.unsqueeze(-1)  # (B, N, 1)
        boxes = self.box[-1](proposals).gather(1, best.expand(-1, -1, 4)).sigmoid()
        queries = self.contents.weight.expand(len(image), -1, -1)  # (N, D) -> (B, N, D)
        for layer, box in zip(self.decoder, self.box, strict=False):
            queries = layer(queries, self.place(sines(boxes)), boxes, tokens, shapes)
            boxes = (box(self.norm(queries)) + boxes.logit(1e-3)).sigmoid()
        return self.classify[5](self.norm(queries)), boxes


class ResNetStages(nn.Module):
    """The maps of the four stages of a ResNet-50."""

    widths = (256, 512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet50

        net = resnet50(weights=None)
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.stages = nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4])

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) image to maps of strides 4 to 32."""
        maps = [self.stem(image)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class SwinStages(nn.Module):
    """The maps of the four stages of a Swin Transformer."""

    def __init__(self, name: str) -> None:
        super().__init__()
        from transformers import SwinBackbone

        config = swin_config(name, out_features=["stage1", "stage2", "stage3", "stage4"])
        self.swin: Any = SwinBackbone(config)
        self.widths = tuple(config.embed_dim * 2**stage for stage in range(4))

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) image to maps of strides 4 to 32."""
        return list(self.swin(image).feature_maps)
