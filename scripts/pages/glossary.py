"""The page Glossary."""

from __future__ import annotations

import html

from markupsafe import Markup

from scripts.cards import prose
from scripts.evidence.knowledge import Knowledge
from scripts.pages.environment import slugify, template
from scripts.pages.writer import common


def page(knowledge: Knowledge) -> str:
    terms = knowledge.library.vocabulary.glossary
    cards = knowledge.library.cards
    views = [
        {
            "name": name, "anchor": slugify(name),
            "see": [cards[slug] for slug in entry.see if slug in cards],
            "definition": Markup(prose.to_html(entry.definition, lambda ref: html.escape(ref), inline=True)),
        }
        for name, entry in sorted(terms.items(), key=lambda item: item[0].lower())
    ]  # fmt: skip
    return template("glossary.md.j2").render(common(knowledge, "../") | {"terms": views})
