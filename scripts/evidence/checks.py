"""Rules that reach beyond one value of a card: every name leads somewhere, every assertion can be evaluated."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from license_expression import get_spdx_licensing
from pydantic import BaseModel

from scripts.architectures.counts import Counted
from scripts.cards import prose
from scripts.cards.claims import Reported
from scripts.cards.library import Library
from scripts.cards.numbers import Conditions, Variant
from scripts.cards.problems import Path_, Problem, Source, nearest, unknown
from scripts.cards.prose import reference_kind
from scripts.cards.schema import Card
from scripts.cards.values import si
from scripts.evidence.knowledge import SIZE_METRICS, difference
from scripts.evidence.published import BrokenCardError, find, numbers_of, own_size
from scripts.evidence.runs import Outcome, check_shown, owners_of
from scripts.evidence.verdicts import check_reported
from scripts.evidence.words import check_words
from scripts.machine import call_all
from scripts.runs.record import Record

COUNT_TOLERANCE = 0.02
"""A count may differ from the published figure by so much without a reason."""

PROSE_FIELDS = (
    "purpose", "concept", "claim", "because", "cannot_show", "reason", "when", "change", "text", "confused_with", "note",
)  # fmt: skip

UNLINKED = ("purpose", "claim", "when")
"""What also stands in lists, beside other models and in the feed, as plain words."""

BARE = (type(None), bool, int, float, dt.date)
"""Types of values that hold no text."""

Values = Sequence[tuple[Path_, str | Reported]]
"""The texts and assertions of a card, each with its path."""


def check_library(
    library: Library,
    examples: Mapping[str, str],
    runs: Mapping[str, Record] | None = None,
    counts: Mapping[str, Counted] | None = None,
    jobs: int = 1,
) -> list[Problem]:
    """Every problem of every card, sorted by place.

    Args:
        library: the cards.
        examples: source text of each example by slug.
        runs: records of the runs there are, by slug; assertions over others are not checked.
        counts: what was counted, by `build @ input`; other variants are not checked against their published figures.
        jobs: cards that are checked at a time.
    """

    def of_card(slug: str) -> list[Problem]:
        return [*check_card(library, slug, examples, runs or {}), *_check_counts(library, slug, counts or {})]

    found = call_all([functools.partial(of_card, slug) for slug in library.cards], jobs)
    return sorted([*itertools.chain(*found), *check_words(library)])


def check_card(
    library: Library, slug: str, examples: Mapping[str, str], runs: Mapping[str, Record]
) -> Iterator[Problem]:
    """The problems of one card."""
    values = texts_and_assertions(library.cards[slug])
    yield from _check_names(library, slug, values)
    yield from _check_rows(library, slug)
    yield from _check_checkpoints(library, slug)
    yield from _check_frameworks(library, slug)
    yield from _check_prose(library, slug, values, runs)
    yield from _check_assertions(library, slug, values, examples, runs)
    yield from _check_claims(library, slug)
    yield from _check_date(library, slug)
    yield from _check_references_used(library, slug, values)


def texts_and_assertions(card: Card) -> Values:
    """Every text and assertion of a card with its path, in the order of the card."""
    found: list[tuple[Path_, str | Reported]] = []
    queue: list[tuple[Path_, object]] = [((), card)]
    while queue:
        where, value = queue.pop()
        if isinstance(value, str | Reported):
            found.append((where, value))
        if isinstance(value, str):
            continue
        queue += [((*where, name), inner) for name, inner in reversed(_children(value)) if type(inner) not in BARE]
    return found


def _children(value: object) -> Sequence[tuple[str | int, object]]:
    if isinstance(value, BaseModel):
        extra = value.__pydantic_extra__ or {}
        return [(key, getattr(value, name)) for name, key in _fields(type(value))] + list(extra.items())
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, tuple | list) else []


@functools.cache
def _fields(form: type[BaseModel]) -> tuple[tuple[str, str], ...]:
    """The attributes of a model, each with its name as an editor writes it."""
    return tuple((name, info.alias or name) for name, info in form.model_fields.items())


def _check_names(library: Library, slug: str, values: Values) -> Iterator[Problem]:
    card, source, tasks = library.cards[slug], library.sources[slug], library.names("tasks")
    for where, value in values:
        key = where[-1]
        if not isinstance(value, str) or where[:1] == ("references",):
            continue
        if key in ("paper", "reference") or (key == "source" and where[0] == "tables"):
            yield from unknown(source, where, "reference", value, card.references)
        elif key in ("card", "choose"):
            yield from unknown(source, where, "card", value, library.sources)
            if value == slug:
                yield source.problem(where, f"the card {slug!r} names itself")
        elif where[0] == "tasks":
            yield from unknown(source, where, "task", value, tasks)
        elif where == ("family",):
            yield from unknown(source, where, "family", value, library.names("families"))
        elif len(where) > 1 and where[-2] == "despite":
            yield from unknown(source, where, "condition", value, Conditions.model_fields)
        elif key in ("code", "weights") and where[0] == "licences":
            yield from _check_licence(source, where, value)
        elif where[0] == "licences" and where[-2] in ("data", "packages", "variants"):
            yield from _check_release(library, slug, where, value)


def _check_release(library: Library, slug: str, where: Path_, value: str) -> Iterator[Problem]:
    """The training data, packages and variants of a release have to be known."""
    kind = str(where[-2])
    data, packages = library.names("datasets"), library.names("packages")
    known, word = {
        "data": (data, "data set of _licences.yml"), "packages": (packages, "package of _licences.yml"),
        "variants": (library.cards[slug].variants, "variant"),
    }[kind]  # fmt: skip
    yield from unknown(library.sources[slug], where, word, value, known)


def _check_rows(library: Library, slug: str) -> Iterator[Problem]:
    card, source, metrics = library.cards[slug], library.sources[slug], library.names("metrics")
    for variant_id, variant in card.variants.items():
        for table_id, row in variant.numbers.items():
            where = ("variants", variant_id, "numbers", table_id)
            yield from unknown(source, where, "table", table_id, card.tables)
            for metric in row.values:
                yield from unknown(source, (*where, metric), "metric", metric, metrics)


def _check_frameworks(library: Library, slug: str) -> Iterator[Problem]:
    """A figure of a backbone on a detector's or a segmenter's data set is of the whole system, which has to be named."""
    card, source, words = library.cards[slug], library.sources[slug], library.vocabulary
    family = words.families.get(card.family)
    for number in numbers_of(library, slug) if family and family.backbone else ():
        kind, c = words.metric(number.metric).kind, number.conditions
        if kind == "quality" and c.dataset in words.framework_on and c.framework is None and c.protocol is None:
            message = (
                f"{number.metric} on {c.dataset} is of a system: say what {card.variants[number.variant].name} is plugged into, "
                "conditions: {framework: Cascade Mask R-CNN}"
            )
            yield source.problem(("variants", number.variant, "numbers", number.table, number.metric), message)


def _check_checkpoints(library: Library, slug: str) -> Iterator[Problem]:
    """A checkpoint is of a row of numbers, for a task of the card, from one of its releases."""
    card, source = library.cards[slug], library.sources[slug]
    rows = [f"{key}/{table}" for key, variant in card.variants.items() for table in variant.numbers]
    releases = [release.name for release in card.licences.releases]
    for key, checkpoint in card.checkpoints.items():
        where = ("checkpoints", key)
        yield from unknown(source, (*where, "system"), "system", checkpoint.system, rows)
        yield from unknown(source, (*where, "task"), "task of this card", checkpoint.task, card.tasks)
        yield from unknown(source, (*where, "release"), "release", checkpoint.release, releases)


def _check_counts(library: Library, slug: str, counts: Mapping[str, Counted]) -> Iterator[Problem]:
    """A count that is far from the published figure needs a reason, and a reason needs such a difference."""
    card, source = library.cards[slug], library.sources[slug]
    for key, variant in card.variants.items():
        counted = counts.get(variant.count.key) if variant.count else None
        if counted is None or variant.count is None:
            continue
        gaps = list(_count_gaps(library, slug, key, counted))
        where = ("variants", key, "count")
        if variant.count.differs and not gaps:
            published = any(own_size(library, slug, key, metric) for metric in SIZE_METRICS)
            why = (
                f"the count is within {COUNT_TOLERANCE:.0%} of the published figures" if published else "there is none"
            )
            message = f"{variant.name}: `differs` explains no difference, {why}; remove it"
            yield source.problem((*where, "differs"), message, "warning")
        elif not variant.count.differs:
            yield from (source.problem(where, _gap_text(variant, gap)) for gap in gaps)


def _count_gaps(library: Library, slug: str, key: str, counted: Counted) -> Iterator[str]:
    for metric in ("parameters", "macs"):
        published, found = own_size(library, slug, key, metric), getattr(counted, metric)
        if published is None or abs(gap := difference(published.quantity.value, found)) <= COUNT_TOLERANCE:
            continue
        label = library.vocabulary.metric(metric).label
        at = f" at {published.conditions.input}" if metric == "macs" and published.conditions.input else ""
        input_ = f" at {counted.input}" if metric == "macs" else ""
        yield (
            f"{label}: {si(found)} counted{input_}, {published.quantity.printed} published{at} ({published.where}), "
            f"{gap:+.1%}"
        )


def _gap_text(variant: Variant, gap: str) -> str:
    return (
        f"{variant.name}: {gap}, more than {COUNT_TOLERANCE:.0%}; correct the figure, its input or `build`, "
        "or say in `differs` why they are not the same"
    )


def _check_licence(source: Source, where: Path_, value: str) -> Iterator[Problem]:
    if value == "none" or value.startswith("LicenseRef-"):
        return
    if value not in _spdx_ids():
        yield source.problem(where, f"{value!r} is no SPDX id{_nearest_licence(value)}")


def _nearest_licence(value: str) -> str:
    """`MIT` for `mit license`, `Apache-2.0` for `apache 2.0`; else the id that is spelled most alike."""
    bare = "-".join(word for word in value.lower().split() if word not in ("the", "license", "licence", "version"))
    same = [known for known in sorted(_spdx_ids()) if known.lower() == bare]
    return f", did you mean {same[0]!r}?" if same else nearest(value, sorted(_spdx_ids()))


@functools.cache
def _spdx_ids() -> frozenset[str]:
    return frozenset(get_spdx_licensing().known_symbols)


def _check_prose(library: Library, slug: str, values: Values, runs: Mapping[str, Record]) -> Iterator[Problem]:
    source = library.sources[slug]
    for where, text in values:
        fields = [part for part in where if isinstance(part, str)]
        if not isinstance(text, str) or not fields or fields[-1] not in PROSE_FIELDS or fields[0] == "references":
            continue
        try:
            if "[[" in text:
                prose.to_html(text, lambda ref: _check_reference(library, slug, ref, runs))
            else:
                _read(text)
        except (ValueError, LookupError) as error:
            yield source.problem(where, str(error.args[0]))
        if fields[-1] in UNLINKED and (named := prose.references(text)):
            yield source.problem(
                where, f"[[{named[0]}]] is no link in this field, which also stands in lists: write the name"
            )
        for typed in prose.measurements(text):
            message = f"the figure {typed!r} is typed into a sentence; put it into a table and write [[variant/metric]]"
            yield source.problem(where, message, "warning")


@functools.lru_cache(maxsize=2**14)  # for `serve`, which checks all cards after each edit
def _read(text: str) -> None:
    """Raises ValueError where a text without references cannot be read."""
    prose.to_html(text, lambda _: "")


def _check_reference(library: Library, slug: str, ref: str, runs: Mapping[str, Record]) -> str:
    kind, name = reference_kind(ref)
    if kind == "cite" and name not in library.cards[slug].references:
        raise LookupError(f"[[{ref}]]: unknown reference{nearest(name, library.cards[slug].references)}")
    if kind == "run" and slug in runs and name not in runs[slug].results:
        raise LookupError(f"[[{ref}]]: the run of {slug} has no such result{nearest(name, runs[slug].results)}")
    if kind == "number":
        with contextlib.suppress(BrokenCardError):
            find(library, slug, name)
    if kind == "card" and name not in library.sources:
        raise LookupError(f"[[{ref}]]: unknown card{nearest(name, library.sources)}")
    return ""


def _check_assertions(
    library: Library, slug: str, values: Values, examples: Mapping[str, str], runs: Mapping[str, Record]
) -> Iterator[Problem]:
    card, source = library.cards[slug], library.sources[slug]
    for where, value in values:
        if isinstance(value, Reported):
            yield from _check_reported(library, slug, where, value)
    for side in ("pros", "cons"):
        for i, claim in enumerate(getattr(card, side)):
            for k, assertion in enumerate(claim.shown):
                where = (side, i, "shown", k, "result")
                owners = owners_of(slug, assertion)
                unknown = sorted(owners - examples.keys())
                if unknown:
                    yield source.problem(where, f"there is no example {unknown[0]!r}{nearest(unknown[0], examples)}")
                elif (finding := check_shown(slug, assertion, runs)).outcome is Outcome.NONE and owners <= runs.keys():
                    yield source.problem(where, finding.remark)


def _check_reported(library: Library, slug: str, where: Path_, assertion: Reported) -> Iterator[Problem]:
    source = library.sources[slug]
    for side in ("number", "above", "below", "equals"):
        ref = getattr(assertion, side)
        try:
            if isinstance(ref, str):
                find(library, slug, ref)
        except BrokenCardError:
            return
        except LookupError as error:
            yield source.problem((*where, side), str(error.args[0]))
            return
    finding = check_reported(library, slug, assertion)
    if finding.outcome is Outcome.NONE:
        yield source.problem(where, f"{finding.assertion}: {finding.remark}")
    elif finding.outcome is Outcome.CONTRADICTS:
        yield source.problem(where, f"the assertion does not hold: {finding.assertion}", "warning")


def _check_claims(library: Library, slug: str) -> Iterator[Problem]:
    card, source = library.cards[slug], library.sources[slug]
    texts = Counter(claim.claim.strip().lower() for claim in (*card.pros, *card.cons))
    for side in ("pros", "cons"):
        for i, claim in enumerate(getattr(card, side)):
            if texts[claim.claim.strip().lower()] > 1:
                yield source.problem((side, i, "claim"), "this claim stands twice on the card")
            if claim.corrected and claim.outdated:
                yield source.problem((side, i), "a claim is either corrected or outdated, not both")
            if not (
                claim.reported or claim.shown or claim.source or claim.cannot_show or claim.corrected or claim.outdated
            ):
                message = "nothing backs this claim: add reported, shown or source, or it is only noted"
                yield source.problem((side, i, "claim"), message, "warning")


def _check_date(library: Library, slug: str) -> Iterator[Problem]:
    """Somewhere on earth it may be tomorrow already."""
    if library.cards[slug].reviewed > dt.datetime.now(dt.UTC).date() + dt.timedelta(days=1):
        yield library.sources[slug].problem(
            ("reviewed",),
            f"reviewed: {library.cards[slug].reviewed} is yet to come, by the clock of this machine",
            "warning",
        )


def _check_references_used(library: Library, slug: str, values: Values) -> Iterator[Problem]:
    card, source = library.cards[slug], library.sources[slug]
    used = {card.paper} | {table.source for table in card.tables.values()}
    for where, value in values:
        if where[:1] != ("references",) and isinstance(value, str):
            used |= {value} if where and where[-1] == "reference" else set()
            used |= {ref[1:] for ref in prose.references(value) if ref.startswith("@")}
    for key in card.references:
        if key not in used:
            yield source.problem(("references", key), f"the reference {key!r} is never cited", "warning")
