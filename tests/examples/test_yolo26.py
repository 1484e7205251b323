"""YOLO26's idea: two heads on one map, many points or one for an object, a loss that shifts, and what the claims compare."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return, arg-type"
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yolo26
from claims import yolo26 as claims
from lab.data import hoops as data
from lab.run import Run
from torch import Tensor
from torchvision.ops import box_iou
from yolov8 import Targets, task_aligned

SMOKE = yolo26.PRESETS["smoke"]


def output(boxes: Tensor, scores: Tensor) -> yolo26.Output:
    """What a head says where its N points predict these boxes (N, 4), from their centres, with these scores (N,)."""
    points = (boxes[:, :2] + boxes[:, 2:]) / 2
    return yolo26.Output((boxes[:, 2:] - points).repeat(1, 2)[None], scores.logit()[None, :, None], points)


def test_points_are_the_centres_of_cells_and_boxes_reach_from_them() -> None:
    said = yolo26.YOLO26(SMOKE).eval()(torch.rand(1, 3, data.SIDE, data.SIDE))["one"]
    assert said.points[:2].tolist() == [[2, 2], [6, 2]]
    assert said.boxes.shape == (1, (data.SIDE // yolo26.STRIDE) ** 2, 4)
    low, high = said.boxes[0, :, :2], said.boxes[0, :, 2:]
    assert bool(((low < said.points) & (said.points < high)).all())


def test_an_untrained_head_predicts_boxes_of_the_size_of_hoops_and_is_hardly_sure() -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        said = yolo26.YOLO26(SMOKE).eval()(torch.rand(4, 3, data.SIDE, data.SIDE))["many"]
    size = (said.boxes[..., 2:] - said.boxes[..., :2]).mean()
    assert 10 < float(size) < 17
    assert float(said.logits.sigmoid().mean()) < 0.02


def test_heads_share_the_map_and_no_weight() -> None:
    model = yolo26.YOLO26(SMOKE)
    many, one = ({id(each) for each in model.heads[name].parameters()} for name in yolo26.MOST)
    assert len(many) == len(one)
    assert not many & one


def test_the_point_of_the_one_to_one_head_is_the_best_of_the_other_one() -> None:
    boxes = torch.tensor([[2.0, 2, 18, 18], [2.0, 2, 20, 18], [2.0, 2, 21, 18], [4.0, 4, 20, 20]])
    said, truth = output(boxes, torch.full((4,), 0.5)), Targets(boxes[None, 1:2], torch.zeros(1, 1, dtype=torch.long))
    many, one = (task_aligned(said, truth, most) for most in yolo26.MOST.values())
    assert int((many.owner >= 0).sum()) > int((one.owner >= 0).sum()) == 1
    assert int(many.target.argmax()) == int(one.target.argmax()) == 1


def test_a_surplus_point_learns_to_be_sure_in_one_head_and_unsure_in_the_other() -> None:
    box = torch.tensor([[2.0, 2, 18, 18]])
    said, truth = (
        output(torch.cat([box, box + 0.2]), torch.tensor([0.95, 0.9])),
        Targets(box[None], torch.zeros(1, 1, dtype=torch.long)),
    )
    many, one = (task_aligned(said, truth, most).target[0, 1] for most in yolo26.MOST.values())
    assert many > 0.7
    assert one == 0
    sure, unsure = (
        yolo26.head_loss(output(torch.cat([box, box + 0.2]), torch.tensor([0.95, s])), truth, 1) for s in (0.9, 0.1)
    )
    assert sure > unsure + 1


def test_the_share_chooses_the_head_that_pays() -> None:
    torch.manual_seed(0)
    scenes, model = data.hoops("train", 4, 0), yolo26.YOLO26(SMOKE)
    for share, silent, paying in ((1.0, "one", "many"), (0.0, "many", "one")):
        model.zero_grad()
        yolo26.loss_of(model, *scenes, share).backward()
        gradients = {
            name: max(float(p.grad.abs().max()) for p in head.parameters()) for name, head in model.heads.items()
        }
        assert gradients[silent] == 0
        assert gradients[paying] > 0


def test_a_scene_without_objects_pays_for_scores_alone() -> None:
    model = yolo26.YOLO26(SMOKE)
    yolo26.loss_of(model, torch.rand(2, 3, data.SIDE, data.SIDE), torch.zeros(2, 1, 4), 0.5).backward()
    assert all(each.grad.isfinite().all() for each in model.parameters())
    for head in model.heads.values():
        assert float(head.edges[-1].bias.grad.abs().max()) == 0


def test_a_training_step_reads_nothing_back_from_its_device() -> None:
    """On the meta device there are no values, so whatever asks for one raises: the step has no synchronisation."""
    assert yolo26.SYNCHRONISATIONS_PER_STEP == 0
    scenes = [each.to("meta") for each in data.hoops("train", 4, 0)]
    yolo26.loss_of(yolo26.YOLO26(SMOKE).to("meta"), *scenes, 0.5).backward()


def test_a_training_step_stands_bfloat16() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = yolo26.loss_of(yolo26.YOLO26(SMOKE), *data.hoops("train", 4, 0), 0.5)
    loss.backward()
    assert loss.isfinite()


def test_suppression_leaves_one_box_and_loses_a_neighbour_at_a_low_threshold() -> None:
    boxes = torch.tensor(
        [[2.0, 2, 18, 18], [2.5, 2, 18.5, 18], [6.0, 2, 22, 18]]
    )  # two on one hoop, one on its neighbour
    said = output(boxes, torch.tensor([0.9, 0.8, 0.7]))
    counts = {iou: len(yolo26.boxes_of(said, iou)[0]["boxes"]) for iou in (None, 0.95, 0.8, 0.5)}
    assert counts == {None: 3, 0.95: 2, 0.8: 2, 0.5: 1} or counts == {None: 3, 0.95: 3, 0.8: 2, 0.5: 1}


def test_boxes_that_are_the_truth_have_a_precision_of_100() -> None:
    scenes = data.hoops("test", 12, 0)
    found = [each | {"scores": torch.rand(len(each["boxes"]))} for each in yolo26.truth_of(scenes)]
    assert yolo26.precision(found, scenes) == pytest.approx(100)


def test_pairs_overlap_as_much_as_they_should_and_are_as_many_as_asked_for() -> None:
    scenes = data.hoops("train", 200, 0, pairs=1.0)
    overlap = torch.stack([box_iou(boxes[:1], boxes[1:2])[0, 0] for boxes in scenes.boxes])
    assert float(overlap.min()) > 0.15
    assert float(overlap.max()) < 0.9
    assert float(overlap.std()) > 0.1
    for pairs in (0.0, 0.5):
        there = (data.hoops("train", 200, 0, pairs=pairs).boxes[:, 1].sum(-1) > 0).float().mean()
        assert float(there) == pytest.approx(pairs, abs=0.1)


def test_hoops_lie_in_the_scene_and_are_lines_around_nothing() -> None:
    scenes = data.hoops("val", 50, 4, pairs=1.0)
    assert bool((scenes.boxes >= 0).all() & (scenes.boxes <= data.SIDE).all())
    assert 0 <= float(scenes.images.min()) <= float(scenes.images.max()) <= 1
    alone = data.hoops("val", 50, 4, pairs=0.0)
    x, y = ((alone.boxes[:, 0, i] + alone.boxes[:, 0, 2 + i]) / 2 for i in (0, 1))
    centre = alone.images[torch.arange(50), :, y.long(), x.long()].amax(1)
    assert float((centre <= 0.5).float().mean()) > 0.8  # the middle shows the dimmed photograph


def test_all_arms_have_the_same_network_and_differ_in_the_shares_alone() -> None:
    assert set(claims.SHARES) == set(claims.ARMS)
    assert claims.SHARES["many"] == (1.0, 1.0)
    assert claims.SHARES["one"] == (0.0, 0.0)
    assert claims.SHARES["dual"][0] > claims.SHARES["dual"][1] > 0


def test_the_file_to_read_uses_what_the_search_chose_for_its_arm() -> None:
    kept = json.loads((Path(claims.__file__).parent / "yolo26.searches.json").read_text("utf-8"))
    assert kept["learning rate"]["arms"]["dual"]["chosen"] == yolo26.RATE
    assert set(kept["learning rate"]["arms"]) == set(claims.ARMS)
    assert set(kept["threshold of suppression"]["arms"]) == {"dual", "many"}


def test_published_weights_are_refused() -> None:
    """They are under AGPL-3.0, and so is the code that loads them."""
    with pytest.raises(SystemExit, match="loads no published weights"):
        Run.start("yolo26", argv=["--weights", "pretrained"], pretrained=False)
