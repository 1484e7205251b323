"""Experiments on claims: scores with floors, paired differences, and the same search for every arm."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from lab import study
from lab.figures import LIGHT, using
from lab.run import Run
from lab.study import Measure, Scores

OUTCOMES = {
    "a": [{"ap": 50.0, "boxes": 1.0}, {"ap": 40.0, "boxes": math.nan}, {"ap": 2.0, "boxes": 1.0}],
    "b": [{"ap": 30.0, "boxes": 3.0}, {"ap": 35.0, "boxes": 4.0}, {"ap": 33.0, "boxes": 5.0}],
}


def start(out: Path, *arguments: str) -> Run:
    return Run.start("unet", argv=["--device", "cpu", "--out", str(out), *arguments])


def scores() -> Scores:
    return Scores((0, 1, 2), OUTCOMES)


def test_every_arm_is_measured_with_every_seed(tmp_path: Path) -> None:
    found = study.measured(
        start(tmp_path, "--seed", "5"), ("a", "b"), lambda arm, seed: {"seen": seed + (arm == "b") / 2}
    )
    assert found.values("seen", "a") == [5, 6, 7]
    assert found.values("seen", "b") == [5.5, 6.5, 7.5]


def test_a_training_below_the_floor_counts_for_nothing_but_its_reason() -> None:
    found = scores()
    assert found.floor("AP", "ap", 10, ("a", "b")) == ("AP", 10)
    assert found.values("ap", "a")[:2] == [50, 40]
    assert math.isnan(found.values("ap", "a")[2])
    assert math.isnan(found.values("boxes", "a")[2])
    assert found.values("ap", "b") == [30, 35, 33]
    assert found.reasons("nothing found", "a") == {0: "nothing found", 1: "nothing found", 2: "a: AP is 2, below 10"}


def test_a_measure_that_is_not_a_number_is_below_any_floor() -> None:
    found = scores()
    found.floor("boxes", "boxes", 0, ("a",))
    assert set(found.failed["a"]) == {1}


def test_differences_are_paired_by_seed_and_undefined_where_one_of_the_two_is() -> None:
    found = scores()
    assert found.minus("ap", "a", "b") == [20, 5, -31]
    assert found.minus("boxes", "b", "a")[0] == 2
    assert math.isnan(found.minus("boxes", "b", "a")[1])


def test_the_record_holds_measures_and_differences_with_what_is_undefined(tmp_path: Path) -> None:
    run, found = start(tmp_path), scores()
    floor = found.floor("AP", "ap", 10, ("a", "b"))
    experiment = run.experiment("arms", question="q", data="d", floor=floor)
    study.record(experiment, found, {"boxes": Measure("Boxes", "", "nothing found")}, {"a": "the first"})
    study.difference(experiment, "gain", found, "ap", "a", "b", unit="points", meaning="m")
    record = json.loads(run.finish().read_text())
    boxes = record["results"]["boxes_a"]
    assert boxes["values"] == [1, None, None]
    assert boxes["failed"] == [{"seed": 1, "reason": "nothing found"}, {"seed": 2, "reason": "a: AP is 2, below 10"}]
    assert boxes["meaning"] == "Boxes: the first"
    assert record["results"]["gain"]["values"] == [20, 5, None]
    assert record["experiments"][0]["floor"] == {"what": "AP", "value": 10}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "unet.searches.json"
    monkeypatch.setattr(study, "_kept_at", lambda slug: path)
    return path


def peak(at: dict[str, float]):
    """A score that is best at a value of each arm."""
    return lambda arm, value, seed: -abs(math.log2(value / at[arm]))


def test_a_search_tries_the_same_values_for_every_arm_and_grows_past_its_edge(tmp_path: Path, kept: Path) -> None:
    run = start(tmp_path, "--search")
    assert study.search(run, "rate", ("a", "b"), (1, 2, 4), peak({"a": 2, "b": 8})) == {"a": 2, "b": 8}
    found = json.loads(kept.read_text())["rate"]
    assert found["arms"]["a"]["grid"] == found["arms"]["b"]["grid"] == [1, 2, 4, 8, 16]
    assert not found["arms"]["b"]["at_edge"]
    assert found["seeds"] == list(study.SEARCH_SEEDS)
    assert not set(study.SEARCH_SEEDS) & set(range(50)), "seeds of a search are not reported"


def test_a_best_value_at_the_edge_of_all_that_was_tried_is_said(tmp_path: Path, kept: Path) -> None:
    study.search(start(tmp_path, "--search"), "rate", ("a",), (1, 2), peak({"a": 1e6}))
    found = json.loads(kept.read_text())["rate"]["arms"]["a"]
    assert found["at_edge"]
    assert len(found["grid"]) == 2 + study.GROWTHS


def diverging_above(limit: float, by_nan: bool):
    """A score that is best at the largest value with which a training does not diverge."""

    def score(arm: str, value: float, seed: int) -> float:
        if value <= limit:
            return value
        if by_nan:
            return math.nan
        raise FloatingPointError("the loss of step 3 is nan")

    return score


@pytest.mark.parametrize("by_nan", [False, True], ids=["loss", "score"])
def test_a_value_with_which_a_training_diverges_is_the_worst_of_its_grid(
    tmp_path: Path, kept: Path, by_nan: bool
) -> None:
    """It once stopped a search that had run for minutes."""
    run = start(tmp_path, "--search")
    assert study.search(run, "rate", ("a",), (1, 2, 4), diverging_above(2, by_nan)) == {"a": 2}
    found = json.loads(kept.read_text())["rate"]["arms"]["a"]
    assert (found["grid"], found["scores"]) == ([1, 2, 4], [1, 2, None])
    assert not found["at_edge"]


def test_a_search_looks_below_values_that_all_diverge_and_says_so_where_none_is_left(
    tmp_path: Path, kept: Path
) -> None:
    run = start(tmp_path, "--search")
    assert study.search(run, "rate", ("a",), (4, 8), diverging_above(2, False)) == {"a": 2}
    with pytest.raises(FloatingPointError, match="a diverges with every value of"):
        study.search(run, "rate", ("a",), (4, 8), diverging_above(0, False))


def test_what_a_search_found_is_kept_and_goes_into_the_record(tmp_path: Path, kept: Path) -> None:
    study.search(start(tmp_path, "--search"), "rate", ("a", "b"), (1, 2, 4), peak({"a": 2, "b": 2}))
    run = start(tmp_path)

    def never(*_: object) -> float:
        raise AssertionError("kept searches are not made again")

    assert study.search(run, "rate", ("a", "b"), (1, 2, 4), never) == {"a": 2, "b": 2}
    (one,) = study.searches_of(run, ("a",))
    assert one.keys() >= {"what", "arm", "grid", "scores", "chosen", "at_edge", "seeds"}
    assert (one["what"], one["arm"], one["chosen"]) == ("rate", "a", 2)


def test_a_search_that_does_not_fit_the_arms_or_the_grid_is_refused(tmp_path: Path, kept: Path) -> None:
    with pytest.raises(ValueError, match="make it with --search"):
        study.search(start(tmp_path), "rate", ("a",), (1, 2), peak({"a": 1}))
    study.search(start(tmp_path, "--search"), "rate", ("a",), (1, 2, 4), peak({"a": 2}))
    for arms, grid in ((("a", "b"), (1, 2, 4)), (("a",), (1, 2))):
        with pytest.raises(ValueError, match="holds no search"):
            study.search(start(tmp_path), "rate", arms, grid, peak({"a": 1, "b": 1}))


def test_a_smoke_run_keeps_no_search(tmp_path: Path, kept: Path) -> None:
    study.search(start(tmp_path, "--search", "--preset", "smoke"), "rate", ("a",), (1, 2, 4), peak({"a": 2}))
    assert not kept.exists()


def test_bars_leave_out_what_failed_and_curves_label_few_positions() -> None:
    found = scores()
    found.floor("AP", "ap", 36, ("a", "b"))
    with using(LIGHT) as style:
        (ax,) = study.draw_bars(style, found, {"ap": Measure("AP", "%")}, {"a": "first", "b": "second"}).axes
        assert [each.get_text() for each in ax.get_xticklabels()] == ["first"]
        (ax,) = study.draw_curves(style, {"a": [[(1, 2.0), (4, 3.0)]]}, "x", "y").axes
        assert ax.get_xticks().tolist() == [1, 4]


def test_a_curve_that_is_nowhere_defined_leaves_the_others_as_they_are() -> None:
    with using(LIGHT) as style:
        lines = {"a": [[(1, 2.0), (4, 3.0)]], "b": [[(1, math.nan), (4, math.nan)]]}
        (ax,) = study.draw_curves(style, lines, "x", "y").axes
        assert ax.get_ylim()[0] == 0
        assert ax.get_ylim()[1] < 4
