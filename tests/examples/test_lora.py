"""The LoRA example: the update, merging, swapping, equality with PEFT, equal searches, and what counts as failed."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import lora
import pytest
import torch
from claims import lora as claims
from lab.data.tasks import task_images
from torch import nn

PRESET = lora.PRESETS["smoke"]


@pytest.fixture
def images():
    return torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    """A small network with updates that are not zero."""
    torch.manual_seed(0)
    built = lora.Classifier(PRESET).eval()
    lora.adapt(built.backbone, 2, tasks=2)
    for each in lora.updates(built):
        nn.init.normal_(each.B, std=0.3)
    return built


def test_an_update_starts_at_zero_and_trains_only_its_factors(images):
    torch.manual_seed(0)
    before = lora.Classifier(PRESET).eval()
    after = copy.deepcopy(before)
    lora.adapt(after.backbone, 4)
    assert torch.equal(before(images), after(images))
    trained = [name for name, each in after.backbone.named_parameters() if each.requires_grad]
    assert trained
    assert all(name.endswith((".A", ".B")) for name in trained)


def test_an_update_has_the_rank_that_was_asked_for():
    layer = lora.LowRank(nn.Linear(12, 10), 3)
    nn.init.normal_(layer.B)
    assert layer.update().shape == (10, 12)
    assert torch.linalg.matrix_rank(layer.update()) == 3


def test_merging_keeps_the_output_and_unmerging_brings_the_weights_back(model, images):
    unmerged, weights = model(images), [each.base.weight.clone() for each in lora.updates(model)]
    lora.merge(model)
    torch.testing.assert_close(model(images), unmerged, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(lora.updates(model)[0].base.weight, weights[0])
    lora.merge(model, -1)
    for each, weight in zip(lora.updates(model), weights, strict=True):
        torch.testing.assert_close(each.base.weight, weight)
    torch.testing.assert_close(model(images), unmerged, rtol=1e-4, atol=1e-4)


def test_a_mixed_batch_gives_each_image_the_update_of_its_task(model, images):
    outputs = []
    for task in (0, 1, torch.tensor([0, 1, 0, 1, 1, 0])):
        for each in lora.updates(model):
            each.task = task
        outputs.append(model(images))
    first, second, mixed = outputs
    assert not torch.allclose(first, second)
    torch.testing.assert_close(mixed[[0, 2, 5]], first[[0, 2, 5]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[[1, 3, 4]], second[[1, 3, 4]], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks transformers by an old name
def test_equals_peft_with_the_same_factors(images):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    ours = lora.Classifier(PRESET).backbone.eval()
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=list(lora.QV), init_lora_weights=False)
    theirs = peft.get_peft_model(copy.deepcopy(ours), config).eval()
    lora.adapt(ours, 2)
    wrapped = [each for each in theirs.modules() if hasattr(each, "lora_A") and hasattr(each, "base_layer")]
    for mine, other in zip(lora.updates(ours), wrapped, strict=True):
        mine.A.data[0], mine.B.data[0] = other.lora_A["default"].weight.data, other.lora_B["default"].weight.data
    a, b = ours(images).pooler_output, theirs(pixel_values=images).pooler_output
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def trainable(name: str) -> int:
    torch.manual_seed(0)
    net = lora.prepared(lora.Classifier(PRESET), claims.ALL[name])
    return sum(each.numel() for each in net.parameters() if each.requires_grad)


def test_arms_with_equal_budgets_train_equally_many_weights():
    assert trainable("q8") == trainable("r4")
    assert trainable("probe") < trainable("r1") < trainable("r4") < trainable("r16")
    assert trainable("full") > 2 * trainable("probe")


def test_the_share_that_is_worked_out_is_that_of_a_counted_network():
    width, blocks = 64, 2
    body = sum(each.numel() for name, each in lora.Classifier(PRESET).backbone.named_parameters()
               if "layer." in name and each.ndim == 2)  # fmt: skip
    assert claims.share(width, blocks, 4) == pytest.approx((trainable("r4") - trainable("probe")) / body)


def test_tasks_differ_as_they_say():
    source, near, far = (task_images(task, "test", 0) for task in ("source", "near", "far"))
    assert torch.equal(source[1], far[1])
    torch.testing.assert_close(near[0].rot90(-1, (-2, -1)), source[0])
    a, b = 1 - far[0][:, :, :4, :4].flatten(1), source[0][:, :, :4, :4].flatten(1)
    torch.testing.assert_close(a.sort(1).values, b.sort(1).values)


class Settings:
    """As much of a run as the arms ask for."""

    preset, seeds, device = "smoke", (0, 1, 2), torch.device("cpu")


def test_a_seed_whose_pretraining_failed_counts_in_no_comparison(monkeypatch):
    monkeypatch.setattr(claims, "source_of", lambda run, seed: seed)
    monkeypatch.setattr(claims, "trained", lambda run, name, task: run.seeds)
    monkeypatch.setattr(claims, "old_accuracy", lambda net, source: 50.0)
    monkeypatch.setattr(claims, "accuracy_on", lambda net, task: 12.0 if (net, task) == (1, "source") else 90.0)
    scores = claims.scores_of.__wrapped__(Settings())
    assert [math.isnan(value) for value in scores.minus("near", "full", "r4")] == [False, True, False]


def test_every_method_is_searched_alike_on_validation_images(monkeypatch):
    """Each method once had a rate of its own to begin with, and the best lay at the edge of two."""
    asked = []

    def search(run, what, arms, grid, score):
        score("probe", grid[0], 100)
        asked.extend(arms)
        return dict.fromkeys(arms, grid[0])

    monkeypatch.setattr(claims.study, "search", search)
    monkeypatch.setattr(claims, "source_of", lambda run, seed: None)
    monkeypatch.setattr(claims, "adapted", lambda *rest: None)
    monkeypatch.setattr(claims, "accuracy_on", lambda net, task, split: asked.append(split) or 1.0)
    claims.rates_of.__wrapped__(Settings())
    assert asked == ["val", "val", *claims.ALL]


def test_the_file_to_read_uses_what_the_search_chose_and_no_choice_lies_at_the_edge():
    kept = json.loads((Path(claims.__file__).parent / "lora.searches.json").read_text("utf-8"))["learning rate"]
    assert {name: kept["arms"][name]["chosen"] for name in lora.RATES} == lora.RATES
    assert set(kept["arms"]) == set(claims.ALL)
    assert not any(each["at_edge"] for each in kept["arms"].values())
