"""A simulator of Binance, as far as CCXT uses it: markets and every kind of account, with real signatures.

The hosts of Binance (api, fapi, dapi, sapi) have different paths, so one address serves for all.
"""

from __future__ import annotations

import hashlib
import hmac
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from aiohttp import web

from exchange_service.testing import DemoVenue, Fault, show_situation
from exchange_service.testing.push import PushClient

_SPOT = (("BTC", "USDT"), ("ETH", "USDT"), ("BNB", "USDT"), ("USDC", "USDT"), ("ETH", "BTC"))
_LINEAR = (("BTC", "USDT"), ("ETH", "USDT"))
_INVERSE = (("BTC", "USD"), ("ETH", "USD"))
# 2024-11-01T00:00:00Z, when the simulated accounts last changed.
_UPDATED = 1_730_419_200_000
# Milliseconds: the longest window that a request may ask for, and how far its time may be ahead.
_LONGEST_WINDOW = 60_000
_LARGEST_LEAD = 1_000

# witness: CCXT: binance (describe: -2015)
_REFUSED = (401, -2015, "Invalid API-key, IP, or permissions for action.")


@dataclass(slots=True)
class SimulatedWallet:
    """One API key and its accounts. Amounts are texts, which are sent as they are."""

    api_key: str
    api_secret: str
    # Asset → (free, locked).
    spot: dict[str, tuple[str, str]] = field(default_factory=dict)
    # Asset → (margin balance, available, initial margin); None if the key may not read futures.
    linear: dict[str, tuple[str, str, str]] | None = field(default_factory=dict)
    inverse: dict[str, tuple[str, str, str]] | None = field(default_factory=dict)
    # Asset → (free, locked); None if the account was never opened.
    margin: dict[str, tuple[str, str]] | None = None
    # (Base, quote) → (free, free) of the isolated margin account of this pair.
    isolated: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    funding: dict[str, tuple[str, str]] = field(default_factory=dict)
    # Asset → total of the portfolio margin account; None if the user has no such account.
    portfolio: dict[str, str] | None = None
    # What the key may do besides reading, by Binance's names.
    rights: tuple[str, ...] = ()
    moving: bool = False
    # The user's number.
    uid: int = 354937868


class BinanceSimulator(DemoVenue):
    """Simulates Binance's REST interface, and the socket that pushes a spot account."""

    exchange_id = "binance"
    named_by = "`uid` of the spot account"
    trouble_witnesses: ClassVar[Mapping[str, str]] = {
        "wrong key": "CCXT: binance.exceptions",
        "wrong environment": "unproven: the answer of one host to a key of the other was looked for",
        "rate limit": "vendor: https://developers.binance.com/en/docs/products/derivatives-trading-usds-futures/error-code",
        "outage": "unproven: an answer of Binance during an outage was looked for",
    }

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
            web.get("/sapi/v1/capital/config/getall", self._require_signature(lambda wallet: [])),
            web.get("/api/v3/account", self._require_signature(_spot_account)),
            web.get("/fapi/v2/account", self._require_signature(lambda wallet: _contract_account(wallet.linear))),
            web.get("/fapi/v3/account", self._require_signature(lambda wallet: _contract_account(wallet.linear))),
            web.get("/dapi/v1/account", self._require_signature(lambda wallet: _contract_account(wallet.inverse))),
            web.get("/sapi/v1/margin/account", self._require_signature(_margin_account)),
            web.get("/sapi/v1/margin/isolated/account", self._require_signature(_isolated_account)),
            web.post("/sapi/v1/asset/get-funding-asset", self._require_signature(_funding_account)),
            web.get("/papi/v1/balance", self._require_signature(_portfolio)),
            web.get("/sapi/v1/account/apiRestrictions", self._require_signature(_restrictions)),
            web.get("/ws-api/v3", self._socket),
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

    def _require_signature(self, answer: Callable[[SimulatedWallet], Any]) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            # The query of a GET and the body of a POST are signed.
            signed = request.query_string if request.method == "GET" else await request.text()
            refusal = self._refusal(request.headers.get("X-MBX-APIKEY", ""), signed)
            if refusal is not None:
                return _error(*refusal)
            payload = answer(self.wallets[request.headers["X-MBX-APIKEY"]])
            return payload if isinstance(payload, web.Response) else web.json_response(payload)

        return handle

    def _refusal(self, key: str, sent: str) -> tuple[int, int, str] | None:
        """The error of a request, or None. In Binance's order: form of the key, parameters, time, key, signature."""
        if not key.isalnum():
            return 401, -2014, "API-key format invalid."
        signed, _, signature = sent.rpartition("&signature=")
        values = dict(parse_qsl(signed))
        if not signature or not values.get("timestamp", "").isdigit():
            return 400, -1102, "Mandatory parameter 'signature' was not sent, was empty/null, or malformed."
        window = int(values.get("recvWindow", "5000"))
        if window > _LONGEST_WINDOW:
            return 400, -1131, "recvWindow must be less than 60000."
        lag = self._now() - int(values["timestamp"])
        if lag > window or lag < -_LARGEST_LEAD:
            return 400, -1021, "Timestamp for this request is outside of the recvWindow."
        wallet = self.wallets.get(key)
        if wallet is None:
            return _REFUSED
        expected = hmac.new(wallet.api_secret.encode(), signed.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, signature):
            return 400, -1022, "Signature for this request is not valid."
        return None

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        return await self.push.serve(request, self._hear)

    def _hear(self, client: PushClient, message: Any) -> None:
        """Let the connection follow the spot account whose key signs in. CCXT sends nothing else."""
        sent = dict(message["params"])
        signature, key = sent.pop("signature", ""), str(sent.get("apiKey", ""))
        signed = "&".join(f"{name}={value}" for name, value in sorted(sent.items()))
        refusal = self._refusal(key, f"{signed}&signature={signature}")
        if refusal is None:
            client.topics.add(key)
            client.send({"id": message["id"], "status": 200, "result": {"subscriptionId": 0}})
            return
        status, code, text = refusal
        client.send({"id": message["id"], "status": status, "error": {"code": code, "msg": text}})

    def announce(self, wallet: SimulatedWallet, *assets: str) -> None:
        """Push these assets of the spot account, as Binance does after a change: the others are not in the message."""
        rows = [{"a": asset, "f": wallet.spot[asset][0], "l": wallet.spot[asset][1]} for asset in assets]
        event = {"e": "outboundAccountPosition", "E": self._now(), "u": self._now(), "B": rows}
        self.push.publish(wallet.api_key, {"subscriptionId": 0, "event": event})

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        if situation == "partly":
            # A key has one account. Its margin account, which is not opened, shows an error with `all`.
            return None
        row = self._demo_row(situation)
        if situation != "refused":
            self.add_wallet(self._demo_wallet(row, situation))
        show_situation(self, situation, row["api_key"])
        return row

    def revoke_demo_key(self) -> bool:
        return self.wallets.pop(self._demo_row("moving")["api_key"], None) is not None

    def other_credential(self) -> Mapping[str, Any]:
        row = self._demo_row("other")
        spot = {"BTC": ("7.77000000", "0.00000000")}
        self.add_wallet(SimulatedWallet(row["api_key"], row["api_secret"], spot, uid=354937869))
        return row

    def troubled_credential(self, trouble: str) -> Mapping[str, Any] | None:
        row = self._demo_row(trouble.replace(" ", ""))
        if trouble in ("wrong key", "wrong environment"):
            # The key is not added: the live venue does not know the keys of the test network either.
            return row
        if trouble in ("missing right", "unknown account"):
            # Binance answers a missing right as an unknown key, and a key has no account number beside it.
            return None
        body = b'{"code":-1003,"msg":"Too many requests; current limit is 6000 request weight per 1 MINUTE."}'
        headers = {"Retry-After": "30", "X-MBX-USED-WEIGHT-1M": "6001"}
        show_situation(self, trouble, row["api_key"], limit=Fault(status=429, body=body, headers=headers))
        self.add_wallet(self._demo_wallet(row, trouble))
        return row

    def _demo_row(self, name: str) -> dict[str, str]:
        return {"api_key": f"demo{name}key", "api_secret": f"demo{name}secret"}

    def _demo_wallet(self, row: Mapping[str, str], situation: str) -> SimulatedWallet:
        wallet = SimulatedWallet(row["api_key"], row["api_secret"], moving=situation == "moving")
        if situation != "empty":
            wallet.spot = {
                "BTC": ("0.48210000", "0.01000000"),
                "ETH": ("3.10000000", "0.00000000"),
                "USDT": ("10412.22180000", "250.00000000"),
                "BNB": ("0.00000000", "0.00000000"),
            }
            wallet.linear = {"USDT": ("1500.25000000", "1200.25000000", "300.00000000")}
            wallet.funding = {"USDT": ("12.5", "0")}
            wallet.portfolio = {"USDT": "1500.25000000"}
        return wallet

    def move(self) -> None:
        for wallet in self.wallets.values():
            if wallet.moving and "USDT" in wallet.spot:
                free, locked = wallet.spot["USDT"]
                change = Decimal(self._random.randint(-400_000, 420_000)).scaleb(-4)
                wallet.spot["USDT"] = (format(max(Decimal(0), Decimal(free) + change), ".8f"), locked)
                self.announce(wallet, "USDT")


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
        "uid": wallet.uid,
    }


def _contract_account(assets: Mapping[str, tuple[str, str, str]] | None) -> Any:
    if assets is None:
        return _error(*_REFUSED)
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
            for asset, (total, available, margin) in assets.items()
        ],
        "positions": [],
    }


def _margin_account(wallet: SimulatedWallet) -> Any:
    if wallet.margin is None:
        return _error(400, -3003, "Margin account does not exist.")
    return {
        "created": True,
        "borrowEnabled": True,
        "marginLevel": "999.00000000",
        "tradeEnabled": True,
        "transferInEnabled": True,
        "transferOutEnabled": True,
        "accountType": "MARGIN_1",
        "userAssets": [
            {"asset": asset, "borrowed": "0", "free": free, "interest": "0", "locked": locked, "netAsset": free}
            for asset, (free, locked) in wallet.margin.items()
        ],
    }


def _isolated_account(wallet: SimulatedWallet) -> dict[str, Any]:
    return {
        "assets": [
            {
                "symbol": "".join(pair),
                "baseAsset": _isolated_side(pair[0], free[0]),
                "quoteAsset": _isolated_side(pair[1], free[1]),
                "isolatedCreated": True,
                "enabled": True,
                "tradeEnabled": True,
            }
            for pair, free in wallet.isolated.items()
        ]
    }


def _isolated_side(asset: str, free: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("borrowed", "interest", "locked"), "0")
    return {"asset": asset, "borrowEnabled": True, "free": free, **nothing, "netAsset": free, "totalAsset": free}


def _funding_account(wallet: SimulatedWallet) -> list[dict[str, str]]:
    return [
        {"asset": asset, "free": free, "locked": locked, "freeze": "0", "withdrawing": "0", "btcValuation": "0"}
        for asset, (free, locked) in wallet.funding.items()
    ]


def _portfolio(wallet: SimulatedWallet) -> Any:
    if wallet.portfolio is None:
        return _error(*_REFUSED)
    return [
        {
            "asset": asset,
            "totalWalletBalance": total,
            "crossMarginAsset": "0",
            "crossMarginBorrowed": "0",
            "crossMarginFree": "0",
            "crossMarginInterest": "0",
            "crossMarginLocked": "0",
            "umWalletBalance": total,
            "umUnrealizedPNL": "0",
            "cmWalletBalance": "0",
            "cmUnrealizedPNL": "0",
            "updateTime": _UPDATED,
            "negativeBalance": "0",
        }
        for asset, total in wallet.portfolio.items()
    ]


def _restrictions(wallet: SimulatedWallet) -> dict[str, Any]:
    names = (
        "enableReading",
        "enableWithdrawals",
        "enableInternalTransfer",
        "enableMargin",
        "enableFutures",
        "permitsUniversalTransfer",
        "enableVanillaOptions",
        "enableSpotAndMarginTrading",
        "enablePortfolioMarginTrading",
    )
    rights = {name: name == "enableReading" or name in wallet.rights for name in names}
    return {"ipRestrict": False, "createTime": _UPDATED, **rights}


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
