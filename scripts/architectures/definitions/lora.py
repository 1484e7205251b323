"""LoRA (arXiv:2106.09685): a linear layer with a frozen weight and a low-rank update beside it."""

from __future__ import annotations

from torch import Tensor, nn


class LoRALinear(nn.Module):
    """A linear layer plus the product of two thin ones.

    Args:
        frozen: the layer that is adapted.
        rank: of the update.
    """

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = nn.Linear(frozen.in_features, rank, bias=False)
        self.up = nn.Linear(rank, frozen.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D'), unmerged."""
        out: Tensor = self.frozen(x) + self.up(self.down(x))
        return out


def adapt(model: nn.Module, names: tuple[str, ...], rank: int) -> nn.Module:
    """Puts an update of this rank beside every linear layer that has one of these names; gives the model back."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if name in names and isinstance(child, nn.Linear)
    ]
    for parent, name, child in found:
        setattr(parent, name, LoRALinear(child, rank))
    return model
