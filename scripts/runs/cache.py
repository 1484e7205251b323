"""Runs that several machines share: a folder that each of them mounts, named by the environment variable RUN_CACHE.

Sealed runs lie there as they do in build/runs/, as `<slug>/<key>/`. Nothing in it is trusted: a run counts when its seal
holds after the copy. Nothing in it is needed: a folder that cannot be read or written costs a line of warning, no run.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import uuid
from pathlib import Path

from scripts.project import Project
from scripts.runs.record import read_record
from scripts.runs.state import Target


def cache_folder() -> Path | None:
    """The folder of shared runs, if there is one."""
    name = os.environ.get("RUN_CACHE")
    return Path(name).expanduser() if name else None


def fetch(project: Project, wanted: Target) -> bool:
    """Take a run from the cache; false where it has none that is whole."""
    cache = cache_folder()
    if cache is None:
        return False
    try:
        # listed, since a folder that is mounted over the network may remember that a name was not there
        is_there = wanted.slug in os.listdir(cache) and wanted.key in os.listdir(cache / wanted.slug)
        return is_there and _copy(cache / wanted.slug / wanted.key, wanted.folder(project))
    except OSError as error:
        _warn(cache, error)
        return False


def put(project: Project, wanted: Target) -> None:
    """Share a run; one that another machine has put there first stays, if it is whole."""
    cache = cache_folder()
    if cache is None or _is_whole(cache / wanted.slug / wanted.key):
        return
    try:
        (cache / wanted.slug).mkdir(exist_ok=True)  # the cache itself has to be there: it may be a mount that is not
        _copy(wanted.folder(project), cache / wanted.slug / wanted.key)
    except OSError as error:
        _warn(cache, error)


def land(aside: Path, to: Path) -> None:
    """Rename a run to its place: what is there and damaged goes, what is there and whole stays."""
    if to.exists() and not _is_whole(to):
        damaged = aside.with_suffix(".damaged")
        to.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    try:
        aside.rename(to)
    except OSError:  # another machine was first
        if not _is_whole(to):
            raise


def aside_of(folder: Path) -> Path:
    """Where a run is written until it is whole; no two machines or processes get the same."""
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")


def _is_whole(folder: Path) -> bool:
    return read_record(folder / "record.json") is not None


def _copy(source: Path, to: Path) -> bool:
    """Copy a run aside and rename it once its seal holds there; false if it is damaged."""
    aside = aside_of(to)
    try:
        shutil.copytree(source, aside, copy_function=shutil.copyfile)
        os.utime(aside)  # as new as its copy is: the oldest runs are forgotten
        if not _is_whole(aside):
            return False
        land(aside, to)
        return True
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@functools.cache
def _told(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _warn(cache: Path, error: OSError) -> None:
    """Say once what is wrong with the cache."""
    _told(f"warning: no runs are shared through {cache}: {error.strerror or 'a file could not be copied'}")
