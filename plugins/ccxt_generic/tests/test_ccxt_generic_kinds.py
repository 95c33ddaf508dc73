"""Kinds of account: each is read as what it is, and after a change at the latest in the second call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic.account_types import wallets
from exchange_service_ccxt_generic.client import CcxtClient
from exchange_service_ccxt_generic.exact import Guarded
from exchange_service_ccxt_generic.instances import import_ccxt
from exchange_service_ccxt_generic.kinds import KINDS

from exchange_service.plugin_api import (
    ALL_ACCOUNT_TYPES,
    Balance,
    PermissionMissing,
    State,
    VenueCall,
    VenueError,
    VenueMalformed,
)
from exchange_service.pytest_plugin import SWEEP
from exchange_service.testing import venue_call
from plugins.ccxt_generic.tests.every_exchange.by_query import Answers, VenueByQuery
from plugins.ccxt_generic.tests.every_exchange.credentials import credential

LISTINGS = {listing.id: listing for listing in plugin.exchange_manifest().exchanges}

MARKETS = (
    {"id": "BTCUSDT", "symbol": "BTC/USDT", "base": "BTC", "quote": "USDT", "type": "spot", "spot": True},
    *(
        {"id": f"{code}USD", "symbol": f"{code}/USD:{code}", "base": code, "quote": "USD", "settle": code}
        | {"type": "swap", "spot": False, "swap": True, "contract": True}
        for code in ("BTC", "ETH", "USDT")
    ),
)


async def known_markets(client: CcxtClient, ccxt: Any) -> Any:
    instance = client.instances.construct(ccxt, Guarded, None, 1000)
    instance.set_markets(
        [
            {"active": True, "baseId": market["base"], "quoteId": market["quote"], "info": {}} | market
            for market in MARKETS
        ],
        {code: {"id": code, "code": code, "precision": 1e-8, "info": {}} for code in ("BTC", "ETH", "USDT", "USD")},
    )
    return instance


@asynccontextmanager
async def reading(exchange_id: str, account_type: str = "") -> AsyncIterator[tuple[VenueByQuery, VenueCall]]:
    """The venue and a call for one account there, with the markets known."""
    state, listing = State(), LISTINGS[exchange_id]
    options = {**credential(listing), "plugin_state": state, "timeout": 60.0, "account_type": account_type}
    async with VenueByQuery() as venue, venue_call(listing, override=venue.url, **options) as call:
        assert isinstance(venue, VenueByQuery)
        ccxt = await state.get("ccxt", import_ccxt)
        where = f"markets {exchange_id} {call.environment.name} {venue.url}"
        await state.get(where, partial(known_markets, CcxtClient(call), ccxt))
        yield venue, call
    await state.close()


def totals(balance: Balance) -> dict[str, Decimal | None]:
    return {row.asset: row.total for _, row in balance.rows() if row.total}


pytestmark = pytest.mark.usefixtures("without_pauses")

BITGET_PLAIN = {"/api/v3/account/settings": (400, {"code": "40084", "msg": "...", "data": None})}
KUCOIN_PLAIN = {"/api/ua/v1/account/mode": {"code": "200000", "data": {"selfAccountMode": "CLASSIC"}}}
HIGH_FREQUENCY = {**KUCOIN_PLAIN, "/api/v1/hf/accounts/opened": {"code": "200000", "data": True}}
LOW_FREQUENCY = {**KUCOIN_PLAIN, "/api/v1/hf/accounts/opened": {"code": "200000", "data": False}}


def kucoin_rows(type: str, *amounts: str) -> dict[str, Any]:
    rows = [{"currency": "USDT", "type": type, "balance": one, "available": one, "holds": "0"} for one in amounts]
    return {f"/api/v1/accounts?type={type}": {"code": "200000", "data": rows}}


class TestKucoinsHighFrequencyAccount:
    async def test_the_account_that_trades_is_read(self) -> None:
        async with reading("kucoin", "spot") as (venue, call):
            venue.answers = {**HIGH_FREQUENCY, **kucoin_rows("trade"), **kucoin_rows("trade_hf", "14.3497564")}
            assert totals(await plugin.fetch_balance(call)) == {"USDT": Decimal("14.3497564")}

    async def test_an_account_of_low_frequency_is_read_as_before(self) -> None:
        async with reading("kucoin", "spot") as (venue, call):
            venue.answers = {**LOW_FREQUENCY, **kucoin_rows("trade", "2"), **kucoin_rows("trade_hf", "1")}
            assert totals(await plugin.fetch_balance(call)) == {"USDT": Decimal(2)}

    async def test_margin_beside_it_is_still_the_margin_account(self) -> None:
        account = {"currency": "USDT", "totalBalance": "5", "availableBalance": "5", "holdBalance": "0"}
        async with reading("kucoin", "margin") as (venue, call):
            venue.answers = {
                **HIGH_FREQUENCY,
                **kucoin_rows("trade_hf", "14.3497564"),
                "/api/v1/margin/account": {"code": "200000", "data": {"accounts": [account]}},
            }
            assert totals(await plugin.fetch_balance(call)) == {"USDT": Decimal(5)}

    async def test_it_is_not_asked_for_again_once_it_is_there(self) -> None:
        async with reading("kucoin", "spot") as (venue, call):
            venue.answers = {**HIGH_FREQUENCY, **kucoin_rows("trade_hf", "1")}
            for _ in range(5):
                await plugin.fetch_balance(call)
            assert venue.count("/api/v1/hf/accounts/opened") == 1
            assert venue.count("/api/ua/v1/account/mode") == 3

    async def test_a_user_who_opens_it_is_read_in_the_second_call_after(self) -> None:
        async with reading("kucoin", "spot") as (venue, call):
            venue.answers = {**LOW_FREQUENCY, **kucoin_rows("trade", "2"), **kucoin_rows("trade_hf", "2.5")}
            await plugin.fetch_balance(call)
            venue.answers.update(HIGH_FREQUENCY)
            assert [totals(await plugin.fetch_balance(call)) for _ in range(2)][1] == {"USDT": Decimal("2.5")}

    async def test_without_an_answer_nothing_is_read(self) -> None:
        async with reading("kucoin", "spot") as (venue, call):
            venue.answers = {**HIGH_FREQUENCY, "/api/v1/hf/accounts/opened": {"code": "200000", "data": None}}
            with pytest.raises(VenueMalformed):
                await plugin.fetch_balance(call)


BITGET_ROW = {"coin": "USDT", "available": "10.5", "frozen": "0", "locked": "1.25"}


class TestBitgetsClassicAccount:
    async def test_its_code_is_that_of_the_classic_account(self) -> None:
        async with reading("bitget") as (venue, call):
            venue.answers = {**BITGET_PLAIN, "/api/v2/spot/account/assets": {"code": "00000", "data": [BITGET_ROW]}}
            ((account, row),) = (await plugin.fetch_balance(call)).rows()
        assert (account.type, row.total, row.free, row.used) == (
            "spot",
            Decimal("11.75"),
            Decimal("10.5"),
            Decimal("1.25"),
        )

    async def test_the_code_of_the_unified_account_is_no_word_for_it(self) -> None:
        async with reading("bitget") as (venue, call):
            venue.answers = {
                "/api/v3/account/settings": (400, {"code": "40085", "msg": "...", "data": None}),
                "/api/v2/spot/account/assets": {"code": "00000", "data": [BITGET_ROW]},
            }
            with pytest.raises(VenueError):
                await plugin.fetch_balance(call)
            assert venue.count("/api/v2/spot/account/assets") == 0


@dataclass(frozen=True)
class TwoKinds:
    """What a venue says of the two kinds of an account, and their wallets with 3 and with 5 dollars, and empty.

    A wallet of the other kind answers with `refused`, if it is not empty.
    """

    plain: Answers
    unified: Answers
    plain_wallet: Callable[[str | None], Answers]
    unified_wallet: Callable[[str | None], Answers]
    refused: tuple[int, Any]


def bitget_plain_wallet(total: str | None) -> Answers:
    rows = [] if total is None else [{"coin": "USDT", "available": total, "frozen": "0", "locked": "0"}]
    return {"/api/v2/spot/account/assets": {"code": "00000", "data": rows}}


def bitget_unified_wallet(total: str | None) -> Answers:
    rows = [] if total is None else [{"coin": "USDT", "equity": total, "available": total, "locked": "0", "debt": "0"}]
    return {"/api/v3/account/assets": {"code": "00000", "data": {"assets": rows}}}


def bybit_kind(unified: int) -> Answers:
    return {
        "/v5/user/query-api": {"retCode": 0, "result": {"unified": 0, "uta": unified}},
        "/v5/account/info": {"retCode": 0, "result": {"unifiedMarginStatus": 6 if unified else 1}},
    }


def bybit_wallet(account_type: str, total: str | None) -> Answers:
    coin = {"coin": "USDT", "walletBalance": total, "locked": "0", "equity": total, "availableToWithdraw": total}
    wallet = {"accountType": account_type, "coin": [] if total is None else [coin]}
    name = f"/v5/account/wallet-balance?accountType={account_type}"
    return {name: {"retCode": 0, "result": {"list": [wallet]}}}


def gate_plain_wallet(total: str | None) -> Answers:
    return {"/api/v4/spot/accounts": [] if total is None else [{"currency": "USDT", "available": total, "locked": "0"}]}


def gate_unified_wallet(total: str | None) -> Answers:
    coins = {} if total is None else {"USDT": {"available": total, "freeze": "0", "equity": total}}
    return {"/api/v4/unified/accounts": {"locked": False, "balances": coins}}


def kucoin_plain_wallet(total: str | None) -> Answers:
    return kucoin_rows("trade", *([] if total is None else [total]))


def kucoin_unified_wallet(total: str | None) -> Answers:
    return _kucoin_accounts("/api/ua/v1/unified/account/balance", total)


def futures_plain_wallet(total: str | None) -> Answers:
    data = {"accountEquity": total or "0", "availableBalance": total or "0", "currency": "USDT"}
    return {"/api/v1/account-overview": {"code": "200000", "data": data}}


def futures_unified_wallet(total: str | None) -> Answers:
    return {
        **_kucoin_accounts("/api/ua/v1/unified/account/balance", total),
        **_kucoin_accounts("/api/ua/v1/account/balance", total),
    }


def _kucoin_accounts(path: str, total: str | None) -> Answers:
    coin = {"currency": "USDT", "available": total, "hold": "0", "total": total, "equity": total}
    accounts = [{"currencies": [] if total is None else [coin]}]
    return {path: {"code": "200000", "data": {"accounts": accounts}}}


BITGET = TwoKinds(
    BITGET_PLAIN,
    {"/api/v3/account/settings": {"code": "00000", "data": {"assetMode": "union"}}},
    bitget_plain_wallet,
    bitget_unified_wallet,
    (400, {"code": "40085", "msg": "You are in Unified Account mode", "data": None}),
)
BYBIT = TwoKinds(
    bybit_kind(0),
    bybit_kind(1),
    partial(bybit_wallet, "CONTRACT"),
    partial(bybit_wallet, "UNIFIED"),
    (200, {"retCode": 10005, "retMsg": "Permission denied", "result": {}}),
)
GATE = TwoKinds(
    {"/api/v4/account/detail": {"key": {"mode": 1}}},
    {"/api/v4/account/detail": {"key": {"mode": 2}}},
    gate_plain_wallet,
    gate_unified_wallet,
    (403, {"label": "FORBIDDEN", "message": "not for this kind of account"}),
)
KUCOIN = TwoKinds(
    LOW_FREQUENCY,
    {"/api/ua/v1/account/mode": {"code": "200000", "data": {"selfAccountMode": "UNIFIED"}}},
    kucoin_plain_wallet,
    kucoin_unified_wallet,
    (200, {"code": "400007", "msg": "Access denied--> Require more permission"}),
)
TWO_KINDS: Mapping[str, TwoKinds] = {
    "bitget": BITGET,
    "bybit": BYBIT,
    "bybiteu": replace(BYBIT, plain_wallet=partial(bybit_wallet, "SPOT")),
    "bybitid": BYBIT,
    "gate": GATE,
    "gateeu": GATE,
    "kucoin": KUCOIN,
    "kucoinfutures": replace(KUCOIN, plain_wallet=futures_plain_wallet, unified_wallet=futures_unified_wallet),
}
BEFORE, AFTER = "3", "5"


def kind_and_wallets(two: TwoKinds, unified: bool, other: str) -> Answers:
    """All answers of an account of this kind. The wallet of the other kind is "empty", "refused", or holds 3 still."""
    own, wallet, elsewhere = (
        (two.unified, two.unified_wallet, two.plain_wallet)
        if unified
        else (two.plain, two.plain_wallet, two.unified_wallet)
    )
    left = elsewhere(None if other == "empty" else BEFORE)
    if other == "refused":
        left = dict.fromkeys(left, two.refused)
    return {**own, **wallet(AFTER), **left}


def kind_before(two: TwoKinds, unified: bool) -> Answers:
    own, wallet = (two.unified, two.unified_wallet) if unified else (two.plain, two.plain_wallet)
    return {**own, **wallet(BEFORE)}


async def calls_after_a_change(
    exchange_id: str, unified: bool, other: str, calls: int, requested: str = ""
) -> list[Any]:
    """The totals, or the error, of each call after the account has become of the kind, with some calls before."""
    two, seen = TWO_KINDS[exchange_id], []
    async with reading(exchange_id, requested) as (venue, call):
        venue.answers = dict(kind_before(two, not unified))
        for _ in range(calls):
            assert totals(await plugin.fetch_balance(call)) == {"USDT": Decimal(BEFORE)}
        venue.answers = dict(kind_and_wallets(two, unified, other))
        for _ in range(2):
            try:
                seen.append(totals(await plugin.fetch_balance(call)))
            except VenueError as error:
                seen.append(error)
    return seen


def test_every_exchange_with_kinds_is_tried_here() -> None:
    assert set(TWO_KINDS) == set(KINDS)


@pytest.mark.parametrize("exchange_id", TWO_KINDS)
async def test_an_account_that_changes_its_kind_is_read_in_the_second_call_after_at_the_latest(
    exchange_id: str, record_property: Callable[[str, object], None]
) -> None:
    wrong, tried = [], 0
    for unified in (True, False):
        for other in ("empty", "refused", "holds something still"):
            for calls in (1, 2, 3):
                first, second = await calls_after_a_change(exchange_id, unified, other, calls)
                tried += 1
                right = {"USDT": Decimal(AFTER)}
                # An empty or a refused wallet makes the first call ask.
                if second != right or (other != "holds something still" and first != right):
                    wrong.append((unified, other, calls, first, second))
    record_property(SWEEP, ["changes of an account's kind", [exchange_id], tried, 0, len(wrong)])
    assert wrong == []


async def test_all_notices_a_change_too() -> None:
    _, second = await calls_after_a_change("kucoinfutures", True, "empty", 2, ALL_ACCOUNT_TYPES)
    assert second == {"USDT": Decimal(AFTER)}


async def test_a_kind_that_has_not_changed_costs_half_a_request_for_each_balance() -> None:
    async with reading("bitget") as (venue, call):
        venue.answers = {**BITGET_PLAIN, **bitget_plain_wallet("1")}
        for _ in range(10):
            await plugin.fetch_balance(call)
        assert venue.count("/api/v3/account/settings") == 5
        assert venue.count("/api/v2/spot/account/assets") == 10


async def test_an_error_that_is_not_about_the_kind_stays_what_it_is() -> None:
    async with reading("bitget") as (venue, call):
        venue.answers = {**BITGET_PLAIN, **bitget_plain_wallet("1")}
        await plugin.fetch_balance(call)
        refused = {"code": "40014", "msg": "Incorrect permissions", "data": None}
        venue.answers["/api/v2/spot/account/assets"] = (400, refused)
        with pytest.raises(PermissionMissing):
            await plugin.fetch_balance(call)


class TestWalletsForEachCoin:
    """Contracts that are settled in coins: KuCoin and Phemex have a wallet for each of them."""

    @staticmethod
    def overview(code: str, total: str) -> Answers:
        data = {"accountEquity": total, "availableBalance": total, "currency": code}
        return {f"/api/v1/account-overview?currency={code}": {"code": "200000", "data": data}}

    async def test_each_is_read_by_a_request_of_its_own(self) -> None:
        async with reading("kucoin", "inverse") as (venue, call):
            venue.answers = {**LOW_FREQUENCY, **self.overview("BTC", "0.5"), **self.overview("ETH", "4")}
            balance = await plugin.fetch_balance(call)
        assert totals(balance) == {"BTC": Decimal("0.5"), "ETH": Decimal(4)}
        assert [account.type for account in balance.venue_accounts] == ["inverse"]
        assert balance.notes == ()

    async def test_one_that_the_venue_refuses_is_named(self) -> None:
        async with reading("kucoinfutures", "inverse") as (venue, call):
            refused = {"/api/v1/account-overview?currency=ETH": KUCOIN.refused}
            venue.answers = {**LOW_FREQUENCY, **self.overview("BTC", "0.5"), **refused}
            balance = await plugin.fetch_balance(call)
        assert totals(balance) == {"BTC": Decimal("0.5")}
        assert balance.notes == ("KuCoin Futures shows no inverse wallet for ETH.",)

    async def test_an_outage_of_one_is_not_a_balance_without_it(self) -> None:
        async with reading("kucoin", "inverse") as (venue, call):
            broken = {"/api/v1/account-overview?currency=ETH": (502, {"code": "502000"})}
            venue.answers = {**LOW_FREQUENCY, **self.overview("BTC", "0.5"), **broken}
            with pytest.raises(VenueError) as outage:
                await plugin.fetch_balance(call)
        assert outage.value.transient

    async def test_all_shows_them_beside_the_others(self) -> None:
        async with reading("kucoin", ALL_ACCOUNT_TYPES) as (venue, call):
            pair = {"currency": "USDT", "total": "7", "available": "7", "hold": "0", "liability": "0", "interest": "0"}
            sides = {"baseAsset": {**pair, "currency": "BTC", "total": "0", "available": "0"}, "quoteAsset": pair}
            venue.answers = {
                **LOW_FREQUENCY,
                **kucoin_rows("trade", "1"),
                **kucoin_rows("main", "2"),
                **self.overview("USDT", "3"),
                **self.overview("BTC", "0.5"),
                **self.overview("ETH", "0"),
                "/api/v1/margin/account": {"code": "200000", "data": {"accounts": []}},
                "/api/v3/isolated/accounts": {"code": "200000", "data": {"assets": [{"symbol": "BTC-USDT", **sides}]}},
            }
            balance = await plugin.fetch_balance(call)
        held = {
            account.type: {row.asset: row.total for row in account.assets if row.total}
            for account in balance.venue_accounts
        }
        assert held == {
            "spot": {"USDT": Decimal(1)},
            "funding": {"USDT": Decimal(2)},
            "margin": {},
            "isolated": {"USDT": Decimal(7)},
            "swap": {"USDT": Decimal(3)},
            "inverse": {"BTC": Decimal("0.5")},
        }
        assert "Left out: future (the same wallet as swap); unified (this account is not unified)." in balance.notes


def test_the_wallets_of_bybits_first_unified_account_include_inverse() -> None:
    types = LISTINGS["bybit"].account_types
    unified = {"enableUnifiedMargin": False, "enableUnifiedAccount": True}
    assert wallets("bybit", types, {**unified, "unifiedMarginStatus": 3}) == ("unified", "funding", "inverse")
    assert wallets("bybit", types, {**unified, "unifiedMarginStatus": 6}) == ("unified", "funding")
