"""Models of clips: what the snippets print, as data, and as a sheet of frames for the eye."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from scripts.cards.releases import Checkpoint, Output
from scripts.checkpoints.found import Found, Prompt, Thing
from scripts.checkpoints.loading import load
from scripts.checkpoints.pictures import Picture, evenly, sheet, some
from scripts.checkpoints.runners import Runner, best, saying
from scripts.checkpoints.snippets import frames_of

if TYPE_CHECKING:
    import torch


def clip_runner(checkpoint: Checkpoint, picture: Picture, prompt: Prompt, device: str, random: bool) -> Runner:
    """Load a checkpoint with the frames of a clip laid out for it."""
    if random:
        import torch

        torch.manual_seed(0)
    processor, model, said = load(checkpoint, random)
    model = model.eval().requires_grad_(False).to(device)
    return saying(said, ON_A_CLIP[checkpoint.output](checkpoint, processor, model, picture, prompt))


def _inputs(checkpoint: Checkpoint, processor: Any, model: Any, picture: Picture) -> Any:
    """As many frames as the model takes, evenly over the clip."""
    frames = [picture.frames[n] for n in evenly(len(picture.frames), frames_of(checkpoint))]
    return processor(frames, return_tensors="pt").to(model.device)


def _classes(checkpoint: Checkpoint, processor: Any, model: Any, picture: Picture, prompt: Prompt) -> Runner:
    inputs, names = _inputs(checkpoint, processor, model, picture), model.config.id2label
    return Runner(lambda: model(**inputs), lambda out: best(out.logits[0].softmax(-1), lambda n: str(names.get(n, n))))


def _features(checkpoint: Checkpoint, processor: Any, model: Any, picture: Picture, prompt: Prompt) -> Runner:
    inputs = _inputs(checkpoint, processor, model, picture)
    height, width = (side // model.config.patch_size for side in inputs["pixel_values_videos"].shape[-2:])

    def read(tokens: torch.Tensor) -> Found:
        steps = tokens[0].reshape(-1, height, width, tokens.shape[-1]).float().cpu().numpy()
        return Found(
            features=sheet(some(list(steps))),
            remark=f"{len(steps)} steps of {height} x {width} patches, in their order",
        )

    if hasattr(model, "get_vision_features"):
        return Runner(lambda: model.get_vision_features(**inputs), read)
    return Runner(lambda: model(**inputs).last_hidden_state, read)


def _masks(checkpoint: Checkpoint, processor: Any, model: Any, picture: Picture, prompt: Prompt) -> Runner:
    """The object at a click, a box or the middle of the first frame, through the clip."""
    width, height = picture.image.size
    asked: dict[str, object] = (
        {"input_boxes": [[list(prompt.box)]]}
        if prompt.box
        else {"input_points": [[[list(prompt.point or (width / 2, height / 2))]]], "input_labels": [[[1]]]}
    )

    def forward() -> list[Any]:
        session = processor.init_video_session(list(picture.frames), inference_device=model.device)
        processor.add_inputs_to_inference_session(session, frame_idx=0, obj_ids=1, **asked)
        found = model.propagate_in_video_iterator(session, start_frame_idx=0)
        return [processor.post_process_masks([each.pred_masks], [[height, width]])[0] for each in found]

    def read(masks: Sequence[torch.Tensor]) -> Found:
        seen = [mask[0, 0].cpu().numpy() > 0 for mask in masks]
        share = sum(bool(mask.any()) for mask in seen)
        return Found((Thing("object 1", mask=sheet(some(seen))),), remark=f"seen in {share} of {len(seen)} frames")

    return Runner(forward, read)


ON_A_CLIP: dict[Output, Callable[[Checkpoint, Any, Any, Picture, Prompt], Runner]] = {
    "classes of a clip": _classes,
    "features of a clip": _features,
    "masks of a clip": _masks,
}
