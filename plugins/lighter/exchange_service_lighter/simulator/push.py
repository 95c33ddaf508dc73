"""The WebSocket of the simulator: its handshake, its channels, its limits, and what they refuse."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from aiohttp import web

from exchange_service.testing.push import PushClient, PushSide

# The channels that need no token, and those that do.
# witness: test data: lev7finance/lighter-ts test/fixtures/ws/channels/account_all.json
_PUBLIC = frozenset({"account_all", "user_stats"})
# witness: report: elliottech/lighter-python#153
_PRIVATE = frozenset({"account_all_assets", "account_all_orders", "account_tx"})
# The refusals: Lighter's code and its sentence, which names the subscription at its end where it has one.
_REFUSALS: dict[str, tuple[int, str]] = {
    # witness: test data: lev7finance/lighter-ts test/fixtures/ws/errors.json
    "type": (30001, "Invalid Type"),
    "not subscribed": (30002, "Not Subscribed to : "),
    "subscribed": (30003, "Already Subscribed to : "),
    "channel": (30005, "Invalid Channel"),
    "token": (20001, "invalid param : auth field is required: "),
    # witness: report: lev7finance/lighter-ts docs/spec/06-websocket.md
    "subscriptions": (23001, "Too Many Subscriptions!"),
    "accounts": (23002, "Too Many Different Accounts!"),
    "messages": (30009, "Too Many Websocket Messages!"),
    "inflight": (30010, "Too Many Inflight Messages!"),
}
_MINUTE = 60.0


@dataclass(slots=True)
class SimulatedLimits:
    """What the venue allows: connections at once, new ones and messages in a minute for everybody together, messages
    that wait for an answer likewise; subscriptions and accounts of one connection."""

    connections: int = 255
    connects: int = 80
    messages: int = 200
    inflight: int = 50
    subscriptions: int = 500
    accounts: int = 500


class PushedChannels:
    """The open connections and what they follow. `entry` gives an account as a read shows it, None if there is none."""

    def __init__(self, push: PushSide, entry: Callable[[int], Mapping[str, Any] | None]) -> None:
        self.limits = SimulatedLimits()
        # Channels that need a token although they usually do not.
        self.private: set[str] = set()
        # How many refusals of each kind were sent.
        self.refused: dict[str, int] = {}
        # Whether subscriptions wait for `acknowledge`, as at a slow venue.
        self.slow = False
        self._push = push
        self._entry = entry
        self._shown: dict[int, Mapping[str, Any]] = {}
        self._connects: deque[float] = deque()
        self._messages: deque[float] = deque()
        self._waiting: list[tuple[PushClient, str, int]] = []
        self._clock = 1764000000000

    @property
    def waiting(self) -> int:
        """How many subscriptions wait for `acknowledge`."""
        return len(self._waiting)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Accept a connection, and greet it."""
        too_often = _counted(self._connects) > self.limits.connects
        if too_often or len(self._push.clients) >= self.limits.connections:
            return web.Response(status=429, text='{"code": 23003, "message": "Too Many Connections!"}')
        return await self._push.serve(
            request, self._answer, greet=lambda client: client.send({"session_id": "simulated", "type": "connected"})
        )

    def _answer(self, client: PushClient, message: Any) -> None:
        if _counted(self._messages) > self.limits.messages:
            self._refuse(client, "messages")
        elif message["type"] == "ping":
            client.send({"type": "pong"})
        elif message["type"] in ("subscribe", "unsubscribe"):
            getattr(self, f"_{message['type']}")(client, message)
        elif message["type"] != "pong":
            self._refuse(client, "type")

    def _refuse(self, client: PushClient, kind: str, named: str = "") -> None:
        self.refused[kind] = self.refused.get(kind, 0) + 1
        code, sentence = _REFUSALS[kind]
        client.send({"error": {"code": code, "message": sentence + named}})

    def _subscribe(self, client: PushClient, message: Mapping[str, Any]) -> None:
        channel, _, number = message["channel"].partition("/")
        topic = f"{channel}:{number}"
        refusal = self._refusal(client, channel, number, message.get("auth"))
        if refusal is not None:
            self._refuse(client, refusal, topic if refusal in ("token", "subscribed") else "")
        elif self.slow and len(self._waiting) >= self.limits.inflight:
            self._refuse(client, "inflight")
        elif self.slow:
            self._waiting.append((client, channel, int(number)))
        else:
            self._begin(client, channel, int(number))

    def _refusal(self, client: PushClient, channel: str, number: str, token: str | None) -> str | None:
        if channel not in _PUBLIC | _PRIVATE or not number.isdigit() or self._entry(int(number)) is None:
            return "channel"
        if (channel in _PRIVATE or channel in self.private) and not token:
            return "token"
        if f"{channel}:{number}" in client.topics:
            return "subscribed"
        if len(client.topics) >= self.limits.subscriptions:
            return "subscriptions"
        accounts = {str(topic).partition(":")[2] for topic in client.topics}
        return "accounts" if len(accounts | {number}) > self.limits.accounts else None

    def acknowledge(self) -> int:
        """Begin the subscriptions that wait. Returns how many there were."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            self._begin(*one)
        return len(waiting)

    def _begin(self, client: PushClient, channel: str, index: int) -> None:
        client.topics.add(f"{channel}:{index}")
        entry = self._entry(index)
        if entry is not None and channel in _PUBLIC:
            self._shown.setdefault(index, entry)
            client.send(self._money(entry, "subscribed") if channel == "user_stats" else _whole(entry))

    def _unsubscribe(self, client: PushClient, message: Mapping[str, Any]) -> None:
        topic = message["channel"].replace("/", ":")
        if topic not in client.topics:
            self._refuse(client, "not subscribed", topic)
            return
        client.topics.discard(topic)
        client.send({"type": "unsubscribed", "channel": topic})

    def publish(self, index: int) -> None:
        """Push what has changed in an account since the last time. The profit of a position is no change of it."""
        entry = self._entry(index)
        if entry is None:
            return
        before, self._shown[index] = self._shown.get(index), entry
        moved = _moved(before, entry) if before is not None else _whole(entry)
        if before is None or _figures(before) != _figures(entry):
            self._push.publish(f"user_stats:{index}", self._money(entry, "update"))
        if any(moved[key] for key in ("positions", "assets", "shares")):
            self._push.publish(f"account_all:{index}", {**moved, "type": "update/account_all"})

    def ping(self) -> None:
        """Ask every connection whether it still is there."""
        for client in self._push.clients:
            client.send({"type": "ping"})

    def shut_down(self, close_in_ms: int) -> None:
        """Tell every connection that it ends, and end it."""
        for client in list(self._push.clients):
            client.send({"type": "shutdown", "close_in_ms": close_in_ms})
            client.close()

    def _money(self, entry: Mapping[str, Any], action: str) -> dict[str, Any]:
        self._clock += 1
        isolated = sum((Decimal(position["allocated_margin"]) for position in entry["positions"]), Decimal(0))
        collateral, available = Decimal(entry["collateral"]), Decimal(entry["available_balance"])
        total = _stats(collateral, Decimal(entry["total_asset_value"]), available)
        cross = _stats(collateral - isolated, Decimal(entry["cross_asset_value"]), available)
        return {
            "channel": f"user_stats:{entry['index']}",
            "stats": {
                **total,
                "account_trading_mode": entry["account_trading_mode"],
                "cross_stats": cross,
                "total_stats": total,
            },
            "timestamp": self._clock,
            "type": f"{action}/user_stats",
        }


def _counted(times: deque[float]) -> int:
    """How many came in the last minute, one now included."""
    now = asyncio.get_running_loop().time()
    times.append(now)
    while times[0] <= now - _MINUTE:
        times.popleft()
    return len(times)


def _stats(collateral: Decimal, value: Decimal, available: Decimal) -> dict[str, str]:
    return {
        "collateral": f"{collateral:.6f}",
        "portfolio_value": f"{value:.6f}",
        "leverage": "0.00",
        "available_balance": f"{available:.6f}",
        "margin_usage": f"{(value - available) / value * 100 if value else Decimal(0):.2f}",
        "buying_power": "0",
    }


def _figures(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[key] for key in ("collateral", "total_asset_value", "available_balance", "account_trading_mode"))


def _whole(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "account": entry["index"],
        "assets": {str(asset["asset_id"]): asset for asset in entry["assets"]},
        "channel": f"account_all:{entry['index']}",
        "daily_trades_count": 0,
        "daily_volume": 0,
        "funding_histories": {},
        "positions": {str(position["market_id"]): position for position in entry["positions"]},
        "shares": entry["shares"],
        "trades": {},
        "type": "subscribed/account_all",
    }


def _moved(before: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Only what changed: of the positions those that were traded, and no map of assets if none moved."""
    old, new = _whole(before), _whole(entry)
    assets = {number: asset for number, asset in new["assets"].items() if old["assets"].get(number) != asset}
    return {
        **{key: new[key] for key in ("account", "channel", "funding_histories", "trades")},
        "assets": assets or None,
        "positions": _traded(old["positions"], new["positions"]),
        "shares": new["shares"] if new["shares"] != old["shares"] else [],
    }


def _traded(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The positions whose size or margin changed; one that is gone has the size zero."""
    kept = ("position", "sign", "avg_entry_price", "margin_mode", "allocated_margin")
    traded = {
        number: position
        for number, position in new.items()
        if number not in old or any(position[key] != old[number][key] for key in kept)
    }
    gone = {number: {**position, "position": "0.0000"} for number, position in old.items() if number not in new}
    return {**traded, **gone}
