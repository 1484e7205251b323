"""`python -m scripts photographs`: what weights make of the photographs that all models of a task are shown on.

Weights of packages are fetched; published ones are taken from the caches of the libraries where they lie there, or fetched where
that is asked for. Of each card and task one checkpoint is shown. Each record is kept by its fingerprint, so that a second build
makes none anew.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.cards.library import Library
from scripts.cards.packaged import Packaged, Photograph
from scripts.cards.releases import Checkpoint
from scripts.checkpoints import network
from scripts.checkpoints.attempt import missing, reason, refused, versions_for
from scripts.checkpoints.chosen import chosen_ids
from scripts.checkpoints.containers import UnavailableError, path_of
from scripts.checkpoints.drawing import drawn, jpeg
from scripts.checkpoints.found import Found, Prompt, used
from scripts.checkpoints.hub import is_small
from scripts.checkpoints.packaged import OUTPUTS, packaged_runner, taken_by
from scripts.checkpoints.pictures import Picture, open_picture
from scripts.checkpoints.runners import runner
from scripts.checkpoints.trying import ENDED, in_a_process
from scripts.evidence.photographs import (
    Taken,
    Weights,
    every_weights,
    kept_folder,
    originals_folder,
    own_folders,
    record_of,
)
from scripts.files import write
from scripts.machine import device_class
from scripts.project import Project

SIDE = 640
"""Longest side of a picture on a page."""


@dataclass(frozen=True)
class Looked:
    """What came of weights, as data that travels between processes; `error` says in a line why nothing did."""

    pictures: tuple[tuple[Taken, bytes], ...] = ()
    device: Mapping[str, object] | None = None
    versions: Mapping[str, str] | None = None
    error: str = ""


def photographs(project: Project, library: Library, options: argparse.Namespace) -> int:
    """Make the records that are wanted and not there; 1 if one that was asked for by name could not be made."""
    if unknown := [*_unknown(options.models, library.cards), *_unknown(options.tasks, library.vocabulary.tasks)]:
        print(*unknown, sep="\n", file=sys.stderr)
        return 1
    paths = _files(library)
    originals = originals_folder(project, library)
    if {path.stem for path in originals.glob("*.jpg")} != set(paths):
        _write(originals, Looked(tuple(_original(key, path) for key, path in paths.items())))
    fetch, asked = _fetch(options), library.vocabulary.photographs
    failed, own = 0, own_folders(project, library)
    for id, weights in _wanted(library, options, fetch):
        folder = kept_folder(project, id) if options.keep else own(id, weights)
        if not options.keep and (folder / "record.json").is_file():
            continue
        began = time.perf_counter()
        looked = in_a_process(_look, weights, paths, asked, device_class(options.device)) or Looked(error=ENDED)
        if looked.error:
            print(f"{id}: {looked.error}", file=sys.stderr, flush=True)
            failed += bool(options.models or options.tasks)
            continue
        _write(folder, looked)
        print(f"{id}: {len(looked.pictures)} pictures in {time.perf_counter() - began:.0f} s", flush=True)
    return 1 if failed else 0


def _original(key: str, path: Path) -> tuple[Taken, bytes]:
    image = open_picture(path).image
    image.thumbnail((SIDE, SIDE))
    return Taken(key, f"{key}.jpg", *image.size), jpeg(image, SIDE)


def _files(library: Library) -> dict[str, Path]:
    """Where each photograph lies; a line for one that cannot be had."""
    found = {}
    for key, photograph in library.vocabulary.photographs.items():
        try:
            found[key] = path_of(photograph.file)
        except UnavailableError as error:
            print(f"{key}: {error}", file=sys.stderr)
    return found


def _unknown(names: Sequence[str], known: Mapping[str, object]) -> list[str]:
    """In a line each, the names that there are not."""
    return [f"{name}: there is no such thing; there are {', '.join(known)}" for name in names if name not in known]


def _fetch(options: argparse.Namespace) -> str:
    """Which weights are downloaded: none, small ones, all. Where none are, no library asks for any in the processes to come."""
    fetch = str(options.fetch)
    if fetch == "none":
        os.environ["HF_HUB_OFFLINE"] = "1"
    elif offline := network.settle():
        print(offline, file=sys.stderr, flush=True)
        fetch = "none" if fetch == "small" else fetch  # not all weights lie at the hub
    return fetch


def _wanted(library: Library, options: argparse.Namespace, fetch: str) -> Iterator[tuple[str, Weights]]:
    """Of each card and task the checkpoint that is shown, if it is within reach or asked for, and all that packages carry."""
    shown, by_name = chosen_ids(library), bool(options.models or options.tasks)
    for id, card, weights in every_weights(library):
        if (options.models and card not in options.models) or (options.tasks and weights.task not in options.tasks):
            continue
        if isinstance(weights, Packaged) or (
            id in shown and (by_name or fetch == "all" or _within_reach(weights, fetch))
        ):
            yield id, weights


def _within_reach(checkpoint: Checkpoint, fetch: str) -> bool:
    """Whether a build runs it of its own accord."""
    if refused(checkpoint):
        return False
    return missing(checkpoint) is None or (fetch == "small" and not checkpoint.gated and is_small(checkpoint))


def _write(folder: Path, looked: Looked) -> None:
    for taken, content in looked.pictures:
        write(folder / taken.file, content)
    record = record_of(looked.device or {}, looked.versions or {}, tuple(taken for taken, _ in looked.pictures))
    write(folder / "record.json", json.dumps(record, indent=1).encode())


def _look(weights: Weights, paths: Mapping[str, Path], photographs: Mapping[str, Photograph], device: str) -> Looked:
    """In a process of its own: load the weights and run them on each photograph that is of their kind."""
    import torch

    from scripts.architectures.measure import describe

    checkpoint = weights if isinstance(weights, Checkpoint) else None
    try:
        path = path_of(weights.file) if isinstance(weights, Packaged) else None
        with torch.inference_mode():
            made = tuple(
                _taken(
                    key, photographs[key], picture, _found(weights, path, picture, photographs[key], device), weights
                )
                for key, file in paths.items()
                if (picture := open_picture(file)).kind == _kind(weights)
            )
        return Looked(made, describe(device), versions_for(checkpoint))
    except UnavailableError as error:
        return Looked(error=str(error))
    except Exception as error:  # whatever a library raises is told, and the others go on
        return Looked(error=reason(error, checkpoint))


def _kind(weights: Weights) -> str:
    return taken_by(weights) if isinstance(weights, Packaged) else "picture"


def _found(weights: Weights, path: Path | None, picture: Picture, photograph: Photograph, device: str) -> Found:
    if isinstance(weights, Packaged):
        assert path is not None
        loaded = packaged_runner(weights, path, picture, device)
    elif why := refused(weights):
        raise ValueError(why)
    else:
        loaded = runner(weights, picture.image, Prompt(texts=photograph.texts), device, False)
    return loaded.read(loaded.forward())


def _taken(key: str, photograph: Photograph, picture: Picture, found: Found, weights: Weights) -> tuple[Taken, bytes]:
    output = OUTPUTS[weights.reader] if isinstance(weights, Packaged) else weights.output
    image = drawn(picture.image, found, used(Prompt(), output, picture.image.size))
    names = tuple(f"{each.name} {each.score:.2f}" if each.score is not None else each.name for each in found.things)
    image.thumbnail((SIDE, SIDE))
    remark = "; ".join(filter(None, [_missed(photograph, picture, found), found.legend, found.remark]))
    return Taken(key, f"{key}.jpg", *image.size, names, remark), jpeg(image, SIDE)


def _missed(photograph: Photograph, picture: Picture, found: Found) -> str:
    """How much of the thing that fills a volume was not found, in the slices that are shown."""
    if photograph.whole is None or picture.volume is None:
        return ""
    there = picture.volume.views() != 0
    masks = [thing.mask for thing in found.things if thing.name == photograph.whole and thing.mask is not None]
    share = 1 - sum(int((mask & there).sum()) for mask in masks) / int(there.sum())
    return f"{'fails: ' if share > 0.5 else ''}misses {share:.0%} of the {photograph.whole} in these slices"
