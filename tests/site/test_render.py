"""Rendering: whatever was there before, the pages are those that the cards give, and no others."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, edit, snapshot

from scripts.benchmarks.projects import with_cards
from scripts.files import Dear
from scripts.project import Project
from scripts.site.commit import own_commit
from scripts.site.gather import gather
from scripts.site.kept import kept
from scripts.site.render import generated, render


@pytest.fixture
def chain(tmp_path: Path) -> Project:
    """Six cards, each of which names the next; the last names the first."""
    with_cards(tmp_path / "chain", ROOT, 6)
    return Project(tmp_path / "chain")


def rendered(project: Project) -> dict[str, bytes]:
    render(project, gather(project))
    return snapshot(project.docs)


def test_a_page_that_was_edited_or_lost_is_made_again(chain: Project) -> None:
    before = rendered(chain)
    (chain.docs / "models" / "model-1.md").write_text("edited by hand")
    (chain.docs / "api" / "models" / "model-4.json").unlink()
    assert render(chain, gather(chain)) == 2
    assert snapshot(chain.docs) == before


@pytest.mark.slow
def test_whatever_is_edited_a_render_gives_the_same_bytes_as_one_from_nothing(chain: Project) -> None:
    choice = random.Random(0)
    for step in range(8):
        for _ in range(2):
            edit_something(chain, choice, step)
        made = rendered(chain)
        shutil.rmtree(chain.build, ignore_errors=True)
        for name in generated():
            path = chain.docs / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        assert made == rendered(chain)


def edit_something(project: Project, choice: random.Random, step: int) -> None:
    """A card, or its example."""
    card = project.cards / f"model-{choice.randrange(6)}.yml"
    example = project.examples / f"{card.stem}.py"
    if choice.random() < 0.5:
        if example.is_file() and choice.random() < 0.5:
            example.unlink()
        else:
            example.write_text(f"# %% [markdown]\n# # Step {step}\n\n# %%\nprint({step})\n", "utf-8")
        return
    text = card.read_text("utf-8")
    number = card.stem.removeprefix("model-")
    old, new = choice.choice(
        [
            ("AP: 44.5", f"AP: {45 + step}.5"),
            (f"name: Model {number}\n", f"name: Model {number} of step {step}\n"),
            ("parameters: 26 M", f"parameters: {27 + step} M"),
            (f"Model {number} of its kind", f"Title {step}"),
            ("code: MIT", "code: Apache-2.0"),
        ]
    )
    card.write_text(text.replace(old, new), "utf-8")


def test_a_benchmark_that_two_models_no_longer_share_takes_its_chart_away(chain: Project) -> None:
    charts = [name for name in rendered(chain) if name.startswith("charts/ap-")]
    assert len(charts) == 2 * 5, "for parameters and MACs: the data, and two pictures for each scheme, one for a phone"
    for i in range(1, 6):
        edit(chain.cards / f"model-{i}.yml", "split: val2017", f"split: part {i}")
    assert [name for name in rendered(chain) if name.startswith("charts/ap-")] == []


def test_every_generated_file_is_known_as_one(chain: Project) -> None:
    """`serve` looks at all else, git ignores them, and nothing that is written by hand is among them."""
    (chain.examples / "model-1.py").write_text("# %% [markdown]\n# # An example\n")
    by_hand = set(snapshot(chain.docs))
    made = set(rendered(chain)) - by_hand
    assert {name.partition("/")[0] for name in made} <= set(generated())
    assert not {name.partition("/")[0] for name in by_hand} & set(generated())
    kept = {line for line in (ROOT / ".gitignore").read_text("utf-8").splitlines() if line.startswith("!/docs/")}
    assert not kept & {f"!/docs/{name}{end}" for name in generated() for end in ("", "/")}
    if own_commit(Project(ROOT)):  # not in an archive of this project, nor where git is not there or refuses
        tracked = subprocess.run(
            ["git", "ls-files", "docs"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert not {name.split("/")[1] for name in tracked.split()} & set(generated())


def test_what_is_dear_is_made_once_for_the_same_input(tmp_path: Path) -> None:
    calls: list[str] = []

    def make() -> str:
        calls.append("made")
        return "<svg/>\r\n"

    project = Project(tmp_path)
    assert kept(project, Dear("a", make)) == kept(project, Dear("a", make)) == "<svg/>\r\n"
    assert len(calls) == 1
    kept(project, Dear("b", make))
    assert len(calls) == 2
