"""How charts and figures of the build look: colours of both schemes, shapes, axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

SCHEMES: Mapping[str, Mapping[str, Any]] = {
    "light": {
        "ink": "#1f2328", "muted": "#59636e", "grid": "#dfe3e8",
        "colours": ["#0068A8", "#D55E00", "#008663", "#B4528D", "#7A4F00", "#2E7EBC", "#5B45B0", "#59636e"],
    },
    "dark": {
        "ink": "#e6e9ef", "muted": "#a4acba", "grid": "#363b47",
        "colours": ["#4FA8E0", "#E0672A", "#17B386", "#E39AC6", "#F2D34B", "#BFE3FA", "#B9AEF5", "#a4acba"],
    },
}  # fmt: skip

SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
"""One less than there are colours, so that the ninth model has a colour and a shape that no other has together."""


def room(values: Sequence[float]) -> list[float]:
    """A logarithmic domain with a twentieth of its length to spare on both sides."""
    low, high = min(values), max(values)
    ratio = max(high / low, 1.2) ** 0.06
    return [low / ratio, high * ratio]


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten within a domain."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for e in exponents for tick in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if low <= tick <= high]


def config(colours: Mapping[str, Any], columns: int = 4) -> dict[str, Any]:
    """Fonts and colours of a scheme."""
    text = {"labelColor": colours["ink"], "titleColor": colours["ink"], "labelFontSize": 12, "titleFontSize": 12}
    return {
        "font": "DejaVu Sans, Verdana, sans-serif",
        "axis": {**text, "gridColor": colours["grid"], "domainColor": colours["muted"], "tickColor": colours["muted"]},
        "legend": {**text, "orient": "bottom", "columns": columns, "symbolSize": 90},
        "view": {"stroke": None},
    }
