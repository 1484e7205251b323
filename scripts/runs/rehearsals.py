"""Rehearsals: a process counts one step of an example at the sizes of `full`, and what it counted is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from scripts.files import write
from scripts.machine import UTF_8
from scripts.project import Project
from scripts.runs import needs, process


def rehearse(project: Project, slugs: Sequence[str]) -> int:
    """Count a step of each example, and keep what was counted; 1 if one failed."""
    failed = [slug for slug in slugs if not _rehearsed(project, slug)]
    return 1 if failed else 0


def _rehearsed(project: Project, slug: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counted.json"
        code = process.run(
            [sys.executable, "-m", "lab.rehearsal", slug, str(out)],
            {**os.environ, **UTF_8, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
            stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, cwd=project.examples,
        )  # fmt: skip
        if code or not out.is_file():
            print(f"  {slug}: not counted, exit status {code}", file=sys.stderr)
            return False
        counted = needs.Rehearsal(**json.loads(out.read_text("utf-8")))
    print(f"  {slug}: {counted.kernels:,} kernels, {counted.gflop:,} GFLOP, {counted.memory_gb} GB", flush=True)
    _keep(project, needs.read_all(project) | {slug: counted})
    return True


def _keep(project: Project, rehearsals: Mapping[str, needs.Rehearsal]) -> None:
    rows = {slug: asdict(rehearsals[slug]) for slug in sorted(rehearsals)}
    lines = ",\n".join(f" {json.dumps(slug)}: {json.dumps(row)}" for slug, row in rows.items())
    write(needs.path_of(project), f"{{\n{lines}\n}}\n".encode())
