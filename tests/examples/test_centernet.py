"""CenterNet's idea: poolings, heatmaps, tags, the centre check and peaks, and what the claims compare."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import centernet
import pytest
import torch
from claims import centernet as claims
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import detectors
from lab import keypoints as lab_keypoints
from lab.data.scenes import make_scenes
from lab.keypoints import Keypoints
from lab.run import Run
from torch import Tensor
from torchvision.ops import box_iou

SMOKE = detectors.BENCHMARKS["smoke"]


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
    return Keypoints(heat_at(cells), torch.zeros(1, 2, 16, 16), tag)


def targets(*boxes: list[float]) -> Any:
    """One scene with these boxes, all of class 0."""
    count = len(boxes)
    return lab_keypoints.Objects(
        torch.tensor([boxes]), torch.zeros(1, count, dtype=torch.long), torch.ones(1, count, dtype=torch.bool)
    )


@settings(max_examples=20)
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


@settings(max_examples=50)
@given(st.floats(1, 100), st.floats(1, 100))
def test_boxes_whose_corners_move_by_the_radius_keep_the_overlap(width: float, height: float) -> None:
    size = torch.tensor([width, height])
    r = float(lab_keypoints.radius(size))
    moved = [[r, r, width - r, height - r], [-r, -r, width + r, height + r], [r, r, width + r, height + r]]
    overlaps = box_iou(torch.tensor([[0.0, 0.0, width, height]]), torch.tensor(moved))[0]
    assert float(overlaps.min()) == pytest.approx(0.3, abs=2e-3)


def test_the_true_heatmap_is_one_at_the_keypoint_and_falls_off_with_the_size_of_the_object() -> None:
    for kind, cell in (("tl", (4, 4)), ("br", (10, 10)), ("centre", (7, 7))):
        small = lab_keypoints.true_heat(targets([16.0, 16.0, 40.0, 40.0]), kind, 1, 16)
        assert (small == 1).nonzero()[0, 2:].tolist() == [cell[1], cell[0]]
    near = [
        float(lab_keypoints.true_heat(targets([28.0 - s, 28.0 - s, 28.0 + s, 28.0 + s]), "centre", 1, 16)[0, 0, 7, 9])
        for s in (6.0, 20.0)
    ]
    assert near[0] < near[1] < 1


def test_the_focal_loss_is_least_for_the_true_heatmap_and_forgives_places_nearby() -> None:
    heat = lab_keypoints.true_heat(targets([16.0, 16.0, 40.0, 40.0]), "centre", 1, 16)
    right, near, far = (
        lab_keypoints.focal_loss(heat_at(cells), heat) for cells in ([(7, 7)], [(7, 7), (8, 7)], [(7, 7), (0, 0)])
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
    assert lab_keypoints.peaks(heat).nonzero()[:, 2:].tolist() == [[0, 4], [1, 1]]


def test_wrong_pairs_are_rejected_for_want_of_a_centre() -> None:
    tl, br = [(1, 1), (8, 8)], [(5, 5), (13, 13)]
    output = {"tl": keypoints(tl), "br": keypoints(br), "centre": keypoints([(3, 3), (10, 10)])}
    pairs = centernet.triplets(lambda _: output, torch.zeros(1, 3, 64, 64), check=None, k=8)[0]["boxes"]
    checked = centernet.triplets(lambda _: output, torch.zeros(1, 3, 64, 64), k=8)[0]["boxes"]
    true = [[4.0, 4, 20, 20], [32, 32, 52, 52]]
    assert sorted(pairs.tolist()) == sorted([*true, [4.0, 4, 52, 52]])
    assert sorted(checked.tolist()) == true


def test_corners_with_different_tags_are_not_paired() -> None:
    output = {"tl": keypoints([(1, 1), (8, 8)], [0.0, 2.0]), "br": keypoints([(5, 5), (13, 13)], [0.0, 2.0])}
    boxes = centernet.triplets(lambda _: output, torch.zeros(1, 3, 64, 64), check=None, k=8)[0]["boxes"]
    assert sorted(boxes.tolist()) == [[4.0, 4, 20, 20], [32, 32, 52, 52]]


def test_objects_as_points_reads_the_box_at_its_peak() -> None:
    found = Keypoints(heat_at([(7, 5)]), torch.full((1, 2, 16, 16), 0.5), torch.full((1, 2, 16, 16), 3.0))
    boxes = claims.points(lambda _: found, torch.zeros(1, 3, 64, 64), k=4)[0]["boxes"]
    assert boxes.tolist() == [[24.0, 16.0, 36.0, 28.0]]


def test_false_discovery_is_none_for_the_truth_and_rises_with_false_boxes_that_are_surer() -> None:
    scenes = make_scenes("val", 4, seed=0)
    true = [
        {"boxes": b, "scores": torch.full((len(b),), 0.5), "labels": c}
        for b, c in zip(scenes.boxes, scenes.labels, strict=True)
    ]
    assert claims.false_discovery(true, scenes) == pytest.approx(0, abs=1e-4)
    added = [
        {"boxes": torch.cat([e["boxes"], torch.tensor([[0.0, 0, 1, 1]])]), "scores": torch.cat([e["scores"], torch.ones(1)]),
         "labels": torch.cat([e["labels"], torch.zeros(1, dtype=torch.long)])}
        for e in true
    ]  # fmt: skip
    assert claims.false_discovery(added, scenes) > 5
    nothing = [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)} for _ in true]
    assert math.isnan(claims.false_discovery(nothing, scenes)), "a rate of nothing is undefined"


def test_the_cascade_sees_what_lies_inside_along_the_border() -> None:
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 5, 6] = 1  # inside the box of the corner at row 2, column 2, on neither of its borders
    assert float(centernet.cascade_pool((x,) * 4, "right", "bottom")[0, 0, 2, 2]) == 2
    assert float((centernet.pool_towards(x, "right") + centernet.pool_towards(x, "bottom"))[0, 0, 2, 2]) == 0


@pytest.mark.parametrize(("arm", "loss"), [("triplets", centernet.loss_of), ("points", claims.loss_of_points)])
def test_a_training_step_reads_nothing_back_from_its_device(arm: str, loss: Any) -> None:
    """On the meta device there are no values, so whatever asks for one raises: the step has no synchronisation."""
    assert centernet.SYNCHRONISATIONS_PER_STEP == 0
    scenes = detectors.scenes_of(SMOKE, "test", 0)[:4]
    loss(claims.build(arm, "smoke").to("meta"), scenes.to("meta")).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(claims.build(arm, "smoke"), scenes)
    value.backward()
    assert value.isfinite()


@pytest.mark.parametrize("preset", ["smoke", "quick", "full"])
def test_the_arms_have_about_as_many_parameters(preset: str) -> None:
    sizes = {arm: sum(p.numel() for p in claims.build(arm, preset).parameters()) for arm in claims.ARMS}
    assert sizes["points"] == pytest.approx(sizes["triplets"], rel=0.1)


def test_the_control_differs_from_the_centre_branch_in_nothing_but_the_pooling() -> None:
    model: Any = claims.build("triplets", "smoke")
    branch, control = model.heads["centre"], model.heads["plain"]
    control.load_state_dict(branch.state_dict())
    features = torch.rand(1, 16, 1, 1)  # one cell: no line to pool along
    for each in (branch, control):
        each.eval()
    torch.testing.assert_close(branch(features).heat, control(features).heat)
    wide = torch.rand(1, 16, 4, 4)
    assert not torch.equal(branch(wide).heat, control(wide).heat)


def test_the_file_to_read_uses_what_the_search_chose_and_every_arm_was_searched() -> None:
    kept = json.loads((Path(claims.__file__).parent / "centernet.searches.json").read_text("utf-8"))["learning rate"]
    assert kept["arms"]["triplets"]["chosen"] == centernet.RATE
    assert set(kept["arms"]) == set(claims.ARMS)


def test_no_time_is_taken() -> None:
    source = Path(claims.__file__).read_text("utf-8") + Path(centernet.__file__).read_text("utf-8")
    assert "timed" not in source
    assert "perf_counter" not in source


def test_published_weights_are_refused() -> None:
    with pytest.raises(SystemExit, match="loads no published weights"):
        Run.start("centernet", argv=["--weights", "pretrained"], pretrained=False)
