"""Numbers keep every digit on their way through CCXT, and what is no answer stops there."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from exchange_service_ccxt_generic.exact import exact_json
from hypothesis import given
from hypothesis import strategies as st

from exchange_service.plugin_api import VenueMalformed, parse_amount

DIGITS = st.text("0123456789", min_size=1, max_size=30)


@given(whole=st.integers(0, 10**30), fraction=DIGITS, sign=st.sampled_from(["", "-"]))
def test_a_bare_number_keeps_every_digit(whole: int, fraction: str, sign: str) -> None:
    text = f"{sign}{whole}.{fraction}"
    value = exact_json(f'{{"free": {text}}}')["free"]
    assert value == text
    assert parse_amount(value, "free") == Decimal(text)


@given(st.integers(-(10**98), 10**98))
def test_a_bare_integer_keeps_every_digit(number: int) -> None:
    assert exact_json(f"[{number}]") == [number]


WORDS = st.text('abcé \n"{[')
JSON = st.recursive(st.none() | st.booleans() | WORDS, lambda inner: st.lists(inner) | st.dictionaries(DIGITS, inner))


@given(JSON)
def test_what_is_no_number_comes_through_as_it_is(value: object) -> None:
    assert exact_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html>",
        '{"a": 1',
        '{"a": NaN}',
        "[Infinity]",
        "[-Infinity]",
        '{"a": 1, "a": 2}',
        "[1e400]",
        "[1e999999999]",
        '{"free": "1e999999999"}',
        '["exchange", [["BTC", "1e999999999"]]]',
        '{"rows": [["BTC", "\\u0031e999999999"]]}',
        f"[{'9' * 101}]",
        pytest.param("[" * 100_000, id="nested too deep"),
    ],
)
def test_what_is_no_exact_json_is_refused(body: str) -> None:
    with pytest.raises(VenueMalformed):
        exact_json(body)


def test_an_id_that_looks_like_a_number_is_left_alone() -> None:
    assert exact_json('{"id": "548e4753"}') == {"id": "548e4753"}
