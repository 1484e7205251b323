"""The ViT example: the written-out model against timm's, its rivals, and the properties that the page states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import vit
from claims import vit as claims
from lab.data.digits import digits, placed
from lab.options import Settings
from lab.run import Run
from timm.models.vision_transformer import Block
from torch import Tensor, nn


def back(patches: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Puts patches back: (B, N, C P P) -> (B, C, H, W), the inverse of `patches_from_images`."""
    return nn.functional.fold(patches.mT, (height, width), patch, stride=patch)


def small(positions: bool = True) -> Any:
    torch.manual_seed(0)
    return claims.build_arm("vit" if positions else claims.WITHOUT, "quick").double().eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_patches_go_back_in_place() -> None:
    images = noise(2, 3, 24, 32)
    patches = vit.patches_from_images(images, 8)
    assert patches.shape == (2, 12, 3 * 64)
    torch.testing.assert_close(back(patches, 8, 24, 32), images, rtol=0, atol=0)


def test_patches_come_in_reading_order() -> None:
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(24), indexing="ij")
    index = rows // 8 * 3 + columns // 8
    patches = vit.patches_from_images(index[None, None], 8)
    assert torch.equal(patches[0], torch.arange(6)[:, None].expand(6, 64))


def test_image_that_is_no_multiple_of_the_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="20 x 16 pixels cannot be cut"):
        vit.patches_from_images(torch.zeros(1, 1, 20, 16), 8)


def test_patch_embedding_is_a_strided_convolution() -> None:
    embedding = vit.PatchEmbedding(8, 3, 12).double()
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
    ours = vit.Block(width, heads).double()
    ours.load_state_dict(theirs.state_dict())
    z = noise(3, 17, width)
    torch.testing.assert_close(ours(z), theirs.eval()(z))


def test_whole_model_equals_that_of_timm() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=7).double().eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    images = noise(2, 3, 64, 64)
    torch.testing.assert_close(vit.vit_from_timm(theirs).double()(images), theirs(images))


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
    shuffled = claims.shuffled_patches(images, 8, torch.Generator().manual_seed(0))
    without, with_positions = small(positions=False), small()
    torch.testing.assert_close(without(images), without(shuffled), rtol=1e-12, atol=1e-12)
    assert (with_positions(images) - with_positions(shuffled)).abs().max() > 1e-4


def test_positions_that_move_with_their_patches_undo_a_shuffle() -> None:
    model, images = small(), noise(1, 1, 32, 32)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = back(vit.patches_from_images(images, 8)[:, order], 8, 32, 32)
    before = model(images)
    with torch.no_grad():
        model.pos_embed[:, 1:] = model.pos_embed[:, 1:][:, order]
    torch.testing.assert_close(model(shuffled), before)


def test_shuffling_keeps_the_patches_of_each_image_and_moves_them() -> None:
    images = noise(3, 1, 32, 32)
    shuffled = claims.shuffled_patches(images, 8, torch.Generator().manual_seed(0))
    before, after = (vit.patches_from_images(x, 8).sum(-1) for x in (images, shuffled))
    torch.testing.assert_close(before.sort(1).values, after.sort(1).values)
    moved = before != after
    assert moved.any(1).all()
    assert not torch.equal(moved[0], moved[1])  # each image in its own way


def test_first_block_sees_the_whole_image_and_first_convolution_nine_pixels() -> None:
    masks = claims.masks_of_views("quick")
    sides = [int(mask.any(0).sum()) for mask in masks]
    assert int(masks[0].sum()) == 9
    assert sides[:-1] == [3, 7, 15, 31]  # each stride of 2 doubles what the next layer adds
    assert masks[-1].all()


def test_distances_are_those_of_the_grid() -> None:
    distances = claims.grid_distances(4)
    assert distances[0, 1] == distances[0, 4] == 1  # to the right, and one row below
    assert distances[0, 15].item() == pytest.approx(18**0.5)


def test_neighbour_lead_is_positive_for_positions_that_vary_slowly() -> None:
    model = small()
    places = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))  # (N, 2)
    waves = torch.cat([(places * 0.6).cos(), (places * 0.6).sin()], dim=1)  # (N, 4)
    with torch.no_grad():
        model.pos_embed.zero_()
        model.pos_embed[0, 1:, :4] = waves
    assert claims.neighbour_lead(model) > 0.2
    assert claims.distance_correlation(model) < -0.8


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_rivals_have_about_as_many_parameters(preset: str) -> None:
    sizes = {arm: sum(p.numel() for p in claims.build_arm(arm, preset).parameters()) for arm in claims.ARMS}
    assert max(sizes.values()) < 1.1 * min(sizes.values())


def test_all_seeds_draw_their_own_digits_and_all_arms_of_a_seed_the_same() -> None:
    preset = vit.PRESETS["smoke"]
    first, again, other = (next(vit.training_batches(20, preset, seed, torch.device("cpu"))) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_placed_digit_is_whole_wherever_it_lies() -> None:
    source = digits("test", 28).images[:50]
    there = placed(source, 32, torch.Generator().manual_seed(0))
    torch.testing.assert_close(there.sum((1, 2, 3)), source.sum((1, 2, 3)))
    assert len({tuple(each[0].nonzero().amin(0).tolist()) for each in there}) > 5


@pytest.mark.parametrize("side", [224, 384])
def test_the_share_of_attention_is_that_of_a_counted_block(side: int) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        vit.Block(768, 12)(torch.empty(1, (side // 16) ** 2 + 1, 768))
    counts = {str(name): macs for name, macs in counter.get_flop_counts()["Global"].items()}
    assert claims.attention_share(side) == pytest.approx(100 * counts["aten.bmm"] / sum(counts.values()), rel=0.01)


def test_the_file_to_read_uses_what_the_search_chose_and_all_arms_were_searched() -> None:
    kept = json.loads((Path(claims.__file__).parent / "vit.searches.json").read_text("utf-8"))["learning rate"]
    assert kept["arms"]["vit"]["chosen"] == vit.RATE
    assert set(kept["arms"]) == {*claims.ARMS, claims.WITHOUT}


def test_it_is_one_run_that_trains_the_first_seed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(vit, "train", lambda model, run, count, seed, rate: calls.append(seed) or [0.0])
    monkeypatch.setattr(claims, "rates_of", lambda run: {"vit": vit.RATE})
    run = Run("vit", Settings("smoke", torch.device("cpu"), (0, 1), tmp_path, "random"))
    count = vit.PRESETS["smoke"].sizes[-1]
    first, _ = vit.trained_vit(run, count, 0, vit.RATE)
    assert claims.trained(run, "vit", count)[0].model is first
    assert calls == [0, 1]


def test_the_published_vit_looks_at_a_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small random network in the place of the download."""
    import numpy as np
    from PIL import Image

    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: make("vit_tiny_patch16_224", depth=2))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    with torch.inference_mode():
        pixels, looks, title = vit.published(image)
    assert (pixels.shape, looks.shape) == ((3, 224, 224), (14, 14))
    assert title.endswith("%)")
    assert 0 <= pixels.min() <= pixels.max() <= 1
