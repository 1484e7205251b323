"""Cards: from YAML to frozen data, and every problem with its exact place and message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import pytest
import yaml
from conftest import BROKEN, ROOT, TINY, Command, edit, snapshot
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from scripts.cards import yaml_reader
from scripts.cards.json_schema import card_schema
from scripts.cards.library import load_library, load_vocabulary, parse_card
from scripts.cards.problems import CardError, nearest
from scripts.cards.values import Quantity
from scripts.cards.yaml_reader import read_yaml
from scripts.project import Project
from scripts.site.gather import checked_library

WORDS, *_ = load_vocabulary(ROOT / "model_cards", ROOT)


@pytest.mark.parametrize("name", sorted(path.stem for path in BROKEN.glob("*.yml")))
def test_a_broken_card_gives_exactly_the_messages_at_its_end(name: str, tiny: Project, command: Command) -> None:
    broken = BROKEN / f"{name}.yml"
    expected = [
        f"model_cards/{line.removeprefix('# expect: ')}"
        for line in broken.read_text("utf-8").splitlines()
        if line.startswith("# expect: ")
    ]
    assert expected, f"{broken.name} names no expectation"
    shutil.copy(broken, tiny.cards / "alpha.yml")
    done = command("check")
    assert [line for line in done.stdout.splitlines() if ":" in line] == expected
    has_error = any(": warning: " not in line for line in expected)
    assert done.returncode == (1 if has_error else 0)


def test_a_clean_check_prints_one_summary_line(command: Command) -> None:
    done = command("check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 cards, no problem\n", "")


def test_a_check_of_one_card_tells_of_that_card_alone(tiny: Project, command: Command) -> None:
    edit(tiny.cards / "beta.yml", "name: Beta\n", "")
    assert "1 card, no problem" in command("check", "model_cards/alpha.yml").stdout
    assert "the field 'name' is missing" in command("check", "model_cards/beta.yml").stdout


def test_a_path_that_is_no_card_is_an_error(command: Command) -> None:
    done = command("check", "model_cards/gamma.yml")
    assert done.returncode == 1
    assert "gamma.yml: no card of model_cards/" in done.stderr


def test_a_slug_is_taken_once(tiny: Project) -> None:
    shutil.copy(tiny.cards / "alpha.yml", tiny.cards / "alpha.yaml")
    _, problems = load_library(tiny.cards, tiny.root)
    assert [str(p) for p in problems] == [
        "model_cards/alpha.yml:1:1: the slug 'alpha' is taken by model_cards/alpha.yaml"
    ]


def test_a_file_name_that_is_no_slug_is_a_problem(tiny: Project) -> None:
    (tiny.cards / "beta.yml").rename(tiny.cards / "Be ta.yml")
    _, problems = load_library(tiny.cards, tiny.root)
    assert [p.message for p in problems] == ["a card's file name is its slug: small letters, digits and single hyphens"]


def test_a_huge_file_is_refused_before_it_is_read(tiny: Project) -> None:
    (tiny.cards / "beta.yml").write_text("#" * 600_000)
    _, problems = load_library(tiny.cards, tiny.root)
    assert [p.message for p in problems] == ["the file is larger than 500,000 bytes; split the card"]


def test_a_line_of_the_notes_that_leads_nowhere_is_a_problem(tiny: Project, command: Command) -> None:
    places = "      - {card: alpha, claim: Has a margins.}\n      - {card: gamma, field: concept}\n"
    (tiny.cards / "_notes.yml").write_text(f"notes:\n  - line: x\n    places:\n{places}")
    assert command("check").stdout.splitlines() == [
        "model_cards/_notes.yml:4:23: unknown claim of alpha 'Has a margins.', did you mean 'Has a margin.'?",
        "model_cards/_notes.yml:5:10: unknown card 'gamma'",
    ]


SWEEP = "  - {card: alpha, name: A, build: ours/a, axis: pixels, sizes: [8 x 8, 9 x 9], claims: ["
EXPONENT = "{what: macs, exponent: 2, says: It is quadratic."


@pytest.mark.parametrize(
    ("sweep", "told"),
    [
        (f"{SWEEP}{EXPONENT}, side: pros, number: 3}}]}}", []),
        (f"{SWEEP}{EXPONENT}}}]}}", []),
        (f"{SWEEP}{EXPONENT}, side: pros, number: 4}}]}}", ["5:151: the card 'alpha' has no claim 4 among its pros"]),
        (f"{SWEEP}{EXPONENT}, side: pros}}]}}", ["5:89: sweeps.0.claims.0: a claim is named by its side and its number on it"]),
        (f"{SWEEP}{EXPONENT}}}]}}".replace("alpha", "alhpa"), ["5:6: unknown card 'alhpa', did you mean 'alpha'?"]),
        (f"{SWEEP}{EXPONENT}}}]}}".replace("pixels", "pixel"), ["5:43: unknown axis 'pixel', did you mean 'pixels'?"]),
        (f"{SWEEP}]}}".replace("sizes: [8 x 8, 9 x 9], ", ""),
         ["5:5: sweeps.0: a sweep has either `sizes`, or `size` with `change` and `values`"]),
    ],
)  # fmt: skip
def test_a_sweep_is_of_a_card_and_names_one_of_its_claims(
    sweep: str, told: list[str], tiny: Project, command: Command
) -> None:
    head = "# sweeps\naxes:\n  pixels: {label: pixels, along: product}\nsweeps:\n"
    (tiny.cards / "_sweeps.yml").write_text(f"{head}{sweep}\n")
    expected = [f"model_cards/_sweeps.yml:{line}" for line in told] or ["2 cards, no problem"]
    assert command("check").stdout.splitlines() == expected


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("_sweeps.yml", "figures:\n  ours: [beta, alhpa]\n", "2:16: unknown card 'alhpa', did you mean 'alpha'?"),
        ("_choose.yml", "benchmarks:\n  object detektion: {metric: AP, dataset: COCO}\n",
         "2:3: unknown task 'object detektion', did you mean 'object detection'?"),
        ("_choose.yml", "benchmarks:\n  object detection: {metric: AQ, dataset: COCO}\n",
         "2:22: unknown metric 'AQ', did you mean 'AP'?"),
        ("_choose.yml", "serves:\n  boxes and masks: [object detektion]\n",
         "2:21: unknown task 'object detektion', did you mean 'object detection'?"),
        ("_searches.yml", "searches:\n  - {words: [real-time], models: [alhpa]}\n",
         "2:35: unknown card 'alhpa', did you mean 'alpha'?"),
    ],
)  # fmt: skip
def test_shared_words_name_what_there_is(file: str, text: str, told: str, tiny: Project, command: Command) -> None:
    (tiny.cards / file).write_text(text)
    assert command("check").stdout.splitlines()[0] == f"model_cards/{file}:{told}"


@pytest.mark.parametrize("name", ["count", "measure", "render", "build"])
def test_no_command_goes_on_at_a_broken_card(name: str, tiny: Project, command: Command) -> None:
    edit(tiny.cards / "beta.yml", "name: Beta\n", "")
    before = snapshot(tiny.root)
    done = command(name)
    assert done.returncode == 1
    assert done.stdout == "model_cards/beta.yml:2:1: the field 'name' is missing\n"
    assert done.stderr == "2 cards, 1 error; nothing was written\n"
    assert snapshot(tiny.root) == before


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(CardError, match="nested deeper than 20 levels"):
        read_yaml("[" * 5000 + "]" * 5000, "deep.yml")


def test_bytes_that_are_no_text_are_a_problem(tiny: Project) -> None:
    (tiny.cards / "beta.yml").write_bytes(b"name: \xff\xfe")
    _, problems = load_library(tiny.cards, tiny.root)
    assert [p.message for p in problems] == ["not UTF-8 text: byte 6 cannot be read"]


def test_positions_count_lines_and_columns_from_one() -> None:
    _, positions = read_yaml("a: 1\nb:\n  - c: 2\n", "x.yml")
    assert positions["a",] == (1, 1)
    assert positions["b", 0, "c"] == (3, 5)


def test_a_kept_card_is_not_read_again_and_still_knows_where_it_stands(
    tiny: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, _ = load_library(tiny.cards, tiny.root)
    load_library(tiny.cards, tiny.root, tiny.kept)
    parse_card.cache_clear()
    monkeypatch.setattr(yaml_reader, "read_yaml", None)
    kept, problems = load_library(tiny.cards, tiny.root, tiny.kept)
    assert (kept.cards, problems) == (read.cards, [])
    assert {slug: source.positions for slug, source in kept.sources.items()} == {
        slug: source.positions for slug, source in read.sources.items()
    }


def test_a_card_is_checked_where_nothing_can_be_kept(tiny: Project) -> None:
    file = tiny.root / "file"
    file.write_text("no folder", "utf-8")
    parse_card.cache_clear()
    assert load_library(tiny.cards, tiny.root, file)[0].cards == load_library(tiny.cards, tiny.root)[0].cards


def test_cards_are_frozen(tiny: Project) -> None:
    library, _ = load_library(tiny.cards, tiny.root)
    with pytest.raises(ValidationError, match="frozen"):
        library.cards["alpha"].name = "Omega"  # type: ignore[misc]


@given(st.sampled_from(["", "k", "M", "G", "T"]), st.integers(0, 999), st.integers(0, 99))
def test_a_quantity_keeps_what_is_printed_and_knows_its_value(suffix: str, whole: int, part: int) -> None:
    printed = f"{whole}.{part:02d} {suffix}".strip()
    quantity = Quantity.model_validate(printed)
    assert quantity.printed == printed
    scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[suffix]
    assert quantity.value == pytest.approx((whole + part / 100) * scale)


@pytest.mark.parametrize("text", ["", "M", "4 m", "1e5", "nan", "4,2", "41 MB"])
def test_what_is_no_number_is_no_quantity(text: str) -> None:
    with pytest.raises(ValidationError, match=r"is not a number, write for example 42\.0 or 41 M"):
        Quantity.model_validate(text)


def test_the_nearest_name_is_suggested_only_if_it_is_near() -> None:
    assert nearest("AP_L", ["AP_S", "AP_L2", "top1"]) == ", did you mean 'AP_L2'?"
    assert nearest("zzz", ["AP"]) == ""


def test_the_committed_schema_is_that_of_the_code() -> None:
    path = ROOT / "model_cards" / "card.schema.json"
    assert path.read_text("utf-8") == card_schema(WORDS), "write it anew: python -m scripts schema"


CARDS = sorted((ROOT / "model_cards").glob("[!_]*.yml"))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(card_schema(WORDS)))


@pytest.mark.parametrize("path", [*CARDS, *sorted(TINY.glob("model_cards/[!_]*.yml"))], ids=lambda path: path.stem)
def test_a_good_card_is_valid_by_the_schema_that_editors_use(
    path: Path, validator: jsonschema.Draft202012Validator
) -> None:
    card = yaml.load(path.read_text("utf-8"), yaml.CSafeLoader)
    card["reviewed"] = str(card["reviewed"])  # YAML reads a date, JSON knows none
    assert [error.message for error in validator.iter_errors(card)] == []
    assert [error.message for error in validator.iter_errors({**card, "tasks": "x"})] != []


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_each_card_names_the_schema_in_its_first_line(path: Path) -> None:
    assert path.read_text("utf-8").startswith("# yaml-language-server: $schema=card.schema.json\n")


def test_the_cards_of_this_project_have_no_error() -> None:
    _, problems = checked_library(Project(ROOT), {})
    assert [str(problem) for problem in problems if problem.severity == "error"] == []


def test_an_example_has_the_slug_of_its_card() -> None:
    cards = {path.stem for path in (ROOT / "model_cards").glob("[!_]*.yml")}
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} <= cards
