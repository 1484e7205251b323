"""Regions around true objects, as a proposal network would give them, and a small pyramid that heads read them from."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image

from lab import rcnn

CODERS = tuple(BoxCoder((10.0 * t, 10.0 * t, 5.0 * t, 5.0 * t)) for t in (1, 2, 3))  # a later stage corrects less


def jitter(boxes: Tensor, most: float, side: int, generator: torch.Generator) -> Tensor:
    """Boxes (..., 4) shifted and scaled by normal noise, of a strength drawn up to `most` for each, cut at the image's sides."""
    strength = most * torch.rand(boxes.shape[:-1], generator=generator, device=boxes.device)[..., None]
    noise = (strength * torch.randn(boxes.shape, generator=generator, device=boxes.device)).clamp(-0.7, 0.7)
    sides, middle = boxes[..., 2:] - boxes[..., :2], (boxes[..., :2] + boxes[..., 2:]) / 2
    middle, sides = middle + noise[..., :2] * sides, sides * noise[..., 2:].exp()
    return clip_boxes_to_image(torch.cat([middle - sides / 2, middle + sides / 2], -1), (side, side))


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (...) of each box of a (..., 4) with that of b (..., 4) in the same place; NaN where both have no area."""
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    of_a, of_b = ((each[..., 2:] - each[..., :2]).prod(-1) for each in (a, b))
    return inner / (of_a + of_b - inner)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values (B, P, C) of maps (B, C, H, W) at points (B, P, 2), x and y from 0 to 1."""
    read = nn.functional.grid_sample(maps.float(), 2 * points[:, :, None].float() - 1, align_corners=False)
    return read.squeeze(-1).mT  # (B, C, P, 1) -> (B, P, C)


class Pyramid(nn.Module):
    """Images (B, 3, H, W) -> features of stride 4 (B, C', H / 4, W / 4), with context from stride 8, and of stride 2."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.backbone = rcnn.backbone(width)
        self.lateral, self.top = nn.Conv2d(width // 2, channels, 1), nn.Conv2d(width, channels, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.backbone[0](images)
        middle = self.backbone[1](fine)
        above = nn.functional.interpolate(self.top(self.backbone[2:](middle)), scale_factor=2.0)
        return self.lateral(middle) + above, fine
