"""D-FINE's idea: uneven steps, boxes from distributions and what they learn, looks around a box, what the claims compare."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return"
from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lab.boxes import xyxy_from_cxcywh
from lab.data import soft as data
from torch import Tensor

example = importlib.import_module("d-fine")
claims = importlib.import_module("claims.d-fine")
SMOKE = example.PRESETS["smoke"]
W = example.weighting()


def exact_edges(phi: Tensor, W: Tensor = W) -> Tensor:
    """Logits of the distributions that hold the steps phi (...) in the two places beside them."""
    right = torch.searchsorted(W, phi).clamp(1, len(W) - 1)
    part = (phi - W[right - 1]) / (W[right] - W[right - 1])
    p = torch.zeros(*phi.shape, len(W)).scatter(-1, right[..., None] - 1, (1 - part)[..., None])
    return (p.scatter(-1, right[..., None], part[..., None]) + 1e-9).log()


def boxes(seed: int) -> tuple[Tensor, Tensor]:
    """A first box and one whose edges lie within its reach, cxcywh."""
    a, b, c, d = torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()
    return torch.tensor([0.5, 0.5, 0.2 + a / 5, 0.2 + b / 5]), torch.tensor([0.48 + c / 20, 0.5, 0.25 + d / 10, 0.3])


def test_steps_grow_from_the_middle_outwards_and_are_those_of_the_paper() -> None:
    N, a, c = example.N, example.A, example.C
    torch.testing.assert_close(W, -W.flip(0))
    assert W[N // 2] == 0
    assert (W[0], W[1]) == (-2 * a, pytest.approx(-a))
    assert float(W[5]) == pytest.approx(c - c * (a / c + 1) ** ((N - 10) / (N - 2)))
    assert bool((W.diff()[N // 2 : -1].diff() > 0).all())


def test_equal_chances_of_all_steps_leave_the_first_box() -> None:
    start, _ = boxes(0)
    torch.testing.assert_close(example.moved(start, torch.zeros(4, example.N + 1), W), start)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_the_steps_to_a_box_lead_there(seed: int) -> None:
    start, truth = boxes(seed)
    found = example.moved(start, exact_edges(example.steps_to(start, truth)), W)
    torch.testing.assert_close(found, truth, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("edge", range(4))
def test_each_distribution_moves_its_own_edge_outwards(edge: int) -> None:
    start, phi = torch.tensor([0.5, 0.5, 0.4, 0.2]), torch.zeros(4)
    phi[edge] = 0.1
    moved = xyxy_from_cxcywh(example.moved(start, exact_edges(phi), W)) - xyxy_from_cxcywh(start)
    expected = torch.zeros(4)
    expected[edge] = 0.1 * float(start[2 + edge % 2]) * (1 if edge > 1 else -1)
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0)


@settings(max_examples=20)
@given(st.floats(-0.99, 0.99), st.integers(0, 1000))
def test_no_distribution_has_a_lower_loss_than_the_two_steps_in_proportion(step: float, seed: int) -> None:
    phi = torch.tensor([step])
    other = exact_edges(phi) + 0.5 * torch.randn(1, len(W), generator=torch.Generator().manual_seed(seed))
    best = example.fine_grained_loss(exact_edges(phi), phi, W)
    assert float(example.fine_grained_loss(other, phi, W)) >= float(best) - 1e-5


def test_a_step_beyond_the_last_one_learns_the_last_one() -> None:
    far, last = (
        example.fine_grained_loss(torch.randn(1, len(W)).cumsum(-1), phi, W) for phi in (torch.tensor([9.0]),) * 2
    )
    sure = torch.full((1, len(W)), -20.0).index_fill(1, torch.tensor([example.N]), 20.0)
    assert far.isfinite().all()
    assert last.isfinite().all()
    assert float(example.fine_grained_loss(sure, torch.tensor([9.0]), W)) < 1e-3


def test_an_untrained_layer_hardly_moves_the_box_of_the_first_one() -> None:
    torch.manual_seed(0)
    for make in claims.MAKE.values():
        said = make(SMOKE).eval()(torch.rand(2, 3, data.SIDE, data.SIDE))
        torch.testing.assert_close(said.boxes, said.start[:, None].expand_as(said.boxes), atol=0.1, rtol=0)


def test_layers_add_to_the_logits_of_those_before_and_the_first_box_stays_the_origin() -> None:
    torch.manual_seed(0)
    model = example.DFINE(SMOKE).eval()
    with torch.inference_mode():
        for head in model.heads:
            head[-2].weight.normal_()
        said = model(torch.rand(2, 3, data.SIDE, data.SIDE))
        model.heads[1][-2].weight.zero_()
        model.heads[1][-2].bias.zero_()
        same = model(torch.rand(2, 3, data.SIDE, data.SIDE))
    torch.testing.assert_close(same.edges[:, 1], same.edges[:, 0])
    assert not torch.allclose(said.edges[:, 1], said.edges[:, 0])
    torch.testing.assert_close(said.boxes, example.moved(said.start[:, None], said.edges, W))


def test_a_layer_looks_where_its_box_is() -> None:
    torch.manual_seed(0)
    layer, query, box = example.Layer(16, 16).eval(), torch.randn(1, 16), torch.tensor([[0.25, 0.25, 0.3, 0.3]])
    near, far = torch.zeros(1, 16, 12, 12), torch.zeros(1, 16, 12, 12)
    near[:, :, 2:4, 2:4], far[:, :, 9:, 9:] = 5.0, 5.0
    nothing = layer(query, torch.zeros_like(near), box)
    assert not torch.allclose(layer(query, near, box), nothing)
    torch.testing.assert_close(layer(query, far, box), nothing)


def test_perfect_boxes_have_a_precision_of_100_and_shifted_ones_lose_at_the_higher_threshold() -> None:
    test = data.soft("test", 12, 0)
    score = torch.linspace(-1, 1, 12)
    assert example.precision(test.boxes, score, test)["ap"] == pytest.approx(100)
    shifted = test.boxes + torch.cat([test.boxes[:, 2:] * torch.tensor([0.2, 0.0]), torch.zeros(12, 2)], 1)  # IoU 2/3
    found = example.precision(shifted, score, test)
    assert (found["ap50"], found["ap75"]) == (pytest.approx(100), 0)


def test_scenes_hold_one_shape_in_its_box_and_splits_differ() -> None:
    scenes = data.soft("train", 20, 3)
    corners = xyxy_from_cxcywh(scenes.boxes)
    assert bool((corners >= -1e-6).all() & (corners <= 1 + 1e-6).all())
    assert scenes.images.shape == (20, 3, data.SIDE, data.SIDE)
    assert 0 <= float(scenes.images.min()) <= float(scenes.images.max()) <= 1
    assert torch.equal(scenes.images, data.soft("train", 20, 3).images)
    assert not torch.equal(scenes.boxes, data.soft("val", 20, 3).boxes)


def test_the_pixels_at_the_centre_are_the_shape_and_far_ones_are_not() -> None:
    scenes = data.soft("test", 30, 1)
    x, y = (scenes.boxes[:, :2] * data.SIDE).long().unbind(1)
    centre = scenes.images[torch.arange(30), :, y, x]
    assert bool((centre >= 0.3 - 1e-5).all())  # colours are brighter than that,
    outside = scenes.images.amax(1)[:, 0, 0]
    assert float(outside.mean()) < float(centre.amax(1).mean())  # photographs are dimmed


@pytest.mark.parametrize("preset", ["smoke", "quick", "full"])
def test_arms_have_about_as_many_parameters(preset: str) -> None:
    with torch.device("meta"):
        models = {arm: make(example.PRESETS[preset]) for arm, make in claims.MAKE.items()}
    counts = {arm: sum(p.numel() for p in each.parameters()) for arm, each in models.items()}
    assert counts["even"] == counts["fdr"] == pytest.approx(counts["direct"], rel=0.02)


def test_even_steps_reach_as_far_and_are_all_of_one_size() -> None:
    even = claims.even(SMOKE).W
    assert (even[0], even[-1]) == (W[0], W[-1])
    torch.testing.assert_close(even.diff(), even.diff()[:1].expand(example.N), atol=1e-6, rtol=0)


def test_four_numbers_have_no_loss_of_edges_and_add_up() -> None:
    model = claims.Direct(SMOKE).eval()
    said = model(torch.rand(2, 3, data.SIDE, data.SIDE))
    assert said.edges.shape == (2, SMOKE.layers, 4, 1)
    assert float(model.edge_loss(said, said.start).abs().sum()) == 0
    start = torch.tensor([0.4, 0.5, 0.3, 0.2])
    torch.testing.assert_close(model.refined(start, torch.zeros(4, 1)), start)


def test_every_weight_learns_something() -> None:
    scenes = data.soft("train", 8, 0)
    for make in claims.MAKE.values():
        model = make(SMOKE)
        for head in model.heads:
            torch.nn.init.normal_(head[-2].weight, std=0.1)
        example.loss_of(model, *scenes).backward()
        assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())


def test_a_training_step_reads_nothing_back_from_its_device() -> None:
    """On the meta device there are no values, so whatever asks for one raises: the step has no synchronisation."""
    assert example.SYNCHRONISATIONS_PER_STEP == 0
    model = example.DFINE(SMOKE).to("meta")
    example.loss_of(model, *(each.to("meta") for each in data.soft("train", 4, 0))).backward()


def test_a_training_step_stands_bfloat16() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = example.loss_of(example.DFINE(SMOKE), *data.soft("train", 4, 0))
    loss.backward()
    assert loss.isfinite()


def test_the_file_to_read_uses_what_the_search_chose_for_its_arm() -> None:
    kept = json.loads((Path(claims.__file__).parent / "d-fine.searches.json").read_text("utf-8"))["learning rate"]
    assert kept["arms"]["fdr"]["chosen"] == example.RATE
    assert set(kept["arms"]) == set(claims.ARMS)


def test_published_boxes_come_in_pixels_with_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins in the place of the download: what is passed to whom is what the library asks for."""
    import numpy as np
    import transformers
    from PIL import Image

    processor = transformers.RTDetrImageProcessor(size={"height": 64, "width": 64})
    outputs = transformers.models.d_fine.modeling_d_fine.DFineObjectDetectionOutput(
        logits=torch.full((1, 2, 3), -9.0).index_put(
            (torch.tensor(0), torch.tensor(1), torch.tensor(2)), torch.tensor(9.0)
        ),
        pred_boxes=torch.tensor([[[0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.5, 1.0]]]),
    )
    network = torch.nn.Module()
    network.forward = lambda pixel_values, **_: outputs  # type: ignore[assignment]
    network.config = transformers.DFineConfig(id2label={0: "a", 1: "b", 2: "a cat"})  # type: ignore[assignment]
    for name, thing in {"AutoImageProcessor": processor, "DFineForObjectDetection": network}.items():
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", lambda _, thing=thing: thing)
    found, names = example.published(Image.fromarray(np.zeros((60, 80, 3), np.uint8)))
    assert names == ["a cat"]
    torch.testing.assert_close(found, torch.tensor([[20.0, 0.0, 60.0, 60.0]]))
