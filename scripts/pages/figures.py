"""Figures of the studies, as specifications that the library of the charts draws: anatomy, and growth of cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from scripts.architectures.scaling import Measured
from scripts.architectures.studies import Anatomy, Row
from scripts.cards.values import si
from scripts.cards.vocabulary import Vocabulary, What
from scripts.evidence.knowledge import Knowledge
from scripts.pages.chart_style import SCHEMES, SHAPES, config, room, ticks

Specification = dict[str, object]
WIDTH = 440
ROW = 42
"""Pixels of a stage: two bars, and two lines of text beside them."""


class Placed(TypedDict):
    """A point of a line that has a name."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Drawing:
    """A figure that is drawn at build, in both schemes; `folder` is that of `figures/`."""

    folder: str
    name: str
    caption: str
    alt: str
    width: int
    height: int
    specification: Callable[[str], Specification]
    """From the name of a scheme."""

    @property
    def light(self) -> str:
        """File name of the light one."""
        return f"{self.name}.light.svg"

    @property
    def dark(self) -> str:
        """File name of the dark one."""
        return f"{self.name}.dark.svg"


def drawings(knowledge: Knowledge) -> list[Drawing]:
    """Every figure of a study."""
    return [*(anatomy(slug, each) for slug, each in knowledge.studies.anatomies.items()), *growths(knowledge)]


def anatomy(slug: str, record: Anatomy) -> Drawing:
    """Bars of each stage's share of the parameters and of the MACs, with the shape of its output."""
    told = " and ".join(
        f"{record['stages'][shares.index(max(shares))]['name']} holds {max(shares):.0%} of the {what}"
        for what, shares in _shares(record).items()
    )
    caption = (
        f"Where the weights of {record['name']} lie and where its work is done, for one input of {record['input']}, "
        "from a forward pass. Under each stage stands the shape of its output."
    )
    alt = f"Bars of the {len(record['stages'])} stages of {record['name']}: {told}. The table below has all figures."
    height = ROW * len(record["stages"]) + 90
    return Drawing("anatomy", slug, caption, alt, WIDTH, height, lambda scheme: _anatomy(record, scheme, height))


def _shares(record: Anatomy) -> dict[str, list[float]]:
    """Of each stage: of all parameters, and of all MACs."""
    return {
        "parameters": [stage["parameters"] / max(record["parameters"], 1) for stage in record["stages"]],
        "MACs": [stage["macs"] / max(record["macs"], 1) for stage in record["stages"]],
    }


def _anatomy(record: Anatomy, scheme: str, height: int) -> Specification:
    heads = {"parameters": f"parameters ({si(record['parameters'])})", "MACs": f"MACs ({si(record['macs'])})"}
    shares = _shares(record)
    values = [
        {"stage": _label(stage), "what": head, "share": 100 * shares[what][i]}
        for i, stage in enumerate(record["stages"])
        for what, head in heads.items()
    ]
    labels = {"labelExpr": "split(datum.label, '\\n')", "labelLimit": 200, "domain": False, "ticks": False}
    place = {
        "y": {"field": "stage", "type": "nominal", "sort": None, "title": None, "axis": labels},
        "yOffset": {"field": "what", "sort": list(heads.values())},
    }  # fmt: skip
    share = {"field": "share", "type": "quantitative", "title": "share (%)", "scale": {"domain": [0, 112]}}
    colour = {
        "field": "what",
        "title": None,
        "sort": list(heads.values()),
        "scale": {"range": SCHEMES[scheme]["colours"][:2]},
        "legend": {"columns": 1},
    }
    small = {"test": "datum.share > 0 && datum.share < 0.1", "value": "< 0.1"}
    text = {"condition": [{"test": "datum.share == 0", "value": "0"}, small], "field": "share", "format": ".1f"}
    ink = SCHEMES[scheme]["ink"]
    return _single(
        scheme, WIDTH, height, values,
        encoding=place,
        layer=[
            {"mark": "bar", "encoding": {"x": share, "color": colour}},
            {
                "mark": {"type": "text", "align": "left", "dx": 4, "fontSize": 11, "color": ink},
                "encoding": {"x": share, "text": text},
            },
        ],
    )  # fmt: skip


def _label(stage: Row) -> str:
    return f"{stage['name']}\n{shape_text(stage['shape'])}" if stage["shape"] else stage["name"]


def shape_text(shape: Sequence[int]) -> str:
    """`256 × 64 × 64`; a batch axis of one is left out."""
    return " × ".join(map(str, shape[1:] if len(shape) > 1 and shape[0] == 1 else shape))


def growths(knowledge: Knowledge) -> list[Drawing]:
    """MACs, and activation memory, over the size of the input: a line per architecture, both axes logarithmic."""
    words = knowledge.library.vocabulary
    drawn: tuple[tuple[What, str, str], ...] = (
        ("macs", "MACs", "macs"),
        ("saved_bytes", "activation memory (bytes)", "memory"),
    )
    return [
        _growth(f"{name}-{short}", group, what, label, words)
        for name, group in _grouped(knowledge.studies.sweeps, words).items()
        for what, label, short in drawn
    ]


def _grouped(measured: Sequence[Measured], words: Vocabulary) -> dict[str, list[Measured]]:
    """The sweeps of one figure together: those of cards that share one, or else all of an axis."""
    groups: dict[str, list[Measured]] = {}
    for one in measured:
        shared = next((name for name, slugs in words.figures.items() if one.sweep.card in slugs), one.sweep.axis)
        groups.setdefault(shared if one.sweep.axis == "pixels" else one.sweep.axis, []).append(one)
    return groups


def _growth(name: str, group: Sequence[Measured], what: What, label: str, words: Vocabulary) -> Drawing:
    axis = words.axes[group[0].sweep.axis].label
    told = [
        f"{m.sweep.name} from {si(m.costs[what][0])} to {si(m.costs[what][-1])}, exponent {exponent:.2f}"
        for m in group
        if (exponent := m.exponent(what)) is not None
    ]
    head = label[0].upper() + label[1:]
    caption = f"{head} over the {axis}; a straight line is a power law, its slope the exponent."
    alt = f"Lines of {label} over the {axis}: {'; '.join(told)}."
    height = 300 + 20 * -(-len(group) // 2)
    return Drawing(
        "scaling", name, caption, alt, WIDTH, height, lambda scheme: _lines(group, what, label, axis, scheme, height)
    )


def _lines(group: Sequence[Measured], what: What, label: str, axis: str, scheme: str, height: int) -> Specification:
    values: list[Placed] = [
        {"name": m.sweep.name, "x": point.x, "y": cost}
        for m in group
        for point, cost in zip(m.points, m.costs[what], strict=True)
        if cost > 0
    ]
    channels = {
        "x": _logarithmic("x", axis, [value["x"] for value in values]),
        "y": _logarithmic("y", label, [value["y"] for value in values]),
    }
    named = {"field": "name", "type": "nominal", "title": None, "sort": None}
    colour = {**named, "scale": {"range": SCHEMES[scheme]["colours"]}}
    shape = {**named, "scale": {"range": SHAPES}}
    layers = [
        {"mark": "line", "encoding": {"stroke": {**colour, "legend": None}}},
        {
            "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
            "encoding": {"color": colour, "shape": shape},
        },
    ]
    return _single(scheme, WIDTH, height, values, encoding=channels, layer=layers)


def _logarithmic(key: str, title: str, values: Sequence[float]) -> Specification:
    domain = room(values)
    return {
        "field": key, "type": "quantitative", "title": title, "scale": {"type": "log", "domain": domain, "nice": False},
        "axis": {"format": "~s", "values": ticks(*domain), "labelOverlap": True},
    }  # fmt: skip


def _single(
    scheme: str, width: int, height: int, values: Sequence[Mapping[str, object]], **rest: object
) -> Specification:
    """One view of exactly this size, labels and legend included."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": width, "height": height, "autosize": {"type": "fit", "contains": "padding"}, "background": None,
        "data": {"values": list(values)}, "config": config(SCHEMES[scheme], columns=2), **rest,
    }  # fmt: skip
