"""Published models of volumes: packages that do all of it themselves, from resampling to labels."""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any

from scripts.cards.releases import Checkpoint
from scripts.checkpoints.found import Found, Thing
from scripts.checkpoints.runners import MOST_THINGS, Runner
from scripts.checkpoints.volumes import Volume

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

OUTPUT = "labels of a volume"
PACKAGES = {"TotalSegmentator": "totalsegmentator"}
"""Of a library that is tried, the name under which it is imported."""


def scan_runner(checkpoint: Checkpoint, volume: Volume, device: str) -> Runner:
    """TotalSegmentator: fetches its weights when it runs, takes a NIfTI image and gives one of the same grid with labels."""
    import nibabel
    import numpy as np

    segment = importlib.import_module("totalsegmentator.python_api").totalsegmentator
    names = importlib.import_module("totalsegmentator.map_to_binary").class_map[checkpoint.load.name]
    image = nibabel.Nifti1Image(volume.values, np.diag([*volume.millimetres, 1.0]))
    where = {"cuda": "gpu"}.get(device, device)

    def forward() -> tuple[Array, float]:
        began = time.perf_counter()
        labels = segment(image, ml=True, task=checkpoint.load.name, device=where, quiet=True)
        return np.asarray(labels.dataobj).round().astype(np.int64), time.perf_counter() - began

    def read(made: tuple[Array, float]) -> Found:
        labels, seconds = made
        found = labelled(labels, names, volume)
        return Found(found.things, remark=f"{found.remark}; {seconds:,.0f} s, with loading its networks and resampling")

    return Runner(forward, read, whole=True)


def labelled(labels: Array, names: dict[int, str], volume: Volume) -> Found:
    """The structures of a map of labels, the largest first; 0 is none of them. Raises ValueError for a map of another grid."""
    import numpy as np

    if labels.shape != volume.values.shape:
        raise ValueError(f"labels of {labels.shape} voxels for a volume of {volume.values.shape}")
    numbers, counts = np.unique(labels[labels > 0], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_THINGS]
    x, y, z = volume.millimetres
    things = tuple(
        Thing(f"{names.get(n, n)}, {counts[k] * x * y * z / 1000:,.0f} ml", mask=volume.views(labels == n))
        for k, n in ((k, int(numbers[k])) for k in order)
    )
    left = f", of which the {MOST_THINGS} largest are shown" if len(numbers) > MOST_THINGS else ""
    return Found(things, remark=f"{len(numbers)} structures{left}")
