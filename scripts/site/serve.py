"""The site while one works on it: shown at once, missing runs beside it, every edit on the page a moment later.

One process: a change renders the pages, then builds those that changed ("dirty"), then tells the browser. The pages of the
cards that were edited come first, all that follows from them a few seconds later. MkDocs' own `serve` builds all pages for
each edit, and breaks where a page is written while it builds.
"""

from __future__ import annotations

import argparse
import functools
import gc
import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import jinja2
from jinja2.bccache import Bucket

from scripts.evidence.knowledge import Knowledge
from scripts.project import Project
from scripts.runs import schedule
from scripts.runs.state import example_slugs
from scripts.site.gather import BrokenCardsError, gather
from scripts.site.render import generated, render, render_models, writing


@dataclass
class Pages:
    """What is served, kept up with what is edited."""

    project: Project
    gathered: Callable[[], Knowledge | None]
    """All that the site is made from; None where a card is broken."""
    rebuild: Callable[[bool], None]
    """Builds all pages, or only those that changed."""
    known: Knowledge | None = None
    behind: bool = False
    """Whether only the pages of edited cards are up to date."""

    @property
    def rest(self) -> Path:
        """Watched like a source, and touched where pages are behind."""
        return self.project.build / "serve.rest"

    def start(self) -> None:
        """Make everything, whatever is there."""
        self.rest.parent.mkdir(parents=True, exist_ok=True)
        self.rest.touch()
        if known := self.gathered():
            render(self.project, known)
        self.known = known
        self.rebuild(False)

    def refresh(self) -> None:
        """Make the pages of the cards that were edited, and ask to be called again; then, or if more was edited, all."""
        knowledge = self.gathered()
        if knowledge is None:
            return
        edited = edited_cards(self.known, knowledge)
        if edited is None or (self.behind and not edited):
            render(self.project, knowledge)
        else:
            render_models(self.project, knowledge, edited)
        self.rebuild(True)
        self.known, self.behind = knowledge, bool(edited)  # after it all, or what failed would pass for made
        if self.behind:
            self.rest.touch()


def edited_cards(before: Knowledge | None, now: Knowledge) -> set[str] | None:
    """Cards whose text changed; None where anything else did that pages are made from."""
    others = {field.name for field in fields(Knowledge)} - {"library", "notebook"}
    if before is None or any(getattr(before, name) != getattr(now, name) for name in others):
        return None
    old, new = before.library, now.library
    if old.sources.keys() != new.sources.keys() or old.vocabulary != new.vocabulary:
        return None
    return {slug for slug, source in new.sources.items() if source.digest != old.sources[slug].digest}


def serve(project: Project, options: argparse.Namespace) -> int:
    """Serve the site until interrupted; build again when a card, a page, an example or the state of a run changes."""
    from mkdocs.livereload import LiveReloadServer

    logging.getLogger("mkdocs").setLevel(logging.ERROR)
    pages = Pages(project, functools.partial(_gathered, project, options), _builder(project))
    with writing(project):
        pages.start()

    def refresh() -> None:
        gc.disable()  # looking for cycles among all that is made would take a sixth of the time
        try:
            with writing(project):
                pages.refresh()
        finally:
            gc.enable()

    folder = str(project.build / "serve")
    try:
        server = LiveReloadServer(refresh, "127.0.0.1", options.port, folder, polling_interval=0.2)
    except OSError as error:
        print(f"port {options.port}: {error.strerror}; take another one: --port {options.port + 1}", file=sys.stderr)
        return 1
    server.build_delay = 0.1
    for path in (*_sources(project), pages.rest):
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


class _Templates(jinja2.BytecodeCache):
    """The theme's templates, compiled once and not for each build, which takes a third of its time."""

    def __init__(self) -> None:
        self.compiled: dict[str, bytes] = {}

    def keep(self, environment: jinja2.Environment, **_: object) -> None:
        environment.bytecode_cache = self

    def load_bytecode(self, bucket: Bucket) -> None:
        if code := self.compiled.get(bucket.key):
            bucket.bytecode_from_string(code)

    def dump_bytecode(self, bucket: Bucket) -> None:
        self.compiled[bucket.key] = bucket.bytecode_to_string()


def _builder(project: Project) -> Callable[[bool], None]:
    """Builds into build/serve/: all pages, or only those that changed, and then the search index stays as it was."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = project.build / "serve"
    found = folder / "search" / "search_index.json"
    templates = _Templates()

    def rebuild(dirty: bool) -> None:
        config = load_config(str(project.root / "mkdocs.yml"), site_dir=str(folder))
        config.plugins.events["env"].append(templates.keep)
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


def _gathered(project: Project, options: argparse.Namespace) -> Knowledge | None:
    """What the pages are made from; where a card is broken nothing, and its problems on the terminal."""
    try:
        return gather(project, not options.no_run, options.preset, options.device)
    except BrokenCardsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr, flush=True)
        return None
