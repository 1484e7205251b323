"""The V-JEPA 2 example: tubelets, hidden tubes, predictor and teacher, what is read from features, and its rival."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from lab.data.clips import DIRECTIONS, moving_digits
from lab.run import Run

example, claims = import_module("v-jepa2"), import_module("claims.v-jepa2")
SMOKE = example.PRESETS["smoke"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def clips():
    return moving_digits("val", 12, seed=3, frames=example.FRAMES, canvas=example.CANVAS, noise=0.1)


@pytest.fixture
def student():
    torch.manual_seed(0)
    return example.Student(SMOKE, SMOKE.width).eval()


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.start("v-jepa2", argv=["--preset", "smoke", "--device", "cpu", "--out", str(tmp_path)])


def test_a_tubelet_holds_the_pixels_of_one_place_in_two_frames(clips) -> None:
    cut = example.tubelets(clips.frames)
    assert cut.shape == (12, example.TOKENS, example.PIXELS)
    time, row, column = 1, 2, 3
    part = clips.frames[:, 2:4, 0, 8:12, 12:16]
    torch.testing.assert_close(cut[:, (time * 4 + row) * 4 + column], (part.flatten(1) - 0.2) / 0.3)


def test_every_tubelet_is_either_seen_or_hidden_and_hidden_places_are_hidden_in_all_frames() -> None:
    seen, hidden = example.tubes(50, generator())
    assert torch.equal(torch.cat([seen, hidden], 1).sort(1).values, torch.arange(example.TOKENS).expand(50, -1))
    places = torch.zeros(50, example.TOKENS).scatter(1, hidden, 1).view(50, -1, example.GRID, example.GRID)
    assert torch.equal(places[:, 0], places[:, 1])
    assert torch.equal(places[:, 0].amax(2).sum(1), torch.full((50,), float(example.BLOCK)))  # rows of one block
    assert len(places[:, 0].unique(dim=0)) > 8


def test_what_is_predicted_does_not_hang_on_what_is_hidden(student, clips) -> None:
    x, (seen, hidden) = example.tubelets(clips.frames), example.tubes(12, generator())
    changed = x.scatter_add(
        1, hidden[..., None].expand(-1, -1, x.shape[2]), torch.ones(12, hidden.shape[1], x.shape[2])
    )
    with torch.no_grad():
        before, after = student(x, seen, hidden), student(changed, seen, hidden)
        assert torch.equal(before, after)
        assert not torch.equal(before, student(x.flip(0), seen, hidden))


def test_each_number_of_the_target_has_one_scale_and_a_fallen_teacher_gives_a_finite_one(student, clips) -> None:
    x = example.tubelets(clips.frames)
    with torch.no_grad():
        target = example.feature_target(student.encoder, x)
        torch.testing.assert_close(target.std((0, 1)), torch.ones(SMOKE.width), rtol=0.02, atol=0)
        fallen = example.feature_target(lambda x: torch.ones(*x.shape[:2], 5), x)
    assert torch.equal(fallen, torch.zeros_like(fallen))


def test_the_teacher_moves_by_the_part_that_does_not_stay(student) -> None:
    torch.manual_seed(1)
    teacher = example.Encoder(SMOKE.width, SMOKE.layers)
    before, stays = teacher.position.detach().clone(), example.MOMENTUM
    example.follow(teacher, student.encoder)
    torch.testing.assert_close(teacher.position, stays * before + (1 - stays) * student.encoder.position)


@pytest.mark.parametrize("arm", claims.LEARNS)
def test_what_is_kept_is_a_frozen_average_whatever_was_predicted(run, arm, monkeypatch) -> None:
    steps, follow = [], example.follow
    monkeypatch.setattr(example, "follow", lambda t, s: (steps.append((t.training, s.training)), follow(t, s)))
    encoder = claims.fitted(run, arm, 0, 1e-3)
    assert steps == [(False, True)] * SMOKE.steps
    assert not any(each.requires_grad for each in encoder.parameters())


def test_features_and_pixels_are_predicted_by_equal_networks() -> None:
    quick = example.PRESETS["quick"]
    counts = {
        sum(each.numel() for each in example.Student(quick, out).parameters()) for out in (quick.width, example.PIXELS)
    }
    assert len(counts) == 1


def test_targets_of_pixels_are_the_pixels_or_each_tubelet_normed(clips) -> None:
    x = example.tubelets(clips.frames)
    assert claims.pixel_target(None, x) is x
    normed = claims.normed_target(None, x)
    torch.testing.assert_close(normed.mean(-1), torch.zeros(normed.shape[:2]), atol=1e-5, rtol=0)


def test_a_reader_that_sees_motion_is_right_forwards_and_opposite_backwards(student, clips) -> None:
    """With a stand-in that knows the truth; a reader of stills would say the same twice, so be right once at most."""

    class Knows:
        def __init__(self, *answers) -> None:
            self.answers = iter(answers)

        def predict(self, shown: np.ndarray) -> np.ndarray:
            return next(self.answers)

    truth = clips.labels.numpy()
    assert example.read(Knows(truth, (truth + 2) % 4), student.encoder, clips) == {"right": 100, "turned": 100}
    assert example.read(Knows(truth, truth), student.encoder, clips) == {"right": 100, "turned": 0}


def test_discriminants_read_what_lies_in_the_features(clips) -> None:
    class Bright(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.stack([x.mean(-1), x.square().mean(-1)], -1)

    many = moving_digits("train", 300, seed=0, frames=example.FRAMES, canvas=example.CANVAS)
    dark = many.frames * (0.3 + 0.7 * (torch.arange(300) % 2).view(-1, 1, 1, 1, 1))
    shown = type(many)(dark, torch.arange(300) % 2, many.speeds, many.digits)
    fitted = example.reader(Bright(), shown, shown.labels)
    said = fitted.predict(example.features(example.Pooled(Bright()), shown.frames).numpy())
    assert (said == shown.labels.numpy()).mean() > 0.9


def test_the_share_of_noise_is_all_of_an_empty_clip_and_nothing_of_what_ignores_it(run, monkeypatch, clips) -> None:
    empty = type(clips)(torch.zeros_like(clips.frames), clips.labels, clips.speeds, clips.digits)
    monkeypatch.setattr(claims, "held_out", lambda run, split, noise: empty)
    assert claims.share_of_noise(run, lambda x: x, 0) == pytest.approx(100, abs=3)
    places = torch.arange(example.TOKENS).float()[None, :, None]
    assert claims.share_of_noise(run, lambda x: places.expand(len(x), -1, 1), 0) == 0


def test_a_training_that_is_worth_less_than_random_weights_backs_no_claim(monkeypatch) -> None:
    class Settings:
        preset, seeds, device = "smoke", (0, 1, 2), torch.device("cpu")

        def progress(self, jobs, **options):
            return jobs

    def direction(run, encoder, seed, split):
        return {"right": 50.0 if encoder == "random" or (encoder, seed) == ("features", 1) else 60.0, "turned": 60.0}

    monkeypatch.setattr(claims, "fitted", lambda run, arm, seed, rate: arm)
    monkeypatch.setattr(claims, "rates_of", lambda run: dict.fromkeys(claims.LEARNS, 1e-3))
    monkeypatch.setattr(claims, "untrained", lambda run, seed: "random")
    monkeypatch.setattr(claims, "direction", direction)
    monkeypatch.setattr(claims, "digit", lambda *arguments: 10.0)
    monkeypatch.setattr(claims, "share_of_noise", lambda *arguments: 10.0)
    monkeypatch.setattr(claims, "FLOOR", ("over random", 1.0))
    scores = claims.scores_of.__wrapped__(Settings())
    assert [math.isnan(each) for each in scores.minus("right", "features", "pixels_normed")] == [False, True, False]


def test_rates_are_chosen_on_validation_clips_and_alike_for_all_arms(run, monkeypatch) -> None:
    asked = []

    def search(run, what, arms, grid, score):
        asked.extend(arms)
        score("features", grid[0], 100)
        return dict.fromkeys(arms, grid[0])

    monkeypatch.setattr(claims.study, "search", search)
    monkeypatch.setattr(claims, "fitted", lambda *arguments: None)
    monkeypatch.setattr(claims, "direction", lambda run, encoder, seed, split: asked.append(split) or {"right": 0})
    claims.rates_of.__wrapped__(run)
    assert asked == [*claims.LEARNS, "val"]


def test_the_file_to_read_uses_what_the_search_chose_and_the_rival_is_the_best_of_its_kind() -> None:
    kept = json.loads((Path(claims.__file__).parent / "v-jepa2.searches.json").read_text("utf-8"))["learning rate"]
    assert kept["arms"]["features"]["chosen"] == example.RATE
    best = {arm: max(each["scores"]) for arm, each in kept["arms"].items() if arm != "features"}
    assert [max(best, key=best.get)] == [arm for arm in claims.ARMS if arm != "features"]


def test_a_camera_moves_over_the_photograph_and_back() -> None:
    from PIL import Image

    wide = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[None, :, None], (64, 1, 3)))
    moves = example.panned(wide, frames=5, side=32)
    assert list(moves) == list(DIRECTIONS)
    assert all(each.shape == (5, 3, 32, 32) for each in moves.values())
    assert moves["right"][:, 0, 0, 0].tolist() == [0, 8, 16, 24, 32]
    assert torch.equal(moves["left"], moves["right"].flip(0))
    assert torch.equal(moves["down"][0], moves["down"][-1])  # every row of this picture is the same


def test_the_published_model_says_something_of_each_movement(monkeypatch) -> None:
    """With the real classes, few layers and random weights in the place of the download."""
    import transformers
    from PIL import Image

    config = transformers.VJEPA2Config(
        crop_size=32, frames_per_clip=4, hidden_size=24, num_attention_heads=2, num_hidden_layers=1, num_labels=3,
        pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1, num_pooler_layers=1,
    )  # fmt: skip
    network = transformers.VJEPA2ForVideoClassification(config)
    processor = transformers.VJEPA2VideoProcessor(crop_size={"height": 32, "width": 32}, size={"shortest_edge": 36})
    monkeypatch.setattr(transformers.VJEPA2ForVideoClassification, "from_pretrained", lambda name: network)
    monkeypatch.setattr(transformers.AutoVideoProcessor, "from_pretrained", lambda name: processor)
    said = example.published(Image.new("RGB", (80, 60), (200, 30, 90)))
    assert [each["camera moves"] for each in said] == list(DIRECTIONS)
    assert all(each["says"].startswith("LABEL_") and 33 < each["%"] <= 100 for each in said)


def test_a_step_works_in_bfloat16(student, clips) -> None:
    x, (seen, hidden) = example.tubelets(clips.frames), example.tubes(12, generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            wanted = example.at(example.feature_target(student.encoder, x), hidden)
        loss = torch.nn.functional.l1_loss(student.train()(x, seen, hidden), wanted)
    loss.backward()
    assert wanted.dtype == torch.float32
    assert all(each.grad is None or each.grad.isfinite().all() for each in student.parameters())
