"""The page Glossary."""

from __future__ import annotations

import html

from markupsafe import Markup

from scripts.cards import prose
from scripts.cards.vocabulary import Term
from scripts.evidence.knowledge import Knowledge
from scripts.pages.environment import one_word, slugify, template
from scripts.pages.writer import common


def page(knowledge: Knowledge) -> str:
    terms = knowledge.library.vocabulary.glossary
    cards = knowledge.library.cards
    views = [
        {
            "name": name, "anchor": slugify(name), "also": _other_words(name, entry),
            "see": [cards[slug] for slug in entry.see if slug in cards],
            "definition": Markup(prose.to_html(entry.definition, lambda ref: html.escape(ref), inline=True)),
        }
        for name, entry in sorted(terms.items(), key=lambda item: item[0].lower())
    ]  # fmt: skip
    return template("glossary.md.j2").render(common(knowledge, "../") | {"terms": views})


def _other_words(name: str, term: Term) -> list[str]:
    """Aliases that are other words, not the name in another form: `non-maximum suppression` of NMS, not `adapters`."""
    begins = one_word(name)[:5].lower()
    other = [alias for alias in term.aliases if not one_word(alias).lower().startswith(begins)]
    return list({one_word(alias): alias for alias in reversed(other)}.values())[::-1]
