"""The Graph Transformer's claims: what do edges, positions, normalisation and edge types add, and how far does a layer see?"""

# ruff: noqa: N999 (named after the card)
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, partial
from importlib import import_module
from typing import Any, Literal, NamedTuple

import torch
from lab import study
from lab.data import Split
from lab.data.graphs import BONDS, COMMUNITIES, IGNORE, NODES, RING, VALUES, Graphs, communities, rings
from lab.figures import Figure, Style, panels
from lab.messages import GatedLayer, GCNLayer
from lab.metrics import accuracy
from lab.run import Run
from lab.study import Measure, Scores
from lab.training import count_parameters, seed_everything
from torch import nn

idea: Any = import_module("graph-transformer")  # the name of the file is the slug
PRESETS, POSITIONS = idea.PRESETS, idea.POSITIONS

NAMES = {
    "edges": "Graph Transformer",
    "no_positions": "no positions",
    "all_pairs": "all pairs",
    "layer_norm": "layer norm",
    "bonds": "edge types",
    "no_flips": "no sign flips",
    "gcn": "GCN",
    "gated": "GatedGCN",
}
RINGS = {  # arms on the ring; those of three layers and the one without positions cannot know the answer
    "edges_3": "edges, 3 layers",
    "edges_4": "edges, 4 layers",
    "gcn_3": "GCN, 3 layers",
    "gcn_4": "GCN, 4 layers",
    "all_pairs_1": "all pairs, 1 layer",
    "all_pairs_1_no_positions": "all pairs, no positions",
}
ABLE = ("edges_4", "gcn_4", "all_pairs_1")
FLOOR, RING_FLOOR = 0.35, 0.4  # parts of right answers below which a training counts as failed; chance is a quarter
RING_GRAPHS: Mapping[Split, int] = {"train": 2000, "val": 500, "test": 500}

# Arms: the model of the paper with one change each, and message passing


class Arm(NamedTuple):
    """A network and how it is trained; `every_pair` attends between all nodes."""

    kind: Literal["transformer", "gcn", "gated"] = "transformer"
    layers: int = 3
    positions: bool = True
    every_pair: bool = False
    bonds: bool = False
    layer_norm: bool = False
    flips: bool = True
    ring: bool = False


def arm_of(name: str, preset: str) -> Arm:
    """An arm of `NAMES`, each with one change, or of `RINGS`, behind "ring_"."""
    if name.startswith("ring_"):
        kind: Any = "gcn" if "gcn" in name else "transformer"
        pairs = "all_pairs" in name
        layers = 1 if pairs else int(name[-1])
        return Arm(kind, layers, positions="no_positions" not in name, every_pair=pairs, ring=True)
    whole = Arm(layers=PRESETS[preset].layers)
    changes: dict[str, dict[str, Any]] = {
        "no_positions": {"positions": False}, "all_pairs": {"every_pair": True}, "layer_norm": {"layer_norm": True},
        "bonds": {"bonds": True}, "no_flips": {"flips": False}, "gcn": {"kind": "gcn"}, "gated": {"kind": "gated"},
    }  # fmt: skip
    return whole._replace(**changes.get(name, {}))


def make(arm: Arm, preset: str, width: int) -> nn.Module:
    """The untrained network of an arm at a given width."""
    norm, heads = nn.LayerNorm if arm.layer_norm else nn.BatchNorm1d, PRESETS[preset].heads
    layers: list[nn.Module] = [
        idea.TransformerLayer(width, heads, arm.bonds, norm) if arm.kind == "transformer"
        else (GCNLayer if arm.kind == "gcn" else GatedLayer)(width)
        for _ in range(arm.layers)
    ]  # fmt: skip
    types, classes = (2 * VALUES, VALUES) if arm.ring else (COMMUNITIES + 1, COMMUNITIES)
    return idea.Network(layers, width, types, BONDS * arm.bonds, POSITIONS * arm.positions, classes)


@cache
def width_of(name: str, preset: str) -> int:
    """The width, a multiple of the heads, that comes closest to the parameters of one network for all arms of its task."""
    arm, sizes = arm_of(name, preset), PRESETS[preset]
    goal_of, width = (Arm(ring=True), 9 * sizes.width // 8) if arm.ring else (Arm(layers=sizes.layers), sizes.width)
    with torch.device("meta"):
        goal = count_parameters(make(goal_of, preset, width))
        widths = range(sizes.heads, 4 * sizes.width, sizes.heads)
        return min(widths, key=lambda width: abs(count_parameters(make(arm, preset, width)) - goal))


def build_arm(name: str, preset: str) -> nn.Module:
    """The untrained network of an arm; all of a task have about as many parameters."""
    return make(arm_of(name, preset), preset, width_of(name, preset))


@cache
def graphs_of(run: Run, split: Split, seed: int, ring: bool) -> Graphs:
    """Graphs of a seed; tests and validation graphs differ from seed to seed, too."""
    preset = PRESETS[run.preset]
    if ring:
        return rings(split, RING_GRAPHS[split] if run.preset != "smoke" else 16, seed)
    count = preset.sizes[-1] if split == "train" else preset.test
    return communities(split, count, seed, idea.laplacian_positions)


@torch.inference_mode()
def part_right(run: Run, model: nn.Module, graphs: Graphs) -> float:
    """The part of the nodes that are asked whose class is right."""
    parts = [model(graphs[at : at + 100].to(run.device)).argmax(-1).cpu() for at in range(0, len(graphs), 100)]
    asked = graphs.labels != IGNORE
    return accuracy(torch.cat(parts)[asked], graphs.labels[asked])


class Trained(NamedTuple):
    model: nn.Module
    test: float
    train: float  # part of right answers on the training graphs where those are few, else NaN: nobody asks


def fit(run: Run, name: str, seed: int, rate: float, count: int | None = None, split: Split = "test") -> Trained:
    """Trains an arm on all graphs of a seed, or on the first `count`; with one seed all arms of a task see the same."""
    arm, preset = arm_of(name, run.preset), PRESETS[run.preset]
    data, test = (graphs_of(run, each, seed, arm.ring) for each in ("train", split))
    data, test = (each.complete() if arm.every_pair else each for each in (data[:count] if count else data, test))
    seed_everything(seed)
    model = build_arm(name, run.preset)
    steps = preset.ring_steps if arm.ring else preset.steps
    idea.train(model, run, data, steps, seed, rate, flips=arm.flips)
    return Trained(model, part_right(run, model, test), part_right(run, model, data) if count else math.nan)


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all of a task, by right answers on validation graphs."""

    def score(name: str, rate: float, seed: int) -> float:
        return fit(run, name, seed, rate, split="val").test

    found = study.search(run, "learning rate, communities", NAMES, (3e-3, 6e-3, 12e-3), score)
    ring = study.search(run, "learning rate, ring", [f"ring_{name}" for name in RINGS], (3e-3, 6e-3, 12e-3), score)
    return found | ring


@cache
def trained(run: Run, name: str, count: int | None = None) -> list[Trained]:
    """One network for each seed."""
    return [fit(run, name, seed, rates_of(run)[name], count) for seed in run.seeds]


def sizes_of(run: Run, names: Any) -> dict[str, int]:
    return {name: count_parameters(build_arm(name, run.preset)) for name in names}


# Experiments


BENCHMARKS = {"zinc": (64, 28, 4, 8, 1), "pattern": (80, 3, 0, 2, 2), "cluster": (80, 7, 0, 10, 6)}
"""Of the paper: width, node types, bond types, eigenvectors, outputs; ten layers of eight heads."""


def published_parameters(name: str) -> int:
    """Parameters of the definition at the widths of a benchmark of the paper."""
    width, types, bonds, positions, outputs = BENCHMARKS[name]
    with torch.device("meta"):
        layers = [idea.TransformerLayer(width, 8, bool(bonds)) for _ in range(10)]
        return count_parameters(idea.Network(layers, width, types, bonds, positions, outputs))


def reach(layers: int) -> int:
    """How many edges away the farthest node is that moves the answer at a node, on a ring of 32 nodes."""
    nodes = torch.arange(32)
    edges = torch.cat([torch.stack([nodes, (nodes + step) % 32]) for step in (1, -1)], 1)
    seed_everything(0)
    h = start = torch.randn(32, 16, dtype=torch.double, requires_grad=True)
    e = start.new_ones(edges.shape[1], 16)
    for _ in range(layers):
        h, e = idea.TransformerLayer(16).double().eval()(h, e, edges)  # eval: batch statistics would join all nodes
    moved = torch.autograd.grad(h[0].sum(), start)[0].abs().sum(1) > 0
    return int(torch.minimum(nodes, 32 - nodes)[moved].max())


def architecture(run: Run) -> None:
    """Does this definition match the paper's counts, and see one edge for each layer?"""
    data = "random graphs of 32 nodes; nothing is trained"
    experiment = run.experiment("architecture", question=str(architecture.__doc__), data=data)
    for name in BENCHMARKS:
        meaning = f"Parameters of the definition at the widths for {name.upper()}"
        experiment.result(f"parameters_{name}", [published_parameters(name)], unit="", meaning=meaning, exact=True)
    for layers in (1, 4):
        meaning = f"Edges to the farthest node that {layers} layer(s) can see"
        experiment.result(f"reach_{layers}", [reach(layers)], unit="edges", meaning=meaning, exact=True)


def ring(run: Run) -> None:
    """How many layers does an answer need that lies four edges away?"""
    arms, preset = {f"ring_{name}": label for name, label in RINGS.items()}, PRESETS[run.preset]
    rates_of(run)  # a search that is made anew is part of the record
    experiment = study.opened(
        run, ring, data=f"rings of {RING} nodes with {VALUES} values at random, {RING_GRAPHS['train']:,} to train and "
        f"{RING_GRAPHS['test']} to test", sizes=sizes_of(run, arms), steps=preset.ring_steps,
        floor=("part of right answers, of arms that can know", RING_FLOOR),
        power={"control": "with a fourth layer the same network tells the value", "result": "ring_edges_4", "above": 0.9},
    )  # fmt: skip
    scores = Scores(run.seeds, {arm: [{"test": each.test} for each in trained(run, arm)] for arm in arms})
    scores.floor("part of right answers", "test", RING_FLOOR, [f"ring_{name}" for name in ABLE])
    for arm, label in arms.items():
        why = scores.reasons("undefined", arm)
        experiment.result(
            arm, scores.values("test", arm), unit="", meaning=f"Right answers on the ring, {label}", failed=why
        )
    experiment.figure(
        "ring",
        study.bars(scores, {"test": Measure("right answers on the ring", "")}, {arm: label.replace(", ", "\n")
                                                                                for arm, label in arms.items()}),
        caption=f"Naming the value that lies {RING // 2} edges away; chance is a quarter. Along edges, three layers cannot know "
        "it. One layer between all pairs can, if positions say which node is the opposite one. Dots are seeds.",
        alt="Bars of right answers: three and four layers along edges, three and four layers of GCN, one layer between all "
        "pairs with and without positions.",
    )  # fmt: skip


def additions(run: Run) -> None:
    """What do edges, positions, normalisation and edge types add, and where does message passing stand?"""
    preset = PRESETS[run.preset]
    rates_of(run)  # a search that is made anew is part of the record
    limit = (
        "That GatedGCN is ahead: it would need the full benchmarks, half a million weights and training to convergence."
    )
    data = f"graphs of {NODES} nodes in {COMMUNITIES} communities, {preset.sizes[-1]} to train, {preset.test} to test"
    experiment = study.opened(
        run, additions, data=data, sizes=sizes_of(run, NAMES), steps=preset.steps, cannot_show=limit,
        floor=("part of right answers", FLOOR),
        power={"control": "edge types that tell most of the answer raise it", "result": "bonds_gain", "above": 0.0},
    )  # fmt: skip
    scores = Scores(run.seeds, {name: [{"accuracy": each.test} for each in trained(run, name)] for name in NAMES})
    scores.floor("part of right answers", "accuracy", FLOOR, NAMES)
    study.record(experiment, scores, {"accuracy": Measure("Right answers on test graphs", "")}, NAMES)
    for result, better, worse, by in (
        ("positions_gain", "edges", "no_positions", "positions"),
        ("edges_gain", "edges", "all_pairs", "keeping to the edges, against all pairs"),
        ("batch_norm_gain", "edges", "layer_norm", "batch in place of layer normalisation"),
        ("bonds_gain", "bonds", "edges", "noisy edge types"),
        ("flips_gain", "edges", "no_flips", "flipping signs in training"),
        ("gain_over_gcn", "edges", "gcn", "attention, against GCN of the same size"),
        ("no_positions_gain_over_gcn", "no_positions", "gcn", "attention without positions, against GCN"),
        ("gated_lead", "gated", "edges", "GatedGCN, against the Graph Transformer"),
    ):
        meaning = f"Right answers gained by {by}"
        study.difference(experiment, result, scores, "accuracy", better, worse, unit="", meaning=meaning)
    experiment.figure(
        "arms",
        partial(draw_arms, scores=scores),
        caption="Right answers on test graphs, each arm with its own learning rate; dots are seeds, the dashed line is chance. "
        "The first is the model of the paper; those below change one thing; the last two are message passing of the same size.",
        alt="Horizontal bars of right answers with a dot for each seed: the Graph Transformer, without positions, between all "
        "pairs, with layer norm, with edge types, without sign flips, GCN and GatedGCN; chance as a dashed line.",
    )


def draw_arms(style: Style, scores: Scores) -> Figure:
    figure, axes = panels(1, 1, width=study.WIDTH, height=3.6)
    ax = axes[0, 0]
    for place, name in enumerate(NAMES):
        values = [value for value in scores.values("accuracy", name) if value == value]
        if values:
            colour = style.cycle[1] if name in ("gcn", "gated") else style.cycle[0]
            ax.barh(place, sum(values) / len(values), color=colour, alpha=0.85, height=0.62)
            ax.plot(values, [place] * len(values), "o", color=style.ink, markersize=3.5)
    ax.axvline(1 / COMMUNITIES, linestyle="--", color=style.muted)
    ax.set_yticks(range(len(NAMES)), list(NAMES.values()))
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.set(xlabel="part of nodes right", xlim=(0, 1))
    return figure


def data_size(run: Run) -> None:
    """Does it need more data than message passing of the same size?"""
    preset, arms = PRESETS[run.preset], {name: NAMES[name] for name in ("edges", "gcn")}
    few, every = preset.sizes
    limit = (
        "That it needs more than a simpler network: it would need a task on which the simpler one is the better prior."
    )
    data = f"graphs of communities, {few} or {every} to train, {preset.test} to test"
    experiment = study.opened(run, data_size, data=data, sizes=sizes_of(run, arms), steps=preset.steps, cannot_show=limit,
                              floor=("part of right answers after all graphs", FLOOR))  # fmt: skip
    outcomes = {
        name: [{"few": a.test, "few_train": a.train, "every": b.test}
               for a, b in zip(trained(run, name, few), trained(run, name), strict=True)]
        for name in arms
    }  # fmt: skip
    scores = Scores(run.seeds, outcomes)
    scores.floor("part of right answers after all graphs", "every", FLOOR, arms)
    for name, label in arms.items():
        why = scores.reasons("undefined", name)
        for result, a, b, what in (
            ("overfit_smallest", "few_train", "few", f"on the {few} training graphs minus test graphs"),
            ("gain_with_data", "every", "few", f"gained from {few} to {every} training graphs"),
        ):
            values = scores.minus(a, name, name, b)
            experiment.result(f"{result}_{name}", values, unit="", meaning=f"Right answers {what}, {label}", failed=why)
    for suffix, measure in (("smallest", "few"), ("largest", "every")):
        meaning = f"Right answers of GCN minus Graph Transformer, {suffix} training set"
        study.difference(
            experiment, f"gcn_lead_{suffix}_set", scores, measure, "gcn", "edges", unit="", meaning=meaning
        )
    measures = {"few": Measure(f"right after {few} graphs", ""), "every": Measure(f"right after {every} graphs", "")}
    experiment.figure(
        "data",
        study.bars(scores, measures, {name: label.replace(" ", "\n") for name, label in arms.items()}),
        caption="Right answers on test graphs after few and all training graphs, at equal steps and parameters. Dots are seeds.",
        alt="Two bar charts, for few and for all training graphs: right answers of the Graph Transformer and GCN.",
    )


@torch.inference_mode()
def changed_by_signs(run: Run, model: nn.Module, graphs: Graphs, seed: int) -> float:
    """The part of the nodes whose answer changes when eigenvectors change their signs at random, in percent."""
    flipped = graphs.flipped(torch.Generator().manual_seed(seed))
    before, after = (model(each.to(run.device)).argmax(-1) for each in (graphs, flipped))
    return 100 * float((before != after).float().mean())


def signs(run: Run) -> None:
    """How many answers change with the arbitrary signs of eigenvectors, with and without flips in training?"""
    preset, arms = PRESETS[run.preset], {name: NAMES[name] for name in ("edges", "no_flips")}
    outcomes = {
        name: [
            {"changed_by_signs": changed_by_signs(run, each.model, graphs_of(run, "test", seed, False), seed)}
            for seed, each in zip(run.seeds, trained(run, name), strict=True)
        ]
        for name in arms
    }
    data = f"{preset.test} test graphs of communities, and the same with the signs of their positions flipped at random"
    experiment = study.opened(run, signs, data=data, sizes=sizes_of(run, arms), steps=preset.steps)
    scores = Scores(run.seeds, outcomes)
    study.record(experiment, scores, {"changed_by_signs": Measure("Answers that change with the signs", "%")}, arms)
    meaning = "Changed answers that flips in training prevent"
    study.difference(
        experiment, "flips_steady", scores, "changed_by_signs", "no_flips", "edges", unit="%", meaning=meaning
    )


EXPERIMENTS = (architecture, ring, additions, data_size, signs)
