"""YOLOv8's idea: distributions of edges, the assignment, a network that is the published one, and what the claims compare."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yolov8
from claims import yolov8 as claims
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import detectors
from lab.boxes import grid_points, suppressed
from lab.options import Settings
from lab.run import Run
from torch import Tensor, nn
from torchvision.ops import complete_box_iou_loss

from scripts.architectures.definitions.yolov8 import SCALES
from scripts.architectures.definitions.yolov8 import YOLOv8 as Counted

SMOKE = detectors.BENCHMARKS["smoke"]


def exact_edges(away: Tensor) -> Tensor:
    """Logits whose distribution holds exactly the distances `away` (...) in strides."""
    low = away.floor()
    p = torch.zeros(*away.shape, yolov8.BINS)
    p.scatter_(-1, low.long()[..., None], (1 - away.frac())[..., None])
    p.scatter_(-1, low.long()[..., None] + 1, away.frac()[..., None])
    return (p + 1e-9).log()


def an_output(boxes: Tensor, score: float = 0.5, side: int = 4, stride: int = 8) -> Any:
    """An output of B = 1, K = 1 on one grid whose points all predict `boxes` (N, 4) px with the same score."""
    points, strides = grid_points(side) * side * stride, torch.full((side * side,), float(stride))
    away = torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], dim=1) / stride
    logits = torch.full((1, len(points), 1), score).logit()
    return yolov8.Output(exact_edges(away.clamp(0, 14.9))[None], logits, points, strides)


def one_object(box: list[float]) -> Any:
    return yolov8.Targets(torch.tensor([[box]]), torch.zeros(1, 1, dtype=torch.long))


@given(st.floats(0, 14.9))
def test_a_distance_between_two_bins_is_the_mean_of_the_distribution_it_is_learned_as(distance: float) -> None:
    away = torch.tensor([distance])
    torch.testing.assert_close(yolov8.distances(exact_edges(away)), away, atol=1e-4, rtol=1e-4)


@settings(max_examples=20)
@given(st.floats(0.05, 14.9), st.integers(0, 1000))
def test_no_distribution_has_a_lower_focal_loss_than_the_two_bins_in_proportion(distance: float, seed: int) -> None:
    away, generator = torch.tensor([distance]), torch.Generator().manual_seed(seed)
    best = yolov8.distribution_focal_loss(exact_edges(away), away)
    other = exact_edges(away) + 0.5 * torch.randn(1, yolov8.BINS, generator=generator)
    assert float(yolov8.distribution_focal_loss(other, away)) >= float(best) - 1e-5


def test_boxes_reach_from_the_point_to_the_four_sides_in_strides() -> None:
    points, strides = torch.tensor([[20.0, 12.0]]), torch.tensor([8.0])
    edges = exact_edges(torch.tensor([[[1.0, 0.5, 2.0, 3.0]]]))
    output = yolov8.Output(edges, torch.zeros(1, 1, 1), points, strides)
    torch.testing.assert_close(output.boxes[0, 0], torch.tensor([12.0, 8.0, 36.0, 36.0]), atol=1e-3, rtol=0)


@given(st.integers(0, 10_000))
def test_the_loss_of_boxes_is_that_of_torchvision(seed: int) -> None:
    low = torch.rand(2, 9, 2, generator=torch.Generator().manual_seed(seed))
    a, b = torch.cat([low, low + 0.1 + low.flip(1)], -1)
    torch.testing.assert_close(yolov8.complete_iou_loss(a, b), complete_box_iou_loss(a, b))


def test_points_are_the_centres_of_the_cells_row_by_row() -> None:
    with torch.inference_mode():
        output = yolov8.YOLO(yolov8.PRESETS["smoke"], 1).eval()(torch.zeros(1, 3, 32, 32))
    assert output.points[:5].tolist() == [[4, 4], [12, 4], [20, 4], [28, 4], [4, 12]]
    assert output.points[16:].tolist() == [[8, 8], [24, 8], [8, 24], [24, 24]]
    assert output.strides.tolist() == [8] * 16 + [16] * 4


def test_only_points_inside_an_object_learn_it_and_at_most_ten() -> None:
    targets = one_object([2.0, 2.0, 31.0, 31.0])
    owner, target = yolov8.task_aligned(an_output(targets.boxes[0].expand(16, 4)), targets)
    assert int((owner >= 0).sum()) == yolov8.MOST
    assert bool((target[owner < 0] == 0).all())
    small = one_object([2.0, 2.0, 14.0, 14.0])
    owner, _ = yolov8.task_aligned(an_output(small.boxes[0].expand(16, 4)), small)
    assert (owner[0] >= 0).nonzero().flatten().tolist() == [0, 1, 4, 5]


def test_the_point_with_the_best_box_learns_its_iou_and_others_less() -> None:
    targets = one_object([0.0, 0.0, 16.0, 16.0])
    boxes = targets.boxes[0].repeat(16, 1)
    boxes[:, 2:] += torch.tensor([0.0, 4.0, 8.0, 12.0]).repeat(4)[:, None]
    _, target = yolov8.task_aligned(an_output(boxes), targets)
    best, worse = target[0, 0], target[0, 1]  # points 0 and 1 lie inside; IoU 1 and 0.64
    assert float(best) == pytest.approx(1, abs=1e-3)
    assert float(worse) == pytest.approx((16**2 / 20**2) ** yolov8.BETA, abs=1e-3)


def test_of_two_objects_a_point_learns_the_one_it_fits() -> None:
    inner, outer = [8.0, 8.0, 24.0, 24.0], [0.0, 0.0, 32.0, 32.0]
    targets = yolov8.Targets(torch.tensor([[inner, outer]]), torch.zeros(1, 2, dtype=torch.long))
    owner, _ = yolov8.task_aligned(an_output(torch.tensor(inner).expand(16, 4)), targets)
    assert owner[0, [5, 6, 9, 10]].tolist() == [0, 0, 0, 0]


def test_padding_and_empty_scenes_assign_no_point() -> None:
    targets = yolov8.Targets(torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.long))
    owner, target = yolov8.task_aligned(an_output(torch.tensor([0.0, 0.0, 9.0, 9.0]).expand(16, 4)), targets)
    assert bool((owner == -1).all())
    assert float(target.sum()) == 0


def test_with_one_point_each_the_best_point_alone_learns_an_object() -> None:
    targets = one_object([0.0, 0.0, 16.0, 16.0])
    boxes = targets.boxes[0].repeat(16, 1)
    boxes[:, 2:] += torch.tensor([4.0, 0.0, 8.0, 12.0]).repeat(4)[:, None]
    owner, target = yolov8.task_aligned(an_output(boxes), targets, most=1)
    assert (owner[0] >= 0).nonzero().flatten().tolist() in ([1], [5])
    assert float(target.sum()) == pytest.approx(1, abs=1e-3)


def test_a_scene_without_objects_pays_for_scores_alone() -> None:
    scenes = detectors.scenes_of(SMOKE, "test", 0)[:2]
    empty = type(scenes)(scenes.images, *([each[:0] for each in part] for part in
                         (scenes.boxes, scenes.labels, scenes.masks, scenes.visible)))  # fmt: skip
    model = yolov8.YOLO(yolov8.PRESETS["smoke"], 1)
    yolov8.loss_of(model, empty).backward()
    gradients = {name: each.grad for name, each in model.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["of_edges.0.2.bias"].abs().max() == 0
    assert gradients["of_class.0.2.bias"].abs().max() > 0


def test_a_training_step_reads_nothing_back_from_its_device() -> None:
    """On the meta device there are no values, so whatever asks for one raises: the step has no synchronisation."""
    assert yolov8.SYNCHRONISATIONS_PER_STEP == 0
    model = yolov8.YOLO(yolov8.PRESETS["smoke"], 1).to("meta")
    yolov8.loss_of(model, detectors.scenes_of(SMOKE, "test", 0)[:4].to("meta")).backward()


def test_a_training_step_stands_bfloat16() -> None:
    model = yolov8.YOLO(yolov8.PRESETS["smoke"], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = yolov8.loss_of(model, detectors.scenes_of(SMOKE, "test", 0)[:4])
    loss.backward()
    assert loss.isfinite()


def published(scale: str) -> yolov8.YOLO:
    """The network of a published size, for the 80 classes of COCO."""
    depth, width, most = SCALES[scale]
    widths = tuple(8 * math.ceil(min(c, most) * width / 8) for c in (64, 128, 256, 512, 1024))
    heads = max(widths[2] // 4, 4 * yolov8.BINS), max(widths[2], 80)
    preset = yolov8.Preset(widths, (round(3 * depth), round(6 * depth)), heads, 3)
    return yolov8.YOLO(preset, 80)


@pytest.mark.parametrize("scale", ["n", "x"])
def test_published_sizes_have_the_parameters_of_the_definition_that_the_site_counts(scale: str) -> None:
    with torch.device("meta"):
        ours, counted = published(scale), Counted(scale)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in counted.parameters())


def test_with_the_same_weights_the_network_is_that_definition() -> None:
    torch.manual_seed(0)
    ours, counted = published("n").eval(), Counted("n").eval()
    for module in counted.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = ours.body.stem[0][1].eps
    pairs = {
        "body.stem": "stem", "body.down.0": "stage3", "body.down.1": "stage4", "body.down.2": "stage5", "body.up.1": "up4",
        "body.up.0": "up3", "body.shrink.0": "shrink3", "body.shrink.1": "shrink4", "body.again.0": "down4",
        "body.again.1": "down5", "of_edges": "boxes", "of_class": "classes",
    }  # fmt: skip
    for mine, theirs in pairs.items():
        copy_in_order(counted.get_submodule(theirs), ours.get_submodule(mine))
    with torch.inference_mode():
        image = torch.rand(1, 3, 64, 64)
        output, (away, logits) = ours(image), counted(image)
    torch.testing.assert_close(yolov8.distances(output.edges), away.mT, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.logits, logits.mT, atol=1e-4, rtol=1e-4)


def copy_in_order(source: nn.Module, goal: nn.Module) -> None:
    """Copies weights by their order among those of the same shape."""
    left = list(source.state_dict().values())
    for value in goal.state_dict().values():
        index = next(i for i, each in enumerate(left) if each.shape == value.shape)
        value.copy_(left.pop(index))
    assert not left


def test_suppression_keeps_the_surest_of_overlapping_boxes_and_other_classes() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [0, 0, 10, 10], [30, 30, 40, 40]])
    found = {"boxes": boxes, "scores": torch.tensor([0.6, 0.9, 0.5, 0.1]), "labels": torch.tensor([0, 0, 1, 0])}
    assert suppressed(found)["scores"].tolist() == pytest.approx([0.9, 0.5, 0.1])


@pytest.mark.parametrize("preset", ["smoke", "quick", "full"])
def test_the_coarse_arm_has_no_points_of_stride_8_and_about_as_many_parameters(preset: str) -> None:
    arms = {arm: claims.build(arm, preset).eval() for arm in claims.ARMS}
    counts = {arm: sum(p.numel() for p in each.parameters()) for arm, each in arms.items()}
    assert counts["one_point"] == counts["yolov8"] == pytest.approx(counts["coarse"], rel=0.05)
    with torch.inference_mode():
        strides = [set(each(torch.rand(1, 3, 64, 64)).strides.tolist()) for each in arms.values()]
    assert strides[0] == strides[1] == strides[2] | {8}
    assert 8 not in strides[2]


def test_the_file_to_read_uses_what_the_search_chose_and_every_arm_was_searched() -> None:
    kept = json.loads((Path(claims.__file__).parent / "yolov8.searches.json").read_text("utf-8"))["learning rate"]
    assert kept["arms"]["yolov8"]["chosen"] == yolov8.RATE
    assert set(kept["arms"]) == set(claims.ARMS)


def test_it_is_one_run_that_trains_the_first_seed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(detectors, "train", lambda run, benchmark, seed, *rest, **more: calls.append(seed))
    monkeypatch.setattr(claims, "rates", lambda run: dict.fromkeys(claims.ARMS, yolov8.RATE))
    run = Run("yolov8", Settings("smoke", torch.device("cpu"), (0, 1), tmp_path, "random"))
    yolov8.train(run, 0, yolov8.RATE)
    claims.trained(run, "yolov8")
    assert calls == [0, 1]


def test_what_nothing_finds_is_undefined_and_not_zero() -> None:
    """A correlation of too few boxes was 0, and so were the boxes per object of a detector that finds nothing."""
    assert math.isnan(claims.rank_correlation(torch.ones(2), torch.ones(2)))
    assert math.isnan(claims.rank_correlation(torch.ones(9), torch.arange(9.0)))
    assert all(map(math.isnan, claims.quarters(torch.empty(0), torch.empty(0))))
    test = detectors.scenes_of(SMOKE, "test", 0)
    nothing = {"boxes": torch.empty(0, 4), "scores": torch.empty(0), "labels": torch.empty(0)}
    found = detectors.measures([nothing] * len(test), test, SMOKE)
    assert math.isnan(found["boxes"])
    assert found["ap"] == 0


def test_no_time_is_taken() -> None:
    """One call timed for each seed on the same weights passed as seeds."""
    source = Path(claims.__file__).read_text("utf-8") + Path(yolov8.__file__).read_text("utf-8")
    assert "timed" not in source
    assert "perf_counter" not in source


def test_published_weights_are_refused() -> None:
    with pytest.raises(SystemExit, match="loads no published weights"):
        Run.start("yolov8", argv=["--weights", "pretrained"], pretrained=False)
