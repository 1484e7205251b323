"""The optimised U-Net: loss on regions, deep supervision, mirrored copies, clean-up, and a smoke run."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest
import torch
from lab.data.brain import RIM, TUMOUR, BrainSlices
from lab.study import Scores
from lab.training import count_parameters
from torch import nn

pytestmark = pytest.mark.torch

ou = importlib.import_module("optimized-unet")
BASE, QUICK = ou.ARMS["base"], ou.PRESETS["quick"]


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


def test_classes_and_regions_say_the_same_of_a_sure_answer() -> None:
    targets = ou.regions(labelled((5, 5, 4)))
    classes = targets.sum(1).long()
    sure = 40 * nn.functional.one_hot(classes, 3).movedim(-1, 1).float()
    assert torch.allclose(ou.probabilities(sure, by_region=False), targets, atol=1e-4)
    assert ou.class_loss(sure, targets).item() == pytest.approx(0, abs=1e-4)


def test_heads_halve_in_size_and_the_control_has_one() -> None:
    images = torch.rand(2, 1, 32, 48)
    maps = ou.built(BASE, QUICK)(ou.inputs_of(images, BASE))
    assert [tuple(each.shape) for each in maps] == [(2, 2, 32, 48), (2, 2, 16, 24), (2, 2, 8, 12)]
    assert len(ou.built(ou.ARMS["no_supervision"], QUICK)(ou.inputs_of(images, BASE))) == 1


@pytest.mark.parametrize("key", ["no_supervision", "no_region_loss", "no_foreground", "shallow"])
def test_arms_have_about_as_many_parameters(key: str) -> None:
    counts = [count_parameters(ou.built(ou.ARMS[name], QUICK)) for name in ("base", key)]
    assert counts[1] == pytest.approx(counts[0], rel=0.1)


def test_the_foreground_channel_is_all_that_its_control_lacks() -> None:
    images = torch.rand(2, 1, 8, 8)
    with_mask, without = (ou.inputs_of(images, ou.ARMS[key]) for key in ("base", "no_foreground"))
    assert set(with_mask[:, 1].unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(without[:, 1], images[:, 0])


class Brightness(nn.Module):
    """Scores by the brightness of a pixel alone, so that flips change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.scale * x[:, :1].expand(-1, 2, -1, -1)]


def test_mirrored_copies_are_turned_back_before_they_are_averaged() -> None:
    images = torch.rand(3, 1, 8, 10)
    plain, mirrored = (ou.predicted(Brightness(), images, BASE, mirrored=m) for m in (False, True))
    assert torch.allclose(plain, mirrored, atol=1e-6)


def test_the_clean_up_takes_back_small_unsure_spots_only() -> None:
    p = torch.zeros(1, 2, 24, 24)
    p[0, 0, 2:4, 2:4] = 0.6  # small, unsure
    p[0, 0, 2:4, 10:12] = 0.95  # small, sure
    p[0, 0, 12:20, 12:20] = 0.6  # large, unsure
    kept = ou.cleaned(p)[0, 0] > 0.5
    assert not kept[2:4, 2:4].any()
    assert kept[2:4, 10:12].all()
    assert kept[12:20, 12:20].all()


def test_spots_that_touch_a_tumour_are_not_false() -> None:
    truth, found = (torch.zeros(1, 24, 24, dtype=torch.bool) for _ in range(2))
    truth[0, 2:6, 2:6] = True
    found[0, 5:8, 5:8] = True
    found[0, 15:17, 15:17] = True
    assert ou.false_spots(found, truth) == 1


def test_a_grid_of_single_pixels_loses_nothing_and_a_coarse_one_loses_the_small() -> None:
    labels = labelled((5, 5, 2))
    lesions = (labels > 0).to(torch.uint8)
    test = BrainSlices(torch.zeros(1, 1, 24, 24), labels, lesions, torch.zeros(1, dtype=torch.long))
    assert ou.grid_dice(test, 1, ou.SMALL) == 1
    assert ou.grid_dice(test, 16, ou.SMALL) == 0


def test_windows_with_half_overlap_cover_a_volume() -> None:
    assert ou.windows() == 3 * 3 * 2


def test_the_published_network_has_seven_levels_and_its_parameters() -> None:
    assert count_parameters(ou.published(3)) == pytest.approx(50.8e6, rel=1e-3)


def test_a_smoke_run_writes_a_record_with_all_results_and_figures(tmp_path: Path) -> None:
    ou.main(["--preset", "smoke", "--device", "cpu", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "record.json").read_text("utf-8"))
    assert record["results"].keys() >= {
        "supervision_gain", "region_loss_gain", "foreground_gain", "depth_gain", "mirrored_gain",
        "small_lost", "spots_removed", "times_one_pass", "memory_half", "grid_dice_small_stride8",
    }  # fmt: skip
    assert [each["name"] for each in record["figures"]] == ["heads", "gains", "after", "grid"]
    assert all((tmp_path / each[scheme]).is_file() for each in record["figures"] for scheme in ("light", "dark"))


def test_pretrained_weights_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no trained weights of the challenge entry are published"):
        ou.main(["--preset", "smoke", "--weights", "pretrained", "--out", str(tmp_path)])


@pytest.mark.parametrize("by_region", [True, False])
def test_every_arm_starts_from_the_belief_that_a_pixel_is_hardly_ever_tumour(by_region: bool) -> None:
    model = ou.built(ou.Arm("any", by_region=by_region), QUICK)
    biases = torch.stack([head.bias.detach() for head in model.heads])[..., None, None]  # (heads, outputs, 1, 1)
    assert (ou.probabilities(biases, by_region)[:, 0] < 0.1).all()


def test_a_network_that_misses_a_region_counts_as_failed_and_no_zero_enters_a_mean() -> None:
    outcome = {"dice": 0.6, "dice_whole": 0.7, "dice_core": 0.5, "dice_least": 0.5, "recall_small": 40.0}
    nothing = dict.fromkeys(outcome, 0.0)
    scores = Scores((0, 1, 2), {key: [outcome, outcome, nothing if key == "shallow" else outcome] for key in ou.ARMS})
    scores.floor(ou.FLOOR[0], "dice_least", ou.FLOOR[1], ou.ARMS)
    gain = scores.minus("dice", "base", "shallow")
    assert gain[:2] == [0, 0]
    assert math.isnan(gain[2])
    assert ou.defined(gain) == [0, 0]
