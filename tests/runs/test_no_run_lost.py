"""A run that fails, is killed or finds the disk full takes nothing away, and one that was damaged is made again."""

from __future__ import annotations

import errno
import json
import os
import random
import runpy
import sys

import pytest
from conftest import ROOT, edit, snapshot
from killing import kill_after, run_examples, start

from scripts.project import Project
from scripts.runs import cache, schedule
from scripts.runs.record import SUMS
from scripts.runs.state import states


@pytest.mark.slow
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


def test_a_full_disk_is_told_by_a_job_too(
    tiny: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "record.json")

    monkeypatch.chdir(tiny.root)
    monkeypatch.setattr(cache, "fetch", full)
    monkeypatch.setattr(sys, "argv", ["job", "alpha", "quick-cpu-0123456789ab"])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(ROOT / "scripts/runs/job.py"), run_name="__main__")
    assert "record.json: No space left on device. The disk is full: make room" in capsys.readouterr().err
