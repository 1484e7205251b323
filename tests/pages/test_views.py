"""The pages on which a reader decides: what they are made from, without a browser (for that see test_browser.py)."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from conftest import ROOT
from made import add_backbones, record, result

from scripts import exports
from scripts.cards.library import load_library
from scripts.cards.vocabulary import Permitted, SideBySide
from scripts.evidence import terms
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.published import numbers_of, published
from scripts.exports import choices, comparison
from scripts.pages import detectors, example, lineage, model, numbers
from scripts.pages.cells import notebook
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


def test_a_benchmark_of_many_figures_shows_its_first_ones_and_all_on_its_own_page(knowledge: Knowledge) -> None:
    rows = re.compile(r"<tr><td>.*?</tr>")
    overview, own = numbers.page(knowledge), numbers.benchmark_pages(knowledge)
    parts = dict(re.findall(r"\{ #(\S+) \}\n(.*?)(?=\n## |\Z)", overview, re.DOTALL))
    assert len(parts) == len(numbers.benchmarks(knowledge)) > len(own) > 0
    for path, benchmark in own.items():
        few = rows.findall(parts.pop(anchor := path.removeprefix("numbers/").removesuffix(".md")))
        every = rows.findall(numbers.benchmark_page(benchmark, knowledge).replace("../../", "../"))
        assert (few, len(every)) == (every[: numbers.AT_ONCE], benchmark.figures)
        assert f'href="{anchor}/"' in overview
    assert all(len(rows.findall(part)) <= numbers.AT_ONCE for part in parts.values())


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
    content = choices.content(knowledge)
    facts, asked = content["candidates"], content["questions"]
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


def candidate(knowledge: Knowledge, name: str) -> dict[str, Any]:
    return next(each for each in choices.content(knowledge)["candidates"] if each["id"] == name)


def test_a_rate_at_batch_one_counts_as_a_time_of_its_own_system(knowledge: Knowledge) -> None:
    card = knowledge.library.cards["detr"]
    checkpoint = card.checkpoints["r50"]
    variant = checkpoint.system.partition("/")[0]
    rates = [n for n in published(card) if n.variant == variant and n.metric == "fps" and n.conditions.batch == "1"]
    on = {n.conditions.hardware: 1000 / n.quantity.value for n in rates}
    times = candidate(knowledge, "detr/r50")["times"]
    assert all(times[device] == pytest.approx(on[device]) for device in times.keys() & on.keys())


def test_the_weight_of_a_checkpoint_is_four_bytes_for_each_parameter_of_its_own_system(knowledge: Knowledge) -> None:
    detector = candidate(knowledge, "d-fine/l-o365")
    assert detector["weights_gb"] == pytest.approx(4 * 0.031, rel=0.02)
    heavy = [
        each
        for each in choices.content(knowledge)["candidates"]
        if each["slug"] == "swin" and "object detection" in each["tasks"]
    ]
    assert all(each["weights_gb"] is None or each["weights_gb"] > 4 * 0.04 for each in heavy), (
        "a detector on Swin-T has 86 M"
    )


def test_a_card_without_weights_for_a_task_is_a_candidate_that_does_not_load(knowledge: Knowledge) -> None:
    assert candidate(knowledge, "graph-transformer")["loads"] is False


def test_each_device_has_one_name(knowledge: Knowledge) -> None:
    (devices,) = (each["options"] for each in choices.content(knowledge)["questions"] if each["id"] == "device")
    assert isinstance(devices, list)
    plain = [re.sub(r"^(Intel |Core |NVIDIA )+", "", device) for device in devices]
    assert len(set(plain)) == len(plain)
    assert [device for device in devices if re.search(r"not named|\bw\d+a\d+\b", device)] == []


def test_a_file_of_weights_stands_once_for_a_task_under_the_card_of_its_model(knowledge: Knowledge) -> None:
    ids = {each["id"] for each in choices.content(knowledge)["candidates"] if each["loads"]}
    cards = knowledge.library.cards
    listed = [cards[slug].checkpoints[key] for slug, _, key in (id.partition("/") for id in ids)]
    weights = [(each.load.library, each.load.name, each.task) for each in listed]
    assert len(set(weights)) == len(weights)
    assert "faster-rcnn/r50-fpn" in ids
    assert "detectron2/faster-r50-fpn" not in ids


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("mask-dino/swin-l", "object detection"),
        ("sam3/image", "object detection"),
        ("siglip2/b16-224", "image-text retrieval"),
    ],
)
def test_weights_count_for_each_task_that_their_output_serves(name: str, task: str, knowledge: Knowledge) -> None:
    assert task in candidate(knowledge, name)["tasks"]
    slug = name.partition("/")[0]
    unloaded = [each for each in choices.content(knowledge)["candidates"] if each["id"] == slug]
    assert not any(task in each["tasks"] for each in unloaded)


def test_boxes_count_only_where_the_card_has_the_task(knowledge: Knowledge) -> None:
    assert "object detection" not in knowledge.library.cards["mask2former"].tasks
    found = [each["tasks"] for each in choices.content(knowledge)["candidates"] if each["slug"] == "mask2former"]
    assert ["instance segmentation"] in found
    assert not any("object detection" in tasks for tasks in found)


def test_a_figure_is_that_of_the_task_asked_for(knowledge: Knowledge) -> None:
    reached = candidate(knowledge, "mask-dino/swin-l")["quality"]
    labels = {task: each["label"].partition(" on ")[0] for task, each in reached.items()}
    assert labels == {"instance segmentation": "Mask AP", "object detection": "AP"}


# licences


def test_the_worst_of_code_and_weights_decides(knowledge: Knowledge) -> None:
    rows = {row.card.slug: row for row in reversed(terms.rows(knowledge))}  # the first release of each card
    assert rows["yolov8"].uses["closed product"] == "no"
    assert rows["timesformer"].uses["research"] == "yes"
    assert rows["timesformer"].uses["internal use"] == "no"
    assert "CC-BY-NC-4.0" in rows["timesformer"].reasons["internal use"]
    assert rows["detectron2"].uses["closed product"] == "terms"


def test_a_use_that_only_some_weights_allow_is_told_as_such(knowledge: Knowledge) -> None:
    mask2former, vit, yolo = (knowledge.library.cards[slug] for slug in ("mask2former", "vit", "yolo26"))
    assert terms.uses(mask2former, knowledge)["closed product"] == "yes"
    assert terms.partly(mask2former, knowledge) == {"internal use", "hosted service", "closed product"}
    assert terms.partly(vit, knowledge) == terms.partly(yolo, knowledge) == set(), (
        "one licence of weights that have two"
    )
    page = model.page(mask2former, knowledge)
    assert "closed product: not all weights" in page
    assert "research: yes" in page


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


def test_a_measure_that_no_seed_defines_leaves_its_place_empty(knowledge: Knowledge) -> None:
    words = knowledge.library.vocabulary.side_by_side
    assert words is not None
    names = [*words.measures, *words.stresses]
    made = record(
        {name: result(20, 22) for name in names} | {names[-1]: result(None, None)},
        figures=(words.figure,), name=words.experiment, data="3,000 scenes", steps=400, parameters=1000,
    )  # fmt: skip
    (row,) = re.findall(
        r"<tr><th scope=\"row\">.*?</tr>", detectors.page(with_records(knowledge, detr=made)).partition("###")[2]
    )
    cells = re.findall(r"<td class=\"number\">(.*?)</td>", row)
    assert (len(cells), cells[-2]) == (len(words.stresses) + 1, "")
    assert all("20 to 22" in cell for cell in cells[:-2])


# runs


def test_a_seed_that_failed_is_told_as_undefined_and_counts_nowhere(tiny: Project) -> None:
    library, _ = load_library(tiny.cards, tiny.root)
    failed = ({"seed": 1, "reason": "it did not train"},)
    made = record({"margin": result(1.5, None, 1.7, failed=failed), "second": result(None, None)}, figures=("margin",))
    script = (tiny.examples / "alpha.py").read_text("utf-8")
    known = Knowledge(library, {"alpha": Run("alpha", "ok", made)}, {}, notebook=functools.partial(notebook, script))
    page, example_page = model.page(library.cards["alpha"], known), example.page("alpha", known)
    assert page.count("What it says: above 0 in 2 of 3 seeds: 1.5 to 1.7; it did not train.") == 2
    assert page.count("it did not train") == 3, "with each claim, and with the result"
    assert 'title="What it says: 1.5, undefined, 1.7">1.6</a>' in page, "in the prose of the concept"
    for text in (page, example_page.partition("{ #results }")[2]):
        assert "1.5, undefined, 1.7<br><small>seed 1: it did not train</small>" in text
        assert "None" not in text
    assert '<p class="scale">1 s, on A CPU.</p>' in example_page, "nothing is known of its memory and versions"
    told = json.loads(exports.of_card(library.cards["alpha"], known)["api/models/alpha.json"])
    assert told["example"]["results"]["margin"]["values"] == [1.5, None, 1.7]
    assert told["example"]["results"]["margin"]["mean"] == pytest.approx(1.6)
    assert told["example"]["results"]["second"]["mean"] is None
    assert told["pros"][0]["findings"]["run"] == "inconclusive"
    assert told["pros"][0]["shown"]["holds"] is None


def test_a_models_headline_says_how_fast_its_system_is_on_a_device_that_the_source_names(knowledge: Knowledge) -> None:
    timed = re.compile(r"(\S+) (ms|images per second) on (.+)")
    told = {card.slug: str(model._headline(card, knowledge)).split(" · ") for card in knowledge.cards}
    found = {slug: match for slug, parts in told.items() if (match := timed.fullmatch(parts[-1]))}
    assert len(found) > 10
    for slug, match in found.items():
        numbers = [number for number in numbers_of(knowledge.library, slug) if number.metric in ("latency", "fps")]
        said = [
            (n.quantity.printed, n.conditions.hardware)
            for n in numbers
            if n.system.variant in told_variants(slug, told, knowledge)
        ]
        assert (match[1], match[3].partition(", ")[0]) in said, f"{slug}: a time of another system"


def told_variants(slug: str, told: dict[str, list[str]], knowledge: Knowledge) -> set[str]:
    """Keys of the variants of a card whose name the headline begins a part with."""
    return {
        key for key, variant in knowledge.library.cards[slug].variants.items() if told[slug][1].startswith(variant.name)
    }
