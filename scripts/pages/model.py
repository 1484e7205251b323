"""The page of a model."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from scripts.cards.numbers import Cite, Conditions, Row, Variant
from scripts.cards.schema import Card
from scripts.cards.values import si
from scripts.cards.vocabulary import Metric, Vocabulary
from scripts.evidence import terms
from scripts.evidence.knowledge import Knowledge, difference
from scripts.evidence.published import Published, index, own_size
from scripts.evidence.systems import SIZES, cost, measured_times, times
from scripts.evidence.verdicts import Judged, Verdict
from scripts.exports.bibtex import bibtex
from scripts.exports.json_ld import json_ld
from scripts.pages import checkpoints, pairs, photographs, runs_in_words
from scripts.pages.environment import one_word, ordered, short, template, topic
from scripts.pages.figures import anatomy
from scripts.pages.models import size_range
from scripts.pages.previews import path_of
from scripts.pages.scaling import sweep_view
from scripts.pages.systems import speed, system_name, told
from scripts.pages.writer import common

MOST_LEADING = 3
"""Reasons, and pieces of advice, that the first screen shows of each kind."""


@dataclass(frozen=True)
class TableView:
    """A table of a card as a page shows it: the metrics that occur, and one row per variant."""

    id: str
    metrics: tuple[str, ...]
    rows: tuple[tuple[str, Variant, Row], ...]


def tables_of(card: Card) -> list[TableView]:
    """The tables of a card that have rows, in the card's order."""
    views = []
    for table_id in card.tables:
        rows = tuple((key, v, v.numbers[table_id]) for key, v in card.variants.items() if table_id in v.numbers)
        metrics = dict.fromkeys(metric for _, _, row in rows for metric in row.values)
        if rows:
            views.append(TableView(table_id, tuple(metrics), rows))
    return views


def _chips(card: Card, knowledge: Knowledge) -> list[str]:
    """Size range, and the best figure of the first table with one, with the system that reaches it and its cost."""
    size = size_range(card, knowledge, "parameters").replace("G", "B")
    headline = _headline(card, knowledge)
    return [*([f"{size} parameters"] if size else []), *([headline] if headline else [])]


def _headline(card: Card, knowledge: Knowledge) -> str | None:
    words = knowledge.library.vocabulary
    numbers = [number for key in card.own_variants for number in index(knowledge.library)[card.slug][key]]
    quality = [n for n in numbers if words.metric(n.metric).kind == "quality" and not n.independent and not n.aside]
    if not quality:
        return None
    first = quality[0]
    same = [n for n in quality if (n.metric, n.table) == (first.metric, first.table)]
    metric = words.metric(first.metric)
    best = (max if metric.better == "higher" else min)(same, key=lambda n: n.quantity.value)
    costs = [told(found) for what in SIZES if (found := cost(knowledge, best, what))]
    reached = f"{_with_unit(best, metric)} {metric.label}{' on ' + best.on if best.on else ''}"
    return " · ".join([reached, system_name(card, best), *costs, *_time(best, knowledge)])


def _time(number: Published, knowledge: Knowledge) -> list[str]:
    """How fast its system is: as published on a device that is named, else as timed here; nothing if neither is known."""
    for time in times(knowledge, number):
        device = ", ".join(filter(None, [time.conditions.hardware, time.conditions.precision]))
        if time.conditions.hardware:
            return [f"{speed(time, knowledge.library.vocabulary.metric(time.metric))} on {device}"]
    here = (timed for timed in measured_times(knowledge, number.system) if timed.ms and timed.batch == 1)
    return [f"{short(timed.ms)} ms on {timed.device}, timed here" for timed in itertools.islice(here, 1)]


def _with_unit(number: Published, metric: Metric) -> str:
    unit = metric.unit
    return f"{number.quantity.printed}{' ' + unit if unit and unit != '%' else unit}"


def _sizes(card: Card, knowledge: Knowledge) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for key, variant in card.variants.items():
        counted = knowledge.counted(variant)
        reported = {metric: own_size(knowledge.library, card.slug, key, metric) for metric in ("parameters", "macs")}
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


def _reported_counted(reported: Published | None, counted: float | None) -> dict[str, str]:
    gap = f"{difference(reported.quantity.value, counted):+.1%}" if reported and counted else ""
    return {
        "reported": reported.quantity.printed + (" (half of the FLOPs)" if reported.halved else "") if reported else "",
        "counted": si(counted) if counted else "",
        "difference": gap.replace("-", "−"),
    }


def _tables(card: Card, knowledge: Knowledge) -> list[dict[str, object]]:
    views: list[dict[str, object]] = []
    for table in tables_of(card):
        source = card.tables[table.id]
        rows = [
            {
                "name": variant.name,
                "cells": [row.values[m].printed if m in row.values else "" for m in table.metrics],
                "remark": "; ".join(filter(None, [conditions_text(row.conditions), row.where, row.note])),
            }
            for _, variant, row in table.rows
        ]
        views.append({
            "id": table.id, "where": source.where, "note": source.note, "rows": rows, "independent": source.independent,
            "cite": Cite(reference=source.source, where=source.where),
            "conditions": conditions_text(source.conditions),
            "metrics": [knowledge.library.vocabulary.metric(m) for m in table.metrics],
            "remarks": any(row["remark"] for row in rows),
        })  # fmt: skip
    return views


def conditions_text(conditions: Conditions) -> str:
    """`COCO val2017, input 800 x 1333, schedule 500 epochs`."""
    given = conditions.model_dump(exclude_none=True)
    place = " ".join(given.pop(name) for name in ("dataset", "split") if name in given)
    rest = [f"{name} {value}" for name, value in given.items()]
    return ", ".join([*([place] if place else []), *rest])


def searched(card: Card, words: Vocabulary) -> list[str]:
    """What the search finds a model by beside its page: its name in one word, what else it is called, and its topics."""
    names = dict.fromkeys([one_word(card.name), *card.also_called])
    return [*names, *map(topic, card.tasks), *_sought(card, words)]


def _sought(card: Card, words: Vocabulary) -> list[str]:
    """The tags of what readers look for in a card, more often the earlier it stands among the models: that ranks them."""
    asked = [each for each in words.searches if card.slug in each.models]
    return [
        topic(word)
        for each in asked
        for word in each.words
        for _ in range(len(each.models) - each.models.index(card.slug))
    ]


def page(card: Card, knowledge: Knowledge) -> str:
    """The text of `models/<slug>.md`."""
    run = knowledge.run(card.slug)
    record = run.record if run else None
    studied = knowledge.studies.anatomies.get(card.slug)
    figures = {figure.name: figure for figure in record.figures} if record else {}
    hero = knowledge.hero(card)
    in_experiments = {name for experiment in record.experiments for name in experiment.figures} if record else ()
    sides = _sides(card, knowledge)
    return template("model.md.j2").render(
        common(knowledge, "../../", card) | {
            "card": card, "intro": card.introduction, "searched": searched(card, knowledge.library.vocabulary),
            "run": run, "record": record,
            "figures": figures, "hero": hero, "image": path_of(card.slug if hero else "site"),
            "sides": sides, "leading": [(title, side, _leading(claims)) for title, side, claims in sides],
            "runs_in_words": functools.partial(runs_in_words.findings, knowledge=knowledge),
            "most": MOST_LEADING, "weighed": pairs.weighed(card, knowledge),
            "uses": terms.uses(card, knowledge), "partly": terms.partly(card, knowledge),
            "verdicts": ordered(knowledge.verdicts(card.slug)), "claims_count": sum(len(claims) for *_, claims in sides),
            "pictures": [f for f in figures.values() if f.name not in in_experiments and f is not hero],
            "chips": _chips(card, knowledge), "sizes": _sizes(card, knowledge), "latencies": _latencies(card, knowledge),
            "anatomy": studied, "drawn": anatomy(card.slug, studied) if studied else None,
            "sweeps": [sweep_view(sweep, knowledge) for sweep in knowledge.studies.of(card.slug)],
            "tables": _tables(card, knowledge), "json_ld": Markup(json_ld(card, knowledge.about.licence)),
            "bibtex": bibtex(card.references), "loading": checkpoints.view(card, knowledge),
            "photographed": photographs.of_card(card, knowledge),
        }
    )  # fmt: skip


Numbered = tuple[int, Judged]
"""A claim with its number on the card, from 1, by which other pages link to it."""


def _sides(card: Card, knowledge: Knowledge) -> list[tuple[str, str, list[Numbered]]]:
    """Pros and cons, those of the strongest evidence first."""
    strength = list(Verdict).index
    sides = (("Pros", "pro", knowledge.pros(card.slug)), ("Cons", "con", knowledge.cons(card.slug)))
    return [
        (title, side, sorted(enumerate(claims, 1), key=lambda each: strength(each[1].verdict)))
        for title, side, claims in sides
    ]


def _leading(claims: Sequence[Numbered]) -> list[Numbered]:
    """The first few claims that stand: one that is corrected or outdated is no reason."""
    return [each for each in claims if not (each[1].claim.corrected or each[1].claim.outdated)][:MOST_LEADING]
