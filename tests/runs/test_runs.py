"""Runs: exactly the examples whose inputs changed run again, and a failure takes nothing good away."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from conftest import Command, edit

from scripts.fingerprint import local_imports
from scripts.project import Project
from scripts.runs import job, schedule
from scripts.runs.record import seal
from scripts.runs.state import example_slugs, last_good, state, states, target
from scripts.site.gather import gather
from scripts.site.render import render


def keys(project: Project, preset: str = "quick", device: str = "cpu") -> dict[str, str]:
    return {slug: target(project, slug, preset, device).key for slug in example_slugs(project)}


def test_imports_are_followed_through_modules_and_packages(tiny: Project) -> None:
    (tiny.examples / "lab/extra.py").write_text("from .deep import x\n")
    (tiny.examples / "lab/deep.py").write_text("import json\n")
    found = local_imports(tiny, tiny.examples / "beta.py", tiny.examples)
    names = sorted(path.relative_to(tiny.examples).as_posix() for path in found)
    assert names == ["lab/__init__.py", "lab/deep.py", "lab/extra.py", "lab/record.py"]


def test_an_example_that_builds_on_another_one_depends_on_it(tiny: Project) -> None:
    """Names with hyphens can only be imported as texts, which once were not followed."""
    (tiny.examples / "two-words.py").write_text(
        'from importlib import import_module\n\nalpha = import_module("alpha")\n'
    )
    (tiny.examples / "three-words-more.py").write_text(
        'import importlib\n\nfirst = importlib.import_module("two-words")\n'
    )
    found = local_imports(tiny, tiny.examples / "three-words-more.py", tiny.examples)
    assert {"alpha.py", "two-words.py"} <= {path.name for path in found}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {slug for slug in before if before[slug] != after[slug]}


def test_a_changed_script_makes_itself_stale_alone(tiny: Project) -> None:
    before = keys(tiny)
    edit(tiny.examples / "alpha.py", "It measures", "It still measures")
    assert changed(before, keys(tiny)) == {"alpha"}


def test_a_changed_helper_makes_those_stale_that_import_it(tiny: Project) -> None:
    before = keys(tiny)
    edit(tiny.examples / "lab/extra.py", "1.0", "1.5")
    assert changed(before, keys(tiny)) == {"beta"}
    before = keys(tiny)
    edit(tiny.examples / "lab/record.py", '"seconds": 0.1', '"seconds": 0.2')
    assert changed(before, keys(tiny)) == {"alpha", "beta"}


def test_pins_device_and_preset_make_all_stale_but_comments_of_pins_do_not(tiny: Project) -> None:
    before = keys(tiny)
    (tiny.root / "requirements-run.txt").write_text("torch==1\n")
    pinned = keys(tiny)
    assert changed(before, pinned) == {"alpha", "beta"}
    (tiny.root / "requirements-run.txt").write_text("# a comment\n\ntorch==1\n")
    assert keys(tiny) == pinned
    assert changed(pinned, keys(tiny, device="cuda")) == {"alpha", "beta"}
    assert changed(pinned, keys(tiny, preset="full")) == {"alpha", "beta"}


@pytest.mark.slow
def test_only_what_is_stale_runs_again(tiny: Project, command: Command) -> None:
    first = command("run")
    assert first.returncode == 0
    assert first.stdout.count("done in") == 2
    assert "2 examples, all up to date" in command("run").stdout
    edit(tiny.examples / "lab/extra.py", "1.0", "1.5")
    again = command("run")
    assert "beta: done" in again.stdout
    assert "alpha" not in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize("slug", ["alpha", "beta"])
def test_what_has_the_most_experiments_runs_first(slug: str, tiny: Project, command: Command) -> None:
    """So that no long example is left for the end, alone."""
    claims = tiny.claims_of(slug)
    claims.parent.mkdir()
    claims.write_text("# an experiment\n" * 20, "utf-8")
    done = command("run", "--jobs", "1")
    (first, *_) = [line for line in done.stdout.splitlines() if "running" in line]
    assert f"{slug}: running" in first


@pytest.mark.slow
def test_going_back_to_an_earlier_version_needs_no_run(tiny: Project, command: Command) -> None:
    command("run")
    edit(tiny.examples / "lab/extra.py", "1.0", "1.5")
    command("run")
    edit(tiny.examples / "lab/extra.py", "1.5", "1.0")
    assert "all up to date" in command("run").stdout


@pytest.mark.slow
def test_a_failed_example_keeps_its_last_good_figures_and_does_not_stop_the_others(
    tiny: Project, command: Command
) -> None:
    command("run")
    edit(tiny.examples / "alpha.py", "    write(", '    raise RuntimeError("the oven is cold")\n    write(')
    edit(tiny.examples / "lab/extra.py", "1.0", "1.5")
    done = command("run")
    assert done.returncode == 1
    assert "beta: done" in done.stdout
    assert "failed: alpha, see build/logs/alpha.log" in done.stderr
    run = states(tiny)["alpha"]
    assert (run.status, run.record is not None) == ("failed", True)
    assert "RuntimeError: the oven is cold" in run.error
    assert command("build").returncode == 0
    page = (tiny.docs / "models/alpha.md").read_text("utf-8")
    assert "The latest run of this example failed." in page
    assert "the oven is cold" in page
    assert "margin.light.svg" in page
    api = json.loads((tiny.site / "api/models/alpha.json").read_text("utf-8"))
    assert api["example"]["status"] == "failed"


@pytest.mark.slow
def test_a_repaired_example_is_no_longer_marked(tiny: Project, command: Command) -> None:
    edit(tiny.examples / "alpha.py", "    write(", "    1 / 0\n    write(")
    assert command("run").returncode == 1
    edit(tiny.examples / "alpha.py", "    1 / 0\n", "")
    assert command("run").returncode == 0
    assert states(tiny)["alpha"].status == "ok"


@pytest.mark.slow
def test_an_example_that_hangs_is_stopped_at_the_time_limit(
    tiny: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(tiny.examples / "alpha.py", "    write(", "    import time; time.sleep(24 * 3600)\n    write(")
    monkeypatch.setenv("EXAMPLE_SECONDS_LIMIT", "2")
    assert command("run", "alpha").returncode == 1
    assert states(tiny)["alpha"].error[-1] == "stopped at the time limit of 2 s"


@pytest.mark.slow
def test_a_run_without_a_record_counts_as_failed(tiny: Project, command: Command) -> None:
    edit(tiny.examples / "alpha.py", '    write("alpha"', '    return\n    write("alpha"')
    assert command("run", "alpha").returncode == 1
    assert states(tiny)["alpha"].error == ("it ended without a complete record.json",)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "lacking", "figure"])
def test_a_damaged_record_is_made_again(damage: str, tiny: Project, command: Command) -> None:
    command("run")
    path = schedule.wanted_targets(tiny, ["alpha"], None, "cpu")[0].record(tiny)
    if damage == "cut":
        path.write_text(path.read_text()[:100])
    elif damage == "lacking":
        path.write_text("{}")
    else:
        (path.parent / "figures/margin.dark.svg").unlink()
    assert states(tiny)["alpha"].status == "not run"
    assert "alpha: done" in command("run").stdout
    assert states(tiny)["alpha"].status == "ok"


def test_an_unknown_example_is_named_with_those_there_are(command: Command) -> None:
    done = command("run", "gamma")
    assert (done.returncode, done.stderr) == (1, "no example gamma; there are alpha, beta\n")


def test_old_runs_are_forgotten_but_the_newest_few(tiny: Project) -> None:
    for i in range(job.KEPT_RUNS + 2):
        edit(tiny.examples / "lab/extra.py", f"{1 + i}.0, 2.0", f"{2 + i}.0, 2.0")
        wanted = target(tiny, "beta", "quick", "cpu")
        assert job.execute(tiny, wanted.slug, wanted.key) == 0
    folders = [path for path in (tiny.runs / "beta").iterdir() if path.is_dir()]
    assert len(folders) == job.KEPT_RUNS
    assert wanted.folder(tiny) in folders


def test_of_the_good_runs_that_started_last_counts_whatever_the_dates_of_the_files_are(tiny: Project) -> None:
    for day in (2, 1):
        edit(tiny.examples / "lab/extra.py", f"VALUES = [{3 - day}.0", f"VALUES = [{4 - day}.0")
        wanted = target(tiny, "beta", "quick", "cpu")
        assert job.execute(tiny, wanted.slug, wanted.key) == 0
        edit(wanted.record(tiny), "2026-01-01", f"2026-01-0{day}")
        seal(wanted.folder(tiny))
    found = last_good(tiny, "beta")
    assert found is not None
    assert found[0].started.startswith("2026-01-02")


def test_a_run_that_is_under_way_is_told_apart_from_one_that_was_killed(tiny: Project) -> None:
    wanted = target(tiny, "alpha", "quick", "cpu")
    mark = tiny.runs / "alpha/running.json"
    mark.parent.mkdir(parents=True)
    mark.write_text(json.dumps({"key": wanted.key, "pid": os.getpid()}))
    assert state(tiny, wanted).status == "running"
    mark.write_text(json.dumps({"key": wanted.key, "pid": 2**22 + 1}))
    assert state(tiny, wanted, queued=True).status == "queued"
    elsewhere = {"key": wanted.key, "pid": 2**22 + 1, "host": "another machine"}
    mark.write_text(json.dumps(elsewhere | {"started": time.time() - 60}))
    assert state(tiny, wanted).status == "running"
    mark.write_text(json.dumps(elsewhere | {"started": time.time() - 7 * 24 * 3600}))
    assert state(tiny, wanted).status == "not run"


def test_the_page_of_a_queued_example_says_so(tiny: Project) -> None:
    render(tiny, gather(tiny, queued=True))
    assert "<strong>Queued.</strong> This page refreshes" in Path(tiny.docs / "models/alpha.md").read_text("utf-8")
