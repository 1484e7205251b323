"""Several small networks of one form trained side by side: one pass for all of them, where each alone would leave a core idle."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel


class Stacked(nn.Module):
    """G networks with weights of their own, called at once: each input (G, ...) -> outputs (G, ...).

    With a loss that is the sum over networks, none sees the gradient of another (so give `fit` no `clip`, which would
    scale them all by one norm).

    Args:
        networks: of one form, without buffers; they are copied.

    Raises:
        ValueError: they have buffers, which would need a way to be updated.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        weights, buffers = stack_module_state(list(networks))
        if buffers:
            raise ValueError(f"networks have buffers, {', '.join(buffers)}; stack such without, e.g. with group norm")
        self.count = len(networks)
        self._names = list(weights)
        self._form = (copy.deepcopy(networks[0]),)  # in a tuple, so that its weights are none of this module
        self.weights = nn.ParameterList(nn.Parameter(each.detach().clone()) for each in weights.values())

    def forward(self, *inputs: Tensor, **options: Any) -> Any:
        """What the networks give, stacked; a list of tensors stays a list. `options` are the same for all."""
        weights = dict(zip(self._names, self.weights, strict=True))
        with sdpa_kernel(SDPBackend.MATH):  # the others have no rule for several networks at once
            return vmap(lambda own, *each: functional_call(self._form[0], own, each, options))(weights, *inputs)
