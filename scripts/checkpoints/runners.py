"""Checkpoints as functions of a picture, by library: what the snippets print, as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scripts.cards.releases import Checkpoint, Output
from scripts.checkpoints.found import Found, Prompt, Thing
from scripts.checkpoints.loading import load
from scripts.checkpoints.snippets import FOLDERS
from scripts.checkpoints.ways import Way

if TYPE_CHECKING:
    import torch
    from PIL import Image

THRESHOLD = 0.5
TEXT_THRESHOLD = 0.3
WORD_THRESHOLD = 0.25
"""From which score on a word of the text belongs to the name of a box."""
MOST_THINGS = 40
BEST = 5
TEXTS = ("a cat", "a person")
"""What is looked for where the reader asks for nothing."""

ON_A_PICTURE: frozenset[Output] = frozenset({
    "classes", "boxes", "boxes and masks", "semantic map", "panoptic map", "masks of a prompt", "features", "depth",
    "similarity to texts", "boxes of a text", "masks of a text",
})  # fmt: skip


@dataclass(frozen=True)
class Runner:
    """A loaded model with a picture laid out for it."""

    forward: Callable[[], Any]
    """One pass; this is what is timed."""
    read: Callable[[Any], Found]
    """What came out, as data."""
    whole: bool = False
    """Whether a pass loads the weights too: it is made once, and not timed by itself."""


def runner(checkpoint: Checkpoint, image: Image.Image, prompt: Prompt, device: str, random: bool) -> Runner:
    """Load a checkpoint; with `random`, its architecture with weights of chance, the same each time."""
    if random:
        import torch

        torch.manual_seed(0)
    return LIBRARIES[checkpoint.load.library](checkpoint, image, prompt, device, random)


def _transformers(checkpoint: Checkpoint, image: Image.Image, prompt: Prompt, device: str, random: bool) -> Runner:
    processor, model, said = load(checkpoint, random)
    model = model.eval().requires_grad_(False).to(device)
    inputs = processor(images=image, return_tensors="pt", **_asked(checkpoint, image, prompt)).to(device)
    reading = Reading(checkpoint, processor, model, inputs, image.size[::-1], _texts(prompt), image)
    return saying(said, Runner(lambda: model(**inputs), READ[checkpoint.output](reading)))


def saying(said: str, runner: Runner) -> Runner:
    """The same, with a remark more on what it finds."""

    def read(outputs: Any) -> Found:
        found = runner.read(outputs)
        return replace(found, remark="; ".join(filter(None, [found.remark, said])))

    return replace(runner, read=read) if said else runner


def _texts(prompt: Prompt) -> tuple[str, ...]:
    return prompt.texts or TEXTS


def _asked(checkpoint: Checkpoint, image: Image.Image, prompt: Prompt) -> dict[str, object]:
    """What a processor takes beside the picture."""
    match checkpoint.output:
        case "masks of a prompt" if prompt.box:
            return {"input_boxes": [[list(prompt.box)]]}
        case "masks of a prompt":
            point = list(prompt.point or (image.width / 2, image.height / 2))
            return {"input_points": [[point]] if Way.PADDED_INPUT.of(checkpoint) else [[[point]]]}
        case "masks of a text":
            return {"text": _texts(prompt)[0]}
        case "boxes of a text":
            return {"text": [list(_texts(prompt))]}
        case "similarity to texts":
            padded = Way.SIGMOID.of(checkpoint)
            padding = {"padding": "max_length", "max_length": 64} if padded else {"padding": True}
            return {"text": list(_texts(prompt)), **padding}
        case _:
            return {}


@dataclass(frozen=True)
class Reading:
    """What it takes to read a model's output."""

    checkpoint: Checkpoint
    processor: Any
    model: Any
    inputs: Any
    size: tuple[int, int]
    """Height and width of the picture."""
    texts: tuple[str, ...]
    image: Image.Image

    def name(self, number: int) -> str:
        """Of a class."""
        return str(self.model.config.id2label.get(int(number), int(number)))


Read = Callable[[Any], Found]


def best(scores: torch.Tensor, name: Callable[[int], str]) -> Found:
    """The likeliest classes."""
    top = scores.float().cpu().topk(min(BEST, len(scores)))
    return Found(tuple(Thing(name(n), p) for n, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)))


def _classes(r: Reading) -> Read:
    return lambda outputs: best(outputs.logits[0].softmax(-1), r.name)


def _boxes(r: Reading) -> Read:
    def read(outputs: Any) -> Found:
        found = r.processor.post_process_object_detection(outputs, threshold=THRESHOLD, target_sizes=[r.size])[0]
        return things([r.name(n) for n in found["labels"].tolist()], found["scores"], found["boxes"])

    return read


def things(
    names: Sequence[str], scores: torch.Tensor, boxes: torch.Tensor | None = None, masks: torch.Tensor | None = None
) -> Found:
    """The surest things, at most so many as can be told apart on a picture."""
    order = scores.argsort(descending=True).tolist()
    kept = tuple(
        Thing(
            names[n],
            scores[n].item(),
            tuple(boxes[n].tolist()) if boxes is not None else None,
            (masks[n] > 0).cpu().numpy() if masks is not None else None,
        )
        for n in order[:MOST_THINGS]
    )
    left = len(order) - len(kept)
    return Found(kept, remark=f"{left} less sure ones are left out" if left else "")


def _segments(kind: str) -> Callable[[Reading], Read]:
    def reading(r: Reading) -> Read:
        def read(outputs: Any) -> Found:
            post = getattr(r.processor, f"post_process_{kind}_segmentation")
            found = post(outputs, threshold=THRESHOLD, target_sizes=[r.size])[0]
            numbers, segments = found["segmentation"], found["segments_info"]
            ordered = sorted(segments, key=lambda each: -each["score"])[:MOST_THINGS]
            return Found(
                tuple(
                    Thing(r.name(s["label_id"]), s["score"], mask=(numbers == s["id"]).cpu().numpy()) for s in ordered
                )
            )

        return read

    return reading


def _semantic(r: Reading) -> Read:
    def read(outputs: Any) -> Found:
        classes = r.processor.post_process_semantic_segmentation(outputs, target_sizes=[r.size])[0].cpu()
        return by_class(classes, r.name)

    return read


def by_class(classes: torch.Tensor, name: Callable[[int], str]) -> Found:
    """A thing for each class of a map, the largest first."""
    masks = [(n, (classes == n).numpy()) for n in sorted(set(classes.flatten().tolist()))]
    masks.sort(key=lambda each: -int(each[1].sum()))
    return Found(tuple(Thing(name(n), mask=mask) for n, mask in masks[:MOST_THINGS]))


def _masks_of_a_prompt(r: Reading) -> Read:
    def read(outputs: Any) -> Found:
        sizes = [r.inputs["original_sizes"].cpu()]
        if "reshaped_input_sizes" in r.inputs:
            sizes.append(r.inputs["reshaped_input_sizes"].cpu())
        masks = r.processor.post_process_masks(outputs.pred_masks.cpu(), *sizes)[0].flatten(0, -3)
        scores = outputs.iou_scores.flatten().cpu()
        best = int(scores.argmax())
        found = things(["mask"], scores[best : best + 1], masks=masks[best : best + 1])
        return Found(found.things, remark=f"the one of {len(scores)} masks with the highest predicted IoU")

    return read


def _masks_of_a_text(r: Reading) -> Read:
    def read(outputs: Any) -> Found:
        post = r.processor.post_process_instance_segmentation
        found = post(outputs, threshold=THRESHOLD, target_sizes=[r.size])[0]
        names = [r.texts[0]] * len(found["scores"])
        all_found = things(names, found["scores"], found["boxes"], found["masks"])
        only = f"it takes one phrase: {r.texts[0]}" if len(r.texts) > 1 else ""
        return Found(all_found.things, remark="; ".join(filter(None, [all_found.remark, only])))

    return read


def _boxes_of_a_text(r: Reading) -> Read:
    def read(outputs: Any) -> Found:
        post = r.processor.post_process_grounded_object_detection
        found = post(outputs, threshold=TEXT_THRESHOLD, text_threshold=WORD_THRESHOLD, target_sizes=[r.size])[0]
        return things([text or "unnamed" for text in found["text_labels"]], found["scores"], found["boxes"])

    return read


def _similarity(r: Reading) -> Read:
    def read(outputs: Any) -> Found:
        logits = outputs.logits_per_image[0]
        scores = (logits.sigmoid() if Way.SIGMOID.of(r.checkpoint) else logits.softmax(-1)).tolist()
        return Found(
            tuple(Thing(text, p) for text, p in sorted(zip(r.texts, scores, strict=True), key=lambda t: -t[1]))
        )

    return read


def _depth(r: Reading) -> Read:
    def read(outputs: Any) -> Found:
        found = r.processor.post_process_depth_estimation(outputs, target_sizes=[r.size])[0]["predicted_depth"]
        return Found(depth=found.float().cpu().numpy())

    return read


def _features(r: Reading) -> Read:
    def read(outputs: Any) -> Found:
        height, width = r.inputs["pixel_values"].shape[-2:]
        return patches(outputs.last_hidden_state[0], height, width)

    return read


def patches(tokens: torch.Tensor, height: int, width: int) -> Found:
    """The tokens that lie on the input's grid; those before them (class token, registers, a mean) are left out."""
    if tokens.ndim == 3:  # channels x rows x columns
        return Found(features=tokens.permute(1, 2, 0).float().cpu().numpy())
    for side in (8, 14, 16, 32):
        rows, columns = height // side, width // side
        before = len(tokens) - rows * columns
        if 0 <= before <= 16:
            grid = tokens[before:].reshape(rows, columns, -1)
            others = f"{before} other token{'' if before == 1 else 's'}" if before else "no other tokens"
            return Found(features=grid.float().cpu().numpy(), remark=f"{rows} x {columns} patches, {others}")
    return Found(remark=f"{tuple(tokens.shape)}: tokens that lie on no grid")


READ: dict[Output, Callable[[Reading], Read]] = {
    "classes": _classes,
    "boxes": _boxes,
    "boxes and masks": _segments("instance"),
    "panoptic map": _segments("panoptic"),
    "semantic map": _semantic,
    "masks of a prompt": _masks_of_a_prompt,
    "masks of a text": _masks_of_a_text,
    "boxes of a text": _boxes_of_a_text,
    "similarity to texts": _similarity,
    "depth": _depth,
    "features": _features,
}


def _timm(checkpoint: Checkpoint, image: Image.Image, prompt: Prompt, device: str, random: bool) -> Runner:
    import timm

    model = timm.create_model(checkpoint.load.name, pretrained=not random).eval().requires_grad_(False).to(device)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    batch = transform(image).unsqueeze(0).to(device)
    if checkpoint.output == "features":
        return Runner(lambda: model.forward_features(batch), lambda out: patches(out[0], *batch.shape[-2:]))
    subset = timm.data.infer_imagenet_subset(model)
    name = timm.data.ImageNetInfo(subset).index_to_description if subset else str
    return Runner(lambda: model(batch), lambda out: best(out[0].softmax(-1), name))


def _torchvision(checkpoint: Checkpoint, image: Image.Image, prompt: Prompt, device: str, random: bool) -> Runner:
    import importlib

    models = importlib.import_module(FOLDERS[checkpoint.output])
    enumeration, _, member = checkpoint.load.name.partition(".")
    weights = getattr(models, enumeration)[member]
    names = weights.meta["categories"]
    options = {"weights_backbone": None, "num_classes": len(names)} if checkpoint.output != "classes" else {}
    make = getattr(models, checkpoint.load.class_)
    model = (make(weights=None, **options) if random else make(weights=weights)).eval().requires_grad_(False).to(device)
    picture = weights.transforms()(image).to(device)
    if checkpoint.output == "classes":
        return Runner(lambda: model(picture[None]), lambda out: best(out[0].softmax(-1), names.__getitem__))
    if checkpoint.output == "semantic map":
        return Runner(
            lambda: model(picture[None])["out"], lambda out: by_class(_enlarged(out, image), names.__getitem__)
        )
    return Runner(lambda: model([picture]), lambda out: _instances(out[0], names))


def _enlarged(scores: torch.Tensor, image: Image.Image) -> torch.Tensor:
    """The class of each pixel of the picture: torchvision's maps are of the size of its input."""
    import torch

    resize = torch.nn.functional.interpolate
    return resize(scores, (image.height, image.width), mode="bilinear", align_corners=False)[0].argmax(0).cpu()


def _instances(found: dict[str, torch.Tensor], names: Sequence[str]) -> Found:
    sure = found["scores"] > THRESHOLD
    labels = [names[n] for n in found["labels"][sure].tolist()]
    masks = found["masks"][sure, 0] - 0.5 if "masks" in found else None
    return things(labels, found["scores"][sure], found["boxes"][sure], masks)


LIBRARIES: dict[str, Callable[[Checkpoint, Image.Image, Prompt, str, bool], Runner]] = {
    "transformers": _transformers,
    "timm": _timm,
    "torchvision": _torchvision,
}
