"""A simulator of Kraken Futures: its answers, errors and socket. It shares no code with the client."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

from aiohttp import web

from exchange_service.testing import DemoVenue, Fault, show_situation
from exchange_service.testing.push import PushClient

_ACCOUNTS_PAGE = "vendor: https://docs.kraken.com/api/docs/futures-api/trading/get-accounts"
# What the venue says when it refuses a request. The status is that of a success.
# witness: vendor: https://docs.kraken.com/api/docs/futures-api/trading/get-accounts
_REFUSALS = {"key": "authenticationError", "nonce": "nonceBelowThreshold", "down": "Unavailable"}
# witness: vendor: https://docs.kraken.com/api/docs/guides/futures-rate-limits
_LIMITED = {"result": "error", "serverTime": "2026-11-30T12:00:00.000Z", "error": "apiLimitExceeded"}
# What the socket says to a wrong signature of its challenge.
# witness: CCXT: krakenfutures.handle_error_message
_SOCKET_REFUSAL = {"event": "alert", "message": "Failed to subscribe to authenticated feed"}
# Milliseconds by which a nonce may be below the greatest one. The venue says that there are some, and not how many.
# witness: unproven: the number was looked for on the vendor's page of the interface
_NONCE_TOLERANCE = 10_000


@dataclass(slots=True)
class SimulatedAccount:
    """One account: coins in the holding wallets, dollars and coins as collateral, and a wallet of one market."""

    uid: str
    held: dict[str, Decimal] = field(default_factory=lambda: {"xbt": Decimal("0.25000000"), "eur": Decimal("120.50")})
    collateral: dict[str, Decimal] = field(
        default_factory=lambda: {"USD": Decimal("5000.00"), "XBT": Decimal("0.1185308247")}
    )
    # In dollars: what open positions bind, and what they have won or lost.
    margin: Decimal = Decimal("750.00")
    profit: Decimal = Decimal("-12.3456")
    # In the market's own currency: what is in its wallet, and its contracts.
    in_market: Decimal = Decimal("1.50000000")
    contracts: dict[str, int] = field(default_factory=lambda: {"FI_XBTUSD_270326": -15000})
    moving: bool = False
    messages: int = 0


@dataclass(slots=True)
class SimulatedKey:
    """One key: the account that it opens, and what it may do."""

    account: SimulatedAccount
    secret: bytes
    general: str = "READ_ONLY"
    transfer: str = "NO_ACCESS"
    last_nonce: int = 0


class KrakenfuturesSimulator(DemoVenue):
    """Simulates futures.kraken.com."""

    exchange_id = "krakenfutures"
    allowed_requests = ("GET /derivatives/api/v3/accounts", "GET /api/auth/v1/api-keys/v3/check", "GET /ws/v1")
    trouble_witnesses: ClassVar[Mapping[str, str]] = {
        "wrong key": "report: btschwertfeger/python-kraken-sdk#303",
        "missing right": "unproven: no page says how a key without the general API is refused",
        "rate limit": "vendor: https://docs.kraken.com/api/docs/guides/futures-rate-limits",
        "outage": _ACCOUNTS_PAGE,
    }

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, SimulatedKey] = {}
        self._random = random.Random(7)

    def add_key(self, key: str, account: SimulatedAccount, *, general: str = "READ_ONLY") -> Mapping[str, Any]:
        """Let `key` open this account; the fields to store for it."""
        secret = hashlib.sha512(key.encode()).digest()
        self.keys[key] = SimulatedKey(account, secret, general)
        return {"api_key": key, "api_secret": base64.b64encode(secret).decode()}

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/derivatives/api/v3/accounts", self._accounts),
            web.get("/api/auth/v1/api-keys/v3/check", self._check),
            web.get("/ws/v1", self._socket),
        ]

    def account_of(self, request: web.Request, body: bytes) -> str:
        return request.headers.get("APIKey", "")

    async def _accounts(self, request: web.Request) -> web.Response:
        key = self._signed(request, "/api/v3/accounts")
        if key is None or key.general == "NO_ACCESS":
            return _answer(_error(_REFUSALS["key"]))
        # Not also the same one: to mix up two users, the contract suite sends a request of one of them once more.
        if int(request.headers["Nonce"]) < key.last_nonce - _NONCE_TOLERANCE:
            return _answer(_error(_REFUSALS["nonce"]))
        key.last_nonce = max(key.last_nonce, int(request.headers["Nonce"]))
        return _answer(_accounts(key.account))

    async def _check(self, request: web.Request) -> web.Response:
        key = self._signed(request, "/api/auth/v1/api-keys/v3/check")
        if key is None:
            # The status and the members are of the vendor's page, the words are invented.
            body = {"error": "UNAUTHORIZED", "message": "A sentence of the venue.", "suberror": None}
            return web.json_response(body, status=401)
        return web.json_response(_details(self.account_of(request, b""), key))

    def _signed(self, request: web.Request, path: str) -> SimulatedKey | None:
        """The key that signed a request of this path; None if there is no such key or signature."""
        key = self.keys.get(self.account_of(request, b""))
        if key is None:
            return None
        expected = _sign(key.secret, request.query_string + request.headers.get("Nonce", "") + path)
        return key if hmac.compare_digest(request.headers.get("Authent", ""), expected) else None

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        return await self.push.serve(request, self._reply, greet=_greet)

    def _reply(self, client: PushClient, message: Any) -> None:
        event, feed = message.get("event"), message.get("feed")
        if event == "challenge":
            client.account = message["api_key"]
            client.notes["challenge"] = str(uuid.UUID(int=self._random.getrandbits(128)))
            client.send({"event": "challenge", "message": client.notes["challenge"]})
        elif feed == "heartbeat":
            client.topics.add("heartbeat")
            client.send({"event": "subscribed", "feed": "heartbeat"})
        elif feed == "balances":
            self._reply_about_balances(client, event, message)
        else:
            client.send({"event": "error", "message": "Invalid feed"})

    def _reply_about_balances(self, client: PushClient, event: Any, message: Mapping[str, Any]) -> None:
        key = self.keys.get(str(message.get("api_key")))
        challenge = client.notes.get("challenge", "")
        signed = "" if key is None else _sign(key.secret, challenge)
        if key is None or (message.get("original_challenge"), message.get("signed_challenge")) != (challenge, signed):
            client.send(_SOCKET_REFUSAL)
        elif event == "unsubscribe":
            client.topics.discard(key.account.uid)
            client.send({"event": "unsubscribed", "feed": "balances"})
        else:
            client.topics.add(key.account.uid)
            client.send({"event": "subscribed", "feed": "balances"})
            client.send(_pushed("balances_snapshot", key.account))

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        if situation == "partly":
            # One answer has all accounts of a key, and the venue refuses none of them alone.
            return None
        key = f"demo-{situation}-key"
        account = SimulatedAccount("7a641082-55c7-4411-a85f-930ec2e09617", moving=situation == "moving")
        if situation == "empty":
            account = _empty("0f9c23b8-63e2-40e4-9592-6d5aa57c12ba")
        row = self.add_key(key, account)
        if situation == "refused":
            del self.keys[key]
        show_situation(self, situation, key, limit=Fault(body=json.dumps(_LIMITED).encode()))
        return row

    def revoke_demo_key(self) -> bool:
        return self.keys.pop("demo-moving-key", None) is not None

    def other_credential(self) -> Mapping[str, Any]:
        other = SimulatedAccount(
            "4a012c31-df95-484a-9473-d51e4a0c4ae7",
            {"xbt": Decimal("7.00000000")},
            {"USD": Decimal("77.77"), "XBT": Decimal("0.7")},
            in_market=Decimal("7.5"),
            moving=True,
        )
        return self.add_key("the-key-of-another", other)

    def troubled_credential(self, trouble: str) -> Mapping[str, Any] | None:
        if trouble in ("wrong environment", "unknown account"):
            # There is one environment, and no request names an account.
            return None
        key = f"trouble-{trouble.replace(' ', '-')}-key"
        account = SimulatedAccount("7a641082-55c7-4411-a85f-930ec2e09617")
        row = self.add_key(key, account, general="NO_ACCESS" if trouble == "missing right" else "READ_ONLY")
        if trouble == "wrong key":
            del self.keys[key]
        elif trouble == "outage":
            self.fail(Fault(body=json.dumps(_error(_REFUSALS["down"])).encode(), account=key))
        else:
            show_situation(self, trouble, key, limit=Fault(body=json.dumps(_LIMITED).encode()))
        return row

    def move(self) -> None:
        for account in {id(key.account): key.account for key in self.keys.values() if key.account.moving}.values():
            account.profit += Decimal(self._random.choice((-50, -30, 20, 60))).scaleb(-2)
            account.messages += 1
            self.push.publish(account.uid, _pushed("balances", account))
        self.push.publish("heartbeat", {"feed": "heartbeat", "time": 1764500000000})


def _greet(client: PushClient) -> None:
    client.send({"event": "info", "version": 1})


def _sign(secret: bytes, message: str) -> str:
    hashed = hashlib.sha256(message.encode()).digest()
    return base64.b64encode(hmac.new(secret, hashed, hashlib.sha512).digest()).decode()


def _empty(uid: str) -> SimulatedAccount:
    nothing = Decimal("0.0")
    return SimulatedAccount(uid, {"xbt": nothing}, {"USD": nothing}, nothing, nothing, nothing, {})


def _accounts(account: SimulatedAccount) -> dict[str, Any]:
    return {
        "result": "success",
        "accounts": {
            "cash": {"balances": {code: str(held) for code, held in account.held.items()}, "type": "cashAccount"},
            "fi_xbtusd": _market(account),
            "flex": _flex(account),
        },
        "serverTime": "2026-11-30T12:00:00.000Z",
    }


def _market(account: SimulatedAccount) -> dict[str, Any]:
    contracts = {symbol: str(size) for symbol, size in account.contracts.items()}
    none = Decimal("0.0")
    return {
        "auxiliary": {"usd": none, "pv": account.in_market, "pnl": none, "af": account.in_market, "funding": none},
        "balances": contracts | {"xbt": str(account.in_market)},
        "currency": "xbt",
        "marginRequirements": {"im": none, "mm": none, "lt": none, "tt": none},
        "triggerEstimates": {"im": 0, "mm": 0, "lt": 0, "tt": 0},
        "type": "marginAccount",
    }


def _flex(account: SimulatedAccount) -> dict[str, Any]:
    prices = {"USD": Decimal(1), "XBT": Decimal(42000)}
    value = sum((held * prices[code] for code, held in account.collateral.items()), Decimal("0.0"))
    worth = value + account.profit
    return {
        "type": "multiCollateralMarginAccount",
        "currencies": {
            code: {"quantity": held, "value": held * prices[code], "collateral": held * prices[code], "available": held}
            for code, held in account.collateral.items()
        },
        "initialMargin": account.margin,
        "initialMarginWithOrders": account.margin,
        "maintenanceMargin": account.margin / 2,
        "balanceValue": value,
        "portfolioValue": worth,
        "collateralValue": value,
        "pnl": account.profit,
        "unrealizedFunding": Decimal("0.0"),
        "totalUnrealized": account.profit,
        "totalUnrealizedAsMargin": account.profit,
        "marginEquity": worth,
        "availableMargin": worth - account.margin,
    }


def _pushed(feed: str, account: SimulatedAccount) -> str:
    message = {
        "feed": feed,
        "account": account.uid,
        "flex_futures": {"pnl": account.profit, "initial_margin": account.margin},
        "timestamp": 1764500000000 + account.messages,
        "seq": account.messages,
    }
    return _numbers(message)


def _details(name: str, key: SimulatedKey) -> dict[str, Any]:
    return {
        "apiKey": name,
        "accountUid": key.account.uid,
        "iiban": "AA08 N84G CPAR UN7A",
        "createdAt": "2019-08-24T14:15:22Z",
        "permissions": {"general": key.general, "transfer": key.transfer},
        "allowedCidrBlock": None,
        "allowedCidrBlocks": [],
    }


def _error(word: str) -> dict[str, Any]:
    return {"result": "error", "serverTime": "2026-11-30T12:00:00.000Z", "error": word}


def _answer(payload: Any) -> web.Response:
    return web.Response(text=_numbers(payload), content_type="application/json")


def _numbers(payload: Any) -> str:
    """The JSON text, in which each Decimal is a number with all its digits."""
    return re.sub(r'"@([^"@]+)@"', r"\1", json.dumps(payload, default=lambda number: f"@{number}@"))
