"""Connected pieces: what counts as one, which objects run together, and how many are right."""

from __future__ import annotations

import math

import pytest
import torch
from lab import pieces
from torch import Tensor

pytestmark = pytest.mark.torch


@pytest.fixture
def truth() -> Tensor:
    """Four squares of 36 pixels in a row, 2 pixels apart, and one of 4 pixels, which is none."""
    labels = torch.zeros(10, 40, dtype=torch.long)
    for number in range(4):
        labels[2:8, 8 * number : 8 * number + 6] = number + 1
    labels[2:4, 36:38] = 5
    return labels


def test_pieces_are_joined_by_sides_and_small_ones_are_none() -> None:
    found = torch.zeros(12, 12, dtype=torch.bool)
    found[:5, :5] = found[5:10, 5:10] = True  # a corner alone joins them
    found[0, 8:] = True
    labels = pieces.pieces(found)
    assert labels.unique().tolist() == [0, 1, 2]
    assert not labels[0, 8:].any()


def test_what_is_found_as_it_is_has_run_together_nowhere_and_is_right(truth: Tensor) -> None:
    found = pieces.pieces(truth > 0)
    assert pieces.merged(found, truth) == 0
    assert pieces.f1(found, truth) == 1
    assert set(pieces.crowded(found, truth).unique().tolist()) == {0, 1}


def test_a_bridge_makes_two_of_four_run_together_and_wrong(truth: Tensor) -> None:
    area = truth > 0
    area[4, 6:8] = True
    found = pieces.pieces(area)
    assert pieces.merged(found, truth) == 0.5
    assert pieces.f1(found, truth) == pytest.approx(2 * 2 / (3 + 4))
    assert (pieces.crowded(found, truth) == 2).sum() == 2 * 36 + 2


def test_what_only_touches_a_neighbour_has_not_run_together_with_it(truth: Tensor) -> None:
    area = truth > 0
    area[:, 8:14] = False
    area[2:8, 6:10] = True  # a third of the second one, stuck to the first
    assert pieces.merged(pieces.pieces(area), truth) == 0


def test_nothing_found_is_wrong_and_has_not_run_together_and_nothing_at_all_has_no_f1(truth: Tensor) -> None:
    nothing = torch.zeros_like(truth)
    assert pieces.f1(nothing, truth) == 0
    assert pieces.merged(nothing, truth) == 0
    assert math.isnan(pieces.f1(nothing, nothing))


def test_distances_are_those_to_each_object(truth: Tensor) -> None:
    far = pieces.distances(truth)
    assert far.shape == (5, 10, 40)
    assert far[:2, 4, 6].tolist() == [1, 2]
    assert all((far[k - 1][truth == k] == 0).all() for k in range(1, 6))
