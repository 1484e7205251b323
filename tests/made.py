"""Runs and cards that tests make up."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from scripts.project import Project
from scripts.runs.record import Experiment, Figure, Record, Result


def result(
    *values: float | None, exact: bool = False, unit: str = "", failed: tuple[dict[str, Any], ...] = ()
) -> Result:
    """A measure with one value for each seed; mean and deviation are of those that are defined."""
    defined = [value for value in values if value is not None]
    mean = statistics.fmean(defined) if defined else None
    deviation = statistics.stdev(defined) if len(defined) > 1 else 0.0
    return Result(values, mean, deviation, unit, "What it says", exact, "main", failed)


def record(
    results: Mapping[str, Result],
    *,
    power: Mapping[str, Any] | None = None,
    figures: tuple[str, ...] = (),
    **experiment: Any,
) -> Record:
    """A run of one experiment that measured all of it."""
    drawn = tuple(Figure(name, "a", "b", "A caption.", "What is seen.", 1, 1, "main") for name in figures)
    told = {"name": "main", "question": "Is it so?", "data": "none", **experiment}
    made = Experiment(results=tuple(results), figures=figures, power=power, **told)
    seeds = tuple(range(max((len(each.values) for each in results.values()), default=0)))
    device = {"class": "cpu", "name": "A CPU"}
    return Record("alpha", "quick", device, seeds, 1.0, (made,), results, drawn, 2)


GAMMA = """
name: Gamma
paper: gamma2021
family: backbone
tasks: [image classification, object detection]
purpose: Sees.
concept: It looks.
pros:
  - {claim: It is good., because: It looks., reported: {number: t/cls/top1, above: 80}}
cons:
  - {claim: It is large., because: It has weights., source: {reference: gamma2021, where: page 1}}
use_when: [{when: You look.}]
avoid_when: [{when: You do not.}]
licences: {code: MIT, weights: MIT, source: {reference: gamma2021, where: LICENSE}}
tables:
  cls: {source: gamma2021, where: Table 1, conditions: {dataset: ImageNet, split: val, input: 224 x 224}}
  big: {source: gamma2021, where: Table 2, conditions: {dataset: ImageNet, split: val, input: 384 x 384}}
  one: {source: gamma2021, where: Table 3, conditions: {dataset: COCO, split: val2017, framework: Mask R-CNN, input: 800 x 1333}}
  two: {source: gamma2021, where: Table 4, conditions: {dataset: COCO, split: val2017, framework: Cascade, input: 800 x 1333}}
  wide: {source: gamma2021, where: Table 5, conditions: {dataset: COCO, split: val2017, framework: Cascade, input: 1200 x 2000}}
  speed: {source: gamma2021, where: Table 6, conditions: {input: 224 x 224, hardware: V100, batch: "1"}}
  head: {source: gamma2021, where: Table 7, conditions: {framework: Cascade, input: 800 x 1333, hardware: V100, batch: "1"}}
variants:
  t:
    name: Gamma-T
    count: {build: timm/gamma, input: 224 x 224}
    numbers:
      big: {top1: 82.2}
      cls: {top1: 81.3, parameters: 28 M, macs: 4.5 G}
      one: {AP: 46.0, parameters: 48 M, macs: 267 G}
      two: {AP: 50.4, parameters: 86 M, macs: 745 G}
      wide: {AP: 51.5}
      speed: {latency: 3.1}
      head: {latency: 65}
  s:
    name: Gamma-S
    count: {build: timm/gamma_s, input: 224 x 224}
    numbers:
      big: {top1: 84.1}
      cls: {top1: 83.0}
      one: {AP: 48.5}
      two: {AP: 51.9, parameters: 107 M}
      wide: {AP: 52.8}
references:
  gamma2021: {type: preprint, title: Gamma, authors: [Ada Gamma], year: 2021, url: "https://example.org/gamma"}
reviewed: 2026-11-22
"""


def add_backbones(tiny: Project) -> None:
    """Two backbones, each inside two detectors, beside Alpha and Beta, with which they share a benchmark."""
    words = (tiny.cards / "_vocabulary.yml").read_text("utf-8")
    words = words.replace("AP: {label", "AP: {headline: true, label")
    words = words.replace("tasks:\n", "tasks:\n  image classification: Say what is seen.\n")
    words += "axes: {}\n"
    words = words.replace(
        "metrics:\n",
        'metrics:\n  top1: {headline: true, label: Top-1, unit: "%", kind: quality, better: higher, definition: Share.}\n'
        "  latency: {label: Latency, unit: ms, kind: speed, better: lower, definition: Time.}\n",
    )
    (tiny.cards / "_vocabulary.yml").write_text(words, "utf-8")
    (tiny.cards / "gamma.yml").write_text(GAMMA, "utf-8")
    other = GAMMA.replace("Gamma", "Delta").replace("timm/gamma", "timm/delta")
    for old, new in (
        ("81.3", "80.9"),
        ("28 M", "29 M"),
        ("46.0", "45.1"),
        ("48 M", "49 M"),
        ("50.4", "49.9"),
        ("86 M", "88 M"),
    ):
        other = other.replace(old, new)
    (tiny.cards / "delta.yml").write_text(other, "utf-8")
