"""A simulator of Hyperliquid: the answers of POST /info, and its socket. It shares no code with the client."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import string
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

from aiohttp import web

from exchange_service.testing import DemoVenue, Fault, json_object, show_situation
from exchange_service.testing.push import PushClient

_TIME = 1764000000123
# What the venue answers instead of a state, by status.
_REFUSALS: dict[int, str] = {
    # witness: unproven: looked for in the vendor's pages and in issues of its clients
    415: "Expected request with `Content-Type: application/json`",
    # witness: report: https://nktkas.gitbook.io/hyperliquid-api/api/info/spotclearinghousestate
    422: "Failed to deserialize the JSON body into the target type",
    # The venue's answer for a dex that it does not have. The client must not send this request.
    # witness: unproven: looked for in the vendor's pages and in issues of its clients
    500: "unknown dex",
    # witness: unproven: looked for in the vendor's pages and in issues of its clients
    429: "null",
}
# What the venue says on the channel `error`. The last four quote a subscription or a request as JSON.
_PUSH_ERRORS = {
    # witness: report: nktkas/hyperliquid#78
    "users": "Cannot track more than 10 total users.",
    "subscriptions": "Cannot subscribe to more than 1000 channels.",
    "messages": "Cannot send more than 2000 messages per minute.",
    # witness: report: https://github.com/nktkas/hyperliquid/blob/main/src/transport/websocket/_dispatcher.ts
    "twice": "Already subscribed: ",
    "never": "Already unsubscribed: ",
    # witness: report: https://github.com/JKorf/HyperLiquid.Net
    "invalid": "Invalid subscription ",
    # witness: report: https://github.com/ccxt/ccxt/blob/master/python/ccxt/pro/hyperliquid.py
    "request": "Error parsing JSON into valid websocket request: ",
}
# By type of request; every other one weighs 20. In a minute, for one network address, the reads may weigh 1200.
# witness: vendor: https://hyperliquid.gitbook.io/hyperliquid-docs/for-developers/api/rate-limits
_WEIGHTS = {"clearinghouseState": 2, "spotClearinghouseState": 2, "userRole": 60}
_MOST_WEIGHT, _OTHER_WEIGHT = 1200, 20
_MOST_CONNECTIONS, _MOST_CONNECTS = 10, 30
_MOST_USERS, _MOST_SUBSCRIPTIONS, _MOST_MESSAGES = 10, 1000, 2000
_MINUTE = 60.0


class _Minute:
    """How much there was in the last minute."""

    def __init__(self) -> None:
        self._entries: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, amount: int = 1) -> int:
        """Count this, and return all of the last minute."""
        now = asyncio.get_running_loop().time()
        while self._entries and self._entries[0][0] <= now - _MINUTE:
            self._sum -= self._entries.popleft()[1]
        self._entries.append((now, amount))
        self._sum += amount
        return self._sum


@dataclass(slots=True)
class SimulatedPosition:
    """A perpetual position; `size` is negative for a short one."""

    coin: str
    size: Decimal
    entry: Decimal
    mark: Decimal
    leverage: int

    @property
    def notional(self) -> Decimal:
        return abs(self.size) * self.mark

    @property
    def unrealized(self) -> Decimal:
        return self.size * (self.mark - self.entry)

    @property
    def margin(self) -> Decimal:
        return self.notional / self.leverage


@dataclass(slots=True)
class SimulatedPerps:
    """The state of one dex: the deposit and the positions. `lag` is what cannot be withdrawn besides the margin."""

    deposit: Decimal = Decimal(0)
    positions: list[SimulatedPosition] = field(default_factory=list)
    lag: Decimal = Decimal(0)
    time: int = _TIME


@dataclass(slots=True)
class SimulatedWallet:
    """One address. `spot` has rows of (coin, token, total, hold); `sub_accounts` has addresses by name.

    `escrows` has what waits for the activation of the wallet, as (coin, token, total). `lending` has the members that
    portfolio margin adds to a row, by coin.
    """

    # None for a mode that was never set.
    mode: str | None = "default"
    role: Mapping[str, Any] = field(default_factory=lambda: {"role": "user"})
    perps: dict[str, SimulatedPerps] = field(default_factory=dict)
    spot: list[tuple[str, int | None, str, str]] = field(default_factory=list)
    escrows: list[tuple[str, int, str]] = field(default_factory=list)
    lending: dict[str, dict[str, str]] = field(default_factory=dict)
    sub_accounts: dict[str, str] = field(default_factory=dict)
    vaults: dict[str, str] = field(default_factory=dict)
    staked: tuple[str, str, str] = ("0.0", "0.0", "0.0")
    # For a unified wallet: the USDC above the maintenance margin. Empty: total minus hold.
    after_maintenance: str = ""
    # By type of request: an answer that replaces the above, as JSON value or as bytes.
    answers: dict[str, Any] = field(default_factory=dict)
    moving: bool = False


def standard_wallet(*, moving: bool = False) -> SimulatedWallet:
    """The worked example of perpetuals beside spot: 8420.118264 in the main dex, and nothing on spot."""
    stocks = SimulatedPerps(Decimal("500"), [SimulatedPosition("xyz:NVDA", Decimal(2), Decimal(180), Decimal(184), 5)])
    return SimulatedWallet(
        perps={"": _example_perps(), "xyz": stocks},
        spot=[("USDC", 0, "0.0", "0.0"), ("UBTC", 197, "0.0", "0.0")],
        moving=moving,
    )


def unified_wallet() -> SimulatedWallet:
    """The worked example of a unified wallet: 5230.118264 USDC, of which perpetuals bind 842.5, and HYPE."""
    return SimulatedWallet(
        mode="unifiedAccount",
        perps={"": _example_perps()},
        spot=[
            ("USDC", 0, "5230.118264", "842.5"),
            ("HYPE", 150, "31.25", "0.0"),
            ("UBTC", 197, "0.0", "0.0"),
        ],
        after_maintenance="4810.334120",
    )


def escrowed_wallet() -> SimulatedWallet:
    """A wallet that was never activated: 250.75 USDC from HyperEVM wait for it, and the venue knows no such user."""
    return SimulatedWallet(role={"role": "missing"}, escrows=[("USDC", 0, "250.75")])


def portfolio_margin_wallet() -> SimulatedWallet:
    """A wallet with portfolio margin: 7.5 USDC, of which orders reserve 4.5, and 0.2 USDC borrowed.

    `hold` is less than what is reserved by what the wallet could borrow.
    """
    lending = {"spotHold": "4.5", "ltv": "0.0", "borrowed": "0.2", "supplied": "7.7"}
    return SimulatedWallet(
        mode="portfolioMargin", spot=[("USDC", 0, "7.5", "1.5")], lending={"USDC": lending}, after_maintenance="6.5"
    )


def _example_perps() -> SimulatedPerps:
    return SimulatedPerps(
        deposit=Decimal("8098.618264"),
        positions=[
            SimulatedPosition("BTC", Decimal("0.1"), Decimal(90000), Decimal(92310), 20),
            SimulatedPosition("ETH", Decimal(-1), Decimal(3500), Decimal("3409.5"), 10),
        ],
        lag=Decimal("5.714151"),
    )


class HyperliquidSimulator(DemoVenue):
    """Simulates api.hyperliquid.xyz. For an address that was not added it answers zeros, as the venue does."""

    exchange_id = "hyperliquid"
    trouble_witnesses: ClassVar[Mapping[str, str]] = {
        "wrong environment": "unproven: an address that only the other network knows is taken to be missing",
        "unknown account": "test data: nktkas/hyperliquid src/api/info/_methods/userRole.ts has the role `missing`",
        "rate limit": "unproven: the body was looked for in the vendor's pages and in issues of its clients",
        "outage": "unproven: a gateway's page stands for it",
    }

    def __init__(self) -> None:
        super().__init__()
        self.wallets: dict[str, SimulatedWallet] = {}
        # The collateral token's number by builder dex, and the tokens' codes by number.
        self.dexs: dict[str, int] = {"xyz": 0, "flx": 360}
        self.tokens: dict[int, str] = {0: "USDC", 150: "HYPE", 197: "UBTC", 360: "USDH"}
        # The weight of all reads so far; what was refused because it was too much; and whether the limits hold.
        self.weight = 0
        self.refused = 0
        self.limited = True
        # How many addresses another program at our network address follows: they count among the venue's ten.
        self.users_of_others = 0
        # Seconds after which a connection is closed on which nothing comes in.
        self.idle_limit = 60.0
        self._reads, self._connects, self._messages = _Minute(), _Minute(), _Minute()
        self._random = random.Random(6)

    def add_wallet(self, address: str, wallet: SimulatedWallet | None = None) -> SimulatedWallet:
        """Let `address` have this state; if none is given, an empty one with the role "user"."""
        self.wallets[address.lower()] = wallet or SimulatedWallet()
        return self.wallets[address.lower()]

    def add_agent(self, address: str, master: str) -> None:
        """Let `address` be an API wallet of `master`."""
        self.add_wallet(address, SimulatedWallet(role={"role": "agent", "data": {"user": master.lower()}}))

    def questions(self, type: str) -> list[Mapping[str, Any]]:
        """The bodies of the requests of this type so far, in order."""
        bodies = [json_object(request.body) for request in self.requests]
        return [body for body in bodies if body.get("type") == type]

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/info", self._info), web.get("/ws", self._socket)]

    def lift_limits(self) -> None:
        self.limited = False

    def announce(self, address: str) -> None:
        """Push the states of an address, as the venue does when they have changed."""
        self.announce_perpetuals(address)
        self._publish(("spotState", address.lower(), ""))

    def announce_perpetuals(self, address: str) -> None:
        """Push the states of an address on each dex."""
        for state in self.wallets[address.lower()].perps.values():
            state.time += 1
        for dex in ("", *self.dexs):
            self._publish(("clearinghouseState", address.lower(), dex))

    def followed(self) -> set[str]:
        """The addresses that are followed on any connection."""
        return {topic[1] for client in self.push.clients for topic in client.topics if isinstance(topic, tuple)}

    def account_of(self, request: web.Request, body: bytes) -> str:
        user = json_object(body).get("user", "")
        return user.lower() if isinstance(user, str) else ""

    async def _info(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            return _refusal(415)
        body = json_object(await request.read())
        wanted = body.get("type")
        if self._weighs_too_much(wanted):
            return self._too_much()
        if wanted in ("perpDexs", "meta", "spotMeta"):
            return web.json_response(self._market(wanted, body.get("dex", "")))
        answer = _ANSWERS.get(wanted) if isinstance(wanted, str) else None
        if answer is None or not _is_address(body.get("user")):
            return _refusal(422)
        wallet = self.wallets.get(body["user"].lower(), _UNKNOWN)
        if wanted in wallet.answers:
            return _stored_answer(wallet.answers[wanted])
        if wanted == "clearinghouseState" and body.get("dex", "") not in ("", *self.dexs):
            return _refusal(500)
        return web.json_response(answer(self, wallet, body))

    def _weighs_too_much(self, wanted: Any) -> bool:
        weight = _WEIGHTS.get(wanted, _OTHER_WEIGHT) if isinstance(wanted, str) else 0
        self.weight += weight
        return self._reads.add(weight) > _MOST_WEIGHT and self.limited

    def _too_much(self) -> web.Response:
        self.refused += 1
        return _refusal(429)

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        crowded = len(self.push.clients) >= _MOST_CONNECTIONS or self._connects.add() > _MOST_CONNECTS
        if crowded and self.limited:
            return self._too_much()
        opened: list[PushClient] = []

        def greet(client: PushClient) -> None:
            opened.append(client)
            client.send("Websocket connection established.")
            self._note_life(client)

        try:
            return await self.push.serve(request, self._answer, greet=greet)
        finally:
            for client in opened:
                client.notes["idle"].cancel()

    def _note_life(self, client: PushClient) -> None:
        """Close the connection if nothing comes in for too long."""
        if "idle" in client.notes:
            client.notes["idle"].cancel()
        client.notes["idle"] = asyncio.get_running_loop().call_later(self.idle_limit, client.drop)

    def _answer(self, client: PushClient, message: Any) -> None:
        self._note_life(client)
        method = message.get("method") if isinstance(message, dict) else None
        if self._messages.add() > _MOST_MESSAGES and self.limited:
            self._refuse_push(client, "messages")
        elif method == "ping":
            client.send({"channel": "pong"})
        elif method in ("subscribe", "unsubscribe"):
            follow = self._subscribe if method == "subscribe" else self._unsubscribe
            follow(client, message.get("subscription"))
        else:
            client.send(_push_error("request", message))

    def _refuse_push(self, client: PushClient, what: str) -> None:
        self.refused += 1
        client.send(_push_error(what))

    def _subscribe(self, client: PushClient, subscription: Any) -> None:
        topic = self._topic(subscription)
        if topic is None:
            client.send(_push_error("invalid", subscription))
        elif topic in client.topics:
            client.send(_push_error("twice", subscription))
        elif self.limited and len(self.followed() | {topic[1]}) + self.users_of_others > _MOST_USERS:
            self._refuse_push(client, "users")
        elif self.limited and sum(len(one.topics) for one in self.push.clients) >= _MOST_SUBSCRIPTIONS:
            self._refuse_push(client, "subscriptions")
        else:
            client.topics.add(topic)
            client.send(_acknowledgement("subscribe", topic))
            client.send(self._pushed(topic))

    def _unsubscribe(self, client: PushClient, subscription: Any) -> None:
        topic = self._topic(subscription)
        if topic is None or topic not in client.topics:
            client.send(_push_error("never", subscription))
            return
        client.topics.discard(topic)
        client.send(_acknowledgement("unsubscribe", topic))

    def _topic(self, subscription: Any) -> tuple[str, str, str] | None:
        if not isinstance(subscription, dict) or not _is_address(subscription.get("user")):
            return None
        kind, address, dex = subscription.get("type"), subscription["user"].lower(), subscription.get("dex", "")
        if kind == "spotState":
            return "spotState", address, ""
        known = kind == "clearinghouseState" and dex in ("", *self.dexs)
        return ("clearinghouseState", address, str(dex)) if known else None

    def _publish(self, topic: tuple[str, str, str]) -> None:
        self.push.publish(topic, self._pushed(topic))

    def _pushed(self, topic: tuple[str, str, str]) -> Any:
        kind, address, dex = topic
        wallet = self.wallets.get(address, _UNKNOWN)
        if kind == "spotState":
            return {"channel": kind, "data": {"user": address, kind: _spot_state(wallet)}}
        state = _clearinghouse_state(wallet.perps.get(dex, SimulatedPerps()))
        return {"channel": kind, "data": {"dex": dex, "user": address, kind: state}}

    def _market(self, wanted: str, dex: str) -> Any:
        if wanted == "perpDexs":
            return [None, *({"name": name, "fullName": name.upper(), "deployer": _DEPLOYER} for name in self.dexs)]
        if wanted == "spotMeta":
            return {"universe": [], "tokens": [{"name": name, "index": index} for index, name in self.tokens.items()]}
        if dex and dex not in self.dexs:
            return None
        return {"universe": [], "marginTables": [], "collateralToken": self.dexs.get(dex, 0)}

    def _mode(self, wallet: SimulatedWallet, body: Mapping[str, Any]) -> Any:
        return wallet.mode

    def _role(self, wallet: SimulatedWallet, body: Mapping[str, Any]) -> Any:
        return wallet.role

    def _perps(self, wallet: SimulatedWallet, body: Mapping[str, Any]) -> Any:
        return _clearinghouse_state(wallet.perps.get(body.get("dex", ""), SimulatedPerps()))

    def _spot(self, wallet: SimulatedWallet, body: Mapping[str, Any]) -> Any:
        return _spot_state(wallet)

    def _sub_accounts(self, wallet: SimulatedWallet, body: Mapping[str, Any]) -> Any:
        return [self._sub_account(body["user"], *item) for item in wallet.sub_accounts.items()] or None

    def _sub_account(self, master: str, name: str, address: str) -> dict[str, Any]:
        wallet = self.wallets.get(address.lower(), _UNKNOWN)
        return {
            "name": name,
            "subAccountUser": address,
            "master": master,
            "clearinghouseState": _clearinghouse_state(wallet.perps.get("", SimulatedPerps())),
            "spotState": _spot_state(wallet),
        }

    def _vaults(self, wallet: SimulatedWallet, body: Mapping[str, Any]) -> Any:
        return [
            {"vaultAddress": address, "equity": equity, "lockedUntilTimestamp": _TIME}
            for address, equity in wallet.vaults.items()
        ]

    def _staking(self, wallet: SimulatedWallet, body: Mapping[str, Any]) -> Any:
        delegated, undelegated, leaving = wallet.staked
        return {
            "delegated": delegated,
            "undelegated": undelegated,
            "totalPendingWithdrawal": leaving,
            "nPendingWithdrawals": int(bool(Decimal(leaving))),
        }

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        if situation == "refused":
            # Reads are public, so there is no key to refuse.
            return None
        address = _named_address(f"demo {situation}")
        metadata = {"wallet_address": address}
        self.add_wallet(
            address, SimulatedWallet() if situation == "empty" else standard_wallet(moving=situation == "moving")
        )
        if situation == "partly":
            # The second dex no longer exists.
            metadata["dexs"] = "xyz,gone"
        limit = Fault(status=429, body=_REFUSALS[429].encode(), headers={"Retry-After": "30"})
        # A balance needs three answers: the mode and two states.
        show_situation(self, situation, address, answers=3, limit=limit)
        return {"extra_metadata": metadata}

    def troubled_credential(self, trouble: str) -> Mapping[str, Any] | None:
        if trouble in ("wrong key", "missing right"):
            # Reads need no key.
            return None
        address = _named_address(f"trouble {trouble}")
        # The venue states neither a reason nor a delay.
        show_situation(self, trouble, address, limit=Fault(status=429, body=_REFUSALS[429].encode()))
        # The address is not added: an address with a typing error, or of the other network, is unknown to the venue.
        return {"extra_metadata": {"wallet_address": address}}

    def move(self) -> None:
        for address, wallet in self.wallets.items():
            if wallet.moving:
                for position in (position for perps in wallet.perps.values() for position in perps.positions):
                    position.mark += position.entry * Decimal(self._random.randint(-40, 42)).scaleb(-5)
                self.announce(address)


_DEPLOYER = "0x88806a71d74ad0a510b350545c9ae490912f0888"
_UNKNOWN = SimulatedWallet(role={"role": "missing"})
_ANSWERS = {
    "userAbstraction": HyperliquidSimulator._mode,
    "userRole": HyperliquidSimulator._role,
    "clearinghouseState": HyperliquidSimulator._perps,
    "spotClearinghouseState": HyperliquidSimulator._spot,
    "subAccounts": HyperliquidSimulator._sub_accounts,
    "userVaultEquities": HyperliquidSimulator._vaults,
    "delegatorSummary": HyperliquidSimulator._staking,
}


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 42 and value[:2] == "0x" and set(value[2:]) <= set(string.hexdigits)


def _refusal(status: int) -> web.Response:
    return web.Response(status=status, text=_REFUSALS[status])


def _push_error(name: str, *quoted: Any) -> Any:
    return {"channel": "error", "data": _PUSH_ERRORS[name] + "".join(json.dumps(one) for one in quoted)}


def _acknowledgement(method: str, topic: tuple[str, str, str]) -> Any:
    """As at the venue, a subscription comes back with the members that it left out."""
    kind, address, dex = topic
    more = {"ignorePortfolioMargin": False} if kind == "spotState" else {"dex": dex}
    subscription = {"type": kind, "user": address, **more}
    return {"channel": "subscriptionResponse", "data": {"method": method, "subscription": subscription}}


def _stored_answer(answer: Any) -> web.Response:
    if isinstance(answer, bytes):
        return web.Response(body=answer, content_type="application/json")
    return web.json_response(answer)


def _clearinghouse_state(perps: SimulatedPerps) -> dict[str, Any]:
    """The state of a dex. As at the venue, account value is raw USD plus the signed notional."""
    value = perps.deposit + sum((position.unrealized for position in perps.positions), Decimal(0))
    signed = sum((position.size * position.mark for position in perps.positions), Decimal(0))
    margin = sum((position.margin for position in perps.positions), Decimal(0))
    summary = {
        "accountValue": _text(value),
        "totalNtlPos": _text(sum((position.notional for position in perps.positions), Decimal(0))),
        "totalRawUsd": _text(value - signed),
        "totalMarginUsed": _text(margin),
    }
    return {
        "marginSummary": summary,
        "crossMarginSummary": summary,
        "crossMaintenanceMarginUsed": _text(margin / 2),
        "withdrawable": _text(max(Decimal(0), value - margin - perps.lag)),
        "assetPositions": [_position(position) for position in perps.positions],
        "time": perps.time,
    }


def _position(position: SimulatedPosition) -> dict[str, Any]:
    return {
        "type": "oneWay",
        "position": {
            "coin": position.coin,
            "szi": _text(position.size),
            "leverage": {"type": "cross", "value": position.leverage},
            "entryPx": _text(position.entry),
            "positionValue": _text(position.notional),
            "unrealizedPnl": _text(position.unrealized),
            "returnOnEquity": "0.25",
            "liquidationPx": None,
            "marginUsed": _text(position.margin),
            "maxLeverage": 40,
            "cumFunding": {"allTime": "0.0", "sinceOpen": "0.0", "sinceChange": "0.0"},
        },
    }


def _spot_state(wallet: SimulatedWallet) -> dict[str, Any]:
    rows = [
        {"coin": coin, "token": token, "total": total, "hold": hold, "entryNtl": "0.0", **_lending(wallet, coin, hold)}
        for coin, token, total, hold in wallet.spot
    ]
    state: dict[str, Any] = {"balances": rows}
    if wallet.escrows:
        state["evmEscrows"] = [{"coin": coin, "token": token, "total": total} for coin, token, total in wallet.escrows]
    if wallet.mode not in ("unifiedAccount", "portfolioMargin"):
        return state
    if wallet.mode == "portfolioMargin":
        state |= {"portfolioMarginEnabled": True, "portfolioMarginRatio": "0.4", "tokenToPortfolioBorrowRatio": []}
    usdc = [(Decimal(total), Decimal(hold)) for coin, _, total, hold in wallet.spot if coin == "USDC"]
    left = [wallet.after_maintenance or _text(total - hold) for total, hold in usdc]
    return state | {"tokenToAvailableAfterMaintenance": [[0, amount] for amount in left]}


def _lending(wallet: SimulatedWallet, coin: str, hold: str) -> dict[str, str]:
    """The members that portfolio margin adds to a row. As at the venue, a token without any hold lacks `spotHold`."""
    if wallet.mode != "portfolioMargin" or coin in wallet.lending:
        return wallet.lending.get(coin, {})
    return {"spotHold": hold} if Decimal(hold) else {}


def _text(value: Decimal) -> str:
    """As the venue writes amounts: at least one digit after the point, no exponent."""
    plain = format(value.normalize(), "f")
    return plain if "." in plain else plain + ".0"


def _named_address(name: str) -> str:
    """The address for a name: always the same, and different for every name."""
    return "0x" + hashlib.sha256(name.encode()).hexdigest()[:40]
