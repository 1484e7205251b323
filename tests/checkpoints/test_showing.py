"""`python -m scripts photographs`: each record is made once, from what is at hand, and what is not at hand is told in a line."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Command, edit
from messages import model, node
from published import CHECKPOINTS, checkpoint

from scripts.cards.library import load_library
from scripts.cards.packaged import Photograph
from scripts.cards.releases import Checkpoint
from scripts.checkpoints import hub, network, showing
from scripts.checkpoints.chosen import chosen
from scripts.checkpoints.found import Found, Thing
from scripts.checkpoints.options import add_photograph_options
from scripts.checkpoints.pictures import Picture
from scripts.checkpoints.volumes import Volume
from scripts.files import sha256
from scripts.project import Project

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

WORDS = """packaged:
  faces:
    name: Finder of bright squares
    card: alpha
    task: object detection
    relation: A relative of Alpha.
    file: {{package: carrier, version: "1.0", member: carrier/weights.onnx, megabytes: 0.1, sha256: {digest}}}
    reader: centre heatmap
    licence: MIT
    origin: Made up.
photographs:
  square:
    title: A white square
    file: {{package: shown, member: shown/square.png, version: "1.0", megabytes: 0.1, sha256: {picture}}}
    licence: MIT
    origin: Made up.
"""


def finder() -> bytes:
    """Weights that see a white square of 8 pixels as a face of 12 x 20, wherever it is."""
    weights = {
        "w": np.full((1, 3, 4, 4), 1 / 48), "b": np.array([-128.0]), "n": np.zeros((2, 3, 4, 4)),
        "s": np.log([5.0, 3.0]), "o": np.zeros(2),
    }  # fmt: skip
    steps = [
        node("Conv", ["x", "w", "b"], "logit", group=1, strides=[4, 4], pads=[0, 0, 0, 0]),
        node("Sigmoid", ["logit"], "heat"),
        node("Conv", ["x", "n", "s"], "size", group=1, strides=[4, 4], pads=[0, 0, 0, 0]),
        node("Conv", ["x", "n", "o"], "offset", group=1, strides=[4, 4], pads=[0, 0, 0, 0]),
    ]
    return model(steps, weights, ["heat", "size", "offset"])


@pytest.fixture
def shelf(tiny: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, with a file of weights and a photograph as pip would have brought them."""
    pixels = np.zeros((64, 128, 3), dtype="u1")
    pixels[24:32, 40:48] = 255
    cache = tmp_path / "cache/model-comparisons"
    cache.mkdir(parents=True)
    Image.fromarray(pixels).save(cache / "square.png")
    picture = sha256((cache / "square.png").read_bytes())
    (cache / "square.png").rename(cache / f"{picture[:16]}-square.png")
    digest = sha256(finder())
    (cache / f"{digest[:16]}-weights.onnx").write_bytes(finder())
    (tiny.cards / "_packaged.yml").write_text(WORDS.format(digest=digest, picture=picture))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(showing, "in_a_process", lambda run, *arguments: run(*arguments))
    return cache


def records(tiny: Project) -> dict[str, Any]:
    found = sorted((tiny.build / "photographs").glob("*/record.json"))
    return {path.parent.name.rpartition("-")[0]: json.loads(path.read_text()) for path in found}


def test_weights_of_a_package_are_run_once_and_their_pictures_shown(
    tiny: Project, command: Command, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = command("photographs")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("faces: 1 pictures in ")
    (taken,) = records(tiny)["faces"]["pictures"]
    assert (taken["photograph"], taken["width"], taken["height"]) == ("square", 128, 64)
    assert taken["found"][0].startswith("face ")
    assert records(tiny)["faces"]["versions"].keys() == {"torch"}
    monkeypatch.setattr(showing, "_look", lambda *_: pytest.fail("made a second time"))
    assert command("photographs").stdout == ""
    assert command("render").returncode == 0
    page = (tiny.docs / "models/alpha.md").read_text("utf-8")
    assert "## On photographs" in page
    assert (tiny.docs / "figures/photographs/faces/square.jpg").is_file()
    assert (tiny.docs / "figures/photographs/originals/square.jpg").is_file()


def test_a_record_is_kept_where_git_keeps_it(tiny: Project, command: Command, shelf: Path) -> None:
    assert command("photographs", "--keep", "--models", "alpha").returncode == 0
    assert sorted(path.name for path in (tiny.root / "measurements/photographs/faces").iterdir()) == [
        "record.json",
        "square.jpg",
    ]


def test_what_cannot_be_had_is_told_in_a_line_and_the_build_goes_on(
    tiny: Project, command: Command, shelf: Path
) -> None:
    next(shelf.glob("*.onnx")).unlink()
    done = command("photographs")
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("faces: carrier==1.0 could not be fetched into ")
    assert "faces" not in records(tiny)
    assert command("photographs", "--models", "alpha").returncode == 1, "asked for by name"
    assert command("photographs", "--models", "beta").returncode == 0


def test_a_task_or_a_model_that_there_is_not_is_told(tiny: Project, command: Command, shelf: Path) -> None:
    assert command("photographs", "--tasks", "image segmenting").returncode == 1
    done = command("photographs", "--models", "alpa")
    assert done.returncode == 1
    assert done.stderr.startswith("alpa: there is no such thing; there are alpha, ")


def test_of_a_task_the_weights_for_that_task_alone_are_run(tiny: Project, command: Command, shelf: Path) -> None:
    edit(tiny.cards / "_vocabulary.yml", "tasks:\n", "tasks:\n  depth estimation: Give each pixel its distance.\n")
    assert command("photographs", "--tasks", "depth estimation").returncode == 0
    assert "faces" not in records(tiny)
    assert command("photographs", "--tasks", "object detection").returncode == 0
    assert "faces" in records(tiny)


def wanted(*options: str, fetch: str | None = None) -> set[str]:
    """What a call makes of the project's own cards."""
    parser = argparse.ArgumentParser()
    add_photograph_options(parser)
    asked = parser.parse_args(options)
    library = load_library(ROOT / "model_cards", ROOT)[0]
    return {
        id for id, weights in showing._wanted(library, asked, fetch or asked.fetch) if isinstance(weights, Checkpoint)
    }


def test_the_command_of_a_task_makes_what_its_page_waits_for(monkeypatch: pytest.MonkeyPatch, caches: Path) -> None:
    library = load_library(ROOT / "model_cards", ROOT)[0]
    for task in ("object detection", "panoptic segmentation", "semantic segmentation", "depth estimation"):
        of_task = {
            f"{slug}/{key}" for slug, card in library.cards.items() for of, key in chosen(card).items() if of == task
        }
        assert wanted("--fetch", "--tasks", task) == of_task
        assert of_task
    assert {"detr/r50", "detr/r50-panoptic"} <= wanted("--fetch", "--models", "detr")
    assert wanted() == set()


def test_a_build_fetches_small_weights_without_a_gate_where_a_hub_answers(
    monkeypatch: pytest.MonkeyPatch, caches: Path
) -> None:
    monkeypatch.setattr(showing, "is_small", lambda checkpoint: checkpoint.load.name != "facebook/detr-resnet-50")
    found = wanted(fetch="small")
    assert "detr/r50" not in found
    assert "detr/r50-panoptic" in found
    assert not {id for id in found if CHECKPOINTS[id].gated}


def test_without_a_hub_a_build_downloads_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for fetch, left in (("small", "none"), ("all", "all")):  # who asks for all may mean weights that lie elsewhere
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(network, "answers", lambda address: False)
        assert showing._fetch(argparse.Namespace(fetch=fetch)) == left
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        assert "only what is on this machine can be tried" in capsys.readouterr().err
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(network, "answers", lambda address: True)
    assert showing._fetch(argparse.Namespace(fetch="small")) == "small"


def test_what_weights_weigh_is_asked_of_those_who_offer_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.hf_api import RepoFile

    sizes = {"small/a": {"model.safetensors": 10e6}, "large/a": {"pytorch_model.bin": 900e6}, "split/a": {}}

    def answer(self: object, repository: str, names: list[str]) -> list[RepoFile]:
        return [RepoFile(path=name, size=size, oid="") for name, size in sizes[repository].items() if name in names]

    monkeypatch.setattr(huggingface_hub.HfApi, "get_paths_info", answer)
    small = {name: hub.is_small(checkpoint("transformers", "Any", name, "boxes")) for name in (*sizes, "unknown/a")}
    assert small == {"small/a": True, "large/a": False, "split/a": False, "unknown/a": False}
    assert hub.is_small(CHECKPOINTS["faster-rcnn/tv-r50-fpn"])


def test_how_much_of_a_volume_that_is_one_thing_was_missed_is_told() -> None:
    values = np.zeros((4, 4, 4), dtype=np.float32)
    values[:, :, 2:] = 5
    volume = Volume(values, (1.0, 1.0, 1.0))
    picture = Picture(volume.image(), (), volume=volume)
    half = values.astype(bool)
    half[:, 1:] = False
    photograph = Photograph.model_validate(
        {"title": "A", "file": {"package": "a", "member": "b"}, "licence": "MIT", "origin": "C", "whole": "brain"}
    )
    missed = [
        showing._missed(photograph, picture, Found((Thing("brain", mask=volume.views(mask)),)))
        for mask in (values > 0, half)
    ]
    assert missed[0] == "misses 0% of the brain in these slices"
    assert missed[1].startswith("fails: misses ")


def test_a_photograph_that_cannot_be_had_is_left_out(tiny: Project, command: Command, shelf: Path) -> None:
    next(shelf.glob("*.png")).unlink()
    done = command("photographs")
    assert done.returncode == 0
    assert done.stderr.startswith("square: shown==1.0 could not be fetched into ")
    assert command("render").returncode == 0
