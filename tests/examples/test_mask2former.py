"""The Mask2Former example: yards, where a query may read, what it pays, segments, panoptic quality, and its rivals."""

from __future__ import annotations

import json
from pathlib import Path

import mask2former as example
import pytest
import torch
from claims import mask2former as claims
from lab import panoptic
from lab.data.yards import CLASSES, LEAST, STUFF, THINGS, Yards, yards
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

SMOKE, K = example.PRESETS["smoke"], len(CLASSES)


@pytest.fixture(scope="module")
def held_out() -> Yards:
    return yards("val", 30, 3)


def a_disc(side: int) -> torch.Tensor:
    """Logits (1, 1, side, side) of a mask in the middle."""
    axis = torch.linspace(-1.5, 1.5, side)
    return (1 - torch.hypot(axis[:, None], axis))[None, None]


def test_every_pixel_of_a_yard_belongs_to_one_segment(held_out: Yards) -> None:
    assert (held_out.masks.sum(1) == 1).all()
    assert (held_out.masks.any(-1).any(-1) == (held_out.labels < K)).all()


def test_a_yard_has_two_kinds_of_ground_and_two_to_four_things_that_can_be_seen(held_out: Yards) -> None:
    things = (held_out.labels < len(THINGS)).sum(1)
    assert things.max() <= 4
    assert things.float().mean() > 2
    stuff = held_out.labels[:, -2:]
    assert ((stuff >= len(THINGS)) & (stuff < K)).all()
    assert (stuff[:, 0] != stuff[:, 1]).all()
    pixels = held_out.masks[:, :-2].sum((2, 3))
    assert (pixels[pixels > 0] >= LEAST).all()


def test_half_of_the_yards_have_things_of_one_shape_only() -> None:
    labels = yards("val", 300, 0).labels[:, :-2]
    alike = [len({each for each in row.tolist() if each < K}) == 1 for row in labels]
    assert 0.5 < sum(alike) / len(alike) < 0.8  # and a few by chance


def test_yards_of_a_seed_are_the_same_and_those_of_another_split_are_not() -> None:
    assert torch.equal(yards("val", 3, 0).images, yards("val", 3, 0).images)
    assert not torch.equal(yards("val", 3, 0).images, yards("test", 3, 0).images)


def test_pixels_are_taught_their_class_and_the_way_to_the_middle_of_their_thing() -> None:
    masks = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    masks[0, 0, 2:6, 4:8], masks[0, 1] = True, True
    masks[0, 1] &= ~masks[0, 0]
    kinds, way = panoptic.taught(torch.tensor([[1, 4]]), masks, K)
    assert kinds[0, :, 1, 2].tolist() == one_hot(torch.tensor(1), K).tolist()
    assert kinds[0, :, 0, 0].tolist() == one_hot(torch.tensor(4), K).tolist()
    torch.testing.assert_close(way[0, :, 1, 2], torch.tensor([0.125, 0.125]))  # from (0.625, 0.375) to (0.75, 0.5)


def test_trained_pixels_are_frozen_and_lose_less_than_before() -> None:
    shown, losses = yards("train", 48, 0), []
    settings = {"classes": K, "things": len(THINGS), "width": 16, "batch": 8, "rate": 5e-3, "seed": 0}
    for steps in (1, 20):
        network = panoptic.trained_pixels(*shown, **settings, steps=steps, device=torch.device("cpu"))
        targets = panoptic.taught(shown.labels, shown.masks, K)
        losses.append(panoptic.pixels_loss(network, shown.images, *targets, things=len(THINGS)).item())
        assert not any(each.requires_grad for each in network.parameters())
    assert losses[1] < 0.9 * losses[0]
    assert panoptic.features(network, shown.images[:2]).shape == (2, 32, 24, 24)


def test_a_query_reads_inside_its_mask_alone_at_every_scale() -> None:
    for side in (3, 6, 12):
        outside = example.outside_of(a_disc(side).flatten(2))[0, 0].unflatten(0, (side, side))
        assert not outside[side // 2, side // 2]
        assert outside[0, 0]


def test_a_query_with_an_empty_mask_reads_everything_and_not_nothing() -> None:
    assert not example.outside_of(torch.full((1, 2, 36), -3.0)).any()


def test_in_use_a_query_may_be_told_to_read_inside_the_mask_of_another() -> None:
    logits = torch.randn(2, 3, 9)
    own, another = example.outside_of(logits), claims.IN_USE["another"](logits)
    assert torch.equal(another[:, 1:], own[:, :-1])
    assert torch.equal(another[:, 0], own[:, -1])
    assert claims.IN_USE["everywhere"](logits) is None


def test_what_lies_outside_of_its_mask_changes_no_query() -> None:
    torch.manual_seed(0)
    layer, queries, tokens = example.Layer(16, 2).eval(), torch.randn(1, 2, 16), torch.randn(1, 36, 16)
    outside = example.outside_of(a_disc(6).flatten(2)).repeat(1, 2, 1)
    altered = torch.where(outside[0, 0][None, :, None], tokens + 5, tokens)
    place = torch.randn(2, 16)
    torch.testing.assert_close(layer(queries, place, tokens, outside), layer(queries, place, altered, outside))
    assert not torch.allclose(layer(queries, place, tokens, None), layer(queries, place, altered, None))


def test_the_mask_of_a_cell_is_the_mean_of_its_pixels() -> None:
    pixels, query = torch.randn(1, 8, 8, 5), torch.randn(5)
    expected = torch.nn.functional.avg_pool2d((pixels @ query)[:, None], 4).flatten(1)
    torch.testing.assert_close(example.coarse(pixels, 4) @ query, expected)


@pytest.mark.parametrize("arm", claims.ARMS)
def test_masks_come_before_and_after_each_layer_and_some_pixels_are_as_in_all(arm: str) -> None:
    torch.manual_seed(0)
    model = example.Mask2Former(SMOKE, claims.OUTSIDE[arm]).eval()
    features, at = torch.randn(2, 2 * SMOKE.width, 24, 24), torch.tensor([[3, 70], [500, 8]])
    with torch.inference_mode():
        both, one, some = model(features), model(features[:1]), model(features, at)
    assert both.masks.shape == (3, 2, SMOKE.queries, 576)
    assert both.classes.shape == (3, 2, SMOKE.queries, K + 1)
    torch.testing.assert_close(both.masks[:, :1], one.masks, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(some.masks[:, 1], both.masks[:, 1][..., at[1]])


def test_the_first_masks_of_both_arms_are_the_same_and_the_later_ones_are_not() -> None:
    models = []
    for outside in claims.OUTSIDE.values():
        torch.manual_seed(0)
        models.append(example.Mask2Former(SMOKE, outside).eval())
    features = 5 * torch.randn(1, 2 * SMOKE.width, 4, 4).repeat_interleave(6, 2).repeat_interleave(6, 3)
    masked, full = (model(features).masks for model in models)
    torch.testing.assert_close(masked[0], full[0])
    assert not torch.allclose(masked[1], full[1])
    assert len({sum(each.numel() for each in model.parameters()) for model in models}) == 1


def test_the_loss_of_masks_is_that_of_torch() -> None:
    ours, theirs = torch.randn(1, 1, 50), (torch.rand(1, 1, 50) > 0.5).float()
    p = ours.sigmoid()
    dice = 1 - (2 * (p * theirs).sum() + 1) / (p.sum() + theirs.sum() + 1)
    expected = 5 * binary_cross_entropy_with_logits(ours, theirs) + 5 * dice  # the weights of Section 4.1
    torch.testing.assert_close(example.overlap_loss(ours, theirs)[0, 0, 0], expected)


def perfect(labels: torch.Tensor, masks: torch.Tensor) -> example.Masks:
    return example.Masks(20 * one_hot(labels, K + 1).float(), 40 * masks - 20)


def test_a_perfect_set_costs_next_to_nothing_in_any_order_and_a_second_mask_costs_more(held_out: Yards) -> None:
    masks = held_out.masks.flatten(2).float()
    said, order = perfect(held_out.labels, masks), torch.tensor([2, 0, 1, 5, 4, 3])
    shuffled = example.Masks(said.classes[:, order], said.masks[:, order])
    assert example.set_loss(said, held_out.labels, masks) < 1e-3
    assert example.set_loss(shuffled, held_out.labels, masks) < 1e-3
    again = example.Masks(*(torch.cat([each, each[:, :1]], 1) for each in said))
    assert example.set_loss(again, held_out.labels, masks) > 0.1


def test_a_batch_without_anything_pays_for_classes_only() -> None:
    labels, truth = torch.full((1, 2), K), torch.zeros(1, 2, 40)
    classes, masks = torch.randn(1, 3, K + 1), torch.randn(1, 3, 40)
    losses = [example.set_loss(example.Masks(classes, each), labels, truth) for each in (masks, -masks)]
    assert losses[0].isfinite()
    assert losses[0] == losses[1]


def test_no_two_segments_share_a_pixel_and_a_query_without_a_class_has_none() -> None:
    torch.manual_seed(1)
    labels, pixels = panoptic.segments(torch.randn(4, 5, 3), torch.rand(4, 5, 8, 8))
    assert (pixels.sum(1) <= 1).all()
    assert not pixels[labels == 2].any()


def test_panoptic_quality_of_the_truth_is_100_for_every_class_and_0_where_the_class_is_wrong(held_out: Yards) -> None:
    _, labels, masks = held_out
    right = panoptic.panoptic_quality(labels, masks, labels, masks, K)
    torch.testing.assert_close(right, torch.full((K,), 100.0))
    wrong = torch.where(labels < K, (labels + 1) % K, labels)
    assert (panoptic.panoptic_quality(wrong, masks, labels, masks, K) == 0).all()
    said = example.Masks(20 * one_hot(labels, K + 1).float()[None], masks[None].float())
    assert example.quality(said, held_out) == pytest.approx((100, 100, 100))


def test_a_missed_segment_counts_half_and_a_class_that_is_nowhere_is_undefined() -> None:
    one, two = torch.zeros(1, 1, 4, 4, dtype=torch.bool), torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    one[0, 0, :2], two[0, 0, :2], two[0, 1, 2:] = True, True, True
    zeros = torch.zeros(1, 2, dtype=torch.long)
    quality = panoptic.panoptic_quality(zeros[:, :1], one, zeros, two, 2)
    assert quality[0] == pytest.approx(100 / 1.5)  # one of two is missed
    assert quality[1].isnan()


def test_masks_on_a_segment_are_counted_before_pixels_are_shared_out(held_out: Yards) -> None:
    _, labels, masks = held_out
    twice = torch.cat([labels, labels[:, -1:]], 1), torch.cat([masks, masks[:, -1:]], 1)
    said = example.Masks(20 * one_hot(twice[0], K + 1).float()[None], twice[1][None].float())
    counts, kinds = claims.answers(said, held_out)
    assert (counts[:, -1] == 2).all()
    assert (counts[:, :-1] == (labels < K)[:, :-1]).all()
    assert kinds.sum() == counts.sum()
    assert (kinds[-1, : -len(STUFF)] == 0).all()


def test_the_file_to_read_uses_what_the_search_chose_for_its_arm() -> None:
    kept = json.loads((Path(claims.__file__).parent / "mask2former.searches.json").read_text("utf-8"))
    assert kept["learning rate"]["arms"]["masked"]["chosen"] == example.RATE
    assert set(kept["learning rate"]["arms"]) == set(claims.ARMS)


def test_published_segments_come_as_masks_of_the_photograph_with_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins in the place of the download."""
    import numpy as np
    import transformers
    from lab import figures
    from PIL import Image

    class Processor:
        def __call__(self, image, return_tensors):
            return {"pixel_values": torch.zeros(1)}

        def post_process_panoptic_segmentation(self, outputs, target_sizes):
            found = torch.zeros(target_sizes[0], dtype=torch.long)
            found[:10] = 1
            return [{"segmentation": found, "segments_info": [{"id": 1, "label_id": 0}, {"id": 0, "label_id": 1}]}]

    network = torch.nn.Module()
    network.forward = lambda pixel_values: pixel_values
    network.config = transformers.PretrainedConfig(id2label={0: "cup", 1: "table"})
    for name, thing in {"AutoImageProcessor": Processor(), "Mask2FormerForUniversalSegmentation": network}.items():
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", lambda _, thing=thing: thing)
    image, masks, names = example.published(Image.fromarray(np.full((60, 80, 3), 255, np.uint8)))
    assert names == [["cup", "table"]]
    assert masks.sum((2, 3)).tolist() == [[10 * 80, 50 * 80]]
    with figures.using(figures.LIGHT) as style:
        drawn = panoptic.draw_segments(style, image, masks, names)
        assert {text.get_text() for ax in drawn.axes for text in ax.texts} == {"cup", "table"}
