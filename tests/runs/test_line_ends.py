"""A checkout with the line ends of Windows is the same project: the same runs, the same pages, and scripts that run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, snapshot

from scripts.fingerprint import of_module
from scripts.project import Project
from scripts.runs.state import example_slugs, target
from scripts.site.gather import gather
from scripts.site.render import render

TEXTS = (".py", ".yml", ".txt", ".md")


def with_windows_line_ends(project: Project, to: Path) -> Project:
    shutil.copytree(project.root, to, ignore=shutil.ignore_patterns("__pycache__"))
    for path in to.rglob("*"):
        if path.suffix in TEXTS:
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    return Project(to)


def keys(project: Project) -> list[str]:
    return [target(project, slug, "quick", "cpu").key for slug in example_slugs(project)]


@pytest.mark.slow
def test_what_is_made_depends_on_no_line_end(tiny: Project, tmp_path: Path) -> None:
    (tiny.root / "requirements-run.txt").write_text("# pinned\ntorch==1\nnumpy==2\n")
    other = with_windows_line_ends(tiny, tmp_path / "windows")
    assert b"\r\n" in (other.examples / "lab/record.py").read_bytes()
    assert keys(other) == keys(tiny)
    assert of_module(other, "scripts.architectures.forward")(1) == of_module(tiny, "scripts.architectures.forward")(1)
    for project in (tiny, other):
        render(project, gather(project))
    assert snapshot(other.docs) == snapshot(tiny.docs)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_a_checkout_by_a_git_that_is_set_to_crlf_has_none(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in (".gitattributes", ".ci/run", "Makefile", "scripts/fingerprint.py", "model_cards/unet.yml"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    (source / "docs/assets/fonts").mkdir(parents=True)
    font = shutil.copy(next((ROOT / "docs/assets/fonts").glob("*.woff2")), source / "docs/assets/fonts")
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    windows = ["-c", "core.autocrlf=true", "-c", "core.eol=crlf", "-c", "user.name=A", "-c", "user.email=a@example.org"]
    for folder, *arguments in (
        (source, "init", "--quiet"),
        (source, "add", "."),
        (source, "commit", "--quiet", "--message", "all"),
        (tmp_path, "clone", "--quiet", source.as_uri(), "checkout"),
    ):
        subprocess.run(["git", *windows, *arguments], cwd=folder, check=True, env=environment)
    checkout = snapshot(tmp_path / "checkout")
    names = [name for name in checkout if not name.startswith(".git/")]
    assert len(names) == 6
    assert [name for name in names if b"\r\n" in checkout[name] and not name.endswith("woff2")] == []
    assert checkout[f"docs/assets/fonts/{Path(font).name}"] == Path(font).read_bytes()
    assert os.access(tmp_path / "checkout/.ci/run", os.X_OK)
