"""The same scripts through this project, sphinx-gallery and mkdocs-gallery: from nothing, unchanged, and after an edit."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.projects import TEMPLATES, with_examples
from scripts.benchmarks.timing import print_table, timed

PEERS = ("sphinx-gallery", "mkdocs-gallery")
HEADER = ("Tool", "From nothing", "Unchanged", "One script edited", "Helper edited", "Right after it?")


@dataclass(frozen=True)
class Tool:
    """A way to run all scripts and build their pages.

    Attributes:
        name: as the table has it.
        folder: of its copy of the scripts.
        examples: where the scripts lie there.
        commands: what is run, one after the other.
        site: where the pages are.
    """

    name: str
    folder: Path
    examples: Path
    commands: Sequence[Sequence[str]]
    site: Path

    def seconds(self) -> list[float]:
        """Of each command."""
        environment = {"PYTHONPATH": f"{self.examples}:{Path.cwd()}", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        return [timed(command, self.folder, environment).seconds for command in self.commands]

    def shows(self, number: int, value: int) -> bool:
        """The page of an example says what its script draws."""
        pages = [*self.site.rglob(f"example-{number}/index.html"), *self.site.rglob(f"example-{number}.html")]
        return any(re.search(rf"\b{value}\b", path.read_text("utf-8")) for path in pages)


def compare(folder: Path, count: int, seconds: float, jobs: int, peers: Path | None) -> None:
    """Print a table of `count` scripts of about `seconds` each, `jobs` at a time, in projects that are made in `folder`.

    `peers` is the Python that has the other tools.
    """
    with_examples(folder / "project", Path.cwd(), count, _rounds_for(seconds))
    tools = list(_tools(folder, jobs, peers))
    alone = _alone(folder / "project" / "examples", folder / "alone", jobs)
    rows: list[tuple[object, ...]] = [("the scripts alone", alone, "", "", "", "")]
    for tool in tools:
        rows += _rows(tool)
    title = f"{count} scripts of {seconds:g} s, {jobs} at a time; seconds, with the pages"
    print_table(title, HEADER, rows)


def _rounds_for(seconds: float) -> int:
    """How many rounds of the helper's work take so long on one core here."""
    text, tried = bytes(2**16), 5_000
    started = time.process_time()
    for _ in range(tried):
        hashlib.sha256(text).digest()
    return round(tried * seconds / (time.process_time() - started))


def _alone(examples: Path, out: Path, jobs: int) -> float:
    """Every script in a process of its own, without any tool."""
    scripts = "\n".join(sorted(path.stem for path in examples.glob("example-*.py")))
    command = ["xargs", "-P", str(jobs), "-I", "{}", sys.executable, "{}.py", "--out", f"{out}/{{}}"]
    started = time.monotonic()
    subprocess.run(command, input=scripts, text=True, check=True, cwd=examples, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def _tools(folder: Path, jobs: int, peers: Path | None) -> Iterator[Tool]:
    project = folder / "project"
    run = [sys.executable, "-m", "scripts", "run", "--jobs", str(jobs)]
    build = [sys.executable, "-m", "scripts", "build"]
    yield Tool("this project", project, project / "examples", [run, build], project / "site")
    if peers is None:
        return
    for name in PEERS:
        root = folder / name
        shutil.copytree(TEMPLATES / name, root)
        shutil.copytree(project / "examples", root / "examples")
        (root / "examples" / "README.md").write_text("# Examples\n", "utf-8")
        (root / "examples" / "GALLERY_HEADER.rst").write_text("Examples\n========\n", "utf-8")
        if name == "sphinx-gallery":
            settings = (root / "docs" / "conf.py.in").read_text("utf-8").replace("JOBS", str(jobs))
            (root / "docs" / "conf.py").write_text(settings, "utf-8")
        options = ["sphinx", "-q", "docs", "site"] if name == "sphinx-gallery" else ["mkdocs", "build", "-q"]
        yield Tool(name, root, root / "examples", [[str(peers), "-m", *options]], root / "site")


def _rows(tool: Tool) -> Iterator[tuple[object, ...]]:
    """What each step took; where a tool runs the scripts by a command of its own, that one alone too."""
    print(f"{tool.name} ...", file=sys.stderr, flush=True)
    steps = [tool.seconds(), tool.seconds()]
    script, helper = tool.examples / "example-1.py", tool.examples / "lab" / "__init__.py"
    _replace(script, '"example-1", 1)', '"example-1", 7)')
    steps.append(tool.seconds())
    right = tool.shows(1, 107)
    _replace(helper, "OFFSET = 100", "OFFSET = 200")
    steps.append(tool.seconds())
    right_too = tool.shows(1, 207) and tool.shows(0, 200)
    yield tool.name, *map(sum, steps), "yes" if right and right_too else "only the script" if right else "no"
    if len(tool.commands) > 1:
        yield "  running alone", *(first for first, *_ in steps), ""


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    if old not in text:
        raise ValueError(f"{path} does not hold {old!r}")
    path.write_text(text.replace(old, new), "utf-8")
