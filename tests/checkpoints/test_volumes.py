"""Scans as readers have them: brought to standard orientation and shown by their middle slices, or refused in one line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from scripts.checkpoints.pictures import UnfitPictureError, open_picture
from scripts.checkpoints.volumes import HEIGHT

np = pytest.importorskip("numpy")
nibabel = pytest.importorskip("nibabel")

pytestmark = pytest.mark.torch


def scan(path: Path, values: Any, sides: tuple[float, float, float] = (1, 1, 1)) -> Path:
    nibabel.save(nibabel.Nifti1Image(values.astype("f4"), np.diag([*sides, 1.0])), path)
    return path


def test_a_scan_is_shown_by_three_slices_in_the_shape_of_the_body(tmp_path: Path) -> None:
    values = np.zeros((10, 20, 30))
    values[:, :, 15:] = 1
    picture = open_picture(scan(tmp_path / "head.nii.gz", values, (2, 1, 1)))
    assert picture.kind == "volume"
    widths = [round(wide / 30 * HEIGHT) for wide in (20, 20, 20)]
    assert picture.image.size == (sum(widths[:2]) + HEIGHT, HEIGHT)  # from above 20 mm by 20 mm
    side = np.asarray(picture.image)[:, : widths[0], 0]
    assert side[: HEIGHT // 2 - 5].min() == 255, "up is up"
    assert side[HEIGHT // 2 + 5 :].max() == 0


def test_a_scan_that_lies_otherwise_is_turned(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(4, 5, 6))
    plain = open_picture(scan(tmp_path / "plain.nii", values)).volume
    turned = open_picture(scan(tmp_path / "turned.nii", values[::-1], (-1, 1, 1))).volume
    assert plain is not None
    assert turned is not None
    assert np.array_equal(plain.values, turned.values)


def test_of_several_volumes_the_first_is_taken_and_told(tmp_path: Path) -> None:
    picture = open_picture(scan(tmp_path / "series.nii", np.stack([np.ones((4, 4, 4)), np.zeros((4, 4, 4))], -1)))
    assert picture.notes[-1] == "the first of 2 volumes"
    assert picture.volume is not None
    assert picture.volume.values.min() == 1


def header_alone(path: Path, shape: tuple[int, ...]) -> None:
    made = nibabel.Nifti1Header()
    made.set_data_shape(shape)
    made.set_data_dtype("u1")
    made["vox_offset"], made["magic"] = 352, b"n+1"
    path.write_bytes(made.binaryblock + b"\0" * 100)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("text.nii", "a broken volume"),
        ("text.nii.gz", "a broken volume"),
        ("short.nii.gz", "a broken volume"),
        ("flat.nii", "is no volume"),
        ("huge.nii", "30000 x 30000 x 30000 voxels; more than"),
        ("none.nii", "no such file"),
    ],
)
def test_what_is_no_scan_or_too_large_is_refused_in_a_line(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "text.nii").write_bytes(b"no scan")
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"no scan"))
    whole = scan(tmp_path / "whole.nii.gz", np.random.default_rng(0).normal(size=(9, 9, 9))).read_bytes()
    (tmp_path / "short.nii.gz").write_bytes(whole[: len(whole) // 2])
    scan(tmp_path / "flat.nii", np.zeros((4, 4)))
    header_alone(tmp_path / "huge.nii", (30_000, 30_000, 30_000))
    with pytest.raises(UnfitPictureError) as caught:
        open_picture(tmp_path / name)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
