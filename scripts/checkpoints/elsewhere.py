"""Snippets for libraries that are not installed here: none is run, a test holds them against the signatures of the library.

What a library wants beside its package (a clone of a repository, a licence that is accepted) stands in the first line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from scripts.cards.releases import Checkpoint, Output


def quoted(text: str) -> str:
    """As it stands in a program."""
    return json.dumps(text, ensure_ascii=False)


def _zoo(checkpoint: Checkpoint) -> list[str] | None:
    """Of the model zoo: it takes a batch of dictionaries, and neither reads nor resizes a picture."""
    if checkpoint.output not in ZOO_ENDS:
        return None
    size = '"height": picture.shape[0], "width": picture.shape[1]'
    return [
        "from torch import from_numpy",
        f"from {checkpoint.load.library} import data, model_zoo",
        f"model = model_zoo.get({quoted(checkpoint.load.name)}, trained=True).eval().requires_grad_(False)",
        'picture = data.detection_utils.read_image("picture.jpg", format="BGR")',
        "small = data.transforms.ResizeShortestEdge(800, 1333).get_transform(picture).apply_image(picture)",
        f'found = model([{{"image": from_numpy(small.transpose(2, 0, 1).copy()), {size}}}])[0]',
        *ZOO_ENDS[checkpoint.output],
    ]


SURE = 'sure = found["instances"][found["instances"].scores > 0.5]'
META = 'data.MetadataCatalog.get("coco_2017_val{}")'
NAMED = f"[{META.format('')}.thing_classes[n] for n in sure.pred_classes.tolist()], sure.scores.tolist()"

ZOO_ENDS: dict[Output, tuple[str, str]] = {
    "boxes": (SURE, f"print({NAMED}, sure.pred_boxes)"),
    "boxes and masks": (SURE, f"print({NAMED}, sure.pred_masks.shape)"),
    "keypoints": (SURE, "print(sure.pred_boxes, sure.pred_keypoints.tolist())"),
    "panoptic map": (
        f'names, (numbers, segments) = {META.format("_panoptic_separated")}, found["panoptic_seg"]',
        'print([(names.thing_classes if s["isthing"] else names.stuff_classes)[s["category_id"]] for s in segments])',
    ),
}

OF_OPENMMLAB = re.compile(r"((?:detection|segmentation)/)?(\S+\.py)(?: of (\S+/\S+))?, (https://\S+)")
"""A configuration in the clone of a repository, by default the library's own, and where the weights lie."""

CUSTOM = {
    "detection/": "import mmcv_custom, mmdet_custom  # which bring the model",
    "segmentation/": "import mmcv_custom, mmseg_custom  # which bring the model",
}


def _openmmlab(
    kind: str, own: str, ends: Callable[[Checkpoint], list[str]]
) -> Callable[[Checkpoint], list[str] | None]:
    """mmdet and mmseg: `init_detector` and `inference_detector` of the one are `init_segmentor`, ... of the other."""

    def lines(checkpoint: Checkpoint) -> list[str] | None:
        parts = OF_OPENMMLAB.fullmatch(checkpoint.load.name)
        if parts is None:
            return None
        folder, config, repository, weights = parts.groups()
        return [
            f"# in {folder or ''}{' of ' if folder else ''}a clone of {repository or own}",
            f"from {checkpoint.load.library}.apis import inference_{kind}, init_{kind}",
            *([CUSTOM[folder]] if folder else []),
            f"config = {quoted(config)}",
            f"weights = {quoted(weights)}",
            f'model = init_{kind}(config, weights, device="cpu")',
            f'found = inference_{kind}(model, "picture.jpg")',
            *ends(checkpoint),
        ]

    return lines


def _found_by_mmdet(checkpoint: Checkpoint) -> list[str]:
    """From 3.0 on one sample; before that an array for each class, of boxes with scores, beside the masks if there are any."""
    if (checkpoint.load.least or "2").startswith("3"):
        return [
            "sure = found.pred_instances[found.pred_instances.scores > 0.5]",
            'print([model.dataset_meta["classes"][n] for n in sure.labels.tolist()], sure.scores, sure.bboxes)',
        ]
    boxes = "found[0]" if checkpoint.output == "boxes and masks" else "found"
    return [
        f"print({{name: boxes[boxes[:, 4] > 0.5].tolist() for name, boxes in zip(model.CLASSES, {boxes}) if len(boxes)}})"
    ]


def _found_by_mmseg(_: Checkpoint) -> list[str]:
    return ["print({model.CLASSES[n]: (found[0] == n).mean() for n in set(found[0].flatten().tolist())})"]


def _ultralytics(checkpoint: Checkpoint) -> list[str] | None:
    if checkpoint.output not in ULTRALYTICS_ENDS:
        return None
    return [
        "# ultralytics is under AGPL-3.0, and so are its weights",
        "from ultralytics import YOLO",
        f"model = YOLO({quoted(checkpoint.load.name)})",
        'found = model("picture.jpg")[0]',
        f"print({ULTRALYTICS_ENDS[checkpoint.output]})",
    ]


BOXES = "[found.names[int(n)] for n in found.boxes.cls], found.boxes.conf, found.boxes.xyxy"

ULTRALYTICS_ENDS: dict[Output, str] = {
    "boxes": BOXES,
    "boxes and masks": f'{BOXES}, "masks", found.masks and tuple(found.masks.data.shape)',
    "keypoints": f"{BOXES}, found.keypoints.xy.tolist()",
    "semantic map": "[found.names[int(n)] for n in found.semantic_mask.data.unique()], tuple(found.semantic_mask.data.shape)",
}


def _depth_anything_3(checkpoint: Checkpoint) -> list[str]:
    return [
        "# the package is installed from a clone of its repository",
        f"from {checkpoint.load.class_.rpartition('.')[0]} import {checkpoint.load.class_.rpartition('.')[2]}",
        f"model = {checkpoint.load.class_.rpartition('.')[2]}.from_pretrained({quoted(checkpoint.load.name)})",
        'found = model.inference(["picture.jpg"])',
        'print("depth", found.depth.shape, "from", found.depth.min(), "to", found.depth.max())',
    ]


def _rfdetr_plus(checkpoint: Checkpoint) -> list[str]:
    return [
        "# the weights are under the Platform Model License, which the argument accepts",
        f"from rfdetr_plus import {checkpoint.load.class_}",
        "from rfdetr.assets.coco_classes import COCO_CLASSES",
        f"model = {checkpoint.load.class_}(accept_platform_model_license=True)",
        'found = model.predict("picture.jpg", threshold=0.5)',
        "print([COCO_CLASSES[n] for n in found.class_id], found.confidence, found.xyxy)",
    ]


def _sam3(checkpoint: Checkpoint) -> list[str] | None:
    if checkpoint.output != "masks of a text":
        return None
    return [
        "from PIL import Image",
        f"from {checkpoint.load.library}.model_builder import {checkpoint.load.class_}",
        f"from {checkpoint.load.library}.model.sam3_image_processor import Sam3Processor",
        f"processor = Sam3Processor({checkpoint.load.class_}())",
        'state = processor.set_image(Image.open("picture.jpg").convert("RGB"))',
        'found = processor.set_text_prompt(state=state, prompt="cat")',
        'print(found["scores"], found["boxes"], tuple(found["masks"].shape))',
    ]


def _totalsegmentator(checkpoint: Checkpoint) -> list[str]:
    module, _, function = checkpoint.load.class_.rpartition(".")
    return [
        f"from {module} import {function}",
        "from totalsegmentator.nifti_ext_header import load_multilabel_nifti",
        f'{function}("ct.nii.gz", "labels.nii.gz", ml=True, task={quoted(checkpoint.load.name)}, device="cpu")',
        'labels, names = load_multilabel_nifti("labels.nii.gz")',
        "print(labels.shape, names)",
    ]


MAKERS: dict[str, Callable[[Checkpoint], list[str] | None]] = {
    "model_zoo.get": _zoo,
    "init_detector": _openmmlab("detector", "open-mmlab/mmdetection", _found_by_mmdet),
    "init_segmentor": _openmmlab("segmentor", "open-mmlab/mmsegmentation", _found_by_mmseg),
    "YOLO": _ultralytics,
    "depth_anything_3.api.DepthAnything3": _depth_anything_3,
    "RFDETRXLarge": _rfdetr_plus,
    "RFDETR2XLarge": _rfdetr_plus,
    "build_sam3_image_model": _sam3,
    "totalsegmentator.python_api.totalsegmentator": _totalsegmentator,
}
"""By what loads a checkpoint, as its card names it."""
