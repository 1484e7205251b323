"""Writes protocol buffers as TensorFlow and ONNX do, so that what reads them can be tested without either."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | float | str | bytes) -> bytes:
    """A whole number, a float of four bytes, a text or a message within this one."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def constant(name: str, array: Any, listed: bool = False) -> bytes:
    """A node of a TensorFlow graph that holds floats, as raw bytes or listed."""
    shape = b"".join(field(2, field(1, size)) for size in array.shape)
    tensor = field(1, 1) + field(2, shape) + field(5 if listed else 4, array.astype("<f4").tobytes())
    attribute = field(1, "value") + field(2, field(8, tensor))
    return field(1, field(1, name) + field(2, "Const") + field(5, attribute))


def tensor(name: str, array: Any, listed: bool = False) -> bytes:
    """A weight of ONNX."""
    shape = b"".join(field(1, size) for size in array.shape)
    return shape + field(2, 1) + field(8, name) + field(4 if listed else 9, array.astype("<f4").tobytes())


def node(
    operator: str, inputs: Sequence[str], output: str, name: str = "", **attributes: Sequence[int] | int | float
) -> bytes:
    """A step of an ONNX graph."""
    made = b"".join(field(1, each) for each in inputs) + field(2, output) + field(3, name) + field(4, operator)
    for key, value in attributes.items():
        if isinstance(value, int | float):
            held = field(3 if isinstance(value, int) else 2, value)
        else:
            held = field(8, b"".join(map(varint, value)))  # many in one field
        made += field(5, field(1, key) + held)
    return made


def model(nodes: Sequence[bytes], weights: Mapping[str, Any], outputs: Sequence[str], listed: bool = False) -> bytes:
    """A model of ONNX with one input, `x`."""
    graph = b"".join(field(1, each) for each in nodes)
    graph += b"".join(field(5, tensor(name, array, listed)) for name, array in weights.items())
    graph += field(11, field(1, "x")) + b"".join(field(12, field(1, name)) for name in outputs)
    return field(7, graph)
