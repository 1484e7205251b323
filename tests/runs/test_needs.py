"""What `full` needs of a GPU: measured once one ran it, until then arithmetic over a counted step."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from made import record, result

from scripts.project import Project
from scripts.runs.needs import Needs, Rehearsal, needs_of, path_of, read_all
from scripts.runs.record import Training
from scripts.runs.state import example_slugs

ROOT = Path(__file__).parents[2]
STEP = Rehearsal(seeds=5, seconds=12, steps=1000, kernels=2000, gflop=60, memory_gb=3.5)
TRAININGS = (Training(100, 500, 0.2), Training(100, 500, 0.2), Training(50, 1000, 0.4))
RUN = replace(record({"gain": result(1.0, 2.0, 3.0)}), trainings=TRAININGS)


def test_all_trainings_grow_as_the_first_grows_to_the_size_of_full_and_each_seed_has_its_data() -> None:
    needs = needs_of(RUN, STEP)
    assert needs is not None
    kernels = (100 * 500 + 100 * 500 + 50 * 1000) * (1000 / 100) * (2000 / 500) * (5 / 3)
    assert needs.minutes == -(-(5 * 12 + kernels * 10e-6) // 60) == 3
    assert (needs.memory_gb, needs.card) == (3.5, "one GPU")
    assert needs.rests_on.startswith("4,167 training steps, 10 million kernels of 10 µs, 300 TFLOP at 30 TFLOP/s")


def test_it_takes_as_long_as_what_is_slower_the_kernels_or_the_products() -> None:
    heavy = needs_of(RUN, replace(STEP, gflop=6000))
    assert heavy is not None
    gflop = (100 * 0.2 + 100 * 0.2 + 50 * 0.4) * (1000 / 100) * (6000 / 0.2) * (5 / 3)
    assert heavy.minutes == -(-(5 * 12 + gflop / 30_000) // 60) == 18


def test_where_nothing_is_trained_it_is_the_time_of_the_whole_run() -> None:
    needs = needs_of(replace(RUN, trainings=()), Rehearsal(1, 70, 0, 0, 0, 2.0))
    assert needs == Needs(2.0, 2, "one GPU", "70 s on a CPU: nothing is trained")


@pytest.mark.parametrize(("run", "step"), [(None, STEP), (RUN, None), (replace(RUN, trainings=()), STEP)])
def test_nothing_is_said_where_a_run_or_a_rehearsal_is_missing(run, step) -> None:  # type: ignore[no-untyped-def]
    assert needs_of(run, step) is None


def test_what_a_gpu_needed_goes_before_any_estimate() -> None:
    measured = replace(RUN, needed={"memory_gb": 2.3, "minutes": 7, "card": "a card"})
    assert needs_of(measured, STEP) == Needs(2.3, 7, "a card")


def test_every_example_was_rehearsed_and_none_that_is_gone() -> None:
    assert sorted(read_all(Project(ROOT))) == example_slugs(Project(ROOT))


def test_rehearsals_are_read_as_they_were_written(tmp_path: Path) -> None:
    project = Project(tmp_path)
    assert read_all(project) == {}
    path_of(project).parent.mkdir(parents=True)
    path_of(project).write_text(json.dumps({"unet": asdict(STEP)}), "utf-8")
    assert read_all(project) == {"unet": STEP}
