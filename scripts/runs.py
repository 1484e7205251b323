"""Runs of the examples: what a run depends on, which one is wanted, and how the latest came out.

A run lies in `build/runs/<slug>/<preset>-<device>-<digest>/`, where the digest covers all that the outcome depends on:
the script, the modules of `examples/` that it imports, the pinned packages, the device class and the preset. So a run
that is there is up to date, nothing has to be compared, and a failed run takes nothing good away.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scripts.project import Project
from scripts.traces import sha256

if TYPE_CHECKING:
    from scripts.evidence import Results  # each job starts with this module, and has to start quickly

Status = Literal["ok", "failed", "running", "queued", "not run"]
RECORD_KEYS = {"schema", "slug", "preset", "device", "seeds", "seconds", "experiments", "results", "figures"}
FIGURE = re.compile(r"figures/[A-Za-z0-9_]+\.(light|dark)\.(svg|webp)")
KEY = re.compile(r"(smoke|quick|full)-(cpu|cuda|mps)-[0-9a-f]{12}")
SECONDS_LIMIT = {"smoke": 300, "quick": 900, "full": 6 * 3600}


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


@dataclass(frozen=True)
class Run:
    """The state of one example: its latest good run, and what became of the wanted one."""

    slug: str
    status: Status
    record: Mapping[str, Any] | None = None
    """Of the wanted run, or else of the last good one."""
    folder: Path | None = None
    """Where that record and its figures lie."""
    error: tuple[str, ...] = ()
    """Last lines of the error, if the wanted run failed."""

    @property
    def results(self) -> Results:
        return self.record["results"] if self.record else {}


def example_slugs(project: Project) -> list[str]:
    """Slugs of all examples, sorted."""
    return sorted(path.stem for path in project.examples.glob("*.py") if not path.name.startswith("_"))


def local_imports(script: Path, root: Path) -> set[Path]:
    """All modules below `root` that a script imports, directly or through others."""
    found: set[Path] = set()
    queue = [script]
    while queue:
        path = queue.pop()
        package = path.relative_to(root).parent.parts
        for module in _imported_names(path.read_text("utf-8"), package):
            new = _module_files(module, root) - found
            found |= new
            queue += new
    return found - {script}


@functools.lru_cache(maxsize=256)
def _imported_names(text: str, package: tuple[str, ...]) -> frozenset[str]:
    """Names of the modules that a source text imports anywhere; `package` is the folder it lies in."""
    names: set[str] = set()
    for node in _statements(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every statement below `tree`, without the expressions, which are most of it."""
    queue = [tree]
    while queue:
        node = queue.pop()
        yield node
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, part, [])
            queue += inner if isinstance(inner, list) else []


def _module_files(module: str, root: Path) -> set[Path]:
    """The file of a module and the `__init__.py` of each package above it, as far as they exist."""
    parts = module.split(".")
    candidates = [root.joinpath(*parts[:i], "__init__.py") for i in range(1, len(parts) + 1)]
    candidates.append(root.joinpath(*parts).with_suffix(".py"))
    return {path for path in candidates if path.is_file()}


def digest(project: Project, slug: str, preset: str, device: str) -> str:
    """Hash of everything that the outcome of a run depends on."""
    script = project.examples / f"{slug}.py"
    total = hashlib.sha256(f"{preset} {device}\n".encode())
    for path in sorted({script, *local_imports(script, project.examples)}):
        total.update(path.relative_to(project.root).as_posix().encode())
        total.update(path.read_bytes())
    total.update("\n".join(pins(project)).encode())
    return total.hexdigest()[:12]


def pins(project: Project) -> list[str]:
    """The pinned packages that examples run with: of requirements-run.txt what checking and rendering do not need."""
    pages, run = (_pinned(project.root / name) for name in ("requirements.txt", "requirements-run.txt"))
    return sorted(run - pages)


def _pinned(path: Path) -> set[str]:
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return {line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")}


def target(project: Project, slug: str, preset: str, device: str) -> Target:
    """The run of an example that is wanted now."""
    return Target(slug, preset, device, f"{preset}-{device}-{digest(project, slug, preset, device)}")


def device_class(asked: str) -> str:
    """`cpu`, `cuda` or `mps` for `auto`, without importing torch (the example itself asks torch)."""
    if asked != "auto":
        return asked
    smi = shutil.which("nvidia-smi")
    if smi and subprocess.run([smi, "-L"], capture_output=True, check=False).stdout.startswith(b"GPU"):
        return "cuda"
    return "mps" if platform.system() == "Darwin" and platform.machine() == "arm64" else "cpu"


def default_preset(device: str) -> str:
    return "quick" if device == "cpu" else "full"


SUMS = "SHA256SUMS"
"""In a run's folder: the digest of each of its files, in the form that `sha256sum --check` reads."""


def seal(folder: Path) -> None:
    """Write down what the files of a run are, so that `read_record` sees a later change of any."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256((folder / name).read_bytes())}  {name}\n" for name in names if name != SUMS]
    (folder / SUMS).write_text("".join(lines), "utf-8")


def is_sealed(folder: Path) -> bool:
    """Every file of a run is as it was when the run ended."""
    try:
        lines = (folder / SUMS).read_text("utf-8").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        return "record.json" in sums and all(
            sha256((folder / name).read_bytes()) == digest for name, digest in sums.items()
        )
    except (OSError, ValueError):
        return False


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of a finished run; None where there is none, or where one of its files is cut off, edited or gone."""
    return parse_record(path) if is_sealed(path.parent) else None


def parse_record(path: Path) -> dict[str, Any] | None:
    """A run record, or None where there is none, or where it is cut off or lacks a figure."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or not record.keys() >= RECORD_KEYS:
        return None
    try:
        drawn = [figure[scheme] for figure in record["figures"] for scheme in ("light", "dark")]
    except (TypeError, KeyError):
        return None
    inside = all(isinstance(name, str) and FIGURE.fullmatch(name) for name in drawn)
    return record if inside and all((path.parent / name).is_file() for name in drawn) else None


def last_good(project: Project, slug: str) -> tuple[dict[str, Any], Path] | None:
    """The readable record of an example that was started last, and its folder."""
    paths = sorted((project.runs / slug).glob("*/record.json"))
    found = [(record, path.parent) for path in paths if (record := read_record(path)) is not None]
    return max(found, key=lambda pair: str(pair[0].get("started", "")), default=None)


def state(project: Project, wanted: Target, queued: bool = False) -> Run:
    """How an example stands; `queued` says that a run was ordered."""
    record = read_record(wanted.record(project))
    if record is not None:
        return Run(wanted.slug, "ok", record, wanted.folder(project))
    good, folder = last_good(project, wanted.slug) or (None, None)
    marks = project.runs / wanted.slug
    failed = _read_mark(marks / "failed.json", wanted.key)
    running = _read_mark(marks / "running.json", wanted.key)
    if running and _is_under_way(running):
        return Run(wanted.slug, "running", good, folder)
    if failed:
        return Run(wanted.slug, "failed", good, folder, tuple(failed["error"]))
    return Run(wanted.slug, "queued" if queued else "not run", good, folder)


def states(project: Project, preset: str | None = None, device: str = "auto", queued: bool = False) -> dict[str, Run]:
    """How each example stands, by slug."""
    device = device_class(device)
    targets = [target(project, slug, preset or default_preset(device), device) for slug in example_slugs(project)]
    return {wanted.slug: state(project, wanted, queued) for wanted in targets}


def _read_mark(path: Path, key: str) -> dict[str, Any] | None:
    try:
        mark = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and mark.get("key") == key else None


def _is_under_way(mark: Mapping[str, Any]) -> bool:
    """Whether the process lives that left the mark; of another machine that cannot be seen, and is believed for a while."""
    if mark.get("host", platform.node()) != platform.node():
        return time.time() - float(mark.get("started", 0)) < max(SECONDS_LIMIT.values())
    try:
        os.kill(mark["pid"], 0)
    except OSError:
        return False
    return True
