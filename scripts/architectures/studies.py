"""Studies of architectures: anatomy and scaling, measured once and kept in build/ by the hash of what they depend on.

Reading them needs neither torch nor matplotlib; writing them needs both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from scripts.architectures import counts
from scripts.architectures.scaling import AXES, LABELS, SWEEPS, Measured, Sweep
from scripts.cards.library import Library
from scripts.cards.schema import Card
from scripts.cards.values import si
from scripts.files import write
from scripts.fingerprint import of_module
from scripts.project import Project

FIGURES = {
    "backbones": ("vit", "swin", "dinov2", "sam", "internimage", "unet"),
    "detectors": ("faster-rcnn", "mask-rcnn", "improved-mask-rcnn", "detr", "mask-dino", "yolov8", "centernet"),
}
"""Cards whose sweeps over pixels share a figure; the sweeps over another axis have one figure per axis."""


@dataclass(frozen=True)
class Studies:
    """What was studied: anatomies by slug, sweeps, and the figures of these by name, with where their files lie."""

    anatomies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sweeps: tuple[Measured, ...] = ()
    scaling_figures: tuple[Mapping[str, Any], ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    """Path below docs/ of each figure -> the file."""

    def of(self, slug: str) -> tuple[Measured, ...]:
        return tuple(measured for measured in self.sweeps if measured.sweep.card == slug)


def main_variant(card: Card) -> str | None:
    """The variant whose anatomy a page shows: the first of the model's own that can be counted, or else the first."""
    own = [key for key, variant in card.variants.items() if variant.count and not variant.for_comparison]
    any_ = [key for key, variant in card.variants.items() if variant.count]
    return next(iter([*own, *any_]), None)


def _anatomy_folders(project: Project, library: Library) -> Iterator[tuple[str, str, Path]]:
    """Slug, variant and folder of each anatomy that is wanted."""
    for slug, card in sorted(library.cards.items()):
        key = main_variant(card)
        if key is not None:
            variant = card.variants[key]
            made_of = of_module(project, "scripts.architectures.studies", slug, key, variant.name, variant.count)
            yield slug, key, project.build / "anatomy" / slug / made_of


def _scaling_folder(project: Project, sweeps: Sequence[Sweep]) -> Path:
    return project.build / "scaling" / of_module(project, "scripts.architectures.studies", sweeps)


def wanted_sweeps(library: Library) -> tuple[Sweep, ...]:
    """The sweeps of the cards there are."""
    return tuple(sweep for sweep in SWEEPS if sweep.card in library.cards)


def read(project: Project, library: Library) -> Studies:
    """The studies that are there and up to date."""
    anatomies: dict[str, Mapping[str, Any]] = {}
    files: dict[str, Path] = {}
    for slug, _, folder in _anatomy_folders(project, library):
        record = _record(folder)
        if record:
            anatomies[slug] = record
            files |= _files("anatomy", folder, [record["figure"]])
    sweeps = wanted_sweeps(library)
    folder = _scaling_folder(project, sweeps)
    scaling = _record(folder) or {"costs": {}, "figures": []}
    measured = tuple(
        Measured(s, {w: tuple(scaling["costs"][s.id][w]) for w in LABELS}) for s in sweeps if s.id in scaling["costs"]
    )
    return Studies(
        anatomies, measured, tuple(scaling["figures"]), files | _files("scaling", folder, scaling["figures"])
    )


def _keep(folder: Path, record: Mapping[str, Any]) -> None:
    """The record comes last: where it is, all else is."""
    write(folder / "record.json", json.dumps(record, indent=1).encode())


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((folder / "record.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return record


def _files(place: str, folder: Path, figures: Sequence[Mapping[str, Any]]) -> dict[str, Path]:
    return {f"figures/{place}/{f[scheme]}": folder / f[scheme] for f in figures for scheme in ("light", "dark")}


def write_missing(project: Project, library: Library) -> dict[str, str]:
    """Make the studies that are not there; the errors of those that cannot be made, by name."""
    errors: dict[str, str] = {}
    for slug, key, folder in _anatomy_folders(project, library):
        if _record(folder) is None:
            try:
                _write_anatomy(library.cards[slug], key, folder)
            except Exception as error:  # a library may raise anything on a model that it cannot trace
                errors[f"anatomy of {slug}"] = counts.first_line(error)
    sweeps = wanted_sweeps(library)
    folder = _scaling_folder(project, sweeps)
    if sweeps and _record(folder) is None:
        errors |= _write_scaling(sweeps, folder)
    return errors


def _write_anatomy(card: Card, key: str, folder: Path) -> None:
    from scripts.architectures.anatomy import stages
    from scripts.architectures.definitions import part
    from scripts.architectures.forward import trace
    from scripts.pages import figures as drawings

    variant = card.variants[key]
    assert variant.count is not None
    root = trace(variant.count.build, counts.size_of_input(variant.count.input))
    rows = [
        {"name": s.name, "kind": s.kind, "shape": list(s.shape), "parameters": s.parameters, "macs": s.macs}
        for s in stages(root)
    ]
    record: dict[str, Any] = {
        "variant": key, "name": variant.name, "build": variant.count.build, "input": variant.count.input,
        "part": part(variant.count.build), "parameters": root.parameters, "macs": root.macs, "stages": rows,
    }  # fmt: skip
    texts = {"caption": _anatomy_caption(record), "alt": _anatomy_alt(record)}
    _keep(folder, record | {"figure": _draw(partial(drawings.anatomy, record), folder, card.slug) | texts})


def _anatomy_caption(record: Mapping[str, Any]) -> str:
    return (
        f"Where the weights of {record['name']} lie and where its work is done, for one input of {record['input']}, "
        "from a forward pass. Under each stage stands the shape of its output."
    )


def _anatomy_alt(record: Mapping[str, Any]) -> str:
    tops = {what: max(record["stages"], key=lambda s: s[what]) for what in ("parameters", "macs")}
    text = " and ".join(
        f"{top['name']} holds {top[what] / max(record[what], 1):.0%} of the {'MACs' if what == 'macs' else what}"
        for what, top in tops.items()
    )
    return f"Bars of the {len(record['stages'])} stages of {record['name']}: {text}. The table below has all figures."


def _write_scaling(sweeps: Sequence[Sweep], folder: Path) -> dict[str, str]:
    from scripts.architectures.forward import cost
    from scripts.pages import figures as drawings

    errors, measured = {}, []
    for sweep in sweeps:
        try:
            points = [cost(sweep.build, point.size, **point.changes) for point in sweep.points]
            measured.append(Measured(sweep, {what: tuple(getattr(p, what) for p in points) for what in LABELS}))
        except Exception as error:  # as above
            errors[f"scaling of {sweep.id}"] = counts.first_line(error)
    figures = []
    for name, group in _grouped(measured).items():
        texts = {"caption": _growth_caption(group), "alt": _growth_alt(group)}
        figures.append(_draw(partial(drawings.growth, group), folder, name) | texts)
    costs = {m.sweep.id: {what: list(values) for what, values in m.costs.items()} for m in measured}
    if not errors:
        _keep(folder, {"costs": costs, "figures": figures})
    return errors


def _grouped(measured: Sequence[Measured]) -> dict[str, list[Measured]]:
    groups: dict[str, list[Measured]] = {}
    for one in measured:
        name = next((n for n, slugs in FIGURES.items() if one.sweep.card in slugs), one.sweep.axis)
        groups.setdefault(name if one.sweep.axis == "pixels" else one.sweep.axis, []).append(one)
    return groups


def _growth_caption(group: Sequence[Measured]) -> str:
    axis = AXES[group[0].sweep.axis]
    return f"MACs and activation memory over the {axis}; a straight line is a power law, its slope the exponent."


def _growth_alt(group: Sequence[Measured]) -> str:
    parts = [
        f"{m.sweep.name} from {si(m.costs['macs'][0])} to {si(m.costs['macs'][-1])} MACs, exponent {exponent:.2f}"
        for m in group
        if (exponent := m.exponent("macs")) is not None
    ]
    return f"Two plots over the {AXES[group[0].sweep.axis]}: {'; '.join(parts)}."


def _draw(draw: Any, folder: Path, name: str) -> dict[str, Any]:
    from lab.figures import save

    light, dark, width, height = save(draw, folder, name)
    return {"name": name, "light": light.name, "dark": dark.name, "width": width, "height": height}
