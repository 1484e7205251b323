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
from scripts.site.gather import gather

ABOUT = About(title="A <site>", summary="What it is about.")


def test_a_model_with_a_hero_has_a_picture_and_every_other_page_that_of_the_site(ready: Project) -> None:
    made = {path for path in (ready.docs / "previews").iterdir() if path.name.count(".") == 1}
    assert {path.name for path in made} == {"alpha.jpg", "site.jpg"}
    for path in made:
        assert path.read_bytes()[:3] == b"\xff\xd8\xff", "a JPEG"
        assert path.stat().st_size < 150_000
    assert 'image: "previews/alpha.jpg"' in (ready.docs / "models/alpha.md").read_text("utf-8")
    assert 'image: "previews/site.jpg"' in (ready.docs / "models/beta.md").read_text("utf-8")


def test_a_tile_shows_the_whole_hero_in_a_file_of_its_size(ready: Project) -> None:
    from PIL import Image

    (hero,) = (gather(ready).hero(card) for card in gather(ready).cards if card.slug == "alpha")
    made = sorted((ready.docs / "previews").glob("*.*.jpg"))
    assert [path.name for path in made] == ["alpha.dark.jpg", "alpha.light.jpg"]
    assert hero
    for path in made:
        with Image.open(path) as small:
            assert small.width <= previews.THUMB[0]
            assert small.height <= previews.THUMB[1]
            assert small.width / small.height == pytest.approx(hero.width / hero.height, rel=0.1), "nothing is cut off"
    assert 'src="../previews/alpha.light.jpg"' in (ready.docs / "models/index.md").read_text("utf-8")


def test_a_picture_is_drawn_again_only_where_what_it_shows_changed(
    ran: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(render, "_jpeg", lambda svg, **_: drawn.append(svg) or b"made")
    ran.kept.unlink()  # else what other tests drew is there
    command("render")
    assert len(drawn) == 4, "the site's, the model's, and a small one for each scheme"
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
