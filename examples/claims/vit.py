"""ViT's claims: when does it catch up with a CNN of its size, what do positions and stem add, and what does attention cost?"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from lab import study
from lab.data.digits import digits_at_places
from lab.figures import Figure, Style, panels, show_image
from lab.metrics import accuracy
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters, seed_everything
from matplotlib.colors import ListedColormap
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation
from vit import CANVAS, CLASSES, DIGIT, PRESETS, ViT, build, patches_from_images, train, trained_vit

ARMS = {"vit": "ViT", "cnn": "CNN", "hybrid": "ViT with conv stem"}
WITHOUT = "vit_without_positions"
CNN_WIDTHS = {"smoke": (16, 32, 48, 52), "quick": (16, 32, 48, 52), "full": (64, 128, 256, 352)}
STEMS = {"smoke": (8, 16), "quick": (8, 16), "full": (64,)}
PLACES = 5  # how often each test digit is placed on a canvas
FLOOR = 30.0  # accuracy (%) below which a training counts as failed; chance is 10
SIDES = (224, 448, 672, 896, 1120)  # of images in pixels, whose cost is worked out

# Rivals and controls


def convolutions(widths: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions with batch norm and ReLU, each halves the image: (B, 1, H, W) -> (B, D, H / 2^n, W / 2^n)."""
    layers = nn.Sequential(*(Conv2dNormActivation(a, b, stride=2) for a, b in pairwise((1, *widths))))
    return layers.to(memory_format=torch.channels_last)  # faster, also on a CPU


class CNN(nn.Module):
    """Images (B, 1, H, W) -> class scores (B, K): strided convolutions, then the mean over the image."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers, self.head = convolutions(widths), nn.Linear(widths[-1], CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images).mean((2, 3)))  # (B, D, H', W') -> (B, D) -> (B, K)


class ConvStem(nn.Module):
    """Strided convolutions in place of flat patches, as in arXiv:2106.14881: (B, 1, H, W) -> (B, N, D)."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.layers, self.proj = convolutions(widths), nn.Conv2d(widths[-1], width, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(self.layers(images)).flatten(2).mT  # (B, D, H / P, W / P) -> (B, N, D)


def build_arm(arm: str, preset: str) -> nn.Module:
    """The untrained model of an arm; all have about as many parameters."""
    if arm == "cnn":
        return CNN(CNN_WIDTHS[preset])
    model = build(PRESETS[preset])
    if arm == "hybrid":
        model.patch_embed = ConvStem(STEMS[preset], PRESETS[preset].width)
    if arm == WITHOUT:
        model.pos_embed = nn.Parameter(torch.zeros_like(model.pos_embed), requires_grad=False)
    return model


def shuffled_patches(images: Tensor, patch: int, generator: torch.Generator) -> Tensor:
    """Puts the patches of each image in a random order of its own: (B, 1, H, W) -> (B, 1, H, W)."""
    patches = patches_from_images(images, patch)  # (B, N, P P)
    order = torch.rand(patches.shape[:2], generator=generator).argsort(1)  # (B, N)
    shuffled = patches.gather(1, order[..., None].expand_as(patches))
    return nn.functional.fold(shuffled.mT, images.shape[-2:], patch, stride=patch)


class Trained(NamedTuple):
    model: nn.Module
    loss: float  # mean over the last twentieth of the steps


def fit(run: Run, arm: str, count: int, seed: int, rate: float) -> Trained:
    seed_everything(seed)
    model: nn.Module = build_arm(arm, run.preset)
    if arm == "vit":
        model, losses = trained_vit(run, count, seed, rate)
    else:
        losses = train(model, run, count, seed, rate)
    return Trained(model, float(np.mean(losses[-max(1, len(losses) // 20) :])))


def digits_of(run: Run, split: str = "test", places: int = PLACES) -> tuple[Tensor, Tensor]:
    """Digits of a split at several places, from -1 to 1, and their labels."""
    images, labels = digits_at_places(split, DIGIT, CANVAS, places)  # type: ignore[arg-type]
    return (2 * images - 1).to(run.device), labels.to(run.device)


@torch.inference_mode()
def predicted(model: nn.Module, images: Tensor) -> Tensor:
    """The class of each image, (n,)."""
    return torch.cat([model(part).argmax(1) for part in images.split(100)])


def percent_right(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return 100 * accuracy(predicted(model, images), labels)


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all, by the accuracy on validation digits after the largest set."""

    def score(arm: str, rate: float, seed: int) -> float:
        return percent_right(fit(run, arm, PRESETS[run.preset].sizes[-1], seed, rate).model, *digits_of(run, "val"))

    return study.search(run, "learning rate", (*ARMS, WITHOUT), (1e-3, 2e-3, 4e-3, 8e-3, 16e-3), score)


@cache
def trained(run: Run, arm: str, count: int) -> list[Trained]:
    """One model for each seed."""
    return [fit(run, arm, count, seed, rates_of(run)[arm]) for seed in run.seeds]


def vits(run: Run) -> list[ViT]:
    """The ViTs that saw the most digits, one for each seed."""
    return [each.model for each in trained(run, "vit", PRESETS[run.preset].sizes[-1]) if isinstance(each.model, ViT)]


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    """An experiment on digits, with the sizes and the searches of its arms."""
    preset = PRESETS[run.preset]
    sizes = {arm: count_parameters(build_arm(arm, run.preset)) for arm in arms}
    data = f"{' or '.join(map(str, preset.sizes))} digits of {DIGIT} px on {CANVAS} px to train, 300 others to test, "
    data += f"each at {PLACES} places"
    floor = ("test accuracy (%)", FLOOR)
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=floor, **more)


# Experiments


def seen(middle: Callable[[Tensor], Tensor]) -> Tensor:
    """The pixels that outputs depend on, bool (H, W): those with a gradient for some of many images of noise.

    middle: images (B, 1, H, W) -> the outputs in the middle, (B, D).
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 1, CANVAS, CANVAS, generator=generator, requires_grad=True)
    out = middle(images)
    mixture = torch.randn(out.shape, generator=generator)  # a plain sum could cancel out
    (gradient,) = torch.autograd.grad((out * mixture).sum(), images)
    return (gradient != 0).any(0)[0]  # (B, 1, H, W) -> (H, W)


def masks_of_views(preset: str) -> list[Tensor]:
    """What the middle sees after each convolution of the CNN and, last, after the first block of the ViT."""
    seed_everything(0)
    cnn, vit, side = CNN(CNN_WIDTHS[preset]).eval(), build(PRESETS[preset]).eval(), CANVAS // PRESETS[preset].patch
    token = 1 + side // 2 * side + side // 2  # behind the class token

    def after(layers: int, images: Tensor) -> Tensor:
        features: Tensor = cnn.layers[:layers](images)  # (B, D, H', W')
        return features[:, :, features.shape[2] // 2, features.shape[3] // 2]

    masks = [seen(partial(after, layers)) for layers in range(1, len(cnn.layers) + 1)]
    return [*masks, seen(lambda images: vit.blocks[0](vit.embed(images))[:, token])]


def views(run: Run) -> None:
    """How much of the image does one layer see?"""
    experiment = run.experiment("views", question=str(views.__doc__), data="random weights, images of noise")
    masks = masks_of_views(run.preset)
    shares = [100 * mask.double().mean().item() for mask in masks]
    for name, layer, at in (
        ("first_convolution", "first convolution of the CNN", 0),
        ("last_convolution", "last convolution of the CNN", -2),
        ("first_block", "first block of the ViT", -1),
    ):
        meaning = f"Pixels of the image that an output in the middle depends on after the {layer}"
        experiment.result(f"seen_after_{name}", [shares[at]], unit="%", meaning=meaning, exact=True)
    experiment.figure(
        "seen",
        partial(draw_seen, masks=[masks[0], masks[1], masks[-1]], shares=[shares[0], shares[1], shares[-1]]),
        caption="Filled: the pixels that an output in the middle depends on, after one and two convolutions and after one block "
        "of attention. It holds for random weights, before anything is learned.",
        alt="Three squares that stand for the image: a spot in the middle, a larger spot, and all of the square filled.",
    )


def draw_seen(style: Style, masks: Sequence[Tensor], shares: Sequence[float]) -> Figure:
    figure, axes = panels(1, 3, width=5.4, height=2.2)
    names = ("convolution 1", "convolution 2", "ViT, block 1")
    for ax, name, mask, share in zip(axes[0], names, masks, shares, strict=True):
        title = f"{name}\n{share:.2g} %".replace("1e+02", "100")
        show_image(ax, mask, title, cmap=ListedColormap([style.panel, style.cycle[0]]))
    return figure


def data_size(run: Run) -> None:
    """How much of the CNN's lead is left as the training set grows?"""
    limit = "To pass a CNN of its size it would need pretraining on millions of images; the largest set is a thousand digits."
    experiment = opened(run, data_size, tuple(ARMS), cannot_show=limit)
    sizes, test = dict(zip(("smallest", "largest"), PRESETS[run.preset].sizes, strict=True)), digits_of(run)
    outcomes = {
        arm: [
            {f"{what}_{name}": value for name, each in zip(sizes, pair, strict=True)
             for what, value in (("accuracy", percent_right(each.model, *test)), ("training_loss", each.loss))}
            for pair in zip(*(trained(run, arm, count) for count in sizes.values()), strict=True)
        ]
        for arm in ARMS
    }  # fmt: skip
    scores = Scores(run.seeds, outcomes)
    scores.floor("test accuracy (%)", "accuracy_largest", FLOOR, ARMS)
    for name, count in sizes.items():
        for arm, label in ARMS.items():
            why, about = scores.reasons("undefined", arm), f"{label} trained on {count} digits"
            experiment.result(
                f"accuracy_{arm}_{name}_set", scores.values(f"accuracy_{name}", arm), unit="%", meaning=f"Test accuracy, {about}",
                failed=why,
            )  # fmt: skip
            experiment.result(
                f"training_loss_{arm}_{name}_set", scores.values(f"training_loss_{name}", arm), unit="nat",
                meaning=f"Loss at the end, {about}", failed=why,
            )  # fmt: skip
        for result, a, b in (("gap", "cnn", "vit"), ("hybrid_gap", "cnn", "hybrid"), ("stem_gain", "hybrid", "vit")):
            meaning = f"Accuracy of {ARMS[a]} minus {ARMS[b]}, {count} training digits"
            study.difference(
                experiment, f"{result}_{name}_set", scores, f"accuracy_{name}", a, b, unit="points", meaning=meaning
            )
    small, large = (scores.minus(f"accuracy_{name}", "cnn", "vit") for name in sizes)
    shrinks, why = [a - b for a, b in zip(small, large, strict=True)], scores.reasons("undefined", "cnn", "vit")
    meaning = "CNN's lead over ViT, smallest set minus largest set, same seed"
    experiment.result("gap_shrinks", shrinks, unit="points", meaning=meaning, failed=why)
    experiment.figure(
        "data_size",
        study.bars(
            scores, {f"accuracy_{name}": Measure(f"accuracy after {sizes[name]:,} digits", "%") for name in sizes}, ARMS
        ),
        caption="Accuracy on digits that no model was trained on. Bars are means, dots are seeds.",
        alt="Two bar charts, for few and for many training digits: the test accuracy of ViT, CNN and the ViT with a "
        "convolutional stem.",
    )


def patch_order(run: Run) -> None:
    """What happens if the patches come in another order, with and without position embeddings?"""
    experiment = opened(run, patch_order, ("vit", WITHOUT))
    images, labels = (each.cpu() for each in digits_of(run))
    images = images.double()  # rounding must not decide between two classes
    shuffled = shuffled_patches(images, PRESETS[run.preset].patch, torch.Generator().manual_seed(0))
    found: dict[str, list[dict[str, float]]] = {}
    for name, arm in (("with", "vit"), ("without", WITHOUT)):
        nets = [copy.deepcopy(each.model).cpu().double() for each in trained(run, arm, PRESETS[run.preset].sizes[-1])]
        for net in nets:
            before, after = predicted(net, images), predicted(net, shuffled)
            right = {"in_order": 100 * accuracy(before, labels), "shuffled": 100 * accuracy(after, labels)}
            found.setdefault(name, []).append(right | {"changed": 100 * (1 - accuracy(after, before))})
    scores = Scores(run.seeds, found)
    scores.floor("test accuracy (%)", "in_order", FLOOR, found)
    for name in found:
        why = scores.reasons("undefined", name)
        for result, measure, what in (
            (f"accuracy_{name}_positions", "in_order", "Test accuracy, patches in order"),
            (f"accuracy_{name}_positions_shuffled", "shuffled", "Test accuracy, patches shuffled"),
            (f"predictions_changed_{name}_positions", "changed", "Test images classified differently once shuffled"),
        ):
            meaning = f"{what}, {name} position embeddings"
            experiment.result(result, scores.values(measure, name), unit="%", meaning=meaning, failed=why)
    meaning = "Accuracy with minus without position embeddings, patches in order"
    study.difference(
        experiment, "positions_gain", scores, "in_order", "with", "without", unit="points", meaning=meaning
    )
    measures = {"in_order": Measure("accuracy, patches in order", "%"), "shuffled": Measure("accuracy, shuffled", "%")}
    experiment.figure(
        "patch_order",
        study.bars(scores, measures, {"with": "with\npositions", "without": "without"}),
        caption="Accuracy on test digits, and on the same with the patches of each in disorder. Without position embeddings the "
        "order changes nothing at all. Dots are seeds.",
        alt="Bars of test accuracy with and without position embeddings, for patches in order and shuffled.",
    )


def grid_distances(side: int) -> Tensor:
    """Distances between the patches of a (side, side) grid, in patches, (N, N)."""
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()  # (N, 2), row by row
    return torch.cdist(places, places)


def position_similarity(vit: ViT) -> tuple[Tensor, Tensor]:
    """Cosines between the position embeddings of all patches, and the distances of the patches, both (N, N)."""
    directions = nn.functional.normalize(vit.pos_embed.detach()[0, 1:].cpu().double(), dim=-1)  # (N, D), no class token
    return directions @ directions.mT, grid_distances(round(len(directions) ** 0.5))


def neighbour_lead(vit: ViT) -> float:
    """Mean cosine of neighbours in a row or a column, minus that of all pairs farther apart."""
    similarity, distances = position_similarity(vit)
    return (similarity[distances == 1].mean() - similarity[distances > 1].mean()).item()


def distance_correlation(vit: ViT) -> float:
    """Correlation of cosine and distance over all pairs of patches; -1 if similarity falls evenly with distance."""
    similarity, distances = position_similarity(vit)
    pairs = distances > 0  # without each patch itself
    return torch.corrcoef(torch.stack([similarity[pairs], distances[pairs]]))[0, 1].item()


def positions(run: Run) -> None:
    """Do the position embeddings learn that the patches lie on a grid?"""
    limit = "It would need photographs and a finer grid: the border of digits is black, so far borders become alike."
    experiment, starts = opened(run, positions, ("vit",), cannot_show=limit), []
    for seed in run.seeds:
        seed_everything(seed)
        starts.append(build(PRESETS[run.preset]))
    for suffix, models, when in (("", vits(run), "after training"), ("_at_start", starts, "before training")):
        for name, measure, meaning in (
            (
                "neighbour_lead",
                neighbour_lead,
                "Mean cosine of position embeddings of neighbouring patches minus all others",
            ),
            (
                "distance_correlation",
                distance_correlation,
                "Correlation of the cosine of two position embeddings with distance",
            ),
        ):
            values = [measure(each) for each in models]
            experiment.result(f"{name}{suffix}", values, unit="", meaning=f"{meaning}, {when}")
    lines = {"trained": [*map(over_distance, vits(run))], "at the start": [*map(over_distance, starts)]}
    experiment.figure(
        "positions",
        study.curves(lines, x="distance (patches)", y="mean cosine"),
        caption="The mean cosine of two position embeddings over the distance of their patches: a line that falls all the way "
        "would say that only distance counts. Bands reach from the lowest to the highest seed.",
        alt="A line chart of the mean cosine over the distance between patches, before and after training.",
    )


def over_distance(vit: ViT) -> list[tuple[float, float]]:
    """The distances between two patches, and the mean cosine of their position embeddings at each."""
    similarity, distances = position_similarity(vit)
    steps = np.unique(distances)[1:].tolist()  # without each patch itself
    return [(step, similarity[distances == step].mean().item()) for step in steps]


def attention_share(side: int, patch: int = 16, width: int = 768) -> float:
    """Part (%) of the MACs of a block that comparing tokens takes, 2 N^2 D against 12 N D^2, for ViT-B/16."""
    tokens = (side // patch) ** 2 + 1
    return 100 * 2 * tokens / (2 * tokens + 12 * width)


def cost(run: Run) -> None:
    """How does the cost of attention grow with the image, and that of all the rest?"""
    data = f"the two terms of a block of ViT-B/16, worked out for images of {', '.join(map(str, SIDES))} px"
    experiment = run.experiment("cost", question=str(cost.__doc__), data=data)
    for side in (224, 1120):
        meaning = f"Part of the MACs of a block of ViT-B/16 that attention takes, image of {side} px"
        experiment.result(f"attention_share_{side}", [attention_share(side)], unit="%", meaning=meaning, exact=True)
    slope = np.polyfit(np.log(np.square(SIDES)), [2 * np.log((side // 16) ** 2 + 1) for side in SIDES], 1)[0]
    meaning = "Power of the number of pixels that the MACs of attention grow with"
    experiment.result("attention_exponent", [float(slope)], unit="", meaning=meaning, exact=True)


EXPERIMENTS = (views, data_size, patch_order, positions, cost)
