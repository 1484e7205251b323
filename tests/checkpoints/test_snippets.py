"""A snippet for every checkpoint, of at most eight lines, which loads it by the real interface of its library."""

from __future__ import annotations

import ast

import pytest
from published import CHECKPOINTS, checkpoint

from scripts.checkpoints.snippets import LIBRARIES, MOST_LINES, frames_of, is_run_here, processor_of, snippet


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_checkpoint_has_a_snippet_or_is_of_a_library_without(name: str) -> None:
    lines = snippet(CHECKPOINTS[name])
    if lines is None:
        assert CHECKPOINTS[name].load.library not in LIBRARIES  # test_elsewhere.py says which those are
        return
    assert len(lines.splitlines()) <= MOST_LINES
    assert max(map(len, lines.splitlines())) <= 150
    ast.parse(lines)
    if is_run_here(CHECKPOINTS[name]):
        assert CHECKPOINTS[name].load.name in lines
    assert lines.splitlines()[-1].strip().startswith("print(")


def test_what_a_card_says_is_text_in_a_snippet_and_never_code() -> None:
    name = 'a")\nimport os  # "é'
    lines = snippet(checkpoint("timm", "create_model", name.replace("\n", " "), "classes"))
    assert lines is not None
    imported = [node for node in ast.walk(ast.parse(lines)) if isinstance(node, ast.Import)]
    assert [alias.name for node in imported for alias in node.names] == ["timm"]
    assert snippet(checkpoint("torchvision", "resnet18", "ResNet18_Weights.A); print(1", "classes")) is None
    assert snippet(checkpoint("transformers", "a.b", "any", "classes")) is None


def test_only_a_model_whose_code_comes_with_its_weights_is_trusted_with_running_it() -> None:
    for each in CHECKPOINTS.values():
        assert ("trust_remote_code=True" in (snippet(each) or "")) == each.load.class_.startswith("AutoModel")
    remote = snippet(checkpoint("transformers", "AutoModelForImageClassification", "any/any", "classes"))
    assert 'from_pretrained("any/any", trust_remote_code=True)' in str(remote)


def test_there_is_no_snippet_for_what_a_library_does_not_do() -> None:
    assert snippet(checkpoint("mmdet", "init_detector", "any", "boxes")) is None
    assert snippet(checkpoint("timm", "create_model", "any", "boxes")) is None
    assert snippet(checkpoint("torchvision", "any", "A.B", "depth")) is None
    assert snippet(checkpoint("transformers", "Any", "any", "labels of a volume")) is None
    assert snippet(checkpoint("monai", "Any", "any", "classes")) is None


def test_a_clip_is_as_long_as_the_card_says() -> None:
    assert frames_of(checkpoint("transformers", "Any", "any", "classes of a clip", "8 x 224 x 224")) == 8
    assert frames_of(checkpoint("transformers", "Any", "any", "classes of a clip", "64 frames of 256 x 256")) == 64
    assert frames_of(checkpoint("transformers", "Any", "any", "classes of a clip", "224 x 224")) == 16


@pytest.mark.parametrize(
    ("class_", "output", "processor"),
    [
        ("Sam2Model", "masks of a prompt", "Sam2Processor"),
        ("Sam3TrackerModel", "masks of a prompt", "Sam3TrackerProcessor"),
        ("Sam3VideoModel", "masks of a clip", "Sam3VideoProcessor"),
        ("VJEPA2Model", "features of a clip", "AutoVideoProcessor"),
        ("SiglipModel", "similarity to texts", "AutoProcessor"),
        ("DetrForObjectDetection", "boxes", "AutoImageProcessor"),
    ],
)
def test_weights_that_several_models_share_are_read_with_the_processor_of_the_model(
    class_: str, output: str, processor: str
) -> None:
    assert processor_of(checkpoint("transformers", class_, "any", output)) == processor
