"""Pages of two models beside each other: which to take when, in three sentences computed from cards and numbers."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from scripts.cards.library import Library
from scripts.cards.schema import Card
from scripts.evidence import terms
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.published import Published, comparability
from scripts.evidence.systems import SIZES, cost
from scripts.exports.comparison import PLACE, timed
from scripts.pages import beside
from scripts.pages.beside import Beside
from scripts.pages.environment import template
from scripts.pages.previews import path_of
from scripts.pages.systems import speed, system_name, told
from scripts.pages.writer import Writer, common

LEADING_TASKS = 2
"""Two models are weighed against each other if they share one of so many tasks that each is made for first."""


MOST_PAIRS = 300
"""Pages of pairs: they grow with the square of the number of models."""


LEAST_ADVICE = 3
"""So much of a model's general advice fills up what the cards say of the very pair."""


Cards = tuple[Card, Card]


@dataclass(frozen=True)
class Side:
    """The figure of one model in a row, with the system that it is of and what that costs."""

    printed: str
    system: str
    sizes: str
    table: str


@dataclass(frozen=True)
class Row:
    """Figures of both beside each other; `better` says who is ahead, `conditions` in what they agree or differ."""

    label: str
    sides: tuple[Side, ...]
    better: int | None
    conditions: str


def pairs(knowledge: Knowledge) -> tuple[Cards, ...]:
    """The pairs that a reader would weigh, the older model first; of very many models those of the newest."""
    return _pairs(knowledge.library)


@functools.lru_cache(maxsize=2)
def _pairs(library: Library) -> tuple[Cards, ...]:
    newest = sorted(library.cards.values(), key=lambda card: (card.introduction.year, card.slug), reverse=True)
    shared = (
        (older, newer)
        for newer, older in itertools.combinations(newest, 2)
        if set(newer.tasks[:LEADING_TASKS]) & set(older.tasks[:LEADING_TASKS])
    )
    return tuple(itertools.islice(shared, MOST_PAIRS))


def weighed(card: Card, knowledge: Knowledge) -> list[tuple[str, str]]:
    """Names of the models that pages weigh one against, with the places of these pages."""
    return _weighed(knowledge.library).get(card.slug, [])


@functools.lru_cache(maxsize=2)
def _weighed(library: Library) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for a, b in _pairs(library):
        for one, other in ((a, b), (b, a)):
            found.setdefault(one.slug, []).append((other.name, slug_of(a, b)))
    return {slug: sorted(others) for slug, others in found.items()}


def slug_of(a: Card, b: Card) -> str:
    """`mask-rcnn-vs-mask-dino`."""
    return f"{a.slug}-vs-{b.slug}"


def page(a: Card, b: Card, knowledge: Knowledge) -> str:
    """The text of `compare/<a>-vs-<b>.md`."""
    found = beside.benchmarks(a, b, knowledge)
    speeds = beside.speeds(a, b, found, knowledge)
    uses, times = terms.all_uses(knowledge), _timed((a, b), knowledge)
    return template("pair.md.j2").render(
        common(knowledge, "../../") | {
            "here": f"compare/{slug_of(a, b)}/",
            "models": [_model(card, other, knowledge) for card, other in ((a, b), (b, a))],
            "rows": [_row(pair, knowledge) for pair in found], "uses": uses, "times": times,
            "speeds": [_row(pair, knowledge) for pair in speeds],
            "accuracy": _accuracy((a, b), found, knowledge), "often": _often((a, b), found),
            "sentences": [_cost(found, speeds, times, knowledge), _terms((a, b), uses, knowledge)],
            "image": path_of(next((card.slug for card in (a, b) if knowledge.hero(card)), "site")),
            "shared": [task for task in a.tasks if task in b.tasks],
        }
    )  # fmt: skip


def _model(card: Card, other: Card, knowledge: Knowledge) -> dict[str, object]:
    writer = Writer(knowledge, "../../", card, elsewhere=True)
    return {
        "card": card, "hero": knowledge.hero(card), "prose": writer.prose, "advice": _advice(card, other, knowledge),
        "uses": terms.uses(card, knowledge), "partly": terms.partly(card, knowledge),
        "cons": [each for each in knowledge.cons(card.slug) if not (each.claim.corrected or each.claim.outdated)],
        "pros": [each for each in knowledge.pros(card.slug) if not (each.claim.corrected or each.claim.outdated)],
    }  # fmt: skip


def _advice(card: Card, other: Card, knowledge: Knowledge) -> list[Markup]:
    """When to take a model: what the other one's card says of it first, then its own advice."""
    here, there = (Writer(knowledge, "../../", each, elsewhere=True) for each in (card, other))
    of_pair = [there.prose(each.when, inline=True) for each in other.avoid_when if each.choose == card.slug]
    own = [here.prose(each.when, inline=True) for each in card.use_when]
    return of_pair + own[: max(0, LEAST_ADVICE - len(of_pair))]


def _row(pair: Beside, knowledge: Knowledge) -> Row:
    metrics = [knowledge.library.vocabulary.metric(number.metric) for number in pair.numbers]
    label = " or ".join(dict.fromkeys(metric.label for metric in metrics)).capitalize()
    if metrics[0].kind == "quality":
        label = f"{metrics[0].label} on {pair.numbers[0].on}"
    conditions = f"not ranked: {_differ(pair)}" if pair.apart else f"equal: {_equal(pair, knowledge)}"
    return Row(label, tuple(_side(number, knowledge) for number in pair.numbers), pair.better, conditions)


def _side(number: Published, knowledge: Knowledge) -> Side:
    return Side(
        _figure(number, knowledge), _system(number, knowledge), ", ".join(_sizes(number, knowledge)), number.table
    )


def _system(number: Published, knowledge: Knowledge) -> str:
    return system_name(knowledge.library.cards[number.card], number)


def _sizes(number: Published, knowledge: Knowledge) -> list[str]:
    """`62 M parameters` and `193.9 G MACs` of the system that a number is of, as far as they are known."""
    sizes = (
        (told(cost(knowledge, number, metric)), name)
        for metric, name in zip(SIZES, ("parameters", "MACs"), strict=True)
    )
    return [f"{size} {name}" for size, name in sizes if size]


def _figure(number: Published, knowledge: Knowledge) -> str:
    """`43 ms`, `20 images per second (50 ms each)`, and an accuracy as it is."""
    metric = knowledge.library.vocabulary.metric(number.metric)
    if metric.kind != "speed":
        return number.quantity.printed
    each = f" ({number.ms:.3g} ms each)" if number.ms is not None and number.metric == "fps" else ""
    return f"{speed(number, metric)}{each}"


def _equal(pair: Beside, knowledge: Knowledge) -> str:
    """The further conditions, in which both agree."""
    given = comparability(pair.numbers[0], knowledge.library.vocabulary)
    return ", ".join(f"{name} {text}" for name, text in given if name not in PLACE) or "all conditions that are told"


def _differ(pair: Beside) -> str:
    return f"{'; '.join(pair.apart)} {'differ' if len(pair.apart) > 1 else 'differs'}"


def _accuracy(cards: Cards, found: list[Beside], knowledge: Knowledge) -> str:
    """Who is ahead, where all conditions agree; else both figures and why they are not ranked."""
    if not found:
        return "No benchmark has a figure of both, so nothing published says which is the more accurate."
    first = found[0]
    where = f"{knowledge.library.vocabulary.metric(first.numbers[0].metric).label} on {first.numbers[0].on}"
    figures = " and ".join(f"{each.quantity.printed} with {_system(each, knowledge)}" for each in first.numbers)
    if first.apart:
        return f"The best in {where}: {figures}. Not ranked: {_differ(first)}."
    ahead = "Both reach the same" if first.better is None else f"{cards[first.better].name} is ahead"
    return f"{ahead} in {where}: {figures}, under equal conditions ({_equal(first, knowledge)})."


def _often(cards: Cards, found: list[Beside]) -> str:
    """How often each is ahead, where there is more than one fair comparison."""
    ahead = Counter(pair.better for pair in found if not pair.apart)
    n = ahead.total()
    often = [f"{card.name} is ahead in {'all' if ahead[side] == n else ahead[side]}" for side, card in enumerate(cards)
             if ahead[side]]  # fmt: skip
    return f"Of {n} comparisons under equal conditions {' and '.join(often)}." if n > 1 and often else ""


def _cost(
    found: list[Beside], speeds: list[Beside], times: Sequence[tuple[str, list[str]]], knowledge: Knowledge
) -> str:
    """What the systems of the first figures cost, and how fast the two are, as far as anything is known."""
    sizes = [
        f"{_system(each, knowledge)} has {' and '.join(_sizes(each, knowledge)) or 'no size that is told'}"
        for pair in found[:1] for each in pair.numbers
    ]  # fmt: skip
    return " ".join([f"{'; '.join(sizes)}." if sizes else "", _speed(speeds, times, knowledge)]).strip()


def _speed(speeds: list[Beside], times: Sequence[tuple[str, list[str]]], knowledge: Knowledge) -> str:
    here = " Both were timed here at one input, see below." if times else ""
    if not speeds:
        return here.strip() or "No published time of both says which is the faster."
    first = speeds[0]
    figures = [f"{_figure(each, knowledge)} with {_system(each, knowledge)}" for each in first.numbers]
    if first.apart:
        return f"Published speed: {' and '.join(figures)}. Not ranked: {_differ(first)}.{here}"
    faster = "" if first.better is None else f"; {_system(first.numbers[first.better], knowledge)} is the faster"
    return (
        f"Published speed under equal conditions ({_equal(first, knowledge)}): {' and '.join(figures)}{faster}.{here}"
    )


def _terms(cards: Cards, uses: list[str], knowledge: Knowledge) -> str:
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


def _timed(cards: Cards, knowledge: Knowledge) -> list[tuple[str, list[str]]]:
    """What was timed here of both on one device at one input, all of it: nothing is chosen."""
    found = [timed(card, knowledge) for card in cards]
    return [(alike, [each[alike] for each in found]) for alike in found[0] if alike in found[1]]
