"""The rules of the house: small modules in rooms, imports that run downwards, an engine without content that works elsewhere."""

from __future__ import annotations

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT, edit

from scripts.project import Project

FLOORS = (
    ("__init__",), ("project",), ("files", "fingerprint", "machine"), ("cards",), ("runs", "architectures"), ("evidence",),
    ("checkpoints",), ("exports",), ("pages",), ("site",), ("starters",), ("new", "benchmarks"), ("__main__",),
)  # fmt: skip
"""The rooms of scripts/ and the modules beside them, from the ground up: each imports of itself and of the floors below."""

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(path for path in (ROOT / "scripts").rglob("*.py"))
TEMPLATES = sorted((ROOT / "scripts/pages/templates").glob("*.j2"))
CARDS = {path.stem for path in (ROOT / "model_cards").glob("[!_]*.yml")}

LONGEST = {"module": 400, "class": 120, "function": 40}
"""Lines, with signature and docstring."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    """Its folder in scripts/, or its own name where it lies beside the folders."""
    return path.relative_to(ROOT / "scripts").parts[0].removesuffix(".py")


def in_rooms(*rooms: str) -> list[Path]:
    return [path for path in MODULES if room_of(path) in rooms]


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imports_of(path: Path) -> Iterator[Path]:
    """The modules of scripts/ that a module imports, wherever in it: at its head, in a function, or for types alone."""
    for node in ast.walk(tree_of(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name_of(path)}:{node.lineno}: an import that names no room"
            names = [name for alias in node.names for name in (node.module, f"{node.module}.{alias.name}")]
        for name in names:
            module = ROOT.joinpath(*str(name).split("."))
            yield from (found for found in (module.with_suffix(".py"), module / "__init__.py") if found in MODULES)


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """The string constants of a module that are no docstrings, each with its line."""
    said = {id(node.value) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.lineno, node.value


def test_every_module_lies_in_a_room_of_the_house() -> None:
    assert {room_of(path) for path in MODULES} <= FLOOR.keys()


def test_modules_classes_and_functions_are_short() -> None:
    too_long = []
    for path in MODULES:
        parts = [(path.name, "module", len(path.read_text("utf-8").splitlines()))]
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                parts.append((node.name, kind, (node.end_lineno or 0) - node.lineno + 1))
        too_long += [f"{name_of(path)}: {name}: {lines}" for name, kind, lines in parts if lines > LONGEST[kind]]
    assert too_long == []


def test_imports_run_downwards() -> None:
    upwards = [
        f"{name_of(path)} imports {name_of(other)}"
        for path in MODULES
        for other in sorted(set(imports_of(path)))
        if room_of(other) != room_of(path) and FLOOR[room_of(other)] >= FLOOR[room_of(path)]
    ]
    assert upwards == []
    assert sum(1 for path in MODULES for _ in imports_of(path)) > 100, "imports are found at all"


def test_no_modules_import_each_other_in_a_circle() -> None:
    imported = {path: {other for other in imports_of(path) if other.name != "__init__.py"} - {path} for path in MODULES}
    while free := [path for path, others in imported.items() if not others & imported.keys()]:
        for path in free:
            del imported[path]
    assert [name_of(path) for path in imported] == []


def test_the_rooms_that_only_make_values_write_no_file() -> None:
    """`runs/` and `site/` write, all with `files.write` where a file must be whole."""
    writing = {"write_text", "write_bytes", "dump"}
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in in_rooms("cards", "architectures", "evidence", "checkpoints", "exports", "pages")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr in writing and ast.unparse(node.value) != "yaml"
    ]
    assert found == []


def test_the_engine_names_no_card() -> None:
    """What is about one model stands in `model_cards/`, also what a page of all models picks."""
    named = re.compile(rf"(?<![\w-])({'|'.join(sorted(CARDS))})(?![\w-])")
    modules = [
        f"{name_of(path)}:{line}: {text!r}"
        for path in in_rooms("runs", "evidence", "exports", "pages", "site")
        for line, text in texts_of(path)
        if named.search(text)
    ]
    templates = [path.name for path in TEMPLATES if named.search(path.read_text("utf-8"))]
    assert len(TEMPLATES) > 10
    assert (modules, templates) == ([], [])


ALONE = """
import importlib.abc, pathlib, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "timm", "transformers", "matplotlib", "lab", "snakemake"}:
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
import scripts
from scripts.__main__ import main

assert pathlib.Path(scripts.__path__[0]) == pathlib.Path.cwd() / "scripts", scripts.__path__
sys.exit(main(["check"]) or main(["render"]))
"""


def test_the_engine_works_in_another_project_without_ours_and_without_torch(tiny: Project) -> None:
    shutil.copytree(ROOT / "scripts", tiny.root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(tiny.examples / "lab")
    edit(tiny.cards / "alpha.yml", "{name: Alpha-B,", "{name: Alpha-B, count: {build: timm/alpha, input: 8 x 8},")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=tiny.root, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    checked, rendered = done.stdout.splitlines()
    assert checked == "2 cards, no problem"
    assert rendered.startswith("2 cards rendered, ")
    assert {path.name for path in (tiny.docs / "models").iterdir()} == {"index.md", "alpha.md", "beta.md"}
    assert "Has a margin." in (tiny.docs / "models/alpha.md").read_text("utf-8")
