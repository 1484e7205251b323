"""Cards come from strangers: nothing in one runs, escapes its folder, or takes more time and memory than it should."""

from __future__ import annotations

import base64
import copy
import hashlib
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from conftest import ROOT, TINY, Command, needs_chromium
from playwright.sync_api import Browser

from scripts.__main__ import annotation
from scripts.benchmarks.search import serving
from scripts.cards.library import load_library
from scripts.cards.problems import MAX_PROBLEMS, CardError, Problem
from scripts.cards.prose import mathml, measurements, to_html
from scripts.cards.yaml_reader import read_yaml
from scripts.project import Project
from scripts.runs import job, schedule
from scripts.runs.state import states
from scripts.site.build import build
from scripts.site.gather import checked_library, gather
from scripts.site.render import render

SECONDS = 10
MEGABYTES = 400

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
}
for assertion in (*(claim["shown"] for claim in FULL_CARD["pros"][:2]), FULL_CARD["cons"][0]["shown"]):
    assertion["result"] = f"alpha/{assertion['result']}"  # the cards that are made of this one have no example
FULL_CARD["pros"][1]["reported"] = {"number": "base/AP", "above": 1}  # so that the conditions may be anything
FULL_CARD["licences"]["note"] = "Mind it."
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


@needs_chromium
def test_no_payload_in_any_text_of_a_card_runs_even_without_a_policy(hostile: Project, browser: Browser) -> None:
    """The theme's override is not there, so that escaping alone has to hold."""
    assert len(PAYLOADS) >= 60
    held = [sum(p in path.read_text("utf-8") for p in ("pwned",)) for path in hostile.cards.glob("p*.yml")]
    assert sum(held) >= 50, "most payloads stand in a card"
    shutil.copytree(
        ROOT / "docs/assets", hostile.docs / "assets"
    )  # the scripts of pages put texts of cards into them, too
    render(hostile, gather(hostile))
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
        pages = [
            "",
            "models/",
            "tasks/",
            "numbers/",
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
        page.goto(address, wait_until="networkidle")
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


BOMBS = {
    "50 MB": lambda: "name: " + "x" * 50_000_000,
    "billion laughs": lambda: "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 10)),
    "brackets": lambda: "[" * 200_000,
    "braces": lambda: "{a: " * 100_000,
    "block nesting": lambda: "".join(" " * i + "a:\n" for i in range(900)),
    "10,000 claims": lambda: "pros:\n" + "- {claim: a, because: b}\n" * 10_000,
    "many keys": lambda: "".join(f"purpos{i}: 1\n" for i in range(30_000)),
    "many values": lambda: "tasks: [" + "a, " * 100_000 + "]",
    "deep formula": lambda: "concept: $" + "{" * 9_000 + "}" * 9_000 + "$",
    "figures": lambda: "concept: " + "1," * 9_000,
    "long key": lambda: "? " + "k" * 400_000 + "\n: 1",
    "huge integer": lambda: "reviewed: 0x" + "f" * 400_000,
    "python object": lambda: "name: !!python/object/apply:os.system ['touch pwned']",
    "python module": lambda: "name: !!python/module:os",
    "merge key": lambda: "<<: {name: x}",
    "null byte": lambda: "name: a\0b",
    "surrogate": lambda: 'name: "\\ud800"',
    "escapes": lambda: 'name: "\\e]0;pwned\\a"',
    "a list": lambda: "- a",
    "nothing": lambda: "",
    "tab": lambda: "\tname: x",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_card_is_refused_with_a_clear_message_in_bounded_time_and_memory(name: str, tiny: Project) -> None:
    (tiny.cards / "alpha.yml").write_text(BOMBS[name](), "utf-8")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES * 2**20,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "scripts", "check"],
        cwd=tiny.root, env=environment, capture_output=True, text=True, check=False, preexec_fn=limit,
    )  # fmt: skip
    told = done.stdout.splitlines()
    assert done.returncode == 1, (done.returncode, done.stderr[-500:])
    assert "Traceback" not in done.stderr
    assert told[0].startswith("model_cards/alpha.yml:")
    assert len(told) <= 2 * MAX_PROBLEMS
    assert max(map(len, told)) < 800
    assert all(line.isprintable() for line in told)
    assert not (tiny.root / "pwned").exists()


@pytest.mark.parametrize("name", ["_notes.yml", "_glossary.yml", "_vocabulary.yml"])
@pytest.mark.parametrize(
    "text", ["- a", "notes: 1", "notes: [{line: x}]", "glossary: {x: 1}", "metrics: {AP: {see: [x]}}", "tasks: [1]", "\xff"]
)  # fmt: skip
def test_hostile_words_are_refused_with_a_message(name: str, text: str, tiny: Project, command: Command) -> None:
    (tiny.cards / name).write_bytes(text.encode("latin-1"))
    done = command("check")
    assert done.returncode == 1
    assert done.stdout.startswith("model_cards/_")


def test_a_card_that_is_a_link_or_a_folder_is_not_read(tiny: Project) -> None:
    (tiny.cards / "gamma.yml").symlink_to("/etc/passwd")
    (tiny.cards / "delta.yml").mkdir()
    _, problems = load_library(tiny.cards, tiny.root)
    assert [p.message for p in problems] == ["no plain file; a link or a folder is not read"] * 2


@pytest.mark.parametrize("slug", ["../evil", "..", "a/b", "/etc/x", "a\nb", "A", "a--b", "a.b"])
def test_a_slug_never_leads_out_of_its_folder(slug: str, tiny: Project, command: Command) -> None:
    before = sorted(tiny.root.parent.rglob("*"))
    assert command("new", slug).returncode == 1
    assert command("run", slug).returncode == 1
    assert job.execute(tiny, slug, "quick-cpu-0") == 1
    assert job.execute(tiny, "alpha", f"quick-cpu-{slug}/../../x") == 1
    assert sorted(tiny.root.parent.rglob("*")) == before


def test_the_figures_of_a_record_never_lead_out_of_its_folder(tiny: Project, command: Command) -> None:
    command("run")
    record = schedule.wanted_targets(tiny, ["alpha"], None, "cpu")[0].record(tiny)
    (tiny.root / "secret.svg").write_text("secret")
    record.write_text(record.read_text().replace("figures/margin.light.svg", "../../../../secret.svg"))
    assert states(tiny)["alpha"].status == "not run"


@pytest.mark.parametrize("latex", [r"\sqrt{" * 3000 + "}" * 3000, "x^{" * 5000, r"\hat" * 5000, "{" * 41 + "}" * 41])
def test_a_formula_that_would_overflow_the_converter_is_refused(latex: str) -> None:
    with pytest.raises(ValueError, match=r"nested deeper than 40 levels|longer than 2,000 characters"):
        mathml(latex)


def test_texts_that_make_a_parser_slow_are_refused_or_quick() -> None:
    with pytest.raises(ValueError, match="more than 400 square brackets"):
        to_html("[" * 20_000, lambda ref: ref)
    assert measurements("1," * 10_000) == []


def test_a_problem_is_told_on_one_bounded_line_that_no_terminal_obeys() -> None:
    told = str(Problem("a\nb.yml", 1, 2, "x\x1b[31m\u202e\n" + "y" * 5_000))
    assert told.isprintable()
    assert len(told) < 700
    assert told.startswith(r"a\u000ab.yml:1:2: x\u001b[31m\u202e\u000a")


def test_an_annotation_cannot_be_forged() -> None:
    made = annotation(Problem("a,b:c%.yml", 1, 2, "100%\r\n::error::forged"))
    assert made == "::error file=a%2Cb%3Ac%25.yml,line=1,col=2::100%25\\u000d\\u000a::error::forged"


def test_a_second_document_is_refused() -> None:
    with pytest.raises(CardError, match="a second document"):
        read_yaml("a: 1\n---\nb: 2\n", "x.yml")
