"""The site while one works on it: shown at once, missing runs beside it, every edit on the page a moment later."""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

from scripts import execute, runs, site
from scripts.project import Project


def serve(project: Project, options: argparse.Namespace) -> int:
    """Serve the site until interrupted; render again when a card, an example or the state of a run changes."""
    _render(project, options)
    server = _start_server(project, options.port)
    print(f"the site is at http://127.0.0.1:{options.port}/ in a moment; stop with Ctrl-C", flush=True)
    worker = threading.Thread(target=_run_missing, args=(project, options), daemon=True)
    worker.start()
    try:
        for changed in _changes(project):
            if server.poll() is not None:
                return server.returncode
            if any(path.suffix in (".yml", ".yaml", ".py", ".json") for path in changed):
                _render(project, options)
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()
    return 0


def _start_server(project: Project, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mkdocs", "serve", "--quiet", "--livereload", "--dirtyreload"]
    address = ["--dev-addr", f"127.0.0.1:{port}"]
    return subprocess.Popen([*command, *address], cwd=project.root, env=site.mkdocs_environment())


def _run_missing(project: Project, options: argparse.Namespace) -> None:
    targets = execute.wanted_targets(project, runs.example_slugs(project), options.preset, options.device)
    execute.run_all(project, targets, options.jobs)


def _changes(project: Project) -> Iterable[set[Path]]:
    """The paths of each batch of changes of what pages are made from."""
    from watchfiles import watch

    project.runs.mkdir(parents=True, exist_ok=True)
    folders = [project.cards, project.examples, project.runs]
    for batch in watch(*folders, debounce=200, step=50, rust_timeout=1000, yield_on_timeout=True):
        yield {Path(path) for _, path in batch}


def _render(project: Project, options: argparse.Namespace) -> None:
    """Render; a broken card leaves the last pages as they are and its problems on the terminal."""
    try:
        knowledge = site.gather(project, queued=True, preset=options.preset, device=options.device)
    except site.BrokenCardsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr, flush=True)
        return
    site.render(project, knowledge)
