"""The form of a model card: what an editor may write, with its meaning.

The docstring under a field is the help that an editor's completion shows: `model_cards/card.schema.json` is generated
from this module. Rules that reach beyond one value (does this reference exist?) are in `checks.py`.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import core_schema

SLUG = r"^[a-z0-9]+(-[a-z0-9]+)*$"
Slug = Annotated[str, StringConstraints(pattern=SLUG, max_length=60)]
Name = Annotated[str, StringConstraints(pattern=r"^[^<>{}`|\\\x00-\x1f\u202a-\u202e\u2066-\u2069]+$", max_length=120)]
Line = Annotated[str, StringConstraints(min_length=1, max_length=600, pattern=r"^[^\n]*\n?$", strip_whitespace=True)]
Prose = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=60)]
NumberRef = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_.-]+){1,3}$", max_length=160)]
Url = Annotated[
    str, StringConstraints(pattern=r"^https://[A-Za-z0-9][A-Za-z0-9.-]*(:\d+)?(/[^\s<>\"'`{}|\\^]*)?$", max_length=400)
]
Doi = Annotated[str, StringConstraints(pattern=r"^10\.\d{4,9}/[^\s<>\"'`{}|\\^]+$", max_length=200)]
Arxiv = Annotated[str, StringConstraints(pattern=r"^(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})$")]

HINTS = {
    "url": "is no address: it starts with https:// and holds no blanks, quotes, braces or angle brackets",
    "code": "is no address: it starts with https:// and holds no blanks, quotes, braces or angle brackets",
    "doi": "is no DOI, write it without the resolver's address: 10.1007/978-3-030-58452-8_13",
    "arxiv": 'is no arXiv id, write the number alone, in quotes: "2005.12872"',
    "build": "is no model to count, write library/model: timm/vit_base_patch16_224",
    "input": "is no input size, write for example 224 x 224",
    "name": "is no name: no line break and none of < > { } ` | \\",
    "claim": "has to be one line",
    "choose": "is no slug: small letters, digits and single hyphens",
    "card": "is no slug: small letters, digits and single hyphens",
    "number": "is no reference to a number, write variant/metric",
}
"""What to tell an editor whose text has not the form that a field of this name wants."""

SI = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
QUANTITY = re.compile(r"^(-?\d{1,15}(?:\.\d{1,9})?)(?: ?([kMGT]))?$")
MOST = 100
"""Entries of a list of a card at most; of the references and variants, three times as many."""


class Model(BaseModel):
    """A frozen part of a card that knows no other keys than its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class _OneOrMore:
    """Lets a single value stand for a list of one, in a card and in its JSON Schema."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_before_validator_function(self._as_list, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        many = handler(schema)
        return {"anyOf": [many["items"], many]}

    @staticmethod
    def _as_list(value: Any) -> Any:
        return [value] if isinstance(value, dict | BaseModel) else value


class Quantity(Model):
    """A published number as it is printed: `42.0`, `41 M`, `15.4 G`."""

    printed: str
    value: float

    @model_validator(mode="before")
    @classmethod
    def from_printed(cls, data: Any) -> Any:
        """Read `41 M` as 41e6.

        Raises:
            ValueError: if the text is not a number with an optional k, M, G or T.
        """
        if isinstance(data, dict | Quantity):
            return data
        match = QUANTITY.match(str(data).strip()) if not isinstance(data, bool) else None
        if match is None:
            raise ValueError(f"{str(data)[:60]!r} is not a number, write for example 42.0 or 41 M")
        return {"printed": match[0], "value": float(match[1]) * SI[match[2] or ""]}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {
            "anyOf": [{"type": "number"}, {"type": "string", "pattern": QUANTITY.pattern}],
            "examples": [42.0, "41 M"],
        }


class Conditions(Model):
    """Under what a number was obtained. Two numbers are compared only where these agree."""

    dataset: Line | None = None
    """Dataset that the number is measured on, for example COCO."""
    split: Line | None = None
    """Its split, for example val2017."""
    metric: Line | None = None
    """Definition of the metric where the usual one does not hold."""
    input: Line | None = None
    """Input size in pixels, frames first: 224 x 224, or 8 x 224 x 224."""
    schedule: Line | None = None
    """Length of training, for example 500 epochs."""
    pretraining: Line | None = None
    """Data and task that the weights saw before, for example ImageNet-21k."""
    protocol: Line | None = None
    """How the model is adapted for the figure: fine-tuned, linear probe, kNN, zero-shot."""
    framework: Line | None = None
    """What the model is plugged into where it is a backbone, for example Cascade Mask R-CNN."""
    tta: Line | None = None
    """Test-time augmentation, views or crops, for example 1 x 3 views."""
    hardware: Line | None = None
    """Device of a speed or memory figure, for example V100."""
    precision: Line | None = None
    """Number format, for example fp16."""
    batch: Line | None = None
    """Batch size of a speed or memory figure."""
    nms: Line | None = None
    """Whether non-maximum suppression is counted in a speed figure."""


class Cite(Model):
    """An exact place in a source."""

    reference: Identifier
    """Key of an entry of `references`."""
    where: Line
    """Table, section, figure, file or line."""


class Independent(Model):
    """That neither the authors nor this project measured the numbers of a table, but someone else, under one protocol."""

    by: Name
    """Who measured: Roboflow."""
    how: Line
    """Under which protocol: TensorRT 10 on a T4 at fp16, the same evaluation for all models."""
    when: Line
    """When, as exactly as it is told: 2025-11, or commit 1a2b3c4."""


class Table(Model):
    """A place that numbers come from, with the conditions that all its rows share."""

    source: Identifier
    """Key of an entry of `references`."""
    where: Line
    """Exact place: Table 1; README, section Model Zoo."""
    conditions: Conditions = Conditions()
    """What all rows share; a row may add to it or override it."""
    note: Line | None = None
    """A remark that the page shows under the table."""
    independent: Independent | None = None
    """Who measured, where that was not the authors of the model."""


class Row(BaseModel):
    """One variant's numbers of one table: metric: value."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)
    __pydantic_extra__: dict[str, Quantity] = Field(init=False)

    where: Line | None = None
    """Exact place where it differs from the table's."""
    conditions: Conditions = Conditions()
    """What differs from the table's conditions."""
    note: Line | None = None
    """A remark on these numbers, for example why two sources differ."""

    @property
    def values(self) -> dict[str, Quantity]:
        return self.__pydantic_extra__


class Count(Model):
    """How this project builds the variant to count its parameters and MACs."""

    build: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+/[A-Za-z0-9_.:/-]+$")]
    """Library and model: timm/vit_base_patch16_224, or ours/unet_2015."""
    input: Annotated[str, StringConstraints(pattern=r"^\d{1,5}( x \d{1,5}){1,3}$")]
    """Input size for the count: 224 x 224."""
    differs: Line | None = None
    """The reason, where the count differs from the published figure by more than 2 %."""


class Variant(Model):
    """One published size or configuration of the model."""

    name: Name
    """As the authors call it: DETR-R50."""
    for_comparison: bool = False
    """True for a rival, a predecessor, a successor or an ablation: its numbers stand in the tables, but do not count as
    what this model reaches."""
    count: Count | None = None
    """What to build in order to count it."""
    numbers: dict[Slug, Row] = Field(default_factory=dict, max_length=MOST)
    """Table id -> this variant's row of it."""


class Reported(Model):
    """An assertion over published figures, evaluated at each build.

    Either `number` with `above`, `below` or `equals`, or `licence` with `is`.
    """

    number: NumberRef | None = None
    """variant/metric or variant/table/metric of this card; with another card's slug in front, of that one."""
    above: NumberRef | Quantity | None = None
    """The number, or the figure itself, that `number` exceeds."""
    below: NumberRef | Quantity | None = None
    """The number, or the figure itself, that `number` stays under."""
    equals: NumberRef | Quantity | None = None
    """The number, or the figure itself, that `number` equals, give or take `within`."""
    within: Annotated[float, Field(ge=0)] = 0.0
    """Tolerance of `equals`, in the number's unit."""
    times: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the right-hand side: below X times 0.5 means less than half of X."""
    despite: tuple[str, ...] = ()
    """Conditions known to differ (for example schedule); the page names them. Others may not differ."""
    licence: Literal["code", "weights"] | None = None
    """Assert a licence instead of a number."""
    is_: Annotated[str | None, Field(alias="is")] = None
    """SPDX id that the licence is."""

    @model_validator(mode="after")
    def one_comparison(self) -> Self:
        """Raises ValueError unless exactly one thing is compared in exactly one way."""
        bounds = [self.above, self.below, self.equals]
        if self.licence is not None:
            if self.is_ is None or self.number is not None or any(b is not None for b in bounds):
                raise ValueError("an assertion on a licence reads {licence: code, is: SPDX-ID}")
        elif self.number is None or sum(b is not None for b in bounds) != 1 or self.is_ is not None:
            raise ValueError("an assertion reads {number: ..., above: ...} with one of above, below, equals")
        return self


ResultRef = Annotated[str, StringConstraints(pattern=r"^([a-z0-9-]+/)?[a-z][a-z0-9_]*$", max_length=120)]


class Shown(Model):
    """An assertion over the results of an example's run. It has to hold for every seed."""

    result: ResultRef
    """Name of a result of this card's example; other-card/name for another one's."""
    above: float | ResultRef | None = None
    """Bound, or another result (compared seed by seed), that every seed exceeds; other-card/name for the same measure of
    another run on the shared benchmark."""
    below: float | ResultRef | None = None
    """Bound, or another result (compared seed by seed), that every seed stays under."""
    between: tuple[float, float] | None = None
    """Bounds that every seed lies between."""
    not_here: Line | None = None
    """Known not to show at this scale: what it would need. The verdict is then `not shown here`."""

    @model_validator(mode="after")
    def one_bound(self) -> Self:
        """Raises ValueError unless there is exactly one bound."""
        if sum(b is not None for b in (self.above, self.below, self.between)) != 1:
            raise ValueError("an assertion reads {result: ..., above: ...} with one of above, below, between")
        return self


class Revision(Model):
    """Why a claim of the notes no longer stands."""

    reason: Prose
    """What is true instead."""
    source: Cite
    """Where that stands."""
    reported: Annotated[tuple[Reported, ...], Field(max_length=MOST), _OneOrMore()] = ()
    """Assertion over published figures that the correction rests on."""


class Claim(Model):
    """A pro or a con: a sentence, its mechanism, and what backs it."""

    claim: Line
    """One sentence. Figures in it are references: [[r50/AP_L]]."""
    because: Prose
    """The mechanism behind it."""
    reported: Annotated[tuple[Reported, ...], Field(max_length=MOST), _OneOrMore()] = ()
    """Assertion (or a list of them) over published figures."""
    shown: Annotated[tuple[Shown, ...], Field(max_length=MOST), _OneOrMore()] = ()
    """Assertion (or a list of them) over the results of the example."""
    source: Cite | None = None
    """Where the claim itself is stated."""
    corrected: Revision | None = None
    """The claim is wrong: what is true instead."""
    outdated: Revision | None = None
    """The claim was true once: what changed."""


class Advice(Model):
    """When to take this model, or another one."""

    when: Line
    """A situation of the reader's: You have fewer than ten thousand labelled images."""
    choose: Slug | None = None
    """The card to look at instead (for avoid_when)."""


class Relation(Model):
    """A model that this one builds on, or that followed it."""

    name: Name
    """Name of that model."""
    change: Line
    """One line: what was taken over, or what changed."""
    card: Slug | None = None
    """Its card, where there is one."""
    reference: Identifier | None = None
    """Its entry in `references`."""


class Stated(Model):
    """A statement with its place in a source."""

    text: Prose
    """One statement, in your words."""
    source: Cite | None = None
    """Where it stands."""


class Release(Model):
    """Weights and code as someone distributes them: the authors, or a library."""

    name: Line
    """Who distributes what: official, or timm."""
    variants: tuple[Slug, ...] = ()
    """The variants that it holds; none for all of them."""
    code: Line
    """SPDX id of the code that runs it."""
    weights: Line
    """SPDX id of the weights; none where none are distributed."""
    data: tuple[Name, ...] = ()
    """What the weights were trained on, by the names under `datasets` in _licences.yml."""
    packages: tuple[Name, ...] = ()
    """What has to be installed to run it, by the names under `packages` in _licences.yml."""
    source: Cite
    """Where the licences are stated."""


class Licences(Model):
    """SPDX ids, code and weights apart."""

    code: Line
    """SPDX id of the official code, or LicenseRef-... for a custom one; none where there is no code."""
    weights: Line
    """SPDX id of the official weights; none where none were published."""
    note: Line | None = None
    """What a practitioner must know before shipping it."""
    source: Cite
    """Where the licences are stated."""
    releases: tuple[Release, ...] = ()
    """The ways to get it, for the page of licences; those of different terms or training data apart."""


class Load(Model):
    """How the weights of a checkpoint are loaded."""

    library: Name
    """Package of Python that loads them: transformers, timm, torchvision, monai."""
    least: Line | None = None
    """Least version of the library, in quotes: "4.50"."""
    class_: Annotated[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")], Field(alias="class")]
    """Class or function of the library: DetrForObjectDetection, create_model, fasterrcnn_resnet50_fpn."""
    name: Line
    """What is asked for: facebook/detr-resnet-50, or FasterRCNN_ResNet50_FPN_Weights.COCO_V1."""


class Input(Model):
    """What a checkpoint takes, once the picture is read."""

    size: Line
    """Size in pixels, frames first: 224 x 224; or how it is reached: shortest side 800, longest at most 1333."""
    channels: Line = "RGB"
    """Order of the channels: RGB, BGR, grey, or the sequences of a scan."""
    range: tuple[float, float] = (0.0, 1.0)
    """Least and greatest value of a channel before mean and deviation: [0, 1] or [0, 255]."""
    mean: tuple[float, ...] = ()
    """Taken off each channel; none for none."""
    deviation: tuple[float, ...] = ()
    """Each channel is divided by it after that; none for none."""
    divisible_by: Annotated[int, Field(ge=1)] = 1
    """Height and width are multiples of it."""


Output = Literal[
    "classes", "boxes", "boxes and masks", "semantic map", "panoptic map", "masks of a prompt", "masks of a clip",
    "features", "depth", "classes of a clip", "features of a clip", "similarity to texts", "boxes of a text", "masks of a text",
    "labels of a volume", "keypoints",
]  # fmt: skip


class Checkpoint(Model):
    """Weights that a reader can load: of one system, under one licence."""

    name: Name
    """As their makers call them: DETR-R50."""
    system: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")]
    """variant/table: the row of numbers that these weights reach."""
    task: Name
    """One of the card's tasks."""
    release: Line
    """Name of an entry of `licences.releases`: code, weights and training data are under its terms."""
    gated: bool = False
    """True if one has to ask for access before downloading."""
    load: Load
    """How they are loaded."""
    input: Input
    """What goes in."""
    output: Output
    """What comes out."""
    form: Line
    """In which form it comes out: boxes as xyxy in pixels of the picture, after post_process_object_detection."""
    source: Cite
    """Where the weights are published."""


class LeastData(Model):
    """The smallest labelled training set with which a source reports a useful result; 0 where none is needed."""

    images: Annotated[int, Field(ge=0)]
    """Images, clips or graphs with labels, used to train or adapt it: 30."""
    what: Line
    """What came of it, without figures: better than sliding windows on cell outlines."""
    source: Cite
    """Where that is reported."""


class Reference(Model):
    """A source. At least one of doi, arxiv and url."""

    type: Literal["article", "inproceedings", "preprint", "software", "webpage"]
    """Kind of source."""
    title: Line
    """Title as it is printed."""
    authors: tuple[Line, ...] = Field(min_length=1, max_length=3 * MOST)
    """Given name first: Nicolas Carion. An organisation as it calls itself."""
    venue: Line | None = None
    """Short: ECCV 2020."""
    year: Annotated[int, Field(ge=1950, le=2100)]
    """Year in which it came out."""
    doi: Doi | None = None
    """Without the resolver's address: 10.1007/978-3-030-58452-8_13."""
    arxiv: Arxiv | None = None
    """Number alone, in quotes: "2005.12872"."""
    url: Url | None = None
    """Page of the source, for example of the paper or the repository."""
    code: Url | None = None
    """Official code."""

    @model_validator(mode="after")
    def can_be_found(self) -> Self:
        """Raises ValueError if there is neither a DOI nor an arXiv id nor an address."""
        if not (self.doi or self.arxiv or self.url):
            raise ValueError("a reference needs a doi, an arxiv id or an url")
        return self


class Card(Model):
    """What this knowledge base knows of one model."""

    slug: SkipJsonSchema[Slug]
    name: Name
    """Short name: DETR."""
    also_called: tuple[Line, ...] = Field(default=(), max_length=MOST)
    """What else people type when they look for it: rcnn, Segment Anything."""
    paper: Identifier
    """Key of the entry of `references` that introduces it; title, authors, venue, year and code come from there."""
    family: Literal[
        "detection",
        "segmentation",
        "classification backbone",
        "video",
        "graph",
        "self-supervised",
        "adaptation",
        "platform",
        "foundation model",
    ]
    """Shelf that the model stands on."""
    tasks: tuple[Name, ...] = Field(min_length=1, max_length=MOST)
    """Tasks, by the names in _vocabulary.yml."""
    purpose: Line
    """What it is for, one or two sentences."""
    concept: Prose
    """The idea, step by step, in the reader's words, with the central equation in $...$."""
    confused_with: tuple[Line, ...] = Field(default=(), max_length=MOST)
    """Other things of the same name, and how to tell them apart."""
    hero: Identifier | None = None
    """Name of the example's figure that explains the idea."""
    pros: tuple[Claim, ...] = Field(min_length=1, max_length=MOST)
    """What speaks for the model."""
    cons: tuple[Claim, ...] = Field(min_length=1, max_length=MOST)
    """What speaks against it."""
    use_when: tuple[Advice, ...] = Field(min_length=1, max_length=MOST)
    """Situations in which it is the right choice."""
    avoid_when: tuple[Advice, ...] = Field(min_length=1, max_length=MOST)
    """Situations in which another model is better, with its card in `choose`."""
    builds_on: tuple[Relation, ...] = Field(default=(), max_length=MOST)
    """Models that it takes something over from."""
    succeeded_by: tuple[Relation, ...] = Field(default=(), max_length=MOST)
    """Models that followed it."""
    least_data: LeastData | None = None
    """How few labelled images are known to be enough, for the page Choose."""
    licences: Licences
    """Under what the official code and weights may be used."""
    tables: dict[Slug, Table] = Field(default_factory=dict, max_length=MOST)
    """Id -> a place that numbers come from."""
    variants: dict[Slug, Variant] = Field(default_factory=dict, max_length=3 * MOST)
    """Id -> a published size or configuration."""
    checkpoints: dict[Slug, Checkpoint] = Field(default_factory=dict, max_length=MOST)
    """Id -> weights that can be loaded."""
    limitations: tuple[Stated, ...] = Field(default=(), max_length=MOST)
    """What the authors themselves say it cannot do."""
    notes: tuple[Stated, ...] = Field(default=(), max_length=MOST)
    """Remarks that are neither pro nor con."""
    references: dict[Identifier, Reference] = Field(min_length=1, max_length=3 * MOST)
    """Key -> source. Keys read carion2020."""
    reviewed: dt.date
    """Day on which a person last compared the card with its sources: 2026-11-22."""


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
