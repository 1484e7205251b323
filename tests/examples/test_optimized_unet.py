"""The optimised U-Net: loss on regions, deep supervision, mirrored copies, clean-up, and controls that train."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest
import torch
from lab.data.brain import RIM, TUMOUR, BrainSlices
from lab.training import count_parameters
from torch import nn

pytestmark = pytest.mark.torch

ou = importlib.import_module("optimized-unet")
claims = importlib.import_module("claims.optimized-unet")
ARMS = list(claims.ARMS)


def labelled(*spots: tuple[int, int, int]) -> torch.Tensor:
    """One slice of 24 x 24 with square spots (row, column, side) of core, each in a rim of one pixel."""
    labels = torch.zeros(1, 24, 24, dtype=torch.long)
    for row, column, side in spots:
        labels[0, row - 1 : row + side + 1, column - 1 : column + side + 1] = RIM
        labels[0, row : row + side, column : column + side] = TUMOUR
    return labels


def test_the_core_lies_within_the_whole_tumour() -> None:
    whole, core = ou.regions(labelled((5, 5, 4)))[0]
    assert whole.sum() == 36
    assert core.sum() == 16
    assert (core <= whole).all()


def test_the_loss_of_a_sure_and_right_answer_is_next_to_nothing() -> None:
    targets = ou.regions(labelled((5, 5, 4)))
    assert ou.region_loss(40 * (targets - 0.5), targets).item() == pytest.approx(0, abs=1e-3)
    assert ou.region_loss(-40 * (targets - 0.5), targets).item() > 1


def test_the_dice_term_asks_less_than_cross_entropy_how_many_pixels_are_missed() -> None:
    small, large = (ou.cost_of_missing(side) for side in (4, 16))
    assert large["cross entropy"] > 10 * small["cross entropy"]
    assert large["Dice term"] < 1.1 * small["Dice term"]


def test_classes_and_regions_say_the_same_of_a_sure_answer() -> None:
    targets = ou.regions(labelled((5, 5, 4)))
    classes = targets.sum(1).long()
    sure = 40 * nn.functional.one_hot(classes, 3).movedim(-1, 1).float()
    assert torch.allclose(claims.build("no_region_loss", "smoke").probabilities(sure), targets, atol=1e-4)
    assert claims.class_loss(sure, targets).item() == pytest.approx(0, abs=1e-4)


def test_heads_halve_in_size_and_the_finest_is_the_one_that_is_used() -> None:
    images, model = torch.rand(2, 1, 32, 48), ou.OptimizedUNet((4, 6, 8, 10)).eval()
    maps = model.deep_scores(images)
    assert [tuple(each.shape) for each in maps] == [(2, 2, 32, 48), (2, 2, 16, 24), (2, 2, 8, 12)]
    assert torch.equal(maps[0], model(images))


def test_one_head_is_the_control_of_deep_supervision_and_its_inner_levels_get_no_loss_of_their_own() -> None:
    images, labels = torch.rand(1, 1, 24, 24), labelled((5, 5, 4))
    deep, single = (claims.build(arm, "smoke") for arm in ("base", "no_supervision"))
    assert len(single.deep_scores(images)) == 1
    single.load_state_dict({name: each for name, each in deep.state_dict().items() if "coarser" not in name})
    assert ou.supervised(deep, images, labels) > ou.supervised(single, images, labels)


@pytest.mark.parametrize("preset", ["quick", "full"])
@pytest.mark.parametrize("arm", ARMS)
def test_arms_have_about_as_many_parameters(arm: str, preset: str) -> None:
    counts = [count_parameters(claims.build(name, preset)) for name in ("base", arm)]
    assert counts[1] == pytest.approx(counts[0], rel=0.01)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_starts_from_the_belief_that_a_pixel_is_hardly_ever_tumour(arm: str) -> None:
    """A prior on all outputs was once nothing for a softmax, which knows differences only, and its network stayed dead."""
    model = claims.build(arm, "smoke")
    biases = torch.stack([head.bias.detach() for head in model.heads()])[..., None, None]  # (heads, outputs, 1, 1)
    assert (model.probabilities(biases)[:, 0] < 0.1).all()


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_can_learn_to_draw_a_slice(arm: str) -> None:
    """The softmax control was once a network that found nothing, and the region loss was "shown" by that."""
    torch.manual_seed(0)
    labels = labelled((6, 6, 4), (15, 14, 5))
    images = 0.3 * labels[:, None].float() + 0.02 * torch.randn(1, 1, 24, 24)
    model = claims.build(arm, "smoke").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        ou.supervised(model, images, labels, claims.LOSSES.get(arm, ou.region_loss)).backward()
        optimizer.step()
    with torch.no_grad():  # in training mode: the statistics of so few steps are not those of evaluation
        p = model.probabilities(model(images))
    assert min(ou.region_dice(p, labels).values()) > 0.8


class Brightness(nn.Module):
    """Scores by the brightness of a pixel alone, so that flips change nothing."""

    def __init__(self, tilt: bool = False) -> None:
        super().__init__()
        self.scale, self.tilt = nn.Parameter(torch.ones(1)), tilt

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.scale * x[:, :1].expand(-1, 2, -1, -1)
        return scores + self.tilt * torch.arange(x.shape[-1])

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.sigmoid()


def test_mirrored_copies_are_turned_back_before_they_are_averaged() -> None:
    images = torch.rand(3, 1, 8, 10)
    plain, mirrored = (ou.predicted(Brightness(), images, flips) for flips in (ou.FLIPS[:1], ou.FLIPS))
    assert torch.allclose(plain, mirrored, atol=1e-6)


def test_the_mean_of_mirrored_copies_has_no_side_that_it_prefers() -> None:
    image = torch.zeros(1, 1, 8, 10)
    plain, mirrored = (ou.predicted(Brightness(tilt=True), image, flips) for flips in (ou.FLIPS[:1], ou.FLIPS))
    assert not torch.allclose(plain, plain.flip(3))
    assert torch.allclose(mirrored, mirrored.flip(3), atol=1e-6)


def test_the_clean_up_takes_back_small_unsure_spots_only() -> None:
    p = torch.zeros(1, 2, 24, 24)
    p[0, 0, 2:4, 2:4] = 0.6  # small, unsure
    p[0, 0, 2:4, 10:12] = 0.95  # small, sure
    p[0, 0, 12:20, 12:20] = 0.6  # large, unsure
    kept = ou.cleaned(p)[0, 0] > 0.5
    assert not kept[2:4, 2:4].any()
    assert kept[2:4, 10:12].all()
    assert kept[12:20, 12:20].all()
    assert not (ou.cleaned(p, millimetres=1)[0, 0] > 0.5)[2:4, 2:4].any()


def test_a_spot_of_one_slice_does_not_go_on_in_the_next() -> None:
    p = torch.zeros(8, 2, 24, 24)
    p[:, 0, 2:4, 2:4] = 0.6  # 4 pixels in each slice, 32 through all of them
    assert not (ou.cleaned(p)[:, 0] > 0.5).any()


def test_the_slice_of_the_hero_is_one_in_which_no_tumour_is_missed() -> None:
    """The hero once showed a network that misses a tumour."""
    labels = torch.cat([labelled((5, 5, 4), (15, 15, 2)), labelled((5, 5, 3)), labelled((5, 5, 2))])
    lesions = (labels > 0).to(torch.uint8)
    lesions[0, 13:] *= 2
    data = BrainSlices(torch.zeros(3, 1, 24, 24), labels, lesions, torch.zeros(3, dtype=torch.long))
    p = ou.regions(labels)
    assert ou.telling(p, data) == 0
    p[0, :, 13:] = 0  # the second tumour of the first slice is missed
    assert ou.telling(p, data) == 1


def test_a_grid_of_single_pixels_loses_nothing_and_a_coarse_one_loses_the_small() -> None:
    labels = labelled((5, 5, 2))
    lesions = (labels > 0).to(torch.uint8)
    test = BrainSlices(torch.zeros(1, 1, 24, 24), labels, lesions, torch.zeros(1, dtype=torch.long))
    assert claims.grid_dice(test, 1, (1, 16)) == 1
    assert claims.grid_dice(test, 16, (1, 16)) == 0


def test_windows_with_half_overlap_cover_a_volume() -> None:
    assert claims.windows() == 3 * 3 * 2


class Settings:
    """As much of a run as the arms ask for."""

    preset, seeds, device = "smoke", (0, 1, 2), torch.device("cpu")


class Blind(nn.Module):
    """Finds whatever is bright, or nothing."""

    def __init__(self, blind: bool) -> None:
        super().__init__()
        self.blind, self.weight = blind, nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (-20 if self.blind else 20) * torch.ones(len(images), 2, *images.shape[2:])

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.sigmoid()


def test_a_network_that_misses_a_region_counts_as_failed_and_no_zero_enters_a_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claims, "FLOOR", (claims.FLOOR[0], 0.01))
    monkeypatch.setattr(
        claims, "trained", lambda run, arm: [Blind(arm == "no_dice" and seed == 1) for seed in run.seeds]
    )
    scores = claims.scores_of.__wrapped__(Settings())
    assert {arm for arm, failed in scores.failed.items() if failed} == {"no_dice"}
    assert [math.isnan(value) for value in scores.minus("dice", "base", "no_dice")] == [False, True, False]


def test_what_is_done_after_training_fails_with_the_network_that_it_is_done_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "FLOOR", (claims.FLOOR[0], 0.01))
    monkeypatch.setattr(claims, "trained", lambda run, arm: [Blind(arm == "base" and seed == 1) for seed in run.seeds])
    scores = claims.scores_of.__wrapped__(Settings())
    assert all(set(scores.failed[arm]) == {1} for arm in ("base", "mirrored", "cleaned"))


def test_the_rate_is_chosen_on_validation_slices_and_alike_for_all_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps and rate were once set by trials of the whole network alone."""
    asked: list[str] = []

    def search(run, what, arms, grid, score):  # type: ignore[no-untyped-def]
        asked.extend(arms)
        score("base", grid[0], 100)
        return dict.fromkeys(arms, grid[0])

    data_of = claims.data_of
    monkeypatch.setattr(claims.study, "search", search)
    monkeypatch.setattr(claims, "data_of", lambda run, split: asked.append(split) or data_of(run, split))
    claims.rates_of.__wrapped__(Settings())
    assert asked == [*claims.ARMS, "val"]


def test_the_file_to_read_uses_what_the_search_chose_and_no_choice_lies_at_the_edge() -> None:
    kept = json.loads((Path(claims.__file__).parent / "optimized-unet.searches.json").read_text("utf-8"))
    assert kept["learning rate"]["arms"]["base"]["chosen"] == ou.RATE
    assert set(kept["learning rate"]["arms"]) == set(claims.ARMS)
    assert not any(each["at_edge"] for each in kept["learning rate"]["arms"].values())


def test_published_weights_are_refused_since_there_are_none() -> None:
    from lab.run import Run

    with pytest.raises(SystemExit, match="loads no published weights"):
        Run.start("optimized-unet", pretrained=False, argv=["--weights", "pretrained", "--device", "cpu"])
    assert 'Run.start("optimized-unet", pretrained=False' in Path(ou.__file__).read_text("utf-8")
