"""Colours that are readable, drawings that repeat, and helpers that draw what they are given."""

import itertools
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lab import figures
from lab.figures import DARK, LIGHT, STYLES, draw_boxes, panels, save, seed_bars, seed_lines, show_image, using
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

pytestmark = pytest.mark.torch

# Machado, Oliveira and Fernandes, IEEE TVCG 15(6), 2009: dichromats (severity 1.0), linear RGB.
PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
XYZ_FROM_RGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear_rgb(colour: str) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(colour: str, page: str) -> float:
    """Contrast ratio, WCAG 2.2."""
    low, high = sorted(linear_rgb(each) @ [0.2126, 0.7152, 0.0722] for each in (colour, page))
    return (high + 0.05) / (low + 0.05)


def lab_from_rgb(rgb: np.ndarray) -> np.ndarray:
    """CIELAB under D65 from linear RGB."""
    xyz = XYZ_FROM_RGB @ rgb.clip(0, 1) / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def draw_lines(style):
    figure, ax = panels(1, 2, height=2.4)
    seed_lines(ax[0, 0], [0, 1, 2], [[0, 1, 2], [1, 2, 3]], "U-Net")
    ax[0, 0].legend()
    seed_bars(ax[0, 1], ["small", "large"], [[1, 2, 3], [2, 3, 4]])
    return figure


def draw_noise(style):
    figure, ax = panels()
    show_image(ax[0, 0], np.random.default_rng(0).random((700, 700, 3)))
    return figure


@pytest.fixture
def ax():
    with using(LIGHT):
        yield panels()[1][0, 0]


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_text_is_readable_on_the_page_and_on_panels(style):
    assert contrast(style.ink, style.page) >= 7
    assert contrast(style.ink, style.panel) >= 7
    assert contrast(style.muted, style.page) >= 4.5


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_series_stand_out_from_the_page(style):
    assert all(contrast(colour, style.page) >= 3 for colour in style.cycle)


@pytest.mark.parametrize(
    "sight", [np.eye(3), PROTANOPIA, DEUTERANOPIA], ids=["all cones", "protanopia", "deuteranopia"]
)
@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_series_are_told_apart_by_every_sight(style, sight):
    seen = [lab_from_rgb(sight @ linear_rgb(colour)) for colour in style.cycle]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


def test_both_styles_offer_the_same_number_of_colours():
    assert len(LIGHT.cycle) == len(DARK.cycle)
    assert (LIGHT.name, DARK.name) == ("light", "dark")


def test_drawings_are_written_as_svg_in_both_styles(tmp_path):
    light, dark, width, height = save(draw_lines, tmp_path, "lines")
    assert (light, dark) == (tmp_path / "lines.light.svg", tmp_path / "lines.dark.svg")
    assert (width, height) == (691, 230)
    assert LIGHT.ink in light.read_text()
    assert DARK.ink in dark.read_text()


def test_the_page_shows_through(tmp_path):
    light, *_ = save(draw_lines, tmp_path, "lines")
    patch = re.search(r'<g id="patch_1">.*?</g>', light.read_text(), re.DOTALL)[0]
    assert re.search(r"fill: none|opacity: 0", patch)


def test_text_is_drawn_as_paths(tmp_path):
    light, *_ = save(draw_lines, tmp_path, "lines")
    assert "<text" not in light.read_text()


def test_the_same_drawing_gives_the_same_bytes(tmp_path):
    once = [path.read_bytes() for path in save(draw_lines, tmp_path / "a", "lines")[:2]]
    mpl.rcParams["font.size"] = 17  # settings of the machine do not matter
    try:
        again = [path.read_bytes() for path in save(draw_lines, tmp_path / "b", "lines")[:2]]
    finally:
        mpl.rcdefaults()
    assert once == again
    assert b"<dc:date>" not in once[0]


def test_a_file_that_would_not_change_is_not_written(tmp_path, monkeypatch):
    save(draw_lines, tmp_path, "lines")
    monkeypatch.setattr(Path, "write_bytes", lambda *_: pytest.fail("written again"))
    save(draw_lines, tmp_path, "lines")


def test_heavy_pictures_become_webp_at_twice_the_resolution_in_both_styles(tmp_path):
    light, dark, width, height = save(draw_noise, tmp_path, "noise")
    assert (light.suffix, dark.suffix) == (".webp", ".webp")
    pixels = plt.imread(light)
    assert pixels.shape[:2] == pytest.approx((2 * height, 2 * width), abs=1)
    assert pixels[0, 0, 3] == 0  # the corner is transparent
    assert not list(tmp_path.glob("*.svg"))


def test_settings_and_figures_of_the_process_stay_as_they_were(tmp_path):
    def draw(style):
        return plt.figure(figsize=(2, 2))

    before, open_before = dict(mpl.rcParams), plt.get_fignums()
    save(draw, tmp_path, "empty")
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == open_before


def test_a_draw_function_must_return_a_figure(tmp_path):
    with pytest.raises(TypeError, match="must return a matplotlib Figure, not NoneType"):
        save(lambda style: None, tmp_path, "nothing")


def test_both_styles_must_draw_the_same_size(tmp_path):
    with pytest.raises(ValueError, match="draw both alike"):
        save(lambda style: panels(width=2 if style is DARK else 3, height=2)[0], tmp_path, "sizes")


def test_panels_is_a_grid_even_for_one():
    assert panels()[1].shape == (1, 1)
    assert panels(2, 3)[1].shape == (2, 3)
    assert panels(2, 3, height=5.0)[0].get_size_inches().tolist() == [7.2, 5.0]


@given(arrays(float, (3, 4), elements=st.floats(-100, 100)))
def test_a_seed_line_is_the_mean_within_the_range_of_the_seeds(values):
    ax = panels()[1][0, 0]
    seed_lines(ax, [0, 1, 2, 3], values, "U-Net", colour="#123456")
    (line,), (band,) = ax.lines, ax.collections
    assert line.get_ydata() == pytest.approx(values.mean(0))
    assert line.get_color() == "#123456"
    corners = band.get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == pytest.approx((values.min(), values.max()))


@pytest.mark.parametrize("shape", [(3,), (3, 5), (0, 4), (2, 3, 4)])
def test_seed_lines_need_one_row_per_seed(ax, shape):
    with pytest.raises(ValueError, match="one row per seed"):
        seed_lines(ax, range(4), np.zeros(shape), "x")


def test_seed_lines_follow_the_colours_of_the_style(ax):
    for name in ("a", "b"):
        seed_lines(ax, [0, 1], [[0, 1]], name)
    assert [line.get_color() for line in ax.lines] == list(LIGHT.cycle[:2])


def test_seed_bars_show_mean_seeds_and_range(ax):
    seed_bars(ax, ["small", "large"], [[1.0, 2.0, 6.0], [4.0]])
    assert [bar.get_height() for bar in ax.patches] == [3.0, 4.0]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[1.0, 2.0, 6.0], [4.0]]
    assert ax.collections[0].get_segments()[0][:, 1].tolist() == [1.0, 6.0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["small", "large"]


@pytest.mark.parametrize("values", [[[1.0]], [[1.0], []]])
def test_seed_bars_need_values_for_each_label(ax, values):
    with pytest.raises(ValueError, match="2 labels"):
        seed_bars(ax, ["a", "b"], values)


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (5, 7, 1), (3, 5, 7), (5, 7, 3)])
def test_show_image_takes_gray_and_colour_in_both_orders(ax, shape):
    show_image(ax, torch.rand(shape))
    assert ax.images[0].get_array().shape[:2] == (5, 7)


def test_show_image_keeps_the_range_of_gray_values(ax):
    show_image(ax, torch.full((4, 4), 0.5), title="gray")
    assert ax.images[0].get_clim() == (0.0, 1.0)
    assert ax.get_title() == "gray"


def test_show_image_keeps_single_pixels_of_small_images_only(ax):
    show_image(ax, np.zeros((8, 8)))
    show_image(ax, np.zeros((512, 512)))
    assert [image.get_interpolation() for image in ax.images] == ["none", "auto"]


def test_show_image_refuses_what_is_no_image(ax):
    with pytest.raises(ValueError, match="an image is"):
        show_image(ax, np.zeros((2, 5, 7)))


def test_boxes_lie_on_the_edges_of_pixels(ax):
    show_image(ax, np.zeros((6, 8)))
    draw_boxes(ax, torch.tensor([[0, 0, 8, 6], [2, 1, 5, 4]]), labels=["all", "3"])
    bounds = [patch.get_bbox().bounds for patch in ax.patches]
    assert bounds == [(-0.5, -0.5, 8, 6), (1.5, 0.5, 3, 3)]
    assert ax.get_xlim() == (-0.5, 7.5)
    assert [text.get_text() for text in ax.texts] == ["all", "3"]


def test_no_boxes_draw_nothing(ax):
    draw_boxes(ax, torch.zeros(0, 4), labels=[])
    assert not ax.patches


def test_boxes_and_labels_must_fit(ax):
    with pytest.raises(ValueError, match="boxes must be"):
        draw_boxes(ax, np.zeros((2, 5)))
    with pytest.raises(ValueError, match="1 labels for 2 boxes"):
        draw_boxes(ax, np.zeros((2, 4)), labels=["a"])


def test_the_default_box_colour_stands_out_from_its_dark_rim():
    assert contrast(figures.BOX_COLOUR, "#000000") > 7


def test_labels_stay_within_the_image(ax):
    show_image(ax, np.zeros((64, 64)))
    draw_boxes(ax, [[0, 0, 64, 64], [10, 20, 40, 50]], labels=["at the top", "below"])
    assert [text.get_va() for text in ax.texts] == ["top", "bottom"]
