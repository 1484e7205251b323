"""The hash of all that an outcome depends on: it changes with that, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import ROOT, edit

from scripts import fingerprint
from scripts.architectures import counts
from scripts.project import Project


def of_alpha(project: Project) -> str:
    return fingerprint.of_run(project, "alpha")("quick", "cpu")


def with_line_ends(path: Path, end: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", end))


def test_line_ends_of_a_checkout_change_no_fingerprint_of_a_run(tiny: Project) -> None:
    (tiny.root / "requirements-run.txt").write_text("torch==2\nnumpy==1\n")
    (tiny.root / "requirements.txt").write_text("numpy==1\n")
    tiny.claims_of("alpha").parent.mkdir()
    tiny.claims_of("alpha").write_text("from lab import extra\n\nprint(extra)\n")
    before = of_alpha(tiny)
    for path in [*tiny.examples.rglob("*.py"), *tiny.root.glob("requirements*.txt")]:
        with_line_ends(path, b"\r\n")
    assert of_alpha(tiny) == before


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this package, which fingerprints are made of."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "HERE", tmp_path)
    return tmp_path / "scripts"


def test_line_ends_of_a_checkout_change_no_fingerprint_of_a_count(scripts: Path, tiny: Project) -> None:
    before = counts.fingerprint(tiny)
    for path in scripts.rglob("*.py"):
        with_line_ends(path, b"\r\n")
    assert counts.fingerprint(tiny) == before


@pytest.mark.parametrize(
    ("changed", "matters"),
    [
        ("architectures/forward.py", True),
        ("architectures/definitions/unet.py", True),
        ("architectures/definitions/__init__.py", True),
        ("pages/charts.py", False),
        ("evidence/checks.py", False),
        ("architectures/studies.py", False),
    ],
)
def test_a_count_depends_on_what_builds_and_counts_and_on_no_page(
    changed: str, matters: bool, scripts: Path, tiny: Project
) -> None:
    before = counts.fingerprint(tiny)
    (scripts / changed).write_text((scripts / changed).read_text() + "\nCHANGED = True\n")
    assert (counts.fingerprint(tiny) != before) == matters


def test_experiments_in_a_file_of_their_own_count_with_all_that_they_import(tiny: Project) -> None:
    without = of_alpha(tiny)
    edit(tiny.examples / "lab/extra.py", "1.0", "1.5")
    assert of_alpha(tiny) == without, "only beta imports it"
    tiny.claims_of("alpha").parent.mkdir()
    tiny.claims_of("alpha").write_text("from lab import extra\n")
    with_claims = of_alpha(tiny)
    assert with_claims != without
    edit(tiny.examples / "lab/extra.py", "1.5", "1.6")
    assert of_alpha(tiny) != with_claims


def test_the_same_sources_elsewhere_have_the_same_fingerprint(tiny: Project, tmp_path: Path) -> None:
    shutil.copytree(tiny.root, tmp_path / "elsewhere", symlinks=True)
    assert of_alpha(Project(tmp_path / "elsewhere")) == of_alpha(tiny)


def test_what_is_asked_for_is_part_of_it(tiny: Project) -> None:
    module = "scripts.architectures.forward"
    asked = [fingerprint.of_module(tiny, module)(*each) for each in ((), ("a",), ("a", "b"), ("ab",), (1,), ("1",))]
    assert len(set(asked)) == len(asked)
