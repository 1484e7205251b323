"""What a page weighs with all that it loads, compressed as a host sends it."""

from __future__ import annotations

import gzip
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from built_site import arrive
from conftest import no_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow, no_chromium]


@pytest.mark.parametrize(("path", "most"), [("", 120_000), ("models/", 500_000)])
def test_a_page_with_its_pictures_is_light(path: str, most: int, page: Page, address: str, built: Path) -> None:
    """Without the index of the search, which every page shares."""
    loaded: set[str] = set()
    page.on("request", lambda request: loaded.add(urllib.parse.urlparse(request.url).path.lstrip("/")))
    arrive(page, address + path)
    for picture in page.locator("img[loading=lazy]:visible").all():
        picture.scroll_into_view_if_needed()
        picture.evaluate("picture => picture.decode()")  # which waits until it has come
    files = [built / name / "index.html" if (built / name).is_dir() else built / name for name in loaded]
    assert sum(len(gzip.compress(file.read_bytes())) for file in files if file.name != "search_index.json") <= most
