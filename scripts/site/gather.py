"""Everything that the site is made from, read and joined."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from yaml_env_tag import construct_env_tag

from scripts.architectures import counts, latency, studies
from scripts.cards.library import Library, load_library
from scripts.cards.problems import Problem
from scripts.evidence import photographs
from scripts.evidence.checks import check_library
from scripts.evidence.knowledge import About, Knowledge
from scripts.files import Dear
from scripts.pages import cells
from scripts.project import Project
from scripts.runs import needs
from scripts.runs.state import Run, example_slugs, states
from scripts.site.commit import own_commit
from scripts.site.kept import kept, version


class BrokenCardsError(Exception):
    """The cards have errors; nothing was written."""

    def __init__(self, problems: list[Problem], cards: int) -> None:
        super().__init__(f"{len(problems)} problems in {cards} cards")
        self.problems, self.cards = problems, cards


def checked_library(project: Project, runs: Mapping[str, Run], jobs: int = 1) -> tuple[Library, list[Problem]]:
    """All cards, and every problem there is.

    A result that an assertion names can only be looked up in a run of the present script.
    """
    library, problems = load_library(project.cards, project.root, project.kept)
    records = {slug: run.record for slug, run in runs.items() if run.status == "ok" and run.record}
    counted, _ = counts.read(project)
    problems += check_library(library, dict.fromkeys(example_slugs(project), ""), records, counted, jobs)
    return library, sorted(problems)


def sound_library(project: Project, runs: Mapping[str, Run], jobs: int = 1) -> Library:
    """All cards.

    Raises:
        BrokenCardsError: a card has an error.
    """
    library, problems = checked_library(project, runs, jobs)
    if any(problem.severity == "error" for problem in problems):
        raise BrokenCardsError(problems, len(library.sources))
    return library


def gather(
    project: Project, queued: bool = False, preset: str | None = None, device: str = "auto", jobs: int = 1
) -> Knowledge:
    """Read everything that the site is made from.

    Raises:
        BrokenCardsError: a card has an error.
    """
    runs = states(project, preset, device, queued)
    library = sound_library(project, runs, jobs)
    counted, _ = counts.read(project)
    scripts = {slug: (project.examples / f"{slug}.py").read_text("utf-8") for slug in example_slugs(project)}
    studied, timed = studies.read(project, library), latency.read_all(project)
    apart = frozenset(slug for slug in scripts if project.claims_of(slug).is_file())
    notebook = functools.partial(_notebook, project, scripts)
    shown, rehearsals = photographs.read_all(project, library), needs.read_all(project)
    return Knowledge(
        library, runs, counted, _generated(project), studied, timed, scripts, about(project), apart, notebook, shown,
        rehearsals,
    )  # fmt: skip


def _notebook(project: Project, scripts: Mapping[str, str], slug: str) -> str:
    made_of = "\n".join([version("nbconvert"), version("jupytext"), slug, scripts[slug]])
    return kept(project, Dear(made_of, functools.partial(cells.notebook, scripts[slug], slug)))


def _generated(project: Project) -> dict[str, str]:
    """What the site was generated from; no clock, so that the same input gives the same bytes."""
    commit = own_commit(project)
    return {"name": about(project).slug, "schema": "1", **({"commit": commit} if commit else {})}


def about(project: Project) -> About:
    """What mkdocs.yml says of the site, and what was drawn for it by hand."""
    said = settings(project)
    extra = said.get("extra") or {}
    address = str(said.get("site_url") or "")
    return About(
        title=str(said.get("site_name", "Models")),
        summary=str(said.get("site_description", "")),
        repository=str(extra.get("repository", "")).rstrip("/"),
        address=address.rstrip("/") + "/" if address else "",
        licence=str(extra.get("licence", "")),
        within=tuple(_within_sections(said.get("nav") or [])),
        drawn=frozenset(path.stem for path in (project.docs / "assets/tasks").glob("*.svg")),
    )


def _within_sections(nav: list[Any]) -> Iterator[tuple[str, str]]:
    """Of the pages below the first of each section those that are an overview: `By task: tasks/index.md`."""
    sections = [
        pages for entry in nav if isinstance(entry, dict) for pages in entry.values() if isinstance(pages, list)
    ]
    for title, path in (
        named for pages in sections for each in pages[1:] if isinstance(each, dict) for named in each.items()
    ):
        if isinstance(path, str) and path.endswith("/index.md"):
            yield str(title), path.removesuffix("index.md")


def settings(project: Project) -> dict[str, Any]:
    """What mkdocs.yml says, as plain data."""
    path = project.root / "mkdocs.yml"
    found = yaml.load(path.read_text("utf-8"), Loader=_TagBlind) if path.is_file() else None
    return found if isinstance(found, dict) else {}


class _TagBlind(yaml.SafeLoader):
    """Reads mkdocs.yml with what it takes from the environment (!ENV); other tags mean something to MkDocs alone."""


_TagBlind.add_multi_constructor("", lambda loader, suffix, node: None)
_TagBlind.add_constructor("!ENV", construct_env_tag)
