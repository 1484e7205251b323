"""One page with what all tried checkpoints made of a picture, side by side; it holds all it needs and asks no other host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from scripts.cards.releases import Checkpoint
from scripts.checkpoints.drawing import colour_of, data_uri, drawn
from scripts.checkpoints.found import Attempt, Prompt
from scripts.checkpoints.pictures import Picture
from scripts.checkpoints.snippets import snippet

STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d5dae0, #3a4250); --soft: light-dark(#51606f, #a9b6c4); }
body { background: light-dark(#fff, #16181d); color: light-dark(#16181d, #eef1f5); }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 100rem; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; align-items: start; }
article { border: 1px solid var(--line); border-radius: .3rem; padding: 0 1rem 1rem; min-width: 0; }
h1, h2 { line-height: 1.2; } h2 { font-size: 1.15rem; }
img { display: block; max-width: 100%; height: auto; }
.facts, .remark { color: var(--soft); font-size: .9rem; }
.failed { border-left: 4px solid #c2562f; padding-left: .6rem; overflow-wrap: anywhere; }
ol { padding-left: 1.6rem; } .mark { display: inline-block; width: .8em; height: .8em; border-radius: .15em; }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .5rem; font-size: .8rem; }
"""


@dataclass(frozen=True)
class Tried:
    """A checkpoint with how it went."""

    model: str
    checkpoint: Checkpoint
    licence: str
    attempt: Attempt


def page(name: str, picture: Picture, tried: Sequence[Tried], prompt: Prompt, random: bool) -> str:
    """The text of the page."""
    notes = "; ".join([f"{picture.image.width} x {picture.image.height} pixels", *picture.notes])
    warning = "<p class=failed>Random weights: what is shown says nothing of the models.</p>" if random else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(name)}, tried</title><style>{STYLE}</style></head><body>\n<header><h1>{escape(name)}</h1>\n"
        f"<p class=facts>{escape(notes)}</p>{warning}</header>\n<main>\n"
        f'<article><h2>The picture</h2><img src="{data_uri(picture.image)}" alt="The picture as it was given"></article>\n'
        + "\n".join(_article(each, picture, prompt) for each in tried)
        + "\n</main></body></html>\n"
    )


def _article(tried: Tried, picture: Picture, prompt: Prompt) -> str:
    lines = snippet(tried.checkpoint)
    code = (
        f"<details><summary>Load it yourself</summary><pre tabindex=0><code>{escape(lines)}</code></pre></details>"
        if lines
        else ""
    )
    return (
        f'<article id="{escape(tried.attempt.id)}"><h2>{escape(_title(tried))}</h2>\n'
        f"{_outcome(tried, picture, prompt)}\n<p class=facts>{escape(_facts(tried))}</p>{code}</article>"
    )


def _outcome(tried: Tried, picture: Picture, prompt: Prompt) -> str:
    found = tried.attempt.found
    if found is None:
        return f"<p class=failed>{escape(tried.attempt.error)}</p>"
    output = tried.checkpoint.output
    on_picture = found.depth is not None or found.features is not None or any(
        thing.box is not None or thing.mask is not None for thing in found.things
    )  # fmt: skip
    alt = f"{output} by {tried.checkpoint.name}: " + (", ".join(each.name for each in found.things) or "see the remark")
    image = (
        f'<img src="{data_uri(drawn(picture.image, found, _used(prompt, output, picture)))}" alt="{escape(alt)}">'
        if on_picture
        else ""
    )
    rows = "".join(
        f'<li><span class=mark style="background:{colour_of(number)}"></span> {escape(thing.name)}'
        f"{f' {thing.score:.3f}' if thing.score is not None else ''}</li>"
        for number, thing in enumerate(found.things)
    )
    nothing = not on_picture and not rows
    remark = "; ".join(filter(None, [_legend(tried), found.remark, "nothing found" if nothing else ""]))
    return f"{image}<p class=remark>{escape(remark)}</p>" + (f"<ol>{rows}</ol>" if rows else "")


def _title(tried: Tried) -> str:
    name = tried.checkpoint.name
    return name if tried.model in name else f"{tried.model}: {name}"


def _used(prompt: Prompt, output: str, picture: Picture) -> Prompt:
    """The part of a prompt that a model was shown: a box, else a click, else one at the middle."""
    if output != "masks of a prompt":
        return Prompt()
    middle = (picture.image.width / 2, picture.image.height / 2)
    return Prompt(box=prompt.box) if prompt.box else Prompt(point=prompt.point or middle)


def _legend(tried: Tried) -> str:
    found = tried.attempt.found
    if found is not None and found.depth is not None:
        return f"depth, brighter is larger: {tried.checkpoint.form}"
    if found is not None and found.features is not None:
        return "patch features: their first three principal components as red, green and blue"
    return tried.checkpoint.output


def _facts(tried: Tried) -> str:
    """Time, memory, device, versions, licence."""
    done, facts = tried.attempt, [tried.attempt.id]
    if done.ms is not None:
        facts.append(f"{done.ms:,.0f} ms for a forward pass after a warm-up, on {done.device}")
    if done.seconds_to_load is not None:
        facts.append(f"{done.seconds_to_load:.1f} s to load")
    if done.peak_mb is not None:
        whose = "of the process with its libraries" if done.device == "cpu" else "of the accelerator"
        facts.append(f"{done.peak_mb:,.0f} MB at the peak {whose}")
    facts.append(f"weights: {tried.licence}{', gated' if tried.checkpoint.gated else ''}")
    return "; ".join([*facts, *(f"{name} {version}" for name, version in done.versions.items())])
