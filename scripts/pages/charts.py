"""Charts of published accuracy against size and cost, as Vega-Lite: drawn at build, and open to exploring in the browser.

Every point is a published figure with the cost of the same system, or it is not drawn. Lines join the sizes of one design
under equal conditions; each group of figures that may be ranked has its frontier.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scripts.cards.vocabulary import Metric
from scripts.evidence.knowledge import Knowledge, own_numbers
from scripts.evidence.published import Published, comparability
from scripts.evidence.systems import SIZES, cost, times
from scripts.pages.chart_style import SCHEMES, SHAPES, Scheme, config, room, ticks
from scripts.pages.environment import template
from scripts.pages.labels import Named, Side, placed
from scripts.pages.systems import system_name
from scripts.pages.writer import common

TITLES = {"parameters": "Parameters", "macs": "MACs"}
PLOT = (600, 340)
"""Pixels of the plot; labels and legend come to it."""
AXES = (50, 43)
"""Pixels that come to the plot for the axes with their titles."""
LEGEND_COLUMNS, LEGEND_ROW = 4, 20
NARROW_PLOT, NARROW_WIDTH = (270, 250), 328
"""On a phone the plot keeps about so much of a picture of this width, which has a legend of one column."""
LEAST_MODELS, LEAST_POINTS = 2, 5
"""Fewer are better read in a table."""
FRONTIER = 3
"""A group of so many figures has a frontier."""


class Point(Named):
    """One figure, with what a reader is told of it."""

    model: str
    variant: str
    conditions: str
    where: str
    line: str
    system: str
    href: str


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: of its files.
        title: what is drawn against what.
        caption: what to see, and under which conditions.
        alt: the same for those who do not see it.
        points: the data, one for each figure.
        metric: label of the vertical axis; axis: label of the horizontal one.
        higher: whether a higher figure is the better one.
    """

    name: str
    title: str
    caption: str
    alt: str
    points: tuple[Point, ...]
    metric: str
    axis: str
    higher: bool

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order of their colours."""
        return sorted({point["model"] for point in self.points})

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture in pixels, legend included."""
        return PLOT[0] + AXES[0], PLOT[1] + AXES[1] + LEGEND_ROW * -(-len(self.models) // LEGEND_COLUMNS)

    @property
    def narrow_size(self) -> tuple[int, int]:
        """The same of the picture for a phone."""
        return NARROW_WIDTH, NARROW_PLOT[1] + 60 + LEGEND_ROW * len(self.models)

    @functools.cached_property
    def names(self) -> dict[Side, list[Named]]:
        """The names of the points beside which there is room."""
        return placed(self.points, self.domain, PLOT)

    @functools.cached_property
    def narrow_names(self) -> dict[Side, list[Named]]:
        """The same in the picture for a phone."""
        return placed(self.points, self.domain, NARROW_PLOT)

    @property
    def domain(self) -> tuple[list[float], list[float]]:
        """What both axes span: all points, with room around them."""
        low, high = (f(point["y"] for point in self.points) for f in (min, max))
        margin = 0.08 * (high - low or abs(high) or 1)
        return room([point["x"] for point in self.points]), [low - margin, high + margin]


def page(knowledge: Knowledge) -> str:
    """The text of `charts/index.md`."""
    return template("charts.md.j2").render(common(knowledge, "../") | {"charts": charts(knowledge)})


def charts(knowledge: Knowledge) -> list[Chart]:
    """A chart for each benchmark and axis with enough points, those of most models first."""
    words = knowledge.library.vocabulary
    found: dict[tuple[str, str], list[Published]] = {}
    for card in knowledge.cards:
        for number in own_numbers(card.slug, knowledge):
            if words.metric(number.metric).headline and number.conditions.dataset and not number.independent:
                found.setdefault((number.metric, number.on), []).append(number)
    made = [
        _chart(words.metric(metric), on, axis, points, len(numbers) - len(points))
        for (metric, on), numbers in sorted(found.items())
        for axis, points in sorted(_points(numbers, knowledge).items())
        if len(points) >= LEAST_POINTS and len({point["model"] for point in points}) >= LEAST_MODELS
    ]
    return sorted(made, key=lambda chart: (-len(chart.models), -len(chart.points), chart.name))


def _points(numbers: Sequence[Published], knowledge: Knowledge) -> dict[str, list[Point]]:
    """The points of each axis: those numbers of whose system the cost is known."""
    found: dict[str, list[Point]] = {}
    for number in numbers:
        for axis, x in _costs(number, knowledge).items():
            found.setdefault(axis, []).append(_point(number, x, knowledge))
    return found


def _costs(number: Published, knowledge: Knowledge) -> dict[str, float]:
    """What is known of the system that a number is of, by the title of the axis; times as published, an axis per device."""
    found = {TITLES[metric]: size.value for metric in SIZES if (size := cost(knowledge, number, metric))}
    for time in times(knowledge, number):
        if time.metric == "latency" and time.conditions.hardware:
            found.setdefault(f"Latency on {_device(time)} (ms)", time.quantity.value)
    return found


def _device(time: Published) -> str:
    """`T4, fp16, batch 1`: times under other conditions are of another axis."""
    c = time.conditions
    return ", ".join(filter(None, [c.hardware, c.precision, f"batch {c.batch}" if c.batch else None]))


def _point(number: Published, x: float, knowledge: Knowledge) -> Point:
    card = knowledge.library.cards[number.card]
    variant = card.variants[number.variant]
    conditions = comparability(number, knowledge.library.vocabulary)
    told = [f"{name} {text}" for name, text in conditions if name not in ("dataset", "split")]
    design = variant.design or number.variant
    return {
        "x": x, "y": number.quantity.value, "model": card.name, "variant": system_name(card, number), "label": variant.name,
        "conditions": ", ".join(told) or "no further conditions given", "where": number.where,
        "line": "|".join([card.slug, design, *told]), "system": number.system.id,
        "href": f"../models/{card.slug}/#table-{number.table}",
    }  # fmt: skip


def _chart(metric: Metric, on: str, axis: str, points: list[Point], left_out: int) -> Chart:
    label = f"{metric.label}{' (' + metric.unit + ')' if metric.unit else ''}"
    against = axis.partition(" (")[0].replace("Parameters", "parameters").replace("Latency", "latency")
    groups = {point["conditions"] for point in points}
    models = sorted({point["model"] for point in points})
    conditions = next(iter(groups)) if len(groups) == 1 else f"{len(groups)} different sets of conditions"
    missing = f" {left_out} more figures are left out: no {against} of the same system is known." if left_out else ""
    caption = (
        f"{metric.label} on {on} against {against}: {len(points)} published figures of {len(models)} models, under "
        f"{conditions}. A line joins the sizes of one design under equal conditions; a dashed line is the frontier of figures "
        f"that may be ranked against each other; all else does not rank the models. Each point leads to its table.{missing}"
    )
    alt = f"Scatter chart of {metric.label} on {on} against {against} for {', '.join(models)}."
    name = "-".join("".join(c if c.isalnum() else " " for c in f"{metric.label} {on} {axis}").lower().split())
    ordered = tuple(sorted(points, key=lambda point: (point["model"], point["conditions"], point["x"], point["y"])))
    higher = metric.better == "higher"
    return Chart(name, f"{metric.label} on {on} against {against}", caption, alt, ordered, label, axis, higher)


def frontiers(chart: Chart) -> Iterator[dict[str, object]]:
    """The points of each group that nothing cheaper of the group beats, as lines."""
    groups: dict[str, list[Point]] = {}
    for point in chart.points:
        groups.setdefault(point["conditions"], []).append(point)
    sign = 1 if chart.higher else -1
    for conditions, points in groups.items():
        if len(points) < FRONTIER or len({point["model"] for point in points}) < LEAST_MODELS:
            continue
        best: float | None = None
        for point in sorted(points, key=lambda p: (p["x"], -sign * p["y"])):
            if best is None or sign * point["y"] > best:
                best = sign * point["y"]
                yield {"x": point["x"], "y": point["y"], "group": conditions}


def specification(chart: Chart, scheme: str, narrow: bool = False) -> dict[str, object]:
    """The chart in Vega-Lite, or that for a phone. Domains leave room around all points, so that none is cut off."""
    colours, (across, up) = SCHEMES[scheme], chart.domain
    names = chart.narrow_names if narrow else chart.names
    x = {
        "field": "x", "type": "quantitative", "title": chart.axis, "scale": {"type": "log", "domain": across, "nice": False},
        "axis": {"format": "~s", "values": ticks(*across), "labelOverlap": True},
    }  # fmt: skip
    y = {
        "field": "y", "type": "quantitative", "title": chart.metric,
        "scale": {"domain": up, "nice": False, "zero": False},
    }  # fmt: skip
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json", "background": None, **_size(chart, narrow),
        "data": {"values": [dict(each) for each in chart.points]},
        "encoding": {"x": x, "y": y},
        "layer": [*_joined(chart, colours), _dots(chart, colours), *_labelled(names, colours)],
        "config": config(colours, columns=1 if narrow else LEGEND_COLUMNS),
    }  # fmt: skip


def _size(chart: Chart, narrow: bool) -> dict[str, object]:
    if not narrow:
        return dict(zip(("width", "height"), PLOT, strict=True))
    width, height = chart.narrow_size
    return {"width": width, "height": height, "autosize": {"type": "fit", "contains": "padding"}}


def _joined(chart: Chart, colours: Scheme) -> list[dict[str, object]]:
    """Lines between the sizes of one design, and the frontiers."""
    sizes: dict[str, object] = {
        "mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.6},
        "encoding": {"color": _coloured(chart, colours), "detail": {"field": "line"}},
    }
    dashed = {"type": "line", "strokeWidth": 1, "strokeDash": [5, 4], "color": colours["muted"]}
    edge = {"data": {"values": list(frontiers(chart))}, "mark": dashed, "encoding": {"detail": {"field": "group"}}}
    return [sizes, edge]


def _coloured(chart: Chart, colours: Scheme) -> dict[str, object]:
    """The colour of each model, of lines and dots alike: where one of them has no legend, neither has the other."""
    scale = {"domain": chart.models, "range": colours["colours"][: len(chart.models)]}
    return {"field": "model", "type": "nominal", "title": None, "scale": scale}


def _dots(chart: Chart, colours: Scheme) -> dict[str, object]:
    colour, shapes = _coloured(chart, colours), [SHAPES[i % len(SHAPES)] for i in range(len(chart.models))]
    return {
        "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, "cursor": "pointer"},
        "encoding": {
            "color": colour,
            "shape": {**colour, "scale": {"domain": chart.models, "range": shapes}},
            "href": {"field": "href"},
            "tooltip": [
                {"field": "variant", "title": "system"},
                {"field": "y", "type": "quantitative", "title": chart.metric},
                {"field": "x", "type": "quantitative", "title": chart.axis, "format": ".3~s"},
                {"field": "conditions", "title": "conditions"},
                {"field": "where", "title": "source"},
            ],
        },
    }


def _labelled(names: Mapping[Side, Sequence[Named]], colours: Scheme) -> Iterator[dict[str, object]]:
    """The names of points, one layer for each side."""
    for side, texts in names.items():
        mark = {
            "type": "text",
            "fontSize": 10,
            "color": colours["ink"],
            "align": side.align,
            "dx": side.dx,
            "dy": side.dy,
        }
        yield {"data": {"values": texts}, "mark": mark, "encoding": {"text": {"field": "label"}}}


def explorable(chart: Chart) -> str:
    """The data file from which the browser draws the chart: its specification for each scheme."""
    content = {scheme: specification(chart, scheme) for scheme in SCHEMES}
    return json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"
