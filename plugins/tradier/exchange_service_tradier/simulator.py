"""Tradier on loopback: its answers and errors. It uses nothing of the client, so that no mistake hides in both."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from aiohttp import web

from exchange_service.testing import DemoVenue, Fault

_ZERO = Decimal(0)
_WINDOW = 60


@dataclass(slots=True)
class SimulatedAccount:
    """One brokerage account; amounts in dollars. The default is the venue's margin example.

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
    # Fields of the balances to send otherwise; `...` leaves one out.
    changes: Mapping[str, Any] = field(default_factory=dict)
    # All digits, and sent as a JSON number, as it was in older answers.
    bare_number: bool = False
    # In the profile, but not for this token to read.
    refused: bool = False
    moving: bool = False


@dataclass(slots=True)
class SimulatedToken:
    """A token, the accounts that it reads, and what it has sent in the minute that is counted."""

    accounts: dict[str, SimulatedAccount] = field(default_factory=dict)
    expired: bool = False
    # Every request is one too many.
    limited: bool = False
    minute: int = 0
    used: int = 0


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
    """Plays api.tradier.com. A token of the sandbox is as unknown to it as any other word."""

    exchange_id = "tradier"
    # The requests that a token may send in a minute.
    allowance = 120

    def __init__(self) -> None:
        super().__init__()
        self.tokens: dict[str, SimulatedToken] = {}
        # What stands in the profile where a token has no account; Tradier sends null, "null" or nothing (`...`).
        self.no_accounts: Any = None
        # The gateways that refuse a token in plain text instead of JSON.
        self.plain_refusals = False
        self._random = random.Random(30)

    def add_token(self, token: str, *accounts: SimulatedAccount) -> SimulatedToken:
        """Let `token` read these accounts."""
        self.tokens[token] = SimulatedToken({account.number: account for account in accounts})
        return self.tokens[token]

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/user/profile", self._profile),
            web.get("/v1/accounts/{number}/balances", self._balances),
        ]

    def account_of(self, request: web.Request, body: bytes) -> str:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return token if scheme == "Bearer" else ""

    async def _profile(self, request: web.Request) -> web.Response:
        token, headers = self._admitted(request)
        profile: dict[str, Any] = {"id": "id-abc12345", "name": "Jane Doe"}
        entries = [_profile_entry(account) for account in token.accounts.values()]
        if entries or self.no_accounts is not ...:
            profile["account"] = (entries[0] if len(entries) == 1 else entries) or self.no_accounts
        return _answer(request, {"profile": profile}, headers)

    async def _balances(self, request: web.Request) -> web.Response:
        token, headers = self._admitted(request)
        number = request.match_info["number"]
        account = token.accounts.get(number)
        if account is None or account.refused:
            return web.Response(status=401, text=f"Unauthorized Account: {number}", headers=headers)
        return _answer(request, {"balances": _figures(account)}, headers)

    def _admitted(self, request: web.Request) -> tuple[SimulatedToken, dict[str, str]]:
        """The token of a request that may pass, and the headers that tell what it may still send."""
        token = self.tokens.get(self.account_of(request, b""))
        if token is None and self.plain_refusals:
            raise web.HTTPUnauthorized(text="Invalid Access Token")
        if token is None:
            raise _fault(web.HTTPUnauthorized, "Invalid Access Token", "keymanagement.service.invalid_access_token")
        if token.expired:
            code = "keymanagement.service.access_token_expired"
            raise _fault(web.HTTPInternalServerError, "Access Token expired", code)
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
            words = "Rate limit quota violation. Quota limit exceeded."
            raise _fault(web.HTTPTooManyRequests, words, "policies.ratelimit.QuotaViolation", headers)
        return token, headers

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        token = f"demo-{situation}-token"
        if situation == "refused":
            return {"api_key": token}
        self.add_token(token, *_demo_accounts(situation))
        if situation == "limited":
            self.tokens[token].limited = True
        elif situation == "slow":
            self.fail(Fault(delay=3.0, pass_on=True, account=token))
        elif situation == "stale":
            # One good answer for the profile and one for the balances, then trouble.
            self.fail(Fault.html(503)).account = token
            self.fail(Fault(pass_on=True, account=token, times=2))
        return {"api_key": token}

    def troubled_credential(self, trouble: str) -> Mapping[str, Any] | None:
        token = f"{trouble.replace(' ', '-')}-token"
        row: dict[str, Any] = {"api_key": token}
        if trouble == "missing right":
            # A token has no rights that it could lack.
            return None
        if trouble in ("wrong key", "wrong environment"):
            # The live host knows a token of the sandbox as little as one that never was.
            return row
        self.add_token(token, SimulatedAccount("6YA00000"))
        if trouble == "unknown account":
            row["extra_metadata"] = {"account_id": "6YZ99999"}
        elif trouble == "rate limit":
            self.tokens[token].limited = True
        elif trouble == "outage":
            self.fail(Fault.html(503)).account = token
        return row

    def lift_limits(self) -> None:
        self.allowance = 1_000_000

    def move(self) -> None:
        for token in self.tokens.values():
            for account in token.accounts.values():
                if account.moving:
                    stocks, options = self._change(4000), self._change(400)
                    account.stock_long_value += stocks
                    account.option_long_value += options
                    account.open_pl += stocks + options

    def _change(self, cents: int) -> Decimal:
        return Decimal(self._random.randint(-cents, cents + cents // 20)).scaleb(-2)


class TradierOptionsSimulator(TradierSimulator):
    """The same venue for the listing of options, which the demo plays beside the other one."""

    exchange_id = "tradier_options"


def _demo_accounts(situation: str) -> tuple[SimulatedAccount, ...]:
    first = SimulatedAccount("6YA00000", moving=situation == "moving")
    if situation == "partly":
        # Seen as options, the second lacks them; the third is refused in either view.
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
    """Market value is long plus short, and total equity cash plus market value, as at the venue."""
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


def _cents(value: Decimal) -> Decimal:
    return value.quantize(Decimal("0.01"))


def _answer(request: web.Request, value: Any, headers: Mapping[str, str]) -> web.Response:
    """JSON to who asks for it by name, and XML to everybody else."""
    if request.headers.get("Accept") != "application/json":
        return web.Response(text="<?xml version='1.0'?><balances/>", content_type="application/xml", headers=headers)
    return web.Response(text=_json(value), content_type="application/json", headers=headers)


def _json(value: Any) -> str:
    """JSON with bare numbers that keep their digits."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)}: {_json(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    return json.dumps(value)


def _fault(
    kind: type[web.HTTPError], words: str, code: str, headers: Mapping[str, str] | None = None
) -> web.HTTPException:
    body = json.dumps({"fault": {"faultstring": words, "detail": {"errorcode": code}}})
    return kind(text=body, content_type="application/json", headers=headers)
