"""Charts: every point can be told from its neighbours, found in its table, and compared with no more than may be compared."""

from __future__ import annotations

import itertools
import json
import math
import re
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import vl_convert
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from made import add_backbones
from PIL import ImageFont

from scripts.cards.library import load_library
from scripts.evidence.knowledge import Knowledge
from scripts.pages import model
from scripts.pages.chart_style import SCHEMES, room, ticks
from scripts.pages.charts import PLOT, Chart, charts, explorable, frontiers, specification
from scripts.pages.labels import placed, width
from scripts.project import Project

FONT = ImageFont.truetype(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 10)
"""That the labels are written in."""


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    """The cards of this project, nothing run and nothing counted."""
    library, problems = load_library(ROOT / "model_cards", ROOT)
    assert not problems
    return Knowledge(library, {}, {})


@pytest.fixture(scope="module")
def drawn(knowledge: Knowledge) -> list[Chart]:
    found = charts(knowledge)
    assert len(found) > 5
    return found


@pytest.fixture
def backbones(tiny: Project) -> Knowledge:
    add_backbones(tiny)
    library, problems = load_library(tiny.cards, tiny.root)
    assert not problems
    return Knowledge(library, {}, {})


def layer(spec: dict[str, Any], mark: str, channel: str) -> dict[str, Any]:
    """The one layer with a mark and a channel."""
    (found,) = (each for each in spec["layer"] if each["mark"]["type"] == mark and channel in each["encoding"])
    return found


# colours


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_two_models_of_a_chart_share_a_colour(drawn: list[Chart], scheme: str) -> None:
    for chart in drawn:
        spec = specification(chart, scheme)
        for mark in ("point", "line"):
            scale = layer(spec, mark, "color")["encoding"]["color"]["scale"]
            assert scale["domain"] == chart.models
            assert len(set(scale["range"])) == len(scale["domain"]), f"{chart.name}: Vega repeats a short range"


def contrast(a: str, b: str) -> float:
    """By WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_colour_can_be_seen_on_the_page_and_told_from_the_others(scheme: str) -> None:
    css = (ROOT / "docs/assets/site.css").read_text("utf-8")
    light, dark = re.findall(r"--md-default-bg-color: (#\w{6});", css)
    page, colours = {"light": light, "dark": dark}[scheme], SCHEMES[scheme]["colours"]
    assert [colour for colour in colours if contrast(colour, page) < 3] == []
    assert len({colour.lower() for colour in colours}) == len(colours)
    assert contrast(SCHEMES[scheme]["ink"], page) >= 4.5
    assert contrast(SCHEMES[scheme]["muted"], page) >= 4.5


# legends


@pytest.mark.parametrize("narrow", [False, True])
def test_a_legend_names_each_model_and_the_picture_has_the_size_that_its_page_keeps_for_it(
    narrow: bool, drawn: list[Chart]
) -> None:
    chart = max(drawn, key=lambda chart: len(chart.models))
    svg = vl_convert.vegalite_to_svg(specification(chart, "light", narrow))
    assert svg.count("role-legend-label") >= 1
    legend = svg.partition("role-legend-label")[2]
    assert [model for model in chart.models if f">{model}<" not in legend] == []
    size = re.search(r'width="(\d+)" height="(\d+)"', svg)
    assert size is not None
    wanted = chart.narrow_size if narrow else chart.size
    assert [int(side) for side in size.groups()] == pytest.approx(wanted, abs=4)


def test_on_a_phone_names_stay_within_the_narrow_plot(drawn: list[Chart]) -> None:
    for chart in drawn:
        assert sum(map(len, chart.narrow_names.values())) <= sum(map(len, chart.names.values()))
        assert chart.narrow_size[0] <= 328, "what 360 px leave for a picture"


# axes


def test_axes_leave_room_around_every_point(drawn: list[Chart]) -> None:
    for chart in drawn:
        scales = specification(chart, "light")["encoding"]
        for axis in "xy":
            low, high = scales[axis]["scale"]["domain"]
            assert all(low < point[axis] < high for point in chart.points)


SPANS = st.tuples(st.floats(1e-3, 1e12), st.floats(1.2, 1e6))


@given(SPANS)
def test_ticks_are_round_and_lie_within_the_axis(span: tuple[float, float]) -> None:
    low, high = span[0], span[0] * span[1]
    found = ticks(low, high)
    assert len(found) >= 2
    assert found == sorted(set(found))
    assert all(low <= tick <= high for tick in found)
    powers = [10.0**e for e in range(-4, 20)]
    preferred = [digit * power for power in powers for digit in (1, 2, 5) if low <= digit * power <= high]
    if len(preferred) >= 3:
        assert found == pytest.approx(preferred), "1, 2, 5 times a power of ten where there are three of them"
    else:
        assert all(tick == pytest.approx(float(f"{tick:.1e}")) for tick in found), "else two digits"


@given(st.lists(st.floats(1e-3, 1e12), min_size=1, max_size=5))
def test_the_room_of_an_axis_is_the_same_on_both_sides(values: list[float]) -> None:
    low, high = room(values)
    assert low < min(values) <= max(values) < high
    assert min(values) / low == pytest.approx(high / max(values))


def test_latencies_of_two_devices_never_share_an_axis(drawn: list[Chart]) -> None:
    titles = [chart.axis for chart in drawn if chart.axis.startswith("Latency")]
    assert titles
    assert all(" on " in title for title in titles)


# labels

POINTS = st.lists(
    st.fixed_dictionaries({
        "x": st.floats(1, 1000), "y": st.floats(0, 100), "label": st.text("ABWMil-1", min_size=1, max_size=30),
    }),
    min_size=1, max_size=40,
)  # fmt: skip


def boxes(chart_points: Any, domain: Any, width_of: Any) -> tuple[list[tuple[str, Any]], list[Any]]:
    """Boxes of the labels and of the dots in pixels, as Vega lays them out."""

    def at(point: Any) -> tuple[float, float]:
        (left, right), (low, high) = domain
        x = PLOT[0] * (math.log(point["x"]) - math.log(left)) / (math.log(right) - math.log(left))
        return x, PLOT[1] * (1 - (point["y"] - low) / (high - low))

    dots = [(x - 4.7, y - 4.7, x + 4.7, y + 4.7) for x, y in map(at, chart_points)]  # a circle of area 70
    labels = []
    for side, texts in placed(chart_points, domain, PLOT).items():
        for text in texts:
            x, y = at(text)
            wide = width_of(text["label"])
            start = x + side.dx - {"left": 0, "center": wide / 2, "right": wide}[side.align]
            labels.append((text["label"], (start, y + side.dy - 5, start + wide, y + side.dy + 5)))
    return labels, dots


def covers(a: Any, b: Any) -> bool:
    return bool(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


@given(POINTS)
def test_no_label_covers_a_point_or_another_label(points: Any) -> None:
    domain = (room([point["x"] for point in points]), [-10.0, 110.0])
    labels, dots = boxes(points, domain, width)
    assert not any(covers(a, b) for (_, a), (_, b) in itertools.combinations(labels, 2))
    assert not any(covers(box, dot) for _, box in labels for dot in dots)
    assert all(min(box) >= 0 and box[2] <= PLOT[0] and box[3] <= PLOT[1] for _, box in labels)
    assert {text for text, _ in labels} <= {point["label"] for point in points}
    assert len({text for text, _ in labels}) == len(labels), "a name is written once"


def test_the_labels_of_our_charts_do_not_overlap_in_the_font_that_they_are_written_in(drawn: list[Chart]) -> None:
    written = 0
    for chart in drawn:
        labels, dots = boxes(chart.points, chart.domain, FONT.getlength)
        written += len(labels)
        overlaps = [(a, b) for (a, box), (b, other) in itertools.combinations(labels, 2) if covers(box, other)]
        assert overlaps == [], chart.name
        assert [text for text, box in labels for dot in dots if covers(box, dot)] == [], chart.name
    assert written > 50


@given(st.text(string.ascii_letters + string.digits + "-+/.,() α±", max_size=26))
def test_no_name_is_wider_than_it_is_taken_for(text: str) -> None:
    assert FONT.getlength(text) <= width(text) + 0.5


def test_a_lonely_point_has_its_label() -> None:
    point = {"x": 10.0, "y": 50.0, "label": "Alone"}
    assert [text for texts in placed([point], ([1, 100], [0, 100]), PLOT).values() for text in texts] == [point]


# points


def test_every_point_leads_to_a_table_that_stands_on_the_page(drawn: list[Chart], knowledge: Knowledge) -> None:
    wanted = {point["href"] for chart in drawn for point in chart.points}
    slugs = {href.split("/")[2] for href in wanted}
    pages = {slug: model.page(knowledge.library.cards[slug], knowledge) for slug in slugs}
    for href in wanted:
        slug, anchor = href.removeprefix("../models/").split("/#")
        assert f'id="{anchor}"' in pages[slug], href


def test_figures_without_a_cost_of_their_system_are_left_out_and_counted(backbones: Knowledge) -> None:
    by_axis = {chart.axis: chart for chart in charts(backbones) if chart.metric.startswith("AP")}
    parameters, macs = by_axis["Parameters"], by_axis["MACs"]
    names = sorted((point["label"], point["y"]) for point in parameters.points if point["model"] == "Gamma")
    assert names == [("Gamma-S", 51.9), ("Gamma-S", 52.8), ("Gamma-T", 46.0), ("Gamma-T", 50.4), ("Gamma-T", 51.5)]
    left_out = "{} more figures are left out: no {} of the same system is known."
    assert left_out.format(2, "parameters") in parameters.caption, "Gamma-S and Delta-S in Mask R-CNN"
    assert sorted(point["y"] for point in macs.points if point["model"] == "Gamma") == [46.0, 50.4]
    assert left_out.format(14 - len(macs.points), "MACs") in macs.caption


def test_ablations_rivals_and_independent_figures_are_not_drawn(backbones: Knowledge) -> None:
    def marked(change: dict[str, Any]) -> int:
        card = backbones.library.cards["gamma"]
        table = card.tables["one"].model_copy(update=change)
        other = card.model_copy(update={"tables": {**card.tables, "one": table}})
        library = replace(backbones.library, cards={**backbones.library.cards, "gamma": other})
        return sum(
            point["model"] == "Gamma" and point["y"] == 46.0
            for chart in charts(Knowledge(library, {}, {}))
            for point in chart.points
        )

    assert marked({}) == 2
    assert marked({"aside": True}) == 0
    assert marked({"independent": {"by": "A lab", "how": "So.", "when": "2026"}}) == 0


# lines


def line_of(chart: Chart, label: str, y: float) -> str:
    (found,) = (point["line"] for point in chart.points if (point["label"], point["y"]) == (label, y))
    return str(found)


def test_a_line_joins_the_sizes_of_one_design_under_equal_conditions(backbones: Knowledge) -> None:
    library = backbones.library
    gamma = library.cards["gamma"]
    sizes = {key: variant.model_copy(update={"design": "gamma"}) for key, variant in gamma.variants.items()}
    designed = replace(library, cards={**library.cards, "gamma": gamma.model_copy(update={"variants": sizes})})
    (chart,) = (
        each for each in charts(Knowledge(designed, {}, {})) if each.title == "AP on COCO val2017 against parameters"
    )
    assert line_of(chart, "Gamma-T", 50.4) == line_of(chart, "Gamma-S", 51.9)
    assert line_of(chart, "Gamma-T", 50.4) != line_of(chart, "Gamma-T", 46.0), "another framework"
    assert line_of(chart, "Gamma-T", 50.4) != line_of(chart, "Gamma-T", 51.5), "another input"
    assert line_of(chart, "Delta-T", 49.9) != line_of(chart, "Delta-S", 51.9), "no design is given"
    for scheme in SCHEMES:
        assert layer(specification(chart, scheme), "line", "color")["encoding"]["detail"] == {"field": "line"}


def test_no_line_of_our_charts_joins_two_designs_or_two_sets_of_conditions(
    drawn: list[Chart], knowledge: Knowledge
) -> None:
    designs = {
        (card.name, variant.name): variant.design or key
        for card in knowledge.cards
        for key, variant in card.variants.items()
    }
    joined = 0
    for chart in drawn:
        for _, points in itertools.groupby(sorted(chart.points, key=lambda p: p["line"]), key=lambda p: p["line"]):
            told = [(p["model"], designs[p["model"], p["label"]], p["conditions"]) for p in points]
            joined += len(told) > 1
            assert len(set(told)) == 1
    assert joined > 5


# frontiers

GROUPS = st.lists(
    st.fixed_dictionaries({
        "x": st.integers(1, 9), "y": st.integers(1, 9), "model": st.sampled_from("ABC"), "conditions": st.sampled_from("uv"),
    }),
    max_size=12,
)  # fmt: skip


@given(GROUPS, st.booleans())
def test_a_frontier_holds_what_nothing_cheaper_of_its_group_beats(points: Any, higher: bool) -> None:
    chart = Chart("n", "t", "c", "a", tuple(points), "AP", "MACs", higher)
    found = {(each["group"], each["x"], each["y"]) for each in frontiers(chart)}
    sign = 1 if higher else -1
    expected = set()
    for group in "uv":
        of_group = [point for point in points if point["conditions"] == group]
        if len(of_group) < 3 or len({point["model"] for point in of_group}) < 2:
            continue
        expected |= {
            (group, p["x"], p["y"])
            for p in of_group
            if not any(
                q["x"] <= p["x"] and sign * q["y"] >= sign * p["y"] and (q["x"], q["y"]) != (p["x"], p["y"])
                for q in of_group
            )
        }
    assert found == expected


# files


def test_the_data_to_explore_holds_the_drawn_points_for_both_schemes(drawn: list[Chart]) -> None:
    for chart in drawn:
        told = json.loads(explorable(chart))
        assert told.keys() == set(SCHEMES)
        for spec in told.values():
            assert [(p["x"], p["y"], p["variant"]) for p in spec["data"]["values"]] == [
                (p["x"], p["y"], p["variant"]) for p in chart.points
            ]


def test_no_two_charts_have_one_name(drawn: list[Chart]) -> None:
    assert len({chart.name for chart in drawn}) == len(drawn)


@pytest.mark.parametrize(
    ("slugs", "number"),
    [(("alpha", "gamma"), 1), (("gamma",), 0), (("alpha", "beta"), 0), (("alpha", "beta", "gamma"), 1)],
)
def test_a_benchmark_of_one_model_or_of_few_figures_has_no_chart(
    slugs: tuple[str, ...], number: int, backbones: Knowledge
) -> None:
    some = replace(backbones.library, cards={slug: backbones.library.cards[slug] for slug in slugs})
    found = [chart.title for chart in charts(Knowledge(some, {}, {}))]
    assert found == ["AP on COCO val2017 against parameters"] * number
