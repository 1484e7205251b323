"""Running the examples: Snakemake decides on jobs, each job is one `execute` with a time limit and a log.

The outcome lands whole or not at all: a run writes into a folder aside, which is renamed when its record is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

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


def wanted_targets(project: Project, slugs: Sequence[str], preset: str | None, device: str) -> list[Target]:
    """The runs that are wanted for these examples, up to date or not."""
    device = device_class(device)
    return [target(project, slug, preset or default_preset(device), device) for slug in slugs]


def missing(project: Project, targets: Sequence[Target]) -> list[Target]:
    """Those targets without a complete record."""
    return [wanted for wanted in targets if read_record(wanted.record(project)) is None]


def run_all(project: Project, targets: Sequence[Target], jobs: int) -> int:
    """Run what is missing, `jobs` at a time; 1 if one of them failed (the others are run all the same)."""
    todo = missing(project, targets)
    if not todo:
        print(f"{len(targets)} examples, all up to date")
        return 0
    print(
        f"{len(targets)} examples, {len(todo)} to run, {jobs} at a time; logs in {project.build.name}/logs/", flush=True
    )
    for wanted in todo:  # a record that cannot be read is no output: Snakemake would take it for one
        wanted.record(project).unlink(missing_ok=True)
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(Path(__file__).with_name("Snakefile"))]
    options = [
        "--directory",
        str(project.root),
        "--cores",
        str(jobs),
        "--resources",
        "gpu=1",
        "--keep-going",
        "--nolock",
    ]
    quiet = ["--quiet", "all", "--rerun-triggers", "mtime", "--config", f"total={len(todo)}"]
    outputs = [str(wanted.record(project).relative_to(project.root)) for wanted in todo]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])),
    }
    started = time.monotonic()
    done = subprocess.run(
        [*snakemake, *options, *quiet, "--", *outputs], env=environment, check=False, cwd=project.root
    )
    failed = missing(project, todo)
    print(f"{len(todo) - len(failed)} of {len(todo)} examples ran in {time.monotonic() - started:.0f} s", flush=True)
    for wanted in failed:
        print(f"failed: {wanted.slug}, see {project.build.name}/logs/{wanted.slug}.log", file=sys.stderr)
    return 1 if failed or done.returncode else 0


def execute(project: Project, slug: str, key: str) -> int:
    """Run one example into its folder; what it prints goes to a log, its last lines into a mark if it fails."""
    if slug not in example_slugs(project) or not KEY.fullmatch(key):
        print(f"no run {slug} {key}", file=sys.stderr)
        return 1
    preset, device, _ = key.split("-", 2)
    wanted = Target(slug, preset, device, key)
    marks = project.runs / slug
    aside = marks / f".{key}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _write_json(marks / "running.json", {"key": key, "pid": os.getpid(), "started": time.time()})
    print(f"  {slug}: running ({preset}, {device})", flush=True)
    started = time.monotonic()
    try:
        error = _run_script(project, wanted, aside)
        error = error or ([] if parse_record(aside / "record.json") else ["it ended without a complete record.json"])
        if not error:
            seal(aside)
            shutil.rmtree(wanted.folder(project), ignore_errors=True)
            aside.rename(wanted.folder(project))
    finally:
        (marks / "running.json").unlink(missing_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
    seconds = time.monotonic() - started
    if error:
        _write_json(marks / "failed.json", {"key": key, "error": error, "seconds": seconds})
        print(f"  {slug}: FAILED after {seconds:.0f} s: {error[-1]}", file=sys.stderr, flush=True)
        return 1
    (marks / "failed.json").unlink(missing_ok=True)
    _forget_old(marks, key)
    print(f"  {slug}: done in {seconds:.0f} s", flush=True)
    return 0


def _run_script(project: Project, wanted: Target, out: Path) -> list[str]:
    """The last lines of the error, empty if there is none."""
    log = project.build / "logs" / f"{wanted.slug}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    limit = float(os.environ.get("EXAMPLE_SECONDS_LIMIT") or SECONDS_LIMIT[wanted.preset])
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
    """Keep the newest few runs of an example, the one just made among them."""
    runs = sorted((path for path in marks.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for path in [path for path in runs if path.name != key][: -(KEPT_RUNS - 1)]:
        shutil.rmtree(path, ignore_errors=True)


def _write_json(path: Path, value: object) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value), "utf-8")
    part.replace(path)
