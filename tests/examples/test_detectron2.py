"""One configuration, several detectors: swaps, recorded shapes, rounding, and a smoke run."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.models.detection import fcos_resnet50_fpn, maskrcnn_resnet50_fpn

pytestmark = pytest.mark.torch

d2 = importlib.import_module("detectron2")
SMALL = replace(d2.PRESETS["smoke"], side=64)
BASE = d2.Config(backbone="resnet18")


@pytest.mark.parametrize("field", d2.SWAPS)
def test_a_changed_field_changes_the_one_module_that_it_belongs_to(field: str) -> None:
    one = d2.build(BASE, SMALL)
    for name, other in d2.swaps(BASE):
        if name == field and other.backbone in ("resnet18", "mobilenet"):
            assert d2.changed(one, d2.build(other, SMALL)) == {d2.BELONGS[field]}


def test_equal_configurations_give_equal_weights() -> None:
    assert d2.changed(d2.build(BASE, SMALL), d2.build(replace(BASE), SMALL)) == set()


def test_a_mask_head_keeps_every_weight_of_the_box_detector() -> None:
    assert d2.kept(d2.build(BASE, SMALL), d2.build(replace(BASE, heads="mask"), SMALL)) == 100


def test_kept_weights_are_counted_in_the_named_parts_alone() -> None:
    one, other = d2.build(BASE, SMALL), d2.build(replace(BASE, backbone="mobilenet"), SMALL)
    assert d2.kept(one, other, d2.MODULES[1:]) == 100
    assert d2.kept(one, other, ("backbone.body",)) < 1


def test_another_meta_architecture_keeps_the_body_of_the_backbone_and_nothing_behind_the_maps() -> None:
    with torch.device("meta"):
        one, other = d2.build(d2.Config(), SMALL), fcos_resnet50_fpn(weights=None, weights_backbone=None)
    assert d2.kept(one, other, ("backbone.body",)) == 100
    assert d2.kept(one, other, d2.MODULES[1:]) == 0


def test_a_schedule_takes_as_long_as_all_its_images_together() -> None:
    one_second = d2.schedule_days(1000, 640)
    assert one_second == pytest.approx(90_000 * 16 * (853 / 640) / 86_400)
    assert d2.schedule_days(1000, 320) == pytest.approx(4 * one_second)


def test_the_configured_mask_rcnn_has_the_modules_of_torchvision() -> None:
    ours = d2.build(d2.Config(heads="mask"), SMALL)
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    shapes = [{name: each.shape for name, each in model.named_parameters()} for model in (ours, theirs)]
    assert {
        name: shape for name, shape in shapes[0].items() if "bn" not in name and "norm" not in name
    }.items() <= shapes[1].items()


def test_hooks_record_the_strides_of_the_pyramid() -> None:
    stages = ("backbone.fpn", "roi_heads.box_predictor")
    shapes = d2.recorded(d2.build(BASE, SMALL), torch.rand(3, 64, 64), stages)
    assert [shape[2] for shape in shapes["backbone.fpn"]] == [16, 8, 4, 2, 1]
    assert [shape[1] for shape in shapes["roi_heads.box_predictor"]] == [91, 364]


def test_aligned_samples_are_where_they_belong_and_rounded_ones_half_a_cell_away() -> None:
    boxes = d2.random_boxes(5, 128, seed=0)
    assert d2.roi_error(boxes, 128, aligned=True) == pytest.approx(0, abs=1e-3)
    assert d2.roi_error(boxes, 128, aligned=False) == pytest.approx(8, abs=1e-2)


def test_an_added_pixel_makes_the_iou_depend_on_the_size_of_the_image() -> None:
    boxes = d2.random_boxes(20, 128, seed=0)
    assert d2.iou_error(boxes, added=0) == pytest.approx(0, abs=1e-4)
    assert d2.iou_error(boxes, added=1) > 0.1


def test_a_smoke_run_writes_a_record_with_all_results_and_figures(tmp_path: Path) -> None:
    d2.main(["--preset", "smoke", "--device", "cpu", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "record.json").read_text("utf-8"))
    wanted = {"modules_changed_most", "weights_kept_mask", "roi_error_gain", "paste_error_gain", "iou_error_gain"}
    wanted |= {"body_kept_one_stage", "heads_kept_one_stage", "keypoint_over_backbone", "cpu_days_schedule"}
    assert record["results"].keys() >= wanted | {"loss_left_vit_tiny", "macs_resnet50_keypoint"}
    assert [each["name"] for each in record["figures"]] == ["stages", "costs", "latency", "fidelity", "transformer"]
