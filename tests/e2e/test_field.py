"""Figures that people reported as wrong, through the whole service: gRPC in, a venue on loopback out.

Each case is what a venue answered, and the right value. The answers come from public reports and from venues' pages;
keys and account numbers are made up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from exchange_service.testing import Fault
from plugins.ccxt_generic.tests.every_exchange.well_formed import as_json
from tests.ccxt_service import ASSETS, through_ccxt
from tests.harness import balance_request, failure_of

# Amounts of a row: total, free, used and debt; None for one that is absent.
Row = tuple[str | None, str | None, str | None, str | None]


@dataclass(frozen=True, slots=True)
class FieldCase:
    """A venue's answers by request, such as "GET /path", and the rows that they mean."""

    exchange_id: str
    answers: Mapping[str, Any]
    rows: Mapping[str, Row]
    account_type: str = ""
    # The venue's ids of assets, by CCXT's codes.
    assets: Mapping[str, str] = field(default_factory=lambda: ASSETS)


READINGS: Mapping[str, FieldCase] = {
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
async def test_the_right_figures_are_shown(name: str, tmp_path: Path) -> None:
    case = READINGS[name]
    async with through_ccxt(tmp_path, case.exchange_id, case.assets) as (running, venue):
        venue.answers = {request: Fault(body=as_json(answer)) for request, answer in case.answers.items()}
        request = balance_request(case.exchange_id, account_type=case.account_type, include_zero=True)
        assert shown(await running.stub.GetBalance(request)) == case.rows


async def test_a_zero_of_one_currency_does_not_stand_for_what_is_held_in_another(tmp_path: Path) -> None:
    answer = (
        b'{"error":[],"result":{"USDT":{"balance":"0","hold_trade":"0"},'
        b'"USDT.F":{"balance":"6016.5","hold_trade":"0"}}}'
    )
    async with through_ccxt(tmp_path, "kraken") as (running, venue):
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
    async with through_ccxt(tmp_path, "coinbase") as (running, venue):
        venue.default = Fault(body=as_json({"accounts": [account], "has_next": False, "cursor": "", "size": 1}))
        try:
            result = str(await running.stub.GetBalance(balance_request("coinbase")))
        except grpc.aio.AioRpcError as error:
            result = failure_of(error).reason
    assert "2.5" in result or result == "VENUE_MALFORMED"
