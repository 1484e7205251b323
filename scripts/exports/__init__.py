"""What the site offers to programs and to other collections, one module per kind; all are views of the knowledge."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from scripts.cards.schema import Card
from scripts.evidence.knowledge import About, Knowledge
from scripts.exports import api, choices, citations, comparison, csv_table, feeds, hubs
from scripts.files import Texts


def archive_of(about: About) -> str:
    """Where the whole site lies as one file; made when the site is built (`site.archive`)."""
    return f"downloads/{about.slug}.zip"


ALL = (
    ("downloads/numbers.csv", "Every published number: value, unit, conditions, source and exact place", "CSV"),
    ("downloads/references.bib", "All references of all cards", "BibTeX"),
    ("downloads/references.json", "The same for Zotero, Pandoc and their kind", "CSL-JSON"),
    ("api/models.json", "The index of the interface; each model's file is below", "JSON"),
    ("feed.xml", "The cards, last reviewed first, for a feed reader", "Atom"),
    ("llms.txt", "The site in brief for a language model, with links", "Markdown"),
    ("llms-full.txt", "All cards as one plain text", "Markdown"),
)  # fmt: skip
"""Files for all models together: (path, what it is, format); the archive of the site comes last, see `of_all`."""

EACH = (
    ("api/models/{}.json", "JSON"),
    ("downloads/bibtex/{}.bib", "BibTeX"),
    ("downloads/huggingface/{}.yml", "Hugging Face"),
    ("downloads/openmmlab/{}/metafile.yml", "OpenMMLab"),
)
"""Files per model: (path with the slug's place, format)."""


PATHS = (*(path for path, *_ in ALL), *(path.format("") for path, _ in EACH), "api/compare.json", "api/choose.json")
"""Where all of it lies below `docs/`."""


def of_all(about: About) -> tuple[tuple[str, str, str], ...]:
    """The files for all models together, with the archive."""
    told = "The whole site to read without a network: unpack it, open index.html (only the search needs a server)"
    return (*ALL, (archive_of(about), told, "ZIP"))


def of_card(card: Card, knowledge: Knowledge) -> Texts:
    """The text of each file of one model, by path below `docs/`."""
    return {**api.of_card(card, knowledge), **citations.of_card(card), **hubs.of_card(card, knowledge)}


def overviews(knowledge: Knowledge) -> dict[str, Callable[[], Mapping[str, str]]]:
    """What makes the files for all models together, by path below `docs/`."""
    makers = (api.overview, citations.overviews, feeds.render, csv_table.render, comparison.render, choices.render)
    return {maker.__module__: functools.partial(maker, knowledge) for maker in makers}
