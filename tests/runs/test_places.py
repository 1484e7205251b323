"""Where things lie is anybody's choice: folders with blanks, quotes, dollars and other letters, and what runs in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, Command, Done

from scripts.project import Project
from scripts.runs import schedule
from scripts.runs.state import states

PLACES = ["My Dríve", "-dash", "it's", 'so "called"', "$HOME", "`id`; x & y", "[a] {b} (c) #%s*?~", "back\\slash", "文"]
ALL = "-My Dríve $HOME it's \"{so} `id`; [a] & (b) #%s*?~ \\文"
"""What those hold, in one name."""


@dataclass(frozen=True)
class Place:
    """The tiny project in a folder of an unusual name, with the scripts, a Python, a home and a folder of temporary files."""

    project: Project
    python: Path
    environment: dict[str, str]

    def call(self, *arguments: str) -> Done:
        """`python -m scripts ...` there, by the Python that lies there."""
        done = subprocess.run(
            [str(self.python), "-m", "scripts", *arguments],
            cwd=self.project.root, env=self.environment, capture_output=True, encoding="utf-8", check=False,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)


def place(tiny: Project, name: str, folder: Path) -> Place:
    root, home, temporary = (folder / name / part for part in ("-project of x", "-home of $x", "-temporary 'x"))
    shutil.copytree(tiny.root, root, symlinks=True)
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(Path(sys.executable).resolve())
    home.mkdir()
    temporary.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment |= {"PYTHONPATH": sysconfig.get_path("purelib"), "HOME": str(home), "TMPDIR": str(temporary)}
    return Place(Project(root), python, environment)


@pytest.mark.slow
def test_examples_run_and_a_site_is_built_wherever_project_python_home_and_temporary_files_lie(
    tiny: Project, tmp_path: Path
) -> None:
    there = place(tiny, ALL, tmp_path)
    ran = there.call("run", "--device", "cpu", "--jobs", "2")
    assert ran.returncode == 0, ran.stderr
    assert {run.status for run in states(there.project, device="cpu").values()} == {"ok"}
    built = there.call("build", "--device", "cpu")
    assert built.returncode == 0, built.stderr
    assert (there.project.site / "models/alpha/index.html").is_file()
    assert "margin" in (there.project.docs / "models/alpha.md").read_text("utf-8")


@pytest.mark.slow
def test_the_log_of_an_example_that_fails_lies_there_too(tiny: Project, tmp_path: Path) -> None:
    (tiny.examples / "alpha.py").write_text("raise RuntimeError('the oven is cold')\n")
    there = place(tiny, ALL, tmp_path)
    ran = there.call("run", "--device", "cpu", "--jobs", "1")
    assert ran.returncode == 1
    assert "1 of 2 examples ran" in ran.stdout
    assert "failed: alpha, see build/logs/alpha.log" in ran.stderr
    assert "the oven is cold" in (there.project.build / "logs/alpha.log").read_text("utf-8")


@pytest.mark.parametrize("name", PLACES)
def test_a_job_runs_in_a_folder_of_any_name(name: str, tiny: Project, tmp_path: Path) -> None:
    there = place(tiny, name, tmp_path)
    wanted = schedule.wanted_targets(there.project, ["alpha"], "quick", "cpu")[0]
    done = subprocess.run(
        [str(there.python), "-m", "scripts.runs.job", "alpha", wanted.key],
        cwd=there.project.root, env=there.environment, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_that_a_cluster_would_stumble_over_is_told_before_any_job(
    tiny: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    there = place(tiny, "My Drive", tmp_path).project.root
    monkeypatch.chdir(there)
    done = command("run", "--profile", "slurm")
    assert done.returncode == 1
    assert (
        done.stderr == f"on a cluster a path may hold letters, digits and ./_+-@ only, and this one does not: {there}\n"
    )


def test_no_shell_line_of_the_makefile_holds_the_path_of_the_project() -> None:
    assert "CURDIR" not in (ROOT / "Makefile").read_text("utf-8")
