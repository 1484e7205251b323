"""The digits: splits, sizes, and shifting."""

import pytest
import torch
from lab.data import SPLITS
from lab.data.digits import digit_splits, digits, shifted_digits
from sklearn.datasets import load_digits
from torch.nn import functional

pytestmark = pytest.mark.torch


def test_splits_are_disjoint_and_cover_the_file():
    indices = [index for part in digit_splits().values() for index in part]
    assert sorted(indices) == list(range(1797))


def test_digits_are_those_that_the_package_gives():
    images, labels = load_digits(return_X_y=True)
    read = [digits(split) for split in ("train", "val", "test")]
    assert torch.equal(torch.cat([each.images for each in read]).flatten(1).double(), torch.from_numpy(images / 16))
    assert torch.equal(torch.cat([each.labels for each in read]), torch.from_numpy(labels).long())


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_all_ten_digits_in_range(split):
    made = digits(split, 16)
    assert made.images.shape == (len(digit_splits()[split]), 1, 16, 16)
    assert made.images.dtype == torch.float32
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    assert set(made.labels.tolist()) == set(range(10))


def test_upsampling_keeps_the_mean_ink():
    small, large = digits("val").images, digits("val", 32).images
    torch.testing.assert_close(functional.avg_pool2d(large, 32), functional.avg_pool2d(small, 8), atol=0.02, rtol=0)


def test_changing_a_split_leaves_the_source_alone():
    digits("test").images.fill_(0)
    assert digits("test").images.max() == 1


def test_shifting_moves_the_whole_digit_without_loss():
    source, shifted = digits("val", 16), shifted_digits("val", 16, 24, seed=3)
    assert shifted.images.shape == (200, 1, 24, 24)
    torch.testing.assert_close(shifted.images.sum((1, 2, 3)), source.images.sum((1, 2, 3)))
    assert torch.equal(shifted.labels, source.labels)
    windows = functional.unfold(shifted.images, 16).transpose(1, 2)  # (N, 81, 256)
    assert ((windows - source.images.flatten(1)[:, None]).abs().amax(2).amin(1) == 0).all()


def test_shifts_reach_every_place():
    images = shifted_digits("train", 8, 11, seed=0).images
    edges = [images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]]
    assert min(edge.max() for edge in edges) > 0


def test_the_seed_decides_the_shifts():
    first, again, other = (shifted_digits("test", 12, 20, seed=seed, count=50).images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        shifted_digits("train", 16, 12, seed=0)
    with pytest.raises(ValueError, match="8 or more"):
        digits("train", 4)
