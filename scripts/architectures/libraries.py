"""Architectures that libraries define, with random weights, and what it takes to run them without values.

A forward pass that looks at values (how many boxes are left? is a mask full?) fails on the meta device. Such models run
here part by part, on the number of boxes that they work on at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from scripts.architectures import real_time_detrs
from scripts.architectures.lora import adapt
from scripts.cards import nearest

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


DEEPER_BACKBONES = {"fasterrcnn_resnet101_fpn": "resnet101", "maskrcnn_resnet101_fpn": "resnet101"}
"""Detectors that torchvision can build, though it has no name for them."""


def _deeper(model: str) -> nn.Module:
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone = resnet_fpn_backbone(backbone_name=DEEPER_BACKBONES[model], weights=None)
    built: nn.Module = (detection.MaskRCNN if model.startswith("mask") else detection.FasterRCNN)(backbone, 91)
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


def from_transformers(model: str, size: Size, **changes: int) -> nn.Module:
    """A model of transformers, in a published configuration but for the changes."""
    return known(TRANSFORMERS, "transformers", model)(size=size, **changes)


class UnpaddedDETR(nn.Module):
    """DETR on images without padding: the forward pass of the library asks whether the padding mask is full."""

    def __init__(self, detr: Any) -> None:
        super().__init__()
        self.detr = detr

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) images to (B, N, K + 1) class logits and (B, N, 4) boxes, cxcywh as shares of the image."""
        model = self.detr.model
        features, mask = model.backbone(images, images.new_ones(len(images), *images.shape[2:]))[-1]
        tokens = model.input_projection(features).flatten(2).transpose(1, 2)  # (B, D, H, W) -> (B, H * W, D)
        grid = model.position_embedding(features.shape, features.device, features.dtype, mask)
        positions = grid.flatten(2).transpose(1, 2)  # (B, D, H, W) -> (B, H * W, D)
        memory = model.encoder(tokens, spatial_position_embeddings=positions).last_hidden_state
        queries = model.query_position_embeddings.weight.expand(len(images), -1, -1)  # (N, D) -> (B, N, D)
        decoded = model.decoder(
            torch.zeros_like(queries),
            encoder_hidden_states=memory,
            spatial_position_embeddings=positions,
            object_queries_position_embeddings=queries,
        ).last_hidden_state
        return self.detr.class_labels_classifier(decoded), self.detr.bbox_predictor(decoded).sigmoid()


class PromptDecoder(nn.Module):
    """SAM without its image encoder: what runs for every prompt."""

    def __init__(self, sam: Any) -> None:
        super().__init__()
        self.sam = sam
        self.sam.vision_encoder = None

    def forward(self, features: Tensor, points: Tensor) -> Tensor:
        """(B, 256, H, W) features and (B, P, K, 2) points in pixels to (B, P, 3, 4 H, 4 W) masks."""
        labels = points.new_ones(points.shape[:3], dtype=torch.int)
        sparse, dense = self.sam.prompt_encoder(points, labels, None, None)
        positions = self.sam.get_image_wide_positional_embeddings().expand_as(features)
        masks: Tensor = self.sam.mask_decoder(
            image_embeddings=features, image_positional_embeddings=positions, sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense, multimask_output=True,
        )[0]  # fmt: skip
        return masks


class ImageEncoder(nn.Module):
    """SAM, of which the image encoder runs, once per image; prompts and masks cost little beside it."""

    def __init__(self, sam: Any) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, 256, H / 16, W / 16) features."""
        features: Tensor = self.sam.vision_encoder(images).last_hidden_state
        return features


def _detr(backbone: str, dilation: bool, size: Size, **changes: int) -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection

    config = DetrConfig(
        use_timm_backbone=True, backbone=backbone, use_pretrained_backbone=False, dilation=dilation, num_labels=91,
        **changes,
    )  # fmt: skip
    return UnpaddedDETR(DetrForObjectDetection(config))


def _vit_lora(size: Size, rank: int = 16) -> nn.Module:
    """ViT-B/16 with 101 classes and an update beside the query and value projections, as in PEFT's example."""
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(ViTConfig(image_size=size[0], num_labels=101))
    return adapt(model, ("q_proj", "v_proj", "query", "value"), rank)


def _timesformer(attention: str, size: Size) -> nn.Module:
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    if len(size) != 3 or size[1] != size[2]:
        raise ValueError("TimeSformer takes frames x side x side")
    frames, side = size[:2]
    built: nn.Module = TimesformerForVideoClassification(
        TimesformerConfig(num_frames=frames, image_size=side, num_labels=400, attention_type=attention)
    )
    return built


def _sam(width: int, layers: int, heads: int, size: Size) -> nn.Module:
    from transformers import SamConfig, SamModel, SamVisionConfig

    of_whole_image = [layers * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]  # the others attend within windows
    vision = SamVisionConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        global_attn_indexes=of_whole_image, image_size=size[0],
    )  # fmt: skip
    return ImageEncoder(SamModel(SamConfig(vision_config=vision)))


def _sam_decoder(size: Size) -> nn.Module:
    from transformers import SamConfig, SamModel

    return PromptDecoder(SamModel(SamConfig()))


TRANSFORMERS: Mapping[str, Callable[..., nn.Module]] = {
    "detr-resnet-50": partial(_detr, "resnet50", False),
    "detr-resnet-50-dc5": partial(_detr, "resnet50", True),
    "detr-resnet-101": partial(_detr, "resnet101", False),
    "detr-resnet-101-dc5": partial(_detr, "resnet101", True),
    "detr-resnet-50-no-encoder": partial(_detr, "resnet50", False, encoder_layers=0),
    "timesformer-base": partial(_timesformer, "divided_space_time"),
    "timesformer-space-only": partial(_timesformer, "space_only"),
    "timesformer-joint": partial(_timesformer, "joint_space_time"),
    "vit-base-lora-16": _vit_lora,
    "sam-decoder": _sam_decoder,
    "sam-vit-base": partial(_sam, 768, 12, 12),
    "sam-vit-large": partial(_sam, 1024, 24, 16),
    "sam-vit-huge": partial(_sam, 1280, 32, 16),
    **real_time_detrs.MODELS,
}


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


MONAI: Mapping[str, Callable[[], nn.Module]] = {"dynunet_brats21": _dynunet_brats21}
