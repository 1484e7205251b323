"""Every generated file below docs/, written where its bytes change; what is no longer made is deleted."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from scripts import exports
from scripts.cards.schema import Card
from scripts.evidence.knowledge import Knowledge
from scripts.files import Dear, Texts, alone, write
from scripts.machine import call_all
from scripts.pages import previews, registry
from scripts.pages.chart_style import SCHEMES
from scripts.pages.charts import charts, explorable, specification
from scripts.pages.figures import drawings
from scripts.project import Project
from scripts.runs.record import Figure
from scripts.site.kept import kept, kept_bytes, version

PICTURES = "figures/photographs/"

Makers = dict[str, Callable[[], Texts]]
"""What makes one file or some that belong together, by a name."""


def writing(project: Project) -> AbstractContextManager[None]:
    """Wait until no other command writes the pages and the site of the project."""
    told = "another command is writing the pages; this one goes on after it"
    return alone(project.root, lambda: print(told, file=sys.stderr, flush=True))


def render(project: Project, knowledge: Knowledge, jobs: int = 1) -> int:
    """Write every generated file below docs/ whose bytes change, delete those that are no more; how many changed."""
    makers = _makers(knowledge)
    figures = _figures(knowledge)
    written = call_all([functools.partial(_write, project, make) for make in makers.values()], jobs)
    written.append(_write(project, functools.partial(_charts, knowledge)))  # its library outlives no fork
    changed = sum(write(project.docs / path, file.read_bytes()) for path, file in figures.items())
    pictures = _previews(project, knowledge)
    changed += sum(write(project.docs / path, picture) for path, picture in pictures.items())
    paths = {*figures, *pictures, *(path for made, _ in written for path in made)}
    return changed + sum(count for _, count in written) + delete_orphans(project.docs, paths)


def render_models(project: Project, knowledge: Knowledge, slugs: Collection[str]) -> int:
    """Write the pages of some models alone, without what follows from them elsewhere; how many changed."""
    made = registry.pages(knowledge)
    return sum(
        _write(project, functools.partial(_one, path, made[path]))[1] for path in map("models/{}.md".format, slugs)
    )


def _makers(knowledge: Knowledge) -> Makers:
    """What makes the texts, those that take longest first."""
    pages = registry.pages(knowledge)
    makers: Makers = {path: functools.partial(_one, path, make) for path, make in pages.items()}
    makers |= exports.overviews(knowledge)
    makers |= {f"{card.slug}/": functools.partial(exports.of_card, card, knowledge) for card in knowledge.cards}
    notebooks = {f"examples/{slug}.ipynb": functools.partial(knowledge.notebook, slug) for slug in knowledge.scripts}
    return makers | {path: functools.partial(_one, path, make) for path, make in notebooks.items()}


def _one(path: str, make: Callable[[], str]) -> Texts:
    return {path: make()}


def _write(project: Project, make: Callable[[], Texts]) -> tuple[list[str], int]:
    """The paths of some texts, and how many of their files changed."""
    made = make()
    texts = {path: text if isinstance(text, str) else kept(project, text) for path, text in made.items()}
    return list(texts), sum(write(project.docs / path, text.encode()) for path, text in texts.items())


def _figures(knowledge: Knowledge) -> dict[str, Path]:
    """Where each figure of each run, and each picture of weights on photographs, lies, by path below docs/."""
    photographs = knowledge.photographs
    pictures = {
        f"{PICTURES}originals/{each.file}": photographs.folder / each.file for each in photographs.originals.values()
    }
    for shown in photographs.shown:
        pictures |= {f"{PICTURES}{shown.name}/{each.file}": shown.folder / each.file for each in shown.pictures}
    return pictures | {
        f"figures/{slug}/{Path(drawn).name}": run.folder / "figures" / Path(drawn).name
        for slug, run in knowledge.runs.items()
        if run.record and run.folder
        for figure in run.record.figures
        for drawn in (figure.light, figure.dark)
    }


def _previews(project: Project, knowledge: Knowledge) -> dict[str, bytes]:
    """The picture of the site and of each model with a hero, for where links to them are shared, and for tiles a small one in
    each scheme; by path below docs/."""
    shared, small = {previews.path_of("site"): previews.of_site(knowledge.about)}, {}
    for card in knowledge.cards:
        if figure := knowledge.hero(card):
            for scheme, file in _files_of(card, figure, knowledge).items():
                end, drawn = file.suffix, file.read_bytes()
                small[previews.thumb_path(card.slug, scheme)] = previews.thumb(figure, scheme, end, drawn)
                if scheme == "light":
                    shared[previews.path_of(card.slug)] = previews.of_card(card, knowledge.about, end, drawn)
    return _jpegs(project, shared, quality=75) | _jpegs(project, small, quality=50)


def _files_of(card: Card, figure: Figure, knowledge: Knowledge) -> dict[str, Path]:
    """Where a figure of a card's run lies, by scheme."""
    run = knowledge.run(card.slug)
    files = (
        [run.folder / "figures" / Path(name).name for name in (figure.light, figure.dark)] if run and run.folder else []
    )
    return dict(zip(SCHEMES, files, strict=False))


def _jpegs(project: Project, drawn: Mapping[str, str], quality: int) -> dict[str, bytes]:
    """SVGs as JPEG, by path."""
    made_with = f"{version('vl-convert-python')}\n{quality}"
    return {
        path: kept_bytes(project, f"{made_with}\n{svg}", functools.partial(_jpeg, svg, quality=quality))
        for path, svg in drawn.items()
    }


def _jpeg(svg: str, quality: int) -> bytes:
    import vl_convert

    return bytes(vl_convert.svg_to_jpeg(svg, quality=quality))


def _charts(knowledge: Knowledge) -> Texts:
    """What is drawn at build, by path below docs/: charts with their data and the library to explore them, and the figures
    of the studies; a picture for each scheme."""
    made = charts(knowledge)
    library = version("vl-convert-python")

    def drawn(specification: dict[str, object]) -> Dear:
        made_of = f"{library}\n{json.dumps(specification, sort_keys=True)}"
        return Dear(made_of, functools.partial(_svg, specification))

    files: dict[str, str | Dear] = {f"charts/{chart.name}.json": explorable(chart) for chart in made}
    for chart in made:
        for scheme in SCHEMES:
            files[f"charts/{chart.name}.{scheme}.svg"] = drawn(specification(chart, scheme))
            files[f"charts/{chart.name}.narrow.{scheme}.svg"] = drawn(specification(chart, scheme, narrow=True))
    for drawing in drawings(knowledge):
        for scheme, file in (("light", drawing.light), ("dark", drawing.dark)):
            files[f"figures/{drawing.folder}/{file}"] = drawn(drawing.specification(scheme))
    if made:
        files["charts/vega.js"] = Dear(f"{library}\nbundle", _bundle)
    return files


def _svg(specification: Mapping[str, object]) -> str:
    import vl_convert  # takes a moment to load, and is needed only for charts that changed

    return str(vl_convert.vegalite_to_svg(dict(specification)))


def _bundle() -> str:
    import vl_convert

    return str(vl_convert.javascript_bundle())  # type: ignore[call-arg]  # its stub asks for a snippet


def generated() -> list[str]:
    """What `render` writes below docs/, by the first part of its path; everything else there is written by hand."""
    paths = [*registry.OVERVIEWS, *exports.PATHS, "models/", "examples/", "figures/", "charts/", "previews/"]
    return sorted({path.partition("/")[0] for path in paths})


def delete_orphans(docs: Path, keep: Collection[str]) -> int:
    """Delete generated files that are no longer made; the number of them. `keep` holds paths below `docs`."""
    found = (
        os.path.join(folder, file)
        for name in generated()
        for folder, _, files in os.walk(docs / name)
        for file in files
    )
    orphans = [path for path in found if path[len(str(docs)) + 1 :].replace(os.sep, "/") not in keep]
    for path in orphans:
        os.unlink(path)
    return len(orphans)
