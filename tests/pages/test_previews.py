"""What a link to a page shows where it is shared: title, description and a picture."""

from __future__ import annotations

import html
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import ROOT, Command

from scripts.cards.library import load_library
from scripts.evidence.knowledge import About
from scripts.pages import previews
from scripts.project import Project
from scripts.site import render

ABOUT = About(title="A <site>", summary="What it is about.")


def test_a_model_with_a_hero_has_a_picture_and_every_other_page_that_of_the_site(ready: Project) -> None:
    assert {path.name for path in (ready.docs / "previews").iterdir()} == {"alpha.jpg", "site.jpg"}
    for path in (ready.docs / "previews").iterdir():
        assert path.read_bytes()[:3] == b"\xff\xd8\xff", "a JPEG"
        assert path.stat().st_size < 150_000
    assert 'image: "previews/alpha.jpg"' in (ready.docs / "models/alpha.md").read_text("utf-8")
    assert 'image: "previews/site.jpg"' in (ready.docs / "models/beta.md").read_text("utf-8")


def test_a_picture_is_drawn_again_only_where_what_it_shows_changed(
    ran: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(render, "_jpeg", lambda svg: drawn.append(svg) or b"made")
    ran.kept.unlink()  # else what other tests drew is there
    command("render")
    assert len(drawn) == 2
    drawn.clear()
    command("render")
    assert drawn == []
    card = ran.cards / "alpha.yml"
    card.write_text(re.sub(r"(?m)^purpose: .*$", "purpose: Does something else.", card.read_text("utf-8")), "utf-8")
    command("render")
    assert len(drawn) == 1
    assert "something else" in drawn[0]


@pytest.mark.parametrize(
    ("end", "hero"), [(".svg", b'<?xml version="1.0"?><svg viewBox="0 0 9 9" width="9pt"/>'), (".png", b"x")]
)
def test_a_picture_is_whole_whatever_the_words_and_the_kind_of_its_hero(end: str, hero: bytes) -> None:
    library, _ = load_library(ROOT / "model_cards", ROOT)
    for card in library.cards.values():
        hard = card.model_copy(update={"name": "<b>&", "purpose": card.purpose + " very long" * 50})
        drawn = ElementTree.fromstring(previews.of_card(hard, ABOUT, end, hero))
        heights = [int(text.get("y", "")) for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
        assert max(heights) <= previews.HEIGHT - previews.EDGE


@pytest.mark.slow
def test_every_page_says_what_is_shown_where_it_is_shared(built: Path) -> None:
    for path in built.rglob("*.html"):
        told = dict(
            re.findall(r'<meta (?:property|name)="((?:og|twitter):[^"]+)" content="([^"]*)"', path.read_text("utf-8"))
        )
        assert all(told.get(name) for name in ("og:title", "og:description", "og:image:alt", "twitter:card")), path
        place = html.unescape(told["og:image"]).partition("/previews/")
        assert place[0].startswith("https://"), path
        assert (built / "previews" / place[2]).is_file(), path
