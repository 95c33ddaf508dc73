"""A simulator of ApeX Omni, as far as CCXT uses it: the contracts, and the figures of the account."""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

from aiohttp import web

from exchange_service.testing import DemoVenue, Fault, show_situation

_CONTRACTS = ("BTC", "ETH")
# Milliseconds that a request's time may be off.
_WINDOW = 10_000
# witness: CCXT: apex (describe: 20006, apikey sign error)
_SIGNATURE_REFUSED = {"code": 20006, "msg": "apikey sign error", "timeCost": 5320995}


@dataclass(slots=True)
class SimulatedOmniAccount:
    """One API key and its account. Amounts are texts, which are sent as they are."""

    api_key: str
    secret: str
    passphrase: str
    # In USDT.
    equity: str = "0.000000"
    available: str = "0.000000"
    initial_margin: str = "0.000000"
    moving: bool = False


class ApexSimulator(DemoVenue):
    """Simulates ApeX Omni's REST interface. Only orders would need a seed besides."""

    exchange_id = "apex"
    trouble_witnesses: ClassVar[Mapping[str, str]] = {
        "wrong key": "CCXT: apex.exceptions",
        "wrong environment": "unproven: the answer of one host to a key of the other was looked for",
        "rate limit": "CCXT: apex.httpExceptions",
        "outage": "unproven: an answer of ApeX during an outage was looked for",
    }

    def __init__(self) -> None:
        super().__init__()
        self.accounts: dict[str, SimulatedOmniAccount] = {}
        self._random = random.Random(22)

    def add_account(self, account: SimulatedOmniAccount) -> SimulatedOmniAccount:
        """Let the account's key read it."""
        self.accounts[account.api_key] = account
        return account

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/v3/symbols", self._symbols),
            web.get("/api/v3/account-balance", self._balance),
        ]

    def account_of(self, request: web.Request, body: bytes) -> str:
        return request.headers.get("APEX-API-KEY", "")

    async def _symbols(self, request: web.Request) -> web.Response:
        contracts = {"perpetualContract": [_contract(base) for base in _CONTRACTS], "prelaunchContract": []}
        tokens = [{"token": "USDT", "displayToken": "USDT", "decimals": 6, "withdrawEnable": True, "pullOff": False}]
        chains = [{"chain": "Arbitrum One", "chainId": "9", "chainType": "0", "stopDeposit": False, "tokens": tokens}]
        assets = [{"tokenId": "141", "token": "USDT", "displayName": "Tether USD Coin", "decimals": 18}]
        spot = {"assets": assets, "multiChain": {"chains": chains}}
        return web.json_response({"data": {"contractConfig": contracts, "spotConfig": spot}})

    async def _balance(self, request: web.Request) -> web.Response:
        account = self.accounts.get(request.headers.get("APEX-API-KEY", ""))
        if account is None or not _is_signed(request, account):
            return web.json_response(_SIGNATURE_REFUSED)
        figures = {
            "totalEquityValue": account.equity,
            "availableBalance": account.available,
            "initialMargin": account.initial_margin,
            "maintenanceMargin": account.initial_margin,
            "symbolToOraclePrice": {f"{base}-USDT": {"oraclePrice": "20000", "createdTime": 0} for base in _CONTRACTS},
        }
        return web.json_response({"data": figures, "timeCost": 1403455})

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        if situation == "partly":
            # A key has one account.
            return None
        account = self._demo_account(situation)
        if situation != "refused":
            self.add_account(account)
        show_situation(self, situation, account.api_key)
        return _row(account)

    def revoke_demo_key(self) -> bool:
        return self.accounts.pop(self._demo_account("moving").api_key, None) is not None

    def troubled_credential(self, trouble: str) -> Mapping[str, Any] | None:
        if trouble in ("missing right", "unknown account"):
            # Every key may read, and has one account.
            return None
        account = self._demo_account(trouble)
        if trouble in ("rate limit", "outage"):
            self.add_account(account)
        # ApeX answers too many requests with 403 and states no delay.
        show_situation(self, trouble, account.api_key, limit=Fault(status=403, content_type="text/plain"))
        return _row(account)

    def _demo_account(self, situation: str) -> SimulatedOmniAccount:
        name = situation.replace(" ", "-")
        account = SimulatedOmniAccount(
            f"demo-{name}-key", f"demo-{name}-secret", f"demo-{name}-words", moving=situation == "moving"
        )
        if situation != "empty":
            account.equity, account.available, account.initial_margin = "2510.400000", "2010.150000", "500.250000"
        return account

    def move(self) -> None:
        for account in self.accounts.values():
            if account.moving:
                change = Decimal(self._random.randint(-4_000, 4_200)).scaleb(-3)
                account.equity = format(max(Decimal(0), Decimal(account.equity) + change), ".6f")
                account.available = format(max(Decimal(0), Decimal(account.available) + change), ".6f")


def _is_signed(request: web.Request, account: SimulatedOmniAccount) -> bool:
    stamp = request.headers.get("APEX-TIMESTAMP", "")
    if not stamp.isdigit() or abs(time.time() * 1000 - int(stamp)) > _WINDOW:
        return False
    # The time, the method and the path with its query are signed, with the base64 text of the secret.
    signed = f"{stamp}{request.method}{request.path_qs}".encode()
    digest = hmac.new(base64.b64encode(account.secret.encode()), signed, hashlib.sha256).digest()
    signature = request.headers.get("APEX-SIGNATURE", "")
    words = request.headers.get("APEX-PASSPHRASE", "")
    return hmac.compare_digest(base64.b64encode(digest).decode(), signature) and words == account.passphrase


def _row(account: SimulatedOmniAccount) -> Mapping[str, str]:
    return {"api_key": account.api_key, "api_secret": account.secret, "passphrase": account.passphrase}


def _contract(base: str) -> dict[str, Any]:
    return {
        "symbol": f"{base}-USDT",
        "crossSymbolName": f"{base}USDT",
        "symbolDisplayName": f"{base}USDT",
        "baseTokenId": base,
        "settleAssetId": "USDT",
        "l2PairId": "50001",
        "enableTrade": True,
        "enableDisplay": True,
        "enableOpenPosition": True,
        "displayMaxLeverage": "100",
        "displayMinLeverage": "1",
        "minOrderSize": "0.0010",
        "maxOrderSize": "50",
        "stepSize": "0.001",
        "tickSize": "0.1",
    }
