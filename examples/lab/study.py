"""Experiments on claims: arms x seeds x measures, the same search for every arm, paired differences, and their figures.

An *arm* is one way to do it, an *outcome* what was measured of one training: measures by name, NaN where undefined. What is
undefined, or fell below the floor of its experiment, stays null in the record, with its reason: no zero stands for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from lab.figures import Draw, Style, panels, seed_bars, seed_lines
from lab.options import PROJECT
from lab.run import Experiment, Run

Outcome = Mapping[str, float]
WIDTH = 5.4  # inches: labels of 9 points are 8 px high where a figure is scaled to 360 px
MOST_TICKS = 7  # positions of a curve that are all labelled
GROWTHS = 3  # steps that the grid of a search may grow by
SEARCH_SEEDS = (100, 101)  # never those that are reported


class Measure(NamedTuple):
    """What a measure is called in figures and meanings, its unit, and why it is undefined where it is."""

    label: str
    unit: str
    undefined: str = "undefined"


@dataclass(frozen=True)
class Scores:
    """What was measured.

    Attributes:
        seeds: of the run (S,).
        outcomes: of each arm, one for each seed.
        failed: of each arm, the seeds whose training does not count, with the reason.
    """

    seeds: tuple[int, ...]
    outcomes: Mapping[str, Sequence[Outcome]]
    failed: dict[str, dict[int, str]] = field(default_factory=dict)

    def values(self, measure: str, arm: str) -> list[float]:
        """One value for each seed, (S,); NaN where it is undefined or the training failed."""
        failed = self.failed.get(arm, {})
        pairs = zip(self.seeds, self.outcomes[arm], strict=True)
        return [math.nan if seed in failed else outcome[measure] for seed, outcome in pairs]

    def renamed(self, names: Mapping[str, str]) -> Scores:
        """The same, with measures under other names."""
        outcomes = {
            arm: [{names.get(name, name): value for name, value in each.items()} for each in seeds]
            for arm, seeds in self.outcomes.items()
        }
        return Scores(self.seeds, outcomes, self.failed)

    def minus(self, measure: str, a: str, b: str, of_b: str | None = None) -> list[float]:
        """Arm `a` minus arm `b`, seed by seed, (S,); `of_b` is another measure for the second one."""
        pairs = zip(self.values(measure, a), self.values(of_b or measure, b), strict=True)
        return [x - y for x, y in pairs]

    def counted(self, arm: str, values: Sequence[float]) -> list[float]:
        """Values of an arm, one for each seed (S,), with NaN where its training failed."""
        failed = self.failed.get(arm, {})
        return [math.nan if seed in failed else value for seed, value in zip(self.seeds, values, strict=True)]

    def reasons(self, undefined: str, *arms: str) -> dict[int, str]:
        """For each seed why a value of these arms may be missing."""
        found = dict.fromkeys(self.seeds, undefined)
        for arm in arms:
            found |= {seed: f"{arm}: {reason}" for seed, reason in self.failed.get(arm, {}).items()}
        return found

    def floor(self, what: str, measure: str, value: float, arms: Iterable[str]) -> tuple[str, float]:
        """Counts trainings below `value` as failed; returns what `Run.experiment` takes as its floor."""
        for arm in arms:
            for seed, outcome in zip(self.seeds, self.outcomes[arm], strict=True):
                if not outcome[measure] >= value:
                    self.failed.setdefault(arm, {})[seed] = f"{what} is {outcome[measure]:.3g}, below {value:g}"
        return what, value


def measured(run: Run, arms: Iterable[str], measure: Callable[[str, int], Outcome]) -> Scores:
    """Calls ``measure(arm, seed)`` for every arm and every seed of the run."""
    jobs = [(arm, seed) for arm in arms for seed in run.seeds]
    outcomes: dict[str, list[Outcome]] = {}
    for arm, seed in run.progress(jobs, what="training", total=len(jobs)):
        outcomes.setdefault(arm, []).append(measure(arm, seed))
    return Scores(run.seeds, outcomes)


def opened(
    run: Run,
    experiment: Callable[[Run], None],
    *,
    data: str,
    sizes: Mapping[str, int],
    steps: int,
    floor: tuple[str, float] | None = None,
    power: Mapping[str, Any] | None = None,
    cannot_show: str | None = None,
) -> Experiment:
    """Opens the experiment that a function makes: its name, its docstring as the question, its arms and their searches.

    `sizes` are the parameters of each arm; see `Run.experiment` for the rest.
    """
    arms = {arm: {"parameters": count, "steps": steps} for arm, count in sizes.items()}
    found = run.experiment(
        experiment.__name__,
        question=str(experiment.__doc__),
        data=data,
        parameters=max(sizes.values()),
        steps=steps,
        arms=arms,
        floor=floor,
        power=power,
        cannot_show=cannot_show,
    )
    found.searches.extend(searches_of(run, sizes))
    return found


def record(experiment: Experiment, scores: Scores, measures: Mapping[str, Measure], arms: Mapping[str, str]) -> None:
    """Records each measure of each arm as ``<measure>_<arm>``; `arms` maps arms to the names that readers see."""
    for name, (label, unit, undefined) in measures.items():
        for arm, called in arms.items():
            values, failed = scores.values(name, arm), scores.reasons(undefined, arm)
            experiment.result(f"{name}_{arm}", values, unit=unit, meaning=f"{label}: {called}", failed=failed)


def difference(
    experiment: Experiment, name: str, scores: Scores, measure: str, a: str, b: str, *, unit: str, meaning: str
) -> None:
    """Records arm `a` minus arm `b`, paired by seed."""
    values, failed = scores.minus(measure, a, b), scores.reasons("undefined in one of the two", a, b)
    experiment.result(name, values, unit=unit, meaning=meaning, failed=failed)


# Searches


def search(
    run: Run, what: str, arms: Iterable[str], grid: Sequence[float], score: Callable[[str, float, int], float]
) -> dict[str, float]:
    """The best value of `grid` for each arm, by the mean of ``score(arm, value, seed)`` on validation data, high is good.

    Searches are long, so they are made only with ``--search`` and kept beside the claims, with grid and scores. Where the
    best value of any arm lies at an end, the grid grows by a step at that end, for all arms, at most `GROWTHS` times.
    A value with which a training diverges is the worst of its grid; it is kept without a score.

    Raises:
        ValueError: what is kept does not fit the arms, or starts from another grid.
        FloatingPointError: an arm diverges with every value.
    """
    path, names = _kept_at(run.slug), list(arms)
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if run.settings.search:
        kept[what] = {"preset": run.preset, "seeds": list(SEARCH_SEEDS), "start": list(grid)}
        kept[what] |= {"arms": _searched(run, what, names, grid, score)}
        if run.preset != "smoke":
            path.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    if what not in kept or kept[what]["start"] != list(grid) or set(kept[what]["arms"]) != set(names):
        raise ValueError(f"{path.name} holds no search for {what} over {list(grid)} of {names}; make it with --search")
    return {arm: kept[what]["arms"][arm]["chosen"] for arm in names}


def searches_of(run: Run, arms: Iterable[str]) -> list[dict[str, Any]]:
    """The searches of some arms as the record holds them."""
    path = _kept_at(run.slug)
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    wanted = set(arms)
    return [
        {"what": what, "arm": arm, "seeds": each["seeds"], "preset": each["preset"], **found}
        for what, each in kept.items()
        for arm, found in each["arms"].items()
        if arm in wanted
    ]


def _kept_at(slug: str) -> Path:
    return PROJECT / "examples" / "claims" / f"{slug}.searches.json"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _tried(score: Callable[[str, float, int], float], arm: str, value: float) -> float:
    """The mean score over the seeds of a search, -inf where a training diverges."""
    try:
        mean = fmean(score(arm, value, seed) for seed in SEARCH_SEEDS)
    except FloatingPointError:
        return -math.inf
    return mean if math.isfinite(mean) else -math.inf


def _searched(
    run: Run, what: str, arms: Sequence[str], grid: Sequence[float], score: Callable[[str, float, int], float]
) -> dict[str, dict[str, object]]:
    scores: dict[tuple[str, float], float] = {}
    for growths in range(GROWTHS + 1):
        jobs = [(arm, value) for arm in arms for value in grid if (arm, value) not in scores]
        for arm, value in run.progress(jobs, what=f"search of {what}", total=len(jobs)):
            scores[arm, value] = _tried(score, arm, value)
        best = {arm: max(grid, key=lambda value, arm=arm: scores[arm, value]) for arm in arms}  # type: ignore[misc]
        below = [_rounded(grid[0] ** 2 / grid[1])] if grid[0] in best.values() else []
        above = [_rounded(grid[-1] ** 2 / grid[-2])] if grid[-1] in best.values() else []
        if growths == GROWTHS or not below + above:
            break
        grid = [*below, *grid, *above]
    used = sorted({value for _, value in scores})
    if lost := [arm for arm in arms if scores[arm, best[arm]] == -math.inf]:
        raise FloatingPointError(f"search of {what}: {', '.join(lost)} diverges with every value of {used}")
    return {
        arm: {
            "grid": used,
            "scores": [round(each, 4) if math.isfinite(each := scores[arm, value]) else None for value in used],
            "chosen": best[arm],
            "at_edge": best[arm] in (used[0], used[-1]),
        }
        for arm in arms
    }


# Figures


def draw_bars(style: Style, scores: Scores, measures: Mapping[str, Measure], arms: Mapping[str, str]) -> Figure:
    """A panel of bars for each measure, side by side where they are few."""
    columns = 2 if len(measures) > 1 and len(arms) < 3 else 1  # labels stay readable on a phone
    rows = -(-len(measures) // columns)
    figure, axes = panels(rows, columns, width=WIDTH, height=2.4 * rows)
    for ax in axes.flat[len(measures) :]:
        ax.set_axis_off()
    for ax, (name, measure) in zip(axes.flat, measures.items(), strict=False):
        values = [[value for value in scores.values(name, arm) if not math.isnan(value)] for arm in arms]
        there = [(label, row) for label, row in zip(arms.values(), values, strict=True) if row]
        seed_bars(ax, [label for label, _ in there], [row for _, row in there])
        ax.set_title(f"{measure.label} ({measure.unit})" if measure.unit else measure.label)
        ax.tick_params(axis="x", labelsize=9)
    return figure


def bars(scores: Scores, measures: Mapping[str, Measure], arms: Mapping[str, str]) -> Draw:
    """`draw_bars` as `Run.figure` takes it; labels of arms may hold line breaks."""
    return partial(draw_bars, scores=scores, measures=measures, arms=arms)


Curves = Mapping[str, Sequence[Sequence[tuple[float, float]]]]
"""By label, for each seed the points (x, y) of its curve, at the same x."""


def draw_curves(style: Style, curves: Curves, x: str, y: str) -> Figure:
    figure, axes = panels(1, 1, width=WIDTH, height=3.2)
    for (label, seeds), line in zip(curves.items(), ("-", "--", ":", "-."), strict=False):
        rows = np.array(seeds, dtype=float)  # (S, X, 2)
        seed_lines(axes[0, 0], rows[0, :, 0], rows[:, :, 1], label, linestyle=line)
    axes[0, 0].set(xlabel=x, ylabel=y)
    if axes[0, 0].get_ylim()[1] > 0 and not any((np.array(each)[:, :, 1] < 0).any() for each in curves.values()):
        axes[0, 0].set_ylim(0, None)
    if len(curves) > 1:
        axes[0, 0].legend()
    if len(rows[0]) <= MOST_TICKS:
        axes[0, 0].set_xticks(rows[0, :, 0])
    return figure


def curves(by_label: Curves, *, x: str, y: str) -> Draw:
    """`draw_curves` as `Run.figure` takes it: means over seeds, bands from the lowest to the highest."""
    return partial(draw_curves, curves=by_label, x=x, y=y)
