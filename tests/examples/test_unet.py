"""The U-Net example: shapes, receptive fields, arms that differ in one thing only, and the network of the paper."""

from __future__ import annotations

import json
import math
import re
import runpy
import sys
import types
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import unet
from claims import unet as claims
from lab import footprints, slices
from lab.data import nuclei
from lab.data.brain import TUMOUR, brain_slices
from torch import nn

from scripts.architectures.definitions.unet import ValidUNet

WIDTHS = (4, 6, 8, 10)  # three poolings


def count(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 1, 32, 24, generator=torch.Generator().manual_seed(0))


def arm(source: str) -> unet.UNet:
    """A network with the same weights whatever its source."""
    torch.manual_seed(0)
    return claims.NETWORKS[source](WIDTHS).eval()


def test_maps_halve_on_the_way_down_and_double_on_the_way_up(images):
    model = arm("skip")
    encoded = model.encode(images)
    decoded = model.decode(encoded)
    shapes = [(2, width, 32 // 2**level, 24 // 2**level) for level, width in enumerate(WIDTHS)]
    assert [tuple(each.shape) for each in encoded] == shapes
    assert [tuple(each.shape) for each in decoded] == shapes[:-1]
    assert model(images).shape == (2, unet.CLASSES, 32, 24)


@pytest.mark.parametrize("level", range(5))
def test_the_formula_gives_the_side_of_the_gradient_footprint(level):
    torch.manual_seed(level)
    model, noise = unet.UNet((4, 4, 4, 4, 4)).double().eval(), torch.randn(4, 1, 160, 160, dtype=torch.double)
    x0, y0, x1, y1 = footprints.bounding_box(footprints.gradient_footprint(model.encode, level, noise))
    assert x1 - x0 == y1 - y0 == unet.receptive_field(unet.encoder_layers(level))


def test_receptive_fields_follow_from_their_recursion():
    assert [unet.receptive_field(unet.encoder_layers(level)) for level in range(5)] == [5, 14, 32, 68, 140]


def test_the_effective_side_of_an_even_footprint_is_that_of_the_share_and_of_a_peak_one_pixel():
    even = torch.zeros(40, 40)
    even[5:25, 5:25] = 1
    assert footprints.effective_side(even, share=0.81) == 18
    peak = even * 1e-6
    peak[14:16, 14:16] = 1
    assert footprints.effective_side(peak) == 2


@pytest.mark.parametrize("preset", ["smoke", "quick", "full"])
def test_networks_of_all_arms_have_the_same_number_of_parameters_within_1_percent(preset):
    with torch.device("meta"):
        counts = [count(claims.build(each, preset)) for each in (*claims.ARMS, *claims.SHALLOW_ARMS)]
    widths = unet.PRESETS[preset].widths
    assert all(len(each) == depth + 1 for depth, each in widths.items())
    assert max(counts) <= 1.01 * min(counts)


def test_the_arms_share_their_weights_and_differ_in_what_they_compute(images):
    arms = {source: arm(source) for source in claims.NETWORKS}
    weights = [each.state_dict() for each in arms.values()]
    for one, other in pairwise(weights):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    outputs = [each(images) for each in arms.values()]
    assert not any(torch.allclose(one, other) for one, other in pairwise(outputs))


def test_without_skips_the_network_is_the_u_net_that_is_given_its_own_upsampled_maps(images):
    bare, upsampled = arm("none"), {}
    for level, up in enumerate(bare.up):
        up.register_forward_hook(lambda module, inputs, output, level=level: upsampled.update({level: output}))
    expected = bare.decode(bare.encode(images))[0]
    maps = [upsampled[level] for level in range(3)] + [bare.encode(images)[-1]]
    assert torch.equal(arm("skip").decode(maps)[0], expected)


def test_without_skips_nothing_but_the_deepest_map_reaches_the_decoder(images):
    for source, unchanged in (("none", True), ("skip", False)):
        model = arm(source)
        maps = model.encode(images)
        noise = [torch.randn_like(each) for each in maps[:-1]] + [maps[-1]]
        assert torch.equal(model.decode(maps)[0], model.decode(noise)[0]) is unchanged


def test_silencing_a_skip_leaves_a_network_without_skips_as_it_is(images):
    for source, unchanged in (("none", True), ("skip", False)):
        model = arm(source)
        model.head.weight.data *= 100  # so that classes differ between pixels
        found = slices.segmented(model, images)
        assert torch.equal(unet.silenced(model, images, 0), found) is unchanged


def test_the_rarer_a_class_the_more_its_pixels_weigh():
    weights = unet.balance(torch.tensor([0] * 100 + [1] * 50 + [2] * 20 + [3]))
    assert weights[0] == 1
    assert weights.tolist() == sorted(weights.tolist())
    assert weights[3] == pytest.approx(100**0.85)


def test_cells_that_touch_are_parted_by_a_seam_and_others_stay_whole():
    labels = torch.zeros(12, 20, dtype=torch.long)
    labels[2:8, 2:7], labels[2:8, 7:12], labels[2:8, 14:18] = 1, 2, 3
    apart = unet.parted(labels)
    expected = labels > 0
    expected[2:8, 6:8] = False
    assert torch.equal(apart, expected)
    assert claims.pieces.pieces(labels > 0).max() == 2
    assert claims.pieces.pieces(apart).max() == 3


def test_the_weight_of_a_gap_follows_from_the_distances_to_the_two_nearest_cells_and_is_zero_within_cells():
    labels = torch.zeros(9, 30, dtype=torch.long)
    labels[:, 2:6], labels[:, 11:15], labels[:, 28:] = 1, 2, 3
    weights = unet.gap_weights(labels)
    assert weights[4, 8].item() == pytest.approx(10 * math.exp(-((3 + 3) ** 2) / (2 * 5**2)))
    assert weights[4, 6].item() == pytest.approx(10 * math.exp(-((1 + 5) ** 2) / (2 * 5**2)))
    assert weights[4, 20].item() == pytest.approx(10 * math.exp(-((6 + 8) ** 2) / (2 * 5**2)))
    assert not weights[labels > 0].any()


def test_the_energy_is_the_weighted_cross_entropy_of_the_class_weights():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(2, 4, 6, 5, generator=generator), torch.randint(4, (2, 6, 5), generator=generator)
    weights = torch.tensor([1.0, 2.0, 3.0, 9.0])
    expected = nn.functional.cross_entropy(scores, labels, weight=weights)
    assert unet.energy(scores, labels, weights[labels]).item() == pytest.approx(expected.item(), rel=1e-5)


def test_labels_pass_a_grid_of_single_pixels_unchanged_and_lose_thin_lines_on_coarser_ones():
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[:, :, 8:] = 1
    labels[:, 3] = 2
    assert torch.equal(claims.labels_through_grid(labels, 0), labels)
    assert set(claims.labels_through_grid(labels, 2).unique().tolist()) == {0, 1}


def test_the_window_keeps_the_tissue():
    cut = slices.cropped("train", 40, 0)
    whole = brain_slices("train", 40, seed=0, tumours=(2, 4))
    assert cut.images.shape == (40, 1, 96, 80)
    assert (cut.labels > 0).sum() >= 0.999 * (whole.labels > 0).sum()


def test_the_slice_that_is_shown_is_chosen_by_the_truth():
    made = slices.cropped("val", 12, 0)
    areas = [
        min(int((lesion == number).sum()) for number in lesion.unique()[1:].tolist())
        for lesion in made.lesions
        if lesion.any()
    ]
    assert abs(areas[slices.smallest_near(made, 16)] - 16) == min(abs(area - 16) for area in areas)


def test_spots_that_touch_a_tumour_are_not_false():
    truth, found = (torch.zeros(1, 24, 24, dtype=torch.bool) for _ in range(2))
    truth[0, 2:6, 2:6] = True
    found[0, 5:8, 5:8] = True
    found[0, 15:17, 15:17] = True
    assert slices.false_spots(found, truth) == 1


def test_dice_and_recall_of_what_is_not_there_are_undefined():
    """They were once recorded as 0."""
    nothing = torch.zeros(1, 8, 8, dtype=torch.long)
    assert math.isnan(slices.dices(nothing, nothing)["dice_tumour"])
    assert math.isnan(slices.recalls(nothing, nothing)["recall_small"])


def test_a_tumour_has_the_same_size_in_pixels_of_1_and_of_2_mm():
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[0, 4:8, 4:8] = TUMOUR  # 16 pixels: small at 2 mm
    fine = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert slices.recalls(labels, labels)["recall_small"] == slices.recalls(fine, fine, 1)["recall_small"] == 1
    assert math.isnan(slices.recalls(fine, fine, 2)["recall_small"])


class Settings:
    """As much of a run as the arms ask for."""

    preset, seeds, device = "smoke", (0, 1, 2), torch.device("cpu")


def test_a_network_that_finds_no_tumour_counts_as_failed_in_every_comparison(monkeypatch):
    """One of three networks once found nothing, and its zeros were taken for an effect."""

    class Blind(nn.Module):
        def __init__(self, blind: bool) -> None:
            super().__init__()
            self.blind, self.weight = blind, nn.Parameter(torch.zeros(1))

        def forward(self, images):
            scores = torch.zeros(len(images), unet.CLASSES, *images.shape[2:])
            scores[:, 0 if self.blind else TUMOUR] = 1
            return scores

    test = slices.cropped("test", 24, slices.FIXED)
    monkeypatch.setattr(claims, "trained", lambda run, arm: [Blind(arm == "none" and seed == 1) for seed in run.seeds])
    monkeypatch.setattr(claims, "FLOOR", 0.01)
    monkeypatch.setattr(claims, "data_of", lambda run, split: test)
    scores = claims.scores_of.__wrapped__(Settings())
    assert set(scores.failed) == {"none"}
    assert [math.isnan(value) for value in scores.minus("recall_large", "skip", "none")] == [False, True, False]


def test_the_network_of_the_file_to_read_is_that_of_the_first_seed_and_only_where_it_is_the_same_run(monkeypatch):
    read = types.ModuleType("__main__")
    read.run, read.model = Settings(), "read"
    monkeypatch.setitem(sys.modules, "__main__", read)
    monkeypatch.setattr(claims, "rates_of", lambda run: {"skip": unet.RATE, "none": unet.RATE, "other": 2 * unet.RATE})
    monkeypatch.setattr(claims, "fit", lambda run, arm, seed, rate: f"{arm} {seed}")
    trained = claims.trained.__wrapped__
    assert trained(read.run, "skip") == ["read", "skip 1", "skip 2"]
    assert trained(read.run, "none") == ["none 0", "none 1", "none 2"]
    assert trained(Settings(), "skip") == ["skip 0", "skip 1", "skip 2"]


def test_the_file_to_read_trains_its_network_as_the_experiments_do(tmp_path):
    from lab.run import Run

    run = Run.start("unet", argv=["--preset", "smoke", "--device", "cpu", "--out", str(tmp_path)])
    unet.seed_everything(run.seeds[0])
    model = unet.UNet(unet.PRESETS["smoke"].widths[unet.DEPTH])
    unet.train(run, model, run.seeds[0])
    again = claims.fit(run, "skip", run.seeds[0], unet.RATE)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_rate_is_chosen_on_validation_slices_and_alike_for_all_arms(monkeypatch):
    """Rates were once the best for all arms together, at the edge of their grid."""
    asked = []

    def search(run, what, arms, grid, score):
        asked.extend(arms)
        score("skip", grid[0], 100)
        return dict.fromkeys(arms, grid[0])

    data_of = claims.data_of
    monkeypatch.setattr(claims.study, "search", search)
    monkeypatch.setattr(claims, "data_of", lambda run, split: asked.append(split) or data_of(run, split))
    claims.rates_of.__wrapped__(Settings())
    assert asked == [*claims.ARMS, *claims.SHALLOW_ARMS, "val"]


needs_picture = pytest.mark.skipif(nuclei.missing() is not None, reason=str(nuclei.missing()))


@needs_picture
def test_the_arms_on_nuclei_differ_in_weights_and_labels_of_gaps_alone():
    (border, border_weights), (plain, plain_weights), (closed, _) = (claims.targets(arm) for arm in claims.GAP_ARMS)
    assert torch.equal(border, plain)
    more = border_weights - plain_weights
    assert torch.allclose(more, unet.gap_weights(nuclei.nuclei("train")[1]), atol=1e-5)
    assert not more[border == 1].any()
    seams = closed != plain
    assert seams.any()
    assert closed[seams].all()
    assert more[seams].min() > 5, "a seam is as thin as a gap can be"


@needs_picture
def test_no_network_learns_from_the_bands_that_choose_and_test(monkeypatch):
    asked = []
    band = nuclei.nuclei
    monkeypatch.setattr(nuclei, "nuclei", lambda split: asked.append(split) or band(split))
    claims.fit_nuclei(Settings(), "border", 0, 1e-3)
    assert set(asked) == {"train"}


def test_without_the_package_one_line_says_so_and_the_experiment_on_nuclei_is_left_out(monkeypatch, tmp_path, capsys):
    def absent(name):
        raise nuclei.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(nuclei.metadata, "distribution", absent)
    monkeypatch.setattr(nuclei, "nuclei", nuclei.nuclei.__wrapped__)
    monkeypatch.setattr(claims, "fit_nuclei", None)  # nothing is trained
    arguments = ["--preset", "smoke", "--device", "cpu", "--out", str(tmp_path), "--claims", "gaps"]
    monkeypatch.setattr(sys, "argv", ["unet.py", *arguments])
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # a test that ran before may have run a notebook
    runpy.run_path(unet.__file__, run_name="__main__")
    (line,) = [each for each in capsys.readouterr().out.splitlines() if "stardist" in each]
    assert line.startswith("Left out: ")
    assert line.endswith(nuclei.COMMAND)
    record = json.loads((tmp_path / "record.json").read_text("utf-8"))
    assert not {"gaps", "gaps_kept", "nuclei"} & {figure["name"] for figure in record["figures"]}
    assert record["results"]["nuclei_merged_gap_plain"]["values"] == [None]
    reasons = {each["reason"] for result in record["results"].values() for each in result["failed"]}
    assert all(each.endswith(line.removeprefix("Left out: ")) for each in reasons)


def test_the_file_to_read_uses_what_the_search_chose_and_no_choice_lies_at_the_edge():
    kept = json.loads((Path(claims.__file__).parent / "unet.searches.json").read_text("utf-8"))
    assert kept["learning rate"]["arms"]["skip"]["chosen"] == unet.RATE
    assert set(kept["learning rate for nuclei"]["arms"]) == set(claims.GAP_ARMS)
    assert not any(each["at_edge"] for search in kept.values() for each in search["arms"].values())


def test_published_weights_are_refused_since_there_are_none():
    """They were once accepted and ignored, and the record said "pretrained"."""
    from lab.run import Run

    with pytest.raises(SystemExit, match="loads no published weights"):
        Run.start("unet", pretrained=False, argv=["--weights", "pretrained", "--device", "cpu"])
    assert re.search(r'Run\.start\(\s*"unet", pretrained=False', Path(unet.__file__).read_text("utf-8"))


def test_the_network_of_the_paper_turns_572_pixels_into_388_with_23_convolutions():
    with torch.device("meta"):
        model, image = ValidUNet(), torch.empty(1, 1, 572, 572)
        assert model(image).shape == (1, 2, 388, 388)
    assert sum(isinstance(each, nn.Conv2d | nn.ConvTranspose2d) for each in model.modules()) == 23


@pytest.mark.parametrize(("channels", "classes", "width"), [(1, 2, 64), (3, 5, 8)])
def test_the_network_of_the_paper_has_as_many_parameters_as_its_figure_asks_for(channels, classes, width):
    # Level l has w = width * 2^l channels. Kernels: down 9 (w / 2 + w) w for l = 1..4 and 9 (channels + width) width
    # for l = 0; up 4 * 2 w w, merge 9 (2 w + w) w for l = 0..3. With the sums of 4^l, 340 and 85:
    kernels = (9 + 13.5 * 340 + 35 * 85) * width**2 + 9 * channels * width
    biases = (2 * 31 + 3 * 15) * width  # two per level down, three per level up
    head = classes * width + classes
    with torch.device("meta"):
        assert count(ValidUNet(channels, classes, width)) == kernels + biases + head


def test_tiles_of_the_network_of_the_paper_join_without_a_seam():
    torch.manual_seed(0)
    model, image = ValidUNet(width=2).eval(), torch.randn(1, 1, 204, 204)
    with torch.no_grad():
        whole, tile = model(image), model(image[..., 16:, 16:])
    assert torch.allclose(whole[..., 16:, 16:], tile, atol=1e-6)
