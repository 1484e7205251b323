"""Published numbers: found by reference, and compared only where that is fair."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import ROOT, edit

from scripts.cards.claims import Reported
from scripts.cards.library import Library, load_library
from scripts.evidence.published import Published, comparability, differences, find, published
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


def test_another_lab_s_figure_is_named_with_its_table(tiny: Project) -> None:
    """`variant/metric` is what the authors published, however many others have measured it."""
    labs = "".join(
        f"  {lab}: {{source: alpha2020, where: README, independent: {{by: A lab, how: Alike., when: 2026-01}}}}\n"
        for lab in ("lab", "other")
    )
    edit(tiny.cards / "alpha.yml", "variants:\n", f"{labs}variants:\n")
    edit(tiny.cards / "alpha.yml", "flops: 4 G}}", "flops: 4 G}, lab: {AP: 39.1, AP50: 60.1}, other: {AP: 39.2}}")
    edit(tiny.cards / "_vocabulary.yml", "  AP: {label: AP,", f"  AP50: {{label: AP50, {KIND}\n  AP: {{label: AP,")
    library, problems = load_library(tiny.cards, tiny.root)
    assert not problems
    own = find(library, "alpha", "base/AP")
    assert (own.quantity.value, own.independent) == (40.5, False)
    theirs = find(library, "alpha", "base/lab/AP")
    assert (theirs.quantity.value, theirs.independent) == (39.1, True)
    assert find(library, "alpha", "base/AP50").quantity.value == 60.1, "the only one there is"


KIND = "kind: quality, better: higher, definition: Precision.}"


def test_two_figures_of_other_labs_need_their_tables(tiny: Project) -> None:
    labs = "".join(
        f"  {lab}: {{source: alpha2020, where: README, independent: {{by: A lab, how: Alike., when: 2026-01}}}}\n"
        for lab in ("lab", "other")
    )
    edit(tiny.cards / "alpha.yml", "variants:\n", f"{labs}variants:\n")
    edit(
        tiny.cards / "alpha.yml",
        "{main: {AP: 40.5, parameters: 1.5 M,",
        "{lab: {AP: 39}, other: {AP: 38}, main: {parameters: 1.5 M,",
    )
    library, _ = load_library(tiny.cards, tiny.root)
    with pytest.raises(LookupError, match="stands in several tables, write base/lab/AP or base/other/AP"):
        find(library, "alpha", "base/AP")


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


# what may be ranked


@pytest.fixture(scope="module")
def ours() -> Library:
    """The cards of this project."""
    loaded, problems = load_library(ROOT / "model_cards", ROOT)
    assert not problems
    return loaded


def numbers_of_all(library: Library) -> list[Published]:
    return [number for card in library.cards.values() for number in published(card)]


def test_numbers_of_one_group_differ_in_nothing_that_matters(ours: Library) -> None:
    words = ours.vocabulary
    groups: dict[tuple[object, ...], list[Published]] = {}
    for number in numbers_of_all(ours):
        groups.setdefault((number.metric, comparability(number, words)), []).append(number)
    assert max(map(len, groups.values())) > 10
    for group in groups.values():
        assert all(differences(group[0], other, words) == ([], []) for other in group[1:])


def test_numbers_of_two_groups_differ_in_something_that_matters(ours: Library) -> None:
    words = ours.vocabulary
    of_ap = [number for number in numbers_of_all(ours) if number.metric == "AP"]
    for a, b in zip(of_ap, of_ap[7:], strict=False):
        together = comparability(a, words) == comparability(b, words)
        assert together == (differences(a, b, words) == ([], []))
