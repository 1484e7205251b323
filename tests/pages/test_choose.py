"""What the page Choose says of the cards of this project: its rules, run in Chromium without a page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ROOT, no_chromium

from scripts.cards.library import load_library
from scripts.evidence.knowledge import Knowledge
from scripts.exports import choices

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

START = """([source, data]) => {
  const module = {};
  new Function("module", source)(module);
  const { judge } = module.exports;
  const left = (answers) => { const { fits, may } = judge(data, answers); return fits.length + may.length; };
  window.choose = { ...module.exports, data, left };
}"""

EACH_COMBINATION = """() => {
  const { data, judge, left, ways } = choose;
  const asked = data.questions.filter(({ id }) => ["task", "masks", "prompt", "video", "use"].includes(id));
  const besides = [{}, { memory: "0", device: "T4, fp16", latency: "0.001" }];
  let all = [{}];
  for (const { id, options } of asked)
    all = all.flatMap((each) => [each, ...options.map((option) => ({ ...each, [id]: option }))]);
  const silent = [], untrue = [];
  for (const answers of all.flatMap((each) => besides.map((more) => ({ ...each, ...more })))) {
    const found = ways(judge(data, answers));
    if (!left(answers) !== found.length > 0) silent.push(answers);
    for (const way of found) {
      const fewer = Object.fromEntries(Object.entries(answers).filter(([id]) => !way.questions.some((each) => each.id === id)));
      if (!way.left || left(fewer) !== way.left) untrue.push([answers, way]);
    }
  }
  return { count: all.length, silent, untrue };
}"""

EACH_WAY_BY_CONTROLS = """() => {
  const { closed, data, left } = choose;
  const asked = data.questions.filter(({ id }) => ["task", "masks", "prompt", "video", "use", "device"].includes(id));
  const waiting = [{}], seen = new Set(["{}"]), empty = [];
  while (waiting.length) {
    const answers = waiting.pop();
    if (!left(answers)) empty.push(answers);
    for (const { id, options } of asked.filter((question) => !answers[question.id])) {
      const not = closed(data, answers, asked.find((question) => question.id === id));
      for (const option of id === "device" ? options.slice(0, 1) : options) {
        const next = Object.fromEntries(Object.entries({ ...answers, [id]: option }).sort());
        if (not.has(option) || seen.has(JSON.stringify(next))) continue;
        seen.add(JSON.stringify(next));
        waiting.push(next);
      }
    }
  }
  return { count: seen.size, empty };
}"""

pytestmark = [pytest.mark.browser, no_chromium]


@pytest.fixture(scope="module")
def content() -> choices.Content:
    library, problems = load_library(ROOT / "model_cards", ROOT)
    assert not problems
    return choices.content(Knowledge(library, {}, {}))


@pytest.fixture(scope="module")
def rules(browser: Browser, content: choices.Content) -> Page:
    """An empty page with the functions of choose.js and the data under `choose`."""
    page = browser.new_page()
    page.evaluate(START, [(ROOT / "docs/assets/choose.js").read_text("utf-8"), content])
    return page


def shut(rules: Page, answers: dict[str, str], question: str) -> str:
    """Why the control of a question cannot be used, or nothing."""
    asked = "([answers, id]) => choose.shut(choose.data, answers, choose.data.questions.find((each) => each.id === id))"
    return str(rules.evaluate(asked, [answers, question]))


def judged(rules: Page, answers: dict[str, str]) -> dict[str, Any]:
    groups: dict[str, Any] = rules.evaluate("answers => choose.judge(choose.data, answers)", answers)
    return groups


def test_whatever_is_answered_something_is_left_or_a_way_out_is_told(rules: Page) -> None:
    told = rules.evaluate(EACH_COMBINATION)
    assert told["count"] == 20 * 2 * 2 * 2 * 5, "each task or none, three times yes or none, each use or none"
    assert (told["silent"], told["untrue"]) == ([], [])


def test_no_answer_that_is_open_leaves_nothing(rules: Page) -> None:
    told = rules.evaluate(EACH_WAY_BY_CONTROLS)
    assert told["count"] > 200
    assert told["empty"] == []


def test_a_time_can_be_given_before_its_device(rules: Page) -> None:
    assert shut(rules, {}, "latency") == ""
    assert shut(rules, {"task": "object detection"}, "latency") == ""
    assert "no time" in shut(rules, {"task": "medical segmentation"}, "latency")


def test_an_answer_that_would_leave_nothing_cannot_be_given(rules: Page) -> None:
    assert shut(rules, {}, "video") == ""
    assert "yes would leave nothing" in shut(rules, {"task": "object detection"}, "video")


def test_a_checkpoint_left_out_for_one_answer_names_it_unless_that_is_the_task(rules: Page) -> None:
    out = judged(rules, {"task": "object detection", "video": "yes"})["out"]
    detectors = [each for each in out if "object detection" in each["candidate"]["tasks"]]
    assert detectors
    assert {each["relax"]["id"] for each in detectors} == {"video"}
    assert all(each["elsewhere"] and each["relax"] is None for each in out if each not in detectors)


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({}, r"Not ranked: accuracy is that of a task"),
        ({"task": "object detection", "by": "time"}, r"Not ranked: name the device"),
        ({"task": "promptable segmentation"}, r"Not ranked: all have no figure measured alike\."),
        ({"task": "object detection", "memory": "0.05"}, r"All \d+ are ranked by AP on COCO val2017\."),
        ({"task": "object detection"}, r"The first \d+ are ranked by AP on COCO val2017; the others have no figure"),
        ({"task": "medical segmentation"}, r"Not ranked: all have no figure measured alike\."),
        ({"task": "object detection", "memory": "0.0025"}, r""),
    ],
)
def test_what_ranks_is_told_and_nothing_is_first_where_nothing_ranks(
    answers: dict[str, str], told: str, rules: Page
) -> None:
    groups = judged(rules, answers)
    assert re.match(told + ("" if told else "$"), groups["told"])
    assert any(each.get("ranks") for each in groups["fits"]) == ("ranked by" in told)
    if not answers:
        assert "most accurate" not in str(rules.evaluate("fits => choose.tiers(fits, {})", groups["fits"]))
