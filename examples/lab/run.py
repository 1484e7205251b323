"""What every example shares around its idea: command line, progress, results, figures and the record of the run.

An example starts with ``run = Run.start("unet")``, shows what its cells find (`Run.show`, `Run.figure`), and ends with
``run.finish()``. With ``--claims`` that calls the experiments of ``claims/unet.py``, which open experiments, give each
its results (one value per seed) and its figures. The claims of a card are checked against the one record of both.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

from lab.device import float32_of, prepare
from lab.figures import Draw, save
from lab.training import trained

T = TypeVar("T")

SCHEMA = 2
PRESETS = ("smoke", "quick", "full")
SEEDS: Mapping[str, int] = MappingProxyType({"smoke": 1, "quick": 3, "full": 5})
PACKAGES = ("torch", "torchvision", "timm", "numpy")
NAME = re.compile(r"[a-z][a-z0-9_]*")
SHORTEST_ALT = 20  # characters; less cannot say what a figure shows
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


class Run:
    """One run of one example; collects results and figures, and writes the record.

    Attributes:
        slug: of the example and its card.
        settings: from the command line.
    """

    def __init__(self, slug: str, settings: Settings) -> None:
        self.slug = slug
        self.settings = settings
        self._trained_before = len(trained)
        self._started = datetime.now(UTC)
        self._clock = time.perf_counter()
        self._experiments: list[Experiment] = []
        self._results: dict[str, dict[str, Any]] = {}
        self._figures: list[dict[str, Any]] = []
        self._shown: list[dict[str, str]] = []

    @classmethod
    def start(
        cls,
        slug: str,
        *,
        seeds: Mapping[str, int] = SEEDS,
        argv: Sequence[str] | None = None,
        pretrained: bool | None = None,
    ) -> Run:
        """Reads the command line, and sets the number of CPU threads and the precision of a GPU.

        Args:
            slug: of the example and its card.
            seeds: number of seeds for each preset.
            argv: arguments; those of the process where none are given, in a notebook those of `ARGUMENTS`.
            pretrained: whether the example can load published weights. Where False, asking for them is refused; None
                leaves it to the example.

        Raises:
            SystemExit: an argument is wrong, or torch cannot give the device asked for.
        """
        if argv is None and "ipykernel" in sys.modules:
            argv = shlex.split(os.environ.get(ARGUMENTS, ""))  # in a notebook, sys.argv belongs to the kernel
        options = _parser(slug).parse_args(argv)
        weights = _weights(options, pretrained)
        device = _device(options.device)
        preset = options.preset or ("quick" if device.type == "cpu" else "full")
        if threads := options.threads or (1 if device.type == "cpu" else None):
            torch.set_num_threads(threads)
        prepare(device)
        numbers = tuple(range(options.seed, options.seed + seeds[preset]))
        out, only = options.out.resolve(), tuple(options.claims or ())
        claims = options.claims is not None or options.search
        picture = options.picture.resolve() if options.picture else None
        return cls(slug, Settings(preset, device, numbers, out, weights, claims, only, options.search, picture))

    @property
    def device(self) -> torch.device:
        """Where the models run."""
        return self.settings.device

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds; every result has one value for each, in this order."""
        return self.settings.seeds

    @property
    def out(self) -> Path:
        """Folder of the record and the figures."""
        return self.settings.out

    @property
    def preset(self) -> str:
        """ "smoke", "quick" or "full"."""
        return self.settings.preset

    def experiment(
        self,
        name: str,
        *,
        question: str,
        data: str,
        parameters: int | None = None,
        steps: int | None = None,
        arms: Mapping[str, Mapping[str, int]] | None = None,
        floor: tuple[str, float] | None = None,
        power: Mapping[str, Any] | None = None,
        cannot_show: str | None = None,
    ) -> Experiment:
        """Opens an experiment.

        Args:
            name: unique in the run, lower case with underscores.
            question: that the experiment answers, one sentence.
            data: what it is trained and tested on, with sizes.
            parameters: of the model; of the largest, where several are compared.
            steps: optimisation steps of each training.
            arms: for each arm its "parameters" and "steps", which should be equal.
            floor: what is measured and the value below which a training counts as failed.
            power: a control for which the effect is seen: {"control": sentence, "result": name, "above": bound}, or "below".
            cannot_show: what the experiment is too small to show, one sentence.

        Raises:
            ValueError: the name is malformed or taken, or a text is empty.
        """
        _check_name(name, [each.name for each in self._experiments], "experiment")
        _check_text(f"experiment {name!r}", question=question, data=data)
        if power is not None and set(power) not in ({"control", "result", "above"}, {"control", "result", "below"}):
            raise ValueError(
                f"experiment {name!r}: power needs control, result, and above or below, not {sorted(power)}"
            )
        limit = {"what": floor[0], "value": floor[1]} if floor else None
        sizes = {arm: dict(each) for arm, each in (arms or {}).items()}
        control = dict(power) if power else None
        experiment = Experiment(self, name, question, data, parameters, steps, sizes, limit, control, cannot_show)
        self._experiments.append(experiment)
        return experiment

    def show(self, name: str, shown: str | Sequence[Mapping[str, object]]) -> None:
        """Prints what a cell found, and keeps it for the page.

        Args:
            name: unique among the texts of the run, lower case with underscores.
            shown: a text, or a table as one mapping for each row, all with the same keys.

        Raises:
            ValueError: the name is malformed or taken, or there is nothing to show.
        """
        _check_name(name, [each["name"] for each in self._shown], "text")
        text = shown if isinstance(shown, str) else _table(shown)
        _check_text(f"text {name!r}", shown=text)
        print(text)
        self._shown.append({"name": name, "text": text})

    def figure(self, name: str, draw: Draw, *, caption: str, alt: str) -> None:
        """Draws a picture of the concept, which belongs to no experiment; see `Experiment.figure`."""
        self._add_figure(name, draw, caption, alt, experiment=None)

    def progress(self, iterable: Iterable[T], *, what: str, total: int | None = None) -> Iterable[T]:
        """Passes the items on, with a progress bar on stderr, which moves rarely where that is no terminal."""
        live = sys.stderr.isatty()
        bar: Iterable[T] = tqdm(
            iterable,
            desc=what,
            total=total,
            file=sys.stderr,
            mininterval=0.1 if live else 30.0,
            maxinterval=10.0 if live else 60.0,
            dynamic_ncols=live,
            ascii=not live,
        )
        return bar

    def finish(self) -> Path:
        """Runs the experiments where asked for, writes ``record.json`` in one move, and returns its path."""
        if self.settings.claims:
            self._test()
        path = self.out / "record.json"
        text = json.dumps(self._record(), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
        self.out.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".record.{os.getpid()}.json")
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)
        for entry in self._figures:
            print(f"figure  {self.out / entry['light']}")
        print(f"record  {path}")
        return path

    def _test(self) -> None:
        """Calls the experiments of ``claims/<slug>.py``, which take the ideas from the example that is running."""
        main = sys.modules["__main__"]
        if Path(getattr(main, "__file__", None) or self.slug).stem == self.slug:  # a notebook has no file
            sys.modules.setdefault(self.slug, main)  # so that `from detr import ...` makes no second copy
        experiments = experiments_of(self.slug)
        if wrong := set(self.settings.only) - set(experiments):
            raise SystemExit(f"--claims: no experiment {', '.join(sorted(wrong))}; there are {', '.join(experiments)}")
        for name, experiment in experiments.items():
            if not self.settings.only or name in self.settings.only:
                started = time.perf_counter()
                experiment(self)
                print(f"claims  {name}, {time.perf_counter() - started:.0f} s")

    def _all_tested(self) -> bool:
        """Whether every experiment of the example ran, so that the record can back its card."""
        return bool(self._experiments) and not self.settings.only

    def _needed(self) -> dict[str, Any] | None:
        """What the preset "full" needed, with all experiments, where this run has just shown it; else None."""
        if self.preset != "full" or self.device.type != "cuda" or not self._all_tested():
            return None
        gigabytes = torch.cuda.max_memory_reserved(self.device) / 1e9
        minutes = (time.perf_counter() - self._clock) / 60
        card = torch.cuda.get_device_name(self.device)
        return {"memory_gb": round(gigabytes, 1), "minutes": math.ceil(minutes), "card": card}

    def _record(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "claims": self._all_tested(),
            "needed": self._needed(),
            "trainings": [each._asdict() for each in trained[self._trained_before :]],
            "shown": self._shown,
            "slug": self.slug,
            "preset": self.settings.preset,
            "device": _described_device(self.device),
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
            "seeds": list(self.seeds),
            "seconds": round(time.perf_counter() - self._clock, 3),
            "started": self._started.isoformat(timespec="seconds"),
            "weights": self.settings.weights,
            "experiments": [each.described() for each in self._experiments],
            "results": self._results,
            "figures": self._figures,
        } | _peak_memory(self.device)

    def _add_result(
        self,
        name: str,
        values: Sequence[float | None],
        unit: str,
        meaning: str,
        exact: bool,
        experiment: str,
        failed: Mapping[int, str],
    ) -> None:
        _check_name(name, self._results, "result")
        _check_text(f"result {name!r}", meaning=meaning)
        numbers = [None if value is None or math.isnan(value) else float(value) for value in values]
        wanted = 1 if exact else len(self.seeds)
        if len(numbers) != wanted:
            reason = "an exact result" if exact else f"{wanted} seeds"
            raise ValueError(f"result {name!r}: {len(numbers)} values for {reason}; expected {wanted}")
        missing = [] if exact else [seed for seed, number in zip(self.seeds, numbers, strict=True) if number is None]
        defined = [number for number in numbers if number is not None]
        if not all(map(math.isfinite, defined)) or set(missing) - set(failed) or (exact and not defined):
            raise ValueError(
                f"result {name!r}: {list(values)} holds a value that is not finite, and no reason is given"
            )
        self._results[name] = {
            "values": numbers,
            "failed": [{"seed": seed, "reason": failed[seed]} for seed in missing],
            "mean": statistics.fmean(defined) if defined else None,
            "std": statistics.pstdev(defined) if defined else None,
            "unit": unit,
            "meaning": meaning,
            "exact": exact,
            "experiment": experiment,
        }

    def _add_figure(self, name: str, draw: Draw, caption: str, alt: str, experiment: str | None) -> None:
        _check_name(name, [each["name"] for each in self._figures], "figure")
        _check_text(f"figure {name!r}", caption=caption, alt=alt)
        if len(alt.strip()) < SHORTEST_ALT:
            raise ValueError(
                f"figure {name!r}: alt must say what the figure shows, in {SHORTEST_ALT} or more characters"
            )
        light, dark, width, height = save(draw, self.out / "figures", name)
        entry = {
            "name": name,
            "light": light.relative_to(self.out).as_posix(),
            "dark": dark.relative_to(self.out).as_posix(),
            "caption": caption,
            "alt": alt,
            "experiment": experiment,
            "width": width,
            "height": height,
        }
        self._figures.append(entry)
        _show_in_notebook(light)


@dataclass
class Experiment:
    """One question of a run, with its results and figures; made by `Run.experiment`."""

    run: Run
    name: str
    question: str
    data: str
    parameters: int | None = None
    steps: int | None = None
    arms: dict[str, dict[str, int]] = field(default_factory=dict)
    floor: dict[str, Any] | None = None
    power: dict[str, Any] | None = None
    cannot_show: str | None = None
    searches: list[dict[str, Any]] = field(default_factory=list, init=False)
    results: list[str] = field(default_factory=list, init=False)
    figures: list[str] = field(default_factory=list, init=False)
    failures: dict[int, str] = field(default_factory=dict, init=False)
    """Seeds that do not count, with the reason."""

    def check_floor(self, *trained: Sequence[float]) -> None:
        """Counts seeds as failed of which a training lies below the floor; no later result has a value for them.

        Args:
            trained: of each arm what the floor is about, one value for each seed (S,).

        Raises:
            ValueError: the experiment has no floor.
        """
        if self.floor is None:
            raise ValueError(f"experiment {self.name!r} has no floor")
        for values in trained:
            for seed, value in zip(self.run.seeds, values, strict=True):
                if not value >= self.floor["value"]:
                    reason = f"{self.floor['what']} is {value:.3g}, below {self.floor['value']:g}"
                    self.failures.setdefault(seed, reason)

    def result(
        self,
        name: str,
        values: Sequence[float | None],
        *,
        unit: str,
        meaning: str,
        exact: bool = False,
        failed: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """Records a result, which claims of the card may refer to.

        Args:
            name: unique in the run, lower case with underscores.
            values: one per seed, in the order of `Run.seeds`; a single one where `exact`. None or NaN where it is
                undefined: never a number that stands for nothing.
            unit: e.g. "%", "ms", "px"; "" for a plain ratio.
            meaning: what the value says, one sentence.
            exact: counted or derived, so that seeds do not matter.
            failed: for each seed without a value the reason.

        Raises:
            ValueError: a wrong number of values, one that is undefined without a reason or infinite, or a name that is
                malformed or taken.
        """
        if self.failures and not exact:
            counted = zip(self.run.seeds, values, strict=True)
            values = [None if seed in self.failures else value for seed, value in counted]
        self.run._add_result(name, values, unit, meaning, exact, self.name, {**failed, **self.failures})
        self.results.append(name)

    def figure(self, name: str, draw: Draw, *, caption: str, alt: str) -> None:
        """Draws a figure in light and dark.

        Args:
            name: unique in the run, lower case with underscores.
            draw: called with each `Style`; returns a matplotlib figure.
            caption: shown below the figure.
            alt: what the figure shows, for those who do not see it; at least 20 characters.

        Raises:
            ValueError: the name is malformed or taken, or a text is empty or too short.
        """
        self.run._add_figure(name, draw, caption, alt, self.name)
        self.figures.append(name)

    def described(self) -> dict[str, Any]:
        """The experiment as the record holds it."""
        return {
            "name": self.name,
            "question": self.question,
            "data": self.data,
            "parameters": self.parameters,
            "steps": self.steps,
            "arms": self.arms,
            "searches": list(self.searches),
            "floor": self.floor,
            "power": self.power,
            "cannot_show": self.cannot_show,
            "results": list(self.results),
            "figures": list(self.figures),
        }


def experiments_of(slug: str) -> dict[str, Callable[[Run], None]]:
    """The experiments of ``claims/<slug>.py`` by name, in their order."""
    return {each.__name__: each for each in importlib.import_module(f"claims.{slug}").EXPERIMENTS}


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as lines with aligned columns, numbers to the right."""
    if not rows:
        return ""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    right = [isinstance(value, int | float) for value in rows[0].values()]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = (
        "  ".join(f"{text:>{w}}" if r else f"{text:<{w}}" for text, w, r in zip(line, widths, right, strict=True))
        for line in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


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


def _parser(slug: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{slug}.py",
        allow_abbrev=False,
        epilog=f"Without --device: the GPU where there is one, else the CPU. A notebook takes its arguments from {ARGUMENTS}.",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to run")
    parser.add_argument("--preset", choices=PRESETS, help="size of the run; quick on a CPU, full on a GPU")
    parser.add_argument("--seed", type=_not_negative, default=0, metavar="N", help="the first seed (default 0)")
    out = PROJECT / "build" / "examples" / slug
    parser.add_argument(
        "--out",
        type=Path,
        default=out,
        metavar="DIR",
        help="folder of record and figures (default build/examples/SLUG)",
    )
    parser.add_argument(
        "--claims",
        nargs="*",
        metavar="NAME",
        help="run the experiments of claims/SLUG.py after the cells: all, or only those named (not for the site)",
    )
    parser.add_argument(
        "--search", action="store_true", help="make the searches of the claims anew (long), and keep them"
    )
    parser.add_argument(
        "--weights",
        choices=("random", "pretrained"),
        default="random",
        help="pretrained: load the published weights where the example can (default random: it trains its own)",
    )
    parser.add_argument("--picture", type=Path, metavar="PATH", help="your photograph, for the published weights")
    parser.add_argument(
        "--threads", type=_positive, metavar="N", help="CPU threads (default 1 on the CPU, beside a GPU all)"
    )
    return parser


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


def _described_device(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "class": device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "float32": float32_of(device),
    }


def _cpu_name() -> str:
    """Model of the processor (on Apple silicon also that of the GPU)."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            return match[1].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _peak_memory(device: torch.device) -> dict[str, float | None]:
    """Most memory that the process and, on CUDA, the device held, in MB (10^6 bytes); None where unknown."""
    peak: dict[str, float | None] = {"peak_memory_mb": None}
    try:
        import resource  # not on Windows
    except ImportError:
        pass
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
        peak["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
    if device.type == "cuda":
        peak["peak_device_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return peak


def _check_name(name: str, taken: Iterable[str], kind: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(f"{kind} name {name!r} must be lower case letters, digits and underscores, a letter first")
    if name in taken:
        raise ValueError(f"{kind} {name!r} exists already; every {kind} of a run needs its own name")


def _check_text(where: str, **texts: str) -> None:
    for key, text in texts.items():
        if not text.strip():
            raise ValueError(f"{where}: {key} must not be empty")


def _show_in_notebook(path: Path) -> None:
    if "ipykernel" not in sys.modules:
        return
    from IPython.display import SVG, Image, display  # type: ignore[import-not-found,unused-ignore]

    display(SVG(str(path)) if path.suffix == ".svg" else Image(str(path), width=700))
