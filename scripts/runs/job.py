"""One job: an example run into its folder with a time limit and a log; the outcome lands whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

from scripts.files import alone, printable, write
from scripts.machine import UTF_8, speak_plainly, told
from scripts.project import Project
from scripts.runs import cache, process
from scripts.runs.record import parse_record, read_record, seal
from scripts.runs.state import KEY, SECONDS_LIMIT, Target, example_slugs

ERROR_LINES = 12

LINE_LENGTH = 400
"""Letters of a line of an error that are kept."""

KEPT_RUNS = 3


def time_limit(preset: str) -> float:
    """Seconds after which a run is stopped."""
    return float(os.environ.get("EXAMPLE_SECONDS_LIMIT") or SECONDS_LIMIT[preset])


def execute(project: Project, slug: str, key: str) -> int:
    """Run one example into its folder; what it prints goes to a log, its last lines into a mark if it fails."""
    if slug not in example_slugs(project) or not KEY.fullmatch(key):
        print(f"no run {slug} {key}", file=sys.stderr)
        return 1
    preset, device, _ = key.split("-", 2)
    wanted = Target(slug, preset, device, key)
    marks = project.runs / slug
    marks.mkdir(parents=True, exist_ok=True)
    with alone(marks, lambda: _say(f"  {slug}: another command runs it; this one waits")):
        if read_record(wanted.record(project)) is not None:
            _say(f"  {slug}: ran meanwhile")
            return 0
        return _execute(project, wanted)


def _execute(project: Project, wanted: Target) -> int:
    slug, key, marks = wanted.slug, wanted.key, project.runs / wanted.slug
    if cache.fetch(project, wanted):
        _forget_old(marks, key)
        _say(f"  {slug}: from the run cache")
        return 0
    aside = cache.aside_of(wanted.folder(project))
    started = time.monotonic()
    try:
        aside.mkdir(parents=True)
        _mark(marks / "running.json", key=key, host=platform.node(), pid=os.getpid(), started=time.time())
        _say(f"  {slug}: running ({wanted.preset}, {wanted.device})")
        error = _run_script(project, wanted, aside)
        error = error or ([] if parse_record(aside / "record.json") else ["it ended without a complete record.json"])
        if not error:
            seal(aside)
            cache.land(aside, wanted.folder(project))
    finally:
        (marks / "running.json").unlink(missing_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
    seconds = time.monotonic() - started
    if error:
        _mark(marks / "failed.json", key=key, error=error, seconds=seconds)
        _say(f"  {slug}: FAILED after {seconds:.0f} s: {error[-1]}", sys.stderr)
        return 1
    (marks / "failed.json").unlink(missing_ok=True)
    cache.put(project, wanted)
    _forget_old(marks, key)
    _say(f"  {slug}: done in {seconds:.0f} s")
    return 0


def _say(line: str, to: TextIO | None = None) -> None:
    """Tell how it goes; a run is not lost because nobody listens any more, as under `| head`."""
    stream = to or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run_script(project: Project, wanted: Target, out: Path) -> list[str]:
    """The last lines of the error, empty if there is none."""
    log = project.build / "logs" / f"{wanted.slug}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    limit = time_limit(wanted.preset)
    arguments = ["--preset", wanted.preset, "--device", wanted.device, "--out", str(out)]
    arguments += ["--claims"] if project.claims_of(wanted.slug).is_file() else []
    threads = {"OMP_NUM_THREADS": "1"} if wanted.device == "cpu" else {}  # as many runs at a time as there are cores
    with log.open("w", encoding="utf-8") as stream:
        code = process.run(
            [sys.executable, str(project.examples / f"{wanted.slug}.py"), *arguments],
            {**os.environ, **UTF_8, **threads, "PYTHONUNBUFFERED": "1", "MPLBACKEND": "agg"}, limit,
            stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=project.root,
        )  # fmt: skip
    if code == 0:
        return []
    reason = f"stopped at the time limit of {limit:.0f} s" if code is None else f"exit status {code}"
    return [*_last_lines(log), reason]


def _last_lines(log: Path) -> list[str]:
    """The end of a log, as it may stand on a page, of bounded length whatever was printed."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - ERROR_LINES * LINE_LENGTH * 8))
        text = printable(stream.read().decode("utf-8", errors="replace"))
    lines = [
        line if len(line) <= LINE_LENGTH else f"{line[:LINE_LENGTH]} ..." for line in text.split("\n") if line.strip()
    ]
    return lines[-ERROR_LINES:]


def _forget_old(marks: Path, key: str) -> None:
    """Keep the newest few runs of an example, the one just made among them, and those that are still under way."""
    folders = sorted((path for path in marks.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    dead = time.time() - max(map(time_limit, SECONDS_LIMIT))
    under_way = {path for path in folders if path.name.startswith(".") and path.stat().st_mtime > dead}
    for path in [path for path in folders if path.name != key and path not in under_way][: -(KEPT_RUNS - 1)]:
        shutil.rmtree(path, ignore_errors=True)


def _mark(path: Path, **content: object) -> None:
    write(path, json.dumps(content).encode())


if __name__ == "__main__":  # one job, called by the Snakefile
    speak_plainly()
    process.end_on_signals()
    sys.exit(told(lambda: execute(Project(Path.cwd()), *sys.argv[1:])))
