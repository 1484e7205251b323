"""The command line, the checks on results and figures, and the record."""

import json
import math
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lab import options as lab_options
from lab import run as lab_run
from lab.figures import Style, panels
from lab.run import Run
from matplotlib.figure import Figure

pytestmark = pytest.mark.torch

ALT = "a rising line from the lower left to the upper right"


def draw(style: Style) -> Figure:
    figure, ax = panels(height=2.0)
    ax[0, 0].plot([0, 1], [0, 1], color=style.ink)
    return figure


def start(out: Path, *arguments: str) -> Run:
    return Run.start("unet", argv=["--device", "cpu", "--out", str(out), *arguments])


def open_experiment(run: Run):
    return run.experiment("skips", question="Do skips help?", data="1,297 digits at 32 px", parameters=7, steps=9)


def finished_record(run: Run) -> dict:
    return json.loads(run.finish().read_text())


def test_cpu_runs_the_quick_preset_with_three_seeds_from_zero(tmp_path):
    run = start(tmp_path)
    assert (run.settings.preset, run.seeds, run.settings.weights) == ("quick", (0, 1, 2), "random")


@pytest.mark.parametrize(("preset", "number"), [("smoke", 1), ("quick", 3), ("full", 5)])
def test_each_preset_has_its_number_of_seeds_from_the_first(tmp_path, preset, number):
    assert start(tmp_path, "--preset", preset, "--seed", "10").seeds == tuple(range(10, 10 + number))


def test_an_example_chooses_its_numbers_of_seeds(tmp_path):
    run = Run.start("unet", seeds={"quick": 2}, argv=["--device", "cpu", "--out", str(tmp_path)])
    assert run.seeds == (0, 1)


def test_a_gpu_is_taken_by_default_and_runs_the_full_preset(tmp_path, monkeypatch):
    monkeypatch.setattr(lab_options, "_available", lambda: ["mps", "cpu"])
    run = Run.start("unet", argv=["--out", str(tmp_path)])
    assert (run.device.type, run.preset) == ("mps", "full")


def test_the_results_go_beside_the_examples_by_default():
    run = Run.start("unet", argv=["--device", "cpu"])
    assert run.out == Path(__file__).resolve().parents[2] / "build" / "examples" / "unet"


def test_a_missing_device_is_refused_with_what_there_is_and_what_to_do(monkeypatch):
    monkeypatch.setattr(lab_options, "_available", lambda: ["cpu"])
    with pytest.raises(SystemExit) as stop:
        Run.start("unet", argv=["--device", "cuda"])
    message = str(stop.value)
    assert "--device cuda was asked for" in message
    assert "finds only: cpu" in message
    assert "Run with --device cpu" in message


@pytest.mark.parametrize(
    "arguments", [["--seed", "-1"], ["--threads", "0"], ["--preset", "tiny"], ["--weights", "x"], ["--pre", "quick"]]
)
def test_wrong_arguments_stop_the_run(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit):
        start(tmp_path, *arguments)
    assert arguments[0] in capsys.readouterr().err


def test_a_notebook_ignores_the_arguments_of_its_kernel(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    monkeypatch.setattr(sys, "argv", ["kernel", "-f", "connection.json"])
    assert Run.start("unet").seeds[0] == 0


def test_threads_reach_torch(tmp_path):
    before = torch.get_num_threads()
    try:
        run = start(tmp_path, "--threads", "2")
        assert finished_record(run)["device"]["threads"] == 2
    finally:
        torch.set_num_threads(before)


def test_the_record_holds_the_whole_run(tmp_path, capsys):
    run = start(tmp_path)
    experiment = open_experiment(run)
    experiment.result("gap", [0.25, 0.5, 0.75], unit="%", meaning="Dice with skips less Dice without.")
    experiment.result("parameters", [7], unit="", meaning="Counted.", exact=True)
    experiment.figure("curves", draw, caption="Dice over steps.", alt=ALT)
    run.figure("idea", draw, caption="The idea.", alt=ALT)
    record = finished_record(run)
    assert record["schema"] == 2
    assert (record["claims"], record["needed"], record["shown"]) == (True, None, [])
    assert (record["slug"], record["preset"], record["seeds"], record["weights"]) == (
        "unet",
        "quick",
        [0, 1, 2],
        "random",
    )
    assert record["device"]["class"] == "cpu"
    assert record["device"]["name"]
    assert set(record["versions"]) == {"python", "torch", "torchvision", "timm", "numpy"}
    assert record["seconds"] > 0
    assert record["peak_memory_mb"] > 10
    assert datetime.fromisoformat(record["started"]).utcoffset().total_seconds() == 0
    assert record["experiments"] == [
        {
            "name": "skips",
            "question": "Do skips help?",
            "data": "1,297 digits at 32 px",
            "parameters": 7,
            "steps": 9,
            "arms": {},
            "searches": [],
            "floor": None,
            "power": None,
            "cannot_show": None,
            "results": ["gap", "parameters"],
            "figures": ["curves"],
        }
    ]
    assert record["results"]["gap"] == {
        "values": [0.25, 0.5, 0.75],
        "failed": [],
        "mean": 0.5,
        "std": pytest.approx(math.sqrt(1 / 24)),
        "unit": "%",
        "meaning": "Dice with skips less Dice without.",
        "exact": False,
        "experiment": "skips",
    }
    assert record["results"]["parameters"]["std"] == 0.0
    curves, idea = record["figures"]
    assert curves["light"] == "figures/curves.light.svg"
    assert (curves["width"], curves["height"], curves["experiment"]) == (691, 192, "skips")
    assert idea["experiment"] is None
    assert all((tmp_path / each[scheme]).is_file() for each in record["figures"] for scheme in ("light", "dark"))
    printed = capsys.readouterr().out
    assert str(tmp_path / "record.json") in printed
    assert str(tmp_path / "figures" / "idea.light.svg") in printed


def test_the_record_is_sorted_and_leaves_no_other_file(tmp_path):
    path = start(tmp_path).finish()
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert [each.name for each in tmp_path.iterdir()] == ["record.json"]


def test_a_failed_write_keeps_the_last_good_record(tmp_path, monkeypatch):
    path = start(tmp_path).finish()
    before = path.read_text()
    monkeypatch.setattr(lab_run.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        start(tmp_path, "--seed", "5").finish()
    assert path.read_text() == before


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3))
def test_mean_and_spread_are_those_of_the_values(values):
    run = Run.start("unet", argv=["--device", "cpu"])
    open_experiment(run).result("gap", values, unit="", meaning="m")
    tensor = torch.tensor(values, dtype=torch.float64)
    assert run.results["gap"]["mean"] == pytest.approx(tensor.mean().item(), abs=1e-6)
    assert run.results["gap"]["std"] == pytest.approx(tensor.std(correction=0).item(), abs=1e-4)


def test_results_take_tensors_and_numbers_of_numpy(tmp_path):
    run = start(tmp_path)
    open_experiment(run).result("gap", torch.tensor([1.0, 2.0, 3.0]), unit="", meaning="m")
    assert finished_record(run)["results"]["gap"]["values"] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("values", "exact", "message"),
    [
        ([1.0, 2.0], False, "2 values for 3 seeds"),
        ([1.0, 2.0, 3.0], True, "3 values for an exact result"),
        ([1.0, 2.0, math.nan], False, "not finite"),
        ([1.0, 2.0, -math.inf], False, "not finite"),
    ],
)
def test_results_of_a_wrong_count_or_without_a_number_are_refused(tmp_path, values, exact, message):
    run = start(tmp_path)
    experiment = open_experiment(run)
    with pytest.raises(ValueError, match=message):
        experiment.result("gap", values, unit="", meaning="m", exact=exact)
    assert finished_record(run)["experiments"][0]["results"] == []


def test_names_are_unique_in_a_run(tmp_path):
    run = start(tmp_path)
    experiment = open_experiment(run)
    experiment.result("gap", [1, 2, 3], unit="", meaning="m")
    experiment.figure("curves", draw, caption="c", alt=ALT)
    other = run.experiment("other", question="q", data="d")
    with pytest.raises(ValueError, match="result 'gap' exists already"):
        other.result("gap", [1, 2, 3], unit="", meaning="m")
    with pytest.raises(ValueError, match="figure 'curves' exists already"):
        run.figure("curves", draw, caption="c", alt=ALT)
    with pytest.raises(ValueError, match="experiment 'skips' exists already"):
        open_experiment(run)


@pytest.mark.parametrize("name", ["", "Gap", "1gap", "gap-small", "gap small", "gap\n", "../gap"])
def test_malformed_names_are_refused(tmp_path, name):
    run = start(tmp_path)
    experiment = open_experiment(run)
    with pytest.raises(ValueError, match="result name"):
        experiment.result(name, [1, 2, 3], unit="", meaning="m")
    with pytest.raises(ValueError, match="figure name"):
        run.figure(name, draw, caption="c", alt=ALT)


@pytest.mark.parametrize(
    ("caption", "alt", "message"),
    [(" ", ALT, "caption must not be empty"), ("c", "", "alt must not be empty"), ("c", "a line", "20 or more")],
)
def test_figures_need_a_caption_and_an_alt_that_says_something(tmp_path, caption, alt, message):
    run = start(tmp_path)
    with pytest.raises(ValueError, match=message):
        run.figure("idea", draw, caption=caption, alt=alt)
    assert not (tmp_path / "figures").exists()


def test_progress_passes_every_item_on_and_writes_to_stderr_only(tmp_path, capsys):
    items = list(start(tmp_path).progress(iter("abc"), what="letters", total=3))
    printed = capsys.readouterr()
    assert items == ["a", "b", "c"]
    assert printed.out == ""
    assert "letters" in printed.err


def test_a_value_that_is_undefined_stays_so_with_its_reason(tmp_path):
    run = start(tmp_path)
    open_experiment(run).result(
        "gap", [1.0, math.nan, None], unit="", meaning="m", failed={1: "nothing found", 2: "floor"}
    )
    result = finished_record(run)["results"]["gap"]
    assert result["values"] == [1.0, None, None]
    assert (result["mean"], result["std"]) == (1.0, 0.0)
    assert result["failed"] == [{"seed": 1, "reason": "nothing found"}, {"seed": 2, "reason": "floor"}]


def test_a_seed_below_the_floor_counts_in_no_result_that_follows(tmp_path):
    run = start(tmp_path)
    experiment = run.experiment("main", question="Is it so?", data="none", floor=("AP50 (%)", 20))
    experiment.check_floor([50.0, 60.0, 70.0], [30.0, 12.5, math.nan])
    experiment.result("gap", [1.0, 2.0, 3.0], unit="", meaning="m")
    experiment.result("counted", [7], unit="", meaning="m", exact=True)
    record = finished_record(run)
    assert record["results"]["gap"]["values"] == [1.0, None, None]
    assert record["results"]["counted"]["values"] == [7.0]
    assert record["results"]["gap"]["failed"] == [
        {"seed": 1, "reason": "AP50 (%) is 12.5, below 20"},
        {"seed": 2, "reason": "AP50 (%) is nan, below 20"},
    ]


def test_an_experiment_without_a_floor_has_none_to_check(tmp_path):
    with pytest.raises(ValueError, match="has no floor"):
        open_experiment(start(tmp_path)).check_floor([1.0, 2.0, 3.0])


def test_a_result_of_which_no_seed_is_defined_has_no_mean(tmp_path):
    run = start(tmp_path)
    open_experiment(run).result("gap", [None] * 3, unit="", meaning="m", failed=dict.fromkeys(range(3), "floor"))
    assert finished_record(run)["results"]["gap"]["mean"] is None


def test_what_a_cell_shows_is_printed_and_kept(tmp_path, capsys):
    run = start(tmp_path)
    run.show("sizes", [{"layer": "stem", "weights": 1200}, {"layer": "head", "weights": 7}])
    run.show("last", "loss 0.3")
    text = "layer  weights\nstem     1,200\nhead         7"
    assert capsys.readouterr().out == f"{text}\nloss 0.3\n"
    assert finished_record(run)["shown"] == [{"name": "sizes", "text": text}, {"name": "last", "text": "loss 0.3"}]
    with pytest.raises(ValueError, match="text 'last' exists already"):
        run.show("last", "again")


def test_a_notebook_takes_its_arguments_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    monkeypatch.setenv("EXAMPLE_ARGUMENTS", f"--preset smoke --out '{tmp_path}/a b'")
    run = Run.start("unet")
    assert (run.preset, run.out.name) == ("smoke", "a b")


def test_published_weights_are_refused_where_there_are_none_to_load(tmp_path):
    for arguments in (["--weights", "pretrained"], ["--picture", __file__]):
        with pytest.raises(SystemExit, match="loads no published weights"):
            Run.start("unet", pretrained=False, argv=arguments)
    with pytest.raises(SystemExit, match="there is no file"):
        Run.start("unet", pretrained=True, argv=["--picture", str(tmp_path / "cat.png")])
    assert (
        Run.start("unet", pretrained=True, argv=["--device", "cpu", "--picture", __file__]).settings.weights
        == "pretrained"
    )


def test_claims_of_an_example_run_at_its_end_all_or_those_named(tmp_path, monkeypatch):
    def one(run):
        """One?"""
        open_experiment(run).result("gap", [1, 2, 3], unit="", meaning="m")

    def two(run):
        """Two?"""
        run.experiment("two", question="q", data="d").result("other", [1, 2, 3], unit="", meaning="m")

    monkeypatch.setattr(lab_run, "experiments_of", lambda slug: {"one": one, "two": two})
    record = finished_record(start(tmp_path, "--claims"))
    assert (sorted(record["results"]), record["claims"]) == (["gap", "other"], True)
    record = finished_record(start(tmp_path, "--claims", "two"))
    assert (sorted(record["results"]), record["claims"]) == (["other"], False)
    assert finished_record(start(tmp_path))["claims"] is False
    with pytest.raises(SystemExit, match="no experiment three; there are one, two"):
        start(tmp_path, "--claims", "three").finish()


def test_power_names_a_control_and_its_bound(tmp_path):
    with pytest.raises(ValueError, match="power needs control, result, and above or below"):
        start(tmp_path).experiment("skips", question="q", data="d", power={"control": "c"})


def test_only_on_the_cpu_is_one_thread_the_default(tmp_path, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(lab_options, "_available", lambda: ["mps", "cpu"])
    try:
        torch.set_num_threads(3)
        Run.start("unet", argv=["--device", "mps", "--out", str(tmp_path)])
        assert torch.get_num_threads() == 3
        start(tmp_path)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_each_flag_is_explained(capsys):
    with pytest.raises(SystemExit):
        Run.start("unet", argv=["--help"])
    flags = {action.option_strings[-1]: action.help for action in lab_options.parser("unet")._actions}
    assert flags.keys() > {"--device", "--preset", "--seed", "--out", "--claims", "--search", "--weights", "--threads"}
    assert all(flags.values())
    printed = capsys.readouterr().out
    assert all(flag in printed for flag in flags)
