"""Tiny snapshots of detectors and of what else the cards name, and all writers together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import snapshots
from published import CHECKPOINTS, checkpoint
from snapshots import labels, swin, write_snapshot

from scripts.cards.releases import Checkpoint

DETECTOR = {
    "encoder_hidden_dim": 32, "encoder_ffn_dim": 16, "encoder_attention_heads": 2, "d_model": 32, "num_queries": 5,
    "decoder_in_channels": [32, 32, 32], "decoder_ffn_dim": 16, "decoder_layers": 2, "decoder_attention_heads": 2,
    "num_denoising": 0, "encoder_in_channels": [8, 8, 8],
}  # fmt: skip


def _resnet() -> Any:
    from transformers import RTDetrResNetConfig

    return RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def _hgnet() -> Any:
    from transformers import HGNetV2Config

    return HGNetV2Config(
        stem_channels=[3, 8, 8], stage_in_channels=[8, 8, 8, 8], stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 8, 8, 8], stage_num_blocks=[1, 1, 1, 1], stage_numb_of_layers=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], embedding_size=8, out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip


def _detector(config: str, model: str, backbone: Callable[[], Any], **more: Any) -> Callable[[Path, str], None]:
    """Of the line of RT-DETR: they share the processor and most names of their configurations."""

    def write(hub: Path, name: str) -> None:
        import transformers

        made = getattr(transformers, config)(backbone_config=backbone(), **(DETECTOR | more), **labels(6))
        processor = transformers.RTDetrImageProcessor(size={"height": 64, "width": 64})
        write_snapshot(hub, name, getattr(transformers, model)(made), processor)

    return write


def _rf_detr(model: str) -> Callable[[Path, str], None]:
    def write(hub: Path, name: str) -> None:
        import transformers

        backbone = transformers.RfDetrDinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=1, image_size=64, patch_size=16,
            num_windows=2, out_features=["stage2"],
        )  # fmt: skip
        config = transformers.RfDetrConfig(
            backbone_config=backbone, decoder_ffn_dim=16, decoder_layers=1, decoder_self_attention_heads=2,
            decoder_cross_attention_heads=2, num_queries=5, d_model=16, group_detr=1, intermediate_size=16, **labels(6),
        )  # fmt: skip
        processor = transformers.RfDetrImageProcessor(size={"height": 64, "width": 64})
        write_snapshot(hub, name, getattr(transformers, model)(config), processor)

    return write


def detr_panoptic(hub: Path, name: str) -> None:
    from transformers import DetrConfig, DetrForSegmentation, DetrImageProcessor, ResNetConfig

    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[256, 512, 1024, 2048], depths=[1, 1, 1, 1], out_features=stages
    )
    config = DetrConfig(
        backbone_config=backbone, d_model=64, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=8, decoder_attention_heads=8, num_queries=5, **labels(6),
    )  # fmt: skip
    processor = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    write_snapshot(hub, name, DetrForSegmentation(config), processor)


def _dinov2(model: str) -> Callable[[Path, str], None]:
    def write(hub: Path, name: str) -> None:
        import transformers

        config = transformers.Dinov2Config(
            image_size=28,
            patch_size=14,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            mlp_ratio=1,
            **labels(6),
        )
        processor = transformers.BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
        write_snapshot(hub, name, getattr(transformers, model)(config), processor)

    return write


def upernet(hub: Path, name: str) -> None:
    from transformers import SegformerImageProcessor, UperNetConfig, UperNetForSemanticSegmentation

    config = UperNetConfig(
        backbone_config=swin(), hidden_size=16, use_auxiliary_head=False, pool_scales=[1, 2], **labels(6)
    )
    processor = SegformerImageProcessor(size={"height": 64, "width": 64})
    write_snapshot(hub, name, UperNetForSemanticSegmentation(config), processor)


def timesformer(hub: Path, name: str) -> None:
    from transformers import TimesformerConfig, TimesformerForVideoClassification, VideoMAEImageProcessor

    config = TimesformerConfig(
        image_size=32, patch_size=16, num_frames=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, **labels(6),
    )  # fmt: skip
    processor = VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    write_snapshot(hub, name, TimesformerForVideoClassification(config), processor)


WRITERS: dict[str, Callable[[Path, str], None]] = snapshots.WRITERS | {
    "DetrForSegmentation": detr_panoptic,
    "RTDetrForObjectDetection": _detector("RTDetrConfig", "RTDetrForObjectDetection", _resnet),
    "RTDetrV2ForObjectDetection": _detector("RTDetrV2Config", "RTDetrV2ForObjectDetection", _resnet),
    "DFineForObjectDetection": _detector("DFineConfig", "DFineForObjectDetection", _hgnet),
    "Deimv2ForObjectDetection": _detector("Deimv2Config", "Deimv2ForObjectDetection", _hgnet),
    "RfDetrForObjectDetection": _rf_detr("RfDetrForObjectDetection"),
    "RfDetrForInstanceSegmentation": _rf_detr("RfDetrForInstanceSegmentation"),
    "Dinov2Model": _dinov2("Dinov2Model"),
    "Dinov2ForImageClassification": _dinov2("Dinov2ForImageClassification"),
    "UperNetForSemanticSegmentation": upernet,
    "TimesformerForVideoClassification": timesformer,
}
"""Class of transformers -> what writes a tiny snapshot for it."""


ALSO = (  # kinds that cards may have, and those of today have not
    checkpoint("transformers", "DetrForObjectDetection", "facebook/detr-resnet-50", "boxes"),
    checkpoint("transformers", "ViTForImageClassification", "google/vit-base-patch16-224", "classes"),
    checkpoint("transformers", "SamModel", "facebook/sam-vit-base", "masks of a prompt"),
)


def kinds() -> dict[str, Checkpoint]:
    """The first checkpoint of each class and output of transformers."""
    found: dict[str, Checkpoint] = {}
    for each in (*CHECKPOINTS.values(), *ALSO):
        if each.load.library == "transformers":
            found.setdefault(f"{each.load.class_}, {each.output}", each)
    return found


KINDS = {name: each for name, each in kinds().items() if each.load.class_ in WRITERS}

VISION = {
    "classes": ("torchvision.models", "mobilenet_v3_small", "MobileNet_V3_Small_Weights.IMAGENET1K_V1"),
    "semantic map": (
        "torchvision.models.segmentation", "lraspp_mobilenet_v3_large",
        "LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1",
    ),
    "boxes": (
        "torchvision.models.detection", "fasterrcnn_mobilenet_v3_large_320_fpn",
        "FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1",
    ),
    "boxes and masks": (
        "torchvision.models.detection", "maskrcnn_resnet50_fpn", "MaskRCNN_ResNet50_FPN_Weights.COCO_V1",
    ),
    "keypoints": (
        "torchvision.models.detection", "keypointrcnn_resnet50_fpn", "KeypointRCNN_ResNet50_FPN_Weights.COCO_V1",
    ),
}  # fmt: skip
"""Output -> the smallest model of torchvision that has it."""


def counts(weights: Any, folder: str) -> dict[str, Any]:
    """How many classes, and keypoints, the weights are for."""
    if folder == "torchvision.models":
        return {}
    keypoints = {"num_keypoints": len(weights.meta["keypoint_names"])} if "keypoint_names" in weights.meta else {}
    return {"num_classes": len(weights.meta["categories"]), **keypoints}
