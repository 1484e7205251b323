"""InternImage's claims: what do chosen points add, do they depend on the input, how far do they see, what do they cost?"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from internimage import (
    CANVAS,
    CLASSES,
    PRESETS,
    SIDE,
    STRIDE,
    Block,
    DCNv3,
    Network,
    aggregate,
    centres,
    fixed_grid,
    percent_right,
    points_of,
    train,
)
from lab import study
from lab.data.deformed import deformed_digits
from lab.data.digits import Digits
from lab.figures import Figure, Style, panels, show_image
from lab.run import Experiment, Run
from lab.study import Measure, Scores
from lab.training import count_parameters, seed_everything
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d

ARMS = {
    "dcn": "DCNv3",
    "one_group": "one group",
    "static": "same points everywhere",
    "convolution": "3 x 3",
    "attention": "attention",
}
RIVALS = ("convolution", "attention")  # that are trained with few digits, too
FLOOR = 200 / CLASSES  # test accuracy (%) after all digits, below which a training counts as failed: twice chance
INK = 1 / 3  # of a place of the map: from there on it lies on the digit
LOOKED_AT = 64  # test digits over which gradients are taken
SAMPLING = (
    5 * 9
)  # MACs for each channel and place: nine points, four neighbours and a factor each, which torch does not count
ACCURACY = Measure("accuracy", "%")
SPREAD = Measure("spread of the field", "px")

# Rivals and controls


class Static(DCNv3):
    """The control: points and factors are learned, but the same for every place of every image."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__(width, groups)
        del self.depthwise, self.norm, self.offset, self.factor  # nothing is predicted, so nothing idle is counted
        self.offsets, self.factors = nn.Parameter(torch.zeros(groups, 9, 2)), nn.Parameter(torch.zeros(groups, 9))

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        places = x.shape[:3]
        return self.offsets.expand(*places, -1, -1, -1), self.factors.softmax(-1).expand(*places, -1, -1)


class Convolution(nn.Module):
    """A plain 3 x 3 convolution of maps (B, H, W, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Attention(nn.Module):
    """Multi-head self-attention between all places of maps (B, H, W, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)  # written out: faster on a CPU for heads this narrow
        return self.out((weights @ v).transpose(1, 2).flatten(2)).view_as(x)


def operator(arm: str, width: int, groups: int) -> nn.Module:
    """The untrained operator of an arm. Raises KeyError for an arm that does not exist."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "dcn": partial(DCNv3, width, groups),
        "one_group": partial(DCNv3, width, 1),
        "static": partial(Static, width, groups),
        "convolution": partial(Convolution, width),
        "attention": partial(Attention, width, groups),
    }
    return makers[arm]()


def network_of(arm: str, preset: str) -> Network:
    """The untrained network of an arm; feed-forward networks are as wide as it takes for equal parameters."""
    sizes = PRESETS[preset]
    width, groups = sizes.width, sizes.groups
    spare = count_parameters(DCNv3(width, groups)) - count_parameters(operator(arm, width, groups))
    hidden = sizes.hidden + round(spare / (2 * width + 1))
    return Network([Block(operator(arm, width, groups), width, hidden) for _ in range(sizes.layers)], width)


# Arms, and their rates from one search


def held_out(run: Run, split: str = "test") -> Digits:
    """The digits of a split that no network is trained with, the same for every seed."""
    count = dict(zip(("train", "val", "test"), PRESETS[run.preset].digits, strict=True))[split]
    return deformed_digits(split, count, 0)


def fitted(run: Run, arm: str, count: int, seed: int, rate: float) -> Network:
    seed_everything(seed)
    model = network_of(arm, run.preset)
    train(model, run, count, seed, rate)
    return model


@cache
def rates(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all, by the accuracy on validation digits after all digits."""

    def score(arm: str, rate: float, seed: int) -> float:
        return percent_right(fitted(run, arm, PRESETS[run.preset].digits[0], seed, rate), held_out(run, "val"))

    return study.search(run, "learning rate", tuple(ARMS), (2e-3, 4e-3, 8e-3), score)


@cache
def trained(run: Run, arm: str, few: bool = False) -> list[Network]:
    """One network for each seed, after all digits of the training set or after few."""
    preset = PRESETS[run.preset]
    count = preset.few if few else preset.digits[0]
    return [fitted(run, arm, count, seed, rates(run)[arm]) for seed in run.seeds]


@cache
def scores_of(run: Run) -> Scores:
    """Accuracy of every arm after all digits, and as `<arm>_few` after few; failed trainings are marked for both."""
    test = held_out(run)
    jobs = [(arm, few) for arm in ARMS for few in (False, True) if not few or arm in ("dcn", *RIVALS)]
    found = {
        arm + "_few" * few: [{"accuracy": percent_right(model, test)} for model in trained(run, arm, few)]
        for arm, few in jobs
    }
    scores = Scores(run.seeds, found)
    scores.floor("test accuracy (%)", "accuracy", FLOOR, ARMS)
    scores.failed.update({f"{arm}_few": scores.failed.get(arm, {}) for arm in ("dcn", *RIVALS)})
    return scores


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    """An experiment on deformed digits, with the sizes and the search of its arms."""
    preset = PRESETS[run.preset]
    sizes = {arm: count_parameters(network_of(arm, run.preset)) for arm in arms}
    data = f"{preset.digits[0]:,} or {preset.few} deformed digits of {CANVAS} px to train, {preset.digits[2]} others to test"
    floor = ("test accuracy after all digits (%)", FLOOR)
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=floor, **more)


# Experiments


def on_object(points: Tensor, images: Tensor) -> float:
    """Share (%) of the points of places on the digit that lie on the digit; NaN where no place does."""
    ink = functional.avg_pool2d(images, STRIDE) > INK  # (B, 1, SIDE, SIDE)
    grid = ((2 * points + 1) / SIDE - 1).flip(-1).flatten(1, 4)[:, :, None]  # (B, places x points, 1, 2)
    hit = functional.grid_sample(ink.float(), grid, mode="nearest", align_corners=False)
    return float(100 * hit.view(len(images), SIDE, SIDE, -1).mean(-1)[ink[:, 0]].mean())  # mean over groups and points


def of_points(seen: Sequence[Tensor], images: Tensor) -> dict[str, float]:
    """How much the points of each layer move from image to image, and how many lie on the digit; means over layers."""
    share = sum(on_object(points, images) for points in seen) / len(seen)
    of_grid = on_object(fixed_grid(SIDE, SIDE).expand(len(images), -1, -1, -1, -1, -1), images)
    vary = STRIDE * sum(float(points.std(0).mean()) for points in seen) / len(seen)
    return {"points_vary": vary, "on_object": share, "on_object_gain": share - of_grid}


class Frozen(nn.Module):
    """An operator with the offsets and factors of each place that it has on average over some images."""

    def __init__(self, inner: DCNv3, offsets: Tensor, factors: Tensor) -> None:
        super().__init__()
        self.inner, self.offsets, self.factors = inner, offsets, factors

    def forward(self, x: Tensor) -> Tensor:
        offsets, factors = (each.expand(len(x), *each.shape[1:]).to(x.device) for each in (self.offsets, self.factors))
        return self.inner.out(aggregate(self.inner.value(x), offsets, factors))


def frozen(model: Network, seen: Sequence[tuple[Tensor, Tensor]]) -> Network:
    """The same network, whose points no longer depend on the image; `seen` are points and factors of each layer."""
    still: Any = copy.deepcopy(model)
    for block, (points, factors) in zip(still.blocks, seen, strict=True):
        offsets = points.mean(0, keepdim=True) - fixed_grid(SIDE, SIDE)
        block.operator = Frozen(block.operator, offsets, factors.mean(0, keepdim=True))
    return still


def outcome_of(model: Network, data: Digits) -> dict[str, float]:
    """What the points of a network do, and the accuracy lost without a look at the input."""
    seen = points_of(model, data.images)
    lost = percent_right(model, data) - percent_right(frozen(model, seen), data)
    return of_points([points for points, _ in seen], data.images) | {"lost": lost}


def looks(run: Run) -> None:
    """Do the points depend on the input, does that count, and do they fall on the object?"""
    test = held_out(run)
    control = {"control": "The same operator with one set of points for all places of all images is less accurate.",
               "result": "dcn_over_static", "above": 0}  # fmt: skip
    experiment = opened(run, looks, ("dcn", "static"), power=control)
    outcomes = {"dcn": [outcome_of(model, test) for model in trained(run, "dcn")]}
    scores, undefined = Scores(run.seeds, outcomes, scores_of(run).failed), "no place lies on a digit"
    for name, measure, unit, meaning in (
        ("points_vary", "points_vary", "px", "Spread of a point over images, mean of points and layers"),
        ("lost_when_frozen", "lost", "points", "Accuracy lost once each place has its mean offsets and factors"),
        ("on_object", "on_object", "%", "Points of places on the digit that lie on the digit"),
        ("on_object_gain", "on_object_gain", "points", "The same, minus that of the fixed 3 x 3 grid"),
    ):
        experiment.result(
            name, scores.values(measure, "dcn"), unit=unit, meaning=meaning, failed=scores.reasons(undefined, "dcn")
        )
    accuracies, pair = scores_of(run), {"static": "points that do not see the input"}
    study.record(experiment, accuracies, {"accuracy": ACCURACY}, pair)
    meaning = "Accuracy with points that depend on the input, minus that with the same points everywhere"
    study.difference(
        experiment, "dcn_over_static", accuracies, "accuracy", "dcn", "static", unit="points", meaning=meaning
    )


def receptive_field(model: Network, images: Tensor) -> Tensor:
    """(SIDE, SIDE): mean absolute gradient of the last map at its centre with respect to the first, sum 1."""
    x = start = model.maps(images.to(model.place.device))[0].detach().requires_grad_()
    for block in model.blocks:
        x = block(x)
    sign = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(0)).to(
        x.device
    )  # a plain sum could cancel out
    (gradient,) = torch.autograd.grad((x[:, SIDE // 2, SIDE // 2] @ sign).sum(), start)
    field = gradient.abs().sum(-1).mean(0).cpu()
    return field / field.sum()


def spread(field: Tensor) -> float:
    """Root mean square distance from the centre, in pixels of the image."""
    distance = (centres(SIDE, SIDE) - SIDE // 2).square().sum(-1)
    return float((field * distance).sum().sqrt()) * STRIDE


def draw_fields(style: Style, fields: Mapping[str, Tensor]) -> Figure:
    figure, axes = panels(1, len(fields), width=study.WIDTH, height=2.2)
    for ax, (arm, field) in zip(axes[0], fields.items(), strict=True):
        show_image(ax, field.clamp(min=1e-5).log10(), ARMS[arm], cmap=style.sequential, vmin=-4.5, vmax=-0.5)
    return figure


def field(run: Run) -> None:
    """How large is the effective receptive field of the trained networks?"""
    control = {"control": "Attention, which reads the whole map in each layer, has a wider field than a plain convolution.",
               "result": "field_attention_over_convolution", "above": 0}  # fmt: skip
    arms = ("dcn", *RIVALS)
    experiment = opened(run, field, arms, power=control)
    images = held_out(run).images[:LOOKED_AT]
    fields = {arm: [receptive_field(model, images) for model in trained(run, arm)] for arm in arms}
    outcomes = {arm: [{"field": spread(each)} for each in seeds] for arm, seeds in fields.items()}
    scores = Scores(run.seeds, outcomes, scores_of(run).failed)
    study.record(experiment, scores, {"field": SPREAD}, {arm: ARMS[arm] for arm in arms})
    for arm in ("dcn", "attention"):
        meaning = f"Spread of the receptive field, {ARMS[arm]} minus plain convolution"
        study.difference(
            experiment, f"field_{arm}_over_convolution", scores, "field", arm, "convolution", unit="px", meaning=meaning
        )
    experiment.figure(
        "field",
        partial(draw_fields, fields={arm: seeds[0] for arm, seeds in fields.items()}),
        caption="Effective receptive field of the centre after the last layer (first seed, mean of test digits, logarithmic "
        "colours): where a change of the first map moves the last one.",
        alt="Three small heat maps of gradients around the centre of a map, for DCNv3, plain convolution and attention.",
    )


def operators(run: Run) -> None:
    """What do learned points add in the same network, with many and with few digits?"""
    control = {"control": "With all digits the same network is better by far than with few, so differences are measured.",
               "result": "gain_of_digits", "above": 5}  # fmt: skip
    limit = "Accuracy on photographs: these digits are deformed, which suits points that move, and training is short."
    experiment, scores = opened(run, operators, ARMS, power=control, cannot_show=limit), scores_of(run)
    few = {f"{arm}_few": f"{ARMS[arm]}, {PRESETS[run.preset].few} training digits" for arm in ("dcn", *RIVALS)}
    study.record(
        experiment, scores, {"accuracy": ACCURACY}, {arm: label for arm, label in ARMS.items() if arm != "static"} | few
    )
    pairs = [("dcn", arm, f"dcn_over_{arm}") for arm in ("one_group", *RIVALS)]
    pairs += [("dcn_few", f"{arm}_few", f"dcn_over_{arm}_few") for arm in RIVALS] + [
        ("dcn", "dcn_few", "gain_of_digits")
    ]
    for a, b, name in pairs:
        meaning = f"Accuracy of {(ARMS | few)[a]} minus {(ARMS | few)[b]}"
        study.difference(experiment, name, scores, "accuracy", a, b, unit="points", meaning=meaning)
    short = dict(zip(ARMS, ("DCNv3", "one\ngroup", "same\npoints", "3 x 3", "attention"), strict=True))
    experiment.figure(
        "operators",
        study.bars(scores, {"accuracy": ACCURACY}, short),
        caption=f"Accuracy on test digits after all training digits, the same network with different operators; chance is "
        f"{100 // CLASSES} %. Same points: learned, but the same at every place of every image. Bars are means, dots are seeds.",
        alt="Bars of test accuracy: DCNv3, with one group, with the same points everywhere, 3 x 3 convolution, and attention.",
    )


def aggregate_torchvision(values: Tensor, offsets: Tensor, factors: Tensor) -> Tensor:
    """The sum of DCNv3 with torchvision's operator, whose kernel is all ones for each channel."""
    moved = offsets.permute(0, 3, 4, 5, 1, 2).flatten(1, 3)  # (B, H, W, G, 9, 2) -> (B, G 9 2, H, W)
    mask = factors.permute(0, 3, 4, 1, 2).flatten(1, 2)  # (B, H, W, G, 9) -> (B, G 9, H, W)
    maps, ones = values.permute(0, 3, 1, 2).contiguous(), torch.ones(values.shape[-1], 1, 3, 3)
    return deform_conv2d(maps, moved, ones.to(maps), padding=1, mask=mask).permute(0, 2, 3, 1)


def macs(module: nn.Module, side: int, width: int) -> float:
    """Multiply-accumulates of an operator on a map (1, side, side, width)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, side, side, width, device=next(module.parameters()).device))
    return counter.get_total_flops() / 2 + SAMPLING * width * side**2 * isinstance(module, DCNv3)


def price(run: Run) -> None:
    """How does the arithmetic of one operator grow with the map, and is it the right operator?"""
    small, large, width = 32, 64, 64
    data = f"random maps of {width} channels, {small} and {large} places wide"
    experiment = run.experiment("price", question=str(price.__doc__), data=data)
    with torch.device("meta"):  # counted, never computed
        modules = {"dcn": DCNv3(width, 4), "attention": Attention(width, 4)}
    for name, module in modules.items():
        power = math.log(macs(module, large, width) / macs(module, small, width)) / (2 * math.log(large / small))
        meaning = f"Power of the number of places that MACs grow with, {ARMS[name]}"
        experiment.result(f"macs_exponent_{name}", [power], unit="", meaning=meaning, exact=True)
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(size, generator=draw) for size in ((1, 9, 9, 8), (1, 9, 9, 2, 9, 2), (1, 9, 9, 2, 9))]
    error = (aggregate(*inputs) - aggregate_torchvision(*inputs)).abs().max().item()
    meaning = "Largest difference between this operator and torchvision's deform_conv2d"
    experiment.result("error_to_torchvision", [error], unit="", meaning=meaning, exact=True)


EXPERIMENTS = (looks, field, operators, price)
