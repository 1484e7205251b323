"""Counts: architectures built here have the parameters and MACs that are published, and compute what they say."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from conftest import ROOT, Command, edit
from torch import nn

from scripts.architectures import counts
from scripts.architectures.counts import Counted
from scripts.architectures.definitions import (
    build,
    centernet,
    graph_transformer,
    hugging_face,
    inputs,
    internimage,
    lora,
    mask_dino,
    vitdet,
)
from scripts.cards.library import load_library
from scripts.cards.numbers import Count
from scripts.evidence.checks import COUNT_TOLERANCE
from scripts.evidence.knowledge import difference
from scripts.evidence.published import own_size
from scripts.project import Project

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@functools.cache
def made() -> dict[str, Counted]:
    """What `count` made of this very code and these libraries, where it ran."""
    return counts.read(Project(ROOT))[0]


@functools.cache
def counted(key: str) -> Counted:
    return made().get(key) or counts.count(key)


# --- against published figures


def counts_of_cards() -> Iterator[tuple[str, Count, dict[str, float]]]:
    """`slug/variant`, what is built for it, and the published figures of its own size; the card has the sources."""
    library, _ = load_library(ROOT / "model_cards", ROOT)
    for slug, card in library.cards.items():
        for name, variant in card.variants.items():
            if variant.count:
                own = {metric: own_size(library, slug, name, metric) for metric in ("parameters", "macs")}
                figures = {metric: number.quantity.value for metric, number in own.items() if number}
                yield f"{slug}/{name}", variant.count, figures


CARDS = [pytest.param(count, figures, id=name) for name, count, figures in counts_of_cards()]


@pytest.mark.parametrize(("count", "figures"), CARDS)
def test_a_variant_counts_as_its_card_reports_or_the_card_says_why_not(count: Count, figures: dict[str, float]) -> None:
    found = counted(f"{count.build} @ {count.input}")
    assert found.parameters > 1e5
    assert found.macs > 1e7
    gaps = {metric: difference(figure, getattr(found, metric)) for metric, figure in figures.items()}
    assert count.differs or all(abs(gap) <= COUNT_TOLERANCE for gap in gaps.values()), gaps


# Parameters in millions and MACs in G for one input, as they are printed; None where the source prints none.
PUBLISHED: dict[str, tuple[float | None, float | None, str]] = {
    "timm/vit_huge_patch14_224 @ 224 x 224": (632, None, "arXiv:2010.11929, Table 1"),
    "timm/deit_small_patch16_224 @ 224 x 224": (22, 4.6, "README of facebookresearch/deit, data-efficient models"),
    "timm/swin_tiny_patch4_window7_224 @ 224 x 224": (28, 4.5, "README of microsoft/Swin-Transformer, ImageNet-1K"),
    "timm/swin_base_patch4_window12_384 @ 384 x 384": (88, 47.1, "README of microsoft/Swin-Transformer, ImageNet-1K"),
    "timm/swin_large_patch4_window12_384 @ 384 x 384": (197, 103.9, "README of microsoft/Swin-Transformer, 22K"),
    "timm/swinv2_tiny_window8_256 @ 256 x 256": (28, 5.9, "README of microsoft/Swin-Transformer, Swin V2"),
    "timm/convnext_base @ 224 x 224": (89, 15.4, "README of facebookresearch/ConvNeXt, ImageNet-1K"),
    "timm/vit_base_patch14_dinov2 @ 518 x 518": (86, None, "README of facebookresearch/dinov2, pretrained models"),
    "timm/vit_base_patch8_224.dino @ 224 x 224": (85, None, "README of facebookresearch/dino, pretrained models"),
    "timm/vit_7b_patch16_dinov3 @ 256 x 256": (6716, None, "README of facebookresearch/dinov3, pretrained models"),
    "ours/internimage-b @ 224 x 224": (97, 16, "README of OpenGVLab/InternImage, ImageNet-1K"),
    "ours/internimage-xl @ 384 x 384": (335, 163, "README of OpenGVLab/InternImage, ImageNet-22K to 1K"),
    "ours/attention_unet_3d @ 160 x 160 x 96": (6.473, None, "built from ozan-oktay/Attention-Gated-Networks"),
    "ours/unet_3d @ 160 x 160 x 96": (5.888, None, "built from ozan-oktay/Attention-Gated-Networks"),
    "ours/graph_transformer @ 23 x 50": (0.588929, None, "arXiv:2012.09699, Table 1, ZINC"),
    "ours/graph_transformer-no-positions @ 23 x 50": (0.588353, None, "arXiv:2012.09699, Table 1, ZINC"),
    "ours/mask_dino-r50 @ 800 x 1088": (52, 286, "README of IDEA-Research/MaskDINO, COCO instance segmentation"),
    "monai/dynunet_brats21 @ 128 x 128 x 128": (50.8, None, "BraTS21.ipynb of NVIDIA's nnUNet, model summary"),
    "transformers/vit-base-lora-16 @ 224 x 224": (86.466149, None, "image classification example of PEFT"),
    "transformers/detr-resnet-50 @ 800 x 1066": (41, None, "arXiv:2005.12872, Table 1"),
    "transformers/detr-resnet-50-no-encoder @ 800 x 1066": (33.4, None, "arXiv:2005.12872, Table 2"),
    "transformers/timesformer-space-only @ 8 x 224 x 224": (85.9, None, "arXiv:2102.05095, Table 1"),
    "ours/yolov8-m @ 640 x 640": (25.9, 39.45, "Ultralytics documentation, YOLOv8, half of its FLOPs"),
}


@pytest.mark.parametrize("key", PUBLISHED)
def test_counts_agree_with_published_figures_within_two_percent(key: str) -> None:
    parameters, macs, _ = PUBLISHED[key]
    found = counted(key)
    if parameters is not None:
        assert found.parameters / 1e6 == pytest.approx(parameters, rel=0.02)
    if macs is not None:
        assert found.macs / 1e9 == pytest.approx(macs, rel=0.02)


# Their tables print parameters to the last digit: the networks are the same, layer by layer.
EXACT = {
    "ours/graph_transformer @ 23 x 50": 588_929,
    "ours/graph_transformer-layer-norm @ 23 x 50": 588_929,
    "ours/graph_transformer-no-positions @ 23 x 50": 588_353,
    "transformers/vit-base-lora-16 @ 224 x 224": 86_466_149,
}


@pytest.mark.parametrize("key", EXACT)
def test_parameters_printed_to_the_last_digit_agree_exactly(key: str) -> None:
    assert counted(key).parameters == EXACT[key]


def test_the_masks_of_yolov8_cost_what_the_source_prints_but_for_the_transposed_convolution() -> None:
    width = 192  # a quarter of the published multiple of 768 channels; the tool takes all four taps for each output
    surplus = 160**2 * width * width * 4 - 80**2 * width * width * 4
    assert (counted("ours/yolov8-m-seg @ 640 x 640").macs + surplus) / 1e9 == pytest.approx(110.2 / 2, rel=1e-3)


# torchvision publishes both figures of all its weights, counted by a tool of its own (test/common_extended_utils.py).
TORCHVISION = {
    "resnet50": "224 x 224",
    "vgg16": "224 x 224",
    "efficientnet_b0": "224 x 224",
    "vit_b_16": "224 x 224",
    "swin_t": "224 x 224",
    "r3d_18": "16 x 112 x 112",
    "ssd300_vgg16": "300 x 300",
    "retinanet_resnet50_fpn_v2": "800 x 800",
    "fasterrcnn_resnet50_fpn_v2": "800 x 800",
    "maskrcnn_resnet50_fpn_v2": "800 x 800",
}


@pytest.mark.parametrize("model", TORCHVISION)
def test_counts_agree_with_those_that_torchvision_publishes(model: str) -> None:
    from torchvision.models import get_model_weights

    meta = next(iter(get_model_weights(model))).meta
    found = counted(f"torchvision/{model} @ {TORCHVISION[model]}")
    assert found.parameters == meta["num_params"]
    assert found.macs / 1e9 == pytest.approx(meta["_ops"], rel=1e-3)


# Learned parameters to the last digit: comments on `scales` in ultralytics/cfg/models/v8/yolov8.yaml, "gradients".
YOLOV8 = {"n": 3_157_184, "s": 11_166_544, "m": 25_902_624, "l": 43_691_504, "x": 68_229_632}


@pytest.mark.parametrize("scale", YOLOV8)
def test_yolov8_has_exactly_the_published_parameters(scale: str) -> None:
    assert counted(f"ours/yolov8-{scale} @ 640 x 640").parameters == YOLOV8[scale]


# Printed for three views of a clip in Tables 2 and 3 of arXiv:2102.05095.
TIMESFORMER = {"8 x 224 x 224": 0.59e12, "16 x 448 x 448": 5.11e12, "96 x 224 x 224": 7.14e12}


@pytest.mark.parametrize("clip", TIMESFORMER)
def test_three_views_of_timesformer_cost_what_its_paper_prints(clip: str) -> None:
    assert 3 * counted(f"transformers/timesformer-base @ {clip}").macs == pytest.approx(TIMESFORMER[clip], rel=0.01)


# --- against formulas


@pytest.mark.parametrize(
    ("model", "side", "patch", "width", "layers"),
    [
        ("vit_small_patch16_384", 384, 16, 384, 12),
        ("vit_base_patch16_384", 384, 16, 768, 12),
        ("vit_base_patch32_384", 384, 32, 768, 12),
    ],
)
def test_a_vision_transformer_follows_its_formula(model: str, side: int, patch: int, width: int, layers: int) -> None:
    patches, pixels, classes = (side // patch) ** 2, 3 * patch**2, 1000
    tokens = patches + 1
    embedding = (pixels + 1) * width + tokens * width + width  # projection, positions, class token
    layer = 12 * width**2 + 9 * width + 4 * width  # Q, K, V, output and MLP; their biases; two norms
    products = 12 * tokens * width**2 + 2 * tokens**2 * width  # the layers above; attention
    found = counted(f"timm/{model} @ {side} x {side}")
    assert found.parameters == embedding + layers * layer + 2 * width + (width + 1) * classes
    assert found.macs == patches * pixels * width + layers * products + width * classes


def test_the_u_net_of_2015_follows_its_figure() -> None:
    parameters, macs = 64 * 2 + 2, 64 * 2 * 388**2  # the last 1 x 1 convolution
    down = [(1, 64, 572), (64, 128, 284), (128, 256, 140), (256, 512, 68), (512, 1024, 32)]
    up = [(1024, 512, 56), (512, 256, 104), (256, 128, 200), (128, 64, 392)]
    for before, width, side in down + up:  # two 3 x 3 convolutions take two pixels each
        parameters += 9 * (before + width) * width + 2 * width
        macs += 9 * (before * (side - 2) ** 2 + width * (side - 4) ** 2) * width
    for before, width, side in up:  # 2 x 2 up-convolutions read each of their pixels once
        parameters += 4 * before * width + width
        macs += before * width * side**2
    found = counted("ours/unet_2015 @ 572 x 572")
    assert (found.parameters, found.macs) == (parameters, macs)


def test_dcnv3_counts_five_macs_per_sample_and_channel() -> None:
    width, groups, depths, _ = internimage.SIZES["t"]
    macs = 112**2 * 9 * 3 * 32 + 56**2 * 9 * 32 * 64 + 7**2 * 512 * 768 + 768 * 1000  # stem and head
    for stage, depth in enumerate(depths):
        channels, group, side = width << stage, groups << stage, 56 >> stage
        products = channels * (2 * channels + 27 * group + 8 * channels)  # value and output, offsets and weights, MLP
        macs += depth * side**2 * (products + 9 * channels + 5 * 9 * channels)  # depthwise convolution, sampling
        macs += (side // 2) ** 2 * 9 * channels * 2 * channels if stage < 3 else 0  # to the next stage
    assert counted("ours/internimage-t @ 224 x 224").macs == macs


@pytest.mark.parametrize(
    ("model", "small", "large", "factor"),
    [
        ("ours/yolov8-n", "320 x 320", "640 x 640", 4),
        ("ours/yolov8-n", "320 x 640", "640 x 640", 2),
        ("monai/dynunet_brats21", "128 x 64 x 64", "128 x 128 x 128", 4),
    ],
)
def test_convolutions_cost_in_proportion_to_the_positions(model: str, small: str, large: str, factor: int) -> None:
    few, many = counted(f"{model} @ {small}"), counted(f"{model} @ {large}")
    assert many.macs == factor * few.macs
    assert many.parameters == few.parameters


# --- the definitions compute what they say


def test_sampling_between_pixels_agrees_with_grid_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 5, 7, 3, 4, generator=generator)  # (B, H, W, G, C)
    points = torch.rand(2, 6, 2, 3, 9, 2, generator=generator) * torch.tensor([8.0, 10.0]) - 2  # some lie outside
    found = internimage.sample(values, points)
    scaled = 2 * points.flip(-1) / torch.tensor([6.0, 4.0]) - 1  # (row, column) in pixels -> (x, y) in [-1, 1]
    for group in range(3):
        grid = scaled[:, :, :, group].flatten(1, 3).unsqueeze(2)  # (B, H', W', P, 2) -> (B, H' * W' * P, 1, 2)
        image = values[:, :, :, group].permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
        expected = nn.functional.grid_sample(image, grid, align_corners=True).squeeze(3).transpose(1, 2)
        torch.testing.assert_close(found[:, :, :, group].flatten(1, 3), expected)


def test_dcnv3_without_offsets_averages_the_three_by_three_neighbours() -> None:
    torch.manual_seed(0)
    layer = internimage.DCNv3(8, 2).requires_grad_(False)
    for linear in (layer.offset, layer.weight):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    x = torch.rand(1, 5, 6, 8)
    mean = nn.functional.avg_pool2d(layer.value(x).permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), layer.out(mean))


def test_detr_part_by_part_agrees_with_the_forward_pass_of_the_library() -> None:
    from transformers import DetrConfig, DetrForObjectDetection

    torch.manual_seed(0)
    config = DetrConfig(
        use_timm_backbone=True, backbone="resnet18", use_pretrained_backbone=False, d_model=32, num_queries=5,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, num_labels=3,
    )  # fmt: skip
    detr = DetrForObjectDetection(config).eval().requires_grad_(False)
    images = torch.rand(2, 3, 64, 96)
    expected = detr(images)
    torch.testing.assert_close(hugging_face.UnpaddedDETR(detr)(images), (expected.logits, expected.pred_boxes))


@pytest.mark.parametrize(
    ("name", "size", "shapes"),
    [
        ("ours/unet_2015", (572, 572), [(1, 2, 388, 388)]),
        ("ours/internimage-t", (64, 96), [(1, 1000)]),
        ("ours/yolov8-n", (64, 96), [(1, 4, 126), (1, 80, 126)]),  # 8 x 12 + 4 x 6 + 2 x 3 positions
        ("transformers/sam-vit-base", (1024, 1024), [(1, 256, 64, 64)]),
        ("transformers/sam2-hiera-tiny", (1024, 1024), [(1, 32, 32, 768)]),
        ("transformers/detr-resnet-50-dc5", (64, 96), [(1, 100, 92), (1, 100, 4)]),
        ("transformers/grounding-dino-tiny", (320, 480), [(1, 900, 256), (1, 900, 4)]),
        ("torchvision/deeplabv3_resnet50", (64, 96), [(1, 21, 64, 96)]),
        ("ours/attention_unet_3d", (32, 48, 16), [(1, 4, 32, 48, 16)]),
        ("ours/yolov8-n-seg", (64, 96), [(1, 4, 126), (1, 80, 126), (1, 32, 126), (1, 32, 16, 24)]),
        ("ours/mask_dino-r50", (128, 192), [(1, 300, 80), (1, 300, 4), (1, 300, 32, 48)]),
        ("ours/co_dino-r50", (128, 192), [(1, 900, 80), (1, 900, 4)]),
        ("ours/centernet-52", (128, 128), [(1, c, 32, 32) for c in (80, 2, 1, 80, 2, 1, 80, 2)]),
        ("ours/graph_transformer", (5, 8), [(1,)]),
        ("transformers/sam-decoder", (2, 3), [(1, 2, 3, 256, 256)]),
    ],
)
def test_an_architecture_gives_what_its_task_needs(
    name: str, size: tuple[int, ...], shapes: list[tuple[int, ...]]
) -> None:
    with torch.device("meta"):
        out = build(name, size)(*inputs(name, size))
    outputs = [out] if isinstance(out, torch.Tensor) else list(out.values()) if isinstance(out, dict) else out
    assert [tuple(output.shape) for output in outputs] == shapes


@pytest.mark.parametrize(
    ("name", "size", "classes", "masks"),
    [
        ("transformers/mask2former-swin-tiny", (128, 192), (1, 100, 81), (1, 100, 32, 48)),
        ("transformers/eomt-small", (128, 128), (1, 200, 134), (1, 200, 32, 32)),
    ],
)
def test_a_mask_transformer_gives_a_class_and_a_mask_for_each_query(
    name: str, size: tuple[int, ...], classes: tuple[int, ...], masks: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        out = build(name, size)(*inputs(name, size))
    assert tuple(out.class_queries_logits.shape) == classes
    assert tuple(out.masks_queries_logits.shape) == masks


def test_the_pyramid_of_vitdet_has_the_strides_of_a_feature_pyramid() -> None:
    with torch.device("meta"):
        maps = vitdet.SimplePyramid(vitdet.SIZES["b"])(torch.rand(1, 3, 1024, 1024))
    assert [tuple(each.shape) for each in maps.values()] == [(1, 256, side, side) for side in (256, 128, 64, 32, 16)]


def test_the_graph_transformer_does_not_care_for_the_order_of_the_nodes() -> None:
    torch.manual_seed(0)
    model = graph_transformer.GraphTransformer(layers=2).eval().requires_grad_(False)
    atoms, bonds, ends = torch.randint(28, (6,)), torch.randint(4, (10,)), torch.randint(6, (2, 10))
    positions, order = torch.rand(6, 8), torch.randperm(6)
    moved = model(atoms[order], bonds, order.argsort()[ends], positions[order])
    torch.testing.assert_close(moved, model(atoms, bonds, ends, positions))


def test_deformable_attention_without_offsets_reads_the_pixel_it_stands_on() -> None:
    torch.manual_seed(0)
    layer = mask_dino.DeformableAttention(1).requires_grad_(False)
    for linear in (layer.offsets, layer.weights):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    tokens = torch.rand(2, 12, mask_dino.WIDTH)
    centres = mask_dino.centres((3, 4), tokens).expand(2, -1, -1)
    torch.testing.assert_close(layer(tokens, centres, tokens, [(3, 4)]), layer.out(layer.value(tokens)))


def test_centre_pooling_gathers_the_largest_of_row_and_column() -> None:
    pool = centernet.CornerPool(8, top_left=True)
    x = torch.tensor([[[[1.0, 3.0], [2.0, 0.0]]]])
    assert pool._running(x, 2).flatten().tolist() == [2, 3, 2, 0]
    assert pool._running(x, 3).flatten().tolist() == [3, 3, 2, 0]


def test_lora_merges_into_one_matrix_of_the_old_shape() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4))
    lora.adapt(model, ("0",), rank=2)
    layer, x = model[0], torch.rand(3, 6)
    assert isinstance(layer, lora.LoRALinear)
    merged = layer.frozen.weight + layer.up.weight @ layer.down.weight
    torch.testing.assert_close(layer(x), x @ merged.T + layer.frozen.bias)


# --- what cannot be built


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("keras/resnet50", "no library 'keras'; there are timm, torchvision, transformers, monai, ours"),
        ("timm/vit_base_patch16_385", "did you mean 'vit_base_patch16_384'"),
        ("torchvision/resnet500", "did you mean 'resnet50'"),
        ("transformers/detr", "there are detr-resnet-50, .*sam-vit-huge"),
        ("monai/unet", "there are dynunet_brats21"),
        ("ours/yolov8", "there are unet_2015, yolov8-n, .*internimage-xl"),
    ],
)
def test_an_unknown_build_is_refused_with_the_known_names(name: str, message: str) -> None:
    with pytest.raises(LookupError, match=message):
        build(name, (224, 224))


def test_the_command_names_what_it_cannot_count_and_fails(tiny: Project, command: Command) -> None:
    edit(tiny.cards / "alpha.yml", "{name: Alpha-B,", "{name: Alpha-B, count: {build: ours/unet, input: 64 x 64},")
    done = command("count")
    assert done.returncode == 1
    assert "cannot count ours/unet @ 64 x 64: LookupError: ours/unet has no definition here" in done.stderr
