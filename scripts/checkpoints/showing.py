"""`python -m scripts photographs`: what weights make of the photographs that all models of a task are shown on.

Weights of packages are fetched; published ones are taken from the caches of the libraries where they lie there, or fetched where
that is asked for. Each record is kept by its fingerprint, so that a second build makes none anew.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.cards.library import Library
from scripts.cards.packaged import Packaged
from scripts.cards.releases import Checkpoint
from scripts.checkpoints.attempt import missing, reason, refused, versions_for
from scripts.checkpoints.containers import UnavailableError, path_of
from scripts.checkpoints.drawing import drawn, jpeg
from scripts.checkpoints.found import Found, Prompt, used
from scripts.checkpoints.packaged import OUTPUTS, packaged_runner, taken_by
from scripts.checkpoints.pictures import Picture, open_picture
from scripts.checkpoints.runners import runner
from scripts.checkpoints.trying import ENDED, easiest, in_a_process
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
    paths = _files(library)
    originals = originals_folder(project, library)
    if {path.stem for path in originals.glob("*.jpg")} != set(paths):
        _write(originals, Looked(tuple(_original(key, path) for key, path in paths.items())))
    if not options.fetch:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the processes below: what is not in the cache is not asked for
    failed, own = 0, own_folders(project, library)
    for id, weights in _wanted(library, options):
        folder = kept_folder(project, id) if options.keep else own(id, weights)
        if not options.keep and (folder / "record.json").is_file():
            continue
        began = time.perf_counter()
        looked = in_a_process(_look, weights, paths, device_class(options.device)) or Looked(error=ENDED)
        if looked.error:
            print(f"{id}: {looked.error}", file=sys.stderr, flush=True)
            failed += bool(options.models)
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


def _wanted(library: Library, options: argparse.Namespace) -> Iterator[tuple[str, Weights]]:
    """Of each card the first checkpoint that can be tried and is at hand, and all that packages carry."""
    first = {f"{slug}/{easiest(card)}" for slug, card in library.cards.items()}
    for id, card, weights in every_weights(library):
        if options.models and card not in options.models:
            continue
        if isinstance(weights, Packaged) or (id in first and (options.models or missing(weights) is None)):
            yield id, weights


def _write(folder: Path, looked: Looked) -> None:
    for taken, content in looked.pictures:
        write(folder / taken.file, content)
    record = record_of(looked.device or {}, looked.versions or {}, tuple(taken for taken, _ in looked.pictures))
    write(folder / "record.json", json.dumps(record, indent=1).encode())


def _look(weights: Weights, paths: Mapping[str, Path], device: str) -> Looked:
    """In a process of its own: load the weights and run them on each photograph that is of their kind."""
    import torch

    from scripts.architectures.measure import describe

    checkpoint = weights if isinstance(weights, Checkpoint) else None
    try:
        path = path_of(weights.file) if isinstance(weights, Packaged) else None
        with torch.inference_mode():
            made = tuple(
                _taken(key, picture, _found(weights, path, picture, device), weights)
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


def _found(weights: Weights, path: Path | None, picture: Picture, device: str) -> Found:
    if isinstance(weights, Packaged):
        assert path is not None
        loaded = packaged_runner(weights, path, picture, device)
    elif why := refused(weights):
        raise ValueError(why)
    else:
        loaded = runner(weights, picture.image, Prompt(), device, False)
    return loaded.read(loaded.forward())


def _taken(key: str, picture: Picture, found: Found, weights: Weights) -> tuple[Taken, bytes]:
    output = OUTPUTS[weights.reader] if isinstance(weights, Packaged) else weights.output
    image = drawn(picture.image, found, used(Prompt(), output, picture.image.size))
    names = tuple(f"{each.name} {each.score:.2f}" if each.score is not None else each.name for each in found.things)
    image.thumbnail((SIDE, SIDE))
    remark = "; ".join(filter(None, [found.legend, found.remark]))
    return Taken(key, f"{key}.jpg", *image.size, names, remark), jpeg(image, SIDE)
