"""A row that cannot be read is never left out without a word: the rest would pass for the whole."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest

from exchange_service.plugin_api import ExchangeMetadata, VenueMalformed
from exchange_service.testing import Fault
from plugins.ccxt_generic.tests.every_exchange.venue import opened, read
from plugins.ccxt_generic.tests.every_exchange.well_formed import ACCOUNTS, Account, meant, rows

LISTINGS: Mapping[str, ExchangeMetadata] = {listing.id: listing for listing in plugin.exchange_manifest().exchanges}

# Each asset is some fields among others, so that nothing shows that one is missing.
FLAT = {"bit2c", "bitbns", "btcbox", "coincheck", "hollaex", "paymium"}
# The account is one object with its figures, whose absence is an answer without a row.
ONE = {"apex", "dydx", "hibachi", "kucoinfutures", "mudrex"}
# Several rows of one asset are put together there.
PUT_TOGETHER = {"btse", "coinbase", "derive", "luno"}
# No row is a figure with as many digits as these.
_DIGITS = 15


def is_figure(value: Any) -> bool:
    """Whether it is one of the table's amounts."""
    return isinstance(value, str) and len(re.sub(r"\D", "", value)) >= _DIGITS


def replaced(value: Any, old: Any, new: Any) -> Any:
    """A copy in which `new` replaces each value that `old` accepts."""
    if isinstance(value, dict):
        return {name: replaced(below, old, new) for name, below in value.items()}
    if isinstance(value, list):
        return [replaced(below, old, new) for below in value]
    return new if old(value) else value


def holds_figures(value: Any) -> bool:
    return value != replaced(value, is_figure, None)


def rows_of(answer: Any) -> list[Any] | None:
    """The innermost list of the answer whose entries hold the figures."""
    if isinstance(answer, dict):
        return next((rows for below in answer.values() if (rows := rows_of(below)) is not None), None)
    if isinstance(answer, list) and any(isinstance(row, (dict, list)) and holds_figures(row) for row in answer):
        return next((rows for row in answer if (rows := rows_of(row)) is not None), answer)
    return None


def at(answer: Any, path: str) -> Any:
    for step in path.split(".") if path else ():
        answer = answer[int(step)] if isinstance(answer, list) else answer[step]
    return answer


def broken(exchange_id: str, account: Account) -> Iterator[tuple[str, Any]]:
    """The answer with one row that is no object or has no figures, beside a good row or instead of it."""
    if account.rows_at is not None:
        for row in (None, {}, [], True, "much"):
            answer = copy.deepcopy(account.answer)
            at(answer, account.rows_at)["ZZZ"] = row
            yield f"a row that is {row!r}", answer
    else:
        yield from _broken_lists(exchange_id, account)
    yield "a row without amounts", replaced(account.answer, is_figure, None)
    yield "a row with words for amounts", replaced(account.answer, is_figure, "much")
    yield "a row with NaN for amounts", replaced(account.answer, is_figure, "NaN")
    yield "a row with truth values for amounts", replaced(account.answer, is_figure, True)
    yield "a row with objects for amounts", replaced(account.answer, is_figure, {})


def _broken_lists(exchange_id: str, account: Account) -> Iterator[tuple[str, Any]]:
    names = {*account.rows, *account.assets.values(), *(row[3] for row in account.rows.values() if len(row) > 3)}
    known = {str(name).upper() for name in names}

    def is_name(value: Any) -> bool:
        return isinstance(value, (str, int)) and not isinstance(value, bool) and str(value).upper() in known

    good = rows_of(account.answer)
    assert good is not None, "the answer has no list of rows"
    entries = [None, "x", 7, {}, [], replaced(good[0], is_name, None), replaced(good[0], is_name, "")]
    if exchange_id not in PUT_TOGETHER:
        entries.append(good[0])
    for entry in entries:
        answer = copy.deepcopy(account.answer)
        entries_there = rows_of(answer)
        assert entries_there is not None
        entries_there.append(copy.deepcopy(entry))
        yield f"a row that is {entry!r}", answer


@pytest.mark.parametrize("exchange_id", [name for name in ACCOUNTS if name not in FLAT | ONE])
async def test_a_row_that_cannot_be_read_makes_the_answer_malformed(exchange_id: str) -> None:
    account, believed = ACCOUNTS[exchange_id], []
    async with opened(LISTINGS[exchange_id], account.assets) as (venue, call):
        for name, answer in broken(exchange_id, account):
            venue.tell(account, answer)
            try:
                believed.append((name, await read(call)))
            except VenueMalformed:
                continue
    assert believed == []


@pytest.mark.parametrize("exchange_id", sorted(FLAT | ONE))
async def test_invalid_figures_make_the_answer_malformed(exchange_id: str) -> None:
    account, believed = ACCOUNTS[exchange_id], []
    async with opened(LISTINGS[exchange_id], account.assets) as (venue, call):
        for value in (None, "much", "NaN", True, {}, []):
            answer = replaced(account.answer, is_figure, value)
            venue.tell(account, answer)
            try:
                believed.append((value, await read(call)))
            except VenueMalformed:
                continue
    assert believed == []


async def test_a_page_that_is_missing_makes_coinbases_list_malformed() -> None:
    account = ACCOUNTS["coinbase"]
    async with opened(LISTINGS["coinbase"], account.assets) as (venue, call):
        venue.tell(account, {**account.answer, "has_next": True, "cursor": ""})
        with pytest.raises(VenueMalformed):
            await read(call)


async def test_an_account_for_contracts_at_bingx_may_have_a_row_without_an_asset_and_with_zeros() -> None:
    blank = {"asset": "", "balance": "0.0000", "equity": "0.0000", "availableMargin": "0.0000", "usedMargin": "0.0000"}
    account = Account("GET /openApi/swap/v3/user/balance", {"code": 0, "msg": "", "data": [blank]})
    async with opened(LISTINGS["bingx"], account.assets, "swap") as (venue, call):
        venue.tell(account, account.answer)
        assert list((await read(call)).rows()) == []
        venue.tell(account, {"code": 0, "msg": "", "data": [{**blank, "balance": "5"}]})
        with pytest.raises(VenueMalformed):
            await read(call)


async def test_alpacas_shares_are_left_out_and_its_cash_never_is() -> None:
    account = ACCOUNTS["alpaca"]
    share = {"symbol": "AAPL", "asset_class": "us_equity", "qty": "5", "qty_available": "5", "side": "long"}
    async with opened(LISTINGS["alpaca"], account.assets) as (venue, call):
        venue.tell(account, [*account.answer, share])
        assert rows(await read(call)) == meant(account)
        venue.tell(account, account.answer)
        venue.answers["GET /v2/account"] = Fault(body=b'{"status": "ACTIVE"}')
        with pytest.raises(VenueMalformed):
            await read(call)
