"""The SAM example: nested masks, prompts, losses of the arms, the decoder against the library's, and a run of it all."""

import importlib
import json

import pytest
import torch
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamPositionalEmbedding

sam = importlib.import_module("sam")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def scenes():
    return sam.nested("val", 6, 3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return sam.PromptedSegmenter(16).eval()


@pytest.mark.parametrize("unseen", [False, True])
def test_masks_of_a_group_are_nested_and_groups_are_apart(unseen):
    masks = sam.nested("test", 20, 0, unseen=unseen).masks
    digit, inner, outer = masks.unbind(2)
    assert not (digit & ~inner).any()
    assert not (inner & ~outer).any()
    assert not (outer[:, 0] & outer[:, 1]).any()
    assert (digit.sum((-2, -1)) > 3).all()
    assert (digit.sum((-2, -1)) < inner.sum((-2, -1))).all()


def test_scenes_repeat_with_the_seed_and_differ_between_splits():
    first, again, other = (sam.nested(split, 2, 5).images for split in ("train", "train", "test"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_clicks_lie_in_their_masks_and_boxes_are_tight(scenes):
    target = scenes.masks[:, :, 0]
    x, y = sam.pixel_of(target, generator()).long().unbind(-1)
    assert target.flatten(0, 1)[torch.arange(x.numel()), y.flatten(), x.flatten()].all()
    boxes = sam.filled(sam.boxes_of(target))
    assert not (target & ~boxes).any()
    assert torch.equal(boxes.any(-1), target.any(-1))


def test_a_correcting_click_goes_to_the_larger_error(scenes):
    whole, digit = scenes.masks[:, :, 2], scenes.masks[:, :, 0]
    first = sam.clicks(digit, generator())
    missed = sam.corrected(first, 1, digit, whole, generator())
    surplus = sam.corrected(first, 1, whole, digit, generator())
    assert (missed.kinds[:, :, 1] == sam.INSIDE).all()
    assert (surplus.kinds[:, :, 1] == sam.OUTSIDE).all()
    x, y = surplus.points[:, :, 1].long().flatten(0, 1).unbind(-1)
    assert (whole & ~digit).flatten(0, 1)[torch.arange(len(x)), y, x].all()


def test_the_minimum_reaches_one_mask_the_mean_all_three_and_one_mask_the_fourth():
    for arm, reached in {"min": [1], "mean": [0, 1, 2], "one": [3]}.items():
        losses = torch.tensor([[[3.0, 1.0, 2.0, 4.0]]], requires_grad=True)
        (gradient,) = torch.autograd.grad(sam.lone_loss(losses, arm).sum(), losses)
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
    assert sam.ious(empty, empty) == 0


def test_prompts_of_one_image_do_not_touch_each_other(model, scenes):
    prompts = sam.clicks(scenes.masks[:, :, 0], generator())
    with torch.no_grad():
        both, _ = model(scenes.images, prompts)
        second, _ = model(scenes.images, sam.Prompts(prompts.points[:, 1:], prompts.kinds[:, 1:]))
    torch.testing.assert_close(both[:, 1:], second, rtol=1e-4, atol=1e-5)


def test_a_point_that_means_nothing_has_no_position(model):
    kinds = torch.tensor([[[sam.INSIDE, sam.NOTHING, sam.NOTHING]]])
    near, far = (sam.Prompts(torch.full((1, 1, 3, 2), value), kinds) for value in (3.0, 20.0))
    a, b = model.prompt_tokens(near), model.prompt_tokens(far)
    assert torch.equal(a[0, 0, 1:], b[0, 0, 1:])
    assert not torch.allclose(a[0, 0, 0], b[0, 0, 0])


def test_positions_equal_those_of_the_library(model):
    library = SamPositionalEmbedding(SamVisionConfig(num_pos_feats=8, hidden_size=16))
    library.positional_embedding.data.copy_(model.frequencies)
    points = sam.SIDE * torch.rand(1, 5, 1, 2, generator=generator())
    torch.testing.assert_close(model.position(points), library(points, (sam.SIDE, sam.SIDE)), rtol=1e-4, atol=1e-4)


def test_a_perfect_mask_of_any_level_earns_more_than_the_least_rating_of_the_grid(scenes):
    worth = sam.attainable(scenes.masks)
    assert worth.shape == (3,)
    assert (worth > sam.RATED).all()
    assert worth.max() < 0.7  # an annotation drawn from three is seldom the mask itself


class Rater(torch.nn.Module):
    """Finds the left half of any image, and rates its three masks of a click as told."""

    def __init__(self, *rated: float) -> None:
        super().__init__()
        self.rated = torch.nn.Parameter(torch.tensor(rated))

    def forward(self, images, prompts):
        shape = *prompts.kinds.shape[:2], 4
        left = (torch.arange(sam.SIDE) < sam.SIDE // 2).float() - 0.5
        return left.expand(*shape, sam.SIDE, sam.SIDE), self.rated.expand(shape)


def test_the_grid_keeps_one_of_equal_masks_and_none_that_is_rated_low(scenes):
    high, low = (sam.Trained(Rater(*[rated] * 4), 0, scenes) for rated in (sam.RATED + 0.05, sam.RATED - 0.05))
    kept = sam.everything(high, scenes.images[:1])
    assert kept.shape == (1, sam.SIDE, sam.SIDE)
    assert kept.sum() == sam.SIDE**2 // 2
    assert len(sam.everything(low, scenes.images[:1])) == 0


def test_thin_strokes_do_not_fit_into_a_quarter_of_the_resolution_and_thick_ones_do():
    assert sam.ceiling(sam.strokes(1, 0, count=4, side=64), 40) < 0.6
    assert sam.ceiling(sam.strokes(12, 0, count=4, side=64), 40) > 0.9


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("sam")
    sam.main(["--preset", "smoke", "--device", "cpu", "--out", str(out)])
    return json.loads((out / "record.json").read_text()) | {"out": out}


def test_a_smoke_run_records_every_result_and_draws_every_figure(record):
    names = {
        "best_iou_gap_min_one",
        "best_iou_gap_min_mean",
        "rank_gap",
        "gain_3_clicks",
        "box_gap_outer",
        "prompt_gap",
    }
    assert names | {"grid_time_over_click", "vit_h_over_sam2", "ceiling_iou_1px"} <= record["results"].keys()
    figures = record["figures"]
    assert {each["name"] for each in figures} == {"masks", "ambiguity", "prompts", "no_prompt", "cost", "ceiling"}
    assert all((record["out"] / each[style]).is_file() for each in figures for style in ("light", "dark"))


def test_a_prompt_costs_the_same_whatever_the_encoder(record):
    results = {name: each["mean"] for name, each in record["results"].items()}
    costs = [results[f"prompt_over_encoder_{name}"] * results[f"encoder_gmacs_{name}"] for name in sam.VITS]
    assert costs == pytest.approx([results["prompt_gmacs"]] * 3)


def test_pretrained_weights_are_refused():
    with pytest.raises(SystemExit, match="trains its own"):
        sam.main(["--preset", "smoke", "--weights", "pretrained"])
