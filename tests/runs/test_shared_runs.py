"""Machines share what is finished."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command, edit, snapshot

from scripts.project import Project
from scripts.runs import cache as shared
from scripts.runs import job, schedule
from scripts.runs.record import SUMS, seal
from scripts.runs.state import SECONDS_LIMIT, Target, state, target


def alpha(project: Project) -> Target:
    return target(project, "alpha", "quick", "cpu")


def run_alpha(project: Project) -> Target:
    wanted = alpha(project)
    assert job.execute(project, wanted.slug, wanted.key) == 0
    return wanted


def forget_runs(project: Project) -> None:
    shutil.rmtree(project.runs)


def no_script(*_: object) -> list[str]:
    pytest.fail("the script ran")


def test_a_run_of_another_machine_is_taken_and_its_script_does_not_run(
    tiny: Project, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Project(tmp_path / "other")
    shutil.copytree(tiny.root, other.root, symlinks=True)
    wanted = run_alpha(tiny)
    monkeypatch.setattr(job, "_run_script", no_script)
    run_alpha(other)
    assert snapshot(other.runs) == snapshot(tiny.runs) == snapshot(cache)
    assert state(other, wanted).status == "ok"


def test_runs_that_are_all_in_the_cache_need_no_scheduler(
    tiny: Project, cache: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slug in ("alpha", "beta"):
        assert job.execute(tiny, slug, target(tiny, slug, "quick", "cpu").key) == 0
    forget_runs(tiny)
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "_snakemake", no_script)
        done = command("run", "--device", "cpu")
    assert (done.returncode, done.stdout) == (0, "2 examples, 2 from the run cache, all up to date\n")
    assert command("run", "--device", "cpu").stdout == "2 examples, all up to date\n"


@pytest.mark.slow
def test_what_the_cache_lacks_is_run_and_put_there(tiny: Project, cache: Path, command: Command) -> None:
    run_alpha(tiny)
    forget_runs(tiny)
    done = command("run", "--device", "cpu", "--jobs", "1")
    assert done.returncode == 0
    assert "2 examples, 1 from the run cache, 1 to run, 1 at a time" in done.stdout
    assert sorted(path.name for path in cache.iterdir()) == ["alpha", "beta"]
    assert snapshot(cache / "beta") == snapshot(tiny.runs / "beta")


@pytest.mark.parametrize("damage", ["cut", "half", "figure edited", "sums gone", "empty"])
def test_a_damaged_run_in_the_cache_is_ignored_and_replaced(damage: str, tiny: Project, cache: Path) -> None:
    wanted = run_alpha(tiny)
    whole = snapshot(cache)
    folder = cache / "alpha" / wanted.key
    match damage:
        case "cut":
            (folder / "record.json").write_text((folder / "record.json").read_text()[:100])
        case "half":
            (folder / "record.json").unlink()
        case "figure edited":
            (folder / "figures/margin.dark.svg").write_text("<svg/>")
        case "sums gone":
            (folder / SUMS).unlink()
        case _:
            shutil.rmtree(folder)
            folder.mkdir()
    forget_runs(tiny)
    assert not shared.fetch(tiny, wanted)
    assert not wanted.folder(tiny).exists()
    run_alpha(tiny)
    assert snapshot(cache) == whole
    assert [path.name for path in (cache / "alpha").iterdir()] == [wanted.key]


def test_the_run_of_the_machine_that_was_first_stays(tiny: Project, cache: Path) -> None:
    wanted = run_alpha(tiny)
    record = cache / "alpha" / wanted.key / "record.json"
    before = record.stat()
    edit(wanted.record(tiny), '"seconds": 0.1', '"seconds": 0.7')
    seal(wanted.folder(tiny))
    shared.put(tiny, wanted)
    assert record.stat() == before
    shared.land(wanted.folder(tiny), cache / "alpha" / wanted.key)  # it came while this one was copied
    assert record.stat() == before


def test_machines_that_share_a_run_at_the_same_time_leave_one_whole_run(tiny: Project, cache: Path) -> None:
    wanted = run_alpha(tiny)
    for _ in range(5):
        (cache / "alpha" / wanted.key / "record.json").unlink(missing_ok=True)
        with concurrent.futures.ThreadPoolExecutor(8) as machines:
            list(machines.map(lambda _: shared.put(tiny, wanted), range(8)))
        assert [path.name for path in (cache / "alpha").iterdir()] == [wanted.key]
        assert snapshot(cache / "alpha") == snapshot(tiny.runs / "alpha")


def test_a_copy_that_breaks_off_leaves_nothing(
    tiny: Project, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = run_alpha(tiny)
    forget_runs(tiny)
    copy: Callable[[str, str], object] = shutil.copyfile

    def broken(source: str, to: str) -> object:
        if source.endswith("record.json"):
            raise OSError(5, "Input/output error")
        return copy(source, to)

    monkeypatch.setattr(shutil, "copyfile", broken)
    assert not shared.fetch(tiny, wanted)
    assert list((tiny.runs / "alpha").iterdir()) == []
    assert capfd.readouterr().err.startswith("warning: no runs are shared through ")


@pytest.mark.parametrize("trouble", ["not there", "a file", "not writable"])
def test_a_cache_that_cannot_be_used_costs_one_line_of_warning_and_no_run(
    trouble: str, tiny: Project, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    if trouble == "not writable":
        monkeypatch.setattr(shutil, "copytree", refused)  # root may write everywhere
    else:
        cache.rmdir()
    if trouble == "a file":
        cache.write_text("")
    wanted = run_alpha(tiny)
    assert state(tiny, wanted).status == "ok"
    reason = {
        "not there": "No such file or directory",
        "a file": "Not a directory",
        "not writable": "Permission denied",
    }
    assert capfd.readouterr().err == f"warning: no runs are shared through {cache}: {reason[trouble]}\n"
    assert not cache.is_dir() or snapshot(cache) == {}


def test_a_run_under_way_elsewhere_is_not_forgotten_with_the_old_ones(tiny: Project) -> None:
    under_way = tiny.runs / "alpha/.full-cuda-0123456789ab.part"
    dead = tiny.runs / "alpha/.full-cuda-ba9876543210.part"
    for folder in (under_way, dead):
        folder.mkdir(parents=True)
    long_ago = time.time() - 2 * SECONDS_LIMIT["full"]
    os.utime(dead, (long_ago, long_ago))
    for i in range(job.KEPT_RUNS + 1):
        edit(tiny.examples / "alpha.py", "It measures" + " " * i, "It measures" + " " * (i + 1))
        run_alpha(tiny)
    assert under_way.exists()
    assert not dead.exists()


def test_two_jobs_that_make_the_same_run_do_not_disturb_each_other(tiny: Project) -> None:
    edit(tiny.examples / "alpha.py", "    write(", "    import time; time.sleep(0.5)\n    write(")
    wanted = alpha(tiny)
    with concurrent.futures.ThreadPoolExecutor(3) as jobs:
        codes = list(jobs.map(lambda _: job.execute(tiny, wanted.slug, wanted.key), range(3)))
    assert codes == [0, 0, 0]
    assert state(tiny, wanted).status == "ok"
    assert [path.name for path in (tiny.runs / "alpha").iterdir()] == [wanted.key]
