"""The commit that a site says it was made from: its own, or none. No git, and whatever else git lacks, stops no build."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Command

from scripts.project import Project
from scripts.site.commit import own_commit

if shutil.which("git") is None:
    pytest.skip("no git here", allow_module_level=True)

NOBODY = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "protocol.file.allow=always"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | NOBODY
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, capture_output=True, encoding="utf-8", check=True, env=environment
    )
    return done.stdout.strip()


def commit(folder: Path) -> str:
    """Make a repository of a folder, or another commit; its name."""
    git(folder, "init", "--quiet")
    git(folder, "add", "--all", ".")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "all")
    return git(folder, "rev-parse", "HEAD")


def published(project: Project) -> str | None:
    """The commit that the interface tells."""
    told: dict[str, dict[str, str]] = json.loads((project.docs / "api/models.json").read_text("utf-8"))
    return told["generated"].get("commit")


def test_the_commit_of_the_project_is_told(tiny: Project, command: Command) -> None:
    assert command("render").returncode == 0
    assert published(tiny) is None
    made = commit(tiny.root)
    assert command("render").returncode == 0
    assert published(tiny) == made == own_commit(tiny)


def test_before_the_first_commit_there_is_none(tiny: Project) -> None:
    git(tiny.root, "init", "--quiet")
    assert own_commit(tiny) is None


def test_an_archive_unpacked_inside_another_repository_has_no_commit(tiny: Project, command: Command) -> None:
    (tiny.root.parent / "other.txt").write_text("of another repository\n")
    git(tiny.root.parent, "init", "--quiet")
    git(tiny.root.parent, "add", "other.txt")
    git(tiny.root.parent, "commit", "--quiet", "--message", "theirs")
    assert command("render").returncode == 0
    assert published(tiny) is None
    commit(tiny.root.parent)  # even where it was added there: the commit is still that of another repository
    assert own_commit(tiny) is None


def test_an_archive_unpacked_over_another_repository_has_no_commit(tiny: Project) -> None:
    (tiny.root / "other.txt").write_text("of another repository\n")
    git(tiny.root, "init", "--quiet")
    git(tiny.root, "add", "other.txt")
    git(tiny.root, "commit", "--quiet", "--message", "theirs")
    assert own_commit(tiny) is None


def test_a_shallow_clone_a_worktree_and_a_submodule_have_their_own_commit(tiny: Project, tmp_path: Path) -> None:
    first = commit(tiny.root)
    (tiny.root / "new.txt").write_text("new\n")
    second = commit(tiny.root)
    git(tmp_path, "clone", "--quiet", "--depth", "1", tiny.root.as_uri(), "shallow")
    assert own_commit(Project(tmp_path / "shallow")) == second
    git(tiny.root, "worktree", "add", "--quiet", "--detach", str(tmp_path / "worktree"), first)
    assert own_commit(Project(tmp_path / "worktree")) == first
    above = tmp_path / "above"
    above.mkdir()
    outer = commit(above)
    git(above, "submodule", "--quiet", "add", tiny.root.as_uri(), "inner")
    assert own_commit(Project(above / "inner")) == second != outer


def test_a_repository_of_another_owner_is_left_unread(
    tiny: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = commit(tiny.root)
    monkeypatch.setenv("HOME", str(tiny.root.parent))  # nothing is declared safe there
    if os.getuid():
        pytest.skip("only root can give a folder to somebody else")
    for path in [tiny.root, *tiny.root.rglob("*")]:
        os.chown(path, 65534, 65534)
    if own_commit(tiny) == made:
        pytest.skip("the administrator of this machine has declared all folders safe")
    assert command("render").returncode == 0
    assert published(tiny) is None


def test_a_link_to_the_project_is_the_project(tiny: Project, tmp_path: Path) -> None:
    made = commit(tiny.root)
    (tmp_path / "link").symlink_to(tiny.root)
    assert own_commit(Project(tmp_path / "link")) == made


def test_a_hook_of_another_repository_does_not_lead_git_there(
    tiny: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = commit(tiny.root)
    other = tmp_path / "other"
    shutil.copytree(tiny.root, other, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    (other / "new.txt").write_text("new\n")
    assert commit(other) != made
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert own_commit(tiny) == made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "stage"), [("no git", "build"), ("git that may not be called", "render"), ("git that fails", "render")]
)
def test_without_git_a_site_is_rendered_and_built(trouble: str, stage: str, tiny: Project, tmp_path: Path) -> None:
    commit(tiny.root)
    folder = tmp_path / "bin"
    folder.mkdir()
    if trouble != "no git":
        (folder / "git").write_text("#!/bin/sh\nexit 3\n")
        (folder / "git").chmod(0o755 if trouble == "git that fails" else 0o644)
    done = subprocess.run(
        [sys.executable, "-m", "scripts", stage], cwd=tiny.root, capture_output=True, encoding="utf-8", check=False,
        env={**os.environ, "PATH": str(folder), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert published(tiny) is None
