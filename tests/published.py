"""The checkpoints of this project's cards, and any others that a test makes up."""

from __future__ import annotations

from pathlib import Path

from scripts.cards.library import load_library
from scripts.cards.releases import Checkpoint

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = load_library(ROOT / "model_cards", ROOT)[0]
CARDS = LIBRARY.cards
CHECKPOINTS = {
    f"{slug}/{key}": checkpoint for slug, card in CARDS.items() for key, checkpoint in card.checkpoints.items()
}


def checkpoint(library: str, class_: str, name: str, output: str, size: str = "64 x 64") -> Checkpoint:
    """A checkpoint of which only what matters here is said."""
    return Checkpoint.model_validate({
        "name": "Any", "system": "any/table", "task": "any", "release": "any", "output": output, "form": "any",
        "load": {"library": library, "class": class_, "name": name}, "input": {"size": size},
        "source": {"reference": "any", "where": "any"},
    })  # fmt: skip
