"""What a training step asks of a machine: operators that compute, and multiplications with additions among them."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Training(NamedTuple):
    """One training: its steps, and of a step the kernels and 10^9 operations (two for each product that is added)."""

    steps: int
    kernels: int
    gflop: float


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what runs inside it, forwards and backwards, and changes none of it.

    Attributes:
        kernels: operators that compute something, which a GPU starts one by one; views do not.
        flops: operations of products, convolutions and attention, two for each product that is added.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels = 0
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.kernels += not func.is_view
        if operations := flop_registry.get(func._overloadpacket):
            self.flops += operations(*args, **(kwargs or {}), out_val=out)
        return out

    def of(self, steps: int) -> Training:
        """What a training of so many steps costs, each like the one that was counted."""
        return Training(steps, self.kernels, float(f"{self.flops / 1e9:.3g}"))
