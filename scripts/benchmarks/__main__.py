"""`python -m scripts.benchmarks`: each kind prints a table. Run it on an idle machine, in the root of the project."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from scripts.benchmarks import examples, pages, search, whole_site
from scripts.machine import cores


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    site = kinds.add_parser("site", help="this project: check, render, build, serve")
    site.add_argument("--examples", action="store_true", help="run all examples from nothing")
    running = kinds.add_parser("examples", help="the same scripts through this project and the gallery tools")
    running.add_argument("--counts", type=int, nargs="+", default=[20, 200], metavar="N")
    running.add_argument("--seconds", type=float, default=0, metavar="S", help="that each script computes for")
    running.add_argument("--jobs", type=int, default=cores(), metavar="N")
    running.add_argument("--peers", type=Path, metavar="PYTHON", help="that has sphinx-gallery and mkdocs-gallery")
    growing = kinds.add_parser("pages", help="check, render and build of many cards")
    growing.add_argument("--counts", type=int, nargs="+", default=[20, 200, 1000, 5000], metavar="N")
    growing.add_argument("--like-ours", action="store_true", help="cards as large as those of this project")
    searching = kinds.add_parser("search", help="time to the first hit in Chromium, Material's search and Pagefind")
    searching.add_argument("--counts", type=int, nargs="+", default=[20, 1000, 5000], metavar="N")
    options = parser.parse_args()
    if options.kind == "site":
        whole_site.measure(options.examples)
        return
    # Deleted only when all is measured: some file systems take long to make a file while they remember many deleted ones
    # (ext4 without a journal: a millisecond for each, for minutes after thousands were deleted).
    with tempfile.TemporaryDirectory() as folder:
        match options.kind:
            case "examples":
                peers = options.peers and options.peers.absolute()
                for count in options.counts:
                    examples.compare(Path(folder) / str(count), count, options.seconds, options.jobs, peers)
            case "pages":
                pages.grow(Path(folder), options.counts, options.like_ours)
            case _:
                search.compare(Path(folder), options.counts)


if __name__ == "__main__":
    main()
