"""Published architectures by name: `library/model`, built in order to count them.

Built on the meta device, where a tensor has a shape and no values, so that seven billion parameters take no memory.
`libraries` takes a library's own definition with random weights; `unet`, `yolov8` and `internimage` define what no
permissive library has. Needs torch, and each library only when one of its models is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from scripts.architectures import internimage, libraries, unet, yolov8

Size = tuple[int, ...]

OURS: Mapping[str, Callable[[], nn.Module]] = {
    "unet_2015": unet.ValidUNet,
    **{f"yolov8-{scale}": partial(yolov8.YOLOv8, scale) for scale in yolov8.SCALES},
    **{f"internimage-{size}": partial(internimage.InternImage, size) for size in internimage.SIZES},
}
CHANNELS: Mapping[str, int] = {"ours/unet_2015": 1, "monai/dynunet_brats21": 5}
"""Input channels where they are not the three of a colour image."""
FRAMES_FIRST = ("transformers/timesformer-",)
"""Models of video that take (B, T, C, H, W); other volumes are (B, C, D, H, W)."""


def build(name: str, size: Size) -> nn.Module:
    """The architecture `library/model` for inputs of `size`, in evaluation mode, on the device in context.

    Args:
        name: for example `timm/vit_base_patch16_224`.
        size: (H, W), (T, H, W) of a video, or (D, H, W) of a volume.

    Raises:
        LookupError: there is no such library, or it has no such model; the message names those there are.
    """
    library, _, model = name.partition("/")
    if library not in BUILDERS:
        raise LookupError(f"{name}: no library {library!r}; there are {', '.join(BUILDERS)}")
    return BUILDERS[library](model, size).eval()


def input_shape(name: str, size: Size) -> Size:
    """Shape of one input with its batch and channel axes: (1, C, *size), or (1, T, C, H, W)."""
    channels = CHANNELS.get(name, 3)
    return (1, size[0], channels, *size[1:]) if name.startswith(FRAMES_FIRST) else (1, channels, *size)


def _ours(model: str, size: Size) -> nn.Module:
    return libraries.known(OURS, "ours", model)()


BUILDERS: Mapping[str, Callable[[str, Size], nn.Module]] = {
    "timm": libraries.from_timm,
    "torchvision": libraries.from_torchvision,
    "transformers": libraries.from_transformers,
    "monai": libraries.from_monai,
    "ours": _ours,
}
