"""The U-Net example: shapes, receptive fields, arms that differ in one thing only, and the network of the paper."""

import importlib
import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from scripts.architectures.definitions.unet import ValidUNet

pytestmark = pytest.mark.torch

unet = importlib.import_module("unet")
WIDTHS = (4, 6, 8, 10)  # three poolings


def count(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 1, 32, 24, generator=torch.Generator().manual_seed(0))


def arm(source: str) -> nn.Module:
    """A network with the same weights whatever its source."""
    torch.manual_seed(0)
    return unet.UNet(WIDTHS, source).eval()


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
    x0, y0, x1, y1 = unet.bounding_box(unet.gradient_footprint(model, level, noise))
    assert x1 - x0 == y1 - y0 == unet.receptive_field(unet.encoder_layers(level))


def test_receptive_fields_follow_from_their_recursion():
    assert [unet.receptive_field(unet.encoder_layers(level)) for level in range(5)] == [5, 14, 32, 68, 140]


def test_the_effective_side_of_an_even_footprint_is_that_of_the_share_and_of_a_peak_one_pixel():
    even = torch.zeros(40, 40)
    even[5:25, 5:25] = 1
    assert unet.effective_side(even, share=0.81) == 18
    peak = even * 1e-6
    peak[14:16, 14:16] = 1
    assert unet.effective_side(peak) == 2


@pytest.mark.parametrize("preset", ["smoke", "quick", "full"])
def test_networks_of_all_depths_have_the_same_number_of_parameters_within_1_percent(preset):
    widths = unet.PRESETS[preset].widths
    with torch.device("meta"):
        counts = [count(unet.UNet(each)) for each in widths.values()]
    assert all(len(each) == depth + 1 for depth, each in widths.items())
    assert max(counts) <= 1.01 * min(counts)


def test_the_arms_share_their_weights_and_differ_in_what_they_compute(images):
    arms = {source: arm(source) for source in ("skip", "coarse", "none")}
    weights = [each.state_dict() for each in arms.values()]
    for one, other in pairwise(weights):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    outputs = [each(images) for each in arms.values()]
    assert not any(torch.allclose(one, other) for one, other in pairwise(outputs))


def test_without_skips_the_network_is_the_u_net_that_is_given_its_own_upsampled_maps(images):
    bare, upsampled = arm("none"), []
    for up in bare.up:
        up.register_forward_hook(lambda module, inputs, output: upsampled.append(output))
    expected = bare.decode(bare.encode(images))[0]
    deepest = bare.encode(images)[-1]
    assert torch.equal(arm("skip").decode([*upsampled[::-1], deepest])[0], expected)


def test_without_skips_nothing_but_the_deepest_map_reaches_the_decoder(images):
    for source, unchanged in (("none", True), ("skip", False), ("coarse", False)):
        model = arm(source)
        maps = model.encode(images)
        noise = [torch.randn_like(each) for each in maps[:-1]] + [maps[-1]]
        assert torch.equal(model.decode(maps)[0], model.decode(noise)[0]) is unchanged


def test_coarse_skips_do_not_tell_where_in_a_cell_a_feature_lies(images):
    for source, blind in (("coarse", True), ("skip", False)):
        model = arm(source)
        maps = model.encode(images)
        within = [maps[0].unflatten(3, (-1, 8)).flip(4).flatten(3), *maps[1:]]  # columns swapped within cells of 8
        across = [maps[0].flip(3), *maps[1:]]
        expected = model.decode(maps)[0]
        assert torch.allclose(model.decode(within)[0], expected, atol=1e-5) is blind
        assert not torch.allclose(model.decode(across)[0], expected, atol=1e-5)


def test_silencing_a_skip_leaves_a_network_without_skips_as_it_is(images):
    for source, unchanged in (("none", True), ("skip", False)):
        model = arm(source)
        model.head.weight.data *= 100  # so that classes differ between pixels
        found = unet.segmented(model, images)
        assert torch.equal(unet.silenced(model, images, 0), found) is unchanged


def test_the_rarer_a_class_the_more_its_pixels_weigh():
    weights = unet.balance(torch.tensor([0] * 100 + [1] * 50 + [2] * 20 + [3]))
    assert weights[0] == 1
    assert weights.tolist() == sorted(weights.tolist())
    assert weights[3] == pytest.approx(100**0.85)


def test_labels_pass_a_grid_of_single_pixels_unchanged_and_lose_thin_lines_on_coarser_ones():
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[:, :, 8:] = 1
    labels[:, 3] = 2
    assert torch.equal(unet.labels_through_grid(labels, 0), labels)
    assert set(unet.labels_through_grid(labels, 2).unique().tolist()) == {0, 1}


def test_the_window_keeps_the_tissue():
    slices = unet.slices_of("train", 40, 0, 2)
    whole = unet.brain_slices("train", 40, seed=0, tumours=(2, 4))
    assert slices.images.shape == (40, 1, 96, 80)
    assert (slices.labels > 0).sum() >= 0.999 * (whole.labels > 0).sum()


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


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unet")
    unet.main(["--preset", "smoke", "--device", "cpu", "--out", str(folder)])
    return folder, json.loads((folder / "record.json").read_text("utf-8"))


def test_a_smoke_run_records_every_arm_depth_and_level(smoke):
    _, record = smoke
    arms, tissues, sizes = ("coarse", "none", "none_longer"), ("grey", "white", "tumour"), ("small", "medium", "large")
    measures = [f"dice_{tissue}" for tissue in tissues] + [f"recall_{size}" for size in sizes]
    names = {f"{measure}_{each}" for measure in measures for each in ("skip", *arms)}
    names |= {f"{measure}_gap_{each}" for measure in measures for each in arms}
    names |= {f"recall_gap_small_minus_large_{each}" for each in arms[1:]}
    names |= {f"{measure}_lost_without_level{level}" for measure in measures[:3] for level in range(3)}
    names |= {f"field_{kind}_level{level}" for kind in ("formula", "gradient", "effective") for level in range(5)}
    names |= {f"{kind}_depth{depth}" for kind in ("parameters", "macs") for depth in (2, 3, 4)}
    by_depth = [f"{measure}_{kind}" for measure in measures[:3] for kind in ("skip", "none", "gap", "grid")]
    names |= {f"{each}_depth{depth}" for each in by_depth for depth in (2, 3, 4)}
    names |= {f"{measure}_{source}_lost_with_depth" for measure in measures[:3] for source in ("skip", "none")}
    assert set(record["results"]) == names
    gap = record["results"]["dice_grey_gap_none"]["values"][0]
    parts = (record["results"][f"dice_grey_{source}"]["values"][0] for source in ("skip", "none"))
    assert gap == pytest.approx(next(parts) - next(parts))


def test_a_smoke_run_draws_every_figure(smoke):
    folder, record = smoke
    figures = {figure["name"]: figure for figure in record["figures"]}
    named = ("feature_maps", "receptive_field", "silenced_skips", "skips", "curves", "segmentations", "depth")
    assert set(figures) == set(named)
    assert all((folder / figure[scheme]).is_file() for figure in figures.values() for scheme in ("light", "dark"))
