"""The example on Swin: windows, mask and block are right, the counts follow the equations, and the script runs."""

import importlib
import json
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.torch

swin: ModuleType = importlib.import_module("swin")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@settings(max_examples=50, deadline=None)
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
    with pytest.raises(ValueError, match="3 x 3 tokens do not divide a grid of 4 x 6"):
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
    assert int((swin.influence(depth, shifted) > 0).sum()) == tokens


def macs(module: nn.Module, inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(inputs)
    return float(counter.get_total_flops()) / 2


def test_counted_macs_follow_the_equations() -> None:
    attention = swin.WindowAttention(24, 3, 4)
    assert macs(attention, torch.zeros(9, 16, 24)) == sum(swin.window_msa_macs(144, 24, 4))  # Eq. 2
    assert macs(attention, torch.zeros(1, 16, 24)) == sum(swin.msa_macs(16, 24))  # Eq. 1: a single window sees all


@pytest.mark.parametrize("architecture", [swin.SWIN, swin.VIT])
def test_attention_of_published_architectures_follows_the_equations(architecture: str) -> None:
    assert swin.cost(architecture, 672).attention == swin.attention_by_equation(architecture, 672)


def test_kept_bytes_count_each_storage_once_and_no_parameter() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    images = torch.zeros(7, 3)
    # The input, for the first layer; the output of ReLU, for itself and for the last layer.
    assert swin.kept_bytes(model, images) == 4 * (7 * 3 + 7 * 5)


def test_the_meta_device_keeps_what_a_real_device_keeps() -> None:
    with torch.device("meta"):
        model = timm.create_model(swin.VIT, img_size=64).eval()
    model.to_empty(device="cpu")  # values do not matter here
    for fused in (False, True):
        real = swin.kept_bytes(swin.with_attention(model, fused), torch.zeros(1, 3, 64, 64))
        assert swin.cost(swin.VIT, 64, fused=fused).kept == real


@pytest.mark.parametrize(("task", "windows_touched"), [("inside", 1), ("across", 4), ("beyond", 1)])
def test_digits_lie_in_as_many_windows_as_the_task_says(task: str, windows_touched: int) -> None:
    data = swin.canvases("val", 40, 3, task, seed=1)
    bright = swin.window_partition(data.images.permute(0, 2, 3, 1), swin.DIGIT).amax((1, 2)) > 0.6  # noise stays below
    for number, cell, found in zip(range(40), data.cells.tolist(), bright.view(40, 3, 3), strict=True):
        rows, columns = (slice(each, each + (2 if task == "across" else 1)) for each in cell)
        assert found[rows, columns].sum() == found.sum(), f"canvas {number} is bright outside its cell"
    assert bright.view(40, -1).sum(1).max() == windows_touched


def test_arms_share_parameters_and_first_weights() -> None:
    arms = []
    for shifted in (True, False):
        torch.manual_seed(3)
        arms.append(swin.SwinStage(swin.PRESETS["smoke"], shifted))
    states = [arm.state_dict() for arm in arms]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("shifted", [True, False])
def test_a_window_answers_from_what_its_blocks_reach(shifted: bool) -> None:
    sizes = swin.PRESETS["quick"]
    model = swin.SwinStage(sizes, shifted).double()
    images = torch.randn(1, 1, 24, 24, dtype=torch.double, requires_grad=True)
    gradient = torch.autograd.grad(model(images)[0, :, 0, 0].sum(), images)[0].abs()[0, 0]
    reach = 8 * (1 + (sizes.depth // 2 if shifted else 0))
    assert (gradient[:reach, :reach] > 0).any(dim=1).all()
    assert (gradient[:reach, :reach] > 0).any(dim=0).all()
    assert gradient[reach:].sum() == gradient[:, reach:].sum() == 0


def test_distances_of_answers_are_counted_from_the_window_of_the_digit() -> None:
    class Oracle(nn.Module):
        """Right in the window of the digit alone, wrong in all others."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, 1)
            data = swin.canvases("test", 64, 3, "beyond", 5)
            self.answer = torch.zeros(64, 10, 3, 3)
            row, column = data.cells.unbind(1)
            self.answer[torch.arange(64), (data.labels + 1) % 10] = 1.0  # wrong everywhere
            self.answer[torch.arange(64), data.labels, row, column] = 2.0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.answer

    assert swin.evaluate("beyond", Oracle(), 5, swin.PRESETS["smoke"]) == [1.0, 0.0, 0.0]


def test_kinds_of_operations_are_told_apart() -> None:
    kinds = {name: swin.kind_of(f"aten::{name}") for name in ("addmm", "mm", "bmm", "copy_", "roll", "mul", "gelu")}
    assert list(kinds.values()) == ["products"] * 3 + ["moving tokens"] * 2 + ["all else"] * 2


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("swin")
    swin.main(["--preset", "smoke", "--device", "cpu", "--out", str(out)])
    read: dict[str, Any] = json.loads((out / "record.json").read_text(encoding="utf-8"))
    for figure in read["figures"]:
        assert (out / figure["light"]).is_file()
        assert (out / figure["dark"]).is_file()
    return read


def test_the_smoke_run_records_its_experiments_and_figures(record: dict[str, Any]) -> None:
    assert [each["name"] for each in record["figures"]] == [
        "shifted_windows",
        "patch_merging",
        "receptive_field",
        "swin_tiny_reach",
        "cost",
        "accuracy",
        "speed",
    ]
    for arm in ("shifted", "unshifted"):
        for case in ("inside", "across", "own_window", "next_window", "out_of_reach"):
            assert 0 <= record["results"][f"accuracy_{case}_{arm}"]["mean"] <= 1
    for name in ("work_rate_swin_over_vit", "work_rate_swin_fused_over_resnet", "time_moving_swin", "latency_vit"):
        assert record["results"][name]["mean"] > 0


def test_exact_results_are_those_of_the_architectures(record: dict[str, Any]) -> None:
    exact = {name: each["mean"] for name, each in record["results"].items() if each["exact"]}
    assert [exact[f"tokens_reached_shifted_{depth}"] for depth in (1, 2, 4, 8)] == [16, 64, 256, 1024]
    assert {exact[f"tokens_reached_unshifted_{depth}"] for depth in (1, 2, 4, 8)} == {16}
    assert exact["attention_exponent_swin"] == pytest.approx(1.0, abs=1e-6)
    assert exact["attention_exponent_vit"] == pytest.approx(2.0, abs=0.01)
    assert exact["memory_vit_fused_over_swin_1120"] < exact["memory_vit_over_swin_1120"] / 4  # no scores are kept
    assert exact["swin_tiny_blocks_to_see_all_shifted"] < exact["swin_tiny_blocks_to_see_all_unshifted"] == 11
