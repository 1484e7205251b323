"""U-Net's claims: what skips add at equal parameters, what more pooling costs with and without them, and how far it sees."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from statistics import fmean
from typing import Any

import torch
from lab import slices, study
from lab.data import Split
from lab.data.brain import LABELS, BrainSlices
from lab.figures import Figure, Style, panels, seed_lines, show_image
from lab.run import Experiment, Run
from lab.slices import CLASSES, SIZES, TISSUES
from lab.study import Measure, Scores
from lab.training import count_parameters, seed_everything
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional
from unet import DEPTH, PRESETS, UNet, encoder_layers, receptive_field, train

SHALLOW = 2  # poolings
ARMS = {"skip": "skips", "coarse": "coarse skips", "none": "no skips"}
SHALLOW_ARMS = {"skip_shallow": "skips", "none_shallow": "no skips"}
FLOOR = 0.1  # Dice of tumours below which a training counts as failed; all of the brain called tumour has about 0.1
VIEWED = (8, 13, 20, 32, 53)  # channels of the encoder whose view is measured, with the four poolings of the paper
NOISE = 8  # images behind each gradient footprint
MEASURES = {f"dice_{tissue}": Measure(f"Dice of {LABELS[label]}", "") for tissue, label in TISSUES.items()}
MEASURES |= {
    f"recall_{size}": Measure(f"part of the {size} tumours that is found", "", "no tumour of this size")
    for size in SIZES
}

# Rivals and controls


class CoarseSkips(UNet):
    """The skip tells what is there, but not where in a cell of the deepest level."""

    def beside(self, level: int, e: Tensor, below: Tensor, upsampled: Tensor) -> Tensor:
        cell = 2 ** (len(self.up) - level)
        return functional.interpolate(functional.avg_pool2d(e, cell), scale_factor=cell, mode="nearest")


class NoSkips(UNet):
    """The upsampled map once more: as many parameters, though half of the first merging convolution is redundant."""

    def beside(self, level: int, e: Tensor, below: Tensor, upsampled: Tensor) -> Tensor:
        return upsampled


NETWORKS = {"skip": UNet, "coarse": CoarseSkips, "none": NoSkips}


def depth_of(arm: str) -> int:
    return SHALLOW if arm.endswith("_shallow") else DEPTH


def build(arm: str, preset: str) -> UNet:
    """The untrained network of an arm; all have about as many parameters."""
    return NETWORKS[arm.removesuffix("_shallow")](PRESETS[preset].widths[depth_of(arm)])


# Arms, and their rates from one search


def data_of(run: Run, split: Split) -> BrainSlices:
    """The validation or the test slices, the same for all networks."""
    preset = PRESETS[run.preset]
    return slices.held_out(split, preset.slices, preset.millimetres)


def fit(run: Run, arm: str, seed: int, rate: float) -> UNet:
    seed_everything(seed)
    model = build(arm, run.preset)
    train(run, model, seed, rate)
    return model


@cache
def rates_of(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all, by the mean Dice on validation slices."""

    def score(arm: str, rate: float, seed: int) -> float:
        return slices.mean_dice(fit(run, arm, seed, rate), data_of(run, "val"))

    return study.search(run, "learning rate", (*ARMS, *SHALLOW_ARMS), (1e-3, 2.5e-3, 6.25e-3), score)


@cache
def trained(run: Run, arm: str) -> list[UNet]:
    """One network for each seed."""
    return [fit(run, arm, seed, rates_of(run)[arm]) for seed in run.seeds]


@cache
def scores_of(run: Run) -> Scores:
    """All measures of all arms on the test slices; trainings that find next to no tumour are marked as failed."""
    test, found = data_of(run, "test"), {}
    for arm in (*ARMS, *SHALLOW_ARMS):
        labels = [slices.segmented(each, test.images) for each in trained(run, arm)]
        found[arm] = [
            slices.dices(each, test.labels) | slices.recalls(each, test.labels, PRESETS[run.preset].millimetres)
            for each in labels
        ]
    scores = Scores(run.seeds, found)
    scores.floor("Dice of tumours", "dice_tumour", FLOOR, found)
    return scores


def opened(run: Run, experiment: Callable[[Run], None], arms: Iterable[str], **more: Any) -> Experiment:
    preset = PRESETS[run.preset]
    sizes = {arm: count_parameters(build(arm, run.preset)) for arm in arms}
    data, floor = slices.described(preset.slices, preset.millimetres), ("Dice of tumours", FLOOR)
    return study.opened(run, experiment, data=data, sizes=sizes, steps=preset.steps, floor=floor, **more)


# Experiments


def skips(run: Run) -> None:
    """What do skips add at equal parameters and steps, and for which structures?"""
    control = {"control": "Without skips the Dice of grey matter, which is a few pixels thin, falls by far.",
               "result": "dice_grey_gap_none", "above": 0.05}  # fmt: skip
    experiment, scores = opened(run, skips, ARMS, power=control), scores_of(run)
    study.record(experiment, scores, MEASURES, ARMS)
    for measure, (label, unit, _) in MEASURES.items():
        for arm in ("coarse", "none"):
            meaning = f"{label}: skips minus {ARMS[arm]}"
            study.difference(
                experiment, f"{measure}_gap_{arm}", scores, measure, "skip", arm, unit=unit, meaning=meaning
            )
    small, large = (scores.minus(f"recall_{size}", "skip", "none") for size in ("small", "large"))
    experiment.result(
        "recall_gap_small_minus_large_none", [a - b for a, b in zip(small, large, strict=True)], unit="",
        meaning="what skips add to the recall of small tumours, less what they add for large ones",
        failed=scores.reasons("no tumour of this size", "skip", "none"),
    )  # fmt: skip
    experiment.figure(
        "skips",
        study.bars(
            scores,
            {name: MEASURES[name] for name in ("dice_grey", "recall_small", "recall_large", "dice_tumour")},
            ARMS,
        ),
        caption=f"Test slices; small tumours have up to {SIZES['small'][1]} pixels of 2 mm, large ones {SIZES['large'][0]} or "
        "more. A tumour is found if one predicted pixel touches it. Coarse skips show what is left of the gain when a skip "
        "no longer says where. Bars are means, dots are seeds.",
        alt="Four bar charts for skips, coarse skips and no skips: Dice of grey matter, recall of small and of large tumours, "
        "Dice of tumours.",
    )
    experiment.figure(
        "segmentations",
        partial(draw_segmentations, run=run),
        caption="A test slice with a small tumour: the truth, and what the networks of the first seed find.",
        alt="Four pictures of one brain slice with its tissues painted in: the truth, and what is found with skips, with coarse "
        "skips and without skips.",
    )


def draw_segmentations(style: Style, run: Run) -> Figure:
    test = data_of(run, "test")
    index = slices.smallest_near(test, 16 * 4 // PRESETS[run.preset].millimetres ** 2)
    image = test.images[[index]]
    pictures = {"truth": test.labels[index]}
    pictures |= {name: slices.segmented(trained(run, arm)[0], image)[0] for arm, name in ARMS.items()}
    figure, axes = panels(2, 2, width=study.WIDTH, height=6.4)
    for ax, (title, found) in zip(axes.flat, pictures.items(), strict=True):
        show_image(ax, slices.painted(image[0, 0], found, style), title)
    slices.legend(figure, style)
    return figure


def labels_through_grid(labels: Tensor, depth: int) -> Tensor:
    """Labels (B, H, W), averaged over cells of 2^depth pixels and interpolated back; the largest class wins."""
    shares = functional.one_hot(labels, CLASSES).permute(0, 3, 1, 2).float()  # (B, H, W, K) -> (B, K, H, W)
    cells = functional.avg_pool2d(shares, 2**depth)
    return functional.interpolate(cells, size=labels.shape[-2:], mode="bilinear", align_corners=False).argmax(1)


def depth(run: Run) -> None:
    """Does more downsampling lose spatial information, and do skips mend it?"""
    arms = {arm: f"{name}, {depth_of(arm)} poolings" for arm, name in (ARMS | SHALLOW_ARMS).items() if arm != "coarse"}
    experiment, scores, test = opened(run, depth, arms), scores_of(run), data_of(run, "test")
    for poolings in (SHALLOW, DEPTH):
        grid = slices.dices(labels_through_grid(test.labels, poolings), test.labels)
        for measure, value in grid.items():
            meaning = f"{MEASURES[measure].label}, true labels through the grid of {poolings} poolings"
            experiment.result(f"{measure}_grid_depth{poolings}", [value], unit="", meaning=meaning, exact=True)
    for measure in (f"dice_{tissue}" for tissue in TISSUES):
        label = MEASURES[measure].label
        for arm, name in arms.items():
            values, failed = scores.values(measure, arm), scores.reasons("undefined", arm)
            result = f"{measure}_{arm.removesuffix('_shallow')}_depth{depth_of(arm)}"
            experiment.result(result, values, unit="", meaning=f"{label}, {name}", failed=failed)
        for source in ("skip", "none"):
            meaning = f"{label}, {ARMS[source]}: lost from {SHALLOW} to {DEPTH} poolings"
            study.difference(
                experiment, f"{measure}_{source}_lost_with_depth", scores, measure, f"{source}_shallow", source, unit="",
                meaning=meaning,
            )  # fmt: skip
    short = {arm: name.replace(", ", "\n") for arm, name in arms.items()}
    experiment.figure(
        "depth",
        study.bars(scores, {f"dice_{tissue}": MEASURES[f"dice_{tissue}"] for tissue in TISSUES}, short),
        caption=f"Dice on the test slices with {SHALLOW} and with {DEPTH} poolings, at equal parameters and steps. Bars are "
        "means, dots are seeds.",
        alt="Three bar charts, Dice of grey matter, white matter and tumour, each with and without skips at few and at many "
        "poolings.",
    )


def gradient_footprint(model: UNet, level: int, images: Tensor) -> Tensor:
    """|d unit / d pixel| for the central unit of e^level, mean over the images (B, 1, H, W): (H, W).

    A max pooling passes the gradient to one pixel of four, so it takes several images to see the whole field.
    """
    images = images.clone().requires_grad_()
    maps = model.encode(images)[level]
    unit = maps[..., maps.shape[-2] // 2, maps.shape[-1] // 2].sum()
    (gradient,) = torch.autograd.grad(unit, images)
    return gradient.abs().mean((0, 1))


def bounding_box(footprint: Tensor) -> tuple[int, int, int, int]:
    """Smallest box x0, y0, x1, y1 outside which the footprint (H, W) is zero; x1 and y1 are not included."""
    rows, columns = ((footprint > 0).any(axis).nonzero()[:, 0] for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def longest_side(footprint: Tensor) -> int:
    """Of the bounding box, in pixels."""
    x0, y0, x1, y1 = bounding_box(footprint)
    return max(x1 - x0, y1 - y0)


def effective_side(footprint: Tensor, share: float = 0.9) -> int:
    """Side in pixels of the smallest square in the middle of the bounding box with `share` of the footprint."""
    x0, y0, x1, y1 = bounding_box(footprint)
    field = footprint[y0:y1, x0:x1]
    for cut in range(min(field.shape) // 2 - 1, 0, -1):
        square = field[cut:-cut, cut:-cut]
        if square.sum() >= share * field.sum():
            return max(square.shape)
    return max(field.shape)


def fields(run: Run) -> None:
    """How much of the image does a unit of each level depend on?"""
    by_seed = []
    for seed in run.seeds:
        seed_everything(seed)
        model, noise = UNet(VIEWED).eval(), torch.randn(NOISE, 1, 160, 160)
        by_seed.append([gradient_footprint(model, level, noise) for level in range(len(VIEWED))])
    effective = [[float(effective_side(footprint)) for footprint in footprints] for footprints in by_seed]
    data = f"gradients of untrained encoders on {NOISE} images of noise, 160 x 160 pixels"
    experiment = run.experiment("fields", question=str(fields.__doc__), data=data)
    for level in range(len(VIEWED)):
        meaning, formula = f"side of the receptive field of level {level}", receptive_field(encoder_layers(level))
        by_gradient = [longest_side(each[level]) for each in by_seed]
        most = [sides[level] for sides in effective]
        experiment.result(
            f"field_formula_level{level}", [formula], unit="px", meaning=f"{meaning}, formula", exact=True
        )
        experiment.result(
            f"field_gradient_level{level}", by_gradient, unit="px", meaning=f"{meaning}, gradient not zero"
        )
        experiment.result(f"field_effective_level{level}", most, unit="px", meaning=f"{meaning}, 90 % of the gradient")
    experiment.figure(
        "receptive_field",
        partial(draw_fields, footprints=by_seed[0], effective=effective),
        caption="Above: how much each pixel moves the central unit of a level (root of the gradient), with the box "
        "outside which it does not move it at all. Below: the side of the field by the formula, and of the central square "
        f"with most of the gradient; in untrained networks, mean {fmean(each[-1] for each in effective):.0f} pixels at the "
        "deepest level.",
        alt="Squares show gradients of the levels, each in a box: a dot at level 0 grows to a blob that fills most of the "
        "square at the deepest level. Below them, the side of the field against the level.",
    )


def draw_fields(style: Style, footprints: Sequence[Tensor], effective: Sequence[Sequence[float]]) -> Figure:
    """Footprints (H, W) of the levels with their boxes, and below them the sides; effective: (seeds, levels)."""
    figure, (top, below) = panels(2, len(footprints), width=study.WIDTH, height=4.2, height_ratios=[1, 2.2])
    levels = range(len(footprints))
    for level, ax, footprint in zip(levels, top, footprints, strict=True):
        shown = (footprint / footprint.max()).sqrt()  # the root makes the faint margin visible
        show_image(ax, shown, f"level {level}", cmap=style.sequential)
        x0, y0, x1, y1 = bounding_box(footprint)
        ax.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=1.2))
    for ax in below:
        ax.remove()
    ax = figure.add_subplot(below[0].get_gridspec()[1, :])
    ax.plot(levels, [receptive_field(encoder_layers(level)) for level in levels], label="formula", marker="o")
    seed_lines(ax, levels, effective, "holds 90 % of the gradient", style.cycle[1], linestyle="--", marker="s")
    ax.set(xlabel="level (poolings before it)", ylabel="side of the field (pixels)", xticks=levels)
    ax.legend(loc="upper left")
    return figure


EXPERIMENTS = (skips, depth, fields)
