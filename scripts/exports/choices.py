"""Choosing: what the page Choose goes by. One candidate for each checkpoint, so that one thing meets all answers at once.

The page evaluates the rules of `model_cards/_choose.yml` in the browser (`docs/assets/choose.js`) over the facts made here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from scripts.cards.releases import Checkpoint
from scripts.cards.schema import Card
from scripts.cards.vocabulary import Question
from scripts.evidence import terms
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.published import Published, index
from scripts.evidence.systems import SIZES, cost, measured_times, times

BYTES = 4  # of a weight in fp32
ALIKE = ("dataset", "split", "metric", "tta", "protocol")
"""Conditions in which figures agree that rank checkpoints: training and input are part of what one takes home."""


class Quality(TypedDict):
    """What a checkpoint reaches on the benchmark of its task; figures of one group rank."""

    value: float
    printed: str
    better: str
    label: str
    group: str
    where: str
    table: str


class Of(TypedDict):
    """The card that a candidate is of."""

    slug: str
    model: str
    purpose: str
    family: str | None
    year: int
    least_images: int | None


class Candidate(Of):
    """What one may take home: a checkpoint, or a model of which none is named."""

    id: str
    name: str
    tasks: list[str]
    loads: bool
    release: str
    gated: bool
    uses: Mapping[str, str]
    weights_gb: float | None
    parameters: str
    macs: str
    times: dict[str, float]
    quality: dict[str, Quality]
    """Task -> what it reaches there."""


class Content(TypedDict):
    """All that the page goes by."""

    schema: int
    questions: list[dict[str, object]]
    candidates: list[Candidate]


def render(knowledge: Knowledge) -> dict[str, str]:
    """`api/choose.json`, for programs; the page holds a copy."""
    return {"api/choose.json": json.dumps(content(knowledge), ensure_ascii=False, indent=1, sort_keys=True) + "\n"}


def content(knowledge: Knowledge) -> Content:
    """The questions with their options, and the facts of every candidate."""
    twice = repeated(knowledge)
    found = [each for card in knowledge.cards for each in candidates(card, knowledge) if each["id"] not in twice]
    return {"schema": 3, "questions": questions(found, knowledge), "candidates": found}


def repeated(knowledge: Knowledge) -> set[str]:
    """Checkpoints whose weights are listed for the same task before: on a card of their own model, or higher on the card."""
    collecting = {name for name, family in knowledge.library.vocabulary.families.items() if family.collects}
    seen, found = set[tuple[str, str, str]](), set[str]()
    for card in sorted(knowledge.cards, key=lambda card: card.family in collecting):
        for key, checkpoint in card.checkpoints.items():
            weights = (checkpoint.load.library, checkpoint.load.name, checkpoint.task)
            if weights in seen:
                found.add(f"{card.slug}/{key}")
            seen.add(weights)
    return found


def questions(found: Sequence[Candidate], knowledge: Knowledge) -> list[dict[str, object]]:
    """The questions, options spelled out: those that at least one candidate can meet."""
    lists = {
        "tasks": sorted({task for each in found for task in each["tasks"]}),
        "devices": sorted({device for each in found for device in each["times"]}),
        "uses": terms.all_uses(knowledge),
    }
    return [_asked(question, lists) for question in knowledge.library.vocabulary.questions]


def _asked(question: Question, lists: Mapping[str, Sequence[str]]) -> dict[str, object]:
    """A question as data, its options spelled out where it names one of the lists."""
    told = question.model_dump(mode="json", exclude_unset=True)
    named = lists.get(question.options) if isinstance(question.options, str) else None
    return told if named is None else told | {"options": named}


def candidates(card: Card, knowledge: Knowledge) -> Iterator[Candidate]:
    """Every checkpoint of a card, then the card itself for the tasks that none of them is for."""
    found = [_of_checkpoint(card, key, checkpoint, knowledge) for key, checkpoint in card.checkpoints.items()]
    yield from found
    left = [task for task in card.tasks if not any(task in each["tasks"] for each in found)]
    if left or not found:
        yield {
            **_common(card), "id": card.slug, "name": card.name, "tasks": left, "loads": False, "times": {}, "quality": {},
            "uses": terms.uses(card, knowledge), "weights_gb": None, "parameters": "", "macs": "", "release": "", "gated": False,
        }  # fmt: skip


def _common(card: Card) -> Of:
    return {
        "slug": card.slug, "model": card.name, "purpose": card.purpose.strip(), "family": card.family,
        "year": card.introduction.year, "least_images": card.least_data.images if card.least_data else None,
    }  # fmt: skip


def _of_checkpoint(card: Card, key: str, checkpoint: Checkpoint, knowledge: Knowledge) -> Candidate:
    row = _row(card, checkpoint, knowledge)
    weights, macs = (cost(knowledge, row[0], metric) if row else None for metric in SIZES)
    tasks = _tasks(card, checkpoint, knowledge)
    figures = {task: quality for task in tasks if (quality := _quality(task, row, knowledge))}
    return {
        **_common(card), "id": f"{card.slug}/{key}", "name": checkpoint.name, "tasks": tasks, "loads": True,
        "release": checkpoint.release, "gated": checkpoint.gated, "uses": _uses(card, checkpoint, knowledge),
        "weights_gb": BYTES * weights.value / 1e9 if weights else None,
        "parameters": weights.printed if weights else "", "macs": macs.printed if macs else "",
        "times": _times(row, knowledge), "quality": figures,
    }  # fmt: skip


def _tasks(card: Card, checkpoint: Checkpoint, knowledge: Knowledge) -> list[str]:
    """The task that a checkpoint is for, then those of its card that are served by what comes out of it."""
    served = knowledge.library.vocabulary.serves.get(checkpoint.output, ())
    return list(dict.fromkeys([checkpoint.task, *(task for task in served if task in card.tasks)]))


def _row(card: Card, checkpoint: Checkpoint, knowledge: Knowledge) -> list[Published]:
    """The numbers that a checkpoint reaches: its row."""
    variant, _, table = checkpoint.system.partition("/")
    return [number for number in index(knowledge.library)[card.slug][variant] if number.table == table]


def _uses(card: Card, checkpoint: Checkpoint, knowledge: Knowledge) -> Mapping[str, str]:
    """The verdict on each use, by the terms of the checkpoint's own release."""
    rows = [row for row in terms.rows_of(card, knowledge) if row.release.name == checkpoint.release]
    return rows[0].uses if rows else dict.fromkeys(terms.all_uses(knowledge), "unclear")


def _times(row: Sequence[Published], knowledge: Knowledge) -> dict[str, float]:
    """Milliseconds per image at batch 1 of the row's system, by device: as published, and as timed here."""
    found: dict[str, float] = {}
    for number in row[:1]:
        for time in times(knowledge, number):
            c = time.conditions
            if c.hardware and c.batch == "1" and time.ms is not None:
                found.setdefault(", ".join(filter(None, [c.hardware, c.precision])), time.ms)
        for timed in measured_times(knowledge, number.system):
            if timed.batch == 1 and timed.ms is not None:
                threads = f", {timed.threads} threads" if timed.threads else ""
                found.setdefault(f"{timed.device}{threads}, {timed.precision} (timed here)", timed.ms)
    return found


def _quality(task: str, row: Sequence[Published], knowledge: Knowledge) -> Quality | None:
    """What a checkpoint reaches on the benchmark of a task, from its own row: no other row is of these weights."""
    words = knowledge.library.vocabulary
    wanted = words.benchmarks.get(task)
    for number in row if wanted else ():
        assert wanted is not None
        c = number.conditions
        if (number.metric, c.dataset, c.split) == (
            wanted.metric,
            wanted.dataset,
            wanted.split,
        ) and not number.independent:
            metric = words.metric(number.metric)
            return {
                "value": number.quantity.value, "printed": number.quantity.printed, "better": metric.better,
                "label": f"{metric.label} on {wanted.dataset} {wanted.split or ''}".strip(),
                "group": "; ".join(f"{name} {text}" for name in ALIKE[2:] if (text := getattr(c, name))),
                "where": number.where, "table": number.table,
            }  # fmt: skip
    return None
