"""Work spread over the cores gives what it gives one after the other."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from scripts import machine
from scripts.benchmarks.projects import with_cards
from scripts.machine import ENOUGH, FEWEST, call_all
from scripts.project import Project
from scripts.site.gather import gather
from scripts.site.render import render

forks = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks safely")


def test_results_come_in_the_order_of_the_calls() -> None:
    calls = [functools.partial(pow, number, 2) for number in range(1_000)]
    assert call_all(calls, 2) == call_all(calls, 1) == [number**2 for number in range(1_000)]


@forks
def test_many_calls_are_made_in_other_processes_and_few_in_this_one() -> None:
    assert os.getpid() not in call_all([os.getpid] * FEWEST, 2)
    assert set(call_all([os.getpid] * (FEWEST - 1), 2)) == {os.getpid()}
    assert set(call_all([os.getpid] * FEWEST, 1)) == {os.getpid()}


@forks
def test_a_machine_of_many_cores_starts_no_process_for_a_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def pool(jobs: int, *settings: Any) -> ProcessPoolExecutor:
        asked.append(jobs)
        return ProcessPoolExecutor(jobs, *settings)

    monkeypatch.setattr(machine, "ProcessPoolExecutor", pool)
    assert call_all([functools.partial(pow, number, 2) for number in range(40)], 64) == [n**2 for n in range(40)]
    assert asked == [40 // ENOUGH]


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_a_call_is_raised_here_with_its_number_and_file(jobs: int, tmp_path: Path) -> None:
    calls = [*[os.getpid] * FEWEST, functools.partial(os.rmdir, tmp_path / "missing")]
    with pytest.raises(FileNotFoundError) as error:
        call_all(calls, jobs)
    assert (error.value.errno, str(error.value.filename)) == (errno.ENOENT, str(tmp_path / "missing"))


@pytest.mark.slow
def test_a_site_rendered_by_two_processes_has_the_same_bytes_as_by_one(tmp_path: Path) -> None:
    texts = []
    for jobs in (1, 2):
        with_cards(tmp_path / "project", ROOT, FEWEST)
        project = Project(tmp_path / "project")
        render(project, gather(project, jobs=jobs), jobs)
        files = [path for path in project.docs.rglob("*") if path.is_file()]
        texts.append({path.relative_to(project.docs): path.read_bytes() for path in files})
        assert render(project, gather(project, jobs=jobs), jobs) == 0
        shutil.rmtree(project.root)
    assert len(texts[0]) > FEWEST
    assert texts[0] == texts[1]


@forks
def test_no_process_outlives_the_command_that_is_killed(tmp_path: Path) -> None:
    notes = tmp_path / "pids"
    code = f"""
import os, time
from scripts.machine import call_all
def note():
    with open({str(notes)!r}, "a") as file:
        file.write(f"{{os.getpid()}}\\n")
    time.sleep(60)
call_all([note] * {FEWEST}, 2)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as command:
        wait_until(lambda: notes.is_file() and notes.read_text().count("\n") == 2)
        command.kill()
    wait_until(lambda: not any(is_running(pid) for pid in notes.read_text().split()))


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text() != ""  # of one that ended and was not waited for, it is empty
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
