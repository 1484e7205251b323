"""Plumbing of two-stage detectors: for a batch it does what torchvision's operators do for one image."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import rcnn
from lab.rcnn import Targets
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, nms, roi_align

seeds = given(st.integers(0, 10_000))
few = settings(max_examples=15)


def random_boxes(count: int, seed: int) -> Tensor:
    """Boxes xyxy inside 64 px, (count, 4)."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(count, 2, generator=generator) * 30 + 2
    low = torch.rand(count, 2, generator=generator) * (64 - size)
    return torch.cat([low, low + size], dim=1)


def some_targets(seed: int) -> Targets:
    """Of two images, three objects and two."""
    return Targets(random_boxes(6, seed).view(2, 3, 4), torch.tensor([[0, 1, 0], [1, 0, -1]]))


@few
@seeds
def test_offsets_lead_back_to_the_box(seed: int) -> None:
    boxes, anchors = random_boxes(6, seed).view(2, 3, 4), random_boxes(6, seed + 1).view(2, 3, 4)
    for coder in (rcnn.FROM_ANCHORS, rcnn.FROM_REGIONS):
        offsets = rcnn.encode(coder, boxes, anchors)
        torch.testing.assert_close(rcnn.decode(coder, offsets, anchors), boxes, atol=1e-3, rtol=1e-3)


def test_offsets_are_those_of_the_paper() -> None:
    """Eq. 2 of arXiv:1506.01497."""
    box, anchor = torch.tensor([10.0, 20.0, 30.0, 60.0]), torch.tensor([0.0, 20.0, 10.0, 40.0])
    wanted = torch.tensor([15 / 10, 10 / 20, 2.0, 2.0])  # (20 - 5) / 10, (40 - 30) / 20, log(20 / 10), log(40 / 20)
    wanted[2:] = wanted[2:].log()
    torch.testing.assert_close(rcnn.encode(BoxCoder((1.0,) * 4), box, anchor), wanted)


def test_offsets_from_a_region_that_was_clipped_to_nothing_are_finite() -> None:
    nothing = torch.tensor([[64.0, 10.0, 64.0, 30.0]])
    assert rcnn.encode(rcnn.FROM_REGIONS, random_boxes(1, 0), nothing).isfinite().all()


def test_anchors_are_those_of_torchvision_half_a_cell_further() -> None:
    theirs = AnchorGenerator(((16, 32),), ((1.0, 4.0),))
    image = ImageList(torch.zeros(1, 3, 32, 32), [(32, 32)])
    (expected,) = theirs(image, [torch.zeros(1, 1, 4, 4)])  # ratio by ratio, from the corner of each cell
    ours = rcnn.anchors_of((16.0, 32.0), (1.0, 4.0), 4, 8) - 4
    assert {tuple(box) for box in ours.round().tolist()} == {tuple(box) for box in expected.tolist()}


@few
@seeds
def test_overlaps_are_those_of_torchvision(seed: int) -> None:
    boxes, others = random_boxes(8, seed).view(2, 4, 4), random_boxes(6, seed + 1).view(2, 3, 4)
    assert torch.equal(rcnn.overlaps(boxes, others), box_iou(others, boxes))
    assert torch.equal(rcnn.overlaps(boxes[:1], others), box_iou(others, boxes[:1].expand(2, -1, -1)))


@few
@seeds
def test_each_image_is_matched_as_torchvision_matches_it_alone(seed: int) -> None:
    targets, anchors = some_targets(seed), rcnn.anchors_of((10.0, 16.0, 26.0), (1.0, 1.8), 8, 8)
    for low, best in ((0.3, True), (0.5, False)):
        owner = rcnn.match(anchors, targets, 0.6, low, best)
        for image, objects in enumerate((3, 2)):
            overlap = box_iou(targets.boxes[image, :objects], anchors)
            expected = Matcher(0.6, low, allow_low_quality_matches=best)(overlap)
            assert owner[image].tolist() == expected.tolist()


def test_a_sample_has_its_size_its_share_and_nothing_that_does_not_count() -> None:
    owner = torch.full((3, 200), -1)
    owner[0, :100], owner[1, :3], owner[1, 3:10] = 0, 1, -2
    owner[2, 20:] = -2
    index, taken = rcnn.sample(owner, 64, 0.5)
    drawn = owner.gather(1, index)
    assert taken.sum(1).tolist() == [64, 64, 20]
    assert (taken & (drawn >= 0)).sum(1).tolist() == [32, 3, 0]
    assert not (taken & (drawn == -2)).any()
    assert all(len(each[kept].unique()) == kept.sum() for each, kept in zip(index, taken, strict=True))


@few
@seeds
def test_regions_of_a_batch_are_those_of_each_image_alone(seed: int) -> None:
    boxes = random_boxes(80, seed).view(2, 40, 4)
    scores = torch.rand(2, 40, generator=torch.Generator().manual_seed(seed))
    regions, raw = (rcnn.thinned(boxes, scores, 30, 10, iou) for iou in (0.5, None))
    for image in range(2):
        best = scores[image].argsort(descending=True)[:30]
        expected = boxes[image, best][nms(boxes[image, best], scores[image, best], 0.5)[:10]]
        torch.testing.assert_close(regions.boxes[image][regions.valid[image]], expected)
        torch.testing.assert_close(raw.boxes[image], boxes[image, best[:10]])


def test_suppression_frees_what_only_a_suppressed_box_overlaps() -> None:
    """A row of boxes, each over half of the next: the second goes, so the third stays, and so on along the chain."""
    low = torch.arange(6.0)[:, None] * 3
    row = torch.cat([low, torch.zeros(6, 1), low + 10, torch.full((6, 1), 10.0)], 1)
    alone = row + torch.tensor([100.0, 0.0, 100.0, 0.0]) * torch.arange(6.0)[:, None]
    assert rcnn.left(torch.stack([row, alone]), 0.5).tolist() == [[True, False] * 3, [True] * 6]


@few
@seeds
def test_features_of_regions_are_those_of_torchvision(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps, boxes = torch.randn(2, 5, 8, 8, generator=generator), random_boxes(10, seed).view(2, 5, 4)
    regions = torch.cat([torch.arange(2.0).repeat_interleave(5)[:, None], boxes.flatten(0, 1)], 1)
    for size in (4, 7):
        theirs = roi_align(maps, regions, size, 1 / 8, sampling_ratio=2, aligned=True)
        torch.testing.assert_close(rcnn.crop(maps, boxes, size, 8).flatten(0, 1), theirs, atol=1e-4, rtol=1e-4)


def test_features_of_regions_keep_their_precision_under_autocast() -> None:
    """As a product of matrices they once fell to bfloat16, where the operator they were compared with did not."""
    maps, boxes = torch.randn(1, 3, 8, 8), random_boxes(4, 0)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = rcnn.crop(maps, boxes, 7, 8)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, rcnn.crop(maps, boxes, 7, 8))


def test_a_mean_over_nothing_is_zero_and_padding_never_counts() -> None:
    values = torch.tensor([[1.0, 5.0, 100.0]])
    assert rcnn.mean_of(values, torch.tensor([[True, True, False]])) == 3
    assert rcnn.mean_of(values, torch.zeros(1, 3, dtype=torch.bool)) == 0


def test_what_is_found_is_sure_enough_and_suppressed_within_its_class_only() -> None:
    boxes = torch.tensor([[[[0.0, 0, 10, 10]] * 2, [[0.0, 0, 10, 9]] * 2]])  # (1, 2, 2, 4)
    scores = torch.tensor([[[0.9, 0.4], [0.8, 0.01]]])
    (found,) = rcnn.final(boxes, scores, 0.5)
    assert found["scores"].tolist() == pytest.approx([0.9, 0.4])
    assert found["labels"].tolist() == [0, 1]
    assert len(rcnn.final(boxes, scores, None)[0]["scores"]) == 3
