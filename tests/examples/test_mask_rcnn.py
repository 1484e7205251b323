"""Mask R-CNN's idea and its rivals: RoIAlign and RoIPool, mask targets and pasting, networks that share no features."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import detectors, rcnn, study
from lab.training import count_parameters
from torch import Tensor
from torchvision.ops import roi_align

mask = importlib.import_module("mask-rcnn")
claims = importlib.import_module("claims.mask-rcnn")
SMOKE = detectors.BENCHMARKS["smoke"]


def random_boxes(count: int, seed: int) -> Tensor:
    """Boxes xyxy inside 64 px, (count, 4)."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(count, 2, generator=generator) * 30 + 2
    low = torch.rand(count, 2, generator=generator) * (64 - size)
    return torch.cat([low, low + size], dim=1)


def test_roi_pool_does_not_see_a_move_that_rounds_to_the_same_cells_but_roi_align_does() -> None:
    maps = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[16.0, 16.0, 40.0, 40.0]]])
    moved = boxes + torch.tensor([3.0, 2.0, 3.0, 2.0])  # less than half a cell of 8 px
    assert torch.equal(mask.pool(maps, boxes, 7, 8), mask.pool(maps, moved, 7, 8))
    assert not torch.allclose(rcnn.crop(maps, boxes, 7, 8), rcnn.crop(maps, moved, 7, 8), atol=1e-2)


def test_roi_align_follows_a_moving_box_and_roi_pool_is_off_by_almost_a_cell() -> None:
    moves = torch.arange(0, 16.0, 0.5)
    torch.testing.assert_close(mask.read(rcnn.crop, moves), moves, atol=1e-4, rtol=0)
    errors = (mask.read(mask.pool, moves) - moves).abs()
    assert mask.STRIDE / 2 <= errors.max() <= mask.STRIDE


def test_rounding_costs_small_boxes_more_and_depends_on_side_over_stride_only() -> None:
    values = [claims.rounded_iou(side, 16) for side in (16, 32, 64, 128)]
    assert values == sorted(values)
    assert claims.rounded_iou(32, 8) == pytest.approx(claims.rounded_iou(64, 16), abs=5e-3)
    assert claims.rounded_iou(1600, 16) > 0.98


def test_a_mask_that_is_cut_out_and_pasted_back_is_the_same() -> None:
    masks = torch.zeros(1, 1, 64, 64)
    masks[0, 0, 10:30, 20:34], masks[0, 0, 20:25, 25:30] = 1, 0
    box = torch.tensor([[[16.0, 6.0, 44.0, 34.0]]])  # 28 px: one cell for each pixel
    targets = mask.mask_targets(masks, torch.zeros(1, 1, dtype=torch.long), box)
    assert torch.equal(mask.paste(targets[0], box[0], 64), masks[0] > 0)


def test_targets_are_those_of_torchvision_for_the_object_of_each_box() -> None:
    masks = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    owner, boxes = torch.tensor([[2, 0], [1, 1]]), random_boxes(4, 0).view(2, 2, 4)
    ours = mask.mask_targets(masks, owner, boxes)
    for image, each in enumerate(owner.tolist()):
        rois = torch.cat([torch.tensor(each)[:, None].float(), boxes[image]], 1)
        theirs = roi_align(masks[image][:, None], rois, mask.MASK, 1.0, 2, aligned=True)[:, 0]
        torch.testing.assert_close(ours[image], theirs, atol=1e-4, rtol=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_nothing_outside_its_box_is_part_of_a_mask(seed: int) -> None:
    boxes = random_boxes(3, seed)
    pasted = mask.paste(torch.full((3, mask.MASK, mask.MASK), 0.9), boxes, 64)
    for one, (x0, y0, x1, y1) in zip(pasted, boxes.tolist(), strict=True):
        y, x = one.nonzero().unbind(1)
        assert len(y)
        assert x0 - 0.5 < x.min() + 1
        assert y0 - 0.5 < y.min() + 1
        assert x.max() < x1 + 0.5
        assert y.max() < y1 + 0.5


def test_the_iou_of_two_empty_masks_is_undefined() -> None:
    """It was once taken for 0."""
    empty = torch.zeros(1, 4, 4, dtype=torch.bool)
    assert mask.iou(empty, empty).isnan()


def test_a_scene_has_finite_losses_that_reach_every_parameter_and_a_scene_without_objects_has_one_too() -> None:
    torch.manual_seed(0)
    scenes, model = detectors.scenes_of(SMOKE, "train", 0)[:4], mask.MaskRCNN(mask.faster.PRESETS["smoke"], SMOKE)
    value = mask.loss_of(model, scenes)
    value.backward()
    assert torch.isfinite(value)
    assert all(each.grad is not None for each in model.parameters())
    nothing = rcnn.Targets(torch.tensor(rcnn.EMPTY).expand(4, 1, 4), torch.full((4, 1), -1))
    maps = model.maps(scenes.images)[1]
    assert mask.mask_loss(model, maps, nothing.boxes, nothing, torch.zeros(4, 1, 64, 64)) == 0


def test_both_operators_keep_their_precision_under_autocast() -> None:
    maps, boxes = torch.randn(1, 3, 8, 8).bfloat16(), random_boxes(4, 0)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {crop(maps, boxes, 7, 8).dtype for crop in claims.CROPS.values()} == {torch.float32}


@pytest.mark.parametrize("preset", ["smoke", "quick", "full"])
def test_the_fully_connected_head_has_no_fewer_parameters_and_hardly_more(preset: str) -> None:
    sizes = {arm: count_parameters(claims.build(preset, arm).mask) for arm in claims.ARMS}
    assert sizes["align"] == sizes["pool"] <= sizes["dense"] < 1.1 * sizes["align"]


@pytest.mark.parametrize("arm", claims.ARMS)
def test_every_part_that_is_counted_is_trained_and_no_other(arm: str) -> None:
    torch.manual_seed(0)
    scenes, model = detectors.scenes_of(SMOKE, "train", 0)[:4], claims.build("smoke", arm)
    targets = rcnn.targets_of(scenes)
    features, crop = model.maps(scenes.images)[1], claims.CROPS[arm]
    mask.mask_loss(model, features, targets.boxes, targets, mask.masks_of(scenes), crop).backward()
    assert claims.size_of(model) == sum(each.numel() for each in model.parameters() if each.grad is not None)


def test_the_floor_is_what_one_mask_in_every_box_reaches() -> None:
    """A network was once counted as trained that hardly beat it."""

    class Asked:
        preset, device, seeds = "smoke", torch.device("cpu"), (0, 1)

    floor = claims.mean_mask(Asked)
    assert 0.3 < floor < 0.8
    good, poor = {"mask_iou": floor + 0.01, "good": 50.0}, {"mask_iou": floor - 0.01, "good": 0.0}
    scores = study.Scores((0, 1), {arm: [good, poor if arm == "dense" else good] for arm in claims.ARMS})
    scores.floor("mask IoU", "mask_iou", floor, claims.ARMS)
    assert scores.failed.keys() == {"dense"}


def test_what_is_read_moves_and_the_place_of_the_mask_does_not() -> None:
    """A head that marks everything has the same masks wherever it reads."""
    scenes, model = detectors.scenes_of(SMOKE, "test", 0)[:4], claims.build("smoke", "align").eval()
    torch.nn.init.zeros_(model.mask[-1].weight)

    class Asked:
        device = torch.device("cpu")

    assert claims.outcome(Asked, scenes, model) == claims.outcome(Asked, scenes, model, shift=8.0)


def test_networks_of_different_operators_share_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators were once compared on a backbone that had been trained with one of them."""
    used: list[Any] = []
    features = mask.mask_loss

    def noted(model: Any, maps: Tensor, *rest: Any) -> Tensor:
        assert maps.requires_grad, "the backbone is trained, too"
        used.append((id(model.boxes.backbone), rest[-1]))
        return features(model, maps, *rest)

    monkeypatch.setattr(mask, "mask_loss", noted)

    class Asked:
        preset, device = "smoke", torch.device("cpu")

    models = [claims.masks_alone(Asked, arm, 0, 1e-3) for arm in ("align", "pool")]
    assert len({id(each.boxes.backbone) for each in models}) == 2
    assert {crop for _, crop in used} == {rcnn.crop, mask.pool}
    assert len(set(used)) == 2, "each backbone saw one operator only"


def test_more_cells_keep_more_of_an_outline_and_small_objects_keep_all_of_it() -> None:
    assert claims.ceiling(28, 28)[0] > 0.99
    assert claims.ceiling(112, 14)[1] < claims.ceiling(112, 28)[1]


def test_all_arms_were_searched_alike() -> None:
    kept = json.loads((Path(claims.__file__).parent / "mask-rcnn.searches.json").read_text("utf-8"))["learning rate"]
    assert set(kept["arms"]) == set(claims.ARMS)


def test_published_masks_come_with_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small random network in the place of the download."""
    import numpy as np
    from PIL import Image
    from torchvision import models

    class Found(torch.nn.Module):
        def forward(self, images: Any) -> Any:
            assert images[0].shape == (3, 60, 80)
            return [{"masks": torch.rand(1, 1, 60, 80), "labels": torch.tensor([17])}]

    monkeypatch.setattr(models, "get_model", lambda name, weights, box_score_thresh: Found())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    pixels, masks, names = mask.published(image)
    assert (pixels.shape, masks.shape, masks.dtype, names) == ((3, 60, 80), (1, 60, 80), torch.bool, ["cat"])
