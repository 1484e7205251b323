"""The built site as one ZIP to read without a network: the same bytes from the same site, links that need no server."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

NO_DATE = (1980, 1, 1, 0, 0, 0)

SERVED_ONLY = re.compile(r"<link rel=\"(?:alternate|preload)\"[^>]*>\n?")
"""On a disk a feed is of no use, the theme would look for a sitemap beside it, and a browser refuses to load a font early."""
ADDRESS = re.compile(r'(<(?:a|link|area)\b[^>]*?\shref=)("([^"]*)"|([^\s">]+))')

AS_SCRIPT = "api/compare.json"
"""What a page fetches: from a disk a browser loads scripts alone, so the archive holds it as one, too (assets/compare.js)."""

OUTSIDE = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*:|//|/)")


def show_link(page: Path) -> None:
    """Show what a page says of the archive: a comment until there is one, for MkDocs alone makes none."""
    text = page.read_text("utf-8")
    page.write_text(text.replace("<!-- archive ", "").replace(" archive -->", ""), "utf-8")


def write_archive(site: Path, target: Path, folder: str) -> None:
    """Pack all files of a built site into a folder of this name, but the archive itself and the page of a server."""
    target.parent.mkdir(parents=True, exist_ok=True)
    left_out = {target, site / "404.html"}
    files = sorted(path for path in site.rglob("*") if path.is_file() and path not in left_out)
    own = target.relative_to(site)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as packed:
        for path in files:
            name = os.fsencode(path.relative_to(site).as_posix()).decode(
                errors="replace"
            )  # UTF-8, whatever the locale is
            content = path.read_bytes()
            if path.suffix == ".html":
                content = _without_server(content.decode("utf-8"), own.as_posix()).encode()
            _add(packed, f"{folder}/{name}", content)
            if name == AS_SCRIPT:
                _add(packed, f"{folder}/{name}.js", b"window.fromDisk = " + content)


def _add(packed: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, NO_DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    packed.writestr(entry, content)


def _without_server(page: str, own: str) -> str:
    """Links to folders lead to the `index.html` in them, and the link to the archive leads nowhere."""

    def mended(match: re.Match[str]) -> str:
        address = match[3] if match[3] is not None else match[4]
        return f'{match[1]}"{_file_address(address, own)}"'

    return ADDRESS.sub(mended, SERVED_ONLY.sub("", page))


def _file_address(address: str, own: str) -> str:
    path = re.split(r"[?#]", address, maxsplit=1)[0]
    rest = address[len(path) :]
    if OUTSIDE.match(address) or not path:
        return address
    if path.endswith(own):
        return "#"
    is_folder = path.endswith("/") or path.rpartition("/")[2] in (".", "..")
    return f"{path.rstrip('/')}/index.html{rest}" if is_folder else address
