"""Reading a venue's answer: exact numbers, the expected shape, or an error."""

from __future__ import annotations

import contextlib
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange_service.amounts import format_amount
from exchange_service.errors import VenueMalformed, VenueUnavailable
from exchange_service.model import WrongType
from exchange_service.plugin_kit.payload import (
    amount,
    as_list,
    as_object,
    check_unique,
    count_marks,
    iso_time,
    milliseconds,
    parse_amount,
    parse_json,
    required_amount,
    required_iso_time,
    required_milliseconds,
    required_seconds,
    seconds,
    text,
)
from exchange_service.plugin_kit.responses import raise_unexpected_status

ON_THE_WIRE = re.compile(r"-?\d+(\.\d+)?")

whole_digits = st.text("0123456789", min_size=1, max_size=15).map(lambda digits: digits.lstrip("0") or "0")
amount_texts = st.builds(
    lambda sign, whole, fraction: sign + whole + ("." + fraction if fraction else ""),
    st.sampled_from(["", "-"]),
    whole_digits,
    st.text("0123456789", max_size=15),
)
finite_decimals = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**40), max_value=10**40, places=None)


@given(amount_texts)
def test_every_digit_of_a_text_survives(written: str) -> None:
    number = parse_amount(written, "here")
    assert number is not None
    assert format_amount(number) == written


@given(amount_texts)
def test_every_digit_of_a_bare_number_survives(written: str) -> None:
    source = parse_json(f'{{"total": {written}}}')
    number = required_amount(source, "total", "account")
    # JSON has no integer "-0" other than 0.
    assert format_amount(number) == (written if written != "-0" else "0")


@given(finite_decimals)
def test_an_amount_is_written_without_exponent_and_without_plus(number: Decimal) -> None:
    written = format_amount(number)
    assert ON_THE_WIRE.fullmatch(written)
    assert Decimal(written) == number


@pytest.mark.parametrize(
    ("written", "expected"),
    [("1E+3", "1000"), ("1e-18", "0.000000000000000001"), ("-2.50e1", "-25.0"), ("0E-8", "0.00000000"), ("+7", "7")],
)
def test_an_exponent_becomes_plain_digits(written: str, expected: str) -> None:
    number = parse_amount(written, "here")
    assert number is not None
    assert format_amount(number) == expected


@given(st.text(max_size=20))
def test_any_text_is_an_amount_or_is_refused(written: str) -> None:
    try:
        number = parse_amount(written, "here")
    except VenueMalformed:
        return
    assert number is None or number.is_finite()
    assert (number is None) == (written == "")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_any_json_value_is_read_or_is_malformed(value: Any) -> None:
    try:
        read = parse_json(json.dumps(value))
        parse_amount(read, "here")
    except VenueMalformed:
        return
    assert read is None or read == "" or isinstance(read, str | int | Decimal)


@given(st.binary(max_size=40))
def test_any_bytes_are_json_or_malformed(body: bytes) -> None:
    # Any other exception fails the test.
    with contextlib.suppress(VenueMalformed):
        parse_json(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"<html></html>",
        b"OK",
        b'{"a": 1',
        b'{"a": 1}}',
        b"{'a': 1}",
        b"NaN",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b"\xff\xfe",
        b"[" * 100_000,
        b"9" * 5000,
        b"1e99999999999999999999",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_not_one_json_value_with_real_numbers_is_malformed(body: bytes) -> None:
    with pytest.raises(VenueMalformed):
        parse_json(body)


def test_a_byte_order_mark_does_no_harm() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_bare_numbers_are_exact() -> None:
    read = parse_json(b'{"a": 18450.2700000000000000, "b": 0.1, "c": 7}')
    assert str(read["a"]) == "18450.2700000000000000"
    assert read["b"] == Decimal("0.1")
    assert type(read["c"]) is int


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_amount_is_none_and_not_zero(value: Any) -> None:
    assert amount({"total": value}, "total", "account") is None
    assert amount({}, "total", "account") is None


@pytest.mark.parametrize("source", [{}, {"total": None}, {"total": ""}])
def test_a_required_amount_must_be_given(source: dict[str, Any]) -> None:
    with pytest.raises(VenueMalformed, match=r"account\.total"):
        required_amount(source, "total", "account")


@pytest.mark.parametrize(
    "value",
    [True, False, 1.5, [], {}, "NaN", "-Infinity", "1,5", "1_000", "0x10", " 1", "1\n", "١", "1e400", "1e-61", "1e61"],
    ids=repr,
)
def test_a_value_that_is_not_an_amount_is_malformed_and_the_message_names_its_path(value: Any) -> None:
    with pytest.raises(VenueMalformed, match=r"account\.total"):
        amount({"total": value}, "total", "account")


@pytest.mark.parametrize("value", [Decimal("NaN"), Decimal("Infinity"), Decimal("1e100"), Decimal("9" * 101)])
def test_a_decimal_out_of_bounds_is_malformed_too(value: Decimal) -> None:
    with pytest.raises(VenueMalformed):
        parse_amount(value, "here")


def test_the_message_does_not_repeat_the_value() -> None:
    with pytest.raises(VenueMalformed) as malformed:
        parse_amount("card 4111 1111", "here")
    assert "4111" not in malformed.value.message


def test_an_await_that_is_missing_is_not_told_as_a_malformed_answer() -> None:
    async def answer() -> dict[str, int]:
        return {"a": 1}

    for read in (as_object, as_list):
        unread = answer()
        with pytest.raises(WrongType, match="write `await` before the call"):
            read(unread, "here")
        unread.close()


def test_as_object_accepts_objects_alone() -> None:
    assert as_object({"a": 1}, "here") == {"a": 1}
    for value in (None, [], "", 0, True):
        with pytest.raises(VenueMalformed, match="here should be an object"):
            as_object(value, "here")


def test_a_missing_list_is_not_an_empty_one() -> None:
    assert as_list([], "here") == []
    for value in (None, {}, "", 0, True):
        with pytest.raises(VenueMalformed, match="here should be a list"):
            as_list(value, "here")


def test_text_accepts_texts_alone() -> None:
    assert text({"id": "7"}, "id", "account") == "7"
    for source in ({}, {"id": None}, {"id": ""}, {"id": 7}, {"id": ["7"]}):
        with pytest.raises(VenueMalformed, match=r"account\.id"):
            text(source, "id", "account")


def test_a_text_that_is_not_required_may_be_missing_but_not_be_something_else() -> None:
    assert text({}, "alias", "account", required=False) == ""
    assert text({"alias": None}, "alias", "account", required=False) == ""
    assert text({"alias": ""}, "alias", "account", required=False) == ""
    with pytest.raises(VenueMalformed):
        text({"alias": 7}, "alias", "account", required=False)


def test_a_float_is_never_formatted_as_an_amount() -> None:
    with pytest.raises(TypeError, match="float"):
        format_amount(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [1764000000123, "1764000000123"])
def test_a_time_in_milliseconds_is_a_number_or_a_text_of_digits(value: Any) -> None:
    when = datetime(2025, 11, 24, 16, 0, 0, 123000, tzinfo=UTC)
    assert (
        milliseconds({"time": value}, "time", "here") == required_milliseconds({"time": value}, "time", "here") == when
    )


@pytest.mark.parametrize(
    "value", [None, "", 0, "0", "soon", -1, True, 10**25, "9" * 19, [], {}, Decimal("1.5")], ids=str
)
def test_a_time_that_cannot_be_read_is_absent_where_it_informs_and_malformed_where_something_depends_on_it(
    value: Any,
) -> None:
    assert milliseconds({"time": value}, "time", "here") is None
    with pytest.raises(VenueMalformed, match=re.escape("here.time")):
        required_milliseconds({"time": value}, "time", "here")


@pytest.mark.parametrize("value", [1764000000, "1764000000", Decimal("1.764E9"), Decimal("1764000000.0000009")])
def test_a_time_in_seconds_is_a_number_or_a_text_of_digits(value: Any) -> None:
    when = datetime(2025, 11, 24, 16, tzinfo=UTC)
    assert seconds({"time": value}, "time", "here") == required_seconds({"time": value}, "time", "here") == when


@pytest.mark.parametrize("value", ["1764000000.1239999999", Decimal("1764000000.1239999999")])
def test_a_fraction_of_a_second_is_cut_and_never_rounded_up(value: Any) -> None:
    when = datetime(2025, 11, 24, 16, 0, 0, 123999, tzinfo=UTC)
    assert required_seconds({"time": value}, "time", "here") == when


@pytest.mark.parametrize(
    "value",
    [
        *(None, "", 0, "0", "soon", -1, True, 10**25, [], {}, 1764000000123, "1764000000123", "-1", "1e9", " 1", "1."),
        *(Decimal("1E-40"), Decimal("-0.5"), Decimal("1E+60"), "٣"),
    ],
    ids=str,
)
def test_seconds_that_cannot_be_read_are_absent_where_they_inform_and_malformed_elsewhere(value: Any) -> None:
    assert seconds({"time": value}, "time", "here") is None
    with pytest.raises(VenueMalformed, match=re.escape("here.time should be a time in seconds")):
        required_seconds({"time": value}, "time", "here")


@pytest.mark.parametrize("last", [253_402_300_799, "253402300799.9999999"])
def test_the_last_second_that_can_be_told_is_in_the_year_9999(last: Any) -> None:
    assert required_seconds({"time": last}, "time", "here").year == 9999
    assert seconds({"time": 253_402_300_800}, "time", "here") is None


@pytest.mark.parametrize(
    ("value", "microsecond"),
    [
        ("2025-11-24T16:00:00Z", 0),
        ("2025-11-24t16:00:00z", 0),
        ("2025-11-24 16:00Z", 0),
        ("2025-11-24T17:00:00+01:00", 0),
        ("2025-11-24T21:30:00+0530", 0),
        ("2025-11-24T08:00-08", 0),
        ("2025-11-24T16:00:00.1Z", 100_000),
        ("2025-11-24T16:00:00,12Z", 120_000),
        ("2025-11-24T16:00:00.123456Z", 123_456),
        ("2025-11-24T16:00:00.1234567Z", 123_456),
        ("2025-11-24T16:00:00.123999999-00:00", 123_999),
    ],
)
def test_a_time_in_iso_8601_has_its_zone_and_is_told_in_utc(value: str, microsecond: int) -> None:
    when = datetime(2025, 11, 24, 16, 0, 0, microsecond, tzinfo=UTC)
    assert iso_time({"time": value}, "time", "here") == required_iso_time({"time": value}, "time", "here") == when
    assert required_iso_time({"time": value}, "time", "here").tzinfo is UTC


@pytest.mark.parametrize("value", ["2025-11-24T16:00:00", "2025-11-24 16:00:00.123"])
def test_a_time_without_a_zone_is_not_guessed(value: str) -> None:
    assert iso_time({"time": value}, "time", "here") is None
    with pytest.raises(VenueMalformed, match=re.escape("here.time should be a time with its zone, but names none.")):
        required_iso_time({"time": value}, "time", "here")


@pytest.mark.parametrize(
    "value",
    [
        *(None, "", 0, 1764000000, True, [], {}, "soon", "2025-11-24", "16:00:00Z", "2025-W48-1T16:00:00Z"),
        *("2025-11-24T24:00:00Z", "2025-02-30T16:00:00Z", "2025-11-24T16:00:60Z", "2025-11-24T16:00:00.1234567891Z"),
        *("2025-11-24T16:00:00Z\n", " 2025-11-24T16:00:00Z", "2025-11-24T16:00:00+24:00", "0001-01-01T00:00:00Z"),
        *("9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+23:59", "1970-01-01T00:00:00Z", "2025-11-24T1٣:00:00Z"),
    ],
    ids=str,
)
def test_a_text_that_is_no_such_time_is_absent_where_it_informs_and_malformed_elsewhere(value: Any) -> None:
    assert iso_time({"time": value}, "time", "here") is None
    with pytest.raises(VenueMalformed, match=re.escape("here.time should be a time in ISO 8601")):
        required_iso_time({"time": value}, "time", "here")


@given(st.integers(1, 253_402_300_799_999_999 - 86_400_000_000), st.integers(-1439, 1439))
def test_every_time_is_read_to_the_microsecond(microseconds: int, offset: int) -> None:
    when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    there = when.astimezone(timezone(timedelta(minutes=offset)))
    assert required_iso_time({"time": there.isoformat()}, "time", "here") == when
    text = f"{microseconds // 1_000_000}.{microseconds % 1_000_000:06}"
    assert required_seconds({"time": text}, "time", "here") == when
    assert required_seconds({"time": Decimal(text)}, "time", "here") == when


def test_names_that_occur_once_are_unique_and_a_repeated_one_is_malformed() -> None:
    check_unique([], "never raised")
    check_unique(iter(["EUR", "USD"]), "never raised")
    with pytest.raises(VenueMalformed, match=r"^Acme lists an asset twice\.$"):
        check_unique(["EUR", "USD", "EUR"], "Acme lists an asset twice.")


class FakeResponse:
    """A response with a status, and with the error that the host has for it."""

    def __init__(self, status: int, error: Exception | None = None) -> None:
        self.status = status
        self._error = error

    def raise_for_status(self) -> None:
        if self._error is not None:
            raise self._error


def test_a_status_without_an_error_of_its_own_is_malformed_and_named() -> None:
    with pytest.raises(VenueMalformed, match=r"^Acme answered with an unexpected status \(HTTP 204\)\.$"):
        raise_unexpected_status(FakeResponse(204), "Acme")


def test_a_status_with_an_error_of_its_own_raises_that_error() -> None:
    error = VenueUnavailable("It is down.")
    with pytest.raises(VenueUnavailable) as raised:
        raise_unexpected_status(FakeResponse(503, error), "Acme")
    assert raised.value is error


@pytest.mark.parametrize(
    ("body", "marks"),
    [(b"", 0), (b"1", 0), (b"[]", 1), (b"[1,2]", 2), (b'{"a":[1,{}]}', 5), (b'"a,b"', 1), (b"[[],[]]", 4)],
)
def test_the_marks_of_a_body_are_a_bound_on_its_values(body: bytes, marks: int) -> None:
    assert count_marks(body) == marks
