"""What `serve` makes after an edit: the pages of edited cards first, the rest when it is called again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.evidence.knowledge import Knowledge
from scripts.project import Project
from scripts.site import serve
from scripts.site.gather import BrokenCardsError, gather
from scripts.site.serve import Pages


@pytest.fixture
def pages(tiny: Project) -> tuple[Pages, Callable[[], set[str]]]:
    """The served pages of the tiny project, and which of its files below docs/ were written since the last call."""
    seen: dict[Path, bytes] = {}

    def written() -> set[str]:
        now = {path: path.read_bytes() for path in tiny.docs.rglob("*") if path.is_file()}
        changed = {path.relative_to(tiny.docs).as_posix() for path, text in now.items() if seen.get(path) != text}
        seen.update(now)
        return changed

    def gathered() -> Knowledge | None:
        try:
            return gather(tiny)
        except BrokenCardsError:
            return None

    served = Pages(tiny, gathered, lambda dirty: None)
    served.start()
    written()
    return served, written


def edit(project: Project, slug: str, old: str, new: str) -> None:
    path = project.cards / f"{slug}.yml"
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def asked_again(pages: Pages) -> Callable[[], bool]:
    before = pages.rest.stat().st_mtime_ns
    return lambda: pages.rest.stat().st_mtime_ns != before


def test_the_page_of_an_edited_card_comes_first_and_all_else_when_it_is_called_again(
    pages: tuple[Pages, Callable[[], set[str]]],
) -> None:
    served, written = pages
    again = asked_again(served)
    edit(served.project, "alpha", "purpose: ", "purpose: Edited. ")
    served.refresh()
    assert written() == {"models/alpha.md"}
    assert again()
    again = asked_again(served)
    served.refresh()
    rest = written()
    assert {"models/index.md", "api/models/alpha.json"} <= rest
    assert "models/alpha.md" not in rest
    assert not again()


def test_a_card_that_is_edited_before_the_rest_is_made_comes_first_too(
    pages: tuple[Pages, Callable[[], set[str]]],
) -> None:
    served, written = pages
    for slug in ("alpha", "beta"):
        edit(served.project, slug, "purpose: ", "purpose: Edited. ")
        served.refresh()
        assert written() == {f"models/{slug}.md"}
    served.refresh()
    assert {"api/models/alpha.json", "api/models/beta.json"} <= written()


def test_an_edit_of_more_than_a_card_makes_all_pages_at_once(pages: tuple[Pages, Callable[[], set[str]]]) -> None:
    served, written = pages
    again = asked_again(served)
    edit(served.project, "alpha", "purpose: ", "purpose: Edited. ")
    script = served.project.examples / "alpha.py"
    script.write_text(script.read_text("utf-8") + "# edited\n", "utf-8")
    served.refresh()
    assert {"models/alpha.md", "examples/alpha.md", "api/models/alpha.json"} <= written()
    assert not again()


def test_a_page_that_is_written_by_hand_is_built_alone(pages: tuple[Pages, Callable[[], set[str]]]) -> None:
    served, written = pages
    built: list[bool] = []
    served.rebuild = built.append
    again = asked_again(served)
    served.refresh()
    assert (written(), built, again()) == (set(), [True], False)


def test_a_broken_card_leaves_the_pages_as_they_are_until_it_is_mended(
    pages: tuple[Pages, Callable[[], set[str]]],
) -> None:
    served, written = pages
    built: list[bool] = []
    served.rebuild = built.append
    edit(served.project, "alpha", "purpose: ", "purpos: ")
    served.refresh()
    assert (written(), built) == (set(), [])
    edit(served.project, "alpha", "purpos: ", "purpose: Edited. ")
    served.refresh()
    assert (written(), built) == ({"models/alpha.md"}, [True])


def test_what_could_not_be_made_is_made_when_it_is_called_again(
    pages: tuple[Pages, Callable[[], set[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    served, written = pages
    edit(served.project, "alpha", "purpose: ", "purpose: Edited. ")
    with monkeypatch.context() as patch:
        patch.setattr(serve, "render_models", fail)
        with pytest.raises(OSError, match="the disk is full"):
            served.refresh()
    served.refresh()
    served.refresh()
    assert {"models/alpha.md", "api/models/alpha.json"} <= written()
