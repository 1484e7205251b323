"""Running the examples: Snakemake decides on jobs, each job is one `execute` with a time limit and a log.

The outcome lands whole or not at all: a run writes into a folder aside, which is renamed when its record is complete.
On a cluster a profile of Snakemake (scripts/profiles/) says where jobs run; a run that another machine made is taken from
the shared cache (scripts/shared.py).
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from scripts import shared
from scripts.failures import told
from scripts.project import Project
from scripts.runs import (
    KEY,
    SECONDS_LIMIT,
    Target,
    default_preset,
    device_class,
    example_slugs,
    parse_record,
    read_record,
    seal,
    target,
)  # fmt: skip

KEPT_RUNS = 3
ERROR_LINES = 12
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


def time_limit(preset: str) -> float:
    """Seconds after which a run is stopped."""
    return float(os.environ.get("EXAMPLE_SECONDS_LIMIT") or SECONDS_LIMIT[preset])


def minutes_asked(key: str) -> int:
    """The minutes that a scheduler is asked for, so that `execute` itself stops a run that takes too long."""
    return math.ceil(time_limit(key.partition("-")[0]) / 60) + MINUTES_AROUND


def gpus_asked(key: str) -> int | None:
    """One for a run on a GPU, else None: executors take a 0 for a request."""
    return 1 if key.split("-")[1] in ("cuda", "mps") else None


def profile_folder(name: str) -> Path:
    """The folder of a profile: one of scripts/profiles/, or any other that holds a config.yaml.

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


def run_all(project: Project, targets: Sequence[Target], jobs: int | None, profile: Path | None = None) -> int:
    """Run what is missing, `jobs` at a time; 1 if one of them failed (the others are run all the same)."""
    lacking = missing(project, targets)
    todo = [wanted for wanted in lacking if not shared.fetch(project, wanted)]
    count = f"{len(targets)} examples" + (f", {n} from the run cache" if (n := len(lacking) - len(todo)) else "")
    if not todo:
        print(f"{count}, all up to date")
        return 0
    jobs = jobs or (None if profile else os.cpu_count() or 1)
    at_a_time = f"{jobs} at a time" if jobs else f"by the profile {profile.name if profile else ''}"
    print(f"{count}, {len(todo)} to run, {at_a_time}; logs in {project.build.name}/logs/", flush=True)
    started = time.monotonic()
    done = subprocess.run(_snakemake(project, todo, jobs, profile), env=_environment(), check=False, cwd=project.root)
    failed = [wanted for wanted in missing(project, todo) if not shared.fetch(project, wanted)]
    print(f"{len(todo) - len(failed)} of {len(todo)} examples ran in {time.monotonic() - started:.0f} s", flush=True)
    for wanted in failed:
        print(f"failed: {wanted.slug}, see {project.build.name}/logs/{wanted.slug}.log", file=sys.stderr)
    return 1 if failed or done.returncode else 0


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
    outputs = [wanted.record(project).relative_to(project.root).as_posix() for wanted in todo]
    return [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), *where, *options, "--", *outputs]


def _environment() -> dict[str, str]:
    """Jobs find this package, wherever the project lies."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def execute(project: Project, slug: str, key: str) -> int:
    """Run one example into its folder; what it prints goes to a log, its last lines into a mark if it fails."""
    if slug not in example_slugs(project) or not KEY.fullmatch(key):
        print(f"no run {slug} {key}", file=sys.stderr)
        return 1
    preset, device, _ = key.split("-", 2)
    wanted = Target(slug, preset, device, key)
    marks = project.runs / slug
    if shared.fetch(project, wanted):
        _forget_old(marks, key)
        print(f"  {slug}: from the run cache", flush=True)
        return 0
    aside = shared.aside_of(wanted.folder(project))
    aside.mkdir(parents=True)
    _write_json(
        marks / "running.json", {"key": key, "host": platform.node(), "pid": os.getpid(), "started": time.time()}
    )
    print(f"  {slug}: running ({preset}, {device})", flush=True)
    started = time.monotonic()
    try:
        error = _run_script(project, wanted, aside)
        error = error or ([] if parse_record(aside / "record.json") else ["it ended without a complete record.json"])
        if not error:
            seal(aside)
            shared.land(aside, wanted.folder(project))
    finally:
        (marks / "running.json").unlink(missing_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
    seconds = time.monotonic() - started
    if error:
        _write_json(marks / "failed.json", {"key": key, "error": error, "seconds": seconds})
        print(f"  {slug}: FAILED after {seconds:.0f} s: {error[-1]}", file=sys.stderr, flush=True)
        return 1
    (marks / "failed.json").unlink(missing_ok=True)
    shared.put(project, wanted)
    _forget_old(marks, key)
    print(f"  {slug}: done in {seconds:.0f} s", flush=True)
    return 0


def _run_script(project: Project, wanted: Target, out: Path) -> list[str]:
    """The last lines of the error, empty if there is none."""
    log = project.build / "logs" / f"{wanted.slug}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    limit = time_limit(wanted.preset)
    arguments = ["--preset", wanted.preset, "--device", wanted.device, "--out", str(out)]
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, str(project.examples / f"{wanted.slug}.py"), *arguments],
            stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=project.root, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "MPLBACKEND": "agg"},
        )  # fmt: skip
        code = _wait(process, limit)
    if code == 0:
        return []
    lines = [line for line in log.read_text("utf-8", errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    reason = f"stopped at the time limit of {limit:.0f} s" if code is None else f"exit status {code}"
    return [*lines[-ERROR_LINES:], reason]


def _wait(process: subprocess.Popen[bytes], limit: float) -> int | None:
    """The exit status, or None if the limit came first; the script's whole process group ends with it."""
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _forget_old(marks: Path, key: str) -> None:
    """Keep the newest few runs of an example, the one just made among them, and those that are still under way."""
    folders = sorted((path for path in marks.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    dead = time.time() - max(map(time_limit, SECONDS_LIMIT))
    under_way = {path for path in folders if path.name.startswith(".") and path.stat().st_mtime > dead}
    for path in [path for path in folders if path.name != key and path not in under_way][: -(KEPT_RUNS - 1)]:
        shutil.rmtree(path, ignore_errors=True)


def _write_json(path: Path, value: object) -> None:
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # another machine may be at the same run
    part.write_text(json.dumps(value), "utf-8")
    part.replace(path)


if __name__ == "__main__":  # one job, called by the Snakefile
    sys.exit(told(lambda: execute(Project(Path.cwd()), *sys.argv[1:])))
