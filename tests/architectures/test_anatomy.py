"""Anatomy: the stages of a model are few, have names of their own, and sum up to the whole."""

from __future__ import annotations

import dataclasses

import pytest
from conftest import ROOT

from scripts.architectures import studies
from scripts.architectures.anatomy import MOST_ROWS, REST, Part, stages
from scripts.architectures.counts import Counted, count
from scripts.architectures.forward import trace
from scripts.cards.library import load_library
from scripts.cards.values import size_of

pytestmark = pytest.mark.torch

LIBRARY, _ = load_library(ROOT / "model_cards", ROOT)


@pytest.mark.parametrize("slug", sorted(LIBRARY.cards))
def test_every_card_has_a_variant_whose_anatomy_can_be_shown(slug: str) -> None:
    card = LIBRARY.cards[slug]
    countable = any(variant.count for variant in card.variants.values())
    assert (studies.main_variant(card) is not None) is countable


@pytest.mark.parametrize(
    "key",
    ["timm/swin_tiny_patch4_window7_224 @ 224 x 224", "torchvision/maskrcnn_resnet50_fpn @ 800 x 800",
     "monai/dynunet_brats21 @ 128 x 128 x 128", "ours/unet_2015 @ 572 x 572", "ours/graph_transformer @ 23 x 50"],
)  # fmt: skip
def test_stages_are_few_and_sum_up_to_the_model(key: str) -> None:
    name, _, size = key.partition(" @ ")
    model = trace(name, size_of(size))
    rows = stages(model)
    assert 4 <= len(rows) <= MOST_ROWS
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.parameters >= 0 and row.macs >= 0 for row in rows)
    assert sum(row.parameters for row in rows) == model.parameters
    assert sum(row.macs for row in rows) == pytest.approx(model.macs)


def test_attention_and_mlp_of_a_vision_transformer_follow_their_formulas() -> None:
    rows = {row.name: row for row in stages(trace("timm/vit_base_patch16_384", (384, 384)))}
    tokens, width = 577, 768
    assert rows["blocks / mlp × 12"].macs == 12 * 8 * tokens * width**2
    assert rows["blocks / attn × 12"].macs == 12 * (4 * tokens * width**2 + 2 * tokens**2 * width)
    assert rows["blocks / attn × 12"].shape == (1, tokens, width)


def test_a_wrapper_is_no_stage_and_equal_blocks_stay_together() -> None:
    block = Part("", "Block", 10, 10, (1, 4), 1)
    blocks = tuple(dataclasses.replace(block, name=str(i)) for i in range(6))
    body = Part("blocks", "Sequential", 60, 60, (1, 4), 1, blocks)
    stem, head = Part("stem", "Conv2d", 20, 30, (1, 4), 1), Part("head", "Linear", 20, 10, (1, 2), 1)
    inner = Part("net", "Net", 100, 100, (1, 2), 1, (stem, body, head))
    rows = stages(Part("model", "Wrapper", 100, 101, (1, 2), 1, (inner,)))
    assert [(row.name, row.parameters) for row in rows] == [("stem", 20), ("blocks", 60), ("head", 20), (REST, 0)]


def test_a_module_that_stands_at_two_places_counts_once() -> None:
    name, size = "monai/dynunet_brats21", (128, 128, 128)
    model = trace(name, size)
    assert count(f"{name} @ 128 x 128 x 128") == Counted(model.parameters, model.macs, "128 x 128 x 128")
    assert sum(child.macs for child in model.children) == pytest.approx(model.macs)
