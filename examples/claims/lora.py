"""LoRA's claims: how far it gets by rank, what it forgets, what it costs, and what merging allows."""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import cache
from statistics import fmean
from typing import Any

import torch
from lab import study
from lab.data.tasks import Task, task_images
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters
from lora import (
    METHODS,
    PRESETS,
    Classifier,
    Method,
    accuracy_on,
    adapt,
    adapted,
    difference,
    merge,
    prepared,
    pretrained,
    updates,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

NEW: tuple[Task, Task] = ("near", "far")
ALL = METHODS | {
    "r1": Method("LoRA, r = 1", 1),
    "r16": Method("LoRA, r = 16", 16),
    "q8": Method("r = 8, queries alone", 8, ("q_proj",)),  # as many weights as r4
}
SHORT = {"full": "full", "probe": "head", "r1": "r = 1", "r4": "r = 4", "r16": "r = 16", "q8": "queries"}
PAIRS = (("full", "r16"), ("full", "r4"), ("r4", "probe"), ("r16", "r1"), ("r4", "q8"))
FLOOR = 60.0  # accuracy (%) on the source below which a pretraining counts as failed; chance is 10
VITS = {"s": (384, 12), "b": (768, 12), "l": (1024, 24), "g": (1536, 40)}  # widths and blocks of published sizes

# Arms, and their rates from one search


@cache
def source_of(run: Run, seed: int) -> Classifier:
    return pretrained(run, seed)


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each method, searched alike for all, by accuracy on validation images of both tasks."""

    def score(name: str, rate: float, seed: int) -> float:
        nets = {task: adapted(run, source_of(run, seed), ALL[name], task, seed, rate) for task in NEW}
        return fmean(accuracy_on(net, task, "val") for task, net in nets.items())

    return study.search(run, "learning rate", ALL, (2e-3, 8e-3, 3.2e-2), score)


@cache
def trained(run: Run, name: str, task: Task) -> list[Classifier]:
    """One adapted network for each seed, each from a pretraining of its own."""
    rate = rates_of(run)[name]
    return [adapted(run, source_of(run, seed), ALL[name], task, seed, rate) for seed in run.seeds]


def old_accuracy(model: Classifier, source: Classifier) -> float:
    """Accuracy on the source of an adapted backbone with the head that it was pretrained with."""
    back = copy.deepcopy(model)
    back.head = source.head
    return accuracy_on(back, "source")


@cache
def scores_of(run: Run) -> Scores:
    """Accuracy on the new tasks, and what is left of the source; seeds whose pretraining failed are marked for all arms."""
    sources = [source_of(run, seed) for seed in run.seeds]
    found: dict[str, list[dict[str, float]]] = {name: [{} for _ in run.seeds] for name in ALL}
    for name in ALL:
        for task in NEW:
            for values, net, source in zip(found[name], trained(run, name, task), sources, strict=True):
                values |= {task: accuracy_on(net, task), f"source_after_{task}": old_accuracy(net, source)}
    for at, source in enumerate(sources):
        before = accuracy_on(source, "source")
        for each in found.values():
            each[at]["source_before"] = before
    scores = Scores(run.seeds, found)
    scores.floor("accuracy on the source", "source_before", FLOOR, ALL)
    return scores


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    preset = PRESETS[run.preset]
    model = Classifier(preset)
    sizes = {arm: count_parameters(prepared(model, ALL[arm])) for arm in arms}
    data = f"{preset.labels} labelled images of 16 px of each task, 300 others to test; pretrained on upright digits"
    floor = ("accuracy on the source before (%)", FLOOR)
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=floor, **more)


# Experiments


def transfer(run: Run) -> None:
    """How accurate is LoRA by rank, beside full fine-tuning and a head on frozen features, near and far?"""
    limit = "After a few hundred steps on a few hundred images no method fits the far task, so whether LoRA falls further behind "
    limit += "full fine-tuning there cannot show."
    experiment, scores = opened(run, transfer, ALL, cannot_show=limit), scores_of(run)
    labels = {name: method.label for name, method in ALL.items()}
    measures = {str(task): Measure(f"accuracy, {task} task", "%") for task in NEW}
    study.record(experiment, scores, measures, labels)
    for task in NEW:
        for a, b in PAIRS:
            meaning = f"accuracy on the {task} task, {labels[a]} minus {labels[b]}"
            study.difference(experiment, f"{task}_gap_{a}_{b}", scores, task, a, b, unit="points", meaning=meaning)
    for name, method in ALL.items():
        count = count_parameters(prepared(source_of(run, run.seeds[0]), method), trainable_only=True)
        meaning = f"trained weights of {method.label}, its head included"
        experiment.result(f"trainable_{name}", [count], unit="", meaning=meaning, exact=True)
    experiment.figure(
        "accuracy",
        study.bars(scores, measures, SHORT),
        caption="Accuracy on the new task. Near: digits turned by a quarter. Far: what was learned about the inside of a patch "
        "no longer holds. *Queries* is rank 8 on queries alone, with as many trained weights as rank 4. Bars "
        "are means, dots are seeds.",
        alt="Two bar charts, near and far task: full fine-tuning, head only, LoRA of rank 1, 4 and 16, and of rank 8 on queries.",
    )


def forgetting(run: Run) -> None:
    """What is left of the source after the network was adapted?"""
    experiment, scores = opened(run, forgetting, ALL), scores_of(run)
    before, why = scores.values("source_before", "full"), scores.reasons("undefined", "full")
    experiment.result(
        "source_before", before, unit="%", meaning="accuracy on the source before any adaptation", failed=why
    )
    for task in NEW:
        for name in ("full", "r4"):
            values, meaning = (
                scores.values(f"source_after_{task}", name),
                f"accuracy on the source after the {task} task",
            )
            experiment.result(
                f"source_after_{task}_{name}", values, unit="%", meaning=f"{meaning}: {ALL[name].label}", failed=why
            )
        meaning = f"accuracy on the source after the {task} task, LoRA of rank 4 minus full fine-tuning"
        study.difference(
            experiment, f"kept_gap_{task}", scores, f"source_after_{task}", "r4", "full", unit="points", meaning=meaning
        )
    measures = {f"source_after_{task}": Measure(f"accuracy on the source after the {task} task", "%") for task in NEW}
    experiment.figure(
        "forgetting",
        study.bars(scores, measures, SHORT),
        caption="Accuracy on the source, with the old head, after the backbone was adapted. With a new head alone the backbone "
        "does not change, so nothing is lost. Bars are means, dots are seeds.",
        alt="Two bar charts of the accuracy on the source after near and far adaptation, for the six methods.",
    )


def shared(run: Run, at: int) -> Classifier:
    """One backbone that holds the updates of the near and the far task, of the seed at a place."""
    model = copy.deepcopy(source_of(run, run.seeds[at]))
    adapt(model.backbone, ALL["r4"].rank, tasks=2)
    for index, task in enumerate(NEW):
        for ours, theirs in zip(updates(model), updates(trained(run, "r4", task)[at]), strict=True):
            ours.A.data[index], ours.B.data[index] = theirs.A.data[0], theirs.B.data[0]
    return model


@torch.no_grad()
def mixed_error(run: Run, at: int, images: Tensor) -> tuple[float, float]:
    """Features of a batch of both tasks against each task's own network: unmerged, and merged with the near task."""
    model, half = shared(run, at), len(images) // 2
    near, far = (trained(run, "r4", task)[at].backbone(images).pooler_output for task in NEW)
    own = torch.cat([near[:half], far[half:]])
    for each in updates(model):
        each.task = (torch.arange(len(images), device=images.device) >= half).long()
    unmerged = model.backbone(images).pooler_output
    merge(model)
    merged = model.backbone(images).pooler_output
    return float((unmerged - own).abs().max() / own.std()), float((merged - own).abs().max() / own.std())


def merging(run: Run) -> None:
    """Does merging leave the output as it is, and can one network hold several tasks?"""
    experiment = opened(run, merging, ["r4"])
    values: dict[str, list[float]] = {"merge": [], "unmerge": [], "start": [], "mixed": [], "mixed_merged": []}
    images = task_images("near", "test", 0)[0][:64].to(run.device)
    for at, seed in enumerate(run.seeds):
        model = trained(run, "r4", "near")[at]
        other, fresh = copy.deepcopy(model), copy.deepcopy(source_of(run, seed))
        adapt(fresh.backbone, 4)
        values["start"].append(difference(source_of(run, seed), fresh, images))
        for name, sign in (("merge", 1), ("unmerge", -1)):
            merge(other, sign)
            values[name].append(difference(model, other, images))
        for name, value in zip(("mixed", "mixed_merged"), mixed_error(run, at, images), strict=True):
            values[name].append(value)
    meanings = {
        "merge": "merged against unmerged",
        "unmerge": "after merging and unmerging, against before",
        "start": "at the start of training, against the network without updates",
        "mixed": "a batch of two tasks, unmerged, against each task's own network",
        "mixed_merged": "a batch of two tasks, merged with the first, against each task's own network",
    }
    for name, meaning in meanings.items():
        text = f"largest difference over the spread of the outputs, {meaning}"
        experiment.result(f"difference_{name}", values[name], unit="", meaning=text)


def share(width: int, blocks: int, rank: int) -> float:
    """Trained weights of queries and values, 2 x (2 L) d r, over those of the blocks of a ViT, 12 L d^2."""
    return 2 * 2 * blocks * width * rank / (12 * blocks * width**2)


def macs(model: nn.Module) -> int:
    """Multiply-accumulates of one image of 16 px."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 16, 16, device=next(model.parameters()).device))
    return counter.get_total_flops() // 2


def kept_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes kept for the backward pass; a storage that several operations keep counts once, and weights do not count."""
    own = {each.untyped_storage()._cdata for each in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images)
    return sum(storage.nbytes() for storage in kept.values())


def step_memory(model: nn.Module, images: Tensor) -> dict[str, float]:
    """MB that a training step holds in float32: weights, gradients, AdamW's two moments, and what the backward pass needs."""
    trainable = count_parameters(model, trainable_only=True)
    counts = {"weights": 4 * count_parameters(model), "gradients": 4 * trainable, "moments": 8 * trainable}
    return {part: count / 1e6 for part, count in (counts | {"activations": kept_bytes(model, images)}).items()}


def cost(run: Run) -> None:
    """What does LoRA train, compute and keep in memory?"""
    preset = PRESETS[run.preset]
    data = f"the network of this example, counted, with {preset.batch} images in a step; for published widths the paper's formula"
    experiment = run.experiment("cost", question=str(cost.__doc__), data=data)
    exact = {
        f"share_{size}_r8": (share(*shape, 8), f"part of the weights of the blocks of a ViT-{size} that rank 8 trains")
        for size, shape in VITS.items()
    }
    source = Classifier(preset).to(run.device)
    merged, unmerged = prepared(source, ALL["r4"]), prepared(source, ALL["r4"])
    merge(merged)
    for name, model in (("merged", merged), ("unmerged", unmerged)):
        more = 100 * (macs(model) / macs(source) - 1)
        exact[f"extra_macs_{name}"] = (more, f"additional MACs of {name} updates of rank 4")
    images = torch.zeros(preset.batch, 1, 16, 16, device=run.device)
    memory = {name: sum(step_memory(prepared(source, ALL[name]), images).values()) for name in ("full", "r4")}
    counts = {name: count_parameters(prepared(source, ALL[name]), trainable_only=True) for name in memory}
    exact["memory_lora_over_full"] = (memory["r4"] / memory["full"], "memory of a training step, rank 4 over full")
    exact["trainable_lora_over_full"] = (counts["r4"] / counts["full"], "trained weights, rank 4 over full")
    for name, (value, meaning) in exact.items():
        unit = "%" if name.startswith("extra") else ""
        experiment.result(name, [value], unit=unit, meaning=meaning, exact=True)


EXPERIMENTS = (transfer, forgetting, merging, cost)
