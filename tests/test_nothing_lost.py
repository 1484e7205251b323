"""A build that fails, is killed or finds the disk full leaves the last good site and the finished runs whole."""

from __future__ import annotations

import errno
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Command, edit

from scripts.project import Project
from scripts.runs import cache, job, schedule
from scripts.runs.record import SUMS
from scripts.runs.state import states
from scripts.site.build import recover

KILLS = 20


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(project: Project, module: str, *arguments: str) -> subprocess.Popen[bytes]:
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


def run_examples(project: Project) -> None:
    """As `python -m scripts run` does, without the seconds that Snakemake takes to start."""
    for wanted in schedule.missing(project, schedule.wanted_targets(project, ["alpha", "beta"], None, "cpu")):
        assert job.execute(project, wanted.slug, wanted.key) == 0


def two_versions(project: Project) -> list[str]:
    text = (project.cards / "beta.yml").read_text("utf-8")
    return [text, text.replace("It has more weights.", "It has far more weights.")]


def test_a_build_killed_at_any_of_twenty_moments_leaves_a_whole_site_and_all_runs(
    tiny: Project, command: Command
) -> None:
    run_examples(tiny)
    versions = two_versions(tiny)
    whole = []
    for text in versions:
        (tiny.cards / "beta.yml").write_text(text)
        started = time.monotonic()
        assert command("build").returncode == 0
        duration = time.monotonic() - started
        whole.append(snapshot(tiny.site))
    finished = snapshot(tiny.runs)
    moments = random.Random(0)
    for i in range(KILLS):
        (tiny.cards / "beta.yml").write_text(versions[i % 2])
        kill_after(start(tiny, "scripts", "build"), moments.uniform(0.05, 1.3 * duration))
        recover(tiny)  # what the next build does first
        assert snapshot(tiny.site) in whole, f"kill {i}"
        assert snapshot(tiny.runs) == finished
    assert command("build").returncode == 0
    assert snapshot(tiny.site) == whole[(KILLS - 1) % 2]


def test_a_run_killed_on_its_way_leaves_the_finished_runs_and_is_made_again(tiny: Project) -> None:
    run_examples(tiny)
    finished = snapshot(tiny.runs)
    edit(
        tiny.examples / "lab/record.py",
        '    (out / "record.json")',
        '    import time; time.sleep(0.3)\n    (out / "record.json")',
    )
    keys = [wanted.key for wanted in schedule.wanted_targets(tiny, ["alpha", "beta"], None, "cpu")]
    moments = random.Random(1)
    for _ in range(6):
        kill_after(start(tiny, "scripts.runs.job", "alpha", keys[0]), moments.uniform(0.2, 1.0))
        now = snapshot(tiny.runs)
        assert {name: now.get(name) for name in finished} == finished
        assert states(tiny)["alpha"].status in ("not run", "ok")
        assert states(tiny)["alpha"].record is not None
    run_examples(tiny)
    assert {run.status for run in states(tiny).values()} == {"ok"}


def test_a_kill_between_the_two_renames_is_recovered_by_the_next_build(
    tiny: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("build")
    first = snapshot(tiny.site)
    edit(tiny.cards / "beta.yml", "It has more weights.", "It has far more weights.")
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "site.new":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            command("build")
    assert not tiny.site.exists()
    recover(tiny)
    assert snapshot(tiny.site) == first
    assert "is built" in command("build").stdout
    assert snapshot(tiny.site) != first


@pytest.mark.parametrize("damage", ["cut", "edited", "figure edited", "figure gone", "sums gone", "sums edited"])
def test_a_run_that_was_cut_off_or_edited_is_seen_and_made_again(damage: str, tiny: Project) -> None:
    run_examples(tiny)
    folder = schedule.wanted_targets(tiny, ["alpha"], None, "cpu")[0].folder(tiny)
    record, figure, sums = folder / "record.json", folder / "figures/margin.dark.svg", folder / SUMS
    before = json.loads(record.read_text())["results"]
    match damage:
        case "cut":
            record.write_text(record.read_text()[:100])
        case "edited":
            record.write_text(record.read_text().replace("-1.0", "9.0", 1))
        case "figure edited":
            figure.write_text(figure.read_text() + " ")
        case "figure gone":
            figure.unlink()
        case "sums gone":
            sums.unlink()
        case _:
            sums.write_text(sums.read_text().replace("a", "b"))
    assert states(tiny)["alpha"].status == "not run"
    run_examples(tiny)
    assert states(tiny)["alpha"].status == "ok"
    assert json.loads(record.read_text())["results"] == before


def test_a_full_disk_is_told_and_takes_nothing_away(
    tiny: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("build")
    before = snapshot(tiny.site)
    edit(tiny.cards / "beta.yml", "It has more weights.", "It has far more weights.")

    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        done = command("build")
    assert done.returncode == 1
    assert "No space left on device. The disk is full: make room and run the command again." in done.stderr
    assert snapshot(tiny.site) == before
    assert list(tiny.docs.rglob("*.part")) == []
    assert "is built" in command("build").stdout


def test_a_full_disk_is_told_by_a_job_too(
    tiny: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "record.json")

    monkeypatch.chdir(tiny.root)
    monkeypatch.setattr(cache, "fetch", full)
    monkeypatch.setattr(sys, "argv", ["job", "alpha", "quick-cpu-0123456789ab"])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(ROOT / "scripts" / "runs" / "job.py"), run_name="__main__")
    assert "record.json: No space left on device. The disk is full: make room" in capsys.readouterr().err


def test_a_disk_that_is_really_full_is_told(tiny: Project, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        project = Project(small / "tiny")
        shutil.copytree(tiny.root, project.root)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "scripts", "build"],
            cwd=project.root, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "The disk is full: make room and run the command again." in done.stderr
        assert "Traceback" not in done.stderr
        assert not project.site.exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)
