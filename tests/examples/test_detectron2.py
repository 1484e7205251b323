"""One configuration, several detectors: swaps, weights that are kept, recorded shapes, and the geometry that was mended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import detectron2 as d2
import pytest
import torch
from claims import detectron2 as claims
from torchvision.models.detection import maskrcnn_resnet50_fpn

BASE = d2.Config(backbone="resnet18")


def built(config: d2.Config) -> Any:
    """Names and shapes alone."""
    with torch.device("meta"):
        return d2.build(config, 64)


@pytest.mark.parametrize("name", d2.swaps(BASE))
def test_a_changed_field_reaches_the_one_module_that_it_belongs_to(name: str) -> None:
    field, config = d2.swaps(BASE)[name]
    assert claims.reached(built(BASE), built(config)) == {d2.BELONGS[field]}


def test_every_field_is_swapped_and_nothing_else_changes_with_it() -> None:
    """Two things were once changed at once, elsewhere."""
    swapped = {field for field, _ in d2.swaps(BASE).values()}
    assert swapped == set(d2.SWAPS) == set(d2.Config.__dataclass_fields__)
    for field, config in d2.swaps(BASE).values():
        assert replace(config, **{field: getattr(BASE, field)}) == BASE


def test_equal_configurations_have_the_same_weights() -> None:
    assert claims.reached(built(BASE), built(replace(BASE))) == set()


def test_a_mask_head_keeps_every_weight_of_the_box_detector_and_adds_its_own() -> None:
    one, other = built(BASE), built(replace(BASE, heads="mask"))
    assert d2.kept(one, other) == 100
    added = sum(each.numel() for each in other.parameters()) - sum(each.numel() for each in one.parameters())
    assert d2.new(one, other, "roi_heads") == added > 0


def test_kept_weights_are_counted_in_the_named_parts_alone() -> None:
    one, other = built(BASE), built(replace(BASE, backbone="mobilenet"))
    assert d2.kept(one, other, *claims.MODULES[1:]) == 100
    assert d2.kept(one, other, "backbone.body") < 1


def test_another_meta_architecture_keeps_the_body_of_the_backbone_and_nothing_behind_the_maps() -> None:
    with torch.device("meta"):
        one, other = d2.build(d2.Config(), 64), d2.ONE_STAGE["FCOS"](weights=None, weights_backbone=None)
    assert d2.kept(one, other, "backbone.body") == 100
    assert d2.kept(one, other, *claims.MODULES[1:]) == 0


def test_the_configured_mask_rcnn_has_the_weights_of_torchvisions() -> None:
    with torch.device("meta"):
        ours, theirs = d2.build(d2.Config(heads="mask")), maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    wrong = ours.load_state_dict(theirs.state_dict(), strict=False, assign=True)
    assert not wrong.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in wrong.missing_keys)


def test_hooks_record_the_strides_of_the_pyramid_and_heads_see_the_same_maps_of_any_backbone() -> None:
    for backbone in ("resnet18", "vit_small"):
        model = d2.build(replace(BASE, backbone=backbone), 64)
        shapes = d2.recorded(model, torch.rand(3, 64, 64), ("backbone", "roi_heads.box_predictor"))
        assert [shape[1:3] for shape in shapes["backbone"]] == [(256, 16), (256, 8), (256, 4), (256, 2), (256, 1)]
        assert [shape[1] for shape in shapes["roi_heads.box_predictor"]] == [91, 364]


def test_aligned_samples_are_where_they_belong_and_rounded_ones_half_a_cell_away() -> None:
    boxes = claims.random_boxes(5, 128, seed=0)
    assert claims.roi_error(boxes, 128, aligned=True) == pytest.approx(0, abs=1e-3)
    assert claims.roi_error(boxes, 128, aligned=False) == pytest.approx(8, abs=1e-2)


def test_an_added_pixel_makes_the_iou_depend_on_the_size_of_the_image() -> None:
    boxes = claims.random_boxes(20, 128, seed=0)
    assert claims.iou_error(boxes, added=0) == pytest.approx(0, abs=1e-4)
    assert claims.iou_error(boxes, added=1) > 0.1


def test_a_mask_that_is_sampled_lies_nearer_to_its_object_than_one_pasted_at_whole_pixels() -> None:
    boxes = claims.random_boxes(20, 128, seed=0)
    assert claims.paste_error(boxes, 128, sampled=True) < claims.paste_error(boxes, 128, sampled=False)


def test_nothing_is_concluded_from_a_loss_of_training_or_from_a_clock(record_of: Any) -> None:
    """A training loss on four scenes once stood for a test of a backbone, and the time of a busy machine for a schedule."""
    results = record_of("detectron2")["results"]
    assert not [
        name for name, each in results.items() if "loss" in each["meaning"] or each["unit"] in ("ms", "s", "days")
    ]


def test_published_boxes_come_in_pixels_with_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights in the place of the download."""
    import numpy as np
    from PIL import Image
    from torchvision.models import detection

    class Found(torch.nn.Module):
        def forward(self, images: Any) -> Any:
            assert images[0].shape == (3, 60, 80)
            boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0], [1.0, 2.0, 3.0, 4.0]])
            return [{"boxes": boxes, "labels": torch.tensor([17, 18]), "scores": torch.tensor([0.9, 0.2])}]

    monkeypatch.setattr(d2, "build", lambda config: Found())
    release = detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    monkeypatch.setattr(type(release), "get_state_dict", lambda self, **options: {})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    boxes, names = d2.published(image)
    assert (boxes.shape, names) == ((1, 4), ["cat"])
