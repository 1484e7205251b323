"""Published architectures by name: `library/model`, built in order to count them.

Built on the meta device, where a tensor has a shape and no values, so that seven billion parameters take no memory.
`libraries` takes a library's own definition with random weights; the other modules define what no permissive library
has. Needs torch, and each library only when one of its models is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from scripts.architectures.definitions import (
    attention_unet,
    cascade,
    centernet,
    co_dino,
    graph_transformer,
    hugging_face,
    internimage,
    libraries,
    mask_dino,
    nnunet,
    unet,
    vitdet,
    yolov8,
)

Size = tuple[int, ...]

OURS: Mapping[str, Callable[..., nn.Module]] = {
    "unet_2015": unet.ValidUNet,
    **{f"yolov8-{scale}": partial(yolov8.YOLOv8, scale) for scale in yolov8.SCALES},
    **{f"yolov8-{scale}-seg": partial(yolov8.YOLOv8, scale, masks=True) for scale in yolov8.SCALES},
    **{f"internimage-{size}": partial(internimage.InternImage, size) for size in internimage.SIZES},
    "attention_unet_3d": attention_unet.AttentionUNet,
    "unet_3d": partial(attention_unet.AttentionUNet, gated=False),
    "centernet-104": centernet.CenterNet,
    "centernet-52": partial(centernet.CenterNet, stacks=1),
    "cascade_mask_rcnn-r50": cascade.CascadeMaskRCNN,
    "co_dino-r50": partial(co_dino.CoDINO, "resnet50"),
    "co_dino-swin-l": partial(co_dino.CoDINO, "l"),
    "graph_transformer": graph_transformer.GraphTransformer,
    "graph_transformer-full": graph_transformer.GraphTransformer,
    "graph_transformer-no-positions": partial(graph_transformer.GraphTransformer, positions=False),
    "graph_transformer-layer-norm": partial(graph_transformer.GraphTransformer, norm=nn.LayerNorm),
    "mask_dino-r50": mask_dino.MaskDINO,
    "nnunet_resenc": nnunet.ResidualEncoderUNet,
    **{f"vitdet-{size}": partial(vitdet.ViTDet, size) for size in vitdet.SIZES},
}
CHANNELS: Mapping[str, int] = {
    "ours/unet_2015": 1,
    "ours/attention_unet_3d": 1,
    "ours/unet_3d": 1,
    "ours/nnunet_resenc": 1,
    "monai/dynunet_brats21": 5,
    "monai/dynunet_nnunet": 1,
}
"""Input channels where they are not the three of a colour image."""
FRAMES_FIRST = ("transformers/timesformer-", "transformers/vjepa2-")
"""Models of video that take (B, T, C, H, W); other volumes are (B, C, D, H, W)."""
GRAPHS = ("ours/graph_transformer",)
"""Models of graphs, whose size is (nodes, directed edges)."""
PROMPTS = ("transformers/sam-decoder",)
"""Decoders of prompts, whose size is (prompts, points of each)."""
TWO_STAGES = "1,000 proposals, 100 detections; without RoIAlign and non-maximum suppression"
PARTIAL: Mapping[str, str] = {
    "torchvision/fasterrcnn": "1,000 proposals; without RoIAlign and non-maximum suppression",
    "torchvision/maskrcnn": TWO_STAGES,
    "torchvision/keypointrcnn": TWO_STAGES,
    "torchvision/retinanet": "without non-maximum suppression",
    "torchvision/ssd": "without non-maximum suppression",
    "ours/yolov8": "without non-maximum suppression",
    "ours/centernet": "without decoding the keypoints",
    "ours/co_dino": "without non-maximum suppression",
    "ours/cascade_mask_rcnn": TWO_STAGES,
    "ours/vitdet": TWO_STAGES,
    "transformers/sam-decoder": "prompts and masks, given the encoded image",
    "transformers/sam3": "an image with one phrase, without the tracker",
    "transformers/siglip2-": "the image tower, once per image",
    "transformers/vjepa2-": "the encoder, without predictor and probe",
    "transformers/sam2": "the image encoder, once per image or frame; the parameters are those of the whole, with the memory",
    "transformers/sam-vit": "the image encoder, once per image",
    "transformers/grounding-dino": "image and a text of 195 tokens, as long as the class names of COCO",
}
"""What of a model runs here, where it is not all, by the beginning of its name."""


def build(name: str, size: Size, **changes: int) -> nn.Module:
    """The architecture `library/model` for inputs of `size`, in evaluation mode, on the device in context.

    Args:
        name: for example `timm/vit_base_patch16_224`.
        size: (H, W), (T, H, W) of a video, (D, H, W) of a volume, (N, E) nodes and edges of a graph, or (P, K) prompts of
            K points each.
        changes: what differs from the published configuration, such as the number of queries.

    Raises:
        LookupError: there is no such library, or it has no such model; the message names those there are.
    """
    library, _, model = name.partition("/")
    if library not in BUILDERS:
        raise LookupError(f"{name}: no library {library!r}; there are {', '.join(BUILDERS)}")
    return BUILDERS[library](model, size, **changes).eval()


def input_shape(name: str, size: Size, batch: int = 1) -> Size:
    """Shape of the input of a model of images: (B, C, *size), or (B, T, C, H, W)."""
    channels = CHANNELS.get(name, 3)
    return (batch, size[0], channels, *size[1:]) if name.startswith(FRAMES_FIRST) else (batch, channels, *size)


def inputs(name: str, size: Size, batch: int = 1) -> tuple[Tensor, ...]:
    """What the model takes, at random, on the device in context; a batch of graphs is one graph of several parts."""
    if name.startswith(PROMPTS):
        return torch.rand(batch, 256, 64, 64), 1024 * torch.rand(batch, *size, 2)
    if not name.startswith(GRAPHS):
        return (torch.rand(input_shape(name, size, batch)),)
    nodes, edges = (batch * n for n in size)
    ends = torch.arange(2 * edges).remainder(nodes).view(2, edges)
    positions = torch.rand(nodes, graph_transformer.POSITIONS)
    return torch.zeros(nodes, dtype=torch.long), torch.zeros(edges, dtype=torch.long), ends, positions


def part(name: str) -> str:
    """What of the model runs here, where it is not all of it."""
    return next((text for start, text in PARTIAL.items() if name.startswith(start)), "")


def _ours(model: str, size: Size, **changes: int) -> nn.Module:
    return libraries.known(OURS, "ours", model)(**changes)


BUILDERS: Mapping[str, Callable[..., nn.Module]] = {
    "timm": libraries.from_timm,
    "torchvision": libraries.from_torchvision,
    "transformers": hugging_face.from_transformers,
    "monai": libraries.from_monai,
    "ours": _ours,
}
