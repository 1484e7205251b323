"""Measures against their definitions, against another implementation, and at their edges."""

import math
import time
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lab.metrics import (
    AP_KEYS,
    AR_KEYS,
    COCO_SIZES,
    accuracy,
    average_precision,
    detections_per_object,
    dice,
    lesion_recall,
    timed,
)

pytestmark = pytest.mark.torch


def objects(boxes, labels=None, scores=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    found = {"boxes": boxes, "labels": torch.tensor(labels or [1] * len(boxes), dtype=torch.long)}
    return found if scores is None else found | {"scores": torch.tensor(scores, dtype=torch.float32)}


def random_scenes(seed, images=6):
    """Targets of many sizes and predictions that are near some of them."""
    generator = torch.Generator().manual_seed(seed)
    predictions, targets = [], []
    for _ in range(images):
        n = int(torch.randint(0, 6, (1,), generator=generator))
        corner = 200 * torch.rand(n, 2, generator=generator)
        boxes = torch.cat([corner, corner + 10 + 150 * torch.rand(n, 2, generator=generator)], 1)
        labels = torch.randint(1, 4, (n,), generator=generator)
        noise = 8 * torch.randn(n, 4, generator=generator)
        targets.append({"boxes": boxes, "labels": labels})
        near = {"boxes": boxes + noise, "labels": labels, "scores": torch.rand(n, generator=generator)}
        far = {"boxes": boxes + 60, "labels": labels, "scores": torch.rand(n, generator=generator)}
        predictions.append({key: torch.cat([near[key], far[key]]) for key in near})
    return predictions, targets


def masks_from_boxes(scenes, size=400):
    for scene in scenes:
        masks = torch.zeros(len(scene["boxes"]), size, size, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, scene["boxes"].round().int().tolist(), strict=True):
            mask[max(y0, 0) : max(y1, 1), max(x0, 0) : max(x1, 1)] = True
        scene["masks"] = masks
    return scenes


def test_accuracy_takes_labels_and_scores():
    target = torch.tensor([0, 1, 2, 2])
    assert accuracy(torch.tensor([0, 1, 2, 0]), target) == 0.75
    assert accuracy(torch.eye(3)[[0, 1, 2, 0]], target) == 0.75
    assert accuracy(torch.eye(3)[target].reshape(2, 2, 3).permute(0, 2, 1), target.reshape(2, 2)) == 1.0


def test_accuracy_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="predicted is"):
        accuracy(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="no labels"):
        accuracy(torch.zeros(0), torch.zeros(0))


def test_dice_of_a_half_covered_square():
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    target[0, :2] = 1
    predicted = torch.zeros_like(target)
    predicted[0, 1:3] = 1
    assert dice(predicted, target, 2).tolist() == [0.5, 0.5]


def test_dice_pools_all_images_and_leaves_absent_classes_undefined():
    target = torch.tensor([[1, 1], [0, 0]])
    predicted = torch.tensor([[1, 0], [0, 0]])
    values = dice(predicted, target, 3)
    assert values[:2].tolist() == pytest.approx([4 / 5, 2 / 3])
    assert values[2].isnan()


labels = st.lists(st.integers(0, 3), min_size=1, max_size=60)


@given(labels, st.randoms(use_true_random=False))
def test_dice_is_symmetric_and_one_only_where_classes_agree(target, random):
    predicted = torch.tensor([random.choice([value, 0, 3]) for value in target])
    target = torch.tensor(target)
    there, back = dice(predicted, target, 4), dice(target, predicted, 4)
    assert torch.equal(there.nan_to_num(-1), back.nan_to_num(-1))
    for k in range(4):
        p, t = predicted == k, target == k
        if (p | t).any():
            assert there[k] == pytest.approx(2 * (p & t).sum().item() / (p.sum() + t.sum()).item())
            assert (there[k] == 1) == torch.equal(p, t)


def test_dice_refuses_scores_and_labels_out_of_range():
    with pytest.raises(ValueError, match="predicted is"):
        dice(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4), 2)
    with pytest.raises(ValueError, match="there are 2 classes"):
        dice(torch.tensor([2]), torch.tensor([0]), 2)


def two_lesions():
    target = torch.zeros(2, 8, 8, dtype=torch.bool)
    target[0, 0:4, 0:4] = True  # 16 px
    target[1, 3, 3] = target[1, 4, 4] = True  # 2 px that touch at a corner
    return target


def test_a_lesion_counts_once_whatever_its_size():
    target = two_lesions()
    predicted = torch.zeros_like(target)
    assert lesion_recall(predicted, target) == 0.0
    predicted[0, 0, 0] = True
    assert lesion_recall(predicted, target) == 0.5
    predicted[1, 4, 4] = True
    assert lesion_recall(predicted, target) == 1.0


def test_lesions_of_two_images_are_apart():
    target = torch.ones(2, 1, 1, dtype=torch.bool)
    predicted = torch.tensor([True, False]).reshape(2, 1, 1)
    assert lesion_recall(predicted, target) == 0.5


def test_overlap_and_area_set_what_counts():
    target = two_lesions()
    predicted = torch.zeros_like(target)
    predicted[0, 0:2, 0:4] = True
    assert lesion_recall(predicted, target, overlap=0.49, area=(3, 16)) == 1.0
    assert lesion_recall(predicted, target, overlap=0.5, area=(3, 16)) == 0.0
    assert lesion_recall(predicted, target, area=(1, 2)) == 0.0


def test_recall_without_a_lesion_is_undefined():
    empty = torch.zeros(1, 3, 3)
    assert math.isnan(lesion_recall(empty, empty))
    assert math.isnan(lesion_recall(two_lesions(), two_lesions(), area=(100, math.inf)))


def test_volumes_have_lesions_too():
    target = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    target[0, 0, 0, 0] = target[0, 1, 1, 1] = True  # connected through the corner of a voxel
    predicted = torch.zeros_like(target)
    predicted[0, 0, 0, 0] = True
    assert lesion_recall(predicted, target) == 1.0


def reference_average_precision(predictions, targets, iou_type):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics' own imports
        from torchmetrics.detection.mean_ap import MeanAveragePrecision
    # COCO's thresholds are double; those that torchmetrics makes are single, and a recall of 0.6 falls beside them.
    thresholds = torch.linspace(0, 1, 101, dtype=torch.float64).tolist()
    metric = MeanAveragePrecision(iou_type=iou_type, rec_thresholds=thresholds)
    metric.update(predictions, targets)
    values = metric.compute()
    keys = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
    keys += ("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large")
    return [value if (value := values[key].item()) >= 0 else math.nan for key in keys]


@pytest.mark.parametrize("iou", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_average_precision_agrees_with_torchmetrics_at_the_sizes_of_coco(seed, iou):
    predictions, targets = random_scenes(seed)
    if iou == "segm":
        predictions, targets = masks_from_boxes(predictions), masks_from_boxes(targets)
    ours = average_precision(predictions, targets, iou=iou)
    expected = reference_average_precision(predictions, targets, iou)
    assert [ours[key] for key in AP_KEYS + AR_KEYS] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert 0.05 < ours["ap"] < 0.95


def test_sizes_scale_with_the_scenes():
    predictions, targets = random_scenes(0)
    small = [[{**scene, "boxes": scene["boxes"] / 8} for scene in scenes] for scenes in (predictions, targets)]
    whole = average_precision(predictions, targets)
    assert average_precision(*small, sizes=(4, 12)) == pytest.approx(whole, nan_ok=True)
    assert math.isnan(average_precision(*small)["ap_large"])


def test_perfect_predictions_score_one_and_none_score_zero():
    targets = [objects([[0, 0, 10, 10], [20, 20, 50, 60]]), objects([])]
    perfect = [each | {"scores": torch.ones(len(each["labels"]))} for each in targets]
    values = average_precision(perfect, targets, sizes=(16, 64))
    assert (values["ap"], values["ap_small"], values["ap_medium"]) == pytest.approx((1, 1, 1))
    assert math.isnan(values["ap_large"])
    nothing = [objects([], scores=[]), objects([], scores=[])]
    assert average_precision(nothing, targets)["ap"] == 0.0


def test_without_any_object_precision_is_undefined():
    values = average_precision([objects([[0, 0, 5, 5]], scores=[0.9])], [objects([])])
    assert all(math.isnan(value) for value in values.values())
    assert all(math.isnan(value) for value in average_precision([], []).values())


def test_a_duplicate_below_the_last_object_costs_nothing_but_one_above_it_does():
    target = objects([[0, 0, 10, 10], [30, 30, 40, 40]])
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [30, 30, 40, 40]]
    low = average_precision([objects(boxes, scores=[0.9, 0.1, 0.8])], [target])["ap"]
    high = average_precision([objects(boxes, scores=[0.9, 0.8, 0.7])], [target])["ap"]
    assert low == pytest.approx(1.0)
    assert high < 0.9


def test_average_precision_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="0 predictions for 1 images"):
        average_precision([], [objects([])])
    with pytest.raises(ValueError, match="sizes must grow"):
        average_precision([], [], sizes=(32, 16))


@pytest.mark.parametrize("seed", range(3))
def test_sizes_that_are_not_told_apart_change_nothing_else(seed):
    whole, short = (average_precision(*random_scenes(seed), sizes=sizes) for sizes in (COCO_SIZES, None))
    of_sizes = {name for name in whole if name.endswith(("small", "medium", "large"))}
    assert {name: short[name] for name in whole.keys() - of_sizes} == {n: whole[n] for n in whole.keys() - of_sizes}
    assert all(math.isnan(short[name]) for name in of_sizes)


def test_pycocotools_prints_nothing(capsys):
    average_precision(*random_scenes(0))
    assert capsys.readouterr().out == ""


def test_each_confident_detection_of_a_found_object_counts():
    target = objects([[0, 0, 10, 10], [30, 30, 40, 40], [60, 60, 70, 70]])
    boxes = [[0, 0, 10, 10], [1, 0, 10, 10], [0, 1, 10, 10], [30, 30, 40, 40], [30, 30, 40, 40], [90, 90, 99, 99]]
    predicted = objects(boxes, scores=[0.9, 0.8, 0.4, 0.9, 0.9, 0.9])
    assert detections_per_object([predicted], [target]) == 2.0
    assert detections_per_object([predicted], [target], score=0.1) == 2.5
    assert detections_per_object([predicted], [target], score=0.1, iou=0.95) == 1.5


def test_a_detection_belongs_to_the_object_of_its_label():
    target = objects([[0, 0, 10, 10], [0, 0, 10, 9]], labels=[1, 2])
    predicted = objects([[0, 0, 10, 10]] * 3, labels=[2, 2, 3], scores=[0.9] * 3)
    assert detections_per_object([predicted], [target]) == 2.0


def test_detections_per_object_without_a_found_object_is_undefined():
    empty = objects([], scores=[])
    assert math.isnan(detections_per_object([empty], [objects([[0, 0, 5, 5]])]))
    assert math.isnan(detections_per_object([objects([[0, 0, 5, 5]], scores=[0.9])], [objects([])]))
    assert math.isnan(detections_per_object([], []))


def test_timed_counts_its_calls_and_gives_quartiles_in_milliseconds(monkeypatch):
    calls, clock = [], [0]

    def fn():
        calls.append(1)
        clock[0] += 2_000_000 * len(calls)  # nanoseconds: 2 ms, 4 ms, 6 ms ...

    monkeypatch.setattr(time, "perf_counter_ns", lambda: clock[0])
    quartiles = timed(fn, repeats=5, warmup=2, device=torch.device("cpu"))
    assert len(calls) == 7
    assert (quartiles.low, quartiles.median, quartiles.high) == (8, 10, 12)


def test_timed_needs_a_call():
    with pytest.raises(ValueError, match="repeats must be"):
        timed(lambda: None, repeats=0)
