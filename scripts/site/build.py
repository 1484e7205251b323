"""`site/` built by MkDocs or Zensical aside, and swapped in when it is whole."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from scripts import exports
from scripts.files import write
from scripts.machine import UTF_8
from scripts.project import Project
from scripts.site import archive
from scripts.site.gather import about, settings


def build(project: Project, builder: str = "mkdocs") -> bool:
    """Build `site/` aside and swap it in; False where nothing changed since the last time.

    Raises:
        RuntimeError: the builder failed; the last good site is untouched.
    """
    stamp = project.build / "site.sha256"
    recover(project)
    current = f"{_inputs_digest(project)} {builder}"
    if project.site.is_dir() and stamp.is_file() and stamp.read_text() == current:
        return False
    aside = _aside(project)
    shutil.rmtree(aside, ignore_errors=True)
    _build_pages(project, builder, aside)
    if builder == "mkdocs" and not _has_search_plugin(project):
        _index_with_pagefind(aside)
    named = about(project)
    archive.show_link(aside / "downloads/index.html")
    archive.write_archive(aside, aside / exports.archive_of(named), named.slug)
    stamp.unlink(missing_ok=True)  # whatever happens now, no site passes for one that it is not
    _swap(aside, project.site)
    write(stamp, current.encode())
    return True


def _build_pages(project: Project, builder: str, aside: Path) -> None:
    command = [sys.executable, "-m", builder, "build", "--strict"]
    environment = mkdocs_environment()
    if builder == "mkdocs":
        command += ["--site-dir", str(aside)]
    else:  # it takes the folder from the settings alone
        _check_zensical(project)
        command += ["--clean"]
        environment["SITE_DIR"] = aside.relative_to(project.root).as_posix()
    done = subprocess.run(
        command, cwd=project.root, capture_output=True, encoding="utf-8", check=False, env=environment
    )
    if done.returncode:
        shutil.rmtree(aside, ignore_errors=True)
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(aside))
        lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("INFO")]
        raise RuntimeError("\n".join([f"{builder} failed, the last good site is untouched:", *lines]))


def _check_zensical(project: Project) -> None:
    """Raises RuntimeError where Zensical is not installed, or would not build aside."""
    if importlib.util.find_spec("zensical") is None:
        raise RuntimeError("Zensical is not installed; install it with: make .venv/.zensical")
    if "!ENV [SITE_DIR" not in (project.root / "mkdocs.yml").read_text("utf-8"):
        raise RuntimeError("for Zensical, mkdocs.yml needs the line: site_dir: !ENV [SITE_DIR, site]")


def _has_search_plugin(project: Project) -> bool:
    """Whether mkdocs.yml lists the theme's search; it is on by default too."""
    plugins = settings(project).get("plugins", ["search"]) or []
    return any("search" in ((plugin,) if isinstance(plugin, str) else plugin) for plugin in plugins)


def _index_with_pagefind(site: Path) -> None:
    """Write Pagefind's index of a built site, which a browser loads piece by piece, into its folder `pagefind/`.

    Raises:
        RuntimeError: Pagefind failed.
    """
    command = [sys.executable, "-m", "pagefind", "--silent", "--site", str(site)]
    command += ["--root-selector", "article.md-content__inner"]
    command += ["--exclude-selectors", "[data-search-exclude], .headerlink"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        raise RuntimeError(f"pagefind failed, the last good site is untouched:\n{done.stdout}{done.stderr}")


def _aside(project: Project) -> Path:
    return project.build / "site.new"


def recover(project: Project) -> None:
    """Bring back the last good site, if a build was killed in the moment between the two renames of `_swap`."""
    last = _last(_aside(project))
    if last.is_dir() and not project.site.exists():
        last.rename(project.site)


def _last(new: Path) -> Path:
    return new.with_suffix(".last")


def mkdocs_environment() -> dict[str, str]:
    """MkDocs with dates from the sources, not from the clock, and without the notices of its makers."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or "0"
    return {**os.environ, **UTF_8, "SOURCE_DATE_EPOCH": epoch, "NO_MKDOCS_2_WARNING": "1"}


def _swap(new: Path, old: Path) -> None:
    """Put a folder in the place of another; at each moment one of them is there whole (see `recover`)."""
    last = _last(new)
    shutil.rmtree(last, ignore_errors=True)
    if old.exists():
        old.rename(last)
    new.rename(old)
    shutil.rmtree(last, ignore_errors=True)


def _inputs_digest(project: Project) -> str:
    """Hash of all that MkDocs reads: the docs folder, its settings, and the modules that the reference describes."""
    total = hashlib.sha256()
    folders = [project.docs, project.root / "overrides", project.root / "scripts", project.examples / "lab"]
    files = [
        path for folder in folders for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    for path in sorted([*files, project.root / "mkdocs.yml"]):
        total.update(os.fsencode(path.relative_to(project.root)) + b"\0" + path.read_bytes())
    return total.hexdigest()
