"""JSON in which every number keeps its digits: CCXT computes with texts, so numbers become texts. No CCXT here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

from exchange_service.plugin_api import VenueMalformed, parse_amount

_MAX_DIGITS = 100
# CCXT computes with texts, and from the text 1e999999999 it would build a number with that many digits.
# The pattern never backtracks, because the text may be megabytes of digits.
_HUGE_EXPONENT = re.compile(r"\s*+[+-]?[\d.]++[eE][+-]?\d{3,}+\s*+\Z")
# Every body with such a text matches one of these, unless the body has escapes. There are two patterns, because a
# pattern that begins with one letter is searched many times faster than one that begins with a choice.
_SMALL_E, _LARGE_E = re.compile(r"e[+-]?[0-9]{3}"), re.compile(r"E[+-]?[0-9]{3}")
# Fields with names that end so hold hexadecimal digits, which may look like such a number.
_NAMES = ("id", "hash", "address", "key", "nonce", "code")


def _read_fraction(text: str) -> str:
    parse_amount(text, "a number")
    return text.lower()


def _read_integer(text: str) -> int:
    # An integer keeps its digits, and CCXT's classes compare codes with integers.
    if len(text) > _MAX_DIGITS:
        raise VenueMalformed("The answer holds a number that is too long.")
    return int(text)


def _reject_constant(name: str) -> NoReturn:
    raise VenueMalformed(f"The answer holds {name}, which is not a number.")


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise VenueMalformed("The answer has a field twice.")
    return result


def _build_bounded_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; VenueMalformed if one of its fields holds a huge number."""
    for name, value in pairs:
        if _is_huge(value) and not name.lower().endswith(_NAMES):
            raise VenueMalformed("The answer holds a number that is too large.")
    return _build_object(pairs)


def _is_huge(value: Any) -> bool:
    """Whether it is a huge number, or a list that holds one. Objects are checked when they are built."""
    if type(value) is list:
        return any(map(_is_huge, value))
    return type(value) is str and _HUGE_EXPONENT.match(value) is not None


def _make_decoder(build_object: Callable[[list[tuple[str, Any]]], dict[str, Any]]) -> json.JSONDecoder:
    return json.JSONDecoder(
        parse_float=_read_fraction,
        parse_int=_read_integer,
        parse_constant=_reject_constant,
        object_pairs_hook=build_object,
    )


_BEGINNINGS = ("{", "[")
# For bodies without a huge number, for all others, and for bodies that one of these two has read before.
_PLAIN, _THOROUGH = _make_decoder(_build_object), _make_decoder(_build_bounded_object)
_KNOWN = json.JSONDecoder(parse_float=str.lower)


def _decode(decoder: json.JSONDecoder, body: str) -> Any:
    if body[:1] in _BEGINNINGS:
        # Faster, because there are rarely blanks around the value to look for.
        value, end = decoder.raw_decode(body)
        if end == len(body):
            return value
    return decoder.decode(body)


def exact_json(body: str) -> Any:
    """The JSON value of a body. A number with a point or an exponent becomes a text and keeps every digit.

    Raises VenueMalformed if the body is not JSON, or holds NaN, an infinity, a repeated field or a huge number.
    """
    try:
        if body.isascii() and "\\" not in body and not _SMALL_E.search(body) and not _LARGE_E.search(body):
            return _decode(_PLAIN, body)
        value = _THOROUGH.decode(body)
        huge = _is_huge(value)
    except (ValueError, RecursionError):
        raise VenueMalformed("The answer is not JSON.") from None
    if huge:
        raise VenueMalformed("The answer holds a number that is too large.")
    return value


def reread_json(body: str) -> Any:
    """The JSON value of a body that `exact_json` has read before. Raises VenueMalformed as it does."""
    try:
        return _decode(_KNOWN, body)
    except (ValueError, RecursionError):
        raise VenueMalformed("The answer is not JSON.") from None
