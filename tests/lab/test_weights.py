"""The reader's photograph of an example: each kind of file is handled, or refused in a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lab.weights import LONGEST, read_picture
from PIL import Image

pytestmark = pytest.mark.torch


def test_a_photograph_stands_upright_as_its_exif_says(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").size == (20, 40)


@pytest.mark.parametrize(("most", "seen"), [(65535, 255), (4095, 255), (40_000, 156)])
def test_more_than_eight_bits_keep_their_range(tmp_path: Path, most: int, seen: int) -> None:
    Image.fromarray(np.array([[0, most]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(read_picture(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, seen]


def test_numbers_with_a_point_go_by_what_occurs(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1.0, 0.0, 1.0]], dtype=np.float32)).save(tmp_path / "float.tiff")
    assert np.asarray(read_picture(tmp_path / "float.tiff"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_lies_on_white(tmp_path: Path, mode: str) -> None:
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).convert(mode).save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "clear.png").getpixel((4, 4)) == (255, 255, 255)


def test_a_large_photograph_is_made_smaller(tmp_path: Path) -> None:
    Image.new("CMYK", (2 * LONGEST, 20)).save(tmp_path / "wide.jpg")
    made = read_picture(tmp_path / "wide.jpg")
    assert (made.mode, made.size) == ("RGB", (LONGEST, 10))


def test_a_text_half_a_photograph_a_bomb_and_nothing_are_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    for name in ("text.jpg", "half.png", "none.jpg"):
        with pytest.raises(SystemExit, match=rf"^--picture {tmp_path}/{name}: [^\n]+$"):
            read_picture(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8000)
    with pytest.raises(SystemExit, match=r"--picture [^\n]+: Image size \(8100 pixels\) exceeds limit"):
        read_picture(tmp_path / "whole.png")
