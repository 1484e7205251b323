"""Mask DINO's claims: do the same queries serve four tasks, what is known before the decoder, and what do masks cost?"""

# ruff: noqa: N999 (named after the card)
# mypy: disable-error-code="no-any-return, no-untyped-call, misc, name-defined"
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from lab import detectors, study
from lab.boxes import generalized_iou, xyxy_from_cxcywh
from lab.data.scenes import Scenes
from lab.figures import Figure, Style, draw_boxes, panels, show_image
from lab.memory import kept_bytes
from lab.queries import targets_of
from lab.run import Experiment, Run
from lab.segments import boxes_of_masks, filled, mask_ap50, panoptic_quality, semantic_iou
from lab.study import Measure, Scores
from lab.training import count_parameters, seed_everything
from torch import Tensor, nn

example = import_module("mask-dino")

FLOOR = 20.0  # AP50 of the boxes (%), below which a training counts as failed

# The one arm, and its rate from a search; its rivals are other readings of the same network


@cache
def trained(run: Run) -> list[detectors.Trained[Any]]:
    """One network for each seed; the first is that of the file that is read."""

    def score(_: str, rate: float, seed: int) -> float:
        return example.train(run, seed, rate, "val").curve[-1][1]

    rates = study.search(run, "learning rate", ["whole"], (2e-3, 4e-3, 8e-3), score)
    return [example.train(run, seed, rates["whole"]) for seed in run.seeds]


# Measures


def found_by(run: Run, model: Any, scenes: Scenes, layer: int = -1) -> list[dict[str, Tensor]]:
    """What queries say of each scene after a layer, 0 for before the first."""
    return detectors.on_scenes(partial(example.find, model, layer=layer, masks=True), scenes, run.device)


def measures_of(run: Run, found: Sequence[Any], scenes: Scenes) -> dict[str, float]:
    return detectors.measures(found, scenes, detectors.BENCHMARKS[run.preset])


@cache
def scores_of(run: Run) -> Scores:
    """All measures, in %, after the decoder and, as `first_`, before it; failed trainings are marked."""
    confidence, outcomes = detectors.BENCHMARKS[run.preset].confidence, []
    for model, test in ((each.model, each.test) for each in trained(run)):
        last, first = (found_by(run, model, test, layer) for layer in (-1, 0))
        boxes = measures_of(run, last, test)
        outcomes.append({
            "box_ap50": boxes["ap50"],
            "box_ap": boxes["ap"],
            "mask_ap50": mask_ap50(last, test),
            "mask_ap50_filled": mask_ap50([filled(each) for each in last], test),
            "semantic_iou": semantic_iou(last, test),
            "panoptic_quality": panoptic_quality(last, test, confidence),
            "first_mask_ap50": mask_ap50(first, test),
            "first_box_ap": measures_of(run, first, test)["ap"],
            "first_box_ap_of_masks": measures_of(run, [boxes_of_masks(each) for each in first], test)["ap"],
        })  # fmt: skip
    scores = Scores(run.seeds, {"whole": outcomes})
    scores.floor("AP50 of the boxes (%)", "box_ap50", FLOOR, ["whole"])
    return scores


def of_whole(experiment: Experiment, run: Run, measures: Mapping[str, Measure]) -> None:
    """Records measures by their own names."""
    for name, (label, unit, undefined) in measures.items():
        values, failed = scores_of(run).values(name, "whole"), scores_of(run).reasons(undefined, "whole")
        experiment.result(name, values, unit=unit, meaning=label, failed=failed)


def opened(run: Run, experiment: Callable[[Run], None], **more: Any) -> Experiment:
    """An experiment on the trained networks."""
    sizes = {"whole": count_parameters(example.MaskDINO(example.PRESETS[run.preset], detectors.BENCHMARKS[run.preset]))}
    return detectors.opened(run, experiment, sizes, ("AP50 of the boxes (%)", FLOOR), **more)


# Experiments

TASKS = {
    "box_ap50": Measure("AP50 of the boxes", "%"),
    "mask_ap50": Measure("AP50 of the masks", "%"),
    "mask_ap50_filled": Measure("AP50 of boxes that are filled in as masks", "%"),
    "semantic_iou": Measure("IoU of all pixels of digits", "%"),
    "panoptic_quality": Measure("Panoptic quality of the digits", "%"),
}


def four_tasks(run: Run) -> None:
    """Do the same queries serve detection and all kinds of segmentation?"""
    control = {"control": "Boxes that are filled in as masks score less: the measure sees whether a mask is drawn.",
               "result": "mask_ap50_filled", "below": 50}  # fmt: skip
    limit = "All digits are one class, and there is no stuff, so panoptic quality is that of things only."
    experiment = opened(run, four_tasks, power=control, cannot_show=limit)
    of_whole(experiment, run, TASKS)
    scores = scores_of(run)
    by_task = {task: [{"score": value} for value in scores.values(task, "whole")] for task in TASKS}
    labels = ("boxes,\nAP50", "masks,\nAP50", "boxes\nfilled", "all pixels,\nIoU", "panoptic\nquality")
    names, measure = dict(zip(TASKS, labels, strict=True)), {"score": Measure("One set of queries", "%")}
    experiment.figure(
        "four_tasks",
        study.bars(Scores(run.seeds, by_task), measure, names),
        caption="The output of one model read as boxes, instances, a semantic and a panoptic map; in the middle, what boxes that "
        "are filled in reach as masks. Bars are means, dots are seeds.",
        alt="Bars of box AP50, mask AP50, that of filled boxes, semantic IoU and panoptic quality, all from the same queries.",
    )  # fmt: skip


def before_decoder(run: Run) -> None:
    """How good are boxes and masks of the queries before the decoder begins?"""
    limit = (
        "One decoder layer and few objects: a small image is covered by queries that are the same for every image, so "
    )
    limit += "good early masks do not show what picking queries from the image gives."
    experiment, scores = opened(run, before_decoder, cannot_show=limit), scores_of(run)
    of_whole(experiment, run, {
        "first_box_ap": Measure("AP of the boxes before the decoder", "%"),
        "first_box_ap_of_masks": Measure("AP of the boxes around the masks before the decoder", "%"),
    })  # fmt: skip
    for name, of_a, of_b, meaning in (
        ("first_box_gain", "first_box_ap_of_masks", "first_box_ap",
         "Box AP before the decoder, boxes around masks minus those of the head"),
        ("decoder_box_gain", "box_ap", "first_box_ap", "Box AP after the decoder minus before it"),
    ):  # fmt: skip
        experiment.result(name, scores.minus(of_a, "whole", "whole", of_b), unit="points", meaning=meaning,
                          failed=scores.reasons("undefined", "whole"))  # fmt: skip
    pairs = zip(scores.values("first_mask_ap50", "whole"), scores.values("mask_ap50", "whole"), strict=True)
    values, failed = [kept_part(*each) for each in pairs], scores.reasons("no mask is found", "whole")
    experiment.result("masks_before_decoder", values, unit="%", failed=failed,
                      meaning="Mask AP50 before the decoder, as a part of that after it")  # fmt: skip


def kept_part(first: float, last: float) -> float:
    """AP before the decoder in % of that after it, NaN where that is 0."""
    return 100 * first / last if last else math.nan


def iou_with_owner(boxes: Tensor, noised: Any, true: Any) -> Tensor:
    """Generalized IoU of denoising queries that are to be moved back, at boxes (B, S, 4), with their objects: (n,)."""
    image, query = (noised.owner >= 0).nonzero(as_tuple=True)
    return generalized_iou(boxes[image, query], true.boxes[image, noised.owner[image, query]])


@torch.inference_mode()
def with_noise(run: Run, model: Any, scenes: Scenes, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """What denoising queries change and how they come out, on the fullest scenes, and the boxes of the first, xyxy in pixels."""
    fullest = sorted(range(len(scenes)), key=lambda index: -len(scenes.boxes[index]))[:50]
    scenes, K = scenes[fullest].to(run.device), model.class_head.out_features
    seed_everything(seed)
    true = targets_of(scenes, K)
    noised = example.add_noise(true, model.preset.noised, K)
    alone, (found, denoised, _) = model(scenes.images)[0], model(scenes.images, noised)
    with patch.object(example, "concealed", return_value=None):
        seen = model(scenes.images, noised)[0]

    changes = [
        max((a - b).abs().max().item() for a, b in zip(alone[:2], each[:2], strict=True)) for each in (found, seen)
    ]
    before, after = (iou_with_owner(boxes, noised, true).mean().item() for boxes in (noised.boxes, denoised.boxes[-1]))
    undo = noised.owner[0] >= 0
    boxes = {"true boxes": true.boxes[0, : len(scenes.boxes[0])], "noised, to be moved back": noised.boxes[0, undo],
             "what comes out": denoised.boxes[-1, 0, undo], "noised, to be rejected": noised.boxes[0, ~undo]}  # fmt: skip
    boxes = {name: xyxy_from_cxcywh(each.cpu()) * scenes.images.shape[-1] for name, each in boxes.items()}
    measures = {"denoising_leak": changes[0], "leak_unconcealed": changes[1], "undone": after - before}
    return measures, {"image": scenes.images[0].cpu(), "boxes": boxes}


def draw_noise(style: Style, image: Tensor, boxes: Mapping[str, Tensor]) -> Figure:
    figure, axes = panels(2, 2, width=study.WIDTH, height=5.7)
    for ax, (title, each) in zip(axes.flat, boxes.items(), strict=True):
        show_image(ax, image, title)
        draw_boxes(ax, each, linewidth=1.2)
    return figure


def in_use(run: Run) -> None:
    """Do denoising queries find back, and do they change what the others say?"""
    control = {"control": "Where the other queries may look at them, they change what these say.",
               "result": "leak_unconcealed", "above": 0.001}  # fmt: skip
    experiment = opened(run, in_use, power=control)
    found = [with_noise(run, each.model, each.test, seed) for seed, each in zip(run.seeds, trained(run), strict=True)]
    for name, meaning in (
        ("denoising_leak", "Largest change of a class logit or of a box when denoising queries are there"),
        ("leak_unconcealed", "The same, if the other queries may look at them"),
        ("undone", "Generalized IoU of noised boxes with their objects, after the decoder minus before it"),
    ):
        values, failed = [each[name] for each, _ in found], scores_of(run).reasons("undefined", "whole")
        values = scores_of(run).counted("whole", values)
        experiment.result(name, values, unit="", meaning=meaning, failed=failed)
    experiment.figure(
        "noise",
        partial(draw_noise, **found[0][1]),
        caption="What training shows the decoder beside its own queries, and what the trained one makes of it, on the test scene "
        "with the most objects. In use there are no such queries.",
        alt="A scene with true boxes, with noised boxes around digits, with these after the decoder, and with others off them.",
    )  # fmt: skip


class Decoder(nn.Module):
    """The decoder at the published size: content, boxes and grid -> vectors of masks of all layers."""

    def __init__(self) -> None:
        super().__init__()
        sizes = example.PRESETS["full"]._replace(width=256, heads=8, hidden=2048, embedding=256, layers=9)
        self.whole = example.MaskDINO(sizes, replace(detectors.BENCHMARKS["quick"], classes=80))

    def forward(self, content: Tensor, boxes: Tensor, grid: Tensor) -> Tensor:
        said = [self.whole.read(content, boxes)]
        for layer in self.whole.layers:
            content = layer(content, boxes, grid)
            said.append(self.whole.read(content, boxes))
        return torch.stack([each.vectors for each in said])


def memory_of(decoder: Decoder, side: int, queries: int) -> dict[str, float]:
    """GB (float32) that training keeps of the decoder, and of its masks, for an image of side x side px."""
    with torch.device("meta"):
        grid, pixels = (torch.empty(1, 256, side // stride, side // stride) for stride in (8, 4))
        inputs = torch.empty(1, queries, 256), torch.empty(1, queries, 4), grid
        masks = example.masks_of(decoder(*inputs), pixels)
        return {"decoder": kept_bytes(decoder, *inputs) / 1e9, "masks": masks.nbytes / 1e9}


SIDES, NUMBERS = (512, 768, 1024), (100, 300, 600)


def cost(run: Run) -> None:
    """What do the masks cost in memory at the published size?"""
    data = "none: nine layers of width 256 on the meta device, bytes are added up and nothing is computed"
    experiment = run.experiment("cost", question=str(cost.__doc__), data=data)
    with torch.device("meta"):
        decoder = Decoder()
    by_side = {side: memory_of(decoder, side, 300) for side in SIDES}
    here = by_side[1024]
    by_number = {number: here if number == 300 else memory_of(decoder, 1024, number) for number in NUMBERS}
    image = "one image of 1024 px, 300 queries, float32"
    for name, value, unit, meaning in (
        ("mask_memory", here["masks"], "GB", f"Masks of all layers, {image}"),
        ("decoder_memory", here["decoder"], "GB", "What else training keeps of the decoder, same image"),
        ("mask_part", 100 * here["masks"] / sum(here.values()), "%", "Part of the masks in both"),
        ("mask_growth_side", here["masks"] / by_side[512]["masks"], "", "Growth of the memory of masks, side x 2"),
        ("mask_growth_queries", by_number[600]["masks"] / here["masks"], "", "The same for twice the queries"),
    ):
        experiment.result(name, [value], unit=unit, meaning=meaning, exact=True)
    experiment.figure(
        "memory",
        partial(draw_memory, panels_of={"side of the image (px)": by_side, "queries": by_number}),
        caption="Memory that training keeps for one image at the published size: a map of a quarter of the resolution for every "
        "query in every layer, and all else in the decoder. Backbone, encoder and gradients come on top.",
        alt="Memory in gigabytes, against the side of the image and the number of queries, for the masks and for the rest of "
        "the decoder; the masks need far more.",
    )  # fmt: skip


def draw_memory(style: Style, panels_of: Mapping[str, Mapping[int, Mapping[str, float]]]) -> Figure:
    figure, axes = panels(1, 2, width=study.WIDTH, height=2.8, sharey=True)
    for ax, (label, found) in zip(axes[0], panels_of.items(), strict=True):
        for part, mark, line in (("masks", "o", "-"), ("decoder", "s", "--")):
            ax.plot(list(found), [each[part] for each in found.values()], marker=mark, linestyle=line, label=part)
        ax.set(xlabel=label, xticks=list(found))
    axes[0, 0].set(ylabel="GB for one image", ylim=(0, None))
    axes[0, 0].legend()
    return figure


def side_by_side(run: Run) -> None:
    """How does it fare on the scenes that all detectors share?"""
    find = example.find
    detectors.report(run, detectors.BENCHMARKS[run.preset], trained(run), find, find, name="Mask DINO")


EXPERIMENTS = (four_tasks, before_decoder, in_use, cost, side_by_side)
