"""RT-DETR, RF-DETR, D-FINE and DEIMv2 as transformers defines them, in their published configurations.

Settings are those of the official repositories' configuration files (lyuwenyu/RT-DETR, roboflow/rf-detr with Tables 7 and 8
of arXiv:2511.09554, Peterande/D-FINE, Intellindust-AI-Lab/DEIMv2), under the names that the library gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Size = tuple[int, ...]
Settings = Mapping[str, Any]


class Unchecked(nn.Module):
    """A detector without its checks of values, which the meta device does not have; its results are the same."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Any:
        """(B, 3, H, W) images to what the detector gives."""
        with _no_value_checks():
            return self.detector(images)


@contextmanager
def _no_value_checks() -> Iterator[None]:
    """Lets `torch._check_tensor_all_with` pass: deformable attention asks it whether the levels fill the sequence."""
    check = torch._check_tensor_all_with
    torch._check_tensor_all_with = lambda *_, **__: None
    try:
        yield
    finally:
        torch._check_tensor_all_with = check


BASIC, BOTTLENECK = [64, 128, 256, 512], [256, 512, 1024, 2048]
RESNETS: Mapping[str, Settings] = {
    "r18": {"depths": [2, 2, 2, 2], "hidden_sizes": BASIC, "layer_type": "basic"},
    "r34": {"depths": [3, 4, 6, 3], "hidden_sizes": BASIC, "layer_type": "basic"},
    "r50": {"depths": [3, 4, 6, 3], "hidden_sizes": BOTTLENECK, "layer_type": "bottleneck"},
    "r101": {"depths": [3, 4, 23, 3], "hidden_sizes": BOTTLENECK, "layer_type": "bottleneck"},
}
RT_DETR: Mapping[str, Settings] = {
    "r18": {"encoder_in_channels": BASIC[1:], "hidden_expansion": 0.5, "decoder_layers": 3},
    "r34": {"encoder_in_channels": BASIC[1:], "hidden_expansion": 0.5, "decoder_layers": 4},
    "r50": {"encoder_in_channels": BOTTLENECK[1:]},
    "r101": {
        "encoder_in_channels": BOTTLENECK[1:], "encoder_hidden_dim": 384, "encoder_ffn_dim": 2048,
        "decoder_in_channels": [384] * 3,
    },
}  # fmt: skip


def _rt_detr(version: int, backbone: str, size: Size, **changes: int) -> nn.Module:
    import transformers

    name = "RTDetr" if version == 1 else "RTDetrV2"
    config, detector = getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}ForObjectDetection")
    resnet = transformers.RTDetrResNetConfig(**RESNETS[backbone], out_features=["stage2", "stage3", "stage4"])
    return Unchecked(detector(config(backbone_config=resnet, num_labels=80, **{**RT_DETR[backbone], **changes})))


_HG_WIDTHS = ("stem_channels", "stage_in_channels", "stage_mid_channels", "stage_out_channels", "hidden_sizes")
_HG: Mapping[str, tuple[Any, ...]] = {  # widths, blocks of each stage, layers of a block, learnable affine blocks
    "b0": (
        [3, 16, 16], [16, 64, 256, 512], [16, 32, 64, 128], [64, 256, 512, 1024], [128, 256, 512, 1024], [1, 1, 2, 1], 3, True),
    "b2": (
        [3, 24, 32], [32, 96, 384, 768], [32, 64, 128, 256], [96, 384, 768, 1536], [192, 384, 768, 1536], [1, 1, 3, 1], 4, True),
    "b4": ([3, 32, 48], [48, 128, 512, 1024], [48, 96, 192, 384], [128, 512, 1024, 2048], BOTTLENECK, [1, 1, 3, 1], 6, False),
    "b5": ([3, 32, 64], [64, 128, 512, 1024], [64, 128, 256, 512], [128, 512, 1024, 2048], BOTTLENECK, [1, 2, 5, 2], 6, False),
    "pico": ([3, 16, 16], [16, 64, 256], [16, 32, 64], [64, 256, 512], [64, 256, 512], [1, 1, 2], 3, True),
    "femto": ([3, 16, 16], [16, 64, 256], [16, 32, 64], [64, 256, 512], [64, 256, 512], [1, 1, 1], 3, True),
    "atto": ([3, 16, 16], [16, 64, 256], [16, 32, 64], [64, 256, 256], [64, 256, 256], [1, 1, 1], 3, True),
}  # fmt: skip


def _hgnet(name: str, stages: list[int]) -> Any:
    """An HGNetv2 that gives the maps of these stages."""
    from transformers import HGNetV2Config

    *widths, blocks, layers, affine = _HG[name]
    count = len(blocks)
    last = 3 if name == "atto" else 5
    return HGNetV2Config(
        **dict(zip(_HG_WIDTHS, widths, strict=True)), depths=[layers] * count, stage_num_blocks=blocks,
        stage_numb_of_layers=[layers] * count, stage_downsample=[False, True, True, True][:count],
        stage_light_block=[False, False, True, True][:count], stage_kernel_size=[3, 3, last, 5][:count],
        use_learnable_affine_block=affine, out_indices=stages,
    )  # fmt: skip


_NANO: Settings = {
    "num_feature_levels": 2, "encoder_ffn_dim": 512, "encode_proj_layers": [1], "d_model": 128, "encoder_hidden_dim": 128,
    "decoder_ffn_dim": 512, "encoder_in_channels": [512, 1024], "decoder_n_points": [6, 6],
    "decoder_in_channels": [128, 128], "feat_strides": [16, 32], "depth_mult": 0.5, "decoder_layers": 3,
    "hidden_expansion": 0.34,
}  # fmt: skip
_POINTS = [3, 6, 3]
D_FINE: Mapping[str, tuple[str, Settings]] = {
    "n": ("b0", _NANO),
    "s": ("b0", {
        "encoder_in_channels": [256, 512, 1024], "decoder_layers": 3, "hidden_expansion": 0.5, "depth_mult": 0.34,
        "decoder_n_points": _POINTS,
    }),
    "m": ("b2", {
        "encoder_in_channels": [384, 768, 1536], "decoder_layers": 4, "depth_mult": 0.67, "decoder_n_points": _POINTS,
    }),
    "l": ("b4", {"encoder_in_channels": BOTTLENECK[1:], "decoder_n_points": _POINTS}),
    "x": ("b5", {
        "encoder_in_channels": BOTTLENECK[1:], "encoder_hidden_dim": 384, "encoder_ffn_dim": 2048,
        "decoder_in_channels": [384] * 3, "decoder_n_points": _POINTS,
    }),
}  # fmt: skip


def _d_fine(scale: str, size: Size, **changes: int) -> nn.Module:
    from transformers import DFineConfig, DFineForObjectDetection

    name, settings = D_FINE[scale]
    backbone = _hgnet(name, [3, 4] if scale == "n" else [2, 3, 4])
    config = DFineConfig(backbone_config=backbone, num_labels=80, **{**settings, **changes})
    return Unchecked(DFineForObjectDetection(config))


def _lite(width: int, channels: int, queries: int, hidden: int) -> Settings:
    """DEIMv2 with the light encoder, which makes two levels of the one that the backbone gives."""
    return {
        "encoder_type": "lite", "encoder_layers": 0, "encoder_hidden_dim": width, "encoder_in_channels": [channels],
        "feat_strides": [16, 32], "hidden_expansion": 0.34, "depth_mult": 0.5, "d_model": width,
        "decoder_in_channels": [width] * 2, "num_feature_levels": 2, "decoder_n_points": [4, 2], "decoder_layers": 3,
        "num_queries": queries, "decoder_ffn_dim": hidden, "share_bbox_head": True, "use_gateway": False,
    }  # fmt: skip


def _with_vit(width: int, encoder: int, hidden: int, layers: int, **more: Any) -> Settings:
    """DEIMv2 on a vision transformer; all three levels, encoder and decoder have the same width."""
    return {
        "encoder_in_channels": [width] * 3, "encoder_hidden_dim": width, "d_model": width, "decoder_in_channels": [width] * 3,
        "encoder_ffn_dim": encoder, "decoder_ffn_dim": hidden, "decoder_layers": layers, "decoder_n_points": _POINTS,
        "encoder_has_trailing_conv": False, **more,
    }  # fmt: skip


_PLAIN: Settings = {
    "layerscale_value": 1.0, "num_register_tokens": 0, "pos_embed_rescale": None, "key_bias": False,
    "apply_layernorm": False, "out_indices": [4, 8, 12],
}  # fmt: skip
_DINOV3: Settings = {
    "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "layerscale_value": 1e-5,
    "num_register_tokens": 4, "key_bias": True, "out_indices": [6, 9, 12],
}  # fmt: skip
VITS: Mapping[str, Settings] = {
    "s": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, **_PLAIN},
    "m": {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, **_PLAIN},
    "l": _DINOV3,
    "x": {**_DINOV3, "use_gated_mlp": True},
}
DEIM_V2: Mapping[str, Settings] = {
    "atto": _lite(64, 256, 100, 160),
    "femto": _lite(96, 512, 150, 256),
    "pico": _lite(112, 512, 200, 320),
    "n": _NANO,
    "s": _with_vit(192, 512, 512, 4, depth_mult=0.67, hidden_expansion=0.34),
    "m": _with_vit(256, 512, 512, 4, depth_mult=1.0, hidden_expansion=0.67),
    "l": _with_vit(224, 896, 1792, 4, spatial_tuning_adapter_inplanes=32),
    "x": _with_vit(256, 1024, 2048, 6, depth_mult=1.37, hidden_expansion=1.25, spatial_tuning_adapter_inplanes=64),
}


def _deim_v2(scale: str, size: Size, **changes: int) -> nn.Module:
    from transformers import Deimv2Config, Deimv2ForObjectDetection, DINOv3ViTConfig

    backbone: Any
    if scale in VITS:
        backbone = DINOv3ViTConfig(num_hidden_layers=12, reshape_hidden_states=True, **VITS[scale])
    else:
        backbone = _hgnet("b0", [3, 4]) if scale == "n" else _hgnet(scale, [3])
    settings = {**DEIM_V2[scale], "decoder_activation_function": "silu", **changes}
    return Unchecked(Deimv2ForObjectDetection(Deimv2Config(backbone_config=backbone, num_labels=80, **settings)))


RF_DETR: Mapping[str, tuple[int, int, int, int]] = {  # patch, windows, decoder layers, queries
    "nano": (16, 2, 2, 300),
    "small": (16, 2, 3, 300),
    "medium": (16, 2, 4, 300),
    "large": (16, 2, 4, 300),
    "seg-nano": (12, 1, 4, 100),
    "seg-small": (12, 2, 4, 100),
    "seg-medium": (12, 2, 5, 200),
    "seg-large": (12, 2, 5, 300),
    "seg-xlarge": (12, 2, 6, 300),
    "seg-2xlarge": (12, 2, 6, 300),
}


def _rf_detr(scale: str, size: Size, **changes: int) -> nn.Module:
    from transformers import RfDetrConfig, RfDetrDinov2Config, RfDetrForInstanceSegmentation, RfDetrForObjectDetection

    patch, windows, layers, queries = RF_DETR[scale]
    backbone = RfDetrDinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=size[0], patch_size=patch,
        num_windows=windows, out_features=["stage3", "stage6", "stage9", "stage12"],
    )  # fmt: skip
    settings: dict[str, Any] = {
        "d_model": 256, "num_queries": queries, "decoder_layers": layers, "decoder_n_points": 2,
        "decoder_self_attention_heads": 8, "decoder_cross_attention_heads": 16, "projector_scale_factors": [1.0], **changes,
    }  # fmt: skip
    detector = RfDetrForInstanceSegmentation if scale.startswith("seg") else RfDetrForObjectDetection
    return Unchecked(detector(RfDetrConfig(backbone_config=backbone, num_labels=91, **settings)))


MODELS: Mapping[str, Callable[..., nn.Module]] = {
    **{f"rt-detr-{backbone}": partial(_rt_detr, 1, backbone) for backbone in RT_DETR},
    **{f"rt-detr-v2-{backbone}": partial(_rt_detr, 2, backbone) for backbone in RT_DETR},
    **{f"d-fine-{scale}": partial(_d_fine, scale) for scale in D_FINE},
    **{f"deimv2-{scale}": partial(_deim_v2, scale) for scale in DEIM_V2},
    **{f"rf-detr-{scale}": partial(_rf_detr, scale) for scale in RF_DETR},
}
