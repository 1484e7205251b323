"""The Grounding DINO example: named scenes, names that are kept apart, the contrast, what is asked in training, its control."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from lab.boxes import xyxy_from_cxcywh
from lab.data import named as data
from torch import Tensor
from torchvision.ops import masks_to_boxes

example = importlib.import_module("grounding-dino")
claims = importlib.import_module("claims.grounding-dino")
SMOKE = example.PRESETS["smoke"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return example.GroundingDINO(SMOKE).eval()


@pytest.fixture(scope="module")
def scenes() -> data.Named:
    return data.named("val", 12, 3, range(len(data.NAMES)))


def test_no_training_scene_has_a_thing_whose_name_is_left_out_and_all_words_are_known() -> None:
    labels = set(data.named("train", 200, 0).labels.unique().tolist())
    assert labels == {*data.KNOWN, len(data.NAMES)}
    assert set(data.SPELLING[list(data.KNOWN)].unique().tolist()) == set(range(len(data.WORDS)))
    spelled = [" ".join(data.WORDS[word] for word in name) for name in data.SPELLING.tolist()]
    assert tuple(spelled) == data.NAMES


def test_boxes_are_tight_around_masks_and_padding_has_neither(scenes) -> None:
    for labels, boxes, masks in zip(scenes.labels, scenes.boxes, scenes.masks, strict=True):
        there = labels < len(data.NAMES)
        tight = masks_to_boxes(masks[there]) + torch.tensor([0.0, 0, 1, 1])
        torch.testing.assert_close(xyxy_from_cxcywh(boxes[there]) * data.SIDE, tight, atol=1.5, rtol=0)
        assert not masks[~there].any()
        assert not boxes[~there].any()


def test_scenes_repeat_with_the_seed_and_differ_between_splits() -> None:
    first, again, other = (data.named(split, 2, 5).images for split in ("train", "train", "test"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_word_sees_the_other_word_of_its_name_and_no_other_name() -> None:
    sees = ~example.apart(6, torch.device("cpu"))
    assert sees.tolist() == torch.block_diag(*[torch.ones(2, 2)] * 3).bool().tolist()


def test_the_order_of_the_names_changes_only_the_order_of_what_they_score(model, scenes) -> None:
    order = torch.tensor([2, 0, 3, 1])
    asked = data.SPELLING[:4].expand(len(scenes.images), -1, -1)
    with torch.inference_mode():
        before, after = model(scenes.images, asked), model(scenes.images, asked[:, order])
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one.logits[..., order], other.logits, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-4, rtol=1e-3)


def test_picture_and_text_see_each_other() -> None:
    torch.manual_seed(0)
    layer, image, text = example.Enhancer(SMOKE).eval(), torch.randn(1, 9, 24), torch.randn(1, 4, 24)
    for_image, for_text = layer(image, text)
    assert not torch.allclose(layer(image, text + 1.0 * torch.randn(1, 4, 24))[0], for_image)
    assert not torch.allclose(layer(image + 1.0 * torch.randn(1, 9, 24), text)[1], for_text)


def test_the_places_that_fit_a_word_best_become_queries(model, scenes) -> None:
    with torch.inference_mode():
        places, queries = model(scenes.images[:1], data.SPELLING[None, :5])
    best = places.logits[0].amax(-1).topk(SMOKE.queries).indices
    offset = torch.logit(queries.boxes[0, :, :2]) - torch.logit(model.points[best])
    assert offset.abs().max() < 2  # boxes are predicted around the points of those places


def one_box(*logits: float) -> tuple[example.Found, Tensor, Tensor]:
    box = torch.tensor([[[0.5, 0.5, 0.3, 0.3]]])
    return example.Found(torch.tensor([[logits]]), box), box, torch.eye(len(logits))[None, :1]


def test_the_right_name_costs_least_and_a_wrong_one_most() -> None:
    right, none, wrong = (
        example.grounding_loss(*one_box(*logits)) for logits in ((5.0, -5.0), (-5.0, -5.0), (-5.0, 5.0))
    )
    assert right < 0.01 < none < wrong


def test_a_second_box_on_a_thing_costs_loss() -> None:
    found, box, wanted = one_box(5.0, -5.0)
    twice = example.Found(found.logits.repeat(1, 2, 1), found.boxes.repeat(1, 2, 1))
    assert example.grounding_loss(twice, box, wanted) > example.grounding_loss(found, box, wanted) + 1


def test_a_batch_without_anything_pays_for_what_it_finds_and_nothing_for_boxes() -> None:
    found, box, wanted = one_box(-5.0, -5.0)
    nothing = example.grounding_loss(found, box, torch.zeros_like(wanted))
    assert torch.isfinite(nothing)
    moved = found._replace(boxes=found.boxes * 0.5)
    assert example.grounding_loss(moved, box, torch.zeros_like(wanted)) == nothing


def test_training_asks_for_what_is_there_and_never_for_a_name_that_is_left_out() -> None:
    labels = data.named("train", 50, 2).labels
    asked = example.prompts(labels, 8, torch.Generator().manual_seed(0))
    assert asked.shape == (50, 8)
    assert not torch.isin(asked, torch.tensor(data.LEFT_OUT)).any()
    for names, there in zip(asked.tolist(), labels.tolist(), strict=True):
        assert len(set(names)) == 8
        assert set(there) - {len(data.NAMES)} <= set(names)


def test_average_precision_is_that_of_the_asked_classes_alone(scenes) -> None:
    perfect = torch.full((12, data.MOST, len(data.NAMES) + 1), -9.0).scatter(2, scenes.labels[..., None], 9.0)
    found = example.Found(perfect[..., :-1], scenes.boxes)
    assert example.ap50(found, scenes, data.LEFT_OUT) == pytest.approx(100)
    wrong = example.Found(found.logits.roll(1, -1), scenes.boxes)
    assert example.ap50(wrong, scenes, data.KNOWN) < 20


def test_codes_are_the_same_words_and_no_name_of_the_other_arm_keeps_all_of_its_own() -> None:
    words, codes = claims.spelling("words", 1), claims.spelling("codes", 1)
    assert sorted(words.tolist()) == sorted(codes.tolist())
    assert (words != codes).any(1).float().mean() > 0.8


def test_names_are_there_or_share_a_word_or_share_none() -> None:
    labels = torch.tensor([[data.NAMES.index("red disc"), len(data.NAMES)]])
    kinds = {
        kind: [data.NAMES[each] for each in names[0].nonzero()[:, 0]]
        for kind, names in claims.relations(labels).items()
    }
    assert kinds["present"] == ["red disc"]
    assert set(kinds["near"]) == {
        name for name in data.NAMES if name.split()[0] == "red" or name.split()[1] == "disc"
    } - {"red disc"}
    assert len(kinds["far"]) == 16


def test_the_file_to_read_uses_what_the_search_chose_for_its_arm() -> None:
    kept = json.loads((Path(claims.__file__).parent / "grounding-dino.searches.json").read_text("utf-8"))
    assert kept["learning rate"]["arms"]["words"]["chosen"] == example.RATE
    assert set(kept["learning rate"]["arms"]) == set(claims.ARMS)


def test_published_boxes_come_in_pixels_with_the_words_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins in the place of the download: what is passed to whom is what the library asks for."""
    import numpy as np
    import transformers
    from PIL import Image

    class Inputs(dict):
        input_ids = torch.tensor([[101, 1037, 102]])

    class Processor:
        def __call__(self, images, text, return_tensors):
            assert text == text.lower()
            assert text.endswith(".")
            return Inputs(input_ids=Inputs.input_ids)

        def post_process_grounded_object_detection(self, outputs, input_ids, target_sizes):
            assert target_sizes == [(60, 80)]
            return [{"boxes": torch.tensor([[1.0, 2, 30, 40]]), "text_labels": ["a wheel"]}]

    network = torch.nn.Module()
    network.forward = lambda **inputs: inputs
    for name, thing in {"AutoProcessor": Processor(), "GroundingDinoForObjectDetection": network}.items():
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", lambda _, thing=thing: thing)
    boxes, names = example.published(Image.fromarray(np.zeros((60, 80, 3), np.uint8)))
    assert boxes.shape == (1, 4)
    assert names == ["a wheel"]
