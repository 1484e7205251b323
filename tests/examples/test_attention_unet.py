"""The Attention U-Net example: what a gate computes, what it cannot do, and equality with MONAI's gate."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest
import torch
from lab.data.brain import TUMOUR, BrainSlices
from lab.training import count_parameters
from torch import nn

attention_unet = importlib.import_module("attention-unet")
claims = importlib.import_module("claims.attention-unet")
WIDTHS = (4, 6, 8, 10)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 1, 32, 24, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return attention_unet.AttentionUNet(WIDTHS).eval()


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
    alphas = network().alphas(images)
    assert {level: tuple(alpha.shape) for level, alpha in alphas.items()} == {2: (2, 1, 8, 6), 1: (2, 1, 16, 12)}
    assert all(alpha.min() > 0 and alpha.max() < 1 for alpha in alphas.values())


def test_the_maps_that_are_shown_are_the_coefficients_that_gate(images):
    model, used = network(), {}
    for level, gate in model.gates.items():
        gate.register_forward_hook(lambda _, __, alpha, level=level: used.update({int(level): alpha}))
    model(images)
    assert all(torch.equal(alpha, used[level]) for level, alpha in network().alphas(images).items())


def test_with_open_gates_the_network_is_the_u_net_of_the_same_weights(images):
    gated = network()
    plain = attention_unet.UNet(WIDTHS).eval()
    plain.load_state_dict({name: value for name, value in gated.state_dict().items() if "gates" not in name})
    with claims.altered(gated, claims.ALTERED["open"]):
        assert torch.equal(gated(images), plain(images))
    assert not torch.allclose(gated(images), plain(images))


def test_behind_closed_gates_the_features_of_a_skip_do_not_count(images):
    model = network()
    maps = model.encode(images)
    noise = [maps[0], torch.randn_like(maps[1]), torch.randn_like(maps[2]), maps[3]]
    assert not torch.equal(model.decode(maps)[0], model.decode(noise)[0])
    with claims.altered(model, claims.ALTERED["closed"]):
        assert torch.equal(model.decode(maps)[0], model.decode(noise)[0])


def test_one_cell_moves_a_score_and_every_cell_moves_self_attention():
    assert claims.cells_seen(cells=7) == (1, 49)


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_the_arms_differ_by_the_parameters_of_the_gates_alone(preset):
    with torch.device("meta"):
        gated, plain = (claims.build(arm, preset) for arm in ("gated", "plain"))
    assert count_parameters(gated) - count_parameters(plain) == count_parameters(gated.gates)
    assert count_parameters(gated) < 1.05 * count_parameters(plain)


def slices_with(lesions: torch.Tensor) -> BrainSlices:
    labels = torch.where(lesions > 0, TUMOUR, 0)
    return BrainSlices(torch.zeros(len(lesions), 1, *lesions.shape[1:]), labels, lesions, torch.zeros(len(lesions)))


def test_false_tumours_do_not_count_in_the_dice_about_a_size():
    lesions = torch.zeros(1, 32, 32, dtype=torch.uint8)
    lesions[0, 4:7, 4:7] = 1
    made = slices_with(lesions)
    predicted = made.labels.clone()
    predicted[0, 24:26, 24:26] = TUMOUR
    assert claims.dice_by_size(predicted == TUMOUR, made)["dice_small"] == 1
    assert math.isnan(claims.dice_by_size(predicted == TUMOUR, made)["dice_large"])  # there is none: undefined, not 0


def test_a_mean_over_nothing_is_undefined():
    """It was once 0, as if the gates were closed there."""
    assert math.isnan(claims.mean_over(torch.ones(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)))


def test_a_coarse_grid_cannot_say_a_tumour_thinner_than_its_cells():
    lesions = torch.zeros(1, 32, 32, dtype=torch.uint8)
    lesions[0, 9:12, 9:12] = 1
    made = slices_with(lesions)
    assert claims.ideal_gate_dice(made, "small", 1) == 1
    assert claims.ideal_gate_dice(made, "small", 8) == 0


def test_closing_a_tenth_closes_no_more_where_coefficients_are_equal():
    alpha, brain = torch.ones(1, 1, 10, 10), torch.ones(1, 10, 10, dtype=torch.bool)
    for brightest in (False, True):
        assert (claims.without_tenth(alpha, brain, brightest) == 0).sum() == 10


def test_closing_the_brightest_tenth_leaves_the_rest_and_what_lies_outside_the_brain():
    alpha = torch.linspace(0.1, 0.9, 100).reshape(1, 1, 10, 10)
    brain = torch.zeros(1, 10, 10, dtype=torch.bool)
    brain[:, :5] = True
    closed = claims.without_tenth(alpha, brain, brightest=True) == 0
    assert closed.sum() == 5
    assert closed[0, 0, 4, 5:].all()


class Settings:
    """As much of a run as the arms ask for."""

    preset, seeds, device = "smoke", (0, 1, 2), torch.device("cpu")


class Blind(nn.Module):
    """Calls every pixel tumour, or none."""

    def __init__(self, blind: bool) -> None:
        super().__init__()
        self.blind, self.weight = blind, nn.Parameter(torch.zeros(1))

    def forward(self, images):
        scores = torch.zeros(len(images), 4, *images.shape[2:])
        scores[:, 0 if self.blind else TUMOUR] = 1
        return scores


def test_a_gated_network_that_finds_nothing_backs_no_claim(monkeypatch):
    """One of three gated networks once found nothing (Dice 0), and a con was shown by that."""
    monkeypatch.setattr(claims, "FLOOR", 0.01)
    monkeypatch.setattr(claims, "trained", lambda run, arm: [Blind(arm == "gated" and seed == 1) for seed in run.seeds])
    scores = claims.scores_of.__wrapped__(Settings())
    assert set(scores.failed) == {"gated"}
    assert [math.isnan(value) for value in scores.minus("dice_large", "gated", "plain")] == [False, True, False]


def test_nothing_is_chosen_on_test_slices_nor_with_the_seeds_that_are_reported(monkeypatch):
    """Steps and loss were once chosen by a look at the test slices, with the seeds reported."""
    asked = []

    def search(run, what, arms, grid, score):
        score("gated", grid[0], claims.study.SEARCH_SEEDS[0])
        return dict.fromkeys(arms, grid[0])

    cropped = claims.slices.cropped
    monkeypatch.setattr(claims.study, "search", search)
    monkeypatch.setattr(claims.slices, "cropped", lambda split, *rest: asked.append(split) or cropped(split, *rest))
    claims.rates_of.__wrapped__(Settings())
    assert asked
    assert set(asked) == {"val"}
    assert not set(claims.study.SEARCH_SEEDS) & set(Settings.seeds)


def test_the_file_to_read_uses_what_the_search_chose_and_no_choice_lies_at_the_edge():
    path = Path(claims.__file__).parent / "attention-unet.searches.json"
    kept = json.loads(path.read_text("utf-8"))["learning rate"]
    assert kept["arms"]["gated"]["chosen"] == attention_unet.RATE
    assert set(kept["arms"]) == set(claims.ARMS)
    assert not any(each["at_edge"] for each in kept["arms"].values())
