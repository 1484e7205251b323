"""Networks that no library has, run on weights that were read as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from scripts.checkpoints.wire import Node, Onnx

Weights = Mapping[str, Tensor]


def brain_unet(weights: Weights, x: Tensor) -> Tensor:
    """The 3D U-Net of deepbrain: a volume (1, 1, 128, 128, 128) with a maximum of 1 to the logit of brain in each voxel.

    Three poolings; two convolutions of 3 x 3 x 3 on each level of the way down, one on the way up.
    """
    levels = []
    for level in range(3):
        x = functional.max_pool3d(x, 2) if level else x
        x = _convolved(weights, 2 * level + 1, _convolved(weights, 2 * level, x).relu()).relu()
        levels.append(x)
    x = functional.max_pool3d(x, 2)
    for step in range(3):
        x = torch.cat([_enlarged(weights, step, x), levels.pop()], 1)
        x = _convolved(weights, 6 + step, x).relu()
    return _convolved(weights, 9, x)


def _kernel(weights: Weights, layer: str, number: int) -> tuple[str, Tensor]:
    """Name of a layer, and its kernel with the channels first, which TensorFlow has last."""
    name = f"{layer}_{number}" if number else layer
    return name, weights[f"{name}/kernel"].permute(4, 3, 0, 1, 2)


def _convolved(weights: Weights, number: int, x: Tensor) -> Tensor:
    name, kernel = _kernel(weights, "conv3d", number)
    return functional.conv3d(x, kernel, weights[f"{name}/bias"], padding="same")


def _enlarged(weights: Weights, number: int, x: Tensor) -> Tensor:
    """Twice as large; what a transposed convolution of 3 x 3 x 3 has more is cut off at the far ends, as TensorFlow does."""
    _, kernel = _kernel(weights, "conv3d_transpose", number)
    depth, height, width = (2 * size for size in x.shape[2:])
    return functional.conv_transpose3d(x, kernel, stride=2)[:, :, :depth, :height, :width]


Step = Callable[..., Tensor]


def _convolution(node: Node) -> Step:
    groups, stride, padding = node.whole["group"][0], node.whole["strides"], node.whole["pads"][:2]
    if "Transpose" in node.operator:
        return lambda x, w, b=None: functional.conv_transpose2d(x, w, b, stride, padding, groups=groups)
    return lambda x, w, b=None: functional.conv2d(x, w, b, stride, padding, groups=groups)


def _normalisation(node: Node) -> Step:
    epsilon = node.real["epsilon"]
    return lambda x, w, b, mean, variance: functional.batch_norm(x, mean, variance, w, b, eps=epsilon)


OPERATORS: dict[str, Callable[[Node], Step]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "BatchNormalization": _normalisation,
    "Relu": lambda _: torch.relu,
    "Sigmoid": lambda _: torch.sigmoid,
    "Add": lambda _: torch.add,
}
"""The operators of a plain convolutional network; an image classifier or a detector of one stage needs hardly more."""


def run_onnx(graph: Onnx, weights: Weights, x: Tensor) -> list[Tensor]:
    """What a graph of ONNX makes of one input.

    Raises:
        KeyError: it has a step that is not among `OPERATORS`.
    """
    values = {**weights, graph.input: x}
    for node in graph.nodes:
        values[node.outputs[0]] = OPERATORS[node.operator](node)(*(values[name] for name in node.inputs))
    return [values[name] for name in graph.outputs]
