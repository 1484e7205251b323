"""Files: written whole and only where their bytes change, read as JSON, hashed."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Texts = Mapping[str, str]
"""By path below docs/."""


def sha256(content: bytes) -> str:
    """The digest of some bytes, in 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write(path: Path, content: bytes) -> bool:
    """Write a file whole, and only if its bytes change; says whether they did."""
    if path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # another process may write the same
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError:  # a full disk most of all: leave no half file behind
        part.unlink(missing_ok=True)
        raise
    return True
