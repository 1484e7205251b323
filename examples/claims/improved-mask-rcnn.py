"""Improved Mask R-CNN's claims: do points and three box heads beat what they repair, at equal size?"""

# ruff: noqa: N999 (named after the card)
# mypy: disable-error-code="no-any-return, no-untyped-call, misc"
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from lab import published as stages
from lab import rcnn, study
from lab.data import Split
from lab.data.scenes import Scenes
from lab.figures import Figure, Style, panels
from lab.regions import jitter, paired_iou
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchvision.models import detection

improved = import_module("improved-mask-rcnn")
mask = improved.mask

OUTLINES = {"grid": "28 x 28", "points": "7 x 7\nand points"}
BOXES = {"cascade": "three heads", "large": "one as large, three times"}
GAINS = {"first_gain": "Box IoU after one stage minus before", "box_gain": "Box IoU, 3 stages minus 1"}
GAINS |= {
    "mask_gain": "Mask IoU in these boxes, 3 stages minus 1",
    "box_minus_mask_gain": "Gain in box IoU minus gain in mask IoU",
}
REACHED = "mask IoU, which one mean mask in every box reaches,"
SHARES = (50, 75, 90)  # IoU in %, from which a box counts
SIZES = {"small": (0, 20), "medium": (20, 32), "large": (32, 99)}  # longer side in pixels
IOUS = {"mask_iou": Measure("mask IoU", ""), "boundary_iou": Measure("outline IoU", "")}

# Rivals: a grid for points, one head of as many parameters for three


def wide(preset: Any) -> int:
    """Hidden units that give one box head as many parameters as three have."""
    inputs, hidden = improved.SLIM * improved.CELLS**2, preset.hidden
    size = 3 * (inputs * hidden + hidden**2 + 6 * hidden + 4)
    return next(h for h in range(hidden, 3 * hidden + 1) if inputs * h + h**2 + 6 * h + 4 >= size)


def build(preset: Any, arm: str) -> Any:
    """The untrained network of an arm: a backbone of its own and the heads that are compared."""
    if arm in OUTLINES:
        return improved.Repaired(preset, (arm,))
    model = improved.Repaired(preset, ("boxes",))
    if arm == "large":
        model.boxes = improved.Cascade(wide(preset), improved.STAGES[:1])
    return model


def size_of(model: Any) -> int:
    """Parameters of what is compared; the score of a grid's mask teaches the rest nothing, and counts apart."""
    parts = [model.maps, model.boxes] if model.boxes else [model.maps, model.classes, model.grid or model.points]
    return sum(count_parameters(part) for part in parts)


# Arms, and their rates from one search


@cache
def split_of(run: Run, split: Split, seed: int) -> Scenes:
    return improved.scenes_of(improved.PRESETS[run.preset], split, seed)


@cache
def trained(run: Run, arm: str, seed: int, rate: float | None = None) -> Any:
    """The network of an arm and a seed, with the rate of its search where none is given."""
    return improved.train(run, seed, partial(build, arm=arm), rates_of(run)[arm] if rate is None else rate)


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all: IoU of masks in true boxes, or of boxes after the last stage."""

    def score(arm: str, rate: float, seed: int) -> float:
        scenes, model = split_of(run, "val", seed), trained(run, arm, seed, rate)
        if arm in OUTLINES:
            return outlines_of(run, scenes, partial(drawn, model))["mask_iou"]
        return float(box_ious(run, scenes, model)[-1].mean())

    return study.search(run, "learning rate", OUTLINES | BOXES, (2.5e-3, 5e-3, 1e-2, 2e-2), score)


# Measures

Inside = Callable[[Tensor, Tensor], Tensor]  # images (B, 3, H, W), boxes (B, R, 4) -> probabilities (B, R, m, m)


def drawn(model: Any, images: Tensor, boxes: Tensor, refined: bool = True) -> Tensor:
    """Masks of the head that is there; with points, the coarse one where it is not refined."""
    maps = model.maps(images)
    regions = rcnn.crop(maps[0], boxes, mask.CUT, mask.STRIDE)
    if model.grid is not None:
        return model.grid(regions.flatten(0, 1))[:, 0].float().sigmoid().unflatten(0, regions.shape[:2])
    coarse = model.points.first(regions)
    return (model.points.refine(maps, boxes, coarse)[0] if refined else coarse).sigmoid()


def rim(masks: Tensor) -> Tensor:
    """The pixels of masks (n, H, W) that touch their outside."""
    outside = nn.functional.max_pool2d(nn.functional.pad(1 - masks.float(), (1, 1, 1, 1), value=1.0), 3, 1)
    return masks & (outside > 0)


@torch.inference_mode()
def qualities(run: Run, scenes: Scenes, boxes: Tensor, inside: Inside) -> Tensor:
    """IoU of masks and of their outlines, with what is seen of the object of each box: (S, R, 2)."""
    masks, found = mask.masks_of(scenes) > 0, []  # (S, M, H, W)
    for images, here, true in zip(scenes.images.split(40), boxes.split(40), masks.split(40), strict=True):
        here, true = here.to(run.device), true.repeat(1, boxes.shape[1] // masks.shape[1], 1, 1).flatten(0, 1)
        cells = inside(images.to(run.device), here).flatten(0, 1)
        pasted = mask.paste(cells, here.flatten(0, 1), improved.CANVAS).cpu()
        pair = torch.stack([mask.iou(pasted, true), mask.iou(rim(pasted), rim(true))], -1)
        found.append(pair.unflatten(0, here.shape[:2]))
    return torch.cat(found)


def outlines_of(run: Run, scenes: Scenes, inside: Inside) -> dict[str, float]:
    """Means of `qualities` in the true boxes, and those of outlines by size of the object, NaN where there is none."""
    boxes, labels = rcnn.targets_of(scenes)
    ious, longer = (
        qualities(run, scenes, boxes, inside)[labels >= 0],
        (boxes[..., 2:] - boxes[..., :2]).amax(-1)[labels >= 0],
    )
    sizes = {name: ious[(longer >= low) & (longer < high), 1].mean().item() for name, (low, high) in SIZES.items()}
    return dict(zip(IOUS, ious.mean(0).tolist(), strict=True)) | sizes


@cache
def mean_mask(run: Run) -> float:
    """Mask IoU that one mask reaches in every true box, the mean of those of training: at most, over the seeds."""
    reached = []
    for seed in run.seeds:
        boxes, labels = rcnn.targets_of(train := split_of(run, "train", seed))
        owner = torch.arange(boxes.shape[1]).expand(labels.shape)
        mean = mask.mask_targets(mask.masks_of(train), owner, boxes)[labels >= 0].mean(0).to(run.device)
        same = lambda _, at, mean=mean: mean.expand(*at.shape[:2], -1, -1)  # noqa: E731
        reached.append(outlines_of(run, split_of(run, "test", seed), same)["mask_iou"])
    return max(reached)


def loose_boxes(scenes: Scenes, most: float = 0.35, repeats: int = improved.REPEATS) -> tuple[Tensor, Tensor, Tensor]:
    """The same for every network: loose and true boxes (S, R, 4), and labels (S, R), -1 for padding."""
    boxes, labels = rcnn.targets_of(scenes)
    true = boxes.repeat(1, repeats, 1)
    return jitter(true, most, improved.CANVAS, torch.Generator().manual_seed(1)), true, labels.repeat(1, repeats)


@torch.inference_mode()
def after_stages(run: Run, scenes: Scenes, model: Any) -> list[Tensor]:
    """Loose boxes of all objects before the first of three stages and after each, (S, R, 4); a lone head is all three."""
    maps, times = model.maps(scenes.images.to(run.device))[0], len(improved.STAGES) // len(model.boxes.stages)
    return [boxes.cpu() for boxes in model.boxes(maps, loose_boxes(scenes)[0].to(run.device), times)]


def box_ious(run: Run, scenes: Scenes, model: Any) -> Tensor:
    """IoU with the true box before the first stage and after each, (4, n)."""
    _, true, labels = loose_boxes(scenes)
    return torch.stack([paired_iou(each, true)[labels >= 0] for each in after_stages(run, scenes, model)])


# Experiments


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], what: str, **more: Any) -> Experiment:
    """An experiment with the sizes, the steps and the searches of its arms."""
    preset = improved.PRESETS[run.preset]
    data = (
        f"{what} of digits of 10 to 44 px in {preset.scenes[0]:,} scenes to train, {preset.scenes[1]:,} others to test"
    )
    sizes = {arm: size_of(build(preset, arm)) for arm in arms}
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, **more)


def outlines(run: Run) -> None:
    """Do points on the outline draw it better than a 28 x 28 grid, and what do both cost?"""

    def measure(way: str, seed: int) -> study.Outcome:
        model = trained(run, "grid" if way == "grid" else "points", seed)
        return outlines_of(run, split_of(run, "test", seed), partial(drawn, model, refined=way != "coarse"))

    scores = study.measured(run, ["coarse", *OUTLINES], measure)
    control = {"control": "The coarse mask that the points start from, merely enlarged, has poorer outlines.",
               "result": "boundary_points_over_coarse", "above": 0}  # fmt: skip
    floor = scores.floor(REACHED, "mask_iou", mean_mask(run), OUTLINES)
    experiment = opened(run, outlines, OUTLINES, "true boxes", floor=floor, power=control)
    labels = {"coarse": "7 x 7, enlarged"} | {arm: " ".join(label.split()) for arm, label in OUTLINES.items()}
    study.record(experiment, scores, IOUS, labels)
    for key, measure_name in (("mask", "mask_iou"), ("boundary", "boundary_iou")):
        for rival in ("coarse", "grid"):
            study.difference(experiment, f"{key}_points_over_{rival}", scores, measure_name, "points", rival, unit="",
                             meaning=f"{IOUS[measure_name].label}, points minus {labels[rival]}")  # fmt: skip
    for size, (low, high) in SIZES.items():
        study.difference(experiment, f"boundary_points_{size}", scores, size, "points", "grid", unit="",
                         meaning=f"Outline IoU, points minus 28 x 28, objects of {low} to {high} px")  # fmt: skip
    counted = head_macs()
    for name, value in counted.items():
        experiment.result(
            f"macs_{name}", [value], unit="M", exact=True, meaning=f"MACs per object of the {name}, alone"
        )
    both = (counted["coarse"] + counted["points"]) / counted["grid"]
    said = "MACs of coarse mask and points over those of the grid"
    experiment.result("macs_points_over_grid", [both], unit="x", exact=True, meaning=said)
    experiment.figure(
        "outlines",
        study.bars(scores, IOUS, {"coarse": "7 x 7,\nenlarged"} | OUTLINES),
        caption="Masks in true boxes, and their outlines of one pixel. Bars are means, dots are seeds.",
        alt="Bars of mask IoU and of outline IoU for an enlarged coarse mask, a grid of 28 by 28, and refined points.",
    )


def head_macs() -> dict[str, float]:
    """MACs per object (10^6), on top of the shared features; reading them at the points is not counted."""
    with torch.device("meta"):
        model, region = improved.Repaired(improved.Preset()).eval(), torch.empty(1, improved.SLIM, mask.CUT, mask.CUT)
        points = torch.empty(improved.decisions(improved.FINAL, improved.POINTS), model.points.mlp[0].in_features)
        parts = {
            "grid": (model.grid, region),
            "coarse": (model.points.coarse, region),
            "points": (model.points.mlp, points),
        }
        return {name: 1e3 * stages.macs(*each)[0] for name, each in parts.items()}


def recorded(experiment: Experiment, scores: Scores, arm: str, meanings: Mapping[str, str]) -> None:
    """Records measures of one arm under their own names."""
    for name, meaning in meanings.items():
        values, failed = scores.values(name, arm), scores.reasons("undefined", arm)
        experiment.result(name, values, unit="", meaning=meaning, failed=failed)


def cascade(run: Run) -> None:
    """Are three heads in a row better than one as large, also where that one is applied three times?"""
    scores = study.measured(run, BOXES, lambda arm, seed: outcome_of(run, arm, seed))
    control = {"control": "One stage improves loose boxes, which the measure sees.", "result": "first_gain", "above": 0}
    floor = scores.floor("box IoU that the first stage adds", "first_gain", 0.0, BOXES)
    experiment = opened(run, cascade, BOXES, "loose boxes", floor=floor, power=control)
    shares = {f"cascade_gain_{at}": f"Share of boxes with an IoU of {at} % or more, 3 stages minus 1" for at in SHARES}
    shares["cascade_tight_minus_loose"] = "The same, at 75 % minus at 50 %"
    recorded(experiment, scores, "cascade", {f"box_iou_{t}": f"Box IoU, {t} stages" for t in range(4)} | shares | GAINS)
    for rival, key, said in (("large", "once", ""), ("repeated", "thrice", ", applied three times")):
        study.difference(experiment, f"cascade_over_{rival}", scores, key, "cascade", "large", unit="",
                         meaning=f"Box IoU, three heads minus one as large{said}")  # fmt: skip
    lines = {label: [[(t, each[f"box_iou_{t}"]) for t in range(4)] for each in scores.outcomes[arm]]
             for arm, label in BOXES.items()}  # fmt: skip
    experiment.figure(
        "cascade",
        study.curves(lines, x="stages", y="mean IoU of the boxes"),
        caption="IoU of loose boxes with the true ones. Lines are means, bands reach over the seeds.",
        alt="Two lines of the mean IoU of boxes over three stages, for three heads and for one applied three times.",
    )


def outcome_of(run: Run, arm: str, seed: int) -> dict[str, float]:
    """Of loose boxes before and after each of three stages: IoU, what stages add, and shares (0 to 1) over a bound."""
    scenes, model = split_of(run, "test", seed), trained(run, arm, seed)
    ious = box_ious(run, scenes, model)
    found = {f"box_iou_{stage}": each.mean().item() for stage, each in enumerate(ious)}
    found |= {
        "first_gain": found["box_iou_1"] - found["box_iou_0"],
        "box_gain": found["box_iou_3"] - found["box_iou_1"],
    }
    over = {at: (100 * ious >= at).float().mean(1) for at in SHARES}
    found |= {f"cascade_gain_{at}": float(each[3] - each[1]) for at, each in over.items()}
    found["cascade_tight_minus_loose"] = found["cascade_gain_75"] - found["cascade_gain_50"]
    found |= {"once": found["box_iou_3" if arm == "cascade" else "box_iou_1"], "thrice": found["box_iou_3"]}
    if arm == "cascade":
        gain = mask_gain(run, scenes, model, seed)
        found |= {"mask_gain": gain, "box_minus_mask_gain": found["box_gain"] - gain}
    return found


def mask_gain(run: Run, scenes: Scenes, model: Any, seed: int) -> float:
    """Mask IoU of the grid's network in the boxes of a cascade, after three stages minus after one."""
    boxes, labels = after_stages(run, scenes, model), loose_boxes(scenes)[2]
    inside = partial(drawn, trained(run, "grid", seed))
    one, three = (qualities(run, scenes, boxes[stage], inside)[labels >= 0, 0].mean().item() for stage in (1, 3))
    return three - one


@torch.inference_mode()
def estimates(run: Run, seed: int) -> tuple[Tensor, Tensor]:
    """Estimated and true IoU (n,) of the mask of each test object, in a slightly wrong box."""
    scenes, model = split_of(run, "test", seed), trained(run, "grid", seed)
    boxes, _, labels = loose_boxes(scenes, 0.2, 1)
    regions = rcnn.crop(model.maps(scenes.images.to(run.device))[0], boxes.to(run.device), mask.CUT, mask.STRIDE)
    regions = regions.flatten(0, 1)[(labels >= 0).flatten().to(run.device)]
    quality = qualities(run, scenes, boxes, partial(drawn, model))[labels >= 0, 0]
    return model.estimate(regions, model.grid(regions).float()).cpu(), quality


@torch.inference_mode()
def classes_right(run: Run, seed: int) -> float:
    """Test objects (%) whose class the network of the grid names, in true boxes."""
    scenes, model = split_of(run, "test", seed), trained(run, "grid", seed)
    boxes, labels = rcnn.targets_of(scenes)
    regions = rcnn.crop(model.maps(scenes.images.to(run.device))[0], boxes.to(run.device), mask.CUT, mask.STRIDE)
    named = model.classes(regions.flatten(0, 1)).argmax(1).cpu().view_as(labels)
    return 100 * (named == labels)[labels >= 0].float().mean().item()


def scores(run: Run) -> None:
    """Does a head that sees a mask know how good the mask is?"""
    pairs = [estimates(run, seed) for seed in run.seeds]
    kept = study.measured(run, ["grid"], lambda arm, seed: grid_of(run, seed))
    limit = "At the learning rate that masks ask for, the class head learns nothing, so there is no ranking by class to improve."
    floor = kept.floor(REACHED, "mask_iou", mean_mask(run), ["grid"])
    experiment = opened(run, scores, ["grid"], "slightly wrong boxes", floor=floor, cannot_show=limit)
    ranks = kept.counted("grid", [float(spearmanr(*pair).statistic) for pair in pairs])
    experiment.result("rank_estimate", ranks, unit="", meaning="Rank correlation of the estimate with mask IoU",
                      failed=kept.reasons("undefined", "grid"))  # fmt: skip
    right = kept.counted("grid", [classes_right(run, seed) for seed in run.seeds])
    experiment.result("classes_right", right, unit="%", meaning="Objects whose class this network names; 10 % by chance",
                      failed=kept.reasons("undefined", "grid"))  # fmt: skip
    experiment.figure(
        "scores",
        partial(draw_scores, pair=pairs[0]),
        caption="True IoU of each test mask against the IoU that the score head estimates (first seed).",
        alt="A scatter plot of the true IoU of masks over their estimated IoU: a cloud that rises.",
    )


def grid_of(run: Run, seed: int) -> dict[str, float]:
    """What the network of the grid reaches in true boxes."""
    return outlines_of(run, split_of(run, "test", seed), partial(drawn, trained(run, "grid", seed)))


def draw_scores(style: Style, pair: tuple[Tensor, Tensor]) -> Figure:
    figure, axes = panels(1, 1, width=study.WIDTH, height=3.4)
    axes[0, 0].plot(*pair, "o", markersize=3, alpha=0.7)
    axes[0, 0].set(xlabel="estimated IoU", ylabel="true mask IoU", ylim=(-0.04, 1.04))
    return figure


def published(run: Run) -> None:
    """What do the heavier heads and a cascade cost in the published models?"""
    data = "torchvision's Mask R-CNN at 800 x 800 px, 1,000 regions, 100 masks, on the meta device"
    experiment = run.experiment("published", question=str(published.__doc__), data=data)
    first, second = (sum(stages.stages_of(f"maskrcnn_resnet50_fpn{v}", (800, 800)).values()) for v in ("", "_v2"))
    with torch.device("meta"):
        model = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    head = count_parameters(model.roi_heads.box_head) + count_parameters(model.roi_heads.box_predictor)
    for name, value, meaning in (
        ("macs_v2_over_v1", second / first, "MACs of maskrcnn_resnet50_fpn_v2 over those of the first version"),
        ("parameters_cascade_over_v1", 1 + 2 * head / count_parameters(model), "Parameters with three box heads over one, v1"),
        ("decisions_ratio", improved.decisions(224, mask.MASK**2) / mask.MASK**2, "Points for 224 x 224 over cells of 28 x 28"),
    ):  # fmt: skip
        experiment.result(name, [value], unit="x", meaning=meaning, exact=True)


EXPERIMENTS = (outlines, cascade, scores, published)
