"""Letters, clocks, disks, homes and cores are anybody's: what can go on goes on, and the rest is told."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, Done, edit

from scripts.project import Project
from scripts.runs.state import target

PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LOCALES = {"ASCII": PLAIN, "cp1252": {"PYTHONIOENCODING": "cp1252"}, "latin-1": {"PYTHONIOENCODING": "latin-1"}}


def call(project: Project, module: str, *arguments: str, **environment: str) -> Done:
    """`python -m ...` in a project, as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=project.root, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    return Done(done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding))


def log_of(project: Project, slug: str) -> Path:
    return project.build / "logs" / f"{slug}.log"


@pytest.mark.parametrize("locale", LOCALES)
def test_an_example_may_print_any_letter_whatever_the_terminal_knows(locale: str, tiny: Project) -> None:
    edit(tiny.examples / "alpha.py", "    write(", '    print("größer → 文")\n    write(')
    wanted = target(tiny, "alpha", "quick", "cpu")
    done = call(tiny, "scripts.runs.job", wanted.slug, wanted.key, **LOCALES[locale])
    assert (done.returncode, done.stderr) == (0, "")
    assert log_of(tiny, "alpha").read_text("utf-8") == "größer → 文\n"


@pytest.mark.parametrize(
    ("locale", "shown"), [("ASCII", r"gr\xf6\xdfer\u2192"), ("cp1252", r"größer\u2192"), ("latin-1", r"größer\u2192")]
)
def test_a_letter_that_the_terminal_does_not_know_is_printed_as_its_number(
    locale: str, shown: str, tiny: Project
) -> None:
    edit(tiny.cards / "alpha.yml", "family: detection", "family: größer→")
    done = call(tiny, "scripts", "check", **LOCALES[locale])
    assert done.returncode == 1
    assert shown in done.stdout
    assert "Traceback" not in done.stderr


def test_a_site_is_built_in_a_locale_without_letters(tiny: Project) -> None:
    edit(tiny.cards / "alpha.yml", "name: Alpha\n", "name: Älpha 文\n")
    (tiny.docs / "größer.md").write_text("# Größer\n", "utf-8")
    done = call(tiny, "scripts", "build", **PLAIN)
    assert done.returncode == 0, done.stderr
    assert "Älpha 文" in (tiny.site / "models/alpha/index.html").read_text("utf-8")
    with zipfile.ZipFile(tiny.site / "downloads/tiny.zip") as packed:
        assert "tiny/größer/index.html" in packed.namelist()


def test_what_mkdocs_says_of_a_page_is_told_in_a_locale_without_letters(tiny: Project) -> None:
    (tiny.docs / "größer.md").write_text("[nowhere](→.md)\n", "utf-8")
    done = call(tiny, "scripts", "build", **PLAIN)
    assert done.returncode == 1
    assert r"'gr\xf6\xdfer.md' contains a link '\u2192.md'" in done.stderr
