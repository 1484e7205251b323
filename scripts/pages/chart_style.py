"""How charts and figures of the build look: colours of both schemes, shapes, axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict


class Scheme(TypedDict):
    """Colours of a scheme."""

    page: str
    """What they lie on, as docs/assets/site.css has it."""
    ink: str
    muted: str
    grid: str
    colours: list[str]


SCHEMES: Mapping[str, Scheme] = {
    "light": {
        "page": "#ffffff", "ink": "#1f2328", "muted": "#59636e", "grid": "#dfe3e8",
        "colours": ["#0068A8", "#D55E00", "#008663", "#B4528D", "#7A4F00", "#5B45B0", "#C0392B",
            "#59636e", "#8F2E3D", "#BE6438", "#326402", "#00696B", "#17559B",
            "#703A86", "#7E4700", "#8C8300", "#00986C", "#008FBA", "#7973CA", "#B55D92"],
    },
    "dark": {
        "page": "#1e2129", "ink": "#e6e9ef", "muted": "#a4acba", "grid": "#363b47",
        "colours": ["#4FA8E0", "#E0672A", "#17B386", "#E39AC6", "#F2D34B", "#B9AEF5", "#F08A8A",
            "#a4acba", "#FFB6BE", "#CE7951", "#B5EA99", "#65F0F0", "#A1DBFF",
            "#F6BFFF", "#FFCC79", "#9D9631", "#36A980", "#1AA1C9", "#8B87D8", "#C673A3"],
    },
}  # fmt: skip
"""As many colours as models in one chart at most, each with a contrast of 3 to the page."""
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
FEWEST_TICKS = 3


def room(values: Sequence[float]) -> list[float]:
    """A logarithmic domain with a twentieth of its length to spare on both sides."""
    low, high = min(values), max(values)
    ratio = max(high / low, 1.2) ** 0.06
    return [low / ratio, high * ratio]


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten within a domain; in a narrow one all digits, or whatever round steps there are."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), range(1, 10), [n / 10 for n in range(10, 100)]):
        found = [tick for e in exponents for d in digits if low <= (tick := float(f"{d * 10.0**e:.6g}")) <= high]
        if len(found) >= FEWEST_TICKS:
            break
    return found


def config(colours: Scheme, columns: int = 4) -> dict[str, object]:
    """Fonts and colours of a scheme."""
    text = {"labelColor": colours["ink"], "titleColor": colours["ink"], "labelFontSize": 12, "titleFontSize": 12}
    return {
        "font": "DejaVu Sans, Verdana, sans-serif",
        "axis": {**text, "gridColor": colours["grid"], "domainColor": colours["muted"], "tickColor": colours["muted"]},
        "legend": {**text, "orient": "bottom", "columns": columns, "symbolSize": 90, "symbolOpacity": 1},
        "view": {"stroke": None},
    }
