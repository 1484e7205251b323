"""Points, cascades and scored masks: properties of each, and a smoke run."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

pytestmark = pytest.mark.torch

im = importlib.import_module("improved-mask-rcnn")


def some_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = 40 * torch.rand(count, 2, generator=generator)
    return torch.cat([low, low + 5 + 20 * torch.rand(count, 2, generator=generator)], 1)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_decoding_undoes_encoding(seed: int) -> None:
    boxes = some_boxes(6, seed)
    truth = boxes + torch.tensor([1.0, -1.0, 2.0, 1.5])
    assert torch.allclose(im.decode(im.encode(boxes, truth), boxes), truth, atol=1e-3)


def test_the_iou_of_rows_is_the_diagonal_of_torchvisions() -> None:
    a, b = some_boxes(8, 0), some_boxes(8, 1)
    assert torch.allclose(im.paired_iou(a, b), box_iou(a, b).diagonal(), atol=1e-6)


def test_the_most_uncertain_logits_are_those_nearest_to_zero() -> None:
    logits = torch.tensor([[3.0, -0.1, 0.5, -4.0, 0.2]])
    assert sorted(im.uncertain(logits, 3)[0].tolist()) == [1, 2, 4]
    assert im.uncertain(logits, 9).shape == (1, 5)


def test_centres_of_cells_are_counted_row_by_row() -> None:
    cells = torch.tensor([[0, 1, 4]])
    assert torch.allclose(im.centres(cells, 4), torch.tensor([[[0.125, 0.125], [0.375, 0.125], [0.125, 0.375]]]))


def test_values_at_the_centres_of_cells_are_those_of_the_map() -> None:
    maps = torch.rand(2, 3, 4, 4)
    points = im.centres(torch.arange(16)[None].expand(2, -1), 4)
    assert torch.allclose(im.sample(maps, points), maps.flatten(2).transpose(1, 2), atol=1e-5)


def test_refinement_decides_far_fewer_points_than_the_fine_grid_has_cells() -> None:
    assert im.decisions(7, 196) == 0
    assert im.decisions(28, 196) == 196 + 196
    assert im.decisions(224, 784) < 224**2 / 10


def test_refinement_touches_only_the_points_that_it_chose() -> None:
    model = im.MaskNet().eval()
    with torch.no_grad():
        fine, coarse, *_ = model(torch.rand(1, 3, im.CROP, im.CROP))
        mask, chosen = model.refine(fine, coarse)
        before = mask.shape[-1] // 2
    assert mask.shape == (1, 1, im.CROP, im.CROP)
    assert len(chosen[-1][0].unique()) == len(chosen[-1][0]) <= im.POINTS
    assert before == 28


def test_an_estimate_that_is_far_off_still_learns() -> None:
    model = im.MaskNet().train()
    with torch.no_grad():
        model.score[-1].bias.fill_(30)
    estimate = model(torch.rand(4, 3, im.CROP, im.CROP))[4]
    estimate.square().mean().backward()
    assert (estimate > 1).all()
    assert model.score[-1].bias.grad.item() > 1  # a sigmoid would leave almost nothing


def test_the_estimate_trains_none_of_the_features_that_the_masks_share() -> None:
    model = im.MaskNet().train()
    model(torch.rand(4, 3, im.CROP, im.CROP))[4].sum().backward()
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "score" not in name)


def test_the_grid_costs_more_than_the_points_and_less_than_points_with_their_coarse_mask() -> None:
    counted = im.head_macs()
    network = sum(layer.weight.numel() for layer in im.MaskNet().point if hasattr(layer, "weight"))
    assert counted["points"] == pytest.approx(3 * im.POINTS * network / 1e6)
    assert counted["points"] < counted["grid"] < counted["points"] + counted["coarse"]


def test_the_rim_of_a_square_is_its_outermost_pixels() -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 2:6] = True
    assert im.rim(mask).sum() == 12
    assert im.iou(mask, mask) == 1


def test_a_grid_as_fine_as_the_object_can_draw_its_outline() -> None:
    assert im.ceiling(28, 28) == pytest.approx(1)
    assert im.ceiling(28, 224) < im.ceiling(56, 224) < 1


def test_a_smoke_run_writes_a_record_with_all_results_and_figures(tmp_path: Path) -> None:
    im.main(["--preset", "smoke", "--device", "cpu", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "record.json").read_text("utf-8"))
    wanted = {"box_gain", "cascade_gain_wide", "boundary_points_over_coarse", "boundary_points_over_grid", "rank_gain"}
    assert record["results"].keys() >= wanted | {"macs_v2_over_v1", "parameters_cascade_over_v1", "box_minus_mask_gain"}
    assert {each["name"] for each in record["figures"]} == {
        "points",
        "outlines",
        "stages",
        "cascade",
        "scores",
        "published",
    }
