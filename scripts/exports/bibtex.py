"""References as BibTeX."""

from __future__ import annotations

from collections.abc import Mapping

from scripts.cards.names import person
from scripts.cards.schema import Reference

TYPES = {
    "article": "article",
    "inproceedings": "inproceedings",
    "preprint": "misc",
    "software": "software",
    "webpage": "online",
}

ESCAPED = {
    "\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    **{char: f"\\{char}" for char in "{}%&#$_"},
}  # fmt: skip


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
    """`van der Family, Jr., Given`; an organisation keeps its name in braces, so that no part is taken for a first name."""
    known = person(name)
    if known is None:
        return f"{{{_escape(name)}}}"
    return ", ".join(_escape(part) for part in (known.whole_family, known.suffix, known.given) if part)


def _escape(text: str) -> str:
    return "".join(ESCAPED.get(char, char) for char in text)
