"""The RT-DETR example: the encoder, the score that knows its box, the choice of queries, layers that can be left out."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from lab import shapes
from lab.boxes import Targets
from lab.data.named import NAMES, SHAPES, named
from lab.sampling import BoxDecoderLayer, DeformableAttention

example = importlib.import_module("rt-detr")
claims = importlib.import_module("claims.rt-detr")
SMOKE = example.PRESETS["smoke"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return example.RTDETR(SMOKE).eval()


@pytest.fixture(scope="module")
def scenes():
    return named("val", 8, 3, range(len(NAMES)))


def test_both_maps_know_of_the_other_one() -> None:
    torch.manual_seed(0)
    encoder, fine, coarse = example.HybridEncoder(24, 24, 4).eval(), torch.randn(1, 24, 8, 8), torch.randn(1, 24, 4, 4)
    before = encoder(fine, coarse)
    for after in (encoder(fine + 1, coarse), encoder(fine, coarse + torch.randn_like(coarse))):
        assert [each.shape for each in after] == [(1, 24, 8, 8), (1, 24, 4, 4)]
        assert not any(torch.allclose(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("goal", [0.3, 0.6, 0.9])
def test_the_score_that_pays_least_is_the_overlap_of_the_box(goal: float) -> None:
    scores = torch.linspace(0.05, 0.95, 19)
    right, wanted = torch.ones(1, 1, 1), torch.tensor([[goal]])
    paid = [example.score_loss(score.logit().view(1, 1, 1), right, wanted).item() for score in scores]
    assert scores[int(torch.tensor(paid).argmin())] == pytest.approx(goal, abs=0.03)


def test_a_score_where_nothing_is_pays_more_the_surer_it_is() -> None:
    paid = [
        example.score_loss(torch.tensor([[[logit]]]), torch.zeros(1, 1, 1), torch.zeros(1, 1))
        for logit in (-4.0, 0.0, 4.0)
    ]
    assert 0 < paid[0] < paid[1] < paid[2]


def one_box(box: list[float], logit: float = 2.0) -> tuple[shapes.Found, Targets]:
    logits = torch.full((1, 1, len(SHAPES)), -6.0)
    logits[..., 0] = logit
    truth = Targets(torch.tensor([[[0.5, 0.5, 0.4, 0.4]]]), torch.tensor([[0]]))
    return shapes.Found(logits.requires_grad_(), torch.tensor([[box]])), truth


def test_a_sure_score_of_a_poor_box_is_lowered_only_where_it_learns_the_overlap() -> None:
    poor = [0.6, 0.6, 0.3, 0.3]
    for by_overlap, sign in ((True, 1), (False, -1)):
        found, truth = one_box(poor)
        example.set_loss(found, truth, by_overlap).backward()
        assert found.logits.grad[0, 0, 0].sign() == sign  # the step goes against the gradient


def test_a_second_box_on_a_thing_costs_loss() -> None:
    found, truth = one_box([0.5, 0.5, 0.4, 0.4], 4.0)
    twice = shapes.Found(found.logits.repeat(1, 2, 1), found.boxes.repeat(1, 2, 1))
    assert example.set_loss(twice, truth) > example.set_loss(found, truth) + 1


def test_scenes_without_anything_pay_for_scores_alone() -> None:
    found, truth = one_box([0.5, 0.5, 0.4, 0.4])
    empty = Targets(truth.boxes * 0, torch.full_like(truth.labels, len(SHAPES)))
    loss = example.set_loss(found, empty)
    assert torch.isfinite(loss)
    assert example.set_loss(found._replace(boxes=found.boxes * 0.5), empty) == loss


def test_the_places_with_the_best_scores_become_queries(model, scenes) -> None:
    with torch.inference_mode():
        places, first, *_ = model(scenes.images)
    start = example.chosen(model, places)
    sure = places.logits.amax(-1)
    assert start.logits.amax(-1).min(1).values.ge(sure.sort(1).values[:, -SMOKE.queries]).all()
    torch.testing.assert_close(first.boxes, start.boxes, atol=0.05, rtol=0)  # an untrained layer leaves the boxes


def test_the_decoder_teaches_the_maps_but_not_the_choice(model, scenes) -> None:
    """As in the paper, contents and boxes of the queries pass no gradient to the heads of the places."""
    *_, last = model(scenes.images)
    (last.logits.sum() + last.boxes.sum()).backward()
    assert model.fine[0][0].weight.grad.abs().sum() > 0
    assert model.scores[0].weight.grad is None


def test_leaving_out_layers_leaves_those_before_as_they_are(model, scenes) -> None:
    with torch.inference_mode():
        whole = model(scenes.images)
        del model.decoder[1:]
        cut = model(scenes.images)
    assert len(cut) == 2
    for one, other in zip(cut, whole, strict=False):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.logits, other.logits)


def test_layers_that_do_not_pay_learn_nothing_of_their_own(model, scenes) -> None:
    loss = example.loss_of(model, scenes.images, *shapes.things(scenes), paying=(0, 1))
    loss.backward()
    assert all(each.grad is None for each in model.decoder[2].parameters())
    assert all(each.grad is not None for each in model.decoder[1].parameters())


def test_deformable_attention_sees_what_lies_at_its_points_and_nothing_else() -> None:
    torch.manual_seed(0)
    attend, x = DeformableAttention(8, 2, 1, 3), torch.randn(1, 1, 8)
    box, image = torch.tensor([[[0.25, 0.25, 0.2, 0.2]]]), torch.randn(1, 8, 16, 16)
    before = attend(x, box, [image])
    far, near = image.clone(), image.clone()
    far[..., 10:, 10:] += 1
    near[..., 2:7, 2:7] += 1
    assert torch.equal(attend(x, box, [far]), before)
    assert not torch.allclose(attend(x, box, [near]), before)


def test_deformable_attention_over_a_constant_map_gives_that_constant_whatever_the_weights() -> None:
    torch.manual_seed(0)
    attend, x = DeformableAttention(8, 2, 2), torch.randn(2, 3, 8)
    boxes, flat = torch.full((2, 3, 4), 0.5) * torch.tensor([1, 1, 0.2, 0.2]), torch.randn(2, 8, 1, 1)
    seen = attend(x, boxes, [flat.expand(-1, -1, 8, 8), flat.expand(-1, -1, 4, 4)])
    value = attend.out(attend.value(flat).flatten(1))
    torch.testing.assert_close(seen, value[:, None].expand_as(seen), atol=1e-5, rtol=1e-4)


def test_a_decoder_layer_answers_each_query_whatever_the_order() -> None:
    torch.manual_seed(0)
    layer, x, boxes = BoxDecoderLayer(8, 2, 16, 1).eval(), torch.randn(1, 4, 8), torch.rand(1, 4, 4) * 0.5 + 0.2
    image, order = torch.randn(1, 8, 8, 8), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(layer(x, boxes, [image])[:, order], layer(x[:, order], boxes[:, order], [image]))


def test_average_precision_of_the_truth_is_whole_and_of_wrong_classes_next_to_nothing(scenes) -> None:
    targets = shapes.things(scenes)
    logits = torch.full((8, targets.labels.shape[1], len(SHAPES) + 1), -9.0).scatter(2, targets.labels[..., None], 9.0)
    found = shapes.Found(logits[..., :-1], targets.boxes)
    assert shapes.ap(found, scenes) == pytest.approx(100)
    assert shapes.ap(found._replace(logits=found.logits.roll(1, -1)), scenes) < 20


def test_shapes_are_the_second_words_of_names_and_padding_stays_padding(scenes) -> None:
    labels = shapes.things(scenes).labels
    for name, shape in zip(scenes.labels.flatten().tolist(), labels.flatten().tolist(), strict=True):
        assert shape == len(SHAPES) if name == len(NAMES) else NAMES[name].split()[1] == SHAPES[shape]


def test_agreement_is_one_for_the_same_order_and_undefined_for_a_few() -> None:
    x = torch.rand(20)
    assert claims.agreement(x, x**3) == pytest.approx(1)
    assert claims.agreement(x, -x) == pytest.approx(-1)
    assert torch.tensor(claims.agreement(x[:5], x[:5])).isnan()


def test_of_two_scores_the_one_that_is_named_picks_and_nothing_else_differs(scenes) -> None:
    torch.manual_seed(0)
    two = claims.TwoScores(SMOKE).eval()
    found = {by: claims.found_by(two, scenes, by) for by in ("overlap", "plain", "chance")}
    said, plain, *_ = found["overlap"]
    for by, picked in (("overlap", said), ("plain", plain)):
        for one, other in zip(found[by][:2], found["chance"][:2], strict=True):
            assert torch.equal(one.logits, other.logits)
            assert torch.equal(one.boxes, other.boxes)
        start = example.chosen(two, picked)
        torch.testing.assert_close(found[by][2].boxes, start.boxes, atol=0.05, rtol=0)
    assert torch.equal(said.boxes, plain.boxes)
    assert not torch.allclose(found["chance"][2].boxes, found["overlap"][2].boxes, atol=0.05)


def test_in_training_pictures_start_in_turn_from_what_each_of_two_scores_picks(scenes, monkeypatch) -> None:
    torch.manual_seed(0)
    two, best = claims.TwoScores(SMOKE).train(), []
    refine = two.refine
    monkeypatch.setattr(two, "refine", lambda *arguments: best.append(arguments[-1]) or refine(*arguments))
    said, plain, *_ = two(scenes.images)
    assert torch.equal(best[0][::2], two.select(said)[::2])
    assert torch.equal(best[0][1::2], two.select(plain)[1::2])


def test_only_the_plain_score_learns_from_the_plain_goal(scenes) -> None:
    torch.manual_seed(0)
    two = claims.TwoScores(SMOKE).train()
    claims.loss_of_two(two, scenes.images, *shapes.things(scenes)).backward()
    assert two.plain.weight.grad.abs().sum() > 0
    extra = sum(each.numel() for each in two.parameters()) / sum(
        each.numel() for each in example.RTDETR(SMOKE).parameters()
    )
    assert 1 < extra < 1.01


def test_the_file_to_read_uses_what_the_search_chose_for_its_arm() -> None:
    kept = json.loads((Path(claims.__file__).parent / "rt-detr.searches.json").read_text("utf-8"))
    assert kept["learning rate"]["arms"]["every"]["chosen"] == example.RATE
    assert set(kept["learning rate"]["arms"]) == set(claims.ARMS)


def test_published_boxes_come_in_pixels_with_names_and_a_layer_less_still_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a small random network in the place of the download."""
    import numpy as np
    import transformers
    from PIL import Image

    config = transformers.RTDetrConfig(
        d_model=32, encoder_hidden_dim=32, encoder_ffn_dim=32, decoder_ffn_dim=32, decoder_layers=3, num_queries=5, num_labels=3,
        encoder_in_channels=[16, 16, 16], decoder_in_channels=[32, 32, 32], encoder_attention_heads=2, decoder_attention_heads=2,
        num_denoising=0, backbone_config=transformers.RTDetrResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 16],
                                                                        depths=[1, 1, 1, 1], layer_type="basic",
                                                                        out_features=["stage2", "stage3", "stage4"]),
    )  # fmt: skip
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    for layers in (3, 2):
        network, processor = transformers.RTDetrForObjectDetection(config), transformers.RTDetrImageProcessor()
        fetch = {"AutoImageProcessor": processor, "RTDetrForObjectDetection": network}
        for name, thing in fetch.items():
            monkeypatch.setattr(getattr(transformers, name), "from_pretrained", lambda _, thing=thing: thing)
        with torch.inference_mode():
            boxes, names = example.published(image, layers)
        assert boxes.shape == (len(names), 4)
        assert len(network.model.decoder.layers) == layers
