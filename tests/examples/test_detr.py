"""DETR's idea and its rivals: the matching, the loss over the set, the decoder, and what the claims compare."""

from __future__ import annotations

import json
from pathlib import Path

import detr
import pytest
import torch
from claims import detr as claims
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import boxes as lab_boxes
from lab import detectors
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou

SMOKE, QUICK = (detectors.BENCHMARKS[preset] for preset in ("smoke", "quick"))


def random_boxes(count: int, seed: int) -> Tensor:
    """Boxes cxcywh inside the unit square, (count, 4)."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(count, 2, generator=generator) * 0.4 + 0.05
    centre = size / 2 + torch.rand(count, 2, generator=generator) * (1 - size)
    return torch.cat([centre, size], dim=-1)


def a_batch(seed: int, images: int = 3, queries: int = 6, objects: int = 3, classes: int = 2):
    """Predictions and targets of a few images, the last one with fewer objects."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, queries, classes + 1, generator=generator)
    boxes = random_boxes(images * queries, seed).view(images, queries, 4)
    labels = torch.randint(classes, (images, objects), generator=generator)
    labels[-1, 1:] = classes  # padding
    truth = random_boxes(images * objects, seed + 1).view(images, objects, 4)
    return detr.Predictions(logits, boxes), detr.Targets(truth, labels)


@given(st.integers(0, 10_000))
def test_boxes_survive_the_round_trip_through_corners(seed: int) -> None:
    boxes = random_boxes(5, seed)
    torch.testing.assert_close(lab_boxes.cxcywh_from_xyxy(detr.xyxy_from_cxcywh(boxes)), boxes)


@given(st.integers(0, 10_000))
def test_generalized_iou_is_that_of_torchvision(seed: int) -> None:
    a, b = (random_boxes(4, seed + i) for i in range(2))
    theirs = generalized_box_iou(*(detr.xyxy_from_cxcywh(each) for each in (a, b)))
    torch.testing.assert_close(detr.generalized_iou(a[:, None], b[None]), theirs)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_each_image_is_matched_as_scipy_matches_it_alone(seed: int) -> None:
    predictions, targets = a_batch(seed)
    cost, owner = detr.matching_cost(predictions, targets), detr.one_to_one(predictions, targets)
    for image in range(len(cost)):
        real = targets.labels[image] < 2
        queries, columns = linear_sum_assignment(cost[image][:, real].numpy())
        expected = torch.full_like(owner[image], -1)
        expected[torch.as_tensor(queries)] = real.nonzero().flatten()[torch.as_tensor(columns)]
        assert owner[image].tolist() == expected.tolist()
        alone = detr.one_to_one(*(type(x)(*(part[image : image + 1] for part in x)) for x in (predictions, targets)))
        assert alone[0].tolist() == owner[image].tolist()


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.permutations(range(3)))
def test_the_order_of_the_objects_changes_neither_the_matching_nor_the_loss(seed: int, order: list[int]) -> None:
    predictions, targets = a_batch(seed)
    shuffled = detr.Targets(targets.boxes[:, order], targets.labels[:, order])
    owner, other = detr.one_to_one(predictions, targets), detr.one_to_one(predictions, shuffled)
    back = torch.tensor([*order, -1])
    assert back[other].tolist() == owner.tolist()
    losses = detr.set_loss(predictions, targets, owner), detr.set_loss(predictions, shuffled, other)
    torch.testing.assert_close(*losses)


def test_one_to_many_gives_each_object_several_queries_and_no_query_two_objects() -> None:
    predictions, targets = a_batch(0, queries=12, objects=2)
    owner = claims.one_to_many(predictions, targets, copies=4)
    assert (owner[0] == 0).sum() == (owner[0] == 1).sum() == 4
    assert (owner[-1] == 0).sum() == 4  # its second object is padding


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_cells_belong_to_an_object_near_their_centre_and_each_object_has_its_own_cell(seed: int) -> None:
    _, targets = a_batch(seed, objects=2)
    cells = detr.Predictions(torch.zeros(3, 64, 3), torch.zeros(3, 64, 4))
    owner = claims.central_cells(cells, targets)
    middle = targets.boxes[..., :2]  # (B, M, 2)
    for image in range(3):
        mine = (owner[image] >= 0).nonzero().flatten()
        distance = (lab_boxes.grid_points(8)[mine] - middle[image, owner[image, mine]]).abs()
        assert (distance <= 1.5 / 8 + 1e-6).all()
        column, row = (middle[image, 0] * 8).long().tolist()
        shared = (middle[image, 0] * 8).long().equal((middle[image, 1] * 8).long())
        assert owner[image, row * 8 + column] == 0 or (shared and image < 2)
    assert (owner[-1] <= 0).all()  # the second object of the last image is padding


def test_the_cell_in_the_middle_of_an_object_is_its_own_though_a_smaller_one_covers_it() -> None:
    boxes = torch.tensor(
        [[[0.44, 0.44, 0.6, 0.6], [0.56, 0.44, 0.4, 0.4]]]
    )  # middles in neighbouring cells of an 8 x 8 grid
    cells = detr.Predictions(torch.zeros(1, 64, 2), torch.zeros(1, 64, 4))
    owner = claims.central_cells(cells, detr.Targets(boxes, torch.zeros(1, 2, dtype=torch.long)))[0].view(8, 8)
    assert owner[3, 3:5].tolist() == [0, 1]
    assert owner[2, 3] == 1  # between both, the smaller one


def test_a_batch_without_any_object_can_be_matched() -> None:
    predictions, _ = a_batch(3)
    nothing = detr.Targets(torch.zeros(3, 0, 4), torch.zeros(3, 0, dtype=torch.long))
    owner = detr.one_to_one(predictions, nothing)
    assert (owner == -1).all()
    assert torch.isfinite(detr.set_loss(predictions, nothing, owner))


def test_a_cost_that_is_nan_is_an_error() -> None:
    predictions, targets = a_batch(4)
    predictions.boxes[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="invalid numeric entries"):
        detr.one_to_one(predictions, targets)


def test_an_image_without_objects_matches_nothing_and_pays_for_classes_only() -> None:
    predictions, targets = a_batch(1)
    empty = detr.Targets(targets.boxes, torch.full_like(targets.labels, 2))
    owner = detr.one_to_one(predictions, empty)
    assert (owner == -1).all()
    moved = predictions._replace(boxes=predictions.boxes * 0.5)
    assert detr.set_loss(predictions, empty, owner) == detr.set_loss(moved, empty, owner)


def test_a_perfect_prediction_costs_next_to_nothing() -> None:
    _, targets = a_batch(2, images=1, objects=3)
    truth = detr.Targets(targets.boxes, torch.tensor([[0, 1, 0]]))
    logits = torch.full((1, 6, 3), -20.0)
    for query, label in enumerate([0, 1, 0, 2, 2, 2]):
        logits[0, query, label] = 20.0
    boxes = torch.cat([truth.boxes, random_boxes(3, 9)[None]], dim=1)
    predictions = detr.Predictions(logits, boxes)
    assert detr.set_loss(predictions, truth, detr.one_to_one(predictions, truth)) < 1e-5


def test_a_second_box_on_an_object_costs_loss() -> None:
    truth = detr.Targets(random_boxes(1, 3)[None], torch.tensor([[0]]))
    boxes = truth.boxes.expand(1, 2, 4)
    once = detr.Predictions(torch.tensor([[[9.0, 0.0], [0.0, 9.0]]]), boxes)
    twice = detr.Predictions(torch.tensor([[[9.0, 0.0], [9.0, 0.0]]]), boxes)
    losses = [detr.set_loss(each, truth, detr.one_to_one(each, truth)) for each in (once, twice)]
    assert losses[1] > losses[0] + 1


def test_attention_of_a_query_sums_to_one() -> None:
    model = detr.DETR(detr.PRESETS["smoke"], SMOKE).eval()
    with torch.inference_mode():
        maps = model.looks(torch.rand(2, 3, 64, 64))
    assert maps.shape == (2, 16, 8, 8)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 16))


def test_queries_are_predicted_whatever_their_order_and_come_back_in_it() -> None:
    torch.manual_seed(0)
    model, order = detr.DETR(detr.PRESETS["smoke"], SMOKE).eval(), torch.randperm(16)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        before = model(images)
        start = model.start
        model.start = lambda tokens: tuple(each[..., order, :] for each in start(tokens))
        after = model(images)
    torch.testing.assert_close(after.boxes, before.boxes[:, :, order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("arm", claims.ARMS)
def test_a_batch_gives_what_its_images_give_alone(arm: str) -> None:
    torch.manual_seed(0)
    images, model = torch.rand(2, 3, 64, 64), claims.build(arm, "smoke").eval()
    with torch.inference_mode():
        both, first = model(images), model(images[:1])
    torch.testing.assert_close(both.boxes[:, :1], first.boxes, atol=1e-5, rtol=1e-4)


def test_the_arms_have_about_as_many_parameters() -> None:
    sizes = {arm: sum(p.numel() for p in claims.build(arm, "quick").parameters()) for arm in claims.ARMS}
    assert sizes["set"] == sizes["one_to_many"]
    assert sizes["dense"] == pytest.approx(sizes["set"], rel=0.01)


def test_the_file_to_read_uses_what_the_search_chose_for_its_arm() -> None:
    kept = json.loads((Path(claims.__file__).parent / "detr.searches.json").read_text("utf-8"))
    assert kept["learning rate"]["arms"]["set"]["chosen"] == detr.RATE
    assert kept["weight of no object"]["arms"]["set"]["chosen"] == detr.EMPTY
    assert all(set(each["arms"]) == set(claims.ARMS) for each in kept.values()), "every arm is searched alike"


def test_what_nothing_finds_is_undefined_and_not_zero() -> None:
    """Boxes per object of a detector that finds nothing was 0, the best value there is."""

    class Blind(torch.nn.Module):
        def forward(self, images: Tensor) -> detr.Predictions:
            logits = torch.tensor([-9.0, 9.0]).expand(1, len(images), 16, 2)
            return detr.Predictions(logits, torch.full((1, len(images), 16, 4), 0.5))

    class Asked:
        preset, device = "quick", torch.device("cpu")

    blind = detectors.Trained(Blind(), detectors.scenes_of(SMOKE, "test", 0), [])
    found, _ = claims.measures(Asked(), blind)
    assert torch.tensor(found["boxes"]).isnan()
    assert found["ap50"] == pytest.approx(0, abs=1)


def test_published_boxes_come_in_pixels_with_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small random network in the place of the download."""
    import numpy as np
    import transformers
    from PIL import Image

    config = transformers.DetrConfig(
        use_timm_backbone=True, backbone="resnet18", use_pretrained_backbone=False, d_model=32, encoder_layers=1,
        decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=5, num_labels=3,
    )  # fmt: skip
    network, processor = transformers.DetrForObjectDetection(config), transformers.DetrImageProcessor()
    fetch = {"AutoImageProcessor": processor, "DetrForObjectDetection": network}
    for name, thing in fetch.items():
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", lambda _, thing=thing: thing)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    with torch.inference_mode():
        boxes, names = detr.published(image)
    assert boxes.shape == (len(names), 4)
