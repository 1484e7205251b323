"""Seconds to the first hit of a search in Chromium: the theme's own search beside Pagefind."""

from __future__ import annotations

import functools
import http.server
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from scripts.benchmarks.projects import with_cards
from scripts.benchmarks.timing import print_table, timed

HEADER = ("Cards", "Search", "Build (s)", "Index (MB)", "Load to first hit (s)")
BOXES = {
    "Material": (".md-search__input", ".md-search-result__link"),
    "Pagefind": ("#search input", "#search .pagefind-ui__result-link"),
}
"""Selectors of the field and of a hit."""
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""The first has no window, and needs a third of a second less for each page that is opened."""
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


def compare(folder: Path, counts: Sequence[int]) -> None:
    """Print a table with a row for each number of cards and each search, of sites that are made in `folder`."""
    rows = []
    for count in counts:
        for name in BOXES:
            print(f"{count} cards, {name} ...", file=sys.stderr, flush=True)
            rows.append(_row(folder / f"{count}-{name}", count, name))
    print_table(
        "From the start of loading a page to the first hit; the search is opened and typed as soon as it can be",
        HEADER,
        rows,
    )


def _row(root: Path, count: int, name: str) -> tuple[object, ...]:
    with_cards(root, Path.cwd(), count)
    if name == "Pagefind":
        settings = yaml.safe_load((root / "mkdocs.yml").read_text("utf-8"))
        (root / "mkdocs.yml").write_text(yaml.safe_dump({**settings, "plugins": []}, sort_keys=False), "utf-8")
    build = timed([sys.executable, "-m", "scripts", "build"], root, {"PYTHONPATH": str(Path.cwd())})
    index = root / "site" / ("pagefind" if name == "Pagefind" else "search")
    size = sum(path.stat().st_size for path in index.rglob("*") if path.is_file()) / 1e6
    wanted = f"Model {count // 2}"
    seconds = sorted(_seconds_to_hit(root / "site", name, wanted) for _ in range(3))[1]
    return count, name, build.seconds, size, seconds


def _seconds_to_hit(site: Path, name: str, query: str) -> float:
    """Seconds until the model that is looked for is the first hit: while one types, another may be."""
    from playwright.sync_api import sync_playwright

    field, hit = BOXES[name]
    with serving(site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        started = time.monotonic()
        page.goto(f"{address}about/")
        page.keyboard.press("/")
        page.locator(field).press_sequentially(query)
        page.locator(hit).first.filter(has_text=query).wait_for(timeout=120_000)
        seconds = time.monotonic() - started
        browser.close()
    return seconds


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a local server of a folder."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
