"""The pages on which a reader decides: what they are made from, without a browser (for that see test_browser.py)."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from conftest import ROOT

from scripts import charts, choice, comparison, detectors, licensing, lineage, runs, site
from scripts.cards import Library, load_library
from scripts.knowledge import Knowledge, introduction
from scripts.numbers import Published, comparability, differences, published
from scripts.project import Project


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    """The cards of this project, nothing run and nothing counted."""
    library, problems = load_library(ROOT / "model_cards", ROOT)
    assert not problems
    return Knowledge(library, {}, {})


def numbers(library: Library) -> list[Published]:
    return [number for card in library.cards.values() for number in published(card)]


# comparability


def test_numbers_of_one_group_differ_in_nothing_that_matters(knowledge: Knowledge) -> None:
    metrics = knowledge.library.vocabulary["metrics"]
    groups: dict[tuple, list[Published]] = {}
    for number in numbers(knowledge.library):
        groups.setdefault((number.metric, comparability(number, metrics)), []).append(number)
    assert max(map(len, groups.values())) > 10
    for group in groups.values():
        assert all(differences(group[0], other, metrics) == ([], []) for other in group[1:])


def test_numbers_of_two_groups_differ_in_something_that_matters(knowledge: Knowledge) -> None:
    metrics = knowledge.library.vocabulary["metrics"]
    of_ap = [number for number in numbers(knowledge.library) if number.metric == "AP"]
    for a, b in zip(of_ap, of_ap[7:], strict=False):
        together = comparability(a, metrics) == comparability(b, metrics)
        assert together == (differences(a, b, metrics) == ([], []))


# compare


def test_the_numbers_to_compare_leave_out_rivals_and_ablations(knowledge: Knowledge) -> None:
    content = json.loads(comparison.render(knowledge)["api/compare.json"])
    for slug, entries in content["numbers"].items():
        rivals = {v.name for v in knowledge.library.cards[slug].variants.values() if v.for_comparison}
        assert not rivals & {entry["variant"] for entry in entries}
    assert content["numbers"].keys() == set(knowledge.library.cards)


def test_a_group_holds_one_metric_under_one_set_of_conditions(knowledge: Knowledge) -> None:
    content = json.loads(comparison.render(knowledge)["api/compare.json"])
    seen: dict[int, tuple] = {}
    for entry in (entry for entries in content["numbers"].values() for entry in entries):
        told = (entry["metric"], entry["on"], tuple(sorted(entry["conditions"].items())))
        assert seen.setdefault(entry["group"], told) == told


# choose


def test_every_question_asks_for_a_fact_that_every_model_has(knowledge: Knowledge) -> None:
    facts = [choice.facts(card, knowledge) for card in knowledge.cards]
    for question in choice.content(knowledge)["questions"]:
        if "rule" in question:
            assert all(question["rule"]["fact"] in each for each in facts)
            assert question["rule"]["test"] in ("contains", "at_most", "allows")


def test_options_are_spelled_out_and_each_can_be_met(knowledge: Knowledge) -> None:
    facts = [choice.facts(card, knowledge) for card in knowledge.cards]
    questions = {question["id"]: question for question in choice.content(knowledge)["questions"]}
    assert all(any(task in each["tasks"] for each in facts) for task in questions["task"]["options"])
    assert all(any(device in each["latency_ms"] for each in facts) for device in questions["device"]["options"])
    assert questions["use"]["options"] == licensing.all_uses(knowledge)


def test_an_image_rate_at_batch_one_counts_as_a_latency(knowledge: Knowledge) -> None:
    card = knowledge.library.cards["detr"]
    rates = [n for n in published(card) if n.metric == "fps" and n.conditions.batch == "1" and n.conditions.hardware]
    fastest = max(rate.quantity.value for rate in rates if rate.conditions.hardware == "V100")
    assert choice.facts(card, knowledge)["latency_ms"]["V100"] <= 1000 / fastest + 1e-9


def test_the_weight_of_a_model_is_four_bytes_for_each_parameter_of_its_smallest_size(knowledge: Knowledge) -> None:
    assert choice.facts(knowledge.library.cards["vit"], knowledge)["weights_gb"] == pytest.approx(4 * 0.086)


# licences


def test_the_worst_of_code_and_weights_decides(knowledge: Knowledge) -> None:
    rows = {row.card.slug: row for row in reversed(licensing.rows(knowledge))}  # the first release of each card
    assert rows["yolov8"].uses["closed product"] == "no"
    assert rows["timesformer"].uses["research"] == "yes"
    assert rows["timesformer"].uses["internal use"] == "no"
    assert "CC-BY-NC-4.0" in rows["timesformer"].reasons["internal use"]
    assert rows["detectron2"].uses["closed product"] == "terms"


def test_terms_of_training_data_cast_a_doubt_but_no_ban(knowledge: Knowledge) -> None:
    words = dict(knowledge.library.vocabulary)
    words["datasets"] = {"Secret": {"licence": "CC-BY-NC-4.0"}}
    card = knowledge.library.cards["detr"]
    release = licensing.releases(card)[0].model_copy(update={"data": ("Secret",), "packages": ()})
    relicensed = card.model_copy(update={"licences": card.licences.model_copy(update={"releases": (release,)})})
    library = replace(knowledge.library, cards={"detr": relicensed}, vocabulary=words)
    (row,) = licensing.rows(Knowledge(library, {}, {}))
    assert row.doubt == ("Secret",)
    assert row.uses["closed product"] == "yes"


def test_a_licence_without_a_verdict_is_unclear(knowledge: Knowledge) -> None:
    card = knowledge.library.cards["detr"]
    odd = card.model_copy(update={"licences": card.licences.model_copy(update={"code": "Zlib", "releases": ()})})
    library = replace(knowledge.library, cards={"detr": odd})
    assert set(licensing.uses(odd, Knowledge(library, {}, {})).values()) == {"unclear"}


def test_every_licence_of_a_card_has_a_verdict(knowledge: Knowledge) -> None:
    known = knowledge.library.vocabulary["licences"].keys()
    for card in knowledge.cards:
        for release in licensing.releases(card):
            assert {release.code, release.weights} <= known, card.slug


# lineage


def test_a_line_leads_from_the_older_model_to_the_newer_one(knowledge: Knowledge) -> None:
    years = {card.slug: introduction(card).year for card in knowledge.cards}
    links = lineage.links(knowledge.cards)
    assert ("faster-rcnn", "mask-rcnn") in links
    assert all(years[a] <= years[b] for a, b in links)


def test_no_two_models_are_drawn_over_each_other(knowledge: Knowledge) -> None:
    nodes = lineage.drawing(knowledge).nodes
    assert len(nodes) == len(knowledge.cards)
    for i, a in enumerate(nodes):
        for b in nodes[:i]:
            assert abs(a.x - b.x) >= lineage.WIDTH or abs(a.y - b.y) >= lineage.HEIGHT


def test_the_lineage_stays_within_its_drawing(knowledge: Knowledge) -> None:
    drawing = lineage.drawing(knowledge)
    assert all(0 <= node.x <= drawing.width - lineage.WIDTH for node in drawing.nodes)
    assert all(0 <= node.y <= drawing.height - lineage.HEIGHT for node in drawing.nodes)


# charts


def test_axes_leave_room_around_every_point(knowledge: Knowledge) -> None:
    drawn = charts.charts(knowledge)
    assert drawn
    for chart in drawn:
        scales = charts.specification(chart, "light")["encoding"]
        for axis in "xy":
            low, high = scales[axis]["scale"]["domain"]
            assert all(low < point[axis] < high for point in chart.points)


def test_a_chart_names_its_conditions_and_links_every_point(knowledge: Knowledge) -> None:
    for chart in charts.charts(knowledge):
        assert "condition" in chart.caption or all(point["conditions"] in chart.caption for point in chart.points)
        assert all(point["href"].startswith("../models/") for point in chart.points)


@pytest.mark.parametrize("scheme", charts.SCHEMES)
def test_no_two_of_twenty_models_share_colour_and_shape(knowledge: Knowledge, scheme: str) -> None:
    point = charts.specification(charts.charts(knowledge)[0], scheme)["layer"][1]["encoding"]
    colours, shapes = (point[channel]["scale"]["range"] for channel in ("color", "shape"))  # Vega repeats a short range
    assert len({(colours[i % len(colours)], shapes[i % len(shapes)]) for i in range(20)}) == 20


def test_latencies_of_two_devices_never_share_an_axis(knowledge: Knowledge) -> None:
    titles = [chart.axis for chart in charts.charts(knowledge) if chart.axis.startswith("Latency")]
    assert titles
    assert all(" on " in title for title in titles)


def test_ticks_of_a_logarithmic_axis_are_round() -> None:
    assert charts._ticks(4e6, 6e7) == [5e6, 1e7, 2e7, 5e7]
    assert all(math.isclose(tick, float(f"{tick:.0e}")) for tick in charts._ticks(0.3, 4e9))


# detectors


def record(ap: list[float], *, steps: int = 400, data: str = "3,000 scenes", seconds: float = 0.01) -> dict:
    results = {name: {"mean": 1.0, "values": [1.0, 1.0], "unit": "%"} for name in detectors.MEASURES}
    results |= {name: {"mean": 2.0, "values": [2.0, 2.0], "unit": "%"} for name in detectors.STRESSES}
    results["scenes_ap"] = {"mean": sum(ap) / len(ap), "values": ap, "unit": "%"}
    results["scenes_seconds"] = {"mean": seconds, "values": [seconds] * 2, "unit": "s"}
    experiment = {
        "name": "side_by_side", "question": "?", "data": data, "parameters": 1000, "steps": steps,
        "results": list(results), "figures": ["stress"],
    }  # fmt: skip
    figure = {"name": "stress", "light": "a", "dark": "b", "caption": "c", "alt": "d", "width": 1, "height": 1}
    return {
        "preset": "quick", "device": {"name": "A CPU", "class": "cpu"}, "seeds": [0, 1], "experiments": [experiment],
        "results": results, "figures": [figure],
    }  # fmt: skip


def with_records(knowledge: Knowledge, **records: dict) -> Knowledge:
    states = {slug.replace("_", "-"): runs.Run(slug, "ok", made) for slug, made in records.items()}
    return Knowledge(knowledge.library, states, {})


def test_detectors_of_one_budget_stand_together_best_first(knowledge: Knowledge) -> None:
    (group,) = detectors.groups(with_records(knowledge, detr=record([20, 22]), faster_rcnn=record([30, 34])))
    assert [each.card.slug for each in group.detectors] == ["faster-rcnn", "detr"]
    assert group.best("scenes_ap") == 32
    assert group.best("scenes_seconds") == 0.01


@pytest.mark.parametrize("other", [record([30, 34], steps=800), record([30, 34], data="100 scenes")])
def test_detectors_of_another_budget_or_other_scenes_stand_apart(other: dict, knowledge: Knowledge) -> None:
    groups = detectors.groups(with_records(knowledge, detr=record([20, 22]), faster_rcnn=other))
    assert [len(group.detectors) for group in groups] == [1, 1]


def test_a_run_without_the_benchmark_is_no_detector(knowledge: Knowledge) -> None:
    made = record([20, 22])
    made["experiments"][0]["name"] = "something_else"
    assert detectors.groups(with_records(knowledge, detr=made)) == []


# drawing


def test_a_chart_is_drawn_once_and_kept(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def draw() -> str:
        calls.append(1)
        return "<svg/>"

    assert site._cached(tiny, "a", "svg", draw) == "<svg/>"
    assert site._cached(tiny, "a", "svg", draw) == "<svg/>"
    assert len(calls) == 1
