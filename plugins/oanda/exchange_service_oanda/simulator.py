"""OANDA on loopback: the v20 answers and errors. It uses nothing of the client, so that no mistake hides in both."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from aiohttp import web

from exchange_service.testing import DemoVenue, Fault

# OANDA names every answer, so that its support can find it.
_REQUEST_ID = "42717890123456789"


@dataclass(slots=True)
class SimulatedAccount:
    """One v20 account; amounts in its currency."""

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


class OandaSimulator(DemoVenue):
    """Plays api-fxtrade.oanda.com."""

    exchange_id = "oanda"

    def __init__(self) -> None:
        super().__init__()
        # The accounts that each token reads, by their ids.
        self.tokens: dict[str, dict[str, SimulatedAccount]] = {}
        self._random = random.Random(20)

    def add_token(self, token: str, *accounts: SimulatedAccount) -> None:
        """Let `token` read these accounts."""
        self.tokens[token] = {account.id: account for account in accounts}

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v3/accounts", self._list),
            web.get("/v3/accounts/{id}/summary", self._summary),
        ]

    def account_of(self, request: web.Request, body: bytes) -> str:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return token if scheme == "Bearer" else ""

    def _accounts(self, request: web.Request) -> dict[str, SimulatedAccount]:
        """The accounts of the request's token."""
        accounts = self.tokens.get(self.account_of(request, b""))
        if accounts is None:
            raise _error(web.HTTPUnauthorized, "Insufficient authorization to perform request.")
        return accounts

    async def _list(self, request: web.Request) -> web.Response:
        accounts = [{"id": account.id, "tags": []} for account in self._accounts(request).values()]
        return web.json_response({"accounts": accounts}, headers={"RequestID": _REQUEST_ID})

    async def _summary(self, request: web.Request) -> web.Response:
        account_id = request.match_info["id"]
        account = self._accounts(request).get(account_id)
        if account is None and not any(account_id in accounts for accounts in self.tokens.values()):
            raise _error(web.HTTPNotFound, "The account specified does not exist.")
        if account is None or account.refused:
            raise _error(web.HTTPForbidden, "The provided request was forbidden.")
        answer = {"account": _summary(account), "lastTransactionID": "2417"}
        return web.json_response(answer, headers={"RequestID": _REQUEST_ID})

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        token = f"demo-{situation}-token"
        first = SimulatedAccount("101-004-7654321-001", moving=situation == "moving")
        if situation == "empty":
            zero = Decimal("0.0000")
            self.add_token(token, SimulatedAccount("101-004-7654321-009", "EUR", "Empty", zero, zero, zero, zero))
        elif situation == "partly":
            flat, held = Decimal("0.0000"), Decimal("912.5000")
            second = SimulatedAccount("101-004-7654321-002", "USD", "Second", held, flat, flat, held)
            self.add_token(token, first, second, SimulatedAccount("101-004-7654321-003", refused=True))
        elif situation != "refused":
            self.add_token(token, first)
        if situation == "limited":
            self.fail(Fault.rate_limited("30")).account = token
        elif situation == "slow":
            self.fail(Fault(delay=3.0, pass_on=True, account=token))
        elif situation == "stale":
            # One good answer for the list and one for the summary, then trouble.
            self.fail(Fault.html(503)).account = token
            self.fail(Fault(pass_on=True, account=token, times=2))
        return {"api_key": token}

    def troubled_credential(self, trouble: str) -> Mapping[str, Any] | None:
        token = f"trouble-{trouble.replace(' ', '-')}-token"
        if trouble in ("wrong key", "wrong environment"):
            # Neither is known here: a practice token is to the live venue what a mistyped one is.
            return {"api_key": token}
        self.add_token(token, SimulatedAccount("101-004-7654321-001"))
        if trouble == "missing right":
            foreign = "101-004-1112223-001"
            self.add_token("somebody-elses-token", SimulatedAccount(foreign))
            return {"api_key": token, "extra_metadata": {"account_id": foreign}}
        if trouble == "unknown account":
            return {"api_key": token, "extra_metadata": {"account_id": "101-004-7654321-999"}}
        if trouble == "rate limit":
            # OANDA says neither in headers how much is left nor for how long to wait.
            self.fail(Fault.rate_limited("")).account = token
        elif trouble == "outage":
            self.fail(Fault.html(503)).account = token
        return {"api_key": token}

    def move(self) -> None:
        for accounts in self.tokens.values():
            for account in accounts.values():
                if account.moving:
                    account.unrealized += Decimal(self._random.randint(-4000, 4200)).scaleb(-4)


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
        "openTradeCount": 3,
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
        "lastTransactionID": "2417",
    }


def _error(kind: type[web.HTTPError], message: str) -> web.HTTPError:
    body = json.dumps({"errorMessage": message})
    return kind(text=body, content_type="application/json", headers={"RequestID": _REQUEST_ID})
