"""Commands that are killed on their way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from conftest import ROOT

from scripts.project import Project
from scripts.runs import job, schedule


def run_examples(project: Project) -> None:
    """As `python -m scripts run` does, without the seconds that Snakemake takes to start."""
    for wanted in schedule.missing(project, schedule.wanted_targets(project, ["alpha", "beta"], None, "cpu")):
        assert job.execute(project, wanted.slug, wanted.key) == 0


def start(project: Project, module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A command of this project in a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=project.root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def kill_after(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Kill a command with all that it started."""
    time.sleep(seconds)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
