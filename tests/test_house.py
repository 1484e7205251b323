"""The rules of the house: short modules, imports that run downwards, and an engine that holds no content."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from built_site import TEMPLATES
from conftest import ROOT, TINY

SCRIPTS = ROOT / "scripts"
MODULES = sorted(path for path in SCRIPTS.rglob("*.py") if "templates" not in path.parts)
FLOORS = (
    {"files", "fingerprint", "machine", "project"},
    {"cards"},
    {"runs", "architectures"},
    {"evidence"},
    {"checkpoints"},
    {"exports"},
    {"pages"},
    {"site"},
    {"__main__", "benchmarks", "new", "starters"},
)
"""From the ground up: a room may import from its own floor and from those below; of the same floor only itself."""
PLACE = re.compile(r"(?<![\w/.-])(?:scripts|tests)/[\w/-]+(?:\.py|\.yml|\.mjs|/)")
"""A file or folder as a comment names it."""
MODULE_LINES, FUNCTION_LINES, CLASS_LINES = 400, 40, 120


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def imports_of(path: Path) -> Iterator[str]:
    """Modules of this package that one imports anywhere, also within functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in NAMES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from [inner] if inner in NAMES else [node.module] if node.module in NAMES else []


GRAPH = {name_of(path): set(imports_of(path)) - {name_of(path)} for path in MODULES}


PACKAGES = {name_of(path) for path in MODULES if path.name == "__init__.py"}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floor(name: str) -> int:
    (found,) = [i for i, rooms in enumerate(FLOORS) if name in rooms] or [-1]
    assert found >= 0, f"scripts/{name} has no floor yet: say in this test which one it is"
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_functions_and_classes_are_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MODULE_LINES
    assert too_long(path) == []


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "lab").rglob("*.py")), ids=lambda path: path.stem)
def test_the_lab_is_short_too_but_for_the_docstrings_that_give_shapes_and_units(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MODULE_LINES
    assert too_long(path, told=False) == []


def too_long(path: Path, told: bool = True) -> list[str]:
    """Functions and classes of a module with more lines than allowed; `told` says whether docstrings of functions count."""
    long = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        lines = (getattr(node, "end_lineno", None) or 0) - getattr(node, "lineno", 0) + 1
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = node.body[0] if ast.get_docstring(node) and not told else None
            lines -= (doc.end_lineno or 0) - doc.lineno + 1 if doc else 0
            if lines > FUNCTION_LINES:
                long.append(f"{node.name}: {lines} lines")
        if isinstance(node, ast.ClassDef) and lines > CLASS_LINES:
            long.append(f"class {node.name}: {lines} lines")
    return long


def test_modules_of_tests_are_short_too() -> None:
    lines = {path.name: len(path.read_text("utf-8").splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > MODULE_LINES} == {}


def test_the_import_graph_is_that_of_the_package() -> None:
    """So that the tests below look at something."""
    assert "scripts.evidence.systems" in GRAPH["scripts.pages.charts"]
    assert "scripts.site.build" in GRAPH["scripts.__main__"], "within a function"
    assert sum(map(len, GRAPH.values())) > 200


@pytest.mark.parametrize("module", [name for name in GRAPH if name != "scripts"])
def test_imports_run_downwards(module: str) -> None:
    here = room(module)
    upwards = {
        other
        for other in GRAPH[module]
        if other != "scripts" and room(other) != here
        if floor(room(other)) > floor(here)
        or (floor(room(other)) == floor(here) and floor(here) not in (0, len(FLOORS) - 1))
    }
    assert upwards == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for other in sorted(GRAPH[module]):
                walk(other, (*way, module))
            done.add(module)

    for module in GRAPH:
        walk(module, ())


@pytest.mark.slow
def test_the_engine_alone_checks_and_renders_any_project(tmp_path: Path) -> None:
    """Without torch and drawing libraries, and without the examples' own library."""
    project = tmp_path / "project"
    shutil.copytree(TINY, project, ignore=shutil.ignore_patterns("__pycache__", "lab"))
    shutil.copytree(SCRIPTS, project / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "docs").mkdir()
    script = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "timm", "transformers", "monai", "numpy", "scipy", "matplotlib",
                                      "snakemake", "lab", "conftest"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from scripts.__main__ import main
import scripts
assert scripts.__file__.startswith(sys.argv[1]), scripts.__file__
sys.exit(main(["check"]) or main(["render"]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(project)],
        cwd=project, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0] == "2 cards, no problem"
    assert "Alpha-B" in (project / "docs/models/alpha.md").read_text("utf-8")
    assert (project / "docs/examples/alpha.ipynb").is_file()


def test_the_readme_names_every_room() -> None:
    told = set(re.findall(r"^  (\w+)/ ", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE))
    assert told == {name.rpartition(".")[2] for name in PACKAGES if name.count(".") == 1}


def test_a_page_of_each_template_is_looked_at_in_a_browser() -> None:
    """But for that of a task's photographs, which only a build with pictures has."""
    templates = {path.name.removesuffix(".md.j2") for path in (SCRIPTS / "pages/templates").glob("*.md.j2")}
    assert templates - TEMPLATES.keys() == {"on_photographs"}


def test_places_that_comments_name_are_there() -> None:
    """Files move, and what is said of them stays behind."""
    written = [*SCRIPTS.rglob("*.py"), *SCRIPTS.rglob("*.j2"), *(ROOT / "docs/assets").glob("*.*s")]
    written += [
        *(ROOT / "overrides").rglob("*.html"),
        *(ROOT / "model_cards").glob("_*.yml"),
        *ROOT.glob("[Mmp]*[a-z]"),
    ]
    files = [path for path in written if path.is_file()]
    named = [(path, name) for path in files for name in PLACE.findall(path.read_text("utf-8"))]
    assert len(named) > 5
    assert [f"{path.relative_to(ROOT)}: {name}" for path, name in named if not (ROOT / name).exists()] == []


SLUGS = sorted(path.stem for path in (ROOT / "model_cards").glob("[!_]*.yml"))
NAMED = re.compile(rf"(?<![\w-])({'|'.join(SLUGS)})(?![\w-])")


def texts_of(path: Path) -> Iterator[str]:
    """The string constants of a module that are neither docstrings nor the examples of a field."""
    tree = ast.parse(path.read_text("utf-8"))
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    samples = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "examples"]
    said |= {id(node) for sample in samples for node in ast.walk(sample)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a script or template that are no comments."""
    for line in path.read_text("utf-8").splitlines():
        if not line.lstrip().startswith(("//", "{#")):
            yield line


def test_the_engine_names_no_card() -> None:
    """What is about one model stands in model_cards/; samples for editors and definitions of architectures are another thing."""
    others = ("scripts.cards.samples", "scripts.architectures.definitions")
    modules = [path for path in MODULES if not name_of(path).startswith(others)]
    said = [f"{name_of(path)}: {text!r}" for path in modules for text in texts_of(path) if NAMED.search(text)]
    written = [*(SCRIPTS / "pages/templates").glob("*.j2"), *(ROOT / "docs/assets").glob("*.js")]
    assert len(written) > 30
    said += [f"{path.name}: {line}" for path in written for line in lines_of(path) if NAMED.search(line)]
    assert said == []


def test_the_rooms_that_only_make_values_write_no_file() -> None:
    """Runs and the site write, and all others leave it to `files.write`, which writes a file whole."""
    makers = [path for path in MODULES if "." in name_of(path) and floor(room(name_of(path))) in range(1, 7)]
    found = [
        f"{name_of(path)}: line {node.lineno}"
        for path in makers
        if room(name_of(path)) != "runs"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("write_text", "write_bytes", "unlink", "rmtree")
    ]
    assert found == []


def told_in_the_reference(package: str) -> dict[str, str]:
    """Page of the reference by module of a package."""
    return {
        match[1]: path.stem
        for path in (ROOT / "docs/reference").glob("*.md")
        for match in re.finditer(rf"^::: ({package}[\w.]*)$", path.read_text("utf-8"), re.MULTILINE)
    }


def test_the_reference_holds_all_of_the_lab() -> None:
    """What the examples share is told to those who write one."""
    lab = ROOT / "examples/lab"
    modules = {f"lab.{path.stem}" for path in lab.glob("*.py")} | {
        f"lab.data.{path.stem}" for path in lab.glob("data/*.py")
    }
    assert told_in_the_reference("lab").keys() == {each for each in modules if not each.endswith("__init__")}


def test_the_reference_follows_the_rooms() -> None:
    """Of pages and of definitions of architectures it names what all of them share; a page may be parted: cards-reading."""
    told = {name: page.partition("-")[0] for name, page in told_in_the_reference("scripts").items()}
    rooms = {"cards", "runs", "architectures", "evidence", "checkpoints", "exports", "site"}
    wanted = {name for name in map(name_of, MODULES) if room(name) in rooms and name.count(".") == 2} - PACKAGES
    assert {name: told.get(name) for name in sorted(wanted)} == {name: room(name) for name in sorted(wanted)}
    assert told.keys() <= {name_of(path) for path in MODULES}
