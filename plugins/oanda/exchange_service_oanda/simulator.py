"""A simulator of OANDA: the answers and errors of v20. It shares no code with the client, so it repeats no mistake."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

from aiohttp import web

from exchange_service.testing import DemoVenue, Fault, bearer_token, show_situation

# OANDA numbers every answer, for its support.
_REQUEST_ID = "42717890123456789"


# What OANDA says when it refuses a request: the status and `errorMessage`.
_REFUSALS: Mapping[str, tuple[type[web.HTTPError], str]] = {
    # witness: vendor: https://developer.oanda.com/rest-live-v20/troubleshooting-errors/
    "token": (web.HTTPUnauthorized, "Insufficient authorization to perform request."),
    # For any account that the token does not read, whether it exists or not. OANDA's page has the message with 401,
    # people report it with 403.
    "account": (web.HTTPForbidden, "The provided request was forbidden."),
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


class OandaSimulator(DemoVenue):
    """Simulates api-fxtrade.oanda.com."""

    exchange_id = "oanda"
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
        account = self._accounts(request).get(request.match_info["id"])
        if account is None or account.refused:
            raise _refusal("account")
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
        # A balance needs two answers: the list of accounts, and the summary of one.
        show_situation(self, situation, token, answers=2)
        return {"api_key": token}

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


def _refusal(what: str) -> web.HTTPError:
    kind, message = _REFUSALS[what]
    body = json.dumps({"errorMessage": message})
    return kind(text=body, content_type="application/json", headers={"RequestID": _REQUEST_ID})
