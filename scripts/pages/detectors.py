"""Detectors side by side: what their runs say about the scenes that all of them share (`examples/lab/detectors.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from scripts.cards.schema import Card
from scripts.evidence.knowledge import Knowledge
from scripts.pages.environment import template
from scripts.pages.writer import common
from scripts.runs.record import Experiment, Figure, Record, Results

EXPERIMENT, FIGURE = "side_by_side", "stress"

MEASURES = {
    "scenes_ap": "AP", "scenes_ap_small": "AP, small", "scenes_ap_medium": "AP, medium", "scenes_ap_large": "AP, large",
    "scenes_boxes_per_object_raw": "Boxes per object, nothing suppressed", "scenes_steps_to_half": "Steps to half of its AP",
    "scenes_seconds": "Seconds per image",
}  # fmt: skip

STRESSES = {
    "scenes_ap": "As in training", "scenes_ap_tiny": "Tiny", "scenes_ap_crowded": "Crowded", "scenes_ap_occluded": "Occluded",
    "scenes_ap_rotated": "Rotated", "scenes_ap_low_contrast": "Low contrast",
}  # fmt: skip


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
    """Detectors that may be compared: equal scenes and budget, and for their times an equal device."""

    data: str
    steps: int
    seeds: int
    device: str
    preset: str
    detectors: tuple[Detector, ...]

    def best(self, name: str) -> float:
        """The best mean of a measure: the highest AP, the lowest of all else."""
        means: list[float] = [mean for each in self.detectors if (mean := each.results[name].mean) is not None]
        return max(means) if name.startswith("scenes_ap") else min(means)


def groups(knowledge: Knowledge) -> list[Group]:
    """All runs of the benchmark, those together that may be compared, best AP first."""
    found: dict[tuple[str, int, int, str, str], list[Detector]] = {}
    for card in knowledge.cards:
        run = knowledge.run(card.slug)
        record = run.record if run else None
        for experiment in record.experiments if record else ():
            figure = record.figure(FIGURE) if record else None
            if record and figure and experiment.name == EXPERIMENT and set(MEASURES) <= set(experiment.results):
                device = f"{record.device['name']} ({record.device['class']})"
                key = (experiment.data, experiment.steps or 0, len(record.seeds), device, record.preset)
                found.setdefault(key, []).append(Detector(card, record, experiment, figure))
    made = [
        Group(*key, tuple(sorted(each, key=_rank))) for key, each in sorted(found.items(), key=lambda item: item[0])
    ]
    return sorted(made, key=lambda group: -len(group.detectors))


def _rank(detector: Detector) -> float:
    return -float(detector.results["scenes_ap"].mean or 0)


def page(knowledge: Knowledge) -> str:
    return template("detectors.md.j2").render(
        common(knowledge, "../") | {
            "groups": groups(knowledge), "measures": MEASURES, "stresses": STRESSES
        }
    )  # fmt: skip
