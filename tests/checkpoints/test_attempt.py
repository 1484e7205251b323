"""One checkpoint on a picture: run from the caches of the libraries, timed, and told in a line where something is missing."""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path

import pytest
from published import CHECKPOINTS, checkpoint
from snapshots import write_timm, write_torchvision
from snapshots_of_all import KINDS, VISION, WRITERS, counts

from scripts.cards.releases import Checkpoint
from scripts.checkpoints import loading, runners
from scripts.checkpoints.attempt import attempt, missing, refused
from scripts.checkpoints.clips import ON_A_CLIP
from scripts.checkpoints.found import Attempt, Found, Prompt, Thing
from scripts.checkpoints.pictures import open_picture
from scripts.checkpoints.snippets import processor_of

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]  # of the libraries, about tiny configurations

HEIGHT, WIDTH = 80, 120
PROMPT = Prompt(point=(60, 40), texts=("a cat", "the rocket"))
ON_PICTURES = {name: each for name, each in KINDS.items() if refused(each) is None}


@pytest.fixture
def everything_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is too unlikely to be found."""
    monkeypatch.setattr(runners, "THRESHOLD", 0.0)
    monkeypatch.setattr(runners, "TEXT_THRESHOLD", 0.0)
    monkeypatch.setattr(runners, "WORD_THRESHOLD", 0.0)


def tried(each: Checkpoint, photograph: Path, prompt: Prompt = PROMPT, random: bool = False) -> Attempt:
    return attempt("a/b", each, open_picture(photograph), prompt, "cpu", random)


def is_of_its_kind(found: Found, output: str) -> None:
    if output == "depth":
        assert found.depth is not None
        assert found.depth.shape == (HEIGHT, WIDTH)
    elif output == "features":
        assert found.features is not None
        assert found.features.ndim == 3
    else:
        assert found.things
        assert all(thing.name for thing in found.things)
    for thing in found.things:
        assert (thing.mask is not None) == ("mask" in output or "map" in output)
        assert thing.mask is None or thing.mask.shape == (HEIGHT, WIDTH)
        assert (thing.box is not None) == (output in ("boxes", "boxes of a text", "masks of a text"))


@pytest.mark.parametrize("kind", ON_PICTURES)
def test_each_kind_of_transformers_is_read_as_what_the_card_states(
    kind: str, caches: Path, photograph: Path, everything_counts: None
) -> None:
    each = ON_PICTURES[kind]
    WRITERS[each.load.class_](caches / "hub", each.load.name)
    done = tried(each, photograph)
    assert done.error == ""
    assert done.found is not None
    if each.output != "panoptic map":  # where a tiny model's segments overlap, none is left
        is_of_its_kind(done.found, each.output)
    assert done.ms is not None
    assert done.ms > 0
    assert done.peak_mb is not None
    assert done.peak_mb > 50
    assert set(done.versions) == {"torch", "transformers"}


def test_a_box_is_a_prompt_too(caches: Path, photograph: Path) -> None:
    for name in ("SamModel, masks of a prompt", "Sam2Model, masks of a prompt", "Sam3TrackerModel, masks of a prompt"):
        each = KINDS[name]
        WRITERS[each.load.class_](caches / "hub", each.load.name)
        done = tried(each, photograph, Prompt(box=(10, 10, 60, 60)))
        assert done.error == ""
        assert done.found is not None
        assert done.found.things[0].mask is not None
        assert done.found.remark == "the one of 3 masks with the highest predicted IoU"


ON_CLIPS = {name: each for name, each in KINDS.items() if refused(each, "clip") is None and each.output in ON_A_CLIP}


@pytest.mark.parametrize("kind", ON_CLIPS)
def test_each_kind_of_clips_is_read_as_what_the_card_states(
    kind: str, caches: Path, photograph: Path, tmp_path: Path
) -> None:
    each = ON_CLIPS[kind]
    WRITERS[each.load.class_](caches / "hub", each.load.name)
    frames = tmp_path / "clip"
    frames.mkdir()
    for number in range(5):
        shutil.copy(photograph, frames / f"{number}.jpg")
    picture = open_picture(frames)
    done = attempt("a/b", each, picture, PROMPT, "cpu", False)
    assert done.error == ""
    assert done.found is not None
    if each.output == "masks of a clip":
        assert done.found.things[0].mask is not None
        assert done.found.things[0].mask.shape == picture.sheet.size[::-1] == (2 * HEIGHT, 4 * WIDTH)
        assert done.found.remark.endswith("of 5 frames")
    elif each.output == "features of a clip":
        assert done.found.features is not None
        assert done.found.features.ndim == 3
    else:
        assert len(done.found.things) == 5


@pytest.mark.parametrize(
    ("name", "output"), [("mobilenetv3_small_050.lamb_in1k", "classes"), ("test_vit.r160_in1k", "features")]
)
def test_timm_is_read(name: str, output: str, caches: Path, photograph: Path) -> None:
    each = checkpoint("timm", "create_model", name, output)
    assert "is not on this machine" in tried(each, photograph).error
    write_timm(caches / "hub", name)
    done = tried(each, photograph)
    assert done.error == ""
    assert done.found is not None
    is_of_its_kind(done.found, output)


@pytest.mark.parametrize("output", ["classes", "semantic map", "boxes"])
def test_torchvision_is_read(output: str, caches: Path, photograph: Path, everything_counts: None) -> None:
    folder, class_, name = VISION[output]
    models = importlib.import_module(folder)
    enumeration, _, member = name.partition(".")
    weights = vars(models)[enumeration][member]
    backbone = {"weights_backbone": None} if folder != "torchvision.models" else {}
    write_torchvision(
        caches / "torch", weights, vars(models)[class_](weights=None, **backbone, **counts(weights, folder))
    )
    done = tried(checkpoint("torchvision", class_, name, output), photograph)
    assert done.error == ""
    assert done.found is not None
    if output != "boxes":  # random weights may find no box at all
        is_of_its_kind(done.found, output)


def test_a_file_of_torchvision_that_is_missing_is_named_with_its_place(
    caches: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.hub

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    done = tried(checkpoint("torchvision", VISION["classes"][1], VISION["classes"][2], "classes"), photograph)
    assert re.fullmatch(
        rf"mobilenet_v3_small-\w+\.pth is missing: put it into {caches}/torch/hub/checkpoints \(TORCH_HOME moves that\)",
        done.error,
    )


def test_a_repository_that_is_missing_is_named_with_its_place(caches: Path, photograph: Path) -> None:
    each = ON_PICTURES["DepthAnythingForDepthEstimation, depth"]
    error = tried(each, photograph).error
    assert error.startswith(f"{each.load.name} is not on this machine and could not be fetched: config.json, ")
    folder = f"{caches}/hub/models--{each.load.name.replace('/', '--')}"
    assert f" missing in {folder}/snapshots/main, and the word main, without a line end, missing in " in error
    assert f" in {folder}/refs/main (HF_HOME moves that); " in error
    assert f"hf download {each.load.name}" in error
    assert "\n" not in error


@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_files_that_are_put_where_the_line_says_are_found(library: str, caches: Path, photograph: Path) -> None:
    if library == "timm":
        each = checkpoint("timm", "create_model", "test_vit.r160_in1k", "features")
        write_timm(caches / "hub", each.load.name)
    else:
        each = ON_PICTURES["DepthAnythingForDepthEstimation, depth"]
        WRITERS[each.load.class_](caches / "hub", each.load.name)
    (repository,) = (caches / "hub").glob("models--*")
    shutil.move(repository, caches / "elsewhere")
    (files,) = (caches / "elsewhere/snapshots").iterdir()
    match = re.search(
        r"missing in (\S+), and the word (\S+), without a line end, missing in (\S+) ", tried(each, photograph).error
    )
    assert match is not None
    shutil.copytree(files, match[1])
    assert f": the word main, without a line end, missing in {match[3]} (" in str(missing(each))
    Path(match[3]).parent.mkdir()
    Path(match[3]).write_text(f"{match[2]}\n")
    assert "the word main, without a line end, missing" in str(missing(each))
    Path(match[3]).write_text(match[2])
    assert missing(each) is None
    assert tried(each, photograph).error == ""


def test_a_snapshot_that_was_copied_without_its_name_is_named(caches: Path, photograph: Path) -> None:
    each = ON_PICTURES["DepthAnythingForDepthEstimation, depth"]
    WRITERS[each.load.class_](caches / "hub", each.load.name)
    (repository,) = (caches / "hub").glob("models--*")
    (folder,) = (repository / "snapshots").iterdir()
    shutil.rmtree(repository / "refs")
    assert f"the word {folder.name}, without a line end, missing in {repository}/refs/main" in str(missing(each))


def test_one_file_that_is_missing_is_named_alone_and_a_gate_is_told_of(caches: Path, photograph: Path) -> None:
    each = next(each for each in CHECKPOINTS.values() if each.gated and refused(each) is None)
    WRITERS[each.load.class_](caches / "hub", each.load.name)
    weights = next(caches.rglob("model.safetensors"))
    weights.unlink()
    error = tried(each, photograph).error
    assert ": model.safetensors or model.safetensors.index.json or" in error
    assert f"ask for access at https://huggingface.co/{each.load.name} first" in error


def test_random_weights_need_the_small_files_only(caches: Path, photograph: Path) -> None:
    each = KINDS["DetrForObjectDetection, boxes"]
    WRITERS[each.load.class_](caches / "hub", each.load.name)
    next(caches.rglob("model.safetensors")).unlink()
    assert tried(each, photograph, random=True).error == ""


@pytest.mark.parametrize("kind", ["DINOv3ViTModel, features", "DINOv3ConvNextModel, features"])
def test_where_the_hub_has_nothing_random_weights_take_the_default_configuration(
    kind: str, caches: Path, photograph: Path
) -> None:
    done = tried(ON_PICTURES[kind], photograph, random=True)
    assert done.error == ""
    assert done.found is not None
    is_of_its_kind(done.found, "features")
    assert (
        f"the library's default configuration: that of {ON_PICTURES[kind].load.name} cannot be had" in done.found.remark
    )


@pytest.mark.parametrize("kind", [*ON_PICTURES, *ON_CLIPS])
def test_each_processor_has_defaults_but_those_that_read_a_text(kind: str, caches: Path) -> None:
    import transformers

    each = KINDS[kind]
    prepares = getattr(transformers, processor_of(each))
    configuration = getattr(transformers, each.load.class_).config_class
    if each.output.endswith((" of a text", " to texts")):
        with pytest.raises(ValueError, match="its tokenizer is on the hub alone"):
            loading._default_processor(prepares, configuration)
    else:
        assert callable(loading._default_processor(prepares, configuration))


def test_random_weights_of_what_reads_a_text_say_that_words_are_on_the_hub(caches: Path, photograph: Path) -> None:
    error = tried(KINDS["SiglipModel, similarity to texts"], photograph, random=True).error
    assert error.startswith("ValueError: reads a text, and its tokenizer is on the hub alone")


def test_random_weights_are_the_same_each_time_and_each_of_their_boxes_has_a_name(
    caches: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = KINDS["GroundingDinoForObjectDetection, boxes of a text"]
    WRITERS[each.load.class_](caches / "hub", each.load.name)
    monkeypatch.setattr(runners, "TEXT_THRESHOLD", 0.0)
    monkeypatch.setattr(runners, "WORD_THRESHOLD", 1.0)  # no word is sure enough
    first, second = (tried(each, photograph, random=True).found for _ in range(2))
    assert first is not None
    assert {thing.name for thing in first.things} == {"unnamed"}
    assert first == second


def test_what_a_library_raises_is_told_in_a_line(photograph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("first line\n  second line" + 400 * "x")

    monkeypatch.setitem(runners.LIBRARIES, "timm", broken)
    error = tried(checkpoint("timm", "create_model", "any", "classes"), photograph).error
    assert error == "RuntimeError: first line second ..."


def test_what_cannot_be_tried_is_refused_before_anything_is_loaded() -> None:
    clip, volume = (
        checkpoint("transformers", "Any", "any", f"{each}") for each in ("masks of a clip", "labels of a volume")
    )
    assert refused(clip) == "takes a clip, and this is a picture"
    assert refused(clip, "clip") is None
    assert refused(volume) == "takes a volume, and this is a picture"
    assert refused(volume, "volume") == "loads with transformers, which is not yet tried here"
    assert (
        refused(checkpoint("transformers", "Any", "any", "keypoints")) == "gives keypoints, which is not yet tried here"
    )
    assert (
        refused(checkpoint("timm", "create_model", "any", "classes"), "volume")
        == "takes a picture, and this is a volume"
    )
    assert "a text" in str(refused(checkpoint("transformers", "Sam3VideoModel", "any", "masks of a clip"), "clip"))
    assert "mmdet" in str(refused(checkpoint("mmdet", "any", "any", "boxes")))
    assert "code that comes with" in str(refused(checkpoint("transformers", "AutoModelForX", "any", "classes")))
    assert refused(checkpoint("timm", "create_model", "any", "classes")) is None


def test_of_very_many_things_the_surest_are_kept() -> None:
    import torch

    found = runners.things([str(n) for n in range(50)], torch.arange(50) / 50, torch.zeros(50, 4))
    assert len(found.things) == runners.MOST_THINGS
    assert found.things[0] == Thing("49", pytest.approx(0.98), (0.0, 0.0, 0.0, 0.0))
    assert found.remark == "10 less sure ones are left out"


def test_tokens_that_lie_on_no_grid_are_not_drawn() -> None:
    import torch

    assert runners.patches(torch.zeros(3, 8), 224, 224).features is None
    assert runners.patches(torch.zeros(16 * 16 + 5, 8), 224, 224).features.shape == (16, 16, 8)  # type: ignore[union-attr]
    assert runners.patches(torch.zeros(16 * 16 + 1, 8), 224, 224).remark == "16 x 16 patches, 1 other token"
    assert runners.patches(torch.zeros(16 * 16, 8), 224, 224).remark == "16 x 16 patches, no other tokens"
    assert runners.patches(torch.zeros(8, 7, 7), 224, 224).features.shape == (7, 7, 8)  # type: ignore[union-attr]
