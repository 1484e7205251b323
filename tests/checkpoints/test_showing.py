"""`python -m scripts photographs`: each record is made once, from what is at hand, and what is not at hand is told in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from messages import model, node

from scripts.checkpoints import showing
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


def test_a_photograph_that_cannot_be_had_is_left_out(tiny: Project, command: Command, shelf: Path) -> None:
    next(shelf.glob("*.png")).unlink()
    done = command("photographs")
    assert done.returncode == 0
    assert done.stderr.startswith("square: shown==1.0 could not be fetched into ")
    assert command("render").returncode == 0
