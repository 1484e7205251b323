"""Tiny weights under the real names, written into the caches in the layout of the libraries, whose own code then reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

REVISION = "0" * 40


def write_snapshot(hub: Path, name: str, *parts: Any) -> Path:
    """A snapshot of a repository of the hub: whatever `save_pretrained` of the parts writes."""
    repository = hub / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / REVISION
    folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs/main").write_text(REVISION)
    for part in parts:
        part.save_pretrained(folder)
    return folder


def labels(count: int) -> dict[str, Any]:
    return {"id2label": {n: f"thing {n}" for n in range(count)}}


def swin() -> Any:
    from transformers import SwinConfig

    return SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def _words(folder: Path, extra: tuple[str, ...] = ()) -> Path:
    """The vocabulary of BERT in small: single letters and a few words."""
    letters = [*"abcdefghijklmnopqrstuvwxyz.,"]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{each}" for each in letters), *extra]
    path = folder / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n")
    return path


def fast_tokenizer(**marks: str) -> Any:
    """A tokenizer of words, with the marks that a model wants."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<s>", "</s>", ".", *["a", "photo", "of", "cat", "person", "the", "rocket"]]
    built = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=built, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        cls_token="<s>", sep_token="</s>", **marks,
    )  # fmt: skip


def detr(hub: Path, name: str) -> None:
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig

    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage4"])
    config = DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=16,
        encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2,
        decoder_attention_heads=2, num_queries=5, **labels(6),
    )  # fmt: skip
    processor = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    write_snapshot(hub, name, DetrForObjectDetection(config), processor)


def vit(hub: Path, name: str) -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        **labels(6),
    )  # fmt: skip
    write_snapshot(hub, name, ViTForImageClassification(config), ViTImageProcessor(size={"height": 32, "width": 32}))


def dinov3_vit(hub: Path, name: str) -> None:
    from transformers import DINOv3ViTConfig, DINOv3ViTImageProcessor, DINOv3ViTModel

    config = DINOv3ViTConfig(
        image_size=32, patch_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_register_tokens=4,
    )  # fmt: skip
    processor = DINOv3ViTImageProcessor(size={"height": 64, "width": 64})
    write_snapshot(hub, name, DINOv3ViTModel(config), processor)


def dinov3_convnext(hub: Path, name: str) -> None:
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel, DINOv3ViTImageProcessor

    config = DINOv3ConvNextConfig(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1])
    processor = DINOv3ViTImageProcessor(size={"height": 64, "width": 64})
    write_snapshot(hub, name, DINOv3ConvNextModel(config), processor)


def mask2former(hub: Path, name: str) -> None:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

    config = Mask2FormerConfig(
        backbone_config=swin(), feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=5, **labels(6),
    )  # fmt: skip
    processor = Mask2FormerImageProcessor(size={"height": 64, "width": 64}, num_labels=6)
    write_snapshot(hub, name, Mask2FormerForUniversalSegmentation(config), processor)


def eomt(hub: Path, name: str) -> None:
    from transformers import EomtConfig, EomtForUniversalSegmentation, EomtImageProcessor

    split = "semantic" in name  # as the repositories on the hub say
    config = EomtConfig(
        image_size=64, patch_size=16, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_blocks=1,
        num_queries=5, num_upscale_blocks=1, **labels(6),
    )  # fmt: skip
    size = {"shortest_edge": 64, "longest_edge": None if split else 64}
    processor = EomtImageProcessor(size=size, do_split_image=split, do_pad=not split)
    write_snapshot(hub, name, EomtForUniversalSegmentation(config), processor)


def depth_anything(hub: Path, name: str) -> None:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    backbone = Dinov2Config(
        image_size=28, patch_size=14, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
        head_hidden_size=8,
    )  # fmt: skip
    processor = DPTImageProcessor(size={"height": 28, "width": 28}, keep_aspect_ratio=True, ensure_multiple_of=14)
    write_snapshot(hub, name, DepthAnythingForDepthEstimation(config), processor)


def grounding_dino(hub: Path, name: str) -> None:
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
    )

    folder = write_snapshot(hub, name)
    tokenizer = BertTokenizer(str(_words(folder, ("cat", "person", "rocket"))))
    text = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config = GroundingDinoConfig(
        backbone_config=swin(), text_config=text, d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=5, num_feature_levels=4,
    )  # fmt: skip
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    processor = GroundingDinoProcessor(images, tokenizer)
    write_snapshot(hub, name, GroundingDinoForObjectDetection(config), processor)


def siglip(hub: Path, name: str) -> None:
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = SiglipConfig(
        text_config={
            **small,
            "vocab_size": 16,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "projection_size": 16,
        },
        vision_config={**small, "image_size": 32, "patch_size": 16},
    )
    processor = SiglipProcessor(SiglipImageProcessor(size={"height": 32, "width": 32}), fast_tokenizer())
    write_snapshot(hub, name, SiglipModel(config), processor)


def siglip2(hub: Path, name: str) -> None:
    from transformers import Siglip2Config, Siglip2ImageProcessor, Siglip2Model, Siglip2Processor

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = Siglip2Config(
        text_config={
            **small,
            "vocab_size": 16,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "projection_size": 16,
        },
        vision_config={**small, "num_patches": 16, "patch_size": 16},
    )
    processor = Siglip2Processor(Siglip2ImageProcessor(patch_size=16, max_num_patches=16), fast_tokenizer())
    write_snapshot(hub, name, Siglip2Model(config), processor)


def sam(hub: Path, name: str) -> None:
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    config = SamConfig(
        vision_config={
            "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64,
            "patch_size": 16, "window_size": 2, "num_pos_feats": 8, "mlp_dim": 16, "global_attn_indexes": [0],
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
        },
    )  # fmt: skip
    images = SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    write_snapshot(hub, name, SamModel(config), SamProcessor(images))


SAM2: dict[str, dict[str, Any]] = {
    "vision_config": {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1, "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 2],
            "window_size_per_stage": [8, 4, 4, 2], "global_attention_blocks": [3], "image_size": [64, 64],
            "window_positional_embedding_background_size": [2, 2],
        },
        "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 16,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    },
    "prompt_encoder_config": {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
    "mask_decoder_config": {
        "hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
    },
}  # fmt: skip


def sam2(hub: Path, name: str) -> None:
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

    images = Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16})
    write_snapshot(hub, name, Sam2Model(Sam2Config(**SAM2)), Sam2Processor(images, target_size=64))


def sam2_video(hub: Path, name: str) -> None:
    from transformers import (
        Sam2ImageProcessor,
        Sam2VideoConfig,
        Sam2VideoModel,
        Sam2VideoProcessor,
        Sam2VideoVideoProcessor,
    )

    wide = {part: {**values} for part, values in SAM2.items()}  # its memory has its own width
    wide["vision_config"]["fpn_hidden_size"] = 256
    wide["prompt_encoder_config"]["hidden_size"] = wide["mask_decoder_config"]["hidden_size"] = 256
    config = Sam2VideoConfig(
        **wide, image_size=64, memory_attention_hidden_size=256, memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=16, memory_encoder_hidden_size=256, memory_encoder_output_channels=64,
        memory_attention_rope_feat_sizes=[4, 4], mask_downsampler_embed_dim=256, memory_fuser_embed_dim=256,
        memory_fuser_intermediate_dim=16, memory_fuser_num_layers=1,
    )  # fmt: skip
    images = Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16})
    videos = Sam2VideoVideoProcessor(size={"height": 64, "width": 64})
    write_snapshot(hub, name, Sam2VideoModel(config), Sam2VideoProcessor(images, videos, target_size=64))


SAM3_SIGHT = {
    "backbone_config": {
        "model_type": "sam3_vit_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 56, "pretrain_image_size": 56, "window_size": 2,
        "global_attn_indexes": [0],
    },
    "fpn_hidden_size": 32, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
}  # fmt: skip


def sam3(hub: Path, name: str) -> None:
    from transformers import Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor

    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 16}
    config = Sam3Config(
        vision_config=SAM3_SIGHT,
        text_config={**small, "num_hidden_layers": 1, "vocab_size": 16, "projection_dim": 16, "eos_token_id": 3},
        geometry_encoder_config={**small, "num_layers": 1}, detr_encoder_config={**small, "num_layers": 1},
        detr_decoder_config={**small, "num_layers": 1, "num_queries": 5},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )  # fmt: skip
    images = Sam3ImageProcessor(size={"height": 56, "width": 56})
    write_snapshot(hub, name, Sam3Model(config), Sam3Processor(images, fast_tokenizer(), target_size=56))


def sam3_tracker(hub: Path, name: str) -> None:
    from transformers import Sam3ImageProcessor, Sam3TrackerConfig, Sam3TrackerModel, Sam3TrackerProcessor

    config = Sam3TrackerConfig(
        vision_config=SAM3_SIGHT,
        prompt_encoder_config={"hidden_size": 32, "image_size": 56, "patch_size": 14, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 32, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
        },
    )  # fmt: skip
    images = Sam3ImageProcessor(size={"height": 56, "width": 56}, mask_size={"height": 16, "width": 16})
    write_snapshot(hub, name, Sam3TrackerModel(config), Sam3TrackerProcessor(images, target_size=56))


def vjepa2(hub: Path, name: str) -> None:
    from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model, VJEPA2VideoProcessor

    config = VJEPA2Config(
        patch_size=16, crop_size=32, frames_per_clip=4, tubelet_size=2, hidden_size=24, num_attention_heads=2,
        num_hidden_layers=1, mlp_ratio=1, pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1,
        pred_num_mask_tokens=2, num_pooler_layers=1, **labels(6),
    )  # fmt: skip
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    made = VJEPA2ForVideoClassification if "fpc64" not in name else VJEPA2Model
    write_snapshot(hub, name, made(config), VJEPA2VideoProcessor(**sizes))


WRITERS: dict[str, Callable[[Path, str], None]] = {
    "DetrForObjectDetection": detr,
    "ViTForImageClassification": vit,
    "DINOv3ViTModel": dinov3_vit,
    "DINOv3ConvNextModel": dinov3_convnext,
    "Mask2FormerForUniversalSegmentation": mask2former,
    "EomtForUniversalSegmentation": eomt,
    "DepthAnythingForDepthEstimation": depth_anything,
    "GroundingDinoForObjectDetection": grounding_dino,
    "SiglipModel": siglip,
    "Siglip2Model": siglip2,
    "SamModel": sam,
    "Sam2Model": sam2,
    "Sam2VideoModel": sam2_video,
    "Sam3Model": sam3,
    "Sam3TrackerModel": sam3_tracker,
    "VJEPA2Model": vjepa2,
    "VJEPA2ForVideoClassification": vjepa2,
}
"""Class of transformers -> what writes a tiny snapshot for it."""


def write_timm(hub: Path, name: str) -> None:
    """Random weights of a model of timm under its name on the hub."""
    import timm
    from safetensors.torch import save_file

    model = timm.create_model(name, pretrained=False)
    folder = write_snapshot(hub, model.pretrained_cfg["hf_hub_id"])
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": name.partition(".")[0]}))


def write_torchvision(home: Path, weights: Any, model: Any) -> None:
    """Random weights of a model of torchvision where it would have downloaded them to."""
    import torch

    folder = home / "hub/checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / weights.url.rpartition("/")[2])
