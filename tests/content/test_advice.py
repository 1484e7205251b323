"""The advice of the cards, walked: no circle, no second sending-on, nothing that the model it leads to contradicts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from conftest import ROOT

from scripts.cards.library import Library, load_library
from scripts.cards.schema import Card
from scripts.evidence import terms
from scripts.evidence.knowledge import Knowledge

NEEDS = {
    "accuracy": r"\b(most|highest|best)\b.*\b(accura|masks|benchmark)|\baccuracy counts\b",
    "real time": r"\breal[- ]time\b|\blatency\b|\bwithin a second\b",
    "closed product": r"\bclosed product\b|\bshare-alike\b",
    "small objects": r"\bobjects are small\b|\bsmall objects\b",
    "short training": r"\bshort training\b",
    "little memory": r"\blittle memory\b",
    "no suppression": r"\bno (anchors and no )?suppression\b|\bsuppression must not\b",
    "clicks": r"\bclicks?\b|\bpoints at\b|\binteractive\b",
    "no labels": r"\bno labels\b|\bwithout labels\b|\bno masks to train\b|\bno training data\b",
    "input size": r"\binput size\b",
    "video masks": r"\b(masks|segment|clicks?)\b.*\bvideo\b",
    "actions": r"\bclassify\b.*\b(clips|video)\b",
    "frozen features": r"\bfrozen\b.*\bfeatures\b",
    "dense features": r"\bdense features\b",
    "depth": r"\bneed depth\b",
    "medical recipe": r"\b(MRI|volumes)\b",
}
"""What a reader may want, by words of the situation: two situations of one need ask for the same thing."""

TASKS = {
    r"\bmasks?\b|\boutlines?\b": r"segmentation",
    r"\bboxes\b": r"detection",
    r"\bmedical\b|\bMRI\b|\btumours?\b|\borgan\b": r"medical segmentation",
    r"\bclicks?\b|\bpoints at\b|\binteractive\b": r"promptable segmentation",
    r"\bfrozen\b.*\bfeatures\b|\bdense features\b": r"representation learning",
    r"\bclassif(y|ier)\b": r"classification|representation learning",
    r"\bclips\b": r"video|representation learning",
}
"""Words of a situation, and what one of the tasks has to be of the model that is advised in it."""

BOUND = re.compile(r"licen[cs]e|AGPL|commercial|\bterms\b|research", re.IGNORECASE)


@dataclass(frozen=True)
class Step:
    """One piece of advice that leads from a card to another one."""

    home: str
    when: str
    to: str

    @property
    def needs(self) -> set[str]:
        return {need for need, words in NEEDS.items() if re.search(words, self.when, re.IGNORECASE)}

    def __str__(self) -> str:
        return f"{self.home}: {self.when} -> {self.to}"


def steps_of(card: Card) -> list[Step]:
    return [Step(card.slug, each.when, each.choose) for each in (*card.use_when, *card.avoid_when) if each.choose]


def circles(library: Library, need: str) -> Iterator[list[Step]]:
    """Ways along the advice for one need that come back to a card on them; each from where it was entered."""

    def walk(way: list[Step]) -> Iterator[list[Step]]:
        if way[-1].to in {step.home for step in way}:
            yield way
            return
        for step in steps_of(library.cards[way[-1].to]):
            if need in step.needs:
                yield from walk([*way, step])

    for card in library.cards.values():
        for step in steps_of(card):
            if need in step.needs:
                yield from walk([step])


def contradictions(step: Step, knowledge: Knowledge) -> Iterator[str]:
    """What speaks against a piece of advice, by the tasks and the licences of the model that it leads to."""
    card = knowledge.library.cards[step.to]
    for words, task in TASKS.items():
        if re.search(words, step.when, re.IGNORECASE) and not any(re.search(task, each) for each in card.tasks):
            yield f"{step}: its tasks are {', '.join(card.tasks)}"
    verdict = terms.uses(card, knowledge)["closed product"]
    if "closed product" in step.needs and verdict != "yes":
        yield f"{step}: {verdict} in a closed product"
    if verdict != "yes" and not BOUND.search(step.when):
        yield f"{step}: the advice does not say that its licence binds or forbids ({verdict} in a closed product)"


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    """The cards of this project, nothing run and nothing counted."""
    library, problems = load_library(ROOT / "model_cards", ROOT)
    assert not problems
    return Knowledge(library, {}, {})


@pytest.fixture(scope="module")
def steps(knowledge: Knowledge) -> list[Step]:
    return [step for card in knowledge.cards for step in steps_of(card)]


def test_advice_leads_to_another_card(steps: list[Step]) -> None:
    assert steps
    assert [str(step) for step in steps if step.to == step.home] == []


@pytest.mark.parametrize("need", NEEDS)
def test_the_advice_for_one_need_does_not_go_round_in_circles(need: str, knowledge: Knowledge) -> None:
    assert [" | ".join(map(str, way)) for way in circles(knowledge.library, need)] == []


@pytest.mark.parametrize("need", NEEDS)
def test_a_reader_is_sent_on_for_one_need_only_once(need: str, knowledge: Knowledge, steps: list[Step]) -> None:
    """The second model would be the right advice on the first card."""
    twice = [
        f"{first} | {second}"
        for first in steps
        for second in steps_of(knowledge.library.cards[first.to])
        if need in first.needs & second.needs
    ]
    assert twice == []


def test_the_model_that_is_advised_does_the_task_and_may_be_used(knowledge: Knowledge, steps: list[Step]) -> None:
    assert [problem for step in steps for problem in contradictions(step, knowledge)] == []


def test_each_card_says_where_else_to_look(knowledge: Knowledge) -> None:
    assert [card.slug for card in knowledge.cards if not steps_of(card)] == []


# the walk itself


def relinked(library: Library, **advice: tuple[str, str]) -> Library:
    """The named cards alone, with one piece of advice each: slug=(when, choose), with _ for - in the slug."""
    cards = {}
    for name, (when, choose) in advice.items():
        card = library.cards[name.replace("_", "-")]
        only = card.avoid_when[0].model_copy(update={"when": when, "choose": choose})
        cards[card.slug] = card.model_copy(update={"use_when": (), "avoid_when": (only,)})
    return Library(cards=cards, sources={}, vocabulary=library.vocabulary)


def test_a_circle_is_found_where_the_need_is_the_same(knowledge: Knowledge) -> None:
    same = relinked(
        knowledge.library,
        detr=("You need real time.", "faster-rcnn"),
        faster_rcnn=("You need real-time speed.", "detr"),
    )
    assert len(list(circles(same, "real time"))) == 2
    other = relinked(
        knowledge.library, detr=("You need real time.", "faster-rcnn"), faster_rcnn=("You want no suppression.", "detr")
    )
    assert list(circles(other, "real time")) == []


@pytest.mark.parametrize(
    ("when", "to", "said"),
    [
        ("You classify images.", "faster-rcnn", "its tasks are object detection"),
        ("You ship a closed product.", "yolov8", "terms in a closed product"),
        ("You need real time.", "yolov8", "does not say that its licence binds"),
        ("You need real time, and its licence suits you.", "yolov8", ""),
    ],
)
def test_a_contradiction_is_told(when: str, to: str, said: str, knowledge: Knowledge) -> None:
    told = " ".join(contradictions(Step("vit", when, to), knowledge))
    assert said in told if said else told == ""
