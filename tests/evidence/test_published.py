"""Published numbers: found by reference, and compared only where that is fair."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import edit

from scripts.cards.claims import Reported
from scripts.cards.library import Library, load_library
from scripts.evidence.published import differences, find, published
from scripts.evidence.runs import Outcome
from scripts.evidence.verdicts import check_reported
from scripts.project import Project

SUPPORTS, CONTRADICTS, _, NONE = Outcome


@pytest.fixture
def library(tiny: Project) -> Library:
    loaded, problems = load_library(tiny.cards, tiny.root)
    assert not problems
    return loaded


@pytest.mark.parametrize(
    ("assertion", "outcome"),
    [
        ({"number": "base/AP", "above": "beta/base/AP", "despite": ["schedule"]}, SUPPORTS),
        ({"number": "base/AP", "above": "beta/base/AP"}, NONE),
        ({"number": "base/parameters", "below": "beta/base/parameters", "times": 0.8}, SUPPORTS),
        ({"number": "base/parameters", "below": "beta/base/parameters", "times": 0.75}, CONTRADICTS),
        ({"number": "base/parameters", "equals": "1.6 M", "within": 100_000}, SUPPORTS),
        ({"number": "base/parameters", "equals": "1.6 M"}, CONTRADICTS),
        ({"number": "base/AP", "above": "base/parameters"}, NONE),
        ({"licence": "code", "is": "MIT"}, SUPPORTS),
        ({"licence": "code", "is": "AGPL-3.0-only"}, CONTRADICTS),
    ],
)
def test_published_figures_are_compared_only_where_that_is_fair(
    assertion: dict[str, Any], outcome: Outcome, library: Library
) -> None:
    assert check_reported(library, "alpha", Reported.model_validate(assertion)).outcome is outcome


def test_a_difference_that_is_acknowledged_is_named(library: Library) -> None:
    fair = Reported.model_validate({"number": "base/AP", "above": "beta/base/AP", "despite": ["schedule"]})
    assert check_reported(library, "alpha", fair).remark == "they differ in schedule (100 epochs against 50 epochs)"


def test_another_dataset_can_never_be_acknowledged(tiny: Project) -> None:
    edit(tiny.cards / "beta.yml", "dataset: COCO", "dataset: VOC")
    library, _ = load_library(tiny.cards, tiny.root)
    unfair = Reported.model_validate({"number": "base/AP", "above": "beta/base/AP", "despite": ["schedule", "dataset"]})
    finding = check_reported(library, "alpha", unfair)
    assert finding.outcome is NONE
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
