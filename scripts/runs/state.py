"""Runs of the examples: what a run depends on, which one is wanted, and how the latest came out.

A run lies in `build/runs/<slug>/<preset>-<device>-<digest>/`, where the digest covers all that the outcome depends on:
the script, the modules of `examples/` that it imports, the pinned packages, the device class and the preset. So a run
that is there is up to date, nothing has to be compared, and a failed run takes nothing good away. Of several that are up to
date, made here or elsewhere, the one of the larger preset counts, then that of the faster device, and all are listed.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from scripts.files import printable
from scripts.fingerprint import of_run
from scripts.machine import device_class
from scripts.project import Project
from scripts.runs.record import Record, Results, read_record

Status = Literal["ok", "failed", "running", "queued", "not run"]

KEY = re.compile(r"(smoke|quick|full)-(cpu|cuda|mps)-[0-9a-f]{12}")

PRESETS = ("smoke", "quick", "full")
DEVICES = ("cpu", "mps", "cuda")
"""Both from the least to the best."""

SECONDS_LIMIT = {"smoke": 300, "quick": 900, "full": 6 * 3600}


class Mark(TypedDict, total=False):
    """What a job leaves while it runs, and where it failed."""

    key: str
    host: str
    pid: int
    started: float
    error: list[str]


@dataclass(frozen=True)
class Target:
    """A run that is wanted."""

    slug: str
    preset: str
    device: str
    key: str
    """Name of its folder."""

    def folder(self, project: Project) -> Path:
        return project.runs / self.slug / self.key

    def record(self, project: Project) -> Path:
        return self.folder(project) / "record.json"

    @property
    def rank(self) -> tuple[int, int]:
        """Runs of a larger preset, then of a faster device, come later."""
        return PRESETS.index(self.preset), DEVICES.index(self.device)


@dataclass(frozen=True)
class Run:
    """The state of one example: its latest good run, and what became of the wanted one."""

    slug: str
    status: Status
    record: Record | None = None
    """Of the wanted run, or else of the last good one."""
    folder: Path | None = None
    """Where that record and its figures lie."""
    error: tuple[str, ...] = ()
    """Last lines of the error, if the wanted run failed."""
    others: tuple[Record, ...] = ()
    """Of other presets and devices that are up to date, too, best first."""

    @property
    def results(self) -> Results:
        return self.record.results if self.record else {}


def example_slugs(project: Project) -> list[str]:
    """Slugs of all examples, sorted."""
    return sorted(path.stem for path in project.examples.glob("*.py") if not path.name.startswith("_"))


def target(project: Project, slug: str, preset: str, device: str) -> Target:
    """The run of an example that is wanted now."""
    return next(_targets(project, slug, [(preset, device)]))


def _targets(project: Project, slug: str, asked: Iterable[tuple[str, str]]) -> Iterator[Target]:
    """Runs of an example as it is now, by preset and device."""
    digest = of_run(project, slug)
    return (Target(slug, preset, device, f"{preset}-{device}-{digest(preset, device)}") for preset, device in asked)


def up_to_date(project: Project, wanted: Target) -> list[tuple[Target, Record]]:
    """The runs of the wanted example as it is now, of whatever preset and device, best first."""
    names = (path.parent.name for path in (project.runs / wanted.slug).glob("*/record.json"))
    present = {(parts[1], parts[2]) for name in names if (parts := KEY.fullmatch(name))}
    others = present - {(wanted.preset, wanted.device)}
    targets = [wanted, *(_targets(project, wanted.slug, others) if others else ())]
    found = [(each, record) for each in targets if (record := read_record(each.record(project))) is not None]
    return sorted(found, key=lambda pair: pair[0].rank, reverse=True)


def as_good(project: Project, wanted: Target) -> list[Target]:
    """The run that is wanted, and those that would do as well: of a larger preset or a faster device, best first."""
    all_of_them = _targets(project, wanted.slug, itertools.product(PRESETS, DEVICES))
    return sorted((each for each in all_of_them if each.rank >= wanted.rank), key=lambda each: each.rank, reverse=True)


def default_preset(device: str) -> str:
    return "quick" if device == "cpu" else "full"


def last_good(project: Project, slug: str) -> tuple[Record, Path] | None:
    """The readable record of an example that was started last, and its folder."""
    paths = sorted((project.runs / slug).glob("*/record.json"))
    found = [(record, path.parent) for path in paths if (record := read_record(path)) is not None]
    return max(found, key=lambda pair: pair[0].started, default=None)


def state(project: Project, wanted: Target, queued: bool = False) -> Run:
    """How an example stands; `queued` says that a run was ordered."""
    there = up_to_date(project, wanted)
    if there and there[0][0].rank >= wanted.rank:
        (best, record), others = there[0], tuple(record for _, record in there[1:])
        return Run(wanted.slug, "ok", record, best.folder(project), others=others)
    good, folder = last_good(project, wanted.slug) or (None, None)
    marks = project.runs / wanted.slug
    failed = _read_mark(marks / "failed.json", wanted.key)
    running = _read_mark(marks / "running.json", wanted.key)
    if running and _is_under_way(running):
        return Run(wanted.slug, "running", good, folder)
    if failed:
        return Run(wanted.slug, "failed", good, folder, tuple(printable(str(line)) for line in failed.get("error", ())))
    return Run(wanted.slug, "queued" if queued else "not run", good, folder)


def states(project: Project, preset: str | None = None, device: str = "auto", queued: bool = False) -> dict[str, Run]:
    """How each example stands, by slug."""
    device = device_class(device)
    targets = [target(project, slug, preset or default_preset(device), device) for slug in example_slugs(project)]
    return {wanted.slug: state(project, wanted, queued) for wanted in targets}


def _read_mark(path: Path, key: str) -> Mark | None:
    try:
        mark: Mark = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and mark.get("key") == key else None


def _is_under_way(mark: Mark) -> bool:
    """Whether the process lives that left the mark; of another machine that cannot be seen, and is believed for a while."""
    if mark.get("host", platform.node()) != platform.node():
        return time.time() - float(mark.get("started", 0)) < max(SECONDS_LIMIT.values())
    try:
        os.kill(mark["pid"], 0)
    except OSError:
        return False
    return True
