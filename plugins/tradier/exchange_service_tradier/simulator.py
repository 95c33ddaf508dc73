"""A simulator of Tradier: its answers and errors. It shares no code with the client, so it repeats no mistake."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

from aiohttp import web

from exchange_service.testing import DemoVenue, bearer_token, show_situation
from exchange_service.testing.push import PushClient

_ZERO = Decimal(0)
_WINDOW = 60
# The faults of Tradier's gateway: the status, `faultstring` and `errorcode`.
_FAULTS: Mapping[str, tuple[type[web.HTTPError], str, str]] = {
    # witness: test data: QuantConnect/Lean.Brokerages.Tradier TradierBrokerageAditionalTests.cs
    "token": (web.HTTPUnauthorized, "Invalid Access Token", "keymanagement.service.invalid_access_token"),
    "expired": (
        web.HTTPInternalServerError,
        "Access Token expired",
        "keymanagement.service.access_token_expired",
    ),
    # witness: unproven: Tradier's answer over the limit was looked for; this is how Apigee, its gateway, says it
    "quota": (
        web.HTTPTooManyRequests,
        "Rate limit quota violation. Quota limit exceeded.",
        "policies.ratelimit.QuotaViolation",
    ),
}

# Before the number. Its status is unproven: the test does not state it.
# witness: test data: QuantConnect/Lean.Brokerages.Tradier TradierBrokerageTests.cs
_UNAUTHORIZED_ACCOUNT = "Unauthorized Account: "

# What the socket says of a session that it refuses.
_SESSION_ERRORS: Mapping[str, str] = {
    # witness: report: zerotype19/gekko3 brain/SESSION_FIX_SUMMARY.md
    "unknown": "session not found",
    # witness: report: https://github.com/QuantConnect/Lean.Brokerages.Tradier/pull/15
    "several": "too many sessions requested",
}
# Each so many moves the moving accounts trade; between them only prices move.
_MOVES_TO_A_TRADE = 2


@dataclass(slots=True)
class SimulatedAccount:
    """One brokerage account; amounts in US dollars. The default is the venue's margin example.

    `block` holds the figures that stand under the account type: "margin", "pdt" or "cash".
    """

    number: str
    type: str = "margin"
    option_level: int | None = 3
    status: str = "active"
    total_cash: Decimal = Decimal("18450.2700000000000000")
    stock_long_value: Decimal = Decimal("21230.00")
    option_long_value: Decimal = Decimal("1875.00")
    option_short_value: Decimal = Decimal("-940.00")
    open_pl: Decimal = Decimal("612.40")
    current_requirement: Decimal = Decimal("11555.00")
    option_requirement: Decimal = _ZERO
    pending_cash: Decimal = Decimal("410.50")
    block: Mapping[str, Any] = field(
        default_factory=lambda: {
            "fed_call": 0,
            "maintenance_call": 0,
            "option_buying_power": Decimal("14203.77"),
            "stock_buying_power": Decimal("28407.54"),
            "stock_short_value": 0,
            "sweep": 0,
        }
    )
    # Fields of the balances to replace; `...` leaves a field out.
    changes: Mapping[str, Any] = field(default_factory=dict)
    # Whether the number, all digits, is sent as a JSON number, as older answers had it.
    bare_number: bool = False
    # Listed in the profile, but refused to this token.
    refused: bool = False
    moving: bool = False


@dataclass(slots=True)
class SimulatedToken:
    """A token, its accounts, its sessions that nobody has used yet, and how many requests it has sent in the current
    minute."""

    accounts: dict[str, SimulatedAccount] = field(default_factory=dict)
    # The id of the user in the profile.
    user: str = "id-abc12345"
    expired: bool = False
    # Whether every request is over the limit.
    limited: bool = False
    minute: int = 0
    used: int = 0
    # By their ids, when they end.
    sessions: dict[str, float] = field(default_factory=dict)


def cash_account(number: str, **changes: Any) -> SimulatedAccount:
    """A cash account that holds 5370.33 dollars, of which 250.00 have not settled, and nothing else."""
    figures: dict[str, Any] = {
        "type": "cash",
        "option_level": 0,
        "total_cash": Decimal("5370.33"),
        "stock_long_value": _ZERO,
        "option_long_value": _ZERO,
        "option_short_value": _ZERO,
        "open_pl": _ZERO,
        "current_requirement": _ZERO,
        "pending_cash": _ZERO,
        "block": {"cash_available": Decimal("5120.33"), "sweep": 0, "unsettled_funds": Decimal("250.00")},
    }
    return SimulatedAccount(number, **{**figures, **changes})


class TradierSimulator(DemoVenue):
    """Simulates api.tradier.com, which does not know the tokens of the sandbox."""

    exchange_id = "tradier"
    moves_to_a_push = _MOVES_TO_A_TRADE
    named_by = "`balances.account_number`, and `profile.id` with the `account_number` of each account there"
    trouble_witnesses: ClassVar[Mapping[str, str]] = {
        "wrong key": "test data: QuantConnect/Lean.Brokerages.Tradier TradierBrokerageAditionalTests.cs",
        "wrong environment": "unproven: the answer of one host to a token of the other was looked for",
        "unknown account": "test data: QuantConnect/Lean.Brokerages.Tradier TradierBrokerageTests.cs",
        "rate limit": "unproven: the body was looked for; the headers are as on Tradier's page on rate limiting",
        "outage": "unproven: an answer of Tradier during an outage was looked for",
    }
    # The requests that a token may send in a minute.
    allowance = 120

    def __init__(self) -> None:
        super().__init__()
        self.tokens: dict[str, SimulatedToken] = {}
        # What the profile holds if a token has no account: Tradier sends null, "null" or no field (`...`).
        self.no_accounts: Any = None
        # Whether tokens are refused in plain text instead of JSON, as some of the gateways do.
        self.plain_refusals = False
        # Seconds in which a session is to be used, and between two heartbeats, of which Tradier does not say it.
        self.session_life = 300.0
        self.heartbeat_every = 10.0
        # Whether a second session of a token is refused. Otherwise it takes the place of the first, which is closed.
        # Which of the two Tradier does is not known.
        self.refuses_second_session = False
        self._moves = 0
        self._random = random.Random(30)

    def add_token(self, token: str, *accounts: SimulatedAccount) -> SimulatedToken:
        """Let `token` read these accounts."""
        self.tokens[token] = SimulatedToken({account.number: account for account in accounts})
        return self.tokens[token]

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/user/profile", self._profile),
            web.get("/v1/accounts/{number}/balances", self._balances),
            web.post("/v1/accounts/events/session", self._new_session),
            web.get("/v1/accounts/events", self._events),
        ]

    def account_of(self, request: web.Request, body: bytes) -> str:
        return bearer_token(request)

    async def _profile(self, request: web.Request) -> web.Response:
        token, headers = self._admit(request)
        profile: dict[str, Any] = {"id": token.user, "name": "Jane Doe"}
        entries = [_profile_entry(account) for account in token.accounts.values()]
        if entries or self.no_accounts is not ...:
            profile["account"] = (entries[0] if len(entries) == 1 else entries) or self.no_accounts
        return _answer(request, {"profile": profile}, headers)

    async def _balances(self, request: web.Request) -> web.Response:
        token, headers = self._admit(request)
        number = request.match_info["number"]
        account = token.accounts.get(number)
        if account is None or account.refused:
            return web.Response(status=401, text=_UNAUTHORIZED_ACCOUNT + number, headers=headers)
        return _answer(request, {"balances": _figures(account)}, headers)

    async def _new_session(self, request: web.Request) -> web.Response:
        token, headers = self._admit(request)
        session = secrets.token_hex(16)
        token.sessions[session] = time.monotonic() + self.session_life
        url = "wss://ws.tradier.com/v1/accounts/events"
        return _answer(request, {"stream": {"url": url, "sessionid": session}}, headers)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        hearts: list[asyncio.Task[None]] = []

        def greet(client: PushClient) -> None:
            hearts.append(asyncio.create_task(self._beat(client), name="heartbeats of a socket"))

        try:
            return await self.push.serve(request, self._subscribe, greet=greet)
        finally:
            for heart in hearts:
                heart.cancel()

    async def _beat(self, client: PushClient) -> None:
        while True:
            await asyncio.sleep(self.heartbeat_every)
            for topic in client.topics:
                self.push.publish(topic, {"event": "heartbeat"})

    def _subscribe(self, client: PushClient, message: Any) -> None:
        """Let a socket have the order events of the token whose session it names, and end the one that had them."""
        name = self._use_session(message.get("sessionid", ""))
        others = [other for other in self.push.clients if name in other.topics and other is not client]
        if not name or message.get("events") != ["order"] or (others and self.refuses_second_session):
            client.send({"error": _SESSION_ERRORS["several" if others else "unknown"]})
            client.close()
            return
        for other in others:
            other.close()
        client.account = name
        client.topics = {name}

    def _use_session(self, session: str) -> str:
        """The token that a session is for, which can be used once; empty if there is no such session."""
        for name, token in self.tokens.items():
            if token.sessions.pop(session, 0.0) > time.monotonic():
                return name
        return ""

    def fill(self, name: str, number: str, cash: Decimal) -> None:
        """Fill an order of a token's account that brings this cash, and tell the token's session."""
        account = self.tokens[name].accounts[number]
        account.total_cash += cash
        self.push.publish(name, _order_event(number, "filled"))

    def _admit(self, request: web.Request) -> tuple[SimulatedToken, dict[str, str]]:
        """The token of a request, and the headers with its remaining requests. Raises what refuses the request."""
        token = self.tokens.get(self.account_of(request, b""))
        if token is None and self.plain_refusals:
            raise web.HTTPUnauthorized(text="Invalid Access Token")
        if token is None:
            raise _fault("token")
        if token.expired:
            raise _fault("expired")
        minute = int(time.time()) // _WINDOW
        token.used = token.used + 1 if token.minute == minute else 1
        token.minute = minute
        left = 0 if token.limited else self.allowance - token.used
        headers = {
            "X-Ratelimit-Allowed": str(self.allowance),
            "X-Ratelimit-Used": str(self.allowance - max(left, 0)),
            "X-Ratelimit-Available": str(max(left, 0)),
            "X-Ratelimit-Expiry": str((minute + 1) * _WINDOW * 1000),
        }
        if token.limited or left < 0:
            raise _fault("quota", headers)
        return token, headers

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        token = f"demo-{situation}-token"
        if situation == "refused":
            return {"api_key": token}
        self.add_token(token, *_demo_accounts(situation))
        if situation == "limited":
            self.tokens[token].limited = True
        else:
            # A balance needs two answers: the profile, and the balances of one account.
            show_situation(self, situation, token, answers=2)
        return {"api_key": token}

    def revoke_demo_key(self) -> bool:
        return self.tokens.pop("demo-moving-token", None) is not None

    def other_credential(self) -> Mapping[str, Any]:
        self.add_token("other-token", SimulatedAccount("6YZ77777", total_cash=Decimal("77.77"))).user = "id-xyz98765"
        return {"api_key": "other-token"}

    def troubled_credential(self, trouble: str) -> Mapping[str, Any] | None:
        token = f"{trouble.replace(' ', '-')}-token"
        row: dict[str, Any] = {"api_key": token}
        if trouble == "missing right":
            # Tokens have no separate rights.
            return None
        if trouble in ("wrong key", "wrong environment"):
            # The token is not added: the live host does not know tokens of the sandbox either.
            return row
        self.add_token(token, SimulatedAccount("6YA00000"))
        if trouble == "unknown account":
            row["extra_metadata"] = {"account_id": "6YZ99999"}
        elif trouble == "rate limit":
            self.tokens[token].limited = True
        else:
            show_situation(self, trouble, token)
        return row

    def lift_limits(self) -> None:
        self.allowance = 1_000_000

    def move(self) -> None:
        self._moves += 1
        moving = [(name, one) for name, token in self.tokens.items() for one in token.accounts.values() if one.moving]
        for name, account in moving:
            stocks, options = self._change(4000), self._change(400)
            account.stock_long_value += stocks
            account.option_long_value += options
            account.open_pl += stocks + options
            if self._moves % _MOVES_TO_A_TRADE == 0:
                self.fill(name, account.number, self._change(4000))

    def _change(self, cents: int) -> Decimal:
        return Decimal(self._random.randint(-cents, cents + cents // 20)).scaleb(-2)


class TradierOptionsSimulator(TradierSimulator):
    """The same venue for the listing of options, for the demo."""

    exchange_id = "tradier_options"


def _demo_accounts(situation: str) -> tuple[SimulatedAccount, ...]:
    first = SimulatedAccount("6YA00000", moving=situation == "moving")
    if situation == "partly":
        # As tradier_options the second account lacks options. The third is refused in both listings.
        return first, cash_account("6YB11111"), SimulatedAccount("6YC22222", refused=True)
    if situation == "empty":
        block = {"cash_available": 0, "sweep": 0, "unsettled_funds": 0}
        return (cash_account("6YE44444", option_level=2, total_cash=_ZERO, block=block),)
    return (first,)


def _profile_entry(account: SimulatedAccount) -> dict[str, Any]:
    entry = {
        "account_number": int(account.number) if account.bare_number else account.number,
        "classification": "individual",
        "date_created": "2023-05-09T13:30:00.000Z",
        "day_trader": account.type == "pdt",
        "option_level": account.option_level,
        "status": account.status,
        "type": "cash" if account.type == "cash" else "margin",
        "last_update_date": "2025-11-03T16:02:11.000Z",
    }
    if account.option_level is None:
        del entry["option_level"]
    return entry


def _figures(account: SimulatedAccount) -> dict[str, Any]:
    """The balances. As at the venue, market value is long plus short, and total equity is cash plus market value."""
    long = account.stock_long_value + account.option_long_value
    market_value = long + account.option_short_value
    figures = {
        "option_short_value": account.option_short_value,
        "total_equity": _cents(account.total_cash + market_value),
        "account_number": int(account.number) if account.bare_number else account.number,
        "account_type": account.type,
        "close_pl": Decimal("-35.10"),
        "current_requirement": account.current_requirement,
        "equity": 0,
        "long_market_value": long,
        "market_value": market_value,
        "open_pl": account.open_pl,
        "option_long_value": account.option_long_value,
        "option_requirement": account.option_requirement,
        "pending_orders_count": 2,
        "short_market_value": account.option_short_value,
        "stock_long_value": account.stock_long_value,
        "total_cash": account.total_cash,
        "uncleared_funds": 0,
        "pending_cash": account.pending_cash,
        account.type: account.block,
        **account.changes,
    }
    return {name: value for name, value in figures.items() if value is not ...}


def _order_event(number: str, status: str) -> dict[str, Any]:
    return {
        "id": 1107075,
        "event": "order",
        "status": status,
        "type": "limit",
        "price": 10.0,
        "stop_price": 0.0,
        "avg_fill_price": 10.0,
        "executed_quantity": 2.0,
        "last_fill_quantity": 0.0,
        "remaining_quantity": 0.0,
        "transaction_date": "2025-11-24T20:05:35.277Z",
        "create_date": "2025-11-24T20:05:35.277Z",
        "account": number,
    }


def _cents(value: Decimal) -> Decimal:
    return value.quantize(Decimal("0.01"))


def _answer(request: web.Request, value: Any, headers: Mapping[str, str]) -> web.Response:
    """JSON if the request accepts exactly that, otherwise XML, as Tradier answers."""
    if request.headers.get("Accept") != "application/json":
        return web.Response(text="<?xml version='1.0'?><balances/>", content_type="application/xml", headers=headers)
    return web.Response(text=_json(value), content_type="application/json", headers=headers)


def _json(value: Any) -> str:
    """The JSON text, with bare numbers that keep every digit."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)}: {_json(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    return json.dumps(value)


def _fault(what: str, headers: Mapping[str, str] | None = None) -> web.HTTPException:
    kind, message, code = _FAULTS[what]
    body = json.dumps({"fault": {"faultstring": message, "detail": {"errorcode": code}}})
    return kind(text=body, content_type="application/json", headers=headers)
