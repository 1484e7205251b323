"""The form of an example: one file to read, whose every cell shows something, and one that tests, with nothing lost."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import jupytext
import pytest

from scripts.cards.yaml_reader import read_yaml
from scripts.project import Project
from scripts.runs.needs import read_all

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SLUGS = sorted(path.stem for path in (EXAMPLES / "claims").glob("*.py") if path.stem != "__init__")
GOLDEN, _ = read_yaml((Path(__file__).parent / "golden.yml").read_text("utf-8"), "golden.yml")  # no key stands twice
READ, LONGEST, CLAIMS, IMPORTS = 220, 260, 300, 12
LONGER = {
    "faster-rcnn": "a whole two-stage detector, each stage with its loss, since no library trains one for a batch at once",
    "detr": "a whole detector: matching, set loss, encoder and decoder, each with its equation",
    "improved-mask-rcnn": "three repairs, each with a head and a loss of its own that no library has apart",
    "mask-dino": "masks, selection of queries, denoising, and a matching and a loss of three parts, each written out",
    "vit": "patches, attention, block and model are written out, so that timm's weights fit into them",
    "lora": "the update, how it gets into a network, pretraining and adaptation are all written out",
    "swin": "windows, shift, mask, bias, block and pyramid are written out, so that timm's weights fit into them",
    "graph-transformer": "attention along edges, nodes and edges of a layer, and pictures of graphs, which no library here draws",
    "sam": "prompts, a two-way decoder and a loss over several masks, none of which a library has apart",
    "centernet": "three poolings along lines, tags and the check of the centre, each with its equation",
    "sam2": "memory bank, memory attention and the pass through a clip are written out, since no library has them apart",
    "v-jepa2": "tubelets, masks, encoder, predictor, teacher and what reads features are written out; no library trains it",
    "sam3": "a detector of concepts with its presence token, who pays for what, and pictures of three answers of each scene",
    "grounding-dino": "a whole detector with words: text, fusion, selection of queries and contrast, each with its equation",
    "d-fine": "steps, distributions, what they learn and a decoder that looks again are written out, each with its equation",
    "rt-detr": "a whole detector: hybrid encoder, a score that knows its box, queries and layers, each with its equation",
    "co-detr": "a whole detector, a helper with a rule of its own, and its queries, each with its loss",
    "convnext": "blocks of both versions, response normalisation and the pyramid are written out, so that timm's weights fit in",
    "nnunet": "four rules, each with its equation, the network that follows from them, its loss, folds and mirrored copies",
    "siglip2": "two towers, two losses, a matrix of pairs and blanks to fill, each with its picture",
    "dinov2": "crops, teacher, both halves of what keeps answers apart, and the published weights are written out",
    "optimized-unet": "heads, loss, mirrored copies and clean-up are four ideas, each with what it gives",
    "unet": "network, receptive field, both terms of the weight map and two looks into a trained one, each with its picture",
    "yolov8": "distributions of edges, the assignment of points and both losses of boxes, each with its equation",
    "mask2former": "masked attention, its decoder and a set loss for things and stuff, each with its equation",
}
RecordOf = Callable[[str], dict[str, Any]]

each_slug = pytest.mark.parametrize("slug", SLUGS)


def cells(slug: str) -> list[tuple[str, str]]:
    """Kind and source of the cells of a file to read."""
    notebook = jupytext.reads((EXAMPLES / f"{slug}.py").read_text("utf-8"), fmt="py:percent")
    return [(cell.cell_type, cell.source) for cell in notebook.cells if cell.source.strip()]


def filled(path: Path) -> int:
    """Lines that hold something; the formatter's blank lines and the markers of cells are not read."""
    lines = path.read_text("utf-8").splitlines()
    return sum(bool(line.strip()) and not line.startswith("# %%") for line in lines)


def is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def test_every_example_has_a_file_that_tests() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == SLUGS


def test_golden_names_all_examples() -> None:
    assert set(GOLDEN["names"]) == {path.stem for path in EXAMPLES.glob("*.py")}
    assert set(GOLDEN["dropped"]) <= set(GOLDEN["names"])
    for slug, dropped in GOLDEN["dropped"].items():
        old = {*GOLDEN["names"][slug]["results"], *GOLDEN["names"][slug]["figures"]}
        assert set(dropped) <= old, f"{slug}: dropped, but never there"
        assert all(len(reason) > 20 for reason in dropped.values())


@each_slug
def test_a_file_to_read_is_short_and_one_that_tests_is_not_long(slug: str) -> None:
    assert filled(EXAMPLES / f"{slug}.py") <= (LONGEST if slug in LONGER else READ)
    assert filled(EXAMPLES / "claims" / f"{slug}.py") <= CLAIMS
    imports = [node for node in ast.parse((EXAMPLES / f"{slug}.py").read_text("utf-8")).body
               if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__"]  # fmt: skip
    assert len(imports) <= IMPORTS


@each_slug
def test_it_opens_with_a_question_and_ends_with_how_it_differs_from_the_paper(slug: str) -> None:
    (first, title), *_, (last, departures) = cells(slug)
    assert (first, last) == ("markdown", "markdown")
    assert title.splitlines()[0].startswith("# ")
    assert title.splitlines()[0].endswith("?")
    assert departures.startswith("## Unlike the paper")
    assert [source for kind, source in cells(slug) if kind == "code"][-1].rstrip().endswith("run.finish()")


@each_slug
def test_importing_it_runs_nothing(slug: str) -> None:
    still = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef)
    for node in ast.parse((EXAMPLES / f"{slug}.py").read_text("utf-8")).body:
        assert isinstance(node, still) or is_guard(node), ast.unparse(node)[:80]


@each_slug
def test_claims_define_nothing_of_the_idea_anew(slug: str) -> None:
    def defined(path: Path) -> set[str]:
        body = ast.parse(path.read_text("utf-8")).body
        return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}

    assert not defined(EXAMPLES / f"{slug}.py") & defined(EXAMPLES / "claims" / f"{slug}.py")
    source = (EXAMPLES / "claims" / f"{slug}.py").read_text("utf-8")
    assert f"from {slug} import" in source or f'import_module("{slug}")' in source


@each_slug
def test_claims_end_with_their_experiments_each_with_its_question(slug: str) -> None:
    claims = importlib.import_module(f"claims.{slug}")
    assert all(experiment.__doc__.strip().endswith("?") for experiment in claims.EXPERIMENTS)


@each_slug
def test_no_name_is_lost_unseen(slug: str, record_of: RecordOf) -> None:
    record = record_of(slug)
    there = {*record["results"], *(figure["name"] for figure in record["figures"])}
    old = {*GOLDEN["names"][slug]["results"], *GOLDEN["names"][slug]["figures"]}
    assert old - there - set(GOLDEN["dropped"].get(slug, {})) == set()
    assert not there & set(GOLDEN["dropped"].get(slug, {})), "dropped, but still there"


@each_slug
def test_the_record_says_what_was_compared(slug: str, record_of: RecordOf) -> None:
    record = record_of(slug)
    assert (record["schema"], record["claims"]) == (2, True)
    trains = read_all(Project(EXAMPLES.parent))[slug].steps > 0
    assert bool(record["trainings"]) == trains, "what full needs is estimated from them"
    for experiment in record["experiments"]:
        parameters = [each["parameters"] for each in experiment["arms"].values()]
        assert not parameters or max(parameters) <= 1.1 * min(parameters), experiment["name"]
        assert len({each["steps"] for each in experiment["arms"].values()}) <= 1, experiment["name"]
        for what in {each["what"] for each in experiment["searches"]}:
            same = [(each["grid"], each["seeds"]) for each in experiment["searches"] if each["what"] == what]
            assert all(each == same[0] for each in same), f"{experiment['name']}: {what} was not searched alike"
        if experiment["power"]:
            assert experiment["power"]["result"] in record["results"]
    for name, result in record["results"].items():
        assert len(result["failed"]) == result["values"].count(None), name
    for figure in record["figures"]:
        assert all((record["out"] / figure[style]).stat().st_size > 1000 for style in ("light", "dark"))


@each_slug
def test_jupyter_runs_the_notebook_and_every_cell_but_the_first_shows_something(
    slug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbconvert.preprocessors import ExecutePreprocessor

    monkeypatch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", forked.launch_kernel)
    monkeypatch.setenv("EXAMPLE_ARGUMENTS", f"--preset smoke --device cpu --out '{tmp_path}'")
    notebook = jupytext.reads((EXAMPLES / f"{slug}.py").read_text("utf-8"), fmt="py:percent")
    ExecutePreprocessor(timeout=300).preprocess(notebook, {"metadata": {"path": str(EXAMPLES)}})
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code[1:]:
        assert any(output.get("name") != "stderr" for output in cell.outputs), cell.source[:300]
    assert (tmp_path / "record.json").is_file()
