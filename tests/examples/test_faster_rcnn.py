"""Faster R-CNN's idea and its rivals: both stages and their losses, anchors that change in one thing, suppression."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lab import detectors, rcnn
from lab.options import Settings
from lab.training import count_parameters

faster = importlib.import_module("faster-rcnn")
claims = importlib.import_module("claims.faster-rcnn")
SMOKE = detectors.BENCHMARKS["smoke"]


class Asked:
    """The part of a run that names its preset."""

    def __init__(self, preset: str) -> None:
        self.preset, self.device = preset, torch.device("cpu")


def a_model(preset: str = "smoke") -> Any:
    torch.manual_seed(0)
    return faster.FasterRCNN(faster.PRESETS[preset], SMOKE)


def test_a_scene_has_finite_losses_that_reach_every_parameter() -> None:
    scenes = detectors.scenes_of(SMOKE, "train", 0)[:4]
    for model, loss in ((a_model(), faster.loss_of), (claims.build(Asked("smoke"), "dense"), claims.dense_loss)):
        value = loss(model, scenes)
        value.backward()
        assert torch.isfinite(value)
        assert all(each.grad is not None for each in model.parameters())


def test_a_scene_without_objects_pays_for_classes_only() -> None:
    scenes = detectors.scenes_of(SMOKE, "train", 0)[:2]
    empty = rcnn.Targets(torch.tensor(rcnn.EMPTY).expand(2, 1, 4), torch.full((2, 1), -1))
    model = a_model()
    features = model.backbone(scenes.images)
    logits, offsets = model.rpn(features)
    near, far = (faster.rpn_loss(logits, each, model.anchors, empty) for each in (offsets, offsets + 5))
    torch.manual_seed(0)
    assert near.isfinite()
    assert (far - near).abs() < 0.2  # only the sample differs
    assert faster.head_loss(model, features, model.proposals(logits, offsets), empty).isfinite()


def test_a_training_step_runs_in_half_precision() -> None:
    scenes, model = detectors.scenes_of(SMOKE, "train", 0)[:4], a_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = faster.loss_of(model, scenes)
    loss.backward()
    assert loss.isfinite()


def test_a_batch_gives_what_its_images_give_alone() -> None:
    model, images = a_model().eval(), torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        both, alone = faster.detect(model, images), [faster.detect(model, each[None])[0] for each in images]
    for a, b in zip(both, alone, strict=True):
        torch.testing.assert_close(a["boxes"], b["boxes"], atol=1e-3, rtol=1e-3)


def test_without_suppression_there_are_at_least_as_many_boxes() -> None:
    model, images = a_model().eval(), torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        once, never = faster.detect(model, images), faster.detect(model, images, second=False)
    assert all(len(a["boxes"]) <= len(b["boxes"]) for a, b in zip(once, never, strict=True))


@pytest.mark.parametrize("preset", ["smoke", "quick", "full"])
def test_the_arms_have_about_as_many_parameters(preset: str) -> None:
    sizes = [count_parameters(claims.build(Asked(preset), arm)) for arm in claims.ARMS | claims.ANCHORS]
    assert max(sizes) < 1.1 * min(sizes)


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_either_the_number_of_anchors_changes_or_their_size(preset: str) -> None:
    """Both were once changed at the same time, so that a gain could not be told to either."""
    fitted, one, large = (claims.shapes_of(Asked(preset), arm) for arm in claims.ANCHORS)
    assert set(one[0]) < set(fitted[0])  # of the same sizes
    assert set(one[1]) < set(fitted[1])
    assert len(large[0]) == len(fitted[0])  # as many,
    assert large[1] == fitted[1]  # of the same shapes


def test_the_file_to_read_uses_what_the_search_chose_and_all_arms_were_searched() -> None:
    kept = json.loads((Path(claims.__file__).parent / "faster-rcnn.searches.json").read_text("utf-8"))
    assert kept["learning rate"]["arms"]["two_stage"]["chosen"] == faster.RATE
    assert set(kept["learning rate"]["arms"]) == {*claims.ARMS, *claims.ANCHORS}


def test_what_nothing_finds_is_undefined_and_not_zero() -> None:
    blind = detectors.Trained(a_model().eval(), detectors.scenes_of(SMOKE, "test", 0), [])
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)}
    found = claims.measures(Asked("smoke"), blind, lambda _, images: [nothing] * len(images))
    assert torch.tensor(found["boxes"]).isnan()
    assert found["ap"] == 0


def test_the_proposals_of_the_pyramid_cost_more_than_those_of_one_map() -> None:
    shares = {name: parts["proposals"] / sum(parts.values()) for name, parts in claims.stages_of_published().items()}
    assert shares["vgg16"] < 0.05 < shares["r50_fpn"]


def test_published_boxes_come_in_pixels_with_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small random network in the place of the download."""
    import numpy as np
    from PIL import Image
    from torchvision.models import detection

    class Found(torch.nn.Module):
        def forward(self, images: Any) -> Any:
            assert images[0].shape == (3, 60, 80)
            return [{"boxes": torch.tensor([[1.0, 2.0, 30.0, 40.0]]), "labels": torch.tensor([17])}]

    monkeypatch.setattr(detection, "fasterrcnn_resnet50_fpn_v2", lambda weights, box_score_thresh: Found())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    boxes, names = faster.published(image)
    assert (boxes.shape, names) == ((1, 4), ["cat"])


def test_it_is_one_run_that_trains_the_first_seed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lab.run import Run

    calls: list[int] = []
    monkeypatch.setattr(detectors, "train", lambda run, benchmark, seed, *rest, **more: calls.append(seed))
    monkeypatch.setattr(claims, "rates_of", lambda run: dict.fromkeys(claims.ARMS, faster.RATE))
    run = Run("faster-rcnn", Settings("smoke", torch.device("cpu"), (0, 1), tmp_path, "random"))
    faster.train(run, 0, faster.RATE)
    claims.trained(run, "two_stage")
    assert calls == [0, 1]
