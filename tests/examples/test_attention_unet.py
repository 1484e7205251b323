"""The Attention U-Net example: what a gate computes, what it cannot do, its cost, and equality with MONAI's gate."""

import importlib
import json

import pytest
import torch
from lab.data.brain import TUMOUR, BrainSlices
from lab.training import count_parameters
from torch import nn

pytestmark = pytest.mark.torch

attention_unet = importlib.import_module("attention-unet")
WIDTHS = (4, 6, 8, 10)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 1, 32, 24, generator=torch.Generator().manual_seed(0))


def network(gated: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return attention_unet.AttentionUNet(WIDTHS, gated).eval()


def test_the_score_is_that_of_a_gate_of_monai_without_its_norms():
    from monai.networks.nets.attentionunet import AttentionBlock

    torch.manual_seed(0)
    gate, block = attention_unet.AttentionGate(6, 8, 4), AttentionBlock(2, 4, 8, 6).eval()
    gate.theta = nn.Conv2d(6, 4, 1)  # MONAI's gate takes x and g on one grid
    sizes = [block.W_x[0].conv, block.W_g[0].conv, block.psi[0].conv]
    for ours, theirs in zip((gate.theta, gate.phi, gate.psi), sizes, strict=True):
        theirs.load_state_dict(ours.state_dict())
    for branch in (block.W_x, block.W_g, block.psi):
        branch[1] = nn.Identity()
    x, g = torch.randn(2, 6, 5, 5), torch.randn(2, 8, 5, 5)
    assert torch.allclose(x * gate.score(x, g).sigmoid(), block(g=g, x=x), atol=1e-6)


def test_coefficients_lie_between_0_and_1_and_serve_all_channels(images):
    model = network()
    _, alphas = model.decode(model.encode(images))
    assert {level: tuple(alpha.shape) for level, alpha in alphas.items()} == {2: (2, 1, 8, 6), 1: (2, 1, 16, 12)}
    assert all(alpha.min() > 0 and alpha.max() < 1 for alpha in alphas.values())


def test_with_open_gates_the_network_is_the_u_net_of_the_same_weights(images):
    gated, plain = network(), network(gated=False)
    plain.load_state_dict({name: value for name, value in gated.state_dict().items() if "gates" not in name})
    assert torch.equal(gated(images, torch.ones_like), plain(images))
    assert not torch.allclose(gated(images), plain(images))


def test_behind_closed_gates_the_features_of_a_skip_do_not_count(images):
    model = network()
    maps = model.encode(images)
    noise = [maps[0], torch.randn_like(maps[1]), torch.randn_like(maps[2]), maps[3]]
    for alter, blind in ((torch.zeros_like, True), (None, False)):
        assert torch.equal(model.decode(maps, alter)[0][0], model.decode(noise, alter)[0][0]) is blind


def test_one_cell_moves_a_score_and_every_cell_moves_self_attention():
    assert attention_unet.cells_seen(cells=7) == (1, 49)


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_all_arms_have_equal_parameters_but_for_the_heads_of_deep_supervision(preset):
    with torch.device("meta"):
        counts = [
            count_parameters(attention_unet.built(arm, attention_unet.PRESETS[preset])[0])
            for arm in attention_unet.ARMS
        ]
    assert max(counts) <= 1.01 * min(counts)


def slices(lesions: torch.Tensor) -> BrainSlices:
    labels = torch.where(lesions > 0, TUMOUR, 0)
    return BrainSlices(torch.zeros(len(lesions), 1, *lesions.shape[1:]), labels, lesions, torch.zeros(len(lesions)))


def test_false_tumours_are_counted_apart_from_found_ones_and_from_dice_about_a_size():
    lesions = torch.zeros(1, 32, 32, dtype=torch.uint8)
    lesions[0, 4:7, 4:7] = 1
    made = slices(lesions)
    predicted = made.labels.clone()
    predicted[0, 24:26, 24:26] = TUMOUR
    assert attention_unet.false_tumours(predicted, made.labels) == 1
    assert attention_unet.dice_by_size(predicted, made)["dice_small"] == 1
    assert attention_unet.border_distances(predicted, made).tolist() == [0]


def test_a_border_that_is_one_pixel_too_wide_is_about_2_mm_off():
    lesions = torch.zeros(1, 32, 32, dtype=torch.uint8)
    lesions[0, 8:20, 8:20] = 1
    made = slices(lesions)
    wider = torch.where(attention_unet.near(lesions > 0, 1), TUMOUR, 0)
    assert attention_unet.border_distances(wider, made) == pytest.approx([2], abs=0.1)


def test_the_border_of_a_missed_tumour_counts_for_nothing():
    lesions = torch.zeros(1, 32, 32, dtype=torch.uint8)
    lesions[0, 4:8, 4:8], lesions[0, 20:24, 20:24] = 1, 2
    made = slices(lesions)
    distances = attention_unet.border_distances(torch.where(lesions == 2, TUMOUR, 0), made)
    assert distances.tolist() == pytest.approx([float("nan"), 0], nan_ok=True)
    assert attention_unet.mean_or(distances, otherwise=100.0) == 0
    assert attention_unet.mean_or(distances[:1], otherwise=100.0) == 100


def test_pixels_that_do_not_count_do_not_change_the_loss():
    torch.manual_seed(0)
    scores, labels, weights = torch.randn(2, 4, 6, 6), torch.randint(4, (2, 6, 6)), torch.tensor([1.0, 2, 3, 4])
    counted = torch.zeros(2, 6, 6, dtype=torch.bool)
    counted[:, :3] = True
    inside = attention_unet.segmentation_loss(scores[:, :, :3], labels[:, :3], weights)
    assert torch.allclose(attention_unet.segmentation_loss(scores, labels, weights, counted), inside)
    cross_entropy = nn.functional.cross_entropy(scores, labels, weights)
    assert 0 < attention_unet.segmentation_loss(scores, labels, weights) - cross_entropy < 1  # 1 - Dice


def test_the_second_network_of_a_cascade_learns_from_the_true_region_though_the_first_finds_nothing():
    torch.manual_seed(0)
    model, images = attention_unet.Cascade(WIDTHS), torch.randn(1, 1, 32, 32)
    nn.init.constant_(model.find.heads[0].bias, 0)
    model.find.heads[0].bias.data[TUMOUR] = -100
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    for tumour in (False, True):
        labels[0, 16, 16] = TUMOUR if tumour else 0
        model.zero_grad()
        attention_unet.cascade_loss(model, images, labels, torch.ones(4)).backward()
        assert bool(model.segment.heads[0].weight.grad.any()) is tumour


def test_a_coarse_grid_cannot_say_a_tumour_thinner_than_its_cells():
    lesions = torch.zeros(1, 32, 32, dtype=torch.uint8)
    lesions[0, 9:12, 9:12] = 1
    made = slices(lesions)
    assert attention_unet.ideal_gate_dice(made, "small", 1) == 1
    assert attention_unet.ideal_gate_dice(made, "small", 8) == 0


def test_closing_a_tenth_closes_no_more_where_coefficients_are_equal():
    alpha, brain = torch.ones(1, 1, 10, 10), torch.ones(1, 10, 10, dtype=torch.bool)
    for brightest in (False, True):
        assert (attention_unet.without_tenth(alpha, brain, brightest) == 0).sum() == 10


def test_closing_the_brightest_tenth_leaves_the_rest_and_what_lies_outside_the_brain():
    alpha = torch.linspace(0.1, 0.9, 100).reshape(1, 1, 10, 10)
    brain = torch.zeros(1, 10, 10, dtype=torch.bool)
    brain[:, :5] = True
    closed = attention_unet.without_tenth(alpha, brain, brightest=True) == 0
    assert closed.sum() == 5
    assert closed[0, 0, 4, 5:].all()


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attention_unet")
    attention_unet.main(["--preset", "smoke", "--device", "cpu", "--out", str(folder)])
    return folder, json.loads((folder / "record.json").read_text("utf-8"))


def test_a_smoke_run_records_every_measure_of_every_arm_and_draws_every_figure(smoke):
    folder, record = smoke
    arms = attention_unet.ARMS
    measures = [*attention_unet.MEASURES, "border"]
    names = {f"{measure}_{arm}" for measure in measures for arm in arms}
    names |= {f"{measure}_gap_{arm}" for measure in measures for arm in arms if arm != "gated"}
    names |= {"alpha1_contrast", "alpha2_contrast", "changed_ratio", "cells_seen_gate", "gate_parameters_monai3d"}
    assert names <= set(record["results"])
    figures = {figure["name"]: figure for figure in record["figures"]}
    assert set(figures) == {"gate", "gate_maps", "attention", "comparison", "altered", "limits"}
    assert all((folder / figure[scheme]).is_file() for figure in figures.values() for scheme in ("light", "dark"))
