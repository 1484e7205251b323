"""Detectors side by side: what their runs say about the scenes that all of them share (`examples/lab/detectors.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from scripts.cards.schema import Card
from scripts.cards.vocabulary import SideBySide
from scripts.evidence.knowledge import Knowledge
from scripts.pages.environment import template
from scripts.pages.writer import common
from scripts.runs.record import Experiment, Figure, Record, Results


@dataclass(frozen=True)
class Detector:
    """One detector's run: its experiment of the shared benchmark and its picture."""

    card: Card
    record: Record
    experiment: Experiment
    figure: Figure

    @property
    def results(self) -> Results:
        return {name: self.record.results[name] for name in self.experiment.results}


@dataclass(frozen=True)
class Group:
    """Detectors that may be compared: equal scenes and budget."""

    data: str
    steps: int
    seeds: int
    device: str
    preset: str
    detectors: tuple[Detector, ...]

    def best(self, name: str, ranks: str) -> float | None:
        """The best mean of a measure: the highest of those that are named like the one that ranks, the lowest of all else."""
        means: list[float] = [mean for each in self.detectors if (mean := each.results[name].mean) is not None]
        return (max if name.startswith(ranks) else min)(means, default=None)


def page(knowledge: Knowledge) -> str:
    """The text of `detectors/index.md`."""
    words = knowledge.library.vocabulary.side_by_side
    return template("detectors.md.j2").render(
        common(knowledge, "../") | {"groups": groups(knowledge, words) if words else [], "words": words}
    )


def groups(knowledge: Knowledge, words: SideBySide) -> list[Group]:
    """All runs of the benchmark, those together that may be compared, best first."""
    found: dict[tuple[str, int, int, str, str], list[Detector]] = {}
    ranks = next(iter(words.measures))
    for card in knowledge.cards:
        run = knowledge.run(card.slug)
        record = run.record if run else None
        for experiment in record.experiments if record else ():
            figure = record.figure(words.figure) if record else None
            if (
                record
                and figure
                and experiment.name == words.experiment
                and set(words.measures) <= set(experiment.results)
            ):
                device = f"{record.device['name']} ({record.device['class']})"
                key = (experiment.data, experiment.steps or 0, len(record.seeds), device, record.preset)
                found.setdefault(key, []).append(Detector(card, record, experiment, figure))
    made = [
        Group(*key, tuple(sorted(each, key=lambda detector: -(detector.results[ranks].mean or 0))))
        for key, each in sorted(found.items(), key=lambda item: item[0])
    ]
    return sorted(made, key=lambda group: -len(group.detectors))
