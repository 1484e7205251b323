"""The benchmark that all detectors share."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from lab import detectors
from lab.data.scenes import STRESSES, Scenes
from lab.detectors import BENCHMARKS, measures, on_scenes, report, scenes_of, steps_to_half, train, truth
from lab.options import Settings
from lab.run import Run
from torch import Tensor, nn

pytestmark = pytest.mark.torch

SMOKE = BENCHMARKS["smoke"]


class Anywhere(nn.Module):
    """Says that there is one box, the same in every image."""

    def __init__(self) -> None:
        super().__init__()
        self.box = nn.Parameter(torch.tensor([16.0, 16.0, 48.0, 48.0]))

    def loss(self, scenes: Scenes) -> Tensor:
        return torch.stack([(self.box - boxes[0]).abs().mean() for boxes in scenes.boxes]).mean()


def one_box(model: Anywhere, images: Tensor) -> list[dict[str, Tensor]]:
    found = {"boxes": model.box[None], "scores": torch.ones(1), "labels": torch.zeros(1, dtype=torch.long)}
    return [found for _ in images]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("run")
    run = Run.start("detr", argv=["--preset", "smoke", "--device", "cpu", "--out", str(out)])
    learn = partial(train, loss=Anywhere.loss, detect=one_box, learning_rate=0.5, what="anywhere")
    trained = [learn(run, SMOKE, seed, Anywhere()) for seed in run.seeds]
    report(run, SMOKE, trained, one_box, one_box, name="a fixed box")
    return json.loads(run.finish().read_text())


def test_a_report_names_every_measure_that_the_page_compares(record: dict) -> None:
    wanted = {f"scenes_{name}" for name in (*detectors.AP_NAMES, *(f"ap_{stress}" for stress in STRESSES))}
    wanted |= {"scenes_boxes_per_object_raw", "scenes_steps_to_half"}
    assert set(record["results"]) == wanted
    assert [each["name"] for each in record["figures"]] == ["stress"]


def test_a_report_names_its_budget(record: dict) -> None:
    (experiment,) = record["experiments"]
    assert experiment["steps"] == sum(SMOKE.steps)
    assert experiment["parameters"] == 4


def test_the_truth_itself_has_full_ap_and_one_box_for_each_object() -> None:
    scenes = scenes_of(SMOKE, "test", seed=0)
    found = [each | {"scores": torch.ones(len(each["labels"]))} for each in truth(scenes)]
    assert measures(found, scenes, SMOKE) == pytest.approx(
        {"ap": 100, "ap50": 100, "ap_small": 100, "ap_medium": 100, "ap_large": 100, "boxes": 1}
    )


def test_a_doubled_box_counts_twice_for_its_object() -> None:
    scenes = scenes_of(SMOKE, "test", seed=0)
    once = [each | {"scores": torch.ones(len(each["labels"]))} for each in truth(scenes)]
    twice = [{name: torch.cat([value, value]) for name, value in each.items()} for each in once]
    assert measures(twice, scenes, SMOKE)["boxes"] == 2


def test_where_nothing_is_found_the_boxes_of_an_object_are_undefined() -> None:
    scenes = scenes_of(SMOKE, "test", seed=0)
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)}
    assert math.isnan(measures([nothing] * len(scenes), scenes, SMOKE)["boxes"])


def test_scenes_of_splits_and_stresses_differ_and_repeat() -> None:
    train, test = (scenes_of(SMOKE, split, seed=3) for split in ("train", "test"))
    assert not torch.equal(train.images[:8], test.images[:8])
    for stress in STRESSES:
        first, again = (scenes_of(SMOKE, "test", 3, stress) for _ in range(2))
        assert torch.equal(first.images, again.images)
        assert len(first) == SMOKE.stressed


def test_the_short_measures_are_those_of_the_long_one() -> None:
    scenes = scenes_of(SMOKE, "test", seed=0)
    found = [each | {"scores": torch.linspace(1, 0.1, len(each["labels"]))} for each in truth(scenes)]
    found = [each | {"boxes": each["boxes"] + 1.5} for each in found]
    whole = measures(found, scenes, SMOKE)
    assert 0 < whole["ap"] < whole["ap50"]
    assert detectors.ap_of(found, scenes) == whole["ap"]
    assert detectors.ap_of(found, scenes, "ap50") == whole["ap50"]
    assert detectors.boxes_of(found, scenes, SMOKE) == whole["boxes"]


@pytest.mark.parametrize(("every", "points"), [(3, [3, 6, 8]), (6, [8])])
def test_a_curve_that_nobody_follows_has_its_last_point_only(tmp_path: Path, every: int, points: list[int]) -> None:
    run = Run("detr", Settings("smoke", torch.device("cpu"), (0,), tmp_path, "random"))
    benchmark = replace(SMOKE, every=every)
    trained = train(run, benchmark, 0, Anywhere(), Anywhere.loss, one_box, learning_rate=0.5, what="anywhere")
    assert [step for step, _ in trained.curve] == points


def test_pictures_are_of_scenes_whose_objects_are_all_found_and_nothing_else(tmp_path: Path) -> None:
    run = Run("detr", Settings("smoke", torch.device("cpu"), (0,), tmp_path, "random"))
    test = scenes_of(SMOKE, "test", 0)
    known = iter(truth(test))

    def but_for_two(model: Anywhere, images: Tensor) -> list[dict[str, Tensor]]:
        found = [each | {"scores": torch.ones(len(each["labels"]))} for each, _ in zip(known, images, strict=False)]
        found[1] = {name: torch.cat([each, each[:1]]) for name, each in found[1].items()}  # one box too many
        found[3]["boxes"] = found[3]["boxes"] + 40  # as many as there are, but elsewhere
        return found

    trained = detectors.Trained(Anywhere(), test, [])
    assert detectors.all_found(run, SMOKE, trained, but_for_two) == [i for i in range(len(test)) if i not in (1, 3)]
    nothing = lambda model, images: [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)} for _ in images]  # noqa: E731
    assert detectors.all_found(run, SMOKE, trained, nothing) == [*range(len(test))]


def test_steps_to_half_are_interpolated() -> None:
    assert steps_to_half([(10, 0.0), (20, 4.0), (30, 8.0)]) == 20
    assert steps_to_half([(10, 8.0), (20, 8.0)]) == 5


def test_scenes_are_read_in_parts_of_any_number() -> None:
    scenes = scenes_of(SMOKE, "test", seed=0)
    sizes: list[int] = []

    def detect(images: Tensor) -> list[dict[str, Tensor]]:
        sizes.append(len(images))
        return one_box(Anywhere(), images)

    assert len(on_scenes(detect, scenes, torch.device("cpu"))) == len(scenes)
    assert sum(sizes) == len(scenes)
