"""Studies: stages sum up to the whole, exponents come out of sweeps, and timing survives what goes wrong."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing as mp
import os
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Command, edit
from torch import nn

from scripts import latency, measure, pages, site, studies
from scripts.anatomy import MOST_ROWS, REST, Part, stages
from scripts.cards import load_library
from scripts.counts import Counted, count, size_of_input
from scripts.latency import Latency
from scripts.numbers import compared, differences, find
from scripts.project import Project
from scripts.scaling import SWEEPS, Claimed, Measured, Point, Sweep, slope
from scripts.trace import cost_of, trace

LIBRARY, _ = load_library(ROOT / "model_cards", ROOT)


# --- anatomy


@pytest.mark.parametrize("slug", sorted(LIBRARY.cards))
def test_every_card_has_a_variant_whose_anatomy_can_be_shown(slug: str) -> None:
    assert studies.main_variant(LIBRARY.cards[slug]) is not None


@pytest.mark.parametrize(
    "key",
    ["timm/swin_tiny_patch4_window7_224 @ 224 x 224", "torchvision/maskrcnn_resnet50_fpn @ 800 x 800",
     "monai/dynunet_brats21 @ 128 x 128 x 128", "ours/unet_2015 @ 572 x 572", "ours/graph_transformer @ 23 x 50"],
)  # fmt: skip
def test_stages_are_few_and_sum_up_to_the_model(key: str) -> None:
    name, _, size = key.partition(" @ ")
    model = trace(name, size_of_input(size))
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


# --- scaling


def test_the_slope_of_a_power_law_is_its_exponent() -> None:
    assert slope([1, 2, 8], [3, 12, 192]) == pytest.approx(2)
    assert slope([1, 2], [0, 0]) is None


def test_a_claimed_exponent_is_held_against_the_two_largest_inputs() -> None:
    quadratic = Claimed("macs", 2, "")
    points = tuple(Point(x, (x,)) for x in (1, 10, 100))
    sweep = Sweep("vit", "ViT", "timm/vit", "pixels", points, (quadratic,))
    costs = tuple(1000 + point.x**2 for point in points)
    measured = Measured(sweep, {"macs": costs, "token_macs": (0, 0, 0), "saved_bytes": costs})
    assert measured.holds(quadratic) is False  # the constant still weighs
    assert measured.holds(Claimed("token_macs", 1, "")) is None
    larger = dataclasses.replace(sweep, points=(*points, Point(1000, (1000,))))
    costs = (*costs, 1000 + 1000**2)
    assert Measured(larger, {"macs": costs, "token_macs": costs, "saved_bytes": costs}).holds(quadratic)


def test_saved_activations_are_counted_once_and_without_the_weights() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        found = cost_of(model, (torch.rand(3, 8),))
    assert found.saved_bytes == 4 * (3 * 8 + 3 * 16)  # the input, and the output of the ReLU, which two layers keep
    assert (found.macs, found.token_macs) == (3 * (8 * 16 + 16 * 4), 0)


def test_sweeps_are_of_cards_that_exist_and_grow() -> None:
    for sweep in SWEEPS:
        claims = [c.claim for side in (LIBRARY.cards[sweep.card].pros, LIBRARY.cards[sweep.card].cons) for c in side]
        assert all(any(c.startswith(claimed.claim) for c in claims) for claimed in sweep.claims), sweep.id
        x = [point.x for point in sweep.points]
        assert x == sorted(set(x))


# --- the guard


def test_rankings_and_assertions_use_the_same_conditions(tiny: Project) -> None:
    library, _ = load_library(ROOT / "model_cards", ROOT)
    metrics = library.vocabulary["metrics"]
    a = find(library, "detr", "r50/AP_L")
    other = dataclasses.replace(a, conditions=a.conditions.model_copy(update={"schedule": "12 epochs"}))
    assert differences(a, other, metrics) == ([], ["schedule"])
    slower = dataclasses.replace(a, conditions=a.conditions.model_copy(update={"hardware": "V100"}))
    assert differences(a, slower, metrics) == ([], [])  # the device says nothing about accuracy
    assert "hardware" not in compared("AP_L", metrics)


# --- latency

ENTRY = Latency("Some CPU", "ours/one", "8 x 8", 1, "fp32", 1, 5, 2.0, 1.5, 2.5, 10.0, versions={"torch": "2"})


def test_a_record_keeps_what_it_holds_and_replaces_what_is_measured_again(tiny: Project) -> None:
    path = latency.own_folder(tiny) / "some-cpu.json"
    device = {"name": "Some CPU", "class": "cpu"}
    latency.write(path, device, [ENTRY, dataclasses.replace(ENTRY, batch=8)])
    latency.write(path, device, [dataclasses.replace(ENTRY, ms=3.0)])
    assert [(e.batch, e.ms) for e in latency.read_all(tiny)] == [(1, 3.0), (8, 2.0)]
    path.write_text('{"measurements": []', "utf-8")
    with pytest.raises(ValueError, match="Expecting"):
        latency.read(path)


def test_latency_stands_on_the_page_and_in_the_interface(tiny: Project, command: Command) -> None:
    edit(tiny.cards / "alpha.yml", "{name: Alpha-B,", "{name: Alpha-B, count: {build: ours/one, input: 8 x 8},")
    failed = dataclasses.replace(ENTRY, precision="fp16", ms=None, error="out of memory")
    latency.write(latency.kept_folder(tiny) / "some-cpu.json", {"name": "Some CPU"}, [ENTRY, failed])
    assert command("render").returncode == 0
    page = (tiny.docs / "models/alpha.md").read_text("utf-8")
    assert "Some CPU, 1 thread" in page
    assert "2 (1.5 to 2.5)" in page
    assert "out of memory" in page
    api = json.loads((tiny.docs / "api/models/alpha.json").read_text("utf-8"))
    timed = api["variants"][0]["latency"]
    assert [entry["ms"] for entry in timed] == [None, 2.0]
    assert timed[0].keys() >= {"device", "batch", "input", "precision", "ms", "threads", "versions"}


def test_a_variant_shows_its_own_input_and_those_that_no_other_is_counted_at(tiny: Project) -> None:
    sizes = {"8 x 8": 5, "9 x 9": 1, "10 x 10": 5}
    other = "small: {name: Alpha-A, count: {build: ours/one, input: 9 x 9}}"
    own = "base: {name: Alpha-B, count: {build: ours/one, input: 8 x 8},"
    edit(tiny.cards / "alpha.yml", "base: {name: Alpha-B,", f"{other}\n  {own}")
    timed = [dataclasses.replace(ENTRY, input=size, repeats=repeats) for size, repeats in sizes.items()]
    latency.write(latency.kept_folder(tiny) / "some-cpu.json", {"name": "Some CPU"}, timed)
    knowledge = site.gather(tiny)
    rows = pages._latencies(knowledge.library.cards["alpha"], knowledge)
    assert {(row["name"], row["input"]) for row in rows} == {
        ("Alpha-B", "8 x 8"), ("Alpha-B", "10 x 10"), ("Alpha-A", "9 x 9"), ("Alpha-A", "10 x 10"),
    }  # fmt: skip
    assert {row["time"] for row in rows if row["input"] == "9 x 9"} == {"2 (timed once)"}


def test_models_to_time_are_named_by_card_or_by_build() -> None:
    assert len(measure.wanted(LIBRARY, [])) >= 65
    assert measure.wanted(LIBRARY, ["unet"]) == ["ours/unet_2015 @ 572 x 572"]
    assert all(key.startswith("monai/") for key in measure.wanted(LIBRARY, ["monai/"]))
    assert measure.wanted(LIBRARY, ["nothing"]) == []


def test_a_small_model_is_timed_and_its_weights_are_random_and_finite() -> None:
    job = measure.Job("ours/graph_transformer", (23, 50), "cpu", 2, "fp32", 3, 1, 60)
    model = measure._random_model(job, torch.device("cpu"))
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
    assert float(model.layers[0].attention.query.weight.std()) == pytest.approx((2 / 64) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("work", "arguments", "seconds", "reason"),
    [(time.sleep, (600,), 0.2, "not done within 0.2 s"), (os._exit, (3,), 120, "the process ended with 3"),
     (size_of_input, ("a x b",), 120, "ValueError: invalid literal"), (size_of_input, ("8 x 8",), 120, (8, 8))],
)  # fmt: skip
def test_whatever_ends_a_timing_is_recorded(
    work: object, arguments: tuple[object, ...], seconds: float, reason: object
) -> None:
    context = mp.get_context("spawn")
    found = measure._asked(context, work, arguments, seconds)
    assert found == reason if isinstance(reason, tuple) else str(found).startswith(str(reason))


def test_generated_pages_of_scaling_are_cleaned_up_like_the_others(tiny: Project, command: Command) -> None:
    command("render")
    assert (tiny.docs / "scaling/index.md").is_file()
    assert "scaling" in site.GENERATED
    stale = tiny.docs / "scaling" / "old.md"
    Path(stale).write_text("old")
    command("render")
    assert not stale.exists()
