"""The RF-DETR example: queries in the order of their scores, layers that can be left out, exact matching, and measures."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from detr import hungarian
from lab.data.named import SIDE
from lab.matching import few_to_one
from torch import nn

example: Any = import_module("rf-detr")
claims: Any = import_module("claims.rf-detr")
SMOKE = example.PRESETS["smoke"]


class Settings:
    """As much of a run as the functions ask for."""

    preset, seeds, device = "smoke", (0, 1), torch.device("cpu")


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return example.RFDETR(SMOKE).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_proposals_come_first_and_then_what_each_layer_says(model: Any, images: torch.Tensor) -> None:
    said = model(images)
    assert said.logits.shape == (SMOKE.layers + 1, 2, SMOKE.queries, 2)
    assert said.boxes.shape == (SMOKE.layers + 1, 2, SMOKE.queries, 4)
    assert said.boxes.min() > 0
    assert said.boxes.max() < 1


def test_queries_stand_in_the_order_of_the_scores_of_their_positions(model: Any, images: torch.Tensor) -> None:
    proposals = model(images).logits[0]
    score = proposals[..., 0] - proposals[..., 1]
    assert (score[:, :-1] >= score[:, 1:]).all()


def test_leaving_out_layers_changes_nothing_in_those_before(model: Any, images: torch.Tensor) -> None:
    whole, short = model(images), model(images, layers=1)
    assert short.boxes.shape[0] == 2
    torch.testing.assert_close(short.boxes, whole.boxes[:2])
    torch.testing.assert_close(short.logits, whole.logits[:2])


def test_ranks_choose_among_the_queries(model: Any, images: torch.Tensor) -> None:
    ranks = torch.tensor([0, 3])
    torch.testing.assert_close(model(images, ranks=ranks).boxes[0], model(images).boxes[0][:, ranks])


def test_every_layer_corrects_the_proposal_itself(model: Any, images: torch.Tensor) -> None:
    last = model.box_heads[1][-2] if isinstance(model.box_heads[1][-1], nn.Dropout) else model.box_heads[1][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    said = model(images)
    for layer in range(1, SMOKE.layers + 1):
        torch.testing.assert_close(said.boxes[layer], said.boxes[0])


@pytest.mark.parametrize("seed", range(5))
def test_matching_on_the_device_is_the_hungarian_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cost = torch.randn(40, 6, 3, generator=generator)
    cost[torch.arange(40), :, 2] = torch.where(torch.rand(40, 1, generator=generator) < 0.4, torch.inf, cost[:, :, 2])
    cost[::7] = torch.inf  # nothing there
    assert torch.equal(few_to_one(cost), hungarian(cost))


def test_matching_gives_no_prediction_to_two_objects() -> None:
    cost = torch.zeros(1, 4, 3)
    cost[0, 0] = -9  # cheapest for all three
    owner = few_to_one(cost)[0]
    assert sorted(owner.tolist()) == [-1, 0, 1, 2]


def test_loss_on_the_last_layer_leaves_out_those_between() -> None:
    outputs = torch.arange(5)
    assert outputs[example.every_layer(5)].tolist() == [0, 1, 2, 3, 4]
    assert outputs[claims.last_layer(5)].tolist() == [0, 4]


def test_the_loss_of_an_unpaid_layer_does_not_count() -> None:
    class Says(nn.Module):
        def forward(self, images: torch.Tensor) -> Any:
            logits = torch.zeros(1, 3, 2, 4, 2)
            logits[:, 1] = 9 * images.mean()  # the layer between
            return example.Predictions(logits, torch.full((1, 3, 2, 4, 4), 0.5) + logits[..., :1] / 100)

    boxes, labels = torch.full((1, 2, 3, 4), 0.4), torch.zeros(1, 2, 3, dtype=torch.long)

    def loss(paid: Any, images: torch.Tensor) -> float:
        return float(example.loss_of(Says(), images, boxes, labels, paid))

    dark, bright = torch.zeros(1, 2, 3, 8, 8), torch.ones(1, 2, 3, 8, 8)
    assert loss(claims.last_layer, dark) == loss(claims.last_layer, bright)
    assert loss(example.every_layer, dark) != loss(example.every_layer, bright)


def test_scenes_have_one_class_and_padding_is_no_object() -> None:
    scenes = example.scenes_of(Settings(), "train", 0)
    assert set(scenes.labels.flatten().tolist()) <= {0, 1}
    assert (scenes.labels[:, 0] == 0).all()
    assert not scenes.boxes[scenes.labels == 1].any()


def test_average_precision_of_the_truth_is_100_and_of_nothing_right_0() -> None:
    scenes = example.scenes_of(Settings(), "test", 0)
    sure = torch.stack([6 - 12.0 * scenes.labels, 12.0 * scenes.labels - 6], -1)[None]
    boxes = torch.where((scenes.labels == 0)[..., None], scenes.boxes, 0.5)[None]
    assert example.ap(example.Predictions(sure, boxes), 0, scenes) == pytest.approx(100)
    away = example.Predictions(sure, torch.full_like(boxes, 0.01))
    assert example.ap(away, 0, scenes) == pytest.approx(0)


def test_both_choices_of_queries_leave_as_many() -> None:
    best, spread = (claims.ranks_kept(Settings(), best=best) for best in (True, False))
    assert len(best) == len(spread) == SMOKE.queries // claims.PART
    assert best.tolist() == list(range(len(best)))
    assert spread.max() < SMOKE.queries
    assert spread.float().mean() > best.float().mean()


def test_a_network_below_the_floor_counts_in_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    class Run(Settings):
        preset = "quick"

    monkeypatch.setitem(example.PRESETS, "quick", SMOKE)
    monkeypatch.setattr(claims, "rates_of", lambda run: dict.fromkeys(claims.ARMS, 1e-3))
    scores = claims.scores_of.__wrapped__(Run())
    assert set(scores.failed) == set(claims.ARMS)


def test_the_file_to_read_uses_what_the_search_chose_and_no_choice_lies_at_the_edge() -> None:
    kept = json.loads((Path(claims.__file__).parent / "rf-detr.searches.json").read_text("utf-8"))["learning rate"]
    assert kept["arms"]["every"]["chosen"] == example.RATE
    assert set(kept["arms"]) == set(claims.ARMS)
    assert not any(each["at_edge"] for each in kept["arms"].values())


def test_the_published_network_detects_on_a_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the download; the card names the same weights."""
    import transformers
    from PIL import Image

    class Processor:
        def __call__(self, images: Any, return_tensors: str) -> dict[str, Any]:
            return {"pixel_values": torch.zeros(1, 3, 8, 8)}

        def post_process_object_detection(self, raw: Any, threshold: float, target_sizes: Any) -> list[dict[str, Any]]:
            assert target_sizes == [(60, 80)]
            return [{"boxes": torch.tensor([[1.0, 2.0, 3.0, 4.0]]), "labels": torch.tensor([1])}]

    class Network(nn.Module):
        config = type("Config", (), {"id2label": {1: "motorcycle"}})

        def forward(self, pixel_values: torch.Tensor) -> None:
            return None

    asked: list[str] = []
    monkeypatch.setattr(
        transformers.AutoImageProcessor, "from_pretrained", lambda name: asked.append(name) or Processor()
    )
    monkeypatch.setattr(
        transformers.RfDetrForObjectDetection, "from_pretrained", lambda name: asked.append(name) or Network()
    )
    boxes, names = example.published(Image.new("RGB", (80, 60)))
    assert (boxes.shape, names, len(set(asked))) == ((1, 4), ["motorcycle"], 1)
    card = (Path(__file__).parents[2] / "model_cards" / "rf-detr.yml").read_text("utf-8")
    assert re.search(rf"name: {re.escape(asked[0])}\b", card)
