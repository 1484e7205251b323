"""Architectures that transformers defines, with random weights, and what it takes to run them without values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from scripts.architectures.definitions import real_time_detrs
from scripts.architectures.definitions.libraries import Size, known
from scripts.architectures.definitions.lora import adapt


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
        """(B, 3, H, W) images to the last features: (B, 256, H / 16, W / 16) of SAM, channels last at 1 / 32 of SAM 2."""
        features: Tensor = self.sam.vision_encoder(images).last_hidden_state
        return features


class ImageTower(nn.Module):
    """SigLIP 2, of which the image tower with its pooling head runs, once per image; a list of texts is encoded once."""

    def __init__(self, siglip: Any) -> None:
        super().__init__()
        self.siglip = siglip

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, D) embeddings."""
        embeddings: Tensor = self.siglip.vision_model(images).pooler_output
        return embeddings


class OneConcept(nn.Module):
    """SAM 3 on an image with one phrase of 32 tokens, without its tracker.

    The forward pass of the library reads the size of the grid from a tensor; here that one is not on the meta device.
    """

    def __init__(self, sam: Any) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) images to (B, N) logits of presence times match, and (B, N, H / 3.5, W / 3.5) masks."""
        sam = self.sam
        words = torch.zeros(len(images), sam.config.text_config.max_position_embeddings, dtype=torch.long)
        phrase = sam.get_text_features(words.to(images.device)).pooler_output  # (B, T, D)
        seen = sam.vision_encoder(images)
        levels, positions = seen.fpn_hidden_states[:-1], seen.fpn_position_encoding[:-1]
        encoded = sam.detr_encoder([levels[-1]], phrase, [positions[-1]])
        decoded = sam.detr_decoder(
            encoded.last_hidden_state, encoded.text_features, encoded.pos_embeds_flattened,
            spatial_shapes=torch.tensor([levels[-1].shape[2:]], device="cpu"),
        )  # fmt: skip
        queries = decoded.intermediate_hidden_states  # (layers, B, N, D)
        sam.detr_decoder.box_head(queries)
        matches = sam.dot_product_scoring(queries, encoded.text_features).squeeze(-1)[-1]
        masks = sam.mask_decoder(queries[-1], list(levels), encoded.last_hidden_state, phrase).pred_masks
        return matches.sigmoid() * decoded.presence_logits[-1].sigmoid(), masks


class TextPrompted(nn.Module):
    """Grounding DINO with a text of as many tokens as the 80 class names of COCO have."""

    TOKENS = 195

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) images to (B, 900, 256) similarities to the tokens and (B, 900, 4) boxes, cxcywh as shares."""
        from transformers.models.grounding_dino import modeling_grounding_dino as library

        text = torch.zeros(len(images), self.TOKENS, dtype=torch.long)
        with patch.object(library, "torch_compilable_check"):  # it looks at values, to check sizes that are right here
            found = self.detector(images, text)
        return found.logits, found.pred_boxes


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


def _sam2(
    width: int, heads: int, stages: tuple[int, ...], of_whole_image: tuple[int, ...], windows: tuple[int, ...],
    background: int, size: Size,
) -> nn.Module:  # fmt: skip
    """SAM 2.1 with its memory, by sam2/configs/sam2.1 of the official repository."""
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig

    widths = [width * 2**stage for stage in range(4)]
    hiera = Sam2HieraDetConfig(
        hidden_size=width, num_attention_heads=heads, blocks_per_stage=list(stages), embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[heads * 2**stage for stage in range(4)], window_size_per_stage=list(windows),
        global_attention_blocks=list(of_whole_image),
        window_positional_embedding_background_size=[background, background],
    )  # fmt: skip
    vision = Sam2VisionConfig(backbone_config=hiera, backbone_channel_list=widths[::-1])
    return ImageEncoder(Sam2VideoModel(Sam2VideoConfig(vision_config=vision)))


def swin_config(name: str, **outputs: list[Any]) -> Any:
    """The configuration of a Swin Transformer that hands on several scales; those of window 12 come from 384 x 384."""
    from transformers import SwinConfig

    width, middle, window = {"t": (96, 6, 7), "s": (96, 18, 7), "b": (128, 18, 12), "l": (192, 18, 12)}[name]
    return SwinConfig(
        embed_dim=width, depths=[2, 2, middle, 2], num_heads=[width // 32 * 2**stage for stage in range(4)],
        window_size=window, image_size=32 * window, **outputs,
    )  # fmt: skip


def _mask2former(backbone: str, queries: int, size: Size, classes: int = 80) -> nn.Module:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

    stages = ["stage1", "stage2", "stage3", "stage4"]
    resnets = {"resnet-50": 6, "resnet-101": 23}
    config = (
        ResNetConfig(depths=[3, 4, resnets[backbone], 3], out_features=stages)
        if backbone in resnets
        else swin_config(backbone, out_features=stages)
    )
    model = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=config, num_queries=queries, num_labels=classes)
    )
    built: nn.Module = model.to(torch.get_default_device())  # the library makes one parameter on the CPU in any case
    return built


def _eomt(width: int, layers: int, heads: int, blocks: int, size: Size) -> nn.Module:
    """EoMT for the 133 classes of COCO panoptic, with the masks of its attention annealed away, as in use."""
    from transformers import EomtConfig, EomtForUniversalSegmentation

    model = EomtForUniversalSegmentation(
        EomtConfig(
            image_size=size[0], hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            num_blocks=blocks, num_labels=133,
        )
    )  # fmt: skip
    model.attn_mask_probs = torch.zeros(blocks, device="cpu")  # the forward pass looks at them
    built: nn.Module = model
    return built


def _grounding_dino(backbone: str, size: Size) -> nn.Module:
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    config = GroundingDinoConfig(backbone_config=swin_config(backbone, out_indices=[2, 3, 4]))
    return TextPrompted(GroundingDinoForObjectDetection(config).to(torch.get_default_device()))


def _sam_decoder(size: Size) -> nn.Module:
    from transformers import SamConfig, SamModel

    return PromptDecoder(SamModel(SamConfig()))


def _depth_anything(
    width: int, layers: int, neck: tuple[int, ...], fusion: int, taps: list[int], size: Size
) -> nn.Module:
    """Depth Anything V2: DINOv2 with a DPT head; widths and tapped layers of the official README and dpt.py."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        image_size=518, patch_size=14, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        out_indices=taps, apply_layernorm=True, reshape_hidden_states=False,
    )  # fmt: skip
    built: nn.Module = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone, reassemble_hidden_size=width, neck_hidden_sizes=neck, fusion_hidden_size=fusion
        )
    )
    return built


def _sam3(size: Size) -> nn.Module:
    from transformers import Sam3Config, Sam3Model

    config = Sam3Config()
    config.image_size = size[0]
    return OneConcept(Sam3Model(config))


def _siglip2(
    width: int, hidden: int, layers: int, heads: int, patch: int, text: tuple[int, int, int, int], size: Size
) -> nn.Module:
    """Towers as in the README of big_vision; `text` holds width, hidden width, layers and heads of the text tower."""
    from transformers import SiglipConfig, SiglipModel

    vision = {
        "hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "image_size": size[0], "patch_size": patch,
    }  # fmt: skip
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    words = {**dict(zip(names, text, strict=True)), "vocab_size": 256_000, "projection_size": width}
    return ImageTower(SiglipModel(SiglipConfig(vision_config=vision, text_config=words)))


def _vjepa2(width: int, heads: int, layers: int, ratio: float, size: Size) -> nn.Module:
    """The encoder, without the predictor that pretraining needs."""
    from transformers import VJEPA2Config, VJEPA2Model

    if len(size) != 3 or size[1] != size[2]:
        raise ValueError("V-JEPA 2 takes frames x side x side")
    config = VJEPA2Config(
        hidden_size=width, num_attention_heads=heads, num_hidden_layers=layers, mlp_ratio=ratio,
        frames_per_clip=size[0], crop_size=size[1],
    )  # fmt: skip
    encoder: nn.Module = VJEPA2Model(config).encoder
    return encoder


TRANSFORMERS: Mapping[str, Callable[..., nn.Module]] = {
    "detr-resnet-50": partial(_detr, "resnet50", False),
    "detr-resnet-50-dc5": partial(_detr, "resnet50", True),
    "detr-resnet-101": partial(_detr, "resnet101", False),
    "detr-resnet-101-dc5": partial(_detr, "resnet101", True),
    "detr-resnet-50-no-encoder": partial(_detr, "resnet50", False, encoder_layers=0),
    "depth-anything-v2-small": partial(_depth_anything, 384, 12, (48, 96, 192, 384), 64, [3, 6, 9, 12]),
    "depth-anything-v2-base": partial(_depth_anything, 768, 12, (96, 192, 384, 768), 128, [3, 6, 9, 12]),
    "depth-anything-v2-large": partial(_depth_anything, 1024, 24, (256, 512, 1024, 1024), 256, [5, 12, 18, 24]),
    "timesformer-base": partial(_timesformer, "divided_space_time"),
    "timesformer-space-only": partial(_timesformer, "space_only"),
    "timesformer-joint": partial(_timesformer, "joint_space_time"),
    "vit-base-lora-16": _vit_lora,
    "mask2former-resnet-50": partial(_mask2former, "resnet-50", 100),
    "mask2former-resnet-101": partial(_mask2former, "resnet-101", 100),
    "mask2former-swin-tiny": partial(_mask2former, "t", 100),
    "mask2former-swin-small": partial(_mask2former, "s", 100),
    "mask2former-swin-base": partial(_mask2former, "b", 100),
    "mask2former-swin-large": partial(_mask2former, "l", 200),
    "eomt-small": partial(_eomt, 384, 12, 6, 3),
    "eomt-base": partial(_eomt, 768, 12, 12, 3),
    "eomt-large": partial(_eomt, 1024, 24, 16, 4),
    "grounding-dino-tiny": partial(_grounding_dino, "t"),
    "grounding-dino-base": partial(_grounding_dino, "b"),
    "sam2-hiera-tiny": partial(_sam2, 96, 1, (1, 2, 7, 2), (5, 7, 9), (8, 4, 14, 7), 7),
    "sam2-hiera-small": partial(_sam2, 96, 1, (1, 2, 11, 2), (7, 10, 13), (8, 4, 14, 7), 7),
    "sam2-hiera-base-plus": partial(_sam2, 112, 2, (2, 3, 16, 3), (12, 16, 20), (8, 4, 14, 7), 14),
    "sam2-hiera-large": partial(_sam2, 144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8), 7),
    "sam-decoder": _sam_decoder,
    "sam-vit-base": partial(_sam, 768, 12, 12),
    "sam-vit-large": partial(_sam, 1024, 24, 16),
    "sam-vit-huge": partial(_sam, 1280, 32, 16),
    "sam3": _sam3,
    "siglip2-base-patch32": partial(_siglip2, 768, 3072, 12, 12, 32, (768, 3072, 12, 12)),
    "siglip2-base-patch16": partial(_siglip2, 768, 3072, 12, 12, 16, (768, 3072, 12, 12)),
    "siglip2-large-patch16": partial(_siglip2, 1024, 4096, 24, 16, 16, (1024, 4096, 24, 16)),
    "siglip2-so400m-patch14": partial(_siglip2, 1152, 4304, 27, 16, 14, (1152, 4304, 27, 16)),
    "siglip2-so400m-patch16": partial(_siglip2, 1152, 4304, 27, 16, 16, (1152, 4304, 27, 16)),
    "siglip2-giant-opt-patch16": partial(_siglip2, 1536, 6144, 40, 16, 16, (1152, 4304, 27, 16)),
    "vjepa2-vit-large": partial(_vjepa2, 1024, 16, 24, 4.0),
    "vjepa2-vit-huge": partial(_vjepa2, 1280, 16, 32, 4.0),
    "vjepa2-vit-giant": partial(_vjepa2, 1408, 22, 40, 48 / 11),
    **real_time_detrs.MODELS,
}
