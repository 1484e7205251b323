"""Letters, clocks, disks, homes and cores are anybody's: what can go on goes on, and the rest is told."""

from __future__ import annotations

import datetime as dt
import errno
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, Command, Done, copy_of_sources, edit, heed_signals, snapshot

from scripts import exports
from scripts.evidence import checks
from scripts.files import alone
from scripts.machine import cores
from scripts.pages import registry
from scripts.project import Project
from scripts.runs import job, schedule
from scripts.runs.state import states, target
from scripts.site.gather import gather
from scripts.site.render import writing

PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LOCALES = {"ASCII": PLAIN, "cp1252": {"PYTHONIOENCODING": "cp1252"}, "latin-1": {"PYTHONIOENCODING": "latin-1"}}


def call(project: Project, module: str, *arguments: str, **environment: str) -> Done:
    """`python -m ...` in a project, as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=project.root, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    return Done(done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding))


def log_of(project: Project, slug: str) -> Path:
    return project.build / "logs" / f"{slug}.log"


@pytest.mark.parametrize("locale", LOCALES)
def test_an_example_may_print_any_letter_whatever_the_terminal_knows(locale: str, tiny: Project) -> None:
    edit(tiny.examples / "alpha.py", "    write(", '    print("größer → 文")\n    write(')
    wanted = target(tiny, "alpha", "quick", "cpu")
    done = call(tiny, "scripts.runs.job", wanted.slug, wanted.key, **LOCALES[locale])
    assert (done.returncode, done.stderr) == (0, "")
    assert log_of(tiny, "alpha").read_text("utf-8") == "größer → 文\n"


@pytest.mark.parametrize(
    ("locale", "shown"), [("ASCII", r"gr\xf6\xdfer\u2192"), ("cp1252", r"größer\u2192"), ("latin-1", r"größer\u2192")]
)
def test_a_letter_that_the_terminal_does_not_know_is_printed_as_its_number(
    locale: str, shown: str, tiny: Project
) -> None:
    edit(tiny.cards / "alpha.yml", "family: detection", "family: größer→")
    done = call(tiny, "scripts", "check", **LOCALES[locale])
    assert done.returncode == 1
    assert shown in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_site_is_built_in_a_locale_without_letters(tiny: Project) -> None:
    edit(tiny.cards / "alpha.yml", "name: Alpha\n", "name: Älpha 文\n")
    (tiny.docs / "größer.md").write_text("# Größer\n", "utf-8")
    done = call(tiny, "scripts", "build", **PLAIN)
    assert done.returncode == 0, done.stderr
    assert "Älpha 文" in (tiny.site / "models/alpha/index.html").read_text("utf-8")
    with zipfile.ZipFile(tiny.site / "downloads/tiny.zip") as packed:
        assert "tiny/größer/index.html" in packed.namelist()


@pytest.mark.slow
def test_what_mkdocs_says_of_a_page_is_told_in_a_locale_without_letters(tiny: Project) -> None:
    (tiny.docs / "größer.md").write_text("[nowhere](→.md)\n", "utf-8")
    done = call(tiny, "scripts", "build", **PLAIN)
    assert done.returncode == 1
    assert r"'gr\xf6\xdfer.md' contains a link '\u2192.md'" in done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_a_command_by_the_signal_and_without_a_traceback(tiny: Project) -> None:
    with writing(tiny), subprocess.Popen(
        [sys.executable, "-m", "scripts", "build"], cwd=tiny.root, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=heed_signals,
    ) as build:  # fmt: skip
        assert build.stderr is not None
        assert "goes on after it" in build.stderr.readline()
        build.send_signal(signal.SIGINT)
        assert build.stderr.read() == ""
        assert build.wait() == -signal.SIGINT


def test_a_run_is_not_lost_because_nobody_listens(tiny: Project) -> None:
    wanted = target(tiny, "alpha", "quick", "cpu")
    read, written = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "scripts.runs.job", "alpha", wanted.key], cwd=tiny.root, stdout=written, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(written)
    assert (done.returncode, done.stderr) == (0, b"")
    assert states(tiny)["alpha"].status == "ok"


@pytest.mark.slow
def test_examples_run_and_a_site_is_built_where_the_home_folder_cannot_be_written(
    tiny: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file/home"))  # not even root can write there
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    ran = call(tiny, "scripts", "run", "--device", "cpu", "--jobs", "2")
    assert ran.returncode == 0, ran.stderr
    assert {run.status for run in states(tiny, device="cpu").values()} == {"ok"}
    built = call(tiny, "scripts", "build", "--device", "cpu")
    assert built.returncode == 0, built.stderr


def test_a_run_on_a_disk_that_only_can_be_read_says_so(
    tiny: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tiny.runs))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    done = command("run", "alpha")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tiny.runs}: Read-only file system. Nothing can be written there.")


def test_no_log_is_named_of_an_example_that_did_not_begin(
    tiny: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "_snakemake", lambda *_: [sys.executable, "-c", "raise SystemExit(1)"])
    assert command("run", "alpha").stderr == "failed: alpha, before it began\n"


@pytest.mark.slow
def test_a_build_waits_for_another_and_both_are_whole(tiny: Project) -> None:
    with writing(tiny):
        build = subprocess.Popen(
            [sys.executable, "-m", "scripts", "build"], cwd=tiny.root, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert build.stderr is not None
        assert build.stderr.readline() == "another command is writing the pages; this one goes on after it\n"
        assert snapshot(tiny.docs) == {}
    out, err = build.communicate()
    assert build.returncode == 0, err
    assert "site/ is built" in out


def test_of_two_commands_that_run_an_example_one_waits_and_takes_what_the_other_made(
    tiny: Project, tmp_path: Path
) -> None:
    wanted = target(tiny, "alpha", "quick", "cpu")
    assert job.execute(tiny, "alpha", wanted.key) == 0
    made = wanted.folder(tiny).rename(tmp_path / "made")
    with alone(tiny.runs / "alpha", lambda: pytest.fail("nobody else runs it")):
        second = subprocess.Popen(
            [sys.executable, "-m", "scripts.runs.job", "alpha", wanted.key], cwd=tiny.root, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert second.stdout is not None
        assert second.stdout.readline() == "  alpha: another command runs it; this one waits\n"
        made.rename(wanted.folder(tiny))
    out, _ = second.communicate()
    assert (second.returncode, out) == (0, "  alpha: ran meanwhile\n")


def test_a_disk_that_knows_no_locks_stops_no_command(
    tiny: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert command("render").returncode == 0


def test_no_two_files_are_one_where_large_and_small_letters_are_the_same(tmp_path: Path) -> None:
    copy = copy_of_sources(tmp_path / "copy")
    written = [path.relative_to(copy).as_posix() for path in copy.rglob("*")]
    knowledge = gather(Project(ROOT))
    made = [name.format(card.slug) for card, (name, _) in itertools.product(knowledge.cards, exports.EACH)]
    made += [*registry.pages(knowledge), *exports.PATHS]
    assert len(written) > 200
    assert len(made) > 100
    for names in (written, made):
        assert [name for name, count in Counter(map(str.casefold, set(names))).items() if count > 1] == []


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert cores() == (1 if sys.platform == "linux" else 64)


@pytest.mark.parametrize("year", [1970, 2199])
def test_a_clock_that_is_years_off_is_a_warning_at_most(
    year: int, tiny: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Clock:
            return cls(year, 1, 1, tzinfo=tz)

    monkeypatch.setattr(checks.dt, "datetime", Clock)
    monkeypatch.setattr(time, "time", lambda: Clock.now(dt.UTC).timestamp())
    done = command("check")
    assert done.returncode == 0
    assert ("is yet to come, by the clock of this machine" in done.stdout) == (year == 1970)
    for slug in ("alpha", "beta"):
        wanted = target(tiny, slug, "quick", "cpu")
        assert job.execute(tiny, slug, wanted.key) == 0
        os.utime(wanted.folder(tiny), (time.time(), time.time()))
    assert {run.status for run in states(tiny, device="cpu").values()} == {"ok"}
    assert command("render").returncode == 0
