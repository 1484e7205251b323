"""The TimeSformer example: schemes and block are right, arms are of one size, and costs that are worked out are those counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timesformer
import torch
from claims import timesformer as claims
from lab.data.clips import moving_digits
from torch.utils.flop_counter import FlopCounterMode
from transformers import TimesformerConfig, TimesformerForVideoClassification, TimesformerModel, VideoMAEImageProcessor
from transformers.models.timesformer.modeling_timesformer import TimesformerLayer
from vit import Block

KINDS = {"space": "space_only", "joint": "joint_space_time", "divided": "divided_space_time"}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def theirs_and_ours(divided: bool) -> tuple[Any, Any]:
    """A layer of transformers and our block with its weights: width 24, 3 heads, 4 frames of 3 x 3 patches."""
    kind = "divided_space_time" if divided else "joint_space_time"
    config = TimesformerConfig(image_size=6, patch_size=2, num_frames=4, hidden_size=24, num_hidden_layers=1,
                               num_attention_heads=3, intermediate_size=96, attention_type=kind)  # fmt: skip
    theirs: Any = TimesformerLayer(config, 0).eval()
    ours: Any = timesformer.DividedBlock(24, 3, frames=4) if divided else Block(24, 3)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pairs = [(ours.norm1, theirs.layernorm_before), (ours.norm2, theirs.layernorm_after)]
    pairs += [(ours.attn.qkv, theirs.attention.attention.qkv), (ours.attn.proj, theirs.attention.output.dense)]
    pairs += [(ours.mlp.fc1, theirs.intermediate.dense), (ours.mlp.fc2, theirs.output.dense)]
    if divided:
        pairs += [(ours.temporal_norm, theirs.temporal_layernorm), (ours.temporal_fc, theirs.temporal_dense)]
        pairs += [(ours.temporal_attn.qkv, theirs.temporal_attention.attention.qkv)]
        pairs += [(ours.temporal_attn.proj, theirs.temporal_attention.output.dense)]
    for mine, its in pairs:
        mine.load_state_dict(its.state_dict())
    return theirs, ours.eval()


@pytest.mark.parametrize("divided", [True, False])
def test_the_block_equals_that_of_transformers_on_the_same_weights(divided: bool) -> None:
    theirs, ours = theirs_and_ours(divided)
    cls, x = torch.randn(2, 1, 24), torch.randn(2, 4, 9, 24)
    wanted = theirs(torch.cat([cls, x.transpose(1, 2).flatten(1, 2)], 1))[0]  # theirs: patches outside, frames inside
    found = ours(torch.cat([cls, x.flatten(1, 2)], 1))
    torch.testing.assert_close(found[:, 0], wanted[:, 0], rtol=1e-4, atol=1e-4)
    there = found[:, 1:].unflatten(1, (4, 9)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(there, wanted[:, 1:], rtol=1e-4, atol=1e-4)


def influence(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The tokens that move one output, bool, without the class token."""
    return torch.autograd.grad(out.sum(), x)[0][0].abs().sum(-1)[1:] > 0


def test_attention_in_a_divided_block_follows_the_drawn_pattern() -> None:
    block, side, query = timesformer.DividedBlock(8, 2, frames=4).double(), 3, (1, 2, 0)
    x = torch.randn(1, 1 + 4 * side**2, 8, dtype=torch.double, requires_grad=True)
    at = query[1] * side + query[2]
    time, space = timesformer.steps_of("divided", 4, side, query)
    along = block.temporal_attn(x[:, 1:].unflatten(1, (4, -1)).transpose(1, 2).flatten(0, 1))  # (N, F, D)
    assert torch.equal(influence(along[at, query[0]], x).view(4, side, side), time)
    within = block.attn(x[:, 1:].unflatten(1, (4, -1)).flatten(0, 1))  # (F, N, D)
    assert torch.equal(influence(within[query[0], at], x).view(4, side, side), space)


@pytest.mark.parametrize("divided", [True, False])
def test_one_block_joins_the_whole_clip(divided: bool) -> None:
    block = (timesformer.DividedBlock(8, 2, frames=4) if divided else Block(8, 2)).double()
    x = torch.randn(1, 1 + 4 * 9, 8, dtype=torch.double, requires_grad=True)
    assert influence(block(x)[0, 1], x).all()


@pytest.mark.parametrize(
    ("scheme", "pairs"), [("space", 36), ("joint", 108), ("divided", 3 + 36), ("axial", 3 + 6 + 6)]
)
def test_a_scheme_compares_as_many_pairs_as_it_should(scheme: str, pairs: int) -> None:
    assert sum(int(seen.sum()) for seen in timesformer.steps_of(scheme, 3, 6, (1, 3, 2))) == pairs


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'all'"):
        timesformer.steps_of("all", 3, 6, (0, 0, 0))


@pytest.mark.parametrize(("arm", "same"), [("space", True), ("joint", False), ("divided", False)])
def test_only_attention_within_frames_ignores_their_order(arm: str, same: bool) -> None:
    model = claims.build_arm(arm, "smoke").eval()
    clips = moving_digits("test", 8, seed=0, frames=timesformer.FRAMES, canvas=timesformer.CANVAS)
    mixed = claims.shuffled(clips, 0)
    assert not torch.equal(clips.frames, mixed.frames)
    assert torch.allclose(model(clips.frames), model(mixed.frames), atol=1e-5) is same


def test_a_clip_that_is_played_backwards_goes_the_opposite_way() -> None:
    clips = moving_digits("test", 40, seed=0, frames=4, canvas=16, noise=0)
    for frames, label in zip(clips.frames.flip(1), (clips.labels + 2) % 4, strict=True):
        right = [torch.equal(frames[1], frames[0].roll((speed * dr, speed * dc), (1, 2)))
                 for speed in (1, 2) for dr, dc in [((0, 1), (1, 0), (0, -1), (-1, 0))[int(label)]]]  # fmt: skip
        assert any(right)


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_arms_have_about_as_many_parameters(preset: str) -> None:
    """The divided block of the paper has 42 % more than the joint one; here the other arms make up for it."""
    sizes = {arm: sum(p.numel() for p in claims.build_arm(arm, preset).parameters()) for arm in claims.ARMS}
    assert max(sizes.values()) < 1.1 * min(sizes.values()), sizes


@pytest.mark.parametrize("scheme", ["space", "joint", "divided"])
def test_costs_that_are_worked_out_are_those_of_the_published_architecture(scheme: str) -> None:
    def counted(layers: int) -> float:
        config = TimesformerConfig(num_frames=8, num_hidden_layers=layers, attention_type=KINDS[scheme])
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            TimesformerModel(config)(torch.empty(1, 8, 3, 224, 224))
        return counter.get_total_flops() / 2

    one_block = counted(2) - counted(1)
    assert one_block == pytest.approx(claims.block_macs(scheme, 8), rel=1e-3)


def test_a_divided_block_has_the_additional_parameters_of_table_1() -> None:
    joint, divided = (claims.count_parameters(block)
                      for block in (Block(768, 12), timesformer.DividedBlock(768, 12, 8)))  # fmt: skip
    assert 12 * (divided - joint) / 1e6 == pytest.approx(121.4 - 85.9, abs=0.2)


def test_every_arm_was_searched_alike_and_the_file_to_read_uses_what_was_chosen() -> None:
    kept = json.loads((Path(claims.__file__).parent / "timesformer.searches.json").read_text("utf-8"))["learning rate"]
    assert set(kept["arms"]) == set(claims.ARMS)
    assert len({tuple(each["grid"]) for each in kept["arms"].values()}) == 1
    assert kept["arms"]["divided"]["chosen"] == timesformer.RATE


def test_the_published_model_looks_at_a_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small random network in the place of the download."""
    import transformers
    from PIL import Image

    config = TimesformerConfig(hidden_size=24, num_attention_heads=3, intermediate_size=48, num_hidden_layers=2)
    small = TimesformerForVideoClassification(config)
    monkeypatch.setattr(TimesformerForVideoClassification, "from_pretrained", lambda name: small)
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", lambda name: VideoMAEImageProcessor())
    with torch.inference_mode():
        pixels, looks, title = timesformer.published(Image.new("RGB", (80, 60), (90, 120, 40)))
    assert (pixels.shape, looks.shape) == ((3, 224, 224), (14, 14))
    assert title.endswith("%)")


@pytest.mark.parametrize("arm", claims.ARMS)
def test_a_step_runs_in_bfloat16(arm: str) -> None:
    model = claims.build_arm(arm, "smoke")
    clips = moving_digits("train", 4, seed=0, frames=timesformer.FRAMES, canvas=timesformer.CANVAS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(model(clips.frames), clips.labels)
    loss.backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())
