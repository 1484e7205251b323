"""What a search engine reads of a model's page: JSON-LD in the words of schema.org."""

from __future__ import annotations

import json

from scripts.cards import prose
from scripts.cards.names import person
from scripts.cards.schema import Card, Reference

TYPES = {
    "article": "ScholarlyArticle", "inproceedings": "ScholarlyArticle", "preprint": "ScholarlyArticle",
    "software": "SoftwareSourceCode", "webpage": "WebPage",
}  # fmt: skip

SCRIPT_SAFE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def json_ld(card: Card, licence: str) -> str:
    """A TechArticle on the model's source code, escaped so that nothing in it ends the script element it stands in."""
    return json.dumps(article(card, licence), ensure_ascii=False, sort_keys=True).translate(SCRIPT_SAFE)


def article(card: Card, licence: str) -> dict[str, object]:
    """The same as plain data."""
    intro = card.introduction
    code = {"@type": "SoftwareSourceCode", "name": card.name, "codeRepository": intro.code, "license": _licence(card)}
    return {
        "@context": "https://schema.org",
        "@type": "TechArticle",
        "headline": card.name,
        "description": prose.to_text(card.purpose),
        "dateModified": card.reviewed.isoformat(),
        **({"license": licence} if licence else {}),
        "about": {name: value for name, value in code.items() if value},
        "citation": [_citation(reference) for reference in card.references.values()],
    }


def _licence(card: Card) -> str | None:
    spdx = card.licences.code
    return None if spdx == "none" or spdx.startswith("LicenseRef-") else f"https://spdx.org/licenses/{spdx}.html"


def _citation(reference: Reference) -> dict[str, object]:
    return {
        "@type": TYPES[reference.type],
        "name": reference.title,
        "author": [{"@type": "Person" if person(name) else "Organization", "name": name} for name in reference.authors],
        "datePublished": str(reference.year),
        "url": reference.addresses[0][1],
    }
