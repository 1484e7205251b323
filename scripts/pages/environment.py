"""The templates, and the small words that all pages share."""

from __future__ import annotations

import functools
import html
import json
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from scripts.cards import prose
from scripts.cards.releases import licence_name
from scripts.cards.schema import Reference
from scripts.cards.values import si
from scripts.evidence.runs import interval
from scripts.evidence.verdicts import Verdict
from scripts.runs.record import Result

MARKS = {
    Verdict.BOTH: "✓✓", Verdict.PUBLISHED: "§", Verdict.INDEPENDENT: "‡", Verdict.DIFFERS: "§≠", Verdict.SHOWN: "✓",
    Verdict.CONTESTED: "≠", Verdict.INCONCLUSIVE: "~", Verdict.NOTED: "○", Verdict.NOT_SUPPORTED: "✗",
    Verdict.OUTDATED: "↻", Verdict.CORRECTED: "!",
}  # fmt: skip
LEGEND = {
    Verdict.BOTH: "a published figure supports it, and so does a run made here",
    Verdict.PUBLISHED: "a published figure supports it, with its exact place",
    Verdict.INDEPENDENT: "someone else than the authors measured it, under one protocol",
    Verdict.DIFFERS: "a published figure supports it; a small run made here came out otherwise, which overrules nothing",
    Verdict.SHOWN: "a run made here supports it: every seed, and chance is ruled out",
    Verdict.CONTESTED: "the authors' figures support it, an independent measurement does not, or the other way round",
    Verdict.INCONCLUSIVE: "a run made here settles it neither way, and nothing published is cited",
    Verdict.NOTED: "said, but nothing checks it yet",
    Verdict.NOT_SUPPORTED: "the figures or the run that test it speak against it, and nothing published supports it",
    Verdict.OUTDATED: "true once, with what changed",
    Verdict.CORRECTED: "wrong, with what is true",
}


def tidy(text: str) -> str:
    """No trailing blanks, no runs of empty lines: templates leave both."""
    for blank, less in ((" \n", "\n"), ("\n\n\n", "\n\n")):
        while blank in text:
            text = text.replace(blank, less)
    return text.strip() + "\n"


def front(fields: Mapping[str, object]) -> Markup:
    """YAML front matter; JSON is YAML, and quotes whatever a title holds.

    Escaped here, since the theme writes title and description into the page as they are.
    """
    lines = [f"{key}: {json.dumps(_escaped(value, key), ensure_ascii=False)}" for key, value in fields.items()]
    return Markup("---\n" + "\n".join(lines) + "\n---\n")


def _escaped(value: object, key: str) -> object:
    if isinstance(value, list | tuple) and key == "tags":
        return [html.escape(str(each)) for each in value]
    return html.escape(value, quote=key != "title") if isinstance(value, str) else value


def slugify(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def one_word(text: str) -> str:
    """`MaskRCNN` of `Mask R-CNN`."""
    return re.sub(r"\W", "", text)


def topic(text: str) -> str:
    """The tag of what a page answers though it is not called so; find.js adds it to a query of just these words."""
    return f"topic{one_word(text)}".lower()


def short(value: float | None) -> str:
    """Three significant digits, without an exponent for everyday sizes."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1g}"
    if abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:.2e}"


def band(result: Result) -> tuple[float, float] | None:
    """The 95 % interval of a result's mean, where there are seeds enough for one."""
    return None if result.exact or len(result.defined) < 2 else _interval(tuple(result.defined))


_interval = functools.lru_cache(maxsize=4096)(interval)
"""The page of a model and that of its example ask for the same."""


def _authors(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} et al."


def _appeared(reference: Reference) -> str:
    """Where it appeared, and when; a venue that names its year says it alone."""
    venue = reference.venue or ""
    return venue if re.search(r"\b(19|20)\d\d\b", venue) else f"{venue}, {reference.year}".removeprefix(", ")


def _trim(text: str, end: str) -> str:
    return text.strip().rstrip(end)


def _heading(text: str) -> Markup:
    """Text of a Markdown heading: marks are escaped, so that nothing in it is read as Markdown or HTML."""
    return Markup(re.sub(r"([\\`*_{}\[\]#|])", r"\\\1", html.escape(" ".join(text.split()), quote=False)))


def _compiled() -> jinja2.FileSystemBytecodeCache | None:
    """Where compiled templates lie from one command to the next, beside their source, as those of Python's modules do."""
    folder = Path(__file__).with_name("templates") / "__pycache__"
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return jinja2.FileSystemBytecodeCache(str(folder)) if os.access(folder, os.W_OK) else None


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("scripts.pages"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, bytecode_cache=_compiled(),
    )  # fmt: skip
    environment.globals["marks"] = {verdict.value: mark for verdict, mark in MARKS.items()}
    environment.globals["badge"] = functools.cache(lambda verdict: template("macros.j2").module.badge(verdict))  # type: ignore[attr-defined]
    environment.filters |= {
        "basename": posixpath.basename, "trim": _trim,
        "short": short, "si": si, "band": band, "plain": prose.to_text, "slugify": slugify,
        "authors": _authors, "appeared": _appeared, "licence": licence_name, "heading": _heading,
    }  # fmt: skip
    return environment


@functools.cache
def template(name: str) -> jinja2.Template:
    return _environment().get_template(name)


def ordered(counts: Mapping[Verdict, int]) -> dict[str, int]:
    return {verdict.value: counts[verdict] for verdict in Verdict if counts.get(verdict)}
