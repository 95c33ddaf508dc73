"""Reading a venue's answer strictly: exact numbers, the expected shape, or `VenueMalformed`.

A plugin's reader uses these so that nonsense never turns into a balance: a missing list is not an empty one, NaN is
not a number, and a bare JSON number keeps every digit. `where` is the path in the payload, for the message.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from exchange_service.errors import VenueMalformed

# No venue states an amount with more digits than this; a longer one is an attack or a bug.
_MAX_DIGITS = 100
# Beyond this size an amount is nonsense, and writing it out in full would be a way to fill memory.
_MAX_EXPONENT = 60
# A venue that asks for a longer pause than this is asked again all the same; it will repeat itself.
_MAX_RETRY_AFTER = 300.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The end of the year 9999, the last that a datetime can hold.
_LAST_MILLISECOND = 253_402_300_799_999
# What nearly every amount looks like; so short a text without an exponent is within all the bounds.
_PLAIN_NUMBER = re.compile(r"-?\d{1,40}(\.\d{1,40})?\Z", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?\Z", re.ASCII)


def _refuse_constant(name: str) -> NoReturn:
    raise VenueMalformed(f"The answer holds {name}, which is no number.")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise VenueMalformed("The answer names a field twice.")
    return result


def _bounded_integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise VenueMalformed("The answer holds a number that is too long.")
    return int(digits)


def parse_json(body: bytes | str) -> Any:
    """The JSON value of a body, with `Decimal` for numbers with a point or exponent, so that no digit is lost.

    Raises VenueMalformed for anything else: HTML, an empty body, a truncated one, NaN, Infinity, a repeated key.
    """
    try:
        text = body.decode("utf-8-sig") if isinstance(body, bytes) else body
        return json.loads(
            text,
            parse_float=Decimal,
            parse_int=_bounded_integer,
            parse_constant=_refuse_constant,
            object_pairs_hook=_unique_keys,
        )
    except (ValueError, RecursionError, ArithmeticError):
        raise VenueMalformed("The answer is not JSON.") from None


def as_object(value: Any, where: str) -> Mapping[str, Any]:
    """`value` as a JSON object, or VenueMalformed."""
    if not isinstance(value, dict):
        raise VenueMalformed(f"{where} should be an object, and is {_kind(value)}.")
    return value


def as_list(value: Any, where: str) -> list[Any]:
    """`value` as a JSON list, or VenueMalformed. A missing list is not an empty one."""
    if not isinstance(value, list):
        raise VenueMalformed(f"{where} should be a list, and is {_kind(value)}.")
    return value


def text(source: Mapping[str, Any], key: str, where: str, *, required: bool = True) -> str:
    """The text at `key`; an absent or null one is VenueMalformed, or "" when it is not required."""
    value = source.get(key)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or (required and not value):
        raise VenueMalformed(f"{where}.{key} should be a text, and is {_kind(value)}.")
    return value


def amount(source: Mapping[str, Any], key: str, where: str) -> Decimal | None:
    """The amount at `key`, or None where the venue does not say: missing, null or an empty text.

    Takes texts and bare numbers; refuses booleans, other texts, NaN and infinities with VenueMalformed.
    """
    return parse_amount(source.get(key), f"{where}.{key}")


def required_amount(source: Mapping[str, Any], key: str, where: str) -> Decimal:
    """The amount at `key`; VenueMalformed where the venue does not say, because then the answer proves nothing."""
    value = amount(source, key, where)
    if value is None:
        raise VenueMalformed(f"{where}.{key} is missing.")
    return value


def parse_amount(value: Any, where: str) -> Decimal | None:
    """One amount with every digit that the venue sent, or None for a missing, null or empty one."""
    if value is None or value == "":
        return None
    if type(value) is str and _PLAIN_NUMBER.match(value):
        return Decimal(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        raise VenueMalformed(f"{where} should be an amount, and is {_kind(value)}.")
    if isinstance(value, str) and (len(value) > _MAX_DIGITS or not _NUMBER.match(value)):
        raise VenueMalformed(f"{where} should be an amount, and is another text.")
    number = Decimal(value)
    if not number.is_finite() or len(number.as_tuple().digits) > _MAX_DIGITS:
        raise VenueMalformed(f"{where} is no finite number.")
    exponent = number.as_tuple().exponent
    if number.adjusted() > _MAX_EXPONENT or not isinstance(exponent, int) or exponent < -_MAX_EXPONENT:
        raise VenueMalformed(f"{where} is too large or too small to be an amount.")
    return number


def milliseconds(source: Mapping[str, Any], key: str, where: str) -> datetime | None:
    """The instant at `key`, counted in milliseconds since 1970; None where the venue does not say: missing, null, 0.

    Takes numbers and texts of digits. One of another unit or size is VenueMalformed: it is no time of today.
    """
    value = source.get(key)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if value is None or value == "" or (type(value) is int and value == 0):
        return None
    if type(value) is not int or not 0 < value <= _LAST_MILLISECOND:
        raise VenueMalformed(f"{where}.{key} should be a time in milliseconds, and is {_kind(value)}.")
    return _EPOCH + timedelta(milliseconds=value)


def format_amount(number: Decimal) -> str:
    """An amount as the wire writes it: optional minus, digits, optional point and digits; never an exponent."""
    if not isinstance(number, Decimal):
        # A float can be formatted too, and has lost its digits before.
        raise TypeError(f"an amount is a Decimal, not {type(number).__name__}")
    return format(number, "f")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The delay that a Retry-After header asks for, in seconds, at most five minutes; None without a usable one.

    The header may hold a number or a date; its name is found in any case.
    """
    value = next((text.strip() for name, text in headers.items() if name.lower() == "retry-after"), "")
    try:
        seconds = float(value)
        if seconds < 0:
            return None
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
            seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
        except (ValueError, OverflowError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), _MAX_RETRY_AFTER)


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return kinds.get(type(value), "a number")
