"""Every exchange that CCXT lists, through its real class: a good answer is its balance to the digit."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic import answers
from exchange_service_ccxt_generic.answer_shapes import shapes
from exchange_service_ccxt_generic.exact import Exact

from exchange_service.plugin_api import ExchangeMetadata, NotSupported
from plugins.ccxt_generic.tests.every_exchange.credentials import traces
from plugins.ccxt_generic.tests.every_exchange.further_types import FURTHER
from plugins.ccxt_generic.tests.every_exchange.venue import opened, read, shown_by
from plugins.ccxt_generic.tests.every_exchange.well_formed import ACCOUNTS, meant, rows

LISTINGS: Mapping[str, ExchangeMetadata] = {listing.id: listing for listing in plugin.exchange_manifest().exchanges}
SERVED = [listing.id for listing in LISTINGS.values() if listing.capabilities.balance]
NOT_SERVED = sorted(set(LISTINGS) - set(SERVED))
WITH_EMPTY = [exchange_id for exchange_id, account in ACCOUNTS.items() if account.empty is not None]


def test_every_exchange_is_either_tried_here_or_listed_with_a_reason() -> None:
    assert set(ACCOUNTS) == set(SERVED)
    assert len(NOT_SERVED) <= 10
    assert all(LISTINGS[exchange_id].unsupported_reason.endswith(".") for exchange_id in NOT_SERVED)
    assert {"binance", "coinbase", "kraken", "okx", "bybit", "apex"} <= set(ACCOUNTS)


@pytest.mark.parametrize("exchange_id", ACCOUNTS)
async def test_a_good_answer_is_read_to_the_digit_with_no_other_requests(exchange_id: str) -> None:
    account, listing = ACCOUNTS[exchange_id], LISTINGS[exchange_id]
    async with opened(listing, account.assets) as (venue, call):
        venue.tell(account, account.answer)
        balance = await read(call)
    assert rows(balance) == meant(account)
    assert venue.seen() == {account.request, *account.before}
    signed = [request for request in venue.requests if f"{request.method} {request.path}" == account.request]
    assert any(trace.lower() in shown_by(signed[-1]).lower() for trace in traces(listing)), "the request is not signed"


@pytest.mark.parametrize("name", [*ACCOUNTS, *FURTHER])
async def test_large_answers_are_read_to_the_digit_in_a_thread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange_id, _, account_type = name.partition(" ")
    account, listing = {**ACCOUNTS, **FURTHER}[name], LISTINGS[exchange_id]
    threads: set[str] = set()
    safe_balance = Exact.safe_balance

    def noting(self: Exact, balance: dict[str, Any]) -> Any:
        threads.add(threading.current_thread().name.partition("_")[0])
        return safe_balance(self, balance)

    monkeypatch.setattr(answers, "_LARGE", 0)
    monkeypatch.setattr(Exact, "safe_balance", noting)
    async with opened(listing, account.assets, account_type) as (venue, call):
        venue.tell(account, account.answer)
        balance = await read(call)
    assert rows(balance) == meant(account)
    assert threads <= {"large answers"}


@pytest.mark.parametrize("exchange_id", WITH_EMPTY)
async def test_an_account_without_assets_is_truly_empty(exchange_id: str) -> None:
    account = ACCOUNTS[exchange_id]
    async with opened(LISTINGS[exchange_id], account.assets) as (venue, call):
        venue.tell(account, account.empty)
        balance = await read(call)
    assert list(balance.rows()) == []
    assert balance.summary is None


@pytest.mark.parametrize("exchange_id", NOT_SERVED)
async def test_an_exchange_that_is_not_served_is_refused_before_any_request(exchange_id: str) -> None:
    async with opened(LISTINGS[exchange_id], {}) as (venue, call):
        with pytest.raises(NotSupported) as refusal:
            await read(call)
    assert LISTINGS[exchange_id].unsupported_reason in refusal.value.message
    assert venue.requests == []


def test_each_account_type_states_why_an_answer_without_rows_is_an_empty_account_or_is_not() -> None:
    for exchange_id in SERVED:
        for account_type in LISTINGS[exchange_id].account_types:
            known = shapes(exchange_id, account_type)
            assert known, f"{exchange_id} {account_type} has no shape"
            assert all(bool(shape.empty) != bool(shape.never_empty) for shape in known), f"{exchange_id} {account_type}"


def test_the_accounts_that_can_be_empty_are_those_of_the_table() -> None:
    believed = {
        name for name in ACCOUNTS if any(shape.empty for shape in shapes(name, LISTINGS[name].account_types[0]))
    }
    # An account for futures has always a row, unless it is a unified one.
    assert believed == {*WITH_EMPTY, "kucoinfutures"}
