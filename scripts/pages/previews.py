"""The picture that a link to a page shows where it is shared: what the page is beside what it shows first."""

from __future__ import annotations

import base64
import html
import re
import textwrap

from scripts.cards import prose
from scripts.cards.schema import Card
from scripts.evidence.knowledge import About
from scripts.pages.chart_style import SCHEMES
from scripts.runs.record import Figure

WIDTH, HEIGHT = 1200, 630
"""What the sites that show such pictures ask for, in pixels."""
EDGE, COLUMN = 50, 420
"""Free margin, and width of the text beside a picture, in pixels."""
THUMB = (280, 210)
"""A small picture, for tiles, fits into this, in pixels."""
MEDIA_TYPES = {".png": "image/png", ".webp": "image/webp"}


def path_of(slug: str) -> str:
    """Where the picture of a card lies below docs/, or of the site by its own name."""
    return f"previews/{slug}.jpg"


def thumb_path(slug: str, scheme: str) -> str:
    """Where the small picture of a card lies below docs/."""
    return f"previews/{slug}.{scheme}.jpg"


def of_card(card: Card, about: About, end: str, hero: bytes) -> str:
    """The picture of a model as SVG: its name, tasks and purpose beside its hero, a file that ends in `end`."""
    text = _text((card.name, " · ".join(card.tasks), prose.to_text(card.purpose)), COLUMN, about.title)
    left = EDGE + COLUMN + EDGE // 2
    place = f'x="{left}" y="{EDGE}" width="{WIDTH - left - EDGE}" height="{HEIGHT - 2 * EDGE}"'
    return _svg(text + _placed(end, hero, place))


def thumb(figure: Figure, scheme: str, end: str, hero: bytes) -> str:
    """A hero whole, as small as tiles show it, on the colour of their page, as SVG."""
    scale = min(THUMB[0] / figure.width, THUMB[1] / figure.height)
    size = f'width="{round(scale * figure.width)}" height="{round(scale * figure.height)}"'
    page = f'<rect {size} fill="{SCHEMES[scheme]["page"]}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{page}{_placed(end, hero, size)}</svg>'


def of_site(about: About) -> str:
    """The picture of every other page, as SVG."""
    return _svg(_text((about.title, "", about.summary), WIDTH - 2 * EDGE, about.title))


def _svg(content: str) -> str:
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    opened = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {HEIGHT}">'
    return f'{opened}<rect {size} fill="#fff"/>{content}</svg>'


def _text(paragraphs: tuple[str, str, str], width: int, foot: str) -> str:
    """A title, a small line and a text below each other; what does not fit ends in dots."""
    colours = SCHEMES["light"]
    styles = ((54, 700, colours["ink"]), (24, 400, colours["muted"]), (30, 400, colours["ink"]))
    y, lines = EDGE + 54, [_line(HEIGHT - EDGE, 24, 700, colours["colours"][0], foot)]
    for paragraph, (size, weight, colour) in zip(paragraphs, styles, strict=True):
        room = int((HEIGHT - 2 * EDGE - y) / (1.3 * size))
        for line in textwrap.wrap(paragraph, int(width / (0.53 * size)), max_lines=max(room, 1), placeholder=" …"):
            lines.append(_line(y, size, weight, colour, line))
            y += round(1.3 * size)
        y += 14
    return "".join(lines)


def _line(y: int, size: int, weight: int, colour: str, text: str) -> str:
    style = f'font-family="sans-serif" font-size="{size}" font-weight="{weight}" fill="{colour}"'
    return f'<text x="{EDGE}" y="{y}" {style}>{html.escape(text)}</text>'


def _placed(end: str, hero: bytes, place: str) -> str:
    """A picture at a place. One in SVG is put in as it is: as an image it would lose the images in it."""
    if end != ".svg":
        return f'<image {place} href="data:{MEDIA_TYPES[end]};base64,{base64.b64encode(hero).decode()}"/>'
    drawn = hero.decode()
    root = re.search(r"<svg\b[^>]*>", drawn)
    assert root, "a figure in SVG has a root"
    attributes = re.sub(r'\s(?:x|y|width|height)="[^"]*"', "", root[0].removeprefix("<svg"))
    return f"<svg {place}{attributes}{drawn[root.end() :]}"
