"""The built site in a real headless Chromium: search, no foreign request, no accessibility violation, no overflow.

The site is that of this project: its cards, pages and style, with the examples run in the smoke preset.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_core_python.sync_playwright import Axe
from conftest import ROOT, needs_chromium, serving
from playwright.sync_api import Browser, Page

TEMPLATES = {
    "home": "", "models": "models/", "model": "models/unet/", "model without an example": "models/yolov8/",
    "tasks": "tasks/", "numbers": "numbers/", "examples": "examples/", "example": "examples/unet/",
    "glossary": "glossary/", "notes": "notes/", "hand-written": "about/evidence/", "reference": "reference/lab/",
    "downloads": "downloads/",
}  # fmt: skip

pytestmark = needs_chromium


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of this project, built in a copy of it."""
    copy = tmp_path_factory.mktemp("project")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    for command in (["run", "--preset", "smoke"], ["build", "--preset", "smoke"]):
        done = subprocess.run(
            [sys.executable, "-m", "scripts", *command, "--device", "cpu"],
            cwd=copy, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    return copy / "site"


@pytest.fixture(scope="session")
def address(built: Path) -> Iterator[str]:
    with serving(built) as address:
        yield address


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_page_asks_no_other_host_and_reports_no_error(template: str, page: Page, address: str) -> None:
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("requestfailed", lambda request: errors.append(request.url))
    response = page.goto(address + TEMPLATES[template], wait_until="networkidle")
    assert response is not None
    assert response.ok
    foreign = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert (foreign, errors) == ([], [])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_axe_finds_no_violation(template: str, scheme: str, browser: Browser, address: str) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(address + TEMPLATES[template], wait_until="networkidle")
    found = Axe().run(page)["violations"]
    context.close()
    told = [f"{each['id']}: {node['html'][:150]}" for each in found for node in each["nodes"][:4]]
    assert told == []


@pytest.mark.parametrize("template", TEMPLATES)
def test_nothing_sticks_out_on_a_phone(template: str, browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.goto(address + TEMPLATES[template])
    width = page.evaluate("document.documentElement.scrollWidth")
    context.close()
    assert width <= 360


def test_search_finds_a_model(page: Page, address: str) -> None:
    page.goto(address)
    page.locator("label.md-search__icon").first.wait_for(state="attached")
    page.keyboard.press("/")
    page.locator("input.md-search__input").fill("swin shifted windows")
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
    page.goto(address + "models/unet/", wait_until="networkidle")
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(500)
    context.close()
    figures = [url for url in fetched if "/figures/" in url]
    other = "dark" if scheme == "light" else "light"
    assert figures
    assert [url for url in figures[1:] if f".{other}." in url] == []


def test_every_link_within_the_site_leads_somewhere(built: Path) -> None:
    lychee = Path(sys.executable).with_name("lychee")
    options = [
        "--offline",
        "--index-files",
        "index.html",
        "--include-fragments",
        "--root-dir",
        str(built),
        "--no-progress",
    ]
    done = subprocess.run([str(lychee), *options, str(built)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_the_bibtex_of_a_model_can_be_copied(page: Page, address: str) -> None:
    page.goto(address + "models/unet/")
    page.locator("details.quote summary").click()
    assert page.locator("details.quote button.md-code__button, details.quote .md-clipboard").first.is_visible()
    assert "@inproceedings{ronneberger2015," in page.locator("details.quote code").inner_text()
