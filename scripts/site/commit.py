"""The commit of a project, as far as there is one that is its own. Nothing depends on it: without git there is none."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from scripts.project import Project


def own_commit(project: Project) -> str | None:
    """The commit that is checked out, if the root of its repository is this project's and the cards are in it.

    None without git, in an unpacked archive (a repository that it lies in has other commits), before the first commit, and
    where git refuses to read what belongs to somebody else.
    """
    asked = ["HEAD", f"HEAD:{project.cards.name}", "--show-toplevel"]
    # A hook of another repository would lead git there.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        told = subprocess.run(
            ["git", "-C", str(project.root), "rev-parse", *asked], capture_output=True, check=False, env=environment
        )
    except OSError:  # no git, or none that may be called
        return None
    commit, _, rest = told.stdout.partition(b"\n")
    root = os.fsdecode(rest.partition(b"\n")[2].removesuffix(b"\n"))
    return commit.decode() if told.returncode == 0 and _is_same(Path(root), project.root) else None


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
