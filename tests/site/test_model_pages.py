"""Pages of models in a browser: what the first screen shows, how long they are, what is folded, and how they print."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import no_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.browser, pytest.mark.slow, no_chromium]

WIDE, PHONE, PAPER = (1280, 900), (360, 740), (718, 1000)
"""Windows in CSS pixels; that of the print of an A4 page between margins of a centimetre, of any height."""

SEEN = """() => {
  const top = (each) => document.querySelector(each).getBoundingClientRect().top;
  const pictures = [...document.querySelectorAll(".first-picture img")].filter((each) => each.offsetParent);
  const seen = {
    length: document.documentElement.scrollHeight,
    purpose: top(".purpose"), claims: Math.max(top(".leading .claims-pro li"), top(".leading .claims-con li")),
    pictures: pictures.map((each) => [each.hasAttribute("width") && each.hasAttribute("height"), each.offsetHeight]),
  };
  document.querySelectorAll("details").forEach((each) => { each.open = true; });
  const nodes = (selector) => [...document.querySelectorAll(selector)];
  const all = (selector, chosen) => nodes(selector).filter(chosen).map((each) => each.outerHTML.slice(0, 90));
  const names = nodes("[id^=result-] code").map((each) => each.textContent).filter((name) => name.includes("_"));
  const link = (each) => each?.querySelector(".report");
  const reported = (each) => link(each.closest(".scroll, li[id], figure"))
    ?? each.closest("[id^=experiment-]")?.querySelector(":scope > .scale > .report") ?? link(each.previousElementSibling);
  return { ...seen,
    cut: all(".scroll .caption", (each) => each.getBoundingClientRect().width > each.closest(".scroll").clientWidth + 1),
    unreported: all("table.data, figure.plot, .claims li[id], .photographs", (each) => !reported(each)),
    empty: all(".advice section, .claims section", (each) => !each.querySelector("li")),
    named: all(".finding", (each) => names.some((name) => each.textContent.includes(name))),
  };
}"""
BEYOND = """() => {
  dispatchEvent(new Event("beforeprint"));
  return [...document.querySelectorAll("article *")]
    .filter((node) => node.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map((node) => node.outerHTML.slice(0, 120));
}"""


def on_each(site: Path, browser: Browser, address: str, size: tuple[int, int], script: str) -> Any:
    """What a script finds on the page of each model, by path."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    context.route("**/search_index.json", lambda route: route.abort())  # it takes longer than the page
    page = context.new_page()
    page.emulate_media(media="print" if size == PAPER else "screen")
    found = {}
    for path in sorted(f"models/{each.parent.name}/" for each in (site / "models").glob("*/index.html")):
        page.goto(address + path)
        found[path] = page.evaluate(script)
    context.close()
    assert len(found) > 15
    return found


@pytest.fixture(scope="module")
def wide(built: Path, browser: Browser, address: str) -> dict[str, Any]:
    return on_each(built, browser, address, WIDE, SEEN)


@pytest.fixture(scope="module")
def phone(built: Path, browser: Browser, address: str) -> dict[str, Any]:
    return on_each(built, browser, address, PHONE, SEEN)


def beyond(pages: dict[str, Any], what: str, most: float) -> dict[str, float]:
    """The pages on which a measure is larger than it may be."""
    return {path: seen[what] for path, seen in pages.items() if seen[what] > most}


def test_no_model_takes_more_screens_before_anything_is_opened(wide: dict[str, Any], phone: dict[str, Any]) -> None:
    assert beyond(wide, "length", 6 * WIDE[1]) == {}
    assert beyond(phone, "length", 12 * PHONE[1]) == {}


def test_purpose_and_the_strongest_claims_of_every_model_begin_on_the_first_screen(wide: dict[str, Any]) -> None:
    assert beyond(wide, "purpose", 400) == {}
    assert beyond(wide, "claims", 720) == {}


def test_on_a_phone_purpose_comes_at_once_and_claims_within_two_screens(phone: dict[str, Any]) -> None:
    assert beyond(phone, "purpose", 300) == {}
    assert beyond(phone, "claims", 2 * PHONE[1]) == {}


def test_the_first_picture_is_small_and_its_size_is_known_before_it_comes(
    wide: dict[str, Any], phone: dict[str, Any]
) -> None:
    for pages, highest in ((wide, 260), (phone, 180)):
        assert all(len(seen["pictures"]) <= 1 for seen in pages.values()), "one for each scheme"
        pictures = [picture for seen in pages.values() for picture in seen["pictures"]]
        assert len(pictures) > 15
        assert all(known and height <= highest for known, height in pictures)


@pytest.mark.parametrize("what", ["cut", "unreported", "empty", "named"])
def test_opened_no_caption_is_cut_all_can_be_reported_no_card_is_empty_and_no_run_is_told_by_names(
    what: str, wide: dict[str, Any], phone: dict[str, Any]
) -> None:
    for pages in (wide, phone):
        assert {path: seen[what] for path, seen in pages.items() if seen[what]} == {}


WATCHED = """() => addEventListener("beforeprint", () => { window.printed = {
  scheme: document.body.dataset.mdColorScheme, background: getComputedStyle(document.body).backgroundColor,
  closed: document.querySelectorAll("details:not([open])").length,
}; })"""
SHEET = re.compile(rb"([\d.]+) ([\d.]+) ([\d.]+) rg\s(?:/\w+ gs\s)?0 0 79[3-6] 112[2-5] re\sf")
"""A whole sheet filled with a colour, its margins, too."""


def sheets(pdf: bytes) -> set[tuple[float, ...]]:
    """The colours, from 0 to 1, that whole A4 pages of a PDF are filled with."""
    found = set()
    for start in re.finditer(rb"stream\r?\n", pdf):
        try:
            content = zlib.decompressobj().decompress(pdf[start.end() :])
        except zlib.error:
            continue  # the end of a stream, or one that is not compressed
        found |= {tuple(map(float, colour)) for colour in SHEET.findall(content)}
    return found


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


def test_the_margins_of_a_page_printed_from_the_dark_scheme_are_white(browser: Browser, address: str) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(f"{address}models/detr/")
    assert sheets(page.pdf(format="A4", print_background=True)) <= {(1, 1, 1)}
    page.evaluate("document.documentElement.style.setProperty('color-scheme', 'dark', 'important')")
    (dark,) = sheets(page.pdf(format="A4", print_background=True))
    assert max(dark) < 0.2, "margins that are not white would be seen"
    context.close()


def test_on_paper_nothing_of_a_model_lies_beyond_the_page(built: Path, browser: Browser, address: str) -> None:
    outside = on_each(built, browser, address, PAPER, BEYOND)
    assert {path: found for path, found in outside.items() if found} == {}
