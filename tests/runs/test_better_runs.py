"""Runs made elsewhere: of those that are up to date the better one counts, nothing that would replace it is run."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Command, edit

from scripts.project import Project
from scripts.runs import job, schedule
from scripts.runs.state import as_good, state, states, target


def made(project: Project, preset: str, device: str) -> None:
    """A run of alpha with this preset, as a machine with that device would have made it."""
    wanted = target(project, "alpha", preset, device)
    assert job.execute(project, wanted.slug, wanted.key) == 0


def test_a_run_of_a_larger_preset_or_a_faster_device_counts_and_all_are_listed(tiny: Project) -> None:
    made(tiny, "quick", "cpu")
    assert states(tiny, device="cpu")["alpha"].others == ()
    made(tiny, "full", "cuda")
    made(tiny, "quick", "mps")
    run = states(tiny, device="cpu")["alpha"]
    assert (run.status, run.record and run.record.preset) == ("ok", "full")
    assert run.folder == target(tiny, "alpha", "full", "cuda").folder(tiny)
    assert [record.preset for record in run.others] == ["quick", "quick"]


def test_a_run_of_a_smaller_preset_does_not_stand_for_the_wanted_one(tiny: Project) -> None:
    made(tiny, "quick", "cpu")
    run = state(tiny, target(tiny, "alpha", "full", "cuda"))
    assert (run.status, run.record and run.record.preset) == ("not run", "quick")


@pytest.mark.slow
def test_what_a_better_machine_ran_is_not_run_again_until_it_changes(tiny: Project, command: Command) -> None:
    made(tiny, "full", "cuda")
    done = command("run", "alpha", "--device", "cpu")
    assert "1 examples, all up to date" in done.stdout
    edit(tiny.examples / "alpha.py", "It measures", "It still measures")
    assert "alpha: done" in command("run", "alpha", "--device", "cpu").stdout
    run = states(tiny, device="cpu")["alpha"]
    assert (run.record and run.record.preset, run.others) == ("quick", ()), "the better one is of another version"


def test_a_better_run_is_taken_from_the_shared_cache(
    tiny: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("RUN_CACHE", str(tmp_path / "shared"))
    made(tiny, "full", "cuda")
    target(tiny, "alpha", "full", "cuda").folder(tiny).rename(tmp_path / "elsewhere")
    wanted = target(tiny, "alpha", "quick", "cpu")
    assert schedule.lacking(tiny, [wanted]) == [wanted]
    assert schedule.run_all(tiny, [wanted], 1) == 0
    assert not wanted.folder(tiny).exists()
    assert states(tiny, device="cpu")["alpha"].status == "ok"


@pytest.mark.slow
def test_the_page_names_the_other_runs(tiny: Project, command: Command) -> None:
    made(tiny, "quick", "cpu")
    made(tiny, "full", "cuda")
    assert command("render", "--device", "cpu").returncode == 0
    page = (tiny.docs / "examples/alpha.md").read_text("utf-8")
    assert "Shown are the figures of the preset full" in page
    assert "This version also ran as quick on" in page


def test_runs_are_ranked_by_preset_and_then_by_device(tiny: Project) -> None:
    ranked = as_good(tiny, target(tiny, "alpha", "quick", "mps"))
    assert [(each.preset, each.device) for each in ranked] == [
        ("full", "cuda"), ("full", "mps"), ("full", "cpu"), ("quick", "cuda"), ("quick", "mps"),
    ]  # fmt: skip
