"""Architectures that libraries define, with random weights, and what it takes to run them without values.

A forward pass that looks at values (how many boxes are left? is a mask full?) fails on the meta device. Such models run
here part by part, on the number of boxes that they work on at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from scripts.cards.problems import nearest

Size = tuple[int, ...]
T = TypeVar("T")


def known(models: Mapping[str, T], library: str, model: str) -> T:
    """The entry of a model.

    Raises:
        LookupError: there is none; the message names those there are.
    """
    if model not in models:
        raise LookupError(f"{library}/{model} has no definition here; there are {', '.join(models)}")
    return models[model]


def _demand(model: str, models: Iterable[str], library: str) -> None:
    names = list(models)
    if model not in names:
        raise LookupError(f"{library} has no model {model!r}{nearest(model, names)}")


def from_timm(model: str, size: Size) -> nn.Module:
    """A model of timm, with or without the tag of its weights, for images of this size (convolutions take any)."""
    import timm

    _demand(model, timm.list_models(pretrained="." in model), "timm")
    default = timm.get_pretrained_cfg(model).input_size[1:]
    sized: dict[str, Size] = {} if size == tuple(default) else {"img_size": size}
    try:
        built: nn.Module = timm.create_model(model, pretrained=False, **sized)
    except TypeError:  # a convolutional network knows no img_size
        built = timm.create_model(model, pretrained=False)
    return built


def from_torchvision(model: str, size: Size) -> nn.Module:
    """A model of torchvision; detectors run as `FixedBoxes`, on inputs that are of the right size already."""
    from torchvision import models

    if model in DEEPER_BACKBONES:
        return FixedBoxes(_deeper(model))
    _demand(model, models.list_models(), "torchvision")
    detectors, segmenters = models.list_models(models.detection), models.list_models(models.segmentation)
    no_download = {"weights_backbone": None} if model in {*detectors, *segmenters} else {}
    built: nn.Module = models.get_model(model, weights=None, **no_download)
    return FixedBoxes(built) if model in detectors else built


DEEPER_BACKBONES = {
    "fasterrcnn_resnet101_fpn": "resnet101", "fasterrcnn_resnext101_32x8d_fpn": "resnext101_32x8d",
    "maskrcnn_resnet101_fpn": "resnet101", "maskrcnn_resnext101_32x8d_fpn": "resnext101_32x8d",
    "maskrcnn_resnet101_fpn_v2": "resnet101",
}  # fmt: skip
"""Detectors that torchvision can build, though it has no name for them."""


def _deeper(model: str) -> nn.Module:
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    deeper = DEEPER_BACKBONES[model]
    if model.endswith("_v2"):
        return mask_rcnn_v2(resnet_fpn_backbone(backbone_name=deeper, weights=None, norm_layer=nn.BatchNorm2d))
    backbone = resnet_fpn_backbone(backbone_name=deeper, weights=None)
    built: nn.Module = (detection.MaskRCNN if model.startswith("mask") else detection.FasterRCNN)(backbone, 91)
    return built


def mask_rcnn_v2(backbone: nn.Module) -> nn.Module:
    """torchvision's maskrcnn_resnet50_fpn_v2 on another backbone: its heads are built within the function for that one alone."""
    from torchvision.models import detection

    built: nn.Module = detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    built.backbone = backbone
    return built


class FixedBoxes(nn.Module):
    """A detector of torchvision with as many boxes as it keeps at most: 1,000 proposals, 100 detections.

    The GFLOPS in torchvision's documentation hold for as many as the trained weights find in noise (see
    test/common_extended_utils.py there): with a ResNet all of the proposals, and detections from none to all.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> None:
        """(B, 3, H, W) images through all that has weights; gives nothing back."""
        levels = list(self.detector.backbone(images).values())
        if not hasattr(self.detector, "rpn"):
            self.detector.head(levels)
            return
        self.detector.rpn.head(levels)
        heads, channels = self.detector.roi_heads, levels[0].shape[1]
        detections = heads.detections_per_img
        boxes = {"box": self.detector.rpn.post_nms_top_n(), "mask": detections, "keypoint": detections}
        for kind, most in boxes.items():
            if getattr(heads, f"{kind}_head") is not None:
                pooled = getattr(heads, f"{kind}_roi_pool").output_size
                features = levels[0].new_empty(len(images) * most, channels, *pooled)
                getattr(heads, f"{kind}_predictor")(getattr(heads, f"{kind}_head")(features))


def from_monai(model: str, size: Size) -> nn.Module:
    """A model of MONAI, in a published configuration."""
    return known(MONAI, "monai", model)()


def _dynunet_brats21() -> nn.Module:
    """Levels, channels and flags of the official notebook (BraTS21.ipynb, section Training)."""
    from monai.networks.nets.dynunet import DynUNet

    built: nn.Module = DynUNet(
        spatial_dims=3, in_channels=5, out_channels=3, kernel_size=[3] * 7, strides=[1] + [2] * 6,
        upsample_kernel_size=[2] * 6, filters=[64, 96, 128, 192, 256, 384, 512],
        deep_supervision=True, deep_supr_num=2, trans_bias=True,
    )  # fmt: skip
    return built


def _dynunet_nnunet() -> nn.Module:
    """nnU-Net's plain 3D U-Net of six stages (default_experiment_planner.py), for one channel and three classes."""
    from monai.networks.nets.dynunet import DynUNet

    built: nn.Module = DynUNet(
        spatial_dims=3, in_channels=1, out_channels=3, kernel_size=[3] * 6, strides=[1] + [2] * 5,
        upsample_kernel_size=[2] * 5, filters=[32, 64, 128, 256, 320, 320],
        deep_supervision=True, deep_supr_num=4, trans_bias=True,
    )  # fmt: skip
    return built


MONAI: Mapping[str, Callable[[], nn.Module]] = {
    "dynunet_brats21": _dynunet_brats21,
    "dynunet_nnunet": _dynunet_nnunet,
}
