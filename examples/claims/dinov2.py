"""DINOv2's claims: what features know without labels, what keeps answers from collapsing, and what patches cost and allow."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from dinov2 import LARGE, PIECE, PRESETS, STUDENT, TEACHER, Student, ViT, crops, distil, entropies, sinkhorn, teach
from lab import study
from lab.data import Split
from lab.data.surfaces import surfaces
from lab.metrics import accuracy
from lab.neighbours import cosines, features, right
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters, fit, minibatches, seed_everything
from torch import Tensor, nn
from torch.nn import functional

Backbone = Callable[[Tensor], Tensor]
ARMS = {"dino": "DINO", "no_centring": "no\ncentring", "no_sharpening": "no\nsharpening", "labels": "with\nlabels"}
COLLAPSING = ("dino", "no_centring", "no_sharpening")
FEATURES = {"pixels": "raw\npixels", "random": "random\nweights", "dino": "DINO", "labels": "with\nlabels"}
FLOOR = ("kNN accuracy over that of random weights (points)", 0.0)  # below it features are worth no more than none
SEEDS = {"val": 10_000, "test": 10_001}  # of the pieces, the same for all networks
MEASURES = {
    "knn": Measure("photograph named by neighbours", "%"),
    "again": Measure("same piece found again", "%"),
}
ENTROPIES = {
    "entropy_of_mean": Measure("entropy of the mean answer", "of log K"),
    "information": Measure("information of an answer", "of log K"),
}
STROKES, SIDE, RINGS = (2, 4, 8, 14, 28, 56), 224, 20  # widths in pixels; of an image; rings of each width

# Rivals and controls


def uncentred(scores: Tensor) -> Tensor:
    """p_t of scores (B, K), sharpened alone."""
    return (scores / TEACHER).softmax(-1)


def unsharpened(scores: Tensor) -> Tensor:
    """p_t of scores (B, K), centred, with the student's temperature."""
    return sinkhorn(scores / STUDENT)


TEACHERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "dino": teach,
    "no_centring": uncentred,
    "no_sharpening": unsharpened,
}


def supervise(run: Run, seed: int, rate: float) -> ViT:
    """The same backbone, pieces and steps, with labels, on one large crop of each piece."""
    preset = PRESETS[run.preset]
    seed_everything(seed)
    images, labels = (each.to(run.device) for each in surfaces("train", preset.pieces[0], PIECE, seed))
    backbone, head = ViT(preset.width, preset.layers), nn.Linear(preset.width, int(labels.max()) + 1)
    generator = torch.Generator(run.device).manual_seed(seed)

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(model(crops(images, LARGE, (0.5, 1.0), generator)).float(), labels)

    batches = minibatches((images, labels), preset.batch, preset.steps, seed)
    fit(nn.Sequential(backbone, head), batches, loss, steps=preset.steps, learning_rate=rate, device=run.device)
    return backbone


def untrained(run: Run, seed: int) -> ViT:
    seed_everything(seed)
    return ViT(PRESETS[run.preset].width, PRESETS[run.preset].layers).to(run.device).eval()


# Arms, and their rates from one search


def pieces_of(run: Run, split: Split, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pieces and their photographs; those to validate and to test are the same for all networks."""
    count = PRESETS[run.preset].pieces[split != "train"]
    return surfaces(split, count, PIECE, SEEDS.get(split, seed))


def knn(run: Run, look: Backbone, seed: int, split: Split = "test") -> float:
    """Accuracy (%) by nearest neighbours among the training pieces; `look` maps images to features (n, D)."""
    (bank, of_bank), (queries, truth) = pieces_of(run, "train", seed), pieces_of(run, split)
    return right(look(bank), of_bank, look(queries), truth)


def looking(backbone: nn.Module) -> Backbone:
    return lambda images: features(backbone, images)


def fitted(run: Run, arm: str, seed: int, rate: float) -> nn.Module:
    """A teacher, or the backbone that was trained with labels."""
    return supervise(run, seed, rate) if arm == "labels" else distil(run, seed, rate, TEACHERS[arm])


def backbone_of(model: nn.Module) -> nn.Module:
    return model.backbone if isinstance(model, Student) else model


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all, by nearest neighbours on validation pieces."""

    def score(arm: str, rate: float, seed: int) -> float:
        return knn(run, looking(backbone_of(fitted(run, arm, seed, rate))), seed, "val")

    return study.search(run, "learning rate", ARMS, (2e-3, 5e-3, 1.25e-2), score)


@cache
def trained(run: Run, arm: str) -> list[nn.Module]:
    """One network for each seed."""
    return [fitted(run, arm, seed, rates_of(run)[arm]) for seed in run.seeds]


def found_again(look: Backbone, images: Tensor, seed: int) -> float:
    """Part (%) of the pieces (n, 1, H, H) of which another large crop is nearest to their own."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (look(crops(images, LARGE, (0.5, 1.0), generator)) for _ in range(2))
    return 100 * accuracy(cosines(first, second).argmax(-1), torch.arange(len(images)))


def answers(run: Run, arm: str, teacher: nn.Module) -> dict[str, float]:
    """Entropies of the answers of a teacher to the test pieces."""
    scores = features(teacher, pieces_of(run, "test")[0])  # (n, K)
    return entropies(TEACHERS[arm](scores))


@cache
def scores_of(run: Run) -> Scores:
    """All measures of all arms; a recipe that is worth less than random weights is marked as failed."""
    looks: dict[str, list[Backbone]] = {arm: [looking(backbone_of(each)) for each in trained(run, arm)] for arm in ARMS}
    looks["random"] = [looking(untrained(run, seed)) for seed in run.seeds]
    looks["pixels"] = [lambda images: images.flatten(1) for _ in run.seeds]
    test, outcomes = pieces_of(run, "test")[0], {}
    for arm, each in looks.items():
        outcomes[arm] = [
            {"knn": knn(run, look, seed), "again": found_again(look, test, seed)}
            for look, seed in zip(each, run.seeds, strict=True)
        ]
    for arm in ("dino", "labels"):
        for mine, chance in zip(outcomes[arm], outcomes["random"], strict=True):
            mine["over_random"] = mine["knn"] - chance["knn"]
    for arm in COLLAPSING:
        for mine, teacher in zip(outcomes[arm], trained(run, arm), strict=True):
            mine |= answers(run, arm, teacher)
    scores = Scores(run.seeds, outcomes)
    scores.floor(FLOOR[0], "over_random", FLOOR[1], ("dino", "labels"))
    return scores


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    preset = PRESETS[run.preset]
    parameters = count_parameters(ViT(preset.width, preset.layers))  # a head is thrown away, or has a few more
    train, test = preset.pieces
    data = f"{train:,} grey pieces of fourteen photographs, {PIECE} x {PIECE} pixels, to train; {test} of other parts of them to "
    data += "choose the learning rate, as many of further parts to test"
    sizes = dict.fromkeys(arms, parameters)
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=FLOOR, **more)


# Experiments


def frozen_features(run: Run) -> None:
    """What do features that were learned without labels know, beside raw pixels, random weights and labels?"""
    control = {"control": "With labels the same network learns to tell the photographs apart.",
               "result": "labels_over_random", "above": 10}  # fmt: skip
    experiment, scores = opened(run, frozen_features, ("dino", "labels"), power=control), scores_of(run)
    study.record(experiment, scores, MEASURES, {arm: name.replace("\n", " ") for arm, name in FEATURES.items()})
    for measure, (label, _, _) in MEASURES.items():
        for other in ("pixels", "random", "labels"):
            meaning = f"{label}: self-distillation minus {FEATURES[other]}".replace("\n", " ")
            study.difference(
                experiment, f"{measure}_gap_{other}", scores, measure, "dino", other, unit="points", meaning=meaning
            )
    study.difference(
        experiment, "labels_over_random", scores, "knn", "labels", "random", unit="points",
        meaning="photograph named by neighbours: training with labels minus random weights",
    )  # fmt: skip
    experiment.figure(
        "features",
        study.bars(scores, MEASURES, FEATURES),
        caption="Frozen features of test pieces: whether their nearest neighbours among the training pieces come from the same "
        "photograph, and whether another crop of the same piece is nearest. Bars are means, dots are seeds.",
        alt="Two bar charts for raw pixels, random weights, self-distillation and labels: photographs named by neighbours, and "
        "the same piece found again.",
    )


def ablation(run: Run) -> None:
    """Do centring and sharpening keep the answers from becoming constant?"""
    experiment, scores = opened(run, ablation, COLLAPSING), scores_of(run)
    study.record(experiment, scores, ENTROPIES, {arm: ARMS[arm].replace("\n", " ") for arm in COLLAPSING})
    for other in COLLAPSING[1:]:
        name = ARMS[other].replace("\n", " ")
        for result, measure, unit, label in (
            ("knn_gap", "knn", "points", MEASURES["knn"].label),
            ("information_gap", "information", "of log K", ENTROPIES["information"].label),
        ):
            meaning = f"{label}: the recipe minus {name}"
            study.difference(
                experiment, f"{result}_{other}", scores, measure, "dino", other, unit=unit, meaning=meaning
            )
    experiment.figure(
        "collapse",
        study.bars(scores, ENTROPIES | {"knn": MEASURES["knn"]}, {arm: ARMS[arm] for arm in COLLAPSING}),
        caption="The teacher's answers to test pieces at the end of training, and what its features are worth. An entropy of "
        "the mean of 0 is one prototype for all; an information of 0 is a constant answer. Bars are means, dots are seeds.",
        alt="Three bar charts for the recipe, without centring and without sharpening: entropy of the mean answer, information "
        "of an answer, and photographs named by neighbours.",
    )


WIDTHS = {"s": (384, 12), "g": (1536, 40)}  # D and layers of ViT-S and ViT-g
STEPS, PICTURES, SKIPPED = 625_000, 1024, 0.4  # configs/train/vitg14.yaml and ssl_default_config.yaml
A100 = 156e12  # MACs a second, float16 with float32 sums


def macs(size: str, side: int, patch: int = 14, more: int = 1) -> float:
    """Of a forward pass, by the formula of a transformer: its linear layers and attention; `more` tokens beside the patches."""
    (width, layers), tokens = WIDTHS[size], (side // patch) ** 2 + more
    return layers * (12 * tokens * width**2 + 2 * tokens**2 * width) + (tokens - more) * 3 * patch**2 * width


def training_hours() -> float:
    """Least A100 hours of ViT-g: two crops of 224 and eight of 98 px; a backward pass costs two forward ones."""
    large, small = macs("g", 224), macs("g", 98)
    picture = 2 * large + 3 * (1 - SKIPPED) * (2 * large + 8 * small)  # the teacher's forward, the student's step
    return STEPS * PICTURES * picture / A100 / 3600


def finetuning_over_linear(classes: int = 1000) -> float:
    """Memory of ViT-g besides activations: weights, gradients, two moments, over frozen weights and a trained linear layer."""
    width, layers = WIDTHS["g"]
    weights = layers * 12 * width**2
    return 16 * weights / (4 * weights + 16 * width * classes)


def stroke_ceiling(width: float, seed: int, patch: int = 14, count: int = RINGS) -> float:
    """IoU with rings of this width of the best masks that have one value for each patch."""
    rng, values = np.random.default_rng(seed), []
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    for _ in range(count):
        (a, b), radius = rng.uniform(95, 129, 2), rng.uniform(60, 85)
        ring = torch.from_numpy(abs(np.hypot(x - a, y - b) - radius) < width / 2).float()
        part = functional.avg_pool2d(ring[None, None], patch).flatten().sort(descending=True).values
        covered = part.cumsum(0) * patch**2  # the best patches first: the best mask takes the first n
        taken = torch.arange(1, len(part) + 1) * patch**2
        values.append((covered / (taken + ring.sum() - covered)).max().item())
    return float(np.mean(values))


def patches(run: Run) -> None:
    """What does the side of a patch cost, and how fine a mask does it allow?"""
    data = f"no training: formulas of a transformer, and {RINGS} rings on {SIDE} x {SIDE} pixels for each seed"
    experiment = run.experiment("patches", question=str(patches.__doc__), data=data)
    for name, value, unit, meaning in (
        ("macs_patch_8_over_16", macs("s", 224, 8) / macs("s", 224, 16), "x", "ViT-S at 224 px: patches of 8 px over 16 px"),
        ("macs_registers_over_plain", macs("g", 224, more=5) / macs("g", 224), "x", "ViT-g at 224 px: registers over none"),
        ("finetuning_over_linear_memory", finetuning_over_linear(), "x", "ViT-g: full fine-tuning over a linear layer, memory"),
        ("training_a100_hours", training_hours(), "h", "ViT-g: its training on one A100 at the peak of its arithmetic"),
    ):  # fmt: skip
        experiment.result(name, [value], unit=unit, meaning=f"{meaning}, by formula", exact=True)
    limits = [[(float(width), stroke_ceiling(width, seed)) for width in STROKES] for seed in run.seeds]
    for width in (4, 56):
        values = [dict(each)[width] for each in limits]
        experiment.result(f"ceiling_iou_{width}px", values, unit="", meaning=f"best IoU with strokes of {width} px")
    experiment.figure(
        "patches",
        study.curves({"best mask": limits}, x="width of a stroke (pixels)", y="IoU"),
        caption="IoU of the best mask that has one value for each patch of 14 px, for rings of several widths on 224 px.",
        alt="A curve of the best possible IoU that rises with the width of a stroke.",
    )


EXPERIMENTS = (frozen_features, ablation, patches)
