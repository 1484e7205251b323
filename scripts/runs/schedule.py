"""Running the examples: Snakemake decides on jobs, each job is one `execute` with a time limit and a log.

The outcome lands whole or not at all: a run writes into a folder aside, which is renamed when its record is complete.
On a cluster a profile of Snakemake (profiles/) says where jobs run; a run that another machine made is taken from
the shared cache (cache.py).
"""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.fingerprint import HERE
from scripts.machine import cores, device_class
from scripts.project import Project
from scripts.runs import cache, process
from scripts.runs.job import time_limit
from scripts.runs.record import read_record
from scripts.runs.state import Target, as_good, default_preset, state, target

SNAKEFILE = Path(__file__).with_name("Snakefile")

PROFILES = Path(__file__).with_name("profiles")

MINUTES_AROUND = 5
"""What a scheduler grants beyond the time limit of a run: to start Python, and to copy the outcome."""


def wanted_targets(project: Project, slugs: Sequence[str], preset: str | None, device: str) -> list[Target]:
    """The runs that are wanted for these examples, up to date or not."""
    device = device_class(device)
    return [target(project, slug, preset or default_preset(device), device) for slug in slugs]


def missing(project: Project, targets: Sequence[Target]) -> list[Target]:
    """Those targets without a complete record."""
    return [wanted for wanted in targets if read_record(wanted.record(project)) is None]


def lacking(project: Project, targets: Sequence[Target]) -> list[Target]:
    """Those targets for which neither they are up to date nor a better run is: one of a larger preset or a faster device."""
    return [wanted for wanted in targets if state(project, wanted).status != "ok"]


def minutes_asked(key: str) -> int:
    """The minutes that a scheduler is asked for, so that `execute` itself stops a run that takes too long."""
    return math.ceil(time_limit(key.partition("-")[0]) / 60) + MINUTES_AROUND


def gpus_asked(key: str) -> int | None:
    """One for a run on a GPU, else None: executors take a 0 for a request."""
    return 1 if key.split("-")[1] in ("cuda", "mps") else None


def profile_folder(name: str) -> Path:
    """The folder of a profile: one of scripts/runs/profiles/, or any other that holds a config.yaml.

    Raises:
        ValueError: there is no such profile, or it names an environment variable that is not set.
    """
    known = sorted(path.name for path in PROFILES.iterdir() if path.is_dir())
    folder = (PROFILES / name if name in known else Path(name)).resolve()
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"no profile {name}; there are {', '.join(known)}, or a folder with a config.yaml")
    lines = [line for line in (folder / "config.yaml").read_text("utf-8").splitlines() if not line.startswith("#")]
    unset = [name for name in re.findall(r"\$(\w+)", "\n".join(lines)) if not os.environ.get(name)]
    if unset:
        raise ValueError(f"the profile {name} needs the environment variable {unset[0]}; see docs/about/cluster.md")
    return folder


def unfit_path(project: Project) -> str | None:
    """A path that no job on a cluster can be given: executors of Snakemake hand some to a shell as they are."""
    return next((path for path in (str(project.root), sys.executable) if shlex.quote(path) != path), None)


def run_all(project: Project, targets: Sequence[Target], jobs: int | None, profile: Path | None = None) -> int:
    """Run what is missing, `jobs` at a time; 1 if one of them failed (the others are run all the same)."""
    gone = lacking(project, targets)
    todo = [wanted for wanted in gone if not any(cache.fetch(project, each) for each in as_good(project, wanted))]
    count = f"{len(targets)} examples" + (f", {n} from the run cache" if (n := len(gone) - len(todo)) else "")
    if not todo:
        print(f"{count}, all up to date")
        return 0
    jobs = jobs or (None if profile else cores())
    at_a_time = f"{jobs} at a time" if jobs else f"by the profile {profile.name if profile else ''}"
    print(f"{count}, {len(todo)} to run, {at_a_time}; logs in {project.build.name}/logs/", flush=True)
    _try_to_write(project)
    started = time.monotonic()
    command = _snakemake(project, todo, jobs, profile)
    code = process.run(command, _environment(project), cwd=project.root)
    failed = [wanted for wanted in missing(project, todo) if not cache.fetch(project, wanted)]
    print(f"{len(todo) - len(failed)} of {len(todo)} examples ran in {time.monotonic() - started:.0f} s", flush=True)
    for wanted in failed:
        log = project.build / "logs" / f"{wanted.slug}.log"
        why = f"see {log.relative_to(project.root)}" if log.exists() else "before it began"
        print(f"failed: {wanted.slug}, {why}", file=sys.stderr)
    return 1 if failed or code else 0


def _snakemake(project: Project, todo: Sequence[Target], jobs: int | None, profile: Path | None) -> list[str]:
    """The command that runs the jobs, here or as a profile says; relative paths hold in a container too.

    It is forced: Snakemake would take a damaged record for one.
    """
    inside = SNAKEFILE.is_relative_to(project.root)
    snakefile = SNAKEFILE.relative_to(project.root) if inside else SNAKEFILE
    if profile:
        where = ["--profile", str(profile), *(["--jobs", str(jobs)] if jobs else [])]
    else:
        where = ["--cores", str(jobs), "--resources", "gpu=1", "--quiet", "all"]
    options = ["--force", "--keep-going", "--nolock", "--rerun-triggers", "mtime", "--config", f"total={len(todo)}"]
    if long := _long_ones(project, todo):
        options += ["--prioritize", *(_output(project, wanted) for wanted in long)]
    outputs = [_output(project, wanted) for wanted in todo]
    return [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), *where, *options, "--", *outputs]


def _output(project: Project, wanted: Target) -> str:
    return wanted.record(project).relative_to(project.root).as_posix()


def _long_ones(project: Project, todo: Sequence[Target]) -> list[Target]:
    """The half that is likely to take longest, by how much is written on their experiments: so that no long one comes last,
    alone, while the other cores wait."""

    def written(wanted: Target) -> int:
        claims = project.claims_of(wanted.slug)
        return claims.stat().st_size if claims.is_file() else 0

    return sorted(todo, key=written, reverse=True)[: len(todo) // 2]


def _try_to_write(project: Project) -> None:
    """Raises OSError where no run can be written; Snakemake itself would end without a word."""
    for folder in (project.runs, project.build / "logs", project.root / ".snakemake"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def _environment(project: Project) -> dict[str, str]:
    """Jobs find this package, wherever the project lies; and Snakemake has a cache where the home folder cannot be written."""
    paths = [str(HERE), os.environ.get("PYTHONPATH")]
    caches = os.environ.get("XDG_CACHE_HOME") or str(project.build / "cache")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "XDG_CACHE_HOME": caches}
