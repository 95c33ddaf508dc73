"""JSON whose numbers keep every character, and whose repeated fields stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Number:
    """A number of a JSON text, as it is written there."""

    text: str


class Members(list[tuple[str, Any]]):
    """The members of a JSON object, in their order."""


Value: TypeAlias = Any


def read(text: str) -> Value:
    """The value of a JSON text: Members, lists, Numbers, texts, booleans and None. Raises ValueError, also for NaN, or
    RecursionError."""
    make: Callable[[str], Number] = Number
    return json.loads(text, parse_float=make, parse_int=make, parse_constant=_refuse, object_pairs_hook=Members)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def write(value: Value, indent: str = "") -> str:
    """The value as JSON on several lines."""
    if isinstance(value, Number):
        return value.text
    inner = f"{indent}  "
    if isinstance(value, Members):
        items = [f"{json.dumps(key, ensure_ascii=False)}: {write(item, inner)}" for key, item in value]
        return _block("{", items, "}", indent)
    if isinstance(value, list):
        return _block("[", [write(item, inner) for item in value], "]", indent)
    return json.dumps(value, ensure_ascii=False)


def _block(opening: str, items: list[str], closing: str, indent: str) -> str:
    if not items:
        return opening + closing
    joined = f",\n{indent}  ".join(items)
    return f"{opening}\n{indent}  {joined}\n{indent}{closing}"
