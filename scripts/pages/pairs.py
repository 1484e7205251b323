"""Pages of two models beside each other: which to take when, in three sentences computed from cards and numbers."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

from scripts.cards.library import Library
from scripts.cards.schema import Card
from scripts.cards.vocabulary import Metric
from scripts.evidence import terms
from scripts.evidence.knowledge import Knowledge, own_numbers
from scripts.evidence.published import Published, difference_text, differences
from scripts.evidence.systems import SIZES, cost, measured_times
from scripts.exports.choices import ALIKE
from scripts.pages.environment import template
from scripts.pages.previews import path_of
from scripts.pages.systems import system_name, told
from scripts.pages.writer import Writer, common

LEADING_TASKS = 2
"""Two models are weighed against each other if they share one of so many tasks that each is made for first."""


MOST_PAIRS = 300
"""Pages of pairs: they grow with the square of the number of models."""


@dataclass(frozen=True)
class Side:
    """The best figure of one model in a row, with the system that reaches it and what that costs."""

    printed: str
    system: str
    parameters: str
    macs: str
    table: str


@dataclass(frozen=True)
class Row:
    """A benchmark that both models have a figure on; `apart` names what else differs, `better` who is ahead."""

    label: str
    sides: tuple[Side, Side]
    better: int | None
    apart: str


def pairs(knowledge: Knowledge) -> tuple[tuple[Card, Card], ...]:
    """The pairs that a reader would weigh, the older model first; of very many models those of the newest."""
    return _pairs(knowledge.library)


@functools.lru_cache(maxsize=2)
def _pairs(library: Library) -> tuple[tuple[Card, Card], ...]:
    newest = sorted(library.cards.values(), key=lambda card: (card.introduction.year, card.slug), reverse=True)
    shared = (
        (older, newer)
        for newer, older in itertools.combinations(newest, 2)
        if set(newer.tasks[:LEADING_TASKS]) & set(older.tasks[:LEADING_TASKS])
    )
    return tuple(itertools.islice(shared, MOST_PAIRS))


def slug_of(a: Card, b: Card) -> str:
    """`mask-rcnn-vs-mask-dino`."""
    return f"{a.slug}-vs-{b.slug}"


def page(a: Card, b: Card, knowledge: Knowledge) -> str:
    """The text of `compare/<a>-vs-<b>.md`."""
    found = rows(a, b, knowledge)
    models = [_model(card, knowledge) for card in (a, b)]
    uses = terms.all_uses(knowledge)
    return template("pair.md.j2").render(
        common(knowledge, "../../") | {
            "here": f"compare/{slug_of(a, b)}/",
            "models": models, "rows": found, "uses": uses, "times": _times(a, b, knowledge),
            "sentences": [_accuracy((a, b), found), _terms((a, b), uses, knowledge)],
            "image": path_of(next((card.slug for card in (a, b) if knowledge.hero(card)), "site")),
            "shared": [task for task in a.tasks if task in b.tasks],
        }
    )  # fmt: skip


def _model(card: Card, knowledge: Knowledge) -> dict[str, object]:
    writer = Writer(knowledge, "../../", card, elsewhere=True)
    return {
        "card": card, "hero": knowledge.hero(card), "prose": writer.prose,
        "uses": terms.uses(card, knowledge), "partly": terms.partly(card, knowledge),
        "cons": [each for each in knowledge.cons(card.slug) if not (each.claim.corrected or each.claim.outdated)],
        "pros": [each for each in knowledge.pros(card.slug) if not (each.claim.corrected or each.claim.outdated)],
    }  # fmt: skip


def rows(a: Card, b: Card, knowledge: Knowledge) -> list[Row]:
    """The benchmarks of both, each with the best figure of each model, measured alike; headline metrics first."""
    words = knowledge.library.vocabulary
    best = [_best(card.slug, knowledge) for card in (a, b)]
    found = []
    for key in (each for each in best[0] if each in best[1]):
        ours, theirs = best[0][key], best[1][key]
        metric = words.metric(ours.metric)
        where = " ".join(filter(None, [ours.conditions.dataset, ours.conditions.split]))
        apart = difference_text(ours, theirs, [name for names in differences(ours, theirs, words) for name in names])
        sides = tuple(_side(card, number, knowledge) for card, number in ((a, ours), (b, theirs)))
        row = Row(f"{metric.label} on {where}", (sides[0], sides[1]), _better(ours, theirs, metric), apart)
        found.append((not metric.headline, bool(apart), row.label, row))
    return [row for *_, row in sorted(found, key=lambda each: each[:3])]


@functools.lru_cache(maxsize=128)  # every card is in several pairs
def _best(slug: str, knowledge: Knowledge) -> dict[tuple[str | None, ...], Published]:
    """The best own figure of each benchmark, by metric and the conditions in which figures have to agree."""
    words = knowledge.library.vocabulary
    found: dict[tuple[str | None, ...], Published] = {}
    for number in own_numbers(slug, knowledge):
        metric, c = words.metric(number.metric), number.conditions
        if metric.kind != "quality" or not c.dataset or number.independent:
            continue
        key = (number.metric, *(getattr(c, name) for name in ALIKE))
        known = found.get(key)
        if known is None or _better(number, known, metric) == 0:
            found[key] = number
    return found


def _better(a: Published, b: Published, metric: Metric) -> int | None:
    """0 or 1 for the better one, None for a draw."""
    if a.quantity.value == b.quantity.value:
        return None
    return int((a.quantity.value < b.quantity.value) == (metric.better == "higher"))


def _side(card: Card, number: Published, knowledge: Knowledge) -> Side:
    sizes = [told(cost(knowledge, number, metric)) for metric in SIZES]
    return Side(number.quantity.printed, system_name(card, number), sizes[0], sizes[1], number.table)


def _accuracy(cards: tuple[Card, Card], found: list[Row]) -> str:
    """Who is ahead where both were measured alike."""
    if not found:
        return "No benchmark has a figure of both, so nothing published says which is the more accurate."
    row = found[0]
    ahead = "Both reach the same" if row.better is None else f"{cards[row.better].name} is ahead"
    figures = " and ".join(f"{side.printed} with {side.system}" for side in row.sides)
    apart = f" The two differ in {row.apart}." if row.apart else " All conditions that are told agree."
    return f"{ahead} in {row.label}: {figures}.{apart}"


def _terms(cards: tuple[Card, Card], uses: list[str], knowledge: Knowledge) -> str:
    """What the licences allow of the one and not of the other."""
    allowed = [{use for use in uses if terms.uses(card, knowledge)[use] == "yes"} for card in cards]
    some = [card.name for card in cards if terms.partly(card, knowledge)]
    but = f", though not all weights of {' and '.join(some)}" if some else ""
    if allowed[0] == allowed[1]:
        return f"The licences plainly allow both for {_listed(uses, allowed[0]) or 'no use'}{but}."
    only = [f"{card.name} for {_listed(uses, mine) or 'no use'}" for card, mine in zip(cards, allowed, strict=True)]
    return f"The licences plainly allow {only[0]}, and {only[1]}{but}."


def _listed(uses: list[str], allowed: set[str]) -> str:
    return ", ".join(use for use in uses if use in allowed)


def _times(a: Card, b: Card, knowledge: Knowledge) -> list[tuple[str, list[str]]]:
    """The times of both on each device that both were timed on, their fastest system first."""
    found = [_fastest(card.slug, knowledge) for card in (a, b)]
    return [(device, [each[device][1] for each in found]) for device in sorted(found[0].keys() & found[1].keys())]


@functools.lru_cache(maxsize=128)
def _fastest(slug: str, knowledge: Knowledge) -> dict[str, tuple[float, str]]:
    """Milliseconds of the fastest system of a model, and what they are of, by device."""
    found: dict[str, tuple[float, str]] = {}
    for number in own_numbers(slug, knowledge):
        for timed in measured_times(knowledge, number.system):
            if timed.batch == 1 and timed.ms is not None:
                threads = f", {timed.threads} threads" if timed.threads else ""
                name = system_name(knowledge.library.cards[slug], number)
                told_of = (timed.ms, f"{timed.ms:.3g} ms, {name} at {timed.input}")
                device = f"{timed.device}{threads}, {timed.precision}"
                found[device] = min(told_of, found.get(device, told_of))
    return found
