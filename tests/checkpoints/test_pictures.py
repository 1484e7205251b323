"""Pictures as readers have them: each is handled, or refused in one line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from scripts.checkpoints.pictures import LONGEST, LONGEST_FRAME, MOST_FRAMES, UnfitPictureError, open_picture

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.torch


def png_that_says(width: int, height: int) -> bytes:
    """A file of a few bytes that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("text.jpg", b"no picture", "no picture that Pillow can read"),
        ("empty.png", b"", "no picture that Pillow can read"),
        ("my film.mp4", b"", r"a film; .* ffmpeg -i '.*my film.mp4' -r 4 frames/%04d.jpg"),
        ("short.png", png_that_says(64, 64), "a broken picture"),
        ("large.png", png_that_says(20_000, 5_000), "20000 x 5000 pixels"),
        ("bomb.png", png_that_says(60_000, 60_000), "more than 89,478,485 are not read"),
    ],
)
def test_what_is_no_picture_or_too_large_is_refused_in_a_line(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnfitPictureError, match=told) as refused:
        open_picture(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnfitPictureError, match="no such file"):
        open_picture(tmp_path / "none.jpg")


def test_half_a_photograph_is_refused(tmp_path: Path, photograph: Path) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(photograph.read_bytes()[: photograph.stat().st_size // 2])
    with pytest.raises(UnfitPictureError, match="a broken picture"):
        open_picture(path)


def test_a_photograph_is_taken_as_it_is(photograph: Path) -> None:
    picture = open_picture(photograph)
    assert (picture.image.mode, picture.image.size, picture.notes, picture.scale) == ("RGB", (120, 80), (), 1.0)


def test_a_picture_that_exif_turns_stands_upright(tmp_path: Path, photograph: Path) -> None:
    path = tmp_path / "turned.jpg"
    with Image.open(photograph) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    picture = open_picture(path)
    assert picture.image.size == (80, 120)
    assert picture.notes == ("turned upright as its EXIF says",)


def test_cmyk_becomes_rgb(tmp_path: Path, photograph: Path) -> None:
    path = tmp_path / "print.jpg"
    with Image.open(photograph) as image:
        image.convert("CMYK").save(path)
        before = np.asarray(image, dtype=float)
    picture = open_picture(path)
    assert picture.notes == ("brought from CMYK to RGB",)
    assert abs(np.asarray(picture.image, dtype=float) - before).mean() < 10


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)).save(path)
    picture = open_picture(path)
    assert np.asarray(picture.image)[..., 0].tolist() == [[0, 100], [200, 255]]
    assert picture.notes == ("brought from 16 bits to eight",)


def tiff_of_twelve_bits(row: list[int]) -> bytes:
    """A grey picture of one row; Pillow reads such files and writes none."""
    tags = [
        (256, len(row)),
        (257, 1),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, 3 * len(row) // 2),
    ]
    packed = b"".join(((a << 12) + b).to_bytes(3, "big") for a, b in zip(row[::2], row[1::2], strict=True))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    )


def test_twelve_bits_are_not_taken_for_sixteen(tmp_path: Path) -> None:
    path = tmp_path / "raw.tiff"
    path.write_bytes(tiff_of_twelve_bits([0, 4095, 2048, 1024]))
    picture = open_picture(path)
    assert np.asarray(picture.image)[0, :, 0].tolist() == [0, 255, 128, 64]
    assert picture.notes == ("brought from 12 bits to eight",)


def test_numbers_with_a_point_are_brought_to_eight_bits(tmp_path: Path) -> None:
    path = tmp_path / "float.tiff"
    Image.fromarray(np.array([[0.0, 0.5], [np.nan, 1.0]], dtype=np.float32)).save(path)
    assert np.asarray(open_picture(path).image)[..., 0].tolist() == [[0, 128], [0, 255]]


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "moving.gif"
    red, blue = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")
    red.save(path, save_all=True, append_images=[blue])
    picture = open_picture(path)
    assert picture.image.getpixel((4, 4)) == (255, 0, 0)
    assert picture.notes == ("2 frames, of which models of pictures see the first",)
    assert (picture.kind, len(picture.frames)) == ("clip", 2)
    assert picture.sheet.size == (18, 9)


def test_a_photograph_with_a_preview_is_no_clip_and_stands_upright(tmp_path: Path, photograph: Path) -> None:
    path = tmp_path / "phone.jpg"
    with Image.open(photograph) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, "MPO", save_all=True, append_images=[image.resize((60, 40))], exif=exif)
    with Image.open(path) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    picture = open_picture(path)
    assert (picture.kind, picture.image.size, picture.scale) == ("picture", (80, 120), 1.0)
    assert picture.notes == ("the first of 2 pictures in the file", "turned upright as its EXIF says")


@pytest.mark.parametrize(("sizes", "kind"), [(((9, 9), (9, 9), (9, 9)), "clip"), (((9, 6), (6, 9), (9, 6)), "picture")])
def test_pages_of_one_size_are_a_clip_and_of_others_the_first_is_taken(
    tmp_path: Path, sizes: tuple[tuple[int, int], ...], kind: str
) -> None:
    path = tmp_path / "pages.tiff"
    first, *others = (
        Image.new("RGB", size, colour) for size, colour in zip(sizes, ("red", "blue", "green"), strict=True)
    )
    first.save(path, save_all=True, append_images=others)
    picture = open_picture(path)
    assert (picture.kind, picture.image.size) == (kind, sizes[0])
    assert picture.image.getpixel((4, 4)) == (255, 0, 0)
    assert (picture.notes == ("the first of 3 pictures in the file",)) is (kind == "picture")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_a_clip_in_each_format_that_has_them(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "moving"
    red, blue = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")
    red.save(path, kind, save_all=True, append_images=[blue])
    assert len(open_picture(path).frames) == 2


def test_a_folder_of_frames_is_a_clip_and_of_very_many_some_are_read(tmp_path: Path) -> None:
    for number in range(MOST_FRAMES + 6):
        Image.new("RGB", (1500, 10), (number, 0, 0)).save(tmp_path / f"{number:03}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    picture = open_picture(tmp_path)
    assert picture.kind == "clip"
    assert len(picture.frames) == MOST_FRAMES
    assert [picture.frames[n].getpixel((0, 0))[0] for n in (0, -1)] == [0, MOST_FRAMES + 5]
    assert picture.notes[1] == f"{MOST_FRAMES} of them are read"
    assert picture.scale == pytest.approx(LONGEST_FRAME / 1500)
    assert picture.sheet.size == (4 * LONGEST_FRAME, 2 * picture.image.height)


def test_a_folder_that_holds_no_clip_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UnfitPictureError, match="fewer than two pictures"):
        open_picture(tmp_path)
    for number in range(2):
        Image.new("RGB", (10 + number, 10)).save(tmp_path / f"{number}.png")
    with pytest.raises(UnfitPictureError, match="different sizes"):
        open_picture(tmp_path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_laid_onto_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "clear.png"
    image = Image.new("RGBA", (9, 9), (0, 0, 0, 0))
    if mode == "P":
        Image.new("P", (9, 9)).save(path, transparency=0)
    else:
        image.convert(mode).save(path)
    picture = open_picture(path)
    assert picture.image.getpixel((4, 4)) == (255, 255, 255)
    assert picture.notes == ("laid onto white",)


def test_a_large_photograph_is_made_smaller_and_says_by_how_much(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGB", (2 * LONGEST, 10), "white").save(path)
    picture = open_picture(path)
    assert picture.image.size == (LONGEST, 5)
    assert picture.scale == 0.5
    assert picture.notes == (f"made smaller, to {LONGEST} x 5",)
