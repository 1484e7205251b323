"""The words that cards may use: the form of the files of `model_cards/` with a leading underscore."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from scripts.cards.packaged import Packaged, Photograph
from scripts.cards.releases import Output
from scripts.cards.values import Build, Identifier, Line, Model, Name, Prose, Size, Slug, Url


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


class Sought(Model):
    """What readers type that is the name of no model, and the models that they look for."""

    words: tuple[Name, ...] = Field(min_length=1)
    models: tuple[Slug, ...] = Field(min_length=1)


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


What = Literal["macs", "token_macs", "saved_bytes"]


class Family(Model):
    """A shelf that models stand on."""

    definition: Line
    collects: bool = False
    """Its cards list weights of others, which belong to the cards of those models."""
    backbone: bool = False
    """Its models are plugged into detectors and segmenters: figures on `framework_on` say into which."""


class Exponent(Model):
    """An exponent that is claimed of a cost, and the claim of the card that says so, if one does."""

    what: What
    exponent: float
    says: Line
    side: Literal["pros", "cons"] | None = None
    number: Annotated[int, Field(ge=1)] | None = None
    """Of the claim on its side, from 1."""

    @model_validator(mode="after")
    def whole_place(self) -> Self:
        """Raises ValueError if only one of side and number is given."""
        if (self.side is None) != (self.number is None):
            raise ValueError("a claim is named by its side and its number on it")
        return self


class Axis(Model):
    """What sweeps are drawn along."""

    label: Line
    along: Literal["product", "first", "second", "changed"]
    """What of a size: the product of its numbers, the first, the second, or the value that is changed."""


class Sweep(Model):
    """One architecture over several sizes of its input, or over several values of something at one size."""

    card: Slug
    name: Name
    build: Build
    axis: Name
    sizes: tuple[Size, ...] = ()
    size: Size | None = None
    change: Identifier | None = None
    values: tuple[int, ...] = ()
    claims: tuple[Exponent, ...] = ()

    @model_validator(mode="after")
    def one_kind(self) -> Self:
        """Raises ValueError unless either sizes are given, or a size with a change and its values."""
        if bool(self.sizes) == bool(self.size and self.change and self.values):
            raise ValueError("a sweep has either `sizes`, or `size` with `change` and `values`")
        return self

    @property
    def id(self) -> str:
        """`build over axis`, by which it is kept."""
        return f"{self.build} over {self.axis}"


class Benchmark(Model):
    """The figure by which the models of a task are ranked."""

    metric: Identifier
    dataset: Line
    split: Line | None = None


class SideBySide(Model):
    """The page that shows several models' runs of one experiment."""

    experiment: Identifier
    figure: Identifier
    measures: dict[Identifier, Line] = Field(min_length=1)
    """Result -> its title; the first one ranks, higher is better for it and for those whose names begin like it."""
    stresses: dict[Identifier, Line] = Field(default_factory=dict)


class Vocabulary(Model):
    """The files of model_cards/ with a leading underscore, together."""

    tasks: dict[Name, Line] = Field(default_factory=dict)
    metrics: dict[Identifier, Metric] = Field(default_factory=dict)
    glossary: dict[Name, Term] = Field(default_factory=dict)
    searches: tuple[Sought, ...] = ()
    notes: tuple[Note, ...] = ()
    licences: dict[Name, Permitted] = Field(default_factory=dict)
    datasets: dict[Name, Permitted] = Field(default_factory=dict)
    packages: dict[Name, Permitted] = Field(default_factory=dict)
    questions: tuple[Question, ...] = ()
    benchmarks: dict[Name, Benchmark] = Field(default_factory=dict)
    """Task -> what its models are ranked by."""
    serves: dict[Output, tuple[Name, ...]] = Field(default_factory=dict)
    """What comes out of a checkpoint -> the tasks that it serves beside its own, on cards that have them."""
    families: dict[Name, Family] = Field(default_factory=dict)
    framework_on: tuple[Name, ...] = ()
    """Data sets on which a backbone alone has no figures."""
    axes: dict[Name, Axis] = Field(default_factory=dict)
    figures: dict[Name, tuple[Slug, ...]] = Field(default_factory=dict)
    """Cards whose sweeps over pixels share a figure."""
    sweeps: tuple[Sweep, ...] = ()
    side_by_side: SideBySide | None = None
    packaged: dict[Slug, Packaged] = Field(default_factory=dict)
    photographs: dict[Slug, Photograph] = Field(default_factory=dict)
    """What all models of a task are shown on."""

    def metric(self, name: str) -> Metric:
        """The metric of a name; of an unknown one, which `check` tells where it stands, a plain stand-in."""
        return self.metrics.get(name) or Metric(label=name, kind="quality", better="higher", definition=name)
