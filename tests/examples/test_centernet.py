"""CenterNet's idea: poolings, heatmaps, tags, the centre check, peaks, and a smoke run of its example."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

pytestmark = pytest.mark.torch

centernet = importlib.import_module("centernet")


def heat_at(cells: list[tuple[int, int]], side: int = 16, logit: float = 4.0) -> Tensor:
    """Logits (1, 1, side, side), high at the cells (x, y)."""
    heat = torch.full((1, 1, side, side), -9.0)
    for x, y in cells:
        heat[0, 0, y, x] = logit
    return heat


def keypoints(cells: list[tuple[int, int]], tags: list[float] | None = None) -> Any:
    """Keypoints at cells, without an offset, with tags."""
    tag = torch.zeros(1, 1, 16, 16)
    for (x, y), value in zip(cells, tags or [0.0] * len(cells), strict=True):
        tag[0, 0, y, x] = value
    return centernet.Keypoints(heat_at(cells), torch.zeros(1, 2, 16, 16), tag)


def targets(*boxes: list[float]) -> Any:
    """One scene with these boxes, all of class 0."""
    count = len(boxes)
    return centernet.Targets(
        torch.tensor([boxes]), torch.zeros(1, count, dtype=torch.long), torch.ones(1, count, dtype=torch.bool)
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_pooling_towards_a_side_is_the_maximum_of_all_places_up_to_it(seed: int) -> None:
    x = torch.randn(1, 2, 4, 5, generator=torch.Generator().manual_seed(seed))
    for side in ("left", "right", "top", "bottom"):
        pooled = centernet.pool_towards(x, side)
        for i in range(4):
            for j in range(5):
                part = {"left": x[..., i, : j + 1], "right": x[..., i, j:], "top": x[..., : i + 1, j]}
                expected = part.get(side, x[..., i:, j]).amax(-1)
                torch.testing.assert_close(pooled[..., i, j], expected)


def test_center_pooling_adds_the_maxima_of_row_and_column_and_is_both_sides_at_once() -> None:
    x = torch.randn(1, 1, 5, 5)
    pooled = centernet.center_pool(x, x)
    assert float(pooled[0, 0, 1, 3]) == pytest.approx(float(x[0, 0, 1].max() + x[0, 0, :, 3].max()))
    rows = centernet.pool_towards(centernet.pool_towards(x, "left"), "right")
    columns = centernet.pool_towards(centernet.pool_towards(x, "top"), "bottom")
    torch.testing.assert_close(pooled, rows + columns)


@settings(deadline=None, max_examples=50)
@given(st.floats(1, 100), st.floats(1, 100))
def test_boxes_whose_corners_move_by_the_radius_keep_the_overlap(width: float, height: float) -> None:
    size = torch.tensor([width, height])
    r = float(centernet.radius(size))
    moved = [[r, r, width - r, height - r], [-r, -r, width + r, height + r], [r, r, width + r, height + r]]
    overlaps = box_iou(torch.tensor([[0.0, 0.0, width, height]]), torch.tensor(moved))[0]
    assert float(overlaps.min()) == pytest.approx(0.3, abs=2e-3)


def test_the_true_heatmap_is_one_at_the_keypoint_and_falls_off_with_the_size_of_the_object() -> None:
    for kind, cell in (("tl", (4, 4)), ("br", (10, 10)), ("centre", (7, 7))):
        small = centernet.true_heat(targets([16.0, 16.0, 40.0, 40.0]), kind, 1, 16)
        assert (small == 1).nonzero()[0, 2:].tolist() == [cell[1], cell[0]]
    near = [
        float(centernet.true_heat(targets([28.0 - s, 28.0 - s, 28.0 + s, 28.0 + s]), "centre", 1, 16)[0, 0, 7, 9])
        for s in (6.0, 20.0)
    ]
    assert near[0] < near[1] < 1


def test_the_focal_loss_is_least_for_the_true_heatmap_and_forgives_places_nearby() -> None:
    heat = centernet.true_heat(targets([16.0, 16.0, 40.0, 40.0]), "centre", 1, 16)
    right, near, far = (
        centernet.focal_loss(heat_at(cells), heat) for cells in ([(7, 7)], [(7, 7), (8, 7)], [(7, 7), (0, 0)])
    )
    assert right < near < far


def test_tags_are_pulled_together_within_an_object_and_apart_between_objects() -> None:
    there = torch.ones(1, 2, dtype=torch.bool)
    good = centernet.pull_push(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 2.0]]), there)
    alike = centernet.pull_push(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 1.0]]), there)
    torn = centernet.pull_push(torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]]), there)
    assert float(good) == 0
    assert float(alike) == pytest.approx(1)
    assert float(torn) > float(alike)
    padded = centernet.pull_push(torch.tensor([[0.0, 9.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[True, False]]))
    assert float(padded) == 0


def test_the_central_region_is_the_middle_third_and_the_middle_fifth_of_large_boxes() -> None:
    small, large = torch.tensor([0.0, 0.0, 30.0, 60.0]), torch.tensor([0.0, 0.0, 200.0, 300.0])
    torch.testing.assert_close(centernet.central_region(small), torch.tensor([10.0, 20.0, 20.0, 40.0]))
    torch.testing.assert_close(centernet.central_region(large), torch.tensor([80.0, 120.0, 120.0, 180.0]))


def test_a_peak_is_kept_once_and_its_neighbours_never() -> None:
    heat = torch.tensor([[0.1, 0.2, 0.1, 0.0, 0.3], [0.2, 0.9, 0.8, 0.1, 0.0]])[None, None]
    assert centernet.peaks(heat).nonzero()[:, 2:].tolist() == [[0, 4], [1, 1]]


def test_wrong_pairs_are_rejected_for_want_of_a_centre() -> None:
    tl, br = [(1, 1), (8, 8)], [(5, 5), (13, 13)]
    output = {"tl": keypoints(tl), "br": keypoints(br), "centre": keypoints([(3, 3), (10, 10)])}
    pairs = centernet.boxes_of(output, 8, None, 64)[0]["boxes"]
    checked = centernet.boxes_of(output, 8, centernet.surest(output["centre"], 8), 64)[0]["boxes"]
    true = [[4.0, 4, 20, 20], [32, 32, 52, 52]]
    assert sorted(pairs.tolist()) == sorted([*true, [4.0, 4, 52, 52]])
    assert sorted(checked.tolist()) == true


def test_corners_with_different_tags_are_not_paired() -> None:
    output = {"tl": keypoints([(1, 1), (8, 8)], [0.0, 2.0]), "br": keypoints([(5, 5), (13, 13)], [0.0, 2.0])}
    boxes = centernet.boxes_of(output, 8, None, 64)[0]["boxes"]
    assert sorted(boxes.tolist()) == [[4.0, 4, 20, 20], [32, 32, 52, 52]]


def test_objects_as_points_reads_the_box_at_its_peak() -> None:
    found = centernet.Keypoints(heat_at([(7, 5)]), torch.full((1, 2, 16, 16), 0.5), torch.full((1, 2, 16, 16), 3.0))
    boxes = centernet.points(lambda _: {"centre": found}, torch.zeros(1, 3, 64, 64), k=4)[0]["boxes"]
    assert boxes.tolist() == [[24.0, 16.0, 36.0, 28.0]]


def test_false_discovery_is_none_for_the_truth_and_rises_with_false_boxes_that_are_surer() -> None:
    scenes = importlib.import_module("lab.data.scenes").make_scenes("val", 4, seed=0)
    true = [
        {"boxes": b, "scores": torch.full((len(b),), 0.5), "labels": c}
        for b, c in zip(scenes.boxes, scenes.labels, strict=True)
    ]
    assert centernet.false_discovery(true, scenes) == pytest.approx(0, abs=1e-4)
    added = [
        {"boxes": torch.cat([e["boxes"], torch.tensor([[0.0, 0, 1, 1]])]), "scores": torch.cat([e["scores"], torch.ones(1)]),
         "labels": torch.cat([e["labels"], torch.zeros(1, dtype=torch.long)])}
        for e in true
    ]  # fmt: skip
    assert centernet.false_discovery(added, scenes) > 5
    nothing = [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)} for _ in true]
    assert centernet.false_discovery(nothing, scenes) == 100


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("centernet")
    centernet.main(["--preset", "smoke", "--device", "cpu", "--out", str(out)])
    return json.loads((out / "record.json").read_text("utf-8")), out


def test_a_smoke_run_writes_all_results_and_figures(record: tuple[dict[str, Any], Path]) -> None:
    results, out = record[0]["results"], record[1]
    assert results.keys() >= {
        "false_discovery_pairs", "false_discovery_triplets", "false_discovery_removed", "check_gain_ap",
        "check_gain_ap_small", "check_gain_small_over_large", "pooling_gain_ap_large", "true_centre_gain", "nms_gain",
        "points_boxes_peaks", "peaks_gain", "nms_gain_after_peaks", "ap_behind_points", "macs_triplets_over_pairs",
        "time_triplets_over_pairs", "time_over_points", "scenes_ap", "scenes_boxes_per_object_raw",
    }  # fmt: skip
    for figure in record[0]["figures"]:
        assert (out / figure["light"]).is_file()
        assert (out / figure["dark"]).is_file()


def test_weights_from_the_net_are_refused() -> None:
    with pytest.raises(SystemExit, match="pretrained"):
        centernet.main(["--preset", "smoke", "--device", "cpu", "--weights", "pretrained"])
