"""Pages of models in a browser: how long they are before a reader opens anything, and how they print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import no_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.browser, pytest.mark.slow, no_chromium]


def model_pages(site: Path) -> list[str]:
    return sorted(f"models/{path.parent.name}/" for path in (site / "models").glob("*/index.html"))


@pytest.mark.parametrize(("width", "height", "screens"), [(1280, 900, 6), (360, 740, 12)])
def test_no_model_takes_more_screens_before_anything_is_opened(
    width: int, height: int, screens: int, built: Path, browser: Browser, address: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": height})
    context.route("**/search_index.json", lambda route: route.abort())  # it takes longer than the page
    page = context.new_page()
    lengths = {}
    for path in model_pages(built):
        page.goto(address + path)
        lengths[path] = page.evaluate("document.documentElement.scrollHeight") / height
    context.close()
    assert len(lengths) > 15
    assert {path: length for path, length in lengths.items() if length > screens} == {}


WATCHED = """() => addEventListener("beforeprint", () => { window.printed = {
  scheme: document.body.dataset.mdColorScheme, background: getComputedStyle(document.body).backgroundColor,
  closed: document.querySelectorAll("details:not([open])").length,
}; })"""
BEYOND = """() => [...document.querySelectorAll("article *")]
  .filter((node) => node.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map((node) => node.outerHTML.slice(0, 120))"""
PAPER = 718
"""Width of the print of an A4 page between margins of a centimetre, in CSS pixels."""


def test_a_model_is_printed_with_everything_opened_in_light_colours_and_folds_again(
    browser: Browser, address: str
) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(f"{address}models/detr/")
    closed = page.locator("details:not([open])").count()
    page.evaluate(WATCHED)
    pdf = page.pdf(format="A4", print_background=True)
    printed = page.evaluate("window.printed")
    assert closed > 5
    assert printed == {"scheme": "default", "background": "rgb(255, 255, 255)", "closed": 0}
    assert re.findall(rb"/MediaBox ?\[0 0 59\d(?:\.\d+)? 84\d", pdf)
    assert page.locator("details:not([open])").count() == closed
    assert page.locator("body").get_attribute("data-md-color-scheme") == "slate"
    context.close()


def test_on_paper_nothing_of_a_model_lies_beyond_the_page(built: Path, browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": PAPER, "height": 1000})
    context.route("**/search_index.json", lambda route: route.abort())
    page = context.new_page()
    page.emulate_media(media="print")
    beyond = {}
    for path in model_pages(built):
        page.goto(address + path)
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        beyond[path] = page.evaluate(BEYOND)
    context.close()
    assert len(beyond) > 15
    assert {path: found for path, found in beyond.items() if found} == {}
