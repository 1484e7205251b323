"""What a hub says of weights before any are fetched: whether it answers, and how large they are."""

from __future__ import annotations

import importlib
import os
import threading
import urllib.error
import urllib.request
from functools import reduce

from scripts.cards.releases import Checkpoint
from scripts.checkpoints.attempt import hub_files
from scripts.checkpoints.snippets import FOLDERS

SECONDS = 3.0
"""As long as a build waits for an answer."""

MOST_MEGABYTES = 400
"""Of weights that a build fetches of its own accord."""


def answers(seconds: float = SECONDS) -> bool:
    """Whether the hub of models says anything within some seconds, the search for its address included."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    said = threading.Event()
    threading.Thread(target=_ask, args=(said, seconds), daemon=True).start()
    return said.wait(seconds)


def _ask(said: threading.Event, seconds: float) -> None:
    from huggingface_hub import constants

    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=seconds).close()
    except (OSError, ValueError):  # no way there, or no address
        return
    said.set()


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
