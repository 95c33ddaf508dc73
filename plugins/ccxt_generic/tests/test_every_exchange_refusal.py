"""Every exchange that CCXT serves: each of its codes becomes the reason that CCXT's source tells of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ccxt.async_support as ccxt
import exchange_service_ccxt_generic as plugin
import pytest
from ccxt.base.errors import BaseError
from exchange_service_ccxt_generic.answers import Answer
from exchange_service_ccxt_generic.failures import translate

from exchange_service.plugin_api import ExchangeMetadata, VenueError
from exchange_service.pytest_plugin import SWEEP
from plugins.ccxt_generic.tests.every_exchange.refusals import (
    Coded,
    answer_of,
    answers,
    coded,
    right_reasons,
    told_in_words,
)

Property = Callable[[str, object], None]
LISTINGS: Mapping[str, ExchangeMetadata] = {listing.id: listing for listing in plugin.exchange_manifest().exchanges}
SERVED = [listing.id for listing in LISTINGS.values() if listing.capabilities.balance]
# The host that an entry belongs to, where a class has other codes for each.
_HOSTS = {"spot": "api", "linear": "fapi", "inverse": "dapi", "option": "eapi", "portfolioMargin": "papi"}

# Codes that mean something else than the words and the class in CCXT's source say.
MEANT_OTHERWISE: Mapping[tuple[str, str], str] = {
    ("alpaca", "40110000"): "Alpaca sends it with HTTP 401, for a key of the other environment too",
    **{(bybit, "10020"): "the account is not a unified one" for bybit in ("bybit", "bybiteu", "bybitid")},
    **{(bybit, "10024"): "compliance rules: the user's region" for bybit in ("bybit", "bybiteu", "bybitid")},
    **{(bybit, "10028"): "the account is not a unified one" for bybit in ("bybit", "bybiteu", "bybitid")},
    ("cryptocom", "10002"): "a wrong key or signature, by its documents",
    ("kucoin", "400006"): "the request's address, by Kucoin/kucoin-api-docs#395",
    ("kucoinfutures", "400006"): "the request's address, by Kucoin/kucoin-api-docs#395",
    ("onetrading", "INTERNAL_ERROR"): "a failure of the venue, by its name",
    ("poloniex", "21353"): "the users of a country",
}


def refused(exchange: Any, row: Coded, status: int, value: Any) -> tuple[BaseException, Answer] | None:
    """What the exchange's real class raises for this answer, if it raises it because of the code."""
    answer = answer_of(status, value)
    host = next((_HOSTS[part] for part in row.place if part in _HOSTS), "api")
    url = f"https://{host}.{exchange.hostname or 'binance.com'}/x"
    try:
        exchange.handle_errors(status, "", url, "GET", {}, answer.body, answer.value(), {}, None)
        exchange.handle_http_status_code(status, "", url, "GET", answer.body)
    except BaseError as error:
        return (error, answer) if type(error).__name__ == row.class_name else None
    except (TypeError, AttributeError, LookupError, ValueError):
        return None
    return None


class Shapes:
    """The shapes in which an exchange's class finds its codes, the last that fitted first."""

    def __init__(self, exchange: Any) -> None:
        self._exchange = exchange
        self._order: list[int] = []

    def refusal(self, row: Coded) -> VenueError | None:
        """Our error for an answer with the code; None if the class finds the code in no shape that is known here."""
        offered = list(answers(row))
        order = self._order + [place for place in range(len(offered)) if place not in self._order]
        for place in order:
            if place < len(offered) and (found := refused(self._exchange, row, *offered[place])):
                if place in self._order:
                    self._order.remove(place)
                self._order.insert(0, place)
                return translate(*found, self._exchange.id, "Acme")
        return None


@pytest.mark.parametrize("exchange_id", SERVED)
async def test_each_code_leads_to_the_reason_that_ccxts_source_tells(
    exchange_id: str, record_property: Property
) -> None:
    exchange = getattr(ccxt, exchange_id)()
    tried, unknown, wrong = 0, [], []
    shapes = Shapes(exchange)
    for row in coded(type(exchange)):
        right = right_reasons(row)
        if not right:
            continue
        tried += 1
        error = shapes.refusal(row)
        if error is None:
            unknown.append(row)
        elif error.reason not in right and (exchange_id, row.code) not in MEANT_OTHERWISE:
            wrong.append(f"{row} is {error.reason}, not {sorted(right)}")
    await exchange.close()
    record_property(SWEEP, ["venues' own codes", [exchange_id], tried, len(unknown), len(wrong)])
    assert wrong == []
    assert len(unknown) <= max(2, tried / 10), unknown


def is_right(error: VenueError, right: frozenset[str]) -> bool:
    """Whether the reason is one of the right ones. By a sentence alone a key and its rights are not told apart."""
    key_or_right = {"CREDENTIAL_REJECTED", "PERMISSION_MISSING"}
    return error.reason in right or (error.reason in key_or_right and bool(right & key_or_right))


def test_a_sentence_with_a_code_that_no_table_has_is_read(record_property: Property) -> None:
    tried, unread, wrong = 0, 0, []
    for exchange_id in SERVED:
        for row in coded(getattr(ccxt, exchange_id)):
            right, sentence = right_reasons(row), row.sentence.strip(" #")
            if not told_in_words(row):
                continue
            tried += 1
            answer = answer_of(400, {"code": 987654321, "msg": sentence})
            error = translate(ccxt.ExchangeError("x"), answer, exchange_id, "Acme")
            if error.reason == "REQUEST_REFUSED":
                unread += 1
            elif not is_right(error, right):
                wrong.append(f"{row} is {error.reason}, not {sorted(right)}")
    record_property(SWEEP, ["venues' own sentences", SERVED, tried, unread, len(wrong)])
    assert wrong == []
    assert unread < tried / 4
