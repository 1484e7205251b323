"""Cards come from strangers: nothing in one runs, escapes its folder, or takes more time and memory than it should."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Command, copy_of_tiny

from scripts.__main__ import annotation
from scripts.cards.library import load_library
from scripts.cards.problems import MAX_PROBLEMS, CardError, Problem
from scripts.cards.prose import mathml, measurements, to_html
from scripts.cards.yaml_reader import read_yaml
from scripts.project import Project
from scripts.runs import job, schedule, state

SECONDS = 10
MEGABYTES = 400

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


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory, kept: Path) -> tuple[Project, list[str]]:
    """A project of all these cards, and the lines that checking it prints, in bounded time and memory."""
    tiny = copy_of_tiny(tmp_path_factory.mktemp("hostile") / "tiny", kept)
    for name, made in BOMBS.items():
        (tiny.cards / f"{_slug(name)}.yml").write_text(made(), "utf-8")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES * 2**20,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "scripts", "check"],
        cwd=tiny.root, env=environment, capture_output=True, text=True, check=False, preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 1, (done.returncode, done.stderr[-500:])
    assert "Traceback" not in done.stderr
    return tiny, done.stdout.splitlines()


def _slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower())


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_card_is_refused_with_a_clear_message_in_bounded_time_and_memory(
    name: str, refused: tuple[Project, list[str]]
) -> None:
    project, lines = refused
    told = [line for line in lines if line.startswith(f"model_cards/{_slug(name)}.yml:")]
    assert 1 <= len(told) <= 2 * MAX_PROBLEMS
    assert max(map(len, lines)) < 800
    assert all(line.isprintable() for line in lines)
    assert not (project.root / "pwned").exists()


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


def test_the_figures_of_a_record_never_lead_out_of_its_folder(ran: Project) -> None:
    record = schedule.wanted_targets(ran, ["alpha"], None, "cpu")[0].record(ran)
    (ran.root / "secret.svg").write_text("secret")
    record.write_text(record.read_text().replace("figures/margin.light.svg", "../../../../secret.svg"))
    assert state.states(ran)["alpha"].status == "not run"


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


@pytest.mark.parametrize(
    "name", ["علی می‌خواهم", "ශ්‍රී", "👩‍🔬 Lab", "✔️ done", "☎︎", "3️⃣", "©️", "葛󠄀城"], ids=lambda name: ascii(name)[1:-1]
)
def test_what_a_script_or_a_picture_needs_is_no_hidden_character(name: str) -> None:
    assert read_yaml(f"name: {name}\n", "a.yml")[0] == {"name": name}


@pytest.mark.parametrize(
    "character",
    [*"\u200b\u200c\u200d\ufe0e\ufe0f\u2060\u202e\ufeff\u00ad\ufe00", "\U000e0100", "\U000e0041"],
    ids=ascii,
)
def test_after_a_latin_letter_they_are_hidden_characters(character: str) -> None:
    with pytest.raises(CardError, match=rf"U\+{ord(character):04X} is not allowed: nobody can see it"):
        read_yaml(f"name: De{character}TR\n", "a.yml")
