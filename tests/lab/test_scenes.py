"""The digit scenes: exact boxes and masks, honest visibility, and stress that does what its name says."""

import numpy as np
import pytest
import torch
from lab.data import SPLITS
from lab.data.photographs import photograph_region
from lab.data.scenes import STRESSES, Scenes, make_scenes

pytestmark = pytest.mark.torch


def same(first: Scenes, second: Scenes) -> bool:
    pairs = [(first.images, second.images)]
    for name in ("boxes", "labels", "masks", "visible"):
        pairs += zip(getattr(first, name), getattr(second, name), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def longer_sides(scenes: Scenes) -> torch.Tensor:
    boxes = torch.cat(scenes.boxes)
    return (boxes[:, 2:] - boxes[:, :2]).amax(1)


def test_the_seed_decides_the_scenes():
    first, again, other = (make_scenes("train", 12, seed=seed) for seed in (4, 4, 5))
    assert same(first, again)
    assert not torch.equal(first.images, other.images)


def test_the_split_decides_the_scenes():
    images = [make_scenes(split, 8, seed=4).images for split in SPLITS]
    assert not any(torch.equal(images[a], images[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("stress", [None, *STRESSES])
def test_shapes_types_and_ranges(stress):
    scenes = make_scenes("val", 20, seed=1, canvas=48, classes=10, stress=stress)
    assert scenes.images.shape == (20, 3, 48, 48)
    assert scenes.images.dtype == torch.float32
    assert scenes.images.min() >= 0
    assert scenes.images.max() <= 1
    for boxes, labels, masks, visible in zip(scenes.boxes, scenes.labels, scenes.masks, scenes.visible, strict=True):
        count = len(labels)
        assert boxes.shape == (count, 4)
        assert masks.shape == (count, 48, 48)
        assert masks.dtype == torch.bool
        assert labels.dtype == torch.int64
        assert visible.shape == (count,)
        assert ((visible > 0) & (visible <= 1)).all()


@pytest.mark.parametrize("stress", [None, *STRESSES])
def test_boxes_are_tight_around_the_visible_masks(stress):
    scenes = make_scenes("train", 30, seed=2, stress=stress)
    for boxes, masks in zip(scenes.boxes, scenes.masks, strict=True):
        for box, mask in zip(boxes, masks, strict=True):
            rows, columns = mask.nonzero().unbind(1)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [float(edge) for edge in tight]


def test_visible_masks_of_a_scene_never_share_a_pixel():
    scenes = make_scenes("train", 40, seed=3, stress="crowded")
    assert all(masks.sum(0).max() <= 1 for masks in scenes.masks)


def test_masks_are_where_the_digits_were_painted():
    scenes = make_scenes("train", 60, seed=3, objects=(1, 1))
    inside, outside = [], []
    for image, box, mask in zip(scenes.images, scenes.boxes, scenes.masks, strict=True):
        x1, y1, x2, y2 = (int(edge) for edge in box[0])
        ink = mask[0, y1:y2, x1:x2]
        patch = image[:, y1:y2, x1:x2]
        inside.append(patch[:, ink].std(1).mean())
        outside.append(patch[:, ~ink].std(1).mean())
    # Ink is one colour, but for the mixed pixels of its edge; what it lies on is a photograph with that edge.
    assert np.mean(inside) < 0.6 * np.mean(outside)


def test_an_uncovered_object_is_wholly_visible():
    scenes = make_scenes("test", 20, seed=0, objects=(1, 1))
    assert all(visible.tolist() == [1.0] for visible in scenes.visible)


@pytest.mark.parametrize("canvas", [64, 96])
def test_sizes_stay_in_the_range_asked_for(canvas):
    scenes = make_scenes("train", 60, seed=5, canvas=canvas, objects=(1, 1), size=(12, 30))
    sides = longer_sides(scenes)
    # A turn by up to 12 degrees stretches a box by up to a fifth; sampling shifts an edge by up to a pixel.
    assert sides.min() >= 11
    assert sides.max() <= 30 * 1.2 + 2
    assert sides.min() < 16 < 24 < sides.max()


def test_the_number_of_objects_spans_the_range():
    counts = [len(labels) for labels in make_scenes("train", 100, seed=6, objects=(2, 5), size=(8, 14)).labels]
    assert min(counts) >= 1
    assert max(counts) == 5
    assert np.mean(counts) > 3


def test_one_class_is_labelled_zero_and_many_by_their_digit():
    assert torch.cat(make_scenes("train", 20, seed=0).labels).unique().tolist() == [0]
    assert torch.cat(make_scenes("train", 60, seed=0, classes=4).labels).unique().tolist() == [0, 1, 2, 3]
    assert torch.cat(make_scenes("train", 60, seed=0, classes=10).labels).unique().tolist() == list(range(10))


def test_the_number_of_classes_does_not_change_the_picture_of_all_digits():
    one, ten = make_scenes("val", 10, seed=7), make_scenes("val", 10, seed=7, classes=10)
    assert torch.equal(one.images, ten.images)


def test_stress_changes_what_its_name_says():
    plain = make_scenes("train", 60, seed=8)
    tiny, crowded, occluded, rotated = (
        make_scenes("train", 60, seed=8, stress=name) for name in ("tiny", "crowded", "occluded", "rotated")
    )
    assert longer_sides(tiny).max() <= 13
    assert min(len(labels) for labels in crowded.labels) > max(len(labels) for labels in plain.labels)
    assert torch.cat(occluded.visible).mean() < 0.75 < 0.95 < torch.cat(plain.visible).mean()
    assert torch.cat(occluded.visible).min() < 0.5
    width, height = (torch.cat(rotated.boxes)[:, 2:] - torch.cat(rotated.boxes)[:, :2]).unbind(1)
    assert (width > height).float().mean() > 0.3


def test_low_contrast_means_less_difference_from_the_surroundings():
    def difference(stress):
        scenes = make_scenes("train", 80, seed=9, objects=(1, 1), stress=stress)
        gaps = []
        for image, box, mask in zip(scenes.images, scenes.boxes, scenes.masks, strict=True):
            x1, y1, x2, y2 = (int(edge) for edge in box[0])
            patch, ink = image.mean(0)[y1:y2, x1:x2], mask[0, y1:y2, x1:x2]
            gaps.append((patch[ink].mean() - patch[~ink].mean()).abs())
        return float(torch.stack(gaps).mean())

    assert difference("low_contrast") < 0.5 * difference(None)


def test_backgrounds_come_from_the_region_of_the_split():
    # At this size all regions are cropped unscaled at least sometimes: a full-size crop must lie inside its own region.
    scenes = make_scenes("val", 40, seed=10, canvas=128, objects=(1, 1), size=(10, 12))
    region = torch.from_numpy(photograph_region("brick", "val").copy()).permute(2, 0, 1)
    corners = torch.stack([scenes.images[:, :, :6, :6], scenes.images[:, :, :6, :6].flip(3)]).flatten(0, 1)
    windows = region.unfold(1, 6, 1).unfold(2, 6, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)  # (P, 3, 6, 6)
    found = [((windows - corner).abs().flatten(1).amax(1) < 1e-6).any() for corner in corners]
    assert any(found)


def test_a_part_of_the_scenes_keeps_what_belongs_together():
    scenes = make_scenes("train", 10, seed=11)
    assert same(scenes[2:4], scenes[torch.tensor([2, 3])])
    assert torch.equal(scenes[[7]].boxes[0], scenes.boxes[7])
    assert same(scenes, scenes.to("cpu"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"objects": (0, 3)}, "at least one"),
        ({"objects": (4, 3)}, "at least one"),
        ({"size": (10, 60)}, "sizes are"),
        ({"classes": 11}, "classes is"),
        ({"stress": "foggy"}, "foggy"),
    ],
)
def test_what_cannot_be_made_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_scenes("train", 2, seed=0, **wrong)
