"""Mask DINO's idea: noised queries, hybrid matching, masks as dot products, what masks cost, and a smoke run."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from lab.data.scenes import make_scenes
from torchvision.ops import box_iou, generalized_box_iou

pytestmark = pytest.mark.torch

dino = importlib.import_module("mask-dino")
PRESET = dino.PRESETS["smoke"]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The record of a smoke run, and its folder."""
    out = tmp_path_factory.mktemp("mask-dino")
    dino.main(["--preset", "smoke", "--device", "cpu", "--out", str(out)])
    return json.loads((out / "record.json").read_text(encoding="utf-8")), out


@pytest.fixture(scope="module")
def targets():
    return dino.targets_from_scenes(make_scenes("train", 6, seed=3), 1)


def test_a_mask_is_the_dot_product_of_its_vector_with_every_pixel() -> None:
    vectors, pixels = torch.randn(2, 3, 4), torch.randn(2, 4, 5, 6)
    masks = dino.masks_of(vectors, pixels)
    torch.testing.assert_close(masks, torch.einsum("bne,behw->bnhw", vectors, pixels))


def test_generalized_iou_is_that_of_torchvision() -> None:
    low = torch.rand(2, 5, 2)
    a, b = torch.cat([low, low + torch.rand(2, 5, 2) + 0.1], dim=-1)
    torch.testing.assert_close(dino.generalized_iou(a[:, None], b[None]), generalized_box_iou(a, b))


def test_noised_boxes_stay_nearer_to_their_object_than_those_to_be_rejected(targets) -> None:
    torch.manual_seed(0)
    noised = dino.add_noise(targets, 64, 1)
    kept, rejected = noised.owner >= 0, noised.owner < 0
    assert kept[:, :32].all()
    assert rejected[:, 32:].all()
    nearest = torch.stack(
        [
            box_iou(dino.xyxy_from_cxcywh(boxes), dino.xyxy_from_cxcywh(true)).amax(1)
            for boxes, true in zip(noised.boxes, targets.boxes, strict=True)
        ]
    )
    assert nearest[kept].mean() > nearest[rejected].mean() + 0.1


def test_queries_never_see_a_denoising_query() -> None:
    allowed = dino.visible(3, 2)
    assert not allowed[:3, 3:].any()
    assert allowed[:, :3].all()
    assert allowed[3:, 3:].equal(torch.eye(2, dtype=torch.bool))


def test_denoising_queries_change_nothing_of_what_the_queries_say(targets) -> None:
    torch.manual_seed(1)
    model, images = dino.MaskDINO(PRESET, 64, 1).eval(), torch.rand(6, 3, 64, 64)
    with torch.inference_mode():
        plain, noisy = model(images).found, model(images, dino.add_noise(targets, 8, 1)).found
    for a, b in zip(plain, noisy, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_masks_decide_the_matching_where_boxes_and_classes_agree() -> None:
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.4]).expand(1, 2, 4)
    predictions = dino.Predictions(torch.zeros(1, 2, 1), boxes, torch.zeros(1, 2, 1))
    masks = torch.tensor([[[1.0, 1, 0, 0], [0.0, 0, 1, 1]]])
    logits = 8 * masks.flip(1) - 4  # the first query draws the second object
    targets = dino.Targets(boxes, torch.zeros(1, 2, dtype=torch.long), masks)
    assert dino.match(predictions, logits, targets, dino.Arm()).tolist() == [[1, 0]]


def test_a_perfect_prediction_costs_less_than_a_wrong_one(targets) -> None:
    masks = targets.masks.flatten(2)
    flat = targets._replace(masks=masks)
    owner = torch.where(targets.labels < 1, torch.arange(targets.labels.shape[1]), -1)
    logits = torch.where(owner >= 0, 6.0, -6.0)[..., None]
    right = dino.Predictions(logits, targets.boxes.clamp(min=0.01), torch.zeros(*owner.shape, 1))
    good = dino.set_loss(right, 12 * masks - 6, flat, owner, dino.Arm())
    assert good < dino.set_loss(right, 6 - 12 * masks, flat, owner, dino.Arm())
    assert good < dino.set_loss(right._replace(logits=-logits), 12 * masks - 6, flat, owner, dino.Arm())


def test_points_of_objects_come_before_others(targets) -> None:
    at = dino.some_points(targets, 512)
    covered = targets.masks.flatten(2).amax(1)
    full = (covered == 1).sum(1)
    assert (full > 0).all()
    for image in range(len(at)):
        assert (covered[image, at[image]] == 1).sum() == full[image]


def test_every_arm_has_the_same_parameters() -> None:
    counts = {dino.count_parameters(dino.MaskDINO(PRESET, 64, 1, selection=choice)) for choice in (True, False)}
    assert len(counts) == 1


def test_the_memory_of_masks_grows_with_queries_and_with_the_area_of_the_image() -> None:
    preset = dino.replace(PRESET, embedding=PRESET.width)
    small, wide = dino.kept_bytes(preset, 128)[1], dino.kept_bytes(preset, 256)[1]
    more = dino.kept_bytes(dino.replace(preset, queries=2 * preset.queries), 128)[1]
    assert wide == 4 * small
    assert more == 2 * small
    assert small == PRESET.queries * 32 * 32 * 4 * (PRESET.layers + 1)


def test_pretrained_weights_are_refused() -> None:
    with pytest.raises(SystemExit, match="pretrained"):
        dino.main(["--preset", "smoke", "--device", "cpu", "--weights", "pretrained"])


def test_a_smoke_run_writes_its_results_and_figures(record) -> None:
    found, out = record
    names = {
        "mask_ap50",
        "panoptic_quality",
        "mask_ap50_over_no_denoising",
        "masks_before_decoder",
        "mask_part",
        "macs_ratio",
    }
    assert names | {"denoising_leak", "scenes_ap", "first_box_gain"} <= set(found["results"])
    assert {each["name"] for each in found["figures"]} == {
        "noise",
        "masks",
        "four_tasks",
        "ablation",
        "memory",
        "stress",
    }
    for figure in found["figures"]:
        assert Path(out / figure["light"]).is_file()
        assert Path(out / figure["dark"]).is_file()
