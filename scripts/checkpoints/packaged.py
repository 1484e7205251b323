"""Weights of packages as functions of a picture or a volume; each is captioned as what it is, and none is a card's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.cards.packaged import Packaged, Reader
from scripts.cards.releases import Output
from scripts.checkpoints.found import Found, Thing
from scripts.checkpoints.pictures import Kind, Picture
from scripts.checkpoints.runners import THRESHOLD, Runner, best, patches, things
from scripts.checkpoints.wire import Onnx, onnx, tensorflow_constants

if TYPE_CHECKING:
    import torch
    from torch import Tensor

OUTPUTS: Mapping[Reader, Output] = {
    "brain mask": "labels of a volume",
    "centre heatmap": "boxes",
    "patch tokens": "features",
    "classes of ImageNet": "classes",
}


def taken_by(packaged: Packaged) -> Kind:
    """What it looks at."""
    return "volume" if OUTPUTS[packaged.reader] == "labels of a volume" else "picture"


def packaged_runner(packaged: Packaged, path: Path, picture: Picture, device: str) -> Runner:
    """Load weights of a package from their file, with a picture laid out for them."""
    return READERS[packaged.reader](path, picture, device)


def _brain_mask(path: Path, picture: Picture, device: str) -> Runner:
    """As deepbrain does it: the whole volume as 128 x 128 x 128 voxels, divided by its maximum."""
    import torch
    from skimage.transform import resize

    from scripts.checkpoints.networks import brain_unet

    volume = picture.volume
    assert volume is not None
    weights = _tensors(tensorflow_constants(path.read_bytes()), device)
    small = torch.tensor(resize(volume.values, (128, 128, 128), mode="constant", anti_aliasing=True))
    x = (small / small.max())[None, None].float().to(device)

    def read(logits: Tensor) -> Found:
        size = volume.values.shape
        large = torch.nn.functional.interpolate(logits, size, mode="trilinear", align_corners=False)[0, 0]
        brain = (large > 0).cpu().numpy()
        x, y, z = volume.millimetres
        millilitres = brain.sum() * x * y * z / 1000
        return Found((Thing("brain", mask=volume.views(brain)),), remark=f"{millilitres:,.0f} ml")

    return Runner(lambda: brain_unet(weights, x), read)


def _centre_heatmap(path: Path, picture: Picture, device: str) -> Runner:
    """Pixels from 0 to 255 at a size divisible by 32; a face is a peak, with height, width and offset in steps of 4 pixels."""
    from scripts.checkpoints.networks import run_onnx

    graph = onnx(path.read_bytes())
    weights = _tensors(graph.tensors, device)
    x = _laid_out(picture, 32, 640).to(device)

    def read(outputs: list[Tensor]) -> Found:
        from torchvision.ops import nms

        heat, sizes, offsets = (each[0].cpu() for each in outputs[:3])
        rows, columns = (heat[0] > THRESHOLD).nonzero(as_tuple=True)
        boxes = _boxes(rows, columns, sizes[:, rows, columns], offsets[:, rows, columns])
        scores = heat[0, rows, columns]
        kept = nms(boxes, scores, 0.3)
        width, height = picture.image.size
        scale = boxes.new_tensor([width / x.shape[3], height / x.shape[2]]).repeat(2)
        return things(["face"] * len(kept), scores[kept], boxes[kept] * scale)

    return Runner(lambda: run_onnx(graph, weights, x), read)


def _boxes(rows: Tensor, columns: Tensor, sizes: Tensor, offsets: Tensor) -> Tensor:
    """x0, y0, x1, y1 in pixels of the input: sizes are logarithms, and a point is the middle of its 4 x 4 pixels."""
    import torch

    heights, widths = 4 * sizes.exp()
    y, x = 4 * (rows + offsets[0] + 0.5), 4 * (columns + offsets[1] + 0.5)
    return torch.stack([x - widths / 2, y - heights / 2, x + widths / 2, y + heights / 2], 1)


def _patch_tokens(path: Path, picture: Picture, device: str) -> Runner:
    """Into the class of transformers that has this shape; the decoder of the file is left out."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    shape = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
    weights = _vit_weights(onnx(path.read_bytes()))
    model, said = Dinov2Model.from_pretrained(
        None, config=Dinov2Config(**shape), state_dict=weights, output_loading_info=True
    )
    assert not said["missing_keys"], said
    model = model.eval().requires_grad_(False).to(device)
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    x = ((_laid_out(picture, 14, 448) / 255 - mean) / deviation).to(device)
    return Runner(lambda: model(x), lambda out: patches(out.last_hidden_state[0], *x.shape[2:]))


def _vit_weights(graph: Onnx) -> dict[str, Tensor]:
    """The weights by the names under which transformers writes them.

    The export kept names of biases and norms, transposed the matrices and named them by numbers: the node that takes one says
    whose it is. It split the position embeddings into that of the class token and those of the patches.
    """
    import torch

    tensors = {name.removeprefix("backbone."): torch.from_numpy(each) for name, each in graph.tensors.items()}
    for node in graph.nodes:
        if node.operator == "MatMul" and node.inputs[1] in graph.tensors:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{name}.weight"] = torch.from_numpy(graph.tensors[node.inputs[1]]).T
    place = "embeddings.position_embeddings"
    first, others = (each for name, each in tensors.items() if name.startswith(("onnx::Concat", "onnx::Reshape")))
    tensors[place] = torch.cat([first.reshape(1, 1, -1), others.reshape(1, -1, first.shape[-1])], 1)
    tensors["embeddings.mask_token"] = torch.zeros(1, first.shape[-1])  # of training alone
    return {name: each for name, each in tensors.items() if name.startswith(("embeddings.", "encoder.", "layernorm."))}


def _classes(path: Path, picture: Picture, device: str) -> Runner:
    import timm
    import torch

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    held = [each for name, each in weights.items() if not name.endswith("num_batches_tracked")]
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    model.load_state_dict(dict(zip(names, held, strict=True)), strict=False)  # other names in the same order
    model = model.eval().requires_grad_(False).to(device)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    batch = transform(picture.image).unsqueeze(0).to(device)
    name = timm.data.ImageNetInfo("imagenet-1k").index_to_description
    return Runner(lambda: model(batch), lambda out: best(out[0].softmax(-1), name))


def _laid_out(picture: Picture, step: int, longest: int) -> Tensor:
    """(1, 3, H, W) from 0 to 255, with sides that are multiples of `step` and at most `longest`."""
    import numpy as np
    import torch
    from PIL import Image

    image = picture.image
    scale = longest / max(image.size)
    width, height = (max(1, int(side * scale) // step) * step for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]


def _tensors(arrays: Mapping[str, object], device: str) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(each).to(device) for name, each in arrays.items()}


READERS: Mapping[Reader, Callable[[Path, Picture, str], Runner]] = {
    "brain mask": _brain_mask,
    "centre heatmap": _centre_heatmap,
    "patch tokens": _patch_tokens,
    "classes of ImageNet": _classes,
}
