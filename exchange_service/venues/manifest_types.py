"""Whether every value of a manifest has the type of its field, and how to write it rightly if it has not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from exchange_service.model import ExchangeMetadata, Manifest, PluginSetting, RetiredExchange

# What each type is called in a sentence: one value, and several.
_WORDS = {str: ("a text", "texts"), bool: ("True or False", "truth values"), int: ("a whole number", "numbers")}
# Nearly every value is of one of these, and a manifest may have thousands.
_PLAIN = frozenset(_WORDS)
# A dict with values of each type.
_EXAMPLES = {str: '{"api": "https://api.acme.example"}', int: '{"all": 12}'}
# The longest text that a sentence repeats.
_LONGEST_SHOWN = 40


def wrong_types(manifest: Manifest) -> Iterator[str]:
    """A sentence for each value that is not of its field's type: the field, the value's type and the right form."""
    yield from _in_fields(manifest, "")


def _in_fields(value: Any, path: str) -> Iterator[str]:
    form: Any = type(value)
    for name, kind in _field_types(form).items():
        held = getattr(value, name)
        if not (kind in _PLAIN and type(held) is kind):
            yield from _in_value(held, kind, f"{path}{name}")


@cache
def _field_types(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


def _in_value(value: Any, kind: Any, path: str) -> Iterator[str]:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        parts = [part for part in get_args(kind) if part is not NoneType]
        if value is None and NoneType in get_args(kind):
            return
        if len(parts) == 1:
            yield from _in_value(value, parts[0], path)
        elif type(value) not in parts:
            yield _sentence(path, " or ".join(map(_one, parts)), value) + _exact_number(value)
    elif origin is tuple:
        yield from _in_tuple(value, get_args(kind)[0], path)
    elif origin is Literal:
        if not any(value is choice or (type(value) is str and value == choice) for choice in get_args(kind)):
            yield _sentence(path, " or ".join(f'"{choice}"' for choice in get_args(kind)), value)
    elif origin is Mapping:
        yield from _in_mapping(value, get_args(kind)[1], path)
    elif is_dataclass(kind):
        if type(value) is kind:
            yield from _in_fields(value, f"{path}.")
        else:
            yield _sentence(path, _one(kind), value)
    elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        yield _sentence(path, _one(kind), value) + _unquoted(kind, value)


def _unquoted(kind: Any, value: Any) -> str:
    """What to write in place of a text, for a number or a truth value."""
    return " Write it without quotes." if kind in (int, bool) and isinstance(value, str) else ""


def _exact_number(value: Any) -> str:
    return f' Write Decimal("{value}").' if type(value) is float else ""


def _in_tuple(value: Any, kind: Any, path: str) -> Iterator[str]:
    if type(value) is tuple:
        for place, item in enumerate(value):
            yield from _in_value(item, kind, _place(path, place, item))
        return
    sentence = _sentence(path, f"a tuple of {_several(kind)}", value)
    if isinstance(value, kind):
        shown = f"{kind.__name__}(...)"
        if isinstance(value, str):
            short = len(value) <= _LONGEST_SHOWN and value.isascii() and value.isprintable() and '"' not in value
            shown = f'"{value}"' if short else '"..."'
        yield f"{sentence} A comma is missing: write ({shown},) with a comma before the bracket."
    elif isinstance(value, list | set | frozenset):
        yield f"{sentence} Write (..., ) with round brackets, and a comma also after a single element."
    elif value is None:
        yield f"{sentence} Write () for an empty one."
    else:
        yield sentence


def _place(path: str, place: int, item: Any) -> str:
    """Which element it is; a listing and a setting have their names beside the number, by which an author finds it."""
    name = {ExchangeMetadata: "id", RetiredExchange: "id", PluginSetting: "name"}.get(type(item), "")
    own = getattr(item, name) if name else None
    return f"{path}[{place}]" + (f" ({own[:64]!r})" if isinstance(own, str) else "")


def _in_mapping(value: Any, kind: Any, path: str) -> Iterator[str]:
    if type(value) is not dict:
        advice = " Write {**it}." if isinstance(value, Mapping) else ""
        yield _sentence(path, f"a dict of {_several(kind)}, such as {_EXAMPLES[kind]},", value) + advice
        return
    for name, item in value.items():
        if not isinstance(name, str):
            yield _sentence(f"a key of {path}", "a text", name)
        else:
            yield from _in_value(item, kind, f"{path}[{name[:_LONGEST_SHOWN]!r}]")


def _sentence(path: str, right: str, value: Any) -> str:
    kind = "None" if isinstance(value, NoneType) else f"of the type {type(value).__name__[:_LONGEST_SHOWN]}"
    return f"{path} should be {right} and is {kind}."


def _one(kind: Any) -> str:
    name = kind.__name__
    return _WORDS[kind][0] if kind in _WORDS else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _several(kind: Any) -> str:
    return _WORDS[kind][1] if kind in _WORDS else kind.__name__
