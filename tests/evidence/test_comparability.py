"""What may be compared: rankings, charts and assertions go by the same conditions."""

from __future__ import annotations

import dataclasses

from conftest import ROOT

from scripts.cards.library import load_library
from scripts.evidence.published import compared, differences, find


def test_rankings_and_assertions_use_the_same_conditions() -> None:
    library, _ = load_library(ROOT / "model_cards", ROOT)
    words = library.vocabulary
    a = find(library, "detr", "r50/AP_L")
    other = dataclasses.replace(a, conditions=a.conditions.model_copy(update={"schedule": "12 epochs"}))
    assert differences(a, other, words) == ([], ["schedule"])
    slower = dataclasses.replace(a, conditions=a.conditions.model_copy(update={"hardware": "V100"}))
    assert differences(a, slower, words) == ([], [])  # the device says nothing about accuracy
    assert "hardware" not in compared("AP_L", words)
