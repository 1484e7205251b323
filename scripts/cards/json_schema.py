"""What an editor knows of a card: the JSON Schema behind completion, help and checks while one types."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from scripts.cards.schema import Card
from scripts.cards.vocabulary import Vocabulary


def card_schema(words: Vocabulary) -> str:
    """The JSON Schema of a card as text, with a description and examples for every field, and the shelves and tasks there are."""
    made = Card.model_json_schema(by_alias=True)
    made["title"] = "Model card"
    made["$defs"]["Quantity"]["description"] = "A number as it is printed: 42.0, 41 M, 15.4 G."
    made["$defs"]["Row"]["additionalProperties"]["description"] = "Metric of _vocabulary.yml: its value as printed."
    made["properties"]["family"]["enum"] = sorted(words.families)
    made["properties"]["tasks"]["items"]["enum"] = sorted(words.tasks)
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}
    return json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each field of the schema: (part of the card, name, its schema)."""
    for part, form in {"Card": schema, **schema["$defs"]}.items():
        for name, field in form.get("properties", {}).items():
            yield part, name, field
