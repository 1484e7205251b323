"""What people type into the search, and the page that answers, in a real browser."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from built_site import arrive
from conftest import ROOT, no_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Route

pytestmark = [pytest.mark.browser, pytest.mark.slow, no_chromium]

SEARCHES = yaml.safe_load((ROOT / "tests/searches.yml").read_text("utf-8"))
FIELD = "input.md-search__input"
SETTLED = """query => new Promise(done => {
  const result = document.querySelector(".md-search-result");
  let last = "", same = 0;
  const look = () => {
    const now = document.querySelector(".md-search__input").value === query ? result.innerText : "";
    same = now && now === last ? same + 1 : 0;
    last = now;
    same < 6 ? setTimeout(look, 50) : done();
  };
  look();
})"""


@pytest.fixture(scope="module")
def searching(browser: Browser, address: str) -> Iterator[Page]:
    """A page whose search has read its index: what is typed before that gives no result."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield opened(context, address)
    context.close()


def opened(context: BrowserContext, address: str) -> Page:
    page = context.new_page()
    page.goto(f"{address}about/")
    page.keyboard.press("/")  # only now the index is fetched
    ready = page.locator(".md-search-result__meta", has_text="Type to start searching")
    ready.wait_for(state="attached", timeout=60_000)
    return page


def search(page: Page, query: str) -> None:
    """Type a query and wait until its results stand."""
    page.locator(FIELD).fill(query)
    page.locator(FIELD).press("End")  # the theme listens to keys
    page.evaluate(SETTLED, query)


def pages(page: Page, selector: str, address: str) -> list[str]:
    """The pages that the links lead to, below the site."""
    links = page.locator(selector).evaluate_all("nodes => nodes.map(node => node.href)")
    return list(dict.fromkeys(link.removeprefix(address).partition("#")[0].partition("?")[0] for link in links))


@pytest.mark.parametrize("case", SEARCHES, ids=lambda case: case["query"])
def test_what_people_type_leads_to_the_page_that_answers(case: dict[str, Any], searching: Page, address: str) -> None:
    search(searching, case["query"])
    if "offered" in case:
        assert case["offered"] in pages(searching, ".search-nearest a", address)
    else:
        found = pages(searching, ".md-search-result__item > .md-search-result__link", address)
        assert case["page"] in found[: case.get("rank", 1)]


def test_at_least_45_searches_are_written_down() -> None:
    assert len(SEARCHES) >= 45


def test_a_word_that_stands_on_a_page_brings_no_other_offer(searching: Page) -> None:
    search(searching, "segmentation")
    assert searching.locator(".search-nearest").inner_text() == ""


def test_a_result_shows_the_words_that_were_looked_for(searching: Page) -> None:
    search(searching, "maskrcnn")
    first = searching.locator(".md-search-result__item").first
    assert "maskrcnn" in [each.lower() for each in first.locator("mark:visible").all_inner_texts()]


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("tumor", "tumo"), ("zero shot", "zero"), ("instance segmentation", "segmentation"), ("NMS", "nms"),
        ("fine-tune", "fine"), ("real time", "real"),
    ],
)  # fmt: skip
def test_each_of_the_first_three_results_shows_a_word_that_was_looked_for(
    query: str, word: str, searching: Page
) -> None:
    search(searching, query)
    for result in searching.locator(".md-search-result__item").all()[:3]:
        marks = " ".join(result.locator("mark:visible").all_inner_texts()).lower()
        assert word in marks, result.inner_text()


@pytest.mark.parametrize("query", ["NMS-free", "tumor", "instance segmentation", "detr", "fine-tune"])
def test_results_show_no_word_that_was_added_to_the_query(query: str, searching: Page) -> None:
    search(searching, query)
    assert searching.locator(".md-search-result__list a").count() > 0
    assert "topic" not in searching.locator(".md-search-result__list").inner_text().replace("topics", "")
    assert "topic" not in str(searching.locator(".md-search-result__link").first.get_attribute("href"))


def test_the_name_of_a_task_leads_to_its_place_on_the_page_by_task(searching: Page, address: str) -> None:
    search(searching, "instance segmentation")
    searching.locator(FIELD).press("Enter")
    searching.wait_for_url(f"{address}tasks/?h=*#instance-segmentation")
    searching.go_back()
    searching.keyboard.press("/")
    searching.locator(".md-search-result__meta", has_text="Type to start searching").wait_for(state="attached")


@pytest.mark.parametrize("typed", ["segmentaton", "instnce segmentation"])
def test_a_mistyped_task_leads_to_its_place_on_the_page_by_task(typed: str, searching: Page, address: str) -> None:
    search(searching, typed)
    offered = searching.locator(".search-nearest a").evaluate_all("links => links.map(link => link.href)")
    assert f"{address}tasks/#instance-segmentation" in offered


def test_on_a_phone_results_and_offers_fit_and_are_reached_by_keyboard(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page = opened(context, address)
    search(page, "object detecton")
    offer = page.locator(".search-nearest a").first
    found = page.locator(".md-search-result__link").first
    for link in (offer, found):
        page.keyboard.press("ArrowDown")
        assert link.evaluate("link => link === document.activeElement")
        box = link.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
    offer.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}tasks/#object-detection")
    context.close()


def test_the_index_is_fetched_by_who_goes_to_the_search_and_by_nobody_else(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    arrive(page, address)
    assert not [url for url in fetched if "search_index" in url]
    with page.expect_request("**/search_index.json"):
        page.keyboard.press("/")
    with page.expect_request("**/search_index.json"):
        page.goto(f"{address}models/detr/?h=detr")  # from a result: its words are marked by the index's rules
    page.locator("mark").first.wait_for()
    context.close()


def test_an_offer_is_reached_by_keyboard(searching: Page, address: str) -> None:
    search(searching, "detrr")
    searching.keyboard.press("ArrowDown")
    assert searching.evaluate("document.activeElement.href") == f"{address}models/detr/"
    searching.locator(FIELD).focus()


def test_where_beginnings_of_words_fail_whole_words_are_looked_for(browser: Browser, address: str) -> None:
    """The theme's library fails at some beginnings, where words hold digits; a word with an operator is no beginning."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})

    def fail(route: Route) -> None:
        body = route.fetch().text()
        assert body.count("search(e){") == 1
        route.fulfill(body=body.replace("search(e){", "search(e){if(/swin( |$)/.test(e))return{items:[]};"))

    context.route("**/workers/search*.js", fail)
    page = opened(context, address)
    search(page, "swin")
    assert pages(page, ".md-search-result__item > .md-search-result__link", address)[:1] == ["models/swin/"]
    context.close()


def test_the_search_index_weighs_at_most_180_kilobytes(built: Path) -> None:
    index = (built / "search/search_index.json").read_bytes()  # all of it is fetched before the first hit
    assert len(gzip.compress(index)) <= 180_000
