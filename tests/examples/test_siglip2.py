"""The SigLIP 2 example: the losses against their definitions, the scenes and captions, and what the claims measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import siglip2
import torch
from claims import siglip2 as claims
from lab.data import captioned
from lab.data.captioned import SHAPES, WORDS, Scenes, captions, held_out, pairs_of_kinds, written
from torch.nn import functional

CPU = torch.device("cpu")


def kind(colour: str, shape: str) -> int:
    return WORDS.index(colour) * len(SHAPES) + SHAPES.index(shape)


def model() -> siglip2.TwoTowers:
    torch.manual_seed(0)
    return siglip2.build(siglip2.PRESETS["smoke"]).eval()


def test_sigmoid_loss_asks_each_pair_by_itself() -> None:
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    asked = functional.binary_cross_entropy_with_logits(logits, torch.eye(4), reduction="sum") / 4
    torch.testing.assert_close(siglip2.sigmoid_loss(logits), asked)


def test_texts_behind_those_of_the_images_belong_to_none() -> None:
    logits = torch.tensor([[9.0, -9.0, -9.0], [-9.0, 9.0, -9.0]])
    assert siglip2.sigmoid_loss(logits) < 0.01
    logits[0, 2] = 9.0
    assert siglip2.sigmoid_loss(logits) > 4


def test_offset_of_all_logits_counts_for_the_sigmoid_alone() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(siglip2.softmax_loss(logits), siglip2.softmax_loss(logits + 2))
    assert (siglip2.sigmoid_loss(logits) - siglip2.sigmoid_loss(logits + 2)).abs() > 0.1


def test_logits_start_at_the_odds_of_a_true_pair() -> None:
    assert siglip2.TwoTowers(8, 8, 48).bias.sigmoid().item() == pytest.approx(1 / 48)


def test_text_tower_can_tell_two_orders_of_the_same_words() -> None:
    kinds = torch.tensor([[kind("red", "circle"), kind("blue", "square")]])
    text = model().text
    assert sorted(captions(kinds)[0].tolist()) == sorted(captions(claims.exchanged(kinds))[0].tolist())
    assert (text(captions(kinds)) - text(captions(claims.exchanged(kinds)))).abs().max() > 1e-3


def test_vectors_have_length_one() -> None:
    scenes = held_out("val", True, CPU)
    for vectors in (model().image(scenes.images), model().text(captions(scenes.kinds))):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_captions_say_the_kinds_and_exchange_moves_the_colours_only() -> None:
    kinds = torch.tensor([kind("red", "circle"), kind("blue", "square")])
    assert written(captions(kinds)) == "red circle and blue square"
    assert written(captions(claims.exchanged(kinds))) == "blue circle and red square"
    assert torch.equal(claims.exchanged(claims.exchanged(kinds)), kinds)


def test_kinds_that_are_kept_out_are_in_no_training_scene_and_once_in_each_unseen_one() -> None:
    def kept_out(kinds: torch.Tensor) -> torch.Tensor:
        return (kinds // len(SHAPES) == kinds % len(SHAPES)).sum(1)

    draws = captioned.batches(64, 0, CPU)
    assert all((kept_out(next(draws).kinds) == 0).all() for _ in range(20))
    assert (kept_out(held_out("test", False, CPU).kinds) == 0).all()
    assert (kept_out(held_out("test", True, CPU).kinds) == 1).all()


def test_no_false_pair_of_a_batch_is_true() -> None:
    draws = captioned.batches(200, 0, CPU)
    for _ in range(5):
        pairs = {tuple(sorted(pair)) for pair in next(draws).kinds.tolist()}
        assert len(pairs) == 200


def test_two_things_differ_in_colour_and_shape_so_that_an_exchange_is_false() -> None:
    for unseen in (False, True):
        kinds = pairs_of_kinds(unseen)
        same = (claims.exchanged(kinds).sort(1).values == kinds.sort(1).values).all(1)
        assert not same.any()


def test_the_shape_that_is_painted_is_the_one_that_is_said() -> None:
    kinds = torch.tensor([[kind("red", "ring"), kind("blue", "square")]]).repeat(50, 1)
    images = captioned.draw_scenes(kinds, torch.Generator().manual_seed(0)).images
    red, blue = images[:, 0] - images[:, 2] > 0.3, images[:, 2] - images[:, 0] > 0.3  # (50, H, W)
    assert (red.sum((1, 2)) > 20).all()
    assert (blue.sum((1, 2)) > 20).all()
    for mask, full in ((red, False), (blue, True)):  # the middle of a ring is empty
        for each in mask:
            y, x = each.nonzero().double().mean(0).round().long()
            assert bool(each[y, x]) is full


def test_splits_show_other_views() -> None:
    assert not torch.equal(held_out("val", False, CPU).images, held_out("test", False, CPU).images)


def test_blank_is_the_unseen_kind_and_every_kind_is_tried() -> None:
    scenes = held_out("test", True, CPU)
    filled, kinds = siglip2.blanks(scenes)
    assert filled.shape == (len(kinds), 36, 2)
    assert (kinds // len(SHAPES) == kinds % len(SHAPES)).all()
    assert torch.equal(filled[torch.arange(len(kinds)), kinds], scenes.kinds)
    assert all(len({tuple(each) for each in tried.tolist()}) == 36 for tried in filled[:5])


def test_score_of_a_filled_blank_is_the_product_of_image_and_caption() -> None:
    towers, scenes = model(), held_out("test", True, CPU)
    scores, kinds = siglip2.scores_of_blanks(towers, scenes)
    own = (towers.image(scenes.images) * towers.text(captions(scenes.kinds))).sum(1)
    torch.testing.assert_close(scores[torch.arange(len(kinds)), kinds], own)


def test_measures_of_towers_that_read_the_kinds_are_perfect_and_of_a_bag_of_words_at_chance() -> None:
    class Reader(torch.nn.Module):
        """Vectors straight from the words of the scenes, in any order of the two things."""

        def __init__(self, bag: bool) -> None:
            super().__init__()
            self.bag = bag

        def text(self, words: torch.Tensor) -> torch.Tensor:
            colour, shape = (functional.one_hot(words[:, at], len(WORDS)).double() for at in ((0, 3), (1, 4)))
            if self.bag:
                return torch.cat([colour.sum(1), shape.sum(1)], 1)
            return functional.normalize(
                torch.einsum("bkc,bks->bcs", colour, shape).flatten(1)
            )  # which colour goes with which shape

        def image(self, images: torch.Tensor) -> torch.Tensor:
            return self.text(captions(held_out("test", len(images) != len(pairs_of_kinds(False)), CPU).kinds))

        def forward(self, images: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
            return self.image(images) @ self.text(words).mT

    reader, bag = Reader(bag=False), Reader(bag=True)
    assert claims.ordered(reader, CPU) == 100  # type: ignore[arg-type]
    assert claims.ordered(bag, CPU) == 0  # type: ignore[arg-type]  # a draw is no win
    assert claims.found(reader, "test", CPU) == 100  # type: ignore[arg-type]
    assert claims.named(reader, True, CPU) == 100  # type: ignore[arg-type]


def test_the_file_to_read_uses_what_the_search_chose_and_all_arms_were_searched() -> None:
    kept = json.loads((Path(claims.__file__).parent / "siglip2.searches.json").read_text("utf-8"))["learning rate"]
    assert kept["arms"]["sigmoid"]["chosen"] == siglip2.RATE
    assert set(kept["arms"]) == {*claims.ARMS, claims.REORDERED}


def test_scenes_of_a_seed_are_the_same_again() -> None:
    first, again, other = (next(captioned.batches(8, seed, CPU)) for seed in (0, 0, 1))
    assert isinstance(first, Scenes)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_the_published_towers_rate_each_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """With small random towers in the place of the download."""
    import transformers
    from PIL import Image
    from transformers import SiglipConfig, SiglipModel

    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(text_config=tower, vision_config={**tower, "image_size": 32, "patch_size": 16})
    texts = len(siglip2.SENTENCES)
    inputs = {"input_ids": torch.ones(texts, 64, dtype=torch.long), "pixel_values": torch.rand(1, 3, 32, 32)}

    def given(thing: object) -> type:
        return type("Given", (), {"from_pretrained": staticmethod(lambda name: thing)})

    monkeypatch.setattr(transformers, "AutoProcessor", given(lambda **asked: inputs))
    monkeypatch.setattr(transformers, "SiglipModel", given(SiglipModel(config)))
    table = siglip2.published(Image.new("RGB", (40, 30)))
    assert [row["text"] for row in table] == list(siglip2.SENTENCES)
    assert all(0 <= float(str(row["belongs (%)"])) <= 100 for row in table)
