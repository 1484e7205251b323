"""The words that cards may use: the form of the files of `model_cards/` with a leading underscore."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from scripts.cards.values import Identifier, Line, Model, Name, Prose, Slug, Url


class Metric(Model):
    """A metric that tables may hold."""

    label: Name
    """Short name, as a table's head shows it."""
    unit: Annotated[str, StringConstraints(max_length=40, pattern=r"^[^<>{}`|\\]*$")] = ""
    kind: Literal["size", "compute", "quality", "speed", "memory", "cost"]
    """Says which conditions have to agree before two numbers are compared."""
    better: Literal["higher", "lower"]
    definition: Line
    headline: bool = False
    """Drawn in charts."""


class Term(Model):
    """A term of the glossary."""

    aliases: tuple[Name, ...] = ()
    definition: Prose
    see: tuple[Slug, ...] = ()


class NotePlace(Model):
    """Where a line of the notes went: a field of a card, or one of its claims."""

    card: Slug
    field: Identifier | None = None
    claim: Line | None = None

    @model_validator(mode="after")
    def one_place(self) -> Self:
        """Raises ValueError unless it names a field or a claim."""
        if (self.field is None) == (self.claim is None):
            raise ValueError(f"a place names a claim or a field of the card {self.card!r}")
        return self


class Note(Model):
    """A line of the notes, and where it went."""

    line: Prose
    places: tuple[NotePlace, ...]


Permission = Literal["yes", "terms", "unclear", "no"]


class Permitted(Model):
    """What a licence, or the terms of a data set or a package, allow."""

    licence: Name | None = None
    """Of a data set or package: one of `licences`, whose verdicts hold where none are given here."""
    uses: dict[Name, Permission] = Field(default_factory=dict)
    """Use -> yes; terms, which bind what you ship; unclear; or no."""
    because: Line | None = None
    url: Url | None = None


class Rule(Model):
    """When an answer leaves a model out; read by the page Choose."""

    fact: Identifier
    test: Literal["contains", "at_most", "allows"]
    any: tuple[Name, ...] | None = None
    """With `contains`: one of these has to be among the facts, whatever the answer."""
    of: Identifier | None = None
    """The question whose answer says which of several facts counts."""


class Question(Model):
    """A question of the page Choose."""

    id: Identifier
    ask: Line
    options: Literal["tasks", "uses", "devices"] | tuple[Name, ...] | None = None
    """Answers to choose from; none for a number."""
    unit: Name | None = None
    rule: Rule | None = None
    because: Line | None = None
    """Said of a model that is left out; {answer} and {fact} are filled in."""
    unknown: Line | None = None
    """Said of a model of which the fact is not known."""


class Vocabulary(Model):
    """The files of model_cards/ with a leading underscore, together."""

    tasks: dict[Name, Line] = Field(default_factory=dict)
    metrics: dict[Identifier, Metric] = Field(default_factory=dict)
    glossary: dict[Name, Term] = Field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    licences: dict[Name, Permitted] = Field(default_factory=dict)
    datasets: dict[Name, Permitted] = Field(default_factory=dict)
    packages: dict[Name, Permitted] = Field(default_factory=dict)
    questions: tuple[Question, ...] = ()

    def metric(self, name: str) -> Metric:
        """The metric of a name; of an unknown one, which `check` tells where it stands, a plain stand-in."""
        return self.metrics.get(name) or Metric(label=name, kind="quality", better="higher", definition=name)
