"""What weights make of photographs: the section of a model's page, and the pages that show all models of a task side by side."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from scripts.cards.packaged import Packaged, Photograph
from scripts.cards.releases import Checkpoint
from scripts.cards.schema import Card
from scripts.checkpoints.chosen import chosen
from scripts.checkpoints.pictures import Kind
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.photographs import Shown, Taken
from scripts.exports.checkpoints import release_of
from scripts.pages.checkpoints import why_not
from scripts.pages.environment import slugify, template
from scripts.pages.writer import common

MOST_FOUND = 3
"""Classes, boxes or masks that a caption names."""


@dataclass(frozen=True)
class View:
    """Weights with their pictures, as a page shows them."""

    shown: Shown
    name: str
    task: str
    model: str | None
    """Name of the card, if they are shown on one."""
    licence: str
    relation: str
    """What they are, if they are no checkpoint of a card."""
    origin: str

    @property
    def made(self) -> str:
        """Where and with what the pictures were made."""
        versions = ", ".join(f"{name} {version}" for name, version in self.shown.versions.items())
        where = "elsewhere, and kept in the repository" if self.shown.kept else "by this build"
        return f"{where}, on {self.shown.device.get('name', 'a device that is not named')}, {versions}"

    def of(self, photograph: str) -> Taken | None:
        return next((each for each in self.shown.pictures if each.photograph == photograph), None)


@functools.lru_cache(maxsize=2)  # every model's page asks for its own, and every task's
def views(knowledge: Knowledge) -> list[View]:
    """All weights with pictures, published ones first."""
    found = [_view(shown, knowledge) for shown in knowledge.photographs.shown if shown.pictures]
    return sorted(found, key=lambda view: (bool(view.relation), view.shown.id))


def _view(shown: Shown, knowledge: Knowledge) -> View:
    weights, card = shown.weights, knowledge.library.cards.get(shown.card or "")
    model = card.name if card else None
    if isinstance(weights, Packaged):
        origin = f"{weights.origin} From the package {weights.file.package} {weights.file.version}."
        return View(shown, weights.name, weights.task, model, weights.licence, weights.relation, origin)
    release = release_of(card, weights) if card else None
    licence = release.weights if release else "LicenseRef-NotStated"
    return View(shown, weights.name, weights.task, model, licence, "", weights.load.name)


def caption(taken: Taken) -> str:
    """The surest things in a picture, or the remark where there are none."""
    names = taken.found[:MOST_FOUND]
    more = [f"{len(taken.found) - len(names)} more"] if len(taken.found) > len(names) else []
    return "; ".join(filter(None, [", ".join([*names, *more]), taken.remark])) or "nothing found"


@dataclass(frozen=True)
class Awaited:
    """A checkpoint that can be shown, and of which this build has no pictures."""

    card: Card
    key: str

    @property
    def checkpoint(self) -> Checkpoint:
        return self.card.checkpoints[self.key]

    @property
    def id(self) -> str:
        return f"{self.card.slug}/{self.key}"


def awaited(card: Card, knowledge: Knowledge, kind: Kind = "picture") -> list[Awaited]:
    """What could be shown of a card, and this build did not reach: of each task one checkpoint. Clips it has none of."""
    shown = {each.weights.task for each in knowledge.photographs.of(card.slug) if isinstance(each.weights, Checkpoint)}
    return [Awaited(card, key) for task, key in chosen(card, kind).items() if task not in shown]


def of_card(card: Card, knowledge: Knowledge) -> dict[str, object]:
    """What the section of a model's page takes."""
    own = [view for view in views(knowledge) if view.shown.card == card.slug]
    carried = [each.name for each in knowledge.library.vocabulary.packaged.values() if each.card == card.slug]
    return {
        "views": own,
        "carried": [name for name in carried if name not in {view.name for view in own}],
        "lacking": awaited(card, knowledge),
        "clips": awaited(card, knowledge, "clip"),
        "why_not": why_not(card),
        "photographs": knowledge.library.vocabulary.photographs,
        "caption": caption,
    }


@dataclass(frozen=True)
class OfTask:
    """What is shown for a task, and what could be."""

    views: list[View]
    lacking: list[Awaited]
    clips: list[Awaited]
    others: list[Card]
    """Models for the task of which nothing can be shown."""


@functools.lru_cache(maxsize=2)
def tasks(knowledge: Knowledge) -> dict[str, OfTask]:
    """The tasks of which something is shown or could be, in the order of the vocabulary."""
    shown = views(knowledge)
    lacking, clips = (
        [each for card in knowledge.cards for each in awaited(card, knowledge, kind)] for kind in ("picture", "clip")
    )
    found = {
        task: _of_task(
            task,
            [view for view in shown if view.task == task],
            [each for each in lacking if each.checkpoint.task == task],
            [each for each in clips if each.checkpoint.task == task],
            knowledge,
        )
        for task in knowledge.library.vocabulary.tasks
    }
    return {task: own for task, own in found.items() if own.views or own.lacking or own.clips}


def _of_task(
    task: str, shown: list[View], lacking: list[Awaited], clips: list[Awaited], knowledge: Knowledge
) -> OfTask:
    told = {view.shown.card for view in shown} | {each.card.slug for each in [*lacking, *clips]}
    others = [card for card in knowledge.cards if task in card.tasks and card.slug not in told]
    return OfTask(shown, lacking, clips, others)


def page(knowledge: Knowledge) -> str:
    """The text of `photographs/index.md`."""
    return template("photographs.md.j2").render(
        common(knowledge, "../") | {"tasks": tasks(knowledge), "pictures": _pictures(knowledge)}
    )


def task_page(task: str, knowledge: Knowledge) -> str:
    """The text of `photographs/<task>.md`."""
    own = tasks(knowledge)[task]
    rows = [
        (key, photograph, [(view, taken) for view in own.views if (taken := view.of(key))])
        for key, photograph in knowledge.library.vocabulary.photographs.items()
    ]
    return template("on_photographs.md.j2").render(
        common(knowledge, "../../")
        | {
            "task": task, "own": own, "rows": [row for row in rows if row[2]], "caption": caption,
            "originals": knowledge.photographs.originals,
        }
    )  # fmt: skip


def task_pages(knowledge: Knowledge) -> dict[str, str]:
    """Task -> path of its page below docs/."""
    return {task: f"photographs/{slugify(task)}.md" for task in tasks(knowledge)}


def _pictures(knowledge: Knowledge) -> list[tuple[Taken, Photograph]]:
    """The photographs that lie in this build."""
    wanted = knowledge.library.vocabulary.photographs
    return [(taken, wanted[key]) for key, taken in knowledge.photographs.originals.items()]
