"""Records of what weights made of photographs: made by this build, or elsewhere and kept in the repository.

A record is a folder with `record.json` and a picture for each photograph. Those in `measurements/photographs/` are part of the
repository; those in `build/photographs/` are of this build, lie under their fingerprint, and go before them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.cards.library import Library
from scripts.cards.packaged import Packaged
from scripts.cards.releases import Checkpoint
from scripts.files import printable_all, read_json, sha256
from scripts.fingerprint import of_module
from scripts.project import Project

Weights = Checkpoint | Packaged


@dataclass(frozen=True)
class Taken:
    """What weights made of one photograph."""

    photograph: str
    """Its key in the vocabulary."""
    file: str
    width: int
    height: int
    found: tuple[str, ...] = ()
    """Classes, boxes or masks, with their scores."""
    remark: str = ""


@dataclass(frozen=True)
class Shown:
    """What some weights made of the photographs."""

    id: str
    """Slug of the card and key of the checkpoint, or key of the packaged weights."""
    weights: Weights
    card: str | None
    device: Mapping[str, object]
    versions: Mapping[str, str]
    pictures: tuple[Taken, ...]
    folder: Path
    kept: bool = False
    """Made elsewhere, and part of the repository."""

    @property
    def name(self) -> str:
        """Of its folder below docs/figures/photographs."""
        return folder_name(self.id)


@dataclass(frozen=True)
class Photographs:
    """The photographs themselves, by key, and what weights made of them."""

    originals: Mapping[str, Taken] = field(default_factory=dict)
    folder: Path = Path()
    """Where the originals lie."""
    shown: tuple[Shown, ...] = ()

    def of(self, slug: str) -> tuple[Shown, ...]:
        """What is shown on the page of a card."""
        return tuple(each for each in self.shown if each.card == slug)


def every_weights(library: Library) -> Iterator[tuple[str, str | None, Weights]]:
    """Id, card and weights of all checkpoints, and of what packages carry."""
    for slug, card in library.cards.items():
        for key, checkpoint in card.checkpoints.items():
            yield f"{slug}/{key}", slug, checkpoint
    for key, packaged in library.vocabulary.packaged.items():
        yield key, packaged.card if packaged.card in library.cards else None, packaged


def folder_name(id: str) -> str:
    """Of the record of some weights; ids of checkpoints hold a slash."""
    return id.replace("/", "-")


def originals_folder(project: Project, library: Library) -> Path:
    """Where the photographs themselves lie, in the size of a page."""
    made_of = sha256(repr(library.vocabulary.photographs).encode())[:12]
    return project.build / "photographs" / f"originals-{made_of}"


def own_folders(project: Project, library: Library) -> Callable[[str, Weights], Path]:
    """Where the record of some weights lies that this build made, by all that it depends on."""
    made_of = of_module(project, "scripts.checkpoints.showing")
    asked, folder = library.vocabulary.photographs, project.build / "photographs"
    return lambda id, weights: folder / f"{folder_name(id)}-{made_of(weights, asked)}"


def kept_folder(project: Project, id: str) -> Path:
    return project.root / "measurements" / "photographs" / folder_name(id)


def read_all(project: Project, library: Library) -> Photographs:
    """All that is there."""
    shown, own = [], own_folders(project, library)
    for id, card, weights in every_weights(library):
        kept = kept_folder(project, id)
        for folder in (own(id, weights), kept):
            if record := printable_all(read_json(folder / "record.json")):
                shown.append(_shown(record, id, card, weights, folder, folder == kept))
                break
    originals = originals_folder(project, library)
    record = read_json(originals / "record.json")
    return Photographs(
        {each["photograph"]: Taken(**each) for each in record.get("pictures", ())}, originals, tuple(shown)
    )


def _shown(record: Mapping[str, Any], id: str, card: str | None, weights: Weights, folder: Path, kept: bool) -> Shown:
    """A record whose pictures are there; raises ValueError for what is no record."""
    try:
        pictures = tuple(Taken(**{**each, "found": tuple(each["found"])}) for each in record["pictures"])
        there = tuple(each for each in pictures if (folder / Path(each.file).name).is_file())
        return Shown(id, weights, card, record["device"], record["versions"], there, folder, kept)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'record.json'} is no record of photographs: {error}") from None


def record_of(
    device: Mapping[str, object], versions: Mapping[str, str], pictures: tuple[Taken, ...]
) -> dict[str, object]:
    """The content of `record.json`."""
    return {
        "schema": 1, "device": dict(device), "versions": dict(versions), "pictures": [asdict(each) for each in pictures],
    }  # fmt: skip
