"""YOLOv8's idea: distributions of edges, the assignment, the published sizes, and a smoke run of its example."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scripts.architectures.definitions.yolov8 import YOLOv8 as Counted

pytestmark = pytest.mark.torch

yolov8 = importlib.import_module("yolov8")


def exact_edges(away: Tensor) -> Tensor:
    """Logits whose distribution holds exactly the distances `away` (...) in strides."""
    low = away.floor()
    p = torch.zeros(*away.shape, yolov8.BINS)
    p.scatter_(-1, low.long()[..., None], (1 - away.frac())[..., None])
    p.scatter_(-1, low.long()[..., None] + 1, away.frac()[..., None])
    return (p + 1e-9).log()


def an_output(boxes: Tensor, score: float = 0.5, side: int = 4, stride: int = 8) -> Any:
    """An output of B = 1, K = 1 on one grid whose points all predict `boxes` (N, 4) px with the same score."""
    points, strides = yolov8.grid(torch.zeros(1, 1, side, side), stride)
    away = torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], dim=1) / stride
    logits = torch.full((1, len(points), 1), score).logit()
    return yolov8.Output(exact_edges(away.clamp(0, 14.9))[None], logits, points, strides)


def one_object(box: list[float]) -> Any:
    return yolov8.Targets(torch.tensor([[box]]), torch.zeros(1, 1, dtype=torch.long))


@settings(deadline=None)
@given(st.floats(0, 14.9))
def test_a_distance_between_two_bins_is_the_mean_of_the_distribution_it_is_learned_as(distance: float) -> None:
    away = torch.tensor([distance])
    torch.testing.assert_close(yolov8.distances(exact_edges(away)), away, atol=1e-4, rtol=1e-4)


@settings(max_examples=20, deadline=None)
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


def test_points_are_the_centres_of_the_cells_row_by_row() -> None:
    points, strides = yolov8.grid(torch.zeros(1, 1, 2, 3), 8)
    assert points.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    assert strides.tolist() == [8] * 6


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


@pytest.mark.parametrize("scale", ["n", "x"])
def test_published_sizes_have_the_parameters_of_the_definition_that_the_site_counts(scale: str) -> None:
    with torch.device("meta"):
        ours, counted = yolov8.YOLO(yolov8.published(scale)), Counted(scale)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in counted.parameters())


def test_with_the_same_weights_the_network_is_that_definition() -> None:
    torch.manual_seed(0)
    ours, counted = yolov8.YOLO(yolov8.published("n")).eval(), Counted("n").eval()
    pairs = {
        "body.stem": "stem", "body.down3": "stage3", "body.down4": "stage4", "body.down5": "stage5", "body.up4": "up4",
        "body.up3": "up3", "body.shrink3": "shrink3", "body.shrink4": "shrink4", "body.again4": "down4",
        "body.again5": "down5", "box_branches": "boxes", "class_branches": "classes",
    }  # fmt: skip
    for mine, theirs in pairs.items():
        copy_in_order(counted.get_submodule(theirs), ours.get_submodule(mine))
    with torch.inference_mode():
        image = torch.rand(1, 3, 64, 64)
        output, (away, logits) = ours(image), counted(image)
    torch.testing.assert_close(yolov8.distances(output.edges), away.transpose(1, 2), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.logits, logits.transpose(1, 2), atol=1e-4, rtol=1e-4)


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
    assert yolov8.suppress(found)["scores"].tolist() == pytest.approx([0.9, 0.5, 0.1])


def test_the_coarse_arm_has_no_points_of_stride_8_and_about_as_many_parameters() -> None:
    size = yolov8.PRESETS["quick"].size
    arms = [yolov8.build(arm, size).eval() for arm in yolov8.LABELS]
    counts = [sum(p.numel() for p in arm.parameters()) for arm in arms]
    assert counts[1] == pytest.approx(counts[0], rel=0.05)
    with torch.inference_mode():
        strides = [set(arm(torch.rand(1, 3, 64, 64)).strides.tolist()) for arm in arms]
    assert strides == [{8, 16, 32}, {16, 32}]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("yolov8")
    yolov8.main(["--preset", "smoke", "--device", "cpu", "--out", str(out)])
    return json.loads((out / "record.json").read_text("utf-8")), out


def test_a_smoke_run_writes_all_results_and_figures(record: tuple[dict[str, Any], Path]) -> None:
    results, out = record[0]["results"], record[1]
    assert results.keys() >= {
        "ap_raw", "ap_final", "nms_gain", "nms_time_ratio", "nms_share", "fine_gain_small", "fine_gain_large",
        "score_fit_correlation", "spread_error_correlation", "decoding_ratio", "macs_over_two_stage",
        "anchors_over_points", "time_over_two_stage", "scenes_ap", "scenes_boxes_per_object_raw",
    }  # fmt: skip
    for figure in record[0]["figures"]:
        assert (out / figure["light"]).is_file()
        assert (out / figure["dark"]).is_file()


def test_counts_are_those_that_are_published(record: tuple[dict[str, Any], Path]) -> None:
    results = record[0]["results"]
    published = {"n": 3.2, "s": 11.2, "m": 25.9, "l": 43.7, "x": 68.2}
    for scale, parameters in published.items():
        assert results[f"parameters_{scale}"]["mean"] == pytest.approx(parameters, abs=0.06)
    assert results["boxes_anchor_free"]["mean"] == 8400


def test_weights_from_the_net_are_refused() -> None:
    with pytest.raises(SystemExit, match="AGPL"):
        yolov8.main(["--preset", "smoke", "--device", "cpu", "--weights", "pretrained"])
