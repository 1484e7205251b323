"""The Co-DETR example: who answers for an object, queries whose answer is known, and a helper that is gone in use."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from lab import shapes
from lab.boxes import Targets, grid_points
from lab.data.named import NAMES, SHAPES, named

example = importlib.import_module("co-detr")
claims = importlib.import_module("claims.co-detr")
SMOKE, COPIES = example.PRESETS["smoke"], example.COPIES


@pytest.fixture
def model():
    torch.manual_seed(0)
    return example.Helped(SMOKE).eval()


@pytest.fixture(scope="module")
def scenes():
    return named("val", 8, 3, range(len(NAMES)))


def gradients(module: torch.nn.Module) -> list[bool]:
    return [each.grad is not None and bool(each.grad.abs().sum() > 0) for each in module.parameters()]


def test_the_places_that_answer_are_the_nearest_and_belong_to_the_nearest_object(scenes) -> None:
    points, targets = grid_points(12), shapes.things(scenes)
    for copies in (1, COPIES):
        places, owner = example.nearest(points, targets, copies)
        for scene in range(8):
            objects = (targets.labels[scene] < len(SHAPES)).nonzero()[:, 0].tolist()
            gap = torch.cdist(points, targets.boxes[scene, :, :2])
            for each in objects:
                wanted = set(gap[:, each].argsort()[:copies].tolist())
                assert set(places[scene, each].tolist()) == wanted
                assert len(places[scene, each]) == COPIES
                own = set((owner[scene] == each).nonzero()[:, 0].tolist())
                assert own <= wanted
                assert all(gap[place, objects].argmin() == objects.index(each) for place in own)
            assert set(owner[scene].tolist()) <= {-1, *objects}


def test_many_places_lie_within_even_the_smallest_things() -> None:
    scenes = named("train", 100, 0, range(len(NAMES)))
    targets, points = shapes.things(scenes), grid_points(12)
    places, _ = example.nearest(points, targets, COPIES)
    there = targets.labels < len(SHAPES)
    middle, half = targets.boxes[there][:, None, :2], targets.boxes[there][:, None, 2:] / 2
    inside = ((points[places[there]] - middle).abs() <= half).all(-1)
    assert inside.float().mean() > 0.9


def test_both_helpers_make_as_many_queries_and_only_one_repeats_itself(model, scenes) -> None:
    targets, maps = shapes.things(scenes), model.detector.encode(scenes.images)
    counts = {}
    for copies in (1, COPIES):
        queries, boxes = model.positive_queries(maps, example.nearest(model.points, targets, copies)[0])
        assert queries.shape[:2] == boxes.shape[:2] == (8, targets.labels.shape[1] * COPIES)
        counts[copies] = len(queries[0, :COPIES].unique(dim=0))
    assert counts == {1: 1, COPIES: COPIES}


def test_in_use_nothing_of_the_helper_is_asked(model, scenes) -> None:
    with torch.inference_mode():
        before = model(scenes.images)[-1]
        for each in (model.helper, model.to_query, model.to_place):
            for weight in each.parameters():
                weight.fill_(torch.nan)
        after = model(scenes.images)[-1]
    assert torch.equal(before.boxes, after.boxes)
    assert torch.equal(before.logits, after.logits)


def test_without_helper_its_weights_learn_nothing_and_with_it_they_and_the_encoder_do(model, scenes) -> None:
    targets = shapes.things(scenes)
    example.loss_of(model, scenes.images, *targets, copies=0).backward()
    assert not any(gradients(model.helper) + gradients(model.to_query))
    model.zero_grad()
    example.loss_of(model, scenes.images, *targets, copies=COPIES).backward()
    assert all(gradients(model.helper.score) + gradients(model.to_query))
    assert any(gradients(model.detector.encoder))


def test_queries_of_padding_pay_nothing() -> None:
    truth = Targets(torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0, 0, 0, 0]]]), torch.tensor([[0, len(SHAPES)]]))
    found = shapes.Found(torch.randn(1, 2, len(SHAPES)), torch.rand(1, 2, 4) * 0.5 + 0.2)
    owner, count = torch.tensor([[0, -1]]), torch.tensor([[True, False]])
    loss = example.set_loss(found, truth, owner, count)
    other = shapes.Found(found.logits.clone(), found.boxes.clone())
    other.logits[:, 1], other.boxes[:, 1] = 9.0, 0.9
    assert example.set_loss(other, truth, owner, count) == loss
    assert example.set_loss(other, truth, owner) > loss


def test_a_second_box_on_a_thing_costs_loss_in_the_detector_but_not_in_the_helper() -> None:
    truth = Targets(torch.tensor([[[0.5, 0.5, 0.4, 0.4]]]), torch.tensor([[0]]))
    logits = torch.full((1, 2, len(SHAPES)), -6.0)
    logits[..., 0] = 4.0
    twice = shapes.Found(logits, truth.boxes.repeat(1, 2, 1))
    matched = example.set_loss(twice, truth, example.one_to_one(twice, truth))
    helped = example.set_loss(twice, truth, torch.zeros(1, 2, dtype=torch.long))
    assert matched > helped + 1


def test_layers_are_stacked_with_the_targets_that_they_have(model, scenes) -> None:
    layers, targets = model(scenes.images), shapes.things(scenes)
    together, repeated = example.stacked(layers, targets)
    assert len(together.logits) == len(repeated.labels) == SMOKE.layers * 8
    assert torch.equal(together.boxes[8:], layers[1].boxes)
    assert torch.equal(repeated.labels[8:], targets.labels)


def test_scenes_without_anything_have_a_finite_loss(model, scenes) -> None:
    labels = torch.full_like(scenes.labels, len(SHAPES))
    for copies in (0, 1, COPIES):
        assert torch.isfinite(example.loss_of(model, scenes.images, scenes.boxes * 0, labels, copies=copies))


def test_average_precision_counts_a_second_box_unless_it_is_suppressed(scenes) -> None:
    targets = shapes.things(scenes)
    logits = torch.full((8, targets.labels.shape[1], len(SHAPES) + 1), -9.0).scatter(2, targets.labels[..., None], 9.0)
    found = shapes.Found(logits[..., :-1], targets.boxes)
    twice = shapes.Found(found.logits.repeat(1, 2, 1), found.boxes.repeat(1, 2, 1))
    assert shapes.ap(found, scenes) == pytest.approx(100)
    assert shapes.ap(twice, scenes) < 90
    assert shapes.ap(twice, scenes, suppress=True) == pytest.approx(100)


def test_the_file_to_read_uses_what_the_search_chose_for_its_arm() -> None:
    kept = json.loads((Path(claims.__file__).parent / "co-detr.searches.json").read_text("utf-8"))
    assert kept["learning rate"]["arms"]["many"]["chosen"] == example.RATE
    assert set(kept["learning rate"]["arms"]) == set(claims.ARMS)
