"""The weekly run of all snippets: which are run, how one that breaks is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from published import CARDS, CHECKPOINTS

from scripts.checkpoints import sweep
from scripts.checkpoints.snippets import snippet


def test_every_snippet_without_a_gate_is_in_one_share() -> None:
    shares = [sweep.wanted(CARDS, shard, 8) for shard in range(8)]
    assert sum(len(share) for share in shares) == len({id for share in shares for id in share})
    expected = {
        id for id, each in CHECKPOINTS.items() if not each.gated and snippet(each) and sweep.left_out(each) is None
    }
    assert {id for share in shares for id in share} == expected
    assert expected


def test_the_workflow_runs_as_many_shares_as_it_says() -> None:
    text = (ROOT / ".github/workflows/snippets.yml").read_text("utf-8")
    job = yaml.safe_load(text)["jobs"]["snippets"]
    shards = job["strategy"]["matrix"]["shard"]
    assert shards == list(range(len(shards)))
    assert re.findall(r"--of (\d+)", text) == [str(len(shards))]


@pytest.mark.torch
def test_a_snippet_runs_beside_a_photograph_and_frames_with_caches_of_its_own() -> None:
    lines = "import glob, os\nassert os.path.isfile('picture.jpg')\nprint(len(glob.glob('frames/*.jpg')), os.environ['HF_HOME'])"
    assert sweep.run(lines) is None


@pytest.mark.torch
@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("raise SystemExit('gone')", "status 1\ngone"),
        ("pass", "status 0\n"),
        ("import time; time.sleep(60)", "not done after 2 s"),
    ],
)
def test_what_fails_prints_nothing_or_does_not_end_is_broken(lines: str, said: str) -> None:
    assert sweep.run(lines, 2 if "sleep" in lines else 60) == said


def test_the_report_cannot_be_led_out_of_its_fence() -> None:
    text = sweep.report([sweep.Broken("a/b", "print()", "```\n# heading")])
    assert text.count("```") == 4
    assert "### `a/b`" in text


def test_what_breaks_twice_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([None, "first", "second", "first", None])
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sweep, "wanted", lambda *_: {"a/good": "1", "a/bad": "2", "a/once": "3"})
    monkeypatch.setattr(sweep, "run", lambda _: next(answers))
    assert sweep.main(["--report", str(tmp_path / "broken.md")]) == 1
    text = (tmp_path / "broken.md").read_text("utf-8")
    assert "a/bad" in text
    assert "second" in text
    assert "a/once" not in text
