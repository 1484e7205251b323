"""Samples of the larger parts of a card, for the help that an editor shows."""

from __future__ import annotations

SHOWN = {"result": "skip_dice_gap", "above": 0}
CLAIM = {
    "claim": "Needs no anchors.",
    "because": "Each object is predicted as a point.",
    "shown": {"result": "margin", "above": 0},
}
CITE = {"reference": "carion2020", "where": "Table 1"}
REFERENCE = {
    "type": "inproceedings",
    "title": "End-to-End Object Detection with Transformers",
    "authors": ["Nicolas Carion"],
    "year": 2020,
    "arxiv": "2005.12872",
}
REPORTED = {"number": "r50/AP_L", "above": "faster-rcnn/r50-fpn/AP_L", "despite": ["schedule"]}
REVISION = {"reason": "The official code has had it since 2021.", "source": CITE}
TABLE = {"source": "carion2020", "where": "Table 1", "conditions": {"dataset": "COCO", "split": "val2017"}}
VARIANT = {"name": "DETR-R50", "numbers": {"table1": {"AP": 42.0, "parameters": "41 M"}}}
RELATION = {"name": "Faster R-CNN", "change": "Replaces anchors by queries.", "card": "faster-rcnn"}
STATED = {"text": "Small objects are harder for it.", "source": CITE}
LICENCES = {"code": "Apache-2.0", "weights": "Apache-2.0", "source": {"reference": "detr_code", "where": "LICENSE"}}
LEAST_DATA = {"images": 30, "what": "Ahead of sliding windows on cell outlines.", "source": CITE}
RELEASE = {
    "name": "official",
    "code": "Apache-2.0",
    "weights": "Apache-2.0",
    "data": ["COCO"],
    "source": LICENCES["source"],
}
INDEPENDENT = {"by": "Roboflow", "how": "TensorRT on a T4 at fp16, one evaluation for all.", "when": "2025-11"}
LOAD = {"library": "transformers", "class": "DetrForObjectDetection", "name": "facebook/detr-resnet-50"}
INPUT = {"size": "800 x 1333", "mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]}
CHECKPOINT = {
    "name": "DETR-R50",
    "system": "r50/table1",
    "task": "object detection",
    "release": "official",
    "load": LOAD,
    "input": INPUT,
    "output": "boxes",
    "form": "xyxy in pixels.",
    "source": LICENCES["source"],
}
