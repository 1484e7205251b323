"""A card and an example to start from."""

from __future__ import annotations

import re
import sys
from importlib import resources

from scripts.cards.values import SLUG
from scripts.files import write
from scripts.project import Project


def new(project: Project, slug: str) -> int:
    """Write `model_cards/<slug>.yml` and `examples/<slug>.py`; 1 if the slug is malformed or taken."""
    if not re.fullmatch(SLUG, slug):
        print(f"{slug!r} is no slug: small letters, digits and single hyphens, for example my-model", file=sys.stderr)
        return 1
    targets = {"card.yml": project.cards / f"{slug}.yml", "example.py": project.examples / f"{slug}.py"}
    taken = [path for path in targets.values() if path.exists()]
    if taken:
        print(
            f"{', '.join(path.relative_to(project.root).as_posix() for path in taken)} exists already", file=sys.stderr
        )
        return 1
    for name, path in targets.items():
        text = resources.files("scripts").joinpath("starters", name).read_text("utf-8")
        write(path, text.replace("SLUG", slug).encode())
        print(f"wrote {path.relative_to(project.root).as_posix()}")
    print("next: fill in the card, then python -m scripts check")
    return 0
