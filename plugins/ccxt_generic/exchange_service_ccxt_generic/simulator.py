"""Binance on loopback, as far as CCXT asks for it: markets, and the spot and futures accounts, with real signatures.

Binance's hosts (api, fapi, dapi, sapi) differ in their paths too, so that one address serves for all. It uses nothing
of the client, so that no mistake hides in both, and it does not import CCXT.
"""

from __future__ import annotations

import hashlib
import hmac
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from aiohttp import web

from exchange_service.testing import DemoVenue, Fault

_SPOT = (("BTC", "USDT"), ("ETH", "USDT"), ("BNB", "USDT"), ("USDC", "USDT"), ("ETH", "BTC"))
_LINEAR = (("BTC", "USDT"), ("ETH", "USDT"))
_INVERSE = (("BTC", "USD"), ("ETH", "USD"))
# 2024-11-01T00:00:00Z, when the simulated accounts last changed.
_UPDATED = 1_730_419_200_000


@dataclass(slots=True)
class SimulatedWallet:
    """One API key and what it reads; amounts are texts, as Binance sends them, and go out as they stand."""

    api_key: str
    api_secret: str
    # Asset → (free, locked).
    spot: dict[str, tuple[str, str]] = field(default_factory=dict)
    # Asset → (margin balance, available, initial margin).
    linear: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    moving: bool = False


class BinanceSimulator(DemoVenue):
    """Plays Binance's REST interface."""

    exchange_id = "binance"

    def __init__(self) -> None:
        super().__init__()
        self.wallets: dict[str, SimulatedWallet] = {}
        # Milliseconds that the venue's clock is ahead of this machine's.
        self.clock_ahead = 0
        self._random = random.Random(20)

    def add_wallet(self, wallet: SimulatedWallet) -> SimulatedWallet:
        """Let the wallet's key read it."""
        self.wallets[wallet.api_key] = wallet
        return wallet

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/v3/time", self._time),
            web.get("/fapi/v1/time", self._time),
            web.get("/dapi/v1/time", self._time),
            web.get("/api/v3/exchangeInfo", self._spot_markets),
            web.get("/fapi/v1/exchangeInfo", self._linear_markets),
            web.get("/dapi/v1/exchangeInfo", self._inverse_markets),
            web.get("/sapi/v1/capital/config/getall", self._signed(lambda wallet: [])),
            web.get("/api/v3/account", self._signed(_spot_account)),
            web.get("/fapi/v2/account", self._signed(_linear_account)),
            web.get("/fapi/v3/account", self._signed(_linear_account)),
        ]

    def account_of(self, request: web.Request, body: bytes) -> str:
        return request.headers.get("X-MBX-APIKEY", "")

    async def _time(self, request: web.Request) -> web.Response:
        return web.json_response({"serverTime": self._now()})

    def _now(self) -> int:
        return int(time.time() * 1000) + self.clock_ahead

    async def _spot_markets(self, request: web.Request) -> web.Response:
        return web.json_response({"timezone": "UTC", "symbols": [_spot_symbol(*pair) for pair in _SPOT]})

    async def _linear_markets(self, request: web.Request) -> web.Response:
        return web.json_response({"timezone": "UTC", "symbols": [_contract(*pair, margin=pair[1]) for pair in _LINEAR]})

    async def _inverse_markets(self, request: web.Request) -> web.Response:
        symbols = [_contract(*pair, margin=pair[0], suffix="_PERP") for pair in _INVERSE]
        return web.json_response({"timezone": "UTC", "symbols": symbols})

    def _signed(self, answer: Callable[[SimulatedWallet], Any]) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            refusal = self._refusal(request)
            if refusal is not None:
                return refusal
            return web.json_response(answer(self.wallets[request.headers["X-MBX-APIKEY"]]))

        return handle

    def _refusal(self, request: web.Request) -> web.Response | None:
        """What Binance checks, in its order: the key's form, the parameters, the time, the key, the signature."""
        key = request.headers.get("X-MBX-APIKEY", "")
        if not key.isalnum():
            return _error(401, -2014, "API-key format invalid.")
        signed, _, signature = request.query_string.rpartition("&signature=")
        if not signature or not request.query.get("timestamp", "").isdigit():
            return _error(400, -1102, "Mandatory parameter 'signature' was not sent, was empty/null, or malformed.")
        lag = self._now() - int(request.query["timestamp"])
        if lag > int(request.query.get("recvWindow", "5000")) or lag < -1000:
            return _error(400, -1021, "Timestamp for this request is outside of the recvWindow.")
        wallet = self.wallets.get(key)
        if wallet is None:
            return _error(401, -2015, "Invalid API-key, IP, or permissions for action.")
        expected = hmac.new(wallet.api_secret.encode(), signed.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, signature):
            return _error(400, -1022, "Signature for this request is not valid.")
        return None

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        if situation == "partly":
            # One key is one account here.
            return None
        key, secret = f"demo{situation}key", f"demo{situation}secret"
        if situation != "refused":
            wallet = self.add_wallet(SimulatedWallet(key, secret, moving=situation == "moving"))
            if situation != "empty":
                wallet.spot = {
                    "BTC": ("0.48210000", "0.01000000"),
                    "ETH": ("3.10000000", "0.00000000"),
                    "USDT": ("10412.22180000", "250.00000000"),
                    "BNB": ("0.00000000", "0.00000000"),
                }
        self._misbehave_for(situation, key)
        return {"api_key": key, "api_secret": secret}

    def _misbehave_for(self, situation: str, key: str) -> None:
        if situation == "limited":
            self.fail(Fault.rate_limited("30")).account = key
        elif situation == "slow":
            self.fail(Fault(delay=3.0, pass_on=True, account=key))
        elif situation == "stale":
            # One good answer, then trouble.
            self.fail(Fault.html(503)).account = key
            self.fail(Fault(pass_on=True, account=key, times=1))

    def move(self) -> None:
        for wallet in self.wallets.values():
            if wallet.moving and "USDT" in wallet.spot:
                free, locked = wallet.spot["USDT"]
                change = Decimal(self._random.randint(-400_000, 420_000)).scaleb(-4)
                wallet.spot["USDT"] = (format(max(Decimal(0), Decimal(free) + change), ".8f"), locked)


def _spot_account(wallet: SimulatedWallet) -> dict[str, Any]:
    return {
        "makerCommission": 10,
        "takerCommission": 10,
        "buyerCommission": 0,
        "sellerCommission": 0,
        "commissionRates": {"maker": "0.00100000", "taker": "0.00100000", "buyer": "0.0", "seller": "0.0"},
        "canTrade": True,
        "canWithdraw": False,
        "canDeposit": True,
        "brokered": False,
        "requireSelfTradePrevention": False,
        "preventSor": False,
        "updateTime": _UPDATED,
        "accountType": "SPOT",
        "balances": [{"asset": asset, "free": free, "locked": locked} for asset, (free, locked) in wallet.spot.items()],
        "permissions": ["SPOT"],
        "uid": 354937868,
    }


def _linear_account(wallet: SimulatedWallet) -> dict[str, Any]:
    return {
        "totalInitialMargin": "0.00000000",
        "totalWalletBalance": "0.00000000",
        "assets": [
            {
                "asset": asset,
                "walletBalance": total,
                "unrealizedProfit": "0.00000000",
                "marginBalance": total,
                "maintMargin": "0.00000000",
                "initialMargin": margin,
                "availableBalance": available,
                "maxWithdrawAmount": available,
                "updateTime": _UPDATED,
            }
            for asset, (total, available, margin) in wallet.linear.items()
        ],
        "positions": [],
    }


def _filters() -> list[dict[str, str]]:
    return [
        {"filterType": "PRICE_FILTER", "minPrice": "0.01000000", "maxPrice": "1000000.00000000", "tickSize": "0.01"},
        {"filterType": "LOT_SIZE", "minQty": "0.00001000", "maxQty": "9000.00000000", "stepSize": "0.00001000"},
    ]


def _spot_symbol(base: str, quote: str) -> dict[str, Any]:
    return {
        "symbol": base + quote,
        "status": "TRADING",
        "baseAsset": base,
        "baseAssetPrecision": 8,
        "quoteAsset": quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "orderTypes": ["LIMIT", "MARKET"],
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": _filters(),
        "permissions": [],
        "permissionSets": [["SPOT"]],
    }


def _contract(base: str, quote: str, *, margin: str, suffix: str = "") -> dict[str, Any]:
    inverse = bool(suffix)
    return {
        "symbol": base + quote + suffix,
        "pair": base + quote,
        "contractType": "PERPETUAL",
        "deliveryDate": 4133404800000,
        "onboardDate": 1569398400000,
        "contractStatus" if inverse else "status": "TRADING",
        "contractSize": 100 if inverse else 1,
        "baseAsset": base,
        "quoteAsset": quote,
        "marginAsset": margin,
        "pricePrecision": 2,
        "quantityPrecision": 3,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "filters": _filters(),
        "orderTypes": ["LIMIT", "MARKET"],
    }


def _error(status: int, code: int, message: str) -> web.Response:
    return web.json_response({"code": code, "msg": message}, status=status)
