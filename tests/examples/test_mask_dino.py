"""Mask DINO's idea and its rivals: masks as dot products, hidden denoising queries, hybrid matching, what masks cost."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import detectors, segments
from lab.boxes import xyxy_from_cxcywh
from lab.queries import DeformableAttention, Predictions, Targets, targets_of
from torchvision.ops import box_iou

pytestmark = pytest.mark.torch

dino = importlib.import_module("mask-dino")
claims = importlib.import_module("claims.mask-dino")
SMOKE = detectors.BENCHMARKS["smoke"]
PRESET = dino.PRESETS["smoke"]


@pytest.fixture(scope="module")
def scenes() -> Any:
    return detectors.scenes_of(SMOKE, "train", 3)[:6]


@pytest.fixture(scope="module")
def targets(scenes: Any) -> Targets:
    return targets_of(scenes, 1)


def test_a_mask_is_the_dot_product_of_its_vector_with_every_pixel() -> None:
    vectors, pixels = torch.randn(2, 3, 4), torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(dino.masks_of(vectors, pixels), torch.einsum("bne,behw->bnhw", vectors, pixels))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_noised_boxes_stay_nearer_to_their_object_than_those_to_be_rejected(seed: int) -> None:
    torch.manual_seed(seed)
    targets = targets_of(detectors.scenes_of(SMOKE, "train", 3)[:6], 1)
    noised = dino.add_noise(targets, 64, 1)
    kept, rejected = noised.owner >= 0, noised.owner < 0
    assert kept[:, :32].all()
    assert rejected[:, 32:].all()
    pairs = zip(noised.boxes, targets.boxes, strict=True)
    nearest = torch.stack([box_iou(*map(xyxy_from_cxcywh, pair)).amax(1) for pair in pairs])
    assert nearest[kept].mean() > nearest[rejected].mean() + 0.1


def test_noised_queries_belong_to_objects_that_are_there(targets: Targets) -> None:
    owner = dino.add_noise(targets, 64, 1).owner
    assert (targets.labels.gather(1, owner.clamp(min=0))[owner >= 0] == 0).all()
    assert [set(row.tolist()) - {-1} for row in owner] == [set(range(int((row < 1).sum()))) for row in targets.labels]


def test_nobody_sees_a_denoising_query_but_itself() -> None:
    hidden = dino.concealed(3, 2, torch.device("cpu"))
    assert not hidden[:, :3].any()
    assert hidden[:3, 3:].all()
    assert hidden[3:, 3:].equal(~torch.eye(2, dtype=torch.bool))


def test_denoising_queries_change_nothing_and_would_where_others_see_them(scenes: Any) -> None:
    class Asked:
        device = torch.device("cpu")

    torch.manual_seed(1)
    changes, _ = claims.with_noise(Asked, dino.MaskDINO(PRESET, SMOKE).eval(), scenes, 0)
    assert changes["denoising_leak"] < 1e-5 < 1e-3 < changes["leak_unconcealed"]


def test_masks_decide_the_matching_where_boxes_and_classes_agree() -> None:
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.4]).expand(1, 2, 4)
    said = Predictions(torch.zeros(1, 2, 1), boxes, torch.zeros(1, 2, 1))
    masks = torch.tensor([[[1.0, 1, 0, 0], [0.0, 0, 1, 1]]])
    targets = Targets(boxes, torch.zeros(1, 2, dtype=torch.long), masks)
    assert dino.match(said, 8 * masks.flip(1) - 4, targets).tolist() == [[1, 0]]  # the first draws the second object


def test_no_query_is_matched_with_padding(targets: Targets) -> None:
    said = Predictions(torch.zeros(6, 12, 1), torch.rand(6, 12, 4), torch.zeros(6, 12, 1))
    flat = targets._replace(masks=targets.masks.flatten(2))
    owner = dino.match(said, torch.randn(6, 12, flat.masks.shape[2]), flat)
    assert (owner >= 0).sum(1).equal((targets.labels < 1).sum(1))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_losses_of_masks_are_those_of_torch_for_each_pair_and_least_for_the_mask_itself(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, masks = torch.randn(3, 40, generator=generator), (torch.rand(2, 40, generator=generator) > 0.5).float()
    found = dino.mask_losses(logits, masks)
    for i, j in ((0, 0), (2, 1)):
        p, t = logits[i].sigmoid(), masks[j]
        dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits[i], t)
        torch.testing.assert_close(found[i, j], entropy + dice, rtol=1e-4, atol=1e-5)
    own = dino.mask_losses(20 * masks - 10, masks)
    assert (own.diagonal() <= own.min(1).values).all()


def perfect(targets: Targets) -> tuple[Predictions, torch.Tensor]:
    """What one layer says that knows the objects, with a pixel embedding (B, P, P) that gives each cell for itself."""
    P = targets.masks.flatten(2).shape[2]
    logits = torch.where(targets.labels < 1, 6.0, -6.0)[..., None]
    said = Predictions(logits, targets.boxes.clamp(min=0.01), 12 * targets.masks.flatten(2) - 6)
    return Predictions(*(part[None] for part in said)), torch.eye(P).expand(len(logits), -1, -1)


def test_a_perfect_prediction_costs_less_than_a_wrong_class_box_or_mask(targets: Targets) -> None:
    said, pixels = perfect(targets)
    flat = targets._replace(masks=targets.masks.flatten(2))
    good = dino.set_loss(said, pixels, flat)
    for wrong in (
        said._replace(logits=-said.logits), said._replace(boxes=0.5 * said.boxes), said._replace(vectors=-said.vectors)
    ):  # fmt: skip
        assert good < dino.set_loss(wrong, pixels, flat)


def test_the_owners_that_denoising_knows_are_those_that_matching_finds_for_perfect_predictions(
    targets: Targets,
) -> None:
    said, pixels = perfect(targets)
    flat = targets._replace(masks=targets.masks.flatten(2))
    known = torch.where(targets.labels < 1, torch.arange(targets.labels.shape[1]), -1)
    torch.testing.assert_close(dino.set_loss(said, pixels, flat), dino.set_loss(said, pixels, flat, known))


@pytest.mark.parametrize("denoise", [True, False])
def test_the_loss_reaches_every_parameter_but_labels_of_denoising_where_there_is_none(
    scenes: Any, denoise: bool
) -> None:
    torch.manual_seed(0)
    model = dino.MaskDINO(PRESET, SMOKE)
    loss = dino.loss_of(model, scenes, denoise=denoise)
    loss.backward()
    assert torch.isfinite(loss)
    assert {name for name, each in model.named_parameters() if each.grad is None} == (
        set() if denoise else {"label.weight"}
    )


def test_queries_are_the_tokens_with_the_best_class_scores(scenes: Any) -> None:
    torch.manual_seed(0)
    model = dino.MaskDINO(PRESET, SMOKE).eval()
    grid, _ = model.maps(scenes.images)
    content, boxes = model.select(grid)
    assert content.shape[:2] == boxes.shape[:2] == (6, PRESET.queries)
    everywhere = model.class_head(model.norm(model.pick(grid.flatten(2).mT)))[..., 0]  # (6, M)
    picked = model.class_head(model.norm(content))[..., 0]
    torch.testing.assert_close(picked, everywhere.topk(PRESET.queries).values)
    assert not torch.equal(boxes[0], boxes[1])


def test_a_query_looks_where_its_box_is() -> None:
    attention = DeformableAttention(8, 4)
    boxes = torch.tensor([[[0.3, 0.6, 0.2, 0.4], [0.6, 0.2, 0.1, 0.1]]])
    at = attention.places(torch.randn(1, 2, 8), boxes).flatten(2, 3)  # (1, 2, h P, 2)
    torch.testing.assert_close(at.mean(2), boxes[..., :2])
    assert ((at - boxes[:, :, None, :2]).abs() <= boxes[:, :, None, 2:] / 2).all()


# Measures


def true_objects(scenes: Any) -> list[dict[str, torch.Tensor]]:
    return [{"boxes": boxes, "labels": labels, "scores": torch.ones(len(labels)), "masks": masks.float()}
            for boxes, labels, masks in zip(scenes.boxes, scenes.labels, scenes.masks, strict=True)]  # fmt: skip


def test_the_truth_has_full_marks_in_every_reading(scenes: Any) -> None:
    truth = true_objects(scenes)
    assert segments.mask_ap50(truth, scenes) == pytest.approx(100)
    assert segments.semantic_iou(truth, scenes) == pytest.approx(100)
    assert segments.panoptic_quality(truth, scenes, 0.5) == pytest.approx(100)
    for each, boxes in zip(truth, scenes.boxes, strict=True):
        torch.testing.assert_close(segments.boxes_of_masks(each)["boxes"], boxes)


def test_a_second_mask_on_each_object_costs_panoptic_quality_only_where_it_has_pixels_of_its_own(scenes: Any) -> None:
    twice = [{name: torch.cat([part, part]) for name, part in each.items()} for each in true_objects(scenes)]
    assert segments.panoptic_quality(twice, scenes, 0.5) == pytest.approx(
        100
    )  # each pixel goes to one of two equal ones
    none = [each | {"scores": torch.zeros_like(each["scores"])} for each in twice]
    assert segments.panoptic_quality(none, scenes, 0.5) == 0


def test_a_mask_without_a_pixel_keeps_its_box_and_a_filled_box_covers_it() -> None:
    boxes = torch.tensor([[2.0, 3.0, 6.0, 5.0]])
    empty = {"boxes": boxes, "masks": torch.zeros(1, 8, 8), "scores": torch.ones(1), "labels": torch.zeros(1)}
    assert segments.boxes_of_masks(empty)["boxes"].equal(boxes)
    full = segments.filled(empty)
    assert full["masks"].sum() == 8
    assert segments.boxes_of_masks(full)["boxes"].equal(boxes)


def test_the_part_that_masks_keep_before_the_decoder_is_undefined_where_none_is_found() -> None:
    assert math.isnan(claims.kept_part(0.0, 0.0))
    assert claims.kept_part(20.0, 40.0) == 50


def test_the_memory_of_masks_grows_with_queries_and_with_the_area_of_the_image() -> None:
    with torch.device("meta"):
        decoder = claims.Decoder()
    small, wide, more = (claims.memory_of(decoder, *each)["masks"] for each in ((128, 20), (256, 20), (128, 40)))
    assert small == pytest.approx(10 * 20 * 32 * 32 * 4 / 1e9)  # before the first and after nine layers
    assert wide == pytest.approx(4 * small)
    assert more == pytest.approx(2 * small)


def test_pretrained_weights_are_refused(tmp_path: Any) -> None:
    with pytest.raises(SystemExit, match="pretrained"):
        dino.Run.start(
            "mask-dino", pretrained=False, argv=["--weights", "pretrained", "--device", "cpu", "--out", str(tmp_path)]
        )
