"""Pages show what weights make of photographs, with where that was made, or the command that makes it; never an empty frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, edit

from scripts.cards.library import load_library
from scripts.evidence.photographs import Taken, originals_folder, record_of
from scripts.pages.photographs import caption
from scripts.project import Project

OFFICIAL = "{name: official, code: MIT, weights: Apache-2.0, source: {reference: alpha2020, where: LICENSE}}"
CHECKPOINTS = """checkpoints:
  base:
    name: Alpha-B of its makers
    system: base/main
    task: object detection
    release: official
    load: {library: transformers, class: DetrForObjectDetection, name: alpha/base}
    input: {size: 32 x 32}
    output: boxes
    form: boxes in pixels
    source: {reference: alpha2020, where: README}
"""
DIGEST = "0" * 64
WORDS = f"""packaged:
  relative:
    name: Relative
    card: alpha
    task: object detection
    relation: It is not Alpha.
    file: {{package: carrier, version: "1.0", member: a/b.onnx, megabytes: 0.1, sha256: "{DIGEST}"}}
    reader: centre heatmap
    licence: MIT
    origin: Not stated.
photographs:
  cat:
    title: A cat
    file: {{package: shown, member: cat.png}}
    licence: CC0-1.0
    origin: A friend.
"""


@pytest.fixture
def alpha(tiny: Project) -> Project:
    path = tiny.cards / "alpha.yml"
    edit(path, "{code: MIT, weights: none, source", f"{{code: MIT, weights: none, releases: [{OFFICIAL}], source")
    path.write_text(path.read_text("utf-8") + CHECKPOINTS, "utf-8")
    (tiny.cards / "_packaged.yml").write_text(WORDS)
    return tiny


def keep(project: Project, id: str, **taken: Any) -> Path:
    """A record made elsewhere."""
    folder = project.root / "measurements/photographs" / id
    folder.mkdir(parents=True)
    (folder / "cat.jpg").write_bytes(b"a picture")
    picture = {"photograph": "cat", "file": "cat.jpg", "width": 64, "height": 48, "found": ["cat 0.90"], "remark": ""}
    record = {"schema": 1, "device": {"name": "H<1>"}, "versions": {"torch": "2.0"}, "pictures": [picture | taken]}
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def section(page: str) -> str:
    return page.partition("## On photographs")[2].partition("\n## ")[0]


def test_where_the_weights_were_not_reached_the_page_holds_the_command(alpha: Project, command: Command) -> None:
    assert command("render").returncode == 0
    page = section((alpha.docs / "models/alpha.md").read_text("utf-8"))
    assert "python -m scripts photographs --fetch --models alpha" in page
    assert "<img" not in page
    assert "<details" not in page, "the command stands open"
    overview = (alpha.docs / "photographs/index.md").read_text("utf-8")
    assert 'href="object-detection/"' in overview
    task = (alpha.docs / "photographs/object-detection.md").read_text("utf-8")
    assert 'python -m scripts photographs --fetch --tasks "object detection"' in task
    assert "alpha/base" in task
    assert sorted(path.name for path in (alpha.docs / "photographs").iterdir()) == ["index.md", "object-detection.md"]


def test_for_each_task_of_a_card_a_checkpoint_is_shown_or_awaited(alpha: Project, command: Command) -> None:
    path = alpha.cards / "alpha.yml"
    second = CHECKPOINTS.removeprefix("checkpoints:\n").replace("  base:", "  depths:")
    second = second.replace("object detection", "depth estimation").replace("output: boxes", "output: depth")
    path.write_text(path.read_text("utf-8") + second.replace("alpha/base", "alpha/depths"), "utf-8")
    edit(path, "tasks: [object detection", "tasks: [object detection, depth estimation")
    edit(alpha.cards / "_vocabulary.yml", "tasks:\n", "tasks:\n  depth estimation: Give each pixel its distance.\n")
    keep(alpha, "alpha-base")
    assert command("render").returncode == 0
    page = section((alpha.docs / "models/alpha.md").read_text("utf-8"))
    assert "<img" in page
    assert "alpha/depths" in page
    depth = (alpha.docs / "photographs/depth-estimation.md").read_text("utf-8")
    assert '--tasks "depth estimation"' in depth
    assert "alpha/base" not in depth
    assert "--tasks" not in (alpha.docs / "photographs/object-detection.md").read_text("utf-8")


def test_a_model_of_clips_names_the_command_that_runs_it_on_one(alpha: Project, command: Command) -> None:
    edit(alpha.cards / "alpha.yml", "output: boxes", "output: classes of a clip")
    assert command("render").returncode == 0
    for path in ("models/alpha.md", "photographs/object-detection.md"):
        page = (alpha.docs / path).read_text("utf-8")
        assert "python -m scripts try clip.gif --checkpoint alpha/base" in page
        assert "--fetch" not in page


def test_a_record_made_elsewhere_is_shown_with_its_origin(alpha: Project, command: Command) -> None:
    keep(alpha, "alpha-base")
    assert command("render").returncode == 0
    page = section((alpha.docs / "models/alpha.md").read_text("utf-8"))
    assert "Made elsewhere, and kept in the repository, on H&lt;1&gt;, torch 2.0." in page
    assert 'src="../../figures/photographs/alpha-base/cat.jpg"' in page
    assert "A cat: cat 0.90" in page
    assert "--fetch" not in page
    assert (alpha.docs / "figures/photographs/alpha-base/cat.jpg").read_bytes() == b"a picture"
    task = (alpha.docs / "photographs/object-detection.md").read_text("utf-8")
    assert "<strong>Alpha-B of its makers</strong>: cat 0.90" in task
    assert "alpha/base" in task


def test_weights_that_are_no_models_own_say_so_and_do_not_stand_for_them(alpha: Project, command: Command) -> None:
    keep(alpha, "relative")
    assert command("render").returncode == 0
    page = section((alpha.docs / "models/alpha.md").read_text("utf-8"))
    assert "It is not Alpha. Origin: Not stated. From the package carrier 1.0. Weights: MIT." in page
    assert "--fetch --models alpha" in page, "the published weights are still missing"


def test_where_nothing_can_be_shown_the_page_says_why(alpha: Project, command: Command) -> None:
    edit(alpha.cards / "alpha.yml", "library: transformers", "library: mmdet")
    assert command("render").returncode == 0
    page = section((alpha.docs / "models/beta.md").read_text("utf-8"))
    assert "its card names no weights that can be loaded." in page
    page = section((alpha.docs / "models/alpha.md").read_text("utf-8"))
    assert "This build did not run Relative" in page
    (alpha.cards / "_packaged.yml").unlink()
    assert command("render").returncode == 0
    page = section((alpha.docs / "models/alpha.md").read_text("utf-8"))
    assert "loads with mmdet, which is not yet tried here." in page
    assert not (alpha.docs / "photographs/object-detection.md").exists()


def test_a_photograph_is_shown_with_its_origin_and_licence_in_links(alpha: Project, command: Command) -> None:
    edit(alpha.cards / "_packaged.yml", "licence: CC0-1.0", "licence: CC-BY-2.0\n    address: https://a.org/cat")
    folder = originals_folder(alpha, load_library(alpha.cards, alpha.root)[0])
    folder.mkdir(parents=True)
    (folder / "cat.jpg").write_bytes(b"a cat")
    (folder / "record.json").write_text(json.dumps(record_of({}, {}, (Taken("cat", "cat.jpg", 64, 48),))))
    assert command("render").returncode == 0
    page = (alpha.docs / "photographs/index.md").read_text("utf-8")
    assert '<a href="https://a.org/cat">A friend</a>.' in page
    assert '<a href="https://creativecommons.org/licenses/by/2.0/">CC-BY-2.0</a>.' in page


def test_a_picture_that_is_missing_is_left_out(alpha: Project, command: Command) -> None:
    (keep(alpha, "alpha-base") / "cat.jpg").unlink()
    assert command("render").returncode == 0
    assert "<img" not in section((alpha.docs / "models/alpha.md").read_text("utf-8"))


def test_what_is_no_record_is_told(alpha: Project, command: Command) -> None:
    keep(alpha, "alpha-base", colour="red")
    with pytest.raises(ValueError, match=r"alpha-base/record\.json is no record of photographs"):
        command("render")


def test_weights_of_packages_name_a_card_and_a_task_that_there_are(alpha: Project, command: Command) -> None:
    path = alpha.cards / "_packaged.yml"
    edit(path, "card: alpha", "card: alpa")
    edit(path, "task: object detection", "task: object detecting")
    done = command("check")
    assert done.returncode == 1
    first, second = (done.stdout + done.stderr).splitlines()[:2]
    assert first.startswith("model_cards/_packaged.yml:4:5: unknown card 'alpa', did you mean 'alpha'?")
    assert second.startswith("model_cards/_packaged.yml:5:5: unknown task 'object detecting'")


def test_a_caption_names_the_surest_and_how_many_more() -> None:
    found = ("cat 0.90", "dog 0.80", "cup 0.70", "bed 0.60")
    assert caption(Taken("a", "a.jpg", 1, 1, found, "a remark")) == "cat 0.90, dog 0.80, cup 0.70, 1 more; a remark"
    assert caption(Taken("a", "a.jpg", 1, 1)) == "nothing found"


def loading(page: str) -> str:
    return page.partition("## Load it")[2].partition("\n## ")[0]


def test_load_it_ends_with_the_command_for_a_picture_of_the_readers_own(alpha: Project, command: Command) -> None:
    path = alpha.cards / "alpha.yml"
    assert command("render").returncode == 0
    page = loading((alpha.docs / "models/alpha.md").read_text("utf-8"))
    assert "python -m scripts try picture.jpg --models alpha" in page
    assert "about/trying/" in page
    assert "A run each week tests these lines" in page
    edit(path, "release: official", "release: official\n    gated: true")
    assert command("render").returncode == 0
    page = loading((alpha.docs / "models/alpha.md").read_text("utf-8"))
    assert "It needs your consent at the hub, so the weekly run" in page


def test_what_is_not_run_here_says_so(alpha: Project, command: Command) -> None:
    edit(
        alpha.cards / "alpha.yml",
        "library: transformers, class: DetrForObjectDetection",
        "library: ultralytics, class: YOLO",
    )
    assert command("render").returncode == 0
    page = loading((alpha.docs / "models/alpha.md").read_text("utf-8"))
    assert "Not run here: ultralytics is not among the packages of this project." in page
    assert "# ultralytics is under AGPL-3.0" in page
    assert "loads with ultralytics, which is not yet tried here." in page
    edit(alpha.cards / "alpha.yml", "class: YOLO", "class: Any")
    assert command("render").returncode == 0
    page = loading((alpha.docs / "models/alpha.md").read_text("utf-8"))
    assert "It loads with Any of ultralytics, which takes more than a few lines: alpha/base." in page
    assert "```" not in page
