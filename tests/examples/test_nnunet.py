"""The nnU-Net example: rules that plan what the package plans, networks of the planned size, folds, mirrors, and measures."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import nnunet
import numpy as np
import pytest
import torch
from lab import folds
from lab.stacked import Stacked
from lab.training import count_parameters
from nnunet import (
    MEMORIES,
    PRESETS,
    Fingerprint,
    Memory,
    Plan,
    PlannedUNet,
    Stage,
    plan,
    target_spacing,
    topology,
    values,
)
from torch import nn

claims: Any = import_module("claims.nnunet")
FLAT = Memory(3e5, 8, 32)


def fingerprint(size: tuple[int, ...], spacing: tuple[float, ...] = (1, 1, 1), images: int = 300) -> Fingerprint:
    return Fingerprint(np.array([size] * images, dtype=float), np.array([spacing] * images, dtype=float))


def stages() -> list[Stage]:
    return topology((16, 16), (1, 1), Memory(1e9, 4, 8))


def test_plans_are_those_of_the_package() -> None:
    """Patch and batch for the hippocampus as in documentation/explanation_plans_files.md and the package's plans."""
    found = plan(fingerprint((36, 50, 35), images=260), MEMORIES[3], classes=3)
    assert (found.patch, found.batch, nnunet.steps_of(found.stages)) == ((40, 56, 40), 9, (8, 8, 8))


def test_the_network_planned_for_large_volumes_has_the_published_number_of_parameters() -> None:
    """31.2 M (documentation/primus.md)."""
    found = plan(fingerprint((138, 170, 138), images=484), MEMORIES[3])
    assert (found.patch, found.batch) == ((128, 128, 128), 2)
    with torch.device("meta"):
        assert round(count_parameters(PlannedUNet(found.stages)) / 1e6, 1) == 31.2


def test_spacing_is_the_median_and_of_a_coarse_axis_a_low_percentile() -> None:
    gaps = np.array([[gap, 1, 1] for gap in (4, 6, 6, 8, 9)], dtype=float)
    thick = Fingerprint(np.array([[20, 256, 256]] * 5, dtype=float), gaps)
    assert target_spacing(thick).tolist() == [pytest.approx(np.percentile(gaps[:, 0], 10)), 1, 1]
    many = Fingerprint(np.array([[200, 256, 256]] * 5, dtype=float), gaps)
    assert target_spacing(many).tolist() == [6, 1, 1]


def test_a_coarse_axis_is_neither_pooled_nor_convolved_until_the_others_are_about_as_coarse() -> None:
    found = topology((32, 256, 224), (3, 0.5, 0.5), MEMORIES[3])
    assert [stage.stride for stage in found[:4]] == [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)]
    assert [stage.kernel[0] for stage in found] == [1, 1, 3, 3, 3, 3]


@pytest.mark.parametrize("size", [(36, 50, 35), (138, 170, 138), (20, 320, 320), (480, 512, 512), (48, 40)])
def test_every_pooling_comes_out_even_and_two_patches_fit_into_the_memory(size: tuple[int, ...]) -> None:
    memory = MEMORIES[len(size)]
    found: Plan = plan(fingerprint(size, (1,) * len(size)), memory)
    assert all(side % step == 0 for side, step in zip(found.patch, nnunet.steps_of(found.stages), strict=True))
    assert found.batch * values(found.patch, found.stages, 4) <= 1.3 * memory.values  # 1.3: the batch is rounded
    assert found.batch >= 2


def test_more_memory_gives_a_larger_patch_and_then_a_larger_batch() -> None:
    sides = [plan(fingerprint((300, 300, 300)), Memory(m, 32, 320)) for m in (3e8, 1.1e9, 5e9)]
    assert np.prod(sides[0].patch) < np.prod(sides[1].patch) < np.prod(sides[2].patch)
    batches = [plan(fingerprint((40, 40, 40)), Memory(m, 32, 320)).batch for m in (1e8, 2e8)]
    assert batches[0] < batches[1]


def test_values_are_those_of_the_maps_that_a_network_really_makes() -> None:
    counted: list[int] = []
    model = PlannedUNet(stages(), classes=4)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda module, inputs, output: counted.append(output.numel()))
    model(torch.zeros(1, 1, 16, 16))
    assert sum(counted) == values((16, 16), stages(), 4)


def test_scores_halve_from_level_to_level_and_the_coarsest_carries_no_loss() -> None:
    model = PlannedUNet(topology((32, 32), (1, 1), Memory(1e9, 4, 8)))
    shapes = [tuple(each.shape[2:]) for each in model(torch.zeros(1, 1, 32, 32))]
    assert shapes == [(32, 32), (16, 16), (8, 8)]
    stacked = Stacked([model])
    nnunet.supervised(stacked, torch.randn(1, 2, 1, 32, 32), torch.rand(1, 2, 4, 32, 32)).backward()
    names = dict(zip(dict(model.named_parameters()), stacked.weights, strict=True))
    assert names["heads.2.weight"].grad is None or not names["heads.2.weight"].grad.any()
    assert names["heads.1.weight"].grad.any()


def test_the_loss_of_the_truth_is_nearly_zero_and_that_of_a_wrong_answer_is_not() -> None:
    labels = torch.randint(4, (1, 2, 16, 16), generator=torch.Generator().manual_seed(0))
    targets = nn.functional.one_hot(labels, 4).movedim(-1, 2).float()

    class Sure(nn.Module):
        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [20 * images, 20 * images[..., ::2, ::2], images[..., ::4, ::4]]

    assert nnunet.supervised(Sure(), targets, targets) < 1e-3
    assert nnunet.supervised(Sure(), targets.roll(1, 2), targets) > 1


def test_networks_side_by_side_are_trained_as_each_alone() -> None:
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(4, 4)) for _ in range(3)]
    stacked, images = Stacked(networks), torch.randn(3, 2, 1, 8, 8)
    loss = stacked(images).pow(3).sum()
    loss.backward()
    for index, alone in enumerate(networks):
        torch.testing.assert_close(stacked(images)[index], alone(images[index]))
        alone(images[index]).pow(3).sum().backward()
        for ours, own in zip(stacked.weights, alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad[index], own.grad, rtol=1e-4, atol=1e-4)


def test_stacking_refuses_networks_with_buffers() -> None:
    with pytest.raises(ValueError, match="buffers"):
        Stacked([nn.BatchNorm2d(2)])


def test_no_network_sees_its_own_fold_and_each_sees_all_others() -> None:
    order = folds.orders(50, 5, 5, steps=400, batch=4, seed=3)
    unseen = [set(range(50)) - set(order[:, fold].flatten().tolist()) for fold in range(5)]
    assert [len(each) for each in unseen] == [10] * 5
    assert set().union(*unseen) == set(range(50))


def test_images_and_targets_are_mirrored_alike() -> None:
    images = torch.randn(6, 1, 4, 4)
    batch_at = folds.mirrored_batches((images, images.clone()), torch.randint(6, (20, 2, 3)), seed=0)
    pairs = [batch_at(step) for step in range(20)]
    assert all(torch.equal(one, other) for one, other in pairs)
    assert len({tuple(one[0, 0].flatten().tolist()) for one, _ in pairs}) > 6


def test_mirrored_copies_change_nothing_for_a_network_that_is_symmetric() -> None:
    torch.manual_seed(0)
    networks = Stacked([PlannedUNet(topology((16, 16), (1, 1), Memory(1e9, 4, 8))) for _ in range(2)]).eval()
    images = torch.randn(3, 1, 16, 16)
    plain, mirrored = nnunet.predicted(networks, images), nnunet.predicted(networks, images, folds.MIRRORS)
    assert plain.shape == mirrored.shape == (2, 3, 4, 16, 16)
    assert not torch.allclose(plain, mirrored)
    again = nnunet.predicted(networks, images.flip(-1), folds.MIRRORS).flip(-1)
    torch.testing.assert_close(mirrored, again, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_both_encoders_have_as_many_parameters_within_10_per_cent(preset: str) -> None:
    with torch.device("meta"):
        planned = nnunet.planned(PRESETS[preset]).stages
        counts = [count_parameters(form(planned)) for form in claims.FORMS.values()]
    assert max(counts) <= 1.1 * min(counts)


def test_residual_blocks_pass_their_input_on() -> None:
    stage = Stage((3, 3), (1, 1), 4)
    block, x = claims.ResidualBlock(4, stage, 1), torch.rand(1, 4, 8, 8)
    nn.init.zeros_(block.body[-1].weight)
    torch.testing.assert_close(block(x), x)
    down = claims.ResidualBlock(4, stage._replace(width=6), (2, 2))
    assert down(x).shape == (1, 6, 4, 4)


def test_distance_is_the_mean_over_pairs() -> None:
    assert claims.distance([0.1, 0.2, 0.4]) == pytest.approx(0.2)


def test_the_file_to_read_uses_what_the_search_chose_on_validation_slices() -> None:
    kept = json.loads((Path(claims.__file__).parent / "nnunet.searches.json").read_text("utf-8"))["learning rate"]
    assert kept["arms"]["plain"]["chosen"] == nnunet.RATE
    assert set(kept["arms"]) == set(claims.ARMS)
    assert not any(each["at_edge"] for each in kept["arms"].values())


def test_the_slice_that_is_shown_is_chosen_by_the_truth() -> None:
    labels = torch.zeros(3, 4, 4, dtype=torch.long)
    labels[0, :2], labels[1, :1] = 3, 3
    assert folds.median_slice(labels) == 1
