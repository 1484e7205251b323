"""Prose of a card as HTML on a page: numbers, results, citations and other cards become links."""

from __future__ import annotations

import functools
import html
from dataclasses import dataclass

from markupsafe import Markup, escape

from scripts.cards import prose
from scripts.cards.library import Library
from scripts.cards.names import person
from scripts.cards.numbers import Cite
from scripts.cards.prose import reference_kind
from scripts.cards.schema import Advice, Card
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.published import Published, find
from scripts.evidence.runs import Finding
from scripts.evidence.verdicts import Judged
from scripts.pages import hosts
from scripts.pages.environment import front, short, slugify


def common(knowledge: Knowledge, root: str, card: Card | None = None) -> dict[str, object]:
    """What every template may use; `root` leads from the page to that of the site."""
    writer = Writer(knowledge, root, card)
    repository = knowledge.about.repository
    return {
        "root": root, "repository": repository, "front": front, "prose": writer.prose,
        "source": writer.source, "cite": writer.cite, "instead": writer.instead, "place": writer.place,
        "evidence_link": writer.evidence_link,
        "edit_address": functools.partial(hosts.edit, repository), "file_address": functools.partial(hosts.file, repository),
        "report": functools.partial(_report, repository),
        "evidence_summary": evidence_summary,
    }  # fmt: skip


def _report(repository: str, page: str, place: str = "", said: str = "") -> Markup:
    """The link beside a fact by which a reader says that it is wrong."""
    address = hosts.report(repository, page, place, said)
    return Markup('<a class="report" data-search-exclude href="{}">Report a mistake</a>').format(address)


@dataclass
class Writer:
    """Writes the prose of one card: knows where the root lies, and links each term once."""

    knowledge: Knowledge
    root: str
    card: Card | None
    elsewhere: bool = False
    """The prose stands on another page than the card's own."""

    def _page(self, slug: str) -> str:
        """Where a model's page lies, seen from here."""
        here = self.card is not None and slug == self.card.slug and not self.elsewhere
        return "" if here else f"{self.root}models/{slug}/"

    @functools.cached_property
    def _glossary(self) -> prose.Glossary:
        return prose.Glossary(_terms(self.knowledge.library), self.root)

    def prose(self, text: str, inline: bool = False) -> Markup:
        return Markup(prose.to_html(text, self._resolve, self._glossary if self.card else None, inline))

    def _resolve(self, ref: str) -> str:
        kind, name = reference_kind(ref)
        if kind == "cite":
            return str(self.cite(name))
        if kind == "run":
            return self._result(name)
        if kind == "number":
            assert self.card is not None
            return self._number(find(self.knowledge.library, self.card.slug, name))
        card = self.knowledge.library.cards[name]
        return f'<a href="{self.root}models/{name}/">{html.escape(card.name)}</a>'

    def _number(self, number: Published) -> str:
        title = f"{number.where}{', half of the FLOPs printed there' if number.halved else ''}"
        return (
            f'<a class="number" href="{self._page(number.card)}#table-{number.table}" title="{html.escape(title)}">'
            f"{html.escape(number.quantity.printed)}</a>"
        )

    def _result(self, name: str) -> str:
        assert self.card is not None
        run, page = self.knowledge.run(self.card.slug), self._page(self.card.slug)
        if run is None or name not in run.results:
            return '<span class="number">(not run yet)</span>'
        result = run.results[name]
        values = ", ".join(short(value) or "undefined" for value in result.values)
        title = f"{result.meaning}: {values} {result.unit}".strip()
        mean = short(result.mean) or "undefined"
        return f'<a class="number" href="{page}#result-{name}" title="{html.escape(title)}">{mean}</a>'

    def cite(self, key: str) -> Markup:
        assert self.card is not None
        reference = self.card.references[key]
        first = person(reference.authors[0])
        family = first.whole_family if first else reference.authors[0]
        more = " et al." if len(reference.authors) > 1 else ""
        page = self._page(self.card.slug)
        return Markup(f'<a class="cite" href="{page}#ref-{key}">{escape(family)}{more}, {reference.year}</a>')

    def source(self, cite: Cite) -> Markup:
        return Markup(f"<span data-search-exclude>[{self.cite(cite.reference)}: {escape(cite.where)}]</span>")

    def place(self, finding: Finding) -> Markup:
        """Where a finding's numbers stand: of this card as a citation, of another as a link to its table."""
        if not finding.numbers:
            return self.source(Cite(reference=finding.source, where=finding.where)) if finding.source else Markup("")
        assert self.card is not None
        places = []
        for number in finding.numbers:
            if number.card == self.card.slug:
                places.append(self.source(Cite(reference=number.source, where=number.where)))
            else:
                name = self.knowledge.library.cards[number.card].name
                link = Markup('[<a href="{}models/{}/#table-{}">{}</a>: {}]')
                places.append(link.format(self.root, number.card, number.table, name, number.where))
        return Markup(" ").join(dict.fromkeys(places))

    def instead(self, advice: Advice) -> Markup:
        if advice.choose is None:
            return Markup("")
        name = self.knowledge.library.cards[advice.choose].name
        return Markup(' <a class="instead" href="{}models/{}/">→ {}</a>').format(self.root, advice.choose, name)

    def evidence_link(self, finding: Finding) -> str:
        assert finding.observed is not None
        return f"{self._page(finding.observed.card)}#experiment-{finding.observed.experiment}"


@functools.lru_cache(maxsize=2)
def _terms(library: Library) -> prose.Terms:
    return prose.Terms.of(
        {
            spelling: f"glossary/#{slugify(name)}"
            for name, entry in library.vocabulary.glossary.items()
            for spelling in [name, *entry.aliases]
        }
    )


def evidence_summary(judged: Judged) -> str:
    """`2 published figures and a source`: what the folded evidence of a claim holds."""
    n = len(judged.reported)
    figures = f"{n} published comparison{'s' * (n != 1)}" if n else ""
    return " and ".join(filter(None, [figures, "the source of the claim" if judged.claim.source else ""]))
