"""Verdicts follow from assertions; an assertion that is false never passes in silence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Command, edit

from scripts.cards.claims import Claim, Reported, Shown
from scripts.cards.library import Library, load_library
from scripts.evidence.published import differences, find, published
from scripts.evidence.verdicts import Verdict, check_reported, check_shown, judge
from scripts.project import Project


@pytest.fixture
def library(tiny: Project) -> Library:
    loaded, problems = load_library(tiny.cards, tiny.root)
    assert not problems
    return loaded


def result(*values: float) -> dict[str, Any]:
    return {"values": list(values), "mean": sum(values) / len(values), "std": 0.0, "unit": "", "meaning": "m"}


RESULTS = {"alpha": {"good": result(1, 2, 3), "bad": result(1, 2, -3), "exact": result(0.5)}}
TRUE = {"number": "base/AP", "above": 40}
FALSE = {"number": "base/AP", "above": 50}


@pytest.mark.parametrize(
    ("backing", "verdict"),
    [
        ({}, "noted"),
        ({"reported": TRUE}, "reported"),
        ({"reported": [TRUE, FALSE]}, "noted"),
        ({"shown": {"result": "good", "above": 0}}, "shown"),
        ({"shown": {"result": "bad", "above": 0}}, "not shown here"),
        ({"shown": {"result": "bad", "above": 0}, "reported": TRUE}, "not shown here"),
        ({"shown": {"result": "good", "above": 0}, "reported": TRUE}, "both"),
        ({"shown": {"result": "good", "above": 0}, "reported": FALSE}, "shown"),
        ({"shown": {"result": "never_run", "above": 0}, "reported": TRUE}, "reported"),
        ({"corrected": {"reason": "r", "source": {"reference": "a", "where": "b"}}, "reported": TRUE}, "corrected"),
        ({"outdated": {"reason": "r", "source": {"reference": "a", "where": "b"}}}, "outdated"),
    ],
)
def test_the_verdict_follows_from_what_backs_the_claim(backing: dict[str, Any], verdict: str, library: Library) -> None:
    claim = Claim.model_validate({"claim": "c", "because": "b", **backing})
    assert judge(library, "alpha", claim, RESULTS).verdict is Verdict(verdict)


def test_one_seed_against_it_is_enough_for_not_shown() -> None:
    assert check_shown("alpha", Shown(result="good", above=0), RESULTS).holds is True
    finding = check_shown("alpha", Shown(result="bad", above=0), RESULTS)
    assert (finding.holds, finding.observed["worst"]) == (False, -3)


def test_a_result_can_be_compared_with_another_seed_by_seed() -> None:
    assert check_shown("beta", Shown(result="alpha/good", above="exact"), RESULTS).holds is True
    assert check_shown("beta", Shown(result="alpha/bad", below="good"), RESULTS).holds is False
    assert check_shown("beta", Shown(result="alpha/good", between=(1, 3)), RESULTS).holds is True
    assert check_shown("beta", Shown(result="alpha/good", between=(1, 2.5)), RESULTS).holds is False


def test_without_a_run_nothing_is_claimed() -> None:
    finding = check_shown("alpha", Shown(result="good", above=0), {})
    assert (finding.holds, finding.remark) == (None, "no run yet")


def test_a_known_negative_result_is_no_surprise_but_a_sudden_positive_one_is() -> None:
    known = {"result": "bad", "above": 0, "not_here": "more data"}
    assert not check_shown("alpha", Shown.model_validate(known), RESULTS).surprising
    assert check_shown("alpha", Shown.model_validate({**known, "result": "good"}), RESULTS).surprising


@pytest.mark.parametrize(
    ("assertion", "holds"),
    [
        ({"number": "base/AP", "above": "beta/base/AP", "despite": ["schedule"]}, True),
        ({"number": "base/AP", "above": "beta/base/AP"}, None),
        ({"number": "base/parameters", "below": "beta/base/parameters", "times": 0.8}, True),
        ({"number": "base/parameters", "below": "beta/base/parameters", "times": 0.75}, False),
        ({"number": "base/parameters", "equals": "1.6 M", "within": 100_000}, True),
        ({"number": "base/parameters", "equals": "1.6 M"}, False),
        ({"number": "base/AP", "above": "base/parameters"}, None),
        ({"licence": "code", "is": "MIT"}, True),
        ({"licence": "code", "is": "AGPL-3.0-only"}, False),
    ],
)
def test_published_figures_are_compared_only_where_that_is_fair(
    assertion: dict[str, Any], holds: bool | None, library: Library
) -> None:
    assert check_reported(library, "alpha", Reported.model_validate(assertion)).holds is holds


def test_a_difference_that_is_acknowledged_is_named(library: Library) -> None:
    fair = Reported.model_validate({"number": "base/AP", "above": "beta/base/AP", "despite": ["schedule"]})
    assert check_reported(library, "alpha", fair).remark == "they differ in schedule (100 epochs against 50 epochs)"


def test_another_dataset_can_never_be_acknowledged(tiny: Project) -> None:
    edit(tiny.cards / "beta.yml", "dataset: COCO", "dataset: VOC")
    library, _ = load_library(tiny.cards, tiny.root)
    unfair = Reported.model_validate({"number": "base/AP", "above": "beta/base/AP", "despite": ["schedule", "dataset"]})
    finding = check_reported(library, "alpha", unfair)
    assert finding.holds is None
    assert finding.remark == "not comparable: dataset (COCO against VOC)"


def test_flops_are_halved_into_macs(library: Library) -> None:
    macs = find(library, "alpha", "base/macs")
    assert (macs.quantity.value, macs.halved) == (2e9, True)
    assert find(library, "beta", "alpha/base/main/flops").quantity.value == 4e9


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("base/APP", "base/APP: no number 'APP', did you mean 'AP'?"),
        ("bas/AP", "bas/AP: no variant or card 'bas', did you mean 'base'?"),
        ("beta/bass/AP", "beta/bass/AP: no variant 'bass' in beta, did you mean 'base'?"),
        ("base/mean/AP", "base/mean/AP: base has no numbers in table 'mean', did you mean 'main'?"),
    ],
)
def test_a_number_that_is_not_there_is_named_with_the_nearest(ref: str, message: str, library: Library) -> None:
    with pytest.raises(LookupError) as caught:
        find(library, "alpha", ref)
    assert caught.value.args[0] == message


def test_a_number_that_stands_in_two_tables_needs_the_table(tiny: Project) -> None:
    edit(tiny.cards / "alpha.yml", "variants:\n", "  zoo: {source: alpha2020, where: README}\nvariants:\n")
    edit(tiny.cards / "alpha.yml", "flops: 4 G}}", "flops: 4 G}, zoo: {AP: 41}}")
    library, _ = load_library(tiny.cards, tiny.root)
    with pytest.raises(LookupError, match="stands in several tables, write base/main/AP or base/zoo/AP"):
        find(library, "alpha", "base/AP")
    assert find(library, "alpha", "base/zoo/AP").quantity.value == 41


def test_a_row_overrides_the_conditions_of_its_table(tiny: Project) -> None:
    edit(tiny.cards / "alpha.yml", "{AP: 40.5,", "{conditions: {schedule: 50 epochs}, AP: 40.5,")
    library, _ = load_library(tiny.cards, tiny.root)
    own, other = find(library, "alpha", "base/AP"), find(library, "alpha", "beta/base/AP")
    assert differences(own, other, library.vocabulary) == ([], [])
    assert own.conditions.dataset == "COCO"


def test_every_published_number_is_found_by_its_own_reference(library: Library) -> None:
    for card in library.cards.values():
        for number in published(card):
            assert find(library, "beta", number.ref) == number


def test_a_false_assertion_fails_a_strict_build_and_no_other(tiny: Project, command: Command) -> None:
    assert command("run").returncode == 0
    assert command("build", "--strict").returncode == 0
    edit(
        tiny.cards / "alpha.yml",
        "    shown: {result: margin, above: 0}\n  - claim: Better",
        "    shown: {result: margin, above: 1.5}\n  - claim: Better",
    )
    strict = command("build", "--strict")
    assert strict.returncode == 1
    assert (
        "model_cards/alpha.yml:11:5: 'Has a margin.' does not hold: margin is above 1.5 for every seed" in strict.stderr
    )
    assert command("build").returncode == 0
    card = json.loads((tiny.site / "api/models/alpha.json").read_text("utf-8"))
    assert "not shown here" in {claim["verdict"] for claim in (*card["pros"], *card["cons"])}


def test_a_result_that_the_run_lacks_is_an_error_with_the_nearest_name(tiny: Project, command: Command) -> None:
    command("run")
    edit(tiny.cards / "alpha.yml", "result: second", "result: secnd")
    done = command("check")
    assert done.stdout.startswith(
        "model_cards/alpha.yml:24:13: the run of alpha has no result 'secnd', did you mean 'second'?"
    )


def test_runs_of_two_models_are_compared_seed_by_seed_in_the_same_measure() -> None:
    results = {"alpha": {"ap": result(2, 3)}, "beta": {"ap": result(1, 2), "time": result(0, 0), "few": result(1)}}
    assert check_shown("alpha", Shown(result="ap", above="beta/ap"), results).holds is True
    assert check_shown("beta", Shown(result="ap", above="alpha/ap"), results).holds is False


@pytest.mark.parametrize(
    ("bound", "remark"),
    [
        ("beta/time", "beta/time: two runs are compared only in the same measure, over as many seeds"),
        ("beta/ap", "beta/ap: two runs are compared only in the same measure, over as many seeds"),
        ("gamma/ap", "no run yet"),
        ("beta/app", "the run of beta has no result 'app', did you mean 'ap'?"),
    ],
)
def test_runs_that_cannot_be_compared_say_why(bound: str, remark: str) -> None:
    results = {"alpha": {"ap": result(2, 3)}, "beta": {"ap": result(1, 2, 3), "time": result(0, 0)}}
    finding = check_shown("alpha", Shown(result="ap", above=bound), results)
    assert (finding.holds, finding.remark) == (None, remark)
