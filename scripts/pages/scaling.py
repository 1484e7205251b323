"""The page Scaling: what architectures cost as their input grows."""

from __future__ import annotations

from scripts.architectures.scaling import LABELS, TOLERANCE, Measured
from scripts.cards.values import si
from scripts.cards.vocabulary import Exponent
from scripts.evidence.knowledge import Knowledge
from scripts.pages.environment import slugify, template
from scripts.pages.figures import growths
from scripts.pages.writer import common


def page(knowledge: Knowledge) -> str:
    """The text of `scaling/index.md`."""
    views = [sweep_view(measured, knowledge) for measured in knowledge.studies.sweeps]
    return template("scaling.md.j2").render(
        common(knowledge, "../") | {"sweeps": views, "figures": growths(knowledge), "tolerance": TOLERANCE}
    )


def sweep_view(measured: Measured, knowledge: Knowledge) -> dict[str, object]:
    """A sweep as a row: its range, its exponents over all and over the last two sizes, and what is claimed of them."""
    sweep, ends = measured.sweep, (measured.points[0], measured.points[-1])
    axis = knowledge.library.vocabulary.axes[sweep.axis]
    told = [" x ".join(map(str, point.size)) if axis.along == "product" else si(point.x) for point in ends]
    shown = [(measured.exponent(what), measured.last_exponent(what)) for what in LABELS]
    return {
        "anchor": slugify(f"{sweep.card} {sweep.name} {sweep.axis}"), "slug": sweep.card, "name": sweep.name,
        "axis": axis.label, "range": f"{told[0]} to {told[1]}",
        "exponents": ["" if all_ is None else f"{all_:.2f} ({end:.2f})" for all_, end in shown],
        "claims": [_claimed_view(measured, claimed) for claimed in sweep.claims],
    }  # fmt: skip


def _claimed_view(measured: Measured, claimed: Exponent) -> dict[str, str]:
    """What is claimed, whether it comes out, and where the card says so."""
    verdict = {True: "holds", False: "does not hold", None: "cannot be said"}[measured.holds(claimed)]
    says = f"{claimed.says} Exponent {claimed.exponent:g} of {LABELS[claimed.what]}:"
    anchor = f"{claimed.side.removesuffix('s')}-{claimed.number}" if claimed.side else ""
    return {"says": says, "verdict": verdict, "anchor": anchor}
