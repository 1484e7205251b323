"""At most eight lines of Python that load a checkpoint, run it on a photograph and print what it found, with names.

A snippet is made of what the card says of the checkpoint: library, class, name and output. Pages show it; nothing here runs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from scripts.cards.releases import Checkpoint, Output
from scripts.checkpoints.elsewhere import MAKERS, quoted
from scripts.checkpoints.ways import Way

MOST_LINES = 8

SIZE = "[picture.size[::-1]]"
"""Height and width of the picture, as the processors of transformers want them."""

CENTRE = "[picture.width / 2, picture.height / 2]"

UPRIGHT = 'picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB")'
"""As a camera held it, without transparency; `load_image` of transformers does the same."""

FRAMES = 'load_image(path) for path in sorted(glob("frames/*.jpg"))'

CLIP_LENGTH = 16
"""Frames that are shown to a model of clips whose card names no number."""

FOUND = "{call}(outputs, threshold={threshold}, target_sizes=" + SIZE + ")[0]"


def snippet(checkpoint: Checkpoint) -> str | None:
    """The lines for a checkpoint; None for a library or an output that there are none for."""
    if is_run_here(checkpoint):
        lines = LIBRARIES[checkpoint.load.library](checkpoint) if checkpoint.load.class_.isidentifier() else None
    else:
        make = MAKERS.get(checkpoint.load.class_)
        lines = make(checkpoint) if make else None
    return "\n".join(lines) if lines else None


def is_run_here(checkpoint: Checkpoint) -> bool:
    """Whether its library is among those that this project installs, so that a test runs what is printed."""
    return checkpoint.load.library in LIBRARIES


def _transformers(checkpoint: Checkpoint) -> list[str] | None:
    if checkpoint.output in CLIPS:
        return CLIPS[checkpoint.output](checkpoint)
    if checkpoint.output not in ON_A_PICTURE:
        return None
    processor = processor_of(checkpoint)
    name = quoted(checkpoint.load.name)
    trusted = ", trust_remote_code=True" if brings_code(checkpoint) else ""
    return [
        f"from transformers import {processor}, {checkpoint.load.class_}",
        "from transformers.image_utils import load_image",
        'picture = load_image("picture.jpg")',
        f"processor = {processor}.from_pretrained({name})",
        f"model = {checkpoint.load.class_}.from_pretrained({name}{trusted}).requires_grad_(False)",
        *ON_A_PICTURE[checkpoint.output](checkpoint),
    ]


def brings_code(checkpoint: Checkpoint) -> bool:
    """Whether the code of a model comes with its weights: the library has no class of it, only one that loads any."""
    return checkpoint.load.library == "transformers" and checkpoint.load.class_.startswith("AutoModel")


def processor_of(checkpoint: Checkpoint) -> str:
    """The class of transformers that prepares the input of a checkpoint."""
    if Way.NAMED_PROCESSOR.of(checkpoint):
        return checkpoint.load.class_.removesuffix("Model") + "Processor"
    if checkpoint.output in ("classes of a clip", "features of a clip"):
        return "AutoVideoProcessor"
    return "AutoProcessor" if checkpoint.output in ("boxes of a text", "similarity to texts") else "AutoImageProcessor"


RUN = 'outputs = model(**processor(picture, return_tensors="pt"))'


def _classes(_: Checkpoint) -> list[str]:
    return [
        RUN,
        "best = outputs.logits[0].softmax(-1).topk(5)",
        "print([(model.config.id2label[n], p) for n, p in zip(best.indices.tolist(), best.values.tolist())])",
    ]


def _boxes(_: Checkpoint) -> list[str]:
    return [
        RUN,
        "found = " + FOUND.format(call="processor.post_process_object_detection", threshold=0.5),
        'print([model.config.id2label[n] for n in found["labels"].tolist()], found["scores"], found["boxes"])',
    ]


def _segments(kind: str) -> Callable[[Checkpoint], list[str]]:
    """Instances or a panoptic map: numbers of segments by pixel, and each segment's class and score."""

    def lines(_: Checkpoint) -> list[str]:
        return [
            RUN,
            "found = " + FOUND.format(call=f"processor.post_process_{kind}_segmentation", threshold=0.5),
            'print([(model.config.id2label[s["label_id"]], s["score"]) for s in found["segments_info"]], '
            'found["segmentation"].shape)',
        ]

    return lines


def _semantic(_: Checkpoint) -> list[str]:
    return [
        RUN,
        f"classes = processor.post_process_semantic_segmentation(outputs, target_sizes={SIZE})[0]",
        "print({model.config.id2label[n]: (classes == n).float().mean().item() for n in classes.unique().tolist()})",
    ]


def _features(_: Checkpoint) -> list[str]:
    return [RUN, "print({name: tuple(values.shape) for name, values in outputs.items()})"]


def _depth(_: Checkpoint) -> list[str]:
    return [
        RUN,
        f'depth = processor.post_process_depth_estimation(outputs, target_sizes={SIZE})[0]["predicted_depth"]',
        'print("depth", tuple(depth.shape), "from", depth.min().item(), "to", depth.max().item())',
    ]


def _masks_of_a_prompt(checkpoint: Checkpoint) -> list[str]:
    if Way.PADDED_INPUT.of(checkpoint):
        sizes = 'inputs["original_sizes"], inputs["reshaped_input_sizes"]'
        run = f'model(**(inputs := processor(picture, input_points=[[{CENTRE}]], return_tensors="pt")))'
    else:
        sizes, run = SIZE, f'model(**processor(picture, input_points=[[[{CENTRE}]]], return_tensors="pt"))'
    return [
        f"outputs = {run}",
        f"masks = processor.post_process_masks(outputs.pred_masks, {sizes})[0]",
        'print("masks", tuple(masks.shape), "predicted IoU", outputs.iou_scores.tolist())',
    ]


def _masks_of_a_text(_: Checkpoint) -> list[str]:
    return [
        'outputs = model(**processor(picture, text="cat", return_tensors="pt"))',
        "found = " + FOUND.format(call="processor.post_process_instance_segmentation", threshold=0.5),
        'print("cat", found["scores"].tolist(), found["boxes"].tolist(), "masks", tuple(found["masks"].shape))',
    ]


def _boxes_of_a_text(_: Checkpoint) -> list[str]:
    return [
        'outputs = model(**processor(picture, text=[["a cat", "a person"]], return_tensors="pt"))',
        "found = " + FOUND.format(call="processor.post_process_grounded_object_detection", threshold=0.3),
        'print(found["text_labels"], found["scores"], found["boxes"])',
    ]


def _similarity(checkpoint: Checkpoint) -> list[str]:
    sigmoid = Way.SIGMOID.of(checkpoint)
    padding = 'padding="max_length", max_length=64' if sigmoid else "padding=True"
    return [
        'texts = ["a photo of a cat", "a photo of a person"]',
        f'outputs = model(**processor(text=texts, images=picture, {padding}, return_tensors="pt"))',
        f"print(dict(zip(texts, outputs.logits_per_image[0].{'sigmoid()' if sigmoid else 'softmax(-1)'}.tolist())))",
    ]


ON_A_PICTURE: dict[Output, Callable[[Checkpoint], list[str]]] = {
    "classes": _classes,
    "boxes": _boxes,
    "boxes and masks": _segments("instance"),
    "panoptic map": _segments("panoptic"),
    "semantic map": _semantic,
    "features": _features,
    "depth": _depth,
    "masks of a prompt": _masks_of_a_prompt,
    "masks of a text": _masks_of_a_text,
    "boxes of a text": _boxes_of_a_text,
    "similarity to texts": _similarity,
}


def _head_of_a_clip(checkpoint: Checkpoint) -> list[str]:
    processor, model = processor_of(checkpoint), checkpoint.load.class_
    name = quoted(checkpoint.load.name)
    return [
        "from glob import glob",
        f"from transformers import {processor}, {model}",
        "from transformers.image_utils import load_image",
        f"processor = {processor}.from_pretrained({name})",
        f"model = {model}.from_pretrained({name}).requires_grad_(False)",
    ]


def frames_of(checkpoint: Checkpoint) -> int:
    """How many frames a model of clips is shown: as its input says, `16 x 256 x 256` or `16 frames of 256 x 256`."""
    first = re.match(r"(\d+) (?:x \d+ x \d+|frames)", checkpoint.input.size)
    return int(first[1]) if first else CLIP_LENGTH


def _classes_of_a_clip(checkpoint: Checkpoint) -> list[str]:
    return [
        *_head_of_a_clip(checkpoint),
        f"frames = [{FRAMES}][:{frames_of(checkpoint)}]",
        'best = model(**processor(frames, return_tensors="pt")).logits[0].softmax(-1).topk(5)',
        "print([(model.config.id2label[n], p) for n, p in zip(best.indices.tolist(), best.values.tolist())])",
    ]


def _features_of_a_clip(checkpoint: Checkpoint) -> list[str]:
    inputs = 'processor(frames, return_tensors="pt")'
    own = f"model.get_vision_features(**{inputs})"
    return [
        *_head_of_a_clip(checkpoint),
        f"frames = [{FRAMES}][:{frames_of(checkpoint)}]",
        f"features = {own if Way.OWN_FEATURES.of(checkpoint) else f'model(**{inputs}).last_hidden_state'}",
        'print("features", tuple(features.shape))',
    ]


def _masks_of_a_clip(checkpoint: Checkpoint) -> list[str]:
    by_text = Way.TEXT_IN_A_CLIP.of(checkpoint)
    if by_text:
        prompt = 'processor.add_text_prompt(session, "person")'
        masks = 'processor.postprocess_outputs(session, found)["masks"]'
    else:
        prompt = (
            "processor.add_inputs_to_inference_session(session, frame_idx=0, obj_ids=1, "
            "input_points=[[[[200, 150]]]], input_labels=[[[1]]])"
        )
        masks = "processor.post_process_masks([found.pred_masks], [[session.video_height, session.video_width]])[0]"
    name = quoted(checkpoint.load.name)
    return [
        "import glob",
        "import transformers",
        f"processor = transformers.{processor_of(checkpoint)}.from_pretrained({name})",
        f"model = transformers.{checkpoint.load.class_}.from_pretrained({name}).requires_grad_(False)",
        "session = processor.init_video_session([*map(transformers.image_utils.load_image, "
        'sorted(glob.glob("frames/*.jpg")))])',
        prompt,
        f"for found in model.propagate_in_video_iterator(session{'' if by_text else ', start_frame_idx=0'}):",
        f"    print(found.frame_idx, tuple({masks}.shape))",
    ]


CLIPS: dict[Output, Callable[[Checkpoint], list[str]]] = {
    "classes of a clip": _classes_of_a_clip,
    "features of a clip": _features_of_a_clip,
    "masks of a clip": _masks_of_a_clip,
}


def _timm(checkpoint: Checkpoint) -> list[str] | None:
    if checkpoint.output not in ("classes", "features"):
        return None
    head = [
        "import timm",
        "from PIL import Image, ImageOps",
        UPRIGHT,
        f"model = timm.create_model({quoted(checkpoint.load.name)}, pretrained=True).eval().requires_grad_(False)",
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
    ]
    if checkpoint.output == "features":
        return [
            *head,
            "features = model.forward_features(transform(picture).unsqueeze(0))",
            'print("features", tuple(features.shape), "pooled", tuple(model.forward_head(features, pre_logits=True).shape))',
        ]
    return [
        *head,
        "best = model(transform(picture).unsqueeze(0))[0].softmax(-1).topk(5)",
        "names = timm.data.ImageNetInfo(timm.data.infer_imagenet_subset(model))",
        "print([(names.index_to_description(n), p) for n, p in zip(best.indices.tolist(), best.values.tolist())])",
    ]


TORCHVISION = re.compile(r"[A-Za-z]\w*\.\w+")
"""A member of an enumeration of weights: ConvNeXt_Tiny_Weights.IMAGENET1K_V1."""

FOLDERS: dict[Output, str] = {
    "classes": "torchvision.models",
    "boxes": "torchvision.models.detection",
    "boxes and masks": "torchvision.models.detection",
    "keypoints": "torchvision.models.detection",
    "semantic map": "torchvision.models.segmentation",
}


def _torchvision(checkpoint: Checkpoint) -> list[str] | None:
    name = checkpoint.load.name
    if not TORCHVISION.fullmatch(name) or checkpoint.output not in FOLDERS:
        return None
    return [
        "from PIL import Image, ImageOps",
        f"from {FOLDERS[checkpoint.output]} import {name.partition('.')[0]}, {checkpoint.load.class_}",
        UPRIGHT,
        f"weights = {name}",
        f"model = {checkpoint.load.class_}(weights=weights).eval().requires_grad_(False)",
        *TORCHVISION_ENDS[checkpoint.output],
    ]


INSTANCES = 'for n, p, box in zip(found["labels"], found["scores"], found["boxes"]) if p > 0.5'

NAMED = 'weights.meta["categories"]'

TORCHVISION_ENDS: dict[Output, tuple[str, ...]] = {
    "classes": (
        "best = model(weights.transforms()(picture).unsqueeze(0))[0].softmax(-1).topk(5)",
        f"print([({NAMED}[n], p) for n, p in zip(best.indices.tolist(), best.values.tolist())])",
    ),
    "boxes": (
        "found = model([weights.transforms()(picture)])[0]",
        f"print([({NAMED}[n], p.item(), box.tolist()) {INSTANCES}])",
    ),
    "boxes and masks": (
        "found = model([weights.transforms()(picture)])[0]",
        f"print([({NAMED}[n], p.item(), box.tolist()) {INSTANCES}])",
        'print("masks", tuple((found["masks"] > 0.5).shape))',
    ),
    "keypoints": (
        "found = model([weights.transforms()(picture)])[0]",
        'print(weights.meta["keypoint_names"], found["keypoints"][found["scores"] > 0.5].tolist())',
    ),
    "semantic map": (
        'classes = model(weights.transforms()(picture).unsqueeze(0))["out"][0].argmax(0)',
        f"print({{{NAMED}[n]: (classes == n).float().mean().item() for n in classes.unique().tolist()}})",
    ),
}


def _monai(checkpoint: Checkpoint) -> list[str] | None:
    """A bundle of MONAI brings its own reading and preprocessing of volumes, and writes a map of labels for each."""
    if checkpoint.output != "labels of a volume":
        return None
    name, folder = quoted(checkpoint.load.name), f"bundles/{checkpoint.load.name}"
    return [
        "from glob import glob",
        "from monai.bundle import ConfigWorkflow, download",
        f'download(name={name}, bundle_dir="bundles")',
        f'places = {{"bundle_root": {quoted(folder)}, "datalist": ["ct.nii.gz"], "output_dir": "labels"}}',
        f'bundle = ConfigWorkflow({quoted(folder + "/configs/inference.json")}, workflow_type="infer", **places)',
        "bundle.initialize()",
        "bundle.run()",
        'print(glob("labels/**/*.nii.gz", recursive=True))',
    ]


LIBRARIES: dict[str, Callable[[Checkpoint], list[str] | None]] = {
    "transformers": _transformers,
    "timm": _timm,
    "torchvision": _torchvision,
    "monai": _monai,
}
