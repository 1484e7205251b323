"""Figures of the studies: the anatomy of an architecture, and the growth of its cost. Needs matplotlib."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.figures import Style, panels

from scripts.architectures.scaling import AXES, Measured, What
from scripts.cards.values import si

if TYPE_CHECKING:
    from matplotlib.figure import Figure


sys.path.append(str(Path(__file__).parents[2] / "examples"))  # the examples import their lab by the name `lab`

MARKERS = "osD^vPX*"

DASHES = ("-", "--", "-.", ":")


def anatomy(record: Mapping[str, Any], style: Style) -> Figure:
    """Bars of each stage's share of the parameters and of the MACs, with the shape of its output."""
    stages = record["stages"]
    figure, axes = panels(1, 2, height=0.36 * len(stages) + 0.8, sharey=True)
    for axis, what, title, colour in zip(
        axes[0], ("parameters", "macs"), ("Parameters", "MACs"), style.cycle, strict=False
    ):
        shares = [100 * stage[what] / max(record[what], 1) for stage in stages]
        axis.barh(range(len(stages)), shares, color=colour, height=0.62, linewidth=0)
        for place, share in enumerate(shares):
            axis.text(share + 1.5, place, _percent(share), va="center", fontsize=8, color=style.ink)
        axis.set_xlim(0, 118 if max(shares) > 80 else max(shares) * 1.3)
        axis.set_title(f"{title}: {si(record[what])}")
        axis.set_xlabel("share (%)")
        axis.grid(False, axis="y")
    first = axes[0][0]
    first.set_yticks(range(len(stages)), [_label(stage) for stage in stages], fontsize=8)
    first.invert_yaxis()
    return figure


def _percent(share: float) -> str:
    return "0" if share == 0 else "< 0.1" if share < 0.1 else f"{share:.1f}"


def _label(stage: Mapping[str, Any]) -> str:
    return f"{stage['name']}\n{shape_text(stage['shape'])}" if stage["shape"] else str(stage["name"])


def shape_text(shape: Sequence[int]) -> str:
    """`256 × 64 × 64`; a batch axis of one is left out."""
    return " × ".join(map(str, shape[1:] if len(shape) > 1 and shape[0] == 1 else shape))


def growth(sweeps: Sequence[Measured], style: Style) -> Figure:
    """MACs and activation memory over the size of the input, both axes logarithmic, a line per architecture."""
    figure, axes = panels(1, 2, height=3.4 + 0.17 * len(sweeps))
    drawn: tuple[tuple[What, float, str], ...] = (("macs", 1e9, "GMACs"), ("saved_bytes", 1e9, "activations (GB)"))
    for axis, (what, unit, label) in zip(axes[0], drawn, strict=True):
        for i, measured in enumerate(sweeps):
            x = [point.x for point in measured.sweep.points]
            axis.plot(
                x, [cost / unit for cost in measured.costs[what]], marker=MARKERS[i % len(MARKERS)], markersize=5,
                color=style.cycle[i % len(style.cycle)], linestyle=DASHES[i % len(DASHES)], label=measured.sweep.name,
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", ylabel=label, xlabel=AXES[sweeps[0].sweep.axis])
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)))
    return figure
