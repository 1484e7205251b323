"""Tensors and nodes of TensorFlow graphs and of ONNX, read from their protocol buffers as plain data.

A message is a row of fields: a key, which holds number and kind of the field, and a value. The numbers used here are those of
tensorflow/core/framework (graph, node_def, attr_value, tensor, tensor_shape) and of onnx.proto3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Message = Mapping[int, list[Any]]
"""Number of a field -> its values, in order."""


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the low ones first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field; raises ValueError for what is no message."""
    at = 0
    try:
        while at < len(data):
            key, at = _varint(data, at)
            match key & 7:
                case 0:
                    value, at = _varint(data, at)
                    yield key >> 3, value
                    continue
                case 1 | 5 as kind:
                    length = 8 if kind == 1 else 4
                case 2:
                    length, at = _varint(data, at)
                case kind:
                    raise ValueError(f"no kind of field: {kind}")
            if at + length > len(data):
                raise IndexError
            yield key >> 3, data[at : at + length]
            at += length
    except IndexError:
        raise ValueError("the message ends within a field") from None


def message(data: bytes | memoryview) -> Message:
    """The fields of a message by their numbers."""
    found: dict[int, list[Any]] = {}
    for number, value in _fields(memoryview(data)):
        found.setdefault(number, []).append(value)
    return found


def _text(value: memoryview) -> str:
    return bytes(value).decode()


def _numbers(values: list[Any]) -> list[int]:
    """Whole numbers, each in a field of its own or many in one."""
    found: list[int] = []
    for value in values:
        at = 0
        if isinstance(value, int):
            found.append(value)
        while not isinstance(value, int) and at < len(value):
            number, at = _varint(value, at)
            found.append(number)
    return found


def _tensor(of: Message, raw: int, listed: int, shape: list[int]) -> Array:
    """The floats of a tensor, which stand in one field as raw bytes or in another as a list; both are four bytes each."""
    import numpy as np

    data = b"".join(bytes(each) for each in (of.get(raw) or of.get(listed, [])))
    return np.frombuffer(data, "<f4").reshape(shape).copy()


FLOAT = 1
"""The type of floats of four bytes, in both."""


def tensorflow_constants(data: bytes) -> dict[str, Array]:
    """The constants of a frozen graph that hold floats, by the names of their nodes."""
    found = {}
    for node in map(message, message(data).get(1, [])):
        attributes = {_text(each[1][0]): message(each[2][0]) for each in map(message, node.get(5, []))}
        if _text(node[2][0]) != "Const" or 8 not in attributes["value"]:
            continue
        tensor = message(attributes["value"][8][0])
        shape = [message(each).get(1, [0])[0] for each in message(tensor[2][0]).get(2, [])]
        if tensor[1] == [FLOAT]:
            found[_text(node[1][0])] = _tensor(tensor, 4, 5, shape)
    return found


@dataclass(frozen=True)
class Node:
    """A step of an ONNX graph."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    whole: Mapping[str, tuple[int, ...]]
    """Attributes that are whole numbers."""
    real: Mapping[str, float]
    """Attributes that are one number with a point."""


@dataclass(frozen=True)
class Onnx:
    """A graph of ONNX: its steps in the order in which they run, its weights, its first input and its outputs."""

    nodes: tuple[Node, ...]
    tensors: Mapping[str, Array]
    input: str
    outputs: tuple[str, ...]


def onnx(data: bytes) -> Onnx:
    """The graph of a model of ONNX, with those of its weights that are floats."""
    graph = message(message(data)[7][0])
    tensors = {
        _text(each[8][0]): _tensor(each, 9, 4, _numbers(each.get(1, [])))
        for each in map(message, graph.get(5, []))
        if each[2] == [FLOAT]
    }
    (first, *_), outputs = (tuple(_text(message(each)[1][0]) for each in graph.get(number, [])) for number in (11, 12))
    nodes = tuple(_node(message(each)) for each in graph.get(1, []))
    return Onnx(nodes, tensors, first, outputs)


def _node(node: Message) -> Node:
    attributes = {_text(each[1][0]): each for each in map(message, node.get(5, []))}
    whole = {name: tuple(_numbers(each.get(8) or each.get(3, []))) for name, each in attributes.items()}
    real = {name: struct.unpack("<f", each[2][0])[0] for name, each in attributes.items() if 2 in each}
    inputs, outputs = (tuple(map(_text, node.get(number, []))) for number in (1, 2))
    return Node(_text(node[3][0]) if 3 in node else "", _text(node[4][0]), inputs, outputs, whole, real)
