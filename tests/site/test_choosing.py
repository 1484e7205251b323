"""The page Choose of the built site in Chromium: first picks that were written down, and what it says of answers."""

from __future__ import annotations

import re
import urllib.parse
from typing import TYPE_CHECKING

import pytest
import yaml
from conftest import ROOT, no_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow, no_chromium]


def ids_in(page: Page, selector: str) -> list[str]:
    """The checkpoints of a list of the page Choose, as `card/checkpoint`, in its order."""
    return page.locator(f"{selector} li").evaluate_all("items => items.map(item => item.dataset.id)")


CASES = yaml.safe_load((ROOT / "tests/choices.yml").read_text("utf-8"))
RANKED = re.compile(r"ranked by (.+?)(?: on |;|\.)")
"""Measure by which the page says that it ranks."""


def choose(page: Page, address: str, answers: str = "") -> None:
    """Open the page Choose with answers in its address."""
    page.goto(f"{address}choose/{answers}")
    page.locator("#choose[data-ready]").wait_for()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["need"][:60])
def test_a_choice_begins_with_the_checkpoint_that_was_written_down(case: dict, page: Page, address: str) -> None:
    choose(page, address, f"?{urllib.parse.urlencode(case['answers'])}")
    fits, may = ids_in(page, "#choose-fits"), ids_in(page, "#choose-maybe")
    out = ids_in(page, "#choose-out") + ids_in(page, "#choose-other")
    assert next(iter(fits), None) == case["first"]
    assert not case.get("may") or may
    told = RANKED.search(page.locator("#choose-ranked").inner_text())
    assert bool(told) == (len(fits) > 1 and case.get("ranked", True))
    assert len(case["why"]) >= 10
    assert not told or told[1].lower() in case["why"].lower()
    top = page.locator("#choose-top").inner_text()
    assert top.startswith(("first: ", "the only one: ")) == (len(fits) == 1 or bool(told))
    listed = [*fits, *may, *out]
    assert (
        len(listed)
        == len(set(listed))
        == page.evaluate("JSON.parse(document.getElementById('choose-data').textContent).candidates.length")
    )


def test_each_checkpoint_left_out_is_told_why(page: Page, address: str) -> None:
    choose(page, address, "?task=video+classification&use=closed+product")
    reasons = page.locator("#choose-out li").all_inner_texts()
    assert reasons
    assert any("licence" in reason for reason in reasons)


def test_an_answer_changes_the_address_and_the_list(page: Page, address: str) -> None:
    choose(page, address)
    page.get_by_label("What shall it do?").select_option("depth estimation")
    assert {each.split("/")[0] for each in ids_in(page, "#choose-fits")} == {"depth-anything"}
    assert "task=depth+estimation" in page.url
    page.get_by_role("button", name="Start again").click()
    page.wait_for_function("document.querySelectorAll('#choose-out li').length === 0")


def test_where_nothing_is_left_a_click_gives_way(page: Page, address: str) -> None:
    choose(page, address, "?task=object+detection&video=yes&memory=1")
    assert page.locator("#choose-top").inner_text() == "nothing meets all your answers: what could give way"
    page.locator("#choose-ways").get_by_role("button", name="Give way on: Is the input video").click()
    assert ids_in(page, "#choose-fits")
    assert page.locator("#choose [name=video]").input_value() == ""
    assert page.locator("#choose-ways button").count() == 0


def test_an_answer_that_would_leave_nothing_is_off_and_says_so(page: Page, address: str) -> None:
    choose(page, address, "?task=object+detection")
    video = page.get_by_label("Is the input video?")
    assert video.is_disabled()
    assert "yes would leave nothing" in page.locator("label", has=video).inner_text()
    page.get_by_label("What shall it do?").select_option("")
    page.get_by_label("Is the input video?").select_option("yes")
    task = page.locator("#choose [name=task]")
    assert task.locator("option:disabled").count() > 5
    assert (
        task.locator("option:enabled").evaluate_all("all => all.map(each => each.label)")[1] == "video classification"
    )
    assert task.locator("option:disabled").first.get_attribute("label").endswith("(leaves nothing)")


def test_a_time_asks_for_its_device_and_counts_once_it_is_named(page: Page, address: str) -> None:
    choose(page, address)
    page.get_by_label("Time per image").fill("10")
    hints = page.locator("#choose .choose-hint")
    assert {"not counted before a device is named", "name the device that the time is for"} <= set(
        hints.all_inner_texts()
    )
    before = page.locator("#choose-count").inner_text()
    page.get_by_label("Measured on").select_option("T4, fp16")
    assert page.locator("#choose-count").inner_text() != before
    assert not any("device" in hint for hint in hints.all_inner_texts())


def test_a_number_below_zero_does_not_count_and_says_so(page: Page, address: str) -> None:
    choose(page, address, "?task=object+detection&memory=-1")
    memory = page.locator("[name=memory]")
    assert memory.get_attribute("aria-invalid") == "true"
    assert "not counted" in page.locator("label", has=memory).inner_text()
    assert len(ids_in(page, "#choose-fits")) > 10
    assert "memory" not in page.url


def test_no_one_is_first_where_nothing_ranks(page: Page, address: str) -> None:
    for answers in ("?use=research", "?task=object+detection&by=time"):
        choose(page, address, answers)
        assert page.locator("#choose-ranked").inner_text().startswith("Not ranked")
        assert page.locator("#choose-top").inner_text() == "not ranked"
    assert "most accurate of those measured alike: " in page.locator("#choose-tiers").inner_text()
    choose(page, address, "?use=research")
    assert "most accurate" not in page.locator("#choose-tiers").inner_text()


def test_an_answer_that_is_no_longer_offered_counts_as_none(page: Page, address: str) -> None:
    choose(page, address, "?task=object+detection&use=commercial")
    assert page.locator("#choose [name=use] option:checked").inner_text() == "does not matter"
    assert page.locator("#choose-fits li").count() > 10


@pytest.mark.parametrize("answers", ["", "?task=object+detection"])
def test_choose_stays_short_and_its_lists_open(answers: str, page: Page, address: str) -> None:
    choose(page, address, answers)
    assert page.evaluate("document.documentElement.scrollHeight") < 4 * 900
    page.get_by_role("button", name="Show the other").first.press("Enter")
    shown = page.locator("#choose-fits li:visible")
    assert shown.count() == page.locator("#choose-fits li").count() > 10
    assert shown.nth(10).locator("a").first.evaluate("node => node === document.activeElement")
