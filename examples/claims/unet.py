"""U-Net's claims: what skips add, what more pooling costs, how far it sees, and what parts touching nuclei."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from statistics import fmean
from typing import Any

import torch
import unet
from lab import pieces, slices, study, training
from lab.data import Split, nuclei
from lab.data.brain import LABELS, BrainSlices
from lab.figures import Figure, Style, panels, show_image
from lab.footprints import draw_fields, effective_side, gradient_footprint, longest_side
from lab.metrics import dice
from lab.run import Experiment, Run
from lab.slices import CLASSES, SIZES, TISSUES
from lab.study import Measure, Scores
from lab.training import count_parameters, minibatches, seed_everything
from torch import Tensor
from torch.nn import functional
from unet import DEPTH, PRESETS, RATE, UNet, train

SHALLOW = 2  # poolings
ARMS = {"skip": "skips", "none": "no skips"}
SHALLOW_ARMS = {"skip_shallow": "skips", "none_shallow": "no skips"}
FLOOR = 0.1  # Dice of tumours below which a training counts as failed; all of the brain called tumour has about 0.1
VIEWED = (8, 13, 20, 32, 53)  # channels of the encoder whose view is measured, with the four poolings of the paper
NOISE = 8  # images behind each gradient footprint
MEASURES = {f"dice_{tissue}": Measure(f"Dice of {LABELS[label]}", "") for tissue, label in TISSUES.items()}
MEASURES |= {f"recall_{size}": Measure(f"{size} tumours: part found", "", "no tumour of this size") for size in SIZES}
GAP_ARMS = {"border": "weighted\ngaps", "plain": "class\nweights", "closed": "no gaps\nlabelled"}
CROP = 48  # side in pixels of what a network sees of the nuclei at once
NUCLEI = {
    "nuclei_merged": Measure("share of nuclei that run together", ""),
    "nuclei_f1": Measure("F1 of nuclei at IoU 0.5", "", "no nucleus"),
    "nuclei_dice": Measure("Dice of the area of nuclei", "", "no nucleus"),
}
NUCLEI_FLOOR = ("Dice of nuclei", 0.5)  # all of the picture called nucleus has about 0.3

# Rivals and controls


class NoSkips(UNet):
    """The upsampled map once more: as many parameters, though half of the first merging convolution is redundant."""

    def beside(self, level: int, e: Tensor, below: Tensor, upsampled: Tensor) -> Tensor:
        return upsampled


NETWORKS = {"skip": UNet, "none": NoSkips}


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

    return study.search(run, "learning rate", (*ARMS, *SHALLOW_ARMS), (2e-3, 5e-3, 1.25e-2), score)


@cache
def trained(run: Run, arm: str) -> list[UNet]:
    """One network for each seed; that of the file to read, which has just trained it, is not trained again."""
    read, rate = sys.modules["__main__"], rates_of(run)[arm]
    same = arm == "skip" and rate == RATE and getattr(read, "run", None) is run
    return [read.model if same and seed == run.seeds[0] else fit(run, arm, seed, rate) for seed in run.seeds]


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
        meaning = f"{label}: skips minus {ARMS['none']}"
        study.difference(experiment, f"{measure}_gap_none", scores, measure, "skip", "none", unit=unit, meaning=meaning)
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
        "more. A tumour is found if one predicted pixel touches it. Bars are means, dots are seeds.",
        alt="Four bar charts, with and without skips: Dice of grey matter, recall of small and large tumours, Dice of tumours.",
    )
    experiment.figure(
        "segmentations",
        partial(draw_segmentations, run=run),
        caption="A test slice with a small tumour: the truth, and what the networks of the first seed find.",
        alt="Four pictures of one brain slice: bare, and with its tissues painted in: the truth, what is found with skips, and "
        "what is found without.",
    )


def draw_segmentations(style: Style, run: Run) -> Figure:
    test = data_of(run, "test")
    index = slices.smallest_near(test, 16 * 4 // PRESETS[run.preset].millimetres ** 2)
    image = test.images[[index]]
    pictures = {"truth": test.labels[index]}
    pictures |= {name: slices.segmented(trained(run, arm)[0], image)[0] for arm, name in ARMS.items()}
    figure, axes = panels(2, 2, width=study.WIDTH, height=6.4)
    show_image(axes[0, 0], image[0, 0], "slice")
    for ax, (title, found) in zip(axes.flat[1:], pictures.items(), strict=True):
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
    arms = {arm: f"{name}, {depth_of(arm)} poolings" for arm, name in (ARMS | SHALLOW_ARMS).items()}
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


def fields(run: Run) -> None:
    """How much of the image does a unit of each level depend on?"""
    by_seed = []
    for seed in run.seeds:
        seed_everything(seed)
        model, noise = UNet(VIEWED).eval(), torch.randn(NOISE, 1, 160, 160)
        by_seed.append([gradient_footprint(model.encode, level, noise) for level in range(len(VIEWED))])
    formula = [unet.receptive_field(unet.encoder_layers(level)) for level in range(len(VIEWED))]
    effective = [[float(effective_side(footprint)) for footprint in footprints] for footprints in by_seed]
    data = f"gradients of untrained encoders on {NOISE} images of noise, 160 x 160 pixels"
    experiment = run.experiment("fields", question=str(fields.__doc__), data=data)
    for level in range(len(VIEWED)):
        by_gradient = [longest_side(each[level]) for each in by_seed]
        most = [each[level] for each in effective]
        name, meaning = f"level{level}", f"side of the receptive field of level {level}"
        experiment.result(
            f"field_formula_{name}", [formula[level]], unit="px", meaning=f"{meaning}, formula", exact=True
        )
        experiment.result(f"field_gradient_{name}", by_gradient, unit="px", meaning=f"{meaning}, gradient not zero")
        experiment.result(f"field_effective_{name}", most, unit="px", meaning=f"{meaning}, 90 % of the gradient")
    experiment.figure(
        "receptive_field",
        partial(draw_fields, footprints=by_seed[0], formula=formula, effective=effective),
        caption="Above: how much each pixel moves the central unit of a level (root of the gradient), with the box "
        "outside which it does not move it at all. Below: the side of the field by the formula, and of the central square "
        f"with most of the gradient; in untrained networks, mean {fmean(each[-1] for each in effective):.0f} pixels at the "
        "deepest level.",
        alt="Squares show gradients of the levels, each in a box: a dot at level 0 grows to a blob that fills most of the "
        "square at the deepest level. Below them, the side of the field against the level.",
    )


# Touching nuclei


def targets(arm: str) -> Tensor:
    """On the training band, the classes that an arm learns, 1 in nuclei, and the weights of their pixels: (2, H, W)."""
    labels = nuclei.nuclei("train")[1]
    classes = labels > 0 if arm == "closed" else unet.parted(labels)
    weights = unet.balance(classes, 2)[classes.long()]
    return torch.stack([classes.float(), weights + unet.gap_weights(labels) if arm == "border" else weights])


def fit_nuclei(run: Run, arm: str, seed: int, rate: float) -> UNet:
    """A network trained on crops; with one seed, all arms see the same ones in the same order."""
    preset = PRESETS[run.preset]
    seed_everything(seed)
    model = UNet(preset.widths[DEPTH], classes=2).to(memory_format=torch.channels_last)
    images, maps = nuclei.crops(nuclei.nuclei("train")[0], targets(arm), preset.crops, CROP, seed)
    data = [each.to(run.device) for each in (images, maps[:, 0].long(), maps[:, 1])]
    batches = minibatches(data, preset.batch, preset.crop_steps, seed)
    loss = lambda model, images, *truth: unet.energy(model(images), *truth)  # noqa: E731
    training.fit(model, batches, loss, steps=preset.crop_steps, learning_rate=rate, device=run.device)
    return model


def outcome(model: UNet, split: Split) -> dict[str, float]:
    """The measures of `NUCLEI` on a band of the picture; a connected piece of what is found is one nucleus."""
    image, truth = nuclei.nuclei(split)
    area = slices.segmented(model, image[None, None])[0]
    found = pieces.pieces(area > 0)
    values = pieces.merged(found, truth), pieces.f1(found, truth), dice(area, (truth > 0).long(), 2)[1].item()
    return dict(zip(NUCLEI, values, strict=True))


@cache
def nuclei_rates(run: Run) -> dict[str, float]:
    """The learning rate of each arm, searched alike for all, by the F1 of nuclei on the validation band."""

    def score(arm: str, rate: float, seed: int) -> float:
        return outcome(fit_nuclei(run, arm, seed, rate), "val")["nuclei_f1"]

    return study.search(run, "learning rate for nuclei", tuple(GAP_ARMS), (1e-3, 2.5e-3, 6.25e-3), score)


@cache
def on_nuclei(run: Run, arm: str) -> list[UNet]:
    """One network for each seed."""
    return [fit_nuclei(run, arm, seed, nuclei_rates(run)[arm]) for seed in run.seeds]


def nuclei_scores(run: Run) -> Scores:
    """The measures of all arms on the test band; without the picture none has a value, and the reason is kept."""
    if absent := nuclei.missing():
        nothing = [dict.fromkeys(NUCLEI, math.nan)] * len(run.seeds)
        failed = {arm: dict.fromkeys(run.seeds, absent) for arm in GAP_ARMS}
        return Scores(run.seeds, dict.fromkeys(GAP_ARMS, nothing), failed)
    scores = Scores(run.seeds, {arm: [outcome(each, "test") for each in on_nuclei(run, arm)] for arm in GAP_ARMS})
    scores.floor(NUCLEI_FLOOR[0], "nuclei_dice", NUCLEI_FLOOR[1], GAP_ARMS)
    return scores


def gaps(run: Run) -> None:
    """Do heavy weights on thin gaps keep touching nuclei apart, on a real picture?"""
    preset, arms = PRESETS[run.preset], {arm: name.replace("\n", " ") for arm, name in GAP_ARMS.items()}
    sizes = dict.fromkeys(GAP_ARMS, count_parameters(UNet(preset.widths[DEPTH], classes=2)))
    data = f"{preset.crops} crops of {CROP} x {CROP} pixels of a fluorescence picture, binned 2 x 2, since at its full size no "
    data += "arm parted nuclei of the validation band after as many steps; other bands of it choose the rate and test"
    power = {"control": "Where gaps are labelled as nuclei, more nuclei run together.",
             "result": "nuclei_merged_gap_closed", "above": 0.05}  # fmt: skip
    steps = preset.crop_steps
    experiment = study.opened(run, gaps, data=data, sizes=sizes, steps=steps, floor=NUCLEI_FLOOR, power=power)
    scores = nuclei_scores(run)
    study.record(experiment, scores, NUCLEI, arms)
    for measure, (label, unit, _) in NUCLEI.items():
        for arm in ("plain", "closed"):
            meaning = f"{label}: {arms[arm]} minus {arms['border']}"
            study.difference(
                experiment, f"{measure}_gap_{arm}", scores, measure, arm, "border", unit=unit, meaning=meaning
            )
    if nuclei.missing():
        return
    experiment.figure(
        "gaps_kept",
        study.bars(scores, NUCLEI, GAP_ARMS),
        caption="Nuclei of the band that no network has seen. A piece of what is found is taken for one nucleus; two have run "
        "together where most of each lies in one piece. Bars are means, dots are seeds.",
        alt="Three bar charts for weighted gaps, class weights alone and gaps labelled as nuclei: the share of nuclei that run "
        "together, the F1 of nuclei, and the Dice of their area.",
    )
    experiment.figure(
        "nuclei",
        partial(draw_nuclei, run=run),
        caption="A part of the test band with many touching nuclei: the picture, and what the networks of the first seed find. "
        "Pieces that hold several nuclei are orange.",
        alt="Four pictures of the same crowd of nuclei: grey as under the microscope, and tinted as found with weighted gaps, "
        "with class weights alone and with gaps labelled as nuclei, where more of them run together.",
    )


def draw_nuclei(style: Style, run: Run) -> Figure:
    """The window of the test band with the most touching nuclei, bare and as each arm sees it."""
    image, truth = nuclei.nuclei("test")
    window = pieces.window_of_most(unet.gap_weights(truth), 64)
    bright = (image / image.quantile(0.98)).clamp(max=1)
    figure, axes = panels(2, 2, width=study.WIDTH, height=5.8)
    show_image(axes[0, 0], bright[window], "picture")
    for ax, (arm, name) in zip(axes.flat[1:], GAP_ARMS.items(), strict=True):
        area = slices.segmented(on_nuclei(run, arm)[0], image[None, None])[0]
        tints = pieces.crowded(pieces.pieces(area > 0), truth)
        show_image(ax, slices.painted(bright[window], tints[window], style), name.replace("\n", " "))
    return figure


EXPERIMENTS = (skips, depth, fields, gaps)
