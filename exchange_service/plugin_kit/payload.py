"""Reading a venue's answer strictly: exact numbers and the expected shape, or `VenueMalformed`.

With these functions a malformed answer never becomes a balance: a missing list is not an empty one, NaN is not a
number, and a bare JSON number keeps every digit. `where` is the path in the payload, for the error's message.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Hashable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, Decimal
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from exchange_service.errors import VenueMalformed
from exchange_service.model import WrongType

# No venue states an amount with more digits than this. A longer one is an attack or a bug.
_MAX_DIGITS = 100
# A larger exponent would fill memory when the amount is written out without one.
_MAX_EXPONENT = 60
# What opens and separates the values of JSON: a body has at most one value more than these characters.
_MARKS = (b",", b":", b"[", b"{")
# Seconds. After a longer delay the venue is asked again anyway: if it still limits us, it says so again.
_MAX_RETRY_AFTER = 300.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The end of the year 9999, the last year that a datetime can hold.
_LAST_MILLISECOND = 253_402_300_799_999
_LAST_SECOND = 253_402_300_800
_MICROSECOND = Decimal("0.000001")
_SECONDS = re.compile(r"\d{1,12}(\.\d{1,30})?\Z", re.ASCII)
_ISO_TIME = re.compile(
    r"\d{4}-\d\d-\d\d[T ]([01]\d|2[0-3]):\d\d(:\d\d([.,]\d{1,9})?)?(?P<zone>Z|[+-]\d\d(:?\d\d)?)?\Z", re.ASCII
)
# Nearly every amount. A text this short without an exponent is within all bounds, so nothing else is checked.
_PLAIN_NUMBER = re.compile(r"-?\d{1,40}(\.\d{1,40})?\Z", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?\Z", re.ASCII)


def _reject_constant(name: str) -> NoReturn:
    raise VenueMalformed(f"The answer holds {name}, which is not a number.")


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise VenueMalformed("The answer has a field twice.")
    return result


def _parse_integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise VenueMalformed("The answer holds a number that is too long.")
    return int(digits)


def _parse_fraction(digits: str) -> Decimal:
    # A function of Python's, and not Decimal itself: between two of them another thread may run.
    return Decimal(digits)


def count_marks(body: bytes) -> int:
    """How many commas, colons and opening brackets a body has, those in texts included: a bound on its JSON values.

    Counting takes a millisecond for a mebibyte, and the values would take fifty times as long, and a hundred times the
    memory of the body.
    """
    return sum(map(body.count, _MARKS))


def parse_json(body: bytes | str) -> Any:
    """The JSON value of a body. A number with a point or an exponent becomes a `Decimal` and keeps every digit.

    Raises VenueMalformed if the body is not JSON (a page, an empty or truncated body) or holds NaN, Infinity or a
    repeated key.
    """
    try:
        text = body.decode("utf-8-sig") if isinstance(body, bytes) else body
        return json.loads(
            text,
            parse_float=_parse_fraction,
            parse_int=_parse_integer,
            parse_constant=_reject_constant,
            object_pairs_hook=_build_object,
        )
    except (ValueError, RecursionError, ArithmeticError):
        raise VenueMalformed("The answer is not JSON.") from None


def as_object(value: Any, where: str) -> Mapping[str, Any]:
    """`value` itself, if it is a JSON object. Raises VenueMalformed if it is not."""
    if not isinstance(value, dict):
        raise VenueMalformed(f"{where} should be an object but is {_describe(value)}.")
    return value


def as_list(value: Any, where: str) -> list[Any]:
    """`value` itself, if it is a JSON list. Raises VenueMalformed if it is not; a missing list is not an empty one."""
    if not isinstance(value, list):
        raise VenueMalformed(f"{where} should be a list but is {_describe(value)}.")
    return value


def text(source: Mapping[str, Any], key: str, where: str, *, required: bool = True) -> str:
    """The text at `key`. If it is absent, null or empty: "" when it is not required, otherwise VenueMalformed.

    Raises VenueMalformed for any value that is not a text.
    """
    value = source.get(key)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or (required and not value):
        raise VenueMalformed(f"{where}.{key} should be a text but is {_describe(value)}.")
    return value


def amount(source: Mapping[str, Any], key: str, where: str) -> Decimal | None:
    """The amount at `key`, in the unit that the venue uses; None if it is missing, null or an empty text.

    Takes texts and bare numbers. Raises VenueMalformed for a boolean, any other text, NaN or an infinity.
    """
    return parse_amount(source.get(key), f"{where}.{key}")


def required_amount(source: Mapping[str, Any], key: str, where: str) -> Decimal:
    """The amount at `key`. Raises VenueMalformed as `amount` does, and if it is missing, null or an empty text."""
    value = amount(source, key, where)
    if value is None:
        raise VenueMalformed(f"{where}.{key} is missing.")
    return value


def parse_amount(value: Any, where: str) -> Decimal | None:
    """The amount with every digit that the venue sent; None if it is None or an empty text.

    Raises VenueMalformed if `value` is not an amount, has over 100 digits, or an exponent beyond plus or minus 60.
    """
    if value is None or value == "":
        return None
    if type(value) is str and _PLAIN_NUMBER.match(value):
        return Decimal(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        raise VenueMalformed(f"{where} should be an amount but is {_describe(value)}.")
    if isinstance(value, str) and (len(value) > _MAX_DIGITS or not _NUMBER.match(value)):
        raise VenueMalformed(f"{where} should be an amount but is another text.")
    number = Decimal(value)
    if not number.is_finite() or len(number.as_tuple().digits) > _MAX_DIGITS:
        raise VenueMalformed(f"{where} is not a finite number.")
    exponent = number.as_tuple().exponent
    if number.adjusted() > _MAX_EXPONENT or not isinstance(exponent, int) or exponent < -_MAX_EXPONENT:
        raise VenueMalformed(f"{where} is too large or too small to be an amount.")
    return number


def milliseconds(source: Mapping[str, Any], key: str, where: str) -> datetime | None:
    """The time at `key`, given in milliseconds since 1970, as a datetime in UTC, for information alone.

    Takes numbers and texts of digits. None for anything else and for 0, because a balance is true without its time.
    """
    try:
        return required_milliseconds(source, key, where)
    except VenueMalformed:
        return None


def required_milliseconds(source: Mapping[str, Any], key: str, where: str) -> datetime:
    """The time at `key` as `milliseconds` reads it, where something depends on it: when a key ends, a venue's clock.

    Raises VenueMalformed if it is missing, 0, after the year 9999, or no time in milliseconds.
    """
    value = source.get(key)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if type(value) is not int or not 0 < value <= _LAST_MILLISECOND:
        raise VenueMalformed(f"{where}.{key} should be a time in milliseconds but is {_describe(value)}.")
    return _EPOCH + timedelta(milliseconds=value)


def seconds(source: Mapping[str, Any], key: str, where: str) -> datetime | None:
    """The time at `key`, given in seconds since 1970, as a datetime in UTC, for information alone.

    Takes numbers and texts of digits, both also with a fraction, which is cut to microseconds. None for anything else
    and for 0, because a balance is true without its time.
    """
    try:
        return required_seconds(source, key, where)
    except VenueMalformed:
        return None


def required_seconds(source: Mapping[str, Any], key: str, where: str) -> datetime:
    """The time at `key` as `seconds` reads it, where something depends on it: when a key ends, a venue's clock.

    Raises VenueMalformed if it is missing, 0, after the year 9999, or no time in seconds, such as one in milliseconds.
    """
    value: Any = source.get(key)
    if isinstance(value, str) and _SECONDS.match(value):
        value = Decimal(value)
    if type(value) not in (int, Decimal) or not _MICROSECOND <= value < _LAST_SECOND:
        raise VenueMalformed(f"{where}.{key} should be a time in seconds but is {_describe(value)}.")
    exact = Decimal(value).quantize(_MICROSECOND, ROUND_DOWN)
    return _EPOCH + timedelta(microseconds=int(exact * 1_000_000))


def iso_time(source: Mapping[str, Any], key: str, where: str) -> datetime | None:
    """The time at `key`, given in ISO 8601 with its zone, as a datetime in UTC, for information alone.

    Takes texts such as "2026-01-02T03:04:05.123456789Z" and "2026-01-02 03:04+01:00"; a fraction of up to nine digits
    is cut to microseconds. None for anything else, for a text without a zone, which could be of any, and for a time
    before 1970, because a balance is true without its time.
    """
    try:
        return required_iso_time(source, key, where)
    except VenueMalformed:
        return None


def required_iso_time(source: Mapping[str, Any], key: str, where: str) -> datetime:
    """The time at `key` as `iso_time` reads it, where something depends on it: when a key ends, a venue's clock.

    Raises VenueMalformed if it is missing, before 1970, or no such time.
    """
    value = source.get(key)
    found = _ISO_TIME.match(value.upper()) if isinstance(value, str) else None
    if found is None:
        raise VenueMalformed(f"{where}.{key} should be a time in ISO 8601 but is {_describe(value)}.")
    if found["zone"] is None:
        raise VenueMalformed(f"{where}.{key} should be a time with its zone, but names none.")
    try:
        when = datetime.fromisoformat(found[0]).astimezone(UTC)
    except (ValueError, OverflowError):
        when = _EPOCH
    if when <= _EPOCH:
        raise VenueMalformed(f"{where}.{key} should be a time in ISO 8601 but names no time after 1970.")
    return when


def check_unique(names: Iterable[Hashable], message: str) -> None:
    """Raise VenueMalformed with `message` if one of the names occurs twice.

    Call it for lists of accounts and of assets: an account that is read twice counts twice in a summary, and if one
    asset has two rows, it is unknown which is right.
    """
    seen = list(names)
    if len(set(seen)) != len(seen):
        raise VenueMalformed(message)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The delay in seconds that the Retry-After header asks for, at most 300; None if it is absent or unreadable.

    The header may hold a number or a date. Its name is compared without regard to case.
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


def _describe(value: Any) -> str:
    if value is None:
        return "missing"
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    if inspect.isawaitable(value):
        # The plugin's mistake, which must not be told as one of the venue.
        kind = type(value).__name__[:64]
        raise WrongType(f"a {kind} was read in place of a venue's answer: write `await` before the call that makes it")
    return kinds.get(type(value), "a number")
