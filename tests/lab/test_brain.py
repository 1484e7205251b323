"""The brain slices: bands that keep apart, labels that fit the image, tumours of the size asked for."""

from itertools import combinations

import numpy as np
import pytest
import torch
from lab.data import SPLITS
from lab.data.brain import CHUNK, GREY, RIM, TUMOUR, WHITE, BrainSlices, brain_slices, slice_positions
from scipy import ndimage

pytestmark = pytest.mark.torch


def areas(slices: BrainSlices) -> torch.Tensor:
    """The number of pixels of every tumour."""
    counts = [lesions[lesions > 0].bincount() for lesions in slices.lesions]
    return torch.cat([count[count > 0] for count in counts])


@pytest.fixture(scope="module")
def made() -> BrainSlices:
    return brain_slices("train", 60, seed=0)


def test_bands_of_different_splits_are_5_mm_apart():
    for one, other in combinations(SPLITS, 2):
        assert min(abs(a - b) for a in slice_positions(one) for b in slice_positions(other)) >= 5


@pytest.mark.parametrize("split", SPLITS)
def test_slices_come_from_the_bands_of_their_split(split):
    slices = brain_slices(split, 40, seed=1)
    assert set(slices.z.tolist()) <= set(slice_positions(split))


def test_the_seed_decides_the_slices(made):
    again, other = brain_slices("train", 60, seed=0), brain_slices("train", 60, seed=1)
    for name in ("images", "labels", "lesions", "z"):
        assert torch.equal(getattr(made, name), getattr(again, name))
        assert not torch.equal(getattr(made, name), getattr(other, name))


@pytest.mark.parametrize(("millimetres", "shape"), [(2, (112, 96)), (1, (224, 192))])
def test_shapes_and_ranges(millimetres, shape):
    slices = brain_slices("val", 4, seed=2, millimetres=millimetres)
    assert slices.images.shape == (4, 1, *shape)
    assert slices.labels.shape == slices.lesions.shape == (4, *shape)
    assert slices.images.dtype == torch.float32
    assert slices.labels.dtype == torch.int64
    assert slices.images.min() >= 0
    assert slices.images.max() <= 1


def test_labels_and_lesions_mark_the_same_tumours(made):
    assert torch.equal(made.labels == TUMOUR, made.lesions > 0)
    assert set(made.labels.unique().tolist()) == {0, GREY, WHITE, TUMOUR}


def test_white_matter_is_brighter_than_grey_and_grey_than_the_background(made):
    for image, labels in zip(made.images[:, 0], made.labels, strict=True):
        means = [image[labels == label].mean() for label in (0, GREY, WHITE)]
        assert means == sorted(means)


def test_label_borders_lie_on_the_borders_of_the_image():
    slices = brain_slices("train", 20, seed=3, tumours=(0, 0))
    for image, labels in zip(slices.images[:, 0].numpy(), slices.labels.numpy(), strict=True):
        # Moving the labels by two pixels must fit the image worse in every direction.
        fits = [
            sum(
                image[np.roll(labels == label, shift, (0, 1))].var() * (labels == label).sum()
                for label in (0, GREY, WHITE)
            )
            for shift in ((0, 0), (2, 0), (-2, 0), (0, 2), (0, -2))
        ]
        assert fits[0] == min(fits)


@pytest.mark.parametrize("limits", [(1, 1), (4, 16), (40, 60), (300, 400)])
def test_tumour_areas_stay_in_the_range_asked_for(limits):
    sizes = areas(brain_slices("train", 60, seed=4, tumour_pixels=limits))
    assert len(sizes) > 40
    assert sizes.min() >= limits[0]
    assert sizes.max() <= limits[1]


def test_the_number_of_tumours_spans_its_range():
    counts = brain_slices("train", 100, seed=5, tumours=(0, 3), tumour_pixels=(8, 60)).lesions.flatten(1).amax(1)
    assert counts.unique().tolist() == [0, 1, 2, 3]
    assert (brain_slices("val", 20, seed=5, tumours=(0, 0)).lesions == 0).all()


def test_tumours_are_in_one_piece_and_never_touch(made):
    pieces = [ndimage.label(lesions > 0, np.ones((3, 3)))[1] for lesions in made.lesions.numpy()]
    planted = [len(np.unique(lesions[lesions > 0])) for lesions in made.lesions.numpy()]
    assert sum(planted) > 60
    assert pieces == planted


def test_tumours_lie_inside_the_head_and_leave_the_other_labels_alone():
    # A chunk draws its warp before its tumours: so within one, the same seed without tumours has the same anatomy.
    planted, healthy = (brain_slices("train", CHUNK, seed=6, tumours=(n, n)) for n in (2, 0))
    assert torch.equal(planted.labels[planted.lesions == 0], healthy.labels[planted.lesions == 0])
    for labels, lesions in zip(healthy.labels.numpy(), planted.lesions.numpy(), strict=True):
        outside = ndimage.distance_transform_edt(labels == 0)[lesions > 0]  # pixels to the nearest healthy tissue
        assert outside.max(initial=0) <= 5


def test_tumours_stand_out_from_the_tissue_they_replace():
    slices = brain_slices("train", 60, seed=7, tumours=(1, 1), tumour_pixels=(100, 200))
    contrast = []
    for image, lesions, labels in zip(slices.images[:, 0], slices.lesions, slices.labels, strict=True):
        tissue = image[(labels == GREY) | (labels == WHITE)]
        contrast.append((image[lesions > 0] - tissue.mean()).abs().mean() / tissue.std())
    assert torch.stack(contrast).mean() > 1


def test_parts_split_the_same_tumours_into_core_and_rim(made):
    parted = brain_slices("train", 60, seed=0, parts=True)
    assert torch.equal(parted.images, made.images)
    assert torch.equal(parted.labels.clamp(max=TUMOUR), made.labels)
    core, rim = (parted.labels == TUMOUR).sum(), (parted.labels == RIM).sum()
    assert 0.25 < core / (core + rim) < 0.55


def test_a_part_of_the_slices_keeps_what_belongs_together(made):
    part = made[torch.tensor([3, 1])]
    assert torch.equal(part.labels[1], made.labels[1])
    assert torch.equal(made[1:2].images, made.to("cpu").images[1:2])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"millimetres": 3}, "1 or 2 mm"),
        ({"tumours": (2, 1)}, "tumours per slice"),
        ({"tumour_pixels": (0, 5)}, "tumour areas"),
        ({"tumour_pixels": (5, 500)}, "tumour areas"),
        ({"count": 0}, "at least one"),
    ],
)
def test_what_cannot_be_made_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        brain_slices("train", **{"count": 2, "seed": 0, **wrong})
