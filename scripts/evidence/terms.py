"""What one may do with a model: a verdict for each use, from the licences of code, weights, training data and packages."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scripts.cards.releases import Release
from scripts.cards.schema import Card
from scripts.cards.vocabulary import Permitted
from scripts.evidence.knowledge import Knowledge

ORDER = ("yes", "terms", "unclear", "no")
"""From the best to the worst thing that can be said of a use."""


@dataclass(frozen=True)
class Terms:
    """What a use of something is subject to: licence, verdict by use, why, and where the text stands."""

    name: str
    licence: str
    uses: Mapping[str, str]
    because: str
    url: str


@dataclass(frozen=True)
class Row:
    """One release of a model; `uses` is the verdict on its code, weights and packages.

    Whether terms of the training data bind the weights is not settled, so they do not decide, but cast a `doubt`.
    """

    card: Card
    release: Release
    variants: tuple[str, ...]
    data: tuple[Terms, ...]
    packages: tuple[Terms, ...]
    uses: Mapping[str, str]
    reasons: Mapping[str, str]
    """By use, what decided a verdict that is not yes."""

    @property
    def doubt(self) -> tuple[str, ...]:
        """Names of the training data whose terms do not plainly allow every use."""
        return tuple(each.name for each in self.data if set(each.uses.values()) != {"yes"})


def all_uses(knowledge: Knowledge) -> list[str]:
    """The uses that verdicts are given for, in the order of the file."""
    licences = knowledge.library.vocabulary.licences
    return list(next(iter(licences.values())).uses) if licences else []


def licence_terms(knowledge: Knowledge) -> list[Terms]:
    """Every licence that there is a verdict for."""
    return [_terms(name, Permitted(licence=name), knowledge) for name in knowledge.library.vocabulary.licences]


def releases(card: Card) -> Sequence[Release]:
    """The releases of a card; where it names none, the one that its licences describe."""
    stated = card.licences
    official = Release(name="official", code=stated.code, weights=stated.weights, source=stated.source)
    return stated.releases or (official,)


def rows(knowledge: Knowledge) -> list[Row]:
    """One row for each release of each model."""
    return [row for card in knowledge.cards for row in rows_of(card, knowledge)]


def rows_of(card: Card, knowledge: Knowledge) -> list[Row]:
    """One row for each release of a model."""
    return _all_rows(knowledge)[card.slug]


@functools.lru_cache(maxsize=2)
def _all_rows(knowledge: Knowledge) -> dict[str, list[Row]]:
    return {card.slug: [_row(card, release, knowledge) for release in releases(card)] for card in knowledge.cards}


def uses(card: Card, knowledge: Knowledge) -> dict[str, str]:
    """For each use the best that any release of a model offers."""
    verdicts = [row.uses for row in rows_of(card, knowledge)]
    return {use: min((each[use] for each in verdicts), key=ORDER.index) for use in all_uses(knowledge)}


def partly(card: Card, knowledge: Knowledge) -> set[str]:
    """The uses that a model plainly allows in some way, while weights that one can load forbid them or set terms."""
    loaded = {checkpoint.release for checkpoint in card.checkpoints.values()}
    verdicts = [row.uses for row in rows_of(card, knowledge) if row.release.name in loaded]
    short = {use for each in verdicts for use, verdict in each.items() if verdict in ("terms", "no")}
    return {use for use, verdict in uses(card, knowledge).items() if verdict == "yes"} & short


def _row(card: Card, release: Release, knowledge: Knowledge) -> Row:
    words = knowledge.library.vocabulary
    code, weights = (_terms(name, Permitted(licence=name), knowledge) for name in (release.code, release.weights))
    data = tuple(_terms(name, words.datasets.get(name), knowledge) for name in release.data)
    packages = tuple(_terms(name, words.packages.get(name), knowledge) for name in release.packages)
    parts = [("code", code), ("weights", weights), *(("package", each) for each in packages)]
    verdicts, reasons = {}, {}
    for use in all_uses(knowledge):
        kind, worst = max(parts, key=lambda part: ORDER.index(part[1].uses[use]))
        verdicts[use] = worst.uses[use]
        if worst.uses[use] != "yes":
            reasons[use] = f"{kind} {worst.name}: {worst.because}"
    names = tuple(card.variants[key].name for key in release.variants if key in card.variants)
    return Row(card, release, names, data, packages, verdicts, reasons)


def _terms(name: str, entry: Permitted | None, knowledge: Knowledge) -> Terms:
    """The terms of an entry, which may add to those of its licence; all unclear where nothing is known of it."""
    entry = entry or Permitted()
    licence = entry.licence or "LicenseRef-NotStated"
    known = knowledge.library.vocabulary.licences.get(licence) or Permitted()
    unclear = dict.fromkeys(all_uses(knowledge), "unclear")
    because = entry.because or known.because or "Its terms have not been judged here; read them."
    return Terms(name, licence, {**unclear, **(entry.uses or known.uses)}, because, entry.url or known.url or "")
