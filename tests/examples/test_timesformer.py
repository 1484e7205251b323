"""The example on TimeSformer: schemes, block and counts are right, and the script runs."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import TimesformerConfig
from transformers.models.timesformer.modeling_timesformer import TimesformerLayer

pytestmark = pytest.mark.torch

ts: ModuleType = importlib.import_module("timesformer")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("timesformer")
    ts.main(["--preset", "smoke", "--device", "cpu", "--out", str(out)])
    found: dict[str, Any] = json.loads((out / "record.json").read_text())
    return found | {"out": str(out)}


def test_a_smoke_run_leaves_results_and_figures(record: dict[str, Any]) -> None:
    expected = {"divided_over_space", "divided_over_joint", "macs_joint_over_divided_96", "time_joint_over_divided_64"}
    assert expected <= set(record["results"])
    names = [figure["name"] for figure in record["figures"]]
    assert names == ["clips", "schemes", "direction", "data", "cost", "time"]
    for figure in record["figures"]:
        assert all((Path(record["out"]) / figure[style]).stat().st_size > 1000 for style in ("light", "dark"))


def theirs_and_ours(divided: bool) -> tuple[Any, Any]:
    """A layer of transformers and our block with its weights: width 24, 3 heads, 4 frames of 3 x 3 patches."""
    kind = "divided_space_time" if divided else "joint_space_time"
    config = TimesformerConfig(image_size=6, patch_size=2, num_frames=4, hidden_size=24, num_hidden_layers=1,
                               num_attention_heads=3, intermediate_size=96, attention_type=kind,
                               layer_norm_eps=1e-5)  # fmt: skip
    theirs, ours = TimesformerLayer(config, 0).eval(), ts.Block(24, 3, divided).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pairs = [(ours.space_norm, theirs.layernorm_before), (ours.mlp_norm, theirs.layernorm_after)]
    pairs += [(ours.space.qkv, theirs.attention.attention.qkv), (ours.space.out, theirs.attention.output.dense)]
    pairs += [(ours.mlp[0], theirs.intermediate.dense), (ours.mlp[2], theirs.output.dense)]
    if divided:
        pairs += [(ours.time_norm, theirs.temporal_layernorm), (ours.time_out, theirs.temporal_dense)]
        pairs += [(ours.time.qkv, theirs.temporal_attention.attention.qkv)]
        pairs += [(ours.time.out, theirs.temporal_attention.output.dense)]
    for mine, its in pairs:
        mine.load_state_dict(its.state_dict())
    return theirs, ours


@pytest.mark.parametrize("divided", [True, False])
def test_the_block_equals_transformers_on_the_same_weights(divided: bool) -> None:
    theirs, ours = theirs_and_ours(divided)
    cls, x = torch.randn(2, 1, 24), torch.randn(2, 4, 9, 24)
    wanted = theirs(torch.cat([cls, x.transpose(1, 2).flatten(1, 2)], 1))[0]  # theirs: patches outside, frames inside
    found = ours(cls, x)
    torch.testing.assert_close(found[0], wanted[:, :1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1].transpose(1, 2).flatten(1, 2), wanted[:, 1:], rtol=1e-4, atol=1e-4)


def influence(module: torch.nn.Module, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(F, N), bool: the tokens that move one output."""
    gradient = torch.autograd.grad(out.sum(), x)[0]
    return gradient[0].abs().sum(-1) > 0


def test_attention_in_a_divided_block_follows_the_drawn_pattern() -> None:
    block, side, query = ts.Block(8, 2, True).double(), 3, (1, 2, 0)
    x = torch.randn(1, 4, side**2, 8, dtype=torch.double, requires_grad=True)
    at = query[1] * side + query[2]
    time, space = ts.steps_of("divided", 4, side, query)
    rows = block.time(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (1, side**2)).transpose(1, 2)
    assert torch.equal(influence(block, rows[0, query[0], at], x), time.flatten(1))
    frames = block.space(x.flatten(0, 1)).unflatten(0, (1, 4))
    assert torch.equal(influence(block, frames[0, query[0], at], x), space.flatten(1))


@pytest.mark.parametrize(("divided", "frames"), [(True, 4), (False, 4)])
def test_one_block_joins_the_whole_clip(divided: bool, frames: int) -> None:
    block = ts.Block(8, 2, divided).double()
    x = torch.randn(1, frames, 9, 8, dtype=torch.double, requires_grad=True)
    _, out = block(torch.zeros(1, 1, 8, dtype=torch.double), x)
    assert influence(block, out[0, 0, 0], x).all()


@pytest.mark.parametrize(
    ("scheme", "pairs"), [("space", 36), ("joint", 108), ("divided", 3 + 36), ("axial", 3 + 6 + 6)]
)
def test_a_scheme_compares_as_many_pairs_as_it_should(scheme: str, pairs: int) -> None:
    assert sum(int(seen.sum()) for seen in ts.steps_of(scheme, 3, 6, (1, 3, 2))) == pairs


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'all'"):
        ts.steps_of("all", 3, 6, (0, 0, 0))


@pytest.mark.parametrize(("scheme", "same"), [("space", True), ("joint", False), ("divided", False)])
def test_only_attention_within_frames_ignores_their_order(scheme: str, same: bool) -> None:
    model = ts.TimeSformer(scheme, ts.PRESETS["smoke"]).eval()
    clips = ts.clips_of("test", 8, 0)
    mixed = ts.shuffled(clips, 0)
    assert not torch.equal(clips.frames, mixed.frames)
    assert torch.allclose(model(clips.frames), model(mixed.frames), atol=1e-5) is same


def test_networks_that_are_compared_have_about_the_same_parameters() -> None:
    divided = ts.count_parameters(ts.TimeSformer("divided", ts.PRESETS["quick"]))
    assert ts.count_parameters(ts.Convolution()) == pytest.approx(divided, rel=0.1)


@pytest.mark.parametrize(("scheme", "millions"), [("space", 85.9), ("joint", 85.9), ("divided", 121.4)])
def test_published_architectures_have_the_parameters_of_table_1(scheme: str, millions: float) -> None:
    assert ts.counted(scheme, 8).parameters / 1e6 == pytest.approx(millions, abs=0.2)  # the paper counts the classifier


def test_kept_bytes_count_each_storage_once_and_no_parameter() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    kept, macs = ts.kept_and_macs(model, torch.zeros(7, 3))
    assert kept == 4 * (7 * 3 + 7 * 5)  # the input of the first layer; the output of ReLU, for itself and for the last
    assert macs == 7 * (3 * 5 + 5 * 2)


def test_pretrained_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no use"):
        ts.main(["--preset", "smoke", "--device", "cpu", "--weights", "pretrained", "--out", str(tmp_path)])
