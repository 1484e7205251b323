"""What the cards say of weights agrees with the libraries that load them: names, classes, sizes, means, accuracy.

Nothing is downloaded: the libraries carry these facts in their configurations, enumerations and processors.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import monai
import pytest
import timm
import torch
import torchvision
import transformers
from transformers.models.auto import image_processing_auto, video_processing_auto

from scripts.cards.library import Library, load_library
from scripts.cards.numbers import Row
from scripts.cards.releases import Checkpoint, Release
from scripts.cards.schema import Card
from scripts.evidence.published import Published, numbers_of

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.torch

METRICS = {"box_map": "AP", "mask_map": "mask_AP", "kp_map": "kp_AP", "acc@1": "top1", "acc@5": "top5"}
"""torchvision's names of what the cards have in their rows."""

SAYS_OTHERWISE = re.compile(r"processor|preprocess|input|mean|config|[Mm]odel card|README|Hub")
"""What a source names that was opened for the input, where that is not the default of the installed library."""


WRONG_INPUTS: list[dict[str, Any]] = [{"size": "96 x 96"}, {"mean": (0.1, 0.1, 0.1)}, {"deviation": ()}]


class Stated(NamedTuple):
    """A checkpoint with its card."""

    card: Card
    key: str

    @property
    def checkpoint(self) -> Checkpoint:
        return self.card.checkpoints[self.key]

    @property
    def row(self) -> Row:
        variant, table = self.checkpoint.system.split("/")
        return self.card.variants[variant].numbers[table]

    @property
    def release(self) -> Release:
        return next(each for each in self.card.licences.releases if each.name == self.checkpoint.release)

    def but(self, **changes: Any) -> Stated:
        """The same with other fields of `load` or `input`, as a careless edit would leave it."""
        load = {key: value for key, value in changes.items() if key in ("name", "class_", "least")}
        input_ = {key: value for key, value in changes.items() if key not in load}
        checkpoint = self.checkpoint.model_copy(
            update={
                "load": self.checkpoint.load.model_copy(update=load),
                "input": self.checkpoint.input.model_copy(update=input_),
            }
        )
        return Stated(self.card.model_copy(update={"checkpoints": {self.key: checkpoint}}), self.key)


@functools.cache
def library() -> Library:
    found, problems = load_library(ROOT / "model_cards", ROOT)
    assert not problems
    return found


def stated(name: str) -> list[Any]:
    """The checkpoints that a library loads, one for each test."""
    return [
        pytest.param(Stated(card, key), id=f"{slug}/{key}")
        for slug, card in library().cards.items()
        for key, checkpoint in card.checkpoints.items()
        if checkpoint.load.library == name
    ]


def one_of(name: str, has: Callable[[Stated], bool] = lambda _: True) -> Stated:
    found: Stated = next(each.values[0] for each in stated(name) if has(each.values[0]))
    return found


def different(what: str, card: Sequence[float], installed: Sequence[float]) -> Iterator[str]:
    if tuple(card) != pytest.approx(tuple(installed), abs=1e-3):
        yield f"{what}: {tuple(card)} on the card, {tuple(installed)} in the library"


def numbers_in(text: str) -> set[int]:
    return {int(number) for number in re.findall(r"\d+", text)}


# timm


def timm_problems(told: Stated) -> Iterator[str]:
    load, input_ = told.checkpoint.load, told.checkpoint.input
    try:
        config = timm.get_pretrained_cfg(load.name, allow_unregistered=False)
    except RuntimeError as error:
        yield str(error)
        return
    if load.class_ != "create_model" or not config.has_weights:
        yield f"timm.{load.class_} of {load.name} gives no weights"
    _, height, width = config.input_size
    if not input_.size.startswith(f"{height} x {width}"):
        yield f"size: {input_.size} on the card, {height} x {width} in timm"
    yield from different("mean", input_.mean, config.mean)
    yield from different("deviation", input_.deviation, config.std)
    if config.hf_hub_id not in (f"timm/{load.name}", None) or not (config.hf_hub_id or config.url):
        yield f"hub: {config.hf_hub_id} is not {load.name}"
    tag, weights = (config.license or "").lower(), told.release.weights.lower()
    if tag.startswith(("mit", "apache", "bsd", "cc-by")) and tag != weights:
        yield f"licence: {weights} on the card, {tag} in timm"


@pytest.mark.parametrize("told", stated("timm"))
def test_timm_has_the_weights_and_takes_the_same_input(told: Stated) -> None:
    assert not list(timm_problems(told))


@pytest.mark.parametrize(
    "broken",
    [{"name": "vit_none_patch16_224.augreg_in1k"}, {"class_": "load"}, *WRONG_INPUTS],
    ids=str,
)
def test_a_wrong_line_on_timm_is_found(broken: dict[str, Any]) -> None:
    assert list(timm_problems(one_of("timm").but(**broken)))


def test_a_wrong_licence_of_timm_is_found() -> None:
    told = one_of("timm", lambda each: each.release.weights == "MIT")
    release = told.release.model_copy(update={"weights": "Apache-2.0"})
    licences = told.card.licences.model_copy(update={"releases": (release,)})
    assert list(timm_problems(Stated(told.card.model_copy(update={"licences": licences}), told.key)))


# torchvision


def torchvision_problems(told: Stated) -> Iterator[str]:
    load, input_ = told.checkpoint.load, told.checkpoint.input
    try:
        weights = torchvision.models.get_weight(load.name)
        of_model = torchvision.models.get_model_weights(load.class_)
    except (ValueError, KeyError) as error:
        yield str(error)
        return
    if weights not in of_model:
        yield f"{load.name} are no weights of {load.class_}"
        return
    mean, deviation, sizes = torchvision_input(load.class_, weights)
    yield from different("mean", input_.mean, mean)
    yield from different("deviation", input_.deviation, deviation)
    if not sizes <= numbers_in(input_.size):
        yield f"size: {input_.size} on the card, {sorted(sizes)} in torchvision"
    for metrics in weights.meta["_metrics"].values():
        yield from torchvision_figures(metrics, told.row)


def torchvision_figures(metrics: dict[str, float], row: Row) -> Iterator[str]:
    for theirs, value in metrics.items():
        printed = row.values.get(METRICS.get(theirs, theirs))
        if printed and abs(printed.value - value) > 0.05:
            yield f"{theirs}: {printed.printed} on the card, {value} in torchvision"


@functools.cache
def torchvision_input(model: str, weights: Any) -> tuple[Sequence[float], Sequence[float], set[int]]:
    """Mean, deviation and sizes of the transforms, or of the detector, which does it itself."""
    transforms = weights.transforms()
    if hasattr(transforms, "mean"):
        return transforms.mean, transforms.std, {*transforms.crop_size, *transforms.resize_size}
    with torch.device("meta"):
        inside = torchvision.models.get_model(model, weights=None, weights_backbone=None).transform
    return inside.image_mean, inside.image_std, {*inside.min_size[-1:], inside.max_size}


@pytest.mark.parametrize("told", stated("torchvision"))
def test_torchvision_has_the_weights_the_input_and_the_figures(told: Stated) -> None:
    assert not list(torchvision_problems(told))


@pytest.mark.parametrize("output", ["boxes", "classes"])
@pytest.mark.parametrize(
    "broken",
    [{"name": "Swin_T_Weights.COCO_V9"}, {"class_": "resnet18"}, *WRONG_INPUTS],
    ids=str,
)
def test_a_wrong_line_on_torchvision_is_found(broken: dict[str, Any], output: str) -> None:
    told = one_of("torchvision", lambda each: each.checkpoint.output == output)
    assert list(torchvision_problems(told.but(**broken)))


def test_a_wrong_figure_of_torchvision_is_found() -> None:
    told = one_of("torchvision", lambda each: "AP" in each.row.values)
    assert list(torchvision_figures({"box_map": told.row.values["AP"].value + 0.1}, told.row))


# transformers


def transformers_problems(told: Stated) -> Iterator[str]:
    load = told.checkpoint.load
    loaded = getattr(transformers, load.class_, None)
    if not hasattr(loaded, "from_pretrained"):
        yield f"transformers {transformers.__version__} has no {load.class_}"
        return
    if not re.fullmatch(r"[\w-]+/[\w.-]+", load.name):
        yield f"{load.name!r} is no name on the Hub"
    processor = default_processor(loaded)
    where = told.checkpoint.source.where
    if processor and (type(processor).__name__ in where or not SAYS_OTHERWISE.search(where)):
        yield from processor_problems(told, processor)


def processor_problems(told: Stated, processor: Any) -> Iterator[str]:
    input_ = told.checkpoint.input
    if processor.do_normalize:
        yield from different("mean", input_.mean, processor.image_mean)
        yield from different("deviation", input_.deviation, processor.image_std)
    elif input_.mean or input_.deviation:
        yield f"mean and deviation: on the card, but {type(processor).__name__} takes none off"
    sizes = sizes_of(processor)
    if not sizes <= numbers_in(input_.size):
        yield f"size: {input_.size} on the card, {sorted(sizes)} in {type(processor).__name__}"


def sizes_of(processor: Any) -> set[int]:
    size = getattr(processor, "crop_size", None) or processor.size
    sides = ("height", "width", "shortest_edge", "longest_edge")
    return {int(pixels) for side in sides if (pixels := getattr(size, side, None))}


@functools.cache
def default_processor(model: Any) -> Any:
    """The processor of images or clips that the library has for a model, with its defaults; none for an Auto class."""
    kind = getattr(getattr(model, "config_class", None), "model_type", None)
    for names in (
        video_processing_auto.VIDEO_PROCESSOR_MAPPING_NAMES,
        image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES,
    ):
        name = names.get(kind, None) or {}
        name = name if isinstance(name, str) else name.get("torchvision")
        if name:
            return getattr(transformers, name)()
    return None


@pytest.mark.parametrize("told", stated("transformers"))
def test_transformers_has_the_class_and_takes_the_same_input(told: Stated) -> None:
    assert not list(transformers_problems(told))


@pytest.mark.parametrize(
    "broken",
    [{"name": "no name"}, {"class_": "DetrForNothing"}, *WRONG_INPUTS],
    ids=str,
)
def test_a_wrong_line_on_transformers_is_found(broken: dict[str, Any]) -> None:
    told = one_of("transformers", lambda each: each.checkpoint.load.class_ == "DetrForObjectDetection")
    assert list(transformers_problems(told.but(**broken)))


# MONAI


def monai_problems(told: Stated) -> Iterator[str]:
    name = told.checkpoint.load.class_
    if not any(hasattr(module, name) for module in (monai.networks.nets, monai.bundle)):
        yield f"MONAI {monai.__version__} has no {name}"


def test_monai_has_the_classes() -> None:
    assert not [problem for each in stated("monai") for problem in monai_problems(each.values[0])]


def test_a_wrong_class_of_monai_is_found() -> None:
    assert list(monai_problems(one_of("timm").but(class_="NoNet")))
    assert not list(monai_problems(one_of("timm").but(class_="DynUNet")))


# any library


def everyone() -> list[Any]:
    return [
        each
        for name in sorted({c.load.library for card in library().cards.values() for c in card.checkpoints.values()})
        for each in stated(name)
    ]


def general_problems(told: Stated) -> Iterator[str]:
    """What holds whoever loads it: mean and deviation fit the values that go in, and the release has the weights."""
    input_, load = told.checkpoint.input, told.checkpoint.load
    if len(input_.mean) != len(input_.deviation):
        yield f"{len(input_.mean)} figures of the mean, {len(input_.deviation)} of the deviation"
    if any(value > input_.range[1] for value in (*input_.mean, *input_.deviation)):
        yield f"mean {input_.mean} and deviation {input_.deviation} are not of values up to {input_.range[1]:g}"
    if told.release.weights == "none":
        yield f"the release {told.release.name!r} has no weights"
    if told.release.variants and told.checkpoint.system.split("/")[0] not in told.release.variants:
        yield f"the release {told.release.name!r} does not hold {told.checkpoint.system}"
    if load.library in INSTALLED and load.least and release(INSTALLED[load.library]) < release(load.least):
        yield f"{load.library} {load.least} is wanted, {INSTALLED[load.library]} installed"


INSTALLED = {each.__name__: each.__version__ for each in (monai, timm, torchvision, transformers)}


def release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


@pytest.mark.parametrize("told", everyone())
def test_a_checkpoint_is_of_its_release_and_takes_what_can_be(told: Stated) -> None:
    assert not list(general_problems(told))


@pytest.mark.parametrize(
    "broken",
    [{"mean": (0.1, 0.1)}, {"mean": (123.7, 116.3, 103.5)}, {"deviation": ()}, {"least": "99.0"}],
    ids=str,
)
def test_a_line_that_cannot_be_is_found(broken: dict[str, Any]) -> None:
    assert list(general_problems(one_of("timm").but(**broken)))


@pytest.mark.parametrize("broken", [{"weights": "none"}, {"variants": ("another",)}], ids=str)
def test_a_release_without_the_weights_is_found(broken: dict[str, Any]) -> None:
    told = one_of("timm")
    licences = told.card.licences.model_copy(update={"releases": (told.release.model_copy(update=broken),)})
    assert list(general_problems(Stated(told.card.model_copy(update={"licences": licences}), told.key)))


# the best of a card


def best_figures(found: Library, slug: str) -> Iterator[Published]:
    """The best figure of each headline metric among the card's own variants."""
    own = found.cards[slug].own_variants
    numbers = [each for each in numbers_of(found, slug) if each.variant in own and not each.aside]
    for name, metric in found.vocabulary.metrics.items():
        of_metric = [each for each in numbers if each.metric == name]
        if metric.headline and of_metric:
            sign = 1 if metric.better == "higher" else -1
            yield max(of_metric, key=lambda each: sign * each.quantity.value)


def system(number: Published) -> tuple[str, str | None]:
    return number.variant, number.conditions.framework


def missing_checkpoints(found: Library, slug: str) -> Iterator[str]:
    """Best figures of which no weights are listed, although there are some, and no note says why."""
    card = found.cards[slug]
    rows = {checkpoint.system for checkpoint in card.checkpoints.values()}
    listed = {system(each) for each in numbers_of(found, slug) if f"{each.variant}/{each.table}" in rows}
    for best in best_figures(found, slug):
        releases = [each for each in card.licences.releases if best.variant in (each.variants or [best.variant])]
        has_weights = any(each.weights != "none" for each in releases)
        if has_weights and system(best) not in listed and not said_why(card, best):
            yield f"{best.ref} = {best.quantity.printed} is the best, but has no checkpoint, and no note tells of its weights"


def said_why(card: Card, best: Published) -> bool:
    """Whether a note on the row, on its table or on the card tells of the weights."""
    variant = card.variants[best.variant]
    notes = [best.note or "", card.tables[best.table].note or ""]
    notes += [each.text for each in card.notes if variant.name in each.text or f"[[{best.variant}/" in each.text]
    return any("weights" in note.lower() for note in notes)


@pytest.mark.parametrize("slug", list(library().cards))
def test_the_best_of_a_card_can_be_loaded_or_the_card_says_why_not(slug: str) -> None:
    assert not list(missing_checkpoints(library(), slug))


def test_a_best_variant_without_weights_is_found() -> None:
    card = library().cards["detr"].model_copy(update={"checkpoints": {}})
    found = Library({**library().cards, "detr": card}, library().sources, library().vocabulary)
    assert [each.split(" = ")[0] for each in missing_checkpoints(found, "detr")]
