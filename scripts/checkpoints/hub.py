"""What a hub says of weights before any are fetched: how large they are."""

from __future__ import annotations

import importlib
from functools import reduce

from scripts.cards.releases import Checkpoint
from scripts.checkpoints.attempt import hub_files
from scripts.checkpoints.snippets import FOLDERS

MOST_MEGABYTES = 400
"""Of weights that a build fetches of its own accord."""


def is_small(checkpoint: Checkpoint) -> bool:
    """Whether a build may fetch its weights; not so where nobody says how large they are."""
    try:
        return _megabytes(checkpoint) <= MOST_MEGABYTES
    except Exception:  # whatever a library raises for a hub that does not answer, or a name that it does not know
        return False


def _megabytes(checkpoint: Checkpoint) -> float:
    """What the file weighs that would be fetched; raises StopIteration for weights in several files, which are large."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    if checkpoint.load.library == "torchvision":
        models = importlib.import_module(FOLDERS[checkpoint.output])
        return float(reduce(getattr, checkpoint.load.name.split("."), models).meta["_file_size"])
    repository, files = hub_files(checkpoint)
    names = [name for name in files[-1] if not name.endswith(".json")]
    sizes = {each.path: each.size for each in HfApi().get_paths_info(repository, names) if isinstance(each, RepoFile)}
    return next(sizes[name] for name in names if name in sizes) / 1e6
