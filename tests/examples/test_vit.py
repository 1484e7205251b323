"""The ViT example: the written-out model against timm's, the properties that the page states, and a smoke run."""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

RESULTS = {
    "seen_after_first_convolution", "seen_after_last_convolution", "seen_after_first_block",
    *(f"{what}_{arm}" for what in ("parameters", "macs") for arm in ("vit", "cnn", "hybrid")),
    *(f"{what}_{arm}_{size}_set" for what in ("accuracy", "training_loss") for arm in ("vit", "cnn", "hybrid")
      for size in ("smallest", "largest")),
    *(f"{what}_{size}_set" for what in ("gap", "hybrid_gap", "stem_gain") for size in ("smallest", "largest")),
    "gap_shrinks",
    *(f"{what}_{which}" for what in ("accuracy", "predictions_changed")
      for which in ("with_positions", "without_positions")),
    "accuracy_with_positions_shuffled", "accuracy_without_positions_shuffled", "positions_gain",
    "neighbour_lead", "neighbour_lead_at_start", "distance_correlation", "distance_correlation_at_start",
    *(f"attention_distance_{what}" for what in
      ("first_block", "last_block", "grows", "nearest_head", "farthest_head", "uniform")),
    "macs_224", "macs_1120", "attention_share_224", "attention_share_1120", "attention_exponent", "rest_exponent",
}  # fmt: skip
FIGURES = {"patches", "seen", "cost", "data_size", "patch_order", "positions", "attention_distance"}


@cache
def vit() -> ModuleType:
    return importlib.import_module("vit")


def small(positions: bool = True) -> Any:
    torch.manual_seed(0)
    return vit().build_vit(vit().PRESETS["quick"], positions=positions).double().eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_patches_go_back_in_place() -> None:
    images = noise(2, 3, 24, 32)
    patches = vit().patches_from_images(images, 8)
    assert patches.shape == (2, 12, 3 * 64)
    torch.testing.assert_close(vit().images_from_patches(patches, 8, columns=4), images, rtol=0, atol=0)


def test_patches_come_in_reading_order() -> None:
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(24), indexing="ij")
    index = rows // 8 * 3 + columns // 8
    patches = vit().patches_from_images(index[None, None], 8)
    assert torch.equal(patches[0], torch.arange(6)[:, None].expand(6, 64))


def test_image_that_is_no_multiple_of_the_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="20 x 16 pixels cannot be cut"):
        vit().patches_from_images(torch.zeros(1, 1, 20, 16), 8)


def test_patch_embedding_is_a_strided_convolution() -> None:
    embedding = vit().PatchEmbedding(8, 3, 12).double()
    images = noise(2, 3, 32, 32)
    kernel = embedding.proj.weight.reshape(12, 3, 8, 8)
    convolved = nn.functional.conv2d(images, kernel, embedding.proj.bias, stride=8)
    torch.testing.assert_close(embedding(images), convolved.flatten(2).mT)


@pytest.mark.parametrize(("width", "heads"), [(32, 4), (48, 1), (64, 8)])
def test_block_equals_that_of_timm(width: int, heads: int) -> None:
    torch.manual_seed(0)
    theirs = Block(width, heads, qkv_bias=True, norm_layer=lambda dim, **kw: nn.LayerNorm(dim, eps=1e-6, **kw)).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)  # the norms' weights and all biases count, too
    ours = vit().Block(width, heads).double()
    ours.load_state_dict(theirs.state_dict())
    z = noise(3, 17, width)
    torch.testing.assert_close(ours(z), theirs.eval()(z))


def test_whole_model_equals_that_of_timm() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=7).double().eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    images = noise(2, 3, 64, 64)
    torch.testing.assert_close(vit().vit_from_timm(theirs).double()(images), theirs(images))


def test_attention_weights_of_each_query_sum_to_one() -> None:
    weights = small().attention(noise(2, 1, 32, 32))
    assert weights.shape == (3, 2, 4, 17, 17)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 4, 17, dtype=torch.float64))


def test_block_without_positions_follows_any_permutation_of_the_tokens() -> None:
    block, z, order = small().blocks[0], noise(2, 17, 32), torch.randperm(17)
    torch.testing.assert_close(block(z[:, order]), block(z)[:, order])


def test_order_of_patches_counts_only_with_positions() -> None:
    images = noise(4, 1, 32, 32)
    shuffled = vit().shuffled_patches(images, 8, torch.Generator().manual_seed(0))
    without, with_positions = small(positions=False), small()
    torch.testing.assert_close(without(images), without(shuffled), rtol=1e-12, atol=1e-12)
    assert (with_positions(images) - with_positions(shuffled)).abs().max() > 1e-4


def test_positions_that_move_with_their_patches_undo_a_shuffle() -> None:
    model, images = small(), noise(1, 1, 32, 32)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = vit().images_from_patches(vit().patches_from_images(images, 8)[:, order], 8, columns=4)
    before = model(images)
    with torch.no_grad():
        model.pos_embed[:, 1:] = model.pos_embed[:, 1:][:, order]
    torch.testing.assert_close(model(shuffled), before)


def test_shuffling_keeps_the_patches_of_each_image_and_moves_them() -> None:
    images = noise(3, 1, 32, 32)
    shuffled = vit().shuffled_patches(images, 8, torch.Generator().manual_seed(0))
    before, after = (vit().patches_from_images(x, 8).sum(-1) for x in (images, shuffled))
    torch.testing.assert_close(before.sort(1).values, after.sort(1).values)
    moved = before != after
    assert moved.any(1).all()
    assert not torch.equal(moved[0], moved[1])  # each image in its own way


def test_first_block_sees_the_whole_image_and_first_convolution_nine_pixels() -> None:
    masks = vit().views(vit().PRESETS["quick"])
    sides = [int(mask.any(0).sum()) for mask in masks]
    assert int(masks[0].sum()) == 9
    assert sides[:-1] == [3, 7, 15, 31]  # each stride of 2 doubles what the next layer adds
    assert masks[-1].all()


def test_uniform_attention_has_the_mean_distance_and_a_look_at_itself_has_none() -> None:
    uniform = torch.full((1, 1, 1, 17, 17), 1 / 17)
    expected = 8 * vit().grid_distances(4).mean()
    torch.testing.assert_close(vit().attention_distances(uniform, 8), expected.reshape(1, 1))
    itself = 0.5 * torch.eye(17) + 0.5 * torch.eye(17)[0]  # half of the attention goes to the class token
    torch.testing.assert_close(vit().attention_distances(itself[None, None, None], 8).item(), 0.0)


def test_distances_are_those_of_the_grid() -> None:
    distances = vit().grid_distances(4)
    assert distances[0, 1] == distances[0, 4] == 1  # to the right, and one row below
    assert distances[0, 15].item() == pytest.approx(18**0.5)


def test_neighbour_lead_is_positive_for_positions_that_vary_slowly() -> None:
    model = small()
    places = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))  # (N, 2)
    waves = torch.cat([(places * 0.6).cos(), (places * 0.6).sin()], dim=1)  # (N, 4)
    with torch.no_grad():
        model.pos_embed.zero_()
        model.pos_embed[0, 1:, :4] = waves
    assert vit().neighbour_lead(model) > 0.2
    assert vit().distance_correlation(model) < -0.8
    with pytest.raises(ValueError, match="no position embeddings"):
        vit().neighbour_lead(small(positions=False))


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_rivals_have_about_as_many_parameters(preset: str) -> None:
    sizes = {arm: sum(p.numel() for p in vit().build(arm, vit().PRESETS[preset]).parameters()) for arm in vit().ARMS}
    assert max(sizes.values()) < 1.12 * min(sizes.values()), sizes


def test_all_arms_see_the_same_digits_at_the_same_places() -> None:
    preset = vit().PRESETS["smoke"]
    runs = [list(vit().training_batches(20, preset, seed)) for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][0][0], runs[2][0][0])
    assert runs[0][0][0].shape == (32, 1, 32, 32)


def test_placed_digit_is_whole_wherever_it_lies() -> None:
    digit = torch.rand(1, 1, 28, 28).expand(50, 1, 28, 28) + 0.1
    placed = vit().placed(digit, torch.Generator().manual_seed(0))
    torch.testing.assert_close(placed.sum((1, 2, 3)), digit.sum((1, 2, 3)))
    corners = (placed[:, 0] > 0).flatten(1).int().argmax(1)
    assert len(corners.unique()) > 10


@pytest.mark.parametrize("resolution", [224, 448])
def test_counted_macs_are_those_of_the_formula(resolution: int) -> None:
    attention, rest = vit().macs_of_vit_base(resolution)
    N, D, L = (resolution // 16) ** 2, 768, 12
    assert attention == L * 2 * (N + 1) ** 2 * D
    assert rest == N * 16 * 16 * 3 * D + L * 12 * (N + 1) * D**2 + 1000 * D


def test_exponent_is_the_power_of_the_growth() -> None:
    assert vit().exponent([1.0, 4.0, 9.0], [5.0, 80.0, 405.0]) == pytest.approx(2.0)


def test_pretrained_weights_that_cannot_be_fetched_are_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(*args: object, **options: object) -> None:
        raise FileNotFoundError("no route to the hub")

    monkeypatch.setattr(vit().timm, "create_model", offline)
    with pytest.raises(SystemExit, match=r"(?s)vit_base_patch16_224.*no route to the hub.*leave --weights out"):
        vit().main(["--preset", "smoke", "--device", "cpu", "--out", str(tmp_path), "--weights", "pretrained"])
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The record of a smoke run, with a small random ViT in place of the pretrained one."""
    out = tmp_path_factory.mktemp("vit")
    with pytest.MonkeyPatch.context() as patch:
        published = timm.create_model("vit_tiny_patch16_224", depth=2)
        patch.setattr(vit(), "pretrained_vit", lambda: vit().vit_from_timm(published))
        vit().main(["--preset", "smoke", "--device", "cpu", "--out", str(out), "--weights", "pretrained"])
    return json.loads((out / "record.json").read_text()), out


def test_smoke_run_records_every_result(record: tuple[dict[str, Any], Path]) -> None:
    results = record[0]["results"]
    assert set(results) == RESULTS
    paired = results["accuracy_cnn_smallest_set"]["mean"] - results["accuracy_vit_smallest_set"]["mean"]
    assert results["gap_smallest_set"]["mean"] == pytest.approx(paired)
    assert results["predictions_changed_without_positions"]["values"] == [0.0]
    assert results["accuracy_without_positions"] == results["accuracy_without_positions_shuffled"] | {
        "meaning": results["accuracy_without_positions"]["meaning"]
    }
    assert results["attention_share_1120"]["mean"] > results["attention_share_224"]["mean"]


def test_smoke_run_draws_every_figure(record: tuple[dict[str, Any], Path]) -> None:
    figures, out = {each["name"]: each for each in record[0]["figures"]}, record[1]
    assert set(figures) == FIGURES | {"attention_distance_pretrained"}
    assert all(
        (out / figure[scheme]).stat().st_size > 1000 for figure in figures.values() for scheme in ("light", "dark")
    )
