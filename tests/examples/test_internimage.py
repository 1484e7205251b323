"""InternImage's operator is right and equals torchvision's, and its rivals and controls are what they are said to be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import internimage
import pytest
import torch
from claims import internimage as claims
from lab.data.deformed import deformed_digits
from lab.run import Run
from lab.training import count_parameters
from torch import nn

PRESET = internimage.PRESETS["smoke"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("height", "width", "groups"), [(5, 5, 1), (7, 4, 2), (3, 8, 4)])
def test_the_operator_equals_torchvision_on_the_same_offsets(height: int, width: int, groups: int) -> None:
    values = torch.randn(2, height, width, 8)
    offsets, factors = 2 * torch.randn(2, height, width, groups, 9, 2), torch.rand(2, height, width, groups, 9)
    ours, theirs = (f(values, offsets, factors) for f in (internimage.aggregate, claims.aggregate_torchvision))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_before_training_it_is_the_mean_of_a_fixed_grid() -> None:
    operator, x = internimage.DCNv3(8, 2), torch.randn(2, 6, 5, 8)
    mean = nn.functional.avg_pool2d(operator.value(x).permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(operator(x), operator.out(mean), rtol=1e-4, atol=1e-5)


def test_whole_offsets_move_the_map() -> None:
    values = torch.randn(1, 6, 6, 4)
    offsets = torch.zeros(1, 6, 6, 1, 9, 2)
    offsets[..., 1] = 1  # one column to the right
    factors = torch.zeros(1, 6, 6, 1, 9)
    factors[..., 4] = 1  # the centre of the grid alone
    moved = internimage.aggregate(values, offsets, factors)
    torch.testing.assert_close(moved[:, :, :-1], values[:, :, 1:])
    assert (moved[:, :, -1].abs() < 1e-5).all()


def test_factors_of_a_group_sum_to_one() -> None:
    operator = internimage.DCNv3(8, 2)
    nn.init.normal_(operator.factor.weight)
    _, factors = operator.predict(torch.randn(1, 4, 4, 8))
    torch.testing.assert_close(factors.sum(-1), torch.ones(1, 4, 4, 2))


def test_points_depend_on_the_input_and_the_group() -> None:
    operator = internimage.DCNv3(8, 2)
    nn.init.normal_(operator.offset.weight)
    offsets, _ = operator.predict(torch.randn(2, 4, 4, 8))
    assert not torch.allclose(offsets[0], offsets[1])
    assert not torch.allclose(offsets[:, :, :, 0], offsets[:, :, :, 1])


def test_the_gradient_reaches_the_offsets() -> None:
    operator = internimage.DCNv3(8, 2)
    operator(torch.randn(1, 5, 5, 8)).square().sum().backward()
    assert operator.offset.weight.grad.abs().sum() > 0


def test_the_field_of_plain_convolutions_grows_by_one_place_a_layer_to_each_side() -> None:
    model = claims.network_of("convolution", "smoke").eval()
    field = claims.receptive_field(model, torch.rand(2, 1, internimage.CANVAS, internimage.CANVAS))
    reached = (internimage.centres(internimage.SIDE, internimage.SIDE) - internimage.SIDE // 2).abs().amax(
        -1
    ) <= PRESET.layers
    assert torch.equal(field > 0, reached)


def test_spread_is_the_root_mean_square_distance_in_pixels() -> None:
    field = torch.zeros(internimage.SIDE, internimage.SIDE)
    field[internimage.SIDE // 2 + 2, internimage.SIDE // 2] = 1
    assert claims.spread(field) == pytest.approx(2 * internimage.STRIDE)


def test_a_frozen_network_no_longer_moves_its_points_and_keeps_all_else() -> None:
    data, model = deformed_digits("test", 8, 0), claims.network_of("dcn", "smoke").eval()
    same = claims.frozen(model, internimage.points_of(model, data.images))
    torch.testing.assert_close(same(data.images), model(data.images))  # untrained points move nowhere
    for block in model.blocks:
        nn.init.normal_(block.operator.offset.weight)
    still = claims.frozen(model, internimage.points_of(model, data.images))
    assert not torch.allclose(still(data.images), model(data.images))
    assert internimage.points_of(model, data.images)[0][0].std(0).max() > 0, "the network itself is left as it was"


def test_the_control_reads_the_same_points_everywhere_and_learns_them() -> None:
    control, x = claims.operator("static", 8, 2), torch.randn(2, 4, 4, 8)
    for each in (control.offsets, control.factors):
        nn.init.normal_(each)
    offsets, factors = control.predict(x)
    torch.testing.assert_close(offsets, offsets[:1, :1, :1].expand_as(offsets))
    torch.testing.assert_close(factors, factors[:1, :1, :1].expand_as(factors))
    control(x).square().sum().backward()
    assert control.offsets.grad.abs().sum() > 0


@pytest.mark.parametrize("arm", list(claims.ARMS))
def test_every_parameter_of_an_arm_is_trained(arm: str) -> None:
    """Those that nothing reads were once counted, so that a control seemed as large as it was not."""
    model = claims.network_of(arm, "smoke")
    model(torch.rand(2, 1, internimage.CANVAS, internimage.CANVAS)).sum().backward()
    assert all(each.grad is not None for each in model.parameters())


@pytest.mark.parametrize("preset", ["smoke", "quick", "full"])
def test_the_arms_have_about_as_many_parameters(preset: str) -> None:
    sizes = [count_parameters(claims.network_of(arm, preset)) for arm in claims.ARMS]
    assert max(sizes) <= 1.01 * min(sizes)


def test_the_file_to_read_is_the_arm_and_uses_what_the_search_chose_for_it() -> None:
    ours, theirs = (each.state_dict() for each in (internimage.build(PRESET), claims.network_of("dcn", "smoke")))
    assert {name: each.shape for name, each in ours.items()} == {name: each.shape for name, each in theirs.items()}
    kept = json.loads((Path(claims.__file__).parent / "internimage.searches.json").read_text("utf-8"))["learning rate"]
    assert kept["arms"]["dcn"]["chosen"] == internimage.RATE
    assert set(kept["arms"]) == set(claims.ARMS), "every arm is searched alike"


def test_networks_are_chosen_on_digits_that_no_test_sees() -> None:
    """Also across seeds: test and validation digits are the same for every seed, and differ from each other."""
    run = Run.start("internimage", argv=["--preset", "smoke", "--device", "cpu"])
    val, test = claims.held_out(run, "val"), claims.held_out(run)
    assert torch.equal(test.images, deformed_digits("test", PRESET.digits[2], 5).images)
    distances = torch.cdist(val.images.flatten(1), test.images.flatten(1))
    assert distances.min() > 1


def test_a_training_step_reads_nothing_back_and_stands_bfloat16() -> None:
    """On the meta device there are no values, so whatever asks for one raises."""
    assert internimage.SYNCHRONISATIONS_PER_STEP == 0
    images, labels = torch.rand(4, 1, internimage.CANVAS, internimage.CANVAS), torch.tensor([0, 1, 2, 3])
    for arm in claims.ARMS:
        internimage.loss_of(claims.network_of(arm, "smoke").to("meta"), images.to("meta"), labels.to("meta")).backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = internimage.loss_of(claims.network_of(arm, "smoke"), images, labels)
        loss.backward()
        assert loss.isfinite()


def test_points_on_no_digit_are_undefined_and_those_of_a_full_image_all_lie_on_it() -> None:
    grid: Any = internimage.centres(8, 8)[:, :, None, None] + torch.zeros(9, 2)
    points = grid.expand(2, *grid.shape)
    assert math.isnan(claims.on_object(points, torch.zeros(2, 1, 32, 32)))
    assert claims.on_object(points, torch.ones(2, 1, 32, 32)) == 100


def test_macs_of_the_operator_are_linear_in_the_places() -> None:
    operator = internimage.DCNv3(64, 4)
    assert claims.macs(operator, 64, 64) == 4 * claims.macs(operator, 32, 64)
    per_place = 64 * (2 * 64 + 9 + 4 * 27 + 45)  # value and out, depthwise, offsets and factors, sampling
    assert claims.macs(operator, 16, 64) == 256 * per_place


def test_digits_are_seeded_and_splits_differ() -> None:
    again = deformed_digits("train", 20, 3)
    deformed_digits.cache_clear()
    assert torch.equal(again.images, deformed_digits("train", 20, 3).images)
    assert again.images.shape == (20, 1, internimage.CANVAS, internimage.CANVAS)
    assert not torch.equal(again.images, deformed_digits("val", 20, 3).images)
    assert not torch.equal(again.images, deformed_digits("train", 20, 4).images)


def test_published_weights_are_refused() -> None:
    with pytest.raises(SystemExit, match="loads no published weights"):
        Run.start("internimage", argv=["--weights", "pretrained"], pretrained=False)
