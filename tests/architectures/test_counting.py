"""Counting: each architecture once, anew where what it depends on has changed, and held against the published figure."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, Command, edit

from scripts import fingerprint
from scripts.architectures import counts
from scripts.architectures.counts import Counted
from scripts.cards.library import load_library
from scripts.project import Project


def count_cheaply(key: str) -> Counted:
    if key.startswith("bad/"):
        raise ValueError("no such thing\nsecond line")
    return Counted(1.0, 2.0, key.partition(" @ ")[2])


def test_counts_and_errors_are_read_back_and_kept(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "count", count_cheaply)
    counts.count_all(tiny, ["ours/one @ 8 x 8", "bad/two @ 8 x 8"])
    counts.count_all(tiny, ["ours/three @ 9 x 9"])
    made, errors = counts.read(tiny)
    assert made == {"ours/one @ 8 x 8": Counted(1.0, 2.0, "8 x 8"), "ours/three @ 9 x 9": Counted(1.0, 2.0, "9 x 9")}
    assert errors == {"bad/two @ 8 x 8": "ValueError: no such thing"}


def test_what_could_not_be_counted_is_tried_again(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "count", count_cheaply)
    edit(tiny.cards / "alpha.yml", "{name: Alpha-B,", "{name: Alpha-B, count: {build: bad/two, input: 8 x 8},")
    library, _ = load_library(tiny.cards, tiny.root)
    counts.count_all(tiny, counts.missing(tiny, library))
    assert counts.missing(tiny, library) == ["bad/two @ 8 x 8"]
    monkeypatch.setattr(counts, "count", lambda key: Counted(1.0, 2.0, "8 x 8"))
    counts.count_all(tiny, counts.missing(tiny, library))
    assert counts.read(tiny) == ({"bad/two @ 8 x 8": Counted(1.0, 2.0, "8 x 8")}, {})


@pytest.mark.parametrize(
    ("count", "macs", "line", "code"),
    [
        ("{build: ours/one, input: 8 x 8}", 2.03e9, "19 cards", 0),
        (
            "{build: ours/one, input: 8 x 8}", 2.5e9,
            "Alpha-B: MACs: 2.5 G counted at 8 x 8, 2 G published (Table 1), +25.0%, more than 2%; correct the figure, "
            "its input or `build`, or say in `differs` why they are not the same", 1,
        ),
        ("{build: ours/one, input: 8 x 8, differs: Two views.}", 2.5e9, "no problem", 0),
        (
            "{build: ours/one, input: 8 x 8, differs: Two views.}", 2e9,
            "warning: Alpha-B: `differs` explains no difference, the count is within 2% of the published figures; "
            "remove it", 0,
        ),
    ],
)  # fmt: skip
def test_check_holds_counts_against_published_figures(
    tiny: Project, command: Command, monkeypatch: pytest.MonkeyPatch, count: str, macs: float, line: str, code: int
) -> None:
    edit(tiny.cards / "alpha.yml", "{name: Alpha-B,", f"{{name: Alpha-B, count: {count},")
    monkeypatch.setattr(counts, "count", lambda key: Counted(1.5e6, macs, "8 x 8"))
    counts.count_all(tiny, ["ours/one @ 8 x 8"])
    done = command("check")
    assert done.returncode == code
    if "Alpha-B" in line:
        at = [text for text in done.stdout.splitlines() if line in text]
        assert len(at) == 1
        assert at[0].startswith("model_cards/alpha.yml:44:")


def test_only_what_is_not_there_is_missing(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "count", count_cheaply)
    library, _ = load_library(ROOT / "model_cards", ROOT)
    first, *others = counts.needed(library)
    assert len(others) > 20
    counts.count_all(tiny, others)
    assert counts.missing(tiny, library) == [first]


def test_changed_pins_make_all_counts_stale(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "count", count_cheaply)
    counts.count_all(tiny, ["ours/one @ 8 x 8"])
    (tiny.root / "requirements-run.txt").write_text("torch==1\n")
    assert counts.read(tiny) == ({}, {})


def test_a_changed_definition_makes_all_counts_stale(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "scripts", tiny.root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    before = counts.fingerprint(tiny)
    monkeypatch.setattr(fingerprint, "HERE", tiny.root)
    assert counts.fingerprint(tiny) == before
    edit(tiny.root / "scripts/pages/home.py", '"""The page Home: ', '"""The first page: ')
    assert counts.fingerprint(tiny) == before
    edit(tiny.root / "scripts/architectures/definitions/yolov8.py", "BINS = 16", "BINS = 32")
    assert counts.fingerprint(tiny) != before


def test_reading_counts_needs_no_torch() -> None:
    program = "import sys, scripts.architectures.counts, scripts.site.gather; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
