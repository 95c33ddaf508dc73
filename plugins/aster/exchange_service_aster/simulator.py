"""A simulator of Aster: both hosts, both schemes of signing, and Aster's errors.

It shares no code with the client, also for checking signatures, so it repeats no mistake.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import json
import random
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, NoReturn
from urllib.parse import parse_qsl

from aiohttp import web
from Crypto.Hash import keccak

from exchange_service.testing import DemoVenue, Fault, show_situation
from exchange_service.testing.push import PushClient

_ZERO = Decimal(0)
_CHANGED = 1764000000123
_IN_A_YEAR = 365 * 24 * 3600 * 1000
# The venue lists every asset that it knows. No simulated wallet holds these.
_NEVER_HELD = ("ETH", "BTC", "USDF", "ASBNB", "USD1")
# How many nonces of a wallet are remembered, and how far one may be from the venue's time, in microseconds.
_NONCES = 100
_NONCE_WINDOW = 10_000_000
_WEIGHT_LIMIT = 2400
_FUTURES, _SPOT = "futures", "spot"
# Each so many moves the moving wallets trade; between them only prices move.
_MOVES_TO_A_TRADE = 2
# The account of a listen key, by what stands before its name in a path.
_KEY_PATHS = {"/fapi/v3": _FUTURES, "/fapi/v1": _FUTURES, "/api/v3": _SPOT, "/api/v1": _SPOT}
# What refuses a request: the status, Aster's code and its message. Of the statuses only 429 is known from the venue.
_REFUSALS: dict[str, tuple[int, int, str]] = {
    # witness: vendor: asterdex/api-docs V3(Recommended)/EN/aster-finance-futures-api-v3.md
    "limit": (
        429,
        -1003,
        "Too many requests; current limit is 2400 requests per minute. Please use the websocket for live updates to "
        "avoid polling the API.",
    ),
    "no signature": (400, -1102, "Mandatory parameter 'signature' was not sent, was empty/null, or malformed."),
    "no agent": (400, -1102, "A mandatory parameter was not sent, was empty/null, or malformed."),
    "no time": (400, -1102, "Mandatory parameter 'timestamp' was not sent, was empty/null, or malformed."),
    "key": (401, -2015, "Invalid API-key, IP, or permissions for action."),
    "signature of a key": (400, -1022, "Signature for this request is not valid."),
    "address": (401, -1011, "This IP cannot access this route."),
    "nonce": (400, -4225, "Nonce Expired"),
    # witness: vendor: asterdex/api-docs V1(Legacy)/EN/aster-finance-futures-api.md
    "time": (400, -1021, "Timestamp for this request is outside of the recvWindow."),
    # witness: report: NoFxAiOS/nofx#41
    "agent": (400, -1000, "No agent found"),
    # witness: unproven: seen in a public list of changes that names no repository; not in the vendor's pages
    "signature of an agent": (400, -1000, "Signature check failed"),
}


@dataclass(slots=True)
class SimulatedAsset:
    """One asset of a futures account. `lent` is what the other assets make available in multi-assets mode."""

    code: str
    wallet: Decimal = _ZERO
    # In US dollars, for the totals of multi-assets mode.
    price: Decimal = Decimal(1)
    unrealized: Decimal = _ZERO
    position_margin: Decimal = _ZERO
    order_margin: Decimal = _ZERO
    lent: Decimal = _ZERO
    # Whether the venue states the margins of this asset.
    states_margin: bool = True
    update_time: Any = 0

    @property
    def margin(self) -> Decimal:
        return self.position_margin + self.order_margin

    @property
    def maintenance_margin(self) -> Decimal:
        return self.position_margin / 5

    @property
    def equity(self) -> Decimal:
        return self.wallet + self.unrealized

    @property
    def unlent(self) -> Decimal:
        return self.equity - self.margin

    @property
    def available(self) -> Decimal:
        return self.unlent + self.lent

    @property
    def withdrawable(self) -> Decimal:
        return max(_ZERO, self.available - max(_ZERO, self.unrealized))


@dataclass(slots=True)
class SimulatedAgent:
    """An agent; `expired` is when it ends, in milliseconds since 1970."""

    address: str
    expired: int
    can_read: bool = True
    can_spot_trade: bool = False
    can_perp_trade: bool = False
    can_withdraw: bool = False
    # Whether it is bound to other network addresses than ours.
    elsewhere: bool = False


@dataclass(eq=False, slots=True)
class ListenKey:
    """A listen key: the wallet's account that it opens, and when it ends, by the monotonic clock."""

    wallet: SimulatedWallet
    kind: str
    ends: float


@dataclass(eq=False, slots=True)
class SimulatedWallet:
    """One wallet: its futures assets, its spot rows as (asset, free, locked), its agents and remembered nonces.

    The futures totals are those of USDT, and in multi-assets mode those of all assets in dollars.
    """

    assets: list[SimulatedAsset] = field(default_factory=list)
    spot: list[tuple[str, Decimal, Decimal]] = field(default_factory=list)
    spot_time: Any = _CHANGED * 1_000_000 + 456_789
    agents: dict[str, SimulatedAgent] = field(default_factory=dict)
    nonces: list[int] = field(default_factory=list)
    multi_assets: bool = False
    moving: bool = False


@dataclass(slots=True)
class SimulatedKey:
    """An HMAC key: its secret, and the wallet that it reads."""

    secret: str
    wallet: SimulatedWallet


class AsterSimulator(DemoVenue):
    """Simulates fapi.asterdex.com and sapi.asterdex.com at one address, because their paths differ."""

    exchange_id = "aster"
    moves_to_a_push = _MOVES_TO_A_TRADE
    trouble_witnesses: ClassVar[Mapping[str, str]] = {
        "wrong key": "report: NoFxAiOS/nofx#41",
        "missing right": "vendor: asterdex/api-docs V3(Recommended)/EN/aster-finance-futures-api-v3.md",
        "wrong environment": "unproven: an agent of the other network is taken to be unknown, as any other",
        "rate limit": "vendor: asterdex/api-docs V3(Recommended)/EN/aster-finance-futures-api-v3.md",
        "outage": "unproven: a gateway's page stands for it",
    }

    def __init__(self) -> None:
        super().__init__()
        self.wallets: dict[str, SimulatedWallet] = {}
        self.keys: dict[str, SimulatedKey] = {}
        # The chain for which agents sign: 1666 live, 714 at the test network.
        self.chain_id = 1666
        # Seconds that the venue's clock is ahead of ours.
        self.clock_offset = 0.0
        # The weight in the header. Above the limit every request is refused.
        self.used_weight = 10
        # The listen keys, and the seconds for which one is good.
        self.listen_keys: dict[str, ListenKey] = {}
        self.listen_key_life = 3600.0
        self._moves = 0
        self._random = random.Random(4)

    def add_wallet(self, address: str, wallet: SimulatedWallet | None = None) -> SimulatedWallet:
        """Let `address` have this wallet; if none is given, that of the worked example."""
        self.wallets[address.lower()] = wallet or example_wallet()
        return self.wallets[address.lower()]

    def add_agent(self, wallet: str, private_key: str, **rights: Any) -> SimulatedAgent:
        """Register the agent with this private key of 64 hexadecimal digits for `wallet`; by default it may read."""
        agent = SimulatedAgent(address_of(private_key), **{"expired": self._milliseconds() + _IN_A_YEAR} | rights)
        self.wallets[wallet.lower()].agents[agent.address] = agent
        return agent

    def add_key(self, api_key: str, secret: str, wallet: SimulatedWallet | None = None) -> SimulatedWallet:
        """Let an HMAC key read this wallet; if none is given, that of the worked example."""
        self.keys[api_key] = SimulatedKey(secret, wallet or example_wallet())
        return self.keys[api_key].wallet

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/fapi/v1/time", self._time),
            web.get("/fapi/v4/account", self._futures),
            web.get("/fapi/v3/accountWithJoinMargin", self._futures),
            web.get("/api/v1/account", self._spot),
            web.get("/api/v3/account", self._spot),
            web.get("/fapi/v3/agent", self._agents),
            *(web.post(f"{path}/listenKey", self._listen_key) for path in _KEY_PATHS),
            web.get("/ws/{key}", self._stream),
        ]

    def account_of(self, request: web.Request, body: bytes) -> str:
        sent = dict(parse_qsl(request.query_string or body.decode(errors="replace")))
        return request.headers.get("X-MBX-APIKEY") or sent.get("user", "").lower()

    async def _time(self, request: web.Request) -> web.Response:
        return self._answer({"serverTime": self._milliseconds()})

    async def _futures(self, request: web.Request) -> web.Response:
        return self._answer(_futures_account(self._wallet(request)))

    async def _spot(self, request: web.Request) -> web.Response:
        return self._answer(_spot_account(self._wallet(request)))

    async def _agents(self, request: web.Request) -> web.Response:
        return self._answer([_agent_entry(agent) for agent in self._wallet(request).agents.values()])

    async def _listen_key(self, request: web.Request) -> web.Response:
        """The key of the account that has one already, good for longer; otherwise another one."""
        if request.query_string:
            _refuse("no signature")
        wallet, kind = self._wallet_of_body(request, (await request.read()).decode()), _KEY_PATHS[request.path[:-10]]
        self._end_keys()
        ends = time.monotonic() + self.listen_key_life
        for name, key in self.listen_keys.items():
            if key.wallet is wallet and key.kind == kind:
                key.ends = ends
                return self._answer({"listenKey": name})
        name = secrets.token_hex(32)
        self.listen_keys[name] = ListenKey(wallet, kind, ends)
        return self._answer({"listenKey": name})

    def _wallet_of_body(self, request: web.Request, body: str) -> SimulatedWallet:
        if "/v3/" not in request.path:
            # The older interface wants the key alone.
            key = self.keys.get(request.headers.get("X-MBX-APIKEY", ""))
            return key.wallet if key is not None else _refuse("key")
        message, _, signature = body.rpartition("&signature=")
        if not message or request.content_type != "application/x-www-form-urlencoded":
            _refuse("no signature")
        return self._wallet_of_agent(message, signature)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        self._end_keys()
        key = self.listen_keys.get(request.match_info["key"])
        if key is None:
            # What Aster does with a key that it does not know is not documented.
            return web.Response(status=400)

        def greet(client: PushClient) -> None:
            client.topics = {key}

        return await self.push.serve(request, lambda client, message: None, greet=greet)

    def _end_keys(self) -> None:
        """Drop keys whose time is over, and tell their streams."""
        for name, key in list(self.listen_keys.items()):
            if key.ends <= time.monotonic():
                self.expire(name)

    def expire(self, name: str) -> None:
        """End a listen key. Its streams are told, and stay open without a further event."""
        key = self.listen_keys.pop(name)
        self.push.publish(key, {"e": "listenKeyExpired", "E": self._milliseconds()})
        for client in self.push.clients:
            client.topics.discard(key)

    def trade(self, wallet: SimulatedWallet, profit: Decimal) -> None:
        """Book a profit in the wallet's first futures asset, and tell its stream."""
        asset = wallet.assets[0]
        asset.wallet += profit
        balance = {"a": asset.code, "wb": _text(asset.wallet), "cw": _text(asset.wallet), "bc": "0"}
        self._tell(wallet, _FUTURES, "ACCOUNT_UPDATE", a={"m": "ORDER", "B": [balance], "P": []})

    def deposit(self, wallet: SimulatedWallet, amount: Decimal) -> None:
        """Pay into the wallet's first spot asset, and tell its stream."""
        asset, free, locked = wallet.spot[0]
        wallet.spot[0] = (asset, free + amount, locked)
        balance = {"a": asset, "f": _text(free + amount), "l": _text(locked)}
        self._tell(wallet, _SPOT, "outboundAccountPosition", B=[balance], m="DEPOSIT")

    def _tell(self, wallet: SimulatedWallet, kind: str, event: str, **members: Any) -> None:
        now = self._milliseconds()
        for key in self.listen_keys.values():
            if key.wallet is wallet and key.kind == kind:
                self.push.publish(key, {"e": event, "E": now, "T": now, **members})

    def _answer(self, payload: Any, status: int = 200) -> web.Response:
        return web.json_response(payload, status=status, headers={"X-MBX-USED-WEIGHT-1M": str(self.used_weight)})

    def _milliseconds(self) -> int:
        return self._microseconds() // 1000

    def _microseconds(self) -> int:
        return time.time_ns() // 1000 + int(self.clock_offset * 1_000_000)

    def _wallet(self, request: web.Request) -> SimulatedWallet:
        """The wallet that a signed request may read. Raises what refuses the request."""
        if self.used_weight > _WEIGHT_LIMIT:
            _refuse("limit")
        message, _, signature = request.query_string.rpartition("&signature=")
        if not message:
            _refuse("no signature")
        if "/v3/" in request.path:
            return self._wallet_of_agent(message, signature)
        return self._wallet_of_key(request, message, signature)

    def _wallet_of_key(self, request: web.Request, message: str, signature: str) -> SimulatedWallet:
        key = self.keys.get(request.headers.get("X-MBX-APIKEY", ""))
        if key is None:
            _refuse("key")
        expected = hmac.digest(key.secret.encode(), message.encode(), hashlib.sha256).hex()
        if signature.lower() != expected:
            _refuse("signature of a key")
        sent, window = request.query.get("timestamp", ""), request.query.get("recvWindow", "5000")
        if not (sent.isdecimal() and window.isdecimal()):
            _refuse("no time")
        now = self._milliseconds()
        if not (int(sent) < now + 1000 and now - int(sent) <= int(window)):
            _refuse("time")
        return key.wallet

    def _wallet_of_agent(self, message: str, signature: str) -> SimulatedWallet:
        sent = dict(parse_qsl(message))
        user, signer, nonce = (sent.get(name, "") for name in ("user", "signer", "nonce"))
        if not (user and signer and nonce.isdecimal()):
            _refuse("no agent")
        if signer_of(message, signature, self.chain_id) != signer.lower():
            _refuse("signature of an agent")
        wallet = self.wallets.get(user.lower())
        agent = wallet.agents.get(signer.lower()) if wallet else None
        if wallet is None or agent is None or agent.expired <= self._milliseconds():
            _refuse("agent")
        if agent.elsewhere:
            _refuse("address")
        if not agent.can_read:
            _refuse("key")
        self._take_nonce(wallet, int(nonce))
        return wallet

    def _take_nonce(self, wallet: SimulatedWallet, nonce: int) -> None:
        if abs(nonce - self._microseconds()) > _NONCE_WINDOW or nonce in wallet.nonces:
            _refuse("nonce")
        # While there is room no nonce was dropped, so a lower one that is not stored was not used.
        if len(wallet.nonces) >= _NONCES and nonce < min(wallet.nonces):
            _refuse("nonce")
        wallet.nonces = sorted([*wallet.nonces, nonce])[-_NONCES:]

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        if situation == "empty":
            # With an HMAC key, so that the demo shows both schemes.
            return self._add_demo_key(situation, SimulatedWallet())
        if not _agents_can_be_checked():
            return self._add_demo_key(situation, example_wallet(moving=True)) if situation == "moving" else None
        address, row = self._add_demo_wallet(situation)
        wallet = self.wallets[address]
        wallet.moving = situation == "moving"
        if situation == "refused":
            wallet.agents.clear()
        elif situation == "partly":
            # The spot host has been seen to fail for agents while the futures host answered.
            fault = self.fail(Fault.html(500))
            fault.account, fault.path = address, "/api/v3/account"
        # A balance needs two answers: the futures and the spot account.
        show_situation(self, situation, address, answers=2, limit=_rate_limit("30"))
        return row

    def revoke_demo_key(self) -> bool:
        address = "0x" + _demo_digits("wallet moving")[:40]
        if address not in self.wallets:
            return self.keys.pop("demo-key-moving", None) is not None
        self.wallets[address].agents.clear()
        return True

    def troubled_credential(self, trouble: str) -> Mapping[str, Any] | None:
        # Aster answers for an unknown wallet as for an unknown agent.
        if trouble == "unknown account" or not _agents_can_be_checked():
            return None
        address, row = self._add_demo_wallet(trouble)
        wallet = self.wallets[address]
        if trouble == "wrong key":
            return {**row, "api_secret": _demo_digits("another key")}
        if trouble == "missing right":
            for agent in wallet.agents.values():
                agent.elsewhere = True
        elif trouble == "wrong environment":
            # The agent is registered at the test network, and so unknown here.
            wallet.agents.clear()
        show_situation(self, trouble, address, limit=_rate_limit("7"))
        return row

    def _add_demo_wallet(self, word: str) -> tuple[str, dict[str, Any]]:
        """A wallet of the worked example with an agent that may read, and the row that opens it."""
        address, private_key = "0x" + _demo_digits(f"wallet {word}")[:40], _demo_digits(f"agent {word}")
        self.add_wallet(address)
        self.add_agent(address, private_key)
        return address, {"api_secret": private_key, "extra_metadata": {"wallet_address": address}}

    def _add_demo_key(self, word: str, wallet: SimulatedWallet) -> dict[str, Any]:
        """An HMAC key that reads this wallet, as the row that opens it."""
        row = {"api_key": f"demo-key-{word}", "api_secret": _demo_digits(f"secret {word}")}
        self.add_key(row["api_key"], row["api_secret"], wallet)
        return row

    def move(self) -> None:
        self._moves += 1
        for wallet in (*self.wallets.values(), *(key.wallet for key in self.keys.values())):
            if wallet.moving:
                wallet.assets[0].unrealized += self._profit()
                if self._moves % _MOVES_TO_A_TRADE == 0:
                    self.trade(wallet, self._profit())

    def _profit(self) -> Decimal:
        return Decimal(self._random.randint(-4000, 4200)).scaleb(-4)


def example_wallet(*, moving: bool = False) -> SimulatedWallet:
    """The worked example: 5120.44 USDT in futures with one position, 1.5 BNB without stated margins, and spot."""
    return SimulatedWallet(
        assets=[
            SimulatedAsset(
                "USDT",
                wallet=Decimal("5120.44"),
                unrealized=Decimal("84.20"),
                position_margin=Decimal(480),
                order_margin=Decimal("130.10"),
                update_time=_CHANGED,
            ),
            SimulatedAsset("BNB", wallet=Decimal("1.5"), states_margin=False),
        ],
        spot=[("USDT", Decimal("310.25"), Decimal(40)), ("ASTER", Decimal(12), _ZERO)],
        moving=moving,
    )


def address_of(private_key: str) -> str:
    """The address of a private key of 64 hexadecimal digits, in lower case."""
    from coincurve import PrivateKey

    return _address(PrivateKey(bytes.fromhex(private_key)).public_key)


def _futures_account(wallet: SimulatedWallet) -> dict[str, Any]:
    held = {asset.code for asset in wallet.assets}
    assets = [*wallet.assets, *(SimulatedAsset(code) for code in ("USDT", *_NEVER_HELD) if code not in held)]
    counted = assets if wallet.multi_assets else [asset for asset in assets if asset.code == "USDT"]

    def total(figure: str) -> str:
        return _text(sum((getattr(asset, figure) * asset.price for asset in counted), _ZERO))

    return {
        "feeTier": 0,
        "canTrade": True,
        "canDeposit": True,
        "canWithdraw": True,
        "updateTime": 0,
        "totalInitialMargin": total("margin"),
        "totalMaintMargin": total("maintenance_margin"),
        "totalWalletBalance": total("wallet"),
        "totalUnrealizedProfit": total("unrealized"),
        "totalMarginBalance": total("equity"),
        "totalPositionInitialMargin": total("position_margin"),
        "totalOpenOrderInitialMargin": total("order_margin"),
        "totalCrossWalletBalance": total("wallet"),
        "totalCrossUnPnl": total("unrealized"),
        "availableBalance": total("unlent"),
        "maxWithdrawAmount": total("withdrawable"),
        "assets": [_futures_entry(asset) for asset in assets],
        "positions": [],
    }


def _futures_entry(asset: SimulatedAsset) -> dict[str, Any]:
    entry = {
        "asset": asset.code,
        "walletBalance": _text(asset.wallet),
        "unrealizedProfit": _text(asset.unrealized),
        "marginBalance": _text(asset.equity),
        "maintMargin": _text(asset.maintenance_margin),
        "crossWalletBalance": _text(asset.wallet),
        "crossUnPnl": _text(asset.unrealized),
        "availableBalance": _text(asset.available),
        "maxWithdrawAmount": _text(asset.withdrawable),
        "marginAvailable": True,
        "updateTime": asset.update_time,
    }
    if asset.states_margin:
        entry["initialMargin"] = _text(asset.margin)
        entry["positionInitialMargin"] = _text(asset.position_margin)
        entry["openOrderInitialMargin"] = _text(asset.order_margin)
    return entry


def _spot_account(wallet: SimulatedWallet) -> dict[str, Any]:
    return {
        "feeTier": 0,
        "canTrade": True,
        "canDeposit": True,
        "canWithdraw": True,
        "canBurnAsset": False,
        "updateTime": wallet.spot_time,
        "balances": [
            {"asset": asset, "free": _text(free), "locked": _text(locked) if locked else "0"}
            for asset, free, locked in wallet.spot
        ],
    }


def _agent_entry(agent: SimulatedAgent) -> dict[str, Any]:
    return {
        "agentAddress": agent.address,
        "agentName": "balances",
        "ipWhitelist": "203.0.113.7" if agent.elsewhere else "",
        "expired": agent.expired,
        "source": "web",
        "canRead": agent.can_read,
        "canSpotTrade": agent.can_spot_trade,
        "canPerpTrade": agent.can_perp_trade,
        "canWithdraw": agent.can_withdraw,
    }


def _text(value: Decimal) -> str:
    """As the venue writes amounts: eight digits after the point."""
    return f"{value:.8f}"


def _refuse(name: str) -> NoReturn:
    status, code, message = _REFUSALS[name]
    body = json.dumps({"code": code, "msg": message})
    kind = {400: web.HTTPBadRequest, 401: web.HTTPUnauthorized, 429: web.HTTPTooManyRequests}[status]
    raise kind(text=body, content_type="application/json")


def _rate_limit(retry_after: str) -> Fault:
    status, code, message = _REFUSALS["limit"]
    body = json.dumps({"code": code, "msg": message}).encode()
    return Fault(status=status, body=body, headers={"Retry-After": retry_after})


def _demo_digits(words: str) -> str:
    """64 hexadecimal digits that are always the same for the same words."""
    return hashlib.sha256(f"aster demo {words}".encode()).hexdigest()


def _keccak(*parts: bytes) -> bytes:
    return keccak.new(digest_bits=256, data=b"".join(parts)).digest()


def _agents_can_be_checked() -> bool:
    """Whether coincurve is installed, which has no release for Python 3.14. HMAC keys need no coincurve."""
    return importlib.util.find_spec("coincurve") is not None


def _address(public_key: Any) -> str:
    return "0x" + _keccak(public_key.format(compressed=False)[1:])[12:].hex()


def typed_data_hash(message: str, chain_id: int) -> bytes:
    """The EIP-712 hash, written from the standard: each struct is the hash of its type and its encoded members."""
    domain = _keccak(
        _keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
        _keccak(b"AsterSignTransaction"),
        _keccak(b"1"),
        bytes.fromhex(f"{chain_id:064x}"),
        bytes.fromhex("00" * 32),
    )
    return _keccak(bytes.fromhex("1901"), domain, _keccak(_keccak(b"Message(string msg)"), _keccak(message.encode())))


def signer_of(message: str, signature: str, chain_id: int) -> str:
    """The address whose key signed the message; empty if the signature is invalid."""
    from coincurve import PublicKey

    try:
        raw = bytes.fromhex(signature.removeprefix("0x"))
        if len(raw) != 65 or raw[64] not in (27, 28):
            return ""
        recoverable = raw[:64] + bytes([raw[64] - 27])
        digest = typed_data_hash(message, chain_id)
        return _address(PublicKey.from_signature_and_message(recoverable, digest, hasher=None))
    except Exception:
        # The library raises plain exceptions for points that are not on the curve.
        return ""
