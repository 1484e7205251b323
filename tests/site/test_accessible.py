"""Pages for those who use them by keyboard, or want nothing to move."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conftest import no_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow, no_chromium]


def test_what_has_the_focus_shows_it(page: Page, address: str) -> None:
    page.goto(f"{address}choose/")
    page.locator("#choose[data-ready]").wait_for()
    fields = page.locator("#choose :is(input, select, button):enabled:visible, article summary:visible")
    assert fields.count() > 5
    for field in fields.all()[:20]:
        page.keyboard.press("Tab")  # so that a focus counts as one by keyboard
        field.focus()
        assert field.evaluate("node => getComputedStyle(node).outlineStyle") != "none", field.evaluate(
            "node => node.outerHTML"
        )


def test_a_wide_table_is_scrolled_by_keyboard(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.goto(f"{address}numbers/")
    table = page.locator(".scroll").first
    table.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.activeElement.scrollLeft > 0")
    context.close()


def test_a_chart_is_opened_and_read_by_keyboard(page: Page, address: str) -> None:
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"{address}charts/")
    page.locator(".chart-explore").first.press("Enter")
    told = page.locator(".chart-told")
    told.get_by_text("system: ").wait_for()  # of the first point, which has the focus now
    first = told.inner_text()
    page.keyboard.press("ArrowRight")
    assert told.inner_text() != first
    page.keyboard.press("ArrowLeft")
    assert told.inner_text() == first
    page.keyboard.press("Enter")
    page.wait_for_url("**/models/*/#table-*")
    assert errors == []


@pytest.mark.parametrize("path", ["models/", "evidence/"])
def test_a_table_is_sorted_by_keyboard(path: str, page: Page, address: str) -> None:
    page.goto(address + path)
    head = page.locator("table.browse th[data-sort]").last
    button = head.get_by_role("button")
    for sorted_by in ("ascending", "descending"):
        button.press("Enter")
        assert head.get_attribute("aria-sort") == sorted_by
    assert button.evaluate("node => node === document.activeElement")


def test_nothing_moves_for_those_who_want_no_motion(browser: Browser, address: str) -> None:
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.goto(f"{address}models/unet/")
    moving = """() => [...document.querySelectorAll("*")].filter(node => {
      const style = getComputedStyle(node);
      return style.animationName !== "none" || style.transitionDuration.split(", ").some(each => parseFloat(each) > 0);
    }).map(node => node.outerHTML.slice(0, 80))"""
    assert page.evaluate(moving) == []
    context.close()
