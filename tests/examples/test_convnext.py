"""The ConvNeXt example: the written-out network against timm's, GRN by its definition, and what the claims compare."""

from __future__ import annotations

import json
from pathlib import Path

import convnext
import pytest
import timm
import torch
from claims import convnext as claims
from torch import Tensor, nn


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_whole_network_equals_that_of_timm_at_any_size(name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=7).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    ours = convnext.convnext_from_timm(theirs)
    for side in (32, 64):
        torch.testing.assert_close(ours(noise(2, 3, side, side)), theirs(noise(2, 3, side, side)), rtol=1e-4, atol=1e-5)


def test_grn_changes_nothing_at_the_start_and_then_raises_the_strong_channel() -> None:
    grn, x = convnext.GRN(2), noise(1, 4, 4, 2) * torch.tensor([1.0, 10.0])
    assert torch.equal(grn(x), x)
    nn.init.ones_(grn.weight)
    gain = (grn(x) / x).mean((0, 1, 2))
    norms = x.norm(dim=(1, 2))[0]
    torch.testing.assert_close(gain, 1 + norms / norms.mean())


def test_block_of_zero_scale_passes_its_input_on() -> None:
    block, x = convnext.Block(8, version=1, start=0.0), noise(2, 8, 5, 5)
    torch.testing.assert_close(block(x), x)


def test_kernel_of_a_block_mixes_no_channels_and_reaches_three_cells() -> None:
    block, x = convnext.Block(4, version=1), torch.zeros(1, 4, 15, 15)
    x[0, 2, 7, 7] = 1.0
    moved = (block.conv_dw(x) - block.conv_dw(torch.zeros_like(x))).abs() > 0
    assert moved[0].any(-1).any(-1).tolist() == [False, False, True, False]
    assert moved[0, 2].nonzero().amin(0).tolist() == [4, 4]
    assert moved[0, 2].nonzero().amax(0).tolist() == [10, 10]


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_rivals_have_about_as_many_parameters(preset: str) -> None:
    sizes = [sum(p.numel() for p in claims.build_arm(arm, preset).parameters()) for arm in claims.ARMS]
    assert max(sizes) < 1.1 * min(sizes)


def test_convnext_stays_as_it_is_at_every_size_and_the_vit_gets_a_table_that_fits() -> None:
    torch.manual_seed(0)
    ours, rival = (claims.build_arm(arm, "quick").eval() for arm in claims.ARMS)
    with pytest.raises(RuntimeError):
        rival(noise(1, 1, 48, 48))
    for side in convnext.SIZES:
        assert claims.at_size(ours, side) is ours
        assert ours(noise(1, 1, side, side)).shape == (1, 10)
        assert claims.at_size(rival, side)(noise(1, 1, side, side)).shape == (1, 10)


def test_table_of_positions_keeps_its_directions_and_its_size_at_the_size_of_the_training() -> None:
    torch.manual_seed(0)
    rival = claims.build_arm("vit", "quick").eval()
    x = noise(2, 1, 32, 32)
    torch.testing.assert_close(claims.at_size(rival, 32)(x), rival(x))
    with torch.no_grad():
        rival.pos_embed[:, 1:] = torch.linspace(-1, 1, 4).repeat_interleave(4)[None, :, None]  # grows from row to row
    table = claims.at_size(rival, 64).pos_embed[0, 1:, 0].unflatten(0, (8, 8))
    assert (table.diff(dim=0)[1:-1] > 0).all()
    assert table.diff(dim=1).abs().max() < 1e-5


def test_resized_digit_of_the_same_size_is_the_same() -> None:
    x = noise(1, 1, 32, 32)
    torch.testing.assert_close(convnext.resized(x, 32), x)
    assert convnext.resized(x, 48).shape == (1, 1, 48, 48)


def test_batches_of_a_seed_are_the_same_again() -> None:
    preset, cpu = convnext.PRESETS["smoke"], torch.device("cpu")
    first, again, other = (next(convnext.training_batches(preset, seed, cpu)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_the_file_to_read_uses_what_the_search_chose_and_both_arms_were_searched() -> None:
    kept = json.loads((Path(claims.__file__).parent / "convnext.searches.json").read_text("utf-8"))["learning rate"]
    assert kept["arms"]["convnext"]["chosen"] == convnext.RATE
    assert set(kept["arms"]) == set(claims.ARMS)


def test_the_published_convnext_names_a_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small random network in the place of the download."""
    from PIL import Image

    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: make("convnext_atto", depths=(1, 1, 1, 1)))
    table = convnext.published(Image.new("RGB", (80, 60), (200, 30, 30)))
    assert len(table) == 5
    assert [row["%"] for row in table] == sorted((row["%"] for row in table), key=lambda each: -float(str(each)))
