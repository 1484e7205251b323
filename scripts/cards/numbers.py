"""Published numbers on a card: tables with their conditions, and variants with their rows."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from scripts.cards.samples import INDEPENDENT
from scripts.cards.values import (
    MOST,
    Build,
    Identifier,
    Line,
    Model,
    Name,
    Quantity,
    Size,
    Slug,
)


class Conditions(Model):
    """Under what a number was obtained. Two numbers are compared only where these agree."""

    dataset: Line | None = Field(default=None, examples=["COCO", "ImageNet-1k"])
    """Dataset that the number is measured on, for example COCO."""
    split: Line | None = Field(default=None, examples=["val2017", "test-dev"])
    """Its split, for example val2017."""
    metric: Line | None = Field(default=None, examples=["mean of three classes"])
    """Definition of the metric where the usual one does not hold."""
    input: Line | None = Field(default=None, examples=["224 x 224"])
    """Input size in pixels, frames first: 224 x 224, or 8 x 224 x 224."""
    schedule: Line | None = Field(default=None, examples=["500 epochs"])
    """Length of training, for example 500 epochs."""
    pretraining: Line | None = Field(default=None, examples=["ImageNet-21k", "none"])
    """Data and task that the weights saw before, for example ImageNet-21k."""
    protocol: Line | None = Field(default=None, examples=["fine-tuned", "linear probe"])
    """How the model is adapted for the figure: fine-tuned, linear probe, kNN, zero-shot."""
    framework: Line | None = Field(default=None, examples=["Cascade Mask R-CNN"])
    """What the model is plugged into where it is a backbone, for example Cascade Mask R-CNN."""
    tta: Line | None = Field(default=None, examples=["1 x 3 views"])
    """Test-time augmentation, views or crops, for example 1 x 3 views."""
    hardware: Line | None = Field(default=None, examples=["V100"])
    """Device of a speed or memory figure, for example V100."""
    precision: Line | None = Field(default=None, examples=["fp16"])
    """Number format, for example fp16."""
    batch: Line | None = Field(default=None, examples=["1"])
    """Batch size of a speed or memory figure."""
    nms: Line | None = Field(default=None, examples=["counted"])
    """Whether non-maximum suppression is counted in a speed figure."""


class Cite(Model):
    """An exact place in a source."""

    reference: Identifier = Field(examples=["carion2020"])
    """Key of an entry of `references`."""
    where: Line = Field(examples=["Table 1", "README, section Model Zoo"])
    """Table, section, figure, file or line."""


class Independent(Model):
    """That neither the authors nor this project measured the numbers of a table, but someone else, under one protocol."""

    by: Name = Field(examples=["Roboflow"])
    """Who measured: Roboflow."""
    how: Line = Field(examples=["TensorRT on a T4 at fp16, one evaluation for all models."])
    """Under which protocol: TensorRT 10 on a T4 at fp16, the same evaluation for all models."""
    when: Line = Field(examples=["2025-11"])
    """When, as exactly as it is told: 2025-11, or commit 1a2b3c4."""


class Table(Model):
    """A place that numbers come from, with the conditions that all its rows share."""

    source: Identifier = Field(examples=["carion2020"])
    """Key of an entry of `references`."""
    where: Line = Field(examples=["Table 1"])
    """Exact place: Table 1; README, section Model Zoo."""
    conditions: Conditions = Field(default=Conditions(), examples=[{"dataset": "COCO", "split": "val2017"}])
    """What all rows share; a row may add to it or override it."""
    note: Line | None = Field(default=None, examples=["The table says GFLOPS and means MACs."])
    """A remark that the page shows under the table."""
    aside: bool = Field(default=False, examples=[True])
    """True for ablations and for training on a part of the data: shown in the table, drawn in no chart and ranked nowhere."""
    independent: Independent | None = Field(default=None, examples=[INDEPENDENT])
    """Who measured, where that was not the authors of the model."""


class Row(BaseModel):
    """One variant's numbers of one table: metric: value."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)
    __pydantic_extra__: dict[str, Quantity] = Field(init=False)

    where: Line | None = Field(default=None, examples=["row DETR R50"])
    """Exact place where it differs from the table's."""
    conditions: Conditions = Field(default=Conditions(), examples=[{"schedule": "150 epochs"}])
    """What differs from the table's conditions."""
    note: Line | None = Field(default=None, examples=["The text says 42.1."])
    """A remark on these numbers, for example why two sources differ."""

    @property
    def values(self) -> dict[str, Quantity]:
        return self.__pydantic_extra__


class Count(Model):
    """How this project builds the variant to count its parameters and MACs."""

    build: Build = Field(examples=["timm/vit_base_patch16_224"])
    """Library and model: timm/vit_base_patch16_224, or ours/unet_2015."""
    input: Size = Field(examples=["224 x 224"])
    """Input size for the count: 224 x 224."""
    differs: Line | None = Field(default=None, examples=["The source counts the classifier too."])
    """The reason, where the count differs from the published figure by more than 2 %."""

    @property
    def key(self) -> str:
        """`build @ input`, by which counts and studies are kept."""
        return f"{self.build} @ {self.input}"


class Variant(Model):
    """One published size or configuration of the model."""

    name: Name = Field(examples=["DETR-R50"])
    """As the authors call it: DETR-R50."""
    for_comparison: bool = Field(default=False, examples=[True])
    """True for a rival, a predecessor, a successor or an ablation: its numbers stand in the tables, but do not count as
    what this model reaches."""
    design: Slug | None = Field(default=None, examples=["swin"])
    """Sizes of one design bear the same word here: charts join them with a line."""
    count: Count | None = Field(
        default=None, examples=[{"build": "transformers/detr-resnet-50", "input": "800 x 1066"}]
    )
    """What to build in order to count it."""
    numbers: dict[Slug, Row] = Field(
        default_factory=dict, max_length=MOST, examples=[{"table1": {"AP": 42.0, "parameters": "41 M"}}]
    )
    """Table id -> this variant's row of it."""
