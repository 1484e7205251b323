"""The checkpoints of a card: which is the best, and each as programs read it."""

from __future__ import annotations

from scripts.cards.releases import Checkpoint, Release
from scripts.cards.schema import Card
from scripts.checkpoints.snippets import is_run_here, snippet
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.published import index
from scripts.exports.choices import candidates


def best(card: Card, knowledge: Knowledge) -> str | None:
    """Id of the checkpoint for the card's first task with the best figure of its benchmark, or else of the first measure.

    Of equals, the first one that loads with a snippet and without asking for access.
    """
    return next(iter(_from_the_best(card, knowledge)), None)


def best_run_here(card: Card, knowledge: Knowledge) -> str | None:
    """The same of the checkpoints that load with a snippet which a test runs."""
    return next((key for key in _from_the_best(card, knowledge) if _is_run(card.checkpoints[key])), None)


def _from_the_best(card: Card, knowledge: Knowledge) -> list[str]:
    figures = _on_the_benchmark(card, knowledge) or _on_the_first_measure(card, knowledge)
    order = sorted(figures, key=lambda key: (figures[key], _is_easy(card.checkpoints[key])), reverse=True)
    return order or list(_first_task(card))


def _first_task(card: Card) -> dict[str, Checkpoint]:
    """The checkpoints for the first of the card's tasks that has any."""
    for task in card.tasks:
        if found := {key: each for key, each in card.checkpoints.items() if each.task == task}:
            return found
    return {}


def _is_easy(checkpoint: Checkpoint) -> bool:
    return _is_run(checkpoint) and not checkpoint.gated


def _is_run(checkpoint: Checkpoint) -> bool:
    return is_run_here(checkpoint) and snippet(checkpoint) is not None


def _on_the_benchmark(card: Card, knowledge: Knowledge) -> dict[str, float]:
    """Checkpoint -> its figure on the benchmark of its task, so that more is better."""
    wanted = {f"{card.slug}/{key}": (key, each.task) for key, each in _first_task(card).items()}
    told = [(*wanted[each["id"]], each["quality"]) for each in candidates(card, knowledge) if each["id"] in wanted]
    return {key: _signed(found[task]["value"], found[task]["better"]) for key, task, found in told if task in found}


def _on_the_first_measure(card: Card, knowledge: Knowledge) -> dict[str, float]:
    """Checkpoint -> its figure of the first measure of quality in its row, among those of the first one's data set."""
    words, found, asked = knowledge.library.vocabulary, dict[str, float](), None
    for key, checkpoint in _first_task(card).items():
        variant, _, table = checkpoint.system.partition("/")
        for number in index(knowledge.library)[card.slug][variant]:
            metric, c = words.metric(number.metric), number.conditions
            measure = (number.metric, c.dataset, c.split, c.metric)
            if number.table == table and metric.kind == "quality" and measure == (asked or measure):
                found[key], asked = _signed(number.quantity.value, metric.better), measure
                break
    return found


def _signed(value: float, better: str) -> float:
    return value if better == "higher" else -value


def release_of(card: Card, checkpoint: Checkpoint) -> Release | None:
    """Under whose terms a checkpoint is."""
    return next((each for each in card.licences.releases if each.name == checkpoint.release), None)


def checkpoints(card: Card) -> list[dict[str, object]]:
    """All of a card, in its order."""
    return [_told(key, checkpoint, card) for key, checkpoint in card.checkpoints.items()]


def _told(key: str, checkpoint: Checkpoint, card: Card) -> dict[str, object]:
    release = release_of(card, checkpoint)
    return {
        "id": key, "name": checkpoint.name, "system": checkpoint.system, "task": checkpoint.task,
        "release": checkpoint.release, "licence": release.weights if release else None, "gated": checkpoint.gated,
        "load": checkpoint.load.model_dump(by_alias=True), "input": checkpoint.input.model_dump(mode="json"),
        "output": checkpoint.output, "form": checkpoint.form, "snippet": snippet(checkpoint),
        "source": checkpoint.source.reference, "where": checkpoint.source.where,
    }  # fmt: skip
