"""Faster R-CNN's idea: anchors, offsets, matching, RoIAlign, suppression, and a smoke run of its example."""

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
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, nms, roi_align

pytestmark = pytest.mark.torch

rcnn = importlib.import_module("faster-rcnn")


def random_boxes(count: int, seed: int) -> Tensor:
    """Boxes xyxy inside 64 px, (count, 4)."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(count, 2, generator=generator) * 30 + 2
    low = torch.rand(count, 2, generator=generator) * (64 - size)
    return torch.cat([low, low + size], dim=1)


def a_model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return rcnn.FasterRCNN(rcnn.FITTED, 2, 64).eval()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_offsets_are_those_of_torchvision_and_lead_back_to_the_box(seed: int) -> None:
    boxes, anchors = random_boxes(5, seed), random_boxes(5, seed + 1)
    offsets = rcnn.encode(boxes, anchors)
    torch.testing.assert_close(
        offsets, BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(boxes, anchors), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(rcnn.decode(offsets, anchors), boxes, atol=1e-4, rtol=1e-4)


def test_anchors_are_those_of_torchvision_half_a_cell_further() -> None:
    shapes = rcnn.Anchors(sides=(16.0, 32.0), ratios=(1.0, 4.0))
    theirs = AnchorGenerator(((16, 32),), ((1.0, 4.0),))
    image = ImageList(torch.zeros(1, 3, 32, 32), [(32, 32)])
    (expected,) = theirs(image, [torch.zeros(1, 1, 4, 4)])  # ratio by ratio, from the corner of each cell
    ours = rcnn.anchors_of(shapes, 4, 4) - rcnn.STRIDE / 2
    assert {tuple(box) for box in ours.round().tolist()} == {tuple(box) for box in expected.tolist()}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_roi_align_by_matrices_is_that_of_torchvision(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, rcnn.WIDTH, 8, 8, generator=generator)
    boxes, valid = random_boxes(10, seed).view(2, 5, 4), torch.rand(2, 5, generator=generator) < 0.7
    valid[0, 0] = True
    ours = a_model().pooled(features, rcnn.Regions(boxes, valid))
    rois = torch.cat([valid.nonzero()[:, :1].float(), boxes[valid]], dim=1)
    theirs = roi_align(features, rois, rcnn.GRID, 1 / rcnn.STRIDE, sampling_ratio=2, aligned=True)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_each_object_has_an_anchor_and_background_overlaps_no_object(seed: int) -> None:
    boxes = random_boxes(3, seed)[None]
    targets = rcnn.Targets(boxes, torch.zeros(1, 3, dtype=torch.long), torch.tensor([[True, True, False]]))
    anchors = rcnn.anchors_of(rcnn.FITTED, 8, 8)
    owner = rcnn.match(anchors, targets, 0.7, 0.3, best=True)[0]
    overlap = box_iou(anchors, boxes[0, :2])
    assert (overlap[owner == -1].amax(1) < 0.3).all()
    assert (owner != 2).all()  # padding owns nothing
    best = overlap.amax(0)
    for anchor in ((overlap >= best - 1e-6) & (best > 0)).any(1).nonzero().flatten():
        assert owner[anchor] >= 0


def test_a_sample_has_its_size_its_share_and_nothing_that_does_not_count() -> None:
    owner = torch.full((2, 200), -1)
    owner[0, :100], owner[1, :3], owner[1, 3:10] = 0, 1, -2
    chosen = rcnn.sample(owner, 64, 0.5)
    assert chosen.sum(1).tolist() == [64, 64]
    assert (chosen & (owner >= 0)).sum(1).tolist() == [32, 3]
    assert not (chosen & (owner == -2)).any()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_regions_of_a_batch_are_those_of_each_image_alone(seed: int) -> None:
    boxes = random_boxes(80, seed).view(2, 40, 4)
    scores = torch.rand(2, 40, generator=torch.Generator().manual_seed(seed))
    regions = rcnn.regions_from(boxes, scores, 10, 0.5)
    for image in range(2):
        expected = boxes[image][nms(boxes[image], scores[image], 0.5)[:10]]
        torch.testing.assert_close(regions.boxes[image][regions.valid[image]], expected)


def test_without_suppression_there_are_at_least_as_many_boxes() -> None:
    model, images = a_model(), torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        once, never = rcnn.detect(model, images), rcnn.detect(model, images, second=False)
    assert all(len(a["boxes"]) <= len(b["boxes"]) for a, b in zip(once, never, strict=True))


def test_a_scene_has_finite_losses_that_reach_every_parameter() -> None:
    scenes = rcnn.detectors.scenes_of(rcnn.BENCHMARKS["smoke"], "train", 0)[:4]
    for model, loss in (
        (rcnn.FasterRCNN(rcnn.FITTED, 1, 64), rcnn.two_stage_loss),
        (rcnn.Dense(rcnn.FITTED, 1, 64), rcnn.dense_loss),
    ):
        value = loss(model, scenes)
        value.backward()
        assert torch.isfinite(value)
        assert all(each.grad is not None for each in model.parameters())


def test_both_arms_have_about_as_many_parameters() -> None:
    two, dense = (rcnn.count_parameters(build(rcnn.FITTED, 1, 64)) for build in (rcnn.FasterRCNN, rcnn.Dense))
    assert two == pytest.approx(dense, rel=0.05)


def test_pretrained_weights_are_refused() -> None:
    with pytest.raises(SystemExit, match="trained from scratch"):
        rcnn.main(["--preset", "smoke", "--device", "cpu", "--weights", "pretrained"])


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("faster_rcnn")
    rcnn.main(["--preset", "smoke", "--device", "cpu", "--out", str(out)])
    return json.loads((out / "record.json").read_text()), out


def test_the_smoke_run_has_all_results_and_figures(record: tuple[dict[str, Any], Path]) -> None:
    content, out = record
    wanted = {
        "gain_over_dense",
        "fitted_anchor_gain",
        "first_nms_gain",
        "second_nms_gain",
        "regions_ratio",
        "scenes_ap",
    }
    assert wanted <= set(content["results"])
    names = {figure["name"] for figure in content["figures"]}
    assert names == {"stages", "second_look", "anchors", "suppression", "cost", "stress"}
    assert all((out / figure[style]).is_file() for figure in content["figures"] for style in ("light", "dark"))
