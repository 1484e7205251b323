"""One page with what all tried checkpoints made of a picture, side by side; it holds all it needs and asks no other host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from scripts.cards.packaged import Packaged
from scripts.cards.releases import Checkpoint, Output, licence_name
from scripts.checkpoints.attempt import in_a_line
from scripts.checkpoints.drawing import colour_of, data_uri, drawn
from scripts.checkpoints.found import Attempt, Prompt, Thing, unused, used
from scripts.checkpoints.packaged import OUTPUTS
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

COPY = """
for (const button of document.querySelectorAll("button"))
  button.onclick = async () => {
    const code = button.nextElementSibling.firstElementChild;
    getSelection().selectAllChildren(code);
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  };
"""
"""Where a browser gives no page the clipboard, the lines are selected."""


@dataclass(frozen=True)
class Tried:
    """Weights with how it went, and what is said of them."""

    title: str
    output: Output
    form: str
    licence: str
    """Of the weights; whether they are gated."""
    attempt: Attempt
    lines: str | None = None
    """How to load them."""
    relation: str = ""
    """What they are, if they are no model's own."""


def tried(model: str, checkpoint: Checkpoint, licence: str, attempt: Attempt) -> Tried:
    """A checkpoint of a card."""
    title = checkpoint.name if model in checkpoint.name else f"{model}: {checkpoint.name}"
    gated = ", gated" if checkpoint.gated else ""
    return Tried(title, checkpoint.output, checkpoint.form, licence_name(licence) + gated, attempt, snippet(checkpoint))


def tried_packaged(packaged: Packaged, attempt: Attempt) -> Tried:
    """Weights of a package."""
    file, output = packaged.file, OUTPUTS[packaged.reader]
    relation = f"{packaged.relation} Origin: {packaged.origin} From the package {file.package} {file.version}."
    return Tried(packaged.name, output, output, licence_name(packaged.licence), attempt, relation=relation)


def page(name: str, picture: Picture, tried: Sequence[Tried], prompt: Prompt, random: bool) -> str:
    """The text of the page."""
    notes = "; ".join([f"{picture.image.width} x {picture.image.height} pixels", *picture.notes])
    shown = picture.sheet if picture.frames else picture.image
    warning = "<p class=failed>Random weights: what is shown says nothing of the models.</p>" if random else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(name)}, tried</title><style>{STYLE}</style></head><body>\n<header><h1>{escape(name)}</h1>\n"
        f"<p class=facts>{escape(notes)}</p>{warning}</header>\n<main>\n"
        f'<article><h2>The picture</h2><img src="{data_uri(shown)}" alt="The picture as it was given"></article>\n'
        + "\n".join(_guarded(each, picture, prompt) for each in tried)
        + f"\n</main><script>{COPY}</script></body></html>\n"
    )


def _guarded(tried: Tried, picture: Picture, prompt: Prompt) -> str:
    """An article; what cannot be drawn is told in it, and takes no other with it."""
    try:
        return _article(tried, picture, prompt)
    except Exception as error:  # of whatever library that draws
        failed = replace(tried.attempt, found=None, error=f"ran, and could not be drawn: {in_a_line(error)}")
        return _article(replace(tried, attempt=failed), picture, prompt)


def _article(tried: Tried, picture: Picture, prompt: Prompt) -> str:
    code = (
        "<details><summary>Load it yourself</summary><button>Copy</button>"
        f"<pre tabindex=0><code>{escape(tried.lines)}</code></pre></details>"
        if tried.lines
        else ""
    )
    relation = f"<p>{escape(tried.relation)}</p>" if tried.relation else ""
    return (
        f'<article id="{escape(tried.attempt.id)}"><h2>{escape(tried.title)}</h2>\n'
        f"{_outcome(tried, picture, prompt)}\n{relation}<p class=facts>{escape(_facts(tried))}</p>{code}</article>"
    )


def _outcome(tried: Tried, picture: Picture, prompt: Prompt) -> str:
    found = tried.attempt.found
    if found is None:
        return f"<p class=failed>{escape(tried.attempt.error)}</p>"
    alt = f"{tried.output} by {tried.title}: " + (", ".join(each.name for each in found.things) or "see the remark")
    base = picture.sheet if tried.output.endswith("of a clip") else picture.image
    shown = drawn(base, found, used(prompt, tried.output, picture.image.size)) if found.is_on_picture else None
    image = f'<img src="{data_uri(shown)}" alt="{escape(alt)}">' if shown else ""
    rows = "".join(_row(number, thing) for number, thing in enumerate(found.things))
    nothing = "" if found.is_on_picture or rows else "nothing found"
    ignored = [f"{option} is not shown to it" for option in unused(prompt, tried.output)]
    remark = "; ".join(filter(None, [_legend(tried), found.remark, nothing, *ignored]))
    return f"{image}<p class=remark>{escape(remark)}</p>" + (f"<ol>{rows}</ol>" if rows else "")


def _row(number: int, thing: Thing) -> str:
    """Name and score, and the colour of what is drawn."""
    mark = f'<span class=mark style="background:{colour_of(number)}"></span> ' if thing.is_placed else ""
    score = f" {thing.score:.3f}" if thing.score is not None else ""
    return f"<li>{mark}{escape(thing.name)}{score}</li>"


def _legend(tried: Tried) -> str:
    found = tried.attempt.found
    depth = f": {tried.form}" if found and found.depth is not None else ""
    return f"{found.legend}{depth}" if found and found.legend else tried.output


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
    facts.append(f"weights: {tried.licence}")
    return "; ".join([*facts, *(f"{name} {version}" for name, version in done.versions.items())])
