"""One forward pass on the meta device, watched: what each module holds, multiplies and gives out.

A multiplication with its addition is one MAC. Matrix products and convolutions are counted, by the formulas of
`torch.utils.flop_counter`; norms, activations and poolings are left out, as in most published figures. Needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from scripts.architectures.anatomy import Part
from scripts.architectures.definitions import Size, build, inputs

TOKEN_PRODUCTS = ("bmm", "baddbmm", "_scaled_dot_product")
"""Beginnings of the names of operators that multiply activations with activations, as attention does."""


@dataclass(frozen=True)
class Cost:
    """What one forward pass of one input costs."""

    macs: float
    token_macs: float
    """Part of `macs` that multiplies activations with activations."""
    saved_bytes: float
    """Activations that autograd keeps for the backward pass, in single precision, each storage once."""


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the MACs of the operators that run inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0.0
        self.token_macs = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[object, ...] = (), kwargs: Mapping[str, object] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        operator = func._overloadpacket
        if operator in flop_registry:
            macs = flop_registry[operator](*args, **(kwargs or {}), out_val=out) / 2
            self.macs += macs
            if operator.__name__.startswith(TOKEN_PRODUCTS):
                self.token_macs += macs
        return out


@dataclass
class _Seen:
    """What the hooks saw of a module."""

    macs: float = 0.0
    calls: int = 0
    shape: tuple[int, ...] = ()


def trace(name: str, size: Size) -> Part:
    """The tree of modules of `library/model` after one forward pass of one input of `size`.

    Raises:
        LookupError: the model is not known.
        RuntimeError: its forward pass looks at values, which the meta device does not have.
    """
    with torch.device("meta"):
        model = build(name, size).requires_grad_(False)
        counter = _Counter()
        with _watched(model, counter) as seen, counter:
            model(*inputs(name, size))
    return _part(model, "model", seen, {})[0]


@contextmanager
def _watched(model: nn.Module, counter: _Counter) -> Iterator[dict[nn.Module, _Seen]]:
    """Hooks on every module that note the MACs between its call and its return, and the shape of its output."""
    seen: dict[nn.Module, _Seen] = {}
    began: list[float] = []

    def before(module: nn.Module, _: Any) -> None:
        began.append(counter.macs)

    def after(module: nn.Module, _: Any, output: Any) -> None:
        here = seen.setdefault(module, _Seen())
        here.macs += counter.macs - began.pop()
        here.calls += 1
        here.shape = here.shape or _shape(output)

    handles = [hook for module in model.modules() for hook in (
        module.register_forward_pre_hook(before), module.register_forward_hook(after)
    )]  # fmt: skip
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _shape(output: Any) -> tuple[int, ...]:
    """Shape of the first tensor of an output, without the batch axis."""
    if isinstance(output, Tensor):
        return tuple(output.shape)
    children = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((shape for child in children if (shape := _shape(child))), ())


def _part(
    module: nn.Module, name: str, seen: Mapping[nn.Module, _Seen], known: dict[Any, int]
) -> tuple[Part, list[nn.Module]]:
    """A module as a part, and the modules within it that were `known` before it.

    A parameter or a module that stands at two places counts at the first.
    """
    kind, here = type(module).__name__, seen.get(module, _Seen())
    if module in known:
        return Part(name, kind, 0, 0, here.shape, here.calls), [module]
    own = [p for p in module.parameters(recurse=False) if p not in known]
    entered = known[module] = len(known)
    known |= dict.fromkeys(own, entered)
    pairs = [_part(child, key, seen, known) for key, child in module.named_children()]
    children = tuple(child for child, _ in pairs)
    elsewhere = [other for _, others in pairs for other in others if known[other] < entered]
    called = here.macs - sum(seen[other].macs for other in elsewhere if other in seen)
    macs = called if here.calls else sum(child.macs for child in children)
    shape = here.shape or next((child.shape for child in reversed(children) if child.shape), ())
    parameters = sum(p.numel() for p in own) + sum(child.parameters for child in children)
    return Part(name, kind, parameters, macs, shape, here.calls, children), elsewhere


def cost(name: str, size: Size, **changes: int) -> Cost:
    """MACs of one input, and the bytes that its backward pass would need; `changes` as in `architectures.build`."""
    with torch.device("meta"):
        return cost_of(build(name, size, **changes), inputs(name, size))


def cost_of(model: nn.Module, arguments: tuple[object, ...]) -> Cost:
    """The cost of `model(*arguments)`, for a model on the meta device."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor  # held, so that no other storage gets its address
        return tensor

    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.device("meta"), saving, _Counter() as counter:
        model.requires_grad_(True)(*arguments)
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return Cost(counter.macs, counter.token_macs, float(saved))
