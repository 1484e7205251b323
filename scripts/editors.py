"""What an editor knows of a card: the JSON Schema behind completion, help and checks while one types."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from scripts.schema import Card

SHOWN = {"result": "skip_dice_gap", "above": 0}
CLAIM = {
    "claim": "Needs no anchors.",
    "because": "Each object is predicted as a point.",
    "shown": {"result": "margin", "above": 0},
}
CITE = {"reference": "carion2020", "where": "Table 1"}
REFERENCE = {
    "type": "inproceedings", "title": "End-to-End Object Detection with Transformers", "authors": ["Nicolas Carion"],
    "year": 2020, "arxiv": "2005.12872",
}  # fmt: skip
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
    "name": "DETR-R50", "system": "r50/table1", "task": "object detection", "release": "official", "load": LOAD,
    "input": INPUT, "output": "boxes", "form": "xyxy in pixels.", "source": LICENCES["source"],
}  # fmt: skip

EXAMPLES: Mapping[str, Mapping[str, list[Any]]] = {
    "Card": {
        "name": ["DETR"], "also_called": [["detection transformer"]], "checkpoints": [{"r50": CHECKPOINT}], "paper": ["carion2020"], "family": ["detection"], "tasks": [["object detection"]],
        "purpose": ["Finds all objects of an image at once, without anchors."],
        "concept": ["Each query attends to the image: $A = \\mathrm{softmax}(q k^\\top / \\sqrt{d})$."],
        "confused_with": [["CenterNet of Zhou et al. (Objects as Points), another model of the same name."]],
        "least_data": [LEAST_DATA], "hero": ["matching"], "pros": [[CLAIM]], "cons": [[CLAIM]],
        "use_when": [[{"when": "You want boxes without tuning suppression."}]],
        "avoid_when": [[{"when": "You need small objects.", "choose": "faster-rcnn"}]],
        "builds_on": [[RELATION]], "succeeded_by": [[RELATION]], "licences": [LICENCES], "tables": [{"table1": TABLE}],
        "variants": [{"r50": VARIANT}], "limitations": [[STATED]], "notes": [[STATED]],
        "references": [{"carion2020": REFERENCE}], "reviewed": ["2026-11-22"],
    },
    "Advice": {"when": ["You have fewer than ten thousand labelled images."], "choose": ["faster-rcnn"]},
    "Checkpoint": {
        "name": ["DETR-R50"], "system": ["r50/table1"], "task": ["object detection"], "release": ["official"],
        "gated": [True], "load": [LOAD], "input": [INPUT], "output": ["boxes", "features"],
        "form": ["boxes as xyxy in pixels of the picture, after post_process_object_detection"],
        "source": [LICENCES["source"]],
    },
    "Cite": {"reference": ["carion2020"], "where": ["Table 1", "README, section Model Zoo"]},
    "Claim": {
        "claim": ["Needs no non-maximum suppression."], "because": ["Each object is matched with exactly one prediction."],
        "reported": [REPORTED], "shown": [SHOWN], "source": [CITE], "corrected": [REVISION], "outdated": [REVISION],
    },
    "Conditions": {
        "dataset": ["COCO", "ImageNet-1k"], "split": ["val2017", "test-dev"], "metric": ["mean of three classes"],
        "input": ["224 x 224"], "schedule": ["500 epochs"], "pretraining": ["ImageNet-21k", "none"],
        "protocol": ["fine-tuned", "linear probe"], "framework": ["Cascade Mask R-CNN"], "tta": ["1 x 3 views"],
        "hardware": ["V100"], "precision": ["fp16"], "batch": ["1"], "nms": ["counted"],
    },
    "Count": {
        "build": ["timm/vit_base_patch16_224"], "input": ["224 x 224"],
        "differs": ["The source counts the classifier too."],
    },
    "Independent": {
        "by": ["Roboflow"], "how": ["TensorRT on a T4 at fp16, one evaluation for all models."], "when": ["2025-11"],
    },
    "Input": {
        "size": ["224 x 224", "shortest side 800, longest at most 1333"], "channels": ["RGB", "BGR"],
        "range": [[0, 1], [0, 255]], "mean": [[0.485, 0.456, 0.406]], "deviation": [[0.229, 0.224, 0.225]],
        "divisible_by": [32],
    },
    "Load": {
        "library": ["transformers", "timm"], "least": ["4.50"], "class": ["DetrForObjectDetection", "create_model"],
        "name": ["facebook/detr-resnet-50", "FasterRCNN_ResNet50_FPN_Weights.COCO_V1"],
    },
    "Licences": {
        "code": ["Apache-2.0", "LicenseRef-SAM"], "weights": ["Apache-2.0", "none"],
        "note": ["The weights are for research only."], "source": [LICENCES["source"]], "releases": [[RELEASE]],
    },
    "LeastData": {"images": [30], "what": ["Ahead of sliding windows on cell outlines."], "source": [CITE]},
    "Release": {
        "name": ["official", "timm"], "variants": [["r50"]], "code": ["Apache-2.0"], "weights": ["Apache-2.0", "none"],
        "data": [["ImageNet-1k", "COCO"]], "packages": [["torch"]], "source": [LICENCES["source"]],
    },
    "Reference": {
        "type": ["inproceedings"], "title": ["End-to-End Object Detection with Transformers"],
        "authors": [["Nicolas Carion", "Francisco Massa"]], "venue": ["ECCV 2020"], "year": [2020],
        "doi": ["10.1007/978-3-030-58452-8_13"], "arxiv": ["2005.12872"],
        "url": ["https://arxiv.org/abs/2005.12872"], "code": ["https://github.com/facebookresearch/detr"],
    },
    "Relation": {
        "name": ["Faster R-CNN"], "change": ["Replaces anchors by queries."], "card": ["faster-rcnn"],
        "reference": ["ren2015"],
    },
    "Reported": {
        "number": ["r50/AP_L", "r50/table1/AP_L"], "above": ["faster-rcnn/r50-fpn/AP_L", 42.0], "below": ["1.5 G"],
        "equals": ["41 M"], "within": [0.1], "times": [0.5], "despite": [["schedule"]], "licence": ["code"],
        "is": ["AGPL-3.0-only"],
    },
    "Revision": {
        "reason": ["The official code has had it since 2021."], "source": [CITE], "reported": [REPORTED],
    },
    "Row": {"where": ["row DETR R50"], "conditions": [{"schedule": "150 epochs"}], "note": ["The text says 42.1."]},
    "Shown": {
        "result": ["skip_dice_gap"], "above": [0, "other_result"], "below": [1.2], "between": [[0.9, 1.1]],
        "not_here": ["Needs images of several hundred pixels."],
    },
    "Stated": {"text": ["Small objects are harder for it."], "source": [CITE]},
    "Table": {
        "source": ["carion2020"], "where": ["Table 1"], "conditions": [{"dataset": "COCO", "split": "val2017"}],
        "note": ["The table says GFLOPS and means MACs."], "independent": [INDEPENDENT],
    },
    "Variant": {
        "name": ["DETR-R50"], "for_comparison": [True],
        "count": [{"build": "transformers/detr-resnet-50", "input": "800 x 1066"}],
        "numbers": [{"table1": {"AP": 42.0, "parameters": "41 M"}}],
    },
}  # fmt: skip
"""For each field of each part of a card, what one may write."""


def card_schema() -> str:
    """The JSON Schema of a card as text, with a description and examples for every field."""
    made = Card.model_json_schema(by_alias=True)
    made["title"] = "Model card"
    made["$defs"]["Quantity"]["description"] = "A number as it is printed: 42.0, 41 M, 15.4 G."
    made["$defs"]["Row"]["additionalProperties"]["description"] = "Metric of _vocabulary.yml: its value as printed."
    for part, name, field in fields(made):
        field["examples"] = EXAMPLES[part][name]
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}
    return json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each field of the schema: (part of the card, name, its schema)."""
    for part, form in {"Card": schema, **schema["$defs"]}.items():
        for name, field in form.get("properties", {}).items():
            yield part, name, field
