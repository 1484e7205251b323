"""References for the tools that people write with: BibTeX and CSL-JSON."""

from __future__ import annotations

import json

from scripts.cards.names import person
from scripts.cards.schema import Card, Reference
from scripts.evidence.knowledge import Knowledge
from scripts.exports.bibtex import bibtex

CSL_TYPES = {
    "article": "article-journal", "inproceedings": "paper-conference", "preprint": "article", "software": "software",
    "webpage": "webpage",
}  # fmt: skip


def of_card(card: Card) -> dict[str, str]:
    """The references of one model, by path below `docs/`."""
    return {f"downloads/bibtex/{card.slug}.bib": bibtex(card.references) + "\n"}


def overviews(knowledge: Knowledge) -> dict[str, str]:
    """All references, by path below `docs/`."""
    everything = all_references(knowledge)
    items = [csl_item(key, reference) for key, reference in everything.items()]
    return {
        "downloads/references.bib": bibtex(everything) + "\n",
        "downloads/references.json": json.dumps(items, indent=1, ensure_ascii=False, sort_keys=True) + "\n",
    }


def all_references(knowledge: Knowledge) -> dict[str, Reference]:
    """All references sorted by key; a key that means another work on another card gets that card's name appended."""
    found: dict[str, Reference] = {}
    for card in knowledge.cards:
        for key, reference in card.references.items():
            known = found.setdefault(key, reference)
            if known.title.lower() != reference.title.lower():
                found[f"{key}-{card.slug}"] = reference
    return dict(sorted(found.items()))


def csl_item(key: str, reference: Reference) -> dict[str, object]:
    """One reference as an item of CSL-JSON."""
    fields = {
        "id": key,
        "type": CSL_TYPES[reference.type],
        "title": reference.title,
        "author": [_csl_name(name) for name in reference.authors],
        "issued": {"date-parts": [[reference.year]]},
        "container-title": reference.venue,
        "DOI": reference.doi,
        "URL": reference.url or (f"https://arxiv.org/abs/{reference.arxiv}" if reference.arxiv else reference.code),
        "archive": "arXiv" if reference.arxiv else None,
        "archive_location": reference.arxiv,
    }
    return {name: value for name, value in fields.items() if value}


def _csl_name(name: str) -> dict[str, str]:
    """The parts of a person's name; an organisation's is kept whole."""
    known = person(name)
    if known is None:
        return {"literal": name}
    parts = {
        "given": known.given,
        "non-dropping-particle": known.particle,
        "family": known.family,
        "suffix": known.suffix,
    }
    return {key: part for key, part in parts.items() if part}
