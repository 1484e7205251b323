"""What a run says of a claim: only what all seeds and the interval of their mean say, and nothing where a seed failed."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from made import record, result
from scipy import stats

from scripts.cards.claims import Shown
from scripts.evidence.runs import Outcome, check_shown, interval, interval_of_difference
from scripts.runs.record import Record

SUPPORTS, CONTRADICTS, INCONCLUSIVE, NONE = Outcome

READINGS = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 3))
SAMPLES = st.lists(READINGS, min_size=2, max_size=40)
POWER = {"control": "a control that shows it", "result": "control", "above": 0}
CONTROL = result(1, 1.1, 1.2)


def found(values: list[float] | tuple[float | None, ...], power: bool = True, **bound: Any) -> Outcome:
    """The outcome of an assertion over the values of one run, which has a control that shows the effect."""
    made = record({"x": result(*values), "control": CONTROL}, power=POWER if power else None)
    return check_shown("alpha", Shown(result="x", **bound), {"alpha": made}).outcome


# intervals


@given(SAMPLES)
def test_the_interval_of_a_mean_is_that_of_students_t(values: list[float]) -> None:
    assume(len(set(values)) > 1)
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    mean = statistics.fmean(values)
    assert interval(values) == pytest.approx((mean - half, mean + half), rel=1e-3, abs=1e-3 * half)


def test_an_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    draws = stats.norm.rvs(size=(4000, 3), random_state=0)
    held = [low < 0 < high for low, high in (interval(list(map(float, each))) for each in draws)]
    assert statistics.fmean(held) == pytest.approx(0.95, abs=0.01)


@given(SAMPLES, SAMPLES)
def test_the_interval_of_a_difference_is_welchs_with_whole_degrees_of_freedom(a: list[float], b: list[float]) -> None:
    assume(len(set(a)) > 1 and len(set(b)) > 1)
    welch = stats.ttest_ind(a, b, equal_var=False)
    half = stats.t.ppf(0.975, max(math.floor(welch.df + 1e-9), 1)) * float(welch._standard_error)
    mean = statistics.fmean(a) - statistics.fmean(b)
    assert interval_of_difference(a, b) == pytest.approx((mean - half, mean + half), rel=2e-3, abs=2e-3 * half)
    low, high = welch.confidence_interval(0.95)
    ours = interval_of_difference(a, b)
    assert ours[0] <= low + 1e-3 * half
    assert ours[1] >= high - 1e-3 * half, "never narrower than Welch's"


def test_samples_without_spread_have_an_interval_without_width() -> None:
    assert interval([2, 2, 2]) == (2, 2)
    assert interval_of_difference([2, 2], [1, 1]) == (1, 1)
    assert interval_of_difference([1e-200, 2e-200], [0, 0]) == pytest.approx((0, 0))


# one bound


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ((1.0, 1.1, 1.2), SUPPORTS),
        ((-1.0, -1.1, -1.2), CONTRADICTS),
        ((0.1, 1.0, 3.0), INCONCLUSIVE),  # every seed is above, the interval of the mean is not
        ((-0.1, -1.0, -3.0), INCONCLUSIVE),
        ((-0.01, 5.0, 5.0), INCONCLUSIVE),
        ((5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, -0.01), INCONCLUSIVE),  # the interval is above, one seed is not
        ((0.0, 0.0, 0.0), INCONCLUSIVE),  # neither above nor below
        ((1.0,), INCONCLUSIVE),
        ((1.0, 1.1, None), INCONCLUSIVE),
        ((None, None), INCONCLUSIVE),
    ],
)
def test_an_outcome_needs_all_seeds_and_the_interval_on_one_side(
    values: tuple[float | None, ...], outcome: Outcome
) -> None:
    assert found(values, above=0) is outcome
    assert found(tuple(None if value is None else -value for value in values), below=0) is outcome


@given(SAMPLES, READINGS)
def test_the_outcome_is_what_seeds_and_interval_say_together(values: list[float], bound: float) -> None:
    low, high = interval(values)
    expected = INCONCLUSIVE
    if min(values) > bound and low > bound:
        expected = SUPPORTS
    elif max(values) < bound and high < bound:
        expected = CONTRADICTS
    assume(min(abs(low - bound), abs(high - bound)) > 1e-9)
    assert found(values, above=bound) is expected
    mirrored = {SUPPORTS: CONTRADICTS, CONTRADICTS: SUPPORTS}
    assert found(values, below=bound) is mirrored.get(expected, expected)


@given(SAMPLES, READINGS, READINGS)
def test_between_is_what_seeds_and_interval_say_together(values: list[float], a: float, b: float) -> None:
    low, high = sorted((a, b))
    ends = interval(values)
    assume(min(abs(end - bound) for end in ends for bound in (low, high)) > 1e-9)
    expected = INCONCLUSIVE
    if all(low <= value <= high for value in values) and low <= ends[0] and ends[1] <= high:
        expected = SUPPORTS
    elif not any(low <= value <= high for value in values) and (ends[1] < low or ends[0] > high):
        expected = CONTRADICTS
    assert found(values, between=(low, high)) is expected


@given(SAMPLES, READINGS, st.floats(0.01, 50))
def test_a_weaker_bound_never_turns_support_into_contradiction(values: list[float], bound: float, step: float) -> None:
    if found(values, above=bound) is SUPPORTS:
        assert found(values, above=bound - step) is SUPPORTS
    if found(values, above=bound) is CONTRADICTS:
        assert found(values, above=bound + step) is CONTRADICTS


@given(SAMPLES)
def test_the_order_of_the_seeds_says_nothing(values: list[float]) -> None:
    assert found(values, above=0) is found(values[::-1], above=0) is found(sorted(values), above=0)


# failed seeds


def test_a_failed_seed_leaves_it_open_and_says_why() -> None:
    broken = result(1.0, None, 1.2, failed=({"seed": 1, "reason": "it did not train"},))
    finding = check_shown("alpha", Shown(result="x", above=0), {"alpha": record({"x": broken})})
    assert (finding.outcome, finding.remark) == (INCONCLUSIVE, "it did not train")
    assert finding.observed is not None
    assert finding.observed.mean == pytest.approx(1.1), "no zero stands in for the seed"
    assert (finding.observed.least, finding.observed.most) == pytest.approx((1.0, 1.2))
    assert finding.observed.margin == pytest.approx(interval([1.0, 1.2]))


def test_a_seed_that_failed_with_a_value_counts_as_little() -> None:
    broken = result(1.0, 1.1, 1.2, failed=({"seed": 1, "reason": "below the floor"},))
    finding = check_shown("alpha", Shown(result="x", above=0), {"alpha": record({"x": broken})})
    assert (finding.outcome, finding.remark) == (INCONCLUSIVE, "below the floor")


@pytest.mark.parametrize(
    "other", [result(0.1, None, 0.2), result(0.1, 0.2, 0.3, failed=({"reason": "it did not train"},))]
)
@pytest.mark.parametrize("bound", ["y", "beta/x"])
def test_a_failed_seed_of_the_bound_leaves_it_open_too(bound: str, other: Any) -> None:
    runs = {"alpha": record({"x": result(1, 1.1, 1.2), "y": other}), "beta": record({"x": other})}
    finding = check_shown("alpha", Shown(result="x", above=bound), runs)
    assert finding.outcome is INCONCLUSIVE
    assert finding.remark


# power


def test_what_contradicts_counts_only_where_a_control_shows_that_the_effect_would_be_seen() -> None:
    assert found((-1, -1.1, -1.2), above=0) is CONTRADICTS
    assert found((-1, -1.1, -1.2), power=False, above=0) is INCONCLUSIVE
    assert found((1, 1.1, 1.2), power=False, above=0) is SUPPORTS


@pytest.mark.parametrize("control", [result(-1, 1, 1), result(-1, -1.1, -1.2), result(0.1, 1, 3), result(1, None, 1)])
def test_a_control_that_does_not_show_the_effect_gives_no_power(control: Any) -> None:
    runs = {"alpha": record({"x": result(-1, -1.1, -1.2), "control": control}, power=POWER)}
    finding = check_shown("alpha", Shown(result="x", above=0), runs)
    assert finding.outcome is INCONCLUSIVE
    assert finding.remark == "the control does not show it either: a control that shows it"


def test_the_power_is_that_of_the_experiment_of_the_result() -> None:
    weak, strong = record({"x": result(-1, -1.1, -1.2)}), record({"control": CONTROL}, power=POWER, name="other")
    together = Record(**{
        **vars(weak), "experiments": (*weak.experiments, *strong.experiments),
        "results": {**weak.results, **strong.results},
    })  # fmt: skip
    assert check_shown("alpha", Shown(result="x", above=0), {"alpha": together}).outcome is INCONCLUSIVE


# exact results


@pytest.mark.parametrize(
    ("value", "bound", "outcome"),
    [
        (0.5, {"above": 0.4}, SUPPORTS),
        (0.5, {"above": 0.5}, CONTRADICTS),
        (0.5, {"below": 0.6}, SUPPORTS),
        (0.5, {"between": (0.5, 0.5)}, SUPPORTS),
        (0.5, {"between": (0.6, 1)}, CONTRADICTS),
        (0.5, {"above": "y"}, SUPPORTS),
        (None, {"above": 0.4}, INCONCLUSIVE),
    ],
)
def test_an_exact_result_knows_no_chance_and_needs_no_control(
    value: float, bound: dict[str, Any], outcome: Outcome
) -> None:
    runs = {"alpha": record({"x": result(value, exact=True), "y": result(0.3, exact=True)})}
    finding = check_shown("alpha", Shown(result="x", **bound), runs)
    assert finding.outcome is outcome
    assert finding.observed is not None
    assert finding.observed.margin is None


@pytest.mark.parametrize(
    ("seeds", "outcome"),
    [((0.1, 0.2, 0.3), SUPPORTS), ((0.1, 0.2, 0.9), INCONCLUSIVE), ((0.1, 0.2, 0.499), INCONCLUSIVE)],
)
def test_an_exact_result_is_held_against_every_seed_of_another_one(seeds: tuple[float, ...], outcome: Outcome) -> None:
    runs = {"alpha": record({"x": result(0.5, exact=True), "y": result(*seeds)})}
    assert check_shown("alpha", Shown(result="x", above="y"), runs).outcome is outcome
    turned = check_shown("alpha", Shown(result="y", below="x"), runs).outcome
    assert turned is outcome


def test_an_exact_result_contradicts_by_seeds_only_where_a_control_shows_the_effect() -> None:
    results = {"x": result(0.5, exact=True), "y": result(0.9, 0.91, 0.92), "control": CONTROL}
    for power, outcome in ((None, INCONCLUSIVE), (POWER, CONTRADICTS)):
        runs = {"alpha": record(results, power=power)}
        assert check_shown("alpha", Shown(result="x", above="y"), runs).outcome is outcome


# two results


def test_two_arms_of_a_run_are_compared_seed_by_seed() -> None:
    """The arms vary far more than their difference does."""
    made = record({"x": result(10.1, 20.2, 30.1), "y": result(10, 20.09, 30.01), "z": result(20, 30, 10)})
    assert check_shown("alpha", Shown(result="x", above="y"), {"alpha": made}).outcome is SUPPORTS
    assert check_shown("alpha", Shown(result="x", above="z"), {"alpha": made}).outcome is INCONCLUSIVE


def test_two_runs_are_compared_in_the_same_measure_as_independent_samples() -> None:
    """Seed 0 of one model has nothing to do with seed 0 of another one."""
    apart = {"alpha": record({"ap": result(10.1, 20.2, 30.1)}), "beta": record({"ap": result(10, 20, 30)})}
    assert check_shown("alpha", Shown(result="ap", above="beta/ap"), apart).outcome is INCONCLUSIVE
    clear = {"alpha": record({"ap": result(3, 3.1, 3.2)}), "beta": record({"ap": result(1, 1.1, 1.2)})}
    finding = check_shown("alpha", Shown(result="ap", above="beta/ap"), clear)
    assert finding.outcome is SUPPORTS
    assert finding.observed is not None
    assert finding.observed.margin == interval_of_difference([3, 3.1, 3.2], [1, 1.1, 1.2])
    assert finding.observed.rival == {"card": "beta", "mean": pytest.approx(1.1)}
    assert check_shown("beta", Shown(result="ap", below="alpha/ap"), clear).outcome is SUPPORTS
    assert check_shown("beta", Shown(result="ap", above="alpha/ap"), clear).outcome is INCONCLUSIVE, "no control"


@pytest.mark.parametrize(
    ("bound", "remark"),
    [
        ("beta/time", "beta/time: two runs are compared only in the same measure, over as many seeds"),
        ("beta/ap", "beta/ap: two runs are compared only in the same measure, over as many seeds"),
        ("gamma/ap", "no run yet"),
        ("beta/app", "the run of beta has no result 'app', did you mean 'ap'?"),
        ("few", "few: two results are compared only over the same seeds"),
    ],
)
def test_results_that_cannot_be_compared_say_why(bound: str, remark: str) -> None:
    runs = {
        "alpha": record({"ap": result(2, 3, 4, 5), "few": result(1, 2)}),
        "beta": record({"ap": result(1, 2, 3), "time": result(0, 0, 0, 0)}),
    }
    finding = check_shown("alpha", Shown(result="ap", above=bound), runs)
    assert (finding.outcome, finding.remark) == (NONE, remark)


def test_without_a_run_nothing_is_claimed() -> None:
    finding = check_shown("alpha", Shown(result="x", above=0), {})
    assert (finding.outcome, finding.remark, finding.observed) == (NONE, "no run yet", None)


@pytest.mark.parametrize("values", list(itertools.permutations((1.0, 2.0, None))))
def test_an_undefined_value_is_dropped_with_its_seed(values: tuple[float | None, ...]) -> None:
    """Not with the value that then stands at its place."""
    other = result(*(None if value is None else value - 0.5 for value in values))
    made = record({"x": result(*values), "y": other})
    finding = check_shown("alpha", Shown(result="x", above="y"), {"alpha": made})
    assert finding.observed is not None
    assert (finding.observed.least, finding.observed.most) == (0.5, 0.5)
