"""Mask R-CNN's idea: RoIAlign and RoIPool, mask targets and pasting, and a smoke run of its example."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import roi_align

pytestmark = pytest.mark.torch

rcnn = importlib.import_module("mask-rcnn")


def random_rois(count: int, seed: int) -> Tensor:
    """Regions inside two images of 64 px, (count, 5)."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(count, 2, generator=generator) * 30 + 2
    low = torch.rand(count, 2, generator=generator) * (64 - size)
    image = torch.randint(2, (count, 1), generator=generator)
    return torch.cat([image, low, low + size], dim=1)


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.sampled_from([rcnn.GRID, rcnn.CUT]))
def test_roi_align_is_that_of_torchvision(seed: int, size: int) -> None:
    maps = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(seed))
    rois = random_rois(6, seed)
    expected = roi_align(maps, rois, size, 1 / rcnn.STRIDE, 2, aligned=True)
    torch.testing.assert_close(rcnn.align(maps, rois, size), expected, atol=1e-4, rtol=1e-4)


def test_roi_pool_does_not_see_a_move_that_rounds_to_the_same_cells_but_roi_align_does() -> None:
    maps = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rois = torch.tensor([[0.0, 16.0, 16.0, 40.0, 40.0]])
    moved = rois + torch.tensor([0.0, 3.0, 2.0, 3.0, 2.0])  # less than half a cell of 8 px
    assert torch.equal(rcnn.pool(maps, rois, 7), rcnn.pool(maps, moved, 7))
    assert not torch.allclose(rcnn.align(maps, rois, 7), rcnn.align(maps, moved, 7), atol=1e-2)


def test_roi_align_follows_a_moving_box_and_roi_pool_is_off_by_almost_a_cell() -> None:
    moves = torch.arange(0, 16.0, 0.5)
    torch.testing.assert_close(rcnn.responses(rcnn.align, moves), moves, atol=1e-4, rtol=0)
    errors = (rcnn.responses(rcnn.pool, moves) - moves).abs()
    assert rcnn.STRIDE / 2 <= errors.max() <= rcnn.STRIDE


def test_rounding_costs_small_boxes_more_and_depends_on_side_over_stride_only() -> None:
    values = [rcnn.rounded_iou(side, 16) for side in (16, 32, 64, 128)]
    assert values == sorted(values)
    assert rcnn.rounded_iou(32, 8) == pytest.approx(rcnn.rounded_iou(64, 16), abs=5e-3)
    assert rcnn.rounded_iou(1600, 16) > 0.98


def test_a_mask_that_is_cut_out_and_pasted_back_is_the_same() -> None:
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 10:30, 20:34], masks[0, 20:25, 25:30] = True, False
    box = torch.tensor([[16.0, 6.0, 44.0, 34.0]])  # 28 px: one cell for each pixel
    targets = rcnn.mask_targets(masks, torch.tensor([0]), box)
    assert torch.equal(rcnn.paste(targets[:, 0], box, 64), masks)


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_nothing_outside_its_box_is_part_of_a_mask(seed: int) -> None:
    rois = random_rois(3, seed)
    pasted = rcnn.paste(torch.full((3, rcnn.MASK, rcnn.MASK), 0.9), rois[:, 1:], 64)
    for mask, (x0, y0, x1, y1) in zip(pasted, rois[:, 1:].tolist(), strict=True):
        y, x = mask.nonzero().unbind(1)
        assert len(y)
        assert x.min() + 1 > x0 - 0.5
        assert x.max() < x1 + 0.5
        assert y.min() + 1 > y0 - 0.5
        assert y.max() < y1 + 0.5


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_decoding_offsets_leads_back_to_the_box(seed: int) -> None:
    boxes, anchors = random_rois(5, seed)[:, 1:], random_rois(5, seed + 1)[:, 1:]
    torch.testing.assert_close(rcnn.decode(rcnn.encode(boxes, anchors), anchors), boxes, atol=1e-3, rtol=1e-3)


def test_a_region_belongs_only_to_objects_of_its_own_image() -> None:
    truth = torch.tensor([[0.0, 0, 0, 10, 10], [1.0, 0, 0, 10, 10]])
    rois = torch.tensor([[1.0, 0, 0, 10, 10], [0.0, 0, 0, 10, 9], [0.0, 30, 30, 40, 40]])
    assert rcnn.match(rois, truth, 0.5, 0.5).tolist() == [1, 0, -1]


def test_the_sample_has_at_most_its_part_of_objects() -> None:
    owner = torch.tensor([0] * 10 + [-1] * 50 + [-2] * 20)
    chosen = rcnn.sample(owner, 16, 0.25)
    assert len(chosen.unique()) == 16
    assert (owner[chosen] >= 0).sum() == 4
    assert (owner[chosen] == -1).sum() == 12


def test_more_cells_keep_more_of_an_outline_and_small_objects_keep_all_of_it() -> None:
    assert rcnn.ceiling(28, 28)[0] > 0.99
    assert rcnn.ceiling(112, 14)[1] < rcnn.ceiling(112, 28)[1]


def test_heads_draw_the_same_grid_and_the_fully_connected_one_is_larger() -> None:
    regions = torch.randn(2, rcnn.WIDTH, rcnn.CUT, rcnn.CUT)
    convolutional, dense = rcnn.mask_head(), rcnn.dense_mask_head()
    assert convolutional(regions).shape == dense(regions).shape == (2, 1, rcnn.MASK, rcnn.MASK)
    assert rcnn.count_parameters(convolutional) < rcnn.count_parameters(dense)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("mask_rcnn")
    rcnn.main(["--preset", "smoke", "--device", "cpu", "--out", str(out)])
    return json.loads((out / "record.json").read_text()), out


def test_smoke_run_has_the_results_and_figures_of_each_experiment(smoke: tuple[dict[str, Any], Path]) -> None:
    record, out = smoke
    wanted = {
        "align_gain",
        "align_gain75",
        "convolution_gain",
        "box_cost",
        "score_agreement",
        "outline_lost",
        "scenes_ap",
    }
    assert wanted <= set(record["results"])
    for name in ("shift", "masks", "heads", "limits", "cost", "stress"):
        assert len(list((out / "figures").glob(f"{name}.*"))) == 2, name


def test_pretrained_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="trained from scratch"):
        rcnn.main(["--preset", "smoke", "--device", "cpu", "--weights", "pretrained", "--out", str(tmp_path)])
