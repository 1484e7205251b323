"""What `python -m scripts try` and `photographs` take; light, since every command reads it."""

from __future__ import annotations

import argparse
from pathlib import Path

from scripts.checkpoints.found import Box


def words(text: str) -> tuple[str, ...]:
    """`a cat, a person` in its parts."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def point(text: str) -> tuple[float, float]:
    """`X,Y`."""
    x, y = (float(value) for value in text.split(","))
    return x, y


def box(text: str) -> Box:
    """`X0,Y0,X1,Y1`: two corners that are opposite, in any order."""
    x0, y0, x1, y1 = (float(value) for value in text.split(","))
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands that run weights."""
    add_options(commands.add_parser("try", help="run published weights on a picture of yours"))
    add_photograph_options(commands.add_parser("photographs", help="run weights at hand on the photographs of pages"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the command `try` takes."""
    parser.add_argument(
        "picture",
        type=Path,
        metavar="PICTURE",
        help="a picture, a clip or a volume (NIfTI)",
    )
    parser.add_argument("--models", type=words, default=(), metavar="A,B", help="cards, by their slugs")
    parser.add_argument(
        "--checkpoint",
        type=words,
        default=(),
        metavar="ID",
        help="SLUG/KEY of a card, or a name of --weights packaged; several with commas",
    )
    parser.add_argument("--point", type=point, metavar="X,Y", help="a click, in pixels of the picture")
    parser.add_argument("--box", type=box, metavar="X0,Y0,X1,Y1", help="a box around an object: two opposite corners")
    parser.add_argument("--text", type=words, default=(), metavar="TEXTS", help='what to look for: "a cat, a person"')
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument(
        "--weights",
        choices=("published", "packaged", "random"),
        default="published",
        help="packaged: small ones of packages that pip fetches, relatives of the models; random: to test an installation",
    )
    parser.add_argument("--out", type=Path, default=Path("build/tried"), metavar="DIR", help="where the page goes")


def add_photograph_options(parser: argparse.ArgumentParser) -> None:
    """What the command `photographs` takes."""
    parser.add_argument("--models", type=words, default=(), metavar="A,B", help="cards, by their slugs; all by default")
    parser.add_argument(
        "--tasks", type=words, default=(), metavar="A,B", help="what the weights are for; all by default"
    )
    parser.add_argument(
        "--fetch",
        nargs="?",
        choices=("none", "small", "all"),
        const="all",
        default="none",
        help="download published weights that are not on this machine; small: where a hub answers at once, no large ones",
    )
    parser.add_argument("--keep", action="store_true", help="write into measurements/, which git keeps")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
