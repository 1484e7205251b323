"""Exports, each read by the format's own library or validator, with what the card says."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import citeproc
import feedparser
import modelindex
import pytest
import yaml
from citeproc.source.json import CiteProcJSON
from conftest import ROOT, Command, edit, needs_chromium
from huggingface_hub import EvalResult, ModelCard
from pybtex.database import parse_string

from scripts import exports
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.published import published
from scripts.exports.json_ld import json_ld
from scripts.project import Project
from scripts.site import archive
from scripts.site.gather import about, gather

if TYPE_CHECKING:
    from playwright.sync_api import Browser


ARCHIVE = "downloads/tiny.zip"


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    """The cards of this project."""
    return gather(Project(ROOT))


@pytest.fixture(scope="module")
def files(knowledge: Knowledge) -> dict[str, str]:
    return all_files(knowledge)


def all_files(knowledge: Knowledge) -> dict[str, str]:
    overviews = [make() for make in exports.overviews(knowledge).values()]
    of_cards = [exports.of_card(card, knowledge) for card in knowledge.cards]
    texts = {path: text for made in (*overviews, *of_cards) for path, text in made.items()}
    return {path: text if isinstance(text, str) else text.make() for path, text in texts.items()}


def test_bibtex_is_read_by_pybtex_and_holds_every_reference(knowledge: Knowledge, files: dict[str, str]) -> None:
    everything = parse_string(files["downloads/references.bib"], "bibtex").entries
    for card in knowledge.cards:
        entries = parse_string(files[f"downloads/bibtex/{card.slug}.bib"], "bibtex").entries
        assert set(entries) == set(card.references)
        for key, reference in card.references.items():
            assert entries[key].fields["year"] == str(reference.year)
            assert len(entries[key].persons["author"]) == len(reference.authors)
            titles = {everything[name].fields["title"] for name in (key, f"{key}-{card.slug}") if name in everything}
            assert entries[key].fields["title"].lower() in {title.lower() for title in titles}


PARTS = ("non-dropping-particle", "suffix")


def test_csl_json_is_read_and_set_by_citeproc(files: dict[str, str]) -> None:
    items = json.loads(files["downloads/references.json"])
    source = CiteProcJSON(items)
    style = citeproc.CitationStylesStyle("harvard-cite-them-right", validate=False)
    bibliography = citeproc.CitationStylesBibliography(style, source, citeproc.formatter.plain)
    for item in items:
        bibliography.register(citeproc.Citation([citeproc.CitationItem(item["id"])]))
    printed = [str(entry) for entry in bibliography.bibliography()]
    assert len(printed) == len(items)
    for item in items:
        assert re.fullmatch(r"[A-Za-z][\w-]*", item["id"])
        assert item["type"] in {"article-journal", "paper-conference", "article", "software", "webpage"}
        assert item["author"]
        assert all(
            name.keys() == {"literal"}
            or {"given", "family"} <= name.keys() <= {"given", "non-dropping-particle", "family", "suffix"}
            for name in item["author"]
        )
        assert isinstance(item["issued"]["date-parts"][0][0], int)


@pytest.mark.slow
def test_hugging_face_reads_every_result_of_the_model_index(knowledge: Knowledge, files: dict[str, str]) -> None:
    results: list[EvalResult] = []
    for card in knowledge.cards:
        data = ModelCard(f"---\n{files[f'downloads/huggingface/{card.slug}.yml']}---\n").data
        assert data.license
        assert data.license != "other" or data.license_name
        results += data.eval_results or []
        again = yaml.safe_load(data.to_yaml())
        assert again["tags"][0] == "computer-vision"
    numbers = [n for card in knowledge.cards for n in published(card) if n.conditions.dataset]
    expected = [
        (n.quantity.value, n.conditions.dataset, knowledge.library.cards[n.card].references[n.source].addresses[0][1])
        for n in numbers
        if n.metric not in ("parameters", "macs", "flops")
    ]
    assert sorted((r.metric_value, r.dataset_name, r.source_url) for r in results) == sorted(expected)


def test_the_metafile_is_read_by_the_reader_of_openmmlabs_format(
    knowledge: Knowledge, files: dict[str, str], tmp_path: Path
) -> None:
    for card in knowledge.cards:
        path = tmp_path / card.slug / "metafile.yml"
        path.parent.mkdir()
        path.write_text(files[f"downloads/openmmlab/{card.slug}/metafile.yml"], "utf-8")
        read = modelindex.load(str(path))
        assert read.check(silent=True) == []
        names = [model.name for model in read.models]
        assert len(names) == len(set(names))
        assert all(any(name.startswith(variant.name) for name in names) for variant in card.variants.values())
        assert [collection.name for collection in read.collections] == [card.name]
        assert {model.in_collection for model in read.models} <= {card.name}
        values = sorted(v for model in read.models for result in model.results or [] for v in result.metrics.values())
        expected = [
            n for n in published(card) if n.conditions.dataset and n.metric not in ("parameters", "macs", "flops")
        ]
        assert values == sorted(n.quantity.value for n in expected)


def test_the_csv_holds_every_number_with_its_place(knowledge: Knowledge, files: dict[str, str]) -> None:
    rows = list(csv.DictReader(io.StringIO(files["downloads/numbers.csv"])))
    numbers = [number for card in knowledge.cards for number in published(card)]
    assert len(rows) == len(numbers) > 1_000
    for row, number in zip(rows, numbers, strict=True):
        assert (row["card"], row["variant"], row["metric"]) == (number.card, number.variant, number.metric)
        assert float(row["value"]) == pytest.approx(number.quantity.value, rel=1e-12)
        assert row["where"].lstrip("'") == number.where
        reference = knowledge.library.cards[number.card].references[number.source]
        named = [name for name in (reference.doi, reference.arxiv, reference.url, reference.code) if name]
        assert any(row["source_address"].endswith(name) for name in named)


def test_a_spreadsheet_takes_no_text_of_the_csv_for_a_formula(tiny: Project) -> None:
    edit(tiny.cards / "alpha.yml", "where: Table 1, conditions", "where: '=cmd()', conditions")
    edit(tiny.cards / "alpha.yml", "name: Alpha-B", "name: '@sum(1)'")
    edit(tiny.cards / "alpha.yml", "AP: 40.5", "AP: -40.5")
    edit(tiny.cards / "alpha.yml", "above: beta/base/AP", "below: beta/base/AP")
    text = all_files(gather(tiny))["downloads/numbers.csv"]
    fields = [field for row in csv.reader(io.StringIO(text)) for field in row]
    assert "'=cmd()" in fields
    assert "'@sum(1)" in fields
    assert "-40.5" in fields
    assert not [f for f in fields if f[:1] in "=+@" and f]


def test_the_feed_is_valid_atom_with_the_dates_of_the_cards(knowledge: Knowledge, files: dict[str, str]) -> None:
    feed = feedparser.parse(files["feed.xml"])
    assert (feed.bozo, feed.version) == (False, "atom10")
    assert len(feed.entries) == len(knowledge.cards)
    dates = {card.name: f"{card.reviewed}T00:00:00Z" for card in knowledge.cards}
    for entry in feed.entries:
        assert entry.updated == dates[entry.title]
        assert entry.id.startswith("urn:uuid:")
        assert entry.link.startswith("models/")
    assert len({entry.id for entry in feed.entries}) == len(feed.entries)
    assert feed.feed.updated == max(dates.values())


LLMS_LINK = re.compile(r"- \[[^\]]+\]\(([^)]+)\): \S.*")


def test_llms_txt_has_the_form_of_its_specification(knowledge: Knowledge, files: dict[str, str]) -> None:
    title, summary, *rest = files["llms.txt"].strip().split("\n\n")
    assert title.startswith("# ")
    assert summary.startswith("> ")
    assert [part for part in rest[::2] if not part.startswith("## ")] == []
    links = [LLMS_LINK.fullmatch(line) for part in rest[1::2] for line in part.splitlines()]
    assert None not in links
    pages = {match[1] for match in links if match}
    assert pages >= {f"models/{card.slug}/" for card in knowledge.cards}


def test_the_full_text_writes_references_out(knowledge: Knowledge, files: dict[str, str]) -> None:
    text = files["llms-full.txt"]
    assert "[[" not in text
    for card in knowledge.cards:
        assert f"## {card.name}\n" in text
        assert all(claim.claim.split("[[")[0].strip() in text for claim in (*card.pros, *card.cons))


def test_json_ld_says_what_the_page_says_and_cannot_end_its_script(tiny: Project) -> None:
    card = gather(tiny).library.cards["alpha"]
    made: dict[str, Any] = json.loads(json_ld(card, ""))
    assert (made["@context"], made["@type"], made["headline"]) == ("https://schema.org", "TechArticle", "Alpha")
    assert made["about"]["@type"] == "SoftwareSourceCode"
    assert made["citation"][0]["name"] == "Alpha of things"
    assert made["dateModified"] == "2026-11-22"
    hostile = card.model_copy(update={"purpose": "</script><script>alert(1)</script>&amp;<!--"})
    assert not set("<>&") & set(json_ld(hostile, ""))
    assert json.loads(json_ld(hostile, ""))["description"].startswith("</script>")


@pytest.mark.slow
def test_json_ld_stands_in_the_page_of_a_model(tiny: Project, command: Command) -> None:
    command("build")
    page = (tiny.site / "models/alpha/index.html").read_text("utf-8")
    found = re.findall(r'<script type="application/ld\+json">(.*?)</script>', page, re.DOTALL)
    assert [json.loads(text)["headline"] for text in found] == ["Alpha"]


@pytest.mark.slow
def test_every_listed_file_is_made(tiny: Project, command: Command) -> None:
    command("build")
    page = (tiny.site / "downloads/index.html").read_text("utf-8")
    paths = [path for path, *_ in exports.of_all(about(tiny))] + [
        path.format(slug) for path, _ in exports.EACH for slug in ("alpha", "beta")
    ]
    for path in paths:
        assert (tiny.site / path).is_file(), path
        assert f"../{path}" in page
    assert "<!--" not in page


@pytest.mark.slow
def test_the_archive_is_the_whole_site_but_itself_and_the_page_of_a_server_the_same_each_time(
    tiny: Project, command: Command
) -> None:
    command("build")
    made = tiny.site / ARCHIVE
    first = made.read_bytes()
    again = tiny.root / "again.zip"
    made.rename(again)
    archive.write_archive(tiny.site, made, "tiny")
    assert hashlib.sha256(made.read_bytes()).digest() == hashlib.sha256(first).digest()
    with zipfile.ZipFile(made) as packed:
        assert packed.testzip() is None
        names = {name.removeprefix("tiny/") for name in packed.namelist()}
        assert {entry.date_time for entry in packed.infolist()} == {archive.NO_DATE}
    on_disk = {path.relative_to(tiny.site).as_posix() for path in tiny.site.rglob("*") if path.is_file()}
    assert names == on_disk - {ARCHIVE, "404.html"} | {f"{archive.AS_SCRIPT}.js"}


@pytest.mark.slow
def test_every_link_of_the_archive_leads_to_a_file(tiny: Project, command: Command) -> None:
    command("build")
    with zipfile.ZipFile(tiny.site / ARCHIVE) as packed:
        packed.extractall(tiny.root / "unpacked")
    folder = tiny.root / "unpacked" / "tiny"
    for page in folder.rglob("*.html"):
        for address in re.findall(r'(?:href|src)="?([^\s">]+)', page.read_text("utf-8")):
            path = re.split(r"[?#]", address)[0]
            # The tiny project has neither hand-written pages nor assets of its own.
            missing = "about/" in path or path.startswith("../assets/")
            if path and not missing and not archive.OUTSIDE.match(path):
                assert (page.parent / path).is_file(), f"{page.relative_to(folder)}: {address}"


@needs_chromium
def test_the_archive_can_be_read_from_a_disk(guarded: Project, browser: Browser) -> None:
    """Pages, style, pictures and links, with the policy of the theme."""
    with zipfile.ZipFile(guarded.site / ARCHIVE) as packed:
        packed.extractall(guarded.root / "unpacked")
    context = browser.new_context()
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto((guarded.root / "unpacked/tiny/index.html").as_uri())
    page.locator("a[href$='models/alpha/index.html']:visible").first.click()
    page.wait_for_url("**/models/alpha/index.html")
    assert page.locator("h1").inner_text().startswith("Alpha")
    assert page.evaluate("document.styleSheets.length") >= 1
    assert page.evaluate("getComputedStyle(document.querySelector('.md-header')).position") == "sticky"
    page.locator("ul.chips a").first.click()
    page.wait_for_url("**/tasks/index.html#object-detection")
    context.close()
    assert errors == []
