"""One benchmark for all detectors: the same scenes, budget, measures and picture, so that their runs can stand side by side.

A detector is trained by `train` and handed to `report`, which writes the results ``scenes_*`` and the figure ``stress``
that the page "Detectors side by side" collects from every run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.ops import box_iou

from lab import study
from lab.data import Split
from lab.data.scenes import STRESSES, Scenes, Stress, make_scenes
from lab.figures import Style, draw_boxes, panels, show_image
from lab.metrics import Objects, average_precision, detections_per_object
from lab.run import Experiment, Run
from lab.training import count_parameters, fit, minibatches

M = TypeVar("M", bound=nn.Module)
Detect = Callable[[M, Tensor], list[dict[str, Tensor]]]
"""images (B, 3, H, W) -> for each ``boxes`` (n, 4) xyxy in pixels, ``scores`` (n,), ``labels`` (n,), best first or not."""

AP_NAMES = {"ap": "AP", "ap50": "AP50", "ap_small": "AP, small", "ap_medium": "AP, medium", "ap_large": "AP, large"}
IMAGES_AT_ONCE = 50


@dataclass(frozen=True)
class Benchmark:
    """Scenes and budget, the same for every detector.

    Attributes:
        canvas, objects, classes: of the scenes: side in pixels, fewest and most objects, number of classes.
        scenes: numbers of training and of test scenes.
        stressed: number of scenes of each stress.
        sizes: sides in pixels up to which objects are small, and from which they are large: about thirds of the objects.
        steps: of the optimiser at a constant learning rate, and at a tenth of it after that.
        every: steps between two points of the curve of AP; where it is as many as the first of `steps`, there is one point, the
            last.
        batch: scenes in a step.
        confidence: lowest score of a box that is shown and counted.
    """

    canvas: int = 64
    objects: tuple[int, int] = (1, 4)
    classes: int = 1
    scenes: tuple[int, int] = (3000, 200)
    stressed: int = 100
    sizes: tuple[float, float] = (12.0, 17.0)
    steps: tuple[int, int] = (320, 80)
    every: int = 40
    batch: int = 16
    confidence: float = 0.5


BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        "smoke": Benchmark(scenes=(40, 24), stressed=8, steps=(6, 2), every=3, confidence=0.0),
        "quick": Benchmark(),
        "full": Benchmark(
            canvas=128,
            objects=(2, 8),
            classes=10,
            scenes=(8000, 1000),
            stressed=500,
            sizes=(20.0, 32.0),
            steps=(6_000, 1_500),
            every=500,
            batch=64,
        ),
    }
)


def opened(
    run: Run, experiment: Callable[[Run], None], sizes: Mapping[str, int], floor: tuple[str, float], **more: Any
) -> Experiment:
    """`study.opened` for an experiment on the shared scenes; `sizes` are the parameters of each arm."""
    benchmark = BENCHMARKS[run.preset]
    train, test = benchmark.scenes
    data = f"{train:,} digit scenes of {benchmark.canvas} px to train, {test:,} others to test"
    return study.opened(run, experiment, data=data, sizes=sizes, steps=sum(benchmark.steps), floor=floor, **more)


_made = lru_cache(maxsize=6)(make_scenes)
"""All arms train on the same scenes: those of three seeds are kept, to train and to test."""


def scenes_of(benchmark: Benchmark, split: Split, seed: int, stress: Stress | None = None) -> Scenes:
    """The scenes of a split, or those of the same kind under a stress."""
    count = benchmark.stressed if stress else benchmark.scenes[0] if split == "train" else benchmark.scenes[1]
    canvas, objects, classes = benchmark.canvas, benchmark.objects, benchmark.classes
    return _made(split, count, seed=seed, canvas=canvas, objects=objects, classes=classes, stress=stress)


@dataclass(frozen=True)
class Trained(Generic[M]):
    """A detector after training, its test scenes, and AP (%) on them after so many steps."""

    model: M
    test: Scenes
    curve: Sequence[tuple[int, float]]


def train(
    run: Run,
    benchmark: Benchmark,
    seed: int,
    model: M,
    loss: Callable[[M, Scenes], Tensor],
    detect: Detect[M],
    *,
    learning_rate: float,
    what: str,
    split: Split = "test",
) -> Trained[M]:
    """Trains a detector on the scenes of a seed with the budget of all.

    Args:
        run: gives the device and the progress bar.
        benchmark: scenes and budget.
        seed: of the scenes and of their order; seed the model's weights before it is made, with `seed_everything`.
        model: in training mode while `loss` is called.
        loss: of a batch of scenes, on the device.
        detect: final boxes of images, in evaluation mode.
        learning_rate: chosen on validation scenes with other seeds than those that are reported.
        what: names the progress bar.
        split: "val" to choose settings, "test" to report.
    """
    training, test = scenes_of(benchmark, "train", seed).to(run.device), scenes_of(benchmark, split, seed)
    steps, last = benchmark.steps
    order = minibatches((torch.arange(len(training)),), benchmark.batch, steps + last, seed)
    curve: list[tuple[int, float]] = []

    def batch(_: int) -> tuple[Scenes]:
        return (training[next(order)[0]],)

    def measure(step: int, trained: nn.Module) -> None:
        curve.append((step, ap_of(on_scenes(partial(detect, model), test, run.device), test)))

    learn = partial(fit, model, batch, loss, schedule="constant", device=run.device, callback=measure)
    bar, every = partial(run.progress, what=what), benchmark.every if benchmark.every < steps else None
    learn(steps=steps, learning_rate=learning_rate, progress=bar, every=every)
    learn(steps=last, learning_rate=learning_rate / 10, warmup=0, every=last)
    final = steps + last
    return Trained(model, test, [*curve[:-1], (final, curve[-1][1])])


@torch.inference_mode()
def on_scenes(
    detect: Callable[[Tensor], list[dict[str, Tensor]]], scenes: Scenes, device: torch.device
) -> list[dict[str, Tensor]]:
    """What a detector finds on each scene, on the CPU."""
    found: list[dict[str, Tensor]] = []
    for start in range(0, len(scenes), IMAGES_AT_ONCE):
        part = detect(scenes.images[start : start + IMAGES_AT_ONCE].to(device))
        found += [{name: value.float().cpu() for name, value in each.items()} for each in part]
    return found


def all_found(run: Run, benchmark: Benchmark, trained: Trained[M], detect: Detect[M]) -> list[int]:
    """Test scenes with a confident box, of an IoU of 0.5, on each object and no other, to be drawn; all where there is none."""
    right = []
    for index, each in enumerate(on_scenes(partial(detect, trained.model), trained.test, run.device)):
        sure, boxes = each["boxes"][each["scores"] >= benchmark.confidence], trained.test.boxes[index]
        if len(sure) == len(boxes) and (box_iou(sure, boxes) >= 0.5).any(0).all():
            right.append(index)
    return right or [*range(len(trained.test))]


def truth(scenes: Scenes) -> list[dict[str, Tensor]]:
    """The objects of each scene, as `lab.metrics` takes them."""
    return [{"boxes": boxes, "labels": labels} for boxes, labels in zip(scenes.boxes, scenes.labels, strict=True)]


def measures(found: Sequence[Objects], scenes: Scenes, benchmark: Benchmark) -> dict[str, float]:
    """AP in %, over all objects (`ap`, `ap50`) and by size, and `boxes` as `boxes_of` counts them."""
    ap = average_precision(found, truth(scenes), sizes=benchmark.sizes)
    return {name: 100 * ap[name] for name in AP_NAMES} | {"boxes": boxes_of(found, scenes, benchmark)}


def ap_of(found: Sequence[Objects], scenes: Scenes, measure: str = "ap") -> float:
    """AP in % over all objects, or "ap50", in less than half of the time of `measures`."""
    return 100 * average_precision(found, truth(scenes), sizes=None)[measure]


def boxes_of(found: Sequence[Objects], scenes: Scenes, benchmark: Benchmark) -> float:
    """Confident boxes per found object, NaN if none is."""
    return detections_per_object(found, truth(scenes), score=benchmark.confidence)


def steps_to_half(curve: Sequence[tuple[int, float]]) -> float:
    """Steps at which the curve first crosses half of its last value, interpolated between its points."""
    goal, (before, low) = curve[-1][1] / 2, (0, 0.0)
    for step, ap in curve:
        if ap >= goal:
            return before + (step - before) * ((goal - low) / (ap - low) if ap > low else 1.0)
        before, low = step, ap
    return float(curve[-1][0])


def report(
    run: Run, benchmark: Benchmark, trained: Sequence[Trained[M]], detect: Detect[M], raw: Detect[M], *, name: str
) -> None:
    """Writes what all detectors are compared by: an experiment with the results ``scenes_*`` and the figure ``stress``.

    Args:
        run: takes the experiment.
        benchmark: that the detectors were trained with.
        trained: one for each seed.
        detect: final boxes of images.
        raw: boxes before anything is suppressed.
        name: of the detector in captions.
    """
    experiment = run.experiment(
        "side_by_side",
        question="How does it fare on the scenes that all detectors share?",
        data=f"{benchmark.scenes[0]:,} digit scenes of {benchmark.canvas} px to train, {benchmark.scenes[1]:,} to test",
        parameters=count_parameters(trained[0].model),
        steps=sum(benchmark.steps),
    )
    found = [on_scenes(partial(detect, each.model), each.test, run.device) for each in trained]
    scores = [measures(one, each.test, benchmark) for one, each in zip(found, trained, strict=True)]
    for key, label in AP_NAMES.items():
        values = [score[key] for score in scores]
        experiment.result(f"scenes_{key}", values, unit="%", meaning=f"{label}, on the scenes that all detectors share")
    boxes = [score["boxes"] for score in scores]
    if raw is not detect:
        boxes = [boxes_of(on_scenes(partial(raw, e.model), e.test, run.device), e.test, benchmark) for e in trained]
    experiment.result(
        "scenes_boxes_per_object_raw",
        boxes,
        unit="boxes",
        meaning="Confident boxes per found object when nothing is suppressed",
        failed={seed: "no object is found" for seed, count in zip(run.seeds, boxes, strict=True) if math.isnan(count)},
    )
    half = [steps_to_half(each.curve) for each in trained]
    experiment.result("scenes_steps_to_half", half, unit="steps", meaning="Steps to half of its own final AP")
    for stress in STRESSES:
        pairs = zip(run.seeds, trained, strict=True)
        values = [_stressed(run, benchmark, seed, stress, each, detect) for seed, each in pairs]
        experiment.result(f"scenes_ap_{stress}", values, unit="%", meaning=f"AP on {stress.replace('_', ' ')} scenes")
    experiment.figure(
        "stress",
        partial(_draw_stress, shown=_shown(run, benchmark, trained[0], detect)),
        caption=f"Above the truth, below the boxes of {name} with a score of at least {benchmark.confidence:g}, on scenes "
        "that all detectors share: one as in training, and one each with tiny, crowded, occluded, rotated and faint digits, "
        "which it was not trained for. Detectors of the first seed.",
        alt=f"Six scenes, each with true boxes above and those found by {name} below: plain, tiny, crowded, occluded, rotated "
        "and low contrast.",
    )


def _stressed(
    run: Run, benchmark: Benchmark, seed: int, stress: Stress, trained: Trained[M], detect: Detect[M]
) -> float:
    """AP (%) under a stress."""
    scenes = scenes_of(benchmark, "test", seed, stress)
    return ap_of(on_scenes(partial(detect, trained.model), scenes, run.device), scenes)


Shown = tuple[str, Tensor, Tensor, Tensor]
"""Title, image (3, H, W), true boxes (n, 4), found boxes (m, 4)."""


def _shown(run: Run, benchmark: Benchmark, trained: Trained[M], detect: Detect[M]) -> list[Shown]:
    """Of each kind, the first scene of seed 0: the same for every detector, whatever the seeds of its run."""
    shown = []
    for stress in (None, *STRESSES):
        scene = scenes_of(benchmark, "test", 0, stress)[:1]
        (found,) = on_scenes(partial(detect, trained.model), scene, run.device)
        sure = found["boxes"][found["scores"] >= benchmark.confidence]
        title = (stress or "as in training").replace("_", " ")
        shown.append((title, scene.images[0], scene.boxes[0], sure))
    return shown


def _draw_stress(style: Style, shown: Sequence[Shown]) -> Figure:
    """Three scenes to a row, so that a phone shows them large enough."""
    figure, axes = panels(4, 3, width=5.4, height=7.4)
    for index, (title, image, boxes, found) in enumerate(shown):
        row, column = 2 * (index // 3), index % 3
        show_image(axes[row, column], image, title)
        show_image(axes[row + 1, column], image)
        draw_boxes(axes[row, column], boxes, linewidth=1.2)
        draw_boxes(axes[row + 1, column], found, linewidth=1.2)
    for ax, label in zip(axes[:, 0], ("truth", "found") * 2, strict=True):
        ax.text(-0.06, 0.5, label, transform=ax.transAxes, rotation=90, ha="right", va="center", fontweight="bold")
    return figure
