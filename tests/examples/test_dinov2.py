"""The DINOv2 example: crops, teacher, loss and its collapses, measures of features, formulas, and controls."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest
import torch
from lab.data.photographs import NAMES
from lab.data.surfaces import surfaces
from lab.neighbours import right, voted

pytestmark = pytest.mark.torch

dinov2 = importlib.import_module("dinov2")
claims = importlib.import_module("claims.dinov2")
PRESET = dinov2.PRESETS["smoke"]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def images():
    return torch.rand(4, 1, 24, 24, generator=generator())


@pytest.fixture
def student():
    torch.manual_seed(0)
    return dinov2.Student(PRESET)


def test_views_are_two_large_crops_and_two_small_ones_of_each_image(images):
    large, small = dinov2.views(images, generator())
    assert (large.shape, small.shape) == ((8, 1, 16, 16), (8, 1, 8, 8))
    assert not torch.allclose(large[:4], large[4:])


def test_a_crop_of_a_flat_image_is_flat_whatever_its_place(images):
    crop = dinov2.crops(torch.full((4, 1, 24, 24), 0.5), 8, (0.25, 0.5), generator())
    torch.testing.assert_close(crop.amin((1, 2, 3)), crop.amax((1, 2, 3)))


def test_features_of_any_size_are_one_vector_for_each_image(student, images):
    assert student.backbone(images).shape == (4, PRESET.width)
    assert student.backbone(images[..., :8, :8]).shape == (4, PRESET.width)


def test_the_teacher_moves_by_the_part_that_does_not_stay(student):
    torch.manual_seed(1)
    teacher = dinov2.Student(PRESET).requires_grad_(False)
    before = teacher.prototypes.weight.clone()
    student(torch.rand(4, 1, 16, 16, generator=generator()))
    dinov2.follow(teacher, student)
    stays = dinov2.MOMENTUM
    torch.testing.assert_close(
        teacher.prototypes.weight, stays * before + (1 - stays) * student.prototypes.weight.detach()
    )
    assert torch.equal(teacher.project[1].running_mean, student.project[1].running_mean)


def test_the_teacher_is_never_in_training_mode(monkeypatch):
    """It once was, so that its answer to a picture, and the entropies, hung on the other pictures of the batch."""
    from lab.run import Run

    seen = []
    follow = dinov2.follow
    monkeypatch.setattr(dinov2, "follow", lambda t, s: (seen.append((t.training, s.training)), follow(t, s)))
    run = Run.start("dinov2", argv=["--preset", "smoke", "--device", "cpu"])
    teacher = dinov2.distil(run, 0)
    assert set(seen) == {(False, True)}
    assert not teacher.training


def test_an_answer_does_not_hang_on_the_other_pictures(student, images):
    student.eval()
    with torch.no_grad():
        torch.testing.assert_close(student(images)[:1], student(images[:1]))


def test_centring_gives_each_prototype_its_share_and_each_answer_weight_one():
    scores = torch.randn(32, 8, generator=generator()) + 3 * torch.eye(8)[0]  # the first prototype is ahead
    p = dinov2.sinkhorn(scores, turns=30)
    torch.testing.assert_close(p.sum(1), torch.ones(32))
    torch.testing.assert_close(p.sum(0), torch.full((8,), 4.0), rtol=1e-3, atol=1e-3)
    assert scores.softmax(1).mean(0)[0] > 0.5


def test_the_controls_lack_one_thing_each():
    cosines = 0.5 * torch.rand(32, 8, generator=generator()) + 0.3 * torch.eye(8)[0]
    whole, uncentred, unsharpened = (
        dinov2.entropies(t(cosines)) for t in (dinov2.teach, claims.uncentred, claims.unsharpened)
    )
    assert uncentred["entropy_of_mean"] < 0.8 * whole["entropy_of_mean"]  # one prototype takes most
    assert unsharpened["entropy_of_mean"] > 0.95
    assert unsharpened["information"] < whole["information"]  # answers are more alike


def test_entropies_tell_both_collapses_from_answers_that_inform():
    one = torch.eye(8)[torch.zeros(8, dtype=torch.long)]
    for p, expected in ((one, (0, 0, 0)), (torch.full((8, 8), 1 / 8), (1, 1, 0)), (torch.eye(8), (1, 0, 1))):
        assert tuple(dinov2.entropies(p).values()) == pytest.approx(expected, abs=1e-6)


def test_the_loss_compares_every_crop_with_the_answer_to_another_one():
    uniform = torch.zeros(4, 4)
    assert dinov2.dino_loss(torch.eye(4), uniform, uniform).item() == pytest.approx(math.log(4))
    targets = torch.eye(4)[[0, 1, 2, 3]]  # two pictures, two large crops each: their answers all differ
    own, other = 10 * targets, 10 * targets.roll(2, 0)
    assert dinov2.dino_loss(targets, other, other) < dinov2.dino_loss(targets, own, other)


def test_neighbours_vote_and_components_are_colours(student, images):
    bank, labels = torch.eye(3).repeat_interleave(10, 0), torch.arange(3).repeat_interleave(10)
    assert torch.equal(voted(bank, labels, torch.eye(3)), torch.arange(3))
    assert right(bank, labels, torch.eye(3), torch.tensor([0, 1, 1])) == pytest.approx(200 / 3)
    colours = dinov2.components(dinov2.dense(student.backbone.eval(), images[0, 0]))
    assert colours.shape == (3, 3, 3)
    assert 0 <= colours.min() <= colours.max() <= 1


def test_the_window_of_a_feature_lies_where_it_is_drawn(student):
    image = torch.zeros(32, 24)
    image[16:, 8:] = torch.rand(16, 16, generator=generator())
    backbone = student.backbone.eval()
    with torch.no_grad():
        torch.testing.assert_close(dinov2.dense(backbone, image)[4, 2], backbone(image[None, None, 16:, 8:])[0])


def test_pieces_come_with_the_photograph_that_they_are_cut_from():
    pieces, labels = surfaces("val", 50, 24, seed=0)
    assert pieces.shape == (50, 1, 24, 24)
    assert 0 <= pieces.min() <= pieces.max() <= 1
    assert labels.max() < len(NAMES)
    assert torch.equal(pieces, surfaces("val", 50, 24, seed=0)[0])
    assert not torch.equal(pieces, surfaces("test", 50, 24, seed=0)[0])


def test_masks_of_whole_patches_follow_wide_strokes_better():
    assert claims.stroke_ceiling(4, 0, count=3) < claims.stroke_ceiling(56, 0, count=3)
    assert claims.stroke_ceiling(8, 0, patch=1, count=2) == pytest.approx(1)


@pytest.mark.parametrize(("size", "patch", "more"), [("s", 16, 1), ("s", 8, 1), ("g", 14, 1), ("g", 14, 5)])
def test_the_formula_counts_what_the_network_computes(size, patch, more):
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    width, layers = claims.WIDTHS[size]
    config = Dinov2WithRegistersConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, patch_size=patch, image_size=224,
        num_register_tokens=more - 1, use_swiglu_ffn=size == "g",
    )  # fmt: skip
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = Dinov2WithRegistersModel(config).requires_grad_(False)
        model(torch.empty(1, 3, 224, 224))
    assert claims.macs(size, 224, patch, more) == pytest.approx(counter.get_total_flops() / 2, rel=0.01)
    if size == "g":
        assert layers * 12 * width**2 == pytest.approx(sum(each.numel() for each in model.parameters()), rel=0.01)


class Settings:
    """As much of a run as the arms ask for."""

    preset, seeds, device = "smoke", (0, 1, 2), torch.device("cpu")


def test_a_recipe_that_is_worth_less_than_random_weights_backs_no_claim(monkeypatch):
    """Ablations of networks that learned nothing (31 % with random weights, 32 % after training) were once compared."""

    def knn(run, look, seed, split="test"):
        return {0: 50.0, 1: 20.0, 2: 50.0}[seed] if look == "dino" else 40.0

    monkeypatch.setattr(claims, "trained", lambda run, arm: ["dino" if arm == "dino" else "other"] * 3)
    monkeypatch.setattr(claims, "looking", lambda backbone: backbone if backbone == "dino" else "other")
    monkeypatch.setattr(claims, "knn", knn)
    monkeypatch.setattr(claims, "found_again", lambda look, images, seed: 50.0)
    monkeypatch.setattr(claims, "answers", lambda run, arm, teacher: dict.fromkeys(claims.ENTROPIES, 0.5))
    scores = claims.scores_of.__wrapped__(Settings())
    assert set(scores.failed["dino"]) == {1}
    assert [math.isnan(value) for value in scores.minus("information", "dino", "no_centring")] == [False, True, False]


def test_the_rate_is_chosen_on_validation_pieces_and_alike_for_all_arms(monkeypatch):
    asked = []

    def search(run, what, arms, grid, score):
        asked.extend(arms)
        score("dino", grid[0], 100)
        return dict.fromkeys(arms, grid[0])

    monkeypatch.setattr(claims.study, "search", search)
    monkeypatch.setattr(claims, "fitted", lambda run, arm, seed, rate: dinov2.Student(PRESET).eval())
    pieces_of = claims.pieces_of
    monkeypatch.setattr(
        claims, "pieces_of", lambda run, split, seed=0: asked.append(split) or pieces_of(run, split, seed)
    )
    claims.rates_of.__wrapped__(Settings())
    assert asked == [*claims.ARMS, "train", "val"]


def test_the_file_to_read_uses_what_the_search_chose_and_what_learns_lies_within_its_grid():
    kept = json.loads((Path(claims.__file__).parent / "dinov2.searches.json").read_text("utf-8"))["learning rate"]
    assert kept["arms"]["dino"]["chosen"] == dinov2.RATE
    assert set(kept["arms"]) == set(claims.ARMS)
    assert not any(kept["arms"][arm]["at_edge"] for arm in ("dino", "labels"))
    assert max(kept["arms"]["no_centring"]["scores"]) < max(kept["arms"]["dino"]["scores"])  # no rate mends a collapse


def test_a_step_works_in_bfloat16(images):
    """The centre was once a float that was moved towards scores in bfloat16."""
    torch.manual_seed(0)
    model = dinov2.Student(PRESET).train()
    large, small = dinov2.views(images, generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            targets = dinov2.teach(model(large))
        loss = dinov2.dino_loss(targets, model(large), model(small))
    loss.backward()
    assert targets.dtype == torch.float32
    assert all(each.grad is None or each.grad.isfinite().all() for each in model.parameters())
