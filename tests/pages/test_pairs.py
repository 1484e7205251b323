"""Two models beside each other, on pages of their own and on Compare: ranked only where all conditions agree."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape

import pytest
from conftest import ROOT

from scripts.architectures import latency
from scripts.cards.library import load_library
from scripts.cards.schema import Card
from scripts.evidence.knowledge import Knowledge, own_numbers
from scripts.evidence.published import Published, comparability, differences
from scripts.exports import comparison
from scripts.pages import beside, compare, pairs
from scripts.pages.writer import Writer
from scripts.project import Project

Pair = tuple[Card, Card]


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    """The cards of this project with what was timed of them; nothing run and nothing counted."""
    library, problems = load_library(ROOT / "model_cards", ROOT)
    assert not problems
    return Knowledge(library, {}, {}, latencies=latency.read_all(Project(ROOT)))


@pytest.fixture(scope="module")
def weighed(knowledge: Knowledge) -> tuple[Pair, ...]:
    found = pairs.pairs(knowledge)
    assert len(found) > 100
    return found


@pytest.fixture(scope="module")
def pages(knowledge: Knowledge, weighed: tuple[Pair, ...]) -> dict[str, str]:
    return {pairs.slug_of(a, b): pairs.page(a, b, knowledge) for a, b in weighed}


def apart(a: Published, b: Published, knowledge: Knowledge) -> list[str]:
    forbidding, acknowledged = differences(a, replace(b, metric=a.metric), knowledge.library.vocabulary)
    return [*forbidding, *acknowledged]


def test_nobody_is_ahead_where_conditions_differ(knowledge: Knowledge, weighed: tuple[Pair, ...]) -> None:
    ranked = 0
    for a, b in weighed:
        found = beside.benchmarks(a, b, knowledge)
        for row in [*found, *beside.speeds(a, b, found, knowledge)]:
            assert (row.apart == ()) or row.better is None
            if row.better is not None:
                ranked += 1
                assert apart(*row.numbers, knowledge) == []
                assert len({number.metric for number in row.numbers}) == 1 or None not in [
                    number.ms for number in row.numbers
                ]
    assert ranked > 30


def test_no_sentence_and_no_row_ranks_what_it_says_differs(pages: dict[str, str]) -> None:
    parts = re.compile(r"<p data-search-exclude>.*?</p>|<tr>.*?</tr>|^description: .*?$", re.MULTILINE)
    ranking = re.compile(r"<strong>|\bahead\b|is the faster[^?.]*\.")
    ahead = differ = 0
    for slug, page in pages.items():
        for part in parts.findall(page):
            unfair = [each for each in re.split(r"(?<=[a-z)])\. ", part) if "ot ranked: " in each]
            assert not any(ranking.search(each) for each in unfair), slug
            differ += bool(unfair)
            ahead += "is ahead in" in part
    assert ahead > 20
    assert differ > 100


def test_figures_under_equal_conditions_go_before_all_others(knowledge: Knowledge, weighed: tuple[Pair, ...]) -> None:
    words = knowledge.library.vocabulary

    def groups(card: Card) -> set[object]:
        own = (n for n in own_numbers(card.slug, knowledge) if not n.independent and n.conditions.dataset)
        return {(n.metric, comparability(n, words)) for n in own if words.metric(n.metric).kind == "quality"}

    fair = 0
    for a, b in weighed:
        found = [row.apart for row in beside.benchmarks(a, b, knowledge)]
        alike = groups(a) & groups(b)
        assert found.count(()) == len(alike)
        assert all(each == () for each in found[: len(alike)])
        fair += bool(alike)
    assert 20 < fair < len(weighed)


def test_the_better_figure_is_ahead_the_lower_one_where_less_is_better(knowledge: Knowledge) -> None:
    for row in beside.benchmarks(*pair(knowledge, "yolov8", "yolo26"), knowledge):
        values = [number.quantity.value for number in row.numbers]
        assert row.better == (None if row.apart else int(values[0] < values[1]))
    (row,) = beside.speeds(*(found := pair(knowledge, "faster-rcnn", "mask-rcnn")),
                           beside.benchmarks(*found, knowledge), knowledge)  # fmt: skip
    assert [number.metric for number in row.numbers] == ["latency", "latency"]
    assert row.better == int(row.numbers[0].quantity.value > row.numbers[1].quantity.value)


def pair(knowledge: Knowledge, a: str, b: str) -> Pair:
    return knowledge.library.cards[a], knowledge.library.cards[b]


def test_a_rate_is_a_time_only_one_image_after_the_other(knowledge: Knowledge) -> None:
    rates = [number for number in own_numbers("detr", knowledge) if number.metric == "fps"]
    assert rates
    for number in rates:
        alone = replace(number, conditions=number.conditions.model_copy(update={"batch": "1"}))
        many = replace(number, conditions=number.conditions.model_copy(update={"batch": "8"}))
        assert alone.ms == pytest.approx(1000 / number.quantity.value)
        assert many.ms is None


def test_what_a_card_says_of_the_other_model_stands_first_on_the_page_of_both(
    knowledge: Knowledge, weighed: tuple[Pair, ...], pages: dict[str, str]
) -> None:
    said = 0
    for a, b in weighed:
        for taken, left in ((a, b), (b, a)):
            page = pages[pairs.slug_of(a, b)]
            block = page.partition(f'aria-label="Take {taken.name} when"')[2].partition("</section>")[0]
            items = re.findall(r"<li>(.*?)</li>", block)
            writer = Writer(knowledge, "../../", left, elsewhere=True)
            wanted = [writer.prose(each.when, inline=True) for each in left.avoid_when if each.choose == taken.slug]
            assert items[: len(wanted)] == wanted
            assert len(items) >= min(pairs.LEAST_ADVICE, len(taken.use_when))
            said += len(wanted)
    assert said > 50


def test_times_of_here_stand_beside_each_other_on_one_device_at_one_input(
    knowledge: Knowledge, weighed: tuple[Pair, ...], pages: dict[str, str]
) -> None:
    for a, b in weighed:
        ours, theirs = (comparison.timed(card, knowledge) for card in (a, b))
        page = unescape(pages[pairs.slug_of(a, b)])
        assert ("{ #time" in page) == bool(ours.keys() & theirs.keys())
        assert all((key in page) == (key in theirs) for key in ours)
        assert all(ours[key] in page and theirs[key] in page for key in ours.keys() & theirs.keys())
    swin = comparison.timed(knowledge.library.cards["swin"], knowledge)
    times = {each.input for each in knowledge.latencies if each.build == "timm/swin_tiny_patch4_window7_224"}
    (key,) = [key for key, text in swin.items() if "Swin-T" in text]
    assert times == {key.rpartition(", ")[2]}


def test_a_time_on_an_unknown_device_ranks_with_no_other(knowledge: Knowledge, weighed: tuple[Pair, ...]) -> None:
    speeds = [row for a, b in weighed for row in beside.speeds(a, b, beside.benchmarks(a, b, knowledge), knowledge)]
    unknown = [row for row in speeds if not any(number.conditions.hardware for number in row.numbers)]
    assert unknown
    assert all("hardware (not given of either)" in row.apart for row in unknown)


# Compare


def test_compare_begins_with_the_first_pair_and_leads_on_to_the_other_models(knowledge: Knowledge) -> None:
    page = compare.page(knowledge)
    a, b = pairs.pairs(knowledge)[0]
    assert f'data-first="{a.slug},{b.slug}"' in page
    elsewhere = page.partition(">Look elsewhere when</th>")[2].partition("</tr>")[0]
    wanted = [each.choose for card in knowledge.cards for each in card.avoid_when if each.choose]
    assert re.findall(r'class="instead" href="\.\./models/([^/]+)/"', elsewhere) == wanted


def test_on_compare_numbers_stand_above_the_prose_with_a_way_to_report_a_mistake(knowledge: Knowledge) -> None:
    page = compare.page(knowledge)
    places = [page.index(each) for each in (">Purpose</th>", 'id="compare-numbers"', ">Concept</th>", ">Pros</th>")]
    assert places == sorted(places)
    assert 'class="report"' in page.partition('id="compare-numbers"')[2].partition('id="compare-reasons"')[0]


def test_the_numbers_to_compare_say_what_was_timed_and_which_measures_are_headlines(knowledge: Knowledge) -> None:
    content = json.loads(comparison.render(knowledge)["api/compare.json"])
    cards = knowledge.library.cards
    assert content["timed"] == {
        slug: found for slug, card in cards.items() if (found := comparison.timed(card, knowledge))
    }
    told = {name for name, metric in content["metrics"].items() if metric.get("headline")}
    assert told == {name for name, metric in knowledge.library.vocabulary.metrics.items() if metric.headline}


def test_no_script_of_the_site_names_a_model(knowledge: Knowledge) -> None:
    named = {
        (path.name, word)
        for path in (ROOT / "docs/assets").glob("*.js")
        for word in re.findall(r'"([a-z0-9-]+)"', path.read_text("utf-8"))
        if word in knowledge.library.cards
    }
    assert named == set()
