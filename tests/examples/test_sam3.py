"""The SAM 3 example: phrases and what they name, the presence token, who pays for what, measures of the claims, the weights."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest
import torch
from lab import towers as lab_towers
from lab.data import named, phrases
from torch import Tensor

example = importlib.import_module("sam3")
claims = importlib.import_module("claims.sam3")
SMOKE = example.PRESETS["smoke"]
RED_RING, RED_DISC, BLUE_DISC = (phrases.SAID.index(each) for each in ("red ring", "red disc", "blue disc"))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return example.SAM3(SMOKE).eval()


@pytest.fixture
def towers() -> lab_towers.Towers:
    torch.manual_seed(0)
    return lab_towers.Towers(SMOKE.width).eval()


def of_kind(labels: list[int], kind: int) -> set[str]:
    _, chance = phrases.concepts(torch.tensor([labels]))
    return {said for said, each in zip(phrases.SAID, chance[0, kind], strict=True) if each > 0}


def test_a_phrase_is_there_if_a_name_holds_all_its_words_near_if_it_shares_one_and_else_far() -> None:
    assert of_kind([RED_RING, BLUE_DISC], phrases.THERE) == {"red ring", "red", "ring", "blue disc", "blue", "disc"}
    near = of_kind([RED_RING, BLUE_DISC], phrases.NEAR)
    assert {"red disc", "blue ring", "red cross", "white ring"} <= near
    assert not near & of_kind([RED_RING, BLUE_DISC], phrases.FAR)
    assert all(
        not set(said.split()) & {"red", "ring", "blue", "disc"} for said in of_kind([RED_RING, BLUE_DISC], phrases.FAR)
    )


def test_every_phrase_is_of_one_kind_and_padding_is_no_thing() -> None:
    scenes = phrases.scenes("val", 20, 1)
    assert ((scenes.chance > 0).sum(1) == 1).all()
    assert not scenes.names.transpose(1, 2)[scenes.labels == len(named.NAMES)].any()


def test_one_word_names_all_things_that_it_fits() -> None:
    names, _ = phrases.concepts(torch.tensor([[RED_RING, RED_DISC, BLUE_DISC]]))
    assert names[0, phrases.SAID.index("red")].tolist() == [True, True, False]
    assert names[0, phrases.SAID.index("disc")].tolist() == [False, True, True]


def test_phrases_are_drawn_of_the_wanted_kinds_in_their_order() -> None:
    chance = phrases.scenes("val", 20, 1).chance
    for wanted in (example.HARD, example.EASY):
        asked = phrases.draw(chance, wanted, torch.Generator().manual_seed(0))
        kinds = chance.gather(2, asked[:, None].expand(-1, 3, -1)).argmax(1)
        assert kinds.tolist() == [list(wanted)] * 20


def test_towers_are_asked_which_words_name_a_pixel() -> None:
    mask = torch.zeros(1, 2, 4, 4)
    mask[0, 0, :2], mask[0, 1, 2:] = 1, 1
    target = lab_towers.named_pixels(torch.tensor([[RED_RING, len(named.NAMES)]]), mask)
    words = {word for word, there in zip(named.WORDS, target[0, :, 0, 0], strict=True) if there}
    assert words == {"red", "ring"}
    assert not target[0, :, 3].any()


def test_trained_towers_are_frozen_and_their_words_fit_pixels_better_than_before() -> None:
    scenes = phrases.scenes("train", 64, 0)
    target = lab_towers.named_pixels(scenes.labels, scenes.masks)
    settings = {"width": 16, "batch": 16, "rate": 1e-2, "seed": 0, "device": torch.device("cpu")}
    losses = []
    for steps in (1, 40):
        trained = lab_towers.trained_towers(scenes.images, target, steps=steps, **settings)
        losses.append(lab_towers.towers_loss(trained, scenes.images, target).item())
        assert not any(each.requires_grad for each in trained.parameters())
    assert losses[1] < 0.7 * losses[0]


def found_in(model, towers, asked: Tensor) -> example.Found:
    seen = lab_towers.see(towers, phrases.scenes("val", 2, 3).images)
    return example.ask(model, seen, towers.text, asked)


def test_phrases_about_a_picture_do_not_see_each_other(model, towers) -> None:
    asked = torch.tensor([[0, 7, 30], [3, 26, 11]])
    together, alone = found_in(model, towers, asked), found_in(model, towers, asked[:, 1:2])
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one[:, 1:2], other, atol=1e-4, rtol=1e-4)


def test_another_phrase_changes_every_answer(model, towers) -> None:
    one, other = (found_in(model, towers, torch.full((2, 1), phrase)) for phrase in (RED_RING, BLUE_DISC))
    assert all(not torch.allclose(a, b) for a, b in zip(one, other, strict=True))


def says(presence: float, match: float, places: float = -9.0) -> example.Found:
    return example.Found(
        torch.tensor([[presence]]),
        torch.full((1, 1, 2), match),
        torch.full((1, 1, 2, 24, 24), 9.0),
        torch.full((1, 1, 36), places),
    )


def test_the_score_is_the_product_of_match_and_presence() -> None:
    found = says(0.0, 2.0)
    torch.testing.assert_close(found.scores(), found.match.sigmoid() / 2)
    torch.testing.assert_close(found.scores(token=False), found.match.sigmoid())


def test_where_nothing_is_there_the_token_pays_and_queries_only_without_it() -> None:
    nothing, thing = torch.zeros(1, 1, 1, dtype=torch.bool), torch.ones(1, 1, 24, 24)
    paid = {(presence, match, token): example.concept_loss(says(presence, match), thing, nothing, token).item()
            for presence in (-4.0, 4.0) for match in (-4.0, 4.0) for token in (True, False)}  # fmt: skip
    assert paid[-4.0, 4.0, True] == paid[-4.0, -4.0, True]  # queries are not asked
    assert paid[4.0, 4.0, True] > paid[-4.0, 4.0, True] + 3
    assert paid[4.0, 4.0, False] == paid[-4.0, 4.0, False]  # nor is the token, where there is none
    assert paid[-4.0, 4.0, False] > paid[-4.0, -4.0, False] + 3


def test_a_second_query_on_a_thing_costs_loss() -> None:
    there, thing = torch.ones(1, 1, 1, dtype=torch.bool), torch.ones(1, 1, 24, 24)
    twice = says(4.0, 4.0, 9.0)
    once = twice._replace(match=torch.tensor([[[4.0, -4.0]]]))
    assert example.concept_loss(twice, thing, there) > example.concept_loss(once, thing, there) + 3


def test_the_price_of_a_mask_is_cross_entropy_and_dice() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(3, 40), (torch.rand(2, 40) > 0.5).float()
    price = example.overlap_loss(ours, theirs)
    for query in range(3):
        for thing in range(2):
            entropy = torch.nn.functional.binary_cross_entropy_with_logits(ours[query], theirs[thing])
            p = ours[query].sigmoid()
            dice = 1 - (2 * (p * theirs[thing]).sum() + 1) / (p.sum() + theirs[thing].sum() + 1)
            torch.testing.assert_close(price[query, thing], example.MASK * entropy + example.DICE * dice)


def test_correlation_is_one_if_all_is_right_and_undefined_if_all_is_said_alike() -> None:
    true = torch.tensor([[True, False, False]] * 4)
    assert claims.correlation(true, true) == pytest.approx(1)
    assert claims.correlation(~true, true) == pytest.approx(-1)
    assert math.isnan(claims.correlation(torch.ones_like(true), true))


def test_outlines_count_masks_that_fit_and_pay_for_those_that_do_not() -> None:
    things = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    things[0, 0, :2], things[0, 1, 2:] = True, True
    both, all_sure = torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)
    assert claims.outlines(all_sure, things, both, things) == pytest.approx(100)
    assert claims.outlines(torch.tensor([[True, False]]), things, both, things) == pytest.approx(100 * 2 / 3)
    assert claims.outlines(all_sure, things.roll(1, 2), both, things) == 0  # IoU of one third
    one = torch.tensor([[True, False]])
    assert claims.outlines(all_sure, things, one, things) == pytest.approx(100 * 2 / 3)


def test_arms_are_one_network_and_differ_in_the_token_and_the_negatives() -> None:
    assert {(arm.token, arm.wanted) for arm in claims.ARMS.values()} == {
        (token, wanted) for token in (True, False) for wanted in (example.HARD, example.EASY)
    }
    there = [sum(kind == phrases.THERE for kind in arm.wanted) for arm in claims.ARMS.values()]
    assert len(set(there)) == 1


def test_the_file_to_read_uses_what_the_search_chose_for_its_arm() -> None:
    kept = json.loads((Path(claims.__file__).parent / "sam3.searches.json").read_text("utf-8"))
    assert kept["learning rate"]["arms"]["token"]["chosen"] == example.RATE
    assert set(kept["learning rate"]["arms"]) == set(claims.ARMS)


def test_published_masks_are_those_of_the_phrase(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins in the place of the download: what is passed to whom is what the library asks for."""
    import numpy as np
    import transformers
    from PIL import Image

    class Processor:
        def __call__(self, images, text, return_tensors):
            assert text == "wheel"
            return {"pixel_values": torch.zeros(1), "input_ids": torch.zeros(1)}

        def post_process_instance_segmentation(self, outputs, threshold, target_sizes):
            assert target_sizes == [(60, 80)]
            return [{"masks": torch.zeros(3, 60, 80, dtype=torch.bool)}]

    network = torch.nn.Module()
    network.forward = lambda **inputs: inputs
    for name, thing in {"Sam3Processor": Processor(), "Sam3Model": network}.items():
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", lambda _, thing=thing: thing)
    picture = Image.fromarray(np.zeros((60, 80, 3), np.uint8))
    masks = example.published(picture)
    assert masks.shape == (3, 60, 80)
    from lab import figures

    with figures.using(figures.LIGHT) as style:
        assert example.draw_published(style, picture, masks).axes
