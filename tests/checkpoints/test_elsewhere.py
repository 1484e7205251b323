"""Snippets for libraries that are not installed here: each form runs on stand-ins that take what the library's functions take.

They take the arguments of mmdet 3.3.0 and 2, mmsegmentation 0, ultralytics 8.4.190, TotalSegmentator 2.18.0, rfdetr 1.11.2 and
rfdetr-plus 1.1.0, and of the sources of detectron2, Depth Anything 3 and SAM 3, by name and default.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from published import CHECKPOINTS, checkpoint

from scripts.checkpoints.elsewhere import MAKERS
from scripts.checkpoints.snippets import is_run_here, snippet

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch

SURE, UNSURE = 0.9, 0.1
BOXES = torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 6.0, 7.0, 8.0]])
SCORES = torch.tensor([SURE, UNSURE])


class Chosen(SimpleNamespace):
    """Tensors of instances that are taken together, as Instances and InstanceData are."""

    def __getitem__(self, kept: Any) -> Chosen:
        return Chosen(**{name: values[kept] for name, values in vars(self).items()})


class Zoo:
    """A model of detectron2: training mode at first, pictures of (3, H, W) in a list of dictionaries."""

    training = True

    def eval(self) -> Zoo:
        self.training = False
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Zoo:
        return self

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (given,) = batched_inputs
        assert not self.training
        assert given["image"].shape[0] == 3
        assert (given["height"], given["width"]) == (80, 120)
        found = Chosen(
            pred_boxes=BOXES, scores=SCORES, pred_classes=torch.tensor([0, 1]), pred_masks=torch.ones(2, 80, 120)
        )
        found.pred_keypoints = torch.ones(2, 17, 3)
        segments = [{"id": 1, "isthing": True, "category_id": 0}, {"id": 2, "isthing": False, "category_id": 1}]
        return [{"instances": found, "panoptic_seg": (torch.ones(80, 120), segments)}]


def get(config_path: str, trained: bool = False, device: str | None = None) -> Zoo:
    assert trained
    assert config_path.endswith((".yaml", ".py"))
    return Zoo()


def read_image(file_name: str, format: str | None = None) -> Any:
    assert format == "BGR"
    return np.zeros((80, 120, 3), dtype="u1")


class ResizeShortestEdge:
    def __init__(self, short_edge_length: int, max_size: int = sys.maxsize, sample_style: str = "range") -> None:
        assert (short_edge_length, max_size) == (800, 1333)

    def get_transform(self, image: Any) -> Any:
        return SimpleNamespace(apply_image=lambda image: image)


NAMES = SimpleNamespace(thing_classes=["cat", "dog"], stuff_classes=["things", "wall"])
CATALOGUE = {"coco_2017_val": NAMES, "coco_2017_val_panoptic_separated": NAMES}


def init_detector_2(config: str, checkpoint: str | None = None, device: str = "cuda:0") -> Any:
    assert str(checkpoint).startswith("https://")
    return SimpleNamespace(CLASSES=("cat", "dog"), cfg=config)


def init_detector_3(
    config: str, checkpoint: str | None = None, palette: str = "none", device: str = "cuda:0", cfg_options: Any = None
) -> Any:
    assert str(checkpoint).startswith("https://")
    return SimpleNamespace(dataset_meta={"classes": ("cat", "dog")}, cfg=config)


def inference_detector_2(model: Any, imgs: str) -> Any:
    """An array of boxes with scores for each class; beside the masks, if the model gives any."""
    boxes = [np.array([[1, 2, 3, 4, SURE], [1, 2, 3, 4, UNSURE]]), np.zeros((0, 5))]
    return (boxes, [[np.ones((80, 120))], []]) if "mask" in model.cfg or "cascade" in model.cfg else boxes


def inference_detector_3(model: Any, imgs: str, test_pipeline: Any = None, text_prompt: str | None = None) -> Any:
    return SimpleNamespace(pred_instances=Chosen(bboxes=BOXES, scores=SCORES, labels=torch.tensor([0, 1])))


def inference_segmentor(model: Any, imgs: str) -> list[Any]:
    return [np.array([[0, 0], [0, 1]])]


def totalsegmentator(
    input: str,
    output: str | None = None,
    ml: bool = False,
    fast: bool = False,
    task: str = "total",
    device: str = "gpu",
) -> None:
    assert ml
    assert task == "total"


def yolo(model: str = "yolo26n.pt", task: str | None = None, verbose: bool = False) -> Any:
    found = SimpleNamespace(
        names={0: "cat", 1: "dog"},
        boxes=SimpleNamespace(cls=torch.tensor([0.0]), conf=SCORES[:1], xyxy=BOXES[:1]),
        masks=Chosen(data=torch.ones(1, 80, 120)) if "-seg" in model else None,
        keypoints=SimpleNamespace(xy=torch.ones(1, 17, 2)),
        semantic_mask=SimpleNamespace(data=torch.tensor([[0, 1]])),
    )
    return lambda source=None, stream=False, **_: [found]


class RfDetr:
    def __init__(self, *, accept_platform_model_license: bool) -> None:
        assert accept_platform_model_license

    def predict(self, images: str, threshold: float = 0.5, shape: Any = None, **_: Any) -> Any:
        return SimpleNamespace(class_id=np.array([1]), confidence=np.array([SURE]), xyxy=BOXES[:1].numpy())


class DepthAnything3:
    @classmethod
    def from_pretrained(cls, name: str) -> DepthAnything3:
        return cls()

    def inference(self, image: list[str]) -> Any:
        return SimpleNamespace(depth=np.ones((1, 80, 120)))


class Sam3Processor:
    def __init__(self, model: object, resolution: int = 1008, device: str = "cuda") -> None: ...

    def set_image(self, image: Any, state: Any = None) -> dict[str, Any]:
        assert image.mode == "RGB"
        return {}

    def set_text_prompt(self, prompt: str, state: dict[str, Any]) -> dict[str, Any]:
        return {"masks": torch.ones(1, 1, 80, 120), "boxes": BOXES[:1], "scores": SCORES[:1]}


def modules(asked: Any) -> dict[str, dict[str, Any]]:
    """What the libraries hold, by the name of a module."""
    third = str(asked.load.least or "2").startswith("3")
    data = SimpleNamespace(
        detection_utils=SimpleNamespace(read_image=read_image),
        transforms=SimpleNamespace(ResizeShortestEdge=ResizeShortestEdge),
        MetadataCatalog=CATALOGUE,
    )
    return {
        "detectron2": {"data": data, "model_zoo": SimpleNamespace(get=get)},
        "mmdet": {},
        "mmdet.apis": {
            "init_detector": init_detector_3 if third else init_detector_2,
            "inference_detector": inference_detector_3 if third else inference_detector_2,
        },
        "mmseg": {},
        "mmseg.apis": {"init_segmentor": init_detector_2, "inference_segmentor": inference_segmentor},
        "mmcv_custom": {}, "mmdet_custom": {}, "mmseg_custom": {},
        "ultralytics": {"YOLO": yolo},
        "rfdetr": {}, "rfdetr.assets": {}, "rfdetr.assets.coco_classes": {"COCO_CLASSES": {1: "cat"}},
        "rfdetr_plus": {"RFDETRXLarge": RfDetr, "RFDETR2XLarge": RfDetr},
        "depth_anything_3": {}, "depth_anything_3.api": {"DepthAnything3": DepthAnything3},
        "sam3": {}, "sam3.model": {}, "sam3.model_builder": {"build_sam3_image_model": object},
        "sam3.model.sam3_image_processor": {"Sam3Processor": Sam3Processor},
        "totalsegmentator": {}, "totalsegmentator.python_api": {"totalsegmentator": totalsegmentator},
        "totalsegmentator.nifti_ext_header": {
            "load_multilabel_nifti": lambda img_path: (np.ones((2, 2, 2)), {1: "cat"})
        },
    }  # fmt: skip


ELSEWHERE = {id: each for id, each in CHECKPOINTS.items() if not is_run_here(each) and snippet(each)}


@pytest.mark.parametrize("id", ELSEWHERE)
def test_a_snippet_runs_on_what_takes_the_arguments_of_its_library(
    id: str, photograph: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ELSEWHERE[id]
    for name, holds in modules(asked).items():
        module = ModuleType(name)
        vars(module).update(holds)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(photograph.parent)
    exec(str(snippet(asked)), {})
    said = capsys.readouterr().out
    assert "cat" in said or asked.output in ("depth", "masks of a text", "keypoints")
    assert "dog" not in said or asked.output == "semantic map", "what is unsure is left out"


def test_what_fits_no_eight_lines_has_none() -> None:
    without = {
        each.load.class_ for each in CHECKPOINTS.values() if snippet(each) is None and each.load.class_ not in MAKERS
    }
    assert without == {"engine.DefaultPredictor", "config.instantiate", "nnet.py_factory.NetworkFactory"}
    hidden = [id for id, each in CHECKPOINTS.items() if snippet(each) is None and each.load.class_ in MAKERS]
    assert hidden == ["co-detr/vit-l", "co-detr/vit-l-inst"], "whose weights have no address of their own"


def test_a_licence_that_binds_who_uses_a_library_stands_in_its_snippet() -> None:
    for each in CHECKPOINTS.values():
        if each.load.library == "ultralytics":
            assert "AGPL-3.0" in str(snippet(each)).splitlines()[0]
    assert "# in a clone of a/b" in str(
        snippet(checkpoint("mmseg", "init_segmentor", "configs/a.py of a/b, https://c.org/d.pth", "semantic map"))
    )
