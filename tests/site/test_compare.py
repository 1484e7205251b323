"""Compare and the pages of pairs in a real browser: what fits, what stands where, and what is no contest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conftest import no_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow, no_chromium]

FOUR = "compare/?m=improved-mask-rcnn,attention-unet,faster-rcnn,graph-transformer"
LONG = "supercalifragilistic" * 3


def chosen(page: Page, address: str) -> None:
    page.goto(address)
    page.locator("#compare-reasons[data-ready]").wait_for()
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")


@pytest.mark.parametrize("width", [1024, 1280])
def test_four_columns_of_long_content_fit(width: int, browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    chosen(page, address + FOUR)
    page.evaluate("word => document.querySelectorAll('table.compare td').forEach((cell) => cell.append(word))", LONG)
    sticking_out = page.evaluate(
        "[...document.querySelectorAll('.scroll, table.compare :is(th, td)')].filter((each) => each.offsetParent"
        " && each.scrollWidth > each.clientWidth + 1).map((each) => each.textContent.slice(0, 80))"
    )
    shown = page.locator("#compare thead th:visible").count()
    context.close()
    assert (shown, sticking_out) == (5, [])


def test_numbers_stand_between_what_a_model_is_and_what_is_said_of_it(page: Page, address: str) -> None:
    chosen(page, f"{address}compare/?m=swin,vit,convnext")
    tops = [
        page.locator(each).bounding_box()
        for each in ("#compare", "#compare-numbers table >> nth=0", "#compare-reasons")
    ]
    assert all(tops)
    heights = [top["y"] for top in tops if top]
    assert heights == sorted(heights)
    assert heights[1] < 1600


def test_sizes_and_times_are_no_contest(page: Page, address: str) -> None:
    chosen(page, f"{address}compare/?m=swin,vit")
    for measure in ("Parameters", "MACs", "Images per second", "Timed here"):
        body = page.locator("#compare-numbers tbody", has=page.locator("tr.conditions", has_text=measure)).first
        assert body.locator("td:not(:empty)").count() > 1
        assert body.locator("strong").count() == 0
    sizes = page.locator("#compare-numbers tbody", has=page.locator("tr.conditions", has_text="Parameters")).first
    assert "Swin-T" in sizes.locator("td").first.inner_text()
    assert "Swin-L" in sizes.locator("td").first.inner_text()


def test_compare_begins_with_the_pair_that_the_page_names(page: Page, address: str) -> None:
    chosen(page, f"{address}compare/")
    heads = page.locator("#compare thead th:visible[data-model]").evaluate_all(
        "all => all.map((each) => each.dataset.model)"
    )
    assert ",".join(heads) == page.locator("#compare-choice").get_attribute("data-first")


@pytest.mark.parametrize("pair", ["swin-vs-convnext", "mask-rcnn-vs-mask-dino", "improved-mask-rcnn-vs-mask2former"])
def test_a_pair_is_answered_on_the_first_screen(pair: str, page: Page, address: str) -> None:
    page.goto(f"{address}compare/{pair}/")
    answer = page.locator(".pair ~ p").nth(2)
    assert "licences" in answer.inner_text()
    box = answer.bounding_box()
    assert box
    assert box["y"] + box["height"] <= 800
