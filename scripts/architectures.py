"""Published architectures by name, built without memory on the meta device.

`timm/...`, `torchvision/...` and `transformers/...` take the library's own definition with random weights; `ours/...` are
short definitions of what no library has. Needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


class ValidUNet(nn.Module):
    """The U-Net of 2015 with its valid convolutions: 572 x 572 in, 388 x 388 out (Fig. 1, arXiv:1505.04597).

    Args:
        in_channels: 1 in the figure.
        classes: 2 in the figure.
        width: channels of the first level, doubled at each of the four poolings.
    """

    def __init__(self, in_channels: int = 1, classes: int = 2, width: int = 64) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(_two_convolutions(a, b) for a, b in zip([in_channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(_two_convolutions(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) image to (B, K, H - 184, W - 184) scores."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = up(x)
            x = merge(torch.cat([_centre_crop(skips.pop(), x), x], dim=1))
        scores: Tensor = self.head(x)
        return scores


def _two_convolutions(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3), nn.ReLU(), nn.Conv2d(out_channels, out_channels, 3), nn.ReLU()
    )


def _centre_crop(x: Tensor, like: Tensor) -> Tensor:
    top, left = (x.shape[-2] - like.shape[-2]) // 2, (x.shape[-1] - like.shape[-1]) // 2
    return x[..., top : top + like.shape[-2], left : left + like.shape[-1]]


OURS: Mapping[str, Callable[[], nn.Module]] = {"unet_2015": ValidUNet}
CHANNELS = {"ours/unet_2015": 1}


def build(name: str, size: tuple[int, ...]) -> nn.Module:
    """The architecture `library/model`, for inputs of `size` = (H, W) or (T, H, W), in evaluation mode.

    Raises:
        LookupError: there is no such library, or it has no such model.
    """
    library, _, model = name.partition("/")
    if library not in BUILDERS:
        raise LookupError(f"{name}: no library {library!r}; there are {', '.join(BUILDERS)}")
    return BUILDERS[library](model, size).eval()


def _from_timm(model: str, size: tuple[int, ...]) -> nn.Module:
    import timm

    if not timm.is_model(model):
        raise LookupError(f"timm has no model {model!r}")
    default = timm.get_pretrained_cfg(model).input_size[1:]
    sized = {} if tuple(size) == tuple(default) else {"img_size": size}
    try:
        built: nn.Module = timm.create_model(model, pretrained=False, **sized)
    except TypeError:  # a convolutional network takes any size and knows no img_size
        built = timm.create_model(model, pretrained=False)
    return built


def _from_torchvision(model: str, size: tuple[int, ...]) -> nn.Module:
    import torchvision

    if model not in torchvision.models.list_models():
        raise LookupError(f"torchvision has no model {model!r}")
    backbone = (
        {"weights_backbone": None} if model in torchvision.models.list_models(torchvision.models.detection) else {}
    )
    built: nn.Module = torchvision.models.get_model(model, weights=None, **backbone)
    return built


def _from_transformers(model: str, size: tuple[int, ...]) -> nn.Module:
    import transformers

    if model not in TRANSFORMERS:
        raise LookupError(f"transformers/{model} has no definition here; there are {', '.join(TRANSFORMERS)}")
    return TRANSFORMERS[model](transformers)


def _detr(backbone: str, dilation: bool) -> Callable[[object], nn.Module]:
    def make(transformers: object) -> nn.Module:
        config = transformers.DetrConfig(  # type: ignore[attr-defined]
            use_timm_backbone=True, backbone=backbone, use_pretrained_backbone=False, dilation=dilation, num_labels=91
        )
        built: nn.Module = transformers.DetrForObjectDetection(config)  # type: ignore[attr-defined]
        return built

    return make


TRANSFORMERS: Mapping[str, Callable[[object], nn.Module]] = {
    "detr-resnet-50": _detr("resnet50", False),
    "detr-resnet-50-dc5": _detr("resnet50", True),
    "detr-resnet-101": _detr("resnet101", False),
    "detr-resnet-101-dc5": _detr("resnet101", True),
}


def _from_ours(model: str, size: tuple[int, ...]) -> nn.Module:
    if model not in OURS:
        raise LookupError(f"ours/{model} is not defined in scripts/architectures.py; there are {', '.join(OURS)}")
    return OURS[model]()


BUILDERS: Mapping[str, Callable[[str, tuple[int, ...]], nn.Module]] = {
    "timm": _from_timm,
    "torchvision": _from_torchvision,
    "transformers": _from_transformers,
    "ours": _from_ours,
}
