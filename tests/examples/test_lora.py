"""The LoRA example: the update, merging, swapping, equality with PEFT, the published counts, and a run of it all."""

import copy
import importlib
import json

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.torch

lora = importlib.import_module("lora")
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


def test_arms_with_equal_budgets_train_equally_many_weights():
    torch.manual_seed(0)
    source = lora.Classifier(PRESET)
    counts = {
        name: sum(each.numel() for each in lora.prepared(source, method).parameters() if each.requires_grad)
        for name, method in lora.METHODS.items()
    }
    assert counts["q8"] == counts["r4"]
    assert counts["probe"] < counts["r1"] < counts["r4"] < counts["r16"]
    assert counts["full"] > 2 * counts["probe"]


def test_tasks_differ_as_they_say():
    source, near, far = (lora.task_images(task, "test", 0) for task in ("source", "near", "far"))
    assert torch.equal(source[1], far[1])
    torch.testing.assert_close(near[0].rot90(-1, (-2, -1)), source[0])
    a, b = 1 - far[0][:, :, :4, :4].flatten(1), source[0][:, :, :4, :4].flatten(1)
    torch.testing.assert_close(a.sort(1).values, b.sort(1).values)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("lora")
    lora.main(["--preset", "smoke", "--device", "cpu", "--out", str(out)])
    return json.loads((out / "record.json").read_text()) | {"out": out}


def test_a_smoke_run_records_every_result_and_draws_every_figure(record):
    names = {"near_gap_r4_probe", "far_gap_full_r4", "kept_gap_near", "difference_mixed", "memory_lora_over_full"}
    assert names | {"extra_macs_merged", "share_g_r8"} <= record["results"].keys()
    figures = record["figures"]
    assert {each["name"] for each in figures} == {"update", "accuracy", "forgetting", "memory", "latency"}
    assert all((record["out"] / each[style]).is_file() for each in figures for style in ("light", "dark"))


def test_the_count_of_published_sizes_follows_the_formula_of_the_paper(record):
    assert all(record["results"][f"formula_{size}_r8"]["values"] == [1.0] for size in lora.SIZES)
    assert record["results"]["trainable_s_r8"]["mean"] == pytest.approx(0.147456)


def test_pretrained_weights_are_refused():
    with pytest.raises(SystemExit, match="pretrains its own"):
        lora.main(["--preset", "smoke", "--weights", "pretrained"])
