"""The form of a model card: what an editor may write, with its meaning.

The docstring under a field is the help that an editor's completion shows: `model_cards/card.schema.json` is generated
from this module. Rules that reach beyond one value (does this reference exist?) are in `checks.py`.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from scripts.cards.claims import Claim
from scripts.cards.numbers import Cite, Table, Variant
from scripts.cards.releases import Checkpoint, Licences
from scripts.cards.samples import (
    CHECKPOINT,
    CITE,
    CLAIM,
    LEAST_DATA,
    LICENCES,
    REFERENCE,
    RELATION,
    STATED,
    TABLE,
    VARIANT,
)
from scripts.cards.values import (
    MOST,
    Arxiv,
    Doi,
    Identifier,
    Line,
    Model,
    Name,
    Prose,
    Slug,
    Url,
)


class Advice(Model):
    """When to take this model, or another one."""

    when: Line = Field(examples=["You have fewer than ten thousand labelled images."])
    """A situation of the reader's: You have fewer than ten thousand labelled images."""
    choose: Slug | None = Field(default=None, examples=["faster-rcnn"])
    """The card to look at instead (for avoid_when)."""


class Relation(Model):
    """A model that this one builds on, or that followed it."""

    name: Name = Field(examples=["Faster R-CNN"])
    """Name of that model."""
    change: Line = Field(examples=["Replaces anchors by queries."])
    """One line: what was taken over, or what changed."""
    card: Slug | None = Field(default=None, examples=["faster-rcnn"])
    """Its card, where there is one."""
    reference: Identifier | None = Field(default=None, examples=["ren2015"])
    """Its entry in `references`."""


class Stated(Model):
    """A statement with its place in a source."""

    text: Prose = Field(examples=["Small objects are harder for it."])
    """One statement, in your words."""
    source: Cite | None = Field(default=None, examples=[CITE])
    """Where it stands."""


class LeastData(Model):
    """The smallest labelled training set with which a source reports a useful result; 0 where none is needed."""

    images: Annotated[int, Field(ge=0)] = Field(examples=[30])
    """Images, clips or graphs with labels, used to train or adapt it: 30."""
    what: Line = Field(examples=["Ahead of sliding windows on cell outlines."])
    """What came of it, without figures: better than sliding windows on cell outlines."""
    source: Cite = Field(examples=[CITE])
    """Where that is reported."""


Side = Literal["pros", "cons"]


class Reference(Model):
    """A source. At least one of doi, arxiv and url."""

    type: Literal["article", "inproceedings", "preprint", "software", "webpage"] = Field(examples=["inproceedings"])
    """Kind of source."""
    title: Line = Field(examples=["End-to-End Object Detection with Transformers"])
    """Title as it is printed."""
    authors: tuple[Line, ...] = Field(
        min_length=1, max_length=3 * MOST, examples=[["Nicolas Carion", "Francisco Massa"]]
    )
    """Given name first: Nicolas Carion. An organisation as it calls itself."""
    venue: Line | None = Field(default=None, examples=["ECCV 2020"])
    """Short: ECCV 2020."""
    year: Annotated[int, Field(ge=1950, le=2100)] = Field(examples=[2020])
    """Year in which it came out."""
    doi: Doi | None = Field(default=None, examples=["10.1007/978-3-030-58452-8_13"])
    """Without the resolver's address: 10.1007/978-3-030-58452-8_13."""
    arxiv: Arxiv | None = Field(default=None, examples=["2005.12872"])
    """Number alone, in quotes: "2005.12872"."""
    url: Url | None = Field(default=None, examples=["https://arxiv.org/abs/2005.12872"])
    """Page of the source, for example of the paper or the repository."""
    code: Url | None = Field(default=None, examples=["https://github.com/facebookresearch/detr"])
    """Official code."""

    @model_validator(mode="after")
    def can_be_found(self) -> Self:
        """Raises ValueError if there is neither a DOI nor an arXiv id nor an address."""
        if not (self.doi or self.arxiv or self.url):
            raise ValueError("a reference needs a doi, an arxiv id or an url")
        return self

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """Where the source can be found: (label, link), the lasting ones first; never empty."""
        found = [
            ("doi", f"https://doi.org/{self.doi}" if self.doi else None),
            (f"arXiv:{self.arxiv}", f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else None),
            ("page", self.url),
            ("code", self.code),
        ]
        return [(label, href) for label, href in found if href]


class Card(Model):
    """What this knowledge base knows of one model."""

    slug: SkipJsonSchema[Slug]
    name: Name = Field(examples=["DETR"])
    """Short name: DETR."""
    also_called: tuple[Line, ...] = Field(default=(), max_length=MOST, examples=[["detection transformer"]])
    """What else people type when they look for it: rcnn, Segment Anything."""
    paper: Identifier = Field(examples=["carion2020"])
    """Key of the entry of `references` that introduces it; title, authors, venue, year and code come from there."""
    family: Name = Field(examples=["detection"])
    """Shelf that the model stands on, by the names in _vocabulary.yml."""
    tasks: tuple[Name, ...] = Field(min_length=1, max_length=MOST, examples=[["object detection"]])
    """Tasks, by the names in _vocabulary.yml."""
    purpose: Line = Field(examples=["Finds all objects of an image at once, without anchors."])
    """What it is for, one or two sentences."""
    concept: Prose = Field(
        examples=["Each query attends to the image: $A = \\mathrm{softmax}(q k^\\top / \\sqrt{d})$."]
    )
    """The idea, step by step, in the reader's words, with the central equation in $...$."""
    confused_with: tuple[Line, ...] = Field(
        default=(),
        max_length=MOST,
        examples=[["CenterNet of Zhou et al. (Objects as Points), another model of the same name."]],
    )
    """Other things of the same name, and how to tell them apart."""
    hero: Identifier | None = Field(default=None, examples=["matching"])
    """Name of the example's figure that explains the idea."""
    pros: tuple[Claim, ...] = Field(min_length=1, max_length=MOST, examples=[[CLAIM]])
    """What speaks for the model."""
    cons: tuple[Claim, ...] = Field(min_length=1, max_length=MOST, examples=[[CLAIM]])
    """What speaks against it."""
    use_when: tuple[Advice, ...] = Field(
        min_length=1, max_length=MOST, examples=[[{"when": "You want boxes without tuning suppression."}]]
    )
    """Situations in which it is the right choice."""
    avoid_when: tuple[Advice, ...] = Field(
        min_length=1, max_length=MOST, examples=[[{"when": "You need small objects.", "choose": "faster-rcnn"}]]
    )
    """Situations in which another model is better, with its card in `choose`."""
    builds_on: tuple[Relation, ...] = Field(default=(), max_length=MOST, examples=[[RELATION]])
    """Models that it takes something over from."""
    succeeded_by: tuple[Relation, ...] = Field(default=(), max_length=MOST, examples=[[RELATION]])
    """Models that followed it."""
    least_data: LeastData | None = Field(default=None, examples=[LEAST_DATA])
    """How few labelled images are known to be enough, for the page Choose."""
    licences: Licences = Field(examples=[LICENCES])
    """Under what the official code and weights may be used."""
    tables: dict[Slug, Table] = Field(default_factory=dict, max_length=MOST, examples=[{"table1": TABLE}])
    """Id -> a place that numbers come from."""
    variants: dict[Slug, Variant] = Field(default_factory=dict, max_length=3 * MOST, examples=[{"r50": VARIANT}])
    """Id -> a published size or configuration."""
    checkpoints: dict[Slug, Checkpoint] = Field(default_factory=dict, max_length=MOST, examples=[{"r50": CHECKPOINT}])
    """Id -> weights that can be loaded."""
    limitations: tuple[Stated, ...] = Field(default=(), max_length=MOST, examples=[[STATED]])
    """What the authors themselves say it cannot do."""
    notes: tuple[Stated, ...] = Field(default=(), max_length=MOST, examples=[[STATED]])
    """Remarks that are neither pro nor con."""
    references: dict[Identifier, Reference] = Field(
        min_length=1, max_length=3 * MOST, examples=[{"carion2020": REFERENCE}]
    )
    """Key -> source. Keys read carion2020."""
    reviewed: dt.date = Field(examples=["2026-11-22"])
    """Day on which a person last compared the card with its sources: 2026-11-22."""

    @property
    def introduction(self) -> Reference:
        """The reference that introduces the model."""
        return self.references[self.paper]

    @property
    def own_variants(self) -> dict[str, Variant]:
        """The variants that are this model, not its rivals, predecessors, successors or ablations."""
        return {key: variant for key, variant in self.variants.items() if not variant.for_comparison}

    @property
    def sides(self) -> tuple[tuple[Side, tuple[Claim, ...]], ...]:
        """The claims for and against, each side under its name."""
        return ("pros", self.pros), ("cons", self.cons)
