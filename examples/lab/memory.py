"""What training keeps in memory, counted on shapes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def kept_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass; a storage that several operations keep counts once.

    Parameters and buffers do not count. It works on the meta device, too, whose tensors have no values.
    """
    own = {each.untyped_storage()._cdata for each in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # holds the storages, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(*inputs)
    return sum(storage.nbytes() for storage in kept.values())
