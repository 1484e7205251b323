"""What an example prints is anything at all, and reaches pages, interfaces and the terminal as text that can be read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import edit
from hypothesis import given
from hypothesis import strategies as st

from scripts.architectures import latency
from scripts.architectures.latency import Latency
from scripts.files import printable
from scripts.project import Project
from scripts.runs import job
from scripts.runs.record import read_record
from scripts.runs.state import states, target
from scripts.site.gather import gather
from scripts.site.render import render

RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("plain text, größer → 文 👩‍🔬 می‌خواهم", "plain text, größer → 文 👩‍🔬 می‌خواهم"),
        ("a\tb\nc\r\nd\re", "a\tb\nc\nd\ne"),
        ("\x1b[1;31mred\x1b[0m \x1b[2K\x1b[?25l\x1b]0;title\x07\x1b]8;;http://x\x1b\\link\x1b(B", "red link"),
        ("nul \x00 bell \x07 back \x08 del \x7f c1 \x9b", "nul ␀ bell ␇ back ␈ del � c1 �"),
        ("\x1b", "␛"),
        ("evil \u202etxt.exe\u2066", "evil �txt.exe�"),
        ("half \ud800 letter", "half � letter"),
    ],
)
def test_what_a_program_printed_is_made_readable(printed: str, shown: str) -> None:
    assert printable(printed) == shown


@given(st.text())
def test_whatever_is_printed_can_be_written_and_holds_nothing_to_obey(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert not RAW.search(shown)
    assert printable(shown) == shown


def fail_with(project: Project, printed: bytes) -> None:
    line = f"    import sys; sys.stdout.buffer.write({printed!r}); sys.exit(3)\n    write("
    edit(project.examples / "alpha.py", "    write(", line)
    wanted = target(project, "alpha", "quick", "cpu")
    assert job.execute(project, wanted.slug, wanted.key) == 1


def test_the_log_of_a_failing_example_reaches_no_page_raw(tiny: Project, capfd: pytest.CaptureFixture[str]) -> None:
    fail_with(tiny, b"a\x00b\x1b[31mred\x1b[0m\x1b]0;owned\x07\x9b\xff\xe2\x80\xae\rlast \x08<b>line\n")
    told = capfd.readouterr()
    render(tiny, gather(tiny))
    pages = {
        path: path.read_text("utf-8")
        for path in tiny.docs.rglob("*")
        if path.suffix in (".md", ".json", ".txt", ".xml")
    }
    assert [path.name for path, text in pages.items() if RAW.search(text)] == []
    assert "a␀bred���\nlast ␈&lt;b&gt;line\nexit status 3" in pages[tiny.docs / "models/alpha.md"]
    assert not RAW.search(told.out + told.err)


def test_a_mark_of_another_version_reaches_no_page_raw(tiny: Project) -> None:
    wanted = target(tiny, "alpha", "quick", "cpu")
    wanted.folder(tiny).parent.mkdir(parents=True)
    (tiny.runs / "alpha/failed.json").write_text(
        json.dumps({"key": wanted.key, "error": ["\x1b[31mred\x00"], "seconds": 1})
    )
    assert states(tiny)["alpha"].error == ("red␀",)
    (tiny.runs / "alpha/failed.json").write_text(json.dumps({"key": wanted.key}))
    assert states(tiny)["alpha"].error == ()


def test_a_record_with_controls_in_its_texts_is_read_without_them(tiny: Project) -> None:
    edit(tiny.examples / "lab/record.py", "The margin.", "The\x1b[1m mar\\x00gin.")
    wanted = target(tiny, "alpha", "quick", "cpu")
    assert job.execute(tiny, wanted.slug, wanted.key) == 0
    record = read_record(wanted.record(tiny))
    assert record is not None
    assert record.figures[0].caption == "The mar␀gin."


def test_the_reason_why_nothing_was_timed_is_read_without_controls(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    latency.write(path, {"name": "CPU"}, [Latency("CPU", "a/b", "8 x 8", 1, "fp32", error="\x1b[31mno\x00")])
    assert latency.read(path)[0].error == "no␀"


def test_an_endless_log_costs_a_page_a_few_lines(tiny: Project) -> None:
    fail_with(tiny, b"")
    edit(tiny.examples / "alpha.py", "sys.stdout.buffer.write(b'')", "print(('x' * 10**6 + '\\n') * 20)")
    wanted = target(tiny, "alpha", "quick", "cpu")
    assert job.execute(tiny, wanted.slug, wanted.key) == 1
    error = states(tiny)["alpha"].error
    assert error[-1] == "exit status 3"
    assert sum(map(len, error)) < 10_000
