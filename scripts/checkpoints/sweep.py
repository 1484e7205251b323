"""Run the snippets of all checkpoints with their real weights: `python -m scripts.checkpoints.sweep`.

Each runs as a reader would run it, in a process and with caches of its own that are thrown away, so that the disk does for all.
A workflow does this each week; gated weights are left out, since nobody asked for access in its name.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.cards.library import load_library
from scripts.cards.releases import Checkpoint
from scripts.cards.schema import Card
from scripts.checkpoints.snippets import brings_code, is_run_here, snippet
from scripts.files import write

SECONDS = 1800
LAST_LINES = 12
FRAMES = 16
OF_VOLUMES = "labels of a volume"


@dataclass(frozen=True)
class Broken:
    """A snippet that failed, and the end of what it said."""

    id: str
    lines: str
    said: str


def wanted(cards: Mapping[str, Card], shard: int = 0, of: int = 1) -> dict[str, str]:
    """Id -> snippet of the checkpoints that can be run; of several shares one."""
    found = {
        f"{slug}/{key}": lines
        for slug, card in sorted(cards.items())
        for key, checkpoint in card.checkpoints.items()
        if (lines := snippet(checkpoint)) and left_out(checkpoint) is None
    }
    return dict(list(found.items())[shard::of])


def left_out(checkpoint: Checkpoint) -> str | None:
    """Why the weekly run leaves the snippet of a checkpoint out, in a sentence; None if it runs it."""
    if not is_run_here(checkpoint):
        library = checkpoint.load.library
        return f"Not run here: {library} is not among the packages of this project. A test runs the lines on stand-ins for it."
    if checkpoint.gated:
        return "It needs your consent at the hub, so the weekly run with the real weights leaves it out."
    if brings_code(checkpoint):
        return "It runs code that lies beside the weights, which needs your consent, so the weekly run leaves it out."
    if checkpoint.output == OF_VOLUMES:
        return "Not run each week: no volume of its kind comes with the packages of this project."
    return None


def run(lines: str, seconds: float = SECONDS) -> str | None:
    """Run a snippet beside a photograph; None if it went well and printed something, else the end of what it said."""
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder))
        caches = {"HF_HOME": f"{folder}/hf", "TORCH_HOME": f"{folder}/torch"}
        try:
            done = subprocess.run(
                [sys.executable, "-c", lines], cwd=folder, env=os.environ | caches, capture_output=True, text=True,
                timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"not done after {seconds:g} s"
    if done.returncode == 0 and done.stdout.strip():
        return None
    said = "\n".join((done.stderr or done.stdout).splitlines()[-LAST_LINES:])
    return f"status {done.returncode}\n{said}"


def lay_out(folder: Path) -> None:
    """A photograph, and frames of a clip over which the view moves."""
    from PIL import Image
    from skimage import data

    photograph = Image.fromarray(data.cat())
    photograph.save(folder / "picture.jpg")
    (folder / "frames").mkdir()
    for number in range(FRAMES):
        view = photograph.crop((number, number, 400 + number, 280 + number))
        view.save(folder / f"frames/{number:02}.jpg")


def report(broken: Iterable[Broken]) -> str:
    """What broke, for an issue."""
    parts = [
        f"### `{each.id}`\n\n```python\n{each.lines}\n```\n\n```text\n{each.said.replace('```', '` ` `')}\n```\n"
        for each in broken
    ]
    return "These snippets no longer run with the published weights and the pinned packages.\n\n" + "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Run a share of the snippets; 1 and a report if any broke, twice in a row."""
    parser = argparse.ArgumentParser(prog="python -m scripts.checkpoints.sweep", description=__doc__)
    parser.add_argument("--shard", type=int, default=0, metavar="N", help="which share, from 0")
    parser.add_argument("--of", type=int, default=1, metavar="N", help="how many shares")
    parser.add_argument("--report", type=Path, default=Path("broken.md"), metavar="FILE")
    options = parser.parse_args(arguments)
    root = Path.cwd()
    broken = []
    for id, lines in wanted(load_library(root / "model_cards", root)[0].cards, options.shard, options.of).items():
        said = run(lines) and run(lines)  # what fails but once is the network's doing
        print(f"{id}: {'broken' if said else 'ran'}", flush=True)
        broken += [Broken(id, lines, said)] if said else []
    if broken:
        write(options.report, report(broken).encode())
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
