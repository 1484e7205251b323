"""The SAM 2 example: clips with a hidden object, what is remembered, answers frame by frame, what is measured, and its rivals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import sam2 as example
import torch
from claims import sam2 as claims
from lab.data import occluded as data

SMOKE = example.PRESETS["smoke"]


@pytest.fixture(scope="module")
def clips() -> data.Clips:
    return data.occluded("val", 12, 3)


@pytest.fixture
def model() -> example.SAM2:
    torch.manual_seed(0)
    return example.SAM2(SMOKE).eval()


def test_the_object_is_seen_first_and_last_and_hidden_in_between(clips) -> None:
    shown = clips.masks.flatten(2).any(2)
    assert shown[:, [0, -1]].all()
    assert not shown[:, data.FRAMES // 2].any()


def test_the_click_lies_on_the_object(clips) -> None:
    x, y = clips.clicks.long().unbind(1)
    assert clips.masks[torch.arange(12), 0, y, x].all()


def test_half_of_the_objects_change_sides_while_they_are_hidden() -> None:
    share = example.swapped(data.occluded("train", 200, 0)).float().mean().item()
    assert 0.4 < share < 0.6


def test_digits_that_are_alike_have_one_colour_and_others_two() -> None:
    def colours(alike: bool) -> list[int]:
        clips = data.occluded("test", 10, 1, alike=alike)
        bright = clips.frames[:, 0].permute(0, 2, 3, 1)
        sure = (bright.amax(-1) > 0.65) & (bright.amin(-1) < 0.3) | (bright.amin(-1) > 0.85)
        return [len(image[there].unique(dim=0)) for image, there in zip(bright, sure, strict=True)]

    assert max(colours(True)) == 1
    assert sum(count == 2 for count in colours(False)) >= 7


def test_clips_repeat_with_the_seed_and_differ_between_splits() -> None:
    first, again, other = (data.occluded(split, 2, 5).frames for split in ("train", "train", "test"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("arm", claims.ARMS)
def test_a_memory_holds_earlier_frames_each_once_and_only_the_bank_never_drops_the_first(arm: str) -> None:
    for time, row in enumerate(claims.BANKS[arm](torch.arange(data.FRAMES)).tolist()):
        kept = [each for each in row if each >= 0]
        assert len(kept) == len(set(kept))
        assert all(each < time for each in kept)
        assert (0 in kept) == (time > 0 and (arm == "bank" or (arm == "last" and time == 1)))


def test_memories_that_do_not_count_change_nothing(model, clips) -> None:
    fine, embedding = model.encode(clips.frames[:, 1])
    memories = torch.randn(12, 2, 64, 2 * SMOKE.width)
    known = torch.tensor([True, False]).expand(12, -1)
    with torch.inference_mode():
        before = model.answer(fine, embedding, memories, known, clips.clicks)
        after = model.answer(fine, embedding, memories + torch.tensor([0.0, 9.0])[:, None, None], known, clips.clicks)
        other = model.answer(fine, embedding, memories + torch.tensor([9.0, 0.0])[:, None, None], known, clips.clicks)
    torch.testing.assert_close(before.mask, after.mask)
    assert not torch.allclose(before.mask, other.mask)


def test_a_memory_keeps_the_embedding_without_and_with_the_mask_folded_in(model, clips) -> None:
    _, embedding = model.encode(clips.frames[:, 0])
    plain, folded = model.remember(embedding, clips.masks[:, 0]).chunk(2, -1)
    torch.testing.assert_close(plain, embedding.flatten(2).mT)
    touched = torch.nn.functional.max_pool2d(clips.masks[:, 0].float(), example.STRIDE).flatten(1) > 0
    assert torch.equal((plain != folded).any(-1), touched)


def test_attention_reads_what_looks_alike_and_nothing_that_is_ignored() -> None:
    torch.manual_seed(0)
    attend, looks = example.MemoryAttention(16, 16).eval(), 20 * torch.randn(1, 5, 16)
    ignored = torch.zeros(1, 5, dtype=torch.bool)
    with torch.inference_mode():
        before = attend(looks, looks, torch.eye(5, 16)[None], ignored)
        own = attend.norms[0](looks + attend.write(torch.eye(5, 16)[None]))
        torch.testing.assert_close(before, attend.norms[1](own + attend.mlp(own)), atol=1e-4, rtol=1e-3)
        ignored[0, 3] = True
        after = attend(looks, looks, torch.eye(5, 16)[None], ignored)
    assert torch.allclose(before[0, :3], after[0, :3], atol=1e-4)
    assert not torch.allclose(before[0, 3], after[0, 3], atol=1e-3)


def test_the_click_counts_where_there_is_no_memory_and_only_there(model, clips) -> None:
    fine, embedding = model.encode(clips.frames[:, 1])
    memories, other = torch.randn(12, 1, 64, 2 * SMOKE.width), clips.clicks.flip(0) * 0.5
    for known in (True, False):
        flags = torch.full((12, 1), known)
        masks = [model.answer(fine, embedding, memories, flags, click).mask for click in (clips.clicks, other)]
        assert torch.equal(*masks) == known


def test_frames_are_answered_one_by_one_from_what_came_before(model, clips) -> None:
    later = clips._replace(frames=clips.frames.clone())
    later.frames[:, 5:] = 0
    found = [example.follow(model, each, example.prompted_and_recent) for each in (clips, later)]
    assert torch.equal(found[0][:, :5], found[1][:, :5])


def test_the_loss_is_low_for_the_mask_and_high_for_its_inverse(clips) -> None:
    target = clips.masks[:, 0]
    right = example.mask_loss(40 * target.float() - 20, target)
    assert right.max() < 0.01 < 1 < example.mask_loss(20 - 40 * target.float(), target).min()


def test_a_perfect_follower_needs_one_click_and_one_that_finds_nothing_one_more_wherever_the_object_is(clips) -> None:
    perfect = claims.measures(clips.masks, clips)
    assert (perfect["iou_before"], perfect["iou_after"], perfect["clicks"], perfect["hidden_empty"]) == (1, 1, 1, 100)
    nothing = claims.measures(torch.zeros_like(clips.masks), clips)
    frames = (clips.masks.sum((2, 3)) >= claims.LEAST).sum(1).float().mean().item()
    assert nothing["clicks"] == pytest.approx(1 + frames)
    assert nothing["iou_after"] == 0


def test_iou_of_nothing_found_where_there_is_nothing_is_undefined() -> None:
    empty = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    assert math.isnan(example.ious(empty, empty).item())


def test_the_file_to_read_uses_what_the_search_chose_for_its_arm() -> None:
    kept = json.loads((Path(claims.__file__).parent / "sam2.searches.json").read_text("utf-8"))
    assert kept["learning rate"]["arms"]["bank"]["chosen"] == example.RATE
    assert set(kept["learning rate"]["arms"]) == set(claims.ARMS)


def test_published_masks_come_with_their_ratings_and_the_click(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins in the place of the download."""
    import numpy as np
    import transformers
    from PIL import Image

    class Processor:
        def __call__(self, images, input_points, input_labels, return_tensors):
            assert (input_points, input_labels) == ([[[[40.0, 30.0]]]], [[[1]]])
            return {"original_sizes": [(60, 80)]}

        def post_process_masks(self, masks, original_sizes):
            return [torch.ones(1, 3, *original_sizes[0], dtype=torch.bool)]

    network = torch.nn.Module()
    network.forward = lambda original_sizes: type("Said", (), {"pred_masks": None, "iou_scores": torch.ones(1, 1, 3)})
    for name, thing in {"Sam2Processor": Processor(), "Sam2Model": network}.items():
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", lambda _, thing=thing: thing)
    masks, titles, point = example.published(Image.fromarray(np.zeros((60, 80, 3), np.uint8)))
    assert masks.shape == (3, 60, 80)
    assert titles == ["rated 1.00"] * 3
    assert point == [40.0, 30.0]
