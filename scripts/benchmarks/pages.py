"""How check, render and build grow with the number of cards, beside a bare `mkdocs build` of the same Markdown."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks.projects import with_cards
from scripts.benchmarks.timing import Timed, print_table, timed
from scripts.benchmarks.whole_site import seconds_to_see, served
from scripts.site.build import mkdocs_environment
from scripts.site.render import generated

HEADER = (
    "Cards", "Check", "Render", "unchanged", "one edited", "MkDocs alone", "Build", "share of render", "Edit to page", "Peak MB",
    "Index MB",
)  # fmt: skip
MEGABYTE = 1e6


def grow(folder: Path, counts: Sequence[int], like_ours: bool) -> None:
    """Print a table with one row for each number of cards, of projects that are made in `folder`."""
    kind = "clones of this project's cards" if like_ours else "made cards of 3 kB"
    rows = []
    for count in counts:
        print(f"{count} cards ...", file=sys.stderr, flush=True)
        rows.append(_row(folder / str(count), count, like_ours))
    print_table(f"{kind}; seconds from nothing, if not said otherwise; render checks too", HEADER, rows)


def _row(root: Path, count: int, like_ours: bool) -> tuple[object, ...]:
    with_cards(root, Path.cwd(), count, like_ours)
    check = _scripts(root, "check")
    _scripts(root, "render")  # so that the drawing library of the charts, the same for any number of cards, lies there
    _forget(root)
    cold, unchanged = _scripts(root, "render"), _scripts(root, "render")
    card = min((root / "model_cards").glob("[a-z]*.yml"))
    _edit(card, "first")
    edited = _scripts(root, "render")
    bare = timed([sys.executable, "-m", "mkdocs", "build", "-q", "-d", str(root / "bare")], root, mkdocs_environment())
    _forget(root)
    build = _scripts(root, "build")
    seen = _edit_to_page(root, card)
    index = (root / "site" / "search" / "search_index.json").stat().st_size / MEGABYTE
    share = f"{cold.seconds / build.seconds:.0%}"
    return (
        count, check.seconds, cold.seconds, unchanged.seconds, edited.seconds, bare.seconds, build.seconds, share, seen,
        f"{build.peak_mb:.0f}", index,
    )  # fmt: skip


def _forget(root: Path) -> None:
    """Take away what was rendered; it is not deleted, see `benchmarks.__main__`."""
    away = next(path for i in itertools.count() if not (path := root.with_name(f"{root.name}-{i}")).exists())
    away.mkdir()
    for path in (root / "docs" / name for name in generated()):
        if path.exists():
            path.rename(away / path.name)


def _scripts(root: Path, command: str) -> Timed:
    return timed([sys.executable, "-m", "scripts", command], root, {"PYTHONPATH": str(Path.cwd())})


def _edit(card: Path, mark: str) -> None:
    card.write_text(card.read_text("utf-8").replace("purpose: ", f"purpose: {mark} ", 1), "utf-8")


def _edit_to_page(root: Path, card: Path) -> float:
    """Seconds until an edit of a card is on its page, while `serve` runs."""
    with served(root, Path.cwd()) as (address, _):
        page = f"{address}models/{card.stem}/"
        seconds_to_see('id="claims"', page, limit=900)
        _edit(card, "benchmark mark")
        return seconds_to_see("benchmark mark", page, limit=900)
