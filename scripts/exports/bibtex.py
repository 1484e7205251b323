"""References as BibTeX."""

from __future__ import annotations

from collections.abc import Mapping

from scripts.cards.schema import Reference

TYPES = {
    "article": "article",
    "inproceedings": "inproceedings",
    "preprint": "misc",
    "software": "software",
    "webpage": "online",
}

ESCAPED = {"\\": r"\textbackslash{}", **{char: f"\\{char}" for char in "{}%&#$_"}}


def bibtex(references: Mapping[str, Reference]) -> str:
    """One entry per reference, in the given order."""
    return "\n\n".join(_entry(key, reference) for key, reference in references.items())


def _entry(key: str, reference: Reference) -> str:
    venue = {"inproceedings": "booktitle", "article": "journal"}.get(reference.type, "howpublished")
    fields = {
        "title": f"{{{_escape(reference.title)}}}",  # double braces keep the capitals
        "author": " and ".join(_author(name) for name in reference.authors),
        venue: _escape(reference.venue) if reference.venue else None,
        "year": str(reference.year),
        "doi": reference.doi,
        "eprint": reference.arxiv,
        "archiveprefix": "arXiv" if reference.arxiv else None,
        "url": reference.url,
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{TYPES[reference.type]}{{{key},", *lines, "}"])


def _author(name: str) -> str:
    """An organisation keeps its name in braces, so that no part is taken for a first name."""
    escaped = _escape(name)
    is_person = len(name.split()) > 1 and "," not in name and " and " not in name.lower() and name[0].isupper()
    return escaped if is_person else f"{{{escaped}}}"


def _escape(text: str) -> str:
    return "".join(ESCAPED.get(char, char) for char in text)
