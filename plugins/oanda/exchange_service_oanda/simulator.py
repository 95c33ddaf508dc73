"""A simulator of OANDA: the answers and errors of v20. It shares no code with the client, so it repeats no mistake."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

from aiohttp import web

from exchange_service.testing import DemoVenue, Fault, bearer_token, show_situation

# OANDA numbers every answer, for its support.
_REQUEST_ID = "42717890123456789"
# How many streams OANDA lets an address have.
_MOST_STREAMS = 20
# How many streams may begin within a second.
_NEW_STREAMS = 2
# Each so many moves the moving accounts trade; between them only prices move.
_MOVES_TO_A_TRADE = 2

# What OANDA says when it refuses a request: the status and `errorMessage`.
_REFUSALS: Mapping[str, tuple[type[web.HTTPError], str]] = {
    # witness: vendor: https://developer.oanda.com/rest-live-v20/troubleshooting-errors/
    "token": (web.HTTPUnauthorized, "Insufficient authorization to perform request."),
    # For any account that the token does not read, whether it exists or not. OANDA's page has the message with 401,
    # people report it with 403.
    "account": (web.HTTPForbidden, "The provided request was forbidden."),
    # witness: unproven: OANDA's guide says that streams over the limit are rejected; the status was looked for
    "streams": (web.HTTPTooManyRequests, "Too many streams."),
}


@dataclass(slots=True)
class SimulatedAccount:
    """One v20 account; amounts in its currency.

    In captured answers `marginAvailable` is NAV less the used margin. The default differs from that on purpose: it
    shows that the figure is taken and not computed.
    """

    id: str
    currency: str = "EUR"
    alias: str = "Primary"
    balance: Decimal = Decimal("25310.4426")
    unrealized: Decimal = Decimal("-127.9300")
    margin_used: Decimal = Decimal("1940.2271")
    margin_available: Decimal = Decimal("23246.1055")
    # Listed, but its summary is refused, as for accounts of another platform.
    refused: bool = False
    moving: bool = False
    open_trades: int = 3
    # The number of the newest transaction.
    last_transaction: int = 2417


class OandaSimulator(DemoVenue):
    """Simulates api-fxtrade.oanda.com."""

    exchange_id = "oanda"
    moves_to_a_push = _MOVES_TO_A_TRADE
    named_by = "`account.id` of a summary, and `accounts[].id` of the list"
    trouble_witnesses: ClassVar[Mapping[str, str]] = {
        "wrong key": "vendor: https://developer.oanda.com/rest-live-v20/troubleshooting-errors/",
        "missing right": "report: https://github.com/hootnot/oanda-api-v20/issues/202",
        "wrong environment": "report: https://github.com/happydasch/btoandav20/issues/71",
        "unknown account": "vendor: https://developer.oanda.com/rest-live-v20/troubleshooting-errors/",
        "rate limit": "unproven: OANDA's answer over its limits was looked for",
        "outage": "unproven: an answer of OANDA during an outage was looked for",
    }

    def __init__(self) -> None:
        super().__init__()
        # The accounts that each token reads, by their ids.
        self.tokens: dict[str, dict[str, SimulatedAccount]] = {}
        # Seconds between two heartbeats of a stream, and within which two streams may begin.
        self.heartbeat_every = 5.0
        self.opening_window = 1.0
        self._openings: list[float] = []
        self._moves = 0
        self._random = random.Random(20)

    def add_token(self, token: str, *accounts: SimulatedAccount) -> None:
        """Let `token` read these accounts."""
        self.tokens[token] = {account.id: account for account in accounts}

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v3/accounts", self._list),
            web.get("/v3/accounts/{id}/summary", self._summary),
            web.get("/v3/accounts/{id}/transactions/stream", self._stream),
        ]

    def account_of(self, request: web.Request, body: bytes) -> str:
        return bearer_token(request)

    def _accounts(self, request: web.Request) -> dict[str, SimulatedAccount]:
        """The accounts of the request's token."""
        accounts = self.tokens.get(self.account_of(request, b""))
        if accounts is None:
            raise _refusal("token")
        return accounts

    async def _list(self, request: web.Request) -> web.Response:
        accounts = [{"id": account.id, "tags": []} for account in self._accounts(request).values()]
        return web.json_response({"accounts": accounts}, headers={"RequestID": _REQUEST_ID})

    async def _summary(self, request: web.Request) -> web.Response:
        account = self._account(request)
        answer = {"account": _summary(account), "lastTransactionID": str(account.last_transaction)}
        return web.json_response(answer, headers={"RequestID": _REQUEST_ID})

    def _account(self, request: web.Request) -> SimulatedAccount:
        account = self._accounts(request).get(request.match_info["id"])
        if account is None or account.refused:
            raise _refusal("account")
        return account

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        account, now = self._account(request), time.monotonic()
        self._openings = [begun for begun in self._openings if begun > now - self.opening_window]
        if len(self._openings) >= _NEW_STREAMS or len(self.push.clients) >= _MOST_STREAMS:
            raise _refusal("streams")
        self._openings.append(now)
        heart = asyncio.create_task(self._beat(account), name="heartbeats of a stream")
        try:
            return await self.push.stream(request, account.id, account=self.account_of(request, b""))
        finally:
            heart.cancel()

    async def _beat(self, account: SimulatedAccount) -> None:
        while True:
            await asyncio.sleep(self.heartbeat_every)
            self.push.publish(account.id, _heartbeat(account))

    def trade(self, account: SimulatedAccount, profit: Decimal, *, lost: bool = False) -> None:
        """Book the profit of a closed trade. Its transaction is streamed, unless it gets `lost`."""
        account.balance += profit
        account.last_transaction += 1
        if not lost:
            self.push.publish(account.id, _order_fill(account, profit))

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        token = f"demo-{situation}-token"
        first = SimulatedAccount("101-004-7654321-001", moving=situation == "moving")
        if situation == "empty":
            zero = Decimal("0.0000")
            empty = SimulatedAccount("101-004-7654321-009", "EUR", "Empty", zero, zero, zero, zero, open_trades=0)
            self.add_token(token, empty)
        elif situation == "partly":
            flat, held = Decimal("0.0000"), Decimal("912.5000")
            second = SimulatedAccount("101-004-7654321-002", "USD", "Second", held, flat, flat, held, open_trades=0)
            self.add_token(token, first, second, SimulatedAccount("101-004-7654321-003", refused=True))
        elif situation != "refused":
            self.add_token(token, first)
        # A balance needs two answers: the list of accounts, and the summary of one.
        show_situation(self, situation, token, answers=2)
        return {"api_key": token}

    def revoke_demo_key(self) -> bool:
        return self.tokens.pop("demo-moving-token", None) is not None

    def other_credential(self) -> Mapping[str, Any]:
        self.add_token("other-token", SimulatedAccount("101-004-1112223-001", balance=Decimal("77.7700")))
        return {"api_key": "other-token"}

    def troubled_credential(self, trouble: str) -> Mapping[str, Any] | None:
        token = f"trouble-{trouble.replace(' ', '-')}-token"
        if trouble in ("wrong key", "wrong environment"):
            # The token is not added: the live venue knows a practice token as little as a mistyped one.
            return {"api_key": token}
        self.add_token(token, SimulatedAccount("101-004-7654321-001"))
        if trouble == "missing right":
            foreign = "101-004-1112223-001"
            self.add_token("somebody-elses-token", SimulatedAccount(foreign))
            return {"api_key": token, "extra_metadata": {"account_id": foreign}}
        if trouble == "unknown account":
            return {"api_key": token, "extra_metadata": {"account_id": "101-004-7654321-999"}}
        # OANDA has no header for how long to wait.
        show_situation(self, trouble, token, limit=Fault.rate_limited(""))
        return {"api_key": token}

    def move(self) -> None:
        self._moves += 1
        for account in (one for accounts in self.tokens.values() for one in accounts.values() if one.moving):
            account.unrealized += self._profit()
            if self._moves % _MOVES_TO_A_TRADE == 0:
                self.trade(account, self._profit())

    def _profit(self) -> Decimal:
        return Decimal(self._random.randint(-4000, 4200)).scaleb(-4)


def _summary(account: SimulatedAccount) -> dict[str, Any]:
    nav = account.balance + account.unrealized
    return {
        "id": account.id,
        "alias": account.alias,
        "currency": account.currency,
        "createdTime": "2024-02-11T09:14:52.118340297Z",
        "createdByUserID": 7654321,
        "hedgingEnabled": False,
        "balance": str(account.balance),
        "openTradeCount": account.open_trades,
        "openPositionCount": 2,
        "pendingOrderCount": 1,
        "pl": "310.4426",
        "financing": "-18.2210",
        "dividendAdjustment": "0",
        "unrealizedPL": str(account.unrealized),
        "NAV": str(nav),
        "marginUsed": str(account.margin_used),
        "marginAvailable": str(account.margin_available),
        "positionValue": "58265.0790",
        "marginCloseoutPercent": "0.03852",
        "withdrawalLimit": str(account.margin_available),
        "lastTransactionID": str(account.last_transaction),
    }


def _heartbeat(account: SimulatedAccount) -> dict[str, Any]:
    return {
        "type": "HEARTBEAT",
        "lastTransactionID": str(account.last_transaction),
        "time": "2025-11-24T15:20:05.002855862Z",
    }


def _order_fill(account: SimulatedAccount, profit: Decimal) -> dict[str, Any]:
    number = str(account.last_transaction)
    return {
        "type": "ORDER_FILL",
        "id": number,
        "batchID": number,
        "accountID": account.id,
        "userID": 7654321,
        "time": "2025-11-24T15:20:02.593753865Z",
        "instrument": "EUR_USD",
        "reason": "MARKET_ORDER_TRADE_CLOSE",
        "units": "-1000",
        "pl": str(profit),
        "accountBalance": str(account.balance),
    }


def _refusal(what: str) -> web.HTTPError:
    kind, message = _REFUSALS[what]
    body = json.dumps({"errorMessage": message})
    return kind(text=body, content_type="application/json", headers={"RequestID": _REQUEST_ID})
