"""Numbers keep every digit on their way through CCXT, and what is no answer stops there."""

from __future__ import annotations

import asyncio
import copy
import importlib
import json
from decimal import Decimal
from typing import Any

import pytest
from exchange_service_ccxt_generic import parse
from exchange_service_ccxt_generic.answers import Answer
from exchange_service_ccxt_generic.exact import Exact, Guarded, make_layered_class
from exchange_service_ccxt_generic.exact_json import exact_json
from exchange_service_ccxt_generic.instances import import_ccxt
from hypothesis import given
from hypothesis import strategies as st

from exchange_service.plugin_api import VenueMalformed, parse_amount

DIGITS = st.text("0123456789", min_size=1, max_size=30)


@given(whole=st.integers(0, 10**30), fraction=DIGITS, sign=st.sampled_from(["", "-"]))
def test_a_bare_number_loses_no_digit(whole: int, fraction: str, sign: str) -> None:
    text = f"{sign}{whole}.{fraction}"
    value = exact_json(f'{{"free": {text}}}')["free"]
    assert value == text
    assert parse_amount(value, "free") == Decimal(text)


@given(st.integers(-(10**98), 10**98))
def test_a_bare_integer_loses_no_digit(number: int) -> None:
    assert exact_json(f"[{number}]") == [number]


WORDS = st.text('abcé \n"{[')
JSON = st.recursive(st.none() | st.booleans() | WORDS, lambda inner: st.lists(inner) | st.dictionaries(DIGITS, inner))


@given(JSON)
def test_a_value_that_is_not_a_number_stays_as_it_is(value: object) -> None:
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
        '{"free": "1E+999999999"}',
        '{"free": "1e-999999999"}',
        '{"é": "1e999999999"}',
        '{"free": "１e９９９９"}',
        '["exchange", [["BTC", "1e999999999"]]]',
        '{"rows": [["BTC", "\\u0031e999999999"]]}',
        f"[{'9' * 101}]",
        pytest.param("[" * 100_000, id="nested too deep"),
    ],
)
def test_a_body_that_is_not_exact_json_is_refused(body: str) -> None:
    with pytest.raises(VenueMalformed):
        exact_json(body)


def test_an_id_that_looks_like_a_number_is_left_alone() -> None:
    assert exact_json('{"id": "548e4753"}') == {"id": "548e4753"}


@given(JSON)
def test_an_answer_that_was_read_once_reads_the_same_again(value: object) -> None:
    body = json.dumps({"value": value, "amount": 7, "long": 10**40}).replace("7", "1.50E-3")
    again = Answer(body=body, is_json=True).value()
    assert again == exact_json(body)
    assert again["amount"] == "1.50e-3"


SIGNS = st.sampled_from(["", "-"])
PLAIN = st.builds("{}{}".format, SIGNS, DIGITS) | st.builds("{}{}.{}".format, SIGNS, DIGITS, DIGITS)
FIGURES = st.none() | PLAIN | st.sampled_from(["", "-0.0", "0", "1e-7"])
ROWS = st.fixed_dictionaries({"free": FIGURES, "used": FIGURES, "total": FIGURES}, optional={"debt": FIGURES})


@pytest.fixture(scope="module")
def instances() -> tuple[Any, Any]:
    """One with our layer and one without, each with exact numbers."""
    from ccxt.base.exchange import Exchange

    plain = Exchange()
    plain.number = str
    layered = make_layered_class(Exact, Exchange)()
    layered.throttler = layered.session = None
    return layered, plain


@given(rows=st.dictionaries(st.sampled_from(["BTC", "ETH", "USDT"]), ROWS))
def test_the_columns_of_a_balance_are_those_that_ccxt_makes(rows: dict[str, Any], instances: tuple[Any, Any]) -> None:
    layered, plain = instances
    balance = {"info": {}, "timestamp": None, "datetime": None, **rows}
    assert layered.safe_balance(copy.deepcopy(balance)) == plain.safe_balance(copy.deepcopy(balance))


@pytest.mark.parametrize("row", [{"free": 1, "used": 2}, {"free": [], "used": None}, {"free": True}, [], "text", None])
def test_a_row_that_looks_unusual_is_left_to_ccxt(row: Any, instances: tuple[Any, Any]) -> None:
    results = []
    for instance in instances:
        try:
            results.append(instance.safe_balance({"BTC": {"free": "1", "used": "2"}, "ETH": copy.deepcopy(row)}))
        except Exception as error:
            results.append(type(error))
    assert results[0] == results[1]


VALUES = st.sampled_from([None, "", 0, False, True, "spot", {}, {"type": "a"}, {"defaultType": "b"}, {"type": ""}])
NAMES = st.sampled_from(["type", "defaultType", "fetchBalance"])


@given(options=st.dictionaries(NAMES, VALUES), params=st.dictionaries(NAMES, VALUES), default=VALUES)
def test_an_option_is_the_one_that_ccxt_finds(
    options: dict[str, Any], params: dict[str, Any], default: Any, instances: tuple[Any, Any]
) -> None:
    results = []
    for instance in instances:
        instance.options = options
        results.append(instance.handle_option_and_params(params, "fetchBalance", "type", default))
    assert results[0] == results[1]


def test_a_cached_row_is_not_used_for_a_row_of_equal_but_other_figures() -> None:
    assert [str(row.total) for row in parse.rows({"total": {"A": "1.50"}}, {})] == ["1.50"]
    assert [str(row.total) for row in parse.rows({"total": {"A": "1.5"}}, {})] == ["1.5"]
    assert parse.rows({"total": {"A": 1}}, {})[0].total == 1
    for nonsense in (True, [], {}, "one", 1.0):
        with pytest.raises(VenueMalformed):
            parse.rows({"total": {"A": nonsense}}, {})


class TestSpacing:
    @staticmethod
    def guarded(rate_limit: float) -> Guarded:
        instance = Guarded()
        instance.rateLimit = rate_limit
        instance.session = None
        return instance

    async def test_after_an_idle_time_the_first_request_does_not_wait(self) -> None:
        instance = self.guarded(10_000)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await instance.throttle(1)
        instance.free_at -= 10_000
        await instance.throttle(20)
        assert loop.time() - began < 1

    async def test_consecutive_requests_are_spaced_by_their_weight(self) -> None:
        instance = self.guarded(50)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await instance.throttle(2)
        await instance.throttle()
        assert loop.time() - began >= 0.1
        assert instance.free_at - began >= 0.15


class TestHugeNumbers:
    """In the public lists, which CCXT reads itself: it would write as many zeros as one of these says."""

    @pytest.mark.parametrize("precision", ["99999999", "-99999999", 10**9])
    async def test_a_precision_is_refused(self, precision: Any) -> None:
        ccxt = await import_ccxt()
        instance = make_layered_class(Guarded, ccxt.kraken)({})
        with pytest.raises(VenueMalformed, match="too large"):
            instance.parse_precision(precision)
        assert instance.parse_precision("8") == "0.00000001"
        assert instance.parse_precision("-2") == "100"

    @pytest.mark.parametrize("number", ["1e999999999", "1E+99999", "0.5e-999999999"])
    async def test_an_exponent_is_refused_where_ccxt_computes_with_it(self, number: str) -> None:
        await import_ccxt()
        precise = importlib.import_module("ccxt.base.precise").Precise
        with pytest.raises(VenueMalformed, match="too large"):
            precise.string_div("1", number)
        assert precise.string_mul("2", "1e30") == "2" + 30 * "0"
        assert precise.string_div("1", "8") == "0.125"
