"""A build that fails, is killed or finds the disk full leaves the last good site and the finished runs whole."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Command, edit, snapshot
from killing import kill_after, run_examples, start

from scripts.project import Project
from scripts.site.build import recover

KILLS = 20


def two_versions(project: Project) -> list[str]:
    text = (project.cards / "beta.yml").read_text("utf-8")
    return [text, text.replace("It has more weights.", "It has far more weights.")]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
        shutil.copytree(tiny.root, project.root, ignore=shutil.ignore_patterns("kept"))
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
