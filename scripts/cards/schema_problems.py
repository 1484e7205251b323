"""What the schema found wrong with a card, told to the person who wrote it."""

from __future__ import annotations

import re
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from scripts.cards.problems import Path_, Problem, Source, nearest
from scripts.cards.schema import Card
from scripts.cards.values import HINTS

EXPECTED = re.compile("'([^']+)'")


def more_problems(path: str, count: int) -> list[Problem]:
    """That there are more than are told, if there are."""
    return [Problem(path, 1, 1, f"and {count:,} more problems of this card")] if count > 0 else []


def telling(error: ValidationError) -> list[Any]:
    """One error per place: each branch of a union gives one, and a list whose entry is wrong counts as too short."""
    first: dict[Path_, Any] = {}
    for detail in error.errors(include_url=False):
        first.setdefault(_place_in_card(detail), detail)
    holding = {where[:i] for where in first for i in range(len(where))}
    return [detail for where, detail in first.items() if detail["type"] != "too_short" or where not in holding]


def _place_in_card(detail: Any) -> Path_:
    return tuple(part for part in detail["loc"] if not _is_branch(part))


def problem_of(detail: Any, source: Source, form: type[BaseModel] = Card) -> Problem:
    where = _place_in_card(detail)
    name = ".".join(map(str, where))
    match detail["type"]:
        case "missing":
            message = f"the field {where[-1]!r} is missing" + (
                f" in {'.'.join(map(str, where[:-1]))}" if where[1:] else ""
            )
        case "extra_forbidden":
            message = f"unknown field {where[-1]!r}{nearest(str(where[-1]), _fields_at(where[:-1], form))}"
        case "string_pattern_mismatch" if where == ("slug",):
            message = "a card's file name is its slug: small letters, digits and single hyphens"
        case "string_pattern_mismatch" if (hint := HINTS.get(str(where[-1]))) is not None:
            message = f"{name}: {str(detail['input'])[:80]!r} {hint}"
        case "too_long":
            most = detail["ctx"]["max_length"]
            message = f"{name}: more than {most} entries; split the card"
        case "literal_error":
            message = f"{name}: {detail['msg']}{nearest(str(detail['input']), EXPECTED.findall(detail['msg']))}"
        case "tuple_type":
            message = f"{name}: this is a list, write [{_short(detail)}]"
        case "int_parsing" | "int_type" | "int_from_float":
            message = f"{name}: {_short(detail)!r} is no whole number, write for example 2020"
        case "float_parsing" | "float_type":
            message = f"{name}: {_short(detail)!r} is no number, write for example 0.5"
        case "bool_parsing" | "bool_type":
            message = f"{name}: {_short(detail)!r} is neither true nor false"
        case "string_type" | "missing_value" if detail["input"] is None:
            message = f"{name}: there is no value here; write one, or leave the field out"
        case "string_type":
            message = f"{name}: this is a text, not a {type(detail['input']).__name__}; write it in quotes"
        case kind if kind.startswith("date_"):
            message = f"{name}: {str(detail['input'])[:60]!r} is not a date, write for example 2026-11-22"
        case _:
            message = f"{name}: {detail['msg'].removeprefix('Value error, ')}"
    return source.problem(where, message)


def _short(detail: Any) -> str:
    return str(detail["input"])[:60]


def _is_branch(part: str | int) -> bool:
    """Pydantic names the branch of a union in a location ('constrained-str', 'Quantity'): no part of the card."""
    return isinstance(part, str) and (part in {"Quantity", "float"} or part.startswith(("constrained-", "function-")))


def _fields_at(where: Path_, form: type[BaseModel] = Card) -> list[str]:
    """Field names (as an editor writes them) of the model that stands at `where` of a card."""
    here: Any = form
    inside_container = False
    for part in where:
        if inside_container:  # an index or an id, no field
            inside_container = False
        elif isinstance(here, type) and issubclass(here, BaseModel) and part in here.model_fields:
            annotation = here.model_fields[str(part)].annotation
            inside_container = typing.get_origin(annotation) in (tuple, dict)
            here = _inner_model(annotation)
    if not (isinstance(here, type) and issubclass(here, BaseModel)):
        return []
    return [info.alias or name for name, info in here.model_fields.items() if name != "slug"]


def _inner_model(annotation: Any) -> Any:
    """The model inside `tuple[Claim, ...]`, `dict[str, Variant]` or `Cite | None`."""
    if typing.get_origin(annotation) in (tuple, dict, types.UnionType, typing.Union):
        inner = [_inner_model(a) for a in typing.get_args(annotation)]
        return next((a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)), None)
    return annotation
