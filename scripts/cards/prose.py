"""Prose of cards: Markdown with `$math$` and `[[references]]` in, safe HTML out.

Cards come from strangers. HTML in the text is shown as text, links lead to http(s), a page of this site or an anchor,
and LaTeX becomes MathML while building. What a `[[...]]` leads to is decided by the caller (`Resolver`).
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from math_core import LatexError, LatexToMathML
from mdit_py_plugins.dollarmath import dollarmath_plugin

ANSI = re.compile(r"\x1b\[[0-9;]*m")

REFERENCE = re.compile(r"\[\[([^\[\]\n]{1,200})\]\]")

# A figure with a unit of measurement: it belongs into a table of the card, not into a sentence.
MEASUREMENT = re.compile(
    r"(?<![\w./-])\d[\d,]{0,15}(?:\.\d{1,15})?\s?"
    r"(?:%|(?:AP|mAP|mIoU|points?|percent|GFLOPs?|FLOPs|MACs|GB|MB|ms|fps|epochs?|hours?|days)\b|[MGkB]\b)"
)

LONGEST_FORMULA = 2_000

DEEPEST_FORMULA = 40

MOST_BRACKETS = 400
"""Of one text: the Markdown parser's time grows with their square."""

PLAIN = re.compile(r"[A-Za-z][^\x00-\x1f\\`*_\[\]!<&$]*")
"""One line without anything that Markdown, a formula or a reference begins with."""

OPENING = re.compile(r"\\\\|\\begin\b|\\left\b|\\[a-zA-Z]+|\\.|[{}^_]")

Resolver = Callable[[str], str]
"""From the inside of `[[...]]` to HTML; raises LookupError with a message for the editor."""


@functools.cache
def _converter() -> LatexToMathML:
    return LatexToMathML()


def mathml(latex: str, display: bool = False) -> str:
    """MathML of a formula.

    Raises:
        ValueError: the LaTeX cannot be read, with what is wrong.
    """
    if len(latex) > LONGEST_FORMULA or _depth(latex) > DEEPEST_FORMULA:  # the converter recurses: it would end us all
        raise ValueError(
            f"the formula ${latex.strip()[:40]}...$ is longer than {LONGEST_FORMULA:,} characters or nested deeper than "
            f"{DEEPEST_FORMULA} levels"
        )
    try:
        return str(_converter().convert_with_local_state(latex, displaystyle=display))
    except LatexError as error:
        first = ANSI.sub("", str(error)).strip().splitlines()[0].removeprefix("Error: ").rstrip(".")
        raise ValueError(f"the formula ${latex.strip()}$ cannot be read: {first}") from error


def _depth(latex: str) -> int:
    """An upper bound of how deep a formula nests: groups, and runs of commands or scripts that take one another."""
    depth = deepest = chain = 0
    end = 0
    for match in OPENING.finditer(latex):
        token = match[0]
        chain = chain + 1 if not latex[end : match.start()].strip("[]( )") and token != "}" else 1
        depth += (token in ("{", r"\left", r"\begin")) - (token in ("}", r"\right", r"\end"))
        end = match.end()
        deepest = max(deepest, depth, chain // 4)
    return deepest


@functools.cache
def _markdown() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.validateLink = _is_safe_link  # type: ignore[method-assign]
    parser.use(dollarmath_plugin, allow_space=False, allow_labels=False, double_inline=True)
    for kind in ("math_inline", "math_inline_double", "math_block"):
        parser.add_render_rule(kind, _render_math)
    parser.inline.ruler.before("link", "reference", _reference_rule)
    parser.add_render_rule("reference", _render_reference)
    return parser


def _render_math(_self: object, tokens: list[Token], index: int, _options: object, _env: object) -> str:
    token = tokens[index]
    if token.type == "math_inline":
        return f'<span class="formula">{mathml(token.content)}</span>'
    tag = "div" if token.type == "math_block" else "span"
    return f'<{tag} class="equation">{mathml(token.content, display=True)}</{tag}>'


def _is_safe_link(url: str) -> bool:
    return re.match(r"^(https?://|\.{0,2}/|#)", url.strip(), re.IGNORECASE) is not None


def _reference_rule(state: StateInline, silent: bool) -> bool:
    match = REFERENCE.match(state.src, state.pos)
    if match is None:
        return False
    if not silent:
        state.push("reference", "", 0).content = match[1].strip()
    state.pos = match.end()
    return True


def _render_reference(
    _self: object, tokens: list[Token], index: int, _options: object, env: dict[str, Resolver]
) -> str:
    return env["resolve"](tokens[index].content)


@dataclass(frozen=True)
class Terms:
    """The terms of a glossary: a pattern of all their spellings, and the address that each leads to."""

    pattern: re.Pattern[str]
    addresses: Mapping[str, str]

    @classmethod
    def of(cls, addresses: Mapping[str, str]) -> Terms:
        """Terms by spelling. An acronym keeps its case; a longer term wins over one inside it."""
        by_letter: dict[str, list[str]] = {}  # so that at each word only those of its letter are tried
        for word in sorted(addresses, key=len, reverse=True):
            first, rest = re.escape(word[0]), re.escape(word[1:])
            spelling = f"(?<={first}){rest}" if word.isupper() else f"(?i:{rest})"
            by_letter.setdefault(word[0].lower(), []).append(spelling)
        choice = "|".join(
            f"[{re.escape(letter + letter.upper())}](?:{'|'.join(spellings)})"
            for letter, spellings in by_letter.items()
        )
        known = {word if word.isupper() else word.lower(): address for word, address in addresses.items()}
        return cls(re.compile(rf"(?<![\w-])({choice or '(?!)'})s?(?![\w-])"), known)

    @functools.cached_property
    def within(self) -> Callable[[str], list[tuple[int, int, str]]]:
        """Where in a text each term stands, and its address; sentences of cards are asked about on many pages."""

        @functools.cache
        def found(text: str) -> list[tuple[int, int, str]]:
            return [(*match.span(), self.address(match[1])) for match in self.pattern.finditer(text)]

        return found

    def address(self, word: str) -> str:
        return self.addresses.get(word) or self.addresses[word.lower()]


class Glossary:
    """Links each term on its first use on a page; make one per page."""

    def __init__(self, terms: Terms, root: str = "") -> None:
        self._terms = terms
        self._root = root
        self._linked: set[str] = set()

    def link(self, text: str) -> list[tuple[str, str | None]]:
        """Split a text into pieces, each with the address of the term that it is, or None."""
        hits: list[tuple[int, int, str]] = []
        for start, end, address in self._terms.within(text):
            if address not in self._linked:
                self._linked.add(address)
                hits.append((start, end, self._root + address))
        return _pieces(text, hits)


def _pieces(text: str, hits: list[tuple[int, int, str]]) -> list[tuple[str, str | None]]:
    pieces: list[tuple[str, str | None]] = []
    done = 0
    for start, end, address in hits:
        pieces += [(text[done:start], None), (text[start:end], address)]
        done = end
    return [piece for piece in [*pieces, (text[done:], None)] if piece[0]]


def _link_terms(tokens: list[Token], glossary: Glossary) -> None:
    for token in tokens:
        if token.type != "inline" or not token.children:
            continue
        children: list[Token] = []
        in_link = 0
        for child in token.children:
            in_link += child.type == "link_open"
            in_link -= child.type == "link_close"
            if child.type == "text" and not in_link:
                children += [_term(piece, address) for piece, address in glossary.link(child.content)]
            else:
                children.append(child)
        token.children = children


def _term(text: str, address: str | None) -> Token:
    if address is None:
        return Token("text", "", 0, content=text)
    return Token("html_inline", "", 0, content=_term_link(text, address))


def _term_link(text: str, address: str) -> str:
    return f'<a class="term" href="{html.escape(address)}">{html.escape(text)}</a>'


def _plain_to_html(text: str, glossary: Glossary | None, inline: bool) -> str:
    """What the parser makes of one line without marks, which most of a card's sentences are; ten times as fast."""
    pieces = glossary.link(text) if glossary else [(text, None)]
    line = "".join(_term_link(piece, address) if address else escapeHtml(piece) for piece, address in pieces)
    return line if inline else f"<p>{line}</p>"


def to_html(text: str, resolve: Resolver, glossary: Glossary | None = None, inline: bool = False) -> str:
    """HTML of a piece of prose; `inline` leaves out the paragraph around it.

    Raises:
        ValueError: a formula cannot be read.
        LookupError: a reference leads nowhere.
    """
    if text.count("[") > MOST_BRACKETS:
        raise ValueError(f"more than {MOST_BRACKETS} square brackets in one text")
    if PLAIN.fullmatch(line := text.strip() if inline else text.rstrip()):
        return _plain_to_html(line, glossary, inline)
    parser = _markdown()
    env = {"resolve": resolve}
    tokens = parser.parseInline(text.strip(), env) if inline else parser.parse(text, env)
    if glossary:
        _link_terms(tokens, glossary)
    return str(parser.renderer.render(tokens, parser.options, env)).strip()


def sections(text: str, resolve: Resolver) -> list[tuple[int, str]]:
    """Split prose at its headings: (level, plain text) for a heading, (0, HTML) for what stands between.

    Raises:
        ValueError: a formula cannot be read.
        LookupError: a reference leads nowhere.
    """
    parser = _markdown()
    env = {"resolve": resolve}
    parts: list[tuple[int, str]] = []
    between: list[Token] = []
    tokens = parser.parse(text, env)
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            parts += [(0, str(parser.renderer.render(between, parser.options, env)))] if between else []
            between = []
            parts.append((int(token.tag[1]), to_text(tokens[i + 1].content)))
        elif token.type != "heading_close" and not (i and tokens[i - 1].type == "heading_open"):
            between.append(token)
    return [*parts, (0, str(parser.renderer.render(between, parser.options, env)))] if between else parts


def to_text(text: str) -> str:
    """Prose as plain words, for descriptions and feeds: no Markdown marks, `[[x]]` as x."""
    return re.sub(r"[*`$]", "", REFERENCE.sub(lambda match: match[1].lstrip("@"), text)).strip()


def references(text: str) -> list[str]:
    """The insides of all `[[...]]` of a text, in order."""
    return [match[1].strip() for match in REFERENCE.finditer(text)]


def measurements(text: str) -> list[str]:
    """Figures with a unit that were typed into a sentence (outside of math, code and references)."""
    bare = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|\[\[[^\[\]\n]{1,200}\]\]", " ", text)
    return [match[0] for match in MEASUREMENT.finditer(bare)]


def reference_kind(ref: str) -> tuple[str, str]:
    """What the inside of `[[...]]` names: ("cite", key), ("run", result), ("number", reference) or ("card", slug)."""
    if ref.startswith("@"):
        return "cite", ref[1:]
    if ref.startswith("run:"):
        return "run", ref[4:].strip()
    return ("number", ref) if "/" in ref else ("card", ref)
