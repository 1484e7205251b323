"""Anatomy: an architecture cut into a few stages, each with its output, its share of parameters and of MACs.

The cut is made from the tree of modules alone. It starts with the children of the model and takes apart whichever stage
holds most, as long as that leaves few enough rows. A row of equal blocks stays together: `blocks x 12`, and when it is
taken apart, `attn x 12` and `mlp x 12`. No torch here: `forward.py` makes the tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

MOST_ROWS = 12

WORTH_OPENING = 0.2
"""A stage that holds this share of the parameters or of the MACs is taken apart."""

NEGLIGIBLE = 5e-4
"""Stages under this share of both are summed up in the last row."""

REST = "everything else"

WHAT = ("parameters", "macs")


@dataclass(frozen=True)
class Part:
    """A module after a forward pass; parameters and MACs include those of its children."""

    name: str
    kind: str
    """Name of its class."""
    parameters: float
    macs: float
    shape: tuple[int, ...]
    """Of its first output, with the batch axis; empty where it was not called as a whole."""
    calls: int
    children: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One row: a module, or several equal ones."""

    path: tuple[str, ...]
    parts: tuple[Part, ...]

    @property
    def parameters(self) -> float:
        return sum(part.parameters for part in self.parts)

    @property
    def macs(self) -> float:
        return sum(part.macs for part in self.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        return next((part.shape for part in reversed(self.parts) if part.shape), ())

    @property
    def kind(self) -> str:
        return self.parts[0].kind

    @property
    def name(self) -> str:
        """`layers 2 / blocks / attn × 6`: the names that lead there, and how many modules they stand for."""
        shown: list[str] = []
        for name in self.path:
            if name.isdigit() and shown:
                shown[-1] += f" {name}"
            elif not name[0].isdigit() or not shown:
                shown.append(name.replace("_", " "))
        return " / ".join(shown) + (f" × {len(self.parts)}" if len(self.parts) > 1 else "")


def stages(model: Part) -> list[Stage]:
    """The stages of a model in the order of its modules, with `REST` last; their sums are those of the model."""
    rows = _worth(_opened(_unwrapped(Stage((), (model,)))), model)
    while opened := _open_largest(rows, model):
        rows = opened
    largest = sorted(rows, key=lambda row: -_share(row, model))[: MOST_ROWS - 1]
    rows = _without_common_prefix([row for row in rows if row in largest])
    rest = Part(
        REST, "", model.parameters - sum(row.parameters for row in rows), model.macs - sum(row.macs for row in rows),
        (), 0,
    )  # fmt: skip
    return [*rows, Stage((REST,), (rest,))] if rest.parameters > 0.5 or rest.macs > 0.5 else rows


def _open_largest(rows: list[Stage], model: Part) -> list[Stage] | None:
    """The rows with the largest that can be opened in pieces; None where none is worth it or none would fit."""
    for row in sorted(rows, key=lambda row: -_share(row, model)):
        if _share(row, model) < WORTH_OPENING:
            return None
        inner = _worth(_opened(_unwrapped(row)), model)
        divides = len(inner) > 1 and any(part.children for new in inner for part in new.parts)
        whole = all(sum(getattr(new, what) for new in inner) >= 0.97 * getattr(row, what) for what in WHAT)
        if divides and whole and len(rows) - 1 + len(inner) < MOST_ROWS:
            place = rows.index(row)
            return [*rows[:place], *inner, *rows[place + 1 :]]
    return None


def _worth(rows: Sequence[Stage], model: Part) -> list[Stage]:
    return [row for row in rows if _share(row, model) >= NEGLIGIBLE]


def _without_common_prefix(rows: list[Stage]) -> list[Stage]:
    """Rows without the names that all of their paths begin with: a wrapper says nothing."""
    while rows and all(len(row.path) > 1 and row.path[0] == rows[0].path[0] for row in rows):
        rows = [Stage(row.path[1:], row.parts) for row in rows]
    return rows


def _share(stage: Stage, model: Part) -> float:
    return max(stage.parameters / max(model.parameters, 1), stage.macs / max(model.macs, 1))


def _unwrapped(stage: Stage) -> Stage:
    """Descends while one child holds all but nothing of a stage: a wrapper is no stage."""
    while True:
        inner = _opened(stage)
        within = [row for row in inner if _holds_all(row, stage)]
        if len(within) != 1 or not any(part.children for part in within[0].parts):
            return stage
        stage = within[0]


def _holds_all(inner: Stage, outer: Stage) -> bool:
    return all(getattr(inner, what) >= 0.995 * getattr(outer, what) for what in WHAT)


def _opened(stage: Stage) -> list[Stage]:
    """The stages inside a stage: children of one module, in runs of equal ones, or the children that all have alike."""
    if len(stage.parts) == 1:
        return [Stage((*stage.path, _run_name(run)), tuple(run)) for run in _runs(stage.parts[0].children)]
    names = dict.fromkeys(child.name for part in stage.parts for child in part.children)
    found = []
    for name in names:
        alike = tuple(child for part in stage.parts for child in part.children if child.name == name)
        found.append(Stage((*stage.path, name), alike))
    return found


def _runs(children: Sequence[Part]) -> Iterator[list[Part]]:
    """Neighbours that are numbered, of one class and of one output, together; all others alone."""
    numbered = [(child.name.isdigit(), child.kind, child.shape) for child in children]
    for key, run in groupby(zip(numbered, children, strict=True), key=lambda pair: pair[0]):
        parts = [part for _, part in run]
        yield from [parts] if key[0] else [[part] for part in parts]


def _run_name(run: Sequence[Part]) -> str:
    return run[0].name if len(run) == 1 else f"{run[0].name}-{run[-1].name}"
