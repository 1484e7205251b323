"""Every page for those who use it by keyboard, listen to it, or want nothing to move."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from built_site import FRAMES, TEMPLATES, arrive
from conftest import ROOT, no_chromium

from scripts.project import Project
from scripts.site.gather import about

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow, no_chromium]


LOOKS = list(itertools.product((1280, 360), ("light", "dark")))
REPEATED = (
    "tbody > tr:nth-child(n+5), tbody:nth-of-type(n+6), :is(ul, ol) > li:nth-child(n+5), article:nth-of-type(n+4)"
)
"""What looks like its neighbours before it."""
OPEN = """() => document.querySelectorAll("details").forEach((each) => { each.open = true; })"""
READ = """async ([repeated, preload]) => {
  const options = { resultTypes: ["violations"], preload, rules: { "color-contrast": { enabled: false } } };
  const { violations } = await axe.run(document, options);
  document.querySelectorAll(repeated).forEach((each) => { each.remove(); });
  const one = { type: "rule", values: ["color-contrast"] };
  const contrast = await axe.run(document, { resultTypes: ["violations"], preload, runOnly: one });
  return [...violations, ...contrast.violations].flatMap(({ id, nodes }) =>
    nodes.slice(0, 3).map(({ html }) => `${id}: ${html.slice(0, 120)}`));
}"""
each_look = pytest.mark.parametrize("look", range(len(LOOKS)), ids=["-".join(map(str, look)) for look in LOOKS])


def told_by_axe(paths: list[str], look: int, browser: Browser, address: str, thorough: bool) -> dict[str, list[str]]:
    """What axe says of pages with all that is folded opened; contrast is read once for what repeats, it takes long.

    Args:
        thorough: wait for what a page fetches, and read the rules of the style sheet, which is the same for all pages.
    """
    from axe_core_python.base import AXE_SCRIPT

    width, scheme = LOOKS[look]
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    context.route("**/search_index.json", lambda route: route.abort())
    below = urlsplit(about(Project(ROOT)).address).path  # where the page for what is not found looks for its style
    if below != "/":
        context.route(f"**{below}**", lambda route: route.continue_(url=route.request.url.replace(below, "/", 1)))
    page = context.new_page()
    told = {}
    for path in paths:
        if thorough:
            arrive(page, address + path)
        else:
            page.goto(address + path, wait_until="load")
        page.evaluate(AXE_SCRIPT)
        page.evaluate(OPEN)
        page.evaluate(FRAMES)
        told[path] = page.evaluate(READ, [REPEATED, thorough])
    context.close()
    return told


@each_look
def test_axe_finds_no_violation_on_any_page(look: int, built: Path, browser: Browser, address: str) -> None:
    """Every page at both widths, light at the one and dark at the other; that for what is not found in all looks.

    Of the pages of pairs, half of all and of one template, each is seen in one look.
    """
    paths = sorted(f"{found.parent.relative_to(built).as_posix()}/" for found in built.rglob("*/index.html"))
    pairs = [path for path in paths if "-vs-" in path]
    others = [path for path in paths if path not in pairs]
    seen = ["404.html", *others[look in (1, 2) :: 2], *pairs[look :: len(LOOKS)]]
    told = told_by_axe(seen, look, browser, address, thorough=False)
    assert len(told) > 100
    assert {path: found for path, found in told.items() if found} == {}


@each_look
@pytest.mark.parametrize("template", TEMPLATES)
def test_axe_finds_no_violation_in_any_look(template: str, look: int, browser: Browser, address: str) -> None:
    told = told_by_axe([TEMPLATES[template]], look, browser, address, thorough=True)
    assert told == {TEMPLATES[template]: []}


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
