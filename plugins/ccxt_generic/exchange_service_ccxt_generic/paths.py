"""Values at dotted paths of an answer, and the amounts there."""

from __future__ import annotations

from functools import cache
from typing import Any

from exchange_service.plugin_api import VenueMalformed, parse_amount


def at(value: Any, path: str) -> Any:
    """The value at a dotted path; None if it is missing. "" is the value itself.

    A number is an index of a list, and "only" the single entry of a list.
    """
    for step in _steps(path):
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step == "only":
            value = value[0] if len(value) == 1 else None
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def figure(value: Any) -> Any:
    """The value as an amount; None if it is not an amount, or missing."""
    try:
        return parse_amount(value, "a row")
    except VenueMalformed:
        return None


@cache
def _steps(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()
