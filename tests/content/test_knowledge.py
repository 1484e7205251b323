"""The knowledge itself: nothing of the notes is dropped, every card is complete, what pages link to exists."""

from __future__ import annotations

import hashlib
import re

import pytest
import yaml
from conftest import ROOT

from scripts.cards.library import Library, load_library
from scripts.cards.prose import to_text
from scripts.cards.schema import Card
from scripts.evidence.published import published
from scripts.pages.environment import slugify

OF_THE_NOTES = (
    "attention-unet", "centernet", "detectron2", "detr", "dinov2", "faster-rcnn", "graph-transformer",
    "improved-mask-rcnn", "internimage", "lora", "mask-dino", "mask-rcnn", "optimized-unet", "sam", "swin",
    "timesformer", "unet", "vit", "yolov8",
)  # fmt: skip
LATEST = 2022
"""Models from this year on may still be without a successor."""
SLUGS = sorted(path.stem for path in (ROOT / "model_cards").glob("[!_]*.yml"))
NOTES = yaml.safe_load((ROOT / "model_cards/_notes.yml").read_text("utf-8"))["notes"]
LINES = "5c882827fe0e24aded212fc788d250efbd239f642e94460423ac5b42d854a7d0"


@pytest.fixture(scope="module")
def library() -> Library:
    loaded, problems = load_library(ROOT / "model_cards", ROOT)
    assert not problems
    return loaded


def test_there_is_a_card_for_every_entry_of_the_notes(library: Library) -> None:
    assert library.cards.keys() >= set(OF_THE_NOTES)


@pytest.mark.parametrize("note", NOTES, ids=lambda note: note["line"][:40])
def test_each_line_of_the_notes_is_found_in_a_card(note: dict, library: Library) -> None:
    for place in note["places"]:
        card = library.cards[place["card"]]
        if "claim" in place:
            assert place["claim"] in {claim.claim for claim in (*card.pros, *card.cons)}
        else:
            assert getattr(card, place["field"])


def test_each_task_is_drawn_in_a_picture_of_its_own(library: Library) -> None:
    wanted = {slugify(task) for task in library.vocabulary.tasks}
    pictures = {path.stem: path.read_bytes() for path in (ROOT / "docs/assets/tasks").glob("*.svg")}
    assert pictures.keys() == wanted
    assert len(set(pictures.values())) == len(wanted)


def test_only_the_headings_of_the_notes_have_no_place() -> None:
    assert [note["line"] for note in NOTES if not note["places"]] == [
        "Model comparisons",
        "doing recap regarding what current models I am working on.",
        "Prividing pros and cons to easily know model property.",
    ]


def test_the_lines_are_those_of_the_notes() -> None:
    """The notes themselves are not part of this project: their lines, sorted, have this digest."""
    lines = sorted({note["line"] for note in NOTES})
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == LINES


@pytest.mark.parametrize("slug", SLUGS)
def test_a_card_is_complete(slug: str, library: Library) -> None:
    card = library.cards[slug]
    assert len(card.pros) >= 4
    assert len(card.cons) >= 3
    assert len(card.use_when) >= 2
    assert len(card.avoid_when) >= 2
    assert any(advice.choose for advice in card.avoid_when)
    assert card.succeeded_by or card.introduction.year >= LATEST, "a model of some years has had a successor"
    assert len(to_text(card.concept).split()) >= 100
    assert "$" in card.concept or slug == "detectron2"


@pytest.mark.parametrize("slug", SLUGS)
def test_a_claim_without_an_assertion_has_a_source_or_says_what_would_show_it(slug: str, library: Library) -> None:
    card = library.cards[slug]
    for claim in (*card.pros, *card.cons):
        backed = claim.reported or claim.shown or claim.source or claim.corrected or claim.outdated
        assert backed or claim.cannot_show, claim.claim


@pytest.mark.parametrize("slug", SLUGS)
def test_no_claim_rests_on_the_clock_of_a_build(slug: str, library: Library) -> None:
    card = library.cards[slug]
    named = {shown.result for claim in (*card.pros, *card.cons) for shown in claim.shown}
    assert not [name for name in named if re.search(r"(^|[_/])(time|ms|seconds|latency|fps)(_|$)", name)]


@pytest.mark.parametrize(
    ("slug", "licence"),
    [
        ("yolov8", ("code", "AGPL-3.0-only")),
        ("detectron2", ("weights", "CC-BY-SA-3.0")),
        ("timesformer", ("code", "CC-BY-NC-4.0")),
    ],
)
def test_a_licence_that_bites_is_a_con(slug: str, licence: tuple[str, str], library: Library) -> None:
    asserted = {(a.licence, a.is_) for claim in library.cards[slug].cons for a in claim.reported if a.licence}
    assert licence in asserted


@pytest.mark.parametrize("slug", ["dinov2", "optimized-unet", "yolov8"])
def test_what_the_notes_had_wrong_is_corrected_or_outdated(slug: str, library: Library) -> None:
    card = library.cards[slug]
    assert any(claim.corrected or claim.outdated for claim in (*card.pros, *card.cons))


def test_a_name_that_means_two_things_is_told_apart(library: Library) -> None:
    def confusions(card: Card) -> str:
        return " ".join(card.confused_with)

    assert "Objects as Points" in confusions(library.cards["centernet"])
    assert "Global Tracking" in confusions(library.cards["graph-transformer"])
    assert re.search(r"DINO", confusions(library.cards["dinov2"]))
    assert re.search(r"self-supervised", confusions(library.cards["mask-dino"]))


def test_every_metric_is_used_and_told_apart_from_the_others(library: Library) -> None:
    metrics = library.vocabulary.metrics
    used = {number.metric for card in library.cards.values() for number in published(card)}
    assert metrics.keys() - used == set()
    assert len({metric.label for metric in metrics.values()}) == len(metrics)
