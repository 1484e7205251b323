"""The word of a claim follows from what backs it, and an assertion that turned false never passes in silence."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from conftest import Command, edit
from hypothesis import given
from hypothesis import strategies as st
from made import record, result

from scripts.cards.claims import Claim
from scripts.cards.library import Library, load_library
from scripts.evidence.runs import Finding, Outcome
from scripts.evidence.verdicts import Verdict, joined, judge, verdict
from scripts.project import Project

SUPPORTS, CONTRADICTS, INCONCLUSIVE, NONE = Outcome

LETTERS = dict(zip("scin", Outcome, strict=True))
WORDS = {
    "2": "published + shown", "p": "published", "d": "published, small run differs", "i": "independent", "s": "shown",
    "c": "contested", "o": "inconclusive", "n": "noted", "x": "not supported",
}  # fmt: skip
TABLE = """
ss 2dpp
sc cccc
si 2dpp
sn 2dpp
cs cccc
cc xxxx
ci xxxx
cn xxxx
is 2dii
ic xxxx
ii sxon
in sxon
ns 2dii
nc xxxx
ni sxon
nn sxon
"""
"""Published and independent figures (s: support, c: contradict, i: inconclusive, n: none), then the word for each outcome of
a run, in the same order."""
CASES = [
    (LETTERS[a], LETTERS[b], run, WORDS[word])
    for (a, b), words in (line.split() for line in TABLE.split("\n") if line)
    for run, word in zip(Outcome, words, strict=True)
]


def test_the_table_holds_every_combination() -> None:
    assert {case[:3] for case in CASES} == set(itertools.product(Outcome, repeat=3))


@pytest.mark.parametrize(("published", "independent", "run", "word"), CASES)
def test_the_word_follows_from_what_each_kind_of_evidence_says(
    published: Outcome, independent: Outcome, run: Outcome, word: str
) -> None:
    assert verdict(published, independent, run).value == word


OUTCOMES = st.lists(st.sampled_from(Outcome), max_size=5)


@given(OUTCOMES)
def test_several_assertions_hold_together_or_not_at_all(outcomes: list[Outcome]) -> None:
    found = joined([Finding("a", outcome) for outcome in outcomes])
    assert (found is SUPPORTS) == (bool(outcomes) and set(outcomes) == {SUPPORTS})
    assert (found is CONTRADICTS) == (CONTRADICTS in outcomes)
    assert found is joined([Finding("a", outcome) for outcome in reversed(outcomes)])
    assert found in {*outcomes, NONE}


@pytest.fixture
def library(tiny: Project) -> Library:
    """Beta's figures of another table are independent of its authors."""
    edit(
        tiny.cards / "beta.yml",
        "variants:\n",
        "  lab: {source: beta2019, where: Table 9, conditions: {dataset: COCO, split: val2017},\n"
        "        independent: {by: A lab, how: One protocol., when: 2026-01}}\nvariants:\n",
    )
    edit(tiny.cards / "beta.yml", "parameters: 2 M}}", "parameters: 2 M}, lab: {AP: 38.0}}")
    loaded, problems = load_library(tiny.cards, tiny.root)
    assert not problems
    return loaded


RUNS = {
    "alpha": record(
        {
            "good": result(1, 1.1, 1.2),
            "bad": result(-1, -1.1, -1.2),
            "open": result(1, 2, -3),
            "control": result(1, 1.1, 1),
        },
        power={"control": "a control", "result": "control", "above": 0},
    )
}
TRUE = {"number": "base/AP", "above": 40}
FALSE = {"number": "base/AP", "above": 50}
TRUE_THERE = {"number": "beta/base/lab/AP", "below": 38.5}
FALSE_THERE = {"number": "beta/base/lab/AP", "above": 38.5}
UNFAIR = {"number": "base/AP", "above": "beta/base/AP"}  # another schedule, which nothing acknowledges
PLACE = {"reference": "alpha2020", "where": "page 1"}


def shown(name: str) -> dict[str, Any]:
    return {"result": name, "above": 0}


@pytest.mark.parametrize(
    ("backing", "word"),
    [
        ({}, "noted"),
        ({"source": PLACE}, "noted"),
        ({"cannot_show": "It would take more data."}, "noted"),
        ({"reported": TRUE}, "published"),
        ({"reported": [TRUE, FALSE]}, "not supported"),
        ({"reported": [TRUE, UNFAIR]}, "noted"),
        ({"reported": TRUE_THERE}, "independent"),
        ({"reported": [TRUE, TRUE_THERE]}, "published"),
        ({"reported": [TRUE, FALSE_THERE]}, "contested"),
        ({"reported": [FALSE, TRUE_THERE]}, "contested"),
        ({"shown": shown("good")}, "shown"),
        ({"shown": [shown("good"), shown("open")]}, "inconclusive"),
        ({"shown": shown("open")}, "inconclusive"),
        ({"shown": shown("bad")}, "not supported"),
        ({"shown": shown("bad"), "reported": TRUE}, "published, small run differs"),
        ({"shown": shown("bad"), "reported": TRUE_THERE}, "published, small run differs"),
        ({"shown": shown("open"), "reported": TRUE}, "published"),
        ({"shown": shown("good"), "reported": TRUE}, "published + shown"),
        ({"shown": shown("good"), "reported": FALSE}, "not supported"),
        ({"shown": shown("never_run"), "reported": TRUE}, "published"),
        ({"shown": shown("never_run")}, "noted"),
        ({"corrected": {"reason": "r", "source": PLACE}, "reported": TRUE}, "corrected"),
        ({"outdated": {"reason": "r", "source": PLACE}}, "outdated"),
    ],
)
def test_the_verdict_follows_from_what_backs_the_claim(backing: dict[str, Any], word: str, library: Library) -> None:
    claim = Claim.model_validate({"claim": "c", "because": "b", **backing})
    assert judge(library, "alpha", claim, RUNS).verdict.value == word


def test_what_turned_false_is_told_for_each_assertion(library: Library) -> None:
    backing = {"reported": [TRUE, FALSE], "shown": [shown("bad"), shown("open"), shown("good")]}
    judged = judge(library, "alpha", Claim.model_validate({"claim": "c", "because": "b", **backing}), RUNS)
    assert [each.assertion for each in judged.surprises] == ["Alpha-B's AP 40.5 is above 50", "bad is above 0"]


def test_the_assertion_of_a_correction_counts_among_the_surprises(library: Library) -> None:
    revision = {"reason": "r", "source": PLACE, "reported": FALSE}
    judged = judge(library, "alpha", Claim.model_validate({"claim": "c", "because": "b", "corrected": revision}), RUNS)
    assert judged.verdict is Verdict.CORRECTED
    assert len(judged.surprises) == 1


@pytest.mark.slow
def test_a_false_assertion_fails_a_strict_build_and_no_other(ran: Project, command: Command) -> None:
    assert command("build", "--strict").returncode == 0
    edit(
        ran.cards / "alpha.yml",
        "    shown: {result: margin, above: 0}\n  - claim: Better",
        "    shown: {result: margin, above: 1.5}\n  - claim: Better",
    )
    strict = command("build", "--strict")
    assert strict.returncode == 1
    assert "model_cards/alpha.yml:11:5: 'Has a margin.' does not hold: margin is above 1.5" in strict.stderr
    assert command("build").returncode == 0
    card = json.loads((ran.site / "api/models/alpha.json").read_text("utf-8"))
    told = card["pros"][0]
    assert told["verdict"] == "not supported"
    assert told["findings"] == {"published": "none", "independent": "none", "run": "contradicts"}
    assert (told["shown"]["holds"], told["shown"]["outcome"]) == (False, "contradicts")


@pytest.mark.slow
def test_a_result_that_the_run_lacks_is_an_error_with_the_nearest_name(ran: Project, command: Command) -> None:
    edit(ran.cards / "alpha.yml", "result: second", "result: secnd")
    done = command("check")
    assert done.stdout.startswith(
        "model_cards/alpha.yml:24:13: the run of alpha has no result 'secnd', did you mean 'second'?"
    )
