"""The best checkpoint of a card, its snippet on the page, and all checkpoints as data."""

from __future__ import annotations

import json

import pytest
from conftest import Command, edit

from scripts.cards.releases import Input
from scripts.exports import checkpoints
from scripts.pages.checkpoints import input_text
from scripts.project import Project
from scripts.site.gather import gather

OFFICIAL = "{name: official, code: MIT, weights: Apache-2.0, source: {reference: alpha2020, where: LICENSE}}"
RELEASES = f"{{code: MIT, weights: none, releases: [{OFFICIAL}], source"
SMALL = "  small: {name: Alpha-S, numbers: {main: {AP: 30.5}}}\n"
CHECKPOINT = """  {id}:
    name: {id}
    system: {system}/main
    task: object detection
    release: official
    gated: {gated}
    load: {{library: {library}, class: create_model, name: "net_{id}"}}
    input: {{size: 32 x 32, mean: [0.5, 0.5, 0.5], divisible_by: 8}}
    output: classes
    form: scores of all classes
    source: {{reference: alpha2020, where: README}}
"""


def add(project: Project, *wanted: tuple[str, str, str, str]) -> None:
    """Give Alpha a second variant and checkpoints: id, variant, whether gated, library."""
    path = project.cards / "alpha.yml"
    edit(path, "{code: MIT, weights: none, source", RELEASES)
    edit(path, "references:\n", SMALL + "references:\n")
    names = ("id", "system", "gated", "library")
    text = "".join(CHECKPOINT.format(**dict(zip(names, each, strict=True))) for each in wanted)
    path.write_text(path.read_text("utf-8") + "checkpoints:\n" + text, "utf-8")


@pytest.mark.parametrize("benchmark", [True, False])
@pytest.mark.parametrize(
    ("wanted", "best"),
    [
        ([("first", "small", "false", "timm"), ("second", "base", "false", "timm")], "second"),
        ([("first", "base", "true", "timm"), ("second", "base", "false", "timm")], "second"),
        ([("first", "base", "false", "mmdet"), ("second", "base", "false", "timm")], "second"),
        ([("first", "base", "true", "mmdet"), ("second", "small", "false", "timm")], "first"),
    ],
)
def test_the_best_checkpoint_has_the_best_figure_and_of_equals_the_easiest(
    tiny: Project, wanted: list[tuple[str, str, str, str]], best: str, benchmark: bool
) -> None:
    add(tiny, *wanted)
    if benchmark:
        words = tiny.cards / "_vocabulary.yml"
        ranked = "benchmarks:\n  object detection: {metric: AP, dataset: COCO, split: val2017}\n"
        words.write_text(words.read_text("utf-8") + ranked, "utf-8")
    knowledge = gather(tiny)
    assert checkpoints.best(knowledge.library.cards["alpha"], knowledge) == best


def test_a_card_without_checkpoints_has_none_to_load(tiny: Project, command: Command) -> None:
    assert command("render").returncode == 0
    assert "## Load it" not in (tiny.docs / "models/alpha.md").read_text("utf-8")
    assert json.loads((tiny.docs / "api/models/alpha.json").read_text("utf-8"))["checkpoints"] == []


def test_the_page_shows_the_snippet_of_the_best_and_folds_the_rest(tiny: Project, command: Command) -> None:
    add(tiny, ("first", "small", "true", "mmdet"), ("second", "base", "false", "timm"))
    assert command("render").returncode == 0
    page = (tiny.docs / "models/alpha.md").read_text("utf-8")
    section = page.partition("## Load it")[2].partition("## ")[0]
    fence = section.partition("```python\n")[2].partition("\n```")[0]
    assert 'timm.create_model("net_second", pretrained=True)' in fence
    assert "All 2 checkpoints" in section
    assert section.index("```python") < section.index("<details")
    assert "first</th>" in section
    assert "official, gated" in section
    assert "32 x 32<br><small>RGB in [0, 1], mean 0.5 0.5 0.5, sides divisible by 8" in section


def test_where_the_best_has_no_snippet_the_best_that_has_one_stands_beside_it(tiny: Project, command: Command) -> None:
    add(tiny, ("first", "base", "false", "mmdet"), ("second", "small", "false", "timm"))
    assert command("render").returncode == 0
    section = (tiny.docs / "models/alpha.md").read_text("utf-8").partition("## Load it")[2].partition("<details")[0]
    places = [section.index(part) for part in ("<strong>first</strong>", "<strong>second</strong>", "```python")]
    assert places == sorted(places)
    assert section.count("```python") == 1


def test_programs_get_each_checkpoint_with_licence_and_snippet(tiny: Project, command: Command) -> None:
    add(tiny, ("first", "small", "true", "mmdet"), ("second", "base", "false", "timm"))
    assert command("render").returncode == 0
    first, second = json.loads((tiny.docs / "api/models/alpha.json").read_text("utf-8"))["checkpoints"]
    assert (first["id"], first["system"], first["gated"], first["snippet"]) == ("first", "small/main", True, None)
    assert second["licence"] == "Apache-2.0"
    assert second["load"] == {"library": "timm", "least": None, "class": "create_model", "name": "net_second"}
    assert len(second["snippet"].splitlines()) <= 8
    assert second["input"]["divisible_by"] == 8


def test_input_is_told_in_a_line() -> None:
    taken = Input.model_validate({"size": "32 x 32", "range": [0, 255], "mean": [1, 2.5, 3], "divisible_by": 8})
    assert input_text(taken) == "RGB in [0, 255], mean 1 2.5 3, sides divisible by 8"
