"""Pages: views of the knowledge, rendered through `templates/` into Markdown with HTML blocks.

Nothing is read here but the templates, and nothing written but their compiled form: `Pages` makes the text of each page, by
its path below `docs/`.
"""

from __future__ import annotations

import functools
import html
import json
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from scripts import charts, choice, detectors, licensing, lineage, prose
from scripts.bibtex import bibtex
from scripts.cards import Library
from scripts.cells import Cell, read_cells, title_of
from scripts.checks import reference_kind
from scripts.evidence import Finding, Judged, Verdict
from scripts.knowledge import (
    Knowledge,
    addresses,
    benchmarks,
    difference,
    introduction,
    size_of,
    tables_of,
)  # fmt: skip
from scripts.linked import json_ld
from scripts.numbers import Published, difference_text, differences, find, index, si
from scripts.runs import Run
from scripts.scaling import AXES, LABELS, TOLERANCE, Claimed, Measured
from scripts.schema import Advice, Card, Cite, Conditions

MARKS = {
    Verdict.BOTH: "✓✓", Verdict.SHOWN: "✓", Verdict.REPORTED: "§", Verdict.NOTED: "○",
    Verdict.NOT_SHOWN: "✗", Verdict.OUTDATED: "↻", Verdict.CORRECTED: "!",
}  # fmt: skip
LEGEND = {
    Verdict.BOTH: "a run made here and a published figure support it",
    Verdict.SHOWN: "a run made here supports it, for every seed",
    Verdict.REPORTED: "a published figure supports it, with its exact place",
    Verdict.NOTED: "said, but nothing checks it yet",
    Verdict.NOT_SHOWN: "the run made here does not support it",
    Verdict.OUTDATED: "true once, with what changed",
    Verdict.CORRECTED: "wrong, with what is true",
}


ANCHORS = {"purpose": "", "name": "", "confused_with": "#concept", "pros": "#claims", "cons": "#claims"}
"""Where on a model's page a field of its card stands, if not under its own name."""


def _tidy(text: str) -> str:
    """No trailing blanks, no runs of empty lines: templates leave both."""
    for blank, less in ((" \n", "\n"), ("\n\n\n", "\n\n")):
        while blank in text:
            text = text.replace(blank, less)
    return text.strip() + "\n"


def _page(path: str, make: Callable[[], str]) -> dict[str, str]:
    return {path: _tidy(make())}


@dataclass
class Pages:
    """Makes the pages from all that is known, the scripts of the examples by slug, and the address of the repository."""

    knowledge: Knowledge
    scripts: Mapping[str, str]
    repository: str

    def of_slug(self, slug: str) -> dict[str, str]:
        """The page of a model and that of its example, as far as there are such, by path below `docs/`."""
        pages = {}
        if card := self.knowledge.library.cards.get(slug):
            pages[f"models/{slug}.md"] = _tidy(self.model(card))
        if slug in self.scripts:
            pages[f"examples/{slug}.md"] = _tidy(self.example(slug))
        return pages

    def overviews(self) -> dict[str, Callable[[], dict[str, str]]]:
        """Makers of all other generated pages, by path below `docs/`."""
        pages = {
            "compare/index.md": self.compare,
            "index.md": self.home,
            "models/index.md": self.models,
            "tasks/index.md": self.tasks,
            "numbers/index.md": self.numbers,
            "scaling/index.md": self.scaling,
            "examples/index.md": self.examples_index,
            "glossary/index.md": self.glossary,
            "notes/index.md": self.notes,
            "charts/index.md": self.charts,
            "choose/index.md": self.choose,
            "evidence/index.md": self.evidence,
            "detectors/index.md": self.detectors,
            "licensing/index.md": self.licensing,
            "lineage/index.md": self.lineage,
            "downloads/index.md": self.downloads,
        }
        return {path: functools.partial(_page, path, make) for path, make in pages.items()}

    def model(self, card: Card) -> str:
        root = "../../"
        run = self.knowledge.run(card.slug)
        record = run.record if run else None
        figures = {figure["name"]: figure for figure in record["figures"]} if record else {}
        hero = figures.get(card.hero or "")
        judged = (*self.knowledge.pros(card.slug), *self.knowledge.cons(card.slug))
        in_experiments = (
            {name for experiment in record["experiments"] for name in experiment["figures"]} if record else ()
        )
        return _template("model.md.j2").render(
            self._common(root, card) | {
                "card": card, "intro": introduction(card), "run": run, "record": record, "figures": figures,
                "hero": hero, "pros": self.knowledge.pros(card.slug), "cons": self.knowledge.cons(card.slug),
                "verdicts": _ordered(self.knowledge.verdicts(card.slug)), "claims_count": len(judged),
                "pictures": [f for f in figures.values() if f["name"] not in in_experiments and f is not hero],
                "chips": _chips(card, self.knowledge), "sizes": _sizes(card, self.knowledge),
                "latencies": _latencies(card, self.knowledge),
                "anatomy": self.knowledge.studies.anatomies.get(card.slug),
                "sweeps": [_sweep_view(sweep, card) for sweep in self.knowledge.studies.of(card.slug)],
                "tables": _tables(card, self.knowledge), "json_ld": Markup(json_ld(card)),
                "bibtex": Markup(bibtex(card.references)),
            }
        )  # fmt: skip

    def example(self, slug: str) -> str:
        root = "../../"
        cells = read_cells(self.scripts[slug])
        card = self.knowledge.library.cards.get(slug)
        run = self.knowledge.run(slug)
        record = run.record if run else None
        figures = list(record["figures"]) if record else []
        return _template("example.md.j2").render(
            self._common(root, card) | {
                "slug": slug, "name": self._name(slug), "has_card": card is not None,
                "title": title_of(cells), "run": run, "record": record, "fence": "`" * 5,
                "slug_file": f"../{slug}", "cells": [_cell_view(cell, figures) for cell in cells],
            }
        )  # fmt: skip

    def home(self) -> str:
        return self._grid("home.md.j2", root="")

    def models(self) -> str:
        return self._grid("models.md.j2", root="../")

    def _grid(self, template: str, root: str) -> str:
        """Every model in brief, those with a figure first."""
        verdicts = _ordered(self.knowledge.verdicts())
        entries = sorted(map(self._entry, self.knowledge.cards), key=lambda entry: entry["hero"] is None)
        return _template(template).render(
            self._common(root) | {
                "entries": entries, "verdicts": verdicts,
                "claims_count": sum(verdicts.values()), "legend": LEGEND,
            }
        )  # fmt: skip

    def _entry(self, card: Card) -> dict[str, Any]:
        run = self.knowledge.run(card.slug)
        figures = run.record["figures"] if run and run.record else []
        hero = next((figure for figure in figures if figure["name"] == card.hero), None)
        return {
            "card": card,
            "intro": introduction(card),
            "hero": hero,
            "verdicts": _ordered(self.knowledge.verdicts(card.slug)),
            "backed": _backed(self.knowledge.verdicts(card.slug)),
            "parameters": _range(card, self.knowledge, "parameters"),
            "least_parameters": min(_own_sizes(card, self.knowledge, "parameters"), default=""),
        }

    def tasks(self) -> str:
        words = self.knowledge.library.vocabulary.get("tasks", {})
        tasks = [
            {"name": name, "definition": text, "cards": [card for card in self.knowledge.cards if name in card.tasks]}
            for name, text in sorted(words.items())
        ]
        return _template("tasks.md.j2").render(
            self._common("../") | {"tasks": [task for task in tasks if task["cards"]]}
        )

    def numbers(self) -> str:
        views = [_benchmark_view(benchmark, self.knowledge) for benchmark in benchmarks(self.knowledge)]
        return _template("numbers.md.j2").render(self._common("../") | {"benchmarks": views})

    def scaling(self) -> str:
        studies, cards = self.knowledge.studies, self.knowledge.library.cards
        views = [_sweep_view(sweep, cards[sweep.sweep.card]) for sweep in studies.sweeps]
        return _template("scaling.md.j2").render(
            self._common("../") | {"sweeps": views, "figures": studies.scaling_figures, "tolerance": TOLERANCE}
        )

    def examples_index(self) -> str:
        rows = [
            {"slug": slug, "name": self._name(slug), "run": self.knowledge.run(slug) or Run(slug, "not run")}
            for slug in sorted(self.scripts)
        ]
        return _template("examples.md.j2").render(self._common("../") | {"rows": rows})

    def _name(self, slug: str) -> str:
        card = self.knowledge.library.cards.get(slug)
        return card.name if card else slug

    def glossary(self) -> str:
        terms = self.knowledge.library.vocabulary.get("glossary", {})
        cards = self.knowledge.library.cards
        views = [
            {
                "name": name, "anchor": slugify(name),
                "see": [cards[slug] for slug in entry.get("see", []) if slug in cards],
                "definition": Markup(prose.to_html(entry["definition"], lambda ref: html.escape(ref), inline=True)),
            }
            for name, entry in sorted(terms.items(), key=lambda item: item[0].lower())
        ]  # fmt: skip
        return _template("glossary.md.j2").render(self._common("../") | {"terms": views})

    def notes(self) -> str:
        notes = self.knowledge.library.vocabulary.get("notes", [])
        views = [{"line": note["line"], "places": [self._place(place) for place in note["places"]]} for note in notes]
        return _template("notes.md.j2").render(self._common("../") | {"notes": views})

    def charts(self) -> str:
        return _template("charts.md.j2").render(self._common("../") | {"charts": charts.charts(self.knowledge)})

    def choose(self) -> str:
        content = choice.content(self.knowledge)
        least = {card.slug: card.least_data for card in self.knowledge.cards}
        return _template("choose.md.j2").render(
            self._common("../") | {
                "content": content, "models": [model | {"least_data": least[model["slug"]]} for model in content["models"]],
                "uses": licensing.all_uses(self.knowledge),
            }
        )  # fmt: skip

    def licensing(self) -> str:
        rows = licensing.rows(self.knowledge)
        datasets = {terms.name: terms for row in rows for terms in row.data}
        return _template("licensing.md.j2").render(
            self._common("../") | {
                "rows": rows, "uses": licensing.all_uses(self.knowledge),
                "licences": licensing.licence_terms(self.knowledge), "datasets": [datasets[name] for name in sorted(datasets)],
            }
        )  # fmt: skip

    def compare(self) -> str:
        models = [
            self._entry(card) | _compared(card, self.knowledge) | {"concept": self._first_paragraph(card)}
            for card in self.knowledge.cards
        ]
        return _template("compare.md.j2").render(self._common("../") | {"models": models})

    def _first_paragraph(self, card: Card) -> Markup:
        """Of the concept, for another page than the card's."""
        paragraph = card.concept.strip().partition("\n\n")[0]
        return _Writer(self.knowledge, "../", card, elsewhere=True).prose(paragraph, inline=True)

    def detectors(self) -> str:
        return _template("detectors.md.j2").render(
            self._common("../") | {
                "groups": detectors.groups(self.knowledge), "measures": detectors.MEASURES, "stresses": detectors.STRESSES
            }
        )  # fmt: skip

    def lineage(self) -> str:
        drawing = lineage.drawing(self.knowledge)
        return _template("lineage.md.j2").render(
            self._common("../") | {"d": drawing, "width": lineage.WIDTH, "height": lineage.HEIGHT}
        )

    def evidence(self) -> str:
        """Every claim with its verdict, and the shares by model."""
        verdicts = _ordered(self.knowledge.verdicts())
        shares = [_share(card, self.knowledge) for card in self.knowledge.cards]
        rows = [row for card in self.knowledge.cards for row in _claim_rows(card, self.knowledge)]
        return _template("evidence.md.j2").render(
            self._common("../") | {
                "verdicts": verdicts, "claims_count": sum(verdicts.values()), "shares": shares, "rows": rows,
                "tested": sum(share["tested"] for share in shares),
            }
        )  # fmt: skip

    def downloads(self) -> str:
        from scripts.exports import ALL, EACH

        return _template("downloads.md.j2").render(
            self._common("../") | {"all": ALL, "each": EACH, "cards": self.knowledge.cards}
        )

    def _place(self, place: Mapping[str, str]) -> dict[str, Any]:
        """Where a line of the notes went: a field of a card, or one of its claims with the verdict."""
        card = self.knowledge.library.cards[place["card"]]
        if "field" in place:
            anchor = ANCHORS.get(place["field"], f"#{place['field']}")
            return {"card": card, "anchor": anchor, "text": place["field"].replace("_", " "), "verdict": None}
        sides = (("pro", self.knowledge.pros(card.slug)), ("con", self.knowledge.cons(card.slug)))
        side, i, judged = next(
            (side, i, judged)
            for side, claims in sides
            for i, judged in enumerate(claims, 1)
            if judged.claim.claim == place["claim"]
        )
        return {"card": card, "anchor": f"#{side}-{i}", "text": place["claim"], "verdict": judged.verdict.value}

    def _common(self, root: str, card: Card | None = None) -> dict[str, Any]:
        writer = _Writer(self.knowledge, root, card)
        return {
            "root": root, "repository": self.repository, "front": _front, "prose": writer.prose,
            "source": writer.source, "cite": writer.cite, "instead": writer.instead, "place": writer.place,
            "evidence_link": writer.evidence_link, "model_name": self._name, "evidence_summary": _evidence_summary,
        }  # fmt: skip


@dataclass
class _Writer:
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
        title = f"{result['meaning']}: {', '.join(map(short, result['values']))} {result['unit']}"
        return f'<a class="number" href="{page}#result-{name}" title="{html.escape(title)}">{short(result["mean"])}</a>'

    def cite(self, key: str) -> Markup:
        assert self.card is not None
        reference = self.card.references[key]
        family = (
            reference.authors[0].split()[-1]
            if reference.type in ("article", "inproceedings", "preprint")
            else reference.authors[0]
        )
        more = " et al." if len(reference.authors) > 1 else ""
        page = self._page(self.card.slug)
        return Markup(f'<a class="cite" href="{page}#ref-{key}">{escape(family)}{more}, {reference.year}</a>')

    def source(self, cite: Cite) -> Markup:
        return Markup(f"[{self.cite(cite.reference)}: {escape(cite.where)}]")

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
        return f"{self._page(finding.observed['card'])}#experiment-{finding.observed['experiment']}"


@functools.lru_cache(maxsize=2)
def _terms(library: Library) -> prose.Terms:
    return prose.Terms.of(
        {
            spelling: f"glossary/#{slugify(name)}"
            for name, entry in library.vocabulary.get("glossary", {}).items()
            for spelling in [name, *entry.get("aliases", [])]
        }
    )


def _evidence_summary(judged: Judged) -> str:
    """`2 published figures and a source`: what the folded evidence of a claim holds."""
    n = len(judged.reported)
    figures = f"{n} published comparison{'s' * (n != 1)}" if n else ""
    return " and ".join(filter(None, [figures, "the source of the claim" if judged.claim.source else ""]))


def _front(fields: Mapping[str, Any]) -> Markup:
    """YAML front matter; JSON is YAML, and quotes whatever a title holds.

    Escaped here, since the theme writes title and description into the page as they are.
    """
    escaped = {
        key: html.escape(value, quote=key != "title") if isinstance(value, str) else value
        for key, value in fields.items()
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in escaped.items()]
    return Markup("---\n" + "\n".join(lines) + "\n---\n")


def _ordered(counts: Mapping[Verdict, int]) -> dict[str, int]:
    return {verdict.value: counts[verdict] for verdict in Verdict if counts.get(verdict)}


def _compared(card: Card, knowledge: Knowledge) -> dict[str, Any]:
    """What the page Compare says of a model beside its entry in the grid."""
    return {
        "pros": knowledge.pros(card.slug), "cons": knowledge.cons(card.slug),
        "macs": _range(card, knowledge, "macs"),
    }  # fmt: skip


def _range(card: Card, knowledge: Knowledge, metric: str) -> str:
    """`22.1 M to 86.6 M`, over the published figures of a model's own variants."""
    sizes = _own_sizes(card, knowledge, metric)
    low, high = (si(f(sizes)) if sizes else "" for f in (min, max))
    return low if low == high else f"{low} to {high}"


def _own_sizes(card: Card, knowledge: Knowledge, metric: str) -> list[float]:
    return [size.quantity.value for key in _own(card) if (size := size_of(knowledge.library, card.slug, key, metric))]


def _backed(verdicts: Mapping[Verdict, int]) -> float:
    """The share of the claims that a run or a published figure supports."""
    return sum(verdicts.get(v, 0) for v in (Verdict.BOTH, Verdict.SHOWN, Verdict.REPORTED)) / sum(verdicts.values())


def _share(card: Card, knowledge: Knowledge) -> dict[str, Any]:
    judged = (*knowledge.pros(card.slug), *knowledge.cons(card.slug))
    counts = {verdict.value: n for verdict, n in knowledge.verdicts(card.slug).items()}
    tested = sum(any(finding.holds is not None for finding in each.shown) for each in judged)
    return {"card": card, "verdicts": defaultdict(int, counts), "tested": tested, "claims": len(judged)}


def _claim_rows(card: Card, knowledge: Knowledge) -> list[dict[str, Any]]:
    """The claims of a card as rows of a table: text, verdict, anchor, and what backs each."""
    return [
        {
            "card": card, "side": side, "anchor": f"{side}-{i}", "text": prose.to_text(judged.claim.claim),
            "verdict": judged.verdict.value, "backing": _backing(judged),
        }
        for side, claims in (("pro", knowledge.pros(card.slug)), ("con", knowledge.cons(card.slug)))
        for i, judged in enumerate(claims, 1)
    ]  # fmt: skip


def _backing(judged: Judged) -> list[str]:
    kinds = {"run": judged.shown, "published figures": judged.reported, "source of the claim": judged.claim.source}
    return [name for name, there in kinds.items() if there] or ["nothing"]


def _cell_view(cell: Cell, figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A cell of an example; a code cell is followed by the figures whose names it contains."""
    if cell.is_code:
        drawn = [figure for figure in figures if draws(cell, figure["name"])]
        return {"code": cell.text, "figures": drawn}
    parts = prose.sections(cell.text, lambda ref: html.escape(ref))
    views = [{"level": level, "text": text} if level else {"level": 0, "html": Markup(text)} for level, text in parts]
    return {"code": "", "parts": views, "figures": []}


def draws(cell: Cell, name: str) -> bool:
    """A figure is drawn in the cell that calls `figure("name", ...)`; other cells may mention its name."""
    return cell.is_code and re.search(rf'figure\(\s*"{name}"', cell.text) is not None


def _chips(card: Card, knowledge: Knowledge) -> list[str]:
    """Size range, and the best figure of the first table with one."""
    size = _range(card, knowledge, "parameters").replace("G", "B")
    headline = _headline(card, knowledge)
    return [*([f"{size} parameters"] if size else []), *([headline] if headline else [])]


def _own(card: Card) -> list[str]:
    """The variants that are this model, not its rivals, predecessors, successors or ablations."""
    return [key for key, variant in card.variants.items() if not variant.for_comparison]


def _headline(card: Card, knowledge: Knowledge) -> str | None:
    metrics = knowledge.library.vocabulary.get("metrics", {})
    numbers = [number for key in _own(card) for number in index(knowledge.library)[card.slug][key]]
    quality = [number for number in numbers if metrics.get(number.metric, {}).get("kind") == "quality"]
    if not quality:
        return None
    first = quality[0]
    same = [n for n in quality if (n.metric, n.table) == (first.metric, first.table)]
    best = (max if metrics[first.metric]["better"] == "higher" else min)(same, key=lambda n: n.quantity.value)
    where = " ".join(filter(None, [best.conditions.dataset, best.conditions.split]))
    return f"{_with_unit(best, metrics)} {metrics[best.metric]['label']}{' on ' + where if where else ''}"


def _with_unit(number: Published, metrics: Mapping[str, Any]) -> str:
    unit = metrics.get(number.metric, {}).get("unit", "")
    return f"{number.quantity.printed}{' ' + unit if unit and unit != '%' else unit}"


def _sizes(card: Card, knowledge: Knowledge) -> list[dict[str, Any]]:
    rows = []
    for key, variant in card.variants.items():
        counted = knowledge.counted(variant)
        reported = {metric: size_of(knowledge.library, card.slug, key, metric) for metric in ("parameters", "macs")}
        if counted or any(reported.values()):
            rows.append({
                "name": variant.name, "differs": variant.count.differs if variant.count else None,
                "build": variant.count.build if counted and variant.count else "",
                "input": _count_input(variant.count.input, reported["macs"]) if counted and variant.count else "",
                "parameters": _reported_counted(reported["parameters"], counted.parameters if counted else None),
                "macs": _reported_counted(reported["macs"], counted.macs if counted else None),
            })  # fmt: skip
    return rows


def _count_input(counted: str, macs: Published | None) -> str:
    """The input of the count, and that of the published MACs where it is another."""
    published = macs.conditions.input if macs else None
    return f"{counted} (published: {published})" if published and published != counted else counted


def _latencies(card: Card, knowledge: Knowledge) -> list[dict[str, str]]:
    """One row per variant, device and set of conditions, at the variant's input and at those that no variant is counted at."""
    rows = []
    counted = {(variant.count.build, variant.count.input) for variant in card.variants.values() if variant.count}
    for variant in card.variants.values():
        for timed in knowledge.latency(variant):
            if variant.count and timed.input != variant.count.input and (timed.build, timed.input) in counted:
                continue  # of another variant of the same architecture
            device = timed.device + (f", {timed.threads} thread{'s' * (timed.threads != 1)}" if timed.threads else "")
            versions = ", ".join(f"{name} {version}" for name, version in timed.versions.items())
            spread = f"{short(timed.ms_low)} to {short(timed.ms_high)}" if timed.repeats > 1 else "timed once"
            rows.append({
                "name": variant.name, "device": device, "input": timed.input, "batch": str(timed.batch),
                "precision": timed.precision, "memory": short(timed.peak_mb),
                "time": f"{short(timed.ms)} ({spread})" if timed.ms else "",
                "remark": "; ".join(filter(None, [timed.error, timed.part, versions])),
            })  # fmt: skip
    return rows


def _sweep_view(measured: Measured, card: Card) -> dict[str, Any]:
    sweep = measured.sweep
    shown = [(measured.exponent(what), measured.last_exponent(what)) for what in LABELS]
    first, last = sweep.points[0], sweep.points[-1]
    ends = [si(point.x) if point.changes or sweep.axis not in ("pixels", "voxels") else " x ".join(map(str, point.size))
            for point in (first, last)]  # fmt: skip
    return {
        "anchor": slugify(f"{sweep.card} {sweep.name} {sweep.axis}"), "slug": sweep.card, "name": sweep.name,
        "axis": AXES[sweep.axis], "range": f"{ends[0]} to {ends[1]}",
        "exponents": ["" if all_ is None else f"{all_:.2f} ({end:.2f})" for all_, end in shown],
        "claims": [_claimed_view(measured, claimed, card) for claimed in sweep.claims],
    }  # fmt: skip


def _claimed_view(measured: Measured, claimed: Claimed, card: Card) -> dict[str, str]:
    """What is claimed, whether it comes out, and where the card says so."""
    sides = (("pro", card.pros), ("con", card.cons))
    starts = [
        f"{side}-{i}"
        for side, claims in sides
        for i, claim in enumerate(claims, 1)
        if claimed.claim and claim.claim.startswith(claimed.claim)
    ]
    verdict = {True: "holds", False: "does not hold", None: "cannot be said"}[measured.holds(claimed)]
    says = f"{claimed.says} Exponent {claimed.exponent:g} of {LABELS[claimed.what]}:"
    return {"says": says, "verdict": verdict, "anchor": starts[0] if starts else ""}


def _reported_counted(reported: Published | None, counted: float | None) -> dict[str, str]:
    gap = f"{difference(reported.quantity.value, counted):+.1%}" if reported and counted else ""
    return {
        "reported": reported.quantity.printed + (" (half of the FLOPs)" if reported.halved else "") if reported else "",
        "counted": si(counted) if counted else "",
        "difference": gap.replace("-", "−"),
    }


def _tables(card: Card, knowledge: Knowledge) -> list[dict[str, Any]]:
    metrics = knowledge.library.vocabulary.get("metrics", {})
    views = []
    for table in tables_of(card):
        source = card.tables[table.id]
        rows = [
            {
                "name": variant.name,
                "cells": [row.values[m].printed if m in row.values else "" for m in table.metrics],
                "remark": "; ".join(filter(None, [_conditions_text(row.conditions), row.where, row.note])),
            }
            for _, variant, row in table.rows
        ]
        views.append({
            "id": table.id, "where": source.where, "note": source.note, "rows": rows,
            "cite": Cite(reference=source.source, where=source.where),
            "conditions": _conditions_text(source.conditions),
            "metrics": [{"label": m, "definition": m, "unit": "", **metrics.get(m, {})} for m in table.metrics],
            "remarks": any(row["remark"] for row in rows),
        })  # fmt: skip
    return views


def _conditions_text(conditions: Conditions) -> str:
    """`COCO val2017, input 800 x 1333, schedule 500 epochs`."""
    given = conditions.model_dump(exclude_none=True)
    place = " ".join(given.pop(name) for name in ("dataset", "split") if name in given)
    rest = [f"{name} {value}" for name, value in given.items()]
    return ", ".join([*([place] if place else []), *rest])


def _benchmark_view(benchmark: Any, knowledge: Knowledge) -> dict[str, Any]:
    metrics = knowledge.library.vocabulary["metrics"]
    metric, first = metrics[benchmark.metric], benchmark.rankings[0].numbers[0]

    def apart_in(a: Published, b: Published) -> list[str]:
        return [name for names in differences(a, b, metrics) for name in names]

    title = f"{metric['label']} on {benchmark.dataset} {benchmark.split}".strip()
    groups = [
        {
            "conditions": ", ".join(f"{name} {value}" for name, value in ranking.conditions)
            or "no further conditions given",
            "apart": difference_text(first, ranking.numbers[0], apart_in(first, ranking.numbers[0])),
            "rows": [
                _ranked(number, rank, knowledge)
                for number, rank in zip(ranking.numbers, _ranks(ranking.numbers), strict=True)
            ],
        }
        for ranking in benchmark.rankings
    ]
    unit = f" ({metric['unit']})" if metric.get("unit") else ""
    return {
        "title": title, "anchor": slugify(title), "definition": metric["definition"], "label": metric["label"] + unit,
        "groups": groups,
    }  # fmt: skip


def _ranks(numbers: Sequence[Published]) -> list[str]:
    """Ranks only where there is something to rank; equal figures share one."""
    first: dict[float, int] = {}
    for i, number in enumerate(numbers, 1):
        first.setdefault(number.quantity.value, i)
    return [str(first[number.quantity.value]) if len(numbers) > 1 else "" for number in numbers]


def _ranked(number: Published, rank: str, knowledge: Knowledge) -> dict[str, str]:
    card = knowledge.library.cards[number.card]
    sizes = {metric: size_of(knowledge.library, card.slug, number.variant, metric) for metric in ("parameters", "macs")}
    return {
        "rank": rank, "slug": card.slug, "name": card.variants[number.variant].name, "value": number.quantity.printed,
        "table": number.table, "where": number.where,
        **{metric: size.quantity.printed if size else "" for metric, size in sizes.items()},
    }  # fmt: skip


def slugify(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def short(value: float | None) -> str:
    """Three significant digits, without an exponent for everyday sizes."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1g}"
    if abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:.2e}"


def _authors(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} et al."


def _licence(spdx: str) -> str:
    """`not stated` for LicenseRef-NotStated, `SAM-License (custom)`, `none published`; an SPDX id as it is."""
    if spdx == "none":
        return "none published"
    custom = spdx.removeprefix("LicenseRef-")
    if custom == spdx:
        return spdx
    return "not stated" if custom == "NotStated" else f"{custom} (custom)"


def _trim(text: str, end: str) -> str:
    return text.strip().rstrip(end)


def _heading(text: str) -> Markup:
    """Text of a Markdown heading: marks are escaped, so that nothing in it is read as Markdown or HTML."""
    return Markup(re.sub(r"([\\`*_{}\[\]#|])", r"\\\1", html.escape(" ".join(text.split()), quote=False)))


def _compiled() -> jinja2.FileSystemBytecodeCache | None:
    """Where compiled templates lie from one command to the next, beside their source, as those of Python's modules do."""
    folder = Path(__file__).with_name("templates") / "__pycache__"
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return jinja2.FileSystemBytecodeCache(str(folder)) if os.access(folder, os.W_OK) else None


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("scripts"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, bytecode_cache=_compiled(),
    )  # fmt: skip
    environment.globals["marks"] = {verdict.value: mark for verdict, mark in MARKS.items()}
    environment.globals["badge"] = functools.cache(lambda verdict: _template("macros.j2").module.badge(verdict))  # type: ignore[attr-defined]
    environment.filters |= {
        "basename": posixpath.basename, "trim": _trim,
        "short": short, "si": si, "plain": prose.to_text, "slugify": slugify,
        "authors": _authors, "licence": _licence, "addresses": addresses, "heading": _heading,
    }  # fmt: skip
    return environment


@functools.cache
def _template(name: str) -> jinja2.Template:
    return _environment().get_template(name)
