"""Scaling: exponents come out of sweeps, and are held against what is claimed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT, Command

from scripts.architectures.scaling import Measured, points, slope
from scripts.cards.library import load_library
from scripts.cards.vocabulary import Exponent, Sweep
from scripts.project import Project
from scripts.site.render import generated

LIBRARY, _ = load_library(ROOT / "model_cards", ROOT)


def test_the_slope_of_a_power_law_is_its_exponent() -> None:
    assert slope([1, 2, 8], [3, 12, 192]) == pytest.approx(2)
    assert slope([1, 2], [0, 0]) is None


def test_a_claimed_exponent_is_held_against_the_two_largest_inputs() -> None:
    quadratic = Exponent(what="macs", exponent=2, says="It is quadratic.")

    def measured(*sizes: str) -> Measured:
        sweep = Sweep(card="vit", name="ViT", build="timm/vit", axis="pixels", sizes=sizes, claims=(quadratic,))
        inputs = points(sweep, "first")
        costs = tuple(1000 + point.x**2 for point in inputs)
        return Measured(sweep, inputs, {"macs": costs, "token_macs": (0.0,) * len(costs), "saved_bytes": costs})

    few = measured("1 x 1", "10 x 10", "100 x 100")
    assert few.holds(quadratic) is False  # the constant still weighs
    assert few.holds(quadratic.model_copy(update={"what": "token_macs"})) is None
    assert measured("1 x 1", "10 x 10", "100 x 100", "1000 x 1000").holds(quadratic)


def test_sweeps_grow_and_their_claims_are_those_of_cards() -> None:
    words = LIBRARY.vocabulary
    assert len(words.sweeps) > 15
    for sweep in words.sweeps:
        x = [point.x for point in points(sweep, words.axes[sweep.axis].along)]
        assert x == sorted(set(x)), sweep.id
        for claimed in sweep.claims:
            if claimed.side:
                assert (getattr(LIBRARY.cards[sweep.card], claimed.side))[claimed.number - 1], sweep.id


def test_generated_pages_of_scaling_are_cleaned_up_like_the_others(tiny: Project, command: Command) -> None:
    command("render")
    assert (tiny.docs / "scaling/index.md").is_file()
    assert "scaling" in generated()
    stale = tiny.docs / "scaling" / "old.md"
    Path(stale).write_text("old")
    command("render")
    assert not stale.exists()
