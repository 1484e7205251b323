"""The Swin example: windows, mask, block and whole model are right, the two arms differ in the shift alone, and costs add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import swin
import timm
import torch
from claims import swin as claims
from hypothesis import given, settings
from hypothesis import strategies as st
from lab.data import canvases
from lab.memory import kept_bytes
from lab.options import Settings
from lab.run import Run
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from vit import PatchEmbedding


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@settings(max_examples=50)
@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    window=st.integers(1, 5),
    width=st.integers(1, 3),
)
def test_windows_put_back_give_the_same_tokens(batch: int, rows: int, columns: int, window: int, width: int) -> None:
    tokens = torch.arange(batch * rows * columns * window**2 * width).view(
        batch, rows * window, columns * window, width
    )
    windows = swin.window_partition(tokens, window)
    assert windows.shape == (batch * rows * columns, window**2, width)
    assert torch.equal(swin.window_reverse(windows, *tokens.shape[1:3]), tokens)


def test_a_window_holds_neighbours_in_the_order_of_rows() -> None:
    tokens = torch.arange(16).view(1, 4, 4, 1)
    assert swin.window_partition(tokens, 2)[..., 0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


def test_windows_that_do_not_divide_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="3 x 3 tokens do not divide a map of 4 x 6"):
        swin.window_partition(torch.zeros(1, 4, 6, 1), 3)


@pytest.mark.parametrize(("grid", "window", "shift"), [(8, 4, 2), (14, 7, 3), (6, 2, 1)])
def test_the_mask_allows_exactly_pairs_that_were_close_before_the_roll(grid: int, window: int, shift: int) -> None:
    place = torch.stack(torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij"), -1)
    rolled = place.roll((-shift, -shift), dims=(0, 1))
    windows = swin.window_partition(rolled[None], window)  # (n, N, 2), where each token came from
    far = (windows[:, :, None] - windows[:, None]).abs().amax(-1) >= window
    mask = swin.shift_mask(grid, window, shift)
    assert torch.equal(mask == -torch.inf, far)
    assert torch.equal(mask == 0, ~far)


@pytest.mark.parametrize(("grid", "window", "shift"), [(8, 4, 0), (8, 4, 2), (14, 7, 3), (6, 2, 1), (7, 7, 3)])
def test_the_block_equals_timm_on_the_same_weights(grid: int, window: int, shift: int) -> None:
    theirs = SwinTransformerBlock(24, (grid, grid), num_heads=3, window_size=window, shift_size=shift).eval()
    for parameter in theirs.parameters():  # a bias table of nearly zeros would hide a wrong index
        nn.init.normal_(parameter, std=0.5)
    ours = swin.SwinBlock(24, 3, grid, window, shift)
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randn(2, grid, grid, 24)
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-4, atol=1e-4)


def test_the_shift_changes_what_a_block_gives() -> None:
    still, moved = swin.SwinBlock(8, 2, 8, 4), swin.SwinBlock(8, 2, 8, 4, 2)
    moved.load_state_dict(still.state_dict())
    tokens = torch.randn(1, 8, 8, 8)
    assert not torch.allclose(still(tokens), moved(tokens), atol=1e-3)


def test_patch_merging_equals_timm_on_the_same_weights() -> None:
    theirs, ours = PatchMerging(6), swin.PatchMerging(6)
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randn(2, 8, 4, 6)
    torch.testing.assert_close(ours(tokens), theirs(tokens))


def test_the_bias_depends_on_relative_position_alone() -> None:
    index = swin.relative_position_index(3)
    place = torch.tensor([[row, column] for row in range(3) for column in range(3)])
    apart = [tuple(pair) for pair in (place[:, None] - place[None]).view(-1, 2).tolist()]
    entries = dict(zip(apart, index.flatten().tolist(), strict=True))
    assert [entries[pair] for pair in apart] == index.flatten().tolist()
    assert sorted(entries.values()) == list(range(25))


def test_nothing_crosses_the_border_of_the_image() -> None:
    block = swin.SwinBlock(8, 2, 8, 4, 2).double()
    tokens = torch.randn(1, 8, 8, 8, dtype=torch.double, requires_grad=True)
    gradient = torch.autograd.grad(block(tokens)[0, 0, 0].sum(), tokens)[0].abs().sum(-1)[0]
    reached = torch.zeros(8, 8, dtype=torch.bool)
    reached[:2, :2] = True  # the corner piece of the rolled window
    assert torch.equal(gradient > 0, reached)


@pytest.mark.parametrize(("depth", "shifted", "tokens"), [(1, True, 16), (2, True, 64), (4, True, 256), (4, False, 16)])
def test_the_reached_area_grows_by_a_window_for_each_shifted_block(depth: int, shifted: bool, tokens: int) -> None:
    assert int((claims.influence(depth, shifted) > 0).sum()) == tokens


def whole_model_of_timm(**options: Any) -> tuple[nn.Module, swin.Swin]:
    """A Swin of timm with random weights, and ours with the same, at 56 px, in windows of 7 x 7 tokens."""
    theirs: Any = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, num_classes=5,
                                    num_heads=(1, 2, 4, 8), depths=(2, 2), **options).eval()  # fmt: skip
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    ours = swin.Swin(PatchEmbedding(4, 3, 24), 14, (2, 2), (1, 2), 7, 5)
    names = {"patch_embed.norm": "embed_norm", "head.fc": "head"}
    state = {}
    for name, value in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = value.flatten(1) if name == "patch_embed.proj.weight" else value
    ours.load_state_dict(state)
    return theirs, ours.eval()


def test_the_whole_model_equals_that_of_timm() -> None:
    theirs, ours = whole_model_of_timm()
    images = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(ours(images).mean((2, 3)), theirs(images), rtol=1e-4, atol=1e-4)


def macs(module: nn.Module, inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(inputs)
    return float(counter.get_total_flops()) / 2


@pytest.mark.parametrize("side", [224, 256])
def test_costs_that_are_worked_out_are_those_of_the_published_architecture(side: int) -> None:
    with torch.device("meta"):
        model = timm.create_model("swin_tiny_patch4_window7_224", img_size=side).eval()
        assert macs(model, torch.empty(1, 3, side, side)) == pytest.approx(claims.swin_macs(side), rel=1e-3)


@pytest.mark.parametrize("network", ["swin", "vit"])
def test_attention_that_is_worked_out_is_that_of_a_counted_network(network: str) -> None:
    name = {"swin": "swin_tiny_patch4_window7_224", "vit": "vit_small_patch16_224"}[network]
    with torch.device("meta"):
        model: Any = timm.create_model(name, img_size=448).eval()
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 448, 448))
    products = sum(count for name, count in counter.get_flop_counts()["Global"].items() if "bmm" in str(name))
    assert products / 2 == claims.attention_macs(network, 448)


def test_kept_bytes_count_each_storage_once_and_no_parameter() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    # The input, for the first layer; the output of ReLU, for itself and for the last layer.
    assert kept_bytes(model, torch.zeros(7, 3)) == 4 * (7 * 3 + 7 * 5)


def test_fused_attention_gives_the_same_and_keeps_no_scores() -> None:
    plain, fused = claims.SelfAttention(24, 3), claims.FusedAttention(24, 3)
    fused.load_state_dict(plain.state_dict())
    z = torch.randn(2, 64, 24, requires_grad=True)
    torch.testing.assert_close(fused(z), plain(z))
    scores = 4 * 2 * 3 * 64 * 64
    assert kept_bytes(plain, z) > scores > kept_bytes(fused, z)


@pytest.mark.parametrize(("across", "touched"), [(False, 1), (True, 4)])
def test_a_digit_lies_in_as_many_windows_as_the_task_says(across: bool, touched: int) -> None:
    data = canvases.drawn("val", 40, 3, seed=1, across=across)
    bright = swin.window_partition(data.images.permute(0, 2, 3, 1), canvases.DIGIT).amax((1, 2)) > 0.6  # noise is below
    for number, cell, found in zip(range(40), data.cells.tolist(), bright.view(40, 3, 3), strict=True):
        rows, columns = (slice(each, each + 1 + across) for each in cell)
        assert found[rows, columns].sum() == found.sum(), f"canvas {number} is bright outside its cell"
    assert bright.view(40, -1).sum(1).max() == touched


def test_a_canvas_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="it needs 2 a side"):
        canvases.drawn("val", 4, 1, seed=0, across=True)


def test_arms_share_parameters_and_first_weights() -> None:
    states = []
    for shifted in (True, False):
        torch.manual_seed(3)
        states.append(swin.build(swin.PRESETS["smoke"], shifted).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("shifted", [True, False])
def test_a_window_answers_from_what_its_blocks_reach(shifted: bool) -> None:
    preset = swin.PRESETS["quick"]
    model = swin.build(preset, shifted).double()
    images = torch.randn(1, 1, 24, 24, dtype=torch.double, requires_grad=True)
    gradient = torch.autograd.grad(model(images)[0, :, 0, 0].sum(), images)[0].abs()[0, 0]
    reach = 8 * (1 + (preset.depth // 2 if shifted else 0))
    assert (gradient[:reach, :reach] > 0).any(dim=1).all()
    assert (gradient[:reach, :reach] > 0).any(dim=0).all()
    assert gradient[reach:].sum() == gradient[:, reach:].sum() == 0


def test_distances_of_answers_are_counted_from_the_window_of_the_digit() -> None:
    preset, data = swin.PRESETS["smoke"], canvases.drawn("test", 64, 3, seed=5)

    class Oracle(nn.Module):
        """Right in the window of the digit alone, wrong in all others."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            answer = torch.zeros(64, 10, 3, 3)
            answer[torch.arange(64), (data.labels + 1) % 10] = 1.0
            answer[torch.arange(64), data.labels, *data.cells.unbind(1)] = 2.0
            return answer

    run = Run("swin", Settings("smoke", torch.device("cpu"), (0,), Path(), "random"))
    assert preset.test == 64
    found = claims.evaluate(run, "beyond_shifted", Oracle(), 5)
    assert (found["own_window"], found["next_window"], found["out_of_reach"]) == (1.0, 0.0, 0.0)
    assert found["all"] == pytest.approx(1 / 9)


def test_every_arm_was_searched_alike_and_the_file_to_read_uses_what_was_chosen() -> None:
    kept = json.loads((Path(claims.__file__).parent / "swin.searches.json").read_text("utf-8"))["learning rate"]
    assert set(kept["arms"]) == {f"{task}_{shift}" for task in claims.TASKS for shift in claims.SHIFTS}
    assert len({tuple(each["grid"]) for each in kept["arms"].values()}) == 1
    assert kept["arms"]["beyond_shifted"]["chosen"] == swin.RATE


def test_the_published_swin_looks_at_a_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small random network in the place of the download."""
    from PIL import Image

    make = timm.create_model
    small = {"embed_dim": 24, "num_heads": (1, 2, 4, 8), "depths": (1, 1, 1, 1)}
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: make("swin_tiny_patch4_window7_224", **small))
    with torch.inference_mode():
        pixels, looks, title = swin.published(Image.new("RGB", (80, 60), (90, 120, 40)))
    assert (pixels.shape, looks.shape) == ((3, 224, 224), (7, 7))
    assert title.endswith("%)")
    assert -1e-6 <= pixels.min() <= pixels.max() <= 1 + 1e-6


@pytest.mark.parametrize("shifted", [True, False])
def test_a_step_runs_in_bfloat16(shifted: bool) -> None:
    model, data = swin.build(swin.PRESETS["smoke"], shifted), canvases.drawn("train", 4, 3, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = swin.every_window(model, data.images, data.labels) + claims.one_answer(model, data.images, data.labels)
    loss.backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())
