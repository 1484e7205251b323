"""Pages of models in a browser: how long they are before a reader opens anything, and how they print."""

from __future__ import annotations

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
