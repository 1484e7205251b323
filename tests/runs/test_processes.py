"""What an example starts ends with it, and an example ends with the command that runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, edit, heed_signals

from scripts.project import Project
from scripts.runs import job, process
from scripts.runs.state import Target, states, target

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are known by their marks on Linux only")

SLEEPER = "import time; time.sleep(24 * 3600)"
LEAVES_BEHIND = f'''import subprocess, sys
    pids = [subprocess.Popen([sys.executable, "-c", "{SLEEPER}"], start_new_session=apart).pid for apart in (False, True)]
    open("pids.part", "w").write(" ".join(map(str, [*pids, __import__("os").getpid()])))
    __import__("os").rename("pids.part", "pids")
'''
"""It starts one process of its own group and one that leaves it, and writes down all three."""


def wait_until(condition: Callable[[], object], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def are_gone(project: Project) -> bool:
    def lives(pid: str) -> bool:
        try:
            return Path(f"/proc/{pid}/cmdline").read_text() != ""  # of one that was not waited for, it is empty
        except OSError:
            return False

    return not any(map(lives, (project.root / "pids").read_text().split()))


def leaving_behind(project: Project, then: str) -> Target:
    edit(project.examples / "alpha.py", "    write(", f"    {LEAVES_BEHIND}    {then}\n    write(")
    return target(project, "alpha", "quick", "cpu")


@pytest.mark.parametrize(("then", "code"), [("pass", 0), ("sys.exit(3)", 1)])
def test_what_an_example_leaves_behind_ends_with_it(then: str, code: int, tiny: Project) -> None:
    wanted = leaving_behind(tiny, then)
    assert job.execute(tiny, wanted.slug, wanted.key) == code
    assert are_gone(tiny)


def test_what_an_example_leaves_behind_ends_at_the_time_limit(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, wait = leaving_behind(tiny, SLEEPER), subprocess.Popen.wait

    def at_the_limit(running: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout is None:
            return wait(running)
        wait_until((tiny.root / "pids").exists)
        raise subprocess.TimeoutExpired("alpha", timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", at_the_limit)
    assert job.execute(tiny, wanted.slug, wanted.key) == 1
    assert are_gone(tiny)


def start(project: Project, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *command], cwd=project.root, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=heed_signals,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_job_that_is_told_to_end_takes_its_example_with_it(number: int, tiny: Project) -> None:
    wanted = leaving_behind(tiny, SLEEPER)
    with start(tiny, "scripts.runs.job", wanted.slug, wanted.key) as running:
        wait_until((tiny.root / "pids").exists)
        assert states(tiny)["alpha"].status == "running"
        os.killpg(running.pid, number)
    assert running.returncode != 0
    assert are_gone(tiny)
    assert states(tiny)["alpha"].status == "not run"
    assert list((tiny.runs / "alpha").iterdir()) == [], "nothing half-made is left"


def test_a_job_goes_on_when_the_terminal_closes_but_was_told_to_ignore_that(tiny: Project) -> None:
    edit(tiny.examples / "alpha.py", "    write(", '    open("pids", "w")\n    import time; time.sleep(1)\n    write(')
    wanted = target(tiny, "alpha", "quick", "cpu")
    command = [sys.executable, "-m", "scripts.runs.job", wanted.slug, wanted.key]
    with subprocess.Popen(
        ["nohup", *command], cwd=tiny.root, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    ) as running:  # fmt: skip
        wait_until((tiny.root / "pids").exists)
        os.killpg(running.pid, signal.SIGHUP)
    assert running.returncode == 0
    assert states(tiny)["alpha"].status == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["the command", "its group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_run_that_is_told_to_end_takes_scheduler_jobs_and_examples_with_it(
    number: int, whom: str, tiny: Project
) -> None:
    leaving_behind(tiny, SLEEPER)
    with start(tiny, "scripts", "run", "alpha", "--device", "cpu") as running:
        wait_until((tiny.root / "pids").exists)
        if whom == "its group":
            os.killpg(running.pid, number)
        else:
            running.send_signal(number)
    assert running.returncode != 0
    wait_until(lambda: are_gone(tiny))
    assert states(tiny)["alpha"].status == "not run"


def test_processes_of_others_are_left_alone(tiny: Project) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPER]) as other:
        assert process.run([sys.executable, "-c", "pass"], dict(os.environ), limit=300) == 0
        assert other.poll() is None
        other.kill()


def test_what_a_thread_waits_for_ends_with_the_whole_process(tiny: Project) -> None:
    code = f"""
import os, sys, threading, time
from pathlib import Path
from scripts.runs import process
note = "import os; open('pids.part', 'w').write(str(os.getpid())); os.rename('pids.part', 'pids'); {SLEEPER}"
command = [sys.executable, "-c", note]
threading.Thread(target=process.run, args=(command, dict(os.environ)), daemon=True).start()
while not Path("pids").exists():
    time.sleep(0.05)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tiny.root, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert are_gone(tiny)
