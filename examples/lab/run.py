"""What every example shares around its idea: command line, progress, results, figures and the record of the run.

An example starts with ``run = Run.start("unet")``, shows what its cells find (`Run.show`, `Run.figure`), and ends with
``run.finish()``. With ``--claims`` that calls the experiments of ``claims/unet.py``, which open experiments, give each
its results (one value per seed) and its figures. The claims of a card are checked against the one record of both.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

from lab import entries, machine, options
from lab.device import prepare
from lab.figures import Draw, save
from lab.options import SEEDS, Settings
from lab.training import trained

T = TypeVar("T")

SCHEMA = 2


@dataclass
class Experiment:
    """One question of a run, with its results and figures; made by `Run.experiment`.

    Attributes:
        run: that it belongs to.
        name: unique in the run.
        question: that the experiment answers, one sentence.
        data: what it is trained and tested on, with sizes.
        parameters: of the model; of the largest, where several are compared.
        steps: optimisation steps of each training.
        arms: for each arm its "parameters" and "steps", which should be equal.
        floor: "what" is measured and the "value" below which a training counts as failed.
        power: a control for which the effect is seen: {"control": sentence, "result": name, "above": bound}, or "below".
        cannot_show: what the experiment is too small to show, one sentence.
        searches: how what was chosen was chosen.
        results, figures: their names.
        failures: seeds that do not count, with the reason.
    """

    run: Run
    name: str
    question: str
    data: str
    parameters: int | None = None
    steps: int | None = None
    arms: Mapping[str, Mapping[str, int]] | None = None
    floor: Mapping[str, Any] | None = None
    power: Mapping[str, Any] | None = None
    cannot_show: str | None = None
    searches: list[dict[str, Any]] = field(default_factory=list, init=False)
    results: list[str] = field(default_factory=list, init=False)
    figures: list[str] = field(default_factory=list, init=False)
    failures: dict[int, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        entries.check_text(f"experiment {self.name!r}", question=self.question, data=self.data)
        entries.check_power(self.name, self.power)

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
        self.run.add_result(
            name,
            values,
            unit=unit,
            meaning=meaning,
            exact=exact,
            experiment=self.name,
            failed={**failed, **self.failures},
        )
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
        self.run.figure(name, draw, caption=caption, alt=alt, experiment=self.name)
        self.figures.append(name)

    def described(self) -> dict[str, Any]:
        """The experiment as the record holds it."""
        unsaid = ("run", "failures")
        told = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in unsaid}
        return told | {"arms": self.arms or {}}


@dataclass(eq=False)
class Run:
    """One run of one example; collects results and figures, and writes the record.

    Attributes:
        slug: of the example and its card.
        settings: from the command line.
        experiments, results, figures, shown: what it collected so far.
        started, clock, trained_before: the time, a clock that nobody sets, and the trainings when it began.
    """

    slug: str
    settings: Settings
    experiments: list[Experiment] = field(default_factory=list, init=False)
    results: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    figures: list[dict[str, Any]] = field(default_factory=list, init=False)
    shown: list[dict[str, str]] = field(default_factory=list, init=False)
    started: datetime = field(default_factory=partial(datetime.now, UTC), init=False)
    clock: float = field(default_factory=time.perf_counter, init=False)
    trained_before: int = field(default_factory=partial(len, trained), init=False)

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
            argv: arguments; those of the process where none are given, in a notebook those of `lab.options.ARGUMENTS`.
            pretrained: whether the example can load published weights; False refuses them, None leaves it to the example.

        Raises:
            SystemExit: an argument is wrong, or torch cannot give the device asked for.
        """
        run = cls(slug, options.read(slug, seeds, argv, pretrained))
        prepare(run.device)
        return run

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

    def experiment(self, name: str, *, floor: tuple[str, float] | None = None, **told: Any) -> Experiment:
        """Opens an experiment; `told` are the other attributes of an `Experiment`.

        Args:
            name: unique in the run, lower case with underscores.
            floor: what is measured and the value below which a training counts as failed.

        Raises:
            ValueError: the name is malformed or taken, a text is empty, or a control is not said in full.
        """
        entries.check_name(name, [each.name for each in self.experiments], "experiment")
        limit = dict(zip(("what", "value"), floor, strict=True)) if floor else None
        self.experiments.append(Experiment(self, name, floor=limit, **told))
        return self.experiments[-1]

    def show(self, name: str, shown: str | Sequence[Mapping[str, object]]) -> None:
        """Prints what a cell found, and keeps it for the page.

        Args:
            name: unique among the texts of the run, lower case with underscores.
            shown: a text, or a table as one mapping for each row, all with the same keys.

        Raises:
            ValueError: the name is malformed or taken, or there is nothing to show.
        """
        entries.check_name(name, [each["name"] for each in self.shown], "text")
        text = shown if isinstance(shown, str) else entries.table(shown)
        entries.check_text(f"text {name!r}", shown=text)
        print(text)
        self.shown.append({"name": name, "text": text})

    def figure(self, name: str, draw: Draw, *, caption: str, alt: str, experiment: str | None = None) -> None:
        """Draws a picture of the concept, which belongs to no experiment; see `Experiment.figure`."""
        entries.check_figure(name, [each["name"] for each in self.figures], caption, alt)
        light, dark, width, height = save(draw, self.out / "figures", name)
        paths = {"light": light.relative_to(self.out).as_posix(), "dark": dark.relative_to(self.out).as_posix()}
        told = {"name": name, "caption": caption, "alt": alt, "experiment": experiment}
        self.figures.append({**told, **paths, "width": width, "height": height})
        _show_in_notebook(light)

    def add_result(self, name: str, values: Sequence[float | None], **told: Any) -> None:
        """Keeps a result; see `Experiment.result`."""
        entries.check_name(name, self.results, "result")
        self.results[name] = entries.result(name, values, seeds=self.seeds, **told)

    def progress(self, iterable: Iterable[T], *, what: str, total: int | None = None) -> Iterable[T]:
        """Passes the items on, with a progress bar on stderr, which moves rarely where that is no terminal."""
        return _with_bar(iterable, what, total)

    def finish(self) -> Path:
        """Runs the experiments where asked for, writes ``record.json`` in one move, and returns its path."""
        if self.settings.claims:
            _test(self)
        _write(path := self.out / "record.json", described(self))
        print(*(f"figure  {self.out / each['light']}" for each in self.figures), f"record  {path}", sep="\n")
        return path


def described(run: Run) -> dict[str, Any]:
    """A run as its record holds it."""
    seconds = time.perf_counter() - run.clock
    tested = bool(run.experiments) and not run.settings.only  # all of it, so that it can back its card
    return {
        "schema": SCHEMA,
        "claims": tested,
        "needed": machine.needed(run.device, seconds) if tested and run.preset == "full" else None,
        "trainings": [each._asdict() for each in trained[run.trained_before :]],
        "shown": run.shown,
        "slug": run.slug,
        "preset": run.preset,
        "device": machine.described(run.device),
        "versions": machine.versions(),
        "seeds": list(run.seeds),
        "seconds": round(seconds, 3),
        "started": run.started.isoformat(timespec="seconds"),
        "weights": run.settings.weights,
        "experiments": [each.described() for each in run.experiments],
        "results": run.results,
        "figures": run.figures,
    } | machine.peak_memory(run.device)


def _write(path: Path, record: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".record.{os.getpid()}.json")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _with_bar(iterable: Iterable[T], what: str, total: int | None) -> Iterable[T]:
    live = sys.stderr.isatty()
    pace = {"mininterval": 0.1, "maxinterval": 10.0} if live else {"mininterval": 30.0, "maxinterval": 60.0}
    bar: Iterable[T] = tqdm(
        iterable, desc=what, total=total, file=sys.stderr, dynamic_ncols=live, ascii=not live, **pace
    )
    return bar


def _test(run: Run) -> None:
    """Calls the experiments of ``claims/<slug>.py``, which take the ideas from the example that is running."""
    main = sys.modules["__main__"]
    if Path(getattr(main, "__file__", None) or run.slug).stem == run.slug:  # a notebook has no file
        sys.modules.setdefault(run.slug, main)  # so that `from detr import ...` makes no second copy
    experiments = experiments_of(run.slug)
    if wrong := set(run.settings.only) - set(experiments):
        raise SystemExit(f"--claims: no experiment {', '.join(sorted(wrong))}; there are {', '.join(experiments)}")
    for name, experiment in experiments.items():
        if not run.settings.only or name in run.settings.only:
            started = time.perf_counter()
            experiment(run)
            print(f"claims  {name}, {time.perf_counter() - started:.0f} s")


def experiments_of(slug: str) -> dict[str, Callable[[Run], None]]:
    """The experiments of ``claims/<slug>.py`` by name, in their order."""
    return {each.__name__: each for each in importlib.import_module(f"claims.{slug}").EXPERIMENTS}


def _show_in_notebook(path: Path) -> None:
    if "ipykernel" not in sys.modules:
        return
    from IPython.display import SVG, Image, display  # type: ignore[import-not-found,unused-ignore]

    display(SVG(str(path)) if path.suffix == ".svg" else Image(str(path), width=700))
