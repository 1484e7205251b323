"""Latency: a record keeps what was timed, and pages and the interface show it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from conftest import Command, edit

from scripts.architectures import latency
from scripts.architectures.latency import Latency
from scripts.pages.model import _latencies
from scripts.project import Project
from scripts.site.gather import gather

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
    knowledge = gather(tiny)
    rows = _latencies(knowledge.library.cards["alpha"], knowledge)
    assert {(row["name"], row["input"]) for row in rows} == {
        ("Alpha-B", "8 x 8"), ("Alpha-B", "10 x 10"), ("Alpha-A", "9 x 9"), ("Alpha-A", "10 x 10"),
    }  # fmt: skip
    assert {row["time"] for row in rows if row["input"] == "9 x 9"} == {"2 (timed once)"}
