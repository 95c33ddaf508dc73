"""A simulator of Coinbase, as far as CCXT uses it: products, currencies, and the accounts of Advanced Trade.

Like Coinbase it checks the token of a request, which the key signs for this address (ES256, or EdDSA for newer keys),
or the signature of a legacy key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

from aiohttp import web

from exchange_service.testing import DemoVenue, Fault, show_situation

_ACCOUNTS = "/api/v3/brokerage/accounts"
_FIAT = (("USD", "United States Dollar"), ("EUR", "Euro"))
_CRYPTO = (("BTC", "Bitcoin"), ("ETH", "Ethereum"), ("USDC", "USDC"))
_PRODUCTS = (("BTC", "USD"), ("ETH", "USD"), ("BTC", "USDC"))
# Seconds: the longest life of a token, and how far a legacy signature's time may be off.
_TOKEN_LIFE = 120
_LEGACY_WINDOW = 30
# Rows on one page at most, whatever a request asks for.
_LARGEST_PAGE = 250

# witness: report: https://github.com/Drakkar-Software/OctoBot-Tentacles/pull/1431
_MISSING_SCOPES = {
    "error": "unknown",
    "error_details": "Missing required scopes",
    "message": "Missing required scopes",
}


@dataclass(slots=True)
class SimulatedProfile:
    """One key and its accounts. Amounts are texts, which are sent as they are.

    `secret` is the private key of the token in PEM, the 64 bytes of an EdDSA key in base64, or a legacy secret.
    """

    name: str
    secret: str
    # Currency → (available, hold).
    accounts: dict[str, tuple[str, str]] = field(default_factory=dict)
    # (total, buying power) of the futures account, in USD.
    futures: tuple[str, str] = ("0", "0")
    may_view: bool = True
    may_trade: bool = False
    may_transfer: bool = False
    moving: bool = False


class CoinbaseSimulator(DemoVenue):
    """Simulates Coinbase's REST interface."""

    exchange_id = "coinbase"
    trouble_witnesses: ClassVar[Mapping[str, str]] = {
        "wrong key": "report: https://github.com/ccxt/ccxt/issues/26300",
        "missing right": "report: https://github.com/Drakkar-Software/OctoBot-Tentacles/pull/1431",
        "rate limit": "vendor: https://docs.cdp.coinbase.com/coinbase-business/api-architecture/rate-limiting",
        "outage": "unproven: an answer of Coinbase during an outage was looked for",
    }

    def __init__(self) -> None:
        super().__init__()
        self.profiles: dict[str, SimulatedProfile] = {}
        self.largest_page = _LARGEST_PAGE
        self._random = random.Random(21)

    def add_profile(self, profile: SimulatedProfile) -> SimulatedProfile:
        """Let the profile's key read it."""
        self.profiles[profile.name] = profile
        return profile

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/v3/brokerage/market/products", self._products),
            web.get("/v2/currencies", self._fiat),
            web.get("/v2/currencies/crypto", self._crypto),
            web.get("/v2/exchange-rates", self._rates),
            web.get(_ACCOUNTS, self._require_signature(self._accounts)),
            web.get("/api/v3/brokerage/cfm/balance_summary", self._require_signature(self._futures)),
            web.get("/api/v3/brokerage/key_permissions", self._require_signature(self._permissions)),
        ]

    def account_of(self, request: web.Request, body: bytes) -> str:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token:
            claims = _part(token, 1)
            return str(claims.get("sub", "")) if claims else ""
        return request.headers.get("CB-ACCESS-KEY", "")

    async def _products(self, request: web.Request) -> web.Response:
        contracts = request.query.get("product_type") == "FUTURE"
        products = [] if contracts else [_product(base, quote) for base, quote in _PRODUCTS]
        return web.json_response({"products": products, "num_products": len(products)})

    async def _fiat(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": code, "name": name, "min_size": "0.01"} for code, name in _FIAT]})

    async def _crypto(self, request: web.Request) -> web.Response:
        data = [
            {"asset_id": f"asset-{code}", "code": code, "name": name, "exponent": 8, "type": "crypto"}
            for code, name in _CRYPTO
        ]
        return web.json_response({"data": data})

    async def _rates(self, request: web.Request) -> web.Response:
        rates = {code: "1" for code, _ in (*_FIAT, *_CRYPTO)}
        return web.json_response({"data": {"currency": "USD", "rates": rates}})

    def _require_signature(
        self, answer: Callable[[SimulatedProfile, web.Request], web.Response]
    ) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            profile = self.profiles.get(self.account_of(request, b""))
            if profile is None or not _is_signed(request, profile):
                return web.Response(status=401, text="Unauthorized\n")
            if not profile.may_view:
                return web.json_response(_MISSING_SCOPES, status=403)
            return answer(profile, request)

        return handle

    def _accounts(self, profile: SimulatedProfile, request: web.Request) -> web.Response:
        start = int(request.query.get("cursor") or 0)
        end = start + min(int(request.query.get("limit", "49")), self.largest_page)
        rows = [_account(code, *amounts) for code, amounts in profile.accounts.items()]
        more = end < len(rows)
        page = rows[start:end]
        answer = {"accounts": page, "has_next": more, "cursor": str(end) if more else "", "size": len(page)}
        return web.json_response(answer)

    def _futures(self, profile: SimulatedProfile, request: web.Request) -> web.Response:
        total, buying_power = profile.futures
        summary = {"total_usd_balance": _dollars(total), "futures_buying_power": _dollars(buying_power)}
        return web.json_response({"balance_summary": summary})

    def _permissions(self, profile: SimulatedProfile, request: web.Request) -> web.Response:
        rights = {
            "can_view": profile.may_view,
            "can_trade": profile.may_trade,
            "can_transfer": profile.may_transfer,
            "portfolio_uuid": "3d0f5a9a-6f0e-4e0f-9a55-0c2c8a0f6a11",
            "portfolio_type": "DEFAULT",
        }
        return web.json_response(rights)

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        if situation == "partly":
            # A key has one account.
            return None
        profile = self._demo_profile(situation)
        if situation != "refused":
            self.add_profile(profile)
        show_situation(self, situation, profile.name)
        return {"api_key": profile.name, "api_secret": profile.secret}

    def revoke_demo_key(self) -> bool:
        return self.profiles.pop(self._demo_profile("moving").name, None) is not None

    def troubled_credential(self, trouble: str) -> Mapping[str, Any] | None:
        if trouble in ("wrong environment", "unknown account"):
            # A key of the sandbox is unknown here, as a wrong key is, and a key has one account.
            return None
        profile = self._demo_profile(trouble)
        if trouble != "wrong key":
            self.add_profile(profile)
        if trouble == "missing right":
            profile.may_view = False
        body = b'{"errors":[{"id":"rate_limit_exceeded","message":"Too many requests"}]}'
        limit = Fault(status=429, body=body, headers={"Retry-After": "30"})
        show_situation(self, trouble, profile.name, limit=limit)
        return {"api_key": profile.name, "api_secret": profile.secret}

    def _demo_profile(self, situation: str) -> SimulatedProfile:
        name = f"organizations/7d8e1f2a/apiKeys/{situation.replace(' ', '-')}"
        profile = SimulatedProfile(name, private_key(situation), moving=situation == "moving")
        if situation != "empty":
            profile.accounts = {
                "BTC": ("0.25000000", "0.05000000"),
                "ETH": ("4.00000000", "0"),
                "USD": ("3120.55", "100.00"),
            }
        return profile

    def move(self) -> None:
        for profile in self.profiles.values():
            if profile.moving and "USD" in profile.accounts:
                available, hold = profile.accounts["USD"]
                change = Decimal(self._random.randint(-4_000, 4_200)).scaleb(-2)
                profile.accounts["USD"] = (format(max(Decimal(0), Decimal(available) + change), ".2f"), hold)


def private_key(seed: str) -> str:
    """The PEM text of a private key as Coinbase issues it; always the same for a seed."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()) >> 1
    key = ec.derive_private_key(number, ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()


def _is_signed(request: web.Request, profile: SimulatedProfile) -> bool:
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return _is_token_of(token, request, profile) if token else _is_legacy_signature(request, profile)


def _is_token_of(token: str, request: web.Request, profile: SimulatedProfile) -> bool:
    """Whether the token is the profile's, for this request and this time, and signed with the profile's key."""
    header, claims = _part(token, 0), _part(token, 1)
    if not header or not claims or header.get("kid") != profile.name or claims.get("sub") != profile.name:
        return False
    begin, end, now = claims.get("nbf"), claims.get("exp"), time.time()
    if not isinstance(begin, int) or not isinstance(end, int) or not begin <= now < end <= begin + _TOKEN_LIFE:
        return False
    # On loopback the address is plain HTTP, unlike that of the real venue.
    allowed = {f"{request.method} {scheme}{request.host}{request.path}" for scheme in ("", "http://")}
    if not allowed.intersection([claims.get("uri"), *(claims.get("uris") or [])]):
        return False
    signed, _, signature = token.rpartition(".")
    if header.get("alg") == "EdDSA":
        return claims.get("iss") == "cdp" and _is_eddsa(profile.secret, signed.encode(), _decode(signature))
    return header.get("alg") == "ES256" and _is_es256(profile.secret, signed.encode(), _decode(signature))


def _is_es256(pem: str, signed: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(pem.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or len(signature) != 64:
        return False
    numbers = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
    try:
        key.public_key().verify(encode_dss_signature(*numbers), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _is_eddsa(secret: str, signed: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(secret)[:32])
    try:
        key.public_key().verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def _is_legacy_signature(request: web.Request, profile: SimulatedProfile) -> bool:
    stamp = request.headers.get("CB-ACCESS-TIMESTAMP", "")
    if not stamp.isdigit() or abs(time.time() - int(stamp)) > _LEGACY_WINDOW:
        return False
    signed = f"{stamp}{request.method}{request.path}"
    expected = hmac.new(profile.secret.encode(), signed.encode(), hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, request.headers.get("CB-ACCESS-SIGN", ""))


def _part(token: str, place: int) -> dict[str, Any] | None:
    """A part of the token as JSON object; None if it is not one."""
    parts = token.split(".")
    try:
        value = json.loads(_decode(parts[place])) if len(parts) == 3 else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _decode(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return b""


def _account(code: str, available: str, hold: str) -> dict[str, Any]:
    return {
        "uuid": f"00000000-0000-4000-8000-{code.encode().hex():0>12}",
        "name": f"{code} Wallet",
        "currency": code,
        "available_balance": {"value": available, "currency": code},
        "default": True,
        "active": True,
        "created_at": "2024-11-01T00:00:00.000Z",
        "updated_at": "2024-11-01T00:00:00.000Z",
        "deleted_at": None,
        "type": "ACCOUNT_TYPE_FIAT" if code in dict(_FIAT) else "ACCOUNT_TYPE_CRYPTO",
        "ready": True,
        "hold": {"value": hold, "currency": code},
        "retail_portfolio_id": "3d0f5a9a-6f0e-4e0f-9a55-0c2c8a0f6a11",
        "platform": "ACCOUNT_PLATFORM_CONSUMER",
    }


def _dollars(amount: str) -> dict[str, str]:
    return {"value": amount, "currency": "USD"}


def _product(base: str, quote: str) -> dict[str, Any]:
    return {
        "product_id": f"{base}-{quote}",
        "price": "1",
        "base_increment": "0.00000001",
        "quote_increment": "0.01",
        "price_increment": "0.01",
        "quote_min_size": "1",
        "quote_max_size": "50000000",
        "base_min_size": "0.00000001",
        "base_max_size": "2600",
        "base_name": base,
        "quote_name": quote,
        "status": "online",
        "trading_disabled": False,
        "product_type": "SPOT",
        "quote_currency_id": quote,
        "base_currency_id": base,
    }
