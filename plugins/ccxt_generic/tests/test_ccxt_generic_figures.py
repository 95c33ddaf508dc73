"""A row shows the venue's own figures: its debt, its total and its parts, under its own name."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest

from exchange_service.plugin_api import AssetBalance, Balance, VenueMalformed
from exchange_service.testing import Fault
from plugins.ccxt_generic.tests.every_exchange.venue import opened, read
from plugins.ccxt_generic.tests.every_exchange.well_formed import as_json, bare

LISTINGS = {listing.id: listing for listing in plugin.exchange_manifest().exchanges}
CODES = {"BTC": "BTC", "USDT": "USDT"}
CLASSIC = {"GET /api/ua/v1/account/mode": {"code": "200000", "data": {"selfAccountMode": "CLASSIC"}}}
GATE = {"GET /api/v4/account/detail": {"user_id": 1, "key": {"mode": 1}, "tier": 0}}
BITFINEX = "POST /v2/auth/r/wallets"


async def reading(
    exchange_id: str,
    account_type: str,
    request: str,
    answer: Any,
    before: dict[str, Any] | None = None,
    metadata: dict[str, str] | None = None,
) -> Balance:
    """The balance of an account for whose request the venue gives this answer."""
    async with opened(LISTINGS[exchange_id], CODES, account_type, metadata or {}) as (venue, call):
        venue.answers = {request: Fault(body=as_json(body)) for request, body in (before or {}).items()}
        venue.answers[request] = Fault(body=as_json(answer))
        return await read(call)


def row(balance: Balance, asset: str = "BTC") -> tuple[str | None, ...]:
    """Total, free, used and debt of one asset, as texts."""
    (found,) = (entry for _, entry in balance.rows() if entry.asset == asset)
    amounts = (found.total, found.free, found.used, found.debt)
    return tuple(None if amount is None else format(amount, "f") for amount in amounts)


def okx(*details: dict[str, str]) -> Any:
    return {"code": "0", "msg": "", "data": [{"uTime": "1730419200000", "details": list(details)}]}


def htx(*parts: tuple[str, str]) -> Any:
    rows = [{"currency": "btc", "type": kind, "balance": amount} for kind, amount in parts]
    return {"status": "ok", "data": {"id": 51015302, "type": "cross-margin", "state": "working", "list": rows}}


class TestDebts:
    @pytest.mark.parametrize("exchange_id", ["okx", "okxus", "myokx"])
    async def test_okx_states_its_liability_and_its_frozen_part(self, exchange_id: str) -> None:
        detail = {"ccy": "BTC", "eq": "-0.25", "availEq": "0", "availBal": "0", "frozenBal": "0", "liab": "0.25"}
        answer = okx({**detail, "interest": "0.00001"})
        balance = await reading(exchange_id, "trading", "GET /api/v5/account/balance", answer)
        assert row(balance) == ("-0.25", "0", "0", "0.25")

    async def test_htx_states_loans_as_negative_parts(self) -> None:
        answer = htx(
            ("trade", "10"),
            ("frozen", "0.5"),
            ("loan", "-2.433"),
            ("interest", "-0.000533"),
            ("transfer-out-available", "1"),
            ("loan-available", "99"),
        )
        balance = await reading("htx", "margin", "GET /v1/cross-margin/accounts/balance", answer)
        assert row(balance) == ("10.5", "10", "0.5", "2.433533")

    async def test_bybits_debt_is_what_was_borrowed_and_its_interest(self) -> None:
        coin = {
            "coin": "BTC",
            "walletBalance": "1.5",
            "locked": "0.25",
            "totalPositionIM": "0.5",
            "totalOrderIM": "0.1",
            "availableToWithdraw": "",
            "borrowAmount": "0.2",
            "accruedInterest": "0.001",
        }
        answer = {"retCode": 0, "retMsg": "OK", "result": {"list": [{"accountType": "UNIFIED", "coin": [coin]}]}}
        before = {
            "GET /v5/user/query-api": {"retCode": 0, "result": {"unified": 0, "uta": 1}},
            "GET /v5/account/info": {"retCode": 0, "result": {"unifiedMarginStatus": 6}},
        }
        balance = await reading("bybit", "unified", "GET /v5/account/wallet-balance", answer, before)
        assert row(balance) == ("1.5", "0.65", "0.85", "0.201")

    async def test_gates_unified_debt_is_the_liability_or_what_was_borrowed(self) -> None:
        kind = {"GET /api/v4/account/detail": {"user_id": 1, "key": {"mode": 2}, "tier": 0}}
        asset = {"available": "0", "freeze": "0", "borrowed": "0.075", "equity": "1016.1", "total_liab": "0"}
        answer = {"user_id": 1, "locked": False, "balances": {"BTC": asset, "USDT": {**asset, "total_liab": "5"}}}
        balance = await reading("gate", "unified", "GET /api/v4/unified/accounts", answer, kind)
        assert row(balance) == ("1016.1", "0", "0", "0.075")
        assert row(balance, "USDT") == ("1016.1", "0", "0", "5")

    async def test_kraken_counts_a_credit_line(self) -> None:
        asset = {"balance": "2", "credit": "1", "credit_used": "0.25", "hold_trade": "0.5"}
        answer = {"error": [], "result": {"XXBT": asset}}
        balance = await reading("kraken", "", "POST /0/private/BalanceEx", answer)
        assert row(balance) == ("2", "2.25", "0.5", "0.25")


class TestTotals:
    async def test_the_total_of_a_contract_wallet_is_the_venues_equity(self) -> None:
        asset = {
            "currency": "USDT",
            "equity": 17.53,
            "cashBalance": 5.03,
            "positionMargin": 10.5,
            "availableBalance": 5.03,
            "frozenBalance": 1,
        }
        answer = {"success": True, "code": 0, "data": [asset]}
        balance = await reading("mexc", "swap", "GET /api/v1/private/account/assets", answer)
        assert row(balance, "USDT") == ("17.53", "5.03", "1", None)

    async def test_a_frozen_part_that_okx_states_has_no_digits_of_another_calculation(self) -> None:
        detail = {"ccy": "USDT", "eq": "4992.890093622894", "availEq": "4834.317093622894", "frozenBal": "158.573"}
        balance = await reading("okx", "trading", "GET /api/v5/account/balance", okx(detail))
        assert row(balance, "USDT") == ("4992.890093622894", "4834.317093622894", "158.573", None)

    async def test_what_is_lent_out_at_gate_counts(self) -> None:
        answer = [{"currency": "BTC", "available": "1.238", "locked": "0", "lent": "3.32", "total_lent": "3.32"}]
        balance = await reading("gate", "funding", "GET /api/v4/margin/funding_accounts", answer, GATE)
        assert row(balance) == ("4.558", "1.238", "0", None)

    async def test_a_part_that_would_be_negative_is_unknown_and_the_row_is_marked(self) -> None:
        answer = {"code": 0, "list": [{"currency": "BTC", "free": bare("4723846.89208129"), "total": 0}]}
        balance = await reading("digifinex", "spot", "GET /v3/spot/assets", answer)
        assert row(balance) == ("0", "4723846.89208129", None, None)
        assert [entry.mismatch() for _, entry in balance.rows()] == [True]

    async def test_both_assets_of_an_isolated_pair_have_their_figures(self) -> None:
        base = {"currency": "BTC", "available": "1", "locked": "0.5", "borrowed": "0.2", "interest": "0.01"}
        quote = {"currency": "USDT", "available": "7", "locked": "0", "borrowed": "0", "interest": "0"}
        pair = {"currency_pair": "BTC_USDT", "locked": False, "risk": "9999.99", "base": base, "quote": quote}
        balance = await reading("gate", "margin", "GET /api/v4/margin/accounts", [pair], GATE)
        assert row(balance) == ("1.5", "1", "0.5", "0.21")
        assert row(balance, "USDT") == ("7", "7", "0", "0")


class TestNames:
    """An asset of the venue has a row of its own, also if CCXT has one code for several."""

    async def rows(self, exchange_id: str, account_type: str, request: str, answer: Any) -> list[tuple[str, ...]]:
        balance = await reading(exchange_id, account_type, request, answer)
        assert not any("unknown" in note for note in balance.notes)
        return [(entry.asset, entry.venue_asset, str(entry.total), str(entry.free)) for _, entry in balance.rows()]

    async def test_bitfinex_has_a_dollar_for_spot_and_one_for_derivatives(self) -> None:
        wallets = [["margin", "UST", 100.5, 0, 100.5, None, None], ["margin", "USTF0", 250.25, 0, 200, None, None]]
        found = await self.rows("bitfinex", "margin", BITFINEX, wallets)
        assert found == [("USDT", "UST", "100.5", "100.5"), ("USTF0", "", "250.25", "200")]

    async def test_poloniex_has_a_dollar_for_each_chain(self) -> None:
        names = ("USDTTRON", "USDT", "USDTETH")
        balances = [
            {"currency": name, "available": str(place), "hold": "0"} for place, name in enumerate(names, start=1)
        ]
        answer = [{"accountId": "7", "accountType": "SPOT", "balances": balances}]
        found = await self.rows("poloniex", "spot", "GET /accounts/balances", answer)
        assert found == [("USDTTRON", "", "1", "1"), ("USDT", "", "2", "2"), ("USDTETH", "", "3", "3")]

    async def test_kraken_has_two_names_for_one_code_and_rewards_beside_the_asset(self) -> None:
        amounts = {"XREP": "1", "REPV2": "2", "USDT": "0", "USDT.F": "6016.5", "XXBT": "3", "XBT.M": "4"}
        result = {name: {"balance": amount, "hold_trade": "0"} for name, amount in amounts.items()}
        found = await self.rows("kraken", "", "POST /0/private/BalanceEx", {"error": [], "result": result})
        assert found == [
            ("REP", "XREP", "1", "1"),
            ("REPV2", "", "2", "2"),
            ("USDT", "", "0", "0"),
            ("USDT.F", "", "6016.5", "6016.5"),
            ("BTC", "XXBT", "3", "3"),
            ("BTC.M", "XBT.M", "4", "4"),
        ]


class TestKinds:
    """A row of a kind that no account type reads is shown as an account of its own, or refused, and never lost."""

    @staticmethod
    def coinbase(kind: str, value: str) -> dict[str, Any]:
        amounts = {"available_balance": {"value": value, "currency": "USDT"}, "hold": {"value": "0"}}
        return {"uuid": kind, "currency": "USDT", "type": kind, **amounts}

    async def read_coinbase(self, *accounts: dict[str, Any]) -> Balance:
        answer = {"accounts": list(accounts), "has_next": False, "cursor": "", "size": len(accounts)}
        return await reading("coinbase", "spot", "GET /api/v3/brokerage/accounts", answer)

    @pytest.mark.parametrize("kind", ["ACCOUNT_TYPE_VAULT", "ACCOUNT_TYPE_PERP_FUTURES", "ACCOUNT_TYPE_NEW"])
    async def test_coinbases_other_accounts_are_shown_with_a_note(self, kind: str) -> None:
        balance = await self.read_coinbase(self.coinbase("ACCOUNT_TYPE_CRYPTO", "1"), self.coinbase(kind, "5"))
        shown = {
            account.type or account.sub_account: [entry.total for entry in account.assets]
            for account in balance.venue_accounts
        }
        assert shown == {"spot": [Decimal(1)], kind.lower().removeprefix("account_type_"): [Decimal(5)]}
        assert any(kind in note for note in balance.notes)

    async def test_an_account_that_holds_only_a_vault_is_not_empty(self) -> None:
        balance = await self.read_coinbase(self.coinbase("ACCOUNT_TYPE_VAULT", "5"))
        assert [entry.total for _, entry in balance.rows()] == [Decimal(5)]

    async def test_another_kind_without_anything_is_left_out(self) -> None:
        balance = await self.read_coinbase(self.coinbase("ACCOUNT_TYPE_VAULT", "0"))
        assert [account.type for account in balance.venue_accounts] == ["spot"]
        assert balance.notes == ()

    async def test_another_kind_whose_amounts_cannot_be_read_is_malformed(self) -> None:
        with pytest.raises(VenueMalformed):
            await self.read_coinbase(self.coinbase("ACCOUNT_TYPE_VAULT", "much"))

    @pytest.mark.parametrize("account_type", ["spot", "margin", "funding"])
    async def test_bitfinexs_unknown_wallet_is_shown(self, account_type: str) -> None:
        answer = [["vault", "BTC", 5, 0, 5, None, None]]
        balance = await reading("bitfinex", account_type, BITFINEX, answer)
        assert {account.type or account.sub_account: len(account.assets) for account in balance.venue_accounts} == {
            account_type: 0,
            "vault": 1,
        }

    async def test_all_wallets_show_an_unknown_one_once(self) -> None:
        answer = [["vault", "BTC", 5, 0, 5, None, None], ["margin", "BTC", 1, 0, 1, None, None]]
        async with opened(LISTINGS["bitfinex"], CODES) as (venue, call):
            venue.answers[BITFINEX] = Fault(body=as_json(answer))
            balance = await read(replace(call, account=replace(call.account, account_type="all")))
        assert sorted(account.type or account.sub_account for account in balance.venue_accounts) == [
            "funding",
            "margin",
            "spot",
            "vault",
        ]

    @pytest.mark.parametrize("account_type", ["spot", "funding"])
    async def test_latokens_unknown_type_is_shown(self, account_type: str) -> None:
        answer = [{"type": "ACCOUNT_TYPE_FUTURES", "currency": "BTC", "available": "5", "blocked": "0"}]
        balance = await reading("latoken", account_type, "GET /v2/auth/account", answer)
        assert [(account.type or account.sub_account, entry.total) for account, entry in balance.rows()] == [
            ("futures", Decimal(5))
        ]

    @pytest.mark.parametrize(
        ("exchange_id", "account_type", "path"),
        [("binance", "future", "/fapi/v3/account"), ("binancecoinm", "delivery", "/dapi/v1/account")],
    )
    async def test_a_wallet_without_a_time_that_holds_something_is_shown(
        self, exchange_id: str, account_type: str, path: str
    ) -> None:
        figures = {"walletBalance": "5", "marginBalance": "5.5", "initialMargin": "1", "availableBalance": "4"}
        answer = {"feeTier": 0, "assets": [{"asset": "BTC", **figures, "updateTime": 0}]}
        balance = await reading(exchange_id, account_type, f"GET {path}", answer)
        assert row(balance) == ("5.5", "4", "1", None)

    async def test_alpacas_position_of_an_unknown_kind_is_not_left_out(self) -> None:
        account = {"status": "ACTIVE", "currency": "USD", "cash": "1", "equity": "1", "position_market_value": "0"}
        before = {"GET /v2/assets": [], "GET /v2/account": account}
        position = {"symbol": "GOLD-42", "asset_class": "metal", "qty": "5", "qty_available": "5", "side": "long"}
        with pytest.raises(VenueMalformed):
            await reading("alpaca", "", "GET /v2/positions", [position], before)

    async def test_an_unknown_part_of_an_asset_at_htx_is_not_left_out(self) -> None:
        request = "GET /v1/cross-margin/accounts/balance"
        with pytest.raises(VenueMalformed):
            await reading("htx", "margin", request, htx(("trade", "1"), ("frozen", "0"), ("vault", "5")))
        assert (
            row(await reading("htx", "margin", request, htx(("trade", "1"), ("frozen", "0"), ("vault", "0"))))[0] == "1"
        )


class TestBlankRows:
    async def test_a_row_with_an_empty_text_for_each_amount_says_nothing(self) -> None:
        blank = {"ccy": "BTC", "eq": "", "availEq": "", "availBal": "", "frozenBal": "", "liab": "", "uTime": "1"}
        full = {"ccy": "USDT", "eq": "1", "availEq": "1", "availBal": "1", "frozenBal": "0", "liab": ""}
        request = "GET /api/v5/account/balance"
        balance = await reading("okx", "trading", request, okx(blank, full))
        assert [entry for _, entry in balance.rows()] == [
            AssetBalance("USDT", total=Decimal(1), free=Decimal(1), used=Decimal(0))
        ]
        assert list((await reading("okx", "trading", request, okx(blank))).rows()) == []

    async def test_a_row_with_one_amount_among_empty_texts_is_malformed(self) -> None:
        half = {"ccy": "BTC", "eq": "", "availEq": "", "availBal": "", "frozenBal": "", "liab": "5"}
        with pytest.raises(VenueMalformed):
            await reading("okx", "trading", "GET /api/v5/account/balance", okx(half))
