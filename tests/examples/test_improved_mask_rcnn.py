"""Points, cascades and scored masks: properties of each, and arms of equal size in networks of their own."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import rcnn, regions, study
from torch import Tensor
from torchvision.ops import box_iou

improved = importlib.import_module("improved-mask-rcnn")
claims = importlib.import_module("claims.improved-mask-rcnn")
SMOKE = improved.PRESETS["smoke"]
ARMS = claims.OUTLINES | claims.BOXES


class Asked:
    """What the claims ask of a run."""

    preset, device, seeds = "smoke", torch.device("cpu"), (0, 1)


def some_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = 40 * torch.rand(count, 2, generator=generator)
    return torch.cat([low, low + 5 + 20 * torch.rand(count, 2, generator=generator)], 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 2))
def test_each_stage_undoes_what_it_encodes(seed: int, stage: int) -> None:
    boxes, coder = some_boxes(6, seed), regions.CODERS[stage]
    truth = boxes + torch.tensor([1.0, -1.0, 2.0, 1.5])
    torch.testing.assert_close(rcnn.decode(coder, rcnn.encode(coder, truth, boxes), boxes), truth, atol=1e-3, rtol=0)


def test_a_later_stage_corrects_less_with_the_same_output() -> None:
    boxes, said = some_boxes(6, 0), torch.ones(6, 4)
    moved = [(rcnn.decode(coder, said, boxes) - boxes).abs().sum() for coder in regions.CODERS]
    assert moved[0] > moved[1] > moved[2] > 0


def test_the_iou_of_rows_is_the_diagonal_of_torchvisions_and_that_of_two_empty_boxes_is_undefined() -> None:
    a, b = some_boxes(8, 0), some_boxes(8, 1)
    torch.testing.assert_close(regions.paired_iou(a, b), box_iou(a, b).diagonal())
    assert regions.paired_iou(torch.zeros(1, 4), torch.zeros(1, 4)).isnan()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_loose_boxes_stay_inside_the_image(seed: int, most: float) -> None:
    loose = regions.jitter(some_boxes(16, seed), most, 64, torch.Generator().manual_seed(seed))
    assert loose.min() >= 0
    assert loose.max() <= 64
    assert (loose[:, 2:] >= loose[:, :2]).all()


def test_the_most_uncertain_logits_are_those_nearest_to_zero() -> None:
    logits = torch.tensor([[3.0, -0.1, 0.5, -4.0, 0.2]])
    assert sorted(improved.uncertain(logits, 3)[0].tolist()) == [1, 2, 4]
    assert improved.uncertain(logits, 9).shape == (1, 5)


def test_values_at_the_centres_of_cells_are_those_of_the_map() -> None:
    maps = torch.rand(2, 3, 4, 4)
    points = improved.centres(torch.arange(16)[None].expand(2, -1), 4)
    torch.testing.assert_close(regions.sample(maps, points), maps.flatten(2).mT)


def test_points_of_a_box_are_the_same_places_in_the_image() -> None:
    box, corners = torch.tensor([[[16.0, 8.0, 48.0, 40.0]]]), torch.tensor([[[[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]]]])
    there = 64 * improved.in_image(box, corners)
    assert there[0, 0].tolist() == [[16, 8], [48, 40], [32, 24]]


def test_refinement_decides_far_fewer_points_than_the_fine_grid_has_cells() -> None:
    assert improved.decisions(7, 196) == 0
    assert improved.decisions(28, 196) == 196 + 196
    assert improved.decisions(224, 784) < 224**2 / 10


def test_refinement_touches_only_the_points_that_it_chose() -> None:
    torch.manual_seed(0)
    model = improved.Repaired(SMOKE).eval()
    boxes = torch.tensor([[[4.0, 4.0, 40.0, 50.0]]])
    with torch.no_grad():
        maps = model.maps(torch.rand(1, 3, 64, 64))
        coarse = model.points.first(rcnn.crop(maps[0], boxes, improved.mask.CUT, improved.mask.STRIDE))
        refined, chosen = model.points.refine(maps, boxes, coarse)
        said = iter((0.1, 0.2, 9.0))  # of all 14 x 14 cells, of some of 28 x 28, of some of 56 x 56
        model.points.decide = lambda maps, boxes, coarse, points: torch.full(points.shape[:-1], next(said))
        marked, where = model.points.refine(maps, boxes, coarse)
    assert refined.shape == (1, 1, improved.FINAL, improved.FINAL)
    assert [each.shape[-1] for each in chosen] == [improved.POINTS] * 3
    assert (marked == 9).sum() == improved.POINTS
    assert (marked.flatten(2).gather(2, where[-1]) == 9).all()


def test_an_estimate_that_is_far_off_still_learns() -> None:
    model = improved.Repaired(SMOKE)
    with torch.no_grad():
        model.score[-1].bias.fill_(30)
    side = improved.mask.CUT
    estimate = model.estimate(torch.rand(4, improved.SLIM, side, side), torch.rand(4, 1, 2 * side, 2 * side))
    estimate.square().mean().backward()
    assert (estimate > 1).all()
    assert model.score[-1].bias.grad.item() > 1  # a sigmoid would leave almost nothing


def test_the_estimate_trains_none_of_the_features_that_the_masks_share() -> None:
    model, side = improved.Repaired(SMOKE), improved.mask.CUT
    model.estimate(
        model.maps(torch.rand(1, 3, 4 * side, 4 * side))[0], torch.rand(1, 1, 2 * side, 2 * side)
    ).sum().backward()
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "score" not in name)


@pytest.mark.parametrize("preset", ["smoke", "quick", "full"])
def test_arms_that_are_compared_have_equally_many_parameters(preset: str) -> None:
    for arms in (claims.OUTLINES, claims.BOXES):
        sizes = [claims.size_of(claims.build(improved.PRESETS[preset], arm)) for arm in arms]
        assert max(sizes) <= 1.05 * min(sizes)


@pytest.mark.parametrize("arm", ARMS)
def test_every_part_that_is_counted_is_trained(arm: str) -> None:
    torch.manual_seed(0)
    model, scenes = claims.build(SMOKE, arm), improved.scenes_of(SMOKE, "train", 0)[:4]
    improved.loss_of(model, scenes, torch.Generator().manual_seed(0)).backward()
    trained = {name.split(".")[0] for name, each in model.named_parameters() if each.grad is not None}
    wanted = {"grid": {"maps", "classes", "grid", "score"}, "points": {"maps", "classes", "points"}}
    assert trained == wanted.get(arm, {"maps", "boxes"})


def test_arms_share_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """All heads were once trained together on one backbone."""
    seen = []
    loss = improved.loss_of

    def noted(model: Any, *rest: Any) -> Tensor:
        seen.append((id(model.maps), model.grid is not None, model.points is not None, model.boxes is not None))
        return loss(model, *rest)

    monkeypatch.setattr(improved, "loss_of", lambda model, scenes, generator: noted(model, scenes, generator))
    kept = [claims.trained(Asked, arm, 0, 1e-3) for arm in ARMS]
    assert len({id(each.maps) for each in kept}) == len(ARMS)
    assert all(sum(heads) == 1 for _, *heads in seen)


def test_a_lone_head_is_applied_as_often_as_there_are_stages() -> None:
    scenes = improved.scenes_of(SMOKE, "test", 0)
    for arm in claims.BOXES:
        assert len(claims.box_ious(Asked, scenes, claims.build(SMOKE, arm).eval())) == 1 + len(improved.STAGES)


def test_loose_boxes_are_the_same_for_every_network() -> None:
    scenes = improved.scenes_of(SMOKE, "test", 0)
    assert torch.equal(claims.loose_boxes(scenes)[0], claims.loose_boxes(scenes)[0])


def test_outlines_of_a_size_that_no_object_has_are_undefined() -> None:
    """They once counted as 0."""
    scenes = improved.make_scenes("test", 4, seed=0, canvas=64, objects=(1, 1), size=(10.0, 12.0), classes=10)
    found = claims.outlines_of(Asked, scenes, lambda _, boxes: torch.ones(*boxes.shape[:2], 28, 28))
    assert found["small"] > 0
    assert found["large"] != found["large"]


def test_true_masks_of_56_cells_overlap_almost_whole_and_their_outlines_too() -> None:
    scenes = improved.scenes_of(SMOKE, "test", 0)
    masks = improved.mask.masks_of(scenes)
    owner = torch.arange(masks.shape[1]).expand(masks.shape[:2])
    inside = lambda images, boxes: improved.mask.mask_targets(masks, owner, boxes, improved.FINAL)  # noqa: E731
    found = claims.outlines_of(Asked, scenes, inside)
    assert found["mask_iou"] > 0.97
    assert found["boundary_iou"] > 0.9


def test_the_floor_of_masks_is_what_one_mask_in_every_box_reaches() -> None:
    assert 0.3 < claims.mean_mask(Asked) < 0.8


def test_the_rim_of_a_square_is_its_outermost_pixels() -> None:
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, 2:6, 2:6] = True
    assert claims.rim(masks).sum() == 12


def test_points_cost_what_their_network_costs_at_each_of_them() -> None:
    counted, points = claims.head_macs(), improved.Repaired(improved.Preset()).points
    network = sum(each.weight.numel() for each in points.mlp if hasattr(each, "weight"))
    assert counted["points"] == pytest.approx(improved.decisions(improved.FINAL, improved.POINTS) * network / 1e6)
    assert counted["coarse"] < counted["grid"]


def test_a_network_that_adds_nothing_to_its_boxes_counts_as_failed() -> None:
    scores = study.Scores((0, 1), {"cascade": [{"first_gain": 0.05}, {"first_gain": -0.01}]})
    scores.floor("box IoU that the first stage adds", "first_gain", 0.0, ["cascade"])
    assert scores.failed["cascade"].keys() == {1}


def test_all_arms_were_searched_alike() -> None:
    kept = json.loads((Path(claims.__file__).parent / "improved-mask-rcnn.searches.json").read_text("utf-8"))
    assert set(kept["learning rate"]["arms"]) == set(ARMS)


def test_the_classes_named_right_are_counted_over_objects_and_not_over_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    model, labels = claims.build(SMOKE, "grid").eval(), torch.cat(improved.scenes_of(SMOKE, "test", 0).labels)
    with torch.no_grad():
        model.classes[-1].weight.zero_()
        model.classes[-1].bias.copy_(torch.eye(improved.CLASSES)[labels[0]])  # whatever it sees, it says this one
    monkeypatch.setattr(claims, "trained", lambda *_: model)
    assert claims.classes_right(Asked, 0) == pytest.approx(100 * (labels == labels[0]).float().mean().item())
