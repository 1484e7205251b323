"""How some classes of transformers are called unlike all others with the same output: what neither library nor card says."""

from __future__ import annotations

from enum import Enum

from scripts.cards.releases import Checkpoint


class Way(Enum):
    """The beginning of the names of the classes that are called in a way of their own."""

    NAMED_PROCESSOR = "Sam"
    """Several models share the weights, so the processor is named after the model and not found by the weights."""
    PADDED_INPUT = "SamModel"
    """Masks are cut by the sizes before and after the padding, and points are counted one level less deep."""
    SIGMOID = "Siglip"
    """Trained with a sigmoid, and with texts padded to 64."""
    TEXT_IN_A_CLIP = "Sam3Video"
    """Follows what a text names through a clip; the others follow a point."""
    OWN_FEATURES = "VJEPA2Model"
    """Features come from a method of the model; its outputs hold more."""

    def of(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint is loaded by such a class."""
        return checkpoint.load.class_.startswith(self.value)
