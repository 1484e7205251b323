"""What is rendered again after an edit: the pages that read what was edited, and the same bytes as from nothing."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, edit

from scripts import pages, site
from scripts.benchmarks.projects import with_cards
from scripts.project import Project
from scripts.traces import Lazy, Texts, Watched, reading


@pytest.fixture
def chain(tmp_path: Path) -> Project:
    """Six cards, each of which names the next; the last names the first."""
    with_cards(tmp_path / "chain", ROOT, 6)
    return Project(tmp_path / "chain")


def remade(project: Project) -> set[str]:
    """Render, and say whose pages were made."""
    slugs: set[str] = set()
    make = pages.Pages.of_slug

    def noting(self: pages.Pages, slug: str) -> dict[str, str]:
        slugs.add(slug)
        return make(self, slug)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages.Pages, "of_slug", noting)
        site.render(project, site.gather(project))
    return slugs


def groups_made(project: Project) -> int:
    """Render, and say how many groups of texts were made."""
    made = []
    write = site._write_texts

    def noting(project: Project, make: Callable[[], Texts]) -> site._Written:
        made.append(make)
        return write(project, make)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "_write_texts", noting)
        site.render(project, site.gather(project))
    return len(made)


def texts(project: Project) -> dict[str, bytes]:
    files = (path for path in project.docs.rglob("*") if path.is_file())
    return {path.relative_to(project.docs).as_posix(): path.read_bytes() for path in files}


def test_an_edit_renders_its_card_and_those_that_name_it_and_nothing_else(chain: Project) -> None:
    assert remade(chain) == {f"model-{i}" for i in range(6)}
    assert remade(chain) == set()
    edit(chain.cards / "model-3.yml", "street number 3", "street number three")
    assert remade(chain) == {"model-2", "model-3"}


def test_where_nothing_changed_nothing_is_made_and_after_an_edit_what_looks_at_every_card(chain: Project) -> None:
    everything = groups_made(chain)
    assert everything > 6
    assert groups_made(chain) == 0
    edit(chain.cards / "model-3.yml", "street number 3", "street number three")
    assert 2 < groups_made(chain) < everything
    assert groups_made(chain) == 0


def test_another_commit_is_told_in_the_interface(chain: Project) -> None:
    site.render(chain, site.gather(chain))
    git = ["git", "-C", str(chain.root), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q", str(chain.root)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    site.render(chain, site.gather(chain))
    told = json.loads((chain.docs / "api" / "models.json").read_text("utf-8"))
    assert told["generated"]["commit"] == commit


def test_a_page_that_was_edited_or_lost_is_made_again(chain: Project) -> None:
    remade(chain)
    (chain.docs / "models" / "model-1.md").write_text("edited by hand")
    (chain.docs / "api" / "models" / "model-4.json").unlink()
    assert remade(chain) == {"model-1", "model-4"}


def test_a_change_of_the_words_or_of_a_count_renders_all(chain: Project) -> None:
    remade(chain)
    edit(chain.cards / "_vocabulary.yml", "COCO box average precision over", "Average precision of boxes over")
    assert len(remade(chain)) == 6


def test_whatever_is_edited_a_render_gives_the_same_bytes_as_one_from_nothing(chain: Project) -> None:
    choice = random.Random(0)
    for step in range(16):
        _edit_something(chain, choice, step)
        site.render(chain, site.gather(chain))
        made = texts(chain)
        (chain.build / site.TRACES).unlink()
        for name in site.GENERATED:
            path = chain.docs / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        site.render(chain, site.gather(chain))
        assert made == texts(chain)


def _edit_something(project: Project, choice: random.Random, step: int) -> None:
    """A card, or its example."""
    card = project.cards / f"model-{choice.randrange(6)}.yml"
    example = project.examples / f"{card.stem}.py"
    if choice.random() < 0.3:
        if example.is_file():
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


def test_an_entry_that_is_missed_counts_as_read() -> None:
    cards = Watched({"a": 1})
    with reading() as names:
        assert cards.get("b") is None
        assert "a" in cards
    assert names == {"a", "b"}


def test_who_asks_for_a_value_later_has_read_what_it_was_made_from() -> None:
    cards = Watched({"a": 1, "b": 2})
    sums = Lazy(lambda name: cards[name] + cards["b"])
    with reading() as first:
        assert sums["a"] == 3
    with reading() as later:
        assert sums["a"] == 3
    assert first == later == {"a", "b"}
