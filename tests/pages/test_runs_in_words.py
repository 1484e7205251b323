"""What a run says of a claim is said in plain words: how many seeds agree and by how much, and no name of a result."""

from __future__ import annotations

from typing import Any

import pytest
from made import record, result

from scripts.cards.claims import Shown
from scripts.cards.library import Library
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.runs import check_shown
from scripts.pages.runs_in_words import in_words
from scripts.runs.record import Result
from scripts.runs.state import Run


def said(measured: Result, other: Result | None = None, rival: Result | None = None, **bound: Any) -> str:
    """The sentence for `x` of Alpha, beside `y` of the same run and `x` of Beta's."""
    records = {"alpha": record({"x": measured, **({"y": other} if other else {})})}
    records |= {"beta": record({"x": rival})} if rival else {}
    assertion = Shown(result="x", **bound)
    runs = {slug: Run(slug, "ok", made) for slug, made in records.items()}
    return in_words(assertion, check_shown("alpha", assertion, records), Knowledge(Library({}, {}), runs, {}))


@pytest.mark.parametrize(
    ("values", "bound", "sentence"),
    [
        ((15.4, 17, 22), {"above": 0}, "above 0 in all 3 seeds, by 15.4 to 22 points."),
        ((-15.2, -24.1, -23.6), {"below": 0}, "below 0 in all 3 seeds, by 15.2 to 24.1 points."),
        ((41.5, 45, 43.7), {"above": 20}, "above 20 in all 3 seeds: 41.5 to 45 points."),
        ((0.98, 1.01, 1.02), {"between": (0.9, 1.1)}, "between 0.9 and 1.1 in all 3 seeds: 0.98 to 1.02 points."),
        ((1, 1, 1), {"between": (1, 1)}, "equal to 1 in all 3 seeds: 1 points."),
        ((5.001, 5.002), {"above": 0}, "above 0 in both seeds, by 5 points."),
    ],
)
def test_a_claim_that_holds_is_told_with_seeds_and_distance(
    values: tuple[float, ...], bound: dict[str, Any], sentence: str
) -> None:
    assert said(result(*values, unit="points"), **bound) == f"What it says: {sentence}"


@pytest.mark.parametrize(
    ("values", "bound", "sentence"),
    [
        ((-0.2, 3.6, 0.3), {"above": 0}, "above 0 in 2 of 3 seeds: −0.2 to 3.6; the seeds do not agree."),
        ((1.2, 5.2, 40), {"above": 0}, "above 0 in all 3 seeds, by 1.2 to 40; chance is not ruled out."),
        ((3.0,), {"above": 0}, "above 0 in the one seed, by 3; one seed says nothing about chance."),
        ((-3.0,), {"above": 0}, "above 0 in no seed of one: −3; one seed says nothing about chance."),
        ((2.0, 3.0, None), {"above": 0}, "above 0 in 2 of 3 seeds: 2 to 3; it is undefined for a seed."),
        ((None, None), {"above": 0}, "undefined; it is undefined for a seed."),
    ],
)
def test_a_claim_that_is_open_is_told_with_the_reason(
    values: tuple[float | None, ...], bound: dict[str, Any], sentence: str
) -> None:
    assert said(result(*values), **bound) == f"What it says: {sentence}"


def test_a_claim_that_no_seed_bears_out_says_so() -> None:
    assert said(result(-1, -2, -1.5), above=0).startswith("What it says: above 0 in none of 3 seeds: −2 to −1; ")


@pytest.mark.parametrize(
    ("bound", "sentence"),
    [
        ({"below": 1.05}, "1.02 x (exact), below 1.05."),
        ({"above": 1.05}, "1.02 x (exact), not above 1.05."),
        ({"between": (1, 1.1)}, "1.02 x (exact), between 1 and 1.1."),
    ],
)
def test_an_exact_result_has_neither_seeds_nor_chance(bound: dict[str, Any], sentence: str) -> None:
    assert said(result(1.016, exact=True, unit="x"), **bound) == f"What it says: {sentence}"


def test_another_result_of_the_run_is_called_by_its_meaning() -> None:
    seeds = said(result(10.1, 20.2, 30.1), result(10, 20.05, 30.02), above="y")
    assert seeds == "What it says: above “What it says” in all 3 seeds, by 0.08 to 0.15."
    exact = said(result(6, exact=True, unit="blocks"), result(12, exact=True), below="y")
    assert exact == "What it says: 6 blocks (exact), below “What it says”."
    mixed = said(result(0.5, exact=True), result(0.1, 0.2, 0.3), above="y")
    assert mixed == "What it says: above “What it says” in all 3 seeds, by 0.2 to 0.4."


def test_two_models_are_told_by_their_means_for_their_seeds_are_no_pairs() -> None:
    clear = said(result(3, 3.1, 3.2, unit="%"), rival=result(1, 1.1, 1.2, unit="%"), above="beta/x")
    assert clear == "What it says: 3.1 % on average, against 1.1 of beta."
    near = said(result(10.1, 20.2, 30.1), rival=result(10, 20, 30), above="beta/x")
    assert near == "What it says: 20.1 on average, against 20 of beta; chance is not ruled out."


def test_what_was_not_run_says_only_that() -> None:
    assert said(result(1, 2, 3), above="beta/x") == "no run yet."
