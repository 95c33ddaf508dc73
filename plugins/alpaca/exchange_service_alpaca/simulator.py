"""A simulator of Alpaca: its answers, errors and pushes. It shares no code with the client and so no mistake."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

from aiohttp import web

from exchange_service.testing import DemoVenue, show_situation
from exchange_service.testing.push import PushClient

# What Alpaca says when it refuses a request: the status and the body.
_REFUSALS: Mapping[str, tuple[type[web.HTTPError], Mapping[str, Any]]] = {
    # witness: report: https://github.com/alpacahq/alpaca-py/issues/347
    "unknown key": (web.HTTPForbidden, {"message": "forbidden."}),
    # witness: report: https://github.com/alpacahq/alpaca-py/issues/519
    "other environment": (web.HTTPUnauthorized, {"code": 40110000, "message": "request is not authorized"}),
    # witness: CCXT: alpaca.exceptions
    "42910000": (web.HTTPTooManyRequests, {"code": 42910000, "message": "rate limit exceeded"}),
}
# The refusal of a key that has used its requests up.
_LIMITED = "42910000"
# witness: vendor: https://forum.alpaca.markets/t/executing-orders/12029
_LIMIT_HEADERS = ("X-Ratelimit-Limit", "X-Ratelimit-Remaining", "X-Ratelimit-Reset")
# Seconds until the simulated limit begins again.
_RESET_AFTER = 30
_SECRET = "demo-secret-of-alpaca-0123456789"


@dataclass(slots=True)
class SimulatedPosition:
    """A position at a price; its quantity is negative if it is short."""

    symbol: str
    quantity: Decimal
    price: Decimal
    asset_class: str = "us_equity"
    # How much of it open orders hold.
    ordered: Decimal = Decimal(0)


def _two_positions() -> list[SimulatedPosition]:
    return [
        SimulatedPosition("AAPL", Decimal(12), Decimal("191.25"), ordered=Decimal(2)),
        SimulatedPosition("BTCUSD", Decimal("0.0425"), Decimal("61250.5"), "crypto"),
    ]


@dataclass(slots=True)
class SimulatedAccount:
    """One account: money, positions, and its status."""

    id: str
    number: str
    cash: Decimal = Decimal("5250.75")
    positions: list[SimulatedPosition] = field(default_factory=_two_positions)
    status: str = "ACTIVE"
    moving: bool = False
    moves: int = 0


@dataclass(slots=True)
class SimulatedKey:
    """A key: its secret, the account that it opens, and which of _REFUSALS it meets."""

    secret: str
    account: SimulatedAccount
    refusal: str = ""


class AlpacaSimulator(DemoVenue):
    """Simulates api.alpaca.markets and its socket."""

    exchange_id = "alpaca"
    allowed_requests = ("GET /v2/account", "GET /v2/positions")
    settings: ClassVar[Mapping[str, Any]] = {"follow_orders": True}
    # Orders are pushed, and prices are not.
    moves_to_a_push = 2
    named_by = "`id` of the account, and positions by what they are worth"
    trouble_witnesses: ClassVar[Mapping[str, str]] = {
        "wrong key": "report: https://github.com/alpacahq/alpaca-py/issues/347",
        "missing right": "unproven: the statuses are documented, and no answer of an application was found",
        "wrong environment": "report: https://github.com/alpacahq/alpaca-py/issues/519",
        "rate limit": "CCXT: alpaca.exceptions",
        "outage": "unproven: a page of a gateway; searched the documents and the issues of alpacahq",
    }

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, SimulatedKey] = {}
        self._random = random.Random(7)

    def add_key(self, key_id: str, account: SimulatedAccount, *, refusal: str = "") -> Mapping[str, Any]:
        """Let this key open the account; the fields to store for it."""
        self.keys[key_id] = SimulatedKey(_SECRET, account, refusal)
        return {"api_key": key_id, "api_secret": _SECRET}

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v2/account", self._account),
            web.get("/v2/positions", self._positions),
            web.get("/stream", self._stream),
        ]

    def account_of(self, request: web.Request, body: bytes) -> str:
        return request.headers.get("APCA-API-KEY-ID", "")

    async def _account(self, request: web.Request) -> web.Response:
        return web.json_response(account_answer(self._opened(request)), headers=_limit_headers(190))

    async def _positions(self, request: web.Request) -> web.Response:
        answer = [_position(position) for position in self._opened(request).positions]
        return web.json_response(answer, headers=_limit_headers(189))

    def _opened(self, request: web.Request) -> SimulatedAccount:
        key = self.keys.get(self.account_of(request, b""))
        if key is None or key.secret != request.headers.get("APCA-API-SECRET-KEY"):
            raise _refuse("unknown key")
        if key.refusal:
            raise _refuse(key.refusal)
        return key.account

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        return await self.push.serve(request, self._answer)

    def _answer(self, client: PushClient, message: Any) -> None:
        """Answer a message of a connection, which logs in before it listens."""
        action, data = message.get("action"), message.get("data", {})
        if action == "authenticate":
            key = self.keys.get(data.get("key_id", ""))
            if key is not None and key.secret == data.get("secret_key") and not key.refusal:
                client.account = data["key_id"]
            _send(client, "authorization", {"status": _status_of(client), "action": action})
        elif action == "listen" and not client.account:
            _send(client, "authorization", {"status": _status_of(client), "action": action})
        elif action == "listen":
            streams = [stream for stream in data.get("streams", ()) if stream == "trade_updates"]
            client.topics = {client.account} if streams else set()
            _send(client, "listening", {"streams": streams})

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        if situation == "partly":
            # A key opens one account, so there is nothing of which a part could fail.
            return None
        key_id = f"PKDEMO{situation.upper()}"
        account = SimulatedAccount("e6fe16f3-64a4-4921-8928-cadf02f92f98", "PA3DEMO00001", moving=situation == "moving")
        if situation == "empty":
            account = SimulatedAccount("0b1d8d2c-4f4e-4d0b-9a34-1c7f0e1d2a3b", "PA3DEMO00002", Decimal(0), [])
        row = self.add_key(key_id, account, refusal=_LIMITED if situation == "limited" else "")
        if situation == "refused":
            del self.keys[key_id]
        if situation != "limited":
            show_situation(self, situation, key_id, answers=2)
        return row

    def revoke_demo_key(self) -> bool:
        return self.keys.pop("PKDEMOMOVING", None) is not None

    def other_credential(self) -> Mapping[str, Any]:
        held = [SimulatedPosition("TSLA", Decimal(-3), Decimal("240.10"))]
        account = SimulatedAccount("7f2f6a1e-9d0c-4b53-8a77-5d0f6c1b2e4d", "PA3OTHER0001", Decimal("77.77"), held)
        return self.add_key("PKOFANOTHERUSER", account)

    def troubled_credential(self, trouble: str) -> Mapping[str, Any] | None:
        if trouble == "unknown account":
            # No account is named in a request: a key belongs to one.
            return None
        key_id = f"PKTROUBLE{trouble.replace(' ', '').upper()}"
        account = SimulatedAccount("e6fe16f3-64a4-4921-8928-cadf02f92f98", "PA3DEMO00001")
        refusal = {"wrong environment": "other environment", "rate limit": _LIMITED}.get(trouble, "")
        row = self.add_key(key_id, account, refusal=refusal)
        if trouble == "wrong key":
            del self.keys[key_id]
        elif trouble == "missing right":
            account.status, account.cash, account.positions = "SUBMITTED", Decimal(0), []
        elif not refusal:
            show_situation(self, trouble, key_id, answers=2)
        return row

    def move(self) -> None:
        for key_id, key in list(self.keys.items()):
            if key.account.moving:
                self._move(key_id, key.account)

    def _move(self, key_id: str, account: SimulatedAccount) -> None:
        """Prices move each time, and each second time an order for a share is filled, which is pushed."""
        share = account.positions[0]
        share.price += Decimal(self._random.randint(-50, 60)).scaleb(-2)
        account.moves += 1
        if account.moves % self.moves_to_a_push == 0:
            share.quantity += 1
            account.cash -= share.price
            self.push.publish(key_id, _frame("trade_updates", _fill(share)))


def account_answer(account: SimulatedAccount) -> dict[str, Any]:
    """An account as Alpaca writes it, of which a balance needs a part."""
    values = [position.quantity * position.price for position in account.positions]
    equity = account.cash + sum(values)
    return {
        "id": account.id,
        "account_number": account.number,
        "status": account.status,
        "crypto_status": account.status,
        "currency": "USD",
        "buying_power": str(max(account.cash, Decimal(0)) * 2),
        "non_marginable_buying_power": str(max(account.cash, Decimal(0))),
        "cash": str(account.cash),
        "portfolio_value": str(equity),
        "equity": str(equity),
        "long_market_value": str(sum(value for value in values if value > 0)),
        "short_market_value": str(sum(value for value in values if value < 0)),
        "initial_margin": str(sum(map(abs, values)) / 2),
        "multiplier": "2",
        "trading_blocked": False,
        "transfers_blocked": False,
        "account_blocked": False,
        "trade_suspended_by_user": False,
        "shorting_enabled": True,
        "created_at": "2023-01-01T18:20:20.272275Z",
    }


def _position(position: SimulatedPosition) -> dict[str, Any]:
    return {
        "asset_id": f"904837e3-3b76-47ec-b432-{sum(position.symbol.encode()):012d}",
        "symbol": position.symbol,
        "exchange": "CRYPTO" if position.asset_class == "crypto" else "NASDAQ",
        "asset_class": position.asset_class,
        "qty": str(position.quantity),
        "qty_available": str(position.quantity - position.ordered),
        "side": "short" if position.quantity < 0 else "long",
        "market_value": str(position.quantity * position.price),
        "current_price": str(position.price),
    }


def _fill(position: SimulatedPosition) -> dict[str, Any]:
    return {
        "event": "fill",
        "order": {"symbol": position.symbol, "side": "buy", "qty": "1", "filled_qty": "1", "status": "filled"},
        "position_qty": str(position.quantity),
        "price": str(position.price),
        "qty": "1",
    }


def _frame(stream: str, data: Mapping[str, Any]) -> bytes:
    """A message as the paper environment sends it, in a binary frame."""
    return json.dumps({"stream": stream, "data": data}).encode()


def _send(client: PushClient, stream: str, data: Mapping[str, Any]) -> None:
    client.send(_frame(stream, data))


def _status_of(client: PushClient) -> str:
    return "authorized" if client.account else "unauthorized"


def _limit_headers(left: int) -> dict[str, str]:
    return dict(zip(_LIMIT_HEADERS, ("200", str(left), str(int(time.time()) + _RESET_AFTER)), strict=True))


def _refuse(name: str) -> web.HTTPError:
    kind, body = _REFUSALS[name]
    headers = _limit_headers(0) if name == _LIMITED else {}
    return kind(text=json.dumps(body), content_type="application/json", headers=headers)
