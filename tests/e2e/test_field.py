"""What people reported of other tools' balances, through the whole service: gRPC in, a venue on loopback out.

Each case is what a venue answered, and the right value. The answers come from public reports and from venues' pages;
keys and account numbers are made up.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import exchange_service_ccxt_generic as ccxt_plugin
import grpc
import pytest
from exchange_service_ccxt_generic.client import CcxtClient
from exchange_service_ccxt_generic.exact import Guarded
from exchange_service_ccxt_generic.instances import Instances

from exchange_service.plugin_api import ExchangeMetadata
from exchange_service.testing import Fault
from plugins.ccxt_generic.tests.every_exchange.credentials import credential
from plugins.ccxt_generic.tests.every_exchange.venue import ScriptedVenue, preset_markets
from plugins.ccxt_generic.tests.every_exchange.well_formed import as_json
from tests.harness import Running, balance_request, failure, failure_of, serving

LISTINGS: Mapping[str, ExchangeMetadata] = {
    listing.id: listing for listing in ccxt_plugin.exchange_manifest().exchanges
}
# Amounts of a row: total, free, used and debt; None for one that is absent.
Row = tuple[str | None, str | None, str | None, str | None]


@dataclass(frozen=True, slots=True)
class FieldCase:
    """A venue's answers by request, "GET /path" or "GET /path?name=value", and the rows that they mean."""

    exchange_id: str
    answers: Mapping[str, Any]
    rows: Mapping[str, Row]
    account_type: str = ""
    # The venue's ids of assets by CCXT's codes, where they differ.
    assets: Mapping[str, str] = field(default_factory=lambda: {"USDT": "USDT", "BTC": "BTC", "USDC": "USDC"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """A venue's answer to every request of the account, and the reason that the caller gets."""

    exchange_id: str
    status: int
    body: str
    reason: str
    words: str = ""


READINGS: Mapping[str, FieldCase] = {
    "what is in KuCoin's high-frequency wallet is shown": FieldCase(
        "kucoin",
        {
            "GET /api/ua/v1/account/mode": {"code": "200000", "data": {"selfAccountMode": "CLASSIC"}},
            "GET /api/v1/hf/accounts/opened": {"code": "200000", "data": True},
            "GET /api/v1/accounts?type=trade": {"code": "200000", "data": []},
            "GET /api/v1/accounts?type=trade_hf": {
                "code": "200000",
                "data": [
                    {
                        "id": "1",
                        "currency": "USDT",
                        "type": "trade_hf",
                        "balance": "14.3497564",
                        "available": "14.3497564",
                        "holds": "0",
                    }
                ],
            },
        },
        {"USDT": ("14.3497564", "14.3497564", "0", None)},
    ),
    "a debt at OKX is a debt, and nothing is used by it": FieldCase(
        "okx",
        {
            "GET /api/v5/account/balance": {
                "code": "0",
                "msg": "",
                "data": [
                    {
                        "uTime": "1730419200000",
                        "totalEq": "0",
                        "details": [
                            {
                                "ccy": "BTC",
                                "eq": "-0.25",
                                "availEq": "0",
                                "availBal": "0",
                                "frozenBal": "0",
                                "liab": "0.25",
                                "interest": "0.00001",
                            }
                        ],
                    }
                ],
            }
        },
        {"BTC": ("-0.25", "0", "0", "0.25")},
    ),
    "what OKX states is not reckoned from figures with noise": FieldCase(
        "okx",
        {
            "GET /api/v5/account/balance": {
                "code": "0",
                "msg": "",
                "data": [
                    {
                        "uTime": "1730419200000",
                        "totalEq": "1",
                        "details": [
                            {
                                "ccy": "USDT",
                                "eq": "4992.890093622894",
                                "availEq": "4834.3170936228935",
                                "availBal": "4834.3170936228935",
                                "frozenBal": "158.573",
                            }
                        ],
                    }
                ],
            }
        },
        {"USDT": ("4992.890093622894", "4834.3170936228935", "158.573", None)},
    ),
    "two assets of Bitfinex that have one name in CCXT are two rows": FieldCase(
        "bitfinex",
        {
            "POST /v2/auth/r/wallets": [
                ["margin", "UST", 100.5, 0, 100.5, None, None],
                ["margin", "USTF0", 250.25, 0, 200, None, None],
            ]
        },
        {"UST": ("100.5", "100.5", "0", "0"), "USTF0": ("250.25", "200", "50.25", "0")},
        account_type="margin",
        assets={"USDT": "UST"},
    ),
    "a classic account of Bitget is read": FieldCase(
        "bitget",
        {
            "GET /api/v3/account/settings": Fault(
                status=400, body=b'{"code":"40084","msg":"You are in Classic Account mode","data":null}'
            ),
            "GET /api/v2/spot/account/assets": {
                "code": "00000",
                "msg": "success",
                "data": [{"coin": "USDT", "available": "10.5", "frozen": "0", "locked": "1.25"}],
            },
        },
        {"USDT": ("11.75", "10.5", "1.25", None)},
    ),
    "the total of MEXC's contract wallet is its equity": FieldCase(
        "mexc",
        {
            "GET /api/v1/private/account/assets": {
                "success": True,
                "code": 0,
                "data": [
                    {
                        "currency": "USDT",
                        "positionMargin": "10.5",
                        "availableBalance": "5.03",
                        "cashBalance": "5.03",
                        "frozenBalance": "1",
                        "equity": "17.53",
                        "unrealized": "1",
                        "bonus": "0",
                    }
                ],
            }
        },
        {"USDT": ("17.53", "5.03", "1", None)},
        account_type="swap",
    ),
}

REFUSALS: Mapping[str, Refusal] = {
    "an address that Gate's key does not allow": Refusal(
        "gate",
        401,
        '{"label":"IP_FORBIDDEN","message":"Request IP not in whitelist: 203.0.113.9"}',
        "ADDRESS_NOT_ALLOWED",
        "203.0.113.9",
    ),
    "an address that MEXC's key does not allow": Refusal(
        "mexc",
        400,
        '{"code":700006,"msg":"IP [203.0.113.9] not in the ip white list"}',
        "ADDRESS_NOT_ALLOWED",
        "203.0.113.9",
    ),
    "a key that MEXC refuses": Refusal(
        "mexc", 400, '{"code":10072,"msg":"Api key info invalid"}', "CREDENTIAL_REJECTED"
    ),
    "an address that BingX's key does not allow": Refusal(
        "bingx",
        200,
        '{"code":100419,"msg":"your current request IP 203.0.113.9 does not match IP whitelist"}',
        "ADDRESS_NOT_ALLOWED",
    ),
    "an address that Bitget's key does not allow": Refusal(
        "bitget", 400, '{"code":"40018","msg":"Invalid IP","data":null}', "ADDRESS_NOT_ALLOWED"
    ),
}


@asynccontextmanager
async def service_for(folder: Path, exchange_id: str, **settings: Any) -> AsyncIterator[tuple[Running, ScriptedVenue]]:
    """The service with CCXT in its process and the exchange's public lists at hand, and the venue that it asks."""
    async with (
        ScriptedVenue() as venue,
        serving(
            folder, venue_urls={exchange_id: venue.url}, plugin_processes={"ccxt_generic": "in-process"}, **settings
        ) as running,
    ):
        given = credential(LISTINGS[exchange_id])
        await running.store(exchange_id, **given)
        yield running, venue


@pytest.fixture(autouse=True)
def lists_at_hand(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The public lists of an exchange: two markets and the assets of the case, without a request."""
    assets: dict[str, str] = {"USDT": "USDT", "BTC": "BTC", "USDC": "USDC"}

    async def load(self: Instances, ccxt: Any) -> Any:
        client = CcxtClient(self._call)
        return preset_markets(client, ccxt, assets)

    async def no_pause(self: Guarded, cost: Any = None) -> None:
        return None

    monkeypatch.setattr(Instances, "load_markets", load)
    monkeypatch.setattr(Guarded, "throttle", no_pause, raising=False)
    return assets


def shown(reply: Any) -> dict[str, Row]:
    """By the venue's own name of the asset: total, free, used and debt."""
    return {
        row.venue_asset or row.asset: (
            row.total if row.HasField("total") else None,
            row.free if row.HasField("free") else None,
            row.used if row.HasField("used") else None,
            row.debt if row.HasField("debt") else None,
        )
        for account in reply.balance.venue_accounts
        for row in account.assets
    }


@pytest.mark.parametrize("name", READINGS)
async def test_the_right_figures_are_shown(name: str, tmp_path: Path, lists_at_hand: dict[str, str]) -> None:
    case = READINGS[name]
    lists_at_hand.clear()
    lists_at_hand.update(case.assets)
    async with service_for(tmp_path, case.exchange_id) as (running, venue):
        venue.answers = {
            request: answer if isinstance(answer, Fault) else Fault(body=as_json(answer))
            for request, answer in case.answers.items()
        }
        request = balance_request(case.exchange_id, account_type=case.account_type, include_zero=True)
        assert shown(await running.stub.GetBalance(request)) == case.rows


@pytest.mark.parametrize("name", REFUSALS)
async def test_the_venues_own_word_for_the_trouble_is_the_reason(name: str, tmp_path: Path) -> None:
    case = REFUSALS[name]
    async with service_for(tmp_path, case.exchange_id) as (running, venue):
        venue.default = Fault(status=case.status, body=case.body.encode())
        failed = await failure(running.stub.GetBalance(balance_request(case.exchange_id)))
    assert failed.reason == case.reason, failed.message
    assert case.words in failed.message


PAGES: Mapping[str, Fault] = {
    "a firewall's refusal": Fault(
        status=403,
        content_type="text/html; charset=UTF-8",
        headers={"Server": "cloudflare"},
        body=b"<!DOCTYPE html><html><head><title>Attention Required! | Cloudflare</title></head></html>",
    ),
    "a firewall's challenge": Fault(
        status=403,
        content_type="text/html; charset=UTF-8",
        headers={"Server": "cloudflare"},
        body=b"<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>",
    ),
}


@pytest.mark.parametrize("page", PAGES)
async def test_a_gateways_page_is_a_passing_trouble_and_says_nothing_of_the_key(page: str, tmp_path: Path) -> None:
    async with service_for(tmp_path, "btcmarkets", max_age=0.0) as (running, venue):
        venue.default = Fault(body=b'[{"assetName":"BTC","balance":"1.5","available":"1","locked":"0.5"}]')
        good = await running.stub.GetBalance(balance_request("btcmarkets"))
        venue.default = PAGES[page]
        kept = await running.stub.GetBalance(balance_request("btcmarkets"))
        request = balance_request("btcmarkets")
        request.max_age.FromSeconds(0)
        failed = await failure(running.stub.GetBalance(request))
    assert shown(kept) == shown(good) == {"BTC": ("1.5", "1", "0.5", None)}
    assert kept.freshness.HasField("stale")
    assert failed.reason == "VENUE_UNAVAILABLE"
    assert "key" not in failed.message


async def test_a_zero_of_one_currency_does_not_stand_for_what_is_held_in_another(tmp_path: Path) -> None:
    answer = (
        b'{"error":[],"result":{"USDT":{"balance":"0","hold_trade":"0"},'
        b'"USDT.F":{"balance":"6016.5","hold_trade":"0"}}}'
    )
    async with service_for(tmp_path, "kraken") as (running, venue):
        venue.answers = {"POST /0/private/BalanceEx": Fault(body=answer)}
        reply = await running.stub.GetBalance(balance_request("kraken"))
    assert shown(reply) == {"USDT.F": ("6016.5", "6016.5", "0", None)}
    assert not reply.balance.HasField("summary") or reply.balance.notes


async def test_an_account_of_an_unknown_type_that_holds_something_never_vanishes(tmp_path: Path) -> None:
    account = {
        "uuid": "1",
        "name": "Vault",
        "currency": "BTC",
        "available_balance": {"value": "2.5", "currency": "BTC"},
        "type": "ACCOUNT_TYPE_PERP_FUTURES",
        "hold": {"value": "0", "currency": "BTC"},
    }
    async with service_for(tmp_path, "coinbase") as (running, venue):
        venue.default = Fault(body=as_json({"accounts": [account], "has_next": False, "cursor": "", "size": 1}))
        try:
            result = str(await running.stub.GetBalance(balance_request("coinbase")))
        except grpc.aio.AioRpcError as error:
            result = failure_of(error).reason
    assert "2.5" in result or result == "VENUE_MALFORMED"
