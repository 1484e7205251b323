"""The built site in a real headless Chromium: search, no foreign request, no error, no overflow.

The site is that of this project: its cards, pages, style and figures.
"""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from built_site import TEMPLATES, arrive
from conftest import no_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

pytestmark = [pytest.mark.browser, pytest.mark.slow, no_chromium]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_page_asks_no_other_host_and_reports_no_error(template: str, page: Page, address: str) -> None:
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("requestfailed", lambda request: errors.append(request.url))
    response = arrive(page, address + TEMPLATES[template])
    assert response is not None
    assert response.ok
    foreign = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert (foreign, errors) == ([], [])


@pytest.mark.parametrize("template", TEMPLATES)
def test_nothing_sticks_out_on_a_phone(template: str, browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.goto(address + TEMPLATES[template])
    width = page.evaluate("document.documentElement.scrollWidth")
    context.close()
    assert width <= 360


SHIFTS = """() => new Promise((resolve) => {
  let total = 0;
  const add = (list) => list.getEntries().forEach((entry) => { total += entry.hadRecentInput ? 0 : entry.value; });
  new PerformanceObserver(add).observe({ type: "layout-shift", buffered: true });
  setTimeout(() => resolve(total), 500);
})"""


LATE = re.compile(r"\.(woff2|js|json)(\?|$)")
"""What a page is shown without, and may not be moved by when it comes: fonts, scripts and their data."""


def arrive_late(route: Route) -> None:
    time.sleep(0.1)
    route.continue_()


@pytest.mark.parametrize("width", [412, 1280])
@pytest.mark.parametrize("template", TEMPLATES)
def test_nothing_moves_while_a_page_loads(template: str, width: int, browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 820})
    page = context.new_page()
    page.route(LATE, arrive_late)  # always, not only on a machine that is busy
    arrive(page, address + TEMPLATES[template])
    shift = page.evaluate(SHIFTS)
    context.close()
    assert shift <= 0.1  # what Lighthouse calls good


def test_each_model_with_a_picture_has_a_small_one_in_the_table(page: Page, address: str) -> None:
    page.goto(f"{address}models/")
    pictures = page.locator("table.browse .browse-thumb img.only-light")
    assert pictures.count() == page.locator(".model-tile img.only-light").count() > 0
    told = pictures.evaluate_all("all => all.map(each => [each.alt, each.loading, each.width > 0])")
    assert all(each == ["", "lazy", True] for each in told)


def test_on_a_phone_home_leads_on_without_scrolling(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.goto(address)
    buttons = [button.bounding_box() for button in page.locator(".ways").first.locator("a").all()]
    context.close()
    assert all(box and box["y"] + box["height"] <= 400 for box in buttons)


@pytest.mark.parametrize("path", ["models/", "evidence/", "choose/"])
def test_without_script_no_control_is_shown_that_would_do_nothing(path: str, browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address + path)
    assert page.locator("article form:visible").count() == 0
    for folded in page.locator("article details:has(table) > summary:visible").all():
        folded.click()
    assert page.locator("article tbody tr:visible").count() > 15
    context.close()


def test_a_filter_finds_what_a_table_says_in_a_title_only(page: Page, address: str) -> None:
    page.goto(address + "licensing/")
    titled = page.locator("table.browse a[title*=', ']", has_text="variants").first
    row = titled.locator("xpath=ancestor::tr")
    row.evaluate("row => { row.id = 'titled' }")
    name = str(titled.get_attribute("title")).rpartition(", ")[2]
    assert name not in row.inner_text()
    page.locator(".browse-controls input").fill(name)
    assert page.locator("#titled").is_visible()
    assert page.locator("table.browse tbody tr:visible").count() < page.locator("table.browse tbody tr").count()


def test_search_finds_a_model(page: Page, address: str) -> None:
    page.goto(address)
    page.keyboard.press("/")
    page.locator("input.md-search__input").press_sequentially("swin shifted windows")  # the theme listens to keys
    first = page.locator(".md-search-result__link").first
    first.wait_for(timeout=20_000)
    links = page.locator(".md-search-result__link").evaluate_all("nodes => nodes.map(node => node.href)")
    assert any("/models/swin/" in link for link in links[:3]), links


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_figure_is_shown_in_the_scheme_of_the_page_and_only_in_that(
    scheme: str, browser: Browser, address: str
) -> None:
    context = browser.new_context(color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    arrive(page, address + "models/unet/")
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(500)
    context.close()
    figures = [url for url in fetched if "/figures/" in url]
    other = "dark" if scheme == "light" else "light"
    assert figures
    assert [url for url in figures[1:] if f".{other}." in url] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_has_its_scheme_before_any_script_has_come(scheme: str, browser: Browser, address: str) -> None:
    """That of the reader's system, until one is chosen."""
    body, names = "body[data-md-color-scheme='{}']", {"light": "default", "dark": "slate"}
    other = "dark" if scheme == "light" else "light"
    context = browser.new_context(color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    arrive(page, address)
    page.get_by_title(f"Switch to {other} mode").click()
    page.locator(body.format(names[other])).wait_for()
    context.route("**/*.js", lambda route: route.abort())
    page.reload()
    assert page.locator(body.format(names[other])).count() == 1, "what was chosen"
    page.evaluate("localStorage.clear()")
    page.reload()
    assert page.locator(body.format(names[scheme])).count() == 1, "that of the system"
    context.close()


def test_every_link_within_the_site_leads_somewhere(built: Path, tmp_path: Path) -> None:
    (tmp_path / "model-comparisons").symlink_to(
        built
    )  # what is not found anywhere is told by a page with whole addresses
    lychee = Path(sys.executable).with_name("lychee")
    options = [
        "--offline",
        "--index-files",
        "index.html",
        "--include-fragments",
        "--root-dir",
        str(tmp_path),
        "--no-progress",
    ]
    done = subprocess.run([str(lychee), *options, str(built)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_the_bibtex_of_a_model_can_be_copied(page: Page, address: str) -> None:
    page.goto(address + "models/unet/")
    page.locator("#references summary").click()
    assert page.locator("#references button.md-code__button, #references .md-clipboard").first.is_visible()
    assert "@inproceedings{ronneberger2015," in page.locator("#references code").inner_text()


def test_models_compared_stand_in_the_order_of_the_address(page: Page, address: str) -> None:
    arrive(page, f"{address}compare/?m=swin,vit")
    heads = page.locator("#compare thead th:visible").all_inner_texts()
    assert heads == ["Model", "Swin Transformer", "ViT"]


def test_only_numbers_of_equal_conditions_are_ranked(page: Page, address: str) -> None:
    page.goto(f"{address}compare/?m=detr,faster-rcnn,mask-rcnn")
    page.locator("#compare-numbers table").first.wait_for()
    unranked = page.locator("#compare-numbers tr", has_text="not ranked:")
    assert unranked.count() > 0
    assert unranked.locator("strong").count() == 0
    assert page.locator("#compare-numbers td strong").count() > 0


def test_what_models_share_is_folded_away(page: Page, address: str) -> None:
    arrive(page, f"{address}compare/?m=detr,mask-dino")
    assert page.locator("#compare tr", has_text="Licence of the code").is_hidden()
    page.locator("#compare-same summary").click()
    assert "Apache-2.0" in page.locator("#compare-same").inner_text()


def test_a_choice_of_models_can_be_made_by_keyboard(page: Page, address: str) -> None:
    arrive(page, f"{address}compare/?m=detr")
    page.get_by_label("Second").focus()
    page.keyboard.type("Swin")
    page.keyboard.press("Tab")
    page.wait_for_function("location.search.includes('swin')")
    assert page.locator("#compare thead th:visible").all_inner_texts() == ["Model", "DETR", "Swin Transformer"]


def test_without_script_every_model_is_in_the_comparison(browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}compare/")
    heads, purposes = page.locator("#compare thead th:visible"), page.locator("#compare tbody tr").nth(1).locator("td")
    assert heads.count() - 1 == purposes.count() > 15
    context.close()


def test_a_table_is_filtered_and_sorted_as_the_address_says(page: Page, address: str) -> None:
    page.goto(f"{address}models/?task=object+detection&sort=-year")
    page.locator(".browse-controls").wait_for()
    years = page.locator("table.browse tbody tr:visible td:nth-child(4)").all_inner_texts()
    assert len(years) > 5
    assert years == sorted(years, reverse=True)
    assert all("object detection" in row for row in page.locator("table.browse tbody tr:visible").all_inner_texts())


def test_typing_into_a_table_filter_leaves_the_matching_rows(page: Page, address: str) -> None:
    page.goto(f"{address}evidence/")
    page.get_by_label("Contains").fill("non-maximum")
    shown = page.locator("table.browse tbody tr:visible").all_inner_texts()
    assert shown
    assert all("non-maximum" in text.lower() for text in shown)
    assert page.locator(".browse-count").inner_text().startswith(f"{len(shown)} of ")


def test_a_chart_can_be_explored_without_a_foreign_request(page: Page, address: str) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{address}charts/")
    assert not [url for url in requests if url.endswith("vega.js")], "the library is fetched before it is asked for"
    page.locator(".chart-explore").first.click()
    page.locator(".chart-live svg").first.wait_for(timeout=20_000)
    assert all(url.startswith((address, "data:", "blob:")) for url in requests)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_page_without_its_figures_weighs_at_most_500_kilobytes(template: str, page: Page, address: str) -> None:
    weight: dict[str, int] = {}  # compressed, as hosts send them
    page.on("response", lambda response: weight.setdefault(response.url, len(gzip.compress(response.body()))))
    arrive(page, address + TEMPLATES[template])
    told = {url: size for url, size in weight.items() if "/figures/" not in url and not url.endswith(".svg")}
    assert sum(told.values()) <= (150_000 if template == "home" else 500_000), told


@pytest.mark.parametrize(
    "path",
    [
        "index.html",
        "choose/index.html?task=object+detection",
        "compare/index.html?m=detr,mask-rcnn",
        "charts/index.html",
    ],
)
def test_an_archive_on_a_disk_shows_what_it_has_and_says_what_it_has_not(
    path: str, page: Page, built: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(built / "downloads/model-comparisons.zip") as packed:
        packed.extractall(tmp_path)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"{(tmp_path / 'model-comparisons').as_uri()}/{path}")
    page.locator(".search-absent").wait_for()
    if path.startswith("compare/"):
        page.locator("#compare-numbers table").first.wait_for()
    if path.startswith("charts/"):
        assert "where the site has a server" in page.locator(".chart-told").first.inner_text()
    if path.startswith("choose/"):
        page.locator("#choose-fits a").first.click()
        page.wait_for_url("**/models/*/index.html")
        assert page.locator("h1").is_visible()
    assert errors == []
