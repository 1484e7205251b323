"""The pages on which a reader decides: what they are made from, without a browser (for that see test_browser.py)."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from conftest import ROOT
from made import add_backbones, record, result

from scripts.cards.library import load_library
from scripts.cards.vocabulary import Permitted, SideBySide
from scripts.evidence import terms
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.published import published
from scripts.exports import choices, comparison
from scripts.pages import detectors, lineage
from scripts.project import Project
from scripts.runs.record import Record
from scripts.runs.state import Run


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    """The cards of this project, nothing run and nothing counted."""
    library, problems = load_library(ROOT / "model_cards", ROOT)
    assert not problems
    return Knowledge(library, {}, {})


# compare


def test_the_numbers_to_compare_leave_out_rivals_and_ablations(knowledge: Knowledge) -> None:
    content = json.loads(comparison.render(knowledge)["api/compare.json"])
    for slug, entries in content["numbers"].items():
        rivals = {v.name for v in knowledge.library.cards[slug].variants.values() if v.for_comparison}
        assert not rivals & {entry["variant"] for entry in entries}
    assert content["numbers"].keys() == set(knowledge.library.cards)


def test_figures_are_of_one_group_where_all_that_matters_agrees(tiny: Project) -> None:
    add_backbones(tiny)
    library, _ = load_library(tiny.cards, tiny.root)
    content = json.loads(comparison.render(Knowledge(library, {}, {}))["api/compare.json"])
    groups = {
        (slug, entry["variant"], entry["table"], entry["metric"]): entry["group"]
        for slug, entries in content["numbers"].items()
        for entry in entries
    }
    in_one = groups["gamma", "Gamma-T", "one", "AP"]
    assert in_one == groups["gamma", "Gamma-S", "one", "AP"] == groups["delta", "Delta-T", "one", "AP"]
    others = [("gamma", "Gamma-T", "two", "AP"), ("gamma", "Gamma-T", "wide", "AP"), ("alpha", "Alpha-B", "main", "AP"),
              ("beta", "Beta-B", "main", "AP"), ("gamma", "Gamma-T", "cls", "top1")]  # fmt: skip
    assert len({in_one, *(groups[other] for other in others)}) == 6


# choose


def test_every_rule_refers_to_what_there_is(knowledge: Knowledge) -> None:
    facts = [choices.facts(card, knowledge) for card in knowledge.cards]
    asked = choices.content(knowledge)["questions"]
    for question in (each for each in asked if "rule" in each):
        rule = question["rule"]
        assert all(rule["fact"] in each for each in facts)
        assert rule.get("of") in {None, *(each["id"] for each in asked)}
        if "any" in rule:
            assert set(rule["any"]) <= {each for fact in facts for each in fact[rule["fact"]]}, (
                "a task that no model has"
            )
        assert set(re.findall(r"{(\w+)}", question["because"])) <= {"answer", "fact"}


def test_what_stands_for_a_list_of_options_is_spelled_out(knowledge: Knowledge) -> None:
    options = {question["id"]: question.get("options") for question in choices.content(knowledge)["questions"]}
    assert "object detection" in options["task"]
    assert "V100" in options["device"]
    assert "closed product" in options["use"]
    assert options["memory"] is None
    assert not any(isinstance(each, str) for each in options.values())


def test_an_image_rate_at_batch_one_counts_as_a_latency(knowledge: Knowledge) -> None:
    card = knowledge.library.cards["detr"]
    rates = [n for n in published(card) if n.metric == "fps" and n.conditions.batch == "1" and n.conditions.hardware]
    fastest = max(rate.quantity.value for rate in rates if rate.conditions.hardware == "V100")
    assert choices.facts(card, knowledge)["latency_ms"]["V100"] <= 1000 / fastest + 1e-9


def test_the_weight_of_a_model_is_four_bytes_for_each_parameter_of_its_smallest_size(knowledge: Knowledge) -> None:
    assert choices.facts(knowledge.library.cards["vit"], knowledge)["weights_gb"] == pytest.approx(4 * 0.086)


# licences


def test_the_worst_of_code_and_weights_decides(knowledge: Knowledge) -> None:
    rows = {row.card.slug: row for row in reversed(terms.rows(knowledge))}  # the first release of each card
    assert rows["yolov8"].uses["closed product"] == "no"
    assert rows["timesformer"].uses["research"] == "yes"
    assert rows["timesformer"].uses["internal use"] == "no"
    assert "CC-BY-NC-4.0" in rows["timesformer"].reasons["internal use"]
    assert rows["detectron2"].uses["closed product"] == "terms"


def test_terms_of_training_data_cast_a_doubt_but_no_ban(knowledge: Knowledge) -> None:
    secret = {"Secret": Permitted(licence="CC-BY-NC-4.0")}
    words = knowledge.library.vocabulary.model_copy(update={"datasets": secret})
    card = knowledge.library.cards["detr"]
    release = terms.releases(card)[0].model_copy(update={"data": ("Secret",), "packages": ()})
    relicensed = card.model_copy(update={"licences": card.licences.model_copy(update={"releases": (release,)})})
    library = replace(knowledge.library, cards={"detr": relicensed}, vocabulary=words)
    (row,) = terms.rows(Knowledge(library, {}, {}))
    assert row.doubt == ("Secret",)
    assert row.uses["closed product"] == "yes"


def test_a_licence_without_a_verdict_is_unclear(knowledge: Knowledge) -> None:
    card = knowledge.library.cards["detr"]
    odd = card.model_copy(update={"licences": card.licences.model_copy(update={"code": "Zlib", "releases": ()})})
    library = replace(knowledge.library, cards={"detr": odd})
    assert set(terms.uses(odd, Knowledge(library, {}, {})).values()) == {"unclear"}


def test_every_licence_of_a_card_has_a_verdict(knowledge: Knowledge) -> None:
    known = knowledge.library.vocabulary.licences.keys()
    for card in knowledge.cards:
        for release in terms.releases(card):
            assert {release.code, release.weights} <= known, card.slug


# lineage


def test_every_relation_between_two_cards_is_drawn_from_the_older_to_the_newer_one(knowledge: Knowledge) -> None:
    """A relation that names its elder as younger would be left out."""
    links = set(lineage.links(knowledge.cards))
    assert ("faster-rcnn", "mask-rcnn") in links
    older = {(relation.card, card.slug) for card in knowledge.cards for relation in card.builds_on if relation.card}
    newer = {(card.slug, relation.card) for card in knowledge.cards for relation in card.succeeded_by if relation.card}
    assert (older | newer) - links == set()


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


# detectors


WORDS = SideBySide(
    experiment="side_by_side",
    figure="stress",
    measures={"scenes_ap": "AP", "scenes_seconds": "Seconds"},
    stresses={"scenes_ap_tiny": "Tiny"},
)


def run(*ap: float | None, steps: int = 400, data: str = "3,000 scenes", name: str = "side_by_side") -> Record:
    results = {"scenes_ap": result(*ap), "scenes_seconds": result(0.01, 0.01), "scenes_ap_tiny": result(1, 2)}
    return record(results, figures=("stress",), name=name, data=data, steps=steps)


def with_records(knowledge: Knowledge, **records: Record) -> Knowledge:
    states = {slug.replace("_", "-"): Run(slug, "ok", made) for slug, made in records.items()}
    return Knowledge(knowledge.library, states, {})


def test_detectors_of_one_budget_stand_together_best_first(knowledge: Knowledge) -> None:
    (group,) = detectors.groups(
        with_records(knowledge, detr=run(20, 22), faster_rcnn=run(30, 34), sam=run(None, None)), WORDS
    )
    assert [each.card.slug for each in group.detectors] == ["faster-rcnn", "detr", "sam"]
    assert group.best("scenes_ap", "scenes_ap") == 32
    assert group.best("scenes_ap_tiny", "scenes_ap") == 1.5
    assert group.best("scenes_seconds", "scenes_ap") == 0.01


@pytest.mark.parametrize("other", [run(30, 34, steps=800), run(30, 34, data="100 scenes"), run(30, 34, 35)])
def test_detectors_of_another_budget_or_other_scenes_stand_apart(other: Record, knowledge: Knowledge) -> None:
    groups = detectors.groups(with_records(knowledge, detr=run(20, 22), faster_rcnn=other), WORDS)
    assert [len(group.detectors) for group in groups] == [1, 1]


def test_a_run_without_the_benchmark_or_its_picture_is_no_detector(knowledge: Knowledge) -> None:
    bare = record({"scenes_ap": result(20, 22)}, figures=("stress",), name="side_by_side")
    undrawn = record({"scenes_ap": result(20, 22), "scenes_seconds": result(1, 1)}, name="side_by_side")
    for other in (run(20, 22, name="something_else"), bare, undrawn):
        assert detectors.groups(with_records(knowledge, detr=other), WORDS) == []
