"""The DINOv2 example: crops, teacher, loss and its collapses, measures of features, published counts, and a run of it all."""

import importlib
import json
import math

import pytest
import torch

pytestmark = pytest.mark.torch

dinov2 = importlib.import_module("dinov2")
PRESET = dinov2.PRESETS["smoke"]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def images():
    return torch.rand(4, 1, 20, 20, generator=generator())


@pytest.fixture
def student():
    torch.manual_seed(0)
    return dinov2.Student(PRESET)


def test_views_are_two_large_crops_and_the_small_ones(images):
    seen = dinov2.views(images, 2, generator())
    assert [each.shape[-1] for each in seen] == [16, 16, 8, 8]
    assert not torch.allclose(seen[0], seen[1])


def test_features_of_any_size_have_one_vector_for_each_patch(student, images):
    whole, patches = student.backbone(images)
    assert whole.shape == (4, PRESET.width)
    assert patches.shape == (4, 25, PRESET.width)
    assert student.backbone(images[..., :8, :8])[1].shape == (4, 4, PRESET.width)


def test_the_teacher_moves_by_the_part_that_does_not_stay(student):
    torch.manual_seed(1)
    teacher = dinov2.Student(PRESET).requires_grad_(False)
    before = teacher.prototypes.weight.clone()
    dinov2.follow(teacher, student, 0.9)
    torch.testing.assert_close(teacher.prototypes.weight, 0.9 * before + 0.1 * student.prototypes.weight.detach())


def test_without_momentum_the_teacher_is_the_student(student):
    torch.manual_seed(1)
    teacher = dinov2.Student(PRESET).requires_grad_(False)
    dinov2.follow(teacher, student, dinov2.RECIPES["no_momentum"].momentum)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))


def test_without_small_crops_only_the_large_ones_are_seen(images):
    seen = dinov2.views(images, dinov2.RECIPES["no_small_crops"].small, generator())
    assert [each.shape[-1] for each in seen] == [16, 16]


def test_each_arm_differs_from_the_recipe_in_one_thing():
    whole = dinov2.RECIPES["dino"]
    for name, recipe in dinov2.RECIPES.items():
        differing = [
            field
            for field in ("momentum", "temperature", "centring", "small")
            if getattr(recipe, field) != getattr(whole, field)
        ]
        assert len(differing) == (name != "dino")


def test_registers_are_four_more_vectors_of_the_width():
    plain, more = dinov2.dinov2("s"), dinov2.with_registers("s")
    assert sum(each.numel() for each in more.parameters()) - sum(each.numel() for each in plain.parameters()) == 4 * 384


def test_hours_of_training_grow_with_the_work_of_the_crops():
    hours = dinov2.training_hours(100, 0)
    assert hours == pytest.approx(625_000 * 1024 * (200 + 3 * 0.6 * 200) / 156e3 / 3600)
    assert dinov2.training_hours(100, 10) > hours


def test_centring_takes_the_running_mean_off_and_a_low_temperature_sharpens(student, images):
    view = [torch.rand(4, 1, 16, 16, generator=generator())]
    plain = dinov2.Recipe("", centring=False, temperature=0.1)
    student.requires_grad_(False).eval()
    student.centre.copy_(student(view[0]).mean(0))
    (centred,) = dinov2.teach(student, view, dinov2.Recipe("", temperature=0.1))
    (uncentred,) = dinov2.teach(student, view, plain)
    (sharp,) = dinov2.teach(student, view, dinov2.Recipe("", centring=False, temperature=0.01))
    assert dinov2.entropies(centred)[0] > dinov2.entropies(uncentred)[0]
    assert dinov2.entropies(sharp)[1] < dinov2.entropies(uncentred)[1]


def test_entropies_tell_both_collapses_from_answers_that_inform():
    one = torch.eye(8)[torch.zeros(8, dtype=torch.long)]
    assert dinov2.entropies(one) == pytest.approx((0, 0), abs=1e-6)
    assert dinov2.entropies(torch.full((8, 8), 1 / 8)) == pytest.approx((1, 1))
    assert dinov2.entropies(torch.eye(8)) == pytest.approx((1, 0), abs=1e-6)


def test_the_loss_leaves_a_crop_and_its_own_target_out_and_uniform_scores_cost_log_k():
    targets = [torch.eye(4), torch.eye(4)]
    assert dinov2.dino_loss(targets, [torch.zeros(4, 4)] * 3).item() == pytest.approx(math.log(4))
    own, other = torch.eye(4), torch.zeros(4, 4)
    assert dinov2.dino_loss(targets[:1], [own, other]).item() == pytest.approx(math.log(4))


def test_neighbours_vote_and_components_are_colours(student, images):
    bank = torch.eye(3).repeat_interleave(10, 0)
    labels = torch.arange(3).repeat_interleave(10)
    assert torch.equal(dinov2.nearest(bank, labels, torch.eye(3)), torch.arange(3))
    colours = dinov2.components(dinov2.dense(student.backbone.eval(), images))
    assert colours.shape == (4, 10, 10, 3)
    assert 0 <= colours.min() <= colours.max() <= 1


def test_masks_of_whole_patches_follow_wide_strokes_better():
    assert dinov2.stroke_ceiling(4, 0, count=3) < dinov2.stroke_ceiling(56, 0, count=3)
    assert dinov2.stroke_ceiling(8, 0, patch=1, count=2) == pytest.approx(1)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("dinov2")
    dinov2.main(["--preset", "smoke", "--device", "cpu", "--out", str(out)])
    return json.loads((out / "record.json").read_text()) | {"out": out}


def test_a_smoke_run_records_every_result_and_draws_every_figure(record):
    names = {"knn_gap_random", "knn_gap_pixels", "again_gap_random", "patch_gap_random", "information_gap_no_centring"}
    names |= {"knn_gap_no_momentum", "knn_gap_no_small_crops", "macs_registers_over_plain", "training_a100_hours"}
    assert names | {"macs_patch_8_over_16", "finetuning_over_linear_memory"} <= record["results"].keys()
    figures = record["figures"]
    assert {each["name"] for each in figures} == {"crops", "features", "components", "collapse", "parts", "patches"}
    assert all((record["out"] / each[style]).is_file() for each in figures for style in ("light", "dark"))


def test_the_largest_size_has_one_point_one_billion_parameters(record):
    assert record["results"]["parameters_g"]["mean"] == pytest.approx(1.1365, abs=0.01)


def test_pretrained_weights_are_refused():
    with pytest.raises(SystemExit, match="trains its own"):
        dinov2.main(["--preset", "smoke", "--weights", "pretrained"])
