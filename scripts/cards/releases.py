"""What a reader takes home: releases under their licences, and checkpoints that load."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from scripts.cards.numbers import Cite
from scripts.cards.samples import INPUT, LICENCES, LOAD, RELEASE
from scripts.cards.values import (
    Line,
    Model,
    Name,
    Slug,
)


class Release(Model):
    """Weights and code as someone distributes them: the authors, or a library."""

    name: Line = Field(examples=["official", "timm"])
    """Who distributes what: official, or timm."""
    variants: tuple[Slug, ...] = Field(default=(), examples=[["r50"]])
    """The variants that it holds; none for all of them."""
    code: Line = Field(examples=["Apache-2.0"])
    """SPDX id of the code that runs it."""
    weights: Line = Field(examples=["Apache-2.0", "none"])
    """SPDX id of the weights; none where none are distributed."""
    data: tuple[Name, ...] = Field(default=(), examples=[["ImageNet-1k", "COCO"]])
    """What the weights were trained on, by the names under `datasets` in _licences.yml."""
    packages: tuple[Name, ...] = Field(default=(), examples=[["torch"]])
    """What has to be installed to run it, by the names under `packages` in _licences.yml."""
    source: Cite = Field(examples=[LICENCES["source"]])
    """Where the licences are stated."""


class Licences(Model):
    """SPDX ids, code and weights apart."""

    code: Line = Field(examples=["Apache-2.0", "LicenseRef-SAM"])
    """SPDX id of the official code, or LicenseRef-... for a custom one; none where there is no code."""
    weights: Line = Field(examples=["Apache-2.0", "none"])
    """SPDX id of the official weights; none where none were published."""
    note: Line | None = Field(default=None, examples=["The weights are for research only."])
    """What a practitioner must know before shipping it."""
    source: Cite = Field(examples=[LICENCES["source"]])
    """Where the licences are stated."""
    releases: tuple[Release, ...] = Field(default=(), examples=[[RELEASE]])
    """The ways to get it, for the page of licences; those of different terms or training data apart."""


def licence_name(spdx: str) -> str:
    """`not stated` for LicenseRef-NotStated, `SAM (custom)` for LicenseRef-SAM, `none published`; an SPDX id as it is."""
    if spdx == "none":
        return "none published"
    custom = spdx.removeprefix("LicenseRef-")
    if custom == spdx:
        return spdx
    return "not stated" if custom == "NotStated" else f"{custom} (custom)"


class Load(Model):
    """How the weights of a checkpoint are loaded."""

    library: Name = Field(examples=["transformers", "timm"])
    """Package of Python that loads them: transformers, timm, torchvision, monai."""
    least: Line | None = Field(default=None, examples=["4.50"])
    """Least version of the library, in quotes: "4.50"."""
    class_: Annotated[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")], Field(alias="class")] = (
        Field(examples=["DetrForObjectDetection", "create_model"])
    )
    """Class or function of the library: DetrForObjectDetection, create_model, fasterrcnn_resnet50_fpn."""
    name: Line = Field(examples=["facebook/detr-resnet-50", "FasterRCNN_ResNet50_FPN_Weights.COCO_V1"])
    """What is asked for: facebook/detr-resnet-50, or FasterRCNN_ResNet50_FPN_Weights.COCO_V1."""


class Input(Model):
    """What a checkpoint takes, once the picture is read."""

    size: Line = Field(examples=["224 x 224", "shortest side 800, longest at most 1333"])
    """Size in pixels, frames first: 224 x 224; or how it is reached: shortest side 800, longest at most 1333."""
    channels: Line = Field(default="RGB", examples=["RGB", "BGR"])
    """Order of the channels: RGB, BGR, grey, or the sequences of a scan."""
    range: tuple[float, float] = Field(default=(0.0, 1.0), examples=[[0, 1], [0, 255]])
    """Least and greatest value of a channel before mean and deviation: [0, 1] or [0, 255]."""
    mean: tuple[float, ...] = Field(default=(), examples=[[0.485, 0.456, 0.406]])
    """Taken off each channel; none for none."""
    deviation: tuple[float, ...] = Field(default=(), examples=[[0.229, 0.224, 0.225]])
    """Each channel is divided by it after that; none for none."""
    divisible_by: Annotated[int, Field(ge=1)] = Field(default=1, examples=[32])
    """Height and width are multiples of it."""


Output = Literal[
    "classes", "boxes", "boxes and masks", "semantic map", "panoptic map", "masks of a prompt", "masks of a clip",
    "features", "depth", "classes of a clip", "features of a clip", "similarity to texts", "boxes of a text", "masks of a text",
    "labels of a volume", "keypoints",
]  # fmt: skip


class Checkpoint(Model):
    """Weights that a reader can load: of one system, under one licence."""

    name: Name = Field(examples=["DETR-R50"])
    """As their makers call them: DETR-R50."""
    system: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")] = Field(examples=["r50/table1"])
    """variant/table: the row of numbers that these weights reach."""
    task: Name = Field(examples=["object detection"])
    """One of the card's tasks."""
    release: Line = Field(examples=["official"])
    """Name of an entry of `licences.releases`: code, weights and training data are under its terms."""
    gated: bool = Field(default=False, examples=[True])
    """True if one has to ask for access before downloading."""
    load: Load = Field(examples=[LOAD])
    """How they are loaded."""
    input: Input = Field(examples=[INPUT])
    """What goes in."""
    output: Output = Field(examples=["boxes", "features"])
    """What comes out."""
    form: Line = Field(examples=["boxes as xyxy in pixels of the picture, after post_process_object_detection"])
    """In which form it comes out: boxes as xyxy in pixels of the picture, after post_process_object_detection."""
    source: Cite = Field(examples=[LICENCES["source"]])
    """Where the weights are published."""
