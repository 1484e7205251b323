"""The hash of all that an outcome depends on: files, the modules that they import, the pinned packages, and what is asked.

Runs, counts and studies all go by it: an outcome that lies under its fingerprint is up to date, nothing has to be compared.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from scripts.files import kept
from scripts.project import Project

HERE = Path(__file__).parents[1]
"""Where the package `scripts` lies."""

OWN = Path(__file__)


def of_run(project: Project, slug: str) -> Callable[[str, str], str]:
    """Of an example's runs, by preset and device: the file to read, those of its experiments (also what was chosen for them),
    and what they import are read once."""
    files = [project.examples / f"{slug}.py", *project.claims_of(slug).parent.glob(f"{slug}.*")]
    sources = _sources(project, files, project.examples, project.root)
    return lambda preset, device: _digits(sources, f"{preset} {device}")


def of_module(project: Project, module: str) -> Callable[..., str]:
    """Of what a module of this package makes of whatever is asked: the module and what it imports are read once."""
    sources = _sources(project, [HERE.joinpath(*module.split(".")).with_suffix(".py")], HERE, HERE)
    return lambda *asked: _digits(sources, repr(asked))


def _digits(sources: hashlib._Hash, asked: str) -> str:
    both = sources.copy()  # hundreds of questions are asked of the same sources
    both.update(f"\n{asked}".encode())
    return both.hexdigest()[:12]


def _sources(project: Project, files: Iterable[Path], imports_below: Path, named_from: Path) -> hashlib._Hash:
    """The hash of files and of all that they import, names and texts, whatever line ends a checkout has."""
    entries = set(files)
    paths = sorted(entries.union(*(local_imports(project, file, imports_below) for file in entries)))
    texts = [
        path.relative_to(named_from).as_posix().encode() + _content(path, path.stat().st_mtime_ns) for path in paths
    ]
    return hashlib.sha256(b"".join([*texts, "\n".join(pins(project)).encode()]))


@functools.lru_cache(maxsize=1024)
def _content(path: Path, _changed: int) -> bytes:
    """A source text; read once for as long as it is as old as it was."""
    return path.read_bytes().replace(b"\r\n", b"\n")


def local_imports(project: Project, script: Path, root: Path) -> set[Path]:
    """All modules below `root` that a script imports, directly or through others; none of a file of data."""
    found: set[Path] = set()
    modules: set[str] = set()
    names_in = functools.cache(_names_in)  # many modules lie in few folders
    within = {name.partition(".")[0] for name in names_in(str(root))}  # what most imports name is not: libraries
    queue = [script] if script.suffix == ".py" else []
    while queue:
        path = queue.pop()
        package = path.relative_to(root).parent.parts
        named = _kept_names(project.kept, _content(path, path.stat().st_mtime_ns), package) - modules
        modules |= named
        own = [module for module in named if module.partition(".")[0] in within]
        new = {Path(file) for file in set().union(*(_module_files(module, root, names_in) for module in own))} - found
        found |= new
        queue += new
    return found - {script}


@functools.lru_cache(maxsize=1024)
def _kept_names(folder: Path, text: bytes, package: tuple[str, ...]) -> frozenset[str]:
    """The same as `_imported_names`, which takes most of the time of a fingerprint, kept from one command to the next."""
    made_of = b"\n".join([_content(OWN, 0), "/".join(package).encode(), text])
    names = kept(folder, made_of, lambda: "\n".join(_imported_names(text, package)).encode())
    return frozenset(names.decode().split())


def _imported_names(text: bytes, package: tuple[str, ...]) -> frozenset[str]:
    """Names of the modules that a source text imports anywhere; `package` is the folder it lies in."""
    names: set[str] = set()
    for node in _statements(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            names |= _imported_by_name(node.value)
    return frozenset(names)


def _imported_by_name(call: ast.Call) -> set[str]:
    """The module that a call of `import_module` names: an example whose name has a hyphen is imported so."""
    by_name = ast.unparse(call.func) in ("import_module", "importlib.import_module")
    return {str(each.value) for each in call.args if isinstance(each, ast.Constant)} if by_name else set()


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every statement below `tree`, without the expressions, which are most of it."""
    queue = [tree]
    while queue:
        node = queue.pop()
        yield node
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, part, [])
            queue += inner if isinstance(inner, list) else []


def _module_files(module: str, root: Path, names_in: Callable[[str], frozenset[str]]) -> set[str]:
    """The file of a module and the `__init__.py` of each package above it, as far as they exist."""
    found, folder = set(), str(root)
    *_, last = parts = module.split(".")
    for part in parts:
        if part is last and f"{part}.py" in names_in(folder):
            found.add(f"{folder}/{part}.py")
        if part not in names_in(folder):
            break
        folder = f"{folder}/{part}"
        if "__init__.py" in names_in(folder):
            found.add(f"{folder}/__init__.py")
    return found


def _names_in(folder: str) -> frozenset[str]:
    """What lies in a folder; nothing in a file."""
    try:
        return frozenset(os.listdir(folder))
    except NotADirectoryError:
        return frozenset()


def pins(project: Project) -> list[str]:
    """The pinned packages that outcomes depend on: of requirements-run.txt what checking and rendering do not need."""
    pages, run = (_pinned(project.root / name) for name in ("requirements.txt", "requirements-run.txt"))
    return sorted(run - pages)


def _pinned(path: Path) -> set[str]:
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return {line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")}
