"""The command line of an example."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

PRESETS = ("smoke", "quick", "full")
SEEDS: Mapping[str, int] = MappingProxyType({"smoke": 1, "quick": 3, "full": 5})
ARGUMENTS = "EXAMPLE_ARGUMENTS"  # environment variable: the command line of a notebook, which has none of its own
PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Settings:
    """What an example knows about its run.

    Attributes:
        preset: "smoke" (does it run at all), "quick" (CPU) or "full" (GPU).
        device: where the models run.
        seeds: one training, or one draw of the data, for each.
        out: folder of the record and the figures.
        weights: "random" or "pretrained".
        claims: whether the experiments of ``claims/<slug>.py`` run, too.
        only: names of the experiments that run; all where empty.
        search: whether the searches of the claims are made anew.
        picture: the reader's photograph, or None.
    """

    preset: str
    device: torch.device
    seeds: tuple[int, ...]
    out: Path
    weights: str
    claims: bool = False
    only: tuple[str, ...] = ()
    search: bool = False
    picture: Path | None = None


def read(slug: str, seeds: Mapping[str, int], argv: Sequence[str] | None, pretrained: bool | None) -> Settings:
    """What the command line says, and the number of CPU threads set by it; see `lab.run.Run.start`."""
    if argv is None and "ipykernel" in sys.modules:
        argv = shlex.split(os.environ.get(ARGUMENTS, ""))  # in a notebook, sys.argv belongs to the kernel
    options = parser(slug).parse_args(argv)
    weights, device = _weights(options, pretrained), _device(options.device)
    preset = options.preset or ("quick" if device.type == "cpu" else "full")
    if threads := options.threads or (1 if device.type == "cpu" else None):
        torch.set_num_threads(threads)
    return Settings(
        preset=preset,
        device=device,
        seeds=tuple(range(options.seed, options.seed + seeds[preset])),
        out=options.out.resolve(),
        weights=weights,
        claims=options.claims is not None or options.search,
        only=tuple(options.claims or ()),
        search=options.search,
        picture=options.picture.resolve() if options.picture else None,
    )


def _weights(options: argparse.Namespace, pretrained: bool | None) -> str:
    """ "pretrained" where published weights are asked for, in words or by a picture.

    Raises SystemExit where the example has none to load.
    """
    asked = options.weights == "pretrained" or options.picture is not None
    if asked and pretrained is False:
        flag = "--picture" if options.picture is not None else "--weights pretrained"
        raise SystemExit(f"{flag}: this example loads no published weights; leave the flag out.")
    if options.picture is not None and not options.picture.is_file():
        raise SystemExit(f"--picture: there is no file {options.picture}")
    return "pretrained" if asked else "random"


def parser(slug: str) -> argparse.ArgumentParser:
    """Of an example, by its slug."""
    made = argparse.ArgumentParser(
        prog=f"{slug}.py",
        allow_abbrev=False,
        epilog=f"Without --device: the GPU where there is one, else the CPU. A notebook takes its arguments from {ARGUMENTS}.",
    )
    made.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to run")
    made.add_argument("--preset", choices=PRESETS, help="size of the run; quick on a CPU, full on a GPU")
    made.add_argument("--seed", type=_not_negative, default=0, metavar="N", help="the first seed (default 0)")
    out = PROJECT / "build" / "examples" / slug
    made.add_argument(
        "--out",
        type=Path,
        default=out,
        metavar="DIR",
        help="folder of record and figures (default build/examples/SLUG)",
    )
    made.add_argument(
        "--claims",
        nargs="*",
        metavar="NAME",
        help="run the experiments of claims/SLUG.py after the cells: all, or only those named (not for the site)",
    )
    made.add_argument(
        "--search", action="store_true", help="make the searches of the claims anew (long), and keep them"
    )
    made.add_argument(
        "--weights",
        choices=("random", "pretrained"),
        default="random",
        help="pretrained: load the published weights where the example can (default random: it trains its own)",
    )
    made.add_argument("--picture", type=Path, metavar="PATH", help="your photograph, for the published weights")
    made.add_argument(
        "--threads", type=_positive, metavar="N", help="CPU threads (default 1 on the CPU, beside a GPU all)"
    )
    return made


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _available() -> list[str]:
    """The devices that torch can give, best first."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, there in found.items() if there]


def _device(asked: str) -> torch.device:
    available = _available()
    if asked != "auto" and asked not in available:
        raise SystemExit(
            f"--device {asked} was asked for; torch {torch.__version__} finds only: {', '.join(available)}.\n"
            f"Run with --device {available[0]}, or install a torch build and a driver for {asked}."
        )
    return torch.device(available[0] if asked == "auto" else asked)
