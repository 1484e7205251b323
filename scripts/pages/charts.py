"""Charts of published accuracy against size and cost, as Vega-Lite: drawn at build, and open to exploring in the browser.

Every point is a published figure. Lines join the variants of one model only where all conditions agree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scripts.cards.vocabulary import Metric
from scripts.evidence.knowledge import Knowledge, own_numbers, size_of
from scripts.evidence.published import Published, comparability, index
from scripts.pages.chart_style import SCHEMES, SHAPES, config, room, ticks
from scripts.pages.environment import template
from scripts.pages.writer import common

AXES = {"parameters": "Parameters", "macs": "MACs"}

LEAST_MODELS, LEAST_POINTS = 2, 5
"""Fewer are better read in a table."""


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: of its files.
        title: what is drawn against what.
        caption: what to see, and under which conditions.
        alt: the same for those who do not see it.
        points: the data, one dictionary for each figure.
        metric: label of the vertical axis; axis: label of the horizontal one.
    """

    name: str
    title: str
    caption: str
    alt: str
    points: tuple[Mapping[str, Any], ...]
    metric: str
    axis: str

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order of their colours."""
        return sorted({point["model"] for point in self.points})


def charts(knowledge: Knowledge) -> list[Chart]:
    """A chart for each benchmark and axis with enough points, those of most models first."""
    words = knowledge.library.vocabulary
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for card in knowledge.cards:
        for number in own_numbers(card.slug, knowledge):
            if words.metric(number.metric).headline and number.conditions.dataset:
                on = " ".join(filter(None, [number.conditions.dataset, number.conditions.split]))
                for axis, x in _sizes(number, knowledge).items():
                    found.setdefault((number.metric, on, axis), []).append(_point(number, x, knowledge))
    made = [
        _chart(words.metric(metric), on, axis, points)
        for (metric, on, axis), points in sorted(found.items())
        if len(points) >= LEAST_POINTS and len({point["model"] for point in points}) >= LEAST_MODELS
    ]
    return sorted(made, key=lambda chart: (-len(chart.models), -len(chart.points), chart.name))


def _sizes(number: Published, knowledge: Knowledge) -> dict[str, float]:
    """What is known of the variant, by the title of the axis: size and cost as published, or else as counted; and latency
    as published, one axis for each device."""
    variant = knowledge.library.cards[number.card].variants[number.variant]
    counted = knowledge.counted(variant)
    sizes: dict[str, float] = {}
    for metric, title in AXES.items():
        size = size_of(knowledge.library, number.card, number.variant, metric)
        if size or counted:
            sizes[title] = size.quantity.value if size else float(getattr(counted, metric))
    for other in index(knowledge.library)[number.card][number.variant]:
        if other.metric == "latency" and other.conditions.hardware:
            sizes.setdefault(f"Latency on {other.conditions.hardware} (ms)", other.quantity.value)
    return sizes


def _point(number: Published, x: float, knowledge: Knowledge) -> dict[str, Any]:
    card = knowledge.library.cards[number.card]
    conditions = comparability(number, knowledge.library.vocabulary)
    told = [f"{name} {text}" for name, text in conditions if name not in ("dataset", "split")]
    return {
        "x": x, "y": number.quantity.value, "model": card.name, "variant": card.variants[number.variant].name,
        "conditions": ", ".join(told) or "no further conditions given", "where": number.where,
        "href": f"../models/{card.slug}/#table-{number.table}",
    }  # fmt: skip


def _chart(metric: Metric, on: str, axis: str, points: list[dict[str, Any]]) -> Chart:
    label = f"{metric.label}{' (' + metric.unit + ')' if metric.unit else ''}"
    against = axis.partition(" (")[0].replace("Parameters", "parameters").replace("Latency", "latency")
    groups = {point["conditions"] for point in points}
    models = sorted({point["model"] for point in points})
    conditions = next(iter(groups)) if len(groups) == 1 else f"{len(groups)} different sets of conditions"
    caption = (
        f"{metric.label} on {on} against {against}: {len(points)} published figures of {len(models)} models, under "
        f"{conditions}. A line joins figures of one model whose conditions agree; points under different conditions do not "
        "rank the models. Each point leads to its table."
    )
    alt = f"Scatter chart of {metric.label} on {on} against {against} for {', '.join(models)}."
    name = "-".join("".join(c if c.isalnum() else " " for c in f"{metric.label} {on} {axis}").lower().split())
    ordered = tuple(sorted(points, key=lambda point: (point["model"], point["conditions"], point["x"], point["y"])))
    return Chart(name, f"{metric.label} on {on} against {against}", caption, alt, ordered, label, axis)


def specification(chart: Chart, scheme: str) -> dict[str, Any]:
    """The chart in Vega-Lite. Domains leave room around all points, so that none is cut off."""
    colours = SCHEMES[scheme]
    domain = room([point["x"] for point in chart.points])
    x = {
        "field": "x", "type": "quantitative", "title": chart.axis,
        "scale": {"type": "log", "domain": domain, "nice": False},
        "axis": {"format": "~s", "values": ticks(*domain), "labelOverlap": False},
    }  # fmt: skip
    low, high = (f(point["y"] for point in chart.points) for f in (min, max))
    margin = 0.06 * (high - low or abs(high) or 1)
    y = {
        "field": "y", "type": "quantitative", "title": chart.metric,
        "scale": {"domain": [low - margin, high + margin], "nice": False, "zero": False},
    }  # fmt: skip
    model = {"field": "model", "type": "nominal", "title": None}
    colour = {**model, "scale": {"range": colours["colours"]}}
    line = {"stroke": {**colour, "legend": None}, "detail": {"field": "conditions"}}
    point = {
        "color": colour, "shape": {**model, "scale": {"range": SHAPES}}, "href": {"field": "href"},
        "tooltip": [
            {"field": "variant", "title": "variant"},
            {"field": "y", "type": "quantitative", "title": chart.metric},
            {"field": "x", "type": "quantitative", "title": chart.axis, "format": ".3~s"},
            {"field": "conditions", "title": "conditions"},
            {"field": "where", "title": "source"},
        ],
    }  # fmt: skip
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": 600, "height": 320, "background": None,
        "data": {"values": [dict(each) for each in chart.points]},
        "encoding": {"x": x, "y": y},
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.6}, "encoding": line},
            {"mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, "cursor": "pointer"}, "encoding": point},
        ],
        "config": config(colours),
    }  # fmt: skip


def explorable(chart: Chart) -> str:
    """The data file from which the browser draws the chart: its specification for each scheme."""
    content = {scheme: specification(chart, scheme) for scheme in SCHEMES}
    return json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"


def page(knowledge: Knowledge) -> str:
    return template("charts.md.j2").render(common(knowledge, "../") | {"charts": charts(knowledge)})
