"""The photographs: what lies in the wheel, and regions that never meet."""

from importlib.resources import files

import numpy as np
import pytest
from lab.data import SPLITS
from lab.data.photographs import FILES, NAMES, grey, photograph, photograph_region, random_crop

pytestmark = pytest.mark.torch


def test_every_photograph_lies_in_the_package():
    assert all((files("skimage") / "data" / name).is_file() for name in FILES.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_photograph_is_rgb_between_0_and_1_and_not_flat(name):
    pixels = photograph(name)
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.dtype == np.float32
    assert 0 <= pixels.min() < pixels.max() <= 1
    assert pixels.std() > 0.02


@pytest.mark.parametrize("name", NAMES)
def test_regions_of_the_splits_tile_the_photograph_without_overlap(name):
    pixels = photograph(name)
    times_used = np.zeros(pixels.shape[:2], dtype=int)
    start, step = pixels.__array_interface__["data"][0], pixels.itemsize * 3
    for split in SPLITS:
        region = photograph_region(name, split)
        first = (region.__array_interface__["data"][0] - start) // step
        top, left = divmod(first, pixels.shape[1])
        times_used[top : top + region.shape[0], left : left + region.shape[1]] += 1
    assert (times_used == 1).all()


def test_an_unknown_photograph_is_named_in_the_error():
    with pytest.raises(ValueError, match="'parrot'"):
        photograph("parrot")


@pytest.mark.parametrize("size", [16, 64, 300])
@pytest.mark.parametrize("split", SPLITS)
def test_crops_have_the_size_asked_for(split, size):
    rng = np.random.default_rng(0)
    for _ in range(20):
        crop = random_crop(rng, split, size)
        assert crop.shape == (size, size, 3)
        assert crop.dtype == np.float32
        assert crop.min() >= 0
        assert crop.max() <= 1


def test_the_generator_decides_the_crops():
    first, again, other = (random_crop(np.random.default_rng(seed), "train", 32) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_crop_can_be_changed_without_touching_the_source():
    first = random_crop(np.random.default_rng(5), "val", 32)
    kept = first.copy()
    first[:] = 0
    assert np.array_equal(random_crop(np.random.default_rng(5), "val", 32), kept)


def test_grey_of_equal_channels_is_that_channel():
    pixels = photograph("camera")
    np.testing.assert_allclose(grey(pixels), pixels[..., 0], atol=1e-6)
