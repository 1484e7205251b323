"""Measures of segmentation, detection, classification and time.

Where a measure is undefined (no object of a size, a class that occurs nowhere) it is NaN, never 0 or 1: a run
refuses NaN as a result, so an undefined measure cannot pass for a good or a bad one.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

Objects = Mapping[str, Tensor]

AP_KEYS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
AR_KEYS = ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
COCO_SIZES = (32.0, 96.0)  # pixels; COCO's limits, meant for images of about 640 x 480


def accuracy(predicted: Tensor, target: Tensor) -> float:
    """The part of the labels that is right.

    Args:
        predicted: labels like `target`, or scores with one more axis for the classes, (B, K) or (B, K, H, W).
        target: labels (B,) or (B, H, W).

    Raises:
        ValueError: the shapes do not fit, or there are no labels.
    """
    if predicted.ndim == target.ndim + 1:
        predicted = predicted.argmax(1)  # (B, K, ...) -> (B, ...)
    _check_same_shape(predicted, target)
    if target.numel() == 0:
        raise ValueError("accuracy of no labels is undefined")
    return (predicted == target).cpu().double().mean().item()


def dice(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    r"""Dice coefficient of each class, :math:`2|P \cap T| / (|P| + |T|)`, pooled over all pixels of all images.

    Args:
        predicted: labels 0 to classes - 1, of any shape, e.g. (B, H, W).
        target: labels of the same shape.
        classes: number of classes K, the background included.

    Returns:
        (K,), float64, on the CPU; NaN for a class that occurs in neither.

    Raises:
        ValueError: the shapes differ, or a label is out of range.
    """
    _check_same_shape(predicted, target)
    predicted, target = predicted.flatten().long().cpu(), target.flatten().long().cpu()
    both = torch.cat([predicted, target])
    if both.numel() and not 0 <= both.min() <= both.max() < classes:
        raise ValueError(f"labels run from {both.min()} to {both.max()}, but there are {classes} classes")
    shared = torch.bincount(target[predicted == target], minlength=classes).double()
    return 2 * shared / torch.bincount(both, minlength=classes)  # 0 / 0 is NaN


def lesion_recall(
    predicted: Tensor, target: Tensor, *, overlap: float = 0.0, area: tuple[float, float] = (1, math.inf)
) -> float:
    """The part of the lesions that is found, each counted once whatever its size.

    A lesion is a connected component of the target within one image; pixels that touch at a corner are connected. It
    is found where more than `overlap` of its pixels are predicted.

    Args:
        predicted: bool (B, H, W) or (B, D, H, W).
        target: bool, of the same shape.
        overlap: part of a lesion that must be exceeded; with 0, one pixel is enough.
        area: smallest and largest number of pixels of the lesions that count, both included.

    Returns:
        From 0 to 1; NaN where there is no lesion of that area.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(predicted, target)
    hit, lesions = predicted.bool().cpu().numpy(), target.bool().cpu().numpy()
    neighbours = np.zeros((3,) * lesions.ndim, dtype=bool)
    neighbours[1] = True  # never across the first axis: images of a batch are apart
    components, number = ndimage.label(lesions, structure=neighbours)
    pixels = np.bincount(components.ravel(), minlength=number + 1)[1:]  # (lesions,), without background 0
    covered = np.bincount(components[hit], minlength=number + 1)[1:]
    counts = (pixels >= area[0]) & (pixels <= area[1])
    found = covered[counts] / pixels[counts] > overlap
    return float(found.mean()) if found.size else math.nan


def average_precision(
    predictions: Sequence[Objects],
    targets: Sequence[Objects],
    sizes: tuple[float, float] | None = COCO_SIZES,
    iou: Literal["bbox", "segm"] = "bbox",
) -> dict[str, float]:
    """COCO's average precision and recall, computed by pycocotools.

    COCO calls objects below 32 x 32 px small and those above 96 x 96 px large. Scenes of 64 px have none of the
    latter, so `sizes` sets both limits for the scenes at hand; an object is as large as the square root of its area.

    Args:
        predictions: for each image ``boxes`` (n, 4) xyxy in pixels, ``scores`` (n,), ``labels`` (n,), and for "segm"
            ``masks`` (n, H, W) bool. Of each image and class the best 100 count.
        targets: for each image ``boxes``, ``labels``, and for "segm" ``masks``, likewise.
        sizes: side in pixels up to which objects are small, and from which they are large; limits belong to both. None
            does not tell them apart, which takes less than half of the time.
        iou: overlap of boxes or of masks. Areas are those of the boxes or of the masks, too.

    Returns:
        From 0 to 1, or NaN where no object of that size exists or sizes are not told apart: ``ap`` (mean over IoU 0.50,
        0.55, ..., 0.95), ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, ``ap_large``, and the recalls ``ar1``,
        ``ar10``, ``ar100`` (with so many predictions per image), ``ar_small``, ``ar_medium``, ``ar_large``. Means are
        over classes.

    Raises:
        ValueError: predictions and targets differ in number, or the sizes do not grow.
    """
    if len(predictions) != len(targets):
        raise ValueError(f"{len(predictions)} predictions for {len(targets)} images")
    small, large = sizes or COCO_SIZES
    if not 0 < small < large:
        raise ValueError(f"sizes must grow from above 0, not {sizes}")
    from pycocotools.cocoeval import COCOeval

    labels = {int(each) for objects in (*predictions, *targets) for each in objects["labels"].tolist()}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its tables
        evaluation = COCOeval(_coco(targets, labels, iou), _coco(predictions, labels, iou), iou)
        limits = [0.0, small**2, large**2, 1e10]
        evaluation.params.areaRng = [[0.0, 1e10], limits[:2], limits[1:3], limits[2:]]
        if sizes is None:
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0.0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # pycocotools says -1 where there is no object.
    stats = [math.nan if value < 0 else float(value) for value in evaluation.stats]
    return dict(zip(AP_KEYS + AR_KEYS, stats, strict=True))


def _coco(images: Sequence[Objects], labels: set[int], iou: str) -> Any:
    """The objects of all images as a pycocotools COCO; identifiers start at 1, since COCOeval takes 0 for none."""
    from pycocotools.coco import COCO

    annotations: list[dict[str, Any]] = []
    for image, objects in enumerate(images):
        for index in range(len(objects["labels"])):
            annotation = _coco_annotation(objects, index, iou)
            annotations.append(annotation | {"id": len(annotations) + 1, "image_id": image})
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} | _mask_size(objects, iou) for image, objects in enumerate(images)],
        "categories": [{"id": label} for label in sorted(labels)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _mask_size(objects: Objects, iou: str) -> dict[str, int]:
    return dict(zip(("height", "width"), objects["masks"].shape[1:], strict=True)) if iou == "segm" else {}


def _coco_annotation(objects: Objects, index: int, iou: str) -> dict[str, Any]:
    annotation: dict[str, Any] = {"category_id": int(objects["labels"][index]), "iscrowd": 0}
    if "scores" in objects:
        annotation["score"] = float(objects["scores"][index])
    if iou == "bbox":
        x0, y0, x1, y1 = objects["boxes"][index].tolist()
        return annotation | {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
    from pycocotools import mask as rle

    pixels = objects["masks"][index].bool().cpu().numpy()
    return annotation | {
        "segmentation": rle.encode(np.asfortranarray(pixels, dtype=np.uint8)),
        "area": float(pixels.sum()),
    }


def detections_per_object(
    predictions: Sequence[Objects], targets: Sequence[Objects], *, score: float = 0.5, iou: float = 0.5
) -> float:
    """How many confident detections lie on a found object; 1 means no duplicates.

    Each detection with at least `score` goes to the object of its label that it overlaps most, if by at least `iou`.
    Objects without a detection do not count, so that missed objects cannot hide duplicates.

    Args:
        predictions: for each image ``boxes`` (n, 4) xyxy in pixels, ``scores`` (n,) and ``labels`` (n,).
        targets: for each image ``boxes`` (m, 4) and ``labels`` (m,).
        score: lowest score of a detection that counts.
        iou: lowest overlap.

    Returns:
        1 or more; NaN where no object is found.

    Raises:
        ValueError: predictions and targets differ in number.
    """
    if len(predictions) != len(targets):
        raise ValueError(f"{len(predictions)} predictions for {len(targets)} images")
    pairs = zip(predictions, targets, strict=True)
    counts = [_detections_of_objects(predicted, target, score, iou) for predicted, target in pairs]
    detections = torch.cat(counts) if counts else torch.zeros(0)
    found = detections[detections > 0]
    return found.double().mean().item() if len(found) else math.nan


def _detections_of_objects(predicted: Objects, target: Objects, score: float, iou: float) -> Tensor:
    """(m,), the number of detections on each object of one image."""
    from torchvision.ops import box_iou

    predicted, target = ({key: value.cpu() for key, value in each.items()} for each in (predicted, target))
    objects = len(target["labels"])
    sure = predicted["scores"] >= score
    if objects == 0 or not sure.any():
        return torch.zeros(objects, dtype=torch.long)
    overlaps = box_iou(predicted["boxes"][sure].float(), target["boxes"].float())  # (n, m)
    same = predicted["labels"][sure, None] == target["labels"][None]
    best, owner = overlaps.where(same, -1.0).max(1)  # (n,)
    return torch.bincount(owner[best >= iou], minlength=objects)


class Quartiles(NamedTuple):
    """Lower quartile, median and upper quartile, in milliseconds."""

    low: float
    median: float
    high: float


def timed(
    fn: Callable[[], object], repeats: int = 20, warmup: int = 3, device: torch.device | None = None
) -> Quartiles:
    """Times a function, and waits for the device before each look at the clock.

    Args:
        fn: called without arguments; put ``torch.inference_mode()`` inside where no gradient is meant.
        repeats: calls that are timed.
        warmup: calls before them, which are not.
        device: where the function computes; the CPU where None.

    Raises:
        ValueError: repeats are below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    for _ in range(warmup):
        fn()
    milliseconds = []
    for _ in range(repeats):
        _synchronize(device)
        start = time.perf_counter_ns()
        fn()
        _synchronize(device)
        milliseconds.append((time.perf_counter_ns() - start) / 1e6)
    return Quartiles(*(float(each) for each in np.percentile(milliseconds, [25, 50, 75])))


def _synchronize(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device is not None and device.type == "mps":
        torch.mps.synchronize()


def _check_same_shape(predicted: Tensor, target: Tensor) -> None:
    if predicted.shape != target.shape:
        raise ValueError(f"predicted is {tuple(predicted.shape)}, but target is {tuple(target.shape)}")
