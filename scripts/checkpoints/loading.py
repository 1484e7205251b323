"""Models of transformers with what prepares their input: published, or with weights of chance."""

from __future__ import annotations

import inspect
from typing import Any

from scripts.cards.releases import Checkpoint
from scripts.checkpoints.snippets import processor_of

Loaded = tuple[Any, Any, str]
"""What prepares the input, the model, and what has to be said of them."""

PREPARED_LIKE = {
    "DFineConfig": "RTDetrImageProcessor",
    "RTDetrV2Config": "RTDetrImageProcessor",
    "DINOv3ConvNextConfig": "DINOv3ViTImageProcessor",
}
"""By the configuration of a model that the library knows no processor of its own for."""


def load(checkpoint: Checkpoint, random: bool) -> Loaded:
    """A checkpoint, or its architecture with random weights: to test an installation, the library's defaults will do.

    Raises:
        OSError, ValueError: what it takes is neither on this machine nor to be had.
    """
    import transformers

    name, class_ = checkpoint.load.name, getattr(transformers, checkpoint.load.class_)
    prepares = getattr(transformers, processor_of(checkpoint))
    if not random:
        return prepares.from_pretrained(name), class_.from_pretrained(name), ""
    try:
        return prepares.from_pretrained(name), class_(class_.config_class.from_pretrained(name)), ""
    except (OSError, ValueError):
        said = f"the library's default configuration: that of {name} cannot be had"
    return _default_processor(prepares, class_.config_class), class_(class_.config_class()), said


def _default_processor(prepares: Any, configuration: Any) -> Any:
    """Of its parts as they are without a file; raises ValueError for a tokenizer, whose words are on the hub alone."""
    parts = list(inspect.signature(prepares.__init__).parameters)
    if prepares.__name__ == "AutoProcessor" or "tokenizer" in parts:
        raise ValueError(
            "reads a text, and its tokenizer is on the hub alone; random weights do not spare that download"
        )
    if prepares.__name__ == "AutoImageProcessor":
        return _default_part("image_processor", configuration)
    if prepares.__name__ == "AutoVideoProcessor":
        return _default_part("video_processor", configuration)
    return prepares(**{part: _default_part(part, configuration) for part in parts if part.endswith("_processor")})


def _default_part(part: str, configuration: Any) -> Any:
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING

    if configuration.__name__ in PREPARED_LIKE:
        return getattr(transformers, PREPARED_LIKE[configuration.__name__])()
    known = IMAGE_PROCESSOR_MAPPING if part == "image_processor" else VIDEO_PROCESSOR_MAPPING
    return known[configuration]["torchvision"]()
