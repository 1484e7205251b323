"""A number belongs to a system: whatever puts a cost beside a figure, both are of one variant, framework and input.

What is allowed is worked out here from the YAML of the cards alone, and held against all that the site and its exports say.
"""

from __future__ import annotations

import csv
import functools
import html
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from made import add_backbones

from scripts import exports
from scripts.architectures.counts import Counted, needed
from scripts.architectures.latency import Latency
from scripts.cards.library import Library, load_library
from scripts.evidence import published, systems
from scripts.evidence.checks import check_library
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.published import own_size
from scripts.pages import model, numbers
from scripts.pages.charts import charts
from scripts.project import Project

SI = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
SIZES = ("parameters", "macs")


def value(printed: str) -> float:
    """Of `41 M`, `41`, `41 M (counted)` and `41.0%`."""
    number, _, unit = printed.replace(" (counted)", "").rstrip("%").partition(" ")
    return float(number) * SI.get(unit, 1)


@dataclass(frozen=True)
class System:
    """What a figure is of, as far as it makes a difference to what it costs."""

    card: str
    variant: str
    framework: str | None
    input: str | None


@dataclass(frozen=True)
class Row:
    """A row of a table of a card."""

    of: System
    values: Mapping[str, float]
    device: str


@dataclass(frozen=True)
class Joined:
    """A cost that an output puts beside a figure, of one of these metrics and of one of these systems by what it says."""

    output: str
    of: tuple[System, ...]
    metrics: tuple[str, ...]
    value: float
    device: str = ""


@dataclass
class Truth:
    """What the cards say."""

    rows: dict[tuple[str, str, str], Row] = field(default_factory=dict)
    """By card, variant and table."""
    names: dict[tuple[str, str], str] = field(default_factory=dict)
    """Key of a variant by card and name."""
    counts: dict[tuple[str, str], tuple[str, Counted]] = field(default_factory=dict)
    """Build and count by card and variant."""

    @functools.cached_property
    def of_card(self) -> Mapping[str, list[tuple[str, Row]]]:
        """Tables and their rows, by card."""
        found: dict[str, list[tuple[str, Row]]] = {}
        for (card, _, table), row in self.rows.items():
            found.setdefault(card, []).append((table, row))
        return found

    @functools.cached_property
    def variants(self) -> Mapping[tuple[str, str], str]:
        """Name of a variant by card and key."""
        return {(card, key): name for (card, name), key in self.names.items()}

    def costs(self, of: System, metric: str, device: str) -> Iterator[float]:
        """Every figure of a metric that may stand with a figure of this system."""
        for _, row in self.of_card.get(of.card, []):
            same = (row.of.variant, row.of.framework) == (of.variant, of.framework)
            if same and (metric == "parameters" or row.of.input == of.input) and device in ("", row.device):
                yield from (figure for name, figure in row.values.items() if name == metric)
        _, counted = self.counts.get((of.card, of.variant), ("", None))
        if (
            counted
            and of.framework is None
            and metric in SIZES
            and (metric == "parameters" or counted.input == of.input)
        ):
            yield getattr(counted, metric)

    def allows(self, joined: Joined) -> bool:
        found = (
            each for of in joined.of for metric in joined.metrics for each in self.costs(of, metric, joined.device)
        )
        return any(each == pytest.approx(joined.value, rel=5e-3) for each in found)

    def reached(self, card: str, name: str, figure: float) -> tuple[System, ...]:
        """The systems that reach a figure and are called so."""
        reaching = [row.of for _, row in self.of_card[card] if figure in row.values.values()]
        return tuple(dict.fromkeys(of for of in reaching if self.called(of) == name))

    def called(self, of: System) -> str:
        """`Swin-T in Cascade Mask R-CNN`."""
        name = self.variants[of.card, of.variant]
        return f"{name} in {of.framework}" if of.framework else name


def truth_of(folder: Path, counts: Mapping[str, Counted]) -> Truth:
    """Read with PyYAML, which leaves every scalar as it is printed, and by no code of this project."""
    truth = Truth()
    for path in folder.glob("[!_]*.yml"):
        card = yaml.load(path.read_text("utf-8"), Loader=yaml.CBaseLoader)
        for key, variant in card.get("variants", {}).items():
            assert (path.stem, variant["name"]) not in truth.names, f"{path.stem}: two variants of one name"
            truth.names[path.stem, variant["name"]] = key
            if "count" in variant:
                build, at = variant["count"]["build"], variant["count"]["input"]
                truth.counts[path.stem, key] = (build, counts[f"{build} @ {at}"])
            for table, row in variant.get("numbers", {}).items():
                truth.rows[path.stem, key, table] = _row(path.stem, key, card["tables"][table], row)
    return truth


def _row(card: str, variant: str, table: Mapping[str, Any], row: Mapping[str, Any]) -> Row:
    c = {**table.get("conditions", {}), **row.get("conditions", {})}
    values = {metric: value(each) for metric, each in row.items() if metric not in ("conditions", "where", "note")}
    if "flops" in values:
        values.setdefault("macs", values["flops"] / 2)
    batch = f"batch {c['batch']}" if "batch" in c else ""
    device = ", ".join(filter(None, [c.get("hardware"), c.get("precision"), batch]))
    return Row(System(card, variant, c.get("framework"), c.get("input")), values, device)


# what each output says

Said = Callable[[Knowledge, Truth], Iterator[Joined]]


def in_charts(knowledge: Knowledge, truth: Truth) -> Iterator[Joined]:
    for chart in charts(knowledge):
        device = chart.axis.removeprefix("Latency on ").removesuffix(" (ms)") if "Latency" in chart.axis else ""
        for point in chart.points:
            slug, table = point["href"].removeprefix("../models/").split("/#table-")
            row = truth.rows[slug, truth.names[slug, point["label"]], table]
            assert point["y"] in row.values.values()
            yield Joined("charts", (row.of,), ("latency" if device else chart.axis.lower(),), point["x"], device)


RANKED = re.compile(
    r'<tr><td>[^<]*</td><th scope="row"><a href="(?:\.\./){1,2}models/([^/]+)/">([^<]+)</a></th><td>([^<]+)</td>'
    r'<td>([^<]*)</td><td>([^<]*)</td><td><a href="(?:\.\./){1,2}models/[^/]+/#table-([^"]+)">'
)


def in_rankings(knowledge: Knowledge, truth: Truth) -> Iterator[Joined]:
    long = numbers.benchmark_pages(knowledge).values()
    pages = [numbers.page(knowledge), *(numbers.benchmark_page(benchmark, knowledge) for benchmark in long)]
    for slug, name, figure, *costs, table in RANKED.findall("\n".join(pages)):
        reached = truth.reached(slug, html.unescape(name), value(figure))
        of = tuple(row.of for where, row in truth.of_card[slug] if where == table and row.of in reached)
        assert of, (slug, name, figure, table)
        for metric, printed in zip(SIZES, costs, strict=True):
            if printed:
                yield Joined("rankings", of, (metric,), value(printed))


def in_compare(knowledge: Knowledge, truth: Truth) -> Iterator[Joined]:
    files = exports.overviews(knowledge)["scripts.exports.comparison"]()
    for slug, entries in json.loads(files["api/compare.json"])["numbers"].items():
        for entry in entries:
            row = truth.rows[slug, truth.names[slug, entry["variant"]], entry["table"]]
            for metric, printed in entry["cost"].items():
                yield Joined("compare", (row.of,), (metric,), value(printed))


def in_csv(knowledge: Knowledge, truth: Truth) -> Iterator[Joined]:
    files = exports.overviews(knowledge)["scripts.exports.csv_table"]()
    for entry in csv.DictReader(io.StringIO(files["downloads/numbers.csv"])):
        row = truth.rows[entry["card"], entry["variant"], entry["table"]]
        assert (entry["framework"] or None, entry["input"] or None) == (row.of.framework, row.of.input)
        for metric in SIZES:
            if entry[f"system_{metric}"]:
                yield Joined("csv", (row.of,), (metric,), float(entry[f"system_{metric}"]))


SIZE, TIME = r" · [0-9.]+ [kMGT](?: \(counted\))?", r" · [0-9.,]+ (?:ms|images per second) on .*"
CHIP = re.compile(rf"^([0-9.]+)%? .*? · (.*?)((?:{SIZE})*)(?:{TIME})?$")  # the time is looked at in test_views


def in_chips(knowledge: Knowledge, truth: Truth) -> Iterator[Joined]:
    """The last chip of a page is its headline: a figure, its system, and what that costs."""
    for card in knowledge.cards:
        (chips,) = re.findall(r'<ul class="chips">(.*?)</ul>', model.page(card, knowledge), re.DOTALL)
        told = CHIP.match(html.unescape(re.findall(r"<li>(.*?)</li>", chips)[-1]))
        if told:
            of = truth.reached(card.slug, told[2], float(told[1]))
            assert of, told[0]
            yield from (Joined("chips", of, SIZES, value(each)) for each in told[3].split(" · ")[1:])


def in_api(knowledge: Knowledge, truth: Truth) -> Iterator[Joined]:
    for card in knowledge.cards:
        files = exports.of_card(card, knowledge)
        for told in json.loads(files[f"api/models/{card.slug}.json"])["systems"]:
            of = System(card.slug, told["variant"], told["framework"], told["input"])
            reached = [figure for _, row in truth.of_card[card.slug] if row.of == of for figure in row.values.values()]
            assert {metric["value"] for metric in told["metrics"]} <= set(reached)
            for metric, key, unit in (("parameters", "params_m", 1e6), ("macs", "macs_g", 1e9)):
                if told[key]:
                    yield Joined("api", (of,), (metric,), told[key]["value"] * unit)
            for time in told["latency"]:
                if "metric" in time:
                    yield Joined("api", (of,), (time["metric"],), time["value"])
                else:
                    assert (time["build"], time["input"]) == (truth.counts[card.slug, of.variant][0], of.input)
                    assert of.framework is None


def in_metafiles(knowledge: Knowledge, truth: Truth) -> Iterator[Joined]:
    """One model of OpenMMLab's format is one configuration: what it costs, and all that it reaches."""
    for card in knowledge.cards:
        metafile = exports.of_card(card, knowledge)[f"downloads/openmmlab/{card.slug}/metafile.yml"].make()
        rows = [row for _, row in truth.of_card.get(card.slug, [])]
        for told in yaml.load(metafile, Loader=yaml.CSafeLoader)["Models"]:
            reached = {figure for result in told.get("Results", []) for figure in result["Metrics"].values()}
            of = {row.of for row in rows if reached & set(row.values.values())}
            whole = tuple(
                each for each in of
                if reached <= {figure for row in rows if row.of == each for figure in row.values.values()}
            )  # fmt: skip
            if reached:
                assert whole, f"{card.slug}: {told['Name']} holds figures of several systems"
                for metric, key in (("parameters", "Parameters"), ("macs", "FLOPs")):
                    if key in told.get("Metadata", {}):
                        yield Joined("metafiles", whole, (metric,), told["Metadata"][key])


OUTPUTS: tuple[Said, ...] = (in_charts, in_rankings, in_compare, in_csv, in_chips, in_api, in_metafiles)


def made_counts(library: Library) -> dict[str, Counted]:
    """Counts that occur nowhere else, so that each is seen where it does not belong."""
    return {
        key: Counted((10_100 + 10 * i) * 1.0, (10_100 + 10 * i) * 1e5, key.partition(" @ ")[2])
        for i, key in enumerate(needed(library))
    }


def knowledge_of(folder: Path) -> tuple[Knowledge, Truth]:
    library, problems = load_library(folder, folder)
    assert not problems
    counts = made_counts(library)
    timed = tuple(Latency("A CPU", *key.split(" @ "), 1, "fp32", ms=1.0) for key in counts)
    return Knowledge(library, {}, counts, latencies=timed), truth_of(folder, counts)


def wrong(said: Said, knowledge: Knowledge, truth: Truth, *, least: int = 0) -> list[Joined]:
    """What an output joins that does not belong together; it joins at least so many."""
    joined = list(said(knowledge, truth))
    assert len(joined) >= least
    return [each for each in joined if not truth.allows(each)]


@pytest.fixture(scope="module")
def ours() -> tuple[Knowledge, Truth]:
    """The cards of this project with counts and times that are made up."""
    return knowledge_of(ROOT / "model_cards")


@pytest.mark.parametrize("said", OUTPUTS)
def test_every_cost_of_our_cards_stands_with_a_figure_of_the_same_system(
    said: Said, ours: tuple[Knowledge, Truth]
) -> None:
    assert wrong(said, *ours, least=11) == []


# a backbone with two detectors, and the rule broken


@pytest.fixture
def backbone(tiny: Project) -> tuple[Knowledge, Truth]:
    """A backbone with two detectors, beside a detector that shares their benchmark."""
    add_backbones(tiny)
    knowledge, truth = knowledge_of(tiny.cards)
    examples = {"alpha": "", "beta": ""}
    assert [str(p) for p in check_library(knowledge.library, examples) if p.severity == "error"] == []
    return knowledge, truth


@pytest.mark.parametrize("said", OUTPUTS)
def test_a_backbone_costs_in_each_detector_what_that_system_costs(
    said: Said, backbone: tuple[Knowledge, Truth]
) -> None:
    assert Counter(joined.output for joined in said(*backbone)).total() > 3
    assert wrong(said, *backbone) == []


def test_a_system_of_which_no_source_says_what_it_costs_has_no_cost(backbone: tuple[Knowledge, Truth]) -> None:
    knowledge, _ = backbone
    told = json.loads(exports.of_card(knowledge.library.cards["gamma"], knowledge)["api/models/gamma.json"])["systems"]
    costs = {
        (each["variant"], each["framework"], each["input"]): (
            each["params_m"] and (each["params_m"]["value"], each["params_m"]["counted"]),
            each["macs_g"] and (each["macs_g"]["value"], each["macs_g"]["counted"]),
            len(each["latency"]),
        )
        for each in told
    }
    count = knowledge.counts["timm/gamma_s @ 224 x 224"]
    counted = (pytest.approx(count.parameters / 1e6, abs=1e-6), True)
    assert costs == {
        ("t", None, "224 x 224"): ((28, False), (4.5, False), 2),
        ("t", None, "384 x 384"): ((28, False), None, 0),
        ("t", "Mask R-CNN", "800 x 1333"): ((48, False), (267, False), 0),
        ("t", "Cascade", "800 x 1333"): ((86, False), (745, False), 1),
        ("t", "Cascade", "1200 x 2000"): ((86, False), None, 0),
        ("s", None, "224 x 224"): (counted, (pytest.approx(count.macs / 1e9, abs=1e-6), True), 1),
        ("s", None, "384 x 384"): (counted, None, 0),
        ("s", "Mask R-CNN", "800 x 1333"): (None, None, 0),
        ("s", "Cascade", "800 x 1333"): ((107, False), None, 0),
        ("s", "Cascade", "1200 x 2000"): ((107, False), None, 0),
    }


@pytest.mark.parametrize(
    ("left_out", "expected"),
    [
        ((), "28 M"),
        (("big", "cls", "speed", "one"), "86 M"),  # of Cascade alone, so that is what it is
        (("big", "cls", "speed"), None),  # of two detectors, and nothing says what it is by itself
        (("cls",), None),
    ],
)
def test_a_variant_is_as_large_as_it_is_by_itself(
    left_out: tuple[str, ...], expected: str | None, backbone: tuple[Knowledge, Truth]
) -> None:
    library = backbone[0].library
    gamma = library.cards["gamma"]
    numbers_left = {table: row for table, row in gamma.variants["t"].numbers.items() if table not in left_out}
    variants = {"t": gamma.variants["t"].model_copy(update={"numbers": numbers_left})}
    fewer = replace(library, cards={"gamma": gamma.model_copy(update={"variants": variants})})
    found = own_size(fewer, "gamma", "t", "parameters")
    assert (found.quantity.printed if found else None) == expected


@pytest.mark.parametrize(
    ("framework", "at", "number"), [(None, "224 x 224", 1), ("Cascade", "224 x 224", 0), (None, "384 x 384", 0)]
)
def test_what_was_timed_here_is_the_variant_by_itself_at_its_input(
    framework: str | None, at: str, number: int, backbone: tuple[Knowledge, Truth]
) -> None:
    of = published.System("gamma", "t", framework, (None, None, None), at)
    assert len(list(systems.measured_times(backbone[0], of))) == number


def any_framework(a: published.System, b: published.System, *, with_input: bool = True) -> bool:
    return (a.card, a.variant) == (b.card, b.variant) and (not with_input or a.input == b.input)


def any_input(a: published.System, b: published.System, *, with_input: bool = True) -> bool:
    return (a.card, a.variant, a.framework) == (b.card, b.variant, b.framework)


@pytest.mark.parametrize("said", OUTPUTS)
@pytest.mark.parametrize("broken", [any_framework, any_input])
def test_a_broken_rule_is_seen_in_each_output(
    said: Said, broken: Callable[..., bool], backbone: tuple[Knowledge, Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the tests above fail when it breaks."""
    monkeypatch.setattr(systems, "is_one", broken)
    assert wrong(said, *backbone)
