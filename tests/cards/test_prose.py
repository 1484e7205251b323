"""Prose: Markdown with math and references in, HTML out that nothing can break out of."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.cards import prose
from scripts.cards.prose import Glossary, Terms, measurements, references, sections, to_html, to_text


def echo(ref: str) -> str:
    return f"<b>{html.escape(ref)}</b>"


def test_markdown_and_references_become_html() -> None:
    assert to_html("An *idea* of [[base/AP]].", echo) == "<p>An <em>idea</em> of <b>base/AP</b>.</p>"
    assert to_html("An *idea*.", echo, inline=True) == "An <em>idea</em>."


def test_formulas_become_mathml() -> None:
    made = to_html(r"$\frac{a}{b}$ and" "\n\n$$\nx^2\n$$\n", echo)
    assert "<mfrac><mi>a</mi><mi>b</mi></mfrac>" in made
    assert '<math display="block">' in made


def test_a_bad_formula_is_named_with_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"the formula \$\\frac\{a\}\$ cannot be read: Expected argument"):
        to_html(r"$\frac{a}$", echo)


@pytest.mark.parametrize(
    "payload",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt:alert(1))",
        "[x](data:text/html,<script>)",
        "![x](javascript:alert(1))",
        "<svg/onload=alert(1)>",
        "[[<script>]]",
        "<a href='javascript:x'>y</a>",
        "`<script>`",
        "[x](vbscript:x)",
        "<javascript:alert(1)>",
        "&lt;script&gt;",
        "x{: onclick=alert(1) }",
        "$<script>$",
        '[x](https://a.b "onmouseover=alert(1)")',
        "{{ 7*7 }}",
        "{% raw %}",
    ],
)
def test_no_text_of_a_card_becomes_active_html(payload: str) -> None:
    for inline in (True, False):
        made = to_html(payload, echo, inline=inline)
        tags = re.findall(r"<(/?[a-zA-Z]+)([^>]*)>", made)
        assert {tag.strip("/") for tag, _ in tags} <= {"p", "b", "a", "code", "span", "math", "mo", "mi", "mn", "img"}
        assert not re.search(r"\son\w+\s*=", " ".join(re.sub(r'"[^"]*"', "", attributes) for _, attributes in tags))
        assert not re.search(r'(?:href|src)="\s*(?:javascript|data|vbscript)', made, re.IGNORECASE)


@given(st.text(alphabet=st.sampled_from("<>&\"'`$*_[]()!#{}:/\\ab \n"), max_size=60))
def test_arbitrary_text_never_yields_a_script_or_a_handler(text: str) -> None:
    try:
        made = to_html(text, echo)
    except ValueError:
        return  # a formula that cannot be read is refused
    assert "<script" not in made.lower()


def test_a_term_is_linked_on_its_first_use_and_not_inside_a_link() -> None:
    glossary = Glossary(Terms.of({"anchor": "#anchor"}), "g/")
    made = to_html("[anchor](#x), an anchor, another anchor", echo, glossary)
    assert made.count('<a class="term" href="g/#anchor">anchor</a>') == 1
    assert made.startswith('<p><a href="#x">anchor</a>, an <a class="term"')


def test_terms_that_overlap_are_linked_once() -> None:
    glossary = Glossary(Terms.of({"attention": "2", "window attention": "1"}))
    assert to_html("window attention", echo, glossary) == '<p><a class="term" href="1">window attention</a></p>'


def test_an_acronym_keeps_its_case_and_a_word_does_not() -> None:
    glossary = Glossary(Terms.of({"MAC": "1", "anchor": "2"}))
    assert to_html("mac, MACs, Anchors", echo, glossary, inline=True) == (
        'mac, <a class="term" href="1">MACs</a>, <a class="term" href="2">Anchors</a>'
    )


def test_sections_split_prose_at_its_headings() -> None:
    assert sections("# A *b*\n\ntext\n\n## C", echo) == [(1, "A b"), (0, "<p>text</p>\n"), (2, "C")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It gains 3.2 AP over 41 M parameters.", ["3.2 AP", "41 M"]),
        ("50% in 500 epochs at 28 fps", ["50%", "500 epochs", "28 fps"]),
        ("16 x 16 patches, IoU 0.5, four stages, YOLOv8, 2 x MACs of $3\\%$ and `5 ms`", []),
        ("$$2M^2hwC$$ and [[base/AP]] AP", []),
    ],
)
def test_measurements_typed_into_a_sentence_are_found(text: str, found: list[str]) -> None:
    assert measurements(text) == found


def test_references_and_plain_text_of_prose() -> None:
    assert references("[[a]] and [[b/c]]") == ["a", "b/c"]
    assert to_text("*See* [[@carion2020]] and `x`") == "See carion2020 and x"


@given(st.text(st.characters(codec="utf-8", exclude_characters="$")), st.booleans())  # "$#$" is no formula, and refused
@settings(max_examples=500)
def test_a_line_without_marks_reads_as_the_parser_reads_it(text: str, inline: bool) -> None:
    line = f"A box is an anchor, {text} of 40 AP: it has AP"
    terms = Terms.of({"anchor": "glossary/#anchor", "AP": "glossary/#ap"})
    made = to_html(line, echo, Glossary(terms), inline)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prose, "PLAIN", re.compile("(?!)"))
        assert made == to_html(line, echo, Glossary(terms), inline)
