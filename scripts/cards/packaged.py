"""What packages of a registry carry beside code: weights that can be run at build, and the pictures that they are shown on."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from scripts.cards.values import Line, Model, Name, Slug, Url

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class PackageFile(Model):
    """A file in a package: of a version that is fetched and checked, or of the installed one."""

    package: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    member: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./-]+$")]
    """Its path in the package."""
    version: Annotated[str, StringConstraints(pattern=r"^[0-9][0-9a-z.]*$")] | None = None
    sha256: Digest | None = None
    """Of the file, not of the package."""
    megabytes: Annotated[float, Field(gt=0)] | None = None
    """What the package weighs."""

    @model_validator(mode="after")
    def fetched_or_installed(self) -> Self:
        """Raises ValueError unless all is said of what is fetched, and nothing of what is installed."""
        if len({self.version is None, self.sha256 is None, self.megabytes is None}) > 1:
            raise ValueError("`version`, `sha256` and `megabytes` are given together, or none of them")
        return self


Reader = Literal["brain mask", "centre heatmap", "patch tokens", "classes of ImageNet"]
"""How the file is read, and what is made of its output: one of scripts/checkpoints/packaged.py."""


class Packaged(Model):
    """Weights in a package of a registry, and what may be said of them."""

    name: Name
    card: Slug | None = None
    """The card that they are shown on."""
    task: Name
    relation: Line
    """What they are, and what they are not."""
    file: PackageFile
    reader: Reader
    licence: Line
    """SPDX id of the package."""
    origin: Line
    """Who trained them, and on what; or that it is not stated."""


class Photograph(Model):
    """A picture or a volume in a package."""

    title: Line
    """What it shows."""
    kind: Literal["picture", "volume"] = "picture"
    file: PackageFile
    licence: Line
    origin: Line
    address: Url | None = None
    """Where it is published."""
    texts: tuple[Line, ...] = ()
    """What models that take a text are asked for; those that take one phrase, for the first."""
    whole: Line | None = None
    """What all of a volume is that is not zero: how much of it a model misses is then told."""
