"""The clips: motion as labelled, and single frames that say nothing about it."""

import pytest
import torch
from lab.data.clips import DIRECTIONS, moving_digits
from sklearn.linear_model import LogisticRegression

pytestmark = pytest.mark.torch


def test_the_seed_decides_the_clips():
    first, again, other = (moving_digits("train", 8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.frames, again.frames)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.frames, other.frames)


def test_shapes_ranges_and_even_classes():
    clips = moving_digits("val", 40, seed=1, frames=6, canvas=20, size=10)
    assert clips.frames.shape == (40, 6, 1, 20, 20)
    assert clips.frames.dtype == torch.float32
    assert clips.frames.min() >= 0
    assert clips.frames.max() <= 1
    assert clips.labels.bincount().tolist() == [10] * len(DIRECTIONS)


@pytest.mark.parametrize(("label", "axis", "sign"), [(0, 1, 1), (1, 0, 1), (2, 1, -1), (3, 0, -1)])
def test_the_next_frame_is_this_frame_rolled_in_the_labelled_direction(label, axis, sign):
    clips = moving_digits("train", 40, seed=2, speeds=(1, 3), noise=0)
    for index in (clips.labels == label).nonzero()[:, 0]:
        frames, speed = clips.frames[index, :, 0], int(clips.speeds[index])
        assert torch.equal(frames[1:], frames[:-1].roll(sign * speed, dims=axis + 1))


def test_speeds_span_their_range():
    assert moving_digits("train", 60, seed=0, speeds=(1, 3)).speeds.unique().tolist() == [1, 2, 3]


@pytest.mark.parametrize("frame", [0, 7])
def test_a_single_frame_does_not_tell_the_class(frame):
    train, test = moving_digits("train", 2000, seed=3), moving_digits("test", 2000, seed=4)
    model = LogisticRegression(C=0.01, max_iter=1000).fit(
        train.frames[:, frame].flatten(1).numpy(), train.labels.numpy()
    )
    accuracy = model.score(test.frames[:, frame].flatten(1).numpy(), test.labels.numpy())
    assert abs(accuracy - 0.25) < 0.04  # four standard errors of a guess


def test_single_frames_have_the_same_distribution_in_every_class():
    clips = moving_digits("train", 8000, seed=5, noise=0)
    for frame in (0, 3, 7):
        means = torch.stack([clips.frames[clips.labels == label, frame].mean(0) for label in range(4)])
        assert (means - means.mean(0)).abs().max() < 0.04  # about four standard errors of a pixel's mean


def test_two_frames_do_tell_the_class():
    clips = moving_digits("train", 200, seed=6, speeds=(1, 1))
    first, second = clips.frames[:, 0, 0], clips.frames[:, 1, 0]
    rolled = torch.stack(
        [first.roll(shift, dims) for shift, dims in ((1, 2), (1, 1), (-1, 2), (-1, 1))]
    )  # (4, N, H, W)
    guess = (rolled - second).square().sum((2, 3)).argmin(0)
    assert (guess == clips.labels).float().mean() > 0.97


def test_digits_do_not_tell_the_class():
    clips = moving_digits("train", 8000, seed=7)
    table = torch.zeros(10, 4).index_put((clips.digits, clips.labels), torch.ones(8000), accumulate=True)
    expected = table.sum(1, keepdim=True) * table.sum(0) / table.sum()
    assert ((table - expected).square() / expected).sum() < 60  # chi squared, 27 degrees of freedom: p < 0.001 above 55


@pytest.mark.parametrize("speeds", [(1, 8), (0, 1), (3, 2)])
def test_motion_without_a_direction_is_refused(speeds):
    with pytest.raises(ValueError, match="speeds"):
        moving_digits("train", 4, seed=0, speeds=speeds)


def test_a_canvas_smaller_than_the_digit_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        moving_digits("train", 4, seed=0, canvas=8, size=12)
