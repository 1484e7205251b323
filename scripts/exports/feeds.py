"""The cards as texts that others read: a feed of what changed, and the site for language models."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from xml.etree import ElementTree

from scripts.cards import prose
from scripts.cards.schema import Card
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.published import Published, numbers_of
from scripts.evidence.verdicts import Judged
from scripts.runs.record import Result

ATOM = "http://www.w3.org/2005/Atom"


def render(knowledge: Knowledge) -> dict[str, str]:
    """`feed.xml`, `llms.txt` and `llms-full.txt`."""
    full = "\n\n".join(
        [
            f"# {knowledge.about.title}\n\n> {knowledge.about.summary}",
            *(card_text(card, knowledge) for card in knowledge.cards),
        ]
    )
    return {"feed.xml": atom(knowledge), "llms.txt": llms(knowledge), "llms-full.txt": full + "\n"}


def atom(knowledge: Knowledge) -> str:
    """An Atom feed, last reviewed first. Its dates are those of the cards, so that the same cards give the same feed."""
    ElementTree.register_namespace("", ATOM)
    newest = sorted(knowledge.cards, key=lambda card: (-card.reviewed.toordinal(), card.slug))
    feed = ElementTree.Element(f"{{{ATOM}}}feed")
    _add(feed, "title", knowledge.about.title)
    _add(feed, "subtitle", knowledge.about.summary)
    _add(feed, "id", _identity(knowledge.about.repository, "feed"))
    _add(feed, "updated", f"{newest[0].reviewed if newest else '1970-01-01'}T00:00:00Z")
    _add(_add(feed, "author"), "name", knowledge.about.title)
    _add(feed, "link", rel="self", href="feed.xml")
    _add(feed, "link", rel="alternate", href="index.html")
    for card in newest:
        entry = _add(feed, "entry")
        _add(entry, "title", card.name)
        _add(entry, "id", _identity(knowledge.about.repository, card.slug))
        _add(entry, "updated", f"{card.reviewed}T00:00:00Z")
        _add(entry, "link", rel="alternate", href=f"models/{card.slug}/")
        _add(entry, "summary", prose.to_text(card.purpose))
    ElementTree.indent(feed, " ")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(feed, encoding="unicode") + "\n"


def _add(parent: ElementTree.Element, name: str, text: str | None = None, **attributes: str) -> ElementTree.Element:
    made = ElementTree.SubElement(parent, f"{{{ATOM}}}{name}", attributes)
    made.text = text
    return made


def _identity(repository: str, name: str) -> str:
    """An address that stays when the site moves."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{repository}/{name}").urn


def llms(knowledge: Knowledge) -> str:
    """The site in brief, in the form of llmstxt.org: a title, a summary, then lists of links."""
    models = [
        f"- [{_plain(card.name)}](models/{card.slug}/): {_plain(prose.to_text(card.purpose))}"
        for card in knowledge.cards
    ]
    more = [
        "- [Numbers](downloads/numbers.csv): every published number with its conditions, source and place",
        "- [All cards as one text](llms-full.txt): ideas, pros and cons with their evidence, numbers",
        "- [Interface](api/models.json): the same as JSON, one file per model in api/models/",
    ]
    parts = [
        f"# {knowledge.about.title}",
        f"> {knowledge.about.summary}",
        "## Models",
        "\n".join(models),
        "## Data",
        "\n".join(more),
    ]
    return "\n\n".join(parts) + "\n"


def _head(knowledge: Knowledge) -> list[str]:
    return [f"# {knowledge.about.title}", f"> {knowledge.about.summary}"]


def _plain(text: str) -> str:
    return " ".join(text.replace("[", "(").replace("]", ")").split())


def card_text(card: Card, knowledge: Knowledge) -> str:
    """A card as plain Markdown: references to numbers are written out."""
    intro = card.introduction
    return "\n".join([
        f"## {card.name}", "", f"{intro.title} ({', '.join(intro.authors[:3])}, {intro.year})", "",
        _written_out(card.purpose, card, knowledge), "", _written_out(card.concept.strip(), card, knowledge), "",
        "### Pros", "", *(_claim(judged, card, knowledge) for judged in knowledge.pros(card.slug)), "",
        "### Cons", "", *(_claim(judged, card, knowledge) for judged in knowledge.cons(card.slug)), "",
        "### Numbers", "", *(_number(number, card) for number in numbers_of(knowledge.library, card.slug)), "",
        f"Licences: code {card.licences.code}, weights {card.licences.weights}. Reviewed {card.reviewed}.",
    ])  # fmt: skip


def _claim(judged: Judged, card: Card, knowledge: Knowledge) -> str:
    claim = judged.claim
    revision = claim.corrected or claim.outdated
    words = [claim.claim, claim.because, *([revision.reason] if revision else [])]
    return f"- ({judged.verdict.value}) " + " ".join(_written_out(text.strip(), card, knowledge) for text in words)


def _number(number: Published, card: Card) -> str:
    conditions = ", ".join(number.given.values())
    variant = card.variants[number.variant].name
    return f"- {variant}: {number.metric} {number.quantity.printed} ({conditions}; {number.source}, {number.where})"


def _written_out(text: str, card: Card, knowledge: Knowledge) -> str:
    return prose.REFERENCE.sub(lambda match: "".join(_value(match[1].strip(), card, knowledge)), text)


def _value(ref: str, card: Card, knowledge: Knowledge) -> Iterator[str]:
    from scripts.cards.prose import reference_kind
    from scripts.evidence.published import find

    kind, name = reference_kind(ref)
    run = knowledge.run(card.slug)
    if kind == "number":
        yield find(knowledge.library, card.slug, name).quantity.printed
    elif kind == "card":
        yield knowledge.library.cards[name].name
    elif kind == "run":
        yield _mean(run.results[name]) if run and name in run.results else "(not run yet)"
    else:
        yield f"({name})"


def _mean(result: Result) -> str:
    return "undefined" if result.mean is None else f"{result.mean:.3g}"
