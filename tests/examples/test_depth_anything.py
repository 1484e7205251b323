"""The Depth Anything example: what its loss does not see, the scenes and their depths, and what the claims measure."""

from __future__ import annotations

import itertools
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from lab.data import grounds
from torch import Tensor

example: Any = import_module("depth-anything")
claims: Any = import_module("claims.depth-anything")
CPU = torch.device("cpu")


def maps(seed: int = 0, count: int = 3) -> Tensor:
    return torch.rand(count, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("scale", "shift"), [(7.0, 0.0), (0.2, 3.0), (1.0, -5.0)])
def test_invariant_loss_and_its_gradient_do_not_see_the_unit_of_the_label(scale: float, shift: float) -> None:
    found, label = maps(0).requires_grad_(), maps(1)
    losses = [example.ssi_loss(found, each) for each in (label, scale * label + shift)]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(*(torch.autograd.grad(loss, found)[0] for loss in losses), rtol=1e-4, atol=1e-6)


def test_invariant_loss_does_not_see_the_unit_of_the_prediction_either() -> None:
    torch.testing.assert_close(example.ssi_loss(3 * maps(0) - 2, maps(1)), example.ssi_loss(maps(0), maps(1)))
    assert example.ssi_loss(2 * maps(0) + 1, maps(0)) < 1e-5


def test_invariant_loss_sees_a_map_that_is_upside_down_and_plain_loss_sees_the_unit() -> None:
    assert example.ssi_loss(-maps(0), maps(0)) > 0.5
    assert example.plain_loss(2 * maps(0), maps(0)) > 0.1


def test_standard_map_has_median_zero_and_mean_deviation_one() -> None:
    flat = example.standard(5 * maps() + 2).flatten(1)
    torch.testing.assert_close(flat.median(1).values, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.abs().mean(1), torch.ones(3))


def test_flat_map_has_a_finite_loss() -> None:
    found = torch.zeros(2, 8, 8, requires_grad=True)
    loss = example.ssi_loss(found, maps(count=2))
    loss.backward()
    assert loss.isfinite()
    assert found.grad is not None
    assert found.grad.isfinite().all()


def test_labels_of_mixed_units_keep_the_order_and_differ_in_unit_from_image_to_image() -> None:
    inverse = maps(count=20)
    mixed = example.relabelled(inverse, torch.Generator().manual_seed(0))
    torch.testing.assert_close(example.standard(mixed), example.standard(inverse), rtol=1e-3, atol=1e-4)
    ratio = mixed.flatten(1).std(1) / inverse.flatten(1).std(1)
    assert ratio.min() < 0.5
    assert ratio.max() > 2


def test_images_are_the_same_with_and_without_mixed_units() -> None:
    one, mixed = (example.training_batches(example.PRESETS["smoke"], 0, CPU, mixed=mixed) for mixed in (False, True))
    for (images, inverse), (same, label) in itertools.islice(zip(one, mixed, strict=True), 3):
        assert torch.equal(images, same)
        assert not torch.allclose(inverse, label)


def test_plane_gets_nearer_by_the_same_step_from_row_to_row() -> None:
    inverse = grounds.draw_grounds(50, torch.Generator().manual_seed(0)).inverse
    steps = inverse[:, 1:] - inverse[:, :-1]  # (50, H - 1, W)
    plane = steps[:, -1]  # the lowest rows are plane in most columns
    assert (plane - 1 / grounds.FOCAL).abs().median() < 1e-6
    assert (inverse >= 0).all()
    assert (inverse[:, 0] < 0.75).all()


def test_order_of_the_truth_is_right_whatever_its_unit_and_of_rows_alone_it_is_undecided() -> None:
    inverse = grounds.held_out("test", 20, CPU).inverse
    assert example.order_right(3 * inverse - 1, inverse) == 100
    assert example.order_right(-inverse, inverse) == 0
    rows = torch.arange(32.0)[None, :, None].expand(20, 32, 32)
    assert example.order_right(rows, inverse) == 0  # two pixels of a row draw, and a draw is not right


def test_splits_show_other_scenes_and_each_the_same_again() -> None:
    val, test, again = (grounds.held_out(split, 4, CPU).images for split in ("val", "test", "test"))
    assert torch.equal(test, again)
    assert not torch.equal(val, test)


def test_lines_give_back_scale_and_shift() -> None:
    found = maps().flatten(1)
    for line in (claims.line_through, claims.line_through_two):
        scale, shift = line(found, 2.5 * found + 0.5)
        torch.testing.assert_close(scale, torch.full((3, 1), 2.5))
        torch.testing.assert_close(shift, torch.full((3, 1), 0.5))


def test_error_of_one_scale_stays_where_worlds_differ_in_size_even_for_the_true_map() -> None:
    inverse = grounds.held_out("test", 50, CPU).inverse
    true, metres = inverse.flatten(1), claims.in_metres(inverse)
    scale, shift = claims.line_through(true.flatten()[None], metres.flatten()[None])
    own, own_shift = claims.line_through_two(true, metres)
    assert claims.error(scale * true + shift, metres) > 20
    assert claims.error(own * true + own_shift, metres) < 0.1


def test_aligned_error_is_zero_for_any_unit_of_the_truth() -> None:
    inverse = grounds.held_out("test", 5, CPU).inverse
    assert claims.aligned_error(4 * inverse - 3, inverse) < 0.01


def test_network_gives_one_number_for_each_pixel() -> None:
    assert example.build(example.PRESETS["smoke"])(torch.rand(2, 3, 32, 32)).shape == (2, 32, 32)


def test_the_file_to_read_uses_what_the_search_chose_and_all_arms_were_searched() -> None:
    kept = json.loads((Path(claims.__file__).parent / "depth-anything.searches.json").read_text("utf-8"))
    assert kept["learning rate"]["arms"]["invariant"]["chosen"] == example.RATE
    assert set(kept["learning rate"]["arms"]) == set(claims.ARMS)


def test_the_published_network_maps_a_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small random network in the place of the download."""
    import transformers
    from PIL import Image
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    network = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8],
                            fusion_hidden_size=8, head_hidden_size=4)
    )  # fmt: skip
    processor = DPTImageProcessor(size={"height": 56, "width": 56}, ensure_multiple_of=14)

    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", lambda name: processor)
    monkeypatch.setattr(transformers.AutoModelForDepthEstimation, "from_pretrained", lambda name: network)
    photograph, depth = example.published(Image.new("RGB", (80, 60), (200, 30, 30)))
    assert (photograph.shape, depth.shape) == ((60, 80, 3), (60, 80))
    assert 0 <= photograph.min() <= photograph.max() <= 1
