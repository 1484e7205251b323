"""The picture of nuclei: what it holds, bands that never meet, crops, and its absence in one line."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from lab.data import SPLITS, nuclei

pytestmark = pytest.mark.torch
needs_picture = pytest.mark.skipif(nuclei.missing() is not None, reason=str(nuclei.missing()))


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No band was read yet, and none of this test stays."""
    monkeypatch.setattr(nuclei, "nuclei", nuclei.nuclei.__wrapped__)


@needs_picture
def test_the_bands_of_the_splits_tile_the_picture_without_overlap() -> None:
    bands = {split: nuclei.nuclei(split, binned=1)[0] for split in SPLITS}
    whole = torch.from_numpy(nuclei._read(nuclei.PICTURE).astype("float32") / 255)
    assert torch.equal(torch.cat([bands["train"], bands["val"], bands["test"]]), whole)
    assert all(first % 16 == last % 16 == 0 for first, last in nuclei.ROWS.values()), (
        "three poolings of binned pixels fit"
    )


@needs_picture
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("binned", [1, 2])
def test_labels_count_the_nuclei_of_a_band_from_1(split: nuclei.Split, binned: int) -> None:
    image, labels = nuclei.nuclei(split, binned)
    assert image.shape[1] == 512 // binned
    assert image.shape == labels.shape
    assert (image.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert 0 <= image.min() < image.max() <= 1
    assert labels.unique().tolist() == list(range(int(labels.max()) + 1))
    assert image[labels > 0].mean() > 2 * image[labels == 0].mean(), "nuclei are bright"


@needs_picture
def test_the_picture_holds_125_nuclei_of_which_36_touch_another() -> None:
    mask = torch.from_numpy(nuclei._read(nuclei.MASK).astype("int64"))
    touching: set[int] = set()
    for a, b in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
        beside = (a != b) & (a > 0) & (b > 0)
        touching |= {*a[beside].tolist(), *b[beside].tolist()}
    assert (len(mask.unique()) - 1, len(touching)) == (125, 36)


def test_crops_move_an_image_and_its_maps_alike_and_mix_no_values() -> None:
    smooth = torch.linspace(0, 1, 64)[:, None] * torch.linspace(1, 2, 128)
    labels = (smooth > 0.5).long() * 7
    images, maps = nuclei.crops(smooth, torch.stack([labels, 1 - labels]), 30, 32, seed=0)
    assert images.shape == (30, 1, 32, 32)
    assert maps.shape == (30, 2, 32, 32)
    assert set(maps[:, 0].unique().tolist()) == {0, 7}
    assert torch.equal(maps[:, 1], 1 - maps[:, 0])
    assert ((images[:, 0] > 0.5) == (maps[:, 0] == 7)).float().mean() > 0.98


def test_crops_are_mirrored_and_turned_and_the_seed_decides_them() -> None:
    down = torch.arange(64.0)[:, None].expand(64, 64)
    images, _ = nuclei.crops(down, down[None], 60, 16, seed=1)
    slopes = torch.stack(
        [images[:, 0, -1].mean(1) - images[:, 0, 0].mean(1), images[:, 0, :, -1].mean(1) - images[:, 0, :, 0].mean(1)]
    )
    ways = {(int(each.abs().argmax()), bool(each[each.abs().argmax()] > 0)) for each in slopes.T}
    assert ways == {(0, True), (0, False), (1, True), (1, False)}
    again, other = (nuclei.crops(down, down[None], 60, 16, seed=seed)[0] for seed in (1, 2))
    assert torch.equal(images, again)
    assert not torch.equal(images, other)


def test_without_the_package_one_line_says_what_is_missing_and_how_to_get_it(
    unread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(nuclei.metadata, "distribution", absent)
    with pytest.raises(FileNotFoundError) as raised:
        nuclei.nuclei("test")
    said = str(raised.value)
    assert said == nuclei.missing()
    assert len(said.splitlines()) == 1
    assert all(word in said for word in ("stardist", nuclei.PICTURE, "pip install --no-deps -r requirements-data.txt"))


@needs_picture
def test_another_picture_under_the_same_name_is_refused(unread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(nuclei.SHA256, nuclei.MASK, "0" * 64)
    with pytest.raises(ValueError, match=r"mask2d\.tif of the package stardist is not the one that is known"):
        nuclei.nuclei("test")


def test_the_command_names_a_file_that_pins_the_package_and_make_installs_it_without_what_its_code_needs() -> None:
    (file,) = re.findall(r"requirements-\w+\.txt", nuclei.COMMAND)
    assert re.search(rf"^{nuclei.PACKAGE}==\d", (ROOT / file).read_text("utf-8"), re.M)
    recipe = (ROOT / "Makefile").read_text("utf-8").partition("\n.venv/.run:")[2].partition("\n\n")[0]
    assert f"--no-deps -r {file}" in recipe


def test_the_package_is_never_imported() -> None:
    sources = [*(ROOT / "examples").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    assert not [
        path for path in map(Path, sources) if re.search(r"^\s*(import|from) stardist", path.read_text("utf-8"), re.M)
    ]
