"""The page Scaling: what architectures cost as their input grows."""

from __future__ import annotations

from typing import Any

from scripts.architectures.scaling import AXES, LABELS, TOLERANCE, Claimed, Measured
from scripts.cards.schema import Card
from scripts.cards.values import si
from scripts.evidence.knowledge import Knowledge
from scripts.pages.environment import slugify, template
from scripts.pages.writer import common


def sweep_view(measured: Measured, card: Card) -> dict[str, Any]:
    sweep = measured.sweep
    shown = [(measured.exponent(what), measured.last_exponent(what)) for what in LABELS]
    first, last = sweep.points[0], sweep.points[-1]
    ends = [si(point.x) if point.changes or sweep.axis not in ("pixels", "voxels") else " x ".join(map(str, point.size))
            for point in (first, last)]  # fmt: skip
    return {
        "anchor": slugify(f"{sweep.card} {sweep.name} {sweep.axis}"), "slug": sweep.card, "name": sweep.name,
        "axis": AXES[sweep.axis], "range": f"{ends[0]} to {ends[1]}",
        "exponents": ["" if all_ is None else f"{all_:.2f} ({end:.2f})" for all_, end in shown],
        "claims": [_claimed_view(measured, claimed, card) for claimed in sweep.claims],
    }  # fmt: skip


def _claimed_view(measured: Measured, claimed: Claimed, card: Card) -> dict[str, str]:
    """What is claimed, whether it comes out, and where the card says so."""
    sides = (("pro", card.pros), ("con", card.cons))
    starts = [
        f"{side}-{i}"
        for side, claims in sides
        for i, claim in enumerate(claims, 1)
        if claimed.claim and claim.claim.startswith(claimed.claim)
    ]
    verdict = {True: "holds", False: "does not hold", None: "cannot be said"}[measured.holds(claimed)]
    says = f"{claimed.says} Exponent {claimed.exponent:g} of {LABELS[claimed.what]}:"
    return {"says": says, "verdict": verdict, "anchor": starts[0] if starts else ""}


def page(knowledge: Knowledge) -> str:
    studies, cards = knowledge.studies, knowledge.library.cards
    views = [sweep_view(sweep, cards[sweep.sweep.card]) for sweep in studies.sweeps]
    return template("scaling.md.j2").render(
        common(knowledge, "../") | {"sweeps": views, "figures": studies.scaling_figures, "tolerance": TOLERANCE}
    )
