"""Each kind of snippet runs as a reader would run it, on tiny random weights that lie in the caches of the libraries."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import shutil
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest
from published import CHECKPOINTS, LIBRARY, checkpoint
from snapshots import write_timm, write_torchvision
from snapshots_of_all import KINDS, VISION, WRITERS, counts, kinds

from scripts.checkpoints.snippets import CLIPS, FOLDERS, LIBRARIES, brings_code, snippet
from scripts.evidence.published import own_size

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]  # of the libraries, about tiny configurations

HEIGHT, WIDTH = 80, 120  # of the photograph
Names = dict[str, Any]


def run(lines: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Names:
    """What a snippet leaves behind, run beside the picture; nothing is too unlikely to be found."""
    assert lines is not None
    monkeypatch.chdir(folder)
    names: Names = {}
    exec(re.sub(r"threshold=0\.\d+", "threshold=0.0", lines), names)
    return names


def is_boxes(names: Names) -> None:
    found = names["found"]
    assert found["boxes"].shape == (len(found["scores"]), 4)
    assert len(found["scores"]) == len(found["labels"]) > 0
    assert found["boxes"].max() > 1  # in pixels, not in shares of the picture
    assert {names["model"].config.id2label[n] for n in found["labels"].tolist()} <= {f"thing {n}" for n in range(6)}


def is_segments(names: Names) -> None:
    found = names["found"]
    assert found["segmentation"].shape == (HEIGHT, WIDTH)
    assert all({"id", "label_id", "score"} <= set(segment) for segment in found["segments_info"])


def is_semantic(names: Names) -> None:
    assert names["classes"].shape == (HEIGHT, WIDTH)
    assert set(names["classes"].unique().tolist()) <= set(range(6))


def is_features(names: Names) -> None:
    tokens, pooled = names["outputs"].last_hidden_state, names["outputs"].pooler_output
    height, width = names["processor"](names["picture"], return_tensors="pt")["pixel_values"].shape[-2:]
    assert tokens.shape == (1, tokens_stated(names["checkpoint"].form, height, width), 16)
    assert pooled.equal(tokens[:, 0])


FIRST = {"class token": 1, "four register tokens": 4, "a token of the map's mean": 1}
"""How a card names the tokens before those of the patches, and how many they are."""


def tokens_stated(form: str, height: int, width: int) -> int:
    """How many tokens a card says that there are."""
    (side,) = re.findall(r"one feature for each patch of (\d+) x \1 pixels, in last_hidden_state", form)
    return sum(count for name, count in FIRST.items() if name in form) + (height // int(side)) * (width // int(side))


def is_masks(names: Names) -> None:
    masks = names["masks"]
    assert masks.shape == (1, 3, HEIGHT, WIDTH)
    assert masks.dtype.is_floating_point is False
    assert names["outputs"].iou_scores.shape[-1] == 3


def is_masks_of_a_text(names: Names) -> None:
    found = names["found"]
    assert found["masks"].shape == (len(found["scores"]), HEIGHT, WIDTH)
    assert found["boxes"].shape == (len(found["scores"]), 4)


def is_boxes_of_a_text(names: Names) -> None:
    found = names["found"]
    assert found["boxes"].shape == (len(found["scores"]), 4)
    assert all(isinstance(text, str) for text in found["text_labels"])


def is_classes(names: Names) -> None:
    assert len(names["best"].indices) == 5
    assert names["best"].values.tolist() == sorted(names["best"].values.tolist(), reverse=True)


def is_features_of_a_clip(names: Names) -> None:
    assert names["features"].shape == (1, (4 // 2) * 2 * 2, 24)  # tubelets of two frames by 16 x 16 pixels of 32 x 32


def is_masks_of_a_clip(names: Names) -> None:
    assert names["found"].frame_idx == 3  # the last one


def is_depth(names: Names) -> None:
    assert names["depth"].shape == (HEIGHT, WIDTH)


def is_similarity(names: Names) -> None:
    assert names["outputs"].logits_per_image.shape == (1, len(names["texts"]))


def write_frames(photograph: Path) -> None:
    """Four frames of a clip, all alike."""
    folder = photograph.parent / "frames"
    folder.mkdir()
    for number in range(4):
        shutil.copy(photograph, folder / f"{number}.jpg")


FORMS: dict[str, Callable[[Names], None]] = {
    "boxes": is_boxes,
    "classes": is_classes,
    "boxes and masks": is_segments,
    "panoptic map": is_segments,
    "semantic map": is_semantic,
    "features": is_features,
    "masks of a prompt": is_masks,
    "masks of a text": is_masks_of_a_text,
    "boxes of a text": is_boxes_of_a_text,
    "classes of a clip": is_classes,
    "features of a clip": is_features_of_a_clip,
    "masks of a clip": is_masks_of_a_clip,
    "depth": is_depth,
    "similarity to texts": is_similarity,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_snippet_of_transformers_gives_what_the_card_states(
    kind: str, caches: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    each = KINDS[kind]
    WRITERS[each.load.class_](caches / "hub", each.load.name)
    if each.output in CLIPS:
        write_frames(photograph)
    capsys.readouterr()
    FORMS[each.output](run(snippet(each), photograph.parent, monkeypatch) | {"checkpoint": each})
    assert capsys.readouterr().out.strip()


def test_each_kind_of_the_cards_is_run_but_those_without_a_tiny_configuration() -> None:
    without = {each.load.class_ for each in kinds().values() if not brings_code(each)} - set(WRITERS)
    assert without <= {"Sam3VideoModel"}
    assert {each.load.library for each in CHECKPOINTS.values()} & set(LIBRARIES) <= {
        "transformers",
        "timm",
        "torchvision",
        "monai",
    }


def test_the_functions_of_monai_take_what_a_snippet_gives_them() -> None:
    """A bundle brings a configuration of its own, so a run without it would show nothing of it."""
    from monai.bundle import ConfigWorkflow, download

    lines = str(snippet(CHECKPOINTS["unet/monai-spleen"]))
    assert inspect.signature(download).bind(name="spleen_ct_segmentation", bundle_dir="bundles")
    assert inspect.signature(ConfigWorkflow.__init__).bind(None, "inference.json", workflow_type="infer", datalist=[])
    assert 'ConfigWorkflow("bundles/spleen_ct_segmentation/configs/inference.json", workflow_type="infer"' in lines


def test_the_methods_of_sam3_for_clips_are_there() -> None:
    from transformers import Sam3VideoModel, Sam3VideoProcessor

    assert inspect.signature(Sam3VideoProcessor.init_video_session).bind(None, [])
    assert inspect.signature(Sam3VideoProcessor.add_text_prompt).bind(None, None, "person")
    assert inspect.signature(Sam3VideoProcessor.postprocess_outputs).bind(None, None, None)
    assert inspect.signature(Sam3VideoModel.propagate_in_video_iterator).bind(None, None)


@pytest.mark.parametrize(
    ("name", "output"), [("mobilenetv3_small_050.lamb_in1k", "classes"), ("test_vit.r160_in1k", "features")]
)
def test_a_snippet_of_timm_runs(
    name: str, output: str, caches: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_timm(caches / "hub", name)
    names = run(snippet(checkpoint("timm", "create_model", name, output)), photograph.parent, monkeypatch)
    if output == "classes":
        is_classes(names)
        assert names["names"].num_classes() == 1000
    else:
        assert names["features"].shape[:2] == (1, names["model"].patch_embed.num_patches + 1)


def smallest(library: str) -> list[str]:
    """Of each card and output the checkpoint of a library with the fewest parameters, as the card reports them."""
    found: dict[tuple[str, str], tuple[float, str]] = {}
    for id, each in CHECKPOINTS.items():
        if each.load.library == library:
            slug, variant = id.partition("/")[0], each.system.partition("/")[0]
            size = own_size(LIBRARY, slug, variant, "parameters")
            key = (slug, each.output)
            found[key] = min(found.get(key, (inf, id)), (size.quantity.value if size else inf, id))
    return [id for _, id in found.values()]


@pytest.mark.parametrize("id", smallest("timm"))
def test_the_smallest_checkpoint_of_timm_on_each_card_runs(
    id: str, caches: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = CHECKPOINTS[id]
    write_timm(caches / "hub", each.load.name)
    names = run(snippet(each), photograph.parent, monkeypatch)
    if each.output == "classes":
        is_classes(names)
    else:
        assert names["features"].shape[0] == 1
        assert names["features"].shape[-1] == names["model"].num_features


@pytest.mark.parametrize("id", smallest("torchvision"))
def test_the_smallest_checkpoint_of_torchvision_on_each_card_runs(
    id: str, caches: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = CHECKPOINTS[id]
    run_torchvision(
        FOLDERS[each.output], each.load.class_, each.load.name, each.output, caches, photograph, monkeypatch
    )


def test_all_of_timm_and_torchvision_are_of_a_form_that_is_run() -> None:
    """What a snippet says beside the name that is loaded is the same for all of a library and an output, so a run is of each."""
    run_forms, forms = set(), set()
    for id, each in CHECKPOINTS.items():
        if each.load.library in ("timm", "torchvision"):
            enumeration = each.load.name.partition(".")[0]
            form = str(snippet(each)).replace(each.load.name, "").replace(enumeration, "").replace(each.load.class_, "")
            forms.add(form)
            if id in smallest(each.load.library):
                run_forms.add(form)
    assert run_forms == forms


@pytest.mark.parametrize("output", VISION)
def test_a_snippet_of_torchvision_runs(
    output: str, caches: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, class_, name = VISION[output]
    run_torchvision(folder, class_, name, output, caches, photograph, monkeypatch)


def run_torchvision(
    folder: str, class_: str, name: str, output: str, caches: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run a snippet on random weights; a detector looks at a small picture."""
    models = importlib.import_module(folder)
    small = {"min_size": 64, "max_size": 96} if "detection" in folder else {}
    backbone = {"weights_backbone": None} if folder != "torchvision.models" else {}
    weights = functools.reduce(getattr, name.split("."), models)
    write_torchvision(
        caches / "torch", weights, vars(models)[class_](weights=None, **backbone, **counts(weights, folder))
    )
    monkeypatch.setattr(models, class_, functools.partial(vars(models)[class_], **small))
    names = run(snippet(checkpoint("torchvision", class_, name, output)), photograph.parent, monkeypatch)
    if output == "classes":
        is_classes(names)
    elif output == "semantic map":
        assert names["classes"].ndim == 2
    else:
        assert names["found"]["boxes"].shape == (len(names["found"]["scores"]), 4)
        assert ("masks" in names["found"]) == (output == "boxes and masks")
        assert ("keypoints" in names["found"]) == (output == "keypoints")
