"""Several accounts behind one credential, through the whole service: one that is odd, closed or in deficit leaves the
others and their sum true."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_oanda import OANDA
from exchange_service_oanda.simulator import OandaSimulator
from exchange_service_oanda.simulator import SimulatedAccount as OandaAccount
from exchange_service_tastytrade import TASTYTRADE
from exchange_service_tastytrade.simulator import SimulatedAccount as TastytradeAccount
from exchange_service_tastytrade.simulator import TastytradeSimulator
from exchange_service_tradier import TRADIER, TRADIER_OPTIONS
from exchange_service_tradier.simulator import SimulatedAccount as TradierAccount
from exchange_service_tradier.simulator import TradierSimulator, cash_account

from exchange_service.pytest_plugin import SWEEP
from exchange_service.testing import DemoVenue, Fault
from exchange_service.v1 import balance_pb2, error_reason_pb2
from tests.harness import USER, Running, serving

GRANT = {"api_secret": "a-client-secret-for-tests", "passphrase": "a-refresh-token-for-tests"}
OANDA_IDS = ("101-004-7654321-001", "101-004-7654321-002")
TRADIER_IDS = ("6YA00000", "6YB11111")
TASTYTRADE_IDS = ("5WX00000", "5WX00001")


class Brokers:
    """The service with a loopback venue for each broker."""

    def __init__(self, running: Running, venues: dict[str, DemoVenue]) -> None:
        self.running = running
        self.venues = venues

    async def balance(self, exchange_id: str, **options: Any) -> balance_pb2.Balance:
        reply = await self.running.client.get_balance(USER, exchange_id, max_age=0, **options)
        return reply.balance


@pytest.fixture
async def brokers(tmp_path: Path) -> AsyncIterator[Brokers]:
    async with OandaSimulator() as oanda, TradierSimulator() as tradier, TastytradeSimulator() as tastytrade:
        assert isinstance(oanda, OandaSimulator)
        assert isinstance(tradier, TradierSimulator)
        assert isinstance(tastytrade, TastytradeSimulator)
        oanda.add_token("a-token-for-tests", *map(OandaAccount, OANDA_IDS))
        short = {"option_buying_power": Decimal("-1000.00"), "stock_buying_power": Decimal("-2000.00")}
        tradier.add_token(
            "a-token-for-tests",
            cash_account(TRADIER_IDS[0]),
            TradierAccount(TRADIER_IDS[1], block=short),
            TradierAccount("6YC22222", status="closed"),
        )
        tastytrade.add_grant(GRANT["passphrase"], GRANT["api_secret"], *map(TastytradeAccount, TASTYTRADE_IDS))
        urls = {
            "oanda": oanda.url,
            "tradier": tradier.url,
            "tradier_options": tradier.url,
            "tastytrade": tastytrade.url,
        }
        async with serving(tmp_path, venue_urls=urls) as running:
            await running.store("oanda", api_key="a-token-for-tests")
            await running.store("tradier", api_key="a-token-for-tests")
            await running.store("tastytrade", **GRANT)
            yield Brokers(running, {"oanda": oanda, "tradier": tradier, "tastytrade": tastytrade})


def tastytrade_entry(number: str, **changes: Any) -> dict[str, Any]:
    account = {"account-number": number, "margin-or-cash": "Margin", "is-closed": False} | changes
    return {"account": {name: value for name, value in account.items() if value is not ...}}


# By listing: the path of the list, and a list with an odd entry that has a name, one that has none, and a good one.
ODD_LISTS: dict[str, tuple[str, Any]] = {
    "oanda": ("/v3/accounts", {"accounts": [{"id": OANDA_IDS[0]}, {"id": None}, {"id": OANDA_IDS[1]}]}),
    "tradier": (
        "/v1/user/profile",
        {
            "profile": {
                "account": [
                    {"account_number": TRADIER_IDS[0], "type": "cash"},
                    {"account_number": TRADIER_IDS[1], "option_level": "many"},
                    {},
                ]
            }
        },
    ),
    "tastytrade": (
        "/customers/me/accounts",
        {
            "data": {
                "items": [
                    tastytrade_entry(TASTYTRADE_IDS[0]),
                    tastytrade_entry(TASTYTRADE_IDS[1], **{"margin-or-cash": ...}),
                    {},
                ]
            }
        },
    ),
}


@pytest.mark.parametrize("exchange_id", ODD_LISTS)
async def test_an_odd_entry_of_the_list_is_that_accounts_error_and_the_others_are_read(
    brokers: Brokers, exchange_id: str
) -> None:
    path, answer = ODD_LISTS[exchange_id]
    brokers.venues[exchange_id].fail(Fault(body=json.dumps(answer).encode(), path=path))
    balance = await brokers.balance(exchange_id)
    broken = [account for account in balance.venue_accounts if account.HasField("error")]
    read = [account for account in balance.venue_accounts if account.assets]
    assert len(broken) + len(read) == len(balance.venue_accounts)
    assert broken
    assert read
    assert {account.error.reason for account in broken} == {error_reason_pb2.ERROR_REASON_VENUE_MALFORMED}
    assert not balance.HasField("summary")


async def test_every_listed_account_type_of_a_broker_can_be_read(
    brokers: Brokers, record_property: Callable[[str, object], None]
) -> None:
    venue = brokers.venues["tastytrade"]
    assert isinstance(venue, TastytradeSimulator)
    venue.grants[GRANT["passphrase"]].accounts[TASTYTRADE_IDS[0]].margin_or_cash = "Cash"
    tried, unread = 0, []
    for exchange in (OANDA, TRADIER, TRADIER_OPTIONS, TASTYTRADE):
        for account_type in exchange.account_types:
            balance = await brokers.balance(exchange.id, account_type=account_type)
            read = [account for account in balance.venue_accounts if account.assets]
            tried += 1
            if not read or {account.type for account in read} != {account_type}:
                unread.append((exchange.id, account_type))
    ids = ["oanda", "tradier", "tradier_options", "tastytrade"]
    record_property(SWEEP, ["account types of brokers", ids, tried, 0, len(unread)])
    assert unread == []


@pytest.mark.parametrize("stamp", ["yesterday", 17640000, None])
async def test_a_time_that_cannot_be_read_leaves_the_balance(brokers: Brokers, stamp: Any) -> None:
    figures = {"account-number": TASTYTRADE_IDS[0], "cash-balance": "10.5", "net-liquidating-value": "1.2E1"}
    body = json.dumps({"data": {**figures, "updated-at": stamp}}).encode()
    brokers.venues["tastytrade"].fail(Fault(body=body, path=f"/accounts/{TASTYTRADE_IDS[0]}/balances"))
    balance = await brokers.balance("tastytrade")
    account = next(account for account in balance.venue_accounts if account.id == TASTYTRADE_IDS[0])
    assert not account.HasField("venue_time")
    assert (account.assets[0].total, account.summary.equity) == ("10.5", "12")


@pytest.mark.parametrize("exchange_id", ["tradier", "tradier_options"])
async def test_a_deficit_is_not_netted_with_another_accounts_money_and_a_note_says_so(
    brokers: Brokers, exchange_id: str
) -> None:
    venue = brokers.venues["tradier"]
    assert isinstance(venue, TradierSimulator)
    venue.tokens["a-token-for-tests"].accounts[TRADIER_IDS[0]].option_level = 2
    balance = await brokers.balance(exchange_id)
    assert not balance.summary.HasField("available")
    assert Decimal(balance.summary.cash) == Decimal("23820.60")
    notes = [note for note in balance.notes if "available amount" in note]
    assert len(notes) == 1
    assert TRADIER_IDS[1] in notes[0]
    assert TRADIER_IDS[0] not in notes[0]
    assert any("6YC22222" in note and "Closed" in note for note in balance.notes)


async def test_of_one_requested_type_the_deficit_of_another_is_not_told(brokers: Brokers) -> None:
    balance = await brokers.balance("tradier", account_type="cash")
    assert [account.id for account in balance.venue_accounts] == [TRADIER_IDS[0]]
    assert balance.summary.available == "5120.33"
    assert not any("available amount" in note for note in balance.notes)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, b'{"fault":{"faultstring":"Datastore Error"}}', "VENUE_UNAVAILABLE"),
        (200, b'{"balances":null}', "VENUE_MALFORMED"),
    ],
)
async def test_one_accounts_broken_answer_is_a_passing_error_of_that_account(
    brokers: Brokers, status: int, body: bytes, reason: str
) -> None:
    path = f"/v1/accounts/{TRADIER_IDS[0]}/balances"
    brokers.venues["tradier"].fail(Fault(status=status, body=body, path=path))
    balance = await brokers.balance("tradier")
    broken, good = balance.venue_accounts
    assert error_reason_pb2.ErrorReason.Name(broken.error.reason) == f"ERROR_REASON_{reason}"
    assert good.assets
    assert not balance.HasField("summary")
