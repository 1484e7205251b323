"""Editing a card: a real YAML language server completes, explains and checks with the committed schema."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import ROOT, TINY
from node_tools import NODE, TOOLS, needs_node_tools

from scripts.cards.json_schema import card_schema, fields
from scripts.cards.library import load_vocabulary

WORDS, *_ = load_vocabulary(ROOT / "model_cards", ROOT)

SCHEMA = json.loads(card_schema(WORDS))


@pytest.mark.parametrize(
    ("part", "name", "field"), list(fields(SCHEMA)), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_field_has_a_description_and_examples_that_are_valid(part: str, name: str, field: dict[str, Any]) -> None:
    assert field.get("description"), f"{part}.{name}: a docstring under the field"
    assert field["examples"], f"{part}.{name}: `examples` of its Field in scripts/cards/"
    validator = jsonschema.Draft202012Validator({"$defs": SCHEMA["$defs"], **field})
    for example in field["examples"]:
        assert [error.message for error in validator.iter_errors(example)] == []


class Server:
    """A client of a language server, as an editor is one."""

    def __init__(self, folder: Path) -> None:
        path = TOOLS / "node_modules/yaml-language-server/bin/yaml-language-server"
        self._process = subprocess.Popen(
            [str(NODE), str(path), "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._numbers = itertools.count(1)
        self._told: dict[str, list[dict[str, Any]]] = {}
        self.folder = folder
        capabilities = {"textDocument": {"completion": {"completionItem": {"documentationFormat": ["markdown"]}}}}
        self.ask("initialize", {"processId": None, "rootUri": folder.as_uri(), "capabilities": capabilities})
        self._send({"method": "initialized", "params": {}})
        settings = {"yaml": {"validate": True, "hover": True, "completion": True, "schemaStore": {"enable": False}}}
        self._send({"method": "workspace/didChangeConfiguration", "params": {"settings": settings}})

    def open(self, text: str) -> str:
        """Open a card under a name of its own."""
        uri = (self.folder / f"card-{next(self._numbers)}.yml").as_uri()
        document = {"uri": uri, "languageId": "yaml", "version": 1, "text": text}
        self._send({"method": "textDocument/didOpen", "params": {"textDocument": document}})
        return uri

    def problems(self, uri: str) -> list[dict[str, Any]]:
        while uri not in self._told:
            self._handle(self._read())
        return self._told[uri]

    def at(self, method: str, uri: str, line: int, character: int) -> Any:
        position = {"line": line, "character": character}
        return self.ask(f"textDocument/{method}", {"textDocument": {"uri": uri}, "position": position})

    def ask(self, method: str, params: Any) -> Any:
        number = next(self._numbers)
        self._send({"id": number, "method": method, "params": params})
        while True:
            message = self._read()
            if message.get("id") == number and "method" not in message:
                return message.get("result")
            self._handle(message)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _handle(self, message: dict[str, Any]) -> None:
        if message.get("method") == "textDocument/publishDiagnostics":
            self._told[message["params"]["uri"]] = message["params"]["diagnostics"]
        elif (
            "id" in message and "method" in message
        ):  # the server asks: for settings it gets none beyond what it was told
            asked = message["params"].get("items", []) if isinstance(message.get("params"), dict) else []
            settings = {"validate": True, "hover": True, "completion": True, "schemaStore": {"enable": False}}
            answers = [settings if item.get("section") == "yaml" else None for item in asked]
            self._send({"id": message["id"], "result": answers or None})

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        length = 0
        while (line := self._process.stdout.readline().strip()) or not length:
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        message: dict[str, Any] = json.loads(self._process.stdout.read(length))
        return message


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("cards")
    shutil.copy(ROOT / "model_cards/card.schema.json", folder)
    opened = Server(folder)
    yield opened
    opened.close()


CARD = (TINY / "model_cards/alpha.yml").read_text("utf-8")


@needs_node_tools
def test_the_server_finds_nothing_wrong_with_a_good_card(server: Server) -> None:
    assert server.problems(server.open(CARD)) == []


@needs_node_tools
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("purpose: Finds", "purpse: Finds", "purpse"),
        ("{type: inproceedings", "{type: inproceeding", "preprint"),
        ("    because: The margin is measured.", "    becuase: The margin is measured.", "becuase"),
        ("arxiv: \"2001.00001\"", "arxiv: arXiv:2001.00001", "pattern"),
    ],
)  # fmt: skip
def test_the_server_shows_a_mistake_where_it_stands(old: str, new: str, said: str, server: Server) -> None:
    assert CARD.count(old) == 1
    text = CARD.replace(old, new)
    found = server.problems(server.open(text))
    line = text[: text.index(new)].count("\n")
    assert any(said in problem["message"] for problem in found), found
    assert line in {problem["range"]["start"]["line"] for problem in found} or said == "purpse"


@needs_node_tools
def test_the_server_completes_fields_with_their_help_and_values(server: Server) -> None:
    text = "# yaml-language-server: $schema=card.schema.json\nname: X\nfamily: \nlicences:\n  co\nreferences:\n  x:\n    type: \n"
    uri = server.open(text)
    kinds = {item["label"] for item in server.at("completion", uri, 7, 10)["items"]}
    assert {"article", "preprint", "software"} <= kinds
    inner = {item["label"]: item for item in server.at("completion", uri, 4, 4)["items"]}
    assert "SPDX id of the official code" in json.dumps(inner["code"]["documentation"])
    top = {item["label"] for item in server.at("completion", uri, 8, 0)["items"]}
    assert {"purpose", "concept", "pros", "cons"} <= top


@needs_node_tools
def test_the_server_explains_a_field_under_the_pointer(server: Server) -> None:
    uri = server.open(CARD)
    line = CARD[: CARD.index("purpose:")].count("\n")
    assert "What it is for, one or two sentences." in json.dumps(server.at("hover", uri, line, 2))
