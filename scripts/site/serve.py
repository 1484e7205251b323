"""The site while one works on it: shown at once, missing runs beside it, every edit on the page a moment later.

One process: a change renders the pages, then builds those that changed ("dirty"), then tells the browser. MkDocs' own
`serve` builds all pages for each edit, and breaks where a page is written while it builds.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import threading
from collections.abc import Callable

from scripts.project import Project
from scripts.runs import schedule
from scripts.runs.state import example_slugs
from scripts.site.gather import BrokenCardsError, gather
from scripts.site.render import generated, render, writing


def serve(project: Project, options: argparse.Namespace) -> int:
    """Serve the site until interrupted; build again when a card, a page, an example or the state of a run changes."""
    from mkdocs.livereload import LiveReloadServer

    logging.getLogger("mkdocs").setLevel(logging.ERROR)
    rebuild = _builder(project)
    with writing(project):
        _render(project, options)
        rebuild(False)

    def refresh() -> None:
        gc.disable()  # looking for cycles among all that is made would take a sixth of the time
        try:
            with writing(project):
                if _render(project, options):
                    rebuild(True)
        finally:
            gc.enable()

    folder = str(project.build / "serve")
    try:
        server = LiveReloadServer(refresh, "127.0.0.1", options.port, folder, polling_interval=0.2)
    except OSError as error:
        print(f"port {options.port}: {error.strerror}; take another one: --port {options.port + 1}", file=sys.stderr)
        return 1
    server.build_delay = 0.1
    for path in _sources(project):
        server.watch(str(path))
    if not options.no_run:
        threading.Thread(target=_run_missing, args=(project, options), daemon=True).start()
    print(f"the site is at http://127.0.0.1:{options.port}/; stop with Ctrl-C", flush=True)
    try:
        server.serve()  # type: ignore[no-untyped-call]
    except KeyboardInterrupt:
        pass
    finally:
        server.shutdown()
    return 0


def _builder(project: Project) -> Callable[[bool], None]:
    """Builds into build/serve/: all pages, or only those that changed, and then the search index stays as it was."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = project.build / "serve"
    found = folder / "search" / "search_index.json"

    def rebuild(dirty: bool) -> None:
        config = load_config(str(project.root / "mkdocs.yml"), site_dir=str(folder))
        config.extra["served"] = True  # without a policy: the reload script is inline
        config.plugins.on_startup(command="serve", dirty=dirty)
        index = found.read_bytes() if dirty and found.is_file() else None
        if index is not None:  # the search need not read the changed pages for it
            listeners = config.plugins.events["page_context"]
            config.plugins.events["page_context"] = [each for each in listeners if "search" not in each.__module__]
        build(config, dirty=dirty)
        if index is not None:
            found.write_bytes(index)

    return rebuild


def _sources(project: Project) -> list[object]:
    """What a person or a run changes; not what `render` writes."""
    project.runs.mkdir(parents=True, exist_ok=True)
    by_hand = [path for path in project.docs.iterdir() if path.name not in generated()]
    return [project.cards, project.examples, project.runs, project.root / "mkdocs.yml", *by_hand]


def _run_missing(project: Project, options: argparse.Namespace) -> None:
    targets = schedule.wanted_targets(project, example_slugs(project), options.preset, options.device)
    schedule.run_all(project, targets, options.jobs)


def _render(project: Project, options: argparse.Namespace) -> bool:
    """Render; a broken card leaves the last pages as they are, and its problems on the terminal."""
    try:
        knowledge = gather(project, not options.no_run, options.preset, options.device)
    except BrokenCardsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr, flush=True)
        return False
    render(project, knowledge)
    return True
