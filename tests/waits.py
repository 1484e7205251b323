"""How often a host has to wait for a device: operators whose result it reads back."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

READ_BACK = {"aten::_local_scalar_dense": 1, "aten::nonzero": 1, "aten::masked_select": 1, "torchvision::nms": 2}


class Waits(TorchDispatchMode):
    """Counts the waits of what runs inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += READ_BACK.get(function.name().split(".")[0], 0)
        return function(*args, **(kwargs or {}))
