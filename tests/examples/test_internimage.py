"""The example on InternImage: the operator is right and equals torchvision's, and the script runs."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.torch

intern: ModuleType = importlib.import_module("internimage")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("internimage")
    intern.main(["--preset", "smoke", "--device", "cpu", "--out", str(out)])
    found: dict[str, Any] = json.loads((out / "record.json").read_text())
    return found | {"out": str(out)}


def test_a_smoke_run_leaves_results_and_figures(record: dict[str, Any]) -> None:
    expected = {
        "dcn_over_convolution",
        "dcn_over_attention_few",
        "field_dcn_over_convolution",
        "time_dcn_over_convolution",
    }
    assert expected <= set(record["results"])
    names = [figure["name"] for figure in record["figures"]]
    assert names == ["digits", "points", "field", "operators", "time"]
    for figure in record["figures"]:
        assert all((Path(record["out"]) / figure[style]).stat().st_size > 1000 for style in ("light", "dark"))


@pytest.mark.parametrize(("height", "width", "groups"), [(5, 5, 1), (7, 4, 2), (3, 8, 4)])
def test_the_operator_equals_torchvision_on_the_same_offsets(height: int, width: int, groups: int) -> None:
    values = torch.randn(2, height, width, 8)
    offsets, factors = 2 * torch.randn(2, height, width, groups, 9, 2), torch.rand(2, height, width, groups, 9)
    ours, theirs = (f(values, offsets, factors) for f in (intern.aggregate, intern.aggregate_torchvision))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_before_training_it_is_the_mean_of_a_fixed_grid() -> None:
    operator, x = intern.DCNv3(8, 2), torch.randn(2, 6, 5, 8)
    mean = nn.functional.avg_pool2d(operator.value(x).permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(operator(x), operator.out(mean), rtol=1e-4, atol=1e-5)


def test_whole_offsets_move_the_map() -> None:
    values = torch.randn(1, 6, 6, 4)
    offsets = torch.zeros(1, 6, 6, 1, 9, 2)
    offsets[..., 1] = 1  # one column to the right
    factors = torch.zeros(1, 6, 6, 1, 9)
    factors[..., 4] = 1  # the centre of the grid alone
    moved = intern.aggregate(values, offsets, factors)
    torch.testing.assert_close(moved[:, :, :-1], values[:, :, 1:])
    assert (moved[:, :, -1].abs() < 1e-5).all()


def test_factors_of_a_group_sum_to_one_only_with_the_softmax() -> None:
    x = torch.randn(1, 4, 4, 8)
    for softmax in (True, False):
        operator = intern.DCNv3(8, 2, softmax)
        nn.init.normal_(operator.factor.weight)
        _, factors = operator.predict(x)
        assert torch.allclose(factors.sum(-1), torch.ones(1, 4, 4, 2), atol=1e-5) is softmax


def test_points_depend_on_the_input_and_the_group() -> None:
    operator = intern.DCNv3(8, 2)
    nn.init.normal_(operator.offset.weight)
    offsets, _ = operator.predict(torch.randn(2, 4, 4, 8))
    assert not torch.allclose(offsets[0], offsets[1])
    assert not torch.allclose(offsets[:, :, :, 0], offsets[:, :, :, 1])


def test_frozen_offsets_stand_for_the_predicted_ones() -> None:
    operator, x = intern.DCNv3(8, 2), torch.randn(2, 4, 4, 8)
    nn.init.normal_(operator.offset.weight)
    offsets, factors = operator.predict(x)
    wanted = operator(x[:1])
    operator.frozen = (offsets[:1], factors[:1])
    torch.testing.assert_close(operator(x[:1]), wanted)
    assert torch.equal(operator.predict(x)[0][1], offsets[0])


def test_the_gradient_reaches_the_offsets() -> None:
    operator = intern.DCNv3(8, 2)
    operator(torch.randn(1, 5, 5, 8)).square().sum().backward()
    assert operator.offset.weight.grad.abs().sum() > 0


def test_the_field_of_three_plain_convolutions_is_seven_places_wide() -> None:
    model = intern.Network("convolution", intern.PRESETS["smoke"]).eval()
    field = intern.receptive_field(model, torch.rand(2, 1, intern.CANVAS, intern.CANVAS))
    reached = (intern.centres(intern.SIDE, intern.SIDE) - intern.SIDE // 2).abs().amax(-1) <= 3
    assert torch.equal(field > 0, reached)


def test_spread_is_the_root_mean_square_distance_in_pixels() -> None:
    field = torch.zeros(intern.SIDE, intern.SIDE)
    field[intern.SIDE // 2 + 2, intern.SIDE // 2] = 1
    assert intern.spread(field) == pytest.approx(2 * intern.STRIDE)


def test_macs_of_the_operator_are_linear_in_the_places() -> None:
    operator = intern.DCNv3(64, 4)
    assert intern.macs(operator, 64, 64) == 4 * intern.macs(operator, 32, 64)
    per_place = 64 * (2 * 64 + 9 + 4 * 27 + 45)  # value and out, depthwise, offsets and factors, sampling
    assert intern.macs(operator, 16, 64) == 256 * per_place


def test_the_plain_convolution_has_at_least_the_macs_it_is_compared_to() -> None:
    goal = intern.macs(intern.DCNv3(64, 4), 16, 64)
    width = intern.equal_width(goal, 16)
    assert goal <= intern.macs(intern.Convolution(width), 16, width) < 1.1 * goal


def test_the_tiny_architecture_has_about_thirty_million_parameters() -> None:
    with torch.device("meta"):
        assert round(intern.count_parameters(intern.published_tiny()) / 1e6) == 30  # README of the authors


def test_digits_are_seeded_and_splits_differ() -> None:
    again = intern.deformed("train", 20, 3)
    intern.deformed.cache_clear()
    assert torch.equal(again.images, intern.deformed("train", 20, 3).images)
    assert again.images.shape == (20, 1, intern.CANVAS, intern.CANVAS)
    assert not torch.equal(again.images, intern.deformed("val", 20, 3).images)


def test_pretrained_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="CUDA operator"):
        intern.main(["--preset", "smoke", "--device", "cpu", "--weights", "pretrained", "--out", str(tmp_path)])
