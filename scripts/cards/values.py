"""The values that a card is written in: names, lines, prose, and numbers as they are printed."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator
from pydantic_core import core_schema

SLUG = r"^[a-z0-9]+(-[a-z0-9]+)*$"

Slug = Annotated[str, StringConstraints(pattern=SLUG, max_length=60)]

Name = Annotated[str, StringConstraints(pattern=r"^[^<>{}`|\\\x00-\x1f\u202a-\u202e\u2066-\u2069]+$", max_length=120)]

Line = Annotated[str, StringConstraints(min_length=1, max_length=600, pattern=r"^[^\n]*\n?$", strip_whitespace=True)]

Prose = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]

Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=60)]

NumberRef = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_.-]+){1,3}$", max_length=160)]

Url = Annotated[
    str, StringConstraints(pattern=r"^https://[A-Za-z0-9][A-Za-z0-9.-]*(:\d+)?(/[^\s<>\"'`{}|\\^]*)?$", max_length=400)
]

Doi = Annotated[str, StringConstraints(pattern=r"^10\.\d{4,9}/[^\s<>\"'`{}|\\^]+$", max_length=200)]

Arxiv = Annotated[str, StringConstraints(pattern=r"^(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})$")]

Build = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+/[A-Za-z0-9_.:/-]+$")]
Size = Annotated[str, StringConstraints(pattern=r"^\d{1,7}( x \d{1,7}){1,3}$")]

HINTS = {
    "url": "is no address: it starts with https:// and holds no blanks, quotes, braces or angle brackets",
    "code": "is no address: it starts with https:// and holds no blanks, quotes, braces or angle brackets",
    "doi": "is no DOI, write it without the resolver's address: 10.1007/978-3-030-58452-8_13",
    "arxiv": 'is no arXiv id, write the number alone, in quotes: "2005.12872"',
    "build": "is no model to count, write library/model: timm/vit_base_patch16_224",
    "input": "is no input size, write for example 224 x 224",
    "name": "is no name: no line break and none of < > { } ` | \\",
    "claim": "has to be one line",
    "choose": "is no slug: small letters, digits and single hyphens",
    "card": "is no slug: small letters, digits and single hyphens",
    "number": "is no reference to a number, write variant/metric",
}
"""What to tell an editor whose text has not the form that a field of this name wants."""

SI = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

QUANTITY = re.compile(r"^(-?(?:0|[1-9]\d{0,14})(?:\.\d{1,9})?)(?: ?([kMGT]))?$")

MOST = 100
"""Entries of a list of a card at most; of the references and variants, three times as many."""


class Model(BaseModel):
    """A frozen part of a card that knows no other keys than its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class OneOrMore:
    """Lets a single value stand for a list of one, in a card and in its JSON Schema."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_before_validator_function(self._as_list, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, object]:
        many = handler(schema)
        return {"anyOf": [many["items"], many]}

    @staticmethod
    def _as_list(value: Any) -> Any:
        return [value] if isinstance(value, dict | BaseModel) else value


class Quantity(Model):
    """A published number as it is printed: `42.0`, `41 M`, `15.4 G`."""

    printed: str
    value: float

    @model_validator(mode="before")
    @classmethod
    def from_printed(cls, data: Any) -> Any:
        """Read `41 M` as 41e6.

        Raises:
            ValueError: if the text is not a number with an optional k, M, G or T.
        """
        if isinstance(data, dict | Quantity):
            return data
        match = QUANTITY.match(str(data).strip()) if not isinstance(data, bool) else None
        if match is None:
            if data is None:
                raise ValueError(
                    "there is no number here; a decimal point is a point (42.5), a comma ends the value before it"
                )
            raise ValueError(f"{str(data)[:60]!r} is not a number, write for example 42.0 or 41 M")
        return {"printed": match[0], "value": float(match[1]) * SI[match[2] or ""]}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, object]:
        return {
            "anyOf": [{"type": "number"}, {"type": "string", "pattern": QUANTITY.pattern}],
            "examples": [42.0, "41 M"],
        }


ResultRef = Annotated[str, StringConstraints(pattern=r"^([a-z0-9-]+/)?[a-z][a-z0-9_]*$", max_length=120)]


def si(value: float) -> str:
    """`15.4 G` for 15.4e9: three significant digits."""
    for suffix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {suffix}" if abs(value) < 1000 * size else f"{value / size:.0f} {suffix}"
    return f"{value:.3g}"


def size_of(text: str) -> tuple[int, ...]:
    """(800, 1066) for `800 x 1066`."""
    return tuple(int(part) for part in text.split(" x "))
