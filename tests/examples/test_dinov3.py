"""The DINOv3 example: who answers a small network, the Gram matrix, what is measured, and its rivals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import dinov2
import dinov3 as example
import pytest
import torch
from claims import dinov3 as claims
from lab.run import Run

SMOKE = example.PRESETS["smoke"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.start("dinov3", argv=["--preset", "smoke", "--device", "cpu", "--out", str(tmp_path)])


@pytest.fixture
def large() -> dinov2.Student:
    torch.manual_seed(7)
    return dinov2.Student(SMOKE.large._replace(width=18)).requires_grad_(False).eval()


def answered_by(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The scores that the losses of a training take as the teacher's."""
    seen: list[torch.Tensor] = []
    teach = dinov2.teach
    monkeypatch.setattr(dinov2, "teach", lambda scores: seen.append(scores) or teach(scores))
    return seen


def test_a_frozen_network_answers_and_stays_as_it_is(run, large, monkeypatch) -> None:
    before, asked = {name: each.clone() for name, each in large.state_dict().items()}, []
    large.register_forward_hook(lambda module, inputs, output: asked.append(output))
    seen = answered_by(monkeypatch)
    example.learn.__wrapped__(run, SMOKE.small, 0, 1e-2, large)
    assert len(seen) == SMOKE.small.steps
    assert all(torch.equal(a, b) for a, b in zip(seen, asked, strict=True))
    assert all(torch.equal(each, before[name]) for name, each in large.state_dict().items())
    assert not large.training


def test_without_one_the_average_of_the_student_answers(run, monkeypatch) -> None:
    followed, follow = [], dinov2.follow
    monkeypatch.setattr(dinov2, "follow", lambda average, model: followed.append(average) or follow(average, model))
    kept = example.learn.__wrapped__(run, SMOKE.small, 0, 1e-2)
    assert {id(each) for each in followed} == {id(kept)}
    assert not kept.training
    assert not any(each.requires_grad for each in kept.parameters())


def test_both_ways_start_from_the_same_weights_and_see_the_same_crops(run, large, monkeypatch) -> None:
    first, views = [], dinov2.views
    monkeypatch.setattr(dinov2, "views", lambda images, g: first.append(found := views(images, g)) or found)
    starts, follow = [], dinov2.follow
    monkeypatch.setattr(
        dinov2, "follow", lambda a, m: (starts.append(m.prototypes.weight.detach().clone()), follow(a, m))
    )
    for teacher in (None, large):
        example.learn.__wrapped__(run, SMOKE.small, 3, 1e-2, teacher)
    half = len(first) // 2
    assert torch.equal(starts[0], starts[half])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first[:half], first[half:], strict=True))


def test_the_large_network_is_larger_and_the_arms_are_equal(run) -> None:
    for name in ("quick", "full"):
        large, small = (
            sum(each.numel() for each in dinov2.ViT(p.width, p.layers).parameters()) for p in example.PRESETS[name]
        )
        assert large > 3 * small
        assert example.PRESETS[name].large.prototypes == example.PRESETS[name].small.prototypes


def test_the_gram_loss_sees_which_places_are_alike_and_not_what_they_are() -> None:
    maps, other = torch.randn(3, 4, 8, generator=generator()), torch.randn(3, 4, 5, generator=generator(1))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator(2))).Q
    assert example.gram(maps).shape == (12, 12)
    assert example.gram_loss(maps, maps @ rotation) == pytest.approx(0, abs=1e-10)
    assert example.gram_loss(maps, 3 * maps) == pytest.approx(0, abs=1e-10)
    assert example.gram_loss(maps, other) == pytest.approx(example.gram_loss(other, maps))
    assert example.gram_loss(maps, maps.flip(0)) > 0.01


def test_the_gram_loss_is_the_squared_difference_of_similarities_over_pairs_of_places() -> None:
    student, teacher = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])
    assert example.gram_loss(student, teacher) == pytest.approx(2 / 4)  # two of four pairs differ, by one each


def test_the_control_has_the_size_of_the_large_network_and_is_drawn_once(run) -> None:
    control, large = claims.TEACHERS["untrained"](run), example.large_of(run)
    assert control is claims.TEACHERS["untrained"](run)
    assert [each.shape for each in control.parameters()] == [each.shape for each in large.parameters()]
    assert claims.TEACHERS["self"](run) is None
    assert claims.TEACHERS["distilled"](run) is large


def test_a_network_is_as_near_to_itself_as_can_be(run) -> None:
    assert claims.apart(run, example.large_of(run).backbone) == 0
    assert claims.apart(run, claims.untrained(run, 0)) > 0


def test_a_training_that_is_worth_less_than_random_weights_backs_no_claim(monkeypatch) -> None:
    class Settings:
        preset, seeds, device = "smoke", (0, 1, 2), torch.device("cpu")

        def progress(self, jobs, **options):
            return jobs

    monkeypatch.setattr(claims, "fitted", lambda run, arm, seed, rate: (arm, seed))
    monkeypatch.setattr(claims, "rates_of", lambda run: dict.fromkeys(claims.ARMS, 1e-2))
    monkeypatch.setattr(claims, "untrained", lambda run, seed: "random")
    monkeypatch.setattr(
        claims, "knn", lambda run, backbone: {"random": 40.0, ("distilled", 1): 30.0}.get(backbone, 50.0)
    )
    monkeypatch.setattr(claims, "apart", lambda run, backbone: 0.1)
    scores = claims.scores_of.__wrapped__(Settings())
    assert [math.isnan(each) for each in scores.minus("knn", "distilled", "self")] == [False, True, False]


def test_rates_are_chosen_on_validation_pieces_and_alike_for_all_arms(run, monkeypatch) -> None:
    asked = []

    def search(run, what, arms, grid, score):
        asked.extend(arms)
        score("self", grid[0], 100)
        return dict.fromkeys(arms, grid[0])

    monkeypatch.setattr(claims.study, "search", search)
    monkeypatch.setattr(claims, "fitted", lambda *arguments: None)
    monkeypatch.setattr(claims, "knn", lambda run, backbone, split: asked.append(split) or 0.0)
    claims.rates_of.__wrapped__(run)
    assert asked == [*claims.ARMS, "val"]


def test_the_file_to_read_uses_what_the_search_chose() -> None:
    kept = json.loads((Path(claims.__file__).parent / "dinov3.searches.json").read_text("utf-8"))["learning rate"]
    assert set(kept["arms"]) == set(claims.ARMS)
    assert {arm: kept["arms"][arm]["chosen"] for arm in ("self", "distilled")} == example.RATES


def test_published_components_leave_out_the_class_token_and_the_registers(monkeypatch) -> None:
    """With the real classes, few layers and random weights in the place of the gated download."""
    import transformers
    from PIL import Image

    config = transformers.DINOv3ViTConfig(
        hidden_size=24, intermediate_size=24, num_attention_heads=2, num_hidden_layers=1, num_register_tokens=4
    )
    model = transformers.DINOv3ViTModel(config).eval()
    monkeypatch.setattr(transformers.DINOv3ViTModel, "from_pretrained", lambda name: model)
    monkeypatch.setattr(
        transformers.AutoImageProcessor, "from_pretrained", lambda name, **o: transformers.DINOv3ViTImageProcessor(**o)
    )
    colours = example.published_components(Image.new("RGB", (90, 60), (10, 200, 90)), side=64)
    assert colours.shape == (4, 4, 3)
    assert 0 <= colours.min() <= colours.max() <= 1


def test_where_the_gate_is_closed_one_line_says_so(tmp_path, monkeypatch) -> None:
    from lab import weights

    def gated():
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it.")

    run = Run.start(
        "dinov3", argv=["--preset", "smoke", "--device", "cpu", "--out", str(tmp_path), "--weights", "pretrained"]
    )
    with pytest.raises(SystemExit, match="gated repo") as told:
        weights.published(run, example.PUBLISHED, gated, megabytes=86)
    assert "\n" not in str(told.value)
