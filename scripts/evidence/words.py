"""What is wrong with the words that cards share: the files of model_cards/ with a leading underscore."""

from __future__ import annotations

from collections.abc import Iterator

from scripts.cards import prose
from scripts.cards.library import Library
from scripts.cards.problems import Problem, unknown


def check_words(library: Library) -> Iterator[Problem]:
    """Every problem of their names: each leads to a card, a claim, a task, a metric or an axis that there is."""
    for check in (
        _check_notes,
        _check_glossary,
        _check_searches,
        _check_sweeps,
        _check_figures,
        _check_benchmarks,
        _check_serves,
        _check_packaged,
    ):
        yield from check(library)


def _check_notes(library: Library) -> Iterator[Problem]:
    """Each line of the notes leads to a field or a claim that exists."""
    for i, note in enumerate(library.vocabulary.notes):
        for k, place in enumerate(note.places):
            where, source = ("notes", i, "places", k), library.word_sources["notes"]
            card = library.cards.get(place.card)
            if card is None:
                yield from unknown(source, (*where, "card"), "card", place.card, library.sources)
            elif place.claim is not None:
                claims = [claim.claim for claim in (*card.pros, *card.cons)]
                yield from unknown(source, (*where, "claim"), f"claim of {card.slug}", place.claim, claims)
            elif place.field not in type(card).model_fields:
                yield source.problem(where, f"a place names a claim or a field of the card {card.slug!r}")


def _check_sweeps(library: Library) -> Iterator[Problem]:
    """A sweep is of a known card and axis, and the claim that it names is there."""
    words, source = library.vocabulary, library.word_sources.get("sweeps")
    for i, sweep in enumerate(words.sweeps if source else ()):
        assert source is not None
        yield from unknown(source, ("sweeps", i, "card"), "card", sweep.card, library.sources)
        yield from unknown(source, ("sweeps", i, "axis"), "axis", sweep.axis, words.axes)
        card = library.cards.get(sweep.card)
        for k, claimed in enumerate(sweep.claims):
            if card and claimed.side and claimed.number and claimed.number > len(getattr(card, claimed.side)):
                where = ("sweeps", i, "claims", k, "number")
                yield source.problem(
                    where, f"the card {sweep.card!r} has no claim {claimed.number} among its {claimed.side}"
                )


def _check_glossary(library: Library) -> Iterator[Problem]:
    for name, term in library.vocabulary.glossary.items():
        source = library.word_sources["glossary"]
        for i, slug in enumerate(term.see):
            yield from unknown(source, ("glossary", name, "see", i), "card", slug, library.sources)
        try:
            prose.to_html(term.definition, lambda ref: ref)
        except ValueError as error:
            yield source.problem(("glossary", name, "definition"), str(error.args[0]))


def _check_searches(library: Library) -> Iterator[Problem]:
    for i, sought in enumerate(library.vocabulary.searches):
        for k, slug in enumerate(sought.models):
            where = ("searches", i, "models", k)
            yield from unknown(library.word_sources["searches"], where, "card", slug, library.sources)


def _check_figures(library: Library) -> Iterator[Problem]:
    for name, slugs in library.vocabulary.figures.items():
        for i, slug in enumerate(slugs):
            yield from unknown(library.word_sources["figures"], ("figures", name, i), "card", slug, library.sources)


def _check_benchmarks(library: Library) -> Iterator[Problem]:
    tasks, metrics = library.names("tasks"), library.names("metrics")
    for task, benchmark in library.vocabulary.benchmarks.items():
        source = library.word_sources["benchmarks"]
        yield from unknown(source, ("benchmarks", task), "task", task, tasks)
        yield from unknown(source, ("benchmarks", task, "metric"), "metric", benchmark.metric, metrics)


def _check_serves(library: Library) -> Iterator[Problem]:
    for output, tasks in library.vocabulary.serves.items():
        for i, task in enumerate(tasks):
            source = library.word_sources["serves"]
            yield from unknown(source, ("serves", output, i), "task", task, library.names("tasks"))


def _check_packaged(library: Library) -> Iterator[Problem]:
    """Weights of packages are shown on a card that there is, and for a task that there is."""
    for key, packaged in library.vocabulary.packaged.items():
        source = library.word_sources["packaged"]
        yield from unknown(source, ("packaged", key, "task"), "task", packaged.task, library.names("tasks"))
        if packaged.card is not None:
            yield from unknown(source, ("packaged", key, "card"), "card", packaged.card, library.sources)
