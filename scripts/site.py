"""The edge where files are read and written: cards and runs in, pages, figures and the built site out."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from scripts import counts, latency, parallel, runs, studies
from scripts.cards import Library, Problem, load_library
from scripts.checks import check_library
from scripts.knowledge import Knowledge
from scripts.project import Project
from scripts.traces import Texts, Traces, Watched, reading, sha256

if TYPE_CHECKING:
    from scripts import pages  # what only `render` needs is imported there: `check` is used often, and has to be quick

GENERATED = (
    "api", "charts", "choose", "compare", "detectors", "downloads", "evidence", "examples", "feed.xml", "figures",
    "glossary", "index.md", "licensing", "lineage", "llms-full.txt", "llms.txt", "models", "notes", "numbers", "scaling",
    "tasks",
)  # fmt: skip
"""What `render` writes below docs/; everything else there is written by hand."""


TRACES = "traces.json"
CHARTS = "charts/"
"""The group of the files of the charts."""
SCRIPT = ".py"
"""Ends the name under which it is noted that a script was read."""


class BrokenCardsError(Exception):
    """The cards have errors; nothing was written."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = problems


def checked_library(project: Project, states: Mapping[str, runs.Run], jobs: int = 1) -> tuple[Library, list[Problem]]:
    """All cards, and every problem there is.

    A result that an assertion names can only be looked up in a run of the present script.
    """
    library, problems = load_library(project.cards, project.root)
    results = {slug: run.results for slug, run in states.items() if run.status == "ok"}
    counted, _ = counts.read(project)
    problems += check_library(library, dict.fromkeys(runs.example_slugs(project), ""), results, counted, jobs)
    return library, sorted(problems)


def gather(
    project: Project, queued: bool = False, preset: str | None = None, device: str = "auto", jobs: int = 1
) -> Knowledge:
    """Read everything that the site is made from.

    Raises:
        BrokenCardsError: a card has an error.
    """
    states = runs.states(project, preset, device, queued)
    library, problems = checked_library(project, states, jobs)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise BrokenCardsError(problems)
    counted, _ = counts.read(project)
    studied, records = studies.read(project, library), latency.read_all(project)
    watched = dataclasses.replace(library, cards=Watched(library.cards))
    return Knowledge(watched, Watched(states), counted, _generated(project), studied, records)


def _generated(project: Project) -> dict[str, str]:
    """What the site was generated from; no clock, so that the same input gives the same bytes."""
    git = subprocess.run(
        ["git", "-C", str(project.root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    commit = {"commit": git.stdout.strip()} if git.returncode == 0 else {}
    return {"name": "model-comparisons", "schema": "1", **commit}


def repository(project: Project) -> str:
    """Address of the repository, from `extra.repository` in mkdocs.yml."""
    return str(_settings(project).get("extra", {}).get("repository", "")).rstrip("/")


def _settings(project: Project) -> dict[str, Any]:
    """What mkdocs.yml says."""
    path = project.root / "mkdocs.yml"
    settings = yaml.load(path.read_text("utf-8"), Loader=_TagBlind) if path.is_file() else None
    return settings if isinstance(settings, dict) else {}


class _TagBlind(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags (!ENV) mean something to MkDocs alone."""


_TagBlind.add_multi_constructor("", lambda loader, suffix, node: None)


def render(project: Project, knowledge: Knowledge, jobs: int = 1) -> int:
    """Write every generated file below docs/ whose bytes change, delete those that are no more; how many changed."""
    from scripts import pages

    scripts = {slug: (project.examples / f"{slug}.py").read_text("utf-8") for slug in runs.example_slugs(project)}
    maker = pages.Pages(knowledge, Watched(scripts, SCRIPT), repository(project))
    groups = _groups(maker)
    traces = _traces(project, maker, scripts)
    kept = {name: traces.kept(name) for name in (*groups, CHARTS)}
    stale = [name for name in groups if kept[name] is None]
    calls = [functools.partial(_write_texts, project, groups[name]) for name in stale]
    written = dict(zip(stale, parallel.call_all(calls, jobs), strict=True))
    if kept[CHARTS] is None:  # here, for the library that draws does not outlive a fork
        written[CHARTS] = _write_texts(project, functools.partial(_drawn_charts, project, knowledge))
    for name, group in written.items():
        traces.add(name, group.digests, group.read)
    figures = _figures(knowledge)
    changed = sum(write(project.docs / path, file.read_bytes()) for path, file in figures.items())
    changed += sum(group.changed for group in written.values())
    write(project.build / TRACES, traces.text().encode())
    texts = itertools.chain(*(group.digests for group in written.values()), *filter(None, kept.values()))
    return changed + delete_orphans(project.docs, {*figures, *texts})


@dataclasses.dataclass(frozen=True)
class _Written:
    """What became of some texts: their digests by path, how many files changed, and whose cards and runs were read."""

    digests: Mapping[str, str]
    changed: int
    read: set[str]


def _write_texts(project: Project, make: Callable[[], Texts]) -> _Written:
    with reading() as names:
        contents = {path: text.encode() for path, text in make().items()}
    changed = sum(write(project.docs / path, content) for path, content in contents.items())
    return _Written({path: sha256(content) for path, content in contents.items()}, changed, names)


def _groups(maker: pages.Pages) -> dict[str, Callable[[], Texts]]:
    """What makes the texts that are made together, by name: what looks at every card, the slowest first, then the rest."""
    from scripts import choice, comparison, exports

    knowledge, scripts = maker.knowledge, maker.scripts
    return {
        **maker.overviews(),
        "downloads/": functools.partial(exports.overviews, knowledge, maker.repository),
        "api/compare.json": functools.partial(comparison.render, knowledge),
        "api/choose.json": functools.partial(choice.render, knowledge),
        **{f"examples/{slug}.ipynb": functools.partial(_notebook_of, slug, scripts) for slug in scripts},
        **{slug: functools.partial(_texts_of, slug, maker) for slug in sorted({*knowledge.library.cards, *scripts})},
    }


def _texts_of(slug: str, maker: pages.Pages) -> Texts:
    """The pages and files of one model."""
    from scripts import exports

    card = maker.knowledge.library.cards.get(slug)
    return maker.of_slug(slug) | (exports.of_card(card, maker.knowledge) if card else {})


def _notebook_of(slug: str, scripts: Mapping[str, str]) -> Texts:
    """The notebook of an example, apart from its pages: it depends on the script alone, and takes long to make."""
    from scripts import cells

    return {f"examples/{slug}.ipynb": cells.notebook(scripts[slug], slug)}


def _traces(project: Project, maker: pages.Pages, scripts: Mapping[str, str]) -> Traces:
    """What is known of the texts of the last time, if the code and all that is no card, run or script are as they were."""
    knowledge, library = maker.knowledge, maker.knowledge.library
    code = [path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".j2")]
    packages = project.root / "requirements.txt"
    around = (library.vocabulary, knowledge.counts, knowledge.studies, knowledge.latencies, maker.repository)
    files = sorted([*code, *([packages] if packages.is_file() else [])])
    surroundings = [*(sha256(path.read_bytes()) for path in files), repr(around)]
    digests = {"generated/": repr(knowledge.generated)}  # who reads that reads every card too
    digests |= {slug + SCRIPT: sha256(text.encode()) for slug, text in scripts.items()}
    for slug in {*library.sources, *knowledge.runs}:
        card = library.sources[slug].digest if slug in library.sources else ""
        digests[slug] = sha256(repr((card, knowledge.runs.get(slug))).encode())
    return Traces(project.build / TRACES, project.docs, sha256("".join(surroundings).encode()), digests)


def _figures(knowledge: Knowledge) -> dict[str, Path]:
    """Where each figure of each run lies, by path below docs/."""
    return {
        f"figures/{slug}/{Path(figure[scheme]).name}": run.folder / "figures" / Path(figure[scheme]).name
        for slug, run in knowledge.runs.items()
        if run.record and run.folder
        for figure in run.record["figures"]
        for scheme in ("light", "dark")
    } | dict(knowledge.studies.files)


def _drawn_charts(project: Project, knowledge: Knowledge) -> Texts:
    """The files of the charts by path below docs/: a picture for each scheme, the data, and the library to explore it."""
    from scripts import charts

    made = charts.charts(knowledge)
    files = {f"charts/{chart.name}.json": charts.explorable(chart) for chart in made}
    for chart in made:
        for scheme in charts.SCHEMES:
            specification = charts.specification(chart, scheme)
            files[f"charts/{chart.name}.{scheme}.svg"] = _cached(
                project, json.dumps(specification, sort_keys=True), "svg", functools.partial(_svg, specification)
            )
    if made:
        files["charts/vega.js"] = _cached(project, "bundle", "js", _bundle)
    return files


def _svg(specification: Mapping[str, Any]) -> str:
    import vl_convert  # takes a moment to load, and is needed only for charts that changed

    return str(vl_convert.vegalite_to_svg(dict(specification)))


def _bundle() -> str:
    import vl_convert

    return str(vl_convert.javascript_bundle())  # type: ignore[call-arg]  # its stub asks for a snippet


def _cached(project: Project, source: str, suffix: str, make: Callable[[], str]) -> str:
    """What `make` returns, kept under the hash of its source and of the version of the library that draws."""
    version = metadata.version("vl-convert-python")
    name = sha256(f"{version}\n{source}".encode())[:16]
    path = project.build / "charts" / f"{name}.{suffix}"
    if not path.is_file():
        write(path, make().encode())
    return path.read_bytes().decode()  # not as text, which would change line ends


def write(path: Path, content: bytes) -> bool:
    """Write a file whole, and only if its bytes change; says whether they did."""
    if path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError:  # a full disk most of all: leave no half file behind
        part.unlink(missing_ok=True)
        raise
    return True


def delete_orphans(docs: Path, keep: Collection[str]) -> int:
    """Delete generated files that are no longer made; the number of them. `keep` holds paths below `docs`."""
    found = (
        os.path.join(folder, file) for name in GENERATED for folder, _, files in os.walk(docs / name) for file in files
    )
    orphans = [path for path in found if path[len(str(docs)) + 1 :].replace(os.sep, "/") not in keep]
    for path in orphans:
        os.unlink(path)
    return len(orphans)


def build(project: Project) -> bool:
    """Build `site/` with MkDocs, aside and then swapped in; False where nothing changed since the last time.

    Raises:
        RuntimeError: MkDocs failed; the last good site is untouched.
    """
    from scripts import archive, exports

    stamp = project.build / "site.sha256"
    recover(project)
    current = _inputs_digest(project)
    if project.site.is_dir() and stamp.is_file() and stamp.read_text() == current:
        return False
    aside = _aside(project)
    shutil.rmtree(aside, ignore_errors=True)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(aside)]
    done = subprocess.run(
        command, cwd=project.root, capture_output=True, text=True, check=False, env=mkdocs_environment()
    )
    if done.returncode:
        shutil.rmtree(aside, ignore_errors=True)
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(aside))
        lines = [line for line in done.stderr.splitlines() if not line.startswith("INFO")]
        raise RuntimeError("\n".join(["mkdocs failed, the last good site is untouched:", *lines]))
    if not _has_search_plugin(project):
        _index_with_pagefind(aside)
    archive.write_archive(aside, aside / exports.ARCHIVE)
    stamp.unlink(missing_ok=True)  # whatever happens now, no site passes for one that it is not
    _swap(aside, project.site)
    write(stamp, current.encode())
    return True


def _has_search_plugin(project: Project) -> bool:
    """Whether mkdocs.yml lists the theme's search; it is on by default too."""
    plugins = _settings(project).get("plugins", ["search"]) or []
    return any("search" in ((plugin,) if isinstance(plugin, str) else plugin) for plugin in plugins)


def _index_with_pagefind(site: Path) -> None:
    """Write Pagefind's index of a built site, which a browser loads piece by piece, into its folder `pagefind/`.

    Raises:
        RuntimeError: Pagefind failed.
    """
    command = [sys.executable, "-m", "pagefind", "--silent", "--site", str(site)]
    command += ["--root-selector", "article.md-content__inner"]
    command += ["--exclude-selectors", "[data-search-exclude], .headerlink"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pagefind failed, the last good site is untouched:\n{done.stdout}{done.stderr}")


def _aside(project: Project) -> Path:
    return project.build / "site.new"


def recover(project: Project) -> None:
    """Bring back the last good site, if a build was killed in the moment between the two renames of `_swap`."""
    last = _last(_aside(project))
    if last.is_dir() and not project.site.exists():
        last.rename(project.site)


def _last(new: Path) -> Path:
    return new.with_suffix(".last")


def mkdocs_environment() -> dict[str, str]:
    """MkDocs with dates from the sources, not from the clock, and without the notices of its makers."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or "0"
    return {**os.environ, "SOURCE_DATE_EPOCH": epoch, "NO_MKDOCS_2_WARNING": "1"}


def _swap(new: Path, old: Path) -> None:
    """Put a folder in the place of another; at each moment one of them is there whole (see `recover`)."""
    last = _last(new)
    shutil.rmtree(last, ignore_errors=True)
    if old.exists():
        old.rename(last)
    new.rename(old)
    shutil.rmtree(last, ignore_errors=True)


def _inputs_digest(project: Project) -> str:
    """Hash of all that MkDocs reads: the docs folder, its settings, and the modules that the reference describes."""
    total = hashlib.sha256()
    folders = [project.docs, project.root / "overrides", project.root / "scripts", project.examples / "lab"]
    files = [
        path for folder in folders for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    for path in sorted([*files, project.root / "mkdocs.yml"]):
        total.update(path.relative_to(project.root).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()
