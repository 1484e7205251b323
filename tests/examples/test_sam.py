"""The SAM example: nested masks, prompts, losses of the arms, the decoder against the library's, and a run of it all."""

import json
import math
from pathlib import Path

import pytest
import sam
import torch
from claims import sam as claims
from lab.data import nested as data
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamPositionalEmbedding


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def scenes():
    return data.nested("val", 6, 3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return sam.SAM(16).eval()


@pytest.mark.parametrize("unseen", [False, True])
def test_masks_of_a_group_are_nested_and_groups_are_apart(unseen):
    masks = data.nested("test", 20, 0, unseen=unseen).masks
    digit, inner, outer = masks.unbind(2)
    assert not (digit & ~inner).any()
    assert not (inner & ~outer).any()
    assert not (outer[:, 0] & outer[:, 1]).any()
    assert (digit.sum((-2, -1)) > 3).all()
    assert (digit.sum((-2, -1)) < inner.sum((-2, -1))).all()


def test_scenes_repeat_with_the_seed_and_differ_between_splits():
    first, again, other = (data.nested(split, 2, 5).images for split in ("train", "train", "test"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_clicks_lie_in_their_masks_and_boxes_are_tight(scenes):
    target = scenes.masks[:, :, 0]
    x, y = data.pixel_of(target, generator()).long().unbind(-1)
    assert target.flatten(0, 1)[torch.arange(x.numel()), y.flatten(), x.flatten()].all()
    boxes = data.filled(data.boxes_of(target))
    assert not (target & ~boxes).any()
    assert torch.equal(boxes.any(-1), target.any(-1))


def test_a_correcting_click_goes_to_the_larger_error(scenes):
    whole, digit = scenes.masks[:, :, 2], scenes.masks[:, :, 0]
    first = data.clicks(digit, generator())
    missed = data.corrected(first, 1, digit, whole, generator())
    surplus = data.corrected(first, 1, whole, digit, generator())
    assert (missed.kinds[:, :, 1] == data.INSIDE).all()
    assert (surplus.kinds[:, :, 1] == data.OUTSIDE).all()
    x, y = surplus.points[:, :, 1].long().flatten(0, 1).unbind(-1)
    assert (whole & ~digit).flatten(0, 1)[torch.arange(len(x)), y, x].all()


def test_the_minimum_reaches_one_mask_the_mean_all_three_and_one_mask_the_fourth():
    assert set(claims.REACH) == set(claims.ARMS)
    for arm, reached in {"min": [1], "mean": [0, 1, 2], "one": [3]}.items():
        losses = torch.tensor([[[3.0, 1.0, 2.0, 4.0]]], requires_grad=True)
        (gradient,) = torch.autograd.grad(claims.REACH[arm](losses).sum(), losses)
        assert gradient[0, 0].nonzero()[:, 0].tolist() == reached


def test_a_perfect_mask_has_almost_no_loss_and_its_inverse_much(scenes):
    target = scenes.masks[:, :, 1]
    logits = (20 * target.float() - 10)[:, :, None]
    assert sam.mask_losses(logits, target).max() < 0.01
    assert sam.mask_losses(-logits, target).min() > 1


def test_iou_of_masks():
    square, empty = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    square[:2, :2] = True
    assert sam.ious(square, square) == 1
    assert sam.ious(square, torch.ones_like(square)) == 0.25
    assert sam.ious(empty, empty).isnan()  # undefined, and not as bad as can be


def test_prompts_of_one_image_do_not_touch_each_other(model, scenes):
    prompts = data.clicks(scenes.masks[:, :, 0], generator())
    with torch.no_grad():
        both, _ = model(scenes.images, prompts)
        second, _ = model(scenes.images, data.Prompts(prompts.points[:, 1:], prompts.kinds[:, 1:]))
    torch.testing.assert_close(both[:, 1:], second, rtol=1e-4, atol=1e-5)


def test_a_point_that_means_nothing_has_no_position(model):
    kinds = torch.tensor([[[data.INSIDE, data.NOTHING, data.NOTHING]]])
    near, far = (data.Prompts(torch.full((1, 1, 3, 2), value), kinds) for value in (3.0, 20.0))
    a, b = model.prompts(near), model.prompts(far)
    assert torch.equal(a[0, 0, 1:], b[0, 0, 1:])
    assert not torch.allclose(a[0, 0, 0], b[0, 0, 0])


def test_positions_equal_those_of_the_library(model):
    library = SamPositionalEmbedding(SamVisionConfig(num_pos_feats=8, hidden_size=16))
    library.positional_embedding.data.copy_(model.prompts.frequencies)
    points = data.SIDE * torch.rand(1, 5, 1, 2, generator=generator())
    torch.testing.assert_close(
        model.prompts.position(points), library(points, (data.SIDE, data.SIDE)), rtol=1e-4, atol=1e-4
    )


def test_a_perfect_mask_of_any_level_earns_more_than_the_least_rating_of_the_grid(scenes):
    worth = claims.attainable(scenes.masks)
    assert worth.shape == (3,)
    assert (worth > claims.RATED).all()
    assert worth.max() < 0.7  # an annotation drawn from three is seldom the mask itself


class Rater(torch.nn.Module):
    """Finds the left half of any image, and rates its three masks of a click as told."""

    def __init__(self, *rated: float) -> None:
        super().__init__()
        self.rated = torch.nn.Parameter(torch.tensor(rated))

    def forward(self, images, prompts):
        shape = *prompts.kinds.shape[:2], 4
        left = (torch.arange(data.SIDE) < data.SIDE // 2).float() - 0.5
        return left.expand(*shape, data.SIDE, data.SIDE), self.rated.expand(shape)


def test_the_grid_keeps_one_of_equal_masks_and_none_that_is_rated_low(scenes):
    high, low = (claims.Trained(Rater(*[rated] * 4), 0, scenes) for rated in (claims.RATED + 0.05, claims.RATED - 0.05))
    kept = claims.everything(high, scenes.images[:1])
    assert kept.shape == (1, data.SIDE, data.SIDE)
    assert kept.sum() == data.SIDE**2 // 2
    assert len(claims.everything(low, scenes.images[:1])) == 0


def test_thin_strokes_do_not_fit_into_a_quarter_of_the_resolution_and_thick_ones_do():
    assert claims.ceiling(data.strokes(1, 0, count=4, side=64), 40) < 0.6
    assert claims.ceiling(data.strokes(12, 0, count=4, side=64), 40) > 0.9


def test_what_is_undefined_is_not_a_number(scenes):
    assert math.isnan(claims.missing_all(torch.zeros(0, data.SIDE, data.SIDE, dtype=torch.bool), scenes.masks[0, 0]))


def by_colour(scenes) -> float:
    """IoU of the best of three masks that no network is needed for: pixels of about the colour of the click, of the plates."""
    found = []
    for image, groups in zip(scenes.images, scenes.masks, strict=True):
        for digit, _, outer in groups:
            y, x = digit.nonzero()[0].tolist()
            near = [(image - image[:, y, x, None, None]).abs().amax(0) < limit for limit in (0.05, 0.4, 0.8)]
            found.append(sam.ious(torch.stack(near), outer).max().item())
    return sum(found) / len(found)


def test_unseen_shapes_are_no_easier_than_those_in_training():
    """Unseen scenes once had noise for photographs, and were easier than seen ones."""
    seen, unseen = (data.nested("test", 60, 0, unseen=strange) for strange in (False, True))
    assert by_colour(unseen) < by_colour(seen) + 0.05
    background = [
        (each.images * ~each.masks[:, :, 2].any(1)[:, None]).std((2, 3)).mean().item() for each in (seen, unseen)
    ]
    assert background[1] == pytest.approx(background[0], rel=0.15)


class Perfect(torch.nn.Module):
    """Without a prompt, returns the three masks of the second group of each image."""

    def __init__(self, masks) -> None:
        super().__init__()
        self.masks, self.device = masks, torch.nn.Parameter(torch.zeros(1))

    def forward(self, images, prompts):
        three = self.masks[:, 1].float() - 0.5
        logits = torch.cat([three, three[:, :1]], 1)[:, None]
        return logits, torch.zeros(*logits.shape[:3])


def test_three_perfect_masks_without_a_prompt_are_worth_one_though_there_are_six_annotations(scenes):
    """Three masks were once held against six annotations, so that even perfect ones lost to a click."""
    assert claims.unprompted(claims.Trained(Perfect(scenes.masks), 0, scenes)) == pytest.approx(1)


def test_every_seed_is_a_training_of_its_own(monkeypatch):
    """One call timed again and again on the same weights once passed as seeds."""
    asked = []
    monkeypatch.setattr(claims, "fit", lambda run, arm, seed, rate: asked.append(seed))
    monkeypatch.setattr(claims, "rates_of", lambda run: dict.fromkeys(claims.ARMS, 1e-3))

    class Run:
        seeds = (3, 4, 5)

    claims.trained(Run(), "min")
    assert asked == [3, 4, 5]


def test_the_file_to_read_uses_what_the_search_chose_and_all_arms_were_searched():
    kept = json.loads((Path(claims.__file__).parent / "sam.searches.json").read_text("utf-8"))["learning rate"]
    assert kept["arms"]["min"]["chosen"] == sam.RATE
    assert set(kept["arms"]) == set(claims.ARMS)


def test_training_prompts_ask_for_masks_of_one_level_drawn_at_random():
    masks = data.nested("train", 40, 0).masks
    prompts, target = data.training_prompts(masks, generator())
    assert target.shape == (40, 4, data.SIDE, data.SIDE)
    assert (target[:, :, None, None] == masks[:, None]).flatten(4).all(-1).flatten(2).any(-1).all()
    kinds = prompts.kinds.sort(-1).values
    assert (kinds[:, :2] == torch.tensor(sorted([data.INSIDE, data.NOTHING, data.NOTHING]))).all()
    assert (kinds[:, 2] == torch.tensor(sorted([data.UPPER_LEFT, data.LOWER_RIGHT, data.NOTHING]))).all()
    assert (prompts.kinds[:, 3] != data.NOTHING).all()


def test_published_masks_come_with_ratings(monkeypatch):
    """With a small random network in the place of the download."""
    import numpy as np
    import transformers
    from PIL import Image

    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 16,
              "global_attn_indexes": [0], "output_channels": 256, "window_size": 2}  # fmt: skip
    network = transformers.SamModel(
        transformers.SamConfig(vision_config=vision, prompt_encoder_config={"image_size": 64})
    )
    processor = transformers.SamProcessor(
        transformers.SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    )
    for name, thing in {"SamModel": network, "SamProcessor": processor}.items():
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", lambda _, thing=thing: thing)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    with torch.inference_mode():
        masks, titles, point = sam.published(image)
    assert masks.shape == (3, 60, 80)
    assert (len(titles), point) == (3, [40, 30])
